//! What a store takes: bytes and files on the disk, open descriptors, threads. A program of its
//! own, for it counts what its whole process has.

#![cfg(target_os = "linux")]
#![expect(clippy::disallowed_methods, reason = "looks at the store and the process from outside")]

mod common;

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use common::{dir, disks};
use dormouse_engine::real::DiskChoice;
use dormouse_engine::{Batch, ObjectId, Options, Store};

/// Bytes on the disk of an empty store (design.md, 3.2).
const EMPTY_BYTES: u64 = 4 << 20;
/// Files of a store, empty or with ten thousand small objects; four are the reserve.
const FILES: usize = 14;
/// Descriptors that it has open: io_uring has two of each file, and its own.
const DESCRIPTORS: usize = 28;
/// Threads: one for the core, and those of its disk.
const THREADS: usize = 8;
const OBJECTS: u32 = 10_000;

/// Entries of a directory.
fn entries(dir: &str) -> usize {
    std::fs::read_dir(dir).expect("a directory").count()
}

/// What a process or a store has.
#[derive(Clone, Copy, Debug)]
struct Taken {
    bytes: u64,
    files: usize,
    descriptors: usize,
    threads: usize,
}

impl Taken {
    fn now(store: &Path) -> Self {
        let (mut bytes, mut files) = (0, 0);
        for entry in std::fs::read_dir(store).expect("a directory") {
            let metadata = entry.expect("an entry").metadata().expect("metadata");
            // As `du` counts: what is allocated.
            bytes += metadata.blocks() * 512;
            files += 1;
        }
        let (descriptors, threads) = (entries("/proc/self/fd"), entries("/proc/self/task"));
        Self { bytes, files, descriptors, threads }
    }

    /// What is there now, and was not in a process without a store.
    fn since(before: Self, store: &Path) -> Self {
        let now = Self::now(store);
        let descriptors = now.descriptors.saturating_sub(before.descriptors);
        Self { descriptors, threads: now.threads.saturating_sub(before.threads), ..now }
    }

    fn is_bounded(&self) -> bool {
        let Self { files, descriptors, threads, .. } = *self;
        files <= FILES && descriptors <= DESCRIPTORS && threads <= THREADS
    }
}

fn object(number: u32) -> ObjectId {
    let mut bytes = [0xd0; 32];
    bytes[..4].copy_from_slice(&number.to_le_bytes());
    ObjectId::from_bytes(bytes)
}

/// Threads of earlier stores and of the search for disks end by themselves, a little later.
fn settle() {
    let mut before = usize::MAX;
    while before != entries("/proc/self/task") {
        before = entries("/proc/self/task");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn take(disk: DiskChoice) {
    settle();
    let dir = dir();
    let before = Taken::now(dir.path());
    let options = Options { cores: Some(1), shards: Some(1), disk, ..Options::default() };
    let store = Store::open(dir.path(), options).expect("a store");
    settle();
    let empty = Taken::since(before, dir.path());
    println!("{disk:?}, empty: {empty:?}");
    assert!(empty.bytes < EMPTY_BYTES, "{disk:?}: {empty:?}");
    assert!(empty.is_bounded(), "{disk:?}: {empty:?}");
    for first in (0..OBJECTS).step_by(1000) {
        let commits = (first..first + 1000).map(|number| {
            let value = format!("object {number}").repeat(8);
            store.object(object(number)).commit(Batch::new().put("key", value))
        });
        let commits: Vec<_> = commits.collect();
        commits.into_iter().for_each(|commit| assert!(commit.wait().is_ok()));
    }
    settle();
    let full = Taken::since(before, dir.path());
    println!("{disk:?}, {OBJECTS} objects: {full:?}");
    assert!(full.is_bounded(), "{disk:?}: {full:?}");
    dormouse_engine::call::wait(store.close()).expect("closed");
    drop(store);
    settle();
    let closed = Taken::since(before, dir.path());
    println!("{disk:?}, closed: {closed:?}");
    assert_eq!((closed.descriptors, closed.threads), (0, 0), "{disk:?}: {closed:?}");
}

#[test]
fn a_store_takes_little_and_gives_it_back() {
    disks().into_iter().for_each(take);
}
