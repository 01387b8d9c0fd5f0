//! `cargo sim run`: many seeds, and what they found.

use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Args;
use dormouse_sim::life::{Mark, Report, live};
use indicatif::{ProgressBar, ProgressStyle};

/// Seeds that `cargo sim` runs when it is given no words: some half a minute on two cores.
pub(crate) const SEEDS_DEFAULT: u64 = 4000;

/// Which seeds to run.
#[derive(Args, Debug, Default)]
pub(crate) struct Range {
    /// How many seeds.
    #[arg(long)]
    pub(crate) seeds: Option<u64>,
    /// The first seed.
    #[arg(long, default_value_t = 0)]
    pub(crate) from: u64,
    /// Stop after so many seconds.
    #[arg(long)]
    pub(crate) seconds: Option<u64>,
    /// Threads; each seed runs on one.
    #[arg(long, default_value_t = 2)]
    pub(crate) jobs: u64,
    /// Stop at the first seed that fails.
    #[arg(long)]
    pub(crate) until_failure: bool,
    /// Print how often each state that a long run should see was seen.
    #[arg(long)]
    pub(crate) marks: bool,
}

#[derive(Default)]
struct Totals {
    seeds: u64,
    report: Report,
    failures: u64,
}

#[expect(clippy::disallowed_methods, reason = "the command's own time limit, not a life's")]
pub(crate) fn run(range: &Range) -> ExitCode {
    let Range { seeds, from, seconds, jobs, until_failure, marks } = *range;
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
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    let late = deadline.is_some_and(|deadline| Instant::now() >= deadline);
                    if seed >= end || late || stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let report = live(seed, false);
                    let mut totals = totals.lock().expect("no worker panics");
                    stop.fetch_or(until_failure && report.failure.is_some(), Ordering::Relaxed);
                    add(&mut totals, &report);
                    if let Some(failure) = &report.failure {
                        bar.suspend(|| say(seed, failure));
                    }
                    bar.inc(1);
                    bar.set_message(format!("{} failures", totals.failures));
                }
            });
        }
    });
    bar.finish_and_clear();
    let totals = totals.into_inner().expect("no worker panics");
    print(&totals, started.elapsed(), marks)
}

fn add(totals: &mut Totals, report: &Report) {
    totals.seeds += 1;
    totals.report.operations += report.operations;
    totals.report.writes += report.writes;
    totals.report.crashes += report.crashes;
    totals.report.crashes_in_flight += report.crashes_in_flight;
    totals.report.crashes_in_recovery += report.crashes_in_recovery;
    for (total, count) in totals.report.marks.iter_mut().zip(report.marks.iter()) {
        *total += count;
    }
    totals.failures += u64::from(report.failure.is_some());
}

/// Says it at once: a long run may be ended before its end.
fn say(seed: u64, failure: &str) {
    println!("seed {seed}: {failure}");
    println!("replay: cargo sim replay {seed}");
}

fn print(totals: &Totals, elapsed: Duration, marks: bool) -> ExitCode {
    let Totals { seeds, report, failures } = totals;
    let percent = |part: u64, whole: u64| part * 100 / whole.max(1);
    println!(
        "crashes: {}% with a batch in flight, {}% in recovery; {}% of operations write",
        percent(report.crashes_in_flight, report.crashes),
        percent(report.crashes_in_recovery, report.crashes),
        percent(report.writes, report.operations),
    );
    if marks {
        for mark in Mark::ALL {
            println!("{:>12} {mark:?}", report.marks[mark as usize]);
        }
    }
    let never: Vec<_> =
        Mark::ALL.iter().filter(|mark| report.marks[**mark as usize] == 0).collect();
    if !never.is_empty() {
        println!("never seen: {never:?}");
    }
    let millis = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX).max(1);
    println!("{} operations a second", report.operations * 1000 / millis);
    let operations = report.operations;
    let crashes = report.crashes;
    println!("sim: {seeds} seeds, {operations} operations, {crashes} crashes, {failures} failures");
    if *failures == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
