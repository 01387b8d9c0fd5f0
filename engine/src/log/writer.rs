//! The task that writes a shard's batches: one at a time, in order, acknowledged in order (E2).
//!
//! A batch is sealed at the end of the core's turn; while it is on its way the next one fills, so
//! that commits share writes without a timer. A failed write poisons the shard before anyone is
//! told (E4). A log that stays quiet gets a close record.

use std::rc::Rc;
use std::time::Duration;

use futures_util::future::{Either, select};

use super::queue::{OpenBatch, Outcomes, Update};
use super::room::{self, Place};
use super::segments::{FileOf, Segment};
use super::{ahead, reserve};
use crate::checkpoint;
use crate::env::Env;
use crate::error::{Error, Kind, Result};
use crate::format::batch::{Role, Seal};
use crate::format::frame::Share;
use crate::ids::{SegmentNumber, Sequence};
use crate::io::write_all_at;
use crate::shard::{Inner, Life, Written};

/// The longest pause between two tries to write a close record.
const QUIET_MAX: Duration = Duration::from_secs(10);

/// What the writer knows of the log's end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tail {
    /// The segment that is written.
    pub(crate) segment: SegmentNumber,
    /// Where its next batch goes.
    pub(crate) offset: u32,
    /// The last batch written.
    pub(crate) last: Sequence,
    /// Its header's checksum.
    pub(crate) last_crc: u32,
    /// Whether a close record vouches for everything so far.
    pub(crate) vouched: bool,
    /// Whether the next batch goes to the next segment, whatever room there is in this one.
    pub(crate) full: bool,
    /// Whether this segment was a file of the reserve.
    pub(crate) reserved: bool,
}

/// The segment that will be written next.
pub(crate) enum Spare<F> {
    /// Nobody has begun to make one.
    None,
    /// A task is making it.
    Preparing,
    /// It is ready.
    Ready(Segment<F>),
    /// It could not be made; the next batch that needs it tries again.
    Failed(Error),
}

/// What the writer does next.
enum Work {
    Write,
    Close,
    /// The next segment is wanted.
    Roll,
    Quiet,
}

/// Runs until the shard is closed or poisoned.
pub(crate) async fn run<E: Env>(inner: Rc<Inner<E>>) {
    // A panic of the engine itself poisons its shard.
    let guard = PanicGuard(&inner);
    let mut quiet = inner.limits.quiet;
    loop {
        let done = match next_work(&inner, quiet).await {
            Work::Write => {
                quiet = inner.limits.quiet;
                inner.env.turn_end().await;
                write_next(&inner).await.is_err()
            }
            Work::Quiet => {
                let written = write_close(&inner).await;
                // Without room for it, as on a full disk, it is tried less and less often.
                quiet = match inner.state.borrow().tail.vouched {
                    true => inner.limits.quiet,
                    false => (quiet * 2).min(QUIET_MAX),
                };
                written.is_err()
            }
            Work::Roll => {
                let written = write_close(&inner).await;
                // Without room for another segment this one goes on.
                inner.state.borrow_mut().tail.full = false;
                inner.changed.notify();
                written.is_err()
            }
            Work::Close => {
                let vouched = inner.state.borrow().tail.vouched;
                if !vouched {
                    // A failure is in the poison latch, where `close` finds it.
                    let _ = write_close(&inner).await;
                }
                inner.state.borrow_mut().life = Life::Closed;
                true
            }
        };
        if done {
            break;
        }
    }
    std::mem::forget(guard);
    inner.changed.notify();
}

struct PanicGuard<'a, E: Env>(&'a Rc<Inner<E>>);

impl<E: Env> Drop for PanicGuard<'_, E> {
    fn drop(&mut self) {
        // Also dropped when the whole core is torn down; that is no failure of the shard.
        if std::thread::panicking() {
            self.0.poison(Error::new(Kind::Poisoned, "the log writer ended by a panic"));
        }
    }
}

/// The batch that is being written: by a panic its commits end too.
struct InFlight(Outcomes);

impl Drop for InFlight {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let what = "the log writer ended by a panic while it wrote this batch";
            self.0.resolve(&Err(Error::new(Kind::Unknown, what)));
        }
    }
}

async fn next_work<E: Env>(inner: &Rc<Inner<E>>, quiet: Duration) -> Work {
    let ready = || {
        let state = inner.state.borrow();
        match (state.queue.is_empty(), state.life) {
            (false, _) => Some(Work::Write),
            (true, Life::Open) if state.tail.full => Some(Work::Roll),
            (true, Life::Open) => None,
            (true, _) => Some(Work::Close),
        }
    };
    let changed = inner.work.until(ready);
    if inner.state.borrow().tail.vouched {
        return changed.await;
    }
    let quiet = inner.env.sleep(quiet);
    match select(Box::pin(changed), Box::pin(quiet)).await {
        Either::Left((work, _)) => work,
        Either::Right(_) => ready().unwrap_or(Work::Quiet),
    }
}

/// What would have to be replayed stays bounded.
async fn caught_up<E: Env>(inner: &Inner<E>) {
    let caught_up = || (!inner.state.borrow().checkpoint_lags(&inner.limits)).then_some(());
    inner.changed.until(caught_up).await;
}

/// Writes the next batch, if there is room for it.
async fn write_next<E: Env>(inner: &Rc<Inner<E>>) -> Result<()> {
    caught_up(inner).await;
    let Some(place) = room::for_next(inner).await else { return Ok(()) };
    let batch = inner.state.borrow_mut().queue.pop().expect("there is a place for it");
    write(inner, batch, place).await
}

