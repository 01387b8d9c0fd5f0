//! Residency: which objects of a core stay in memory, and for how long.
//!
//! An object that had nothing to do for [`StackLimits::idle`](crate::StackLimits::idle) leaves (R-748,
//! R-829); earlier, the one that would leave next first, while all of them together take more than
//! [`StackLimits::resident_bytes`](crate::StackLimits::resident_bytes). Both may be another
//! namespace's own ([`NamespaceOptions`](crate::NamespaceOptions)). Idle is an object without an event or a task
//! of its own, and it leaves when all that it wrote is durable: nothing is lost but what its
//! constructor makes anew.
//!
//! An object that takes more than half of this by itself is *large*. It does not push the others out: it
//! counts as half where others are to leave for it, and is itself the first to leave once it is idle.
//!
//! Invariants:
//!
//! - Every idle object is in the queue, once, at a time no later than that at which it will have been idle
//!   for long enough: it may be too early, and is then put right, but never too late. One that is used
//!   stays there until its turn comes; busy ones are then taken out, and come back when they are idle. So
//!   being used costs a look at the clock, however many objects there are.
//! - `all` is the sum of what the live objects count, `leaving` the part of those that were told to go.
//! - Every large object is in `large`.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::{Rc, Weak};
use std::time::Duration;

use dormouse_engine as engine;
use dormouse_engine::Host;
use dormouse_engine::signal::Signal;
use futures_util::FutureExt;
use futures_util::future::select;

use crate::host::CoreHost;
use crate::instance::Instance;
use crate::topology::Topology;
use crate::watch::{Count, Watch};

/// What a live object counts beside its keys and values: instance, gates, tasks, its place in maps. Held
/// near the truth by a test (`benches/tests/residency.rs`).
pub const OBJECT_BYTES: usize = 1920;

/// The code of the error of calls for which there is no room.
pub(crate) const FULL: &str = "memory-full";

/// The budgets of one core: one for all namespaces but those that have their own.
pub(crate) struct Budgets {
    shared: Rc<Residency>,
    own: Vec<Option<Rc<Residency>>>,
}

impl Budgets {
    pub(crate) fn new(topology: &Topology, watch: &Rc<Watch>) -> Self {
        let total = Rc::new(Total { bytes: Cell::default(), watch: watch.clone() });
        let new = |bytes_max| Residency::new(bytes_max, total.clone());
        let shared = new(topology.limits().resident_bytes);
        Self { shared, own: topology.budgets().map(|bytes| bytes.map(new)).collect() }
    }

    fn all(&self) -> impl Iterator<Item = &Rc<Residency>> {
        std::iter::once(&self.shared).chain(self.own.iter().flatten())
    }

    /// Starts the tasks that send objects away.
    pub(crate) fn start(&self, host: &CoreHost) {
        self.all().for_each(|budget| host.spawn("residency", budget.clone().run(host.clone())));
    }

    /// Nobody is sent away any more.
    pub(crate) fn stop(&self) {
        self.all().for_each(|budget| budget.stop());
    }

    /// The part of an object of this class that is to come to life, by the core's clock `now`. Waits for
    /// those that leave, if too much room is taken.
    ///
    /// Errors: `Overloaded`, code `memory-full`: none of the others is idle.
    pub(crate) async fn place(&self, class: usize, now: Duration) -> engine::Result<Place> {
        self.own[class].as_ref().unwrap_or(&self.shared).place(now).await
    }
}

/// Objects of one core that share a budget, by when they are to be looked at.
pub(crate) struct Residency {
    bytes_max: usize,
    total: Rc<Total>,
    queue: RefCell<BTreeMap<Turn, Weak<Instance>>>,
    entered: Cell<u64>,
    all: Sum,
    leaving: Sum,
    large: RefCell<Vec<Weak<Instance>>>,
    /// The task has something to do before the time it sleeps for.
    rung: Cell<bool>,
    bell: Signal,
    /// All were looked at since room was wanted.
    looked: Cell<bool>,
    /// They were, or there is more room than before.
    room: Signal,
    stopped: Cell<bool>,
}

/// What some objects take.
#[derive(Default)]
struct Sum {
    bytes: Cell<usize>,
    /// The same with large objects as the half of what is allowed.
    capped: Cell<usize>,
}

impl Sum {
    fn add(&self, bytes: usize, cap: usize) {
        self.bytes.set(self.bytes.get() + bytes);
        self.capped.set(self.capped.get() + bytes.min(cap));
    }

    fn sub(&self, bytes: usize, cap: usize) {
        self.bytes.set(self.bytes.get() - bytes);
        self.capped.set(self.capped.get() - bytes.min(cap));
    }
}

/// What the objects of all budgets of a core take, which is told to its watch.
struct Total {
    bytes: Cell<usize>,
    watch: Rc<Watch>,
}

