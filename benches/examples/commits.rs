//! W2a by itself, for profilers: tasks on a shard's core, each making one durable commit after another
//! to a random object.
//!
//! `cargo run --release -p dormouse-benches --example commits -- --cpu 1` loads the objects, warms up and
//! prints rate, waiting times and processor time. `cargo compare --only W2a` is the comparison with
//! others.

#![expect(clippy::disallowed_methods, reason = "a benchmark measures time")]

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use clap::Parser;
use dormouse_benches::engine::{KEYS, key, object, value, with_shard};
use dormouse_benches::scratch;
use dormouse_engine::clock::Clock;
use dormouse_engine::real::{CoreOptions, CoreThread, DiskChoice, RealEnv};
use dormouse_engine::signal::Signal;
use dormouse_engine::{Batch, Host, Limits, Shard};

/// Durable commits of one key to random objects, on one core.
#[derive(Clone, Copy, Parser)]
struct Args {
    /// Tasks that commit.
    #[arg(long, default_value_t = 64)]
    tasks: u64,
    /// Objects, of four keys each.
    #[arg(long, default_value_t = 100_000)]
    objects: u64,
    /// How long to measure.
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// KiB of the log after which a checkpoint is made; the log waits for it at twice as many.
    #[arg(long, default_value_t = Limits::PRODUCTION.checkpoint_bytes >> 10)]
    checkpoint: u64,
    /// The CPU that the core is pinned to: best the one that takes the disk's interrupts.
    #[arg(long)]
    cpu: Option<usize>,
}

fn main() -> std::io::Result<()> {
    let args = Args::parse();
    let dir = scratch();
    let options = CoreOptions {
        name: "core".into(),
        cpu: args.cpu,
        dir: dir.path().to_owned(),
        disk: DiskChoice::Auto,
        clock: Clock::System,
    };
    let checkpoint_bytes = args.checkpoint << 10;
    let replay_bytes_max = 2 * checkpoint_bytes;
    let limits = Limits { checkpoint_bytes, replay_bytes_max, ..Limits::PRODUCTION };
    let main = async move |env: RealEnv| {
        with_shard(&env, limits, async |shard| {
            load(shard, args.objects).await;
            run(&env, shard, args, Duration::from_millis(300)).await;
            let (before, cpu) = (shard.stats(), cpu_time());
            let waited = run(&env, shard, args, Duration::from_secs_f64(args.seconds)).await;
            let (after, cpu) = (shard.stats(), cpu_time() - cpu);
            report(args, waited, cpu);
            println!(
                "{} checkpoints, {} KiB of the log, {} runs",
                after.checkpoints - before.checkpoints,
                (after.log_bytes - before.log_bytes) >> 10,
                after.runs,
            );
        })
        .await;
    };
    CoreThread::spawn(options, main)?.join()
}

async fn load(shard: &Shard<RealEnv>, objects: u64) {
    for number in 0..objects {
        let put = |batch: Batch, at| batch.put(key(at), value(number));
        let batch = (0..KEYS).fold(Batch::new(), put);
        let ticket = shard.commit(&object(number), &batch, None).expect("accepted");
        if number % 4096 == 0 || number + 1 == objects {
            ticket.await.expect("durable");
        }
    }
}

/// How long each commit waited.
async fn run(
    env: &RealEnv,
    shard: &Shard<RealEnv>,
    args: Args,
    measure: Duration,
) -> Vec<Duration> {
    let end = Instant::now() + measure;
    let waited = Rc::new(RefCell::new(Vec::new()));
    let running = Rc::new((Cell::new(args.tasks), Signal::default()));
    let random = Rc::new(Cell::new(0x9e37_79b9_7f4a_7c15_u64));
    for _ in 0..args.tasks {
        let (shard, waited, running) = (shard.clone(), waited.clone(), running.clone());
        let random = random.clone();
        env.spawn("client", async move {
            let mut before = Instant::now();
            while before < end {
                let number = next(&random);
                let at = u32::try_from(number >> 62).expect("two bits");
                let batch = Batch::new().put(key(at), value(number >> 20));
                let id = object(number % args.objects);
                shard.commit(&id, &batch, None).expect("accepted").await.expect("durable");
                let now = Instant::now();
                waited.borrow_mut().push(now - before);
                before = now;
            }
            running.0.set(running.0.get() - 1);
            running.1.notify();
        });
    }
    running.1.until(|| (running.0.get() == 0).then_some(())).await;
    waited.take()
}

/// The next number of a xorshift generator.
fn next(state: &Cell<u64>) -> u64 {
    let mut x = state.get();
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    state.set(x);
    x
}

/// Processor time of this process, in steps of 10 ms; zero where the kernel does not say.
fn cpu_time() -> Duration {
    let text = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = text.rsplit(')').next().unwrap_or_default().split_whitespace();
    let ticks: u64 = fields.skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    Duration::from_millis(10 * ticks)
}

fn report(args: Args, mut waited: Vec<Duration>, cpu: Duration) {
    waited.sort_unstable();
    let commits = waited.len() as f64;
    let quantile = |per_mille: usize| waited[waited.len() * per_mille / 1000].as_micros();
    println!("{:.0} commits/s by {} tasks", commits / args.seconds, args.tasks);
    println!(
        "waited, us: {} in the median, p10 {}, p90 {}, p99 {}, p99.9 {}",
        quantile(500),
        quantile(100),
        quantile(900),
        quantile(990),
        quantile(999),
    );
    println!("processor time, us: {:.2} each", cpu.as_secs_f64() * 1e6 / commits);
}
