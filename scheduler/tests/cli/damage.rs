//! `scrub` finds what is damaged, `repair` says what it would do and does it (E6).

use std::path::PathBuf;

use dormouse_engine::Batch;

use super::{Ran, dir, files, fine, flip, open, room, run};

/// Rooms `0`, `1`, … of this size each, in a store of one shard.
fn rooms(path: &str, count: usize, bytes: usize) {
    let store = open(path, 1);
    for index in 0..count {
        let name = index.to_string();
        let (room, batch) = room(&store, &name);
        room.commit(batch.put("topic", format!("mice of {name}!"))).wait().unwrap();
        room.commit(Batch::new().put("filled", "x".repeat(bytes))).wait().unwrap();
    }
    store.close().wait().unwrap();
}

/// Where these bytes lie in the store's files, once.
fn find(path: &str, wanted: &[u8]) -> (PathBuf, usize) {
    let in_file = |(file, bytes): (PathBuf, Vec<u8>)| {
        let at = bytes.windows(wanted.len()).position(|window| window == wanted)?;
        Some((file, at))
    };
    files(path).into_iter().find_map(in_file).expect("they are there")
}

/// A repair in two steps: the dry run changes nothing, the other leaves nothing damaged.
fn repair(path: &str) -> [Ran; 2] {
    let before = files(path);
    let dry = run(&["repair", path]);
    assert_eq!(dry.code, 1, "{}{}", dry.out, dry.err);
    assert!(files(path) == before, "a dry run changes nothing");
    let done = run(&["repair", path, "--apply"]);
    assert_eq!(done.code, 0, "{}{}", done.out, done.err);
    assert!(done.out.ends_with("all is clean\n"), "{}", done.out);
    assert!(fine(&["scrub", path]).ends_with(" 0 damaged\n"));
    [dry, done]
}

#[test]
fn a_damaged_object_is_named_and_brought_back_or_dropped() {
    let (_dir, path) = dir();
    rooms(&path, 3, 10);
    assert!(fine(&["scrub", &path]).ends_with("scrub: 3 objects, 93 bytes, 0 damaged\n"));
    let (file, at) = find(&path, b"mice of 1!");
    // The second commit of room 2, the only one of room 1.
    flip(&file, at);
    let (file, first) = find(&path, b"mice of 2!");
    let bytes = std::fs::read(&file).unwrap();
    let filled = bytes[first..].windows(10).position(|window| window == b"xxxxxxxxxx").unwrap();
    flip(&file, first + filled);
    let scrub = run(&["scrub", &path]);
    assert_eq!(scrub.code, 1);
    assert!(scrub.out.contains("(namespace rooms, name 2): corrupt: "), "{}", scrub.out);
    assert!(scrub.out.ends_with("\nscrub: 1 objects, 31 bytes, 2 damaged\n"), "{}", scrub.out);
    let json: serde_json::Value =
        serde_json::from_str(&run(&["scrub", &path, "--json"]).out).unwrap();
    assert_eq!(json["objects_damaged"].as_array().unwrap().len(), 2);
    // A damaged object is left out of a dump, and that is said.
    let dump = run(&["dump", &path]);
    assert!(dump.code == 1 && dump.err.matches("left out: corrupt: ").count() == 2, "{}", dump.err);
    assert_eq!(dump.out.lines().count(), 1);
    let [dry, done] = repair(&path);
    assert!(dry.out.contains("would be brought back to version 5 of "), "{}", dry.out);
    assert!(dry.out.contains("would be dropped"), "{}", dry.out);
    assert!(done.out.contains(": brought back to version 5 of "), "{}", done.out);
    let left = fine(&["inspect", &path, "--namespace", "rooms", "--name", "2"]);
    assert!(left.contains("topic = mice of 2!") && left.contains("1 keys"), "{left}");
    assert_eq!(run(&["inspect", &path, "--namespace", "rooms", "--name", "1"]).code, 1);
    let nothing = run(&["repair", &path]);
    assert_eq!((nothing.code, nothing.out.as_str()), (0, "repair: nothing to do\n"));
}

#[test]
fn a_damaged_block_of_the_directory_is_given_up_and_its_objects_are_found() {
    let (_dir, path) = dir();
    rooms(&path, 40, 120_000);
    let whole = fine(&["dump", &path]);
    // One of them may be merged and not named by a checkpoint yet.
    let runs = files(&path).into_keys().filter(|file| file.to_string_lossy().contains("-run-"));
    assert!(runs.map(|run| flip(&run, 4096 + 100)).count() > 0, "a checkpoint was made");
    let scrub = run(&["scrub", &path]);
    assert!(scrub.code == 1 && scrub.out.starts_with("damaged directory: "), "{}", scrub.out);
    for command in ["ls", "dump"] {
        let listed = run(&[command, &path]);
        assert!(
            listed.code == 1 && listed.err.contains("objects are left out: "),
            "{}",
            listed.err
        );
    }
    assert_eq!(run(&["stat", &path]).code, 1);
    let [_, done] = repair(&path);
    assert!(done.out.contains("given up: "), "{}", done.out);
    assert!(fine(&["dump", &path]) == whole);
}

#[test]
fn a_loss_that_keeps_a_shard_closed_is_shown_and_accepted() {
    let (_dir, path) = dir();
    rooms(&path, 3, 10);
    let (file, _) = find(&path, b"mice of 1!");
    flip(&file, 20);
    let stat = run(&["stat", &path]);
    assert!(stat.code == 1 && stat.out.contains("damaged: corrupt: "), "{}", stat.out);
    let ls = run(&["ls", &path]);
    assert!(ls.code == 1 && ls.err.contains("cargo store repair"), "{}", ls.err);
    let scrub = run(&["scrub", &path]);
    assert!(
        scrub.code == 1 && scrub.out.contains("keeps shard 0 closed: corrupt: "),
        "{}",
        scrub.out
    );
    let [dry, done] = repair(&path);
    assert!(dry.out.contains("would be accepted: "), "{}", dry.out);
    assert!(done.out.starts_with("accepted: "), "{}", done.out);
}
