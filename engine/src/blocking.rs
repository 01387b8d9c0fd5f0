//! Threads beside a core, for work that would block it.
//!
//! Invariants:
//!
//! - At most `threads_max` threads, started when there is work for them; at most `queue_max` pieces
//!   of work wait. More is refused.
//! - Work that was taken runs once, in the order of the calls, or is dropped when the pool ends;
//!   a thread never sleeps on work, nor through the end. What runs then goes on until it is done,
//!   and nobody waits for it.

use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use crate::env::Work;
use crate::error::{Error, Kind, Result};
use crate::sync::{Condvar, Mutex};

/// Threads of one core.
const THREADS_MAX: usize = 8;
/// Pieces of work of one core that wait for a thread.
const QUEUE_MAX: usize = 1024;
/// The code of the error of work that is refused.
const FULL: &str = "blocking-full";

struct State {
    queue: VecDeque<Work>,
    threads: usize,
    /// Threads that wait for work.
    idle: usize,
    ended: bool,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

/// What to do about work that was taken.
#[derive(Debug, PartialEq, Eq)]
enum Taken {
    /// A thread sees it.
    Waits,
    /// A further thread is to be started for it.
    WantsThread,
}

impl Shared {
    fn new() -> Self {
        let state = State { queue: VecDeque::new(), threads: 0, idle: 0, ended: false };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    /// Errors: `Overloaded`.
    fn submit(&self, work: Work, threads_max: usize, queue_max: usize) -> Result<Taken> {
        let mut state = self.state.lock().expect("no code panics under it");
        if state.queue.len() >= queue_max {
            let text = format!("{queue_max} pieces of blocking work wait for the core's threads");
            return Err(Error::coded(Kind::Overloaded, FULL, text));
        }
        state.queue.push_back(work);
        if state.idle < state.queue.len() && state.threads < threads_max {
            state.threads += 1;
            return Ok(Taken::WantsThread);
        }
        drop(state);
        self.changed.notify_one();
        Ok(Taken::Waits)
    }

    /// The next piece of work; `None` once the pool has ended.
    fn next(&self) -> Option<Work> {
        let mut state = self.state.lock().expect("no code panics under it");
        loop {
            if state.ended {
                return None;
            }
            if let Some(work) = state.queue.pop_front() {
                return Some(work);
            }
            state.idle += 1;
            state = self.changed.wait(state).expect("no code panics under it");
            state.idle -= 1;
        }
    }

    fn end(&self) {
        let left = {
            let mut state = self.state.lock().expect("no code panics under it");
            state.ended = true;
            std::mem::take(&mut state.queue)
        };
        self.changed.notify_all();
        drop(left);
    }

    /// A thread's life.
    fn run(&self) {
        while let Some(work) = self.next() {
            if catch_unwind(AssertUnwindSafe(work)).is_err() {
                tracing::error!("blocking work panicked");
            }
        }
    }
}

/// The threads of one core. Dropped, it ends them.
pub(crate) struct BlockingPool(Arc<Shared>);

impl BlockingPool {
    /// One without a thread.
    pub(crate) fn new() -> Self {
        Self(Arc::new(Shared::new()))
    }

    /// Has `work` run on a thread.
    ///
    /// Errors: `Overloaded`, code `blocking-full`; `Retry`: there is no thread, and none can be
    /// started. Nothing happened.
    pub(crate) fn submit(&self, work: Work) -> Result<()> {
        if self.0.submit(work, THREADS_MAX, QUEUE_MAX)? == Taken::Waits {
            return Ok(());
        }
        self.start_thread().or_else(|error| self.without_thread(error))
    }

    fn start_thread(&self) -> io::Result<()> {
        let shared = self.0.clone();
        let thread = std::thread::Builder::new().name("dormouse-blocking".to_owned());
        thread.spawn(move || shared.run()).map(drop)
    }

    /// The work that wanted the thread stays for another one, if there is one.
    fn without_thread(&self, error: io::Error) -> Result<()> {
        let mut state = self.0.state.lock().expect("no code panics under it");
        state.threads -= 1;
        if state.threads > 0 {
            drop(state);
            self.0.changed.notify_one();
            return Ok(());
        }
        let nobody_runs_it = state.queue.pop_back();
        drop(state);
        drop(nobody_runs_it);
        Err(Error::io(Kind::Retry, "starting a thread for blocking work", error))
    }
}

impl Drop for BlockingPool {
    fn drop(&mut self) {
        self.0.end();
    }
}

#[cfg(all(test, not(dormouse_loom)))]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    const SOON: Duration = Duration::from_secs(20);

