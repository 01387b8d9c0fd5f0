//! One life of a store, saved at its moments: what the rows of the table take, damage and mix.
//!
//! Each commit is of an object of its own, named for its place in the log, so that a row can say by
//! name what its damage takes. Every batch has two blocks: header and table lie in the first, the
//! table again in the second.

use std::collections::BTreeMap;

use dormouse_engine::{Batch, Host, Limits, ObjectId, Recovery, Result, Shard, StoreLock};
use dormouse_sim::{DiskFaults, SimEnv, World};

use crate::scene;

pub(crate) const STEPS: u64 = 1_000_000;
/// Nothing is cleaned: each row is about files that stay where they are.
pub(crate) const LIMITS: Limits = Limits { space_slack_bytes: 1 << 30, ..Limits::TINY };

/// Files by name.
pub(crate) type Files = BTreeMap<String, Vec<u8>>;

/// Where in the life of the store its files were saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Moment {
    /// Created, nothing written.
    Empty,
    /// `early`, `second` and `third` are written; no checkpoint, no close record.
    Young,
    /// A close record behind it.
    YoungQuiet,
    /// The first checkpoint is made.
    Once,
    /// The sixth checkpoint is made, and `between` lies in it: both slots are used, `early` is in a
    /// segment before the one in which it ends.
    Often,
    /// Behind the checkpoint's end came `middle`, `anew` twice, and, at the head of a later
    /// segment, `next`.
    Next,
    /// `last` behind it; no close record.
    Last,
    /// A close record behind it.
    Quiet,
    /// Opened again, after a crash, and nothing more.
    Fenced,
    /// Opened again, and `after` written.
    Reopened,
    /// As `Reopened`, but `last` had not been written yet when the process died: its write is
    /// still on its way.
    Forked,
    /// After `Quiet`, opened and killed until a checkpoint freed the segments that held nothing;
    /// then `after`.
    Looped,
    /// Another store, created in the same place.
    Elsewhere,
}

/// Files, and each object's value by the object's name.
#[derive(Clone)]
pub(crate) struct Saved {
    pub(crate) files: Files,
    pub(crate) objects: BTreeMap<String, String>,
}

pub(crate) type Story = BTreeMap<Moment, Saved>;

pub(crate) fn id(name: &str) -> ObjectId {
    let mut bytes = [0; ObjectId::BYTES];
    bytes[..name.len()].copy_from_slice(name.as_bytes());
    ObjectId::from_bytes(bytes)
}

pub(crate) type Opened = (StoreLock<SimEnv>, Shard<SimEnv>, Recovery);

pub(crate) async fn open(env: &SimEnv) -> Result<Opened> {
    let lock = StoreLock::open_or_create(env, &LIMITS, 1).await?;
    let (shard, recovery) = Shard::open(env, lock.superblock(), 0, LIMITS).await?;
    Ok((lock, shard, recovery))
}

/// One process's part of the life.
struct Session {
    env: SimEnv,
    opened: Opened,
    objects: BTreeMap<String, String>,
    story: Story,
    fills: usize,
}

impl Session {
    async fn open(env: SimEnv, story: Story, from: Option<Moment>) -> Self {
        let opened = open(&env).await.expect("a store");
        let objects = from.map(|from| story[&from].objects.clone()).unwrap_or_default();
        Self { env, opened, objects, story, fills: 0 }
    }

    fn save(&mut self, moment: Moment) {
        let saved = Saved { files: self.env.world().save(), objects: self.objects.clone() };
        assert!(self.story.insert(moment, saved).is_none());
    }

    async fn write(&mut self, name: &str) {
        let count = self.objects.get(name).map_or(1, |value| value.len() - name.len() + 1);
        let value = format!("{name}{}", "!".repeat(count));
        // Deleting all makes it a whole image: it needs no earlier frame.
        let batch = Batch::new().delete_all().put("key", &value).put("pad", [0x55; 400]);
        let commit = self.opened.1.commit(&id(name), &batch, None);
        commit.expect("accepted").await.expect("durable");
        self.objects.insert(name.to_owned(), value);
    }

