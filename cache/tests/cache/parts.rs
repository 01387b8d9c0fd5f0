//! A large object, of which nothing is in memory at first: what is read, what is learned, what is
//! forgotten; and random programs against a map, with reads that are served late, fail, and are dropped.

use std::fmt::Debug;
use std::future::Future;
use std::pin::Pin;
use std::task::Poll;

use bytes::Bytes;
use dormouse_cache::{AlarmToo, Answer, CacheLimits, List, Read, Transaction, Write};
use dormouse_engine::{Contents, Kind, Result};
use proptest::prelude::*;

use super::env::TestEnv;
use super::model::{Key, Map, expected, key, list};
use super::store::{Commit, Store};
use super::{World, bytes, contents, now, pairs, poll, show};

const STORED: &[(&str, &str)] = &[("a", "1"), ("b", "2"), ("c", "3"), ("d", "4"), ("e", "5")];

fn world() -> World {
    World::in_parts(&contents(STORED), CacheLimits::PRODUCTION)
}

/// Serves whatever the answer needs; gives it with the count of reads that it needed.
fn served<T: Debug>(world: &World, mut answer: Answer<T>) -> (T, usize) {
    let before = world.store.served();
    loop {
        if let Poll::Ready(result) = poll(&mut answer) {
            return (result.unwrap(), world.store.served() - before);
        }
        assert!(world.store.serve(0, None), "it waits for a read");
    }
}

fn get(world: &World, key: &str) -> (Option<Bytes>, usize) {
    served(world, world.cache.get(key.as_bytes(), Read::default()))
}

fn listed(world: &World, list: &List) -> (String, usize) {
    let (entries, reads) = served(world, world.cache.list(list, Read::default()));
    (show(&entries.into_iter().collect::<Vec<_>>()), reads)
}

#[test]
fn what_was_read_is_known_absences_too() {
    let world = world();
    assert_eq!(get(&world, "b"), (Some(bytes("2")), 2));
    assert_eq!(get(&world, "b"), (Some(bytes("2")), 0));
    assert_eq!(get(&world, "bb"), (None, 2));
    assert_eq!(get(&world, "bb"), (None, 0));
    let keys: [&[u8]; 4] = [b"d", b"b", b"x", b"bb"];
    let many = || served(&world, world.cache.get_many(&keys, Read::default()));
    // One opening and the two that are not known.
    assert_eq!((show(&many().0), many().1), ("b=2 d=4".into(), 0));
}

#[test]
fn a_list_makes_its_range_known() {
    let world = world();
    assert_eq!(listed(&world, &List::all().start("b").end("d")), ("b=2 c=3".into(), 2));
    assert_eq!(get(&world, "bb"), (None, 0));
    assert_eq!(listed(&world, &List::all().start("b").end("d").reverse()), ("c=3 b=2".into(), 0));
    // What is behind the limit is not known; what is before it is.
    assert_eq!(listed(&world, &List::all().start("d").limit(1)), ("d=4".into(), 2));
    assert_eq!(get(&world, "dd"), (None, 2));
    assert_eq!(listed(&world, &List::all().start("b").limit(2)), ("b=2 c=3".into(), 0));
    assert_eq!(get(&world, "e"), (Some(bytes("5")), 2));
    // Only what is not known is read: before b, between d and dd, between dd and e, behind e.
    let (all, reads) = listed(&world, &List::all());
    assert_eq!((all.as_str(), reads), ("a=1 b=2 c=3 d=4 e=5", 5));
    assert_eq!(listed(&world, &List::prefix("nothing")), (String::new(), 0));
    // What is written in a known range leaves it known.
    world.put("ee", "6");
    assert_eq!(get(&world, "ed"), (None, 0));
}

