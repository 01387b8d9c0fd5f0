//! Activation: reading an object's frames and putting its contents together.

use std::rc::Rc;

use bytes::Bytes;
use futures_util::future::join_all;

use crate::batch::{Op, share};
use crate::contents::Contents;
use crate::directory::{Entry, Stamp};
use crate::env::Env;
use crate::error::{Error, Result};
use crate::format::frame::{self, Address, Kind};
use crate::ids::{Incarnation, ObjectId};
use crate::io::{PageBuf, read_full_at};
use crate::log::handles;
use crate::shard::Inner;

/// A frame that was read and checked, and what of it is still needed.
struct Loaded {
    bytes: Bytes,
    incarnation: Incarnation,
    offset: u32,
}

impl Loaded {
    fn frame(&self) -> frame::Frame<'_> {
        frame::decode(&self.bytes, self.incarnation, self.offset).expect("checked when read")
    }
}

/// One place in the order in which frames apply.
enum Step {
    Read(Address),
    Apply(Loaded),
}

/// Reads the object that `entry` points to.
pub(crate) async fn load<E: Env>(
    inner: &Rc<Inner<E>>,
    id: &ObjectId,
    entry: &Entry,
) -> Result<Contents> {
    load_chain(inner, id, entry.chain(), entry.stamp()).await
}

/// Reads the object that a chain of frames holds, oldest first: one round of parallel reads for
/// them, and one more for each chain nested in it.
pub(crate) async fn load_chain<E: Env>(
    inner: &Rc<Inner<E>>,
    id: &ObjectId,
    chain: impl IntoIterator<Item = Address>,
    stamp: Stamp,
) -> Result<Contents> {
    let mut steps: Vec<Step> = chain.into_iter().map(Step::Read).collect();
    let mut budget = usize::from(u16::MAX);
    while steps.iter().any(|step| matches!(step, Step::Read(_))) {
        let reads = steps.iter().filter_map(|step| match step {
            Step::Read(address) => Some(read_frame(inner, id, *address)),
            Step::Apply(_) => None,
        });
        let mut loaded = join_all(reads).await.into_iter();
        let mut next = Vec::new();
        for step in steps {
            let Step::Read(_) = step else {
                next.push(step);
                continue;
            };
            let loaded = loaded.next().expect("one result for each read")?;
            let frame = loaded.frame();
            let nested = if frame.nests { &frame.chain[..] } else { &[] };
            if frame.kind == Kind::Image && !frame.part {
                // The whole object: nothing before it counts.
                next.clear();
            }
            budget = budget.checked_sub(nested.len() + 1).ok_or_else(|| {
                Error::corrupt(format!("object {id}: its chain of frames does not end"))
            })?;
            next.extend(nested.iter().copied().map(Step::Read));
            next.push(Step::Apply(loaded));
        }
        steps = next;
    }
    let Stamp { version, alarm, .. } = stamp;
    let mut contents = Contents { version, alarm, ..<_>::default() };
    for step in steps {
        let Step::Apply(loaded) = step else { unreachable!("all are read") };
        apply(&mut contents, &loaded, id)?;
    }
    Ok(contents)
}

fn apply(contents: &mut Contents, loaded: &Loaded, id: &ObjectId) -> Result<()> {
    let frame = loaded.frame();
    let older = std::mem::replace(&mut contents.origin, frame.origin.clone());
    contents.origin.learn(&older);
    for op in frame.ops() {
        match op {
            Ok(Op::Put(key, value)) => {
                contents.map.insert(share(&loaded.bytes, key), share(&loaded.bytes, value));
            }
            Ok(Op::Delete(key)) => {
                contents.map.remove(key);
            }
            Err(_) => return Err(Error::corrupt(format!("object {id}: malformed operations"))),
        }
    }
    Ok(())
}

async fn read_frame<E: Env>(
    inner: &Rc<Inner<E>>,
    id: &ObjectId,
    address: Address,
) -> Result<Loaded> {
    let place = || {
        format!(
            "object {id}: {} bytes at {} of segment {}",
            address.bytes, address.offset, address.segment
        )
    };
    let opened = handles::opened(inner, address.segment).await;
    let segment = opened.map_err(|error| Error::caused(error.kind(), place(), error))?;
    let segment = segment.ok_or_else(|| Error::corrupt(format!("{}: no such segment", place())))?;
    let block = segment.header.block_bytes;
    let (offset, bytes) = (address.offset as usize, address.bytes as usize);
    if offset + bytes > segment.header.bytes as usize {
        return Err(Error::corrupt(format!("{}: outside of it", place())));
    }
    let start = offset - offset % block;
    let buf = PageBuf::zeroed((offset + bytes).next_multiple_of(block) - start);
    let (result, buf) = read_full_at(&segment.file, buf, start as u64, block).await;
    let read = result.map_err(|source| {
        Error::io(crate::error::Kind::Corrupt, format!("{}: reading", place()), source)
    })?;
    let frame_at = offset - start;
    if read < frame_at + bytes {
        return Err(Error::corrupt(format!("{}: the file ends before it", place())));
    }
    let bytes = Bytes::copy_from_slice(&buf[frame_at..frame_at + bytes]);
    let incarnation = segment.header.incarnation;
    let rejected = |why: &dyn std::fmt::Display| Error::corrupt(format!("{}: {why}", place()));
    let frame = frame::decode(&bytes, incarnation, address.offset).map_err(|why| rejected(&why))?;
    if frame.object != *id || bytes.len() != address.bytes as usize {
        return Err(rejected(&"another object's frame"));
    }
    Ok(Loaded { bytes, incarnation, offset: address.offset })
}
