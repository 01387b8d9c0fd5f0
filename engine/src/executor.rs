//! The run queue of one core: the tasks of engine, cache and scheduler, inside one task of the
//! runtime.
//!
//! A *turn* polls ready tasks until none is ready or [`TURN_POLLS`] are done; then whoever waits
//! for the turn's end goes on, once more if all that there was is done, and the core parks. It parks in
//! every turn, also when tasks are always ready, because tokio-uring submits only when its thread parks: then the park
//! ends at once. While nothing is ready the core sleeps until a waker runs, on this thread or another.
//!
//! Work that nobody waits for is done while there is no other: one task goes on in each turn after
//! which nothing is ready, also after a park that looked what the disk has answered; or in every
//! [`BUSY_TURNS`]th turn, where something always is.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use crossbeam_queue::SegQueue;

use crate::park::Park;

/// Polls in one turn at most.
pub const TURN_POLLS: usize = 256;

/// How often a turn ends that leaves nothing to do: who waits for its end commits, and then waits who writes that. The
/// disk has it a park earlier, some five system calls.
const TURN_ENDS: usize = 2;

/// Turns after which a task that waits for the core to be idle goes on in spite of others.
pub const BUSY_TURNS: u32 = 16;

type Future0 = Pin<Box<dyn Future<Output = ()>>>;

/// What other threads may touch.
struct Remote {
    /// Of all executors there ever were in the process, which: looked up faster than a thread's id.
    number: u64,
    /// Tasks woken from other threads.
    woken: SegQueue<usize>,
    park: Park,
}

struct TaskWaker {
    index: usize,
    queued: AtomicBool,
    remote: Arc<Remote>,
}

/// The next executor's number.
static NEXT: AtomicU64 = AtomicU64::new(1);

thread_local! {
    /// Tasks of this thread's executor that were woken on this thread.
    static READY: RefCell<VecDeque<usize>> = const { RefCell::new(VecDeque::new()) };
    /// Who made way for others until the next turn of this thread's executor.
    static NEXT_TURN: RefCell<Vec<Waker>> = const { RefCell::new(Vec::new()) };
    /// Whether this thread's executor polls tasks now.
    static IN_TURN: Cell<bool> = const { Cell::new(false) };
    /// The number of this thread's executor; 0 for none.
    static OWN: Cell<u64> = const { Cell::new(0) };
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.queued.swap(true, Ordering::AcqRel) {
            return;
        }
        if OWN.get() == self.remote.number {
            READY.with_borrow_mut(|ready| ready.push_back(self.index));
        } else {
            self.remote.woken.push(self.index);
        }
        self.remote.park.unpark();
    }
}

struct Task {
    name: &'static str,
    future: Option<Future0>,
    waker: Arc<TaskWaker>,
}

/// One wait for a lull. The other handle is its future's: alone, nobody waits any more.
#[derive(Default)]
struct Lull {
    came: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

/// Has a task of this thread's core make way until its next turn, so that the core looks for I/O before: a task that
/// only wakes itself goes on in this one. Outside of a core's turn it is woken at once.
pub fn wake_next_turn(waker: &Waker) {
    match IN_TURN.get() {
        false => waker.wake_by_ref(),
        true => NEXT_TURN.with_borrow_mut(|next| next.push(waker.clone())),
    }
}

/// One core's tasks. Cheap to clone; one for each thread.
#[derive(Clone)]
pub struct Executor(Rc<Inner>);

struct Inner {
    tasks: RefCell<Vec<Option<Task>>>,
    free: RefCell<Vec<usize>>,
    turn_ends: RefCell<Vec<Waker>>,
    /// Those who wait for a lull, the first first.
    idle: RefCell<VecDeque<Rc<Lull>>>,
    /// Ends of turns that somebody waited for.
    ends: Cell<u64>,
    /// Turns since one of `idle` went on.
    busy_turns: Cell<u32>,
    polls: Cell<u64>,
    turns: Cell<u64>,
    remote: Arc<Remote>,
}

impl Default for Executor {
    fn default() -> Self {
        Self::new()
    }
}

impl Executor {
    /// The run queue of the current thread.
    pub fn new() -> Self {
        READY.with_borrow_mut(VecDeque::clear);
        NEXT_TURN.with_borrow_mut(Vec::clear);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        OWN.set(number);
        let remote = Arc::new(Remote { number, woken: SegQueue::new(), park: Park::new() });
        Self(Rc::new(Inner {
            tasks: RefCell::default(),
            free: RefCell::default(),
            turn_ends: RefCell::default(),
            idle: RefCell::default(),
            ends: Cell::new(0),
            busy_turns: Cell::new(0),
            polls: Cell::new(0),
            turns: Cell::new(0),
            remote,
        }))
    }

