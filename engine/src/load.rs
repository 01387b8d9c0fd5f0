//! Activation: reading an object's frames and putting its contents together.

use std::rc::Rc;

use bytes::Bytes;
use futures_util::future::join_all;

use crate::batch::share;
use crate::contents::Origin;
use crate::directory::{CHAIN_MAX, Entry, Stamp};
use crate::env::Env;
use crate::error::{Error, Result};
use crate::format::frame::{self, Address, Kind, Share};
use crate::ids::{Incarnation, ObjectId};
use crate::io::{PageBuf, read_full_at};
use crate::log::handles;
use crate::log::segments::Segment;
use crate::shard::Inner;
use crate::snapshot::Over;
use crate::tree::{self, Root};

/// Frames of a segment that lie no further apart are read at once: to a device some blocks more are
/// less than one more read.
const NEAR_BYTES: u64 = 16 << 10;

/// What is needed of a frame that was read and checked.
pub(crate) struct Loaded {
    pub(crate) kind: Kind,
    /// What it holds, not copied.
    pub(crate) payload: Bytes,
    /// Whether it is the whole object, or what all of it hangs on: nothing before it counts.
    whole: bool,
    tree: bool,
    /// What is to be read before it, oldest first.
    nested: Vec<Address>,
    origin: Origin,
    /// Of the root of a tree, what its pages and values amount to.
    kept: Vec<Share>,
}

/// One place in the order in which frames apply.
enum Step {
    Read(Address),
    Apply(Address, Loaded),
}

/// The frames that the object needs by `entry`, the one of the directory now; all are read.
pub(crate) async fn frames<E: Env>(
    inner: &Rc<Inner<E>>,
    id: &ObjectId,
    entry: &Entry,
) -> Result<Vec<Address>> {
    let _pins = pins(inner, entry);
    let steps = read_chain(inner, id, entry.chain()).await?;
    let mut all: Vec<_> = steps.iter().map(|(address, _)| *address).collect();
    if let Some(root) = put_together(steps, entry.stamp(), id)?.1 {
        all.extend(tree::frames(inner, id, &root).await?);
    }
    Ok(all)
}

/// Keeps the segments that an object needs from being used again.
pub(crate) fn pins<E: Env>(inner: &Rc<Inner<E>>, entry: &Entry) -> Vec<Rc<()>> {
    let state = inner.state.borrow();
    let pin = |segment: &Segment<_>| segment.pin.clone();
    if entry.is_scattered() {
        // Nobody knows all of them.
        return state.segments.values().map(pin).collect();
    }
    entry.needs().filter_map(|share| state.segments.get(&share.segment)).map(pin).collect()
}

/// Reads the object that a chain of frames holds, oldest first: one round of parallel reads for
/// them, neighbours with one read, and one round more for each chain nested in it. Of a tree it reads the
/// root alone.
pub(crate) async fn load_chain<E: Env>(
    inner: &Rc<Inner<E>>,
    id: &ObjectId,
    chain: impl IntoIterator<Item = Address>,
    stamp: Stamp,
) -> Result<(Over, Option<Root>)> {
    let steps = read_chain(inner, id, chain).await?;
    put_together(steps, stamp, id)
}

fn put_together(
    steps: Vec<(Address, Loaded)>,
    stamp: Stamp,
    id: &ObjectId,
) -> Result<(Over, Option<Root>)> {
    let (mut over, mut root) = (Over::new(stamp), None);
    let on_tree = steps.iter().any(|(_, loaded)| loaded.tree);
    for (_, loaded) in steps {
        let Loaded { kind, tree, payload, origin, kept, .. } = loaded;
        over.learn(&origin);
        let operations = match (kind, tree) {
            (Kind::Image, true) => {
                let (read, waiting) = Root::read(kept, &payload, id)?;
                root = Some(read);
                waiting
            }
            (Kind::Image | Kind::Delta, _) => payload,
            (Kind::Page | Kind::Value, _) => {
                return Err(Error::corrupt(format!("object {id}: a part of a tree in its chain")));
            }
        };
        for op in tree::ops(&operations, id) {
            over.apply_op(op?, on_tree, |slice| share(&operations, slice));
        }
    }
    Ok((over, root))
}

