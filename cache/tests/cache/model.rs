//! Random programs against a map: every result, and what is durable in the end (T-026, T-100).

use std::collections::BTreeMap;

use bytes::Bytes;
use dormouse_cache::{AlarmToo, CacheLimits, Direction, List, Read, Transaction, Write};
use dormouse_engine::{Contents, Kind};
use proptest::prelude::*;

use super::env::TestEnv;
use super::store::{Commit, Store};
use super::{World, now, pairs};

pub(super) type Key = Vec<u8>;
pub(super) type Map = BTreeMap<Key, Vec<u8>>;

#[derive(Clone, Debug)]
enum Step {
    Put(Key, Vec<u8>, bool),
    Delete(Vec<Key>),
    GetMany(Vec<Key>),
    List(List),
    DeleteAll(bool),
    SetAlarm(Option<u64>),
    Begin,
    Commit,
    Rollback,
    /// The turn ends.
    Run,
    /// The store answers: durable, or nothing written.
    Answer(bool),
}

/// Few keys, that are each other's prefixes, neighbours and successors.
pub(super) fn key() -> impl Strategy<Value = Key> {
    prop::collection::vec(prop::sample::select(vec![0, b'a', b'b', 0xFF]), 0..3)
}

pub(super) fn list() -> impl Strategy<Value = List> {
    let bound = || prop::option::of(key().prop_map(Bytes::from));
    let limit = prop::option::of(1..5_i64);
    (bound(), any::<bool>(), bound(), bound(), any::<bool>(), limit).prop_map(
        |(from, after, end, prefix, reverse, limit)| List {
            start: from.clone().filter(|_| !after),
            start_after: from.filter(|_| after),
            end,
            prefix,
            direction: if reverse { Direction::Descending } else { Direction::Ascending },
            limit,
        },
    )
}

fn step() -> impl Strategy<Value = Step> {
    let keys = || prop::collection::vec(key(), 0..4);
    let value = prop::collection::vec(0..3_u8, 0..2);
    prop_oneof![
        8 => (key(), value, any::<bool>()).prop_map(|(key, value, un)| Step::Put(key, value, un)),
        4 => keys().prop_map(Step::Delete),
        2 => keys().prop_map(Step::GetMany),
        4 => list().prop_map(Step::List),
        1 => any::<bool>().prop_map(Step::DeleteAll),
        2 => prop::option::of(1..4_u64).prop_map(Step::SetAlarm),
        1 => Just(Step::Begin),
        1 => Just(Step::Commit),
        1 => Just(Step::Rollback),
        3 => Just(Step::Run),
        3 => prop::bool::weighted(0.8).prop_map(Step::Answer),
    ]
}

/// What the list gives, said in the plainest way.
pub(super) fn expected(map: &Map, list: &List) -> Vec<(Bytes, Bytes)> {
    let included = |key: &[u8]| {
        list.start.as_ref().is_none_or(|start| key >= &start[..])
            && list.start_after.as_ref().is_none_or(|start| key > &start[..])
            && list.end.as_ref().is_none_or(|end| key < &end[..])
            && list.prefix.as_ref().is_none_or(|prefix| key.starts_with(prefix))
    };
    let mut found: Vec<_> = map.iter().filter(|(key, _)| included(key)).collect();
    if list.direction == Direction::Descending {
        found.reverse();
    }
    let limit = list.limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap());
    let owned = |(key, value): (&Key, &Vec<u8>)| (key.clone().into(), value.clone().into());
    found.into_iter().take(limit).map(owned).collect()
}

/// The cache, and beside it what it should be: the state of each open transaction, innermost last.
struct Run {
    world: World,
    open: Vec<Transaction<TestEnv, Store>>,
    states: Vec<(Map, Option<u64>)>,
    held: Option<Commit>,
}

impl Run {
    fn new() -> Self {
        // Tries enough that a program of refusals does not end it.
        let limits = CacheLimits { flush_attempts_max: 1000, ..CacheLimits::PRODUCTION };
        let world = World::with(Contents::default(), limits);
        Self { world, open: Vec::new(), states: vec![(Map::new(), None)], held: None }
    }

