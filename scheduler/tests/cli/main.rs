//! `cargo store`, the program, on stores that a runtime or the engine left.

#![cfg(feature = "cli")]
#![expect(
    clippy::disallowed_methods,
    reason = "looks at and damages the files of closed stores, from another process"
)]

mod damage;
mod look;
mod reshard;
mod torture;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use dormouse_engine::{Batch, Options, Store};
use dormouse_scheduler::NamespaceKey;
use tempfile::TempDir;

/// How the program ended, and what it said.
struct Ran {
    code: i32,
    out: String,
    err: String,
}

/// Runs the program.
#[track_caller]
fn run(args: &[&str]) -> Ran {
    let output = Command::new(env!("CARGO_BIN_EXE_dormouse")).args(args).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let code = output.status.code().expect("not killed");
    Ran { code, out: text(output.stdout), err: text(output.stderr) }
}

/// Runs the program, which must end well; its output.
#[track_caller]
fn fine(args: &[&str]) -> String {
    let Ran { code, out, err } = run(args);
    assert_eq!((code, err.as_str()), (0, ""), "{args:?}: {out}");
    out
}

/// A directory on a real disk, and its path as an argument.
fn dir() -> (TempDir, String) {
    let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = dir.path().join("store").to_str().unwrap().to_owned();
    (dir, path)
}

/// Opens a store with so many shards.
fn open(path: &str, shards: u16) -> Store {
    Store::open(path, Options { cores: Some(1), shards: Some(shards), ..<_>::default() }).unwrap()
}

/// An object of the namespace `rooms`, and what its first commit says of it.
fn room(store: &Store, name: &str) -> (dormouse_engine::Object, Batch) {
    let id = NamespaceKey::new("rooms").id_from_name(name).object();
    (store.object(id), Batch::new().named("rooms", name))
}

/// The files of a store with their bytes.
fn files(path: &str) -> BTreeMap<PathBuf, Vec<u8>> {
    let files = std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path());
    files.map(|path| (path.clone(), std::fs::read(path).unwrap())).collect()
}

/// Flips a bit of a file.
fn flip(file: &Path, at: usize) {
    let mut bytes = std::fs::read(file).unwrap();
    bytes[at] ^= 1;
    std::fs::write(file, bytes).unwrap();
}
