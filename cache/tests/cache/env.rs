//! A core with a queue of ready tasks and a clock that moves when the test says so; no disk.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use dormouse_engine::Host;

type Task = Pin<Box<dyn Future<Output = ()>>>;

/// One core.
#[derive(Clone, Default)]
pub(crate) struct TestEnv(Rc<Core>);

#[derive(Default)]
struct Core {
    tasks: RefCell<BTreeMap<u64, Task>>,
    next: Cell<u64>,
    ready: Arc<Mutex<VecDeque<u64>>>,
    turn_ends: RefCell<Vec<(Rc<Cell<bool>>, Waker)>>,
    /// Picks the ready task: 0 the oldest, else a seed.
    seed: Cell<u64>,
    now: Cell<Duration>,
    sleepers: RefCell<Vec<Waker>>,
}

struct TaskWaker {
    task: u64,
    ready: Arc<Mutex<VecDeque<u64>>>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        let mut ready = self.ready.lock().unwrap();
        if !ready.contains(&self.task) {
            ready.push_back(self.task);
        }
    }
}

impl TestEnv {
    /// A core that picks among its ready tasks by a seed.
    pub(crate) fn seeded(seed: u64) -> Self {
        let env = Self::default();
        env.0.seed.set(seed | 1);
        env
    }

    /// Runs turns until no task is ready at the end of one.
    pub(crate) fn run(&self) {
        loop {
            while let Some(task) = self.pick() {
                self.poll(task);
            }
            let ended = std::mem::take(&mut *self.0.turn_ends.borrow_mut());
            if ended.is_empty() {
                return;
            }
            for (over, waker) in ended {
                over.set(true);
                waker.wake();
            }
        }
    }

    /// Lets time go by, and runs what it wakes.
    pub(crate) fn pass(&self, time: Duration) {
        self.0.now.set(self.0.now.get() + time);
        let sleepers = std::mem::take(&mut *self.0.sleepers.borrow_mut());
        sleepers.into_iter().for_each(Waker::wake);
        self.run();
    }

    /// Tasks that have not ended.
    pub(crate) fn tasks(&self) -> usize {
        self.0.tasks.borrow().len()
    }

    /// Drops all tasks, as a core that goes down.
    pub(crate) fn drop_tasks(&self) {
        let tasks = std::mem::take(&mut *self.0.tasks.borrow_mut());
        drop(tasks);
    }

    fn pick(&self) -> Option<u64> {
        let mut ready = self.0.ready.lock().unwrap();
        let seed = self.0.seed.get();
        if seed == 0 || ready.is_empty() {
            return ready.pop_front();
        }
        let next =
            seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0.seed.set(next);
        let place = usize::try_from(next >> 33).unwrap() % ready.len();
        ready.remove(place)
    }

    fn poll(&self, id: u64) {
        let Some(mut task) = self.0.tasks.borrow_mut().remove(&id) else { return };
        let waker = Waker::from(Arc::new(TaskWaker { task: id, ready: self.0.ready.clone() }));
        if task.as_mut().poll(&mut Context::from_waker(&waker)).is_pending() {
            self.0.tasks.borrow_mut().insert(id, task);
        }
    }
}

impl Host for TestEnv {
    fn now(&self) -> Duration {
        self.0.now.get()
    }

    fn wall_ms(&self) -> u64 {
        1
    }

    fn sleep(&self, duration: Duration) -> impl Future<Output = ()> + 'static {
        let (core, until) = (self.0.clone(), self.0.now.get() + duration);
        poll_fn(move |cx| {
            if core.now.get() >= until {
                return Poll::Ready(());
            }
            core.sleepers.borrow_mut().push(cx.waker().clone());
            Poll::Pending
        })
    }

    fn random(&self) -> u64 {
        unreachable!("the cache draws nothing at random")
    }

    fn spawn(&self, _name: &'static str, task: impl Future<Output = ()> + 'static) {
        let id = self.0.next.get();
        self.0.next.set(id + 1);
        self.0.tasks.borrow_mut().insert(id, Box::pin(task));
        self.0.ready.lock().unwrap().push_back(id);
    }

    fn turn_end(&self) -> impl Future<Output = ()> + 'static {
        let (core, over, mut asked) = (self.0.clone(), Rc::new(Cell::new(false)), false);
        poll_fn(move |cx| {
            if over.get() {
                return Poll::Ready(());
            }
            assert!(!asked, "nothing else wakes this task");
            asked = true;
            core.turn_ends.borrow_mut().push((over.clone(), cx.waker().clone()));
            Poll::Pending
        })
    }
}

/// Lets other ready tasks run.
pub(crate) async fn yield_now() {
    let mut yielded = false;
    poll_fn(|cx| match std::mem::replace(&mut yielded, true) {
        true => Poll::Ready(()),
        false => {
            cx.waker().wake_by_ref();
            Poll::Pending
        }
    })
    .await;
}