    fn turn(&mut self) {
        self.world.env.run();
        if self.held.is_none() && self.world.store.has_commit() {
            self.held = Some(self.world.store.next());
        }
    }

    fn step(&mut self, step: Step) {
        let cache = self.world.cache.clone();
        let (map, alarm) = self.states.last_mut().expect("at least the object's");
        match step {
            Step::Put(key, value, unconfirmed) => {
                let options =
                    if unconfirmed { Write::allow_unconfirmed() } else { Write::default() };
                now(cache.put(&key, value.clone().into(), options)).unwrap();
                map.insert(key, value);
            }
            Step::Delete(keys) => {
                let slices: Vec<&[u8]> = keys.iter().map(|key| &key[..]).collect();
                let deleted = keys.iter().filter(|key| map.remove(*key).is_some()).count();
                assert_eq!(now(cache.delete_many(&slices, Write::default())).unwrap(), deleted);
            }
            Step::GetMany(keys) => {
                let slices: Vec<&[u8]> = keys.iter().map(|key| &key[..]).collect();
                let mut wanted = map.clone();
                wanted.retain(|key, _| keys.contains(key));
                let found = now(cache.get_many(&slices, Read::default())).unwrap();
                assert_eq!(found, expected(&wanted, &List::all()));
            }
            Step::List(list) => {
                let found = pairs(now(cache.list(&list, Read::default())));
                assert_eq!(found, expected(map, &list), "{list:?}");
            }
            Step::DeleteAll(clear) => {
                let too = if clear { AlarmToo::Clear } else { AlarmToo::Keep };
                let done = now(cache.delete_all(too, Write::default()));
                assert_eq!(done.is_ok(), self.open.is_empty());
                if done.is_ok() {
                    map.clear();
                    *alarm = alarm.filter(|_| !clear);
                }
            }
            Step::SetAlarm(at_ms) => {
                now(cache.set_alarm(at_ms, Write::default())).unwrap();
                *alarm = at_ms;
            }
            Step::Begin => {
                let state = (map.clone(), *alarm);
                self.open.push(cache.begin());
                self.states.push(state);
            }
            Step::Commit => self.commit(),
            Step::Rollback => {
                if let Some(txn) = self.open.pop() {
                    txn.rollback().unwrap();
                    self.states.pop();
                }
            }
            Step::Run => self.turn(),
            Step::Answer(durable) => self.answer(durable),
        }
        let (map, alarm) = self.states.last().expect("at least the object's");
        assert_eq!(now(cache.get_alarm(Read::default())).unwrap(), *alarm);
        let all = pairs(now(cache.list(&List::all(), Read::default())));
        assert_eq!(all, expected(map, &List::all()));
    }

    fn commit(&mut self) {
        let Some(txn) = self.open.pop() else { return };
        now(txn.commit()).unwrap();
        let state = self.states.pop().expect("one for each transaction");
        *self.states.last_mut().expect("the outer one's") = state;
    }

    fn answer(&mut self, durable: bool) {
        if let Some(commit) = self.held.take() {
            match durable {
                true => commit.succeed(),
                false => commit.fail(Kind::Retry),
            }
        }
    }

    /// All is durable, and durable is what the object saw last.
    fn finish(mut self) {
        while !self.open.is_empty() {
            self.commit();
        }
        self.answer(true);
        self.world.settle();
        let (map, alarm) = self.states.pop().expect("the object's");
        let durable = self.world.store.durable();
        let stored: Vec<_> = durable.map.into_iter().collect();
        assert_eq!(stored, expected(&map, &List::all()));
        assert_eq!(durable.alarm, alarm);
        assert_eq!(durable.version, self.world.cache.version());
        assert!(self.world.cache.output_gate().is_open());
        assert_eq!(self.world.cache.dirty_bytes(), 0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..Default::default() })]

    #[test]
    fn every_program_sees_a_map_and_leaves_it_durable(
        steps in prop::collection::vec(step(), 0..80)
    ) {
        let mut run = Run::new();
        for step in steps {
            run.step(step);
        }
        run.finish();
    }
}
