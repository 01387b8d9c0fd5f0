//! [`Store`] and [`Object`]: any thread, any runtime, none; what they answer when something is in
//! the way.

mod common;

use std::path::Path;
use std::time::Duration;

use common::{dir, disks};
use dormouse_engine::real::DiskChoice;
use dormouse_engine::{Batch, Call, Kind, Limits, List, Object, ObjectId, Options, Store, Version};

fn options(disk: DiskChoice) -> Options {
    let limits = Limits { lock_wait: Duration::from_secs(20), ..Limits::PRODUCTION };
    Options { cores: Some(2), shards: Some(3), disk, limits, ..Options::default() }
}

fn open(dir: &Path, options: Options) -> Store {
    Store::open(dir, options).expect("a store")
}

fn close(store: &Store) {
    store.close().wait().expect("closed in order");
}

fn id(number: u8) -> ObjectId {
    ObjectId::from_bytes([number; 32])
}

fn keys(object: &Object, list: List) -> Vec<String> {
    let keys = object.list(list).blocking();
    keys.map(|key| String::from_utf8_lossy(&key.expect("a key").0).into_owned()).collect()
}

#[test]
fn what_is_committed_is_read_by_every_clone_and_after_reopening() {
    for disk in disks() {
        for cache_bytes in [0, 1 << 20] {
            let dir = dir();
            let options = Options { cache_bytes, ..options(disk) };
            let store = open(dir.path(), options.clone());
            let threads: Vec<_> = (0..4)
                .map(|number| {
                    let object = store.object(id(number));
                    std::thread::Builder::new().spawn(move || {
                        for count in 0..40_u32 {
                            let batch = Batch::new()
                                .put("count", count.to_le_bytes())
                                .put(format!("key-{:02}", count % 7), [number; 50])
                                .set_alarm(u64::from(count) + 1);
                            object.commit(batch).wait().expect("durable");
                            let read = object.get("count").wait().expect("readable");
                            assert_eq!(read.expect("put above"), count.to_le_bytes()[..]);
                        }
                    })
                })
                .collect();
            threads.into_iter().for_each(|thread| {
                thread.expect("a thread").join().expect("no panic");
            });
            let look = |store: &Store| {
                for number in 0..4 {
                    let object = store.object(id(number));
                    let (version, alarm) = object.head().wait().expect("a head");
                    assert!(version > Version::NONE);
                    assert_eq!(alarm, Some(40));
                    assert_eq!(
                        keys(&object, List::prefix("key-").reverse().limit(2)),
                        ["key-06", "key-05"]
                    );
                    assert_eq!(object.contents().wait().expect("readable").map.len(), 8);
                }
                assert_eq!(store.object(id(9)).get("count").wait().expect("readable"), None);
            };
            look(&store);
            close(&store);
            let store = open(dir.path(), options);
            look(&store);
            close(&store);
        }
    }
}

#[test]
fn a_list_shows_one_state_whatever_is_committed_meanwhile() {
    let dir = dir();
    let store = open(dir.path(), options(DiskChoice::Auto));
    let object = store.object(id(1));
    let batch = (0..10).fold(Batch::new(), |batch, key| batch.put([key], "old"));
    object.commit(batch).wait().expect("durable");
    let mut list = object.list(List::all()).blocking();
    assert_eq!(list.next().expect("ten keys").expect("readable").0[..], [0]);
    object.commit(Batch::new().delete_all().put([5], "new")).wait().expect("durable");
    let rest: Vec<_> = list.map(|key| key.expect("readable")).collect();
    assert_eq!(rest.len(), 9);
    assert!(rest.iter().all(|(_, value)| value == "old"));
    assert_eq!(keys(&object, List::all()).len(), 1);
    let refused = object.list(List::all().limit(0)).blocking().next();
    let refused = refused.expect("an answer").expect_err("no such list");
    assert_eq!((refused.kind(), refused.code()), (Kind::Invalid, Some("bad-argument")));
    close(&store);
}

/// Reads are answered though the object always has a commit in flight, and see all that was
/// committed before them.
#[test]
fn a_busy_object_is_read() {
    for cache_bytes in [0, 1 << 20] {
        let dir = dir();
        let options = Options { cache_bytes, ..options(DiskChoice::Auto) };
        let store = open(dir.path(), options);
        let object = store.object(id(1));
        let mut commits: Vec<Call<Version>> = Vec::new();
        for count in 0..300_u32 {
            commits.push(object.commit(Batch::new().put("count", count.to_le_bytes())));
            if count % 10 == 9 {
                let read = object.get("count").wait().expect("readable").expect("put above");
                assert_eq!(read[..], count.to_le_bytes());
                let (version, _) = object.head().wait().expect("a head");
                let commit = commits.pop().expect("pushed above");
                assert_eq!(commit.wait().expect("durable"), version);
            }
        }
        commits.into_iter().for_each(|commit| {
            commit.wait().expect("durable");
        });
        close(&store);
    }
}

