//! Workloads of the scheduler: objects that call one another, and a thread that calls objects.

use dormouse_engine::real::DiskChoice;
use dormouse_scheduler::prelude::*;

use crate::rounds::{Rounds, Span};

/// Counts.
pub struct Counter(State);

impl DurableObject for Counter {
    fn new(state: State) -> Self {
        Self(state)
    }
}

/// The count.
#[derive(Clone, Copy, Debug)]
pub struct Get;

impl Handler<Get> for Counter {
    type Reply = u64;
    async fn handle(&self, _: Get) -> Result<u64> {
        Ok(self.0.storage().get("n").await?.unwrap_or(0))
    }
}

/// The count after one more, durably.
#[derive(Clone, Copy, Debug)]
pub struct Increment;

impl Handler<Increment> for Counter {
    type Reply = u64;
    async fn handle(&self, _: Increment) -> Result<u64> {
        let n: u64 = self.0.storage().get("n").await?.unwrap_or(0) + 1;
        self.0.storage().put("n", &n).await?;
        Ok(n)
    }
}

/// Calls another object.
pub struct Caller;

impl DurableObject for Caller {
    fn new(_: State) -> Self {
        Self
    }
}

/// Rounds of one [`Get`], each waiting for its reply.
pub struct Drive<R> {
    to: Stub<Counter>,
    rounds: Rounds,
    read: fn() -> R,
}

impl<R: Send + 'static> Handler<Drive<R>> for Caller {
    type Reply = Span<R>;
    async fn handle(&self, drive: Drive<R>) -> Result<Span<R>> {
        let Drive { to, rounds, read } = drive;
        let call = async |_| {
            to.call(Get).await.expect("a count");
        };
        Ok(rounds.span(read, call).await)
    }
}

/// Runs `visit` on a store of so many cores.
pub fn with_runtime<T>(cores: usize, disk: DiskChoice, visit: impl FnOnce(&Runtime) -> T) -> T {
    let dir = crate::scratch();
    let builder = Runtime::builder(&dir).cores(cores).disk(disk);
    let builder = builder.namespace::<Counter>("counters").namespace::<Caller>("callers");
    let runtime = builder.start().expect("a store");
    let result = visit(&runtime);
    runtime.close().expect("closed");
    result
}

/// The first stub of the namespace that is on this core.
fn on<T: DurableObject>(namespace: &Namespace<T>, core: usize, cores: usize) -> Stub<T> {
    // A new store has a shard for each core.
    let shards = u16::try_from(cores).expect("few");
    let mut stubs = (0..).map(|number: u32| namespace.get_by_name(&number.to_string()));
    let here = |stub: &Stub<T>| usize::from(stub.id().object().shard(shards)) == core;
    stubs.find(here).expect("each core has some")
}

/// Rounds of one call from an object on the first core to one on the last, the same if there is
/// only one.
pub fn calls<R: Send + 'static>(
    cores: usize,
    disk: DiskChoice,
    rounds: Rounds,
    read: fn() -> R,
) -> Span<R> {
    with_runtime(cores, disk, |runtime| {
        let caller = on(&runtime.namespace::<Caller>(), 0, cores);
        let to = on(&runtime.namespace::<Counter>(), cores - 1, cores);
        caller.call(Drive { to, rounds, read }).wait().expect("a span")
    })
}