    async fn fill(&mut self) {
        // Few objects, so that all runs are small enough to be merged.
        self.fills += 1;
        let number = if self.fills < 10 { self.fills } else { 10 + self.fills % 30 };
        let name = format!("filler-{number:03}");
        self.write(&name).await;
    }

    /// Fills the log until so many checkpoints are made.
    async fn checkpoints(&mut self, count: u64) {
        while self.opened.1.stats().checkpoints < count {
            let before = self.opened.1.stats().log_bytes;
            self.fill().await;
            assert!(before < LIMITS.checkpoint_bytes * (count + 2));
            self.env.sleep(std::time::Duration::from_millis(2)).await;
        }
    }

    /// Longer than a log stays quiet without a close record.
    async fn rest(&self) {
        self.env.sleep(5 * LIMITS.quiet).await;
    }
}

/// Runs one process's part and kills it.
fn session<F: Future<Output = Story> + 'static>(
    world: &World,
    tell: impl FnOnce(SimEnv) -> F,
) -> Story {
    let process = world.process();
    let env = process.core();
    let story = world.block_on(&env, STEPS, tell(env.clone())).expect("done");
    process.kill();
    assert_eq!(world.take_panics(), [] as [String; 0]);
    story
}

async fn first_session(env: SimEnv) -> Story {
    let mut it = Session::open(env, Story::new(), None).await;
    it.save(Moment::Empty);
    for name in ["early", "second", "third"] {
        it.write(name).await;
    }
    it.save(Moment::Young);
    it.rest().await;
    it.save(Moment::YoungQuiet);
    it.checkpoints(1).await;
    it.save(Moment::Once);
    it.checkpoints(5).await;
    it.write("between").await;
    it.checkpoints(6).await;
    it.save(Moment::Often);
    for name in ["middle", "anew", "anew"] {
        it.write(name).await;
    }
    while scene::room(&it.env.world().save()) >= scene::BATCH_BYTES {
        it.fill().await;
    }
    it.write("next").await;
    it.save(Moment::Next);
    it.write("last").await;
    it.save(Moment::Last);
    it.rest().await;
    it.save(Moment::Quiet);
    let checkpoints = it.opened.1.stats().checkpoints;
    assert_eq!(checkpoints, 6, "the log goes on behind the sixth without another one");
    it.story
}

/// Tells the whole story.
pub(crate) fn tell() -> Story {
    let world = World::new(11, DiskFaults::default());
    let story = session(&world, first_session);
    let story = session(&world, async |env| {
        let mut it = Session::open(env, story, Some(Moment::Quiet)).await;
        it.save(Moment::Fenced);
        it.write("after").await;
        it.save(Moment::Reopened);
        it.story
    });
    let world = World::new(12, DiskFaults::default());
    world.bring_back(&story[&Moment::Next].files);
    let story = session(&world, async |env| {
        let mut it = Session::open(env, story, Some(Moment::Next)).await;
        it.write("after").await;
        it.save(Moment::Forked);
        it.story
    });
    let world = World::new(13, DiskFaults::default());
    world.bring_back(&story[&Moment::Quiet].files);
    for _ in 0..6 {
        session(&world, async |env| {
            open(&env).await.expect("a store");
            Story::new()
        });
    }
    let story = session(&world, async |env| {
        let mut it = Session::open(env, story, Some(Moment::Quiet)).await;
        it.write("after").await;
        it.save(Moment::Looped);
        it.story
    });
    session(&World::new(14, DiskFaults::default()), async |env| {
        let mut it = Session::open(env, story, None).await;
        it.checkpoints(1).await;
        it.save(Moment::Elsewhere);
        it.story
    })
}
