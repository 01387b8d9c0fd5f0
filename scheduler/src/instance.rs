//! One live object: its cache, its gates, and the tasks that are its events.
//!
//! Invariants:
//!
//! - The runner, one task of the core, owns the user's object and all its events; with it they go.
//! - Every event passes the input gate at each of its polls, in the order of delivery, and is
//!   polled only while not too much is dirty.
//! - A reply leaves only through the output gate as it was when the handler returned.
//! - The first reason that ends the instance is its verdict: storage stops at once, and every call
//!   that is not answered yet gets it.

use std::any::Any;
use std::cell::{Cell, OnceCell, RefCell};
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use dormouse_cache::{
    ActorCache, AlarmRun, AlarmToo, EventId, Gated, InputGate, Outcome, OutputWait,
};
use dormouse_engine as engine;
use dormouse_engine::Host;
use futures_channel::oneshot;
use futures_util::StreamExt;
use futures_util::future::{Either, FutureExt, LocalBoxFuture, select};
use futures_util::stream::FuturesUnordered;
use tracing::Span;

use crate::core::Inner;
use crate::error::{Error, Result};
use crate::event::{Deliver, Verdict, closed};
use crate::host::{CoreHost, Home};
use crate::id::Id;
use crate::object::AlarmInfo;
use crate::residency::Place;
use crate::socket::WebSocket;
use crate::socket::event::{Delivery, SocketCall};
use crate::socket::sockets::Sockets;
use crate::state::State;
use crate::topology::{Class, Topology};
use crate::watch::{
    Activity, Awake, Budget, Count, LeftOver, List, Reasons, Resident, Watch, of_event,
};

pub(crate) type Cache = ActorCache<CoreHost, Home>;

thread_local! {
    /// The instance whose code is being polled: its calls to others wait at its output gate.
    static CURRENT: RefCell<Option<Rc<Instance>>> = const { RefCell::new(None) };
}

/// What an instance is given to do.
pub(crate) enum Work {
    Call(Box<dyn Deliver>),
    Alarm(AlarmCall),
    Socket(SocketCall),
    /// A task that the object itself started, and what for.
    Task(Awake, LocalBoxFuture<'static, ()>),
}

impl Work {
    fn why(&self) -> Awake {
        match self {
            Self::Call(call) if call.is_fetch() => Awake::Request,
            Self::Call(_) => Awake::Call,
            Self::Alarm(_) => Awake::Alarm,
            Self::Socket(_) => Awake::SocketEvent,
            Self::Task(why, _) => *why,
        }
    }
}

/// One run of the alarm handler, and where its end is told.
pub(crate) struct AlarmCall {
    pub(crate) info: AlarmInfo,
    /// Whether a failure is the last one.
    pub(crate) last: bool,
    /// The last one has failed, and its object could not be told: the handler does not run.
    pub(crate) abandoned: bool,
    pub(crate) done: AlarmReply,
}

/// Where the end of a run is told. Dropped without one, it says that the run failed.
pub(crate) struct AlarmReply {
    sender: Option<oneshot::Sender<AlarmEnd>>,
    /// Set once the handler runs: a failure before that does not count.
    began: bool,
    verdict: Option<Verdict>,
}

impl AlarmReply {
    pub(crate) fn new() -> (Self, oneshot::Receiver<AlarmEnd>) {
        let (sender, receiver) = oneshot::channel();
        (Self { sender: Some(sender), began: false, verdict: None }, receiver)
    }

