//! What one object of many keys costs: `cargo run --release -p dormouse-benches --example large --
//! 1000000`. Beside the program it loads one object with that many keys, with values of 100 bytes, and one of a
//! thousand with values of 64 KiB, and prints what a get, lists, updates and deleting all of it cost.
//!
//! Reads are those that the engine asks of its disk. Heap is the process's anonymous memory, as the kernel
//! counts it, at its highest while a list goes on.

#![expect(clippy::disallowed_methods, reason = "it measures the real thing: clock and processes")]

use std::time::{Duration, Instant};

use dormouse_benches::counted::{CountedEnv, Counts};
use dormouse_benches::scratch;
use dormouse_engine::real::{DiskChoice, block_on};
use dormouse_engine::{Batch, Host, Limits, List, ObjectId, Result, Shard, StoreLock};

/// Keys of a commit while loading.
const TOGETHER: u64 = 10_000;
/// Gets that are measured.
const GETS: u64 = 1_000;
/// Updates that are measured, of one key each.
const UPDATES: u64 = 2_000;

fn id(number: u8) -> ObjectId {
    ObjectId::from_bytes([number; 32])
}

fn key(number: u64) -> String {
    format!("key-{number:010}")
}

fn fill(number: u64, bytes: usize) -> Vec<u8> {
    vec![number.to_le_bytes()[0]; bytes]
}

/// An order in which neighbours come far apart.
fn scattered(number: u64, keys: u64) -> u64 {
    number.wrapping_mul(0x9e37_79b9_7f4a_7c15) % keys
}

/// Anonymous memory in bytes; 0 where the kernel does not tell.
fn heap() -> u64 {
    let text = std::fs::read_to_string("/proc/self/smaps_rollup").unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with("Anonymous:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / (1 << 20) as f64
}

async fn load(shard: &Shard<CountedEnv>, keys: u64) -> Result<()> {
    let mut from = 0;
    while from < keys {
        let put = |batch: Batch, number| batch.put(key(number), fill(number, 100));
        let batch = (from..keys.min(from + TOGETHER)).fold(Batch::new(), put);
        shard.commit(&id(1), &batch, None)?.await?;
        from += TOGETHER;
    }
    for number in 0..1_000 {
        let batch = Batch::new().put(key(number), fill(number, 64 << 10));
        shard.commit(&id(2), &batch, None)?.await?;
    }
    Ok(())
}

/// Lists up to `limit` keys; says what it took.
async fn list(shard: &Shard<CountedEnv>, what: &str, object: u8, list: List) -> Result<()> {
    let (began, before, heap_before) = (Instant::now(), Counts::now(), heap());
    let snapshot = shard.snapshot(&id(object)).await?;
    let (mut scan, mut keys, mut bytes, mut pieces, mut most) = (snapshot.scan(&list)?, 0, 0, 0, 0);
    while let Some(some) = scan.next().await? {
        keys += some.len();
        bytes += some.iter().map(|(key, value)| (key.len() + value.len()) as u64).sum::<u64>();
        if pieces % 256 == 0 {
            most = most.max(heap());
        }
        pieces += 1;
    }
    let (took, counts) = (began.elapsed(), Counts::now().since(before));
    println!(
        "{what}: {keys} keys, {:.1} MiB in {:.1} ms; {} reads, {:.1} MiB; heap grew by {:.1} MiB",
        mib(bytes),
        took.as_secs_f64() * 1e3,
        counts.reads,
        mib(counts.read_bytes),
        mib(most.saturating_sub(heap_before)),
    );
    Ok(())
}

async fn gets(shard: &Shard<CountedEnv>, what: &str, object: u8, keys: u64) -> Result<()> {
    let (began, before) = (Instant::now(), Counts::now());
    for number in 0..GETS {
        let key = key(scattered(number, keys));
        let value = shard.snapshot(&id(object)).await?.get(key.as_bytes()).await?;
        assert!(value.is_some(), "every key is there");
    }
    let (took, counts) = (began.elapsed(), Counts::now().since(before));
    println!(
        "{what}: {:.0} us and {:.2} reads of {:.1} KiB together, its root included",
        took.as_secs_f64() * 1e6 / GETS as f64,
        counts.reads as f64 / GETS as f64,
        counts.read_bytes as f64 / GETS as f64 / 1024.0,
    );
    Ok(())
}

async fn measure(env: CountedEnv, keys: u64) -> Result<()> {
    let limits = Limits::PRODUCTION;
    let lock = StoreLock::open_or_create(&env, &limits, 1).await?;
    let (shard, _) = Shard::open(&env, lock.superblock(), 0, limits).await?;
    let (began, before) = (Instant::now(), Counts::now());
    load(&shard, keys).await?;
    env.sleep(Duration::from_secs(1)).await;
    let (stats, counts) = (shard.stats(), Counts::now().since(before));
    println!(
        "load: {keys} keys of 100 bytes and 1000 of 64 KiB in {:.1} s; {:.0} MiB live, {:.0} MiB \
         of segments, {:.0} MiB written",
        began.elapsed().as_secs_f64() - 1.0,
        mib(stats.live_bytes),
        mib(stats.segment_bytes),
        mib(counts.written_bytes),
    );
    gets(&shard, "get of a key of 100 bytes", 1, keys).await?;
    gets(&shard, "get of a key of 64 KiB", 2, 1_000).await?;
    list(&shard, "list of all keys", 1, List::all()).await?;
    list(&shard, "the same, descending", 1, List::all().reverse()).await?;
    let middle = List::all().start(key(keys / 2)).limit(1_000);
    list(&shard, "1000 keys from the middle on", 1, middle).await?;
    list(&shard, "1000 values of 64 KiB", 2, List::all()).await?;
    let (began, before) = (Instant::now(), Counts::now());
    for number in 0..UPDATES {
        let batch = Batch::new().put(key(scattered(number, keys)), [1; 100]);
        shard.commit(&id(1), &batch, None)?.await?;
    }
    let (took, counts) = (began.elapsed(), Counts::now().since(before));
    println!(
        "update of one key: {:.0} us, {:.1} KiB written, {:.2} reads; {} times changes went into pages",
        took.as_secs_f64() * 1e6 / UPDATES as f64,
        counts.written_bytes as f64 / UPDATES as f64 / 1024.0,
        counts.reads as f64 / UPDATES as f64,
        shard.stats().trees_updated - stats.trees_updated,
    );
    let (began, before) = (Instant::now(), Counts::now());
    shard.commit(&id(1), &Batch::new().delete_all(), None)?.await?;
    let counts = Counts::now().since(before);
    println!(
        "delete of all keys: {:.0} us, {} reads",
        began.elapsed().as_secs_f64() * 1e6,
        counts.reads
    );
    shard.close().await
}

fn main() {
    let keys =
        std::env::args().nth(1).map_or(1_000_000, |keys| keys.parse().expect("a number of keys"));
    let dir = scratch();
    let main = async move |env| measure(CountedEnv::new(env), keys).await;
    block_on(dir.path(), DiskChoice::Auto, main).expect("a core").expect("no error");
}