#[test]
fn a_list_reads_no_further_than_its_limit_needs() {
    let world = world();
    get(&world, "a");
    get(&world, "b");
    // Between them, and nothing behind b.
    assert_eq!(listed(&world, &List::all().limit(2)).0, "a=1 b=2");
    assert_eq!(get(&world, "aa").1, 0);
    assert_ne!(get(&world, "bb").1, 0);
    world.put("0", "new");
    assert_eq!(listed(&world, &List::all().limit(1)).0, "0=new");
}

#[test]
fn a_list_over_many_gaps_is_one_walk() {
    let many: Vec<_> = (0..40).map(|number| (format!("k{number:02}"), "v")).collect();
    let many: Vec<_> = many.iter().map(|(key, value)| (&key[..], *value)).collect();
    let world = World::in_parts(&contents(&many), CacheLimits::PRODUCTION);
    for (key, _) in many.iter().step_by(4) {
        assert!(served(&world, world.cache.delete(key.as_bytes(), Write::default())).0);
    }
    let (all, reads) = listed(&world, &List::all());
    assert_eq!((all.split(' ').count(), reads), (30, 2));
    // Deleted keys are read too, and then some more until there are enough.
    let other = World::in_parts(&contents(&many), CacheLimits::PRODUCTION);
    for (key, _) in many.iter().step_by(2) {
        assert!(served(&other, other.cache.delete(key.as_bytes(), Write::default())).0);
    }
    let (some, reads) = listed(&other, &List::all().reverse().limit(10));
    assert_eq!(some.split(' ').next_back(), Some("k21=v"));
    assert!(reads <= 6, "{reads}");
}

#[test]
fn keys_that_are_not_there_take_no_more_room_than_those_that_are() {
    let limits = CacheLimits { kept_bytes_max: 10_000, ..CacheLimits::PRODUCTION };
    let world = World::in_parts(&contents(STORED), limits);
    for number in 0..200 {
        assert_eq!(get(&world, &format!("{number:0>2000}")).0, None);
        assert!(world.cache.memory_bytes() < 20_000, "{}", world.cache.memory_bytes());
    }
}

#[test]
fn a_list_reads_more_for_each_key_that_was_deleted() {
    let deleted = |list: &List| {
        let world = world();
        assert!(poll(&mut world.cache.delete(b"b", Write::default())).is_pending());
        listed(&world, list).0
    };
    assert_eq!(deleted(&List::all().limit(2)), "a=1 c=3");
    assert_eq!(deleted(&List::all().end("d").reverse().limit(2)), "c=3 a=1");
}

#[test]
fn what_is_written_without_caching_leaves_when_it_is_durable() {
    let world = world();
    let put = |key: &str, value: &str| {
        now(world.cache.put(key.as_bytes(), bytes(value), Write::no_cache())).unwrap();
    };
    put("b", "new");
    put("c", "new");
    assert_eq!(served(&world, world.cache.get(b"b", Read::no_cache())), (Some(bytes("new")), 0));
    assert_eq!(get(&world, "c"), (Some(bytes("new")), 0));
    world.commit().succeed();
    world.env.run();
    // Of the object as it is now.
    assert_eq!(get(&world, "b"), (Some(bytes("new")), 2));
    assert_eq!(get(&world, "c"), (Some(bytes("new")), 0));
}

#[test]
fn parallel_misses_of_one_key_share_one_read() {
    let world = world();
    let mut one = world.cache.get(b"b", Read::default());
    let mut other = world.cache.get(b"b", Read::no_cache());
    assert!(poll(&mut one).is_pending() && poll(&mut other).is_pending());
    // One that gives up takes nothing from the other one (T-051).
    drop(one);
    assert_eq!(served(&world, other), (Some(bytes("2")), 2));
    assert_eq!(get(&world, "b").1, 0);
}

