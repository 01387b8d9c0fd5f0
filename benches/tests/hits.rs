//! What a hit costs and what memory holds: allocations of gets of a resident object, through the
//! cache and through an object's storage; the heap that an entry and an object take beside their
//! bytes; and that ten puts in one turn are one commit and one frame. Prints the figures:
//! `cargo test --release -p dormouse-benches --test hits -- --nocapture`.
//!
//! One test, for its allocator counts the whole process.

use std::alloc::System;
use std::future::{Ready, ready};
use std::hint::black_box;
use std::rc::Rc;

use bytes::Bytes;
use dormouse_benches::engine::{LIMITS, key, object, on_core, value, with_shard};
use dormouse_benches::scratch;
use dormouse_cache::{ActorCache, Backing, Budget, CacheLimits, Read, Stored, Write};
use dormouse_engine::real::{DiskChoice, RealEnv};
use dormouse_engine::{Batch, Contents, Resident, Shard, Ticket, Version};
use dormouse_scheduler::prelude::*;
use futures_util::future::LocalBoxFuture;
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

#[global_allocator]
static GLOBAL: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Gets of each kind.
const GETS: u64 = 10_000;
/// The least of so many counts is believed: what other threads allocate is in some of them only.
const TRIES: usize = 5;
/// Keys of the object that is measured, of 12 bytes with values of 100.
const KEYS: u32 = 1000;
/// Objects that are resident at once.
const OBJECTS: u64 = 2000;
/// At most so many bytes for an entry, beside its key and its value.
const ENTRY_OVERHEAD_MAX: u64 = 240;
/// At most so many bytes for a resident object with one entry, some 400 of them what the store keeps of
/// one that was just written. The target is 2,048.
const OBJECT_MAX: u64 = 2750;

/// Blocks asked of the allocator so far; one that grows counts again.
fn blocks() -> u64 {
    let stats = GLOBAL.stats();
    (stats.allocations + stats.reallocations) as u64
}

/// Bytes that are allocated now.
fn heap() -> u64 {
    let stats = GLOBAL.stats();
    (stats.bytes_allocated - stats.bytes_deallocated) as u64
}

/// A store that has everything at once, so that only the cache is measured.
struct Nowhere;

impl Backing for Nowhere {
    type Ticket = Ready<dormouse_engine::Result<Version>>;

    fn commit(
        &self,
        _batch: &Batch,
        _resident: Option<&dyn Resident>,
    ) -> dormouse_engine::Result<Self::Ticket> {
        Ok(ready(Ok(Version(1))))
    }

    fn snapshot(&self) -> LocalBoxFuture<'static, dormouse_engine::Result<Rc<dyn Stored>>> {
        unreachable!("all is in the cache")
    }
}

/// Keys and values of so many entries.
fn entries() -> impl Iterator<Item = (Bytes, Bytes)> {
    let copied = |number: u32| {
        (Bytes::copy_from_slice(&key(number)), Bytes::copy_from_slice(&value(number.into())))
    };
    (0..KEYS).map(copied)
}

fn cache<B: Backing>(env: &RealEnv, home: B, contents: Contents) -> ActorCache<RealEnv, B> {
    let budget = Budget::new(usize::MAX);
    ActorCache::new(env, home, contents, CacheLimits::PRODUCTION, &budget)
}

/// Blocks of [`GETS`] gets of a key that is there and of one that is not.
async fn blocks_of_gets(env: &RealEnv) -> (u64, u64) {
    let contents = Contents { map: entries().collect(), ..Contents::default() };
    let cache = cache(env, Nowhere, contents);
    let count = async |number: u32| {
        let key = key(number);
        // The first handle of a value in a buffer of its own makes the count that all share.
        drop(cache.get(&key, Read::default()).await);
        let mut least = u64::MAX;
        for _ in 0..TRIES {
            let before = blocks();
            for _ in 0..GETS {
                let found = cache.get(black_box(&key), Read::default()).await.expect("got");
                assert_eq!(black_box(found).is_some(), number < KEYS);
            }
            least = least.min(blocks() - before);
        }
        least
    };
    (count(KEYS / 2).await, count(KEYS).await)
}