/// Writes a close record, if there is room for it.
async fn write_close<E: Env>(inner: &Rc<Inner<E>>) -> Result<()> {
    caught_up(inner).await;
    let batch = inner.state.borrow().queue.lone(Role::Close);
    match room::for_close(inner, batch.bytes(inner.superblock.block_bytes)).await {
        Some(place) => write(inner, batch, place).await,
        None => Ok(()),
    }
}

/// Writes one batch and settles it. An error means that the writer is done for good.
async fn write<E: Env>(
    inner: &Rc<Inner<E>>,
    mut batch: OpenBatch,
    (segment, offset): Place<FileOf<E>>,
) -> Result<()> {
    let _told_by_a_panic = InFlight(batch.outcomes.clone());
    let block_bytes = inner.superblock.block_bytes;
    let bytes = batch.bytes(block_bytes);
    // What comes there must come after the zeros.
    let end = offset + crate::format::len_u32(bytes);
    inner.changed.until(|| inner.state.borrow_mut().ahead.reach(end).then_some(())).await;
    let (buf, crc, sequence, wall_ms) = {
        let state = &mut *inner.state.borrow_mut();
        let sequence = state.tail.last.next();
        let fields = Seal {
            role: batch.role,
            epoch: state.epoch,
            sequence,
            previous_crc: state.tail.last_crc,
            durable: state.tail.last,
            wall_ms: inner.env.wall_ms(),
            offset,
        };
        let number = segment.header.number;
        let (buf, crc) = state.queue.seal(&mut batch, &segment.home(), &fields, number);
        for update in &batch.updates {
            let entry =
                state.pending.get_mut(&update.id).and_then(|pending| pending.entry.as_mut());
            entry.into_iter().for_each(|entry| state.queue.resolve(entry));
        }
        state.queue.forget_sealed();
        (buf, crc, sequence, fields.wall_ms)
    };
    let (result, _buf) = write_all_at(&segment.file, buf, u64::from(offset), block_bytes).await;
    if let Err(source) = result {
        let what = format!("writing batch {} of shard {}", sequence.0, inner.number);
        let error = Error::io(Kind::Unknown, what, source);
        inner.poison(error.clone());
        batch.outcomes.resolve(&Err(error.clone()));
        return Err(error);
    }
    settle(inner, batch, crc, sequence, bytes, wall_ms);
    Ok(())
}

/// Enters a durable batch into the directory and tells its commits.
fn settle<E: Env>(
    inner: &Rc<Inner<E>>,
    batch: OpenBatch,
    crc: u32,
    sequence: Sequence,
    bytes: usize,
    wall_ms: u64,
) {
    let mut borrowed = inner.state.borrow_mut();
    let state = &mut *borrowed;
    assert_eq!(sequence, state.tail.last.next());
    state.tail.offset += crate::format::len_u32(bytes);
    state.tail.last = sequence;
    state.tail.last_crc = crc;
    state.tail.vouched = batch.role == Role::Close;
    state.log_bytes += bytes as u64;
    let commits = batch.updates.len();
    let rewrites = batch.updates.iter().filter(|update| update.rewrite).count();
    let segment = state.tail.segment.0;
    state.unfinished = match (batch.ends_with_part(), state.unfinished) {
        (false, _) => None,
        // Of a commit that began in an earlier batch, and goes on.
        (true, Some(first)) if batch.updates.is_empty() => Some(first),
        (true, _) => Some(segment),
    };
    if batch.updates.is_empty() && batch.role == Role::Commits {
        // Parts alone: they stay for as long as history shows their commit.
        state.live.written(segment, wall_ms);
    }
    for update in batch.updates {
        let (namespace, waited) = (update.namespace(), u64::from(update.waits));
        let Update { id, existed, entry, rewrite, kept, parts, dead, origin, .. } = update;
        let (changed, total) = (state.live.changed(), state.live.total());
        dead.iter().for_each(|dead| state.live.lower_all(dead));
        let frames = entry.iter().flat_map(|entry| entry.newest()).chain(parts);
        let made = frames.map(Share::from).chain(kept);
        made.filter(|_| entry.is_some()).for_each(|share| state.live.raise(share));
        state.live.count(namespace, waited, total);
        let written_ms = entry.as_ref().map_or(wall_ms, |entry| entry.written_ms);
        state.live.written(segment, written_ms);
        // Of a rewrite what it frees, for what it moves it may have moved for the cleaner.
        match rewrite {
            true => state.cleaning.rewritten(total, state.live.total()),
            false => state.cleaning.others_changed(state.live.changed() - changed),
        }
        state.directory.set(id, existed, entry, &origin);
        if state.pending.get(&id).is_some_and(|pending| pending.ordinal == batch.ordinal) {
            state.pending.remove(&id);
        }
    }
    if batch.role == Role::Commits && commits > rewrites {
        state.cleaning.committed(inner.env.now(), bytes as u64, &inner.limits);
    }
    // With the first commits to a segment: the next opening may want one too.
    let room = state.reserve.is_whole() || state.reserve.full().is_none();
    let spare = batch.role == Role::Commits && room && matches!(state.spare, Spare::None);
    let bytes_min = inner.limits.segment_bytes_min;
    let fill = batch.role == Role::Commits && state.reserve_is_due(inner.env.now(), bytes_min);
    let space = state.cleaning.wants_to_look();
    drop(borrowed);
    if space {
        inner.space.notify();
    }
    if spare {
        room::start_spare(inner);
    }
    if fill {
        reserve::start_filling(inner);
    }
    if batch.role == Role::Commits {
        ahead::start_if_due(inner, bytes);
    }
    checkpoint::start_if_due(inner);
    if batch.role == Role::Commits {
        let observer = inner.observer.get();
        observer.into_iter().for_each(|observer| observer(Written { commits, bytes }));
    }
    batch.outcomes.resolve(&Ok(()));
    inner.changed.notify();
}