#[test]
fn a_read_gives_what_was_there_at_its_call() {
    let world = world();
    let before = world.cache.get(b"b", Read::default());
    let all = world.cache.list(&List::all(), Read::default());
    world.put("b", "new");
    world.put("bb", "new");
    assert!(matches!(poll(&mut world.cache.delete(b"a", Write::default())), Poll::Pending));
    assert_eq!(served(&world, before).0, Some(bytes("2")));
    let all = served(&world, all).0.into_iter().collect::<Vec<_>>();
    assert_eq!(show(&all), "a=1 b=2 c=3 d=4 e=5");
    assert_eq!(listed(&world, &List::all()).0, "b=new bb=new c=3 d=4 e=5");
}

#[test]
fn a_flush_waits_for_a_snapshot_that_is_being_opened_and_for_no_more() {
    let world = world();
    let mut before = world.cache.get(b"b", Read::default());
    assert!(poll(&mut before).is_pending());
    world.put("b", "new");
    world.env.run();
    assert!(!world.store.has_commit(), "the snapshot would have what was written");
    // It shares the snapshot that the flush waits for.
    let mut c = world.cache.get(b"c", Read::default());
    assert!(poll(&mut c).is_pending());
    assert_eq!(world.store.waiting(), 1);
    assert!(world.store.serve(0, None));
    world.env.run();
    world.store.next().succeed();
    world.env.run();
    assert_eq!(served(&world, before).0, Some(bytes("2")));
    assert_eq!(served(&world, c).0, Some(bytes("3")));
    assert_eq!(get(&world, "b"), (Some(bytes("new")), 0));
}

#[test]
fn a_flush_opens_the_snapshot_of_a_read_that_nobody_polls() {
    let world = world();
    let before = world.cache.get(b"b", Read::default());
    world.put("b", "new");
    world.env.run();
    assert!(!world.store.has_commit());
    assert!(world.store.serve(0, None));
    world.env.run();
    world.store.next().succeed();
    world.env.run();
    assert_eq!(served(&world, before).0, Some(bytes("2")));
}

#[test]
fn deletes_are_counted_and_read_only_what_is_not_known() {
    let world = world();
    get(&world, "b");
    get(&world, "bb");
    let delete = |keys: &[&[u8]]| served(&world, world.cache.delete_many(keys, Write::default()));
    assert_eq!(delete(&[b"b", b"bb"]), (1, 0));
    // An opening, and one look at what is not known: a key given twice counts once.
    assert_eq!(delete(&[b"a", b"x", b"a", b"b"]), (1, 2));
    assert_eq!(get(&world, "a"), (None, 0));
    let commit = world.commit();
    assert_eq!(commit.show(), "-a -b -x");
    commit.succeed();
    world.env.run();
    assert_eq!(listed(&world, &List::all()).0, "c=3 d=4 e=5");
}

#[test]
fn a_transaction_reads_through_and_counts_what_it_deletes() {
    let world = world();
    let txn = world.cache.begin();
    assert!(served(&world, txn.delete(b"a", Write::default())).0);
    assert_eq!(served(&world, txn.get(b"a", Read::default())), (None, 0));
    now(txn.put(b"bb", bytes("new"), Write::default())).unwrap();
    let all = served(&world, txn.list(&List::all().limit(3), Read::default())).0;
    assert_eq!(show(&all.into_iter().collect::<Vec<_>>()), "b=2 bb=new c=3");
    txn.rollback().unwrap();
    // What was read is of the object, not of the transaction.
    assert_eq!(listed(&world, &List::all().limit(3)), ("a=1 b=2 c=3".into(), 0));
}

#[test]
fn delete_all_makes_all_known_and_the_object_whole() {
    let world = world();
    let before = world.cache.get(b"b", Read::default());
    now(world.cache.delete_all(AlarmToo::Clear, Write::default())).unwrap();
    world.put("x", "1");
    assert_eq!(listed(&world, &List::all()), ("x=1".into(), 0));
    assert_eq!(served(&world, before).0, Some(bytes("2")));
    assert_eq!(get(&world, "b"), (None, 0));
    assert_eq!(world.commit().show(), "delete-all x=1");
}

