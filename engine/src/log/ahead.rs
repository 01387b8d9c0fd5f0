//! Blocks of the segment that is written are written over with zeros some way ahead of the log.
//!
//! A small write into blocks that were allocated and never written takes twice as long as one into blocks that
//! were (docs/performance.md, section 1): the file system has to note that they hold something now. So the blocks that
//! small batches will go into are written before, beside them, [`Limits::ahead_bytes`] ahead. A large
//! batch is written where it belongs all the same: it would gain next to nothing, and a bulk load would
//! write everything twice. Where the last batch was a small one, the beginning of the next segment is written over
//! as it is made ([`super::segments`]).
//!
//! Zeros are only ever written where nothing of the log was yet, and a batch waits for those that are on
//! their way to where it goes; a segment that they are on their way to is not used again. After a crash nothing is known of where they came to, and nothing depends on it:
//! blocks hold zeros either way.

use std::rc::Rc;

use super::handles::Handle;
use super::segments::Segment;
use crate::env::Env;
use crate::error::{Error, Kind};
use crate::io::{File, PageBuf, write_all_at};
use crate::limits::Limits;
use crate::shard::{Inner, Life, State};

/// Writes for the whole way ahead.
const WRITES: u32 = 8;
/// Batches of so many of which the way ahead is long are small.
const SMALL: usize = 8;

/// How far the blocks of the segment that is written are.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Ahead {
    /// Before this offset they were written to, or are being written.
    written_to: u32,
    /// Where zeros on their way begin.
    zeros_from: Option<u32>,
    /// Zeros could not be written: the log itself will see why.
    failed: bool,
    /// Whether the last batch was a large one.
    large: bool,
    /// Whether there is a task that writes zeros.
    pub(crate) running: bool,
}

impl Ahead {
    /// A segment is written from now on, whose blocks were written up to here.
    pub(crate) fn begin(&mut self, written_to: u32) {
        let Self { running, large, .. } = *self;
        *self = Self { written_to, zeros_from: None, failed: false, large, running };
    }

    /// Bytes that the next segment is written over with before it is used.
    pub(crate) fn zeros_at_first(&self, limits: &Limits) -> u32 {
        if self.large { 0 } else { limits.ahead_bytes }
    }

    /// The log goes on up to here: no zeros will begin before. Whether none are on their way there.
    pub(crate) fn reach(&mut self, end: u32) -> bool {
        self.written_to = self.written_to.max(end);
        self.zeros_from.is_none_or(|from| from >= end)
    }
}

/// Zeros to be written; whoever has them reads the segment, so that it stays what it is.
struct Zeros<F> {
    segment: Segment<F>,
    from: u32,
    bytes: u32,
}

impl<F: File> State<F> {
    /// The next zeros to write, of the segment that is written.
    fn next_zeros(&mut self, limits: &Limits) -> Option<Zeros<F>> {
        let State { tail, segments, ahead, .. } = self;
        let number = tail.segment.0;
        let segment = &segments[&number];
        let Handle::Open { file, .. } = &segment.file else { return None };
        let goal = tail.offset.saturating_add(limits.ahead_bytes).min(segment.header.bytes);
        let over = ahead.failed || ahead.large || self.life != Life::Open || self.poison.is_some();
        if over || ahead.written_to >= goal {
            return None;
        }
        let from = ahead.written_to;
        let block = crate::format::len_u32(segment.header.block_bytes);
        let bytes = write_bytes(limits, block).min(segment.header.bytes - from);
        ahead.zeros_from = Some(from);
        ahead.written_to = from + bytes;
        Some(Zeros { segment: segment.with(file.clone()), from, bytes })
    }

    /// Whether half of the way ahead is used up, and batches are small.
    fn ahead_is_due(&self, limits: &Limits) -> bool {
        let Ahead { written_to, failed, large, running, .. } = self.ahead;
        let bytes = self.segments[&self.tail.segment.0].header.bytes;
        let near = written_to < self.tail.offset.saturating_add(limits.ahead_bytes / 2);
        !running && !failed && !large && near && written_to < bytes && self.life == Life::Open
    }
}

/// Bytes of one write.
fn write_bytes(limits: &Limits, block_bytes: u32) -> u32 {
    (limits.ahead_bytes / WRITES).next_multiple_of(block_bytes)
}

/// Begins to write over what comes next, if it is time to. To be called after a batch of so many bytes.
pub(crate) fn start_if_due<E: Env>(inner: &Rc<Inner<E>>, batch_bytes: usize) {
    {
        let state = &mut *inner.state.borrow_mut();
        state.ahead.large = batch_bytes * SMALL > inner.limits.ahead_bytes as usize;
        if !state.ahead_is_due(&inner.limits) {
            return;
        }
        state.ahead.running = true;
    }
    let running = Running(inner.clone());
    inner.env.spawn("ahead", async move {
        let Running(inner) = &running;
        let block = inner.superblock.block_bytes;
        let most = write_bytes(&inner.limits, crate::format::len_u32(block));
        let mut zeros = PageBuf::zeroed(most as usize);
        loop {
            let next = inner.state.borrow_mut().next_zeros(&inner.limits);
            let Some(Zeros { segment, from, bytes }) = next else { return };
            zeros.set_window(0..bytes as usize);
            let number = segment.header.number.0;
            let (written, returned) =
                write_all_at(&segment.file, zeros, u64::from(from), block).await;
            zeros = returned;
            {
                let state = &mut *inner.state.borrow_mut();
                // Otherwise the log went on in another one meanwhile.
                if state.tail.segment.0 == number {
                    state.ahead.zeros_from = None;
                    state.ahead.failed |= written.is_err();
                }
            }
            if let Err(error) = written {
                tracing::warn!(shard = inner.number, segment = number, %error, "could not write ahead");
            }
            inner.changed.notify();
        }
    });
}

/// The task: the shard is closed only when it has ended.
struct Running<E: Env>(Rc<Inner<E>>);

impl<E: Env> Drop for Running<E> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // Nobody knows whether zeros are still on their way.
            self.0.poison(Error::new(Kind::Poisoned, "writing ahead of the log ended by a panic"));
        }
        self.0.state.borrow_mut().ahead.running = false;
        self.0.changed.notify();
    }
}
