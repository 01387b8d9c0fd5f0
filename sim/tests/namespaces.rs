//! What the objects of a namespace hold together (docs/design.md, 3.5): exact after every commit, rewrite and
//! crash, and never beyond its bound.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use dormouse_engine::shard::{Opening, Ticket};
use dormouse_engine::store::Filter;
use dormouse_engine::{
    Batch, Contents, Error, Host, Kind, Limits, ObjectId, Quotas, Shard, StoreLock,
};
use dormouse_sim::random::Random;
use dormouse_sim::{DiskFaults, SimEnv, World};

const STEPS: u64 = 4_000_000;
const LIMITS: Limits = Limits::TINY;
const OBJECTS: u64 = 24;
/// Every third object is of each, and the rest of none.
const BOUNDED: &str = "bounded";
const FREE: &str = "free";
const BYTES_MAX: u64 = 25_000;
/// A commit's frames may be larger than was foreseen, by what they say beside their operations.
const BEYOND: u64 = 4096;

fn id(number: u64) -> ObjectId {
    let mut bytes = [3; 32];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    ObjectId::from_bytes(bytes)
}

fn namespace(number: u64) -> Option<&'static str> {
    [Some(BOUNDED), Some(FREE), None][usize::try_from(number % 3).expect("small")]
}

fn quotas() -> Quotas {
    Quotas::new([(Arc::from(BOUNDED), BYTES_MAX)])
}

async fn open(env: &SimEnv, quotas: &Quotas) -> (StoreLock<SimEnv>, Shard<SimEnv>) {
    let lock = StoreLock::open_or_create(env, &LIMITS, 1).await.expect("a store");
    let (superblock, opening) = (lock.superblock(), Opening::default());
    let opened = Shard::open_bounded(env, superblock, 0, LIMITS, opening, quotas);
    let (shard, _) = opened.await.expect("a shard");
    (lock, shard)
}

/// What the objects of each namespace need, by their own entries.
fn listed(shard: &Shard<SimEnv>) -> BTreeMap<&'static str, u64> {
    let known: BTreeMap<_, _> =
        (0..OBJECTS).map(|number| (id(number), namespace(number))).collect();
    let (mut sums, mut after) = (BTreeMap::new(), None);
    loop {
        let page = shard.page(&Filter::default(), after);
        for object in page.objects {
            if let Some(namespace) = known[&object.id] {
                *sums.entry(namespace).or_default() += object.log_bytes;
            }
        }
        match page.next {
            Some(next) => after = Some(next),
            None => return sums,
        }
    }
}

async fn check(shard: &Shard<SimEnv>, what: &str) {
    let sums = listed(shard);
    for namespace in [BOUNDED, FREE] {
        let needed = sums.get(namespace).copied().unwrap_or(0);
        assert_eq!(shard.namespace_bytes(namespace), needed, "{what}: {namespace}");
    }
    let bounded = shard.namespace_bytes(BOUNDED);
    assert!(bounded <= BYTES_MAX + BEYOND, "{what}: {bounded} bytes");
    let wrong = shard.audit().await.expect("counted");
    assert!(wrong.is_empty(), "{what}: {wrong:?}");
}

/// How many commits were taken, and refused.
#[derive(Clone, Copy, Debug, Default)]
struct Count {
    taken: u64,
    refused: u64,
}

fn is_full(error: &Error) -> bool {
    let full = error.code() == Some("namespace-full");
    assert_eq!(full, error.kind() == Kind::NoSpace, "{error}");
    assert!(!full || error.to_string().contains(BOUNDED), "{error}");
    full
}

/// Something that a client may commit: mostly what brings something.
fn batch(random: &mut Random, number: u64) -> Batch {
    let key = [b'k', u8::try_from(random.below(12)).expect("small")];
    let batch = match random.below(10) {
        0 => return Batch::new().delete_all(),
        1 => return Batch::new().delete(key),
        2 => Batch::new().delete_all().put(key, [1; 500]),
        3 => Batch::new().set_alarm(1 + random.below(1000)),
        4 => (0..10).fold(Batch::new(), |batch, key| batch.put([b'k', key], [2; 400])),
        _ => Batch::new().put(key, vec![3; usize::try_from(random.below(500)).expect("small")]),
    };
    // Only sometimes: an object counts for the namespace that its first commit named.
    match namespace(number) {
        Some(namespace) => batch.named(namespace, &number.to_string()),
        None => batch,
    }
}