#[test]
fn what_a_read_is_told_not_to_keep_is_read_again() {
    let world = world();
    let read = || served(&world, world.cache.get(b"b", Read::no_cache())).1;
    assert_eq!((read(), read()), (2, 2));
    let list = || served(&world, world.cache.list(&List::all(), Read::no_cache())).1;
    assert_eq!((list(), list()), (2, 2));
}

#[test]
fn a_failed_read_is_its_callers_alone() {
    let limits = CacheLimits { flush_attempts_max: 2, ..CacheLimits::PRODUCTION };
    let world = World::in_parts(&contents(STORED), limits);
    let mut one = world.cache.get(b"b", Read::default());
    assert!(poll(&mut one).is_pending());
    // Which may be tried again is, as often as a flush.
    for failure in [Some(Kind::Retry), None, Some(Kind::Retry), Some(Kind::Corrupt)] {
        assert!(world.store.serve(0, failure));
        if failure == Some(Kind::Corrupt) {
            break;
        }
        assert!(poll(&mut one).is_pending());
    }
    let Poll::Ready(Err(error)) = poll(&mut one) else { panic!("it failed") };
    assert_eq!(error.kind(), Kind::Corrupt);
    assert!(world.cache.output_gate().is_open());
    assert_eq!(get(&world, "b").0, Some(bytes("2")));
}

#[test]
fn what_is_used_stays_and_the_rest_is_forgotten() {
    // Room for three entries of one letter each, of 66 bytes, and their ranges.
    let limits = CacheLimits { kept_bytes_max: 450, ..CacheLimits::PRODUCTION };
    let world = World::in_parts(&contents(STORED), limits);
    for key in ["a", "b", "c", "d"] {
        get(&world, key);
        // As a hot key would be.
        get(&world, "a");
    }
    assert_eq!(get(&world, "a").1, 0);
    assert_ne!(get(&world, "b").1, 0);
    // What is dirty stays, whatever it takes.
    for number in 0..20 {
        world.put(&format!("k{number}"), "v");
    }
    assert_eq!(get(&world, "k0"), (Some(bytes("v")), 0));
    let commit = world.commit();
    assert_eq!(get(&world, "k0"), (Some(bytes("v")), 0));
    commit.succeed();
    world.env.run();
    assert!(world.cache.memory_bytes() < 4000, "{}", world.cache.memory_bytes());
    assert_eq!(get(&world, "k0").0, Some(bytes("v")));
}

#[test]
fn a_list_of_much_pushes_nothing_out() {
    let many: Vec<_> = (0..40).map(|number| (format!("k{number:02}"), "v".repeat(20))).collect();
    let many: Vec<_> = many.iter().map(|(key, value)| (&key[..], &value[..])).collect();
    let limits = CacheLimits { kept_bytes_max: 1000, ..CacheLimits::PRODUCTION };
    let world = World::in_parts(&contents(&many), limits);
    get(&world, "k07");
    let (_, reads) = listed(&world, &List::all());
    assert_eq!(reads, 3);
    assert_eq!(get(&world, "k07").1, 0);
    assert_ne!(get(&world, "k08").1, 0);
}

#[test]
fn a_whole_object_that_grew_large_is_one_in_parts() {
    let limits = CacheLimits { kept_bytes_max: 450, ..CacheLimits::PRODUCTION };
    let world = World::with(contents(STORED), limits);
    for number in 0..20 {
        world.put(&format!("k{number}"), "v");
    }
    world.commit().succeed();
    world.env.run();
    assert_eq!(get(&world, "a"), (Some(bytes("1")), 2));
    assert_eq!(listed(&world, &List::all().end("c")).0, "a=1 b=2");
}

