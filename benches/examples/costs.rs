//! One operation, so many times, and nothing else: for tools that count from outside.
//!
//! `valgrind --tool=callgrind target/release/examples/costs get 10000 --posix`: run it with N and 2N
//! rounds, and what starting costs drops out of the difference. `tests/costs` does that.

use clap::Parser;
use dormouse_benches::Rounds;
use dormouse_benches::costs::Op;
use dormouse_engine::real::DiskChoice;

/// Does one operation so many times.
#[derive(Parser)]
struct Args {
    /// commit, commit-64, turn, activation, get or call.
    op: Op,
    /// Rounds; one of commit-64 is 64 commits.
    rounds: u64,
    /// Without io_uring, which valgrind does not know.
    #[arg(long)]
    posix: bool,
}

fn main() {
    let Args { op, rounds, posix } = Args::parse();
    let disk = if posix { DiskChoice::Posix } else { DiskChoice::Auto };
    op.run(disk, Rounds { warm_up: 0, measured: rounds }, || ());
}
