//! E4, and what follows: a shard that a failed write has poisoned is opened anew by its core, and its
//! objects are what the disk says. Those of the other shards don't notice.

mod common;

use std::cell::Cell;
use std::time::Duration;

use dormouse_engine::{Host, Limits};
use dormouse_scheduler::Topology;
use dormouse_scheduler::prelude::*;
use dormouse_sim::{DiskFaults, SimEnv, World};

const STEPS: u64 = 20_000_000;
const SHARDS: u16 = 2;

struct Counter {
    state: State,
    calls: Cell<u64>,
}

impl DurableObject for Counter {
    fn new(state: State) -> Self {
        Self { state, calls: Cell::new(0) }
    }
}

struct Add(u64);

impl Handler<Add> for Counter {
    /// What is stored, and how many calls this instance has had.
    type Reply = (u64, u64);

    async fn handle(&self, Add(more): Add) -> Result<(u64, u64)> {
        self.calls.set(self.calls.get() + 1);
        let n: u64 = self.state.storage().get("n").await?.unwrap_or(0);
        if more > 0 {
            self.state.storage().put("n", &(n + more)).await?;
        }
        Ok((n + more, self.calls.get()))
    }
}

async fn start(env: &SimEnv) -> Topology {
    let builder = Topology::builder().namespace::<Counter>("counters");
    let topology = builder.build(|| 7);
    common::serve(env, &topology, SHARDS, Limits::TINY, |ended| ended.expect("closed in order"))
        .await;
    topology
}

/// Two objects, of the first shard and of the second.
fn two(topology: &Topology) -> [Stub<Counter>; 2] {
    [0, 1].map(|shard| {
        let stubs = (0..100).map(|n| topology.namespace::<Counter>().get_by_name(&n.to_string()));
        let mut of_shard = stubs.filter(|stub| stub.id().object().shard(SHARDS) == shard);
        of_shard.next().expect("one of a hundred")
    })
}

#[test]
fn a_poisoned_shard_is_opened_anew_and_its_objects_are_what_the_disk_says() {
    for seed in 0..30 {
        let world = World::new(seed, DiskFaults::default());
        let (machine, env) = (world.clone(), world.process().core());
        let core = env.clone();
        let done = world.block_on(&env, STEPS, async move {
            let topology = start(&core).await;
            let [hit, other] = two(&topology);
            assert_eq!(hit.call(Add(3)).await.expect("stored"), (3, 1));
            assert_eq!(other.call(Add(5)).await.expect("stored"), (5, 1));

            machine.set_faults(DiskFaults { write_error: 1, ..DiskFaults::default() });
            let error = hit.call(Add(10)).await.expect_err("its write failed");
            assert!(error.reset(), "{error:?}");
            machine.set_faults(DiskFaults::default());
            // What failed may be there or not; from here on it is one of the two.
            let (n, calls) = hit.call(Add(0)).await.expect("the shard is there again");
            assert!([3, 13].contains(&n) && calls == 1, "{n}, {calls} calls: seed {seed}");
            assert_eq!(hit.call(Add(1)).await.expect("stored"), (n + 1, 2));
            assert_eq!(other.call(Add(1)).await.expect("stored"), (6, 2), "the same instance");
            topology.shutdown();
        });
        done.expect("done");
    }
}

#[test]
fn while_the_disk_fails_callers_are_told_to_retry_and_once_it_works_they_are_answered() {
    let world = World::new(5, DiskFaults::default());
    let (machine, env) = (world.clone(), world.process().core());
    let core = env.clone();
    let done = world.block_on(&env, STEPS, async move {
        let topology = start(&core).await;
        let [hit, _] = two(&topology);
        hit.call(Add(3)).await.expect("stored");
        let broken = DiskFaults { write_error: 1, sync_error: 1, ..DiskFaults::default() };
        machine.set_faults(broken);
        hit.call(Add(10)).await.expect_err("its write failed");
        core.sleep(Duration::from_secs(30)).await;
        let error = hit.call(Add(10)).await.expect_err("it can't be opened");
        assert!(error.is_retryable() && !error.reset(), "{error:?}");
        assert!(error.to_string().contains("can't be opened again yet"), "{error}");
        machine.set_faults(DiskFaults::default());
        core.sleep(Duration::from_secs(11)).await;
        let (n, _) = hit.call(Add(0)).await.expect("the shard is there again");
        assert!([3, 13].contains(&n), "{n}");
        topology.shutdown();
    });
    done.expect("done");
}