#[derive(Clone, Debug)]
enum Step {
    Put(Key, Vec<u8>, bool),
    Delete(Vec<Key>, bool),
    Get(Key, bool),
    GetMany(Vec<Key>),
    List(List, bool),
    DeleteAll,
    Begin,
    /// A transaction ends: by commit?
    End(bool),
    Run,
    /// The store answers a commit: durable, or nothing written.
    Answer(bool),
    /// The store serves a read, or fails it.
    Serve(usize, Option<bool>),
    /// Nobody waits for an answer any more.
    Drop(usize),
    /// One is polled.
    Poll(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let keys = || prop::collection::vec(key(), 0..4);
    let value = prop::collection::vec(0..3_u8, 0..2);
    let fails = prop_oneof![12 => Just(None), 1 => any::<bool>().prop_map(Some)];
    prop_oneof![
        8 => (key(), value, any::<bool>()).prop_map(|(key, value, no)| Step::Put(key, value, no)),
        4 => (keys(), any::<bool>()).prop_map(|(keys, no)| Step::Delete(keys, no)),
        6 => (key(), any::<bool>()).prop_map(|(key, no)| Step::Get(key, no)),
        2 => keys().prop_map(Step::GetMany),
        6 => (list(), any::<bool>()).prop_map(|(list, no)| Step::List(list, no)),
        1 => Just(Step::DeleteAll),
        1 => Just(Step::Begin),
        2 => any::<bool>().prop_map(Step::End),
        6 => Just(Step::Run),
        5 => prop::bool::weighted(0.8).prop_map(Step::Answer),
        16 => (0..8_usize, fails).prop_map(|(place, fails)| Step::Serve(place, fails)),
        2 => (0..8_usize).prop_map(Step::Drop),
        6 => (0..8_usize).prop_map(Step::Poll),
    ]
}

/// An answer that is not there yet, which checks itself when it is.
type Waiting = Pin<Box<dyn Future<Output = ()>>>;

struct Run {
    world: World,
    open: Vec<Transaction<TestEnv, Store>>,
    states: Vec<Map>,
    held: Option<Commit>,
    waiting: Vec<Waiting>,
}

impl Run {
    fn new(stored: Map, kept_bytes_max: usize) -> Self {
        let limits =
            CacheLimits { kept_bytes_max, flush_attempts_max: 1000, ..CacheLimits::PRODUCTION };
        let map = stored.iter().map(|(key, value)| (key.clone().into(), value.clone().into()));
        let contents = Contents { map: map.collect(), ..Contents::default() };
        let world = World::in_parts(&contents, limits);
        Self { world, open: Vec::new(), states: vec![stored], held: None, waiting: Vec::new() }
    }

    /// The answer is to be this, unless its read failed.
    fn expect<T: Debug + PartialEq + 'static>(&mut self, answer: Answer<T>, value: T) {
        let check = move |result: Result<T>| match result {
            Ok(found) => assert_eq!(found, value),
            Err(error) => assert_eq!(error.kind(), Kind::Corrupt, "{error}"),
        };
        match answer.try_ready() {
            Ok(result) => check(result),
            Err(answer) => self.waiting.push(Box::pin(async move { check(answer.await) })),
        }
    }

    fn poll(&mut self, place: usize) {
        if !self.waiting.is_empty() {
            let place = place % self.waiting.len();
            if poll(&mut self.waiting[place]).is_ready() {
                drop(self.waiting.remove(place));
            }
        }
    }

