//! Large objects: trees of pages, against a map in memory. Bounds are tiny, so that a few hundred keys are
//! three levels of pages.

mod common;

use std::collections::BTreeMap;
use std::path::Path;

use bytes::Bytes;
use common::dir;
use dormouse_engine::real::{DiskChoice, RealEnv, block_on};
use dormouse_engine::{
    Batch, Contents, Error, Limits, List, ObjectId, Options, Result, Shard, Store, StoreLock,
    Version,
};
use proptest::prelude::*;

/// Opens the one shard of a store, does something with it, and closes it.
fn with<T: Send + 'static, F: Future<Output = Result<T>> + 'static>(
    dir: &Path,
    work: impl FnOnce(Shard<RealEnv>) -> F + Send + 'static,
) -> T {
    let main = async move |env: RealEnv| {
        let lock = StoreLock::open_or_create(&env, &Limits::TINY, 1).await?;
        let (shard, _) = Shard::open(&env, lock.superblock(), 0, Limits::TINY).await?;
        let result = work(shard.clone()).await?;
        shard.close().await?;
        Ok::<_, Error>(result)
    };
    block_on(dir, DiskChoice::Auto, main).expect("a core").expect("no error")
}

fn id(number: u8) -> ObjectId {
    ObjectId::from_bytes([number; 32])
}

fn key(number: u16) -> Bytes {
    // Some keys are prefixes of others, some long.
    let long = "-".repeat(usize::from(number % 7) * usize::from(number % 5));
    format!("{}{long}", number / 3 * 2).into()
}

/// What happens to the object.
#[derive(Clone, Debug)]
enum Step {
    /// Commits puts (key, bytes of the value) and deletes.
    Commit(Vec<(u16, Option<u16>)>),
    /// Puts all keys in a range, in one commit.
    Fill(u16, u16, u16),
    /// Deletes them.
    Clear(u16, u16),
    DeleteAll,
    /// Others write, so that there is something to be cleaned.
    Others,
    Compact,
    Reopen,
    /// Gets a key, and lists from one on, or down to it.
    Read(u16, bool, i64),
}

fn step() -> impl Strategy<Value = Step> {
    let key = || 0..400_u16;
    let value = prop_oneof![3 => 0..40_u16, 1 => 40..500_u16];
    let op = (key(), prop::option::weighted(0.7, value));
    prop_oneof![
        8 => prop::collection::vec(op, 1..12).prop_map(Step::Commit),
        2 => (key(), 1..120_u16, 1..60_u16).prop_map(|(from, keys, value)| Step::Fill(from, keys, value)),
        1 => (key(), 1..200_u16).prop_map(|(from, keys)| Step::Clear(from, keys)),
        1 => Just(Step::Others),
        6 => (key(), any::<bool>(), 1..40_i64).prop_map(|(key, up, limit)| Step::Read(key, up, limit)),
        1 => Just(Step::Reopen),
    ]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let rare = prop_oneof![Just(Step::DeleteAll), Just(Step::Compact)];
    prop::collection::vec(prop_oneof![40 => step(), 1 => rare], 1..120)
}

/// The object as it should be.
type Model = BTreeMap<Bytes, Bytes>;

fn batch_of(step: &Step, model: &mut Model, round: usize) -> Option<Batch> {
    let value = |bytes: u16| {
        let byte = u8::try_from(round % 251).expect("a byte");
        Bytes::from(vec![byte; usize::from(bytes)])
    };
    let mut batch = Batch::new();
    let mut put = |number: u16, bytes: Option<u16>| {
        let key = key(number);
        batch = match bytes {
            Some(bytes) => std::mem::take(&mut batch).put(&key, value(bytes)),
            None => std::mem::take(&mut batch).delete(&key),
        };
        match bytes {
            Some(bytes) => drop(model.insert(key, value(bytes))),
            None => drop(model.remove(&key)),
        }
    };
    match step {
        Step::Commit(ops) => ops.iter().for_each(|(key, bytes)| put(*key, *bytes)),
        Step::Fill(from, keys, bytes) => {
            (*from..from + keys).for_each(|key| put(key, Some(*bytes)))
        }
        Step::Clear(from, keys) => (*from..from + keys).for_each(|key| put(key, None)),
        Step::DeleteAll => {
            model.clear();
            batch = batch.delete_all();
        }
        _ => return None,
    }
    Some(batch)
}

/// Steps up to the next reopening, and what is left of them.
async fn live(
    shard: Shard<RealEnv>,
    mut steps: Vec<Step>,
    mut model: Model,
) -> Result<(Vec<Step>, Model)> {
    check(&shard, &model).await?;
    while let Some(step) = steps.pop() {
        if let Some(batch) = batch_of(&step, &mut model, steps.len()) {
            shard.commit(&id(1), &batch, None)?.await?;
            continue;
        }
        match step {
            Step::Others => {
                for number in 2..8 {
                    let value = vec![number; usize::from(number) * 60];
                    shard.commit(&id(number), &Batch::new().put("key", value), None)?.await?;
                }
            }
            Step::Compact => shard.compact().await?,
            Step::Read(number, up, limit) => read(&shard, &model, &key(number), up, limit).await?,
            _ => break,
        }
    }
    check(&shard, &model).await?;
    Ok((steps, model))
}

