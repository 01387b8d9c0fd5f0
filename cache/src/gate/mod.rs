//! The gates of one object: [`input`] keeps other events out while the object waits for its
//! storage, [`output`] keeps what it says until what it wrote before is durable.
//!
//! Here are primitives; which event waits where is the scheduler's.

mod few;
pub(crate) mod input;
pub(crate) mod output;

use std::num::NonZeroU64;
use std::task::Waker;

use few::Few;

/// A future's place among those that wait.
pub(crate) type Ticket = NonZeroU64;

/// Wakers of futures that wait for the same thing, in the order in which they began to wait.
#[derive(Debug, Default)]
pub(crate) struct Waiters {
    given: u64,
    wakers: Few<Ticket, Waker>,
}

impl Waiters {
    /// Keeps `waker` for the future that holds `ticket`, giving it a ticket first.
    pub(crate) fn register(&mut self, ticket: &mut Option<Ticket>, waker: &Waker) {
        let ticket = *ticket.get_or_insert_with(|| {
            self.given += 1;
            Ticket::new(self.given).expect("the first is 1")
        });
        self.wakers.insert(ticket, waker.clone());
    }

    /// Forgets a future that is gone.
    pub(crate) fn forget(&mut self, ticket: Option<Ticket>) {
        if let Some(ticket) = ticket {
            self.wakers.remove(ticket);
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.wakers.is_empty()
    }

    /// Takes all wakers, to be woken once nothing is borrowed.
    pub(crate) fn take(&mut self) -> Vec<Waker> {
        std::mem::take(&mut self.wakers).into_values().collect()
    }
}

/// Wakes them in order.
pub(crate) fn wake_all(wakers: Vec<Waker>) {
    wakers.into_iter().for_each(Waker::wake);
}