/// Commits at random, several at once, some by whoever holds all keys.
async fn live(env: SimEnv, seed: u64, quotas: Quotas, count: Rc<RefCell<Count>>) {
    let (_lock, shard) = open(&env, &quotas).await;
    let mut random = Random::new(seed);
    for round in 0..60 {
        let mut waiting: Vec<(u64, Ticket)> = Vec::new();
        for _ in 0..1 + random.below(12) {
            let number = random.below(OBJECTS);
            let batch = batch(&mut random, number);
            let resident = random.one_in(3) && waiting.iter().all(|(other, ..)| *other != number);
            let contents = match resident {
                true => Some(shard.load(&id(number)).await.expect("readable")),
                false => None,
            };
            let after = contents.map(|mut contents: Contents| {
                let version = dormouse_engine::Version(contents.version.0 + 1);
                contents.apply(&batch, version);
                contents
            });
            let after = after.as_ref().map(|contents| contents as &dyn dormouse_engine::Resident);
            match shard.commit(&id(number), &batch, after) {
                Ok(ticket) => waiting.push((number, ticket)),
                Err(error) => {
                    assert!(is_full(&error) && namespace(number) == Some(BOUNDED), "{error}");
                    assert!(!batch.only_frees(), "{error}");
                    count.borrow_mut().refused += 1;
                }
            }
        }
        for (number, ticket) in waiting {
            match ticket.await {
                Ok(_) => count.borrow_mut().taken += 1,
                Err(error) => panic!("seed {seed}, object {number}: {error}"),
            }
        }
        if random.one_in(4) {
            env.sleep(Duration::from_millis(random.below(20))).await;
        }
        check(&shard, &format!("seed {seed}, round {round}")).await;
    }
    shard.compact().await.expect("compact");
    check(&shard, &format!("seed {seed}, compact")).await;
    shard.close().await.expect("closed");
}

#[test]
fn sums_are_exact_and_bounds_hold() {
    let count = Rc::new(RefCell::new(Count::default()));
    for seed in 0..40 {
        let world = World::new(seed, DiskFaults::default());
        let env = world.process().core();
        let done = world.block_on(&env.clone(), STEPS, live(env, seed, quotas(), count.clone()));
        assert_eq!(world.take_panics(), [] as [String; 0], "seed {seed}");
        done.unwrap_or_else(|| panic!("seed {seed}: not done"));
    }
    let count = *count.borrow();
    println!("{count:?}");
    assert!(count.refused > 100 && count.taken > 5000, "{count:?}");
}

/// What is found after a crash at any change of the disk, of the power or the process, is what there is; a bound
/// that was reached is reached still, and what is deleted makes room.
#[test]
fn sums_are_exact_after_a_crash_anywhere() {
    let seed = 7;
    let changes = {
        let world = World::new(seed, DiskFaults::default());
        let env = world.process().core();
        let life = live(env.clone(), seed, quotas(), Rc::default());
        world.block_on(&env, STEPS, life).expect("done");
        world.disk_changes()
    };
    let mut full = 0;
    for change in (1..changes).step_by(5) {
        let world = World::new(seed, DiskFaults::default());
        world.stop_at_disk_change(change);
        let process = world.process();
        let env = process.core();
        let life = live(env.clone(), seed, quotas(), Rc::default());
        assert!(world.block_on(&env, STEPS, life).is_none());
        match change % 4 {
            1 => world.power_cut(),
            _ => {
                process.kill();
                world.power_cut();
            }
        }
        let env = world.process().core();
        let done = world.block_on(&env.clone(), STEPS, async move {
            let (_lock, shard) = open(&env, &quotas()).await;
            check(&shard, &format!("after a crash at change {change}")).await;
            let put = |number| {
                let value = vec![9; 500];
                let batch = (0..10).fold(Batch::new(), |it, key| it.put([b'n', key], &value[..]));
                shard.commit(&id(number), &batch.named(BOUNDED, "again"), None)
            };
            // Until it is full.
            let mut refused = None;
            for number in (0..3 * OBJECTS).step_by(3) {
                match put(number) {
                    Ok(ticket) => drop(ticket.await.expect("durable")),
                    Err(error) => refused = refused.or(Some(error)),
                }
            }
            assert!(is_full(&refused.expect("a bound")));
            for number in (0..3 * OBJECTS).step_by(3) {
                let gone = Batch::new().delete_all().delete_alarm();
                let gone = shard.commit(&id(number), &gone, None);
                gone.expect("what frees is taken").await.expect("durable");
            }
            assert_eq!(shard.namespace_bytes(BOUNDED), 0);
            put(0).expect("there is room").await.expect("durable");
            shard.close().await.expect("closed");
        });
        assert_eq!(world.take_panics(), [] as [String; 0], "change {change}");
        done.unwrap_or_else(|| panic!("change {change}: not done"));
        full += 1;
    }
    println!("{full} crashes at {changes} changes");
}