    fn send(mut self, end: AlarmEnd) {
        if let Some(sender) = self.sender.take() {
            let _gone = sender.send(end);
        }
    }
}

impl Drop for AlarmReply {
    fn drop(&mut self) {
        if let Some(sender) = self.sender.take() {
            let verdict = self.verdict.as_ref().and_then(|verdict| verdict.get());
            let excused = verdict.is_some_and(Error::is_storage_failure);
            let _gone = sender.send(AlarmEnd::Failed { counted: self.began && !excused });
        }
    }
}

/// How a run of the alarm handler ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AlarmEnd {
    /// Nothing is left to do: it succeeded, was abandoned, or the alarm is another one.
    Over,
    /// To be tried again; whether it counts.
    Failed { counted: bool },
}

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

    /// What it has to do: one thing more, until the result is dropped.
    pub(crate) fn busy_with(self: &Rc<Self>, why: Awake) -> Busy {
        let activity = self.watch.activities.begin(&self.activities, why, self.watch.now());
        Busy { instance: self.clone(), activity }
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

    /// Runs `task` as an event of the object.
    pub(crate) fn gated<T: 'static>(
        self: &Rc<Self>,
        event: EventId,
        task: LocalBoxFuture<'static, T>,
    ) -> Gated<T> {
        let scoped = Scoped { instance: self.clone(), event, room: None, task };
        self.gate.gated(event, Box::pin(scoped))
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

    /// Makes events of what came, in its order; the inbox keeps no room.
    fn begin_arrived(
        self: &Rc<Self>,
        class: &Class,
        object: &Rc<dyn Any>,
        tasks: &mut FuturesUnordered<Event>,
    ) {
        let arrived = self.inbox.take();
        for (activity, work) in arrived {
            let span = of_event(&self.watch, work.why(), &self.id, self.class);
            let task = self.clone().work(object.clone(), class, work);
            let busy = Busy { instance: self.clone(), activity };
            tasks.push(Event { busy, span, left_over: LeftOver::default(), task });
        }
    }

    fn construct(self: &Rc<Self>, class: &Class) -> Option<Rc<dyn Any>> {
        let event = self.new_event();
        assert!(self.gate.try_enter(event), "nothing was let in before the constructor");
        let built = {
            let _turn = self.watch.turn(&self.id, self.class);
            let span = of_event(&self.watch, Awake::Starting, &self.id, self.class);
            let _span = span.as_ref().map(|span| span.enter());
            let _scope = Scope::enter(self, event);
            catch_unwind(AssertUnwindSafe(|| (class.build)(State::new(self.clone()))))
        };
        self.gate.leave(event);
        self.gate.end(event);
        built.map_err(|panic| self.reset(Error::panicked(&*panic))).ok()
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

    fn work(
        self: Rc<Self>,
        object: Rc<dyn Any>,
        class: &Class,
        work: Work,
    ) -> LocalBoxFuture<'static, ()> {
        match work {
            Work::Call(call) => self.call(object, call).boxed_local(),
            Work::Alarm(call) => self.alarm(object, class.clone(), call).boxed_local(),
            Work::Socket(call) => self.socket(object, class.clone(), call).boxed_local(),
            Work::Task(_, task) => task,
        }
    }

    /// Not an `async fn`, which would keep room for what it is given beside what it makes of it.
    fn call(
        self: Rc<Self>,
        object: Rc<dyn Any>,
        call: Box<dyn Deliver>,
    ) -> impl Future<Output = ()> + 'static {
        let is_fetch = call.is_fetch();
        let event = self.new_event();
        let gated = self.gated(event, call.start(object));
        async move {
            // A broken gate resets the instance, and the dropped reply says so.
            let Ok(done) = gated.await else { return };
            let mut result = self.cache.output_gate().wait().await;
            if is_fetch && result.is_ok() {
                // Nothing of the object runs here.
                let passed = self.gate.gated(self.new_event(), async {}.boxed_local());
                result = passed.await;
            }
            let result = result.map_err(|reason| self.reset(Error::reset_by(reason)));
            // Of an instance that has ended nothing is said but the verdict.
            if self.verdict.get().is_none() {
                done(result);
            }
        }
    }

    async fn alarm(self: Rc<Self>, object: Rc<dyn Any>, class: Class, call: AlarmCall) {
        let AlarmCall { info, last, abandoned, mut done } = call;
        let this = self.clone();
        let event = self.new_event();
        let handler = async move {
            if this.cache.alarm_begin(info.scheduled_ms) == AlarmRun::Cancelled {
                return (done, AlarmEnd::Over);
            }
            if abandoned {
                this.cache.alarm_end(Outcome::Abandoned);
                return (done, AlarmEnd::Over);
            }
            done.began = true;
            let result = this.in_time((class.alarm)(object, info)).await;
            let (outcome, end) = match result {
                Ok(()) => (Outcome::Succeeded, AlarmEnd::Over),
                Err(_) if last => (Outcome::Abandoned, AlarmEnd::Over),
                Err(_) => (Outcome::Failed, AlarmEnd::Failed { counted: true }),
            };
            if let Err(error) = result {
                tracing::warn!(object = %this.id, %error, last, "an alarm handler failed");
            }
            if outcome == Outcome::Abandoned {
                this.watch.of(this.class).add(Count::AlarmsAbandoned, 1);
            }
            this.cache.alarm_end(outcome);
            (done, end)
        };
        // A broken gate resets the instance, and the dropped reply says what that means.
        let Ok((done, end)) = self.gated(event, handler.boxed_local()).await else { return };
        // Told only when the deletion of the alarm is durable.
        if let Err(reason) = self.cache.output_gate().wait().await {
            self.reset(Error::reset_by(reason));
        } else if self.verdict.get().is_none() {
            done.send(end);
        }
    }

    /// If too much is dirty, the wait for room, with the gate closed behind it: no turn starts then, and
    /// those that wait stay in order. If the flush fails, the reset ends it.
    fn room(&self, event: EventId) -> Option<LocalBoxFuture<'static, ()>> {
        let room = self.cache.backpressure();
        if room.is_ready() {
            return None;
        }
        let lock = self.gate.hold(event);
        let wait = async move {
            let _made = room.await;
            drop(lock);
        };
        Some(wait.boxed_local())
    }

    /// A message, close or error of a socket. Its failure concerns nobody.
    async fn socket(self: Rc<Self>, object: Rc<dyn Any>, class: Class, call: SocketCall) {
        let SocketCall { connection, event, delivered } = call;
        let inbound = event.inbound();
        let socket = WebSocket::new(self.clone(), connection.clone());
        let handler = (class.socket)(object, socket, event);
        // It has this connection.
        let Ok(sockets) = self.sockets_or_new().cloned() else { return };
        let limit = sockets.event_timeout();
        let (handler, begins) = Delivery::new(sockets, connection, inbound, handler, delivered);
        let this = self.clone();
        let too_long = async move {
            let Some(limit) = limit else { return std::future::pending().await };
            if begins.await.is_err() {
                return std::future::pending().await;
            }
            this.host.sleep(limit).await;
            limit
        };
        let event = self.new_event();
        let handled = self.gated(event, handler.boxed_local()).boxed_local();
        match select(handled, too_long.boxed_local()).await {
            Either::Left((Ok(Err(error)), _)) => {
                tracing::warn!(object = %self.id, %error, "a WebSocket's handler failed");
            }
            // A broken gate resets the instance.
            Either::Left(_) => {}
            Either::Right((limit, _)) => drop(self.reset(Error::event_timeout(limit))),
        }
    }
}

