//! A full disk (docs/design.md, 3.5): new data is refused by `NoSpace` and nothing else, what only frees is
//! never refused, and with what it freed new data fits again, on the same handle and after any crash.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use dormouse_engine::{Batch, Host, Kind, Limits, ObjectId, Shard, StoreLock};
use dormouse_sim::{DiskFaults, SimEnv, World};
use futures_util::future::join3;

const STEPS: u64 = 4_000_000;
const LIMITS: Limits = Limits::TINY;
/// A run is small beside a segment, as it is for most; and segments grow, so that large ones go to the reserve, which is
/// of as many of them as of small ones.
const GROWING: Limits = Limits {
    segment_bytes_min: 64 << 10,
    segment_bytes_max: 512 << 10,
    checkpoint_bytes: 48 << 10,
    replay_bytes_max: 128 << 10,
    ..LIMITS
};
const KEYS: u8 = 6;
/// What a full disk holds at most.
const OBJECTS: u16 = 2_000;

fn id(number: u16) -> ObjectId {
    let mut bytes = [7; 32];
    bytes[..2].copy_from_slice(&number.to_le_bytes());
    ObjectId::from_bytes(bytes)
}

fn disk(capacity: u64) -> DiskFaults {
    DiskFaults { capacity, ..DiskFaults::default() }
}

async fn open(env: &SimEnv) -> (StoreLock<SimEnv>, Shard<SimEnv>) {
    open_with(env, LIMITS).await
}

async fn open_with(env: &SimEnv, limits: Limits) -> (StoreLock<SimEnv>, Shard<SimEnv>) {
    let lock = StoreLock::open_or_create(env, &limits, 1).await.expect("a store");
    let (shard, _) = Shard::open(env, lock.superblock(), 0, limits).await.expect("a shard");
    (lock, shard)
}

fn filled(fill: u8) -> Batch {
    (0..KEYS).fold(Batch::new(), |batch, key| batch.put([key], [fill; 400]))
}

/// What objects hold: for each its keys; and what the one that is being changed may hold as well.
#[derive(Clone, Debug, Default)]
struct Known {
    objects: BTreeMap<u16, Vec<u8>>,
    perhaps: Option<(u16, Vec<u8>)>,
}

/// A shard, and what is known to be in it.
struct Client {
    env: SimEnv,
    shard: Shard<SimEnv>,
    known: Rc<RefCell<Known>>,
}

impl Client {
    /// Commits; whether there was room.
    async fn commit(&self, number: u16, batch: Batch, keys: &[u8]) -> bool {
        self.known.borrow_mut().perhaps = Some((number, keys.to_vec()));
        let ticket = self.shard.commit(&id(number), &batch, None).expect("accepted");
        let ended = ticket.await;
        let known = &mut *self.known.borrow_mut();
        known.perhaps = None;
        match ended {
            Ok(_) => drop(known.objects.insert(number, keys.to_vec())),
            Err(error) => {
                assert_eq!(error.kind(), Kind::NoSpace, "{error}");
                assert!(!batch.only_frees(), "{number}: what frees is refused: {error}");
                assert!(error.to_string().contains(&id(number).to_string()), "{error}");
                assert!(error.to_string().contains("shard 0"), "{error}");
                return false;
            }
        }
        true
    }

    async fn put(&self, number: u16) -> bool {
        let keys: Vec<u8> = (0..KEYS).collect();
        self.commit(number, filled(KEYS), &keys).await
    }

    /// Puts objects until there is no room for more; how many there were.
    async fn fill(&self) -> u16 {
        for number in 0..OBJECTS {
            if !self.put(number).await {
                assert!(self.shard.stats().full);
                return number;
            }
        }
        panic!("the disk is never full");
    }

    /// Deletes all of one object in three, and all keys but one of another, each alone.
    async fn empty(&self, count: u16) {
        for number in (0..count).filter(|number| number % 3 > 0) {
            match number % 3 {
                1 => drop(self.commit(number, Batch::new().delete_all(), &[]).await),
                _ => {
                    let known = self.known.borrow().objects.get(&number).cloned();
                    let mut keys = known.unwrap_or_default();
                    while keys.len() > 1 {
                        let key = keys.pop().expect("more than one");
                        self.commit(number, Batch::new().delete([key]), &keys).await;
                    }
                }
            }
        }
    }

