//! `cargo store` on a store that a runtime left.

#![cfg(feature = "cli")]

use std::process::Command;

use dormouse_scheduler::prelude::*;

struct Note(State);
impl DurableObject for Note {
    fn new(state: State) -> Self {
        Self(state)
    }
}
impl Handler<&'static str> for Note {
    type Reply = ();
    async fn handle(&self, text: &'static str) -> Result<()> {
        self.0.storage().put("text", text).await
    }
}

fn run(args: &[&str]) -> (bool, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_dormouse")).args(args).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(text).unwrap())
}

#[test]
fn a_store_is_looked_into() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    assert!(run(&["stat", path]).1.contains("there is no store here"));
    let runtime = Runtime::builder(&dir).cores(2).namespace::<Note>("notes").start().unwrap();
    let note = runtime.namespace::<Note>().get_by_name("one");
    note.call("mice").wait().unwrap();
    runtime.close().unwrap();
    let id = note.id().to_string();
    let (fine, stat) = run(&["stat", path]);
    assert!(fine && stat.contains("2 shards") && stat.contains("1 objects"), "{stat}");
    assert!(run(&["ls", path]).1.contains(&id));
    let (fine, cat) = run(&["cat", path, &id]);
    assert!(fine && cat.contains("text = \"mice\"") | cat.contains("text = \\\"mice\\\""), "{cat}");
    assert!(!run(&["cat", path, "12"]).0);
}

/// Damages the close record at the end of the log that was written: the last of a store's blocks.
#[expect(clippy::disallowed_methods, reason = "damages a file of a closed store")]
fn damage_end(dir: &std::path::Path) {
    const BLOCK: usize = 4096;
    let used = |bytes: &[u8]| {
        bytes.chunks(BLOCK).rposition(|block| block.iter().any(|byte| *byte != 0)).unwrap_or(0)
    };
    let files = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let segments = files.filter(|path| path.to_string_lossy().contains("-segment-"));
    let read = segments.map(|path| (std::fs::read(&path).unwrap(), path));
    let (mut bytes, path) = read.max_by_key(|(bytes, _)| used(bytes)).unwrap();
    let last = used(&bytes) * BLOCK;
    bytes[last + 17] ^= 1;
    std::fs::write(path, bytes).unwrap();
}

/// What opening dropped is reported, in `stat` too (docs/design.md, 3.2).
#[test]
fn stat_shows_what_opening_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    let runtime = Runtime::builder(&dir).cores(1).namespace::<Note>("notes").start().unwrap();
    runtime.namespace::<Note>().get_by_name("one").call("mice").wait().unwrap();
    runtime.close().unwrap();
    damage_end(dir.path());
    let (fine, stat) = run(&["stat", path]);
    assert!(fine && stat.contains("1 objects"), "{stat}");
    assert!(stat.contains("dropped batch ") && stat.contains("checksum does not fit"), "{stat}");
    let (fine, stat) = run(&["stat", path]);
    assert!(fine && stat.contains("dropped nothing"), "{stat}");
}
