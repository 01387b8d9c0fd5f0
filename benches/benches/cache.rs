//! The actor cache: gets, puts and lists of a hot object, and a durable turn. What an id means: the
//! crate's head.

use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use dormouse_benches::cache::{
    Home, gets, gets_of_many, lists, map, map_gets, map_gets_of_many, map_lists, map_puts, puts,
    turns, with_cache,
};
use dormouse_benches::engine::on_core;
use dormouse_benches::{Rounds, Span};
use dormouse_cache::ActorCache;
use dormouse_engine::Limits;
use dormouse_engine::real::{DiskChoice, RealEnv};

const KEYS: u32 = 100;
const LARGE: u32 = 1000;

#[expect(clippy::disallowed_methods, reason = "a benchmark measures time")]
fn now() -> Instant {
    Instant::now()
}

/// Time of the measured rounds in front of an object of so many keys.
fn time(
    keys: u32,
    measured: u64,
    measure: impl AsyncFnOnce(&ActorCache<RealEnv, Home<RealEnv>>, Rounds) -> Span<Instant>
    + Send
    + 'static,
) -> Duration {
    let rounds = Rounds { warm_up: 1, measured };
    let span = on_core(DiskChoice::Auto, async move |env| {
        let visit = async |cache: &_| measure(cache, rounds).await;
        with_cache(&env, Limits::PRODUCTION, keys, visit).await
    });
    span.to - span.from
}

/// The same with a map in the place of the cache, on such a core too.
fn time_map(
    measured: u64,
    measure: impl AsyncFnOnce(Rounds) -> Span<Instant> + Send + 'static,
) -> Duration {
    let rounds = Rounds { warm_up: 1, measured };
    let span = on_core(DiskChoice::Auto, async move |_| measure(rounds).await);
    span.to - span.from
}

fn cache(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("cache");
    for (name, number) in [("get/hit", KEYS / 2), ("get/absent", KEYS)] {
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|n| {
                time(KEYS, n, async move |cache, r| gets(cache, number, r, now).await)
            });
        });
    }
    for (name, number) in [("map/hit", KEYS / 2), ("map/absent", KEYS)] {
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|n| {
                time_map(n, async move |r| map_gets(&map(KEYS), number, r, now).await)
            });
        });
    }
    group.bench_function("get/1000-objects", |bencher| {
        bencher.iter_custom(|measured| {
            let rounds = Rounds { warm_up: 4000, measured };
            let gets = async move |env| gets_of_many(&env, rounds, now).await;
            let span = on_core(DiskChoice::Auto, gets);
            span.to - span.from
        });
    });
    group.bench_function("map/1000-objects", |bencher| {
        bencher.iter_custom(|n| {
            time_map(n, async move |r| map_gets_of_many(Rounds { warm_up: 4000, ..r }, now).await)
        });
    });
    group.bench_function("map/put", |bencher| {
        bencher.iter_custom(|n| {
            time_map(n, async move |r| map_puts(&mut map(KEYS), KEYS, r, now).await)
        });
    });
    group.bench_function(format!("map/list/{LARGE}"), |bencher| {
        bencher.iter_custom(|n| time_map(n, async move |r| map_lists(&map(LARGE), r, now).await));
    });
    group.bench_function("put", |bencher| {
        bencher.iter_custom(|n| time(KEYS, n, async |cache, r| puts(cache, KEYS, r, now).await));
    });
    for keys in [KEYS, LARGE] {
        let all = keys as usize;
        group.bench_function(format!("list/{keys}"), |bencher| {
            bencher.iter_custom(|n| {
                time(keys, n, async move |cache, r| lists(cache, all, r, now).await)
            });
        });
    }
    group.sample_size(10);
    group.bench_function("turn", |bencher| {
        bencher.iter_custom(|n| time(KEYS, n, async |cache, r| turns(cache, r, now).await));
    });
    group.finish();
}

criterion_group!(benches, cache);
criterion_main!(benches);
