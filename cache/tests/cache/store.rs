//! The scripted store: keeps each commit until the test answers it.
//!
//! Reads wait until the test serves them, too.
//!
//! It checks by itself that what the cache shows as resident is what the object is after the
//! commit, that commits come one at a time, and that none comes while a snapshot is being opened.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use dormouse_cache::{Backing, List, Stored};
use dormouse_engine::{AlarmChange, Batch, Contents, Error, Kind, Op, Resident, Result, Version};
use futures_util::future::{FutureExt, LocalBoxFuture};

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
    reads: Vec<Rc<PendingRead>>,
    served: usize,
}

/// A read that waits until it is served: with an error, or well.
struct PendingRead {
    opens: bool,
    served: RefCell<Option<Result<()>>>,
    waker: RefCell<Option<Waker>>,
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
            reads: Vec::new(),
            served: 0,
        })))
    }

    /// How many reads wait.
    pub(crate) fn waiting(&self) -> usize {
        self.0.borrow_mut().reads.retain(|read| Rc::strong_count(read) > 1);
        self.0.borrow().reads.len()
    }

    /// How many were served.
    pub(crate) fn served(&self) -> usize {
        self.0.borrow().served
    }

    /// Serves one of those that wait, or fails it; whether one was there that can be served now.
    pub(crate) fn serve(&self, place: usize, failure: Option<Kind>) -> bool {
        let waiting = self.waiting();
        if waiting == 0 {
            return false;
        }
        let mut script = self.0.borrow_mut();
        let place = place % waiting;
        if script.reads[place].opens && script.in_flight > 0 {
            return false;
        }
        let read = script.reads.remove(place);
        script.served += 1;
        drop(script);
        let failed = |kind| Err(Error::new(kind, "the read failed by the script"));
        *read.served.borrow_mut() = Some(failure.map_or(Ok(()), failed));
        let waker = read.waker.borrow_mut().take();
        waker.into_iter().for_each(Waker::wake);
        true
    }

    fn read(&self, opens: bool) -> impl Future<Output = Result<()>> + use<> {
        let (served, waker) = Default::default();
        let read = Rc::new(PendingRead { opens, served, waker });
        self.0.borrow_mut().reads.push(read.clone());
        poll_fn(move |cx| match read.served.borrow_mut().take() {
            Some(result) => Poll::Ready(result),
            None => {
                *read.waker.borrow_mut() = Some(cx.waker().clone());
                Poll::Pending
            }
        })
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

    fn commit(&self, batch: &Batch, resident: Option<&dyn Resident>) -> Result<Ticket> {
        let mut script = self.0.borrow_mut();
        script.calls += 1;
        if let Some(error) = script.refusals.pop_front() {
            return Err(error);
        }
        assert_eq!(script.in_flight, 0, "one flush at a time (R-356)");
        let opened = |read: &Rc<PendingRead>| read.opens && Rc::strong_count(read) > 1;
        assert!(!script.reads.iter().any(opened), "a snapshot is being opened");
        script.in_flight += 1;
        let mut after = script.durable.clone();
        after.apply(batch, Version(after.version.0 + 1));
        if let Some(resident) = resident {
            let mut shown = Vec::new();
            resident.visit(&mut |key, value| shown.push((key.to_vec(), value.to_vec())));
            let expected = after.map.iter().map(|(key, value)| (key.to_vec(), value.to_vec()));
            assert_eq!(
                shown,
                expected.collect::<Vec<_>>(),
                "resident is the state after the batch"
            );
            assert_eq!(resident.size(), (after.map.len(), after.bytes()));
        }
        let slot = Rc::new(RefCell::new(Slot::default()));
        let commit = Commit { store: self.clone(), batch: batch.clone(), slot: slot.clone() };
        script.commits.push_back(commit);
        Ok(Ticket(slot))
    }

    fn snapshot(&self) -> LocalBoxFuture<'static, Result<Rc<dyn Stored>>> {
        let (store, opened) = (self.clone(), self.read(true));
        async move {
            opened.await?;
            let contents = store.durable();
            Ok(Rc::new(Stillness { store, contents }) as Rc<dyn Stored>)
        }
        .boxed_local()
    }
}

/// The object as it was.
struct Stillness {
    store: Store,
    contents: Contents,
}

impl Stored for Stillness {
    fn get<'a>(&'a self, key: &'a [u8]) -> LocalBoxFuture<'a, Result<Option<Bytes>>> {
        async move {
            self.store.read(false).await?;
            Stored::get(&self.contents, key).await
        }
        .boxed_local()
    }

    fn count<'a>(&'a self, keys: &'a [Bytes]) -> LocalBoxFuture<'a, Result<usize>> {
        async move {
            self.store.read(false).await?;
            Stored::count(&self.contents, keys).await
        }
        .boxed_local()
    }

    fn list<'a>(&'a self, list: &'a List) -> LocalBoxFuture<'a, Result<Vec<(Bytes, Bytes)>>> {
        async move {
            self.store.read(false).await?;
            Stored::list(&self.contents, list).await
        }
        .boxed_local()
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
