//! [`Store`] in other people's programs: on tokio's runtimes, on threads without one, on several at
//! once; what it lists, deletes and refuses there.

mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use common::dir;
use dormouse_engine::real::DiskChoice;
use dormouse_engine::{
    Batch, Call, Durability, Kind, Limits, List, Object, ObjectId, Options, Store, Version,
};
use tokio::runtime::{Builder, Runtime};

fn options() -> Options {
    Options { cores: Some(2), shards: Some(2), ..Options::default() }
}

fn id(number: u8) -> ObjectId {
    ObjectId::from_bytes([number; 32])
}

fn runtimes() -> [Runtime; 2] {
    let current = Builder::new_current_thread().build();
    let multi = Builder::new_multi_thread().worker_threads(2).build();
    [current.expect("a runtime"), multi.expect("a runtime")]
}

/// Adds one, as people without gates do: again, until nobody came between.
async fn increment(object: &Object) {
    loop {
        let (version, _) = object.head().await.expect("a head");
        let count = object.get("count").await.expect("readable");
        let count = count.map_or(0, |count| u64::from_le_bytes(count[..].try_into().expect("8")));
        let next = Batch::new().put("count", (count + 1).to_le_bytes()).only_if(version);
        match object.commit(next).await {
            Ok(_) => return,
            Err(error) if error.kind() == Kind::Conflict => {}
            Err(error) => panic!("{error}"),
        }
    }
}

fn count(object: &Object) -> u64 {
    let count = object.get("count").wait().expect("readable").expect("counted");
    u64::from_le_bytes(count[..].try_into().expect("8 bytes"))
}

/// Everything that there is to await.
async fn a_life(store: Store) {
    let object = store.object(id(1));
    let first = object.commit(Batch::new().put("a:1", "1").put("a:2", "2").put("b", "3"));
    first.await.expect("durable");
    let mut list = object.list(List::prefix("a:").reverse().limit(1));
    let (key, value) = list.next().await.expect("readable").expect("two keys");
    assert_eq!((&key[..], &value[..]), (&b"a:2"[..], &b"2"[..]));
    assert_eq!(list.next().await.expect("readable"), None);
    assert_eq!(object.delete_prefix("a:").await.expect("deleted"), 2);
    let mut objects = store.objects();
    let found = objects.next().await.expect("open").expect("one object");
    assert_eq!((found.id, found.version), (id(1), object.head().await.expect("a head").0));
    assert!(objects.next().await.expect("open").is_none());
    store.flush().await.expect("durable");
    assert_eq!(store.stats().await.expect("open").total.objects, 1);
    object.delete().await.expect("deleted");
    assert_eq!(object.contents().await.expect("readable").version, Version::NONE);
    store.close().await.expect("closed");
    assert_eq!(object.head().await.expect_err("closed").kind(), Kind::Closed);
    assert_eq!(store.flush().await.expect_err("closed").kind(), Kind::Closed);
    assert_eq!(store.stats().await.expect_err("closed").kind(), Kind::Closed);
}

#[test]
fn a_store_lives_on_each_runtime_and_without_one() {
    for runtime in runtimes() {
        let dir = dir();
        // Opened inside, as most programs do.
        runtime
            .block_on(async { a_life(Store::open(dir.path(), options()).expect("a store")).await });
        a_life_without_a_runtime(dir.path());
    }
}

/// The same with `wait` and `blocking` alone.
fn a_life_without_a_runtime(dir: &Path) {
    let store = Store::open(dir, options()).expect("a store");
    let object = store.object(id(1));
    object.commit(Batch::new().put("a:1", "1").put("a:2", "2")).wait().expect("durable");
    assert_eq!(object.list(List::prefix("a:")).blocking().count(), 2);
    assert_eq!(object.delete_prefix("a:1").wait().expect("deleted"), 1);
    assert_eq!(store.objects().blocking().count(), 1);
    store.flush().wait().expect("durable");
    assert_eq!(store.stats().wait().expect("open").shards.len(), 2);
    // So that the end takes a while.
    let large = || object.commit(Batch::new().put("large", vec![7; 100_000]));
    let late: Vec<_> = (0..50).map(|_| large()).collect();
    let (one, two) = (store.close(), store.close());
    two.wait().expect("closed");
    // Both wait for the same end: the locks are free, whichever was waited for.
    let limits = Limits { lock_wait: Duration::ZERO, ..Limits::PRODUCTION };
    let again = Store::open(dir, Options { limits, ..options() }).expect("closed");
    one.wait().expect("closed, long since");
    for commit in late {
        commit.wait().expect("taken before the end, so it happened");
    }
    again.close().wait().expect("closed");
    let refused = store.objects().blocking().collect::<Vec<_>>();
    assert_eq!(refused.len(), 1, "an error ends the walk");
    assert_eq!(refused[0].as_ref().expect_err("closed").kind(), Kind::Closed);
}

