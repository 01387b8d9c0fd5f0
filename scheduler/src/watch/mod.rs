//! What is known of a core while it runs: why its objects are awake, how its time is shared, what it has done,
//! and which object blocks it.
//!
//! Who asks pays: what objects leave behind as they go are numbers in a slab, a few stores into memory that
//! only this core writes, and two looks at the clock for each turn of an object.
//!
//! | | |
//! |---|---|
//! | [`activity`], [`resident`] | what each object has to do, and how it says so |
//! | [`budget`] | how objects share a core |
//! | [`metrics`], [`distribution`] | what is counted |
//! | [`span`] | where an event's log lines belong |
//! | [`thread`] | who looks from outside: names what blocks a core, publishes metrics |

mod activity;
mod budget;
mod distribution;
mod metrics;
mod resident;
mod span;
mod thread;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use dormouse_engine::heartbeat::{Heart, Heartbeat};
use dormouse_engine::{Host, ObjectId};

pub(crate) use activity::{Activities, Activity, List};
pub(crate) use budget::{Budget, LeftOver};
pub(crate) use metrics::{Count, Labelled, Published, Scope, Spread, publish};
pub use metrics::{Metric, MetricKind, MetricLabel, all as all_metrics};
pub(crate) use resident::Reasons;
pub use resident::{Awake, Reason, Resident};
pub(crate) use span::of_event;
pub(crate) use thread::WatchThread;

use crate::host::CoreHost;
use crate::id::Id;
use crate::topology::Topology;

/// What a core tells other threads: memory that it alone writes.
#[derive(Debug)]
pub(crate) struct CoreShared {
    /// Which object has its turn.
    heartbeat: Arc<Heartbeat>,
    /// When its mailbox was empty last, in microseconds by its clock.
    mailbox_empty_us: AtomicU64,
    /// What it counts for each namespace.
    namespaces: Box<[Scope]>,
    /// What it counts for itself.
    own: Scope,
}

impl CoreShared {
    pub(crate) fn new(namespaces: usize) -> Arc<Self> {
        Arc::new(Self {
            heartbeat: Arc::default(),
            mailbox_empty_us: AtomicU64::new(0),
            namespaces: (0..namespaces).map(|_| Scope::default()).collect(),
            own: Scope::default(),
        })
    }

    /// When the core's mailbox was empty last, by its clock.
    pub(crate) fn mailbox_empty(&self) -> Duration {
        Duration::from_micros(self.mailbox_empty_us.load(Ordering::Relaxed))
    }

    pub(crate) fn namespace(&self, class: usize) -> &Scope {
        &self.namespaces[class]
    }

    pub(crate) fn own(&self) -> &Scope {
        &self.own
    }
}

/// The watch of one core.
pub(crate) struct Watch {
    host: CoreHost,
    topology: Topology,
    shared: Arc<CoreShared>,
    heart: Heart,
    pub(crate) activities: Activities,
    /// When the turn or the batch of mail began that is under way.
    began: Cell<Option<Duration>>,
    /// Calls that ended in this turn: of which namespace, and since when they were there.
    ended: RefCell<Vec<(usize, Duration)>>,
}

impl Watch {
    pub(crate) fn new(host: CoreHost, topology: Topology, core: usize) -> Rc<Self> {
        let shared = topology.watched(core).clone();
        let heart = Heart::new(shared.heartbeat.clone());
        let (activities, began, ended) = Default::default();
        Rc::new(Self { host, topology, shared, heart, activities, began, ended })
    }

    /// The core's clock, as it was when this turn began: enough for what waits for longer than turns take.
    pub(crate) fn now(&self) -> Duration {
        self.began.get().unwrap_or_else(|| self.host.now())
    }

    /// How long the turn that is under way has taken.
    fn elapsed(&self) -> Duration {
        let began = self.began.get();
        began.map_or(Duration::ZERO, |began| self.host.now().saturating_sub(began))
    }

    /// Begins a batch of mail.
    pub(crate) fn mail(&self) -> Mail<'_> {
        self.begin();
        Mail(self)
    }

    fn begin(&self) {
        let outer = self.began.replace(Some(self.host.now()));
        assert!(outer.is_none(), "a core does one thing at a time");
    }

    /// Begins a turn of an object's.
    pub(crate) fn turn<'a>(&'a self, id: &'a Id, class: usize) -> Turn<'a> {
        self.begin();
        self.heart.begin(&id.object(), class as u64);
        Turn { watch: self, id, class, ended: Cell::default() }
    }

    /// The mailbox is empty, and was not looked at before this batch began.
    pub(crate) fn mailbox_is_empty(&self) {
        self.shared.mailbox_empty_us.store(micros(self.now()), Ordering::Relaxed);
    }

    /// What is counted for the objects of a namespace.
    pub(crate) fn of(&self, class: usize) -> &Scope {
        self.shared.namespace(class)
    }

    /// What is counted for the core.
    pub(crate) fn of_core(&self) -> &Scope {
        &self.shared.own
    }

    /// Sees for how long something that began then has taken.
    pub(crate) fn took(&self, class: usize, which: Spread, since: Duration) {
        self.of(class).see(which, nanos(self.host.now().saturating_sub(since)));
    }

    /// A call has ended that was there since then: seen at the turn's end, which spares a look at the clock.
    pub(crate) fn call_ended(&self, class: usize, since: Duration) {
        match self.began.get() {
            Some(_) => self.ended.borrow_mut().push((class, since)),
            None => self.took(class, Spread::CallSeconds, since),
        }
    }

    fn next_ended(&self) -> Option<(usize, Duration)> {
        self.ended.borrow_mut().pop()
    }

    fn see_calls(&self, now: Duration) {
        // Nearly always none or one, for which a drain would be most of the work.
        while let Some((class, since)) = self.next_ended() {
            self.of(class).see(Spread::CallSeconds, nanos(now.saturating_sub(since)));
        }
    }

    pub(crate) fn namespace(&self, class: usize) -> &Arc<str> {
        &self.topology.class(class).name
    }
}

/// A batch of mail, until it is dropped.
pub(crate) struct Mail<'a>(&'a Watch);

impl Drop for Mail<'_> {
    fn drop(&mut self) {
        let began = self.0.began.take().expect("set when it began");
        self.0.see_calls(began);
    }
}

/// A turn of an object, until it is dropped.
pub(crate) struct Turn<'a> {
    watch: &'a Watch,
    id: &'a Id,
    class: usize,
    ended: Cell<Option<Duration>>,
}

impl Turn<'_> {
    /// The time at its end, which has come.
    pub(crate) fn now(&self) -> Duration {
        let now = self.watch.host.now();
        self.ended.set(Some(now));
        now
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let Self { watch, id, class, .. } = *self;
        watch.heart.end();
        let now = self.ended.get().unwrap_or_else(|| watch.host.now());
        let began = watch.began.take().expect("set when it began");
        watch.see_calls(now);
        let took = now.saturating_sub(began);
        watch.of(class).see(Spread::TurnSeconds, nanos(took));
        if took >= watch.topology.limits().blocked {
            watch.of(class).add(Count::BlockedTurns, 1);
            let namespace = &**watch.namespace(class);
            let ms = took.as_millis();
            tracing::warn!(object = %id, namespace, ms, "an object has blocked its core");
        }
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

pub(crate) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// The name of an object that is known by its id alone, and of its namespace.
fn describe(topology: &Topology, object: ObjectId, class: u64) -> (Id, Arc<str>) {
    let class = usize::try_from(class).expect("a core said it");
    (Id::unnamed(object), topology.class(class).name.clone())
}