    /// Work that says that it runs, and goes on when it is told to.
    fn held() -> (Work, mpsc::Receiver<()>, mpsc::Sender<()>) {
        let (says, runs) = mpsc::channel();
        let (go, told) = mpsc::channel::<()>();
        let work = Box::new(move || {
            says.send(()).ok();
            told.recv().ok();
        });
        (work, runs, go)
    }

    /// Has every thread of the pool at work, until what is given is dropped.
    fn occupied(pool: &BlockingPool) -> Vec<mpsc::Sender<()>> {
        let occupy = |_| {
            let (work, runs, go) = held();
            pool.submit(work).unwrap();
            runs.recv_timeout(SOON).expect("it has a thread");
            go
        };
        (0..THREADS_MAX).map(occupy).collect()
    }

    #[test]
    fn as_many_run_as_there_are_threads_further_ones_wait_and_more_are_refused() {
        let pool = BlockingPool::new();
        let running = occupied(&pool);
        let (ran, order) = mpsc::channel();
        for number in 0..QUEUE_MAX {
            let ran = ran.clone();
            pool.submit(Box::new(move || ran.send(number).unwrap())).unwrap();
        }
        let refused = pool.submit(Box::new(|| panic!("it was refused"))).unwrap_err();
        assert_eq!((refused.kind(), refused.code()), (Kind::Overloaded, Some(FULL)));
        assert!(order.try_recv().is_err(), "there is no further thread");
        drop(running);
        let mut done: Vec<_> =
            (0..QUEUE_MAX).map(|_| order.recv_timeout(SOON).expect("it runs")).collect();
        done.sort_unstable();
        assert!(done.iter().copied().eq(0..QUEUE_MAX), "each once");
    }

    #[test]
    fn a_panic_costs_no_thread() {
        let pool = BlockingPool::new();
        for _ in 0..2 * THREADS_MAX {
            pool.submit(Box::new(|| panic!("as asked"))).unwrap();
        }
        let (ran, told) = mpsc::channel();
        pool.submit(Box::new(move || ran.send(()).unwrap())).unwrap();
        told.recv_timeout(SOON).expect("it runs");
    }

    #[test]
    fn what_waits_at_the_end_is_dropped() {
        let pool = BlockingPool::new();
        let running = occupied(&pool);
        let waiting = Arc::new(());
        let held = waiting.clone();
        pool.submit(Box::new(move || drop(held))).unwrap();
        drop(pool);
        assert_eq!(Arc::strong_count(&waiting), 1);
        drop(running);
    }
}

#[cfg(all(test, dormouse_loom))]
mod models {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Work, its thread and the pool's end, in every order: it runs or is dropped, and the thread
    /// ends.
    fn work_against_the_end(end: impl Fn(&Shared) + Send + Sync + 'static) {
        let end = Arc::new(end);
        loom::model(move || {
            let shared = Arc::new(Shared::new());
            let ran = Arc::new(AtomicUsize::new(0));
            let thread = {
                let shared = shared.clone();
                loom::thread::spawn(move || shared.run())
            };
            let count = ran.clone();
            let work = Box::new(move || drop(count.fetch_add(1, Ordering::SeqCst)));
            shared.submit(work, 0, 1).expect("there is room");
            end(&shared);
            thread.join().expect("the thread ends");
            assert!(ran.load(Ordering::SeqCst) <= 1, "it ran twice");
            assert_eq!(Arc::strong_count(&ran), 1, "it neither ran nor was dropped");
        });
    }

    #[test]
    fn loom_blocking_work_runs_or_is_dropped_and_its_thread_ends() {
        work_against_the_end(Shared::end);
    }

    #[test]
    #[should_panic(expected = "deadlock")]
    fn loom_an_end_that_wakes_nobody_leaves_a_thread_asleep() {
        work_against_the_end(|shared| {
            let mut state = shared.state.lock().expect("no code panics under it");
            state.ended = true;
            state.queue.clear();
        });
    }

    /// Two pieces of work for one thread: both run.
    #[test]
    fn loom_a_thread_never_sleeps_on_work() {
        loom::model(|| {
            let shared = Arc::new(Shared::new());
            let thread = {
                let shared = shared.clone();
                loom::thread::spawn(move || {
                    for _ in 0..2 {
                        shared.next().expect("it has not ended")();
                    }
                })
            };
            for _ in 0..2 {
                shared.submit(Box::new(|| ()), 0, 2).expect("there is room");
            }
            thread.join().expect("the thread got both");
        });
    }
}