    /// Waits until an object can be put; fails if that is never so.
    async fn put_at_last(&self, number: u16) {
        for _ in 0..100 {
            if self.put(number).await {
                return;
            }
            self.env.sleep(Duration::from_millis(120)).await;
        }
        panic!("object {number} finds no room: {:?}", self.shard.stats());
    }

    async fn check(&self, what: &str) {
        let known = self.known.borrow().clone();
        let mut perhaps = known.perhaps.iter();
        let mut objects = known.objects.clone();
        if let Some((number, _)) = perhaps.next() {
            objects.entry(*number).or_default();
        }
        for (number, keys) in &objects {
            let found = self.shard.load(&id(*number)).await.expect("readable");
            let found: Vec<u8> = found.map.keys().map(|key| key[0]).collect();
            let perhaps = known.perhaps.as_ref().filter(|(other, _)| other == number);
            let right = found == *keys || perhaps.is_some_and(|(_, keys)| found == *keys);
            assert!(right, "{what}: object {number} has {found:?}, not {keys:?} or {perhaps:?}");
            self.known.borrow_mut().objects.insert(*number, found);
        }
        self.known.borrow_mut().perhaps = None;
        assert!(self.shard.audit().await.expect("counted").is_empty(), "{what}");
    }
}

/// Fills the disk, deletes, and fills it again.
async fn live(env: SimEnv, limits: Limits, known: Rc<RefCell<Known>>) {
    let (_lock, shard) = open_with(&env, limits).await;
    let client = Client { env, shard: shard.clone(), known };
    let count = client.fill().await;
    assert!(count > 20, "{count}");
    assert!(!client.put(count).await, "new data takes the reserve");
    client.check("full").await;
    client.empty(count).await;
    for number in 0..count / 3 {
        client.put_at_last(OBJECTS + number).await;
    }
    client.check("filled again").await;
    for number in 0..count {
        client.commit(number, Batch::new().delete_all(), &[]).await;
    }
    // With room for another segment.
    for number in 0..count / 4 {
        client.put_at_last(number).await;
    }
    client.env.sleep(Duration::from_secs(1)).await;
    let stats = shard.stats();
    assert!(
        !stats.full && stats.reserve_bytes >= 4 * u64::from(limits.segment_bytes_min),
        "{stats:?}"
    );
    shard.close().await.expect("closed");
}

#[test]
fn a_full_disk_takes_what_frees_and_then_new_data_again() {
    for seed in 0..30 {
        fill_and_empty(seed, 300_000 + seed * 10_000, LIMITS);
    }
}

#[test]
fn so_does_one_whose_segments_have_grown() {
    for seed in 0..20 {
        fill_and_empty(seed, 2_000_000 + seed * 100_000, GROWING);
    }
}

fn fill_and_empty(seed: u64, capacity: u64, limits: Limits) {
    let world = World::new(seed, disk(capacity));
    let env = world.process().core();
    let done = world.block_on(&env.clone(), STEPS, live(env, limits, Rc::default()));
    assert_eq!(world.take_panics(), [] as [String; 0], "seed {seed}");
    done.unwrap_or_else(|| panic!("seed {seed}: not done"));
}

/// What comes after a disk was filled with so many objects.
fn on_full_disk(seed: u64, then: impl AsyncFnOnce(Shard<SimEnv>, u16) + 'static) -> World {
    let world = World::new(seed, disk(300_000));
    let env = world.process().core();
    let done = world.block_on(&env.clone(), STEPS, async move {
        let (_lock, shard) = open(&env).await;
        let client = Client { env, shard: shard.clone(), known: Rc::default() };
        let count = client.fill().await;
        then(shard, count).await;
    });
    assert_eq!(world.take_panics(), [] as [String; 0], "seed {seed}");
    done.unwrap_or_else(|| panic!("seed {seed}: not done"));
    world
}

