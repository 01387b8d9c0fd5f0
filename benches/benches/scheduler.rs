//! The scheduler: a call to an object on another thread, alone and 64 at once, reading and
//! counting durably.

use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use dormouse_scheduler::prelude::*;

struct Counter(State);

impl DurableObject for Counter {
    fn new(state: State) -> Self {
        Self(state)
    }
}

struct Get;
impl Handler<Get> for Counter {
    type Reply = u64;
    async fn handle(&self, _: Get) -> Result<u64> {
        Ok(self.0.storage().get("n").await?.unwrap_or(0))
    }
}

struct Increment;
impl Handler<Increment> for Counter {
    type Reply = u64;
    async fn handle(&self, _: Increment) -> Result<u64> {
        let n: u64 = self.0.storage().get("n").await?.unwrap_or(0) + 1;
        self.0.storage().put("n", &n).await?;
        Ok(n)
    }
}

/// Makes `rounds` rounds of a call to each of `objects` objects; returns the time.
#[expect(clippy::disallowed_methods, reason = "a benchmark measures time")]
fn calls<M: Send + 'static>(objects: usize, rounds: u64, message: fn() -> M) -> Duration
where
    Counter: Handler<M>,
{
    let dir = tempfile::TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let runtime = Runtime::builder(&dir).cores(1).namespace::<Counter>("counters").start();
    let runtime = runtime.expect("a store");
    let counters = runtime.namespace::<Counter>();
    let stubs: Vec<_> = (0..objects).map(|n| counters.get_by_name(&n.to_string())).collect();
    let round = || {
        let calls: Vec<_> = stubs.iter().map(|stub| stub.call(message())).collect();
        calls.into_iter().for_each(|call| drop(call.wait().expect("an answer")));
    };
    // The first call of each builds the object.
    round();
    let started = Instant::now();
    (0..rounds).for_each(|_| round());
    let elapsed = started.elapsed();
    runtime.close().expect("close");
    elapsed
}

fn scheduler(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("scheduler");
    group.sample_size(10);
    for objects in [1, 64] {
        group.bench_function(format!("call/{objects}"), |bencher| {
            bencher.iter_custom(|rounds| calls(objects, rounds, || Get));
        });
        group.bench_function(format!("increment/{objects}"), |bencher| {
            bencher.iter_custom(|rounds| calls(objects, rounds, || Increment));
        });
    }
}

criterion_group!(benches, scheduler);
criterion_main!(benches);
