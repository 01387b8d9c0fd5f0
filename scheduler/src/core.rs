//! [`Core`]: the objects of one core, from their first call to their eviction.
//!
//! Invariant: at most one instance of an object is live, and only its own core has it. A
//! new one reads its state only after all commits of the one before are settled.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::future::{Future, poll_fn};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use dormouse_cache::Budget;
use dormouse_engine as engine;
use dormouse_engine::directory::IdMap;
use dormouse_engine::mailbox::Receiver;
use dormouse_engine::signal::Signal;
use dormouse_engine::{Contents, Env, Host, Limits, ObjectId, Superblock};
use futures_channel::oneshot;
use futures_util::FutureExt;
#[cfg(feature = "server")]
use futures_util::future::join;
use futures_util::future::select;

use crate::alarm::Alarms;
use crate::deletion::{self, Deletion};
use crate::error::{Error, Overload, Result};
#[cfg(feature = "server")]
use crate::guests::Guests;
use crate::host::{AnyShard, CoreHost, Home};
use crate::id::Id;
use crate::instance::{Cache, Event, Instance, Work};
use crate::residency::{self, Budgets, Place};
use crate::shards::Shards;
use crate::socket::connection::SocketBudget;
use crate::socket::sockets::Sockets;
use crate::spare::Spare;
use crate::topology::{Mail, Topology};
use crate::watch::{Awake, Count, Reasons, Resident, Spread, Watch};

/// Messages that a core takes before its objects have a turn.
const MAIL_MAX: usize = 256;

/// How long a shutdown waits for what runs.
const DRAIN_MAX: Duration = Duration::from_secs(10);

/// How long an idle object of a poisoned shard may take to leave before it is reset.
const LEAVE_MAX: Duration = Duration::from_millis(10);

/// Objects whose settings for connections are kept though they have none.
const UNUSED_SOCKETS_MAX: usize = 1024;

/// How long a socket's frame waits before its object asks for room again.
const ROOM_PAUSE: Duration = Duration::from_millis(20);

/// Where an object is on its way into memory.
pub(crate) enum Slot {
    /// Being read and built; what comes meanwhile waits. Next: live, deleting, gone.
    Starting(Box<Starting>),
    /// Next: deleting, gone.
    Live(Rc<Instance>),
    /// Next: starting, gone.
    Deleting(Box<Deletion>),
}

/// What waits for an object that is not live, and since when by the core's clock.
pub(crate) type Waiting = VecDeque<(Duration, Work)>;

/// An object that is not live yet.
pub(crate) struct Starting {
    id: Id,
    class: usize,
    pub(crate) queue: Waiting,
}

pub(crate) struct Inner {
    pub(crate) topology: Topology,
    pub(crate) host: CoreHost,
    pub(crate) shards: Shards,
    pub(crate) objects: RefCell<IdMap<Slot>>,
    /// The connections of each object that has some: kept while it sleeps.
    pub(crate) sockets: RefCell<IdMap<Rc<Sockets>>>,
    /// What all connections hold, asleep or not.
    pub(crate) socket_budget: Rc<SocketBudget>,
    /// Objects that ended with settings for connections and without any, the newest last.
    unused_sockets: RefCell<VecDeque<ObjectId>>,
    pub(crate) alarms: Alarms,
    residency: Budgets,
    /// What the objects may have dirty.
    budget: Budget,
    pub(crate) watch: Rc<Watch>,
    /// Of objects that have nothing to do.
    pub(crate) spare: Spare<Event>,
    /// The core is to end: an object leaves as soon as it can, also one that starts only now.
    draining: Cell<bool>,
    /// An object became live, or left.
    pub(crate) moved: Signal,
    #[cfg(feature = "server")]
    guests: Guests,
}

/// One core's objects and shards.
pub struct Core {
    inner: Rc<Inner>,
    mail: Receiver<Mail>,
}

