//! `cargo sim`: runs seeds, says what was found, and explains it.

mod cli {
    pub(crate) mod canary;
    pub(crate) mod explain;
    pub(crate) mod run;
}

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use dormouse_sim::conform::{Outcome, conform};
use dormouse_sim::plan::Plan;
use mimalloc::MiMalloc;

use crate::cli::canary::{self, Canaries};
use crate::cli::explain;
use crate::cli::run::{Range, SEEDS_DEFAULT, run};

/// A life allocates all the time; the system's allocator takes a fifth of its time.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// Runs the real engine, cache and scheduler on a simulated disk and clock, crashes them, and
/// compares what they answer and keep with SQLite. A seed decides everything.
#[derive(Parser)]
#[command(name = "cargo sim", version)]
struct Args {
    #[command(subcommand)]
    command: Option<Verb>,
}

#[derive(Subcommand)]
enum Verb {
    /// Runs many seeds.
    Run(Range),
    /// Runs one seed again, exactly.
    Replay {
        /// The seed.
        seed: u64,
        /// Print what happens, a line a step.
        #[arg(long)]
        log: bool,
    },
    /// Prints the plan of a seed, for `play`.
    Plan {
        /// The seed.
        seed: u64,
    },
    /// Lives a plan from a file.
    Play {
        /// The plan, as `plan` and `shrink` print it.
        file: PathBuf,
        /// Print what happens, a line a step.
        #[arg(long)]
        log: bool,
    },
    /// Makes the plan of a failing seed, or one from a file, as short as it can.
    Shrink {
        /// A seed, or a file with a plan.
        what: String,
        /// Lives to try at most.
        #[arg(long, default_value_t = 20_000)]
        tries: u64,
        /// Where to write the plan; printed otherwise.
        #[arg(long)]
        out: Option<PathBuf>,
    },
    /// Shows the first step where two builds of the simulator part.
    Diff {
        /// The seed.
        seed: u64,
        /// One build: a program as in target/sim/sim.
        a: PathBuf,
        /// The other.
        b: PathBuf,
    },
    /// Builds deliberate bugs and counts the seeds that it takes to find each.
    Canary(Canaries),
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

fn main() -> Result<ExitCode> {
    let all = || Range { jobs: 2, ..Range::default() };
    Ok(match Args::parse().command.unwrap_or_else(|| Verb::Run(all())) {
        Verb::Run(mut range) => {
            if range.seeds.is_none() && range.seconds.is_none() {
                range.seeds = Some(SEEDS_DEFAULT);
            }
            run(&range)
        }
        Verb::Replay { seed, log } => explain::show(&Plan::of(seed), log),
        Verb::Plan { seed } => {
            print!("{}", Plan::of(seed).print());
            ExitCode::SUCCESS
        }
        Verb::Play { file, log } => explain::show(&explain::read(&file)?, log),
        Verb::Shrink { what, tries, out } => {
            let plan = match what.parse() {
                Ok(seed) => Plan::of(seed),
                Err(_) => explain::read(what.as_ref())?,
            };
            explain::shorten(&plan, tries, out.as_deref())?
        }
        Verb::Diff { seed, a, b } => explain::diff(seed, &a, &b)?,
        Verb::Canary(canaries) => canary::run(&canaries)?,
        Verb::Conform { files, seed } => conform_all(&files, seed),
    })
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
