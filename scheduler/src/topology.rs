//! Which objects there are, and which core owns each: shared by all cores and all stubs.

use std::any::{Any, TypeId};
use std::rc::Rc;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use dormouse_cache::CacheLimits;
use dormouse_engine as engine;
use dormouse_engine::clock::Clock;
use dormouse_engine::mailbox::{Receiver, Refused, Sender, mailbox};
use dormouse_engine::{Env, Limits, ObjectId, Origin, Quotas, Superblock};
use futures_channel::oneshot;
use futures_util::future::{FutureExt, LocalBoxFuture};

use crate::core::Core;
use crate::error::{Error, Overload, Result};
#[cfg(feature = "server")]
use crate::event::Fetch;
use crate::event::{Deliver, Reply, closed};
#[cfg(feature = "server")]
use crate::guests::Guest;
#[cfg(feature = "server")]
use crate::http::{Request, Response};
use crate::id::{Id, NamespaceKey};
use crate::object::{AlarmInfo, DurableObject};
use crate::options::{Bounds, NamespaceOptions};
#[cfg(feature = "server")]
use crate::outside::{Network, Outside, OutsideLimits};
use crate::socket::event::SocketEvent;
use crate::socket::{SocketLimits, WebSocket};
use crate::state::State;
#[cfg(feature = "server")]
use crate::stub::Call;
use crate::stub::Namespace;
use crate::watch::{CoreShared, Count, Labelled, MetricLabel, Published, Resident, publish};

/// Bounds of one core.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StackLimits {
    /// Of each object's cache.
    pub cache: CacheLimits,
    /// Messages that its mailbox holds; beyond, calls are refused (`Overloaded`).
    pub mailbox: usize,
    /// Calls that wait or run in one object; beyond, calls to it are refused (`Overloaded`, code
    /// `object-overloaded`).
    pub calls: usize,
    /// Alarm handlers that run at the same time, of those that are due at once.
    pub alarms: usize,
    /// How long an object stays in memory with nothing to do.
    pub idle: Duration,
    /// Bytes that live objects take together before idle ones leave sooner, those that were idle for
    /// longest first. At twice of it no further object is started: calls that would need one are refused
    /// (`Overloaded`).
    pub resident_bytes: usize,
    /// Bytes that live objects have written together and are not durable yet, beyond which writes are
    /// answered and turns start only after a flush; `cache` has each object's own bound.
    pub dirty_bytes: usize,
    /// A turn of an object that takes so long blocks its core: it is named in a warning, and counted.
    pub blocked: Duration,
    /// Of WebSockets.
    pub sockets: SocketLimits,
}

impl StackLimits {
    /// For use.
    pub const PRODUCTION: Self = Self {
        cache: CacheLimits::PRODUCTION,
        mailbox: 4096,
        calls: 4096,
        alarms: 256,
        idle: Duration::from_secs(10),
        resident_bytes: 256 << 20,
        dirty_bytes: 64 << 20,
        blocked: Duration::from_millis(50),
        sockets: SocketLimits::PRODUCTION,
    };
}

/// A handler of an object's, running.
type Handled = LocalBoxFuture<'static, Result<()>>;

/// A type of objects.
#[derive(Clone)]
pub(crate) struct Class {
    pub(crate) name: Arc<str>,
    pub(crate) key: NamespaceKey,
    type_id: TypeId,
    pub(crate) options: NamespaceOptions,
    pub(crate) build: fn(State) -> Rc<dyn Any>,
    #[cfg(feature = "server")]
    pub(crate) fetch: fn(Request, Reply<Response>) -> Box<dyn Deliver>,
    pub(crate) alarm: fn(Rc<dyn Any>, AlarmInfo) -> Handled,
    pub(crate) socket: fn(Rc<dyn Any>, WebSocket, SocketEvent) -> Handled,
}

