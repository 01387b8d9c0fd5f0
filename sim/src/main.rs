//! `cargo sim`: runs seeds and says what was found.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand};
use dormouse_sim::conform::{Outcome, conform};
use dormouse_sim::life::{Report, live};
use indicatif::{ProgressBar, ProgressStyle};

/// Seeds that `cargo sim` runs when it is given no words: some half a minute on two cores.
const SEEDS_DEFAULT: u64 = 4000;

/// Runs the real engine on a simulated disk and clock, crashes it, and compares what it holds
/// with SQLite. A seed decides everything.
#[derive(Parser)]
#[command(name = "cargo sim", version)]
struct Args {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Runs many seeds.
    Run {
        /// How many seeds.
        #[arg(long)]
        seeds: Option<u64>,
        /// The first seed.
        #[arg(long, default_value_t = 0)]
        from: u64,
        /// Stop after so many seconds.
        #[arg(long)]
        seconds: Option<u64>,
        /// Threads; each seed runs on one.
        #[arg(long, default_value_t = 2)]
        jobs: u64,
    },
    /// Runs one seed again, exactly.
    Replay {
        /// The seed.
        seed: u64,
        /// Print what happens, a line a step.
        #[arg(long)]
        log: bool,
    },
    /// Replays recorded traces on the whole stack and compares what is observed.
    Conform {
        /// Trace files; see sim/traces/FORMAT.md.
        #[arg(required = true)]
        files: Vec<PathBuf>,
        /// The machine's seed; what is observed must not depend on it.
        #[arg(long, default_value_t = 0)]
        seed: u64,
    },
}

fn main() -> ExitCode {
    match Args::parse().command {
        None => run(Some(SEEDS_DEFAULT), 0, None, 2),
        Some(Command::Run { seeds, from, seconds, jobs }) => {
            let seeds = seeds.or(if seconds.is_none() { Some(SEEDS_DEFAULT) } else { None });
            run(seeds, from, seconds, jobs)
        }
        Some(Command::Replay { seed, log }) => replay(seed, log),
        Some(Command::Conform { files, seed }) => conform_all(&files, seed),
    }
}

fn replay(seed: u64, log: bool) -> ExitCode {
    let report = live(seed, log);
    report.log.iter().for_each(|line| println!("{line}"));
    if let Some(failure) = &report.failure {
        println!("seed {seed}: {failure}");
    }
    println!("trace-hash: {:032x}", report.trace_hash);
    if report.failure.is_some() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn conform_all(files: &[PathBuf], seed: u64) -> ExitCode {
    let mut outcome = Outcome::default();
    let mut unreadable = false;
    for file in files {
        if let Err(error) = conform(file, seed, &mut outcome) {
            eprintln!("{}: {error:#}", file.display());
            unreadable = true;
        }
    }
    outcome.differences.iter().for_each(|line| println!("{line}"));
    let Outcome { traces, operations, differences, skipped, inexpressible } = outcome;
    println!("{inexpressible} operations have arguments that the types rule out");
    let count = differences.len();
    println!(
        "conform: {traces} traces, {operations} operations, {count} differences, {skipped} skipped"
    );
    if count == 0 && !unreadable { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[derive(Default)]
struct Totals {
    seeds: u64,
    report: Report,
    failures: Vec<(u64, String)>,
}

#[expect(clippy::disallowed_methods, reason = "the command's own time limit, not a life's")]
fn run(seeds: Option<u64>, from: u64, seconds: Option<u64>, jobs: u64) -> ExitCode {
    let started = Instant::now();
    let deadline = seconds.map(|seconds| started + Duration::from_secs(seconds));
    let end = seeds.map_or(u64::MAX, |seeds| from.saturating_add(seeds));
    let bar = match std::io::stderr().is_terminal() {
        true => ProgressBar::new(seeds.unwrap_or(0)),
        false => ProgressBar::hidden(),
    };
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} seeds, {elapsed}, {msg}");
    bar.set_style(style.expect("a valid template"));
    let (next, totals) = (AtomicU64::new(from), Mutex::new(Totals::default()));
    std::thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    let late = deadline.is_some_and(|deadline| Instant::now() >= deadline);
                    if seed >= end || late {
                        break;
                    }
                    let report = live(seed, false);
                    let mut totals = totals.lock().expect("no worker panics");
                    add(&mut totals, seed, &report);
                    bar.inc(1);
                    bar.set_message(format!("{} failures", totals.failures.len()));
                }
            });
        }
    });
    bar.finish_and_clear();
    let totals = totals.into_inner().expect("no worker panics");
    print(&totals, started.elapsed())
}

fn add(totals: &mut Totals, seed: u64, report: &Report) {
    totals.seeds += 1;
    totals.report.operations += report.operations;
    totals.report.writes += report.writes;
    totals.report.crashes += report.crashes;
    totals.report.crashes_in_flight += report.crashes_in_flight;
    totals.report.crashes_in_recovery += report.crashes_in_recovery;
    if let Some(failure) = &report.failure {
        totals.failures.push((seed, failure.clone()));
    }
}

fn print(totals: &Totals, elapsed: Duration) -> ExitCode {
    let Totals { seeds, report, failures } = totals;
    for (seed, failure) in failures {
        println!("seed {seed}: {failure}");
        println!("replay: cargo sim replay {seed}");
    }
    let percent = |part: u64, whole: u64| part * 100 / whole.max(1);
    println!(
        "crashes: {}% with a batch in flight, {}% in recovery; {}% of operations write",
        percent(report.crashes_in_flight, report.crashes),
        percent(report.crashes_in_recovery, report.crashes),
        percent(report.writes, report.operations),
    );
    let millis = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX).max(1);
    println!("{} operations a second", report.operations * 1000 / millis);
    let operations = report.operations;
    let (crashes, failed) = (report.crashes, failures.len());
    println!("sim: {seeds} seeds, {operations} operations, {crashes} crashes, {failed} failures");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
