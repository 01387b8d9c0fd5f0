//! Every frame that the log still holds, whether anything points to it or not.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::rc::Rc;

use crate::directory::Stamp;
use crate::env::Env;
use crate::error::{Error, Kind, Result};
use crate::format::batch::{self, BatchHeader, Home, Trailer};
use crate::format::frame::{self, Address};
use crate::format::len_u32;
use crate::ids::{Epoch, ObjectId, Sequence};
use crate::log::handles;
use crate::recover::read_file;
use crate::shard::Inner;

/// A frame that ends a commit.
#[derive(Clone, Debug)]
pub(super) struct Found {
    batch: (Epoch, Sequence),
    address: Address,
    pub(super) stamp: Stamp,
    /// What is to be read before it, oldest first.
    beside: Vec<Address>,
}

/// Something of the log that can be read.
pub(crate) enum Seen<'a> {
    /// A batch; its frames follow.
    Batch(Epoch, Sequence),
    /// A frame, and where it lies.
    Frame(Address, &'a frame::Frame<'a>),
}

/// Visits every batch and every frame that the log still holds, in the order of the segments, which are
/// read one at a time.
///
/// Errors: `Retry`, if a segment can't be read at all.
pub(crate) async fn walk<E: Env>(
    inner: &Rc<Inner<E>>,
    mut visit: impl FnMut(Seen<'_>),
) -> Result<()> {
    let numbers: Vec<u32> = inner.state.borrow().segments.keys().copied().collect();
    for number in numbers {
        let segment = match handles::opened(inner, number).await {
            Ok(Some(segment)) => segment,
            Ok(None) => continue,
            // What needs it says so when it is read.
            Err(error) if error.kind() == Kind::Corrupt => continue,
            Err(error) => return Err(error),
        };
        let (home, block) = (segment.home(), segment.header.block_bytes);
        let bytes = read_file(&segment.file, block).await.map_err(|source| {
            Error::io(Kind::Retry, format!("reading {}", segment.name), source)
        })?;
        let mut at = block;
        while at < bytes.len() {
            let Some(batch) = batch_at(&bytes, at, &home, inner.limits.batch_bytes_max) else {
                at += block;
                continue;
            };
            visit(Seen::Batch(batch.epoch, batch.sequence));
            walk_batch(&bytes, batch.frames, &home, |place, frame| {
                visit(Seen::Frame(Address { segment: number, ..place }, &frame));
            });
            at = batch.end;
        }
        inner.env.turn_end().await;
    }
    Ok(())
}

/// Where each epoch of the log begins: what an older one wrote from there on was never accepted.
pub(crate) struct Epochs(BTreeMap<Epoch, Sequence>);

impl Epochs {
    /// With the next one, which will begin behind what was accepted.
    pub(crate) fn new<E: Env>(inner: &Rc<Inner<E>>) -> Self {
        let state = inner.state.borrow();
        Self([(state.epoch, state.tail.last.next())].into())
    }

    /// Takes note of a batch.
    pub(crate) fn note(&mut self, epoch: Epoch, sequence: Sequence) {
        let begin = self.0.entry(epoch).or_insert(sequence);
        *begin = sequence.min(*begin);
    }

    /// Whether recovery accepted the batch: no newer epoch begins at it or before it.
    pub(crate) fn accepted(&self, (epoch, sequence): (Epoch, Sequence)) -> bool {
        let mut newer = self.0.iter().filter(|(newer, _)| **newer > epoch);
        newer.all(|(_, begin)| sequence < *begin)
    }
}

/// The frames of `wanted` objects, and of those whose block of the directory is damaged, also where their own
/// entry is not, by rising versions.
///
/// Errors: as [`walk`].
pub(super) async fn scan<E: Env>(
    inner: &Rc<Inner<E>>,
    wanted: &BTreeSet<ObjectId>,
) -> Result<BTreeMap<ObjectId, Vec<Found>>> {
    let mut found: BTreeMap<ObjectId, Vec<Found>> = BTreeMap::new();
    let is_given_up = inner.state.borrow().directory.in_damaged_blocks();
    let mut epochs = Epochs::new(inner);
    let mut batch = (Epoch(0), Sequence(0));
    let visit = |seen: Seen<'_>| {
        let (address, frame) = match seen {
            Seen::Batch(epoch, sequence) => {
                epochs.note(epoch, sequence);
                batch = (epoch, sequence);
                return;
            }
            Seen::Frame(address, frame) => (address, frame),
        };
        let id = frame.object;
        let hidden = || {
            let directory = &inner.state.borrow().directory;
            directory.get(&id).is_err() || is_given_up(directory, &id)
        };
        if frame.part || !(wanted.contains(&id) || hidden()) {
            return;
        }
        let (version, alarm) = (frame.version, frame.alarm);
        found.entry(id).or_default().push(Found {
            batch,
            address,
            stamp: Stamp { version, alarm, written_ms: frame.wall_ms },
            beside: if frame.nests { Vec::new() } else { frame.chain.clone() },
        });
    };
    walk(inner, visit).await?;
    // A batch that recovery dropped may be whole in part: nobody was told of its commits.
    found.values_mut().for_each(|frames| frames.retain(|found| epochs.accepted(found.batch)));
    // Of a rewrite and what it rewrote, which are of one version, the later one is tried first.
    found.values_mut().for_each(|frames| frames.sort_by_key(|found| found.stamp.version));
    Ok(found)
}

