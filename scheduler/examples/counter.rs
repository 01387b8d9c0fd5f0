//! Durable increments of many objects from many client threads, and the same on SQLite, one file
//! for each object (WAL, synchronous=FULL), beside it in the same run.
//!
//! `cargo run --release -p dormouse-scheduler --example counter -- [DIR] [SECONDS]`

#![expect(clippy::disallowed_methods, reason = "measures on the real clock")]

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use dormouse_scheduler::prelude::*;

const OBJECTS: usize = 64;
/// Client threads.
const THREADS: usize = 8;
/// Calls that each thread has on their way; each to another object.
const CALLS: usize = OBJECTS / THREADS;

struct Counter {
    state: State,
}

impl DurableObject for Counter {
    fn new(state: State) -> Self {
        Self { state }
    }
}

struct Increment;

impl Handler<Increment> for Counter {
    type Reply = u64;

    async fn handle(&self, _: Increment) -> Result<u64> {
        let n: u64 = self.state.storage().get("n").await?.unwrap_or(0) + 1;
        self.state.storage().put("n", &n).await?;
        Ok(n) // leaves only when n is durable
    }
}

type AnyError = Box<dyn std::error::Error + Send + Sync>;

fn main() -> Result<(), AnyError> {
    let mut args = std::env::args().skip(1);
    let dir = args.next().map_or_else(|| PathBuf::from("target/counter"), PathBuf::from);
    let seconds = args.next().map_or(Ok(3), |text| text.parse())?;
    let time = Duration::from_secs(seconds);
    let (store, sqlite) = (dir.join("dormouse"), dir.join("sqlite"));
    for dir in [&store, &sqlite] {
        std::fs::create_dir_all(dir)?;
    }
    println!("{OBJECTS} objects, {THREADS} client threads, {seconds} s each, in {}", dir.display());
    let ours = dormouse(&store, time)?;
    println!("dormouse: {ours:>9.0} durable increments/s");
    let theirs = sqlite_files(&sqlite, time)?;
    println!("sqlite:   {theirs:>9.0} durable increments/s (a file each, WAL, synchronous=FULL)");
    println!("ratio:    {:>9.1}", ours / theirs);
    Ok(())
}

/// Runs `work(thread)` on all threads until the time is over; increments per second.
fn measure(
    time: Duration,
    work: impl Fn(usize, &dyn Fn() -> bool) -> Result<u64, AnyError> + Sync,
) -> Result<f64, AnyError> {
    let (start, total) = (Instant::now(), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| {
                let (work, total) = (&work, &total);
                scope.spawn(move || {
                    let done = work(thread, &|| start.elapsed() >= time)?;
                    total.fetch_add(done, Ordering::Relaxed);
                    Ok::<_, AnyError>(())
                })
            })
            .collect();
        threads.into_iter().try_for_each(|thread| thread.join().expect("a client ends"))
    })?;
    #[expect(clippy::cast_precision_loss, reason = "for people to read")]
    Ok(total.into_inner() as f64 / start.elapsed().as_secs_f64())
}

fn dormouse(dir: &Path, time: Duration) -> Result<f64, AnyError> {
    let runtime = Runtime::builder(dir).namespace::<Counter>("counters").start()?;
    let counters = runtime.namespace::<Counter>();
    let stubs: Vec<_> =
        (0..OBJECTS).map(|n| counters.get_by_name(&format!("counter-{n}"))).collect();
    let before: u64 = stubs.iter().map(|stub| stub.call(Increment).wait()).sum::<Result<_>>()?;
    let per_second = measure(time, |thread, over| {
        let mine = &stubs[thread * CALLS..(thread + 1) * CALLS];
        let mut done = 0;
        while !over() {
            let calls: Vec<_> = mine.iter().map(|stub| stub.call(Increment)).collect();
            for call in calls {
                call.wait()?;
                done += 1;
            }
        }
        Ok(done)
    })?;
    let after: u64 = stubs.iter().map(|stub| stub.call(Increment).wait()).sum::<Result<_>>()?;
    println!("          {} increments in the store now", after);
    assert!(after > before, "nothing was counted");
    runtime.close()?;
    Ok(per_second)
}

fn sqlite_files(dir: &Path, time: Duration) -> Result<f64, AnyError> {
    measure(time, |thread, over| {
        let open = |n: usize| {
            let file = rusqlite::Connection::open(dir.join(format!("counter-{n}.db")))?;
            file.pragma_update(None, "journal_mode", "wal")?;
            file.pragma_update(None, "synchronous", "full")?;
            file.execute("CREATE TABLE IF NOT EXISTS kv (k TEXT PRIMARY KEY, v INTEGER)", ())?;
            Ok(file)
        };
        let mine = (thread * CALLS..(thread + 1) * CALLS).map(open);
        let mine = mine.collect::<rusqlite::Result<Vec<_>>>()?;
        let mut done = 0;
        while !over() {
            for file in &mine {
                let increment =
                    "INSERT INTO kv VALUES ('n', 1) ON CONFLICT (k) DO UPDATE SET v = v + 1";
                file.prepare_cached(increment)?.execute(())?;
                done += 1;
            }
        }
        Ok(done)
    })
}
