//! A simulated machine: virtual time, tasks in a seeded order, and a disk, on one thread.
//!
//! Every choice comes from one generator, and everything that happens is folded into one hash: a
//! seed is a whole life. Processes live in the machine, cores in processes, tasks on cores: see `process`.
//!
//! Invariants: time never goes back, and stands still while a task can run; nothing of the world is borrowed while a
//! task is polled, woken or dropped, for that may use the world.

mod process;

use std::cell::{Cell, RefCell};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::future::Future;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use dormouse_engine::Host;

use crate::disk::{Damage, DiskFaults, DiskImage, DiskState, Fate, Landing, Op};
use crate::net::SimNet;
use crate::random::Random;
use crate::trace::Trace;

use process::Spawned;
pub use process::{Process, SimEnv};

/// What happens at a moment of virtual time.
pub(crate) enum Event {
    Wake(Waker),
    Disk(u64),
    Land(Landing),
    /// The core goes on.
    Resume(u64),
    /// The task is ready, and its core hears of it now.
    Ready(u64),
    /// Somebody may have waited for this moment.
    Net(SimNet),
}

/// An event, and its moment: the time in nanoseconds, and a number that no other has. The greatest comes first.
struct Due {
    moment: Reverse<(u64, u64)>,
    event: Event,
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.moment == other.moment
    }
}

impl Eq for Due {}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Due {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.moment.cmp(&other.moment)
    }
}

/// What one step of a world did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Polled a task.
    Polled,
    /// Moved time on.
    Advanced,
    /// Nothing is ready and nothing will ever happen, or the disk stands still.
    Idle,
}

pub(crate) struct Inner {
    now_ns: Cell<u64>,
    wall_jump_ms: Cell<i64>,
    pub(crate) random: RefCell<Random>,
    pub(crate) trace: RefCell<Trace>,
    ready: Arc<Mutex<Vec<u64>>>,
    runnable: RefCell<Vec<u64>>,
    tasks: RefCell<BTreeMap<u64, Spawned>>,
    next_id: Cell<u64>,
    events: RefCell<BinaryHeap<Due>>,
    /// Each with whether it is over.
    turn_ends: RefCell<Vec<(Rc<Cell<bool>>, Waker)>>,
    panics: RefCell<Vec<String>>,
    /// A core stands still once in so many polls; 0 for never.
    stalls: Cell<u64>,
    /// A wake-up from another core takes a while once in so many; 0 for never.
    late_wakes: Cell<u64>,
    /// The core of the task that was polled last.
    polled_core: Cell<u64>,
    /// Cores that stand still, each with its tasks that are ready.
    stalled: RefCell<BTreeMap<u64, Vec<u64>>>,
    pub(crate) disk: RefCell<DiskState>,
}

impl Inner {
    pub(crate) fn next_id(&self) -> u64 {
        let id = self.next_id.get();
        self.next_id.set(id + 1);
        id
    }

    pub(crate) fn after(&self, delay_ns: u64, event: Event) {
        let moment = Reverse((self.now_ns.get() + delay_ns, self.next_id()));
        self.events.borrow_mut().push(Due { moment, event });
    }
}

/// One simulated machine. Cheap to clone.
#[derive(Clone)]
pub struct World(pub(crate) Rc<Inner>);

impl World {
    /// A machine with an empty disk; everything that happens in it follows from `seed`.
    pub fn new(seed: u64, faults: DiskFaults) -> Self {
        let mut random = Random::new(seed);
        let disk = DiskState::new(faults, random.fork());
        Self(Rc::new(Inner {
            now_ns: Cell::new(0),
            wall_jump_ms: Cell::new(0),
            random: RefCell::new(random),
            trace: RefCell::default(),
            ready: Arc::default(),
            runnable: RefCell::default(),
            tasks: RefCell::default(),
            next_id: Cell::new(1),
            events: RefCell::default(),
            turn_ends: RefCell::default(),
            panics: RefCell::default(),
            stalls: Cell::new(0),
            late_wakes: Cell::new(0),
            polled_core: Cell::new(0),
            stalled: RefCell::default(),
            disk: RefCell::new(disk),
        }))
    }

    /// Another machine, with a copy of the disk of one whose processes are all dead.
    pub fn of_image(seed: u64, faults: DiskFaults, image: &DiskImage) -> Self {
        let world = Self::new(seed, faults);
        world.0.disk.borrow_mut().put(image);
        world
    }

    /// The disk as it is now, with the writes that are on their way.
    pub fn disk_image(&self) -> DiskImage {
        self.0.disk.borrow().image()
    }

    /// Changes that the disk carried out so far: writes, syncs, allocations, and creations, renames,
    /// removals and syncs of names. Those that failed count too.
    pub fn disk_changes(&self) -> u64 {
        self.0.disk.borrow().changes()
    }

    /// The machine stands still when the disk would carry out this change, counted from 0: it and
    /// what else is on its way never happen. What there is to do then is to copy the disk, or to cut
    /// the power, which ends the standstill.
    pub fn stop_at_disk_change(&self, change: u64) {
        self.0.disk.borrow_mut().stop_at(change);
    }

