//! [`Budget`]: the dirty bytes of all objects of a core together, and who waits until they are fewer.
//!
//! Invariants:
//!
//! - `bytes` is the sum of what the caches of the core have dirty or in flight.
//! - Room is given in the order in which it was asked for: while somebody waits, whoever comes later
//!   waits behind. Only the first is woken, and wakes the next when it has gone in or given up.
//! - Every wait ends: of all that is dirty a flush is under way, and no flush waits for room.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

/// What the objects of one core may have dirty together. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Budget(Rc<Shared>);

#[derive(Debug)]
struct Shared {
    dirty_bytes_max: usize,
    bytes: Cell<usize>,
    waiting: RefCell<BTreeMap<u64, Option<Waker>>>,
    /// How many wait.
    crowd: Cell<usize>,
    /// The place of whoever comes next.
    next: Cell<u64>,
}

impl Budget {
    /// A core's. Above `dirty_bytes_max`, writes are answered, and turns start, only after a flush of
    /// some object.
    pub fn new(dirty_bytes_max: usize) -> Self {
        Self(Rc::new(Shared {
            dirty_bytes_max,
            bytes: Cell::new(0),
            waiting: RefCell::default(),
            crowd: Cell::new(0),
            next: Cell::new(0),
        }))
    }

    /// What is dirty or in flight, in the measure of
    /// [`ActorCache::dirty_bytes`](crate::ActorCache::dirty_bytes).
    pub fn dirty_bytes(&self) -> usize {
        self.0.bytes.get()
    }

    /// Whether one has to wait for room.
    #[inline]
    pub(crate) fn is_full(&self) -> bool {
        self.is_over() || self.0.crowd.get() > 0
    }

    #[inline]
    fn is_over(&self) -> bool {
        self.0.bytes.get() > self.0.dirty_bytes_max
    }

    /// Waits until there is room, behind all who wait already.
    ///
    /// Cancel: whoever is next goes in instead.
    pub fn room(&self) -> impl Future<Output = ()> + use<> {
        Room { budget: self.clone(), place: None }
    }

    /// Wakes the first of those who wait, if there is room. To be called when dirty bytes became
    /// fewer, with nothing borrowed.
    pub(crate) fn let_in(&self) {
        if self.0.crowd.get() == 0 || self.is_over() {
            return;
        }
        let mut waiting = self.0.waiting.borrow_mut();
        let waker = waiting.first_entry().and_then(|mut first| first.get_mut().take());
        drop(waiting);
        waker.into_iter().for_each(Waker::wake);
    }

    fn leave(&self, place: u64) {
        self.0.waiting.borrow_mut().remove(&place).expect("it waits");
        self.0.crowd.set(self.0.crowd.get() - 1);
        self.let_in();
    }
}

/// A wait for room.
struct Room {
    budget: Budget,
    /// In the queue, once it was polled and had to wait.
    place: Option<u64>,
}

impl Future for Room {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let budget = self.budget.clone();
        let shared = &budget.0;
        let is_next = match self.place {
            None => shared.crowd.get() == 0,
            Some(place) => shared.waiting.borrow().keys().next() == Some(&place),
        };
        if is_next && !budget.is_over() {
            self.place.take().into_iter().for_each(|place| budget.leave(place));
            return Poll::Ready(());
        }
        let place = *self.place.get_or_insert_with(|| {
            shared.crowd.set(shared.crowd.get() + 1);
            shared.next.replace(shared.next.get() + 1)
        });
        shared.waiting.borrow_mut().insert(place, Some(cx.waker().clone()));
        Poll::Pending
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.place.take().into_iter().for_each(|place| self.budget.leave(place));
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