impl Total {
    fn replace(&self, before: usize, bytes: usize) {
        self.bytes.set(self.bytes.get() - before + bytes);
        self.watch.of_core().set(Count::ResidentBytes, self.bytes.get() as u64);
    }
}

/// A place in the queue: when by the core's clock, and which object.
type Turn = (Duration, u64);

/// One object's part. Dropped, it takes no room any more.
pub(crate) struct Place {
    residency: Rc<Residency>,
    number: u64,
    /// When it is to be looked at, if it is in the queue.
    due: Cell<Option<Duration>>,
    /// When it last had something to do, by the core's clock.
    last: Cell<Duration>,
    /// Whether it has nothing to do.
    idle: Cell<bool>,
    bytes: Cell<usize>,
    /// It was told to go, and nothing came since.
    leaving: Cell<bool>,
    /// It is among the large ones.
    listed: Cell<bool>,
}

impl Residency {
    fn new(bytes_max: usize, total: Rc<Total>) -> Rc<Self> {
        Rc::new(Self {
            bytes_max,
            total,
            queue: RefCell::default(),
            entered: Cell::new(0),
            all: Sum::default(),
            leaving: Sum::default(),
            large: RefCell::default(),
            rung: Cell::new(false),
            bell: Signal::default(),
            looked: Cell::new(false),
            room: Signal::default(),
            stopped: Cell::new(false),
        })
    }

    async fn place(self: &Rc<Self>, now: Duration) -> engine::Result<Place> {
        self.entered.set(self.entered.get() + 1);
        self.all.add(OBJECT_BYTES, self.cap());
        self.total.replace(0, OBJECT_BYTES);
        let place = Place {
            residency: self.clone(),
            number: self.entered.get(),
            due: Cell::default(),
            last: Cell::new(now),
            idle: Cell::new(false),
            bytes: Cell::new(OBJECT_BYTES),
            leaving: Cell::new(false),
            listed: Cell::new(false),
        };
        if !self.is_full() {
            return Ok(place);
        }
        self.looked.set(false);
        self.ring_if(true);
        let room = self.room.until(|| match self.is_full() {
            false => Some(Ok(())),
            // One that is in the queue has become idle since the look, and goes with the next one.
            true if self.looked.get()
                && self.leaving.bytes.get() == 0
                && self.queue.borrow().is_empty() =>
            {
                let bytes = self.all.bytes.get();
                let text = format!("its core's objects take {bytes} bytes, and none is idle");
                Some(Err(engine::Error::coded(engine::Kind::Overloaded, FULL, text)))
            }
            true => None,
        });
        room.await.map(|()| place)
    }

    fn had_turn(&self, object: &Rc<Instance>, now: Duration, idle: bool, bytes: usize) {
        let place = &object.place;
        place.last.set(now);
        place.idle.set(idle);
        place.set_bytes(OBJECT_BYTES + bytes);
        if place.is_large() && !place.listed.replace(true) {
            self.large.borrow_mut().push(Rc::downgrade(object));
        }
        if !idle {
            return;
        }
        if place.due.get().is_none() {
            self.queue_up(object, now.saturating_add(object.idle_max()));
            // The task sleeps until the one that was the first before is due.
            let first = self.queue.borrow().first_key_value().map(|(turn, _)| *turn);
            self.ring_if(first == place.turn());
        }
        self.ring_if(self.is_over() || (place.is_large() && self.is_over_for_large()));
    }

    /// Whether what is in use takes twice of what is allowed.
    fn is_full(&self) -> bool {
        self.all.bytes.get() > self.bytes_max.saturating_mul(2)
    }

    /// Whether idle objects are to leave.
    fn is_over(&self) -> bool {
        self.all.capped.get() - self.leaving.capped.get() > self.bytes_max
            || (self.is_full() && self.is_over_for_large())
    }

    /// Whether idle large objects are to leave.
    fn is_over_for_large(&self) -> bool {
        self.all.bytes.get() - self.leaving.bytes.get() > self.bytes_max
    }

    /// What an object counts at most where others are to leave for it.
    fn cap(&self) -> usize {
        self.bytes_max / 2
    }

    fn ring_if(&self, due: bool) {
        if due && !self.rung.replace(true) {
            self.bell.notify();
        }
    }

    fn stop(&self) {
        self.stopped.set(true);
        self.ring_if(true);
    }

    fn queue_up(&self, instance: &Rc<Instance>, at: Duration) {
        instance.place.due.set(Some(at));
        self.queue.borrow_mut().insert((at, instance.place.number), Rc::downgrade(instance));
    }

