//! Residency: which objects of a core stay in memory, and for how long.
//!
//! An object that had nothing to do for [`StackLimits::idle`](crate::StackLimits::idle) leaves (R-748,
//! R-829); earlier, the one that was idle for longest first, while all of them together take more than
//! [`StackLimits::resident_bytes`](crate::StackLimits::resident_bytes). Idle is an object without an event or a task
//! of its own, and it leaves when all that it wrote is durable: nothing is lost but what its
//! constructor makes anew.
//!
//! Invariants:
//!
//! - Every idle object is in the queue, once, at a time no later than that at which it will have been idle
//!   for long enough: it may be too early, and is then put right, but never too late. One that is used
//!   stays there until its turn comes; busy ones are then taken out, and come back when they are idle. So
//!   being used costs a look at the clock, however many objects there are.
//! - `bytes` is the sum of what the live objects count, `leaving` the part of those that were told to go.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::{Rc, Weak};
use std::time::Duration;

use dormouse_engine as engine;
use dormouse_engine::Host;
use dormouse_engine::signal::Signal;
use futures_util::FutureExt;
use futures_util::future::select;

use crate::core::Inner;
use crate::instance::Instance;
use crate::topology::StackLimits;

/// What a live object counts beside its keys and values: instance, gates, tasks, its place in maps. Held
/// near the truth by a test (`benches/tests/residency.rs`).
pub const OBJECT_BYTES: usize = 2560;

/// The code of the error of calls for which there is no room.
pub(crate) const FULL: &str = "memory-full";

/// The objects of one core, by when they are to be looked at.
pub(crate) struct Residency {
    idle: Duration,
    bytes_max: usize,
    queue: RefCell<BTreeMap<Turn, Weak<Instance>>>,
    entered: Cell<u64>,
    bytes: Cell<usize>,
    leaving: Cell<usize>,
    /// The task has something to do before the time it sleeps for.
    rung: Cell<bool>,
    bell: Signal,
    /// All were looked at since room was wanted.
    looked: Cell<bool>,
    /// They were, or there is more room than before.
    room: Signal,
    stopped: Cell<bool>,
}

/// A place in the queue: when by the core's clock, and which object.
type Turn = (Duration, u64);

/// One object's part. Dropped, it takes no room any more.
pub(crate) struct Place {
    pub(crate) residency: Rc<Residency>,
    number: u64,
    /// Its place in the queue, if it is there.
    turn: Cell<Option<Turn>>,
    /// When it last had something to do, by the core's clock.
    last: Cell<Duration>,
    /// Whether it has nothing to do.
    idle: Cell<bool>,
    bytes: Cell<usize>,
    /// It was told to go, and nothing came since.
    leaving: Cell<bool>,
}

impl Residency {
    pub(crate) fn new(limits: &StackLimits) -> Rc<Self> {
        Rc::new(Self {
            idle: limits.idle,
            bytes_max: limits.resident_bytes,
            queue: RefCell::default(),
            entered: Cell::new(0),
            bytes: Cell::new(0),
            leaving: Cell::new(0),
            rung: Cell::new(false),
            bell: Signal::default(),
            looked: Cell::new(false),
            room: Signal::default(),
            stopped: Cell::new(false),
        })
    }

