//! Reads beside commits, by many threads: none goes back behind what its thread knows to be committed, or has
//! asked for itself, though most of them ask no core.

mod common;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use common::{dir, disks};
use dormouse_engine::{Batch, Limits, List, Object, ObjectId, Options, Store};

const OBJECTS: u8 = 3;
const COMMITS: u64 = 400;
/// Reads in a row, so that cores publish what is read.
const READS: usize = 6;

/// The number that the last commit put, by each kind of read.
fn read(object: &Object, kind: usize) -> u64 {
    let number = |value: &[u8]| u64::from_be_bytes(value.try_into().expect("eight bytes"));
    let value = match kind % 3 {
        0 => object.get("number").wait().expect("readable"),
        1 => object.contents().wait().expect("readable").map.get(&b"number"[..]).cloned(),
        _ => object.list(List::all()).blocking().next().map(|entry| entry.expect("readable").1),
    };
    value.map_or(0, |value| number(&value))
}

/// A writer, until it ends or fails.
struct Writing<'a>(&'a AtomicU64);

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

#[test]
fn reads_never_go_back() {
    for disk in disks() {
        let dir = dir();
        let limits = Limits { lock_wait: Duration::from_secs(20), ..Limits::PRODUCTION };
        let options =
            Options { cores: Some(2), shards: Some(2), disk, limits, ..Options::default() };
        let store = Store::open(dir.path(), options).expect("a store");
        let object = |number: u8| store.object(ObjectId::from_bytes([number; 32]));
        let answered: Vec<_> = (0..OBJECTS).map(|_| AtomicU64::new(0)).collect();
        let writers = AtomicU64::new(u64::from(OBJECTS));
        let least = |number: u8| answered[usize::from(number)].load(Ordering::Acquire);
        std::thread::scope(|scope| {
            for number in 0..OBJECTS {
                let (object, answered) = (object(number), &answered[usize::from(number)]);
                let writing = Writing(&writers);
                scope.spawn(move || {
                    let _writing = writing;
                    for at in 1..=COMMITS {
                        let batch = Batch::new().put("number", at.to_be_bytes());
                        let commit = object.commit(batch);
                        // Asked for, and perhaps not taken yet.
                        assert_eq!(read(&object, usize::from(number)), at);
                        commit.wait().expect("durable");
                        answered.store(at, Ordering::Release);
                        for kind in 0..READS {
                            assert_eq!(read(&object, kind), at);
                        }
                    }
                });
            }
            for kind in 0..2 {
                let (object, least, writers) = (&object, &least, &writers);
                scope.spawn(move || {
                    let mut reads = 0;
                    while writers.load(Ordering::Acquire) > 0 {
                        for number in 0..OBJECTS {
                            let known = least(number);
                            let found = read(&object(number), kind + reads);
                            assert!(found >= known, "{found} after {known} was known");
                            reads += 1;
                        }
                    }
                });
            }
        });
        store.close().wait().expect("closed in order");
    }
}