    /// Whether it stands still.
    pub fn stands_still(&self) -> bool {
        self.0.disk.borrow().stopped()
    }

    /// Starts a process.
    pub fn process(&self) -> Process {
        Process { world: self.clone(), id: self.0.next_id() }
    }

    /// Cuts the power: every process dies, and the disk keeps what a device may keep.
    pub fn power_cut(&self) {
        self.cut_power(DiskState::power_cut);
    }

    /// Cuts the power, and the disk keeps what `fate` says.
    pub fn power_cut_with(&self, fate: &mut dyn Fate) {
        self.cut_power(|disk| disk.power_cut_with(fate));
    }

    fn cut_power(&self, cut: impl FnOnce(&mut DiskState) -> Vec<Op>) {
        self.drop_tasks(|_| true);
        // What dead processes left in flight and what timers would have done is gone too.
        let events = std::mem::take(&mut *self.0.events.borrow_mut());
        drop(events);
        self.0.turn_ends.borrow_mut().clear();
        self.0.stalled.borrow_mut().clear();
        let ops = cut(&mut self.0.disk.borrow_mut());
        drop(ops);
        self.0.trace.borrow_mut().number(0xdead);
    }

    fn drop_tasks(&self, dies: impl Fn(&Spawned) -> bool) {
        let dead: Vec<Spawned> = {
            let mut tasks = self.0.tasks.borrow_mut();
            let ids: Vec<u64> =
                tasks.iter().filter(|(_, task)| dies(task)).map(|(id, _)| *id).collect();
            ids.iter().map(|id| tasks.remove(id).expect("listed above")).collect()
        };
        // Dropping a task may wake others and close files, so nothing is borrowed here.
        drop(dead);
    }

    /// Does one thing: polls a ready task, or moves time to the next event.
    pub fn step(&self) -> Step {
        let inner = &self.0;
        if inner.disk.borrow().stopped() {
            return Step::Idle;
        }
        let task = {
            self.hear_of_ready();
            let mut runnable = inner.runnable.borrow_mut();
            let mut random = inner.random.borrow_mut();
            // A turn ends when nothing is ready, or now and then before (its budget).
            let turn_ends = inner.turn_ends.borrow().len();
            if turn_ends > 0 && (runnable.is_empty() || random.one_in(8)) {
                let index = random.index(turn_ends);
                let (over, waker) = inner.turn_ends.borrow_mut().swap_remove(index);
                drop((random, runnable));
                over.set(true);
                waker.wake();
                return Step::Advanced;
            }
            match runnable.is_empty() {
                true => None,
                false => {
                    let index = random.index(runnable.len());
                    Some(runnable.swap_remove(index))
                }
            }
        };
        match task {
            Some(id) => self.poll(id),
            None => self.advance(),
        }
    }

    /// Moves the tasks that were woken among those that can run; some of those that another core
    /// woke only after a while, as mail takes that is on its way.
    fn hear_of_ready(&self) {
        let inner = &self.0;
        let mut runnable = inner.runnable.borrow_mut();
        let mut woken = inner.ready.lock().expect("one thread");
        let one_in = inner.late_wakes.get();
        if one_in == 0 {
            return runnable.append(&mut woken);
        }
        let tasks = inner.tasks.borrow();
        let mut random = inner.random.borrow_mut();
        for id in woken.drain(..) {
            let elsewhere = |task: &Spawned| task.core != inner.polled_core.get();
            match tasks.get(&id).is_some_and(elsewhere) && random.one_in(one_in) {
                true => inner.after(random.between(1_000, 2_000_000), Event::Ready(id)),
                false => runnable.push(id),
            }
        }
    }