async fn read(
    shard: &Shard<RealEnv>,
    model: &Model,
    key: &Bytes,
    up: bool,
    limit: i64,
) -> Result<()> {
    let snapshot = shard.snapshot(&id(1)).await?;
    assert_eq!(snapshot.get(key).await?.as_ref(), model.get(key));
    let most = usize::try_from(limit).expect("small");
    let (list, wanted): (_, Vec<_>) = match up {
        true => (List::all().start(key), model.range(key.clone()..).take(most).collect()),
        false => {
            (List::all().end(key).reverse(), model.range(..key.clone()).rev().take(most).collect())
        }
    };
    let list = list.limit(limit);
    let (mut scan, mut all) = (snapshot.scan(&list)?, Vec::new());
    while let Some(some) = scan.next().await? {
        assert!(!some.is_empty());
        all.extend(some);
    }
    assert_eq!(all.iter().map(|(key, value)| (key, value)).collect::<Vec<_>>(), wanted);
    Ok(())
}

/// All of the object is as it should be, and what it needs is counted right.
async fn check(shard: &Shard<RealEnv>, model: &Model) -> Result<()> {
    let contents: Contents = shard.load(&id(1)).await?;
    assert!(contents.map == *model, "the object differs from what was committed");
    assert_eq!(shard.audit().await?, Vec::<String>::new());
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn a_large_object_is_what_was_committed(steps in steps()) {
        let dir = dir();
        let (mut steps, mut model) = (steps, Model::new());
        loop {
            let before = (steps, model);
            (steps, model) = with(dir.path(), async move |shard| live(shard, before.0, before.1).await);
            if steps.is_empty() {
                break;
            }
        }
    }
}

#[test]
fn a_walk_shows_one_state_whatever_is_committed_meanwhile() {
    let dir = dir();
    let store = Store::open(dir.path(), Options::default()).expect("a store");
    let room = store.object(id(1));
    let put = |batch: Batch, n| batch.put(format!("{n:05}"), vec![b'x'; 500]);
    room.commit((0..2_000).fold(Batch::new(), put)).wait().expect("a commit");
    let mut up = room.list(List::all()).blocking();
    let mut down = room.list(List::all().reverse()).blocking();
    assert_eq!(up.next().expect("a key").expect("read").0, "00000");
    assert_eq!(down.next().expect("a key").expect("read").0, "01999");
    assert_eq!(room.get("01234").wait().expect("read"), Some(vec![b'x'; 500].into()));
    assert_eq!(room.delete_prefix("01").wait().expect("a commit"), 1_000);
    assert_eq!(room.get("01234").wait().expect("read"), None);
    let version = room.delete().wait().expect("a commit");
    assert_eq!((up.count(), down.count()), (1_999, 1_999));
    assert!(version > Version::NONE && room.contents().wait().expect("read").map.is_empty());
    store.close().wait().expect("closed");
}

/// A tree that took many batches, and lies in many segments: what it needs is counted right, and a commit does
/// not write all of it anew.
#[test]
fn a_commit_to_a_tree_of_many_segments_costs_a_few_pages() {
    let dir = dir();
    let model = with(dir.path(), async |shard| {
        let mut model = Model::new();
        let commit =
            async |model: &mut Model, keys: &mut dyn Iterator<Item = u32>, bytes: usize| {
                let mut batch = Batch::new();
                for number in keys {
                    let (key, value) = (Bytes::from(format!("{number:06}")), vec![7; bytes]);
                    batch = batch.put(&key, &value);
                    model.insert(key, value.into());
                }
                shard.commit(&id(1), &batch, None)?.await
            };
        // Faster than it is rewritten, without a pause.
        for from in (0..2_400).step_by(60) {
            commit(&mut model, &mut (from..from + 60), 480).await?;
        }
        // All over it, so that most of its leaves change at once.
        commit(&mut model, &mut (0..2_400).step_by(3), 20).await?;
        shard.compact().await?;
        check(&shard, &model).await?;
        let before = shard.stats();
        for number in 0..64 {
            commit(&mut model, &mut std::iter::once(number * 37), 100).await?;
        }
        let after = shard.stats();
        let written = after.log_bytes - before.log_bytes;
        assert!(before.live_bytes > 500_000, "{before:?}");
        assert!(written < 64 * 4096, "{written} bytes were written for 64 commits");
        check(&shard, &model).await?;
        Ok(model)
    });
    with(dir.path(), async move |shard| check(&shard, &model).await);
}
