//! The engine: a durable commit by one client, and by 64 at once.

use std::rc::Rc;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use dormouse_engine::real::{DiskChoice, RealEnv, block_on};
use dormouse_engine::{Batch, Host, Limits, ObjectId, Shard, StoreLock};

/// Makes `rounds` rounds of one durable commit for each of `clients` tasks; returns the time.
#[expect(clippy::disallowed_methods, reason = "a benchmark measures time")]
fn commits(clients: u8, rounds: u64, disk: DiskChoice) -> Duration {
    let dir = tempfile::TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let measure = async move |env: RealEnv| {
        let limits = Limits::PRODUCTION;
        let lock = StoreLock::open_or_create(&env, &limits, 1).await.expect("a store");
        let (shard, _) = Shard::open(&env, lock.superblock(), 0, limits).await.expect("a shard");
        let shard = Rc::new(shard);
        let started = Instant::now();
        let done = Rc::new(std::cell::Cell::new(0_u8));
        for client in 0..clients {
            let (shard, done) = (shard.clone(), done.clone());
            env.spawn("client", async move {
                for round in 0..rounds {
                    let value = [u8::try_from(round % 251).expect("small"); 100];
                    let batch = Batch::new().put("twelve bytes", value);
                    let ticket = shard.commit(&ObjectId::from_bytes([client; 32]), &batch, None);
                    ticket.expect("accepted").await.expect("durable");
                }
                done.set(done.get() + 1);
            });
        }
        while done.get() < clients {
            env.turn_end().await;
            env.sleep(Duration::from_micros(100)).await;
        }
        let elapsed = started.elapsed();
        shard.close().await.expect("close");
        elapsed
    };
    block_on(dir.path(), disk, measure).expect("a core")
}

fn engine(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("engine");
    group.sample_size(10);
    for (name, disk) in [("uring", DiskChoice::Auto), ("posix", DiskChoice::Posix)] {
        for clients in [1, 64] {
            group.bench_function(format!("durable commit, {clients} clients, {name}"), |bencher| {
                bencher.iter_custom(|rounds| commits(clients, rounds, disk));
            });
        }
    }
    group.finish();
}

criterion_group!(benches, engine);
criterion_main!(benches);
