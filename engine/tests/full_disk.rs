//! A full disk, on a file system of its own: `DORMOUSE_SMALL_DIR` names a directory of one with some 40 MiB to
//! fill. `engine/tests/full_disk.sh` makes one, which takes root. Without it, the simulator's disk stands for it
//! (`sim/tests/full_disk.rs`).

#![expect(
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "fills a file system from outside, and takes the time"
)]

use std::path::PathBuf;
use std::time::{Duration, Instant};

use dormouse_engine::{Batch, Kind, Object, ObjectId, Options, Store};

const VALUE: usize = 60_000;

fn object(store: &Store, number: u32) -> Object {
    let mut bytes = [3; 32];
    bytes[..4].copy_from_slice(&number.to_le_bytes());
    store.object(ObjectId::from_bytes(bytes))
}

fn put(store: &Store, number: u32) -> Result<(), dormouse_engine::Error> {
    let batch = Batch::new().put("a", vec![1; VALUE]).put("b", vec![2; VALUE]);
    object(store, number).commit(batch).wait().map(drop)
}

fn open(dir: &std::path::Path) -> Store {
    let options = Options { shards: Some(1), cores: Some(1), ..Options::default() };
    Store::open(dir, options).expect("opens, on a full disk too")
}

/// Fills the disk; how many objects there are.
fn fill(store: &Store, from: u32) -> u32 {
    for number in from.. {
        if let Err(error) = put(store, number) {
            assert_eq!(error.kind(), Kind::NoSpace, "{error}");
            return number;
        }
    }
    unreachable!("the disk is full before")
}

/// Waits until new data is taken.
fn put_at_last(store: &Store, number: u32) -> Duration {
    let began = Instant::now();
    while let Err(error) = put(store, number) {
        assert_eq!(error.kind(), Kind::NoSpace, "{error}");
        let stats = store.stats().wait().expect("stats");
        assert!(began.elapsed() < Duration::from_secs(60), "no room: {error}; {stats:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
    began.elapsed()
}

#[test]
fn a_full_file_system_takes_what_frees_and_then_new_data_again() {
    let Some(root) = std::env::var_os("DORMOUSE_SMALL_DIR").map(PathBuf::from) else {
        println!(
            "skipped: DORMOUSE_SMALL_DIR names no small file system; engine/tests/full_disk.sh makes one"
        );
        return;
    };
    let dir = root.join("store");
    let store = open(&dir);
    let count = fill(&store, 0);
    println!("{count} objects of {} bytes fill it", 2 * VALUE);
    // Not a byte is left for anybody.
    let mut others = std::fs::File::create(root.join("others")).expect("a file");
    while std::io::Write::write_all(&mut others, &[9; 4096]).is_ok() {}
    let refused = put(&store, count).expect_err("full");
    println!("{refused}");
    assert_eq!(refused.kind(), Kind::NoSpace);
    store.close().wait().expect("closed");
    let store = open(&dir);
    assert_eq!(put(&store, count).expect_err("full").kind(), Kind::NoSpace);
    let mut slowest = Duration::ZERO;
    for number in (0..count).filter(|number| number % 3 > 0) {
        let began = Instant::now();
        let batch = match number % 3 {
            1 => Batch::new().delete_all(),
            _ => Batch::new().delete("a"),
        };
        object(&store, number).commit(batch).wait().expect("what frees is never refused");
        slowest = slowest.max(began.elapsed());
    }
    let mut waited = Duration::ZERO;
    for number in count..count + count / 4 {
        waited = waited.max(put_at_last(&store, number));
    }
    println!("the slowest delete took {slowest:?}, new data waited for {waited:?} at most");
    for number in 0..count + count / 4 {
        let keys = object(&store, number).contents().wait().expect("readable").map.len();
        let wanted = match number % 3 {
            _ if number >= count => 2,
            0 => 2,
            1 => 0,
            _ => 1,
        };
        assert_eq!(keys, wanted, "object {number}");
    }
    store.close().wait().expect("closed");
    drop(open(&dir));
}
