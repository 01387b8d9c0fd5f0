//! The task that writes a shard's batches: one at a time, in order, acknowledged in order (E2).
//!
//! A batch is sealed at the end of the core's turn; while it is on its way the next one fills, so
//! that commits share writes without a timer. A failed write poisons the shard before anyone is
//! told (E4). A log that stays quiet gets a close record.

use std::rc::Rc;
use std::time::Duration;

use futures_util::future::{Either, select};

use super::ahead;
use super::handles::Handle;
use super::queue::{OpenBatch, Outcome, Update};
use super::segments::{self, Blocks, FileOf, Segment};
use crate::checkpoint;
use crate::env::Env;
use crate::error::{Error, Kind, Result};
use crate::format::batch::{Role, Seal};
use crate::format::frame::Share;
use crate::ids::{SegmentNumber, Sequence};
use crate::io::{File, write_all_at};
use crate::limits::Limits;
use crate::shard::{Inner, Life, State, Written};

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
                let batch = inner.state.borrow_mut().queue.pop();
                match batch {
                    Some(batch) => write(&inner, batch).await.is_err(),
                    None => false,
                }
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
struct InFlight(Rc<Outcome>);

impl Drop for InFlight {
    fn drop(&mut self) {
        if std::thread::panicking() && self.0.result().is_none() {
            let what = "the log writer ended by a panic while it wrote this batch";
            self.0.resolve(Err(Error::new(Kind::Unknown, what)));
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

async fn write_close<E: Env>(inner: &Rc<Inner<E>>) -> Result<()> {
    let batch = inner.state.borrow().queue.lone(Role::Close);
    write(inner, batch).await
}

/// Writes one batch and settles it. An error means that the writer is done for good.
async fn write<E: Env>(inner: &Rc<Inner<E>>, mut batch: OpenBatch) -> Result<()> {
    let _told_by_a_panic = InFlight(batch.outcome.clone());
    // What would have to be replayed stays bounded.
    let caught_up = || (!inner.state.borrow().checkpoint_lags(&inner.limits)).then_some(());
    inner.changed.until(caught_up).await;
    let block_bytes = inner.superblock.block_bytes;
    let bytes = batch.bytes(block_bytes);
    let (segment, offset) = match room(inner, bytes).await {
        Ok(place) => place,
        Err(error) => {
            // Nothing was written: the commits did not happen, and the log can go on.
            batch.outcome.resolve(Err(error.clone()));
            let mut state = inner.state.borrow_mut();
            state.queue.fail(&error);
            state.pending.clear();
            state.unfinished = None;
            return Ok(());
        }
    };
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
        batch.outcome.resolve(Err(error.clone()));
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
    state.unfinished = match (batch.ends_with_part, state.unfinished) {
        (false, _) => None,
        // Of a commit that began in an earlier batch, and goes on.
        (true, Some(first)) if batch.updates.is_empty() => Some(first),
        (true, _) => Some(segment),
    };
    for Update { id, existed, entry, rewrite, kept, parts, dead, origin } in batch.updates {
        let (changed, total) = (state.live.changed(), state.live.total());
        dead.iter().for_each(|dead| state.live.lower_all(dead));
        let frames = entry.iter().flat_map(|entry| entry.newest()).chain(parts);
        let made = frames.map(Share::from).chain(kept);
        made.filter(|_| entry.is_some()).for_each(|share| state.live.raise(share));
        let written_ms = entry.as_ref().map_or(wall_ms, |entry| entry.written_ms);
        state.live.written(segment, written_ms);
        // Of a rewrite what it frees, for what it moves it may have moved for the cleaner.
        state.cleaning.others_changed(match rewrite {
            true => total.saturating_sub(state.live.total()),
            false => state.live.changed() - changed,
        });
        state.directory.set(id, existed, entry, &origin);
        if state.pending.get(&id).is_some_and(|pending| pending.ordinal == batch.ordinal) {
            state.pending.remove(&id);
        }
    }
    if batch.role == Role::Commits && commits > rewrites {
        state.cleaning.committed(inner.env.now(), bytes as u64, &inner.limits);
    }
    // With the first commits to a segment: the next opening may want one too.
    let spare = batch.role == Role::Commits && matches!(state.spare, Spare::None);
    let space = state.cleaning.wants_to_look();
    drop(borrowed);
    if space {
        inner.space.notify();
    }
    if spare {
        start_spare(inner);
    }
    if batch.role == Role::Commits {
        ahead::start_if_due(inner, bytes);
    }
    checkpoint::start_if_due(inner);
    if batch.role == Role::Commits {
        let observer = inner.observer.get();
        observer.into_iter().for_each(|observer| observer(Written { commits, bytes }));
    }
    batch.outcome.resolve(Ok(()));
    inner.changed.notify();
}

/// The segment and offset where a batch of `bytes` goes; moves on to the spare segment when the
/// current one is full.
async fn room<E: Env>(inner: &Rc<Inner<E>>, bytes: usize) -> Result<(Segment<FileOf<E>>, u32)> {
    let current = || {
        let state = inner.state.borrow();
        let current = &state.segments[&state.tail.segment.0];
        let fits = state.tail.offset as usize + bytes <= current.header.bytes as usize;
        let Handle::Open { file, .. } = &current.file else {
            unreachable!("the segment that is written stays open")
        };
        fits.then(|| (current.with(file.clone()), state.tail.offset))
    };
    let wants_next = inner.state.borrow().tail.full;
    if let Some(place) = current().filter(|_| !wants_next) {
        return Ok(place);
    }
    let segment = match (take_spare(inner).await, current()) {
        (Ok(segment), _) => segment,
        // Without room for another one this one goes on, as far as it goes.
        (Err(_), Some(place)) => {
            inner.state.borrow_mut().tail.full = false;
            return Ok(place);
        }
        (Err(error), None) => return Err(error),
    };
    let (number, bytes) = (segment.header.number.0, segment.header.bytes);
    tracing::debug!(shard = inner.number, segment = number, bytes, "segment opened");
    let offset = crate::format::len_u32(segment.header.block_bytes);
    {
        let mut state = inner.state.borrow_mut();
        state.tail.segment = segment.header.number;
        state.tail.offset = offset;
        state.tail.full = false;
        state.ahead.begin(segment.written_to.max(offset));
        state.segments.insert(segment.header.number.0, segment.clone().kept());
        state.close_idle(&inner.limits);
    }
    Ok((segment, offset))
}

async fn take_spare<E: Env>(inner: &Rc<Inner<E>>) -> Result<Segment<FileOf<E>>> {
    let mut tried = false;
    loop {
        let spare = std::mem::replace(&mut inner.state.borrow_mut().spare, Spare::None);
        match spare {
            Spare::Ready(segment) => return Ok(segment),
            Spare::Failed(error) if tried => return Err(error),
            Spare::None | Spare::Failed(_) => {
                tried = true;
                start_spare(inner);
            }
            Spare::Preparing => {
                inner.state.borrow_mut().spare = Spare::Preparing;
                let settled = || match inner.state.borrow().spare {
                    Spare::Preparing => None,
                    _ => Some(()),
                };
                // What somebody else began may have failed before there was room.
                inner.changed.until(settled).await;
            }
        }
    }
}

impl<F: File> State<F> {
    /// Bytes that the next segment should have: by those that there are, but for what is to be cleaned.
    pub(crate) fn next_bytes(&self, limits: &Limits) -> u32 {
        let current = self.segments[&self.tail.segment.0].header.bytes;
        let all = self.segments.values().map(|segment| u64::from(segment.header.bytes)).sum();
        segments::next_bytes(current, self.allowed_bytes(limits).min(all), limits)
    }
}

/// Begins to make the next segment, off the path of commits.
pub(crate) fn start_spare<E: Env>(inner: &Rc<Inner<E>>) {
    let (number, bytes, recycled, zeros) = {
        let mut state = inner.state.borrow_mut();
        state.spare = Spare::Preparing;
        let number = state.next_segment;
        state.next_segment.0 += 1;
        let bytes = state.next_bytes(&inner.limits);
        let recycled = state.recycled.iter().position(|file| file.fits(bytes));
        let recycled = recycled.map(|index| state.recycled.swap_remove(index));
        let bytes = recycled.as_ref().map_or(bytes, |file| file.bytes);
        (number, bytes, recycled, state.ahead.zeros_at_first(&inner.limits))
    };
    let task_inner = inner.clone();
    inner.env.spawn("segment", async move {
        let inner = task_inner;
        let limits = &inner.limits;
        let (env, superblock) = (&inner.env, &inner.superblock);
        let blocks = recycled.as_ref().map_or(Blocks::New(zeros), Blocks::Again);
        let prepared =
            segments::prepare(env, superblock, inner.number, number, bytes, blocks, limits).await;
        let mut state = inner.state.borrow_mut();
        state.cleaning.recycled += u64::from(recycled.is_some() && prepared.is_ok());
        state.spare = match prepared {
            Ok(segment) => Spare::Ready(segment),
            Err(error) => Spare::Failed(error),
        };
        drop(state);
        inner.changed.notify();
    });
}