/// Something that the object does, until it ends. It waits for the object's next turn if there was much to do in
/// this one.
pub(crate) struct Event {
    busy: Busy,
    span: Option<Box<Span>>,
    left_over: LeftOver,
    task: LocalBoxFuture<'static, ()>,
}

impl Future for Event {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        let instance = &this.busy.instance;
        match instance.budget.allows(&instance.watch, cx.waker(), &mut this.left_over) {
            true => {
                let _span = this.span.as_ref().map(|span| span.enter());
                this.task.as_mut().poll(cx)
            }
            false => Poll::Pending,
        }
    }
}

/// Something that an object has to do, until it is dropped.
pub(crate) struct Busy {
    instance: Rc<Instance>,
    activity: Activity,
}

impl Busy {
    /// It is over, and that woke the object.
    pub(crate) fn ends_with_a_wake(self) {
        self.instance.woken_by(self.instance.watch.activities.why(&self.activity));
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.instance.ended(&self.activity);
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

/// The instance whose code is being polled on this thread, if any.
pub(crate) fn current() -> Option<Rc<Instance>> {
    CURRENT.with_borrow(Clone::clone)
}

/// A destructor of the user's that panics must not take the core with it.
fn drop_quietly<T>(value: T) {
    if catch_unwind(AssertUnwindSafe(|| drop(value))).is_err() {
        tracing::error!("a destructor of an object's panicked");
    }
}

/// Marks whose code is running, until it is dropped.
struct Scope {
    instance: Rc<Instance>,
    outer_event: Option<EventId>,
    outer: Option<Rc<Instance>>,
}

impl Scope {
    fn enter(instance: &Rc<Instance>, event: EventId) -> Self {
        let outer_event = instance.current.replace(Some(event));
        let outer = CURRENT.replace(Some(instance.clone()));
        Self { instance: instance.clone(), outer_event, outer }
    }
}

impl Drop for Scope {
    fn drop(&mut self) {
        self.instance.current.set(self.outer_event);
        CURRENT.set(self.outer.take());
    }
}

/// A task of the object's code.
struct Scoped<T> {
    instance: Rc<Instance>,
    event: EventId,
    /// Its next turn waits until less is dirty.
    room: Option<LocalBoxFuture<'static, ()>>,
    task: LocalBoxFuture<'static, T>,
}

impl<T> Future for Scoped<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        let this = &mut *self;
        // Events of an instance that has ended go no further, also those that were ready with the
        // one that ended it.
        if this.instance.verdict.get().is_some() {
            return Poll::Pending;
        }
        if this.room.is_none() {
            this.room = this.instance.room(this.event);
        }
        if let Some(room) = &mut this.room {
            ready!(room.poll_unpin(cx));
            this.room = None;
        }
        let _scope = Scope::enter(&this.instance, this.event);
        let task = &mut this.task;
        // The verdict stands before anything of the task is dropped, so that its reply says it.
        catch_unwind(AssertUnwindSafe(|| task.as_mut().poll(cx))).unwrap_or_else(|panic| {
            this.instance.reset(Error::panicked(&*panic));
            Poll::Pending
        })
    }
}

/// What an operation needs of the event that makes it.
pub(crate) fn outside() -> Error {
    Error::user("storage is used outside of an event of its object")
}
