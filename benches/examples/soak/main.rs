//! Whether a store stays what it is: `cargo run --release -p dormouse-benches --example soak -- --help`.
//!
//! A store is filled to 70 % of a capacity with objects of a kilobyte, of some ten and of megabytes (which are trees),
//! and then ten times the capacity is written over them, half of it to the hottest tenth. Meanwhile
//! bytes on disk, live bytes, memory, descriptors, throughput and latencies are sampled; what they were is drawn.
//! With `--kill` a child process does the work, and is killed every few seconds; it opens the store
//! again, reads all that is there, and everything that was acknowledged must be in it.
//!
//! It fails if bytes on disk, memory or descriptors do not level off (their highest in the last third of the
//! samples against their highest in the middle one: [`samples::judge`]), if anything that was acknowledged is
//! not there, or if a scrub finds anything.

#![expect(
    clippy::disallowed_methods,
    reason = "it measures the real thing: clock, files, processes"
)]

mod data;
mod draw;
mod killed;
mod load;
mod samples;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use dormouse_engine::real::{DiskChoice, block_on};
use dormouse_engine::{Limits, Options, Shard, Store, StoreLock};

use data::Plan;
use samples::Sample;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// How long a store is left alone after the load, so that it is cleaned as in a lull.
const LULL: Duration = Duration::from_secs(3);

/// Writes over a store for long, and fails if it does not stay what it is.
#[derive(Clone, Parser)]
pub(crate) struct Args {
    /// Bytes that the store is for, in MiB: 70 % of them are filled.
    #[arg(long, default_value_t = 256)]
    capacity: u64,
    /// How many times the capacity is written over what is there.
    #[arg(long, default_value_t = 10)]
    times: u64,
    /// Threads that write, each waiting for its commit.
    #[arg(long, default_value_t = 8)]
    threads: usize,
    /// Kill the process that writes every few seconds.
    #[arg(long)]
    kill: bool,
    /// Seconds that it lives, on average, once it has read everything.
    #[arg(long, default_value_t = 3.0)]
    every: f64,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where the store is made, in a directory of its own that is removed in the end: beside the program, unless said.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Where samples (CSV) and curves (SVG) are written: into target/soak, unless said.
    #[arg(long)]
    out: Option<PathBuf>,
    /// The directory of a store to work on until killed; bytes to write, and the number of this process.
    #[arg(long, hide = true, num_args = 3)]
    child: Option<Vec<String>>,
}

impl Args {
    fn plan(&self) -> Plan {
        Plan::new((self.capacity << 20) * 7 / 10)
    }

    /// Bytes that are written over what is there.
    fn goal(&self) -> u64 {
        (self.capacity << 20) * self.times
    }
}

pub(crate) fn mib(bytes: u64) -> f64 {
    bytes as f64 / (1 << 20) as f64
}

/// Fills a store and writes over it in this process.
fn soak(args: &Args, dir: &Path) -> Result<Vec<Sample>> {
    let plan = args.plan();
    let store = Store::open(dir, Options::default())?;
    let mut stamps = vec![0; plan.slots()];
    let began = Instant::now();
    load::fill(&store, &plan, &mut stamps, args.threads, &|_, _| Ok(()))?;
    println!("filled in {:.1} s", began.elapsed().as_secs_f64());
    let mut samples = Vec::new();
    let began = Instant::now();
    let take = |sample: Sample| {
        samples::print(&sample, args.goal());
        samples.push(sample);
        Ok(())
    };
    let run = load::Run { threads: args.threads, goal: args.goal(), seed: args.seed };
    load::overwrite(&store, &plan, &mut stamps, &run, dir, take, &|_, _| Ok(()))?;
    let took = began.elapsed().as_secs_f64();
    println!("written {:.0} MiB in {took:.1} s", mib(args.goal()));
    let found = load::read_all(&store, &plan, args.threads)?;
    let wrong = found.iter().zip(&stamps).filter(|(found, written)| found != written).count();
    if wrong > 0 {
        return Err(format!("{wrong} keys are not what was written last").into());
    }
    println!("read: all {} keys are what was written last", plan.slots());
    std::thread::sleep(LULL);
    let stats = store.stats().wait()?.total;
    println!(
        "after a lull: {:.0} MiB on disk, {:.0} live, {} segments cleaned, {:.0} MiB of them moved",
        mib(samples::disk_bytes(dir)?),
        mib(stats.live_bytes),
        stats.segments_cleaned,
        mib(stats.cleaned_bytes),
    );
    store.close().wait()?;
    Ok(samples)
}

/// Reads everything by itself, and counts live bytes anew.
fn scrub(dir: &Path) -> Result<()> {
    let scrubbed = block_on(dir, DiskChoice::Auto, async move |env| {
        let lock = StoreLock::open_or_create(&env, &Limits::PRODUCTION, 1).await?;
        let (mut objects, mut wrong) = (0, Vec::new());
        for number in 0..lock.superblock().shards {
            let opened = Shard::open(&env, lock.superblock(), number, Limits::PRODUCTION).await?;
            let found = opened.0.scrub(|_| {}).await?;
            objects += found.objects;
            let unreadable = found.unreadable.iter().map(|(id, error)| format!("{id}: {error}"));
            wrong.extend(unreadable.chain(found.directory.iter().map(ToString::to_string)));
            wrong.extend(found.miscounted);
            opened.0.close().await?;
        }
        Ok::<_, dormouse_engine::Error>((objects, wrong))
    });
    let (objects, wrong) = scrubbed??;
    match wrong.first() {
        None => {
            println!("scrub: {objects} objects, nothing wrong");
            Ok(())
        }
        Some(first) => {
            Err(format!("scrub: {} things are wrong, first {first}", wrong.len()).into())
        }
    }
}

fn run(args: &Args) -> Result<()> {
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target");
    let out = args.out.clone().unwrap_or_else(|| target.join("soak"));
    std::fs::create_dir_all(&out)?;
    let below = args.dir.clone().unwrap_or(target);
    std::fs::create_dir_all(&below)?;
    let dir = tempfile::tempdir_in(below)?;
    let plan = args.plan();
    println!(
        "capacity {} MiB: {} objects, {} keys, {:.0} MiB; {:.0} MiB are written over them",
        args.capacity,
        plan.objects().len(),
        plan.slots(),
        mib(plan.bytes()),
        mib(args.goal()),
    );
    let samples = match args.kill {
        true => killed::soak(args, &plan, dir.path())?,
        false => soak(args, dir.path())?,
    };
    let name = if args.kill { "killed" } else { "soak" };
    samples::write_csv(&samples, &out.join(format!("{name}.csv")))?;
    draw::draw(&samples, &out.join(format!("{name}.svg")))?;
    println!("curves: {}", out.join(format!("{name}.svg")).display());
    scrub(dir.path())?;
    samples::judge(&samples)
}

fn main() -> ExitCode {
    let args = Args::parse();
    let done = match &args.child {
        Some(child) => killed::child(&args, child),
        None => run(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("soak: {error}");
            ExitCode::FAILURE
        }
    }
}
