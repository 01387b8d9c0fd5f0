//! What is recorded: processes that open one store, one after the other, read every object, commit
//! to them, and close the store or die.
//!
//! [`Limits::TINY`] makes some hundred commits pass through deltas, images, trees, commits in several
//! parts, nested chains, changes of segments, checkpoints, and merges of runs.

use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use dormouse_engine::real::{DiskChoice, block_on};
use dormouse_engine::{Batch, Contents, Host, Limits, ObjectId, Shard, StoreLock, Ticket};
use futures_util::future::{join_all, select};

use crate::random::Random;
use crate::record::{Event, Life, Log, Recorded};

pub(crate) const LIMITS: Limits = Limits::TINY;
/// Objects of the workload.
pub(crate) const OBJECTS: usize = 10;
/// How long each process lives, its opening included.
const LIVES: [Life; 12] = [
    Life::Whole,
    Life::UntilWrite(600),
    Life::Events(9),
    Life::Events(21),
    Life::Events(60),
    Life::UntilWrite(230),
    Life::Whole,
    Life::UntilWrite(430),
    Life::UntilWrite(100),
    Life::UntilWrite(290),
    Life::Events(45),
    Life::Whole,
];
/// Rounds of commits of a process that lives.
const ROUNDS: usize = 24;

pub(crate) fn object(number: usize) -> ObjectId {
    let mut bytes = [0x5a; 32];
    bytes[7] = u8::try_from(number).expect("few objects");
    ObjectId::from_bytes(bytes)
}

/// Runs the workload in `dir`, and gives its log.
pub(crate) fn record(dir: &Path, disk: DiskChoice, seed: u64) -> Log {
    let mut log = Log::default();
    for (process, life) in LIVES.into_iter().enumerate() {
        let random = Random::new(seed + process as u64);
        log = block_on(dir, disk, async move |env| {
            let env = Recorded::new(env, log, life);
            let work = Box::pin(work(env.clone(), random));
            select(work, Box::pin(env.recorder().killed())).await;
            env.recorder().finish()
        })
        .expect("a core");
    }
    log
}

async fn work(env: Recorded, random: Random) {
    let lock = StoreLock::open_or_create(&env, &LIMITS, 1).await.expect("a store");
    let opened = Shard::open(&env, lock.superblock(), 0, LIMITS).await;
    let (shard, recovery) = opened.expect("a shard");
    assert_eq!(recovery.damaged, []);
    let mut objects = Vec::new();
    for number in 0..OBJECTS {
        let contents = shard.load(&object(number)).await.expect("an object");
        env.recorder().say(Event::Found(number, contents.clone()));
        objects.push(contents);
    }
    let client = Client { env, shard, objects: RefCell::new(objects), random: random.into() };
    let client = Rc::new(client);
    for _ in 0..ROUNDS {
        client.round().await;
    }
    client.shard.close().await.expect("closed");
}

struct Client {
    env: Recorded,
    shard: Shard<Recorded>,
    /// As they would be after all commits made so far.
    objects: RefCell<Vec<Contents>>,
    random: RefCell<Random>,
}

impl Client {
    /// Some commits at a time; a pause now and then, in which the log becomes quiet.
    async fn round(self: &Rc<Self>) {
        let count = self.random.borrow_mut().below(5) + 1;
        join_all((0..count).map(|_| self.commit())).await;
        if self.random.borrow_mut().below(8) == 0 {
            self.env.sleep(LIMITS.quiet + Duration::from_millis(3)).await;
        }
    }

    /// Makes one commit now; the future waits for it.
    fn commit(&self) -> impl Future<Output = ()> + use<> {
        let random = &mut *self.random.borrow_mut();
        let number = random.below(OBJECTS);
        let batch = batch(random);
        let contents = &mut self.objects.borrow_mut()[number];
        let mut next = contents.clone();
        next.version.0 += 1;
        next.apply(&batch, dormouse_engine::Version(next.version.0 + 1));
        let resident = random.below(3) > 0;
        let resident = resident.then_some(&next as &dyn dormouse_engine::Resident);
        let ticket: Ticket =
            self.shard.commit(&object(number), &batch, resident).expect("a commit");
        next.version = ticket.version();
        *contents = next.clone();
        self.env.recorder().say(Event::Submitted(number, next));
        let recorder = self.env.recorder().clone();
        async move {
            let version = ticket.await.expect("a disk that is well");
            recorder.say(Event::Acknowledged(number, version));
        }
    }
}

/// Mostly a key or two; at times most of an object, which takes several batches, or its end.
fn batch(random: &mut Random) -> Batch {
    let puts = match random.below(16) {
        0 => return Batch::new().delete_all().delete_alarm(),
        1 => 24,
        _ => 1 + random.below(2),
    };
    let mut batch = Batch::new();
    for _ in 0..puts {
        let key = format!("key {}", random.below(30));
        let bytes = if puts > 2 { 500 } else { random.below(300) };
        let value: Vec<u8> =
            (0..bytes).map(|_| u8::try_from(random.below(256)).expect("a byte")).collect();
        batch = batch.put(key, value);
    }
    match random.below(8) {
        0 => batch.delete(format!("key {}", random.below(30))),
        1 => batch.set_alarm(4_102_444_800_000 + random.below(1000) as u64),
        2 => batch.delete_alarm(),
        _ => batch,
    }
}