    fn poll(&self, id: u64) -> Step {
        let (core, mut future, queued) = {
            let mut tasks = self.0.tasks.borrow_mut();
            let Some(task) = tasks.get_mut(&id) else { return Step::Advanced };
            if let Some(ready) = self.0.stalled.borrow_mut().get_mut(&task.core) {
                ready.push(id);
                return Step::Advanced;
            }
            let future = task.future.take().expect("only this takes it, and puts it back");
            (task.core, future, task.waker.clone())
        };
        self.stall(core);
        self.0.polled_core.set(core);
        {
            let mut trace = self.0.trace.borrow_mut();
            trace.number(self.0.now_ns.get());
            trace.number(id);
        }
        queued.queued.store(false, Ordering::Relaxed);
        let waker = Waker::from(queued);
        let mut context = Context::from_waker(&waker);
        let polled = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            future.as_mut().poll(&mut context)
        }));
        if let Ok(Poll::Pending) = polled {
            // Nobody drops tasks while one is polled.
            let mut tasks = self.0.tasks.borrow_mut();
            tasks.get_mut(&id).expect("it is polled").future = Some(future);
            return Step::Polled;
        }
        if let Err(panic) = polled {
            let text = panic
                .downcast_ref::<String>()
                .cloned()
                .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            self.0.panics.borrow_mut().push(text.unwrap_or_else(|| "a panic".to_owned()));
        }
        let ended = self.0.tasks.borrow_mut().remove(&id);
        // Which may wake others and close files, so nothing is borrowed here.
        drop((future, ended));
        Step::Polled
    }

    /// Now and then a core stands still after a poll, as one does that the system puts aside.
    fn stall(&self, core: u64) {
        let (stalls, mut random) = (self.0.stalls.get(), self.0.random.borrow_mut());
        if stalls > 0 && random.one_in(stalls) {
            self.0.stalled.borrow_mut().insert(core, Vec::new());
            self.0.after(random.between(10_000, 20_000_000), Event::Resume(core));
        }
    }

    fn advance(&self) -> Step {
        let Some(due) = self.0.events.borrow_mut().pop() else { return Step::Idle };
        let Due { moment: Reverse((at, _)), event } = due;
        assert!(at >= self.0.now_ns.get());
        self.0.now_ns.set(at);
        match event {
            Event::Wake(waker) => waker.wake(),
            Event::Disk(op) => crate::disk::complete(&self.0, op),
            Event::Net(net) => net.ring(),
            Event::Ready(id) => self.0.runnable.borrow_mut().push(id),
            Event::Land(landing) => self.0.disk.borrow_mut().land(landing),
            Event::Resume(core) => {
                let ready = self.0.stalled.borrow_mut().remove(&core).unwrap_or_default();
                self.0.runnable.borrow_mut().extend(ready);
            }
        }
        Step::Advanced
    }

    /// Runs `future` as a task of `env` and steps until it is done; `None` if it never will be
    /// within `steps_max` steps.
    pub fn block_on<T: 'static>(
        &self,
        env: &SimEnv,
        steps_max: u64,
        future: impl Future<Output = T> + 'static,
    ) -> Option<T> {
        let slot: Rc<RefCell<Option<T>>> = Rc::default();
        let result = slot.clone();
        env.spawn("block_on", async move {
            let value = future.await;
            *result.borrow_mut() = Some(value);
        });
        for _ in 0..steps_max {
            if slot.borrow().is_some() || self.step() == Step::Idle {
                break;
            }
        }
        slot.borrow_mut().take()
    }

    /// Panics of tasks since the last call: always bugs.
    pub fn take_panics(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.panics.borrow_mut())
    }

    /// Folds what a client sees into the hash.
    pub fn fold(&self, bytes: &[u8]) {
        self.0.trace.borrow_mut().bytes(bytes);
    }

    /// The hash of everything so far.
    pub fn trace_hash(&self) -> u128 {
        self.0.trace.borrow().value()
    }

    /// Writes that are on their way to the disk now.
    pub fn writes_in_flight(&self) -> usize {
        self.0.disk.borrow().writes_in_flight()
    }

    /// Files that are open, by processes that live and by what dead ones left in flight.
    pub fn open_files(&self) -> usize {
        self.0.disk.borrow().open_files()
    }

    /// From now on the disk does this wrong.
    pub fn set_faults(&self, faults: DiskFaults) {
        self.0.disk.borrow_mut().set_faults(faults);
    }

    /// From now on a core stands still once in so many polls; 0 for never.
    pub fn set_stalls(&self, one_in: u64) {
        self.0.stalls.set(one_in);
    }

    /// From now on a wake-up from another core takes a while once in so many; 0 for never.
    pub fn set_late_wakes(&self, one_in: u64) {
        self.0.late_wakes.set(one_in);
    }

    /// The names of the tasks that a core has, without the one that is polled.
    pub fn tasks_of(&self, core: &SimEnv) -> Vec<&'static str> {
        let tasks = self.0.tasks.borrow();
        let there = tasks.values().filter(|task| task.core == core.core && task.future.is_some());
        there.map(|task| task.name).collect()
    }

    /// From now on the disk remembers what each sector held before, for [`Damage::Stale`].
    pub fn keep_history(&self) {
        self.0.disk.borrow_mut().keep_history();
    }

    /// Sectors of 512 bytes that hold something durable: file and number.
    pub fn used_sectors(&self) -> Vec<(String, usize)> {
        self.0.disk.borrow().used_sectors()
    }

    /// Damages a sector.
    ///
    /// # Panics
    /// If there is no such file.
    pub fn damage(&self, sector: &(String, usize), damage: &Damage) {
        self.0.disk.borrow_mut().damage(sector, damage);
    }

    /// All files as they are visible now, by name.
    pub fn save(&self) -> BTreeMap<String, Vec<u8>> {
        self.0.disk.borrow().save()
    }

    /// Puts these files, all durable, in the place of all that are there: saved ones, without some,
    /// or changed, or of different moments. Whoever has a file open keeps the old one.
    pub fn bring_back(&self, files: &BTreeMap<String, Vec<u8>>) {
        self.0.disk.borrow_mut().bring_back(files);
    }

    /// Moves the wall clock.
    pub fn jump_wall_clock(&self, by_ms: i64) {
        self.0.wall_jump_ms.set(self.0.wall_jump_ms.get() + by_ms);
    }

    /// Virtual time since the world's start.
    pub fn now(&self) -> Duration {
        Duration::from_nanos(self.0.now_ns.get())
    }
}