    /// The task that sends objects away.
    async fn run(self: Rc<Self>, host: CoreHost) {
        while !self.stopped.get() {
            self.rung.set(false);
            let wait = self.sweep(host.now());
            self.looked.set(true);
            self.room.notify();
            let rung = self.bell.until(|| self.rung.get().then_some(()));
            match wait {
                None => rung.await,
                Some(wait) => {
                    let sleep = host.sleep(wait).boxed_local();
                    select(rung.boxed_local(), sleep).map(drop).await;
                }
            }
        }
    }

    /// Sends away what is to go now. How long until the next look; none if nobody is there.
    fn sweep(&self, now: Duration) -> Option<Duration> {
        self.send_large_away();
        // Each once: those that can't go stay, however much memory is wanted.
        let looks = self.queue.borrow().len();
        for _ in 0..looks {
            let (at, _) = *self.queue.borrow().keys().next()?;
            let over = self.is_over();
            if at > now && !over {
                break;
            }
            let first = self.queue.borrow_mut().pop_first();
            let Some(instance) = first.and_then(|(_, first)| first.upgrade()) else { continue };
            instance.place.due.set(None);
            if !instance.place.is_idle() {
                continue;
            }
            let due = instance.place.last.get().saturating_add(instance.idle_max());
            // The first whose place was right is the one that was idle for longest. What it wrote and
            // is not durable yet it still waits for.
            if due <= now || (over && due <= at) {
                tracing::debug!(object = %instance.id, over, "an idle object leaves memory");
                send_away(&instance);
            } else {
                self.queue_up(&instance, due);
            }
        }
        let (at, _) = *self.queue.borrow().keys().next()?;
        // A look that found none is not repeated at once.
        Some(at.saturating_sub(now).max(Duration::from_millis(1)))
    }

    /// Sends away idle large objects while too much is taken, those that were idle for longest first.
    fn send_large_away(&self) {
        let stays = |one: &Weak<Instance>| {
            one.upgrade().is_some_and(|one| {
                one.place.listed.set(one.place.is_large());
                one.place.is_large()
            })
        };
        self.large.borrow_mut().retain(stays);
        let mut idle: Vec<_> = self.large.borrow().iter().filter_map(Weak::upgrade).collect();
        idle.retain(|instance| instance.place.is_idle() && !instance.place.leaving.get());
        idle.sort_by_key(|instance| (instance.place.last.get(), instance.place.number));
        for instance in idle {
            if !self.is_over_for_large() {
                return;
            }
            tracing::debug!(object = %instance.id, "an idle object that is large leaves memory");
            instance.place.leave();
            send_away(&instance);
        }
    }
}

fn send_away(instance: &Rc<Instance>) {
    instance.evict();
    instance.place.told_to_go();
}

impl Place {
    /// The object had a turn, has nothing more to do if `idle`, and takes so many bytes beside
    /// [`OBJECT_BYTES`].
    pub(crate) fn had_turn(object: &Rc<Instance>, now: Duration, idle: bool, bytes: usize) {
        object.place.residency.had_turn(object, now, idle, bytes);
    }

    /// The object is gone.
    pub(crate) fn leave(&self) {
        if let Some(turn) = self.turn() {
            self.due.set(None);
            self.residency.queue.borrow_mut().remove(&turn);
        }
    }

    /// Its place in the queue, if it is there.
    fn turn(&self) -> Option<Turn> {
        self.due.get().map(|at| (at, self.number))
    }

    fn told_to_go(&self) {
        assert!(!self.leaving.replace(true));
        self.residency.leaving.add(self.bytes.get(), self.residency.cap());
    }

    /// Something to do has come. Whoever was told to go still goes, but not before it is done: nobody
    /// may wait for that.
    pub(crate) fn wake(&self) {
        self.idle.set(false);
        if self.leaving.replace(false) {
            self.residency.leaving.sub(self.bytes.get(), self.residency.cap());
            self.residency.room.notify();
        }
    }

    /// Whether nothing had to be done when the object was last seen, and nothing came since.
    pub(crate) fn is_idle(&self) -> bool {
        self.idle.get()
    }

    /// When it last had something to do, by the core's clock.
    pub(crate) fn last_turn(&self) -> Duration {
        self.last.get()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes.get()
    }

    fn set_bytes(&self, bytes: usize) {
        let (residency, before) = (&self.residency, self.bytes.replace(bytes));
        if before == bytes {
            return;
        }
        residency.total.replace(before, bytes);
        let sums = [Some(&residency.all), self.leaving.get().then_some(&residency.leaving)];
        for sum in sums.into_iter().flatten() {
            sum.sub(before, residency.cap());
            sum.add(bytes, residency.cap());
        }
    }

    fn is_large(&self) -> bool {
        self.bytes.get() > self.residency.cap()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.set_bytes(0);
        self.residency.room.notify();
    }
}
