//! `reshard`: the same contents in another number of shards, whatever interrupts it.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use dormouse_engine::{Batch, ObjectId};

use super::{dir, files, fine, flip, open, room, run};

/// A store with named and unnamed objects, one of which has more than one commit of a reshard holds.
fn store(path: &str, shards: u16, large: bool) {
    let store = open(path, shards);
    for n in 0..30 {
        let (room, batch) = room(&store, &format!("room {n}"));
        room.commit(batch.put("topic", [n; 100]).set_alarm(1 + u64::from(n))).wait().unwrap();
        room.commit(Batch::new().put([0xff, n], "x").delete("topic")).wait().unwrap();
        store
            .object(ObjectId::from_bytes([n; 32]))
            .commit(Batch::new().put("k", "v"))
            .wait()
            .unwrap();
    }
    let (gone, batch) = room(&store, "gone");
    gone.commit(batch.put("a", "b")).wait().unwrap();
    gone.commit(Batch::new().delete("a")).wait().unwrap();
    if large {
        let put = |batch: Batch, n: u8| batch.put([n], vec![n; 131_072]);
        let (large, batch) = room(&store, "large");
        large.commit((0..140).fold(batch, put)).wait().unwrap();
    }
    store.close().wait().unwrap();
}

fn sibling(path: &str, suffix: &str) -> String {
    format!("{path}{suffix}")
}

#[test]
fn contents_stay_the_same_in_any_number_of_shards() {
    let (_dir, path) = dir();
    store(&path, 1, true);
    let before = fine(&["dump", &path]);
    let old = sibling(&path, ".before-reshard");
    let said = fine(&["reshard", &path, "--shards", "3"]);
    assert!(said.contains("reshard: 61 objects, 1 shards before, 3 now\n"), "{said}");
    assert!(said.contains(&format!("The old store is in {old}")), "{said}");
    assert!(fine(&["stat", &path]).contains(": 3 shards"));
    assert!(fine(&["dump", &path]) == before && fine(&["dump", &old]) == before);
    assert!(fine(&["scrub", &path]).ends_with(" 0 damaged\n"));
    let again = run(&["reshard", &path, "--shards", "1"]);
    assert!(again.code == 2 && again.err.contains("move it away first"), "{}", again.err);
    std::fs::remove_dir_all(&old).unwrap();
    let said = fine(&["reshard", &path, "--shards", "1", "--remove-old"]);
    assert_eq!(said, "reshard: 61 objects, 3 shards before, 1 now\n");
    assert!(fine(&["stat", &path]).contains(": 1 shards") && !Path::new(&old).exists());
    assert!(fine(&["dump", &path]) == before);
    // The names of the files tell of no other.
    assert!(files(&path).keys().all(|file| !file.ends_with("resharding")));
}

/// A kill at any moment leaves a store with the same contents, and nothing in the way of the next run.
#[test]
fn a_kill_leaves_a_usable_store() {
    let (_dir, path) = dir();
    store(&path, 2, false);
    let before = fine(&["dump", &path]);
    let mut interrupted = 0;
    for step in 0..40 {
        let mut child = Command::new(env!("CARGO_BIN_EXE_dormouse"))
            .args(["reshard", &path, "--shards", "3", "--remove-old"])
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(5 * step));
        child.kill().unwrap();
        child.wait().unwrap();
        // Enough of them half-way, however fast this machine is.
        interrupted += u32::from(Path::new(&sibling(&path, ".resharding")).exists());
        assert!(fine(&["dump", &path]) == before);
        // Killed while it removed the old store, which it says.
        let _old = std::fs::remove_dir_all(sibling(&path, ".before-reshard"));
        if interrupted == 6 {
            break;
        }
    }
    assert!(interrupted > 0, "some were killed half-way");
    fine(&["reshard", &path, "--shards", "5", "--remove-old"]);
    assert!(fine(&["dump", &path]) == before && fine(&["stat", &path]).contains(": 5 shards"));
    assert!(!Path::new(&sibling(&path, ".resharding")).exists());
}

/// Killed between the exchange and its end: the old store is not taken for a copy that may go.
#[test]
fn the_old_store_is_kept_if_the_swap_was_interrupted() {
    let (_dir, path) = dir();
    store(&path, 1, false);
    let before = fine(&["dump", &path]);
    let id: serde_json::Value = serde_json::from_str(&fine(&["stat", &path, "--json"])).unwrap();
    fine(&["reshard", &path, "--shards", "2"]);
    let (old, new) = (sibling(&path, ".before-reshard"), sibling(&path, ".resharding"));
    std::fs::rename(&old, &new).unwrap();
    std::fs::write(format!("{path}/resharding"), id["id"].as_str().unwrap()).unwrap();
    let said = fine(&["reshard", &path, "--shards", "2"]);
    assert!(said.contains("an interrupted one was finished, the store has 2 shards"), "{said}");
    assert!(fine(&["dump", &path]) == before && fine(&["dump", &old]) == before);
    assert!(!Path::new(&new).exists() && !Path::new(&format!("{path}/resharding")).exists());
}

#[test]
fn what_is_not_its_own_is_left_alone() {
    let (_dir, path) = dir();
    store(&path, 1, false);
    let new = sibling(&path, ".resharding");
    std::fs::create_dir(&new).unwrap();
    std::fs::write(format!("{new}/precious"), "data").unwrap();
    let refused = run(&["reshard", &path, "--shards", "2"]);
    assert!(refused.code == 2 && refused.err.contains("not made by reshard"), "{}", refused.err);
    assert_eq!(files(&new).len(), 1);
    std::fs::remove_dir_all(&new).unwrap();
    std::fs::write(format!("{path}/precious"), "data").unwrap();
    let refused = run(&["reshard", &path, "--shards", "2"]);
    assert!(refused.code == 2 && refused.err.contains("holds precious"), "{}", refused.err);
    assert!(!Path::new(&new).exists());
}

/// An object that can't be read would be lost (E6).
#[test]
fn a_damaged_store_is_refused() {
    let (_dir, path) = dir();
    store(&path, 1, false);
    let (file, bytes) = files(&path)
        .into_iter()
        .find(|(_, bytes)| bytes.windows(100).any(|window| window == [7; 100]))
        .unwrap();
    let at = bytes.windows(100).position(|window| window == [7; 100]).unwrap();
    flip(&file, at);
    let before = files(&path);
    let refused = run(&["reshard", &path, "--shards", "2"]);
    assert!(refused.code == 1 && refused.err.contains("corrupt: object "), "{}", refused.err);
    assert!(files(&path) == before && !Path::new(&sibling(&path, ".resharding")).exists());
}
