//! What the benchmarks of each layer and the counts of their costs run, on a real disk.
//!
//! `cargo bench -p dormouse-benches` runs the benchmarks, `cargo test` runs each of them once. Files
//! lie beside the program, so the figures are those of the disk that the build directory is on. Ids
//! stay as they are, so that `--save-baseline` and `--baseline` compare commits; what an id means
//! never changes, a new meaning gets a new id. Keys have 12 bytes, values 100, unless said.
//!
//! | id | one iteration |
//! |---|---|
//! | `engine/append` | a commit of one key put into the log's queue, the device not waited for |
//! | `engine/commit/1` | a durable commit of one key by one task on the shard's core |
//! | `engine/commit/64` | one such commit by each of 64 tasks, each to an object of its own |
//! | `engine/commit-posix/1`, `engine/commit-posix/64` | the same without io_uring |
//! | `engine/activation` | an object of four keys that is not in memory, read whole from the device |
//! | `cache/get/hit`, `cache/get/absent` | a get of a key of a hot object of 100 keys; of one that it does not have |
//! | `cache/get/1000-objects` | a get of one of 4 keys of one of 1,000 hot objects, another one each time |
//! | `cache/put` | a put over one of 100 keys, its flush not waited for |
//! | `cache/map/hit`, `cache/map/absent`, `cache/map/1000-objects`, `cache/map/put`, `cache/map/list/1000` | the same of a `BTreeMap` of the same contents: what the cache is compared with |
//! | `cache/turn` | ten puts in one turn, and waiting until they are durable |
//! | `cache/list/100`, `cache/list/1000` | a list of all keys of a hot object of so many |
//! | `scheduler/call/same-core` | a call from one object to another on its core, which gets a number |
//! | `scheduler/call/cross-core` | the same to an object on another core |
//! | `scheduler/call/1`, `scheduler/call/64` | a call from a thread that is no core and waits for the reply; of 64 objects at once |
//! | `scheduler/increment/1`, `scheduler/increment/64` | the same, each counting durably |
//! | `scheduler/activation` | a call to an object that is not in memory, and its eviction |
//! | `scheduler/wake` | from a send on one thread until a core that slept has the message |
//!
//! [`costs`] has the operations whose system calls, allocations, bytes and instructions
//! `tests/costs.rs` counts and bounds; docs/performance.md says what they are.

pub mod cache;
pub mod costs;
pub mod counted;
pub mod engine;
pub mod rounds;
pub mod scheduler;

pub use rounds::{Rounds, Span};

/// A directory beside the running program, which is on a real disk (a temporary one may be in
/// memory). Goes when it is dropped.
pub fn scratch() -> tempfile::TempDir {
    let program = std::env::current_exe().expect("a program has a path");
    let beside = program.parent().expect("a file is in a directory");
    tempfile::Builder::new().prefix("store-").tempdir_in(beside).expect("a directory")
}
