//! The store that is damaged: closed, of a few segments, with all that a small one can hold.

use std::collections::BTreeMap;
use std::time::Duration;

use dormouse_engine::{Batch, Contents, Host, Limits, ObjectId, Shard, StoreLock, Version};
use dormouse_sim::{DiskFaults, SimEnv, World};

pub(crate) const LIMITS: Limits = Limits {
    key_bytes_max: 16,
    value_bytes_max: 256,
    commit_bytes_max: 16 << 10,
    batch_bytes_max: 7680,
    root_ops_bytes: 256,
    queue_bytes_max: 32 << 10,
    segment_bytes_min: 8 << 10,
    segment_bytes_max: 8 << 10,
    checkpoint_bytes: 10 << 10,
    replay_bytes_max: 16 << 10,
    manifest_slot_bytes: 4096,
    ..Limits::TINY
};

pub(crate) const STEPS: u64 = 1_000_000;
const OBJECTS: u8 = 6;

/// Bytes of files by name.
pub(crate) type Files = BTreeMap<String, Vec<u8>>;
/// What objects hold, by id.
pub(crate) type Objects = BTreeMap<ObjectId, Contents>;

/// The closed store, and how it came to be.
pub(crate) struct Story {
    pub(crate) files: Files,
    /// What the disk held at moments before, oldest first.
    pub(crate) earlier: Vec<Files>,
    pub(crate) objects: Objects,
    /// All that each object ever held durably.
    pub(crate) history: BTreeMap<ObjectId, Vec<Contents>>,
}

fn object(number: u8) -> ObjectId {
    ObjectId::from_bytes([number; 32])
}

struct Session {
    shard: Shard<SimEnv>,
    _lock: StoreLock<SimEnv>,
    story: Story,
}

impl Session {
    async fn commit(&mut self, number: u8, batch: Batch) {
        let id = object(number);
        let commit = self.shard.commit(&id, &batch, None);
        commit.expect("accepted").await.expect("durable");
        let contents = self.shard.load(&id).await.expect("readable");
        self.story.history.entry(id).or_default().push(contents);
    }

    /// Rounds of small commits: images, chains, chains in chains; names, alarms, deleted objects.
    async fn rounds(&mut self, session: u8) {
        for round in 0..6_u8 {
            for number in 0..OBJECTS {
                let batch = Batch::new()
                    .put(format!("key-{}", round % 4), vec![round; 20 + usize::from(number)])
                    .put("both", [session, round])
                    .set_alarm(u64::from(round) + 1);
                let named = number.is_multiple_of(2);
                let batch = if named { batch.named("rooms", "a room") } else { batch };
                self.commit(number, batch).await;
            }
            let gone = Batch::new().delete_all().delete_alarm();
            self.commit(OBJECTS, Batch::new().put("short", "life")).await;
            self.commit(OBJECTS, gone).await;
        }
    }
}

/// Lives one session on `world` and closes it.
fn session(world: &World, story: Story, number: u8) -> Story {
    let process = world.process();
    let (env, on) = (process.core(), world.clone());
    let lived = world.block_on(&env.clone(), STEPS, async move {
        let lock = StoreLock::open_or_create(&env, &LIMITS, 1).await.expect("a store");
        let opened = Shard::open(&env, lock.superblock(), 0, LIMITS).await;
        let mut it = Session { shard: opened.expect("whole").0, _lock: lock, story };
        it.rounds(number).await;
        it.story.earlier.push(on.save());
        let keys = 0..24_u8;
        let large = keys.fold(Batch::new(), |batch, key| batch.put([key], [key ^ number; 250]));
        it.commit(0, large).await;
        // A tree takes its place.
        env.sleep(Duration::from_millis(5)).await;
        assert!(!it.shard.snapshot(&object(0)).await.expect("readable").is_whole());
        it.story.earlier.push(on.save());
        for number in 1..OBJECTS {
            it.commit(number, Batch::new().put("last", [number])).await;
        }
        it.shard.close().await.expect("closed");
        let stats = it.shard.stats();
        assert!(stats.checkpoints >= 2 && stats.runs >= 1, "{stats:?}");
        it.story
    });
    process.kill();
    lived.expect("done")
}

/// Tells it: two sessions, and then a look.
pub(crate) fn tell() -> Story {
    let world = World::new(7, DiskFaults::default());
    let (files, objects) = Default::default();
    let mut story = Story { files, objects, earlier: Vec::new(), history: BTreeMap::new() };
    for number in 0..2 {
        story = session(&world, story, number);
    }
    story.files = world.save();
    for (id, history) in &mut story.history {
        let last = history.last().expect("committed");
        if last.version != Version::NONE {
            story.objects.insert(*id, last.clone());
        }
        // An object may also never have been.
        history.push(Contents::default());
    }
    assert_eq!(world.take_panics(), [] as [String; 0]);
    story
}
