//! `cargo store`: looks into a store, checks and repairs it, without any code.
//!
//! Each command is a module of its own. What only looks opens the store for reading, so that nothing
//! on the disk changes.

mod access;
mod dump;
mod inspect;
mod log;
mod ls;
mod print;
mod repair;
mod reshard;
mod scrub;
mod stat;
mod torture;
mod value;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use dormouse_engine as engine;

/// Looks into a store, checks and repairs it.
///
/// A store must not be open elsewhere meanwhile. Commands that only look change nothing on the disk: an
/// interrupted store is shown as it would be recovered.
#[derive(Parser)]
#[command(name = "cargo store", bin_name = "cargo store", version)]
#[command(verbatim_doc_comment, after_help = EXITS)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

const EXITS: &str = "Exits with 0 if all is well, 1 if anything is damaged or missing, \
2 if it could not be done.";

#[derive(Subcommand)]
enum Command {
    Stat(stat::Stat),
    Ls(ls::Ls),
    Inspect(inspect::Inspect),
    Log(log::Log),
    Dump(dump::Dump),
    Scrub(scrub::Scrub),
    Repair(repair::Repair),
    Reshard(reshard::Reshard),
    Torture(torture::Torture),
    #[command(hide = true)]
    TortureWriter(torture::Writer),
}

/// What a command found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Fine,
    /// Something is damaged, or is not there.
    Not,
}

impl Verdict {
    fn fine_if(fine: bool) -> Self {
        if fine { Self::Fine } else { Self::Not }
    }
}

type Done = anyhow::Result<Verdict>;

fn main() -> ExitCode {
    let done = match Args::parse().command {
        Command::Stat(stat) => stat.run(),
        Command::Ls(ls) => ls.run(),
        Command::Inspect(inspect) => inspect.run(),
        Command::Log(log) => log.run(),
        Command::Dump(dump) => dump.run(),
        Command::Scrub(scrub) => scrub.run(),
        Command::Repair(repair) => repair.run(),
        Command::Reshard(reshard) => reshard.run(),
        Command::Torture(torture) => torture.run(),
        Command::TortureWriter(writer) => writer.run(),
    };
    match done {
        Ok(Verdict::Fine) => ExitCode::SUCCESS,
        Ok(Verdict::Not) => ExitCode::from(1),
        // Whoever reads has seen enough, as in `cargo store ls DIR | head`.
        Err(error) if is_io(&error, std::io::ErrorKind::BrokenPipe) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}", told(&error));
            ExitCode::from(if is_damage(&error) { 1 } else { 2 })
        }
    }
}

fn is_io(error: &anyhow::Error, kind: std::io::ErrorKind) -> bool {
    error.chain().any(|cause| {
        cause.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == kind)
    })
}

fn is_damage(error: &anyhow::Error) -> bool {
    let mut causes = error.chain().filter_map(|cause| cause.downcast_ref::<engine::Error>());
    causes.any(|error| error.kind() == engine::Kind::Corrupt)
}

/// An error with its causes, and what to do about it.
fn told(error: &anyhow::Error) -> String {
    let mut causes = Vec::new();
    for cause in error.chain() {
        causes.push(cause.to_string());
        // It names its causes itself.
        if cause.is::<engine::Error>() {
            break;
        }
    }
    let mut told = causes.join(": ");
    if is_io(error, std::io::ErrorKind::WouldBlock) {
        told += "\nClose the program that has the store open, and try again.";
    } else if is_damage(error) {
        told += "\n`cargo store scrub` lists what is damaged, `cargo store repair` what can be \
                 brought back.";
    }
    told
}
