//! The events of an object: what its instance is given to do, and how that is polled.
//!
//! Invariants:
//!
//! - Code of the object's, its constructor's and destructor's aside, runs only within [`Scoped`]: not while too much is
//!   dirty, not once there is a verdict, and with a [`Scope`] around it, so that what it says waits at the
//!   object's output gate.
//! - Every event passes the input gate at each of its polls, in the order of delivery.
//! - A reply, and the end of an alarm's run, leave only through the output gate as it was when the handler returned
//!
//! - An alarm's run that is dropped is told as failed.

use std::any::Any;
use std::cell::RefCell;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use dormouse_cache::{AlarmRun, EventId, Gated, Outcome};
use dormouse_engine::Host;
use futures_channel::oneshot;
use futures_util::future::{Either, FutureExt, LocalBoxFuture, select};
use futures_util::stream::FuturesUnordered;
use tracing::Span;

use super::Instance;
use crate::error::Error;
use crate::event::{Deliver, Verdict};
use crate::object::AlarmInfo;
use crate::socket::WebSocket;
use crate::socket::event::{Delivery, SocketCall};
use crate::state::State;
use crate::topology::Class;
use crate::watch::{Activity, Awake, Count, LeftOver, of_event};

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
    pub(super) fn why(&self) -> Awake {
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
    pub(super) verdict: Option<Verdict>,
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

impl Instance {
    /// What it has to do: one thing more, until the result is dropped.
    pub(crate) fn busy_with(self: &Rc<Self>, why: Awake) -> Busy {
        let activity = self.watch.activities.begin(&self.activities, why, self.watch.now());
        Busy { instance: self.clone(), activity }
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

    /// Makes events of what came, in its order; the inbox keeps no room.
    pub(super) fn begin_arrived(
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

    pub(super) fn construct(self: &Rc<Self>, class: &Class) -> Option<Rc<dyn Any>> {
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

/// The instance whose code is being polled on this thread, if any.
pub(crate) fn current() -> Option<Rc<Instance>> {
    CURRENT.with_borrow(Clone::clone)
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
