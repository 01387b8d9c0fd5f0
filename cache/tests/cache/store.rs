//! The scripted store: keeps each commit until the test answers it.
//!
//! It checks by itself that what the cache shows as resident is what the object is after the
//! commit, and that commits come one at a time.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use dormouse_cache::Backing;
use dormouse_engine::{AlarmChange, Batch, Contents, Error, Kind, Op, Resident, Result, Version};

use super::text;

/// A store of one object.
#[derive(Clone)]
pub(crate) struct Store(Rc<RefCell<Script>>);

struct Script {
    /// What is durable.
    durable: Contents,
    commits: VecDeque<Commit>,
    in_flight: usize,
    refusals: VecDeque<Error>,
    calls: usize,
}

/// A commit that waits for its answer.
pub(crate) struct Commit {
    store: Store,
    batch: Batch,
    slot: Rc<RefCell<Slot>>,
}

#[derive(Default)]
struct Slot {
    result: Option<Result<Version>>,
    waker: Option<Waker>,
}

/// Resolves when the test says so.
pub(crate) struct Ticket(Rc<RefCell<Slot>>);

impl Store {
    pub(crate) fn new(contents: &Contents) -> Self {
        Self(Rc::new(RefCell::new(Script {
            durable: contents.clone(),
            commits: VecDeque::new(),
            in_flight: 0,
            refusals: VecDeque::new(),
            calls: 0,
        })))
    }

    /// The oldest commit without an answer.
    pub(crate) fn next(&self) -> Commit {
        self.0.borrow_mut().commits.pop_front().expect("a commit was made")
    }

    pub(crate) fn has_commit(&self) -> bool {
        !self.0.borrow().commits.is_empty()
    }

    /// The next call of commit fails at once.
    pub(crate) fn refuse(&self, kind: Kind) {
        self.0.borrow_mut().refusals.push_back(Error::new(kind, "refused by the script"));
    }

    /// Calls of commit so far.
    pub(crate) fn calls(&self) -> usize {
        self.0.borrow().calls
    }

    pub(crate) fn durable(&self) -> Contents {
        self.0.borrow().durable.clone()
    }
}

impl Backing for Store {
    type Ticket = Ticket;

    fn commit(&self, batch: &Batch, resident: &dyn Resident) -> Result<Ticket> {
        let mut script = self.0.borrow_mut();
        script.calls += 1;
        if let Some(error) = script.refusals.pop_front() {
            return Err(error);
        }
        assert_eq!(script.in_flight, 0, "one flush at a time (R-356)");
        script.in_flight += 1;
        let mut after = script.durable.clone();
        after.apply(batch, Version(after.version.0 + 1));
        let mut shown = Vec::new();
        resident.visit(&mut |key, value| shown.push((key.to_vec(), value.to_vec())));
        let expected = after.map.iter().map(|(key, value)| (key.to_vec(), value.to_vec()));
        assert_eq!(shown, expected.collect::<Vec<_>>(), "resident is the state after the batch");
        assert_eq!(resident.size(), (after.map.len(), after.bytes()));
        let slot = Rc::new(RefCell::new(Slot::default()));
        let commit = Commit { store: self.clone(), batch: batch.clone(), slot: slot.clone() };
        script.commits.push_back(commit);
        Ok(Ticket(slot))
    }
}

impl Commit {
    /// It is durable.
    pub(crate) fn succeed(self) {
        let mut script = self.store.0.borrow_mut();
        let version = Version(script.durable.version.0 + 1);
        script.durable.apply(&self.batch, version);
        drop(script);
        self.answer(Ok(version));
    }

    /// It failed.
    pub(crate) fn fail(self, kind: Kind) {
        self.answer(Err(Error::new(kind, "failed by the script")));
    }

    fn answer(&self, result: Result<Version>) {
        self.store.0.borrow_mut().in_flight -= 1;
        let mut slot = self.slot.borrow_mut();
        slot.result = Some(result);
        let waker = slot.waker.take();
        drop(slot);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// What it does, as `delete-all k=v -k alarm=t`.
    pub(crate) fn show(&self) -> String {
        let mut words = Vec::new();
        if self.batch.deletes_all() {
            words.push("delete-all".into());
        }
        words.extend(self.batch.ops().map(|op| match op {
            Op::Put(key, value) => format!("{}={}", text(key), text(value)),
            Op::Delete(key) => format!("-{}", text(key)),
        }));
        match self.batch.alarm() {
            AlarmChange::Keep => {}
            AlarmChange::Clear => words.push("alarm=none".into()),
            AlarmChange::Set(at_ms) => words.push(format!("alarm={at_ms}")),
        }
        words.join(" ")
    }
}

impl Future for Ticket {
    type Output = Result<Version>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<Version>> {
        let mut slot = self.0.borrow_mut();
        slot.waker = Some(cx.waker().clone());
        slot.result.take().map_or(Poll::Pending, Poll::Ready)
    }
}