/// What a batch says of itself, by its header or by its trailer.
struct BatchAt {
    epoch: Epoch,
    sequence: Sequence,
    frames: Range<usize>,
    end: usize,
}

/// The batch at `at`: by its header, else by its trailer.
fn batch_at(bytes: &[u8], at: usize, home: &Home, bytes_max: usize) -> Option<BatchAt> {
    if let Ok(header) = BatchHeader::decode(&bytes[at..], home, at) {
        let BatchHeader { epoch, sequence, .. } = header;
        let (frames, end) = (header.frames(), at + header.bytes as usize);
        let frames = at + frames.start..at + frames.end;
        return (end <= bytes.len()).then_some(BatchAt { epoch, sequence, frames, end });
    }
    let ends = (at + home.block_bytes..=bytes.len()).step_by(home.block_bytes);
    ends.take(bytes_max / home.block_bytes).find_map(|end| {
        let trailer = Trailer::decode(&bytes[..end], home).ok()?;
        let table = trailer.ids.len() * ObjectId::BYTES;
        let frames = at + batch::HEADER_BYTES + table..end - batch::TRAILER_BYTES - table;
        let fits = trailer.bytes as usize == end - at && frames.start <= frames.end;
        let Trailer { epoch, sequence, .. } = trailer;
        fits.then_some(BatchAt { epoch, sequence, frames, end })
    })
}

/// Visits the frames in a range that can be read; the segment of their addresses is not set.
fn walk_batch(
    bytes: &[u8],
    frames: Range<usize>,
    home: &Home,
    mut visit: impl FnMut(Address, frame::Frame<'_>),
) {
    let mut at = frames.start;
    while at < frames.end {
        let rest = &bytes[at..frames.end];
        // A damaged frame may still say where the next one begins.
        let Ok(len) = frame::peek_bytes(rest) else { return };
        if let Ok(frame) = frame::decode(rest, home.incarnation, len_u32(at)) {
            visit(Address { segment: 0, offset: len_u32(at), bytes: len_u32(len) }, frame);
        }
        at += len;
    }
}

/// What to read for the state that ends in `newest`, oldest first; `None` if some of it is gone.
pub(super) fn chain(frames: &[Found], newest: &Found) -> Option<Vec<Address>> {
    let is_there = |address: &Address| {
        let mut older = frames.iter().filter(|it| it.stamp.version < newest.stamp.version);
        older.any(|found| found.address == *address)
    };
    let whole = newest.beside.iter().all(is_there);
    whole.then(|| newest.beside.iter().copied().chain([newest.address]).collect())
}
