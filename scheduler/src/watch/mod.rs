//! What is known of a core while it runs: why its objects are awake, how its time is shared, and which
//! object blocks it.
//!
//! Who asks pays: what objects leave behind as they go is a number in a slab, a few stores into memory that
//! only this core writes, and a look at the clock for each turn of an object.

mod activity;
mod budget;
mod resident;

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use dormouse_engine::Host;

pub(crate) use activity::{Activities, Activity, List};
pub(crate) use budget::Budget;
pub(crate) use resident::Reasons;
pub use resident::{Awake, Reason, Resident};

use crate::host::CoreHost;

/// What a core tells other threads: memory that it alone writes.
#[derive(Debug, Default)]
pub(crate) struct CoreShared {
    /// When its mailbox was empty last, in microseconds by its clock.
    mailbox_empty_us: AtomicU64,
}

impl CoreShared {
    /// When the core's mailbox was empty last, by its clock.
    pub(crate) fn mailbox_empty(&self) -> Duration {
        Duration::from_micros(self.mailbox_empty_us.load(Ordering::Relaxed))
    }
}

/// The watch of one core.
pub(crate) struct Watch {
    host: CoreHost,
    shared: Arc<CoreShared>,
    pub(crate) activities: Activities,
    /// When the turn or the batch of mail began that is under way.
    began: Cell<Option<Duration>>,
}

impl Watch {
    pub(crate) fn new(host: CoreHost, shared: Arc<CoreShared>) -> Rc<Self> {
        Rc::new(Self { host, shared, activities: Activities::default(), began: Cell::default() })
    }

    /// The core's clock, as it was when this turn began: enough for what waits for longer than turns take.
    pub(crate) fn now(&self) -> Duration {
        self.began.get().unwrap_or_else(|| self.host.now())
    }

    /// How long the turn that is under way has taken.
    fn elapsed(&self) -> Duration {
        let began = self.began.get();
        began.map_or(Duration::ZERO, |began| self.host.now().saturating_sub(began))
    }

    /// Begins a turn of an object's, or of the core's own.
    pub(crate) fn turn(&self) -> Turn<'_> {
        let outer = self.began.replace(Some(self.host.now()));
        assert!(outer.is_none(), "a core does one thing at a time");
        Turn(self)
    }

    /// The mailbox is empty, and was not looked at before this turn began.
    pub(crate) fn mailbox_is_empty(&self) {
        let now_us = u64::try_from(self.now().as_micros()).unwrap_or(u64::MAX);
        self.shared.mailbox_empty_us.store(now_us, Ordering::Relaxed);
    }
}

/// A turn, until it is dropped.
pub(crate) struct Turn<'a>(&'a Watch);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.began.set(None);
    }
}
