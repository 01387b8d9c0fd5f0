//! Each acknowledgement follows a completed write to a file opened `O_DSYNC`, or a completed sync.
//!
//! A child commits values that carry marks and says on its output which are acknowledged. A library
//! loaded before libc (`trace.c`, built here by the C compiler) writes down the system calls of the
//! child, and [`check`] reads that. On io_uring the writes can't be seen so, only how the files
//! were opened.
//!
//! | line | what happened |
//! |---|---|
//! | `open FD dsync\|plain PATH` | a file was opened |
//! | `write FD N of M MARK…` | a write returned N; the marks that lay in the N bytes |
//! | `sync FD` | a sync succeeded |
//! | `close FD` | a file is being closed |
//! | `ack MARK` | a commit is about to be acknowledged |

#![cfg(target_os = "linux")]

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

#[path = "../common/mod.rs"]
mod common;

use common::{dir, disks};
use dormouse_engine::real::DiskChoice;
use dormouse_engine::{Batch, ObjectId, Options, Store};

/// Acknowledged commits, all of them durable at that moment; or what is wrong.
fn check(trace: &str) -> Result<usize, String> {
    struct Open {
        dsync: bool,
        /// Marks written that wait for a sync.
        unsynced: BTreeSet<String>,
    }
    let mut files: BTreeMap<u32, Open> = BTreeMap::new();
    let mut durable: BTreeSet<String> = BTreeSet::new();
    let mut acknowledged = 0;
    for line in trace.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let number = |word: &str| word.parse::<u32>().map_err(|_| format!("no number: {line}"));
        match words[..] {
            ["open", fd, how, ..] => {
                let open = Open { dsync: how == "dsync", unsynced: BTreeSet::new() };
                files.insert(number(fd)?, open);
            }
            ["write", fd, done, "of", _, ref marks @ ..] if !done.starts_with('-') => {
                let Some(file) = files.get_mut(&number(fd)?) else { continue };
                let marks = marks.iter().map(|mark| (*mark).to_owned());
                match file.dsync {
                    true => durable.extend(marks),
                    false => file.unsynced.extend(marks),
                }
            }
            ["sync", fd] => {
                let Some(file) = files.get_mut(&number(fd)?) else { continue };
                durable.append(&mut file.unsynced);
            }
            ["close", fd] => drop(files.remove(&number(fd)?)),
            ["ack", mark] if durable.contains(mark) => acknowledged += 1,
            ["ack", mark] => return Err(format!("{mark} was acknowledged and is not durable")),
            ["write", ..] => {}
            _ => return Err(format!("not a line of a trace: {line}")),
        }
    }
    match acknowledged {
        0 => Err("nothing was acknowledged: is anything traced?".to_owned()),
        count => Ok(count),
    }
}

#[test]
fn the_checker_finds_what_is_not_durable() {
    let wrong = [
        ("nothing traced", ""),
        ("acknowledged before it is written", "open 3 dsync f\nack 1\nwrite 3 9 of 9 1"),
        ("never written", "open 3 dsync f\nwrite 3 9 of 9 1\nack 2"),
        ("not synced", "open 3 plain f\nwrite 3 9 of 9 1\nack 1"),
        ("synced before it is written", "open 3 plain f\nsync 3\nwrite 3 9 of 9 1\nack 1"),
        ("synced elsewhere", "open 3 plain f\nopen 4 plain g\nwrite 3 9 of 9 1\nsync 4\nack 1"),
        ("failed", "open 3 dsync f\nwrite 3 -1 of 9\nack 1"),
        ("another file by now", "open 3 dsync f\nclose 3\nopen 3 plain g\nwrite 3 9 of 9 1\nack 1"),
        ("not a trace", "open 3 dsync f\nwrite 3 9 of 9 1\nack 1\nhello"),
    ];
    for (what, trace) in wrong {
        assert!(check(trace).is_err(), "{what}");
    }
    assert_eq!(check("open 3 dsync f\nwrite 3 9 of 9 1 2\nack 2\nack 1"), Ok(2));
    assert_eq!(check("open 3 plain f\nwrite 3 9 of 9 1\nsync 3\nack 1"), Ok(1));
}