/// Whatever is refused beside it, and whatever it shared a batch with.
#[test]
fn what_frees_is_not_refused_with_what_it_shares_a_batch_with() {
    for seed in 0..20 {
        let world = on_full_disk(seed, async move |shard, count| {
            // All in one turn: new data, what frees another object, what frees behind new data of its own, and
            // what builds on what frees.
            let commit =
                |number, batch: Batch| shard.commit(&id(number), &batch, None).expect("accepted");
            let new = commit(count + 1, filled(1));
            let freed = commit(0, Batch::new().delete([0]));
            let own = [commit(1, filled(2)), commit(1, Batch::new().delete_all())];
            let again = commit(0, Batch::new().delete([1]));
            let new_again = commit(0, filled(3));
            freed.await.expect("it only frees");
            again.await.expect("likewise");
            let [first, second] = own;
            for refused in [new, first, second, new_again] {
                let error = refused.await.expect_err("no room, or behind what found none");
                assert_eq!(error.kind(), Kind::NoSpace, "{error}");
            }
        });
        world.power_cut();
        let env = world.process().core();
        let done = world.block_on(&env.clone(), STEPS, async move {
            let (_lock, shard) = open(&env).await;
            let keys = async |number| {
                let found = shard.load(&id(number)).await.expect("readable");
                found.map.into_iter().map(|(key, value)| (key[0], value[0])).collect::<Vec<_>>()
            };
            let before = |key| (key, KEYS);
            assert_eq!(keys(0).await, (2..KEYS).map(before).collect::<Vec<_>>());
            assert_eq!(keys(1).await, (0..KEYS).map(before).collect::<Vec<_>>());
        });
        done.unwrap_or_else(|| panic!("seed {seed}: not done"));
    }
}

/// Of an object that is read after commits of which the last was refused, those before it are part: else what is put
/// together of it, be it to be written anew, would lack one that is acknowledged.
#[test]
fn a_read_waits_for_what_stays_before_what_is_refused() {
    for seed in 0..20 {
        on_full_disk(seed, async move |shard, _count| {
            let commit = |batch: Batch| shard.commit(&id(0), &batch, None).expect("accepted");
            let freed = commit(Batch::new().delete([0]));
            let refused = commit(filled(3));
            let (read, refused, freed) = join3(shard.load(&id(0)), refused, freed).await;
            assert_eq!(refused.expect_err("no room").kind(), Kind::NoSpace);
            let (read, freed) = (read.expect("readable"), freed.expect("it only frees"));
            assert_eq!(read.version, freed, "seed {seed}");
            assert_eq!(read.map.len(), usize::from(KEYS) - 1, "seed {seed}");
        });
    }
}

/// New data that comes all the time, for the objects that the cleaner moves too, is refused, and holds nobody up: what
/// only frees waits for the cleaner, which must not wait for what waits behind that.
#[test]
fn new_data_that_keeps_coming_holds_nobody_up() {
    // Trees, each moved by itself.
    let keys = 56;
    for seed in 0..60 {
        let world = World::new(seed, disk(320_000 + seed * 4_000));
        let env = world.process().core();
        let done = world.block_on(&env.clone(), STEPS, async move {
            let (_lock, shard) = open(&env).await;
            let mut count = 0;
            'full: for number in 0..OBJECTS {
                for key in 0..keys {
                    let put = Batch::new().put([key], [1; 400]);
                    let put = shard.commit(&id(number), &put, None).expect("accepted");
                    if put.await.is_err() {
                        break 'full;
                    }
                }
                count = number + 1;
            }
            assert!(count > 0, "none finds room");
            let over = Rc::new(Cell::new(false));
            let (puts, others, is_over) = (shard.clone(), env.clone(), over.clone());
            env.spawn("others", async move {
                let mut tickets = VecDeque::new();
                while !is_over.get() {
                    others.sleep(Duration::from_micros(1 + others.random() % 100)).await;
                    let number = u16::try_from(others.random() % u64::from(count)).expect("small");
                    let key = u8::try_from(others.random() % u64::from(keys)).expect("small");
                    let put = Batch::new().put([key], [2; 300]);
                    tickets.extend(puts.commit(&id(number), &put, None).ok());
                    if tickets.len() > 4 {
                        drop(tickets.pop_front().expect("some").await);
                    }
                }
            });
            for key in 0..keys {
                for number in 0..count {
                    let delete = Batch::new().delete([key]);
                    let ended = shard.commit(&id(number), &delete, None).expect("accepted").await;
                    // On a disk of so few segments, each of which costs half of one to let it go, it may be refused.
                    let kind = ended.err().map(|error| error.kind());
                    assert!(matches!(kind, None | Some(Kind::NoSpace)), "{number}: {kind:?}");
                }
            }
            over.set(true);
        });
        assert_eq!(world.take_panics(), [] as [String; 0], "seed {seed}");
        done.unwrap_or_else(|| panic!("seed {seed}: not done"));
    }
}

