//! What lives in a simulated machine: processes, their cores, and the tasks on these, with all that a core offers
//! its tasks.
//!
//! Invariants: a task is woken by being put among the ready ones of its world, once until it is polled; it dies with
//! its process. What a task gets of time, randomness and the disk is its world's alone.

use std::cell::Cell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Poll, Wake, Waker};
use std::time::Duration;

use dormouse_engine::{Env, Host, Work};

use super::{Event, World};
use crate::disk::SimDisk;

/// Wall clock at a world's start, in milliseconds since 1970.
const WALL_START_MS: u64 = 1_700_000_000_000;

/// How long blocking work takes at most.
const BLOCKING_NS_MAX: u64 = 50_000_000;
/// And how long where it need not wait for a thread.
const BLOCKING_NS_SOON: u64 = 20_000;

type Task = Pin<Box<dyn Future<Output = ()>>>;

/// Wakes one task by putting it among the ready ones.
pub(super) struct TaskWaker {
    id: u64,
    pub(super) queued: AtomicBool,
    ready: Arc<Mutex<Vec<u64>>>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.queued.swap(true, Ordering::Relaxed) {
            self.ready.lock().expect("one thread").push(self.id);
        }
    }
}

/// A task, and where it runs.
pub(super) struct Spawned {
    pub(super) name: &'static str,
    process: u64,
    pub(super) core: u64,
    pub(super) waker: Arc<TaskWaker>,
    /// Not there while it is polled.
    pub(super) future: Option<Task>,
}

/// A simulated process.
#[derive(Clone)]
pub struct Process {
    pub(super) world: World,
    pub(super) id: u64,
}

impl Process {
    /// The process's access to the world, for one of its cores.
    pub fn core(&self) -> SimEnv {
        let disk = SimDisk::new(self.world.clone(), self.id);
        let core = self.world.0.next_id();
        SimEnv { world: self.world.clone(), process: self.id, core, disk }
    }

    /// SIGKILL: its tasks are gone; what it had in flight lands later or never, piece by piece,
    /// and keeps the files locked until then (E8).
    pub fn kill(&self) {
        let id = self.id;
        self.world.drop_tasks(|task| task.process == id);
        let inner = &self.world.0;
        let (landings, dropped) = inner.disk.borrow_mut().kill(id);
        drop(dropped);
        for (delay_ns, landing) in landings {
            inner.after(delay_ns, Event::Land(landing));
        }
        inner.trace.borrow_mut().number(0xd1ed);
    }
}

/// [`Env`] of a simulated core.
#[derive(Clone)]
pub struct SimEnv {
    world: World,
    process: u64,
    pub(super) core: u64,
    disk: SimDisk,
}

impl SimEnv {
    /// For timers of the disk, which spawns nothing.
    pub(crate) fn for_disk(disk: SimDisk, world: World, process: u64) -> Self {
        Self { world, process, core: 0, disk }
    }

    /// The world that the core is in.
    pub fn world(&self) -> &World {
        &self.world
    }
}

impl Env for SimEnv {
    type Disk = SimDisk;

    fn disk(&self) -> &SimDisk {
        &self.disk
    }
}

impl Host for SimEnv {
    fn now(&self) -> Duration {
        self.world.now()
    }

    fn wall_ms(&self) -> u64 {
        let elapsed = self.world.0.now_ns.get() / 1_000_000;
        (WALL_START_MS + elapsed).saturating_add_signed(self.world.0.wall_jump_ms.get())
    }

    fn sleep(&self, duration: Duration) -> impl Future<Output = ()> + 'static {
        let world = self.world.clone();
        let delay = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX / 2);
        let until = world.0.now_ns.get().saturating_add(delay);
        let mut armed: Option<Waker> = None;
        std::future::poll_fn(move |context| {
            let now = world.0.now_ns.get();
            if now >= until {
                return Poll::Ready(());
            }
            // Another task may go on waiting for it.
            if !armed.as_ref().is_some_and(|waker| waker.will_wake(context.waker())) {
                armed = Some(context.waker().clone());
                world.0.after(until - now, Event::Wake(context.waker().clone()));
            }
            Poll::Pending
        })
    }

    fn random(&self) -> u64 {
        self.world.0.random.borrow_mut().bits()
    }

    fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + 'static) {
        let inner = &self.world.0;
        let id = inner.next_id();
        let ready = inner.ready.clone();
        let waker = Arc::new(TaskWaker { id, queued: AtomicBool::new(false), ready });
        waker.wake_by_ref();
        let (process, core) = (self.process, self.core);
        let future: Option<Task> = Some(Box::pin(task));
        let spawned = Spawned { name, process, core, waker, future };
        inner.tasks.borrow_mut().insert(id, spawned);
    }

    fn turn_end(&self) -> impl Future<Output = ()> + 'static {
        let world = self.world.clone();
        let over = Rc::new(Cell::new(false));
        std::future::poll_fn(move |context| {
            // Something else may have woken the task.
            if over.get() {
                return Poll::Ready(());
            }
            let waits = (over.clone(), context.waker().clone());
            let mut turn_ends = world.0.turn_ends.borrow_mut();
            match turn_ends.iter_mut().find(|(its, _)| Rc::ptr_eq(its, &over)) {
                Some(known) => *known = waits,
                None => turn_ends.push(waits),
            }
            Poll::Pending
        })
    }

    /// On a core of its own in the same process, after a while.
    fn spawn_blocking(&self, work: Work) -> dormouse_engine::Result<()> {
        let thread = Self { core: self.world.0.next_id(), ..self.clone() };
        let delay_ns = {
            let mut random = self.world.0.random.borrow_mut();
            // A thread that is free begins before a disk has written anything.
            let most = if random.one_in(2) { BLOCKING_NS_SOON } else { BLOCKING_NS_MAX };
            random.between(1_000, most)
        };
        let begins = thread.sleep(Duration::from_nanos(delay_ns));
        thread.spawn("blocking", async move {
            begins.await;
            work();
        });
        Ok(())
    }
}
