//! The engine: appending to the log, durable commits, and an object read from the device. What an
//! id means: the crate's head.

use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use dormouse_benches::engine::{activations, commits, key, object, on_core, value, with_shard};
use dormouse_benches::{Rounds, Span};
use dormouse_engine::real::{DiskChoice, RealEnv};
use dormouse_engine::{Batch, Limits, Shard};

const LIMITS: Limits = Limits::PRODUCTION;
/// Commits that are appended before their batches are waited for.
const APPENDED: u64 = 256;

#[expect(clippy::disallowed_methods, reason = "a benchmark measures time")]
fn now() -> Instant {
    Instant::now()
}

fn took(span: &Span<Instant>) -> Duration {
    span.to - span.from
}

fn commit(clients: u64, measured: u64, disk: DiskChoice) -> Duration {
    let rounds = Rounds { warm_up: 1, measured };
    let measure = async move |env: RealEnv| {
        with_shard(&env, LIMITS, async |shard| commits(&env, shard, clients, rounds, now).await)
            .await
    };
    took(&on_core(disk, measure))
}

/// Time of the calls alone: what the device takes is waited for in between.
fn append(rounds: u64) -> Duration {
    let some = async move |shard: &Shard<RealEnv>, first: u64| {
        let mut tickets = Vec::new();
        let batches: Vec<_> = (first..rounds.min(first + APPENDED))
            .map(|round| Batch::new().put(key(0), value(round)))
            .collect();
        let began = now();
        for (at, batch) in (0..).zip(&batches) {
            tickets.push(shard.commit(&object(at), batch, None).expect("accepted"));
        }
        let took = now() - began;
        for ticket in tickets {
            ticket.await.expect("durable");
        }
        took
    };
    on_core(DiskChoice::Auto, async move |env| {
        with_shard(&env, LIMITS, async |shard| {
            let mut total = Duration::ZERO;
            for first in (0..rounds).step_by(usize::try_from(APPENDED).expect("small")) {
                total += some(shard, first).await;
            }
            total
        })
        .await
    })
}

fn activation(measured: u64) -> Duration {
    let rounds = Rounds { warm_up: 1, measured };
    let measure = async move |env| activations(&env, rounds, now).await;
    took(&on_core(DiskChoice::Auto, measure))
}

fn engine(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("engine");
    group.sample_size(10);
    group.bench_function("append", |bencher| bencher.iter_custom(append));
    group.bench_function("activation", |bencher| bencher.iter_custom(activation));
    for (name, disk) in [("commit", DiskChoice::Auto), ("commit-posix", DiskChoice::Posix)] {
        for clients in [1, 64] {
            group.throughput(Throughput::Elements(clients));
            group.bench_function(format!("{name}/{clients}"), |bencher| {
                bencher.iter_custom(|rounds| commit(clients, rounds, disk));
            });
        }
    }
    group.finish();
}

criterion_group!(benches, engine);
criterion_main!(benches);
