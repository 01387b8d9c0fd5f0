//! The scheduler: calls on a core, across cores and from a thread outside, an object's activation,
//! and the waking of a core that sleeps. What an id means: the crate's head.

use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use dormouse_benches::Rounds;
use dormouse_benches::engine::on_core;
use dormouse_benches::scheduler::{Counter, Get, Increment, calls, with_runtime};
use dormouse_engine::call::wait;
use dormouse_engine::mailbox::mailbox;
use dormouse_engine::real::DiskChoice;
use dormouse_scheduler::prelude::*;

#[expect(clippy::disallowed_methods, reason = "a benchmark measures time")]
fn now() -> Instant {
    Instant::now()
}

fn call(cores: usize, measured: u64) -> Duration {
    let span = calls(cores, DiskChoice::Auto, Rounds { warm_up: 1, measured }, now);
    span.to - span.from
}

/// Rounds of a call to each of `objects` objects from this thread.
fn outside<M: Send + 'static>(objects: u64, rounds: u64, message: fn() -> M) -> Duration
where
    Counter: Handler<M>,
{
    with_runtime(1, DiskChoice::Auto, |runtime| {
        let counters = runtime.namespace::<Counter>();
        let stubs: Vec<_> = (0..objects).map(|n| counters.get_by_name(&n.to_string())).collect();
        let round = || {
            let calls: Vec<_> = stubs.iter().map(|stub| stub.call(message())).collect();
            calls.into_iter().for_each(|call| drop(call.wait().expect("an answer")));
        };
        // The first call of each builds the object.
        round();
        let began = now();
        (0..rounds).for_each(|_| round());
        now() - began
    })
}

/// Rounds of a call to an object that is there durably, but not in memory.
fn activation(rounds: u64) -> Duration {
    with_runtime(1, DiskChoice::Auto, |runtime| {
        let counter = runtime.namespace::<Counter>().get_by_name("mice");
        counter.call(Increment).wait().expect("counted");
        let began = now();
        for _ in 0..rounds {
            wait(runtime.evict(counter.id()));
            assert_eq!(counter.call(Get).wait().expect("an answer"), 1);
        }
        now() - began
    })
}

/// The time from each send until the core, which slept before, has the message.
#[expect(clippy::disallowed_methods, reason = "a thread of its own that lets the core sleep")]
fn wake(rounds: u64) -> Duration {
    on_core(DiskChoice::Auto, async move |_| {
        let (sender, receiver) = mailbox::<Instant>(1);
        let thread = std::thread::spawn(move || {
            for _ in 0..rounds {
                std::thread::sleep(Duration::from_micros(200));
                // Refused if the one before is still there: the core did not sleep then.
                let _late = sender.send(now());
            }
            sender.close();
        });
        let (mut total, mut received) = (Duration::ZERO, 0);
        while let Some(sent) = receiver.recv().await {
            total += sent.elapsed();
            received += 1;
        }
        thread.join().expect("it only sends");
        total.mul_f64(rounds as f64 / f64::from(received))
    })
}

fn scheduler(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("scheduler");
    group.sample_size(10);
    for (name, cores) in [("same-core", 1), ("cross-core", 2)] {
        group.bench_function(format!("call/{name}"), |bencher| {
            bencher.iter_custom(|rounds| call(cores, rounds));
        });
    }
    group.bench_function("activation", |bencher| bencher.iter_custom(activation));
    group.bench_function("wake", |bencher| bencher.iter_custom(wake));
    for objects in [1, 64] {
        group.throughput(Throughput::Elements(objects));
        group.bench_function(format!("call/{objects}"), |bencher| {
            bencher.iter_custom(|rounds| outside(objects, rounds, || Get));
        });
        group.bench_function(format!("increment/{objects}"), |bencher| {
            bencher.iter_custom(|rounds| outside(objects, rounds, || Increment));
        });
    }
    group.finish();
}

criterion_group!(benches, scheduler);
criterion_main!(benches);