    /// The part of an object that is to come to life, by the core's clock `now`. Waits for those that
    /// leave, if too much room is taken.
    ///
    /// Errors: `Overloaded`, code `memory-full`: none of the others is idle.
    pub(crate) async fn place(self: &Rc<Self>, now: Duration) -> engine::Result<Place> {
        self.entered.set(self.entered.get() + 1);
        self.bytes.set(self.bytes.get() + OBJECT_BYTES);
        let place = Place {
            residency: self.clone(),
            number: self.entered.get(),
            turn: Cell::default(),
            last: Cell::new(now),
            idle: Cell::new(false),
            bytes: Cell::new(OBJECT_BYTES),
            leaving: Cell::new(false),
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
                && self.leaving.get() == 0
                && self.queue.borrow().is_empty() =>
            {
                let bytes = self.bytes.get();
                let text = format!("the objects of its core take {bytes} bytes, and none is idle");
                Some(Err(engine::Error::coded(engine::Kind::Overloaded, FULL, text)))
            }
            true => None,
        });
        room.await.map(|()| place)
    }

    /// The object had a turn, has nothing more to do if `idle`, and takes so many bytes beside
    /// [`OBJECT_BYTES`].
    pub(crate) fn had_turn(&self, object: &Rc<Instance>, now: Duration, idle: bool, bytes: usize) {
        let place = &object.place;
        place.last.set(now);
        place.idle.set(idle);
        place.set_bytes(OBJECT_BYTES + bytes);
        if !idle {
            return;
        }
        if place.turn.get().is_none() {
            let was_empty = self.queue.borrow().is_empty();
            self.queue_up(object, now.saturating_add(self.idle));
            self.ring_if(was_empty);
        }
        self.ring_if(self.is_over());
    }

    /// An object is gone.
    pub(crate) fn leave(&self, instance: &Instance) {
        if let Some(turn) = instance.place.turn.take() {
            self.queue.borrow_mut().remove(&turn);
        }
    }

    /// Bytes that all of them take.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.get()
    }

    /// Whether what is in use takes twice of what is allowed.
    fn is_full(&self) -> bool {
        self.bytes.get() > self.bytes_max.saturating_mul(2)
    }

    fn is_over(&self) -> bool {
        self.bytes.get() - self.leaving.get() > self.bytes_max
    }

    fn ring_if(&self, due: bool) {
        if due && !self.rung.replace(true) {
            self.bell.notify();
        }
    }

    /// Nobody is sent away any more.
    pub(crate) fn stop(&self) {
        self.stopped.set(true);
        self.ring_if(true);
    }

    fn queue_up(&self, instance: &Rc<Instance>, at: Duration) {
        let turn = (at, instance.place.number);
        instance.place.turn.set(Some(turn));
        self.queue.borrow_mut().insert(turn, Rc::downgrade(instance));
    }

    /// The core's task that sends objects away.
    pub(crate) async fn run(core: Rc<Inner>) {
        let residency = &core.residency;
        while !residency.stopped.get() {
            residency.rung.set(false);
            let wait = residency.sweep(core.host.now());
            residency.looked.set(true);
            residency.room.notify();
            let rung = residency.bell.until(|| residency.rung.get().then_some(()));
            match wait {
                None => rung.await,
                Some(wait) => {
                    let sleep = core.host.sleep(wait).boxed_local();
                    select(rung.boxed_local(), sleep).map(drop).await;
                }
            }
        }
    }

    /// Sends away what is to go now. How long until the next look; none if nobody is there.
    fn sweep(&self, now: Duration) -> Option<Duration> {
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
            instance.place.turn.set(None);
            if !instance.place.is_idle() {
                continue;
            }
            let due = instance.place.last.get().saturating_add(self.idle);
            // The first whose place was right is the one that was idle for longest. What it wrote and
            // is not durable yet it still waits for.
            if due <= now || (over && due <= at) {
                tracing::debug!(object = %instance.id, over, "an idle object leaves memory");
                instance.evict();
                instance.place.told_to_go();
            } else {
                self.queue_up(&instance, due);
            }
        }
        let (at, _) = *self.queue.borrow().keys().next()?;
        // A look that found none is not repeated at once.
        Some(at.saturating_sub(now).max(Duration::from_millis(1)))
    }
}

impl Place {
    fn told_to_go(&self) {
        assert!(!self.leaving.replace(true));
        self.residency.leaving.set(self.residency.leaving.get() + self.bytes.get());
    }

    /// Something to do has come. Whoever was told to go still goes, but not before it is done: nobody
    /// may wait for that.
    pub(crate) fn wake(&self) {
        self.idle.set(false);
        if self.leaving.replace(false) {
            self.residency.leaving.set(self.residency.leaving.get() - self.bytes.get());
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
        residency.bytes.set(residency.bytes.get() - before + bytes);
        if self.leaving.get() {
            residency.leaving.set(residency.leaving.get() - before + bytes);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.set_bytes(0);
        self.residency.room.notify();
    }
}
