//! Counted from outside, of a release build of the example `costs`: system calls by perf or
//! strace, instructions by callgrind. Each operation runs N and 2N times: what starting and loading cost is
//! not in the difference.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use dormouse_benches::costs::Op;
use dormouse_benches::scratch;

use crate::report::{Figure, What};

const fn rounds(op: Op) -> u64 {
    match op {
        Op::Commit | Op::Turn => 1500,
        Op::Commit64 => 150,
        // Loading and merging are not quite the same each time.
        Op::Activation | Op::Get | Op::Call => 5000,
    }
}

/// Whether a tool can be used here; if not, why.
fn tool(name: &str) -> Result<(), String> {
    let found = Command::new(name).arg("--version").output();
    found.map(drop).map_err(|error| format!("no {name} on the PATH ({error})"))
}

/// Builds the example as a user's program is built; where it is.
pub(crate) fn example() -> PathBuf {
    let program = std::env::current_exe().expect("a program has a path");
    // <target>/<profile>/deps/<this>
    let target = program.ancestors().nth(3).expect("cargo's directories");
    let package = env!("CARGO_PKG_NAME");
    let built = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--release", "--example", "costs", "--package", package])
        .arg("--target-dir")
        .arg(target)
        .status();
    assert!(built.expect("cargo").success(), "the example does not build");
    target.join("release/examples/costs")
}

fn run(command: &mut Command) -> Result<Output, String> {
    let output = command.output().map_err(|error| error.to_string())?;
    match output.status.success() {
        true => Ok(output),
        false => Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr))),
    }
}

/// Calls by their names. The sum may be more than those of which the name is known.
struct Calls {
    sum: u64,
    by_name: Vec<(String, u64)>,
}

/// What perf is asked to tell apart.
const NAMED: [&str; 10] = [
    "io_uring_enter",
    "epoll_wait",
    "write",
    "read",
    "sendto",
    "recvfrom",
    "sched_yield",
    "futex",
    "pread64",
    "pwrite64",
];

/// Counts with perf, which hardly slows down what it counts.
fn by_perf(command: &Path, args: &[String], file: &Path) -> Result<Calls, String> {
    let events = NAMED.map(|name| format!(",syscalls:sys_enter_{name}")).concat();
    let mut perf = Command::new("perf");
    perf.args(["stat", "-x,", "-e", &format!("raw_syscalls:sys_enter{events}"), "-o"]);
    run(perf.arg(file).arg(command).args(args))?;
    let text = std::fs::read_to_string(file).map_err(|error| error.to_string())?;
    parse_perf(&text).ok_or_else(|| format!("perf says: {text}"))
}

/// Lines of `count,unit,event,...`.
fn parse_perf(text: &str) -> Option<Calls> {
    let line = |line: &str| {
        let mut fields = line.split(',');
        let count = fields.next()?.parse().ok()?;
        Some((fields.nth(1)?.to_owned(), count))
    };
    let counts: Vec<(String, u64)> = text.lines().filter_map(line).collect();
    let (_, sum) = counts.iter().find(|(event, _)| event == "raw_syscalls:sys_enter")?;
    let named = |(event, count): &(String, u64)| {
        Some((event.strip_prefix("syscalls:sys_enter_")?.to_owned(), *count))
    };
    Some(Calls { sum: *sum, by_name: counts.iter().filter_map(named).collect() })
}

/// Counts with strace, under which the device seems quicker: a little less is waited for.
fn by_strace(command: &Path, args: &[String], file: &Path) -> Result<Calls, String> {
    let mut strace = Command::new("strace");
    run(strace.args(["-f", "-c", "-o"]).arg(file).arg(command).args(args))?;
    let text = std::fs::read_to_string(file).map_err(|error| error.to_string())?;
    let by_name = parse_strace(&text);
    match by_name.iter().map(|(_, calls)| calls).sum() {
        0 => Err(format!("strace says: {text}")),
        sum => Ok(Calls { sum, by_name }),
    }
}

/// Lines of `% time, seconds, usecs/call, calls, errors, syscall`; the errors may be left out.
fn parse_strace(text: &str) -> Vec<(String, u64)> {
    let line = |line: &str| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let name = fields.last().filter(|name| **name != "total")?;
        Some(((*name).to_owned(), fields.get(3)?.parse().ok()?))
    };
    text.lines().filter_map(line).collect()
}

/// System calls of each operation, with the disk that is used here.
///
/// Errors: neither perf nor strace may trace here.
pub(crate) fn system_calls(example: &Path) -> Result<Vec<Figure>, String> {
    let dir = scratch();
    let file = dir.path().join("counts");
    let args = |op: Op, rounds: u64| [op.name().to_owned(), rounds.to_string()];
    let perf = |op, rounds| by_perf(example, &args(op, rounds), &file);
    let strace = |op, rounds| by_strace(example, &args(op, rounds), &file);
    match tool("perf").and_then(|()| perf(Op::Get, 1)) {
        Ok(_) => differences("perf", perf),
        Err(why) => match tool("strace").and_then(|()| strace(Op::Get, 1)) {
            Ok(_) => differences("strace", strace),
            Err(other) => Err(format!("{why}; {other}")),
        },
    }
}

fn differences(
    tool: &str,
    count: impl Fn(Op, u64) -> Result<Calls, String>,
) -> Result<Vec<Figure>, String> {
    let mut figures = Vec::new();
    for op in Op::ALL {
        let (once, twice) = (count(op, rounds(op))?, count(op, 2 * rounds(op))?);
        let each = |once: u64, twice: u64| {
            (twice as f64 - once as f64) / (rounds(op) * op.in_round()) as f64
        };
        let named = twice.by_name.iter().filter_map(|(name, calls)| {
            let before = once.by_name.iter().find(|(other, _)| other == name);
            let value = each(before.map_or(0, |(_, calls)| *calls), *calls);
            (value >= 0.005).then(|| format!("{name} {value:.2}"))
        });
        println!("{}, by {tool}: {}", op.name(), named.collect::<Vec<_>>().join(", "));
        figures.push(Figure { op, what: What::SystemCalls, value: each(once.sum, twice.sum) });
    }
    Ok(figures)
}

/// Instructions of each operation on the posix disk, for valgrind has no io_uring.
///
/// Errors: valgrind is not to be had.
pub(crate) fn instructions(example: &Path) -> Result<Vec<Figure>, String> {
    tool("valgrind")?;
    let dir = scratch();
    let count = |op: Op, rounds: u64| -> Result<u64, String> {
        let mut command = Command::new("valgrind");
        let out = format!("--callgrind-out-file={}", dir.path().join("out").display());
        command.args(["--tool=callgrind", &out]).arg(example);
        let output = run(command.args([op.name(), &rounds.to_string(), "--posix"]))?;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        let collected = text.lines().find_map(|line| line.split_once("Collected :"));
        let figure = collected.and_then(|(_, figure)| figure.trim().parse().ok());
        figure.ok_or_else(|| format!("valgrind says: {text}"))
    };
    let each = |op: Op| {
        let (once, twice) = (count(op, rounds(op))?, count(op, 2 * rounds(op))?);
        let value = (twice as f64 - once as f64) / (rounds(op) * op.in_round()) as f64;
        Ok(Figure { op, what: What::Instructions, value })
    };
    Op::ALL.map(each).into_iter().collect()
}