    /// Adds a task. A panic ends it alone and is logged with its name.
    pub fn spawn(&self, name: &'static str, future: impl Future<Output = ()> + 'static) {
        self.spawn_boxed(name, Box::pin(future));
    }

    /// The same of one that is in a box already.
    pub fn spawn_boxed(&self, name: &'static str, future: Pin<Box<dyn Future<Output = ()>>>) {
        let mut tasks = self.0.tasks.borrow_mut();
        let index = self.0.free.borrow_mut().pop().unwrap_or(tasks.len());
        let remote = self.0.remote.clone();
        let waker = Arc::new(TaskWaker { index, queued: AtomicBool::new(false), remote });
        let task = Task { name, future: Some(future), waker: waker.clone() };
        match tasks.get_mut(index) {
            Some(slot) => *slot = Some(task),
            None => tasks.push(Some(task)),
        }
        waker.wake_by_ref();
    }

    /// Returns at the end of this turn: of all who wait, at the same one. Something else may wake the task before.
    pub fn turn_end(&self) -> impl Future<Output = ()> + 'static {
        let inner = self.0.clone();
        let mut waits: Option<(u64, Waker)> = None;
        std::future::poll_fn(move |context| {
            let now = inner.ends.get();
            let (since, known) = match &waits {
                Some((since, waker)) => (*since, waker.will_wake(context.waker())),
                None => (now, false),
            };
            if since != now {
                return Poll::Ready(());
            }
            if !known {
                inner.turn_ends.borrow_mut().push(context.waker().clone());
                waits = Some((since, context.waker().clone()));
            }
            Poll::Pending
        })
    }