impl Class {
    fn new<T: DurableObject>(name: &str, options: NamespaceOptions) -> Self {
        Self {
            name: name.into(),
            key: NamespaceKey::new(name),
            type_id: TypeId::of::<T>(),
            options,
            build: |state| Rc::new(T::new(state)),
            #[cfg(feature = "server")]
            fetch: |request, reply| {
                let object = std::marker::PhantomData::<fn(T)>;
                Box::new(Fetch { request, reply, object })
            },
            alarm: |object, info| {
                let object = object.downcast::<T>().expect("an object of its class");
                async move { object.alarm(info).await }.boxed_local()
            },
            socket: |object, socket, event| {
                let object = object.downcast::<T>().expect("an object of its class");
                async move {
                    match event {
                        SocketEvent::Message(message) => {
                            object.web_socket_message(&socket, message).await
                        }
                        SocketEvent::Closed(closed) => {
                            object.web_socket_close(&socket, closed).await
                        }
                        SocketEvent::Error(error) => object.web_socket_error(&socket, error).await,
                    }
                }
                .boxed_local()
            },
        }
    }

    /// Where an id of this class comes from.
    pub(crate) fn origin(&self, id: &Id) -> Origin {
        Origin { namespace: Some(self.name.clone()), name: id.shared_name() }
    }
}

/// What a core is told.
pub(crate) enum Mail {
    Call {
        id: Id,
        class: usize,
        call: Box<dyn Deliver>,
    },
    Delete {
        id: Id,
        class: usize,
        reply: Reply<()>,
    },
    Evict {
        id: ObjectId,
        done: oneshot::Sender<()>,
    },
    Abort {
        id: ObjectId,
        reason: String,
        done: oneshot::Sender<()>,
    },
    /// To be told when no alarm is due or runs.
    Settle {
        done: oneshot::Sender<()>,
    },
    Resident {
        id: ObjectId,
        reply: oneshot::Sender<Option<Resident>>,
    },
    Residents {
        after: Option<ObjectId>,
        max: usize,
        reply: oneshot::Sender<Vec<Resident>>,
    },
    /// To have a task of a server.
    #[cfg(feature = "server")]
    Guest(Guest),
}

impl Mail {
    /// Answers what could not be sent.
    pub(crate) fn refuse(self, error: Error) {
        match self {
            Self::Call { call, .. } => call.refuse(error),
            Self::Delete { reply, .. } => reply.send(Err(error)),
            // Whoever waits sees that it was dropped.
            Self::Evict { .. }
            | Self::Abort { .. }
            | Self::Settle { .. }
            | Self::Resident { .. }
            | Self::Residents { .. } => {}
            // Its connections are cut.
            #[cfg(feature = "server")]
            Self::Guest(_) => {}
        }
    }
}

struct Shared {
    classes: Vec<Class>,
    /// Of the objects of each class.
    bounds: Vec<Bounds>,
    mailboxes: Vec<Sender<Mail>>,
    receivers: Mutex<Vec<Option<Receiver<Mail>>>>,
    /// Known once the first core has opened the store.
    shards: OnceLock<u16>,
    limits: StackLimits,
    /// What namespaces may hold on disk.
    quotas: Quotas,
    #[cfg(feature = "server")]
    outside: Option<Outside>,
    entropy: Box<dyn Fn() -> u64 + Send + Sync>,
    /// The clock of the cores, for callers that are no cores.
    clock: Option<Clock>,
    /// What each core tells.
    watched: Vec<Arc<CoreShared>>,
    /// What recorders of metrics were told.
    published: Mutex<Published>,
}

/// All namespaces and cores of one store. Cheap to clone; `Send + Sync`.
#[derive(Clone)]
pub struct Topology(Arc<Shared>);

/// Builds a [`Topology`].
#[derive(Clone)]
pub struct TopologyBuilder {
    classes: Vec<Class>,
    cores: usize,
    limits: StackLimits,
    clock: Option<Clock>,
    #[cfg(feature = "server")]
    outside: Option<Outside>,
}

impl TopologyBuilder {
    /// Adds the objects of type `T`; the name is also the namespace's unique key.
    ///
    /// # Panics
    /// If the name or the type is there already.
    #[must_use]
    pub fn namespace<T: DurableObject>(self, name: &str) -> Self {
        self.namespace_with::<T>(name, NamespaceOptions::DEFAULT)
    }

