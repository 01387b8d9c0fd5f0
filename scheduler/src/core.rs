//! [`Core`]: the objects of one core, from their first call to their eviction.
//!
//! Invariant: at most one instance of an object is live, and only its own core has it. A
//! new one reads its state only after all commits of the one before are settled.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use dormouse_cache::Budget;
use dormouse_engine as engine;
use dormouse_engine::directory::IdMap;
use dormouse_engine::mailbox::Receiver;
use dormouse_engine::signal::Signal;
use dormouse_engine::{Contents, Env, Host, Limits, ObjectId, Superblock};
use futures_channel::oneshot;
use futures_util::FutureExt;
use futures_util::future::select;

use crate::alarm::Alarms;
use crate::deletion::{self, Deletion};
use crate::error::{Error, Result};
use crate::host::{AnyShard, CoreHost, Home};
use crate::id::Id;
use crate::instance::{Cache, Instance, Work};
use crate::residency::{self, Budgets, Place};
use crate::shards::Shards;
use crate::socket::connection::SocketBudget;
use crate::socket::sockets::Sockets;
use crate::topology::{Mail, Topology};

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
    Starting(VecDeque<Work>),
    /// Next: deleting, gone.
    Live(Rc<Instance>),
    /// Next: starting, gone.
    Deleting(Box<Deletion>),
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
    /// The core is to end: an object leaves as soon as it can, also one that starts only now.
    draining: Cell<bool>,
    /// An object became live, or left.
    pub(crate) moved: Signal,
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
        let shards = Shards::open(env, core, topology.cores(), superblock, limits).await?;
        let residency = Budgets::new(&topology);
        let inner = Rc::new(Inner {
            host: CoreHost::new(env),
            shards,
            objects: RefCell::default(),
            sockets: RefCell::default(),
            socket_budget: SocketBudget::new(topology.limits().sockets.core_bytes),
            unused_sockets: RefCell::default(),
            alarms: Alarms::new(topology.limits().alarms),
            residency,
            budget: Budget::new(topology.limits().dirty_bytes),
            topology,
            draining: Cell::default(),
            moved: Signal::default(),
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
        while let Some(mail) = self.mail.recv().await {
            inner.take(mail);
        }
        inner.alarms.stop();
        inner.residency.stop();
        inner.drain().await;
        inner.shards.close().await
    }
}