    /// Returns when nothing else is ready, or after [`BUSY_TURNS`]. A lull is for one of those who wait; none for
    /// those that something else woke in it.
    pub fn idle(&self) -> impl Future<Output = ()> + 'static {
        let inner = self.0.clone();
        let mut waits: Option<Rc<Lull>> = None;
        std::future::poll_fn(move |context| {
            let lull = waits.get_or_insert_with(|| {
                let lull = Rc::new(Lull::default());
                inner.idle.borrow_mut().push_back(lull.clone());
                lull
            });
            if lull.came.get() {
                return Poll::Ready(());
            }
            lull.waker.replace(Some(context.waker().clone()));
            Poll::Pending
        })
    }

    /// Turns so far.
    pub fn turns(&self) -> u64 {
        self.0.turns.get()
    }

    /// Polls tasks until `main` is done; panics if `main` panics. `park_at_once` must let the thread's runtime park and
    /// return without waiting for anything else.
    pub async fn run<T: 'static>(
        &self,
        main: impl Future<Output = T> + 'static,
        mut park_at_once: impl AsyncFnMut(),
    ) -> T {
        let slot: Rc<RefCell<Option<T>>> = Rc::default();
        let result = slot.clone();
        self.spawn("main", async move {
            let value = main.await;
            *result.borrow_mut() = Some(value);
        });
        loop {
            self.turn();
            if let Some(value) = slot.borrow_mut().take() {
                return value;
            }
            // The task holds the other half until it ends.
            assert!(Rc::strong_count(&slot) > 1, "the core's main task panicked");
            match self.has_ready() || self.has_idle() {
                true => park_at_once().await,
                false => self.park().await,
            }
            self.wake_idle();
        }
    }

    fn has_idle(&self) -> bool {
        !self.0.idle.borrow().is_empty()
    }

    /// Lets one task go on that waited for this, if nothing else is ready or it has waited for long.
    fn wake_idle(&self) {
        let busy_turns = self.0.busy_turns.get() + 1;
        if self.has_ready() && busy_turns < BUSY_TURNS {
            return self.0.busy_turns.set(busy_turns);
        }
        self.0.busy_turns.set(0);
        if let Some(lull) = self.next_idle() {
            lull.came.set(true);
            lull.waker.take().into_iter().for_each(Waker::wake);
        }
    }

    /// The first of those who still wait.
    fn next_idle(&self) -> Option<Rc<Lull>> {
        let mut idle = self.0.idle.borrow_mut();
        std::iter::from_fn(|| idle.pop_front()).find(|lull| Rc::strong_count(lull) > 1)
    }

    /// Drops all tasks.
    pub fn clear(&self) {
        let tasks = std::mem::take(&mut *self.0.tasks.borrow_mut());
        self.0.free.borrow_mut().clear();
        drop(tasks);
    }

    fn turn(&self) {
        self.0.turns.set(self.0.turns.get() + 1);
        IN_TURN.set(true);
        self.turn_inside();
        IN_TURN.set(false);
    }

    fn turn_inside(&self) {
        NEXT_TURN.take().into_iter().for_each(Waker::wake);
        self.poll_ready(TURN_POLLS);
        for _ in 0..TURN_ENDS {
            let waiting = std::mem::take(&mut *self.0.turn_ends.borrow_mut());
            if waiting.is_empty() {
                return;
            }
            let count = waiting.len();
            self.0.ends.set(self.0.ends.get() + 1);
            waiting.into_iter().for_each(Waker::wake);
            // They do their work now, so that its I/O leaves with this park.
            self.poll_ready(count + TURN_POLLS);
            if self.has_woken() {
                return;
            }
        }
    }

    fn poll_ready(&self, polls_max: usize) {
        for _ in 0..polls_max {
            while let Some(index) = self.0.remote.woken.pop() {
                READY.with_borrow_mut(|ready| ready.push_back(index));
            }
            let Some(index) = READY.with_borrow_mut(VecDeque::pop_front) else { return };
            self.poll(index);
        }
    }

    fn poll(&self, index: usize) {
        let taken =
            self.0.tasks.borrow_mut().get_mut(index).and_then(Option::as_mut).and_then(|task| {
                // A swap, so that what a waker did before it found the flag set is seen by this poll.
                task.waker.queued.swap(false, Ordering::AcqRel);
                task.future.take().map(|future| (future, task.waker.clone(), task.name))
            });
        let Some((mut future, waker, name)) = taken else { return };
        self.0.polls.set(self.0.polls.get() + 1);
        let task_waker = Waker::from(waker);
        let mut context = Context::from_waker(&task_waker);
        let polled = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            future.as_mut().poll(&mut context)
        }));
        if let Ok(Poll::Pending) = polled {
            let mut tasks = self.0.tasks.borrow_mut();
            tasks[index].as_mut().expect("only this ends a task").future = Some(future);
            return;
        }
        // What it leaves behind may panic too.
        let dropped = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(future)));
        if polled.is_err() || dropped.is_err() {
            tracing::error!(task = name, "a task panicked");
        }
        // A waker that is still about finds the next task of this index at worst: a vain poll.
        self.0.tasks.borrow_mut()[index] = None;
        self.0.free.borrow_mut().push(index);
    }

    fn has_woken(&self) -> bool {
        READY.with_borrow(|ready| !ready.is_empty()) || !self.0.remote.woken.is_empty()
    }

    fn has_ready(&self) -> bool {
        // Who began to wait for a turn's end while the last one ended gets one of its own.
        self.has_woken()
            || !self.0.turn_ends.borrow().is_empty()
            || NEXT_TURN.with_borrow(|next| !next.is_empty())
    }

    /// Sleeps until a waker runs.
    async fn park(&self) {
        let park = &self.0.remote.park;
        std::future::poll_fn(|context| park.poll(context.waker(), || self.has_ready())).await;
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use futures_util::future::select;

    use super::*;

    type Log = Rc<RefCell<Vec<u8>>>;

    /// A task that notes each lull that it waited for; gives what wakes it.
    fn waiter(executor: &Executor, name: u8, log: &Log) -> Waker {
        let waker: Rc<Cell<Option<Waker>>> = Rc::default();
        let (inside, log, its) = (executor.clone(), log.clone(), waker.clone());
        executor.spawn("waiter", async move {
            std::future::poll_fn(|context| {
                its.set(Some(context.waker().clone()));
                Poll::Ready(())
            })
            .await;
            loop {
                inside.idle().await;
                log.borrow_mut().push(name);
            }
        });
        executor.turn();
        waker.take().expect("it was polled")
    }

    #[test]
    fn a_lull_is_for_one_of_those_who_wait_whatever_else_wakes_the_others() {
        let (executor, log) = (Executor::new(), Log::default());
        let _first = waiter(&executor, 1, &log);
        let second = waiter(&executor, 2, &log);
        for expected in [&[1][..], &[1, 2], &[1, 2, 1]] {
            executor.wake_idle();
            second.wake_by_ref();
            executor.turn();
            assert_eq!(*log.borrow(), expected);
        }
    }

    #[test]
    fn what_panics_while_it_is_dropped_ends_its_task_alone() {
        struct Panics;
        impl Future for Panics {
            type Output = ();
            fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
                Poll::Ready(())
            }
        }
        impl Drop for Panics {
            fn drop(&mut self) {
                std::panic::resume_unwind(Box::new("as planned"));
            }
        }
        let (executor, other) = (Executor::new(), Rc::new(Cell::new(false)));
        let set = other.clone();
        executor.spawn("panics", Panics);
        executor.spawn("other", async move { set.set(true) });
        executor.turn();
        assert!(other.get());
    }

    #[test]
    fn a_turn_ends_twice_if_nothing_else_is_to_be_done() {
        let (executor, ends) = (Executor::new(), Rc::new(Cell::new(0)));
        let (inside, counted) = (executor.clone(), ends.clone());
        executor.spawn("waiter", async move {
            loop {
                inside.turn_end().await;
                counted.set(counted.get() + 1);
            }
        });
        for turn in 1..4 {
            executor.turn();
            assert_eq!(ends.get(), turn * TURN_ENDS);
            assert!(executor.has_ready(), "one gets its end in the next turn");
        }
    }

    #[test]
    fn who_makes_way_goes_on_in_the_next_turn() {
        let (executor, polls) = (Executor::new(), Rc::new(Cell::new(0)));
        let counted = polls.clone();
        executor.spawn("busy", async move {
            std::future::poll_fn(|context| {
                counted.set(counted.get() + 1);
                wake_next_turn(context.waker());
                Poll::<()>::Pending
            })
            .await;
        });
        for turn in 1..4 {
            executor.turn();
            assert_eq!(polls.get(), turn);
            assert!(executor.has_ready(), "the core does not sleep on it");
        }
    }

    #[test]
    fn one_who_waits_no_more_takes_no_lull_from_others() {
        let (executor, log) = (Executor::new(), Log::default());
        drop(executor.idle());
        let polled_once = select(executor.idle().boxed_local(), std::future::ready(()));
        assert!(polled_once.now_or_never().is_some());
        let _other = waiter(&executor, 1, &log);
        executor.wake_idle();
        executor.turn();
        assert_eq!(*log.borrow(), [1]);
    }
}