    /// See [`namespace`](Self::namespace).
    ///
    /// # Panics
    /// Likewise.
    #[must_use]
    pub fn namespace_with<T: DurableObject>(
        mut self,
        name: &str,
        options: NamespaceOptions,
    ) -> Self {
        let class = Class::new::<T>(name, options);
        let taken = |other: &Class| *other.name == *name || other.type_id == class.type_id;
        assert!(!self.classes.iter().any(taken), "namespace {name} or its type is there already");
        self.classes.push(class);
        self
    }

    /// How many cores there are; 1 unless said.
    #[must_use]
    pub fn cores(mut self, cores: usize) -> Self {
        self.cores = cores.max(1);
        self
    }

    /// The bounds of each core; [`StackLimits::PRODUCTION`] unless said.
    #[must_use]
    pub fn limits(mut self, limits: StackLimits) -> Self {
        self.limits = limits;
        self
    }

    /// What objects reach the outside by; nothing unless said.
    #[cfg(feature = "server")]
    #[must_use]
    pub fn outside(mut self, network: impl Network, limits: OutsideLimits) -> Self {
        self.outside = Some(Outside { network: Arc::new(network), limits });
        self
    }

    /// The clock of the cores, for callers that are no cores. Without one, a full mailbox can't say for how
    /// long it has been.
    #[must_use]
    pub fn clock(mut self, clock: Clock) -> Self {
        self.clock = Some(clock);
        self
    }

    /// The topology. `entropy` gives the random bits of new unique ids.
    pub fn build(self, entropy: impl Fn() -> u64 + Send + Sync + 'static) -> Topology {
        let (mailboxes, receivers) =
            (0..self.cores).map(|_| mailbox(self.limits.mailbox)).unzip::<_, _, Vec<_>, Vec<_>>();
        let watched = (0..self.cores).map(|_| CoreShared::new(self.classes.len())).collect();
        let bounds = |class: &Class| Bounds::new(&class.options, &self.limits);
        let quota = |class: &Class| Some((class.name.clone(), class.options.disk_bytes?));
        Topology(Arc::new(Shared {
            quotas: Quotas::new(self.classes.iter().filter_map(quota)),
            bounds: self.classes.iter().map(bounds).collect(),
            classes: self.classes,
            mailboxes,
            receivers: Mutex::new(receivers.into_iter().map(Some).collect()),
            shards: OnceLock::new(),
            limits: self.limits,
            #[cfg(feature = "server")]
            outside: self.outside,
            entropy: Box::new(entropy),
            clock: self.clock,
            watched,
            published: Mutex::default(),
        }))
    }
}

impl Topology {
    /// What namespaces may hold on disk.
    pub(crate) fn quotas(&self) -> &Quotas {
        &self.0.quotas
    }

    /// One without namespaces, on one core.
    pub fn builder() -> TopologyBuilder {
        TopologyBuilder {
            classes: Vec::new(),
            cores: 1,
            limits: StackLimits::PRODUCTION,
            clock: None,
            #[cfg(feature = "server")]
            outside: None,
        }
    }

    /// Opens the shards of core `core`: every shard whose number, modulo the number of cores, is
    /// the core's. Call it once for each core, on that core, then [`Core::serve`].
    ///
    /// Errors: of [`Shard::open`](engine::Shard::open).
    ///
    /// # Panics
    /// If the core was opened before, or does not exist.
    pub async fn open<E: Env>(
        &self,
        env: &E,
        core: usize,
        superblock: Superblock,
        limits: Limits,
    ) -> Result<Core> {
        let mail = self.0.receivers.lock().expect("no code panics under it")[core].take();
        let mail = mail.expect("a core is opened once");
        let shards = *self.0.shards.get_or_init(|| superblock.shards);
        assert_eq!(shards, superblock.shards, "all cores serve one store");
        Core::open(self.clone(), mail, env, core, superblock, limits).await
    }

    /// The namespace of the objects of type `T`.
    ///
    /// # Panics
    /// If there is none.
    pub fn namespace<T: DurableObject>(&self) -> Namespace<T> {
        let class = self.0.classes.iter().position(|class| class.type_id == TypeId::of::<T>());
        Namespace::new(self.clone(), class.expect("the type has a namespace"))
    }

