//! Random programs over [`Store`] on a real disk, held to a plain map, at limits so tiny that
//! segments, chains and batches fill up all the time.
//!
//! Failures are kept in `tests/properties.proptest-regressions`.

use std::collections::BTreeMap;

use bytes::Bytes;
use dormouse_engine::real::DiskChoice;
use dormouse_engine::{Batch, Durability, Kind, Limits, List, ObjectId, Options, Store, Version};
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Change {
    Put(u8, usize),
    Delete(u8),
    DeleteAll,
    Alarm(u64),
    NoAlarm,
}

#[derive(Clone, Debug)]
enum Step {
    /// Several batches on one object, waited for at the end.
    Commit(u8, Vec<Vec<Change>>),
    /// Commits for the version that the object is at, or for another one.
    OnlyIf(u8, bool, Vec<Change>),
    Get(u8, u8),
    List(u8, u8, u8, Option<u8>, bool),
    Head(u8),
    Delete(u8),
    /// Deletes one key, or all of them, as a prefix, and commits without waiting for that.
    DeletePrefix(u8, Option<u8>, Vec<Change>),
    Flush,
    Objects,
    Reopen,
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        8 => (0..24_u8, prop_oneof![0..40_usize, Just(512)]).prop_map(|(k, n)| Change::Put(k, n)),
        4 => (0..24_u8).prop_map(Change::Delete),
        1 => Just(Change::DeleteAll),
        1 => (1..1000_u64).prop_map(Change::Alarm),
        1 => Just(Change::NoAlarm),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let changes = || prop::collection::vec(change(), 0..6);
    let object = || 0..3_u8;
    prop_oneof![
        8 => (object(), prop::collection::vec(changes(), 1..5)).prop_map(|(o, b)| Step::Commit(o, b)),
        2 => (object(), any::<bool>(), changes()).prop_map(|(o, same, c)| Step::OnlyIf(o, same, c)),
        4 => (object(), 0..24_u8).prop_map(|(o, k)| Step::Get(o, k)),
        3 => (object(), 0..24_u8, 0..30_u8, prop::option::of(1..9_u8), any::<bool>())
            .prop_map(|(o, from, to, limit, reverse)| Step::List(o, from, to, limit, reverse)),
        2 => object().prop_map(Step::Head),
        1 => object().prop_map(Step::Delete),
        2 => (object(), prop::option::of(0..24_u8), changes())
            .prop_map(|(o, prefix, c)| Step::DeletePrefix(o, prefix, c)),
        1 => Just(Step::Flush),
        1 => Just(Step::Objects),
        1 => Just(Step::Reopen),
    ]
}

#[derive(Clone, Default)]
struct Model {
    map: BTreeMap<Vec<u8>, Vec<u8>>,
    alarm: Option<u64>,
    version: Version,
}

impl Model {
    fn apply(&mut self, changes: &[Change], version: Version) {
        for change in changes {
            match change {
                Change::Put(key, len) => drop(self.map.insert(vec![*key], vec![*key; *len])),
                Change::Delete(key) => drop(self.map.remove(&vec![*key])),
                Change::DeleteAll => self.map.clear(),
                Change::Alarm(at) => self.alarm = Some(*at),
                Change::NoAlarm => self.alarm = None,
            }
        }
        self.version = version;
    }

    /// Whether this may be its version: one that holds nothing may have none.
    fn may_be_at(&self, version: Version) -> bool {
        let holds_nothing = self.map.is_empty() && self.alarm.is_none();
        version == self.version || version == Version::NONE && holds_nothing
    }
}

fn batch(changes: &[Change]) -> Batch {
    changes.iter().fold(Batch::new(), |batch, change| match change {
        Change::Put(key, len) => batch.put([*key], vec![*key; *len]),
        Change::Delete(key) => batch.delete([*key]),
        Change::DeleteAll => batch.delete_all(),
        Change::Alarm(at) => batch.set_alarm(*at),
        Change::NoAlarm => batch.delete_alarm(),
    })
}

fn id(object: u8) -> ObjectId {
    ObjectId::from_bytes([object; 32])
}

fn pairs<'a>(
    pairs: impl Iterator<Item = (&'a Vec<u8>, &'a Vec<u8>)>,
    limit: Option<u8>,
) -> Vec<(Bytes, Bytes)> {
    let limit = limit.map_or(usize::MAX, usize::from);
    pairs.take(limit).map(|(key, value)| (key.clone().into(), value.clone().into())).collect()
}

