//! `spawn_blocking` on a real runtime: its core goes on, its object stays, its result comes back
//! in turn.

#![expect(clippy::disallowed_methods, reason = "blocking is what it is for")]

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Sender};
use std::time::{Duration, Instant};

use dormouse_engine::call::wait;
use dormouse_scheduler::StackLimits;
use dormouse_scheduler::prelude::*;

const SOON: Duration = Duration::from_secs(20);

static LIVE: AtomicUsize = AtomicUsize::new(0);

struct Worker(State);

impl DurableObject for Worker {
    fn new(state: State) -> Self {
        LIVE.fetch_add(1, Ordering::SeqCst);
        Self(state)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        LIVE.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Work that waits until it is told to go on.
struct Held {
    begun: Sender<()>,
    go: mpsc::Receiver<()>,
}

fn held() -> (Held, mpsc::Receiver<()>, Sender<()>) {
    let (begun, begins) = mpsc::channel();
    let (tell, go) = mpsc::channel();
    (Held { begun, go }, begins, tell)
}

impl Held {
    fn run(self) {
        self.begun.send(()).ok();
        self.go.recv().ok();
    }
}

enum Do {
    /// Waits for it.
    Await(Held),
    /// Does not.
    Leave(Held),
    Panic,
    Nothing,
    /// Starts so many at once; how many were refused, and with which code.
    Flood(usize),
}

impl Handler<Do> for Worker {
    type Reply = usize;

    async fn handle(&self, what: Do) -> Result<usize> {
        match what {
            Do::Await(held) => self.0.spawn_blocking(move || held.run()).await?,
            Do::Leave(held) => drop(self.0.spawn_blocking(move || held.run())),
            Do::Panic => self.0.spawn_blocking(|| panic!("as asked")).await?,
            Do::Nothing => {}
            Do::Flood(count) => {
                let gate = std::sync::Arc::new(Mutex::new(()));
                let closed = gate.lock().unwrap();
                let started: Vec<_> = (0..count)
                    .map(|_| {
                        let gate = gate.clone();
                        self.0.spawn_blocking(move || drop(gate.lock()))
                    })
                    .collect();
                drop(closed);
                let mut refused = 0;
                for work in started {
                    if let Err(error) = work.await {
                        assert_eq!(error.code(), Some("blocking-full"));
                        assert!(error.is_overloaded() && !error.reset());
                        refused += 1;
                    }
                }
                return Ok(refused);
            }
        }
        Ok(0)
    }
}

fn start(dir: &tempfile::TempDir, limits: StackLimits) -> (Runtime, Stub<Worker>) {
    let builder = Runtime::builder(dir).cores(1).limits(limits);
    let runtime = builder.namespace::<Worker>("workers").start().unwrap();
    let stub = runtime.namespace().get_by_name("mice");
    (runtime, stub)
}

/// One test, for all of them count the same objects.
#[test]
fn work_that_blocks_holds_up_neither_its_core_nor_its_object_and_keeps_that_in_memory() {
    let dir = tempfile::tempdir().unwrap();
    let idle = Duration::from_millis(20);
    let (runtime, stub) = start(&dir, StackLimits { idle, ..StackLimits::PRODUCTION });

    // The object answers others while one waits.
    let (work, begins, go) = held();
    let waits = stub.call(Do::Await(work));
    begins.recv_timeout(SOON).expect("it begins");
    stub.call(Do::Nothing).wait().expect("the core is free, and the gate open");
    go.send(()).unwrap();
    waits.wait().unwrap();

    // A panic is an error of that work alone.
    let error = stub.call(Do::Panic).wait().unwrap_err();
    assert!(error.to_string().contains("as asked") && !error.reset(), "{error}");

    // Nobody awaits it: the object stays until it is done, and then leaves.
    let (work, begins, go) = held();
    stub.call(Do::Leave(work)).wait().unwrap();
    begins.recv_timeout(SOON).expect("it begins");
    std::thread::sleep(10 * idle);
    assert_eq!(LIVE.load(Ordering::SeqCst), 1, "it works");
    go.send(()).unwrap();
    let began = Instant::now();
    while LIVE.load(Ordering::SeqCst) > 0 {
        assert!(began.elapsed() < SOON, "it does not leave");
        std::thread::sleep(Duration::from_millis(1));
    }

    // A reset drops the result; the next instance does not see it.
    let (work, begins, go) = held();
    let waits = stub.call(Do::Await(work));
    begins.recv_timeout(SOON).expect("it begins");
    wait(runtime.abort(stub.id(), "enough"));
    assert_eq!(waits.wait().unwrap_err().to_string(), "enough");
    stub.call(Do::Nothing).wait().unwrap();
    go.send(()).unwrap();

    // More than threads and queue take is refused, and what was taken is done.
    let refused = stub.call(Do::Flood(1500)).wait().unwrap();
    assert!((1500 - 1024 - 8..=1500 - 1024).contains(&refused), "{refused} were refused");
    runtime.close().unwrap();
}