/// Two runtimes and a thread without one, on the same objects.
#[test]
fn one_store_serves_two_runtimes_and_a_plain_thread_at_once() {
    const EACH: u64 = 40;
    for durability in [Durability::Always, Durability::OnFlush] {
        let dir = dir();
        let store = Store::open(dir.path(), Options { durability, ..options() }).expect("a store");
        std::thread::scope(|scope| {
            for runtime in runtimes() {
                let object = store.object(id(1));
                scope.spawn(move || {
                    // Two tasks of each runtime.
                    let task = runtime.spawn(count_up(object.clone(), EACH));
                    runtime.block_on(count_up(object, EACH));
                    runtime.block_on(task).expect("no panic");
                });
            }
            let object = store.object(id(1));
            scope.spawn(move || dormouse_engine::call::wait(count_up(object, EACH)));
        });
        assert_eq!(count(&store.object(id(1))), 5 * EACH);
        store.close().wait().expect("closed");
        let store = Store::open(dir.path(), options()).expect("a store");
        assert_eq!(count(&store.object(id(1))), 5 * EACH);
        store.close().wait().expect("closed");
    }
}

/// What the store gives can be awaited in a task that moves from thread to thread.
async fn count_up(object: Object, times: u64) {
    for _ in 0..times {
        increment(&object).await;
    }
}

#[test]
fn handles_and_answers_go_to_any_thread() {
    fn anywhere<T: Send + Sync + 'static>() {}
    anywhere::<Store>();
    anywhere::<Object>();
    anywhere::<Call<Version>>();
    anywhere::<dormouse_engine::Keys>();
    anywhere::<dormouse_engine::Objects>();
}

/// every combination of bounds, held to what a filter over all keys gives.
#[test]
fn lists_give_what_a_filter_gives() {
    let keys: [&[u8]; 9] = [b"", b"a", b"a\0", b"ab", b"ab\xff", b"b", b"ba", b"\xff", b"\xff\xff"];
    let dir = dir();
    let store = Store::open(dir.path(), options()).expect("a store");
    let object = store.object(id(1));
    let batch = keys.iter().fold(Batch::new(), |batch, key| batch.put(key, key));
    object.commit(batch).wait().expect("durable");
    let bounds: Vec<Option<&[u8]>> =
        [None, Some(&b""[..]), Some(b"a"), Some(b"ab"), Some(b"b"), Some(b"\xff")].into();
    let mut lists = 0;
    for (start, after) in bounds.iter().flat_map(|b| [(*b, None), (None, *b)]) {
        for (end, prefix) in bounds.iter().flat_map(|end| bounds.iter().map(|p| (*end, *p))) {
            for (limit, reverse) in [(None, false), (None, true), (Some(2), false), (Some(2), true)]
            {
                let mut list = prefix.map_or(List::all(), List::prefix);
                list = start.map_or(list.clone(), |key| list.start(key));
                list = after.map_or(list.clone(), |key| list.start_after(key));
                list = end.map_or(list.clone(), |key| list.end(key));
                list.limit = limit;
                list = if reverse { list.reverse() } else { list };
                let mut wanted: Vec<&[u8]> = keys.to_vec();
                wanted.sort_unstable();
                wanted.retain(|key| start.is_none_or(|start| *key >= start));
                wanted.retain(|key| after.is_none_or(|after| *key > after));
                wanted.retain(|key| end.is_none_or(|end| *key < end));
                wanted.retain(|key| prefix.is_none_or(|prefix| key.starts_with(prefix)));
                if reverse {
                    wanted.reverse();
                }
                wanted.truncate(limit.map_or(usize::MAX, |_| 2));
                let what = format!("{list:?}");
                let got: Vec<_> =
                    object.list(list).blocking().map(|key| key.expect("a key").0).collect();
                assert_eq!(got, wanted, "{what}");
                lists += 1;
            }
        }
    }
    assert_eq!(lists, 12 * 36 * 4);
    store.close().wait().expect("closed");
}

