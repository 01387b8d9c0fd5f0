//! What a store says to whoever listens: one event each for opening and closing a shard, for a
//! checkpoint, a segment and a failure, with the figures in fields; none for a commit.

mod common;

use std::collections::BTreeMap;
use std::fmt::{Debug, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use common::dir;
use dormouse_engine::{Batch, Limits, ObjectId, Options, Store};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

/// The fields of one event, its message among them.
#[derive(Clone, Debug, Default)]
struct Said(BTreeMap<&'static str, String>);

impl Said {
    fn number(&self, field: &str) -> u64 {
        let value = self.0.get(field).unwrap_or_else(|| panic!("no {field}: {self:?}"));
        value.parse().unwrap_or_else(|_| panic!("{field} is no number: {self:?}"))
    }
}

impl Visit for Said {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        write!(self.0.entry(field.name()).or_default(), "{value:?}").expect("a string");
    }
}

/// Keeps what the engine says.
#[derive(Clone, Default)]
struct Listener(Arc<Mutex<Vec<Said>>>);

impl Listener {
    /// Takes what was said since the last time.
    fn take(&self) -> Vec<Said> {
        std::mem::take(&mut self.0.lock().expect("no panic"))
    }
}

impl Subscriber for Listener {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("dormouse_engine")
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Id::from_u64(NEXT.fetch_add(1, Ordering::Relaxed))
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut said = Said::default();
        event.record(&mut said);
        self.0.lock().expect("no panic").push(said);
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

fn with<'a>(said: &'a [Said], message: &str) -> Vec<&'a Said> {
    said.iter().filter(|said| said.0["message"] == message).collect()
}

#[test]
fn a_store_says_what_happens_to_it_and_nothing_of_commits() {
    let listener = Listener::default();
    tracing::subscriber::set_global_default(listener.clone()).expect("the only one");
    let dir = dir();
    let options =
        Options { cores: Some(1), shards: Some(1), limits: Limits::TINY, ..Options::default() };
    let open = || Store::open(dir.path(), options.clone()).expect("a store");

    let store = open();
    let said = listener.take();
    let opened = with(&said, "shard opened");
    assert_eq!(opened.len(), 1, "{said:?}");
    let figures =
        ["shard", "batches", "segments", "objects", "damaged"].map(|f| opened[0].number(f));
    assert_eq!(figures[0], 0);
    assert_eq!(figures[3..], [0, 0]);
    assert!(opened[0].number("micros") > 0);
    assert!(!opened[0].0.contains_key("dropped"), "{opened:?}");

    let object = store.object(ObjectId::from_bytes([1; 32]));
    for key in 0..200_u32 {
        object.commit(Batch::new().put(key.to_be_bytes(), [7; 400])).wait().expect("durable");
    }
    store.close().wait().expect("closed");
    let said = listener.take();
    let checkpoints = with(&said, "checkpoint made");
    assert!(checkpoints.len() > 3, "{said:?}");
    for (generation, checkpoint) in (1..).zip(&checkpoints) {
        assert_eq!(checkpoint.number("generation"), generation);
        assert_eq!(checkpoint.number("merged"), 0);
        assert_eq!(checkpoint.number("objects"), 1);
        // One object: header, entries. Some only let segments go: nothing has changed.
        if checkpoint.number("bytes") > 0 {
            assert_eq!(checkpoint.number("bytes"), 2 * 4096);
            assert!(checkpoint.number("run") >= generation);
        }
    }
    let background = with(&said, "runs merged").len() + with(&said, "segment cleaned").len();
    assert!(background > 0, "{said:?}");
    let segments = with(&said, "segment opened");
    assert!(segments.len() > 1, "{said:?}");
    assert!(segments.iter().all(|said| said.number("bytes") >= 16 << 10));
    let numbers: Vec<_> = segments.iter().map(|said| said.number("segment")).collect();
    assert!(numbers.is_sorted_by(|a, b| a < b), "{numbers:?}");
    let closed = with(&said, "shard closed");
    assert_eq!(closed.len(), 1);
    assert_eq!(closed[0].0["vouched"], "true");
    let told = checkpoints.len() + segments.len() + background + closed.len();
    assert_eq!(said.len(), told, "commits are not told: {said:?}");

    let store = open();
    let said = listener.take();
    let opened = with(&said, "shard opened");
    assert!(opened[0].number("batches") > 0 && opened[0].number("segments") > 0, "{opened:?}");
    assert_eq!(opened[0].number("objects"), 1);
    store.close().wait().expect("closed");
}
