//! One live object: its cache, its gates, what it has to do, and the runner that polls its [`events`].
//!
//! Invariants:
//!
//! - The runner, one task of the core, owns the user's object and all its events; with it they go.
//! - What an object says to others leaves in its order, and only through the output gate as it was then.
//! - The first reason that ends the instance is its verdict: storage stops at once, and every call
//!   that is not answered yet gets it.

mod events;

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Poll, Waker};
use std::time::Duration;

use dormouse_cache::{ActorCache, AlarmToo, EventId, InputGate, OutputWait};
use dormouse_engine as engine;
use dormouse_engine::Host;
use futures_util::StreamExt;
use futures_util::future::FutureExt;
use futures_util::stream::FuturesUnordered;

use crate::core::Inner;
use crate::error::{Error, Result};
use crate::event::{Verdict, closed};
use crate::host::{CoreHost, Home};
use crate::id::Id;
use crate::residency::Place;
use crate::socket::sockets::Sockets;
use crate::topology::Topology;
use crate::watch::{Activity, Awake, Budget, Count, List, Reasons, Resident, Watch};

pub(crate) use events::{AlarmCall, AlarmEnd, AlarmReply, Event, Work, current, outside};

pub(crate) type Cache = ActorCache<CoreHost, Home>;

/// Something said to others.
type Say = Box<dyn FnOnce()>;

pub(crate) struct Instance {
    pub(crate) id: Id,
    pub(crate) class: usize,
    pub(crate) host: CoreHost,
    /// For the namespaces that the object calls.
    pub(crate) topology: Topology,
    pub(crate) cache: Cache,
    pub(crate) gate: InputGate,
    /// The object's connections, which outlive this; most objects never have any.
    sockets: OnceCell<Rc<Sockets>>,
    /// Weak: the core keeps this.
    core: Weak<Inner>,
    /// What `delete_all` does with the alarm, unless it is said.
    pub(crate) delete_all: AlarmToo,
    verdict: Verdict,
    current: Cell<Option<EventId>>,
    next_event: Cell<u64>,
    inbox: RefCell<VecDeque<(Activity, Work)>>,
    waker: RefCell<Option<Waker>>,
    evict: Cell<bool>,
    /// Calls that came and have not ended.
    calls: Cell<usize>,
    /// Its part in what the core keeps in memory.
    pub(crate) place: Place,
    /// It has left memory; a destructor may still use handles on it.
    ended: Cell<bool>,
    /// What the object said to others and its output gate still keeps, in order.
    outbox: RefCell<VecDeque<(OutputWait, Say)>>,
    pub(crate) watch: Rc<Watch>,
    /// What it has to do.
    activities: List,
    /// What woke it last, and when.
    woken: Cell<(Awake, Duration)>,
    budget: Budget,
    /// Calls to others whose replies it has not taken; shared with them.
    outside_calls: OnceCell<Arc<AtomicUsize>>,
}

impl Instance {
    pub(crate) fn new(
        id: Id,
        class: usize,
        core: &Rc<Inner>,
        cache: Cache,
        place: Place,
    ) -> Rc<Self> {
        let gate = cache.input_gate();
        // Those that were accepted by earlier instances.
        let sockets = core.sockets.borrow().get(&id.object()).cloned();
        let watch = core.watch.clone();
        Rc::new(Self {
            id,
            class,
            host: core.host.clone(),
            topology: core.topology.clone(),
            cache,
            gate,
            sockets: sockets.map_or_else(OnceCell::new, OnceCell::from),
            core: Rc::downgrade(core),
            delete_all: core.topology.bounds(class).delete_all,
            verdict: Verdict::default(),
            current: Cell::new(None),
            next_event: Cell::new(0),
            inbox: RefCell::default(),
            waker: RefCell::default(),
            evict: Cell::new(false),
            calls: Cell::new(0),
            place,
            ended: Cell::new(false),
            outbox: RefCell::default(),
            activities: List::default(),
            woken: Cell::new((Awake::Starting, watch.now())),
            budget: Budget::default(),
            outside_calls: OnceCell::new(),
            watch,
        })
    }