/// The frames of a chain, in the order in which they apply.
async fn read_chain<E: Env>(
    inner: &Rc<Inner<E>>,
    id: &ObjectId,
    chain: impl IntoIterator<Item = Address>,
) -> Result<Vec<(Address, Loaded)>> {
    let mut steps: Vec<Step> = chain.into_iter().map(Step::Read).collect();
    let mut budget = usize::from(u16::MAX);
    while steps.iter().any(|step| matches!(step, Step::Read(_))) {
        let wanted = steps.iter().filter_map(|step| match step {
            Step::Read(address) => Some(*address),
            Step::Apply(..) => None,
        });
        let wanted: Vec<Address> = wanted.collect();
        let mut loaded = read_frames(inner, id, &wanted).await?.into_iter();
        let mut next = Vec::with_capacity(steps.len() + CHAIN_MAX);
        for step in steps {
            let Step::Read(address) = step else {
                next.push(step);
                continue;
            };
            let loaded = loaded.next().expect("one for each that was wanted");
            if loaded.whole {
                next.clear();
            }
            budget = budget.checked_sub(loaded.nested.len() + 1).ok_or_else(|| {
                Error::corrupt(format!("object {id}: its chain of frames does not end"))
            })?;
            next.extend(loaded.nested.iter().copied().map(Step::Read));
            next.push(Step::Apply(address, loaded));
        }
        steps = next;
    }
    let all = steps.into_iter().map(|step| match step {
        Step::Apply(address, loaded) => (address, loaded),
        Step::Read(_) => unreachable!("all are read"),
    });
    Ok(all.collect())
}

/// Reads frames, neighbours with one read; all of them are needed.
pub(crate) async fn read_frames<E: Env>(
    inner: &Rc<Inner<E>>,
    id: &ObjectId,
    wanted: &[Address],
) -> Result<Vec<Loaded>> {
    if wanted.len() == 1 {
        return one_by_one(inner, id, wanted).await;
    }
    let end = |address: &Address| u64::from(address.offset) + u64::from(address.bytes);
    let are_near = |one: &Address, next: &Address| {
        let gap = u64::from(next.offset).checked_sub(end(one));
        one.segment == next.segment
            && gap.is_some_and(|gap| gap <= NEAR_BYTES)
            && u64::from(one.bytes.max(next.bytes)) <= NEAR_BYTES
    };
    let spans = wanted.chunk_by(are_near).map(async |span| {
        let bytes = end(&span[span.len() - 1]) - u64::from(span[0].offset);
        let whole = Address { bytes: u32::try_from(bytes).unwrap_or(u32::MAX), ..span[0] };
        match read_bytes(inner, id, whole).await {
            Ok(read) => span.iter().map(|address| read.frame(id, *address)).collect(),
            // What can't be read may lie between the frames, where nobody needs it.
            Err(_) => one_by_one(inner, id, span).await,
        }
    });
    let frames: Result<Vec<Vec<Loaded>>> = join_all(spans).await.into_iter().collect();
    Ok(frames?.into_iter().flatten().collect())
}

async fn one_by_one<E: Env>(
    inner: &Rc<Inner<E>>,
    id: &ObjectId,
    wanted: &[Address],
) -> Result<Vec<Loaded>> {
    let mut frames = Vec::with_capacity(wanted.len());
    for address in wanted {
        frames.push(read_bytes(inner, id, *address).await?.frame(id, *address)?);
    }
    Ok(frames)
}

/// What was read of a segment.
struct Read {
    bytes: PageBuf,
    /// How much of it there is.
    len: usize,
    /// Where it begins.
    start: usize,
    incarnation: Incarnation,
}

impl Read {
    /// Checks and takes out one frame.
    fn frame(&self, id: &ObjectId, address: Address) -> Result<Loaded> {
        let at = address.offset as usize - self.start;
        let end = at + address.bytes as usize;
        if self.len < end {
            let what = format!("{}: the file ends before it", place(id, address));
            return Err(Error::corrupt(what));
        }
        let bytes = Bytes::copy_from_slice(&self.bytes[at..end]);
        let rejected =
            |why: &dyn std::fmt::Display| Error::corrupt(format!("{}: {why}", place(id, address)));
        let frame = frame::decode(&bytes, self.incarnation, address.offset);
        let frame = frame.map_err(|why| rejected(&why))?;
        if frame.object != *id || bytes.len() != address.bytes as usize {
            return Err(rejected(&"another object's frame"));
        }
        let payload = share(&bytes, frame.payload);
        Ok(Loaded {
            kind: frame.kind,
            payload,
            whole: frame.kind == Kind::Image && !frame.part,
            tree: frame.tree,
            nested: if frame.nests { frame.chain } else { Vec::new() },
            origin: frame.origin,
            kept: frame.kept,
        })
    }
}

pub(crate) fn place(id: &ObjectId, Address { segment, offset, bytes }: Address) -> String {
    format!("object {id}: {bytes} bytes at {offset} of segment {segment}")
}

/// Reads the blocks that an address lies in.
async fn read_bytes<E: Env>(inner: &Rc<Inner<E>>, id: &ObjectId, address: Address) -> Result<Read> {
    let place = || place(id, address);
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
    let (result, bytes) = read_full_at(&segment.file, buf, start as u64, block).await;
    let len = result.map_err(|source| {
        Error::io(crate::error::Kind::Corrupt, format!("{}: reading", place()), source)
    })?;
    Ok(Read { bytes, len, start, incarnation: segment.header.incarnation })
}