    fn step(&mut self, step: Step) {
        let cache = self.world.cache.clone();
        let map = self.states.last_mut().expect("at least the object's");
        let read = |no_cache| if no_cache { Read::no_cache() } else { Read::default() };
        let write = |no_cache| if no_cache { Write::no_cache() } else { Write::default() };
        match step {
            Step::Put(key, value, no_cache) => {
                now(cache.put(&key, value.clone().into(), write(no_cache))).unwrap();
                map.insert(key, value);
            }
            Step::Delete(keys, no_cache) => {
                let slices: Vec<&[u8]> = keys.iter().map(|key| &key[..]).collect();
                let deleted = keys.iter().filter(|key| map.remove(*key).is_some()).count();
                self.expect(cache.delete_many(&slices, write(no_cache)), deleted);
            }
            Step::Get(key, no_cache) => {
                let value = map.get(&key).map(|value| Bytes::from(value.clone()));
                self.expect(cache.get(&key, read(no_cache)), value);
            }
            Step::GetMany(keys) => {
                let slices: Vec<&[u8]> = keys.iter().map(|key| &key[..]).collect();
                let mut wanted = map.clone();
                wanted.retain(|key, _| keys.contains(key));
                let wanted = expected(&wanted, &List::all());
                self.expect(cache.get_many(&slices, Read::default()), wanted);
            }
            Step::List(list, no_cache) => {
                let wanted = expected(map, &list);
                let listed = cache.list(&list, read(no_cache));
                self.expect(listed.map(|entries| pairs(Ok(entries))), wanted);
            }
            Step::DeleteAll => {
                if self.open.is_empty() {
                    now(cache.delete_all(AlarmToo::Keep, Write::default())).unwrap();
                    map.clear();
                }
            }
            Step::Begin => {
                let state = map.clone();
                self.open.push(cache.begin());
                self.states.push(state);
            }
            Step::End(commits) => self.end(commits),
            Step::Run => {
                self.world.env.run();
                if self.held.is_none() && self.world.store.has_commit() {
                    self.held = Some(self.world.store.next());
                }
            }
            Step::Answer(durable) => match self.held.take() {
                Some(commit) if durable => commit.succeed(),
                Some(commit) => commit.fail(Kind::Retry),
                None => {}
            },
            Step::Serve(place, fails) => {
                let failure = fails.map(|lost| if lost { Kind::Corrupt } else { Kind::Retry });
                self.world.store.serve(place, failure);
            }
            Step::Drop(place) => {
                if !self.waiting.is_empty() {
                    drop(self.waiting.remove(place % self.waiting.len()));
                }
            }
            Step::Poll(place) => self.poll(place),
        }
    }

    fn end(&mut self, commits: bool) {
        let Some(txn) = self.open.pop() else { return };
        let state = self.states.pop().expect("one for each transaction");
        match commits {
            true => {
                now(txn.commit()).unwrap();
                *self.states.last_mut().expect("the outer one's") = state;
            }
            false => txn.rollback().unwrap(),
        }
    }

    /// All is answered and durable, and durable is what the object saw last.
    fn finish(mut self) {
        while !self.open.is_empty() {
            self.end(true);
        }
        for _ in 0..10_000 {
            (0..self.waiting.len()).rev().for_each(|place| self.poll(place));
            self.step(Step::Run);
            self.step(Step::Answer(true));
            let served = self.world.store.serve(0, None);
            let idle = !served && self.waiting.is_empty() && self.held.is_none();
            if idle && self.world.cache.is_idle() {
                break;
            }
        }
        assert!(self.waiting.is_empty() && self.world.cache.is_idle(), "all is answered");
        let map = self.states.pop().expect("the object's");
        let durable: Vec<_> = self.world.store.durable().map.into_iter().collect();
        assert_eq!(durable, expected(&map, &List::all()));
        let (all, _) = served(&self.world, self.world.cache.list(&List::all(), Read::default()));
        assert_eq!(pairs(Ok(all)), expected(&map, &List::all()));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1024, failure_persistence: None, ..Default::default() })]

    #[test]
    fn every_program_sees_a_map_of_which_it_reads_some(
        stored in prop::collection::btree_map(key(), prop::collection::vec(0..3_u8, 0..2), 0..8),
        kept in prop::sample::select(vec![150_usize, 400, 1000, 1 << 20]),
        steps in prop::collection::vec(step(), 0..100),
    ) {
        let mut run = Run::new(stored, kept);
        for step in steps {
            run.step(step);
        }
        run.finish();
    }
}