impl Inner {
    fn take(self: &Rc<Self>, mail: Mail) {
        match mail {
            Mail::Call { id, class, call } => self.deliver(id, class, Work::Call(call)),
            Mail::Delete { id, class, reply } => deletion::begin(self, id, class, reply),
            Mail::Settle { done } => self.host.spawn("settle", Alarms::settle(self.clone(), done)),
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
                        let busy = instance.place.busy_for(self.host.now());
                        call.refuse(overloaded(&id, instance.calls(), Some(busy)));
                    }
                    work => instance.push(work),
                };
            }
            Some(Slot::Starting(queue)) => {
                return match work {
                    Work::Call(call) if queue.len() >= calls_max => {
                        call.refuse(overloaded(&id, queue.len(), None));
                    }
                    work => queue.push_back(work),
                };
            }
            Some(Slot::Deleting(deletion)) => {
                if let Some(Work::Call(call)) = deletion.push(work, calls_max) {
                    call.refuse(overloaded(&id, deletion.len(), None));
                }
                return;
            }
            None => {}
        }
        self.begin_life(id, class, VecDeque::from([work]));
    }

    pub(crate) fn begin_life(self: &Rc<Self>, id: Id, class: usize, work: VecDeque<Work>) {
        self.objects.borrow_mut().insert(id.object(), Slot::Starting(work));
        self.host.spawn("object", self.clone().live_through(id, class));
    }

    /// One life of an object.
    async fn live_through(self: Rc<Self>, id: Id, class: usize) {
        // In a box of its own: an idle object does not keep room for how it was started.
        if let Some(instance) = self.clone().start(id, class).boxed_local().await {
            instance.clone().run(self.topology.class(class)).await;
            instance.place.leave();
            self.leave(&instance);
        }
        self.moved.notify();
    }

    /// Reads an object and brings it to life, unless that fails.
    async fn start(self: Rc<Self>, id: Id, class: usize) -> Option<Rc<Instance>> {
        let object = id.object();
        let mut read = self.read(object, class).await;
        while matches!(&read, Err(error) if self.frames_wait(object, error)) {
            self.host.sleep(ROOM_PAUSE).await;
            read = self.read(object, class).await;
        }
        let queue = self.end_start(object)?;
        let (place, shard, mut contents) = match read {
            Ok(read) => read,
            Err(error) => {
                refuse(queue, &Error::from(error));
                return None;
            }
        };
        contents.origin.learn(&self.topology.class(class).origin(&id));
        let (bell, poisoned) = (self.alarms.bell(), self.shards.bell());
        let home = Home { shard, id: object, bell, poisoned };
        let bounds = self.topology.bounds(class);
        let cache = Cache::new(&self.host, home, contents, bounds.cache, &self.budget);
        let sockets = self.sockets_of(object, class);
        let instance = Instance::new(
            id,
            self.host.clone(),
            self.topology.clone(),
            cache,
            place,
            sockets,
            bounds.delete_all,
        );
        queue.into_iter().for_each(|work| instance.push(work));
        self.objects.borrow_mut().insert(object, Slot::Live(instance.clone()));
        if self.draining.get() {
            instance.evict();
        }
        self.moved.notify();
        Some(instance)
    }

    /// Whether there is no room for an object to which a socket has something to say: that waits, as the
    /// client then does, and only calls are refused.
    fn frames_wait(&self, object: ObjectId, error: &engine::Error) -> bool {
        if error.code() != Some(residency::FULL) {
            return false;
        }
        let mut objects = self.objects.borrow_mut();
        let Some(Slot::Starting(queue)) = objects.get_mut(&object) else { return false };
        let is_frame = |work: &Work| matches!(work, Work::Socket(_));
        let (frames, others) = std::mem::take(queue).into_iter().partition(is_frame);
        *queue = frames;
        let waits = !queue.is_empty();
        drop(objects);
        refuse(others, &Error::from(error.clone()));
        waits
    }

    /// Reads an object once there is room for it, not too much is dirty, and its shard is open.
    async fn read(
        &self,
        object: ObjectId,
        class: usize,
    ) -> engine::Result<(Place, Rc<dyn AnyShard>, Contents)> {
        let idle = self.topology.bounds(class).idle;
        let place = self.residency.place(class, self.host.now(), idle).await?;
        self.budget.room().await;
        loop {
            let shard = self.shards.wait(self.shards.place(object)).await?;
            let contents = shard.load(object).await;
            if shard.poisoned().is_none() {
                return Ok((place, shard, contents?));
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

    /// The object's connections, for an instance that begins.
    fn sockets_of(self: &Rc<Self>, object: ObjectId, class: usize) -> Rc<Sockets> {
        let mut all = self.sockets.borrow_mut();
        let new = || Sockets::new(self, class, self.topology.limits().sockets);
        all.entry(object).or_insert_with(new).clone()
    }

    /// What becomes of the connections of an instance that has ended: dropped by a reset,
    /// else kept if there are any. What it set for them, and there is none, is kept for a while:
    /// of the objects that ended last.
    pub(crate) fn keep_sockets(&self, instance: &Instance) {
        let (object, sockets) = (instance.id.object(), &instance.sockets);
        match instance.was_reset() {
            true => sockets.disconnect(),
            false => sockets.drop_leaving(),
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
            instance.sockets.hang_up_live();
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

/// Why a call is refused: so many are there, none older than `busy`; none, if the object is not live yet.
fn overloaded(id: &Id, calls: usize, busy: Option<Duration>) -> Error {
    let state = match busy {
        Some(busy) => format!("it has not been idle for {busy:?}"),
        None => "it is being started".to_owned(),
    };
    let text = format!("object {id} has {calls} calls that wait or run; {state}");
    engine::Error::coded(engine::Kind::Overloaded, "object-overloaded", text).into()
}

pub(crate) fn refuse(queue: VecDeque<Work>, error: &Error) {
    for work in queue {
        match work {
            Work::Call(call) => call.refuse(error.clone()),
            // Its sender sees that it was dropped.
            Work::Alarm(_) | Work::Socket(_) | Work::Task(_) => {}
        }
    }
}