/// Each key is put once and deleted once, whoever deletes: nothing that is put meanwhile goes without
/// being counted (E1: each delete is one commit).
#[test]
fn every_deleted_key_is_counted_once_among_concurrent_commits() {
    for (cache_bytes, durability) in
        [(0, Durability::Always), (1 << 20, Durability::Always), (1 << 20, Durability::OnFlush)]
    {
        let dir = dir();
        let options = Options { cache_bytes, durability, ..options() };
        let store = Store::open(dir.path(), options).expect("a store");
        let object = store.object(id(1));
        let (putters, keys) = (3_usize, 100_u32);
        let deleted = std::thread::scope(|scope| {
            for putter in 0..putters {
                let object = &object;
                scope.spawn(move || {
                    for key in 0..keys {
                        let batch = Batch::new()
                            .put(format!("a:{putter}:{key}"), "x")
                            .put(format!("b:{putter}"), key.to_be_bytes());
                        object.commit(batch).wait().expect("durable");
                    }
                });
            }
            let deleters: Vec<_> = (0..2)
                .map(|_| {
                    let delete = || object.delete_prefix("a:").wait().expect("deleted");
                    scope.spawn(move || (0..60).map(|_| delete()).sum::<u64>())
                })
                .collect();
            deleters.into_iter().map(|deleter| deleter.join().expect("no panic")).sum::<u64>()
        });
        let left = object.list(List::prefix("a:")).blocking().count() as u64;
        assert_eq!(deleted + left, putters as u64 * u64::from(keys));
        assert_eq!(object.list(List::prefix("b:")).blocking().count(), putters);
        assert_eq!(object.delete_prefix("").wait().expect("deleted"), left + putters as u64);
        assert_eq!(object.contents().wait().expect("readable").version, Version::NONE);
        store.close().wait().expect("closed");
    }
}

#[test]
fn deleting_takes_keys_and_alarm_and_a_prefix_leaves_the_alarm() {
    let dir = dir();
    let store = Store::open(dir.path(), options()).expect("a store");
    let object = store.object(id(1));
    let batch = Batch::new().put("a", "1").put("b", "2").set_alarm(77);
    object.commit(batch).wait().expect("durable");
    assert_eq!(object.delete_prefix("").wait().expect("deleted"), 2);
    let emptied = object.contents().wait().expect("readable");
    assert_eq!((emptied.map.len(), emptied.alarm), (0, Some(77)));
    object.commit(Batch::new().put("c", "3")).wait().expect("durable");
    object.delete().wait().expect("durable");
    assert_eq!(object.head().wait().expect("a head"), (Version::NONE, None));
    assert_eq!(store.objects().blocking().count(), 0);
    store.close().wait().expect("closed");
    let store = Store::open(dir.path(), options()).expect("a store");
    assert_eq!(store.objects().blocking().count(), 0);
    let found: BTreeMap<_, _> =
        store.object(id(1)).contents().wait().expect("readable").map.clone();
    assert_eq!(found, BTreeMap::new());
    store.close().wait().expect("closed");
}

#[test]
fn options_that_no_store_can_have_are_refused() {
    let dir = dir();
    for options in
        [Options { shards: Some(0), ..options() }, Options { requests_max: 0, ..options() }]
    {
        let refused = Store::open(dir.path(), options).err().expect("refused");
        assert_eq!(refused.kind(), Kind::Invalid, "{refused}");
    }
    // No thread is left that keeps the directory locked.
    let options = Options { cores: Some(0), disk: DiskChoice::Posix, ..options() };
    let store = Store::open(dir.path(), options).expect("at least one core");
    store.close().wait().expect("closed");
}
