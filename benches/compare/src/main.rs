//! `cargo compare`: Dormouse beside what people would use instead, and beside the floors of the
//! machine, all in one run.
//!
//! A round is a list of steps; every engine makes a step before the next step begins, and every round
//! starts with empty directories. What is printed are medians over the rounds, with their spread,
//! and the targets of benches/targets.toml.

#![expect(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "it measures the real thing: clock, files, processes, threads"
)]

mod context;
mod data;
mod engines;
mod floor;
mod machine;
mod metrics;
mod plot;
mod progress;
mod report;
mod results;
mod run;
mod stats;
mod targets;
mod workloads;

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::Parser;

use crate::context::Settings;

/// Compares Dormouse with SQLite, redb, fjall, LMDB, RocksDB and the floors of this machine.
///
/// Every engine makes its commits durable before it is answered, which is checked by counting the
/// disk's flushes. All engines take turns in every round; medians of the rounds are printed with
/// their spread, and a line for each target: ok, MISS, or not judged with the cause.
///
/// It writes some gigabytes below --dir and removes them. Absolute figures differ between machines:
/// only ratios within one run count.
#[derive(Parser, Debug)]
#[command(name = "cargo compare")]
struct Options {
    /// Only workloads whose names begin with one of these words, such as W2a,W5
    #[arg(long, value_delimiter = ',', value_name = "WORKLOADS")]
    only: Vec<String>,
    /// Only these engines beside Dormouse and the floor, such as sqlite,fjall
    #[arg(long, value_delimiter = ',', value_name = "ENGINES")]
    engines: Vec<String>,
    /// Less of everything: some minutes, and more noise
    #[arg(long)]
    quick: bool,
    /// Rounds, at least three
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(3..=99))]
    rounds: Option<u32>,
    /// Objects of four keys
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1_000..=1_000_000))]
    objects: Option<u64>,
    /// Where the files go [default: beside the program, in its target directory]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Write one JSON object a line: workload, engine, metric, unit, median, min, max, rounds
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draw SVG bar charts
    #[arg(long, value_name = "DIR")]
    plot: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(clap::Subcommand, Debug)]
enum Command {
    /// What the program starts itself for.
    #[command(hide = true)]
    Child {
        #[command(subcommand)]
        task: workloads::child::Task,
    },
}

impl Options {
    fn settings(&self) -> Settings {
        let mut settings = if self.quick { Settings::quick() } else { Settings::full() };
        if let Some(rounds) = self.rounds {
            settings.rounds = usize::try_from(rounds).unwrap_or(settings.rounds);
        }
        settings.objects = self.objects.unwrap_or(settings.objects);
        settings
    }

    fn dir(&self) -> Result<PathBuf> {
        if let Some(dir) = &self.dir {
            return Ok(dir.clone());
        }
        let program = std::env::current_exe()?;
        let target = program.parent().and_then(|dir| dir.parent()).context("a target directory")?;
        Ok(target.join("compare-data"))
    }
}

fn main() -> Result<std::process::ExitCode> {
    let options = Options::parse();
    if let Some(Command::Child { task }) = &options.command {
        workloads::child::run(task)?;
        return Ok(std::process::ExitCode::SUCCESS);
    }
    let targets = targets::parse(targets::TARGETS).context("benches/targets.toml")?;
    // Looked at first: an hour's work is not to end at a path that can't be written.
    let mut json = options.json.as_ref().map(std::fs::File::create).transpose()?;
    let run = run::Run {
        settings: options.settings(),
        only: options.only.clone(),
        engines: run::chosen(&options.engines)?,
        dir: options.dir()?,
    };
    let others = machine::Others::watch();
    let results = run.run()?;
    let share = others.share();
    let mut out = std::io::stdout().lock();
    report::table(&results, &mut out)?;
    report::verdicts(&results, &targets, &mut out)?;
    report::others(share, &mut out)?;
    if let Some(file) = &mut json {
        report::json(&results, file)?;
    }
    if let Some(dir) = &options.plot {
        println!("{} charts in {}", plot::draw(&results, dir)?, dir.display());
    }
    Ok(match results.failures.is_empty() {
        true => std::process::ExitCode::SUCCESS,
        false => std::process::ExitCode::FAILURE,
    })
}