#[test]
fn conflicts_and_limits_are_answered_and_change_nothing() {
    let dir = dir();
    let store = open(dir.path(), options(DiskChoice::Auto));
    let object = store.object(id(1));
    let first = Batch::new().put("a", "1").only_if(Version::NONE);
    let version = object.commit(first.clone()).wait().expect("it does not exist yet");
    let refused = object.commit(first).wait().expect_err("it exists");
    assert_eq!(refused.kind(), Kind::Conflict);
    let refused = object.commit(Batch::new().put("a", vec![0; 200_000])).wait();
    let refused = refused.expect_err("too large");
    assert_eq!((refused.kind(), refused.code()), (Kind::Invalid, Some("value-too-large")));
    assert_eq!(object.get("a").wait().expect("readable").expect("put above"), "1");
    let next = Batch::new().delete("a").only_if(version);
    object.commit(next).wait().expect("at that version");
    assert_eq!(object.head().wait().expect("a head"), (Version::NONE, None));
    assert_eq!(object.contents().wait().expect("readable").version, Version::NONE);
    close(&store);
}

#[test]
fn a_full_mailbox_refuses_at_once_and_what_it_took_happens() {
    let dir = dir();
    let store = open(dir.path(), Options { requests_max: 2, ..options(DiskChoice::Auto) });
    let object = store.object(id(1));
    let commit = |key: u32| object.commit(Batch::new().put(key.to_be_bytes(), "x"));
    let mut calls = Vec::new();
    // Faster than any core takes them.
    for key in 0..2000 {
        calls.push((key, commit(key)));
    }
    let (mut taken, mut refused) = (Vec::new(), 0);
    for (key, call) in calls {
        match call.wait() {
            Ok(_) => taken.push(key),
            Err(error) => {
                assert_eq!(error.kind(), Kind::Overloaded, "{error}");
                refused += 1;
            }
        }
    }
    println!("{} taken, {refused} refused", taken.len());
    assert!(refused > 0 && !taken.is_empty());
    let found = object.contents().wait().expect("readable");
    let wanted: Vec<_> = taken.iter().map(|key| key.to_be_bytes().to_vec()).collect();
    assert_eq!(found.map.keys().map(|key| key.to_vec()).collect::<Vec<_>>(), wanted);
    close(&store);
}

#[test]
fn all_objects_are_listed_over_several_pages() {
    let dir = dir();
    let store = open(dir.path(), options(DiskChoice::Auto));
    let ids: Vec<_> = (0..5000_u32)
        .map(|number| {
            let mut bytes = [0; 32];
            bytes[..4].copy_from_slice(&number.wrapping_mul(0x9e37_79b9).to_le_bytes());
            ObjectId::from_bytes(bytes)
        })
        .collect();
    let named = |number: usize, batch: Batch| match number % 5 {
        0 => batch.named("rooms", &format!("room-{number}")),
        1 => batch.named("users", &format!("room-{number}")),
        _ => batch,
    };
    for (chunk, ids) in ids.chunks(1000).enumerate() {
        let commit = |(at, id): (usize, &ObjectId)| {
            let batch = named(1000 * chunk + at, Batch::new().set_alarm(7).put("k", [7; 300]));
            store.object(*id).commit(batch)
        };
        let commits: Vec<_> = ids.iter().enumerate().map(commit).collect();
        commits.into_iter().for_each(|commit| assert!(commit.wait().expect("durable").0 > 0));
    }
    // Nobody says the names again, and what said them is in a checkpoint.
    for ids in ids.chunks(1000) {
        let commit = |id: &ObjectId| store.object(*id).commit(Batch::new().put("l", "1"));
        let commits: Vec<_> = ids.iter().map(commit).collect();
        commits.into_iter().for_each(|commit| assert!(commit.wait().expect("durable").0 > 0));
    }
    close(&store);
    let store = open(dir.path(), options(DiskChoice::Auto));
    let found = store.objects().blocking().map(|object| {
        let object = object.expect("open");
        assert_eq!((object.alarm, object.damaged), (Some(7), false));
        assert!(object.written_ms > 1_700_000_000_000 && object.log_bytes > 300, "{object:?}");
        object.id
    });
    let (mut found, mut sorted) = (found.collect::<Vec<_>>(), ids.clone());
    found.sort_unstable();
    sorted.sort_unstable();
    assert_eq!(found, sorted);
    let rooms = store.objects().namespace("rooms").name_prefix("room-1").blocking();
    let mut rooms: Vec<_> = rooms
        .map(|object| {
            let object = object.expect("open");
            assert_eq!(object.namespace.as_deref(), Some("rooms"));
            (object.name.expect("named").to_string(), object.id)
        })
        .collect();
    rooms.sort_unstable();
    let numbered = |number: &usize| format!("room-{number}").starts_with("room-1");
    let numbers = (0..5000).step_by(5).filter(numbered);
    let mut wanted: Vec<_> = numbers.map(|at| (format!("room-{at}"), ids[at])).collect();
    wanted.sort_unstable();
    assert_eq!(rooms, wanted);
    let stats = store.stats().wait().expect("open");
    assert_eq!(stats.shards.len(), 3);
    assert_eq!(stats.total.objects, 5000);
    assert_eq!(stats.shards.iter().map(|shard| shard.objects).sum::<u64>(), 5000);
    assert_eq!(stats.total.segments, stats.shards.iter().map(|shard| shard.segments).sum());
    assert!(stats.shards.iter().all(|it| it.checkpoints > 0 || it.log_bytes < 2 << 20));
    for (number, shard) in (0..).zip(&stats.shards) {
        let its = ids.iter().filter(|id| id.shard(3) == number).count();
        assert_eq!(shard.objects, its as u64, "shard {number}");
    }
    assert_eq!(stats.cached_objects, 0, "nothing was read");
    store.object(ids[0]).contents().wait().expect("readable");
    let stats = store.stats().wait().expect("open");
    assert!(stats.cached_objects == 1 && stats.cached_bytes > 0, "{stats:?}");
    close(&store);
}

