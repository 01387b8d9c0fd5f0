//! [`Durability::OnFlush`] and SIGKILL: what was flushed is there, and of what was only answered a
//! prefix, in the order of each shard (E1, E2).
//!
//! The test runs this very program again as a child, which commits without waiting, and says on a
//! pipe what was answered and what was flushed; the parent kills it in the middle.

mod common;

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use common::{dir, disks};
use dormouse_engine::real::DiskChoice;
use dormouse_engine::{Batch, Durability, Limits, Object, ObjectId, Options, Store};

const SHARDS: u16 = 2;
const ROUNDS: u32 = 25;

fn open(dir: &Path, disk: DiskChoice) -> Store {
    let limits = Limits { lock_wait: Duration::from_secs(30), ..Limits::PRODUCTION };
    let durability = Durability::OnFlush;
    let (cores, shards) = (Some(2), Some(SHARDS));
    let options = Options { cores, shards, disk, limits, durability, ..Options::default() };
    Store::open(dir, options).expect("a store")
}

/// Three objects of a shard, which take turns.
fn objects(store: &Store, shard: u16) -> Vec<Object> {
    let ids = (0..=u8::MAX).map(|number| ObjectId::from_bytes([number; 32]));
    ids.filter(|id| id.shard(SHARDS) == shard).take(3).map(|id| store.object(id)).collect()
}

/// How many commits a shard holds: the first ones, without a gap, each as a whole.
fn count(store: &Store, shard: u16) -> u32 {
    let mut numbers = Vec::new();
    for object in objects(store, shard) {
        let contents = object.contents().wait().expect("readable");
        let (large, small): (Vec<_>, Vec<_>) =
            contents.map.iter().partition(|(key, _)| key[..] == b"large"[..]);
        let of_object =
            small.iter().map(|(key, _)| u32::from_be_bytes(key[..].try_into().expect("4")));
        let newest = of_object.clone().max();
        numbers.extend(of_object);
        // The large value is of the same commit as the newest small one.
        let written = large.first().map(|(_, value)| value[..4].try_into().expect("4 bytes"));
        assert_eq!(written.map(u32::from_be_bytes), newest, "a commit in two");
    }
    numbers.sort_unstable();
    let found = u32::try_from(numbers.len()).expect("few");
    assert_eq!(numbers, (0..found).collect::<Vec<_>>(), "shard {shard}: not a prefix");
    found
}

/// Not a test of its own: the child of the tests below.
#[test]
#[expect(clippy::disallowed_methods, reason = "how the parent speaks to the child")]
fn child() {
    let Ok(dir) = std::env::var("DORMOUSE_FLUSH_DIR") else { return };
    let disk = match std::env::var("DORMOUSE_FLUSH_POSIX") {
        Ok(_) => DiskChoice::Posix,
        Err(_) => DiskChoice::Uring,
    };
    let store = open(Path::new(&dir), disk);
    let mut next = [count(&store, 0), count(&store, 1)];
    let shards = [objects(&store, 0), objects(&store, 1)];
    let tell = |line: String| {
        let mut out = std::io::stdout().lock();
        writeln!(out, "{line}").expect("the parent reads");
        out.flush().expect("the parent reads");
    };
    loop {
        for _ in 0..7 {
            for (shard, number) in next.iter_mut().enumerate() {
                let object = &shards[shard][*number as usize % 3];
                let mut large = number.to_be_bytes().to_vec();
                large.resize(if number.is_multiple_of(5) { 30_000 } else { 100 }, 7);
                let batch = Batch::new().put(number.to_be_bytes(), "x").put("large", large);
                object.commit(batch).wait().expect("answered");
                *number += 1;
            }
        }
        tell(format!("answered {} {}", next[0], next[1]));
        if next[0].is_multiple_of(3) {
            store.flush().wait().expect("durable");
            tell(format!("flushed {} {}", next[0], next[1]));
        }
    }
}

/// The figures of a line that begins with this word. A line may be cut by the kill.
fn figures(line: &str, word: &str) -> Option<[u32; 2]> {
    let mut figures = line.strip_prefix(word)?.split_whitespace().map(str::parse);
    match (figures.next(), figures.next()) {
        (Some(Ok(first)), Some(Ok(second))) => Some([first, second]),
        _ => None,
    }
}

fn kill_test(disk: DiskChoice) {
    let dir = dir();
    let (mut flushed, mut lost) = ([0, 0], 0);
    for round in 0..ROUNDS {
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        command.args(["--exact", "child", "--nocapture"]).env("DORMOUSE_FLUSH_DIR", dir.path());
        if disk == DiskChoice::Posix {
            command.env("DORMOUSE_FLUSH_POSIX", "1");
        }
        let mut child = command.stdout(Stdio::piped()).spawn().expect("a child");
        let mut answered = [0, 0];
        let mut wanted = round % 9 + 4;
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).split(b'\n');
        let mut note = |line: &[u8], answered: &mut [u32; 2]| {
            let line = String::from_utf8_lossy(line);
            flushed = figures(&line, "flushed ").unwrap_or(flushed);
            *answered = figures(&line, "answered ").unwrap_or(*answered);
        };
        while wanted > 0 {
            note(&lines.next().expect("the child goes on").expect("a line"), &mut answered);
            wanted -= 1;
        }
        child.kill().expect("SIGKILL");
        lines.for_each(|line| note(&line.expect("a line"), &mut answered));
        child.wait().expect("dead");
        let store = open(dir.path(), disk);
        for shard in 0..SHARDS {
            let (found, at) = (count(&store, shard), usize::from(shard));
            let [flushed, answered] = [flushed[at], answered[at]];
            assert!(found >= flushed, "shard {shard}: {flushed} flushed, {found} found");
            lost += answered.saturating_sub(found);
        }
        store.close().wait().expect("closed");
    }
    println!("{disk:?}: {flushed:?} flushed, {lost} answered ones taken by {ROUNDS} kills");
}

#[test]
fn what_was_flushed_survives_sigkill_on_io_uring() {
    disks().into_iter().filter(|disk| *disk == DiskChoice::Uring).for_each(kill_test);
}

#[test]
fn what_was_flushed_survives_sigkill_on_the_posix_disk() {
    kill_test(DiskChoice::Posix);
}

#[test]
fn close_flushes() {
    let dir = dir();
    for disk in disks() {
        let store = open(dir.path(), disk);
        let before = count(&store, 0);
        let object = &objects(&store, 0);
        let put = |number: u32| {
            let batch = Batch::new().put(number.to_be_bytes(), "x");
            object[0].commit(batch.put("large", number.to_be_bytes()))
        };
        for number in before..before + 100 {
            put(number).wait().expect("answered");
        }
        store.close().wait().expect("closed");
        let store = open(dir.path(), disk);
        assert_eq!(count(&store, 0), before + 100);
        store.close().wait().expect("closed");
    }
}