    /// The event whose code is being polled.
    pub(crate) fn current(&self) -> Option<EventId> {
        self.current.get()
    }

    pub(crate) fn new_event(&self) -> EventId {
        let number = self.next_event.get();
        self.next_event.set(number + 1);
        EventId(number)
    }

    /// Its connections and what was set for them, if there ever were any.
    pub(crate) fn sockets(&self) -> Option<&Rc<Sockets>> {
        self.sockets.get()
    }

    /// The same, made if need be.
    ///
    /// Errors: `Closed`.
    pub(crate) fn sockets_or_new(&self) -> Result<&Rc<Sockets>> {
        if self.sockets.get().is_none() {
            let core = self.core.upgrade().ok_or_else(closed)?;
            let _it_was_empty = self.sockets.set(core.new_sockets(self));
        }
        Ok(self.sockets.get().expect("set above"))
    }

    pub(crate) fn push(&self, work: Work) {
        self.push_since(self.watch.now(), work);
    }

    /// As [`push`](Self::push), of what has waited since then by the core's clock.
    pub(crate) fn push_since(&self, since: Duration, mut work: Work) {
        match &mut work {
            Work::Call(call) => {
                call.bind(&self.verdict);
                self.calls.set(self.calls.get() + 1);
                let counts = self.watch.of(self.class);
                counts.add(Count::Calls, 1);
                counts.add(Count::CallsInProgress, 1);
            }
            Work::Alarm(call) => call.done.verdict = Some(self.verdict.clone()),
            Work::Socket(_) => self.watch.of(self.class).add(Count::SocketEvents, 1),
            Work::Task(..) => {}
        }
        let why = work.why();
        if why.is_event() {
            self.woken_by(why);
        }
        let activity = self.watch.activities.begin(&self.activities, why, since);
        self.inbox.borrow_mut().push_back((activity, work));
        self.place.wake();
        self.wake();
    }

    /// How long it stays with nothing to do.
    pub(crate) fn idle_max(&self) -> Duration {
        self.topology.bounds(self.class).idle
    }

    /// Calls that came and have not ended.
    pub(crate) fn calls(&self) -> usize {
        self.calls.get()
    }

    /// Since when the oldest of them is there, by the core's clock.
    pub(crate) fn oldest_call(&self) -> Option<Duration> {
        self.watch.activities.oldest_call(&self.activities)
    }

    fn ended(&self, activity: &Activity) {
        let (why, since) = self.watch.activities.end(&self.activities, activity);
        if why.is_call() {
            self.calls.set(self.calls.get() - 1);
            self.watch.of(self.class).subtract(Count::CallsInProgress, 1);
            self.watch.call_ended(self.class, since);
        }
    }

    /// Something came that it has to look at.
    pub(crate) fn woken_by(&self, why: Awake) {
        self.woken.set((why, self.watch.now()));
    }

    /// A call to another object, until the result is dropped.
    pub(crate) fn calls_outside(&self) -> OutsideCall {
        let count = self.outside_calls.get_or_init(Arc::default).clone();
        count.fetch_add(1, Ordering::Relaxed);
        OutsideCall(count)
    }

    /// Why it is awake, and why it last woke.
    pub(crate) fn resident(&self, namespace: Arc<str>) -> Resident {
        let now = self.host.now();
        let ago = |then: Duration| now.saturating_sub(then);
        let mut reasons = Reasons::default();
        self.watch.activities.each(&self.activities, |why, since| {
            reasons.add(why, 1, Some(ago(since)));
        });
        let outside = self.outside_calls.get().map_or(0, |count| count.load(Ordering::Relaxed));
        reasons.add(Awake::OutsideCall, outside, None);
        reasons.add(Awake::DirtyBytes, self.cache.dirty_bytes(), None);
        let (woken_by, woken) = self.woken.get();
        Resident {
            id: self.id.clone(),
            namespace,
            awake: reasons.into_vec(),
            woken_by,
            woken: ago(woken),
            last_turn: ago(self.place.last_turn()),
            calls: self.calls(),
            sockets: self.sockets().map_or(0, |sockets| sockets.count()),
            bytes: self.place.bytes(),
        }
    }