/// All shards of a store share a bound, and one that is opened anew counts once.
#[test]
fn a_bound_is_that_of_all_shards_together() {
    let world = World::new(1, DiskFaults::default());
    let env = world.process().core();
    let done = world.block_on(&env.clone(), STEPS, async move {
        let quotas = quotas();
        let lock = StoreLock::open_or_create(&env, &LIMITS, 2).await.expect("a store");
        let open = async |number| {
            let (superblock, opening) = (lock.superblock(), Opening::default());
            let opened =
                Shard::open_bounded(&env, superblock, number, LIMITS, opening, &quotas).await;
            opened.expect("a shard").0
        };
        let (first, second) = (open(0).await, open(1).await);
        let value = [1; 500];
        let put = async |shard: &Shard<SimEnv>, number| {
            let batch = (0..10).fold(Batch::new(), |it, key| it.put([key], value));
            match shard.commit(&id(number), &batch.named(BOUNDED, "it"), None) {
                Ok(ticket) => ticket.await.map(drop),
                Err(error) => Err(error),
            }
        };
        for number in 0..2 {
            put(&first, number).await.expect("room");
            put(&second, number).await.expect("room");
        }
        let of_first = first.namespace_bytes(BOUNDED);
        assert!(of_first < BYTES_MAX * 2 / 3, "{of_first}");
        while put(&second, 100 + second.stats().objects).await.is_ok() {}
        assert!(put(&first, 99).await.is_err_and(|error| is_full(&error)), "of both");
        first.close().await.expect("closed");
        assert!(put(&second, 98).await.is_err_and(|error| is_full(&error)), "it is still there");
        // Its files are free once nobody has it any more.
        drop(first);
        let first = open(0).await;
        assert_eq!(first.namespace_bytes(BOUNDED), of_first);
        for number in 0..1 {
            let gone = first.commit(&id(number), &Batch::new().delete_all(), None);
            gone.expect("taken").await.expect("durable");
        }
        put(&second, 97).await.expect("what another shard freed");
        first.close().await.expect("closed");
        second.close().await.expect("closed");
    });
    assert_eq!(world.take_panics(), [] as [String; 0]);
    done.expect("done");
}

/// What a full disk refused does not count for its namespace.
#[test]
fn what_a_full_disk_refuses_does_not_count() {
    let faults = DiskFaults { capacity: 300_000, ..DiskFaults::default() };
    let world = World::new(1, faults);
    let env = world.process().core();
    let machine = world.clone();
    let done = world.block_on(&env.clone(), STEPS, async move {
        let quotas = Quotas::new([(Arc::from(BOUNDED), 400_000)]);
        let (_lock, shard) = open(&env, &quotas).await;
        let put = |number| {
            let batch = (0..6).fold(Batch::new(), |batch, key| batch.put([key], [1; 400]));
            shard.commit(&id(number), &batch.named(BOUNDED, "it"), None)
        };
        let (mut taken, mut refused) = (0, 0);
        while refused < 200 {
            match put(taken + refused).expect("below its bound").await {
                Ok(_) => taken += 1,
                Err(error) => {
                    assert!(error.kind() == Kind::NoSpace && error.code().is_none(), "{error}");
                    refused += 1;
                }
            }
        }
        machine.set_faults(DiskFaults::default());
        env.sleep(Duration::from_millis(150)).await;
        put(1_000_000).expect("below its bound").await.expect("there is room");
        assert!(shard.audit().await.expect("counted").is_empty());
        shard.close().await.expect("closed");
    });
    assert_eq!(world.take_panics(), [] as [String; 0]);
    done.expect("done");
}
