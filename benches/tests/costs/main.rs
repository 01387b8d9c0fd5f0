//! Where the time goes: what a commit, a turn, an activation, a cached get and a call cost in system
//! calls, allocations, bytes and instructions, each held by a bound. Prints all of it:
//! `cargo test --release -p dormouse-benches --test costs`.
//!
//! A program of its own without the usual harness, for its allocator counts the whole process, and
//! what could not be counted must be seen. A debug build leaves out what is counted from outside.

mod inside;
mod outside;
mod report;

use std::process::ExitCode;

use dormouse_benches::costs::Op;
use dormouse_benches::scratch;
use dormouse_engine::real::{DiskChoice, block_on};
use report::{Report, What};

/// At most so much for each operation, in the order of [`Op::ALL`]: commit, commit-64, turn,
/// activation, get, call. Close to what was measured, so that a step more is seen; lower them when a
/// figure falls.
#[rustfmt::skip]
const BOUNDS: [(What, [f64; Op::ALL.len()]); 10] = [
    (What::Allocations,    [    30.0,     17.0,     31.0,    12.0,   0.0,     8.5]),
    (What::AllocatedBytes, [14_200.0, 10_000.0, 27_000.0,  9_500.0,  0.0,   820.0]),
    (What::BatchBytes,     [ 4_096.0,    350.0,  6_300.0,     0.0,   0.0,     0.0]),
    (What::BatchWrites,    [     1.0,     0.02,      1.0,     0.0,   0.0,     0.0]),
    (What::WrittenBytes,   [ 5_000.0,    550.0,  7_200.0,     0.0,   0.0,     0.0]),
    (What::Reads,          [     0.4,      1.3,      0.0,     1.0,   0.0,     0.0]),
    (What::ReadBytes,      [ 4_500.0,  5_400.0,      0.0, 4_700.0,   0.0,     0.0]),
    (What::Sleeps,         [     2.0,      0.1,      2.0,     1.5,  0.01,    0.01]),
    (What::SystemCalls,    [    10.0,     0.25,      7.0,     6.0,  0.05,     0.2]),
    (What::Instructions,   [46_500.0, 21_000.0, 80_000.0, 23_000.0, 493.0, 11_100.0]),
];

fn main() -> ExitCode {
    let mut report = Report::default();
    let has_uring = has_uring();
    if let Err(why) = &has_uring {
        report.skip("allocations, sleeps and system calls, which are io_uring's", why);
    }
    for op in Op::ALL {
        report.add(inside::disk(op));
        report.add(inside::batches(op));
        if has_uring.is_ok() {
            report.add(inside::heap(op));
            match inside::sleeping(op) {
                Ok(figure) => report.add([figure]),
                Err(why) => report.skip("sleeps", why),
            }
        }
    }
    match cfg!(debug_assertions) {
        true => report.skip("system calls and instructions", "this is a debug build"),
        false => outside(&mut report, has_uring.is_ok()),
    }
    report.print();
    let over = report.over(&BOUNDS);
    over.iter().for_each(|line| println!("OVER: {line}"));
    match over.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

/// Whether the kernel lets us have a ring; if not, why.
fn has_uring() -> Result<(), std::io::Error> {
    block_on(scratch().path(), DiskChoice::Uring, async |_| ())
}

fn outside(report: &mut Report, has_uring: bool) {
    let example = outside::example();
    if has_uring {
        match outside::system_calls(&example) {
            Ok(figures) => report.add(figures),
            Err(why) => report.skip("system calls", why),
        }
    }
    match outside::instructions(&example) {
        Ok(figures) => report.add(figures),
        Err(why) => report.skip("instructions", why),
    }
}