    /// Whether nothing would be lost if it left now, and nothing waits for it.
    pub(crate) fn is_idle(&self) -> bool {
        self.place.is_idle() && self.cache.is_idle()
    }

    fn wake(&self) {
        let waker = self.waker.borrow_mut().take();
        waker.into_iter().for_each(Waker::wake);
    }

    /// Ends the instance; gives the reason that stays, which is the first.
    pub(crate) fn reset(&self, reason: Error) -> Error {
        let reason = self.verdict.get_or_init(|| reason).clone();
        let text = reason.to_string();
        self.cache.shutdown(engine::Error::coded(engine::Kind::Closed, "object-reset", text));
        self.wake();
        reason
    }

    /// Lets the instance go as soon as nothing would be lost.
    pub(crate) fn evict(self: &Rc<Self>) {
        self.evict.set(true);
        let durable = self.cache.sync();
        self.push(Work::Task(Awake::Leaving, async { drop(durable.await) }.boxed_local()));
    }

    /// Says something to others: at once if the output gate is open, else when it is. One
    /// that was reset says nothing more, whatever its turn goes on to do.
    pub(crate) fn say(self: &Rc<Self>, send: impl FnOnce() + 'static) {
        if self.verdict.get().is_some() {
            return;
        }
        let wait = self.cache.output_gate().wait();
        let mut outbox = self.outbox.borrow_mut();
        if outbox.is_empty() && wait.is_ready() && self.cache.broken_reason().is_none() {
            drop(outbox);
            return send();
        }
        outbox.push_back((wait, Box::new(send)));
        let is_first = outbox.len() == 1;
        drop(outbox);
        if is_first {
            self.begin_to_say();
        }
    }

    /// As [`say`](Self::say), but never within the turn: what a constructor or a turn says before
    /// it resets the object is not said.
    pub(crate) fn say_after_turn(self: &Rc<Self>, send: impl FnOnce() + 'static) {
        let wait = self.cache.output_gate().wait();
        let is_first = {
            let mut outbox = self.outbox.borrow_mut();
            outbox.push_back((wait, Box::new(send)));
            outbox.len() == 1
        };
        if is_first {
            self.begin_to_say();
        }
    }

    fn begin_to_say(self: &Rc<Self>) {
        self.push(Work::Task(Awake::Saying, self.clone().empty_outbox().boxed_local()));
    }

    /// Errors: code `object-evicted` once the instance has left memory.
    pub(crate) fn check_resident(&self) -> Result<()> {
        if !self.ended.get() {
            return Ok(());
        }
        let text = "the instance left memory because nothing was happening";
        Err(engine::Error::coded(engine::Kind::Closed, "object-evicted", text).into())
    }