impl Core {
    pub(crate) async fn open<E: Env>(
        topology: Topology,
        mail: Receiver<Mail>,
        env: &E,
        core: usize,
        superblock: Superblock,
        limits: Limits,
    ) -> Result<Self> {
        let host = CoreHost::new(env);
        let watch = Watch::new(host.clone(), topology.clone(), core);
        let cores = topology.cores();
        let shards =
            Shards::open(env, core, cores, superblock, limits, topology.quotas(), &watch).await?;
        let residency = Budgets::new(&topology, &watch);
        let inner = Rc::new(Inner {
            host,
            watch,
            shards,
            objects: RefCell::default(),
            sockets: RefCell::default(),
            socket_budget: SocketBudget::new(topology.limits().sockets.core_bytes),
            unused_sockets: RefCell::default(),
            alarms: Alarms::new(topology.limits().alarms),
            residency,
            budget: Budget::new(topology.limits().dirty_bytes),
            topology,
            spare: Spare::default(),
            draining: Cell::default(),
            moved: Signal::default(),
            #[cfg(feature = "server")]
            guests: Guests::default(),
        });
        Ok(Self { inner, mail })
    }

    /// What its objects have dirty together, to watch.
    pub fn budget(&self) -> Budget {
        self.inner.budget.clone()
    }

    /// Serves calls and alarms until [`Topology::shutdown`]; then answers what is there, makes
    /// everything durable, and closes the shards.
    ///
    /// Errors: a shard could not be closed.
    pub async fn serve(self) -> Result<()> {
        let inner = self.inner;
        inner.host.spawn("alarms", Alarms::run(inner.clone()));
        inner.host.spawn("shards", Shards::run(inner.clone()));
        inner.residency.start(&inner.host);
        poll_fn(|cx| inner.poll_mail(&self.mail, cx)).await;
        inner.alarms.stop();
        inner.residency.stop();
        inner.drain().await;
        let closed = inner.shards.close();
        #[cfg(feature = "server")]
        let closed = join(closed, inner.guests.leave(&inner.host)).map(|(closed, ())| closed);
        closed.await
    }
}

