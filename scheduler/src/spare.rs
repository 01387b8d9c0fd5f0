//! [`Spare`]: what polls the events of an object, kept by the core while no object needs it.
//!
//! It is two blocks of memory, which an object would have made anew for every event, or would keep for as
//! long as it has nothing to do. Of these it takes one that another object gave back.

use std::cell::RefCell;

use futures_util::stream::FuturesUnordered;

/// So many are kept: as many objects as a core runs at a time, about. Beyond, they are made anew.
const KEPT: usize = 256;

/// Sets of futures that are empty.
pub(crate) struct Spare<T>(RefCell<Vec<FuturesUnordered<T>>>);

impl<T> Default for Spare<T> {
    fn default() -> Self {
        Self(RefCell::default())
    }
}

impl<T> Spare<T> {
    /// An empty one.
    pub(crate) fn take(&self) -> FuturesUnordered<T> {
        self.0.borrow_mut().pop().unwrap_or_default()
    }

    /// Wakers of what was in it may still be about: they do nothing.
    pub(crate) fn give_back(&self, empty: FuturesUnordered<T>) {
        assert!(empty.is_empty(), "an object's events are its own");
        let mut kept = self.0.borrow_mut();
        if kept.len() < KEPT {
            kept.push(empty);
        }
    }
}
