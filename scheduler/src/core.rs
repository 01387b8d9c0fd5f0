//! [`Core`]: the objects of one core, from their first call to their eviction.
//!
//! Invariant: at most one instance of an object is live, and only its own core has it. A
//! new one reads its state only after all commits of the one before are settled.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use dormouse_engine as engine;
use dormouse_engine::directory::IdMap;
use dormouse_engine::mailbox::Receiver;
use dormouse_engine::signal::Signal;
use dormouse_engine::{Env, Host, Limits, ObjectId, Shard, Superblock};
use futures_util::FutureExt;
use futures_util::future::select;

use crate::alarm::Alarms;
use crate::error::{Error, Result};
use crate::host::{AnyShard, CoreHost, Home};
use crate::id::Id;
use crate::instance::{Cache, Instance, Work};
use crate::socket::sockets::Sockets;
use crate::topology::{Mail, Topology};

/// How long a shutdown waits for what runs.
const DRAIN_MAX: Duration = Duration::from_secs(10);

/// Where an object is on its way into memory.
enum Slot {
    /// Being read and built; what comes meanwhile waits. Next: live, gone.
    Starting(VecDeque<Work>),
    /// Next: gone.
    Live(Rc<Instance>),
}

pub(crate) struct Inner {
    pub(crate) topology: Topology,
    pub(crate) host: CoreHost,
    /// The core's shards, by number divided by the count of cores.
    pub(crate) shards: Vec<Rc<dyn AnyShard>>,
    shard_count: u16,
    objects: RefCell<IdMap<Slot>>,
    /// The connections of each object that has some: kept while it sleeps.
    sockets: RefCell<IdMap<Rc<Sockets>>>,
    pub(crate) alarms: Alarms,
    /// The core is to end: an object leaves as soon as it can, also one that starts only now.
    draining: Cell<bool>,
    /// An object became live, or left.
    moved: Signal,
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
        let mut shards: Vec<Rc<dyn AnyShard>> = Vec::new();
        for number in (0..superblock.shards).skip(core).step_by(topology.cores()) {
            let (shard, _recovery) = Shard::open(env, superblock, number, limits).await?;
            shards.push(Rc::new(shard));
        }
        let inner = Rc::new(Inner {
            topology,
            host: CoreHost::new(env),
            shards,
            shard_count: superblock.shards,
            objects: RefCell::default(),
            sockets: RefCell::default(),
            alarms: Alarms::default(),
            draining: Cell::default(),
            moved: Signal::default(),
        });
        Ok(Self { inner, mail })
    }

    /// Serves calls and alarms until [`Topology::shutdown`]; then answers what is there, makes
    /// everything durable, and closes the shards.
    ///
    /// Errors: a shard could not be closed.
    pub async fn serve(self) -> Result<()> {
        let inner = self.inner;
        inner.host.spawn("alarms", Alarms::run(inner.clone()));
        while let Some(mail) = self.mail.recv().await {
            inner.take(mail);
        }
        inner.alarms.stop();
        inner.drain().await;
        let mut closed = Ok(());
        for shard in &inner.shards {
            closed = closed.and(shard.close().await);
        }
        Ok(closed?)
    }
}

impl Inner {
    fn take(self: &Rc<Self>, mail: Mail) {
        match mail {
            Mail::Call { id, class, call } => self.deliver(id, class, Work::Call(call)),
            Mail::Evict { id, done } => {
                let inner = self.clone();
                self.host.spawn("evict", async move {
                    // One that is being started is there as well.
                    inner.moved.until(|| (!inner.starts(id)).then_some(())).await;
                    if let Some(instance) = inner.live(id) {
                        instance.evict();
                        let gone = || inner.live(id).is_none_or(|now| !Rc::ptr_eq(&now, &instance));
                        inner.moved.until(|| gone().then_some(())).await;
                    }
                    let _nobody_waits = done.send(());
                });
            }
        }
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

    /// Brings `work` to the object, which is started if it is not live.
    pub(crate) fn deliver(self: &Rc<Self>, id: Id, class: usize, work: Work) {
        let object = id.object();
        match self.objects.borrow_mut().get_mut(&object) {
            Some(Slot::Live(instance)) => return instance.push(work),
            Some(Slot::Starting(queue)) => return queue.push_back(work),
            None => {}
        }
        self.objects.borrow_mut().insert(object, Slot::Starting(VecDeque::from([work])));
        self.host.spawn("object", self.clone().live_through(id, class));
    }

    /// One life of an object.
    async fn live_through(self: Rc<Self>, id: Id, class: usize) {
        let object = id.object();
        let shard = usize::from(object.shard(self.shard_count)) / self.topology.cores();
        let shard = self.shards[shard].clone();
        let contents = shard.load(object).await;
        let Some(Slot::Starting(queue)) = self.objects.borrow_mut().remove(&object) else {
            unreachable!("only this task starts the object");
        };
        let mut contents = match contents {
            Ok(contents) => contents,
            Err(error) => {
                refuse(queue, &Error::from(error));
                return self.moved.notify();
            }
        };
        contents.origin.learn(&self.topology.class(class).origin(&id));
        let home = Home { shard, id: object, bell: self.alarms.bell() };
        let cache = Cache::new(&self.host, home, contents, self.topology.limits().cache);
        let instance = Instance::new(id, self.host.clone(), cache, self.sockets_of(object, class));
        queue.into_iter().for_each(|work| instance.push(work));
        self.objects.borrow_mut().insert(object, Slot::Live(instance.clone()));
        if self.draining.get() {
            instance.evict();
        }
        self.moved.notify();
        instance.clone().run(self.topology.class(class)).await;
        self.objects.borrow_mut().remove(&object);
        self.keep_sockets(&instance);
        self.moved.notify();
    }

    /// The object's connections, for an instance that begins.
    fn sockets_of(self: &Rc<Self>, object: ObjectId, class: usize) -> Rc<Sockets> {
        let mut all = self.sockets.borrow_mut();
        let new = || Sockets::new(self, class, self.topology.limits().sockets);
        all.entry(object).or_insert_with(new).clone()
    }

    /// What becomes of the connections of an instance that has ended: dropped by a reset,
    /// else kept if there are any.
    fn keep_sockets(&self, instance: &Instance) {
        match instance.was_reset() {
            true => instance.sockets.disconnect(),
            false => instance.sockets.drop_leaving(),
        }
        if instance.sockets.is_empty() {
            self.sockets.borrow_mut().remove(&instance.id.object());
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
            Slot::Starting(_) => None,
        });
        let mut live: Vec<_> = live.collect();
        live.sort_by_key(|instance| instance.id.object());
        live
    }
}

fn refuse(queue: VecDeque<Work>, error: &Error) {
    for work in queue {
        match work {
            Work::Call(call) => call.refuse(error.clone()),
            // Its sender sees that it was dropped.
            Work::Alarm(_) | Work::Socket(_) | Work::Task(_) => {}
        }
    }
}
