//! [`Budget`]: the dirty bytes of all objects of a core together, and who waits until they are fewer;
//! and the timers that flushes share.
//!
//! Invariants:
//!
//! - `bytes` is the sum of what the caches of the core have dirty or in flight.
//! - Whoever waits is woken, in the order of arrival, whenever there is room, and looks for itself.
//!   Nobody waits for another one to go in first: that one may be behind an input gate that is held
//!   until this one has room, or its future may be kept and not polled.
//! - So every wait ends: of all that is dirty a flush is under way, and no flush waits for room.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use crate::gate::{Ticket, Waiters, wake_all};
use crate::watch::Watches;

/// What the objects of one core may have dirty together. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Budget(Rc<Shared>);

#[derive(Debug)]
struct Shared {
    dirty_bytes_max: usize,
    bytes: Cell<usize>,
    waiters: RefCell<Waiters>,
    watches: Watches,
}

impl Budget {
    /// A core's. Above `dirty_bytes_max`, writes are answered, and turns start, only after a flush of
    /// some object.
    pub fn new(dirty_bytes_max: usize) -> Self {
        let (bytes, waiters, watches) = Default::default();
        Self(Rc::new(Shared { dirty_bytes_max, bytes, waiters, watches }))
    }

    /// What is dirty or in flight, in the measure of
    /// [`ActorCache::dirty_bytes`](crate::ActorCache::dirty_bytes).
    pub fn dirty_bytes(&self) -> usize {
        self.0.bytes.get()
    }

    /// Whether one has to wait for room.
    #[inline]
    pub(crate) fn is_full(&self) -> bool {
        self.0.bytes.get() > self.0.dirty_bytes_max
    }

    /// Waits until there is room. Dropping it changes nothing.
    pub fn room(&self) -> impl Future<Output = ()> + use<> {
        Room { budget: self.clone(), ticket: None }
    }

    /// Timers of flushes that are over.
    pub(crate) fn watches(&self) -> &Watches {
        &self.0.watches
    }

    /// Wakes those who wait, if there is room. To be called when dirty bytes became fewer, with
    /// nothing borrowed.
    pub(crate) fn let_in(&self) {
        if self.is_full() {
            return;
        }
        let mut waiters = self.0.waiters.borrow_mut();
        if !waiters.is_empty() {
            let wakers = waiters.take();
            drop(waiters);
            wake_all(wakers);
        }
    }
}

/// A wait for room.
struct Room {
    budget: Budget,
    ticket: Option<Ticket>,
}

impl Future for Room {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        if !this.budget.is_full() {
            return Poll::Ready(());
        }
        this.budget.0.waiters.borrow_mut().register(&mut this.ticket, cx.waker());
        Poll::Pending
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        if self.ticket.is_some() {
            self.budget.0.waiters.borrow_mut().forget(self.ticket);
        }
    }
}

/// One object's part of its core's dirty bytes. Dropped, it has none.
#[derive(Debug)]
pub(crate) struct Share {
    budget: Budget,
    bytes: usize,
}

impl Share {
    pub(crate) fn new(budget: &Budget) -> Self {
        Self { budget: budget.clone(), bytes: 0 }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Wakes nobody: see [`Budget::let_in`].
    pub(crate) fn set(&mut self, bytes: usize) {
        let total = &self.budget.0.bytes;
        total.set(total.get() - self.bytes + bytes);
        self.bytes = bytes;
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.set(0);
        self.budget.let_in();
    }
}