fn live(options: &Options, steps: Vec<Step>) {
    let dir = tempfile::TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let open = || Store::open(dir.path(), options.clone()).expect("a store");
    let close = |store: &Store| store.close().wait().expect("closed");
    let mut store = open();
    let mut models = [const { None::<Model> }; 3].map(Option::unwrap_or_default);
    for step in steps {
        match step {
            Step::Commit(object, batches) => {
                let model = &mut models[usize::from(object)];
                let object = store.object(id(object));
                let calls: Vec<_> =
                    batches.iter().map(|changes| object.commit(batch(changes))).collect();
                for (changes, call) in batches.iter().zip(calls) {
                    let version = call.wait().expect("durable");
                    assert!(version > model.version);
                    model.apply(changes, version);
                }
            }
            Step::OnlyIf(object, same, changes) => {
                let model = &mut models[usize::from(object)];
                let object = store.object(id(object));
                let (now, _) = object.head().wait().expect("open");
                let version = if same { now } else { Version(u64::MAX) };
                let call = object.commit(batch(&changes).only_if(version));
                match call.wait() {
                    Ok(version) if same => model.apply(&changes, version),
                    Err(error) if !same && error.kind() == Kind::Conflict => {}
                    other => panic!("{other:?} though its version was given: {same}"),
                }
            }
            Step::Get(object, key) => {
                let got = store.object(id(object)).get([key]).wait().expect("readable");
                let wanted = models[usize::from(object)].map.get(&vec![key]);
                assert_eq!(got.as_deref(), wanted.map(|value| &value[..]));
            }
            Step::List(object, from, to, limit, reverse) => {
                let mut list = List::all().start([from]).end([to]);
                list.limit = limit.map(i64::from);
                let list = if reverse { list.reverse() } else { list };
                let got = store.object(id(object)).list(list).blocking();
                let got: Vec<_> = got.map(|pair| pair.expect("readable")).collect();
                let map = &models[usize::from(object)].map;
                let range = || map.range(vec![from]..vec![to.max(from)]);
                let wanted = match reverse {
                    true => pairs(range().rev(), limit),
                    false => pairs(range(), limit),
                };
                assert_eq!(got, wanted);
            }
            Step::Head(object) => {
                let got = store.object(id(object)).head().wait().expect("open");
                let model = &models[usize::from(object)];
                assert!(model.may_be_at(got.0), "{got:?}, not {:?}", model.version);
                assert_eq!(got.1, model.alarm);
            }
            Step::Delete(object) => {
                let model = &mut models[usize::from(object)];
                let version = store.object(id(object)).delete().wait().expect("taken");
                model.apply(&[Change::DeleteAll, Change::NoAlarm], version);
            }
            Step::DeletePrefix(object, prefix, changes) => {
                let model = &mut models[usize::from(object)];
                let object = store.object(id(object));
                let deleted = object.delete_prefix(prefix.as_slice());
                let commit = object.commit(batch(&changes));
                let before = model.map.len();
                model.map.retain(|key, _| !key.starts_with(prefix.as_slice()));
                let wanted = before - model.map.len();
                assert_eq!(deleted.wait().expect("deleted"), wanted as u64);
                let version = commit.wait().expect("taken");
                assert!(version > model.version);
                model.apply(&changes, version);
            }
            Step::Flush => store.flush().wait().expect("durable"),
            Step::Objects => {
                store.flush().wait().expect("durable");
                let mut got = BTreeMap::new();
                for object in store.objects().blocking() {
                    let object = object.expect("open");
                    got.insert(object.id, object.version);
                }
                for (number, model) in (0..).zip(&models) {
                    let version = got.remove(&id(number)).unwrap_or(Version::NONE);
                    assert!(model.may_be_at(version), "{version:?}, not {:?}", model.version);
                }
                assert_eq!(got, BTreeMap::new());
            }
            Step::Reopen => {
                close(&store);
                store = open();
            }
        }
    }
    for (number, model) in (0..).zip(&models) {
        let found = store.object(id(number)).contents().wait().expect("readable");
        assert!(model.may_be_at(found.version), "{:?}, not {:?}", found.version, model.version);
        assert_eq!(found.alarm, model.alarm);
        let wanted = pairs(model.map.iter(), None);
        assert_eq!(found.map.clone().into_iter().collect::<Vec<_>>(), wanted);
    }
    close(&store);
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 200,
        max_shrink_iters: 2000,
        failure_persistence: Some(Box::new(
            proptest::test_runner::FileFailurePersistence::Direct(concat!(
                env!("CARGO_MANIFEST_DIR"),
                "/tests/properties.proptest-regressions"
            )),
        )),
        ..ProptestConfig::default()
    })]

    #[test]
    fn a_store_answers_as_a_map_does(
        steps in prop::collection::vec(step(), 1..60),
        cache_bytes in prop_oneof![Just(0_usize), Just(2000), Just(1 << 20)],
        cores in 1..3_usize,
        posix in any::<bool>(),
        on_flush in any::<bool>(),
    ) {
        let durability = if on_flush { Durability::OnFlush } else { Durability::Always };
        let disk = if posix { DiskChoice::Posix } else { DiskChoice::Auto };
        let options = Options {
            cores: Some(cores),
            shards: Some(2),
            disk,
            limits: Limits::TINY,
            durability,
            cache_bytes,
            ..Options::default()
        };
        live(&options, steps);
    }
}
