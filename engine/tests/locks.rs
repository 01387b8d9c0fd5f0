//! E8 on the real disks: opening waits until nobody can write to the store's files any more.
//!
//! After SIGKILL the kernel keeps the description of a file, and with it its lock, for as long as
//! a write through it is in flight. Here a second description of the segments holds that lock, so
//! that the wait is certain and can be measured.

#![expect(clippy::disallowed_types, clippy::disallowed_methods, reason = "plays another process")]

mod common;

use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};

use common::{dir, disks};
use dormouse_engine::real::{DiskChoice, RealEnv, block_on};
use dormouse_engine::{Batch, Kind, Limits, ObjectId, Result, Shard, StoreLock};

const ROOM: ObjectId = ObjectId::from_bytes([7; 32]);

/// Opens the store, checks or makes its one commit, and closes it.
fn visit(dir: &Path, disk: DiskChoice, lock_wait: Duration) -> Result<()> {
    let visit = async move |env: RealEnv| {
        let limits = Limits { lock_wait, ..Limits::PRODUCTION };
        let lock = StoreLock::open_or_create(&env, &limits, 1).await?;
        let (shard, _) = Shard::open(&env, lock.superblock(), 0, limits).await?;
        shard.commit(&ROOM, &Batch::new().put("topic", "mice"), None)?.await?;
        assert_eq!(shard.load(&ROOM).await?.map[&b"topic"[..]], "mice");
        shard.close().await
    };
    block_on(dir, disk, visit).expect("a core")
}

/// Every file of the store, each locked through a description of its own.
fn lock_all(dir: &Path) -> Vec<File> {
    let entries = std::fs::read_dir(dir).expect("the store").map(|entry| entry.expect("an entry"));
    let files: Vec<File> = entries
        .filter(|entry| entry.file_name() != "superblock")
        .map(|entry| {
            let file = File::options().read(true).write(true).open(entry.path()).expect("open");
            file.lock().expect("nobody else has it");
            file
        })
        .collect();
    assert!(!files.is_empty(), "a store has segments");
    files
}

#[test]
fn opening_waits_for_the_locks_that_the_dead_still_hold() {
    let held = Duration::from_millis(400);
    for disk in disks() {
        let dir = dir();
        visit(dir.path(), disk, Duration::ZERO).expect("a new store");
        let files = lock_all(dir.path());
        let started = Instant::now();
        let releases = std::thread::spawn(move || {
            std::thread::sleep(held);
            drop(files);
        });
        visit(dir.path(), disk, Duration::from_secs(20)).expect("opened once they are free");
        assert!(started.elapsed() >= held, "{disk:?}: opened in {:?}", started.elapsed());
        releases.join().expect("released");
    }
}

#[test]
fn a_lock_that_stays_is_an_error_that_says_so() {
    for disk in disks() {
        let dir = dir();
        visit(dir.path(), disk, Duration::ZERO).expect("a new store");
        let files = lock_all(dir.path());
        let error = visit(dir.path(), disk, Duration::from_millis(50)).expect_err("locked");
        assert_eq!(error.kind(), Kind::Retry, "{error}");
        drop(files);
        visit(dir.path(), disk, Duration::from_secs(20)).expect("nothing was harmed");
    }
}
