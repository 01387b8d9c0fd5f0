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
