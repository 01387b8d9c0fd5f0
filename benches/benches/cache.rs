//! The actor cache: a get of a resident key, and of one that is known not to be there.

use std::hint::black_box;
use std::time::{Duration, Instant};

use bytes::Bytes;
use criterion::{Criterion, criterion_group, criterion_main};
use dormouse_cache::{ActorCache, Backing, CacheLimits, Read, Write};
use dormouse_engine::real::{DiskChoice, RealEnv, block_on};
use dormouse_engine::{Batch, Limits, ObjectId, Resident, Result, Shard, StoreLock, Ticket};

const ROOM: ObjectId = ObjectId::from_bytes([7; 32]);

struct Home(Shard<RealEnv>);

impl Backing for Home {
    type Ticket = Ticket;

    fn commit(&self, batch: &Batch, resident: &dyn Resident) -> Result<Ticket> {
        self.0.commit(&ROOM, batch, Some(resident))
    }
}

/// Gets `key` so often from a cache of a hundred keys; returns the time.
#[expect(clippy::disallowed_methods, reason = "a benchmark measures time")]
fn gets(key: &'static str, rounds: u64) -> Duration {
    let dir = tempfile::TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let measure = async move |env: RealEnv| {
        let limits = Limits::PRODUCTION;
        let lock = StoreLock::open_or_create(&env, &limits, 1).await?;
        let (shard, _) = Shard::open(&env, lock.superblock(), 0, limits).await?;
        let contents = shard.load(&ROOM).await?;
        let home = Home(shard.clone());
        let cache = ActorCache::new(&env, home, contents, CacheLimits::PRODUCTION);
        for n in 0..100 {
            let value = Bytes::from(vec![7; 100]);
            cache.put(format!("key-{n}").as_bytes(), value, Write::default()).await?;
        }
        cache.sync().await?;
        let started = Instant::now();
        for _ in 0..rounds {
            black_box(cache.get(black_box(key.as_bytes()), Read::default()).await?);
        }
        let elapsed = started.elapsed();
        shard.close().await?;
        Ok::<_, dormouse_engine::Error>(elapsed)
    };
    block_on(dir.path(), DiskChoice::Auto, measure).expect("a core").expect("a store")
}

fn cache(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("cache");
    group.bench_function("get/hit", |bencher| bencher.iter_custom(|n| gets("key-50", n)));
    group.bench_function("get/absent", |bencher| bencher.iter_custom(|n| gets("none", n)));
}

criterion_group!(benches, cache);
criterion_main!(benches);