/// Which core owns a shard is no part of the store: it is chosen anew at each opening.
#[test]
fn a_store_is_reopened_with_other_numbers_of_cores() {
    for disk in disks() {
        let dir = dir();
        let ids: Vec<_> = (0..24).map(id).collect();
        for shard in 0..3 {
            assert!(ids.iter().any(|id| id.shard(3) == shard), "an object in each shard");
        }
        // One core, as many as there are shards but one, one again, and more than shards.
        for (round, cores) in [1, 2, 1, 7, 3].into_iter().enumerate() {
            let store = open(dir.path(), Options { cores: Some(cores), ..options(disk) });
            for id in &ids {
                let object = store.object(*id);
                let found = object.contents().wait().expect("readable");
                let found: Vec<_> = found.map.values().map(|value| &value[..]).collect();
                let wanted: Vec<_> = (0..round).map(|round| format!("{round} {id}")).collect();
                assert_eq!(found, wanted.iter().map(|it| it.as_bytes()).collect::<Vec<_>>());
                let batch =
                    Batch::new().put(format!("key-{round}"), format!("{round} {id}")).set_alarm(9);
                object.commit(batch).wait().expect("durable");
            }
            let stats = dormouse_engine::call::wait(store.stats()).expect("open");
            let objects: Vec<_> = stats.shards.iter().map(|shard| shard.objects).collect();
            let wanted =
                [0, 1, 2].map(|shard| ids.iter().filter(|id| id.shard(3) == shard).count());
            assert_eq!(objects, wanted.map(|count| count as u64), "{cores} cores");
            for shard in &stats.shards {
                let found = (&shard.recovery.dropped, &shard.recovery.damaged[..]);
                assert_eq!(found, (&None, &[][..]), "closed in order");
            }
            close(&store);
        }
    }
}

#[test]
fn a_second_opening_is_refused_and_a_closed_store_answers_so() {
    let dir = dir();
    let store = open(dir.path(), options(DiskChoice::Auto));
    let limits = Limits { lock_wait: Duration::from_millis(50), ..Limits::PRODUCTION };
    let second = Store::open(dir.path(), Options { limits, ..options(DiskChoice::Auto) });
    let refused = second.err().expect("open elsewhere");
    assert_eq!((refused.kind(), refused.message()), (Kind::Retry, "the store is open elsewhere"));
    let object = store.object(id(1));
    let early = object.commit(Batch::new().put("a", "1"));
    close(&store);
    early.wait().expect("taken before the end, so it happened");
    close(&store);
    let late = object.commit(Batch::new().put("a", "2")).wait().expect_err("closed");
    assert_eq!(late.kind(), Kind::Closed);
    assert_eq!(object.get("a").wait().expect_err("closed").kind(), Kind::Closed);
    // No waiting for the locks: closing gave them back.
    let limits = Limits { lock_wait: Duration::ZERO, ..Limits::PRODUCTION };
    let store = open(dir.path(), Options { limits, ..options(DiskChoice::Auto) });
    assert_eq!(store.object(id(1)).get("a").wait().expect("readable").expect("kept"), "1");
    close(&store);
}