/// Bytes beside key and value of an entry that was put, and is durable.
async fn overhead_of_entries(env: &RealEnv) -> u64 {
    let before = heap();
    let cache = cache(env, Nowhere, Contents::default());
    for (key, value) in entries() {
        cache.put(&key, value, Write::default()).await.expect("put");
    }
    cache.sync().await.expect("durable");
    let grown = heap() - before;
    assert_eq!(cache.dirty_bytes(), 0);
    grown / u64::from(KEYS) - 112
}

/// The shard, as the cache of one object sees it.
struct Home(Shard<RealEnv>);

impl Backing for Home {
    type Ticket = Ticket;

    fn commit(
        &self,
        batch: &Batch,
        resident: Option<&dyn Resident>,
    ) -> dormouse_engine::Result<Ticket> {
        self.0.commit(&object(0), batch, resident)
    }

    fn snapshot(&self) -> LocalBoxFuture<'static, dormouse_engine::Result<Rc<dyn Stored>>> {
        unreachable!("all is in the cache")
    }
}

/// Commits in the log, and frames of the last one, after ten puts in one turn.
async fn commits_of_a_turn(env: &RealEnv) -> (usize, usize) {
    with_shard(env, LIMITS, async |shard| {
        let home = Home(shard.clone());
        let cache = cache(env, home, Contents::default());
        for (key, value) in entries().take(10) {
            cache.put(&key, value, Write::default()).await.expect("put");
        }
        cache.sync().await.expect("durable");
        let commits = shard.history(&object(0)).await.expect("readable");
        (commits.len(), commits.last().map_or(0, |commit| commit.frames.len()))
    })
    .await
}

struct Thing(State);

impl DurableObject for Thing {
    fn new(state: State) -> Self {
        Self(state)
    }
}

enum Do {
    Put,
    /// Counts the blocks of gets, as values and as bytes, of a key that is there or not.
    Count(&'static str),
}

impl Handler<Do> for Thing {
    type Reply = u64;

    async fn handle(&self, what: Do) -> Result<u64> {
        let storage = self.0.storage();
        match what {
            Do::Put => storage.put("there", &7).await.map(|()| 0),
            Do::Count(key) => {
                drop(storage.get_bytes(key).await?);
                let mut least = u64::MAX;
                for _ in 0..TRIES {
                    let before = blocks();
                    for _ in 0..GETS {
                        let found: Option<u64> = storage.get(black_box(key)).await?;
                        assert_eq!(found.is_some(), key == "there");
                        black_box(storage.get_bytes(black_box(key)).await?);
                    }
                    least = least.min(blocks() - before);
                }
                Ok(least)
            }
        }
    }
}

#[test]
fn hits_allocate_nothing_and_memory_holds_little_else() {
    let ((there, absent), overhead, (commits, frames)) = on_core(DiskChoice::Auto, async |env| {
        let gets = blocks_of_gets(&env).await;
        (gets, overhead_of_entries(&env).await, commits_of_a_turn(&env).await)
    });
    assert_eq!((there, absent), (0, 0), "blocks of {GETS} gets through the cache");
    assert_eq!((commits, frames), (1, 1), "commits and frames of ten puts in one turn");

    let dir = scratch();
    let runtime = Runtime::builder(dir.path()).cores(1).namespace::<Thing>("things");
    let runtime = runtime.start().expect("a runtime");
    let things = runtime.namespace::<Thing>();
    let thing = things.get_by_name("mice");
    thing.call(Do::Put).wait().expect("durable");
    for key in ["there", "absent"] {
        let count = thing.call(Do::Count(key)).wait().expect("counted");
        assert_eq!(count, 0, "blocks of {GETS} gets of a key that is {key}, through storage");
    }
    drop(thing);
    let residents = |range: std::ops::Range<u64>| {
        let put = |number: u64| things.get_by_name(&number.to_string()).call(Do::Put);
        let calls: Vec<_> = range.map(put).collect();
        calls.into_iter().for_each(|call| assert_eq!(call.wait().expect("durable"), 0));
    };
    // What grows with the first ones is the store's.
    residents(0..OBJECTS);
    let before = heap();
    residents(OBJECTS..2 * OBJECTS);
    let each = (heap() - before) / OBJECTS;
    runtime.close().expect("closed");

    println!("an entry: {overhead} bytes beside its key and value");
    println!("a resident object with one entry: {each} bytes");
    assert!(overhead <= ENTRY_OVERHEAD_MAX, "{overhead} bytes for each entry");
    assert!(each <= OBJECT_MAX, "{each} bytes for each resident object");
}
