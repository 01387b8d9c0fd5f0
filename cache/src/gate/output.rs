//! The output gate: what an object says waits until the confirmed writes it made before are
//! durable.
//!
//! Flushes of an object are numbered 1, 2, 3, … in the order in which they start, and end in that
//! order. So a wait is a number: the highest flush that carries, or will carry, a confirmed write
//! made so far. The gate is open for the wait when that flush is durable.
//!
//! Invariants: `done <= started`; a flush that gathers has the number `started + 1`;
//! `confirmed <= scheduled <= started + 1`; `broken` is set once and stays.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use dormouse_engine::{Error, Result};

use super::{Ticket, Waiters, wake_all};
use crate::ops::Confirmation;

/// A handle on an object's output gate. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct OutputGate(Rc<RefCell<Progress>>);

#[derive(Debug, Default)]
struct Progress {
    started: u64,
    done: u64,
    scheduled: u64,
    confirmed: u64,
    broken: Option<Error>,
    waiters: Waiters,
}

impl OutputGate {
    /// Waits until every confirmed write made before this call is durable; later ones do not
    /// extend the wait. Fails with the first cause if one of them can't become durable,
    /// and always once the gate is broken. Dropping it changes nothing.
    pub fn wait(&self) -> OutputWait {
        let number = self.0.borrow().confirmed;
        self.wait_for(number)
    }

    /// Whether [`wait`](Self::wait) would return at once and with success.
    pub fn is_open(&self) -> bool {
        let progress = self.0.borrow();
        progress.broken.is_none() && progress.confirmed <= progress.done
    }

    /// Why the gate is broken, if it is.
    pub fn broken_reason(&self) -> Option<Error> {
        self.0.borrow().broken.clone()
    }

    /// Returns the reason once the gate is broken.
    pub fn broken(&self) -> impl Future<Output = Error> + Unpin + use<> {
        let mut wait = self.wait_for(u64::MAX);
        poll_fn(move |cx| {
            let outcome = Pin::new(&mut wait).poll(cx);
            outcome.map(|outcome| outcome.expect_err("no flush has this number"))
        })
    }

    /// Waits for all writes made so far, confirmed or not.
    pub(crate) fn wait_for_all(&self) -> OutputWait {
        let number = self.0.borrow().scheduled;
        self.wait_for(number)
    }

    /// Waits for the next flush that ends.
    pub(crate) fn wait_for_next(&self) -> OutputWait {
        let number = self.0.borrow().done + 1;
        self.wait_for(number)
    }

    fn wait_for(&self, number: u64) -> OutputWait {
        let broken = self.broken_reason();
        OutputWait { gate: self.clone(), number, broken, ticket: None }
    }

    /// A write joins the flush that gathers.
    pub(crate) fn written(&self, confirmation: Confirmation) {
        let mut progress = self.0.borrow_mut();
        progress.scheduled = progress.started + 1;
        if confirmation == Confirmation::Confirmed {
            progress.confirmed = progress.scheduled;
        }
    }

    /// A confirmed write found its value already on the way, in the flush that is in flight.
    pub(crate) fn confirm_in_flight(&self) {
        let mut progress = self.0.borrow_mut();
        assert!(progress.started > progress.done);
        progress.confirmed = progress.confirmed.max(progress.started);
    }

    /// The flush that gathers starts.
    pub(crate) fn started(&self) {
        self.0.borrow_mut().started += 1;
    }

    /// The flush in flight is durable, and so is all before it.
    pub(crate) fn finished(&self) {
        let mut progress = self.0.borrow_mut();
        assert!(progress.done < progress.started);
        progress.done = progress.started;
        let wakers = progress.waiters.take();
        drop(progress);
        wake_all(wakers);
    }

    /// Breaks the gate for good; the first reason stays.
    pub(crate) fn break_with(&self, reason: Error) {
        let mut progress = self.0.borrow_mut();
        progress.broken.get_or_insert(reason);
        let wakers = progress.waiters.take();
        drop(progress);
        wake_all(wakers);
    }
}

/// A wait at the output gate.
#[derive(Debug)]
pub struct OutputWait {
    gate: OutputGate,
    number: u64,
    /// The gate was broken when the wait began: it fails whatever it waits for.
    broken: Option<Error>,
    ticket: Option<Ticket>,
}

impl OutputWait {
    /// Whether it would return at once.
    pub fn is_ready(&self) -> bool {
        self.outcome().is_some()
    }

    fn outcome(&self) -> Option<Result<()>> {
        let progress = self.gate.0.borrow();
        match (&self.broken, &progress.broken) {
            (Some(reason), _) => Some(Err(reason.clone())),
            (None, _) if self.number <= progress.done => Some(Ok(())),
            (None, Some(reason)) => Some(Err(reason.clone())),
            (None, None) => None,
        }
    }
}

impl Future for OutputWait {
    type Output = Result<()>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        if let Some(outcome) = self.outcome() {
            return Poll::Ready(outcome);
        }
        let this = &mut *self;
        this.gate.0.borrow_mut().waiters.register(&mut this.ticket, cx.waker());
        Poll::Pending
    }
}

impl Drop for OutputWait {
    fn drop(&mut self) {
        self.gate.0.borrow_mut().waiters.forget(self.ticket);
    }
}