/// Somebody else makes room: looked for at a bounded rate, by whoever wants it.
#[test]
fn room_that_somebody_else_makes_is_found() {
    let world = World::new(1, disk(300_000));
    let env = world.process().core();
    let machine = world.clone();
    let done = world.block_on(&env.clone(), STEPS, async move {
        let (_lock, shard) = open(&env).await;
        let client = Client { env: env.clone(), shard: shard.clone(), known: Rc::default() };
        let mut count = client.fill().await;
        env.sleep(Duration::from_secs(1)).await;
        // What could be cleaned is used up too.
        while client.put(count).await {
            count += 1;
            env.sleep(Duration::from_secs(1)).await;
        }
        let before = machine.disk_changes();
        for _ in 0..1000 {
            assert!(!client.put(count).await);
        }
        let changes = machine.disk_changes() - before;
        assert!(changes < 100, "{changes} changes of the disk for a thousand refusals");
        machine.set_faults(DiskFaults::default());
        env.sleep(Duration::from_millis(150)).await;
        assert!(client.put(count).await, "there is room");
        client.check("with more room").await;
        shard.close().await.expect("closed");
    });
    assert_eq!(world.take_panics(), [] as [String; 0]);
    done.expect("done");
}

/// A crash at any change of the disk, by the power or of the process: the store opens on the full disk, holds what was
/// acknowledged, takes what frees, and then new data.
#[test]
fn a_crash_at_any_point_of_a_full_disk_leaves_one_that_goes_on() {
    let capacity = 300_000;
    let changes = {
        let world = World::new(5, disk(capacity));
        let env = world.process().core();
        world.block_on(&env.clone(), STEPS, live(env, LIMITS, Rc::default())).expect("done");
        world.disk_changes()
    };
    let mut tried = 0;
    // From where the disk is nearly full; before, crashes are those of any store.
    for change in changes / 6..changes {
        let world = World::new(5, disk(capacity));
        world.stop_at_disk_change(change);
        let known = Rc::new(RefCell::new(Known::default()));
        let process = world.process();
        let env = process.core();
        assert!(world.block_on(&env.clone(), STEPS, live(env, LIMITS, known.clone())).is_none());
        match change % 2 {
            0 => world.power_cut(),
            _ => {
                process.kill();
                world.power_cut();
            }
        }
        let process = world.process();
        let env = process.core();
        let done = world.block_on(&env.clone(), STEPS, async move {
            let (_lock, shard) = open(&env).await;
            let client = Client { env, shard: shard.clone(), known };
            client.check(&format!("after a crash at change {change}")).await;
            let count = client.known.borrow().objects.keys().next_back().copied().unwrap_or(0) + 1;
            client.empty(count).await;
            client.put_at_last(count).await;
            client.check("and then").await;
            shard.close().await.expect("closed");
        });
        assert_eq!(world.take_panics(), [] as [String; 0], "change {change}");
        done.unwrap_or_else(|| panic!("change {change}: not done"));
        tried += 1;
    }
    println!("{tried} crashes at {changes} changes");
}

/// A shard that is closed while much waits, and has no reserve yet, makes one for it.
#[test]
fn what_waits_when_a_young_shard_is_closed_is_written() {
    let world = World::new(1, DiskFaults::default());
    let env = world.process().core();
    let done = world.block_on(&env.clone(), STEPS, async move {
        let (_lock, shard) = open(&env).await;
        let commit = |number| shard.commit(&id(number), &filled(1), None).expect("accepted");
        let tickets: Vec<_> = (0..60).map(commit).collect();
        shard.close().await.expect("closed");
        for ticket in tickets {
            ticket.await.expect("durable");
        }
    });
    assert_eq!(world.take_panics(), [] as [String; 0]);
    done.expect("done");
    assert_eq!(world.open_files(), 0, "nothing is being made any more");
}
