//! Bodies that come piece by piece, and the output gate: what is read of one is durable, in
//! every order that the seeds find.

mod common;
#[path = "common/machine.rs"]
mod machine;

use std::cell::{Cell, RefCell};
use std::time::Duration;

use dormouse_engine::Host;
use dormouse_scheduler::Topology;
use dormouse_scheduler::prelude::*;
use dormouse_sim::DiskFaults;

use machine::Machine;

const CHUNKS: u64 = 40;

thread_local! {
    static DURABLE: Cell<u64> = const { Cell::new(0) };
    static BUILT: Cell<u64> = const { Cell::new(0) };
}

/// Counts, and says each number when it has written it.
struct Counter {
    state: State,
    kept: RefCell<Option<BodySender>>,
}

impl Counter {
    async fn count(state: State, mut sender: BodySender) -> Result<()> {
        for n in 1..=CHUNKS {
            drop(state.storage().put("n", &n));
            let storage = state.clone();
            state.wait_until(async move {
                if storage.storage().sync().await.is_ok() {
                    DURABLE.set(DURABLE.get().max(n));
                }
            });
            sender.send(n.to_le_bytes().to_vec()).await?;
            if n % 7 == 0 {
                state.sleep(Duration::from_millis(1)).await;
            }
        }
        sender.finish();
        Ok(())
    }
}

impl DurableObject for Counter {
    fn new(state: State) -> Self {
        BUILT.set(BUILT.get() + 1);
        Self { state, kept: RefCell::default() }
    }

    async fn fetch(&self, request: Request) -> Result<Response> {
        let (sender, body) = Body::stream();
        match request.uri().path() {
            "/count" => {
                let state = self.state.clone();
                self.state.wait_until(async move { drop(Self::count(state, sender).await) });
            }
            "/keep" => *self.kept.borrow_mut() = Some(sender),
            "/more" => {
                let mut sender = self.kept.borrow_mut().take().expect("kept by this instance");
                sender.send("more").await?;
                sender.finish();
            }
            _ => return Err(Error::user("no such path")),
        }
        Ok(Response::new(body))
    }
}

fn machine(seed: u64) -> Machine {
    Machine::new(seed, Topology::builder().namespace::<Counter>("counters").build(|| 0))
}

impl Machine {
    fn fetch(&self, path: &str) -> Body {
        let request = Request::get(path).body(()).unwrap();
        let stub = self.topology.namespace::<Counter>().get_by_name("mice");
        self.run(stub.fetch(request)).unwrap().into_body()
    }
}

fn number(chunk: &[u8]) -> u64 {
    u64::from_le_bytes(chunk.try_into().expect("a number"))
}

#[test]
fn a_chunk_leaves_when_what_was_written_before_it_is_durable() {
    for seed in 0..60 {
        DURABLE.set(0);
        let machine = machine(seed);
        let mut body = machine.fetch("/count");
        machine.run(async move {
            for n in 1..=CHUNKS {
                let chunk = body.chunk().await.expect("whole").expect("one more");
                assert_eq!(number(&chunk), n, "seed {seed}");
                assert!(n <= DURABLE.get(), "seed {seed}: {n}, durable {}", DURABLE.get());
            }
            assert_eq!(body.chunk().await.expect("whole"), None);
        });
    }
}

#[test]
fn behind_a_failed_write_a_body_is_cut_off() {
    for seed in 0..60 {
        DURABLE.set(0);
        let machine = machine(seed);
        let mut body = machine.fetch("/count");
        machine.run(machine.env.sleep(Duration::from_micros(seed * 30)));
        machine.world.set_faults(DiskFaults { write_error: 1, ..DiskFaults::default() });
        let error = machine.run(async move {
            loop {
                match body.chunk().await {
                    Ok(Some(chunk)) => {
                        let (n, durable) = (number(&chunk), DURABLE.get());
                        assert!(n <= durable, "seed {seed}: {n}, durable {durable}");
                    }
                    Ok(None) => return None,
                    Err(error) => return Some(error),
                }
            }
        });
        match error {
            None => assert_eq!(DURABLE.get(), CHUNKS, "seed {seed}: it passes for all"),
            Some(error) => assert_eq!(error.code(), Some("body-cut"), "seed {seed}: {error}"),
        }
    }
}

/// what it has not finished is something to do.
#[test]
fn an_object_that_has_not_finished_a_body_stays_in_memory() {
    let machine = machine(1);
    let mut body = machine.fetch("/keep");
    machine.run(machine.env.sleep(Duration::from_secs(3600)));
    drop(machine.fetch("/more"));
    assert_eq!(BUILT.get(), 1);
    let all = machine.run(async move { (body.chunk().await, body.chunk().await) });
    assert_eq!((all.0.unwrap().unwrap(), all.1.unwrap()), ("more".into(), None));
    machine.run(machine.env.sleep(Duration::from_secs(60)));
    drop(machine.fetch("/keep"));
    assert_eq!(BUILT.get(), 2, "it had left");
}
