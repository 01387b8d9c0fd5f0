//! [`Budget`]: how much of a core one object may use before the others have their turn.
//!
//! In one turn an object's events are polled [`EVENTS`] times at most, and none begins its poll when the turn has
//! taken [`TIME`] already. What is left over goes on in the object's next turn, in the order in which it was
//! ready, and the core's run queue gives that turn behind all others that are ready now. So another object
//! waits, for each busy one, for [`TIME`] and one poll at most; how long one poll takes is up to the
//! object's code, which the watchdog looks at.
//!
//! Invariant: an event that was not polled yet is never overtaken by one that came later, for all that are left
//! over are woken in their order before anything new is taken.

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
    /// Events that were ready when nothing was left; nearly always none, of an object that may be one of many.
    #[expect(clippy::box_collection, reason = "a word of an idle object instead of three")]
    left_over: RefCell<Option<Box<Vec<Waker>>>>,
}

impl Budget {
    /// A new turn: those that were left over are ready again.
    pub(crate) fn renew(&self) {
        self.polls.set(0);
        let left_over = self.left_over.take();
        left_over.into_iter().for_each(|left_over| left_over.into_iter().for_each(Waker::wake));
    }

    /// Whether an event may be polled now; if not, it is woken in the next turn.
    pub(crate) fn allows(&self, watch: &Watch, waker: &Waker) -> bool {
        let polls = self.polls.get();
        // The first poll needs no look at the clock: most turns have no other.
        if polls < EVENTS && (polls == 0 || watch.elapsed() < TIME) {
            self.polls.set(polls + 1);
            return true;
        }
        self.polls.set(EVENTS);
        self.left_over.borrow_mut().get_or_insert_default().push(waker.clone());
        false
    }

    /// Whether the object needs another turn at once.
    pub(crate) fn is_used_up(&self) -> bool {
        self.left_over.borrow().is_some()
    }
}