    /// Drops the object from memory as soon as nothing would be lost. Resolves when it is
    /// gone, at once if it is not there.
    pub async fn evict(&self, id: &Id) {
        let (done, gone) = oneshot::channel();
        if self.send(id.object(), Mail::Evict { id: id.object(), done }).is_ok() {
            let _dropped_is_gone_too = gone.await;
        }
    }

    /// Ends the object's instance at once, as [`State::abort`](crate::State::abort) does: what is not
    /// durable is lost, calls that wait get `reason`, and the next one builds it anew. Resolves when it is gone, at
    /// once if it is not there.
    pub async fn abort(&self, id: &Id, reason: impl Into<String>) {
        let (done, gone) = oneshot::channel();
        let mail = Mail::Abort { id: id.object(), reason: reason.into(), done };
        if self.send(id.object(), mail).is_ok() {
            let _dropped_is_gone_too = gone.await;
        }
    }

    pub(crate) fn settle_core(&self, core: usize) -> oneshot::Receiver<()> {
        let (done, settled) = oneshot::channel();
        // A mailbox that does not take it drops it.
        let _dropped = self.0.mailboxes[core].send(Mail::Settle { done }).is_err();
        settled
    }

    /// What an object says of itself; none if it is not in memory.
    ///
    /// Errors: `Overloaded` (its core's mailbox is full), `Closed`.
    pub(crate) async fn resident(&self, id: &Id) -> Result<Option<Resident>> {
        let (reply, answer) = oneshot::channel();
        self.send(id.object(), Mail::Resident { id: id.object(), reply })
            .map_err(|(_, error)| error)?;
        answer.await.map_err(|_| closed())
    }

    /// The first `max` objects in memory whose ids are behind `after`, in the order of ids; for the next page give
    /// the last one's id. Each core looks through its map once, some milliseconds for a hundred thousand objects.
    ///
    /// Errors: `Overloaded` (a core's mailbox is full), `Closed`.
    pub async fn residents(&self, after: Option<&Id>, max: usize) -> Result<Vec<Resident>> {
        let mut answers = Vec::new();
        for core in 0..self.cores() {
            let (reply, answer) = oneshot::channel();
            let mail = Mail::Residents { after: after.map(Id::object), max, reply };
            self.send_to(core, mail).map_err(|(_, error)| error)?;
            answers.push(answer);
        }
        let mut all = Vec::new();
        for answer in answers {
            all.extend(answer.await.map_err(|_| closed())?);
        }
        all.sort_by_key(|resident: &Resident| resident.id.object());
        all.truncate(max);
        Ok(all)
    }

    /// Tells the recorder of metrics that is installed what has changed since the last time (docs/metrics.md).
    pub fn publish_metrics(&self) {
        let Shared { classes, watched, mailboxes, .. } = &*self.0;
        let of_class = |(number, class): (usize, &Class)| Labelled {
            label: MetricLabel::Namespace,
            value: class.name.clone(),
            scopes: watched.iter().map(|core| core.namespace(number)).collect(),
        };
        let mut labels: Vec<_> = classes.iter().enumerate().map(of_class).collect();
        for (number, (core, mailbox)) in watched.iter().zip(mailboxes).enumerate() {
            core.own().set(Count::MailboxMessages, mailbox.len() as u64);
            let (label, value) = (MetricLabel::Core, number.to_string().into());
            labels.push(Labelled { label, value, scopes: vec![core.own()] });
        }
        let mut published = self.0.published.lock().expect("no code panics under it");
        publish(&mut published, &labels);
        drop(published);
        #[cfg(feature = "server")]
        crate::server::metrics_upkeep();
    }

    /// Lets all cores end: no new calls; those that are there are answered.
    pub fn shutdown(&self) {
        self.0.mailboxes.iter().for_each(Sender::close);
    }

    pub(crate) fn limits(&self) -> &StackLimits {
        &self.0.limits
    }

    #[cfg(feature = "server")]
    pub(crate) fn outside(&self) -> Option<&Outside> {
        self.0.outside.as_ref()
    }

