//! Counted in this process: allocations, what is asked of the disk, sleeps.

use std::alloc::System;

use dormouse_benches::costs::Op;
use dormouse_benches::counted::Counts;
use dormouse_benches::{Rounds, Span};
use dormouse_engine::real::DiskChoice;
use stats_alloc::{INSTRUMENTED_SYSTEM, Stats, StatsAlloc};

use crate::report::{Figure, What};

#[global_allocator]
static GLOBAL: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// So many that segments and checkpoints have their usual share.
const fn many(op: Op) -> Rounds {
    match op {
        Op::Commit | Op::Turn => Rounds { warm_up: 1000, measured: 3000 },
        Op::Commit64 => Rounds { warm_up: 200, measured: 600 },
        Op::Activation => Rounds { warm_up: 500, measured: 2000 },
        Op::Get | Op::Call => Rounds { warm_up: 1000, measured: 20_000 },
    }
}

/// So few that the first segment is not full: once zeros were written ahead of them, every write is a batch.
const fn few(op: Op) -> Rounds {
    match op {
        // What opening has left to do, as merges, is done when it is counted.
        Op::Activation => Rounds { warm_up: 500, measured: 15 },
        Op::Commit64 => Rounds { warm_up: 9, measured: 15 },
        _ => Rounds { warm_up: 50, measured: 15 },
    }
}

fn each(op: Op, rounds: Rounds, what: What, total: u64) -> Figure {
    let value = total as f64 / (rounds.measured * op.in_round()) as f64;
    Figure { op, what, value }
}

/// Allocations of the whole process: no other thread has anything to do.
pub(crate) fn heap(op: Op) -> [Figure; 2] {
    let rounds = many(op);
    let Span { from, to } = op.run(DiskChoice::Auto, rounds, || GLOBAL.stats());
    let blocks = |stats: Stats| (stats.allocations + stats.reallocations) as u64;
    let bytes = (to.bytes_allocated - from.bytes_allocated) as u64;
    [
        each(op, rounds, What::Allocations, blocks(to) - blocks(from)),
        each(op, rounds, What::AllocatedBytes, bytes),
    ]
}

/// What the log's batches take, and nothing else.
pub(crate) fn batches(op: Op) -> [Figure; 2] {
    let rounds = few(op);
    let Span { from, to } = op.run(DiskChoice::Auto, rounds, Counts::now);
    let counts = to.since(from);
    [
        each(op, rounds, What::BatchBytes, counts.written_bytes),
        each(op, rounds, What::BatchWrites, counts.writes),
    ]
}

/// All that is asked of the disk.
pub(crate) fn disk(op: Op) -> [Figure; 3] {
    let rounds = many(op);
    let Span { from, to } = op.run(DiskChoice::Auto, rounds, Counts::now);
    let counts = to.since(from);
    [
        each(op, rounds, What::WrittenBytes, counts.written_bytes),
        each(op, rounds, What::Reads, counts.reads),
        each(op, rounds, What::ReadBytes, counts.read_bytes),
    ]
}

/// Times that this thread gave up its processor to wait.
fn sleeps() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let field = text.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    field.and_then(|figure| figure.trim().parse().ok()).unwrap_or(0)
}

/// How often the core's thread sleeps.
///
/// Errors: the kernel does not say.
pub(crate) fn sleeping(op: Op) -> Result<Figure, String> {
    let rounds = many(op);
    let Span { from, to } = op.run(DiskChoice::Auto, rounds, sleeps);
    match to {
        0 => Err("no voluntary_ctxt_switches in /proc/thread-self/status".into()),
        to => Ok(each(op, rounds, What::Sleeps, to - from)),
    }
}