#[test]
fn a_dropped_store_finishes_and_can_be_opened_again() {
    let dir = dir();
    let store = open(dir.path(), options(DiskChoice::Auto));
    let object = store.object(id(1));
    let commit = object.commit(Batch::new().put("a", "1"));
    drop(store);
    commit.wait().expect("an object keeps its store open");
    let commit = object.commit(Batch::new().put("a", "2"));
    drop(object);
    let store = open(dir.path(), options(DiskChoice::Auto));
    commit.wait().expect("finished before the locks went");
    assert_eq!(store.object(id(1)).get("a").wait().expect("readable").expect("kept"), "2");
    close(&store);
}

/// Deletes are taken; what was overwritten counts no more once the object was written as one image.
#[test]
fn an_object_holds_so_much_and_no_more() {
    for disk in disks() {
        let dir = dir();
        let mut options = options(disk);
        options.limits.object_bytes_max = 10_000;
        let store = open(dir.path(), options);
        let object = store.object(id(1));
        let put = |key: &str, bytes: usize| object.commit(Batch::new().put(key, vec![1; bytes]));
        for key in ["a", "b", "c"] {
            put(key, 3000).wait().expect("room enough");
        }
        let full = put("d", 3000).wait().expect_err("too much");
        assert_eq!((full.kind(), full.code()), (Kind::NoSpace, Some("object-full")), "{full}");
        assert!(full.to_string().contains(&id(1).to_string()), "{full}");
        store.object(id(2)).commit(Batch::new().put("d", vec![1; 3000])).wait().expect("another");
        object.commit(Batch::new().delete("a")).wait().expect("deletes are taken");
        // Three images' worth of log at first.
        let mut tries = 0;
        while let Err(full) = put("d", 3000).wait() {
            assert_eq!(full.code(), Some("object-full"), "{full}");
            tries += 1;
            assert!(tries < 100_000, "what was deleted counts for ever");
            store.stats().wait().expect("stats");
        }
        let anew = Batch::new().delete_all().put("all", vec![1; 9000]);
        object.commit(anew).wait().expect("nothing of it counts before a delete of all");
        let largest = Batch::new().delete_all().put("all", vec![1; 10_001]);
        assert_eq!(object.commit(largest).wait().expect_err("alone").code(), Some("object-full"));
        close(&store);
    }
}

/// All shards and threads share it; what it holds is known after reopening.
#[test]
fn more_bounds_than_a_checkpoint_has_room_for_are_refused() {
    let dir = dir();
    let bounds = (0..2000).map(|number| (format!("tenant {number}"), 1 << 20)).collect();
    let options = Options { namespace_bytes_max: bounds, ..options(disks()[0]) };
    let error = Store::open(dir.path(), options).map(drop).expect_err("too many");
    assert_eq!(error.code(), Some("too-many-bounds"), "{error}");
}

#[test]
fn a_namespace_holds_so_much_and_no_more() {
    for disk in disks() {
        let dir = dir();
        let bounds = [("rooms".to_owned(), 100_000)].into();
        let options = Options { namespace_bytes_max: bounds, ..options(disk) };
        let store = open(dir.path(), options.clone());
        let commit = |store: &Store, number: u8, bytes| {
            let batch = Batch::new().put("value", vec![number; bytes]);
            store.object(id(number)).commit(batch.named("rooms", "a room")).wait()
        };
        let taken = (0..200).take_while(|number| commit(&store, *number, 3000).is_ok()).count();
        assert!((20..=33).contains(&taken), "{taken}");
        let full = commit(&store, 200, 3000).expect_err("too much");
        assert_eq!((full.kind(), full.code()), (Kind::NoSpace, Some("namespace-full")), "{full}");
        for said in ["rooms", "100000", &id(200).to_string()] {
            assert!(full.to_string().contains(said), "{full}");
        }
        let other = Batch::new().put("value", vec![1; 50_000]);
        store.object(id(201)).commit(other.clone().named("halls", "one")).wait().expect("another");
        store.object(id(202)).commit(other).wait().expect("of no namespace");
        let held = store.namespace_bytes("rooms").wait().expect("a sum");
        assert!((90_000..=100_000).contains(&held), "{held}");
        close(&store);

        let store = open(dir.path(), options.clone());
        assert_eq!(store.namespace_bytes("rooms").wait().expect("a sum"), held);
        assert_eq!(commit(&store, 200, 3000).expect_err("still").code(), Some("namespace-full"));
        store.object(id(0)).commit(Batch::new().delete("value")).wait().expect("deletes are taken");
        commit(&store, 200, 2000).expect("room");
        // Of an object that is written anew, what it held does not count.
        let anew = Batch::new().delete_all().put("value", vec![1; 2900]);
        store.object(id(1)).commit(anew).wait().expect("no more than before");
        close(&store);

        let store = open(dir.path(), Options { namespace_bytes_max: [].into(), ..options });
        commit(&store, 203, 50_000).expect("no bound any more");
        close(&store);
    }
}