const COMMITS: u32 = 200;

/// Not a test of its own: the child of the tests below.
#[test]
#[expect(clippy::disallowed_methods, reason = "how the parent speaks to the child")]
fn child() {
    let Ok(dir) = std::env::var("DORMOUSE_DURABLE_DIR") else { return };
    let disk = match std::env::var("DORMOUSE_DURABLE_POSIX") {
        Ok(_) => DiskChoice::Posix,
        Err(_) => DiskChoice::Uring,
    };
    let options = Options { cores: Some(2), shards: Some(2), disk, ..Options::default() };
    let store = Store::open(dir, options).expect("a store");
    let mut in_flight = Vec::new();
    let tell = |(mark, call): (u32, dormouse_engine::Call<_>)| {
        call.wait().expect("durable");
        let mut out = std::io::stdout().lock();
        out.write_all(format!("ack {mark:08}\n").as_bytes()).expect("the parent reads");
        out.flush().expect("the parent reads");
    };
    for mark in 0..COMMITS {
        let id = ObjectId::from_bytes([u8::try_from(mark % 7).expect("small"); 32]);
        let batch = Batch::new().put("mark", format!("MARK:{mark:08}"));
        in_flight.push((mark, store.object(id).commit(batch)));
        if in_flight.len() == 5 {
            in_flight.drain(..).for_each(tell);
        }
    }
    in_flight.drain(..).for_each(tell);
    store.close().wait().expect("closed");
}

/// The library that writes the trace.
fn library(dir: &Path) -> PathBuf {
    let library = dir.join("trace.so");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/durability/trace.c");
    let built = Command::new("cc")
        .args(["-O1", "-shared", "-fPIC", "-Wall", "-Werror", "-o"])
        .arg(&library)
        .args([source, "-ldl"])
        .status();
    assert!(built.expect("a C compiler").success());
    library
}

/// What a child did on this disk.
fn trace(disk: DiskChoice) -> String {
    let dir = dir();
    let trace = dir.path().join("trace");
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.args(["--exact", "child", "--nocapture"]);
    command.env("LD_PRELOAD", library(dir.path())).env("DORMOUSE_TRACE", &trace);
    command.env("DORMOUSE_DURABLE_DIR", dir.path().join("store"));
    if disk == DiskChoice::Posix {
        command.env("DORMOUSE_DURABLE_POSIX", "1");
    }
    let ended = command.output().expect("a child");
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    let mut file = std::io::BufReader::new(open(&trace));
    let mut text = String::new();
    std::io::Read::read_to_string(&mut file, &mut text).expect("text");
    text
}

#[expect(clippy::disallowed_types, reason = "reads what another process wrote")]
fn open(path: &Path) -> std::fs::File {
    std::fs::File::open(path).expect("a trace")
}

#[test]
fn every_acknowledgement_follows_a_durable_write() {
    let trace = trace(DiskChoice::Posix);
    assert_eq!(check(&trace), Ok(COMMITS as usize));
    // The same, had the files been opened without O_DSYNC: this test can fail.
    assert!(check(&trace.replace(" dsync ", " plain ")).is_err());
}

#[test]
fn segments_are_opened_for_durable_writes_on_every_disk() {
    for disk in disks() {
        let trace = trace(disk);
        let segments = |how: &str| {
            let opened = trace.lines().filter(|line| line.starts_with("open "));
            opened.filter(|line| line.contains(how) && line.contains("-segment-")).count()
        };
        assert!(segments(" dsync ") >= 2, "{disk:?}: {trace}");
        assert_eq!(segments(" plain "), 0, "{disk:?}");
    }
}
