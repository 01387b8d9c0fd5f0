//! [`Budget`]: how much of a core one object may use before the others have their turn.
//!
//! In one turn an object's events are polled [`EVENTS`] times at most, and none begins its poll when the turn has
//! taken [`TIME`] already. What is left over goes on in the object's next turn, in the order in which it was
//! ready, and the core's run queue gives that turn behind all others that are ready now. So another object
//! waits, for each busy one, for [`TIME`] and one poll at most; how long one poll takes is up to the
//! object's code, which the watchdog looks at.
//!
//! Invariant: an event that was not polled yet is never overtaken by one that became ready later. What is left
//! over is woken in its order; what became ready meanwhile, by another core, may be woken before, and is left
//! over then until all of those had their poll.

use std::cell::{Cell, RefCell};
use std::task::Waker;
use std::time::Duration;

use super::Watch;

/// Polls of an object's events in one turn at most.
pub(crate) const EVENTS: u32 = 64;

/// How long a turn may have taken when a poll begins.
pub(crate) const TIME: Duration = Duration::from_micros(200);

/// What one object may still do in this turn.
#[derive(Debug, Default)]
pub(crate) struct Budget {
    polls: Cell<u32>,
    /// How many of those that were left over and woken had no poll since, and which batch they are.
    ahead: Cell<u32>,
    batch: Cell<u32>,
    /// How many of the next batch were in the last one too: they are its first.
    again: Cell<u32>,
    /// The next batch: events that were ready when nothing was left; nearly always none, of an object that may be one
    /// of many.
    #[expect(clippy::box_collection, reason = "a word of an idle object instead of three")]
    left_over: RefCell<Option<Box<Vec<Waker>>>>,
}

/// The batch in which an event is left over; none at first.
#[derive(Debug, Default)]
pub(crate) struct LeftOver(Option<u32>);

impl Budget {
    /// A new turn: those that were left over are ready again.
    #[inline]
    pub(crate) fn renew(&self) {
        self.polls.set(0);
        if self.is_used_up() {
            self.wake_left_over();
        }
    }

    fn wake_left_over(&self) {
        if self.ahead.get() > 0 {
            return;
        }
        let Some(left_over) = self.left_over.take() else { return };
        self.batch.set(self.batch.get().wrapping_add(1));
        self.ahead.set(u32::try_from(left_over.len()).expect("fewer events"));
        self.again.set(0);
        left_over.into_iter().for_each(Waker::wake);
    }

    /// Whether an event may be polled now; if not, it is woken when it may.
    #[inline]
    pub(crate) fn allows(&self, watch: &Watch, waker: &Waker, event: &mut LeftOver) -> bool {
        // Nearly always: the first of its turn, and nothing was left over.
        let is_first = self.polls.get() == 0 && self.ahead.get() == 0 && event.0.is_none();
        if is_first {
            self.polls.set(1);
        }
        is_first || self.allows_another(watch, waker, event)
    }

    /// The same of any.
    fn allows_another(&self, watch: &Watch, waker: &Waker, event: &mut LeftOver) -> bool {
        let next = self.batch.get().wrapping_add(1);
        if event.0 == Some(next) {
            // It was woken once more.
            return false;
        }
        let is_ahead = event.0.take().is_some();
        if is_ahead {
            self.ahead.set(self.ahead.get() - 1);
        }
        let polls = self.polls.get();
        // The first poll needs no look at the clock: most turns have no other.
        let is_left = polls < EVENTS && (polls == 0 || watch.elapsed() < TIME);
        let allowed = is_left && (is_ahead || self.ahead.get() == 0);
        if allowed {
            self.polls.set(polls + 1);
        } else {
            if !is_left {
                self.polls.set(EVENTS);
            }
            event.0 = Some(next);
            let mut left_over = self.left_over.borrow_mut();
            let left_over = left_over.get_or_insert_default();
            let place = if is_ahead { self.again.get() as usize } else { left_over.len() };
            left_over.insert(place, waker.clone());
            self.again.set(self.again.get() + u32::from(is_ahead));
        }
        if is_ahead && is_left {
            // The last of them: those that waited behind are next.
            self.wake_left_over();
        }
        allowed
    }

    /// Whether the object needs another turn at once.
    #[inline]
    pub(crate) fn is_used_up(&self) -> bool {
        self.left_over.borrow().is_some()
    }
}