    /// Whether nothing of it runs any more.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended.get()
    }

    /// Why it was reset, if it was.
    pub(crate) fn reset_reason(&self) -> Option<&Error> {
        self.verdict.get()
    }

    async fn empty_outbox(self: Rc<Self>) {
        loop {
            let opened = poll_fn(|cx| match self.outbox.borrow_mut().front_mut() {
                Some((wait, _)) => wait.poll_unpin(cx).map(Some),
                None => Poll::Ready(None),
            });
            let Some(result) = opened.await else {
                // It keeps no room for what may never come again.
                return drop(self.outbox.take());
            };
            // The gate is broken for good, and the reset follows; or that came already, by an event
            // that was ready together with this: nothing is said any more.
            if result.is_err() || self.reset_reason().is_some() {
                return drop_quietly(std::mem::take(&mut *self.outbox.borrow_mut()));
            }
            let said = self.outbox.borrow_mut().pop_front();
            if let Some((_, send)) = said {
                send();
            }
        }
    }

    /// Lives until the instance is evicted or reset.
    pub(crate) async fn run(self: &Rc<Self>, core: &Inner) {
        let Some(object) = self.construct(core.topology.class(self.class)) else {
            self.ended.set(true);
            return self.end();
        };
        // None of an object with nothing to do.
        let mut tasks: Option<FuturesUnordered<Event>> = None;
        let (mut storage_broken, mut gate_broken) = (self.cache.broken(), self.gate.broken());
        // It has what it needs, and not references to that beside it: an idle object keeps this.
        let (tasks, object) = poll_fn(move |cx| {
            *self.waker.borrow_mut() = Some(cx.waker().clone());
            let turn = self.watch.turn(&self.id, self.class);
            self.budget.renew();
            loop {
                if self.verdict.get().is_some() {
                    return Poll::Ready((tasks.take(), object.clone()));
                }
                let broken = match storage_broken.poll_unpin(cx) {
                    Poll::Pending => gate_broken.poll_unpin(cx),
                    reason => reason,
                };
                if let Poll::Ready(reason) = broken {
                    self.reset(Error::reset_by(reason));
                    continue;
                }
                if !self.inbox.borrow().is_empty() {
                    let tasks = tasks.get_or_insert_with(|| core.spare.take());
                    self.begin_arrived(core.topology.class(self.class), &object, tasks);
                }
                let poll =
                    || tasks.as_mut().map_or(Poll::Ready(None), |all| all.poll_next_unpin(cx));
                match catch_unwind(AssertUnwindSafe(poll)) {
                    Ok(Poll::Ready(Some(()))) => {}
                    Ok(_) if !self.inbox.borrow().is_empty() || self.verdict.get().is_some() => {}
                    Ok(Poll::Ready(None)) if self.evict.get() && self.cache.is_idle() => {
                        return Poll::Ready((tasks.take(), object.clone()));
                    }
                    Ok(_) => {
                        let over = tasks.take_if(|tasks| tasks.is_empty());
                        over.into_iter().for_each(|over| core.spare.give_back(over));
                        let idle = tasks.is_none();
                        let (now, bytes) = (turn.now(), self.cache.memory_bytes());
                        Place::had_turn(self, now, idle, bytes);
                        if self.budget.is_used_up() {
                            cx.waker().wake_by_ref();
                        }
                        return Poll::Pending;
                    }
                    Err(panic) => drop(self.reset(Error::panicked(&*panic))),
                }
            }
        })
        .await;
        let _turn = self.watch.turn(&self.id, self.class);
        self.ended.set(true);
        drop_quietly(tasks);
        drop_quietly(object);
        self.end();
    }

    /// Storage stops, and what was not begun is answered.
    fn end(&self) {
        let gone = engine::Error::coded(engine::Kind::Closed, "object-evicted", "evicted");
        self.cache.shutdown(gone);
        drop_quietly(std::mem::take(&mut *self.outbox.borrow_mut()));
        for (activity, work) in std::mem::take(&mut *self.inbox.borrow_mut()) {
            self.ended(&activity);
            drop_quietly(work);
        }
    }
}

/// A call that an object has made to another one, until its reply is taken.
#[derive(Debug)]
pub(crate) struct OutsideCall(Arc<AtomicUsize>);

impl Drop for OutsideCall {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A destructor of the user's that panics must not take the core with it.
fn drop_quietly<T>(value: T) {
    if catch_unwind(AssertUnwindSafe(|| drop(value))).is_err() {
        tracing::error!("a destructor of an object's panicked");
    }
}