impl Inner {
    /// Takes mail until the mailbox is closed and empty; [`MAIL_MAX`] at a time.
    fn poll_mail(self: &Rc<Self>, mail: &Receiver<Mail>, cx: &mut Context<'_>) -> Poll<()> {
        let _mail = self.watch.mail();
        for _ in 0..MAIL_MAX {
            match mail.poll_recv(cx) {
                Poll::Ready(Some(mail)) => self.take(mail),
                Poll::Ready(None) => return Poll::Ready(()),
                Poll::Pending => {
                    self.watch.mailbox_is_empty();
                    return Poll::Pending;
                }
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn take(self: &Rc<Self>, mail: Mail) {
        match mail {
            Mail::Call { id, class, call } => self.deliver(id, class, Work::Call(call)),
            Mail::Delete { id, class, reply } => deletion::begin(self, id, class, reply),
            Mail::Settle { done } => self.host.spawn("settle", Alarms::settle(self.clone(), done)),
            Mail::Resident { id, reply } => {
                let resident = self.objects.borrow().get(&id).map(|slot| self.resident(slot));
                let _nobody_waits = reply.send(resident);
            }
            Mail::Residents { after, max, reply } => {
                let _nobody_waits = reply.send(self.residents(after, max));
            }
            #[cfg(feature = "server")]
            Mail::Guest(guest) => self.guests.take_in(&self.host, guest),
            Mail::Evict { id, done } => self.end_with(id, done, Instance::evict),
            Mail::Abort { id, reason, done } => {
                self.end_with(id, done, |instance| drop(instance.reset(Error::aborted(reason))));
            }
        }
    }

    /// Has an object leave memory as `end` says; `done` is told when it is gone.
    fn end_with(
        self: &Rc<Self>,
        id: ObjectId,
        done: oneshot::Sender<()>,
        end: impl FnOnce(&Rc<Instance>) + 'static,
    ) {
        let inner = self.clone();
        self.host.spawn("leave", async move {
            // One that is being started is there as well.
            inner.moved.until(|| (!inner.starts(id)).then_some(())).await;
            if let Some(instance) = inner.live(id) {
                end(&instance);
                inner.gone(&mut vec![instance]).await;
            }
            let _nobody_waits = done.send(());
        });
    }

    fn starts(&self, id: ObjectId) -> bool {
        matches!(self.objects.borrow().get(&id), Some(Slot::Starting(_)))
    }

    fn live(&self, id: ObjectId) -> Option<Rc<Instance>> {
        match self.objects.borrow().get(&id) {
            Some(Slot::Live(instance)) => Some(instance.clone()),
            _ => None,
        }
    }

    /// Brings `work` to the object, which is started if it is not live. A call that would be one too many
    /// is refused.
    pub(crate) fn deliver(self: &Rc<Self>, id: Id, class: usize, work: Work) {
        let object = id.object();
        let calls_max = self.topology.bounds(class).calls;
        match self.objects.borrow_mut().get_mut(&object) {
            Some(Slot::Live(instance)) => {
                return match work {
                    Work::Call(call) if instance.calls() >= calls_max => {
                        self.watch.of(class).add(Count::Overloads, 1);
                        let (depth, since) = (instance.calls(), instance.oldest_call());
                        call.refuse(overloaded(&id, self.overload(depth, since)));
                    }
                    work => instance.push(work),
                };
            }
            Some(Slot::Starting(starting)) => {
                let queue = &mut starting.queue;
                return match work {
                    Work::Call(call) if queue.len() >= calls_max => {
                        self.watch.of(class).add(Count::Overloads, 1);
                        call.refuse(overloaded(&id, self.waiting(queue)));
                    }
                    work => queue.push_back((self.watch.now(), work)),
                };
            }
            Some(Slot::Deleting(deletion)) => {
                if let Some(Work::Call(call)) = deletion.push(self.watch.now(), work, calls_max) {
                    self.watch.of(class).add(Count::Overloads, 1);
                    call.refuse(overloaded(&id, self.waiting(deletion.queue())));
                }
                return;
            }
            None => {}
        }
        let since = self.watch.now();
        self.begin_life(id, class, VecDeque::from([(since, work)]));
    }

    pub(crate) fn begin_life(self: &Rc<Self>, id: Id, class: usize, queue: Waiting) {
        let starting = Box::new(Starting { id: id.clone(), class, queue });
        self.objects.borrow_mut().insert(id.object(), Slot::Starting(starting));
        self.host.spawn("object", self.clone().live_through(id, class));
    }

    /// One life of an object.
    fn live_through(self: Rc<Self>, id: Id, class: usize) -> impl Future<Output = ()> + 'static {
        // In a box of its own: an idle object does not keep room for how it was started, nor for what
        // it was started with.
        let start = self.clone().start(id, class).boxed_local();
        async move {
            if let Some(instance) = start.await {
                instance.run(&self).await;
                self.count_end(&instance);
                instance.place.leave();
                self.leave(&instance);
            }
            self.moved.notify();
        }
    }

    /// Counts an instance that has ended.
    fn count_end(&self, instance: &Instance) {
        let counts = self.watch.of(instance.class);
        counts.subtract(Count::Residents, 1);
        match instance.reset_reason() {
            None => {
                counts.add(Count::Evictions, 1);
                let connections = instance.sockets().map_or(0, |sockets| sockets.count());
                counts.add(Count::Hibernations, u64::from(connections > 0));
            }
            Some(reason) => {
                counts.add(Count::Resets, 1);
                counts.add(Count::Panics, u64::from(reason.is_panic()));
            }
        }
    }

    /// Reads an object and brings it to life, unless that fails.
    async fn start(self: Rc<Self>, id: Id, class: usize) -> Option<Rc<Instance>> {
        let object = id.object();
        let mut read = self.read(object, class).await;
        while matches!(&read, Err(error) if self.frames_wait(&id, class, error)) {
            self.host.sleep(ROOM_PAUSE).await;
            read = self.read(object, class).await;
        }
        let queue = self.end_start(object)?;
        let (place, shard, (mut contents, whole)) = match read {
            Ok(read) => read,
            Err(error) => {
                self.refuse(&id, class, queue, error);
                return None;
            }
        };
        let counts = self.watch.of(class);
        counts.add(Count::Activations, 1);
        counts.add(Count::Residents, 1);
        let first = queue.front().map(|(since, _)| *since);
        first
            .into_iter()
            .for_each(|since| self.watch.took(class, Spread::ActivationSeconds, since));
        contents.origin.learn(&self.topology.class(class).origin(&id));
        let (bell, poisoned) = (self.alarms.bell(), self.shards.bell());
        let watch = self.watch.clone();
        let home = Home { shard, id: object, class, bell, poisoned, watch };
        let bounds = self.topology.bounds(class);
        let make = if whole { Cache::new } else { Cache::in_parts };
        let cache = make(&self.host, home, contents, bounds.cache.clone(), &self.budget);
        let instance = Instance::new(id, class, &self, cache, place);
        queue.into_iter().for_each(|(since, work)| instance.push_since(since, work));
        self.objects.borrow_mut().insert(object, Slot::Live(instance.clone()));
        if self.draining.get() {
            instance.evict();
        }
        self.moved.notify();
        Some(instance)
    }

    /// Whether there is no room for an object to which a socket has something to say: that waits, as the
    /// client then does, and only calls are refused.
    fn frames_wait(&self, id: &Id, class: usize, error: &engine::Error) -> bool {
        if error.code() != Some(residency::FULL) {
            return false;
        }
        let mut objects = self.objects.borrow_mut();
        let Some(Slot::Starting(starting)) = objects.get_mut(&id.object()) else {
            return false;
        };
        let queue = &mut starting.queue;
        let is_frame = |(_, work): &(Duration, Work)| matches!(work, Work::Socket(_));
        let (frames, others) = std::mem::take(queue).into_iter().partition(is_frame);
        *queue = frames;
        let waits = !queue.is_empty();
        drop(objects);
        self.refuse(id, class, others, error.clone());
        waits
    }

    /// Answers calls to an object that could not be brought to life.
    fn refuse(&self, id: &Id, class: usize, queue: Waiting, error: engine::Error) {
        let overload = self.waiting(&queue);
        let error = match error.code() {
            Some(residency::FULL) => {
                let calls = queue.iter().filter(|(_, work)| matches!(work, Work::Call(_))).count();
                self.watch.of(class).add(Count::Overloads, calls as u64);
                let what = format!("the memory of the core of object {id}");
                Error::overloaded(residency::FULL, &what, overload)
            }
            _ => Error::from(error),
        };
        refuse(queue, &error);
    }

    /// What waits for an object that is not live yet.
    fn waiting(&self, queue: &Waiting) -> Overload {
        let oldest = queue.iter().find(|(_, work)| matches!(work, Work::Call(_)));
        self.overload(queue.len(), oldest.map(|(since, _)| *since))
    }

    fn overload(&self, depth: usize, since: Option<Duration>) -> Overload {
        let age = |since| self.host.now().saturating_sub(since);
        Overload { depth, oldest: since.map(age) }
    }

    /// The first `max` objects behind `after`, in the order of their ids.
    fn residents(&self, after: Option<ObjectId>, max: usize) -> Vec<Resident> {
        let objects = self.objects.borrow();
        let mut first = BTreeMap::new();
        for (id, slot) in objects.iter().filter(|(id, _)| after.is_none_or(|after| **id > after)) {
            if first.len() >= max {
                match first.last_entry() {
                    Some(last) if last.key() > id => drop(last.remove()),
                    _ => continue,
                }
            }
            first.insert(*id, slot);
        }
        first.into_values().map(|slot| self.resident(slot)).collect()
    }

    /// What an object says of itself.
    fn resident(&self, slot: &Slot) -> Resident {
        let name = |class| self.topology.class(class).name.clone();
        match slot {
            Slot::Live(instance) => instance.resident(name(instance.class)),
            Slot::Starting(starting) => {
                let Starting { id, class, queue } = &**starting;
                let since = queue.front().map(|(since, _)| *since);
                self.not_live(id, name(*class), Awake::Starting, queue, since)
            }
            Slot::Deleting(deletion) => {
                let (id, class, began) = deletion.of();
                self.not_live(id, name(class), Awake::Deleting, deletion.queue(), Some(began))
            }
        }
    }

    /// What is to be said of an object that is not live, `why`, and since when.
    fn not_live(
        &self,
        id: &Id,
        namespace: Arc<str>,
        why: Awake,
        queue: &Waiting,
        since: Option<Duration>,
    ) -> Resident {
        let Overload { depth, oldest } = self.waiting(queue);
        let age = since.map_or(Duration::ZERO, |since| self.host.now().saturating_sub(since));
        let mut reasons = Reasons::default();
        reasons.add(why, 1, Some(age));
        Resident {
            id: id.clone(),
            namespace,
            awake: reasons.into_vec(),
            woken_by: why,
            woken: age,
            last_turn: age,
            calls: oldest.map_or(0, |_| depth),
            sockets: 0,
            bytes: 0,
        }
    }

    /// Reads an object once there is room for it, not too much is dirty, and its shard is open; of a large one
    /// only what is known beside its keys, and `false`.
    async fn read(
        &self,
        object: ObjectId,
        class: usize,
    ) -> engine::Result<(Place, Rc<dyn AnyShard>, (Contents, bool))> {
        let place = self.residency.place(class, self.host.now()).await?;
        self.budget.room().await;
        loop {
            let shard = self.shards.wait(self.shards.place(object)).await?;
            let found = shard.find(object).await;
            if shard.poisoned().is_none() {
                return Ok((place, shard, found?));
            }
        }
    }

    /// Resets the objects of a shard, but those that are idle and leave at once, and waits until all are
    /// gone.
    pub(crate) async fn reset_shard(&self, place: usize, cause: &engine::Error) {
        let reset = |instance: &Rc<Instance>| drop(instance.reset(Error::reset_by(cause.clone())));
        let mut live = self.instances();
        live.retain(|instance| self.shards.place(instance.id.object()) == place);
        // Of one that is idle the disk has all: it need not be told to anybody.
        let (idle, busy): (Vec<_>, Vec<_>) = live.iter().partition(|instance| instance.is_idle());
        busy.into_iter().for_each(reset);
        idle.into_iter().for_each(Instance::evict);
        let soon = self.host.sleep(LEAVE_MAX).boxed_local();
        select(self.gone(&mut live).boxed_local(), soon).await;
        // Something came for them meanwhile; it may need the shard.
        live.iter().for_each(reset);
        self.gone(&mut live).await;
    }

    /// Waits until all of these have left; takes out those that have.
    async fn gone(&self, live: &mut Vec<Rc<Instance>>) {
        let is_live = |instance: &Rc<Instance>| {
            self.live(instance.id.object()).is_some_and(|now| Rc::ptr_eq(&now, instance))
        };
        let all = || {
            while live.pop_if(|last| !is_live(last)).is_some() {}
            live.is_empty().then_some(())
        };
        self.moved.until(all).await;
    }

    /// Where the connections of an instance are kept that has none yet; of one that is not this object's
    /// any more, nowhere else.
    pub(crate) fn new_sockets(self: &Rc<Self>, instance: &Instance) -> Rc<Sockets> {
        let object = instance.id.object();
        let sockets = Sockets::new(self, instance.class, self.topology.limits().sockets);
        let is_live = self.live(object).is_some_and(|live| std::ptr::eq(&*live, instance));
        if is_live {
            let before = self.sockets.borrow_mut().insert(object, sockets.clone());
            assert!(before.is_none(), "an instance begins with what is there");
        }
        sockets
    }

    /// What becomes of the connections of an instance that has ended: dropped by a reset,
    /// else kept if there are any. What it set for them, and there is none, is kept for a while:
    /// of the objects that ended last.
    pub(crate) fn keep_sockets(&self, instance: &Instance) {
        let Some(sockets) = instance.sockets() else { return };
        let object = instance.id.object();
        match instance.reset_reason() {
            Some(_) => sockets.disconnect(),
            None => sockets.drop_leaving(),
        }
        if sockets.is_empty() {
            self.sockets.borrow_mut().remove(&object);
        } else if !sockets.has_connections() {
            let mut unused = self.unused_sockets.borrow_mut();
            unused.retain(|other| *other != object);
            unused.push_back(object);
            let oldest = (unused.len() > UNUSED_SOCKETS_MAX).then(|| unused.pop_front()).flatten();
            oldest.into_iter().for_each(|object| self.forget_unused(object));
        }
    }

    fn forget_unused(&self, object: ObjectId) {
        let mut all = self.sockets.borrow_mut();
        let is_unused = all.get(&object).is_some_and(|sockets| !sockets.has_connections());
        if is_unused && !self.objects.borrow().contains_key(&object) {
            all.remove(&object);
        }
    }

    /// A connection is over. Forgets what would be kept for none; a live instance still uses it.
    pub(crate) fn socket_left(&self, object: ObjectId) {
        let mut all = self.sockets.borrow_mut();
        let is_empty = all.get(&object).is_some_and(|sockets| sockets.is_empty());
        if is_empty && !self.objects.borrow().contains_key(&object) {
            all.remove(&object);
        }
    }

    /// Whether the core is to end: nothing new is accepted or read from a socket.
    pub(crate) fn is_draining(&self) -> bool {
        self.draining.get()
    }

    /// Waits until every object has left; those that take too long are reset.
    async fn drain(&self) {
        self.draining.set(true);
        for instance in self.instances() {
            instance.sockets().into_iter().for_each(|sockets| sockets.hang_up_live());
            instance.evict();
        }
        let limit = self.host.sleep(DRAIN_MAX).boxed_local();
        select(self.empty().boxed_local(), limit).await;
        for instance in self.instances() {
            tracing::warn!(object = %instance.id, "did not end in time at shutdown");
            let text = "the runtime is shut down";
            instance.reset(Error::reset_by(engine::Error::new(engine::Kind::Closed, text)));
        }
        self.empty().await;
        // What was to be said is on its way; then the clients are disconnected, in an order that
        // no map decides.
        let mut sleeping: Vec<_> = self.sockets.take().into_iter().collect();
        sleeping.sort_by_key(|(object, _)| *object);
        sleeping.into_iter().for_each(|(_, sockets)| sockets.disconnect());
    }

    async fn empty(&self) {
        self.moved.until(|| self.objects.borrow().is_empty().then_some(())).await;
    }

    /// All live ones, in the order of their ids: the map's order must not show.
    fn instances(&self) -> Vec<Rc<Instance>> {
        let objects = self.objects.borrow();
        let live = objects.values().filter_map(|slot| match slot {
            Slot::Live(instance) => Some(instance.clone()),
            Slot::Starting(_) | Slot::Deleting(_) => None,
        });
        let mut live: Vec<_> = live.collect();
        live.sort_by_key(|instance| instance.id.object());
        live
    }
}

/// Why a call is refused: so many are there.
fn overloaded(id: &Id, overload: Overload) -> Error {
    Error::overloaded("object-overloaded", &format!("object {id}"), overload)
}

/// Answers calls that are not to be delivered.
pub(crate) fn refuse(queue: Waiting, error: &Error) {
    for (_, work) in queue {
        match work {
            Work::Call(call) => call.refuse(error.clone()),
            // Its sender sees that it was dropped.
            Work::Alarm(_) | Work::Socket(_) | Work::Task(..) => {}
        }
    }
}
