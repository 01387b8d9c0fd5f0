//! The cache before a scripted store: each test answers the commits by hand, in order.

mod alarm;
mod budget;
mod env;
mod flush;
mod input_gate;
mod model;
mod ops;
mod output_gate;
mod parts;
mod rules;
mod store;
mod tasks;
mod transaction;

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use dormouse_cache::{ActorCache, Answer, Budget, CacheLimits, Entries};
use dormouse_engine::{Contents, Result};

use env::TestEnv;
use store::Store;

type Cache = ActorCache<TestEnv, Store>;

/// A world with one object.
struct World {
    env: TestEnv,
    store: Store,
    cache: Cache,
}

impl World {
    /// The object holds these keys, durably.
    fn new(stored: &[(&str, &str)]) -> Self {
        Self::with(contents(stored), CacheLimits::PRODUCTION)
    }

    fn with(contents: Contents, limits: CacheLimits) -> Self {
        let (env, store) = (TestEnv::default(), Store::new(&contents));
        let budget = Budget::new(usize::MAX);
        let cache = ActorCache::new(&env, store.clone(), contents, limits, &budget);
        Self { env, store, cache }
    }

    /// The same, but of its keys none is in memory.
    fn in_parts(contents: &Contents, limits: CacheLimits) -> Self {
        let (env, store) = (TestEnv::default(), Store::new(contents));
        let (head, budget) =
            (Contents { map: BTreeMap::new(), ..contents.clone() }, Budget::new(usize::MAX));
        let cache = ActorCache::in_parts(&env, store.clone(), head, limits, &budget);
        Self { env, store, cache }
    }

    /// Runs to the end of the turn; gives the only commit that it brought.
    fn commit(&self) -> store::Commit {
        self.env.run();
        self.store.next()
    }

    /// Makes everything durable.
    fn settle(&self) {
        self.env.run();
        while self.store.has_commit() {
            self.store.next().succeed();
            self.env.run();
        }
        assert!(self.cache.is_idle());
    }

    fn get(&self, key: &str) -> Option<String> {
        let value = now(self.cache.get(key.as_bytes(), Default::default())).unwrap();
        value.map(|value| text(&value))
    }

    fn put(&self, key: &str, value: &str) {
        now(self.cache.put(key.as_bytes(), bytes(value), Default::default())).unwrap();
    }

    fn delete(&self, key: &str) -> bool {
        now(self.cache.delete(key.as_bytes(), Default::default())).unwrap()
    }

    /// Keys and values, as `k=v k=v`.
    fn all(&self) -> String {
        let all = now(self.cache.list(&Default::default(), Default::default())).unwrap();
        show(&all.into_iter().collect::<Vec<_>>())
    }
}

fn contents(stored: &[(&str, &str)]) -> Contents {
    let map = stored.iter().map(|(key, value)| (bytes(key), bytes(value))).collect();
    let version = dormouse_engine::Version(u64::from(!stored.is_empty()));
    Contents { version, map, ..Contents::default() }
}

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn show(entries: &[(Bytes, Bytes)]) -> String {
    let pairs = entries.iter().map(|(key, value)| format!("{}={}", text(key), text(value)));
    pairs.collect::<Vec<_>>().join(" ")
}

/// What a list gave.
fn pairs(listed: Result<Entries>) -> Vec<(Bytes, Bytes)> {
    listed.unwrap().into_iter().collect()
}

/// The answer, which must be there.
fn now<T: std::fmt::Debug>(answer: Answer<T>) -> Result<T> {
    answer.try_ready().expect("answered at once")
}

/// The code of the error that the answer must be.
fn code<T: std::fmt::Debug>(answer: Answer<T>) -> &'static str {
    now(answer).unwrap_err().code().expect("has a code")
}

/// Polls once, for nobody.
fn poll<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
    pin!(future).poll(&mut Context::from_waker(Waker::noop()))
}