    /// The bounds of the objects of a class.
    pub(crate) fn bounds(&self, class: usize) -> &Bounds {
        &self.0.bounds[class]
    }

    /// How much memory the live objects of each class may take, where they have a budget of their
    /// own.
    pub(crate) fn budgets(&self) -> impl Iterator<Item = Option<usize>> {
        self.0.classes.iter().map(|class| class.options.resident_bytes)
    }

    /// What core `core` tells.
    pub(crate) fn watched(&self, core: usize) -> &Arc<CoreShared> {
        &self.0.watched[core]
    }

    pub(crate) fn cores(&self) -> usize {
        self.0.mailboxes.len()
    }

    pub(crate) fn class(&self, class: usize) -> &Class {
        &self.0.classes[class]
    }

    /// The class whose key made the id: for an alarm, which knows no more.
    pub(crate) fn class_of(&self, id: ObjectId) -> Option<usize> {
        self.0.classes.iter().position(|class| class.key.owns(id))
    }

    /// The class of this name.
    #[cfg(feature = "server")]
    pub(crate) fn class_named(&self, name: &str) -> Option<usize> {
        self.0.classes.iter().position(|class| *class.name == *name)
    }

    /// Sends a request to an object of a class that is known by its number alone.
    #[cfg(feature = "server")]
    pub(crate) fn fetch(&self, class: usize, id: Id, request: Request) -> Call<Response> {
        let (reply, receiver) = Reply::new();
        let call = (self.class(class).fetch)(request, reply);
        if let Err((mail, error)) = self.send(id.object(), Mail::Call { id, class, call }) {
            mail.refuse(error);
        }
        Call::new(receiver)
    }

    /// Has a core take in a task of a server.
    ///
    /// Errors: `Overloaded` (its mailbox is full), `Closed`.
    #[cfg(feature = "server")]
    pub(crate) fn send_guest(&self, core: usize, guest: Guest) -> Result<()> {
        self.send_to(core, Mail::Guest(guest)).map_err(|(_, error)| error)
    }

    /// Has the core of an object take in a task of a server.
    ///
    /// Errors: the task, and why: `Overloaded` (its mailbox is full), `Closed`.
    #[cfg(feature = "server")]
    pub(crate) fn send_guest_to(&self, id: &Id, guest: Guest) -> Result<(), (Guest, Error)> {
        self.send(id.object(), Mail::Guest(guest)).map_err(|(mail, error)| match mail {
            Mail::Guest(guest) => (guest, error),
            _ => unreachable!("it gives back what it was given"),
        })
    }

    pub(crate) fn entropy(&self) -> [u8; 16] {
        let bits = u128::from((self.0.entropy)()) << 64 | u128::from((self.0.entropy)());
        bits.to_le_bytes()
    }

    /// Puts mail into the mailbox of the object's core.
    ///
    /// Errors: the mail, and why it was not taken.
    pub(crate) fn send(&self, id: ObjectId, mail: Mail) -> Result<(), (Mail, Error)> {
        let Some(shards) = self.0.shards.get() else {
            let error = engine::Error::new(engine::Kind::Retry, "the store is not open yet");
            return Err((mail, error.into()));
        };
        self.send_to(usize::from(id.shard(*shards)) % self.cores(), mail)
    }

    fn send_to(&self, core: usize, mail: Mail) -> Result<(), (Mail, Error)> {
        self.0.mailboxes[core].send(mail).map_err(|refused| match refused {
            Refused::Full(mail) => {
                self.0.watched[core].own().add_from_outside(Count::MailboxOverloads);
                let empty = self.0.watched[core].mailbox_empty();
                let oldest = self.0.clock.as_ref().map(|clock| clock.now().saturating_sub(empty));
                let overload = Overload { depth: self.0.limits.mailbox, oldest };
                let what = format!("the mailbox of core {core}");
                (mail, Error::overloaded("mailbox-full", &what, overload))
            }
            Refused::Closed(mail) => {
                let text = "the runtime is shut down";
                (mail, engine::Error::new(engine::Kind::Closed, text).into())
            }
        })
    }
}
