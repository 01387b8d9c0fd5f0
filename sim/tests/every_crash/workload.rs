//! A fixed life of one small store that passes through every place in which a crash may find it, and
//! the proof that it does.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use dormouse_engine::io::Disk;
use dormouse_engine::{
    Batch, Env, Host, Limits, ObjectId, Recovery, Result, Shard, ShardStats, StoreLock, Ticket,
};
use dormouse_sim::{SimEnv, World};

use super::ledger::Ledger;

pub(crate) const STEPS: u64 = 1_000_000;

/// As small as [`Limits::check`] allows: a segment holds a full batch and a little more.
pub(crate) const LIMITS: Limits = Limits {
    key_bytes_max: 16,
    value_bytes_max: 256,
    commit_bytes_max: 16 << 10,
    batch_bytes_max: 7680,
    root_ops_bytes: 256,
    queue_bytes_max: 32 << 10,
    segment_bytes_min: 8 << 10,
    segment_bytes_max: 8 << 10,
    checkpoint_bytes: 6 << 10,
    replay_bytes_max: 12 << 10,
    manifest_slot_bytes: 4096,
    space_slack_bytes: 4 << 10,
    ..Limits::TINY
};

const _: () = LIMITS.check();

/// Commits to one object that nobody keeps resident, before its nested chains are written as one
/// image: an image and three deltas, then sixteen times a nested delta and three that follow it.
const NESTING_COMMITS: u8 = 4 + 15 * 4 + 1;
/// Bytes of a close record: what a quiet log grows by.
const CLOSE_BYTES: u64 = 512;

pub(crate) fn object(number: u8) -> ObjectId {
    ObjectId::from_bytes([number; 32])
}

pub(crate) fn ledger() -> Ledger {
    Ledger::new((0..5).map(object))
}

pub(crate) type Opened = (StoreLock<SimEnv>, Shard<SimEnv>, Recovery);

pub(crate) async fn open(env: &SimEnv) -> Result<Opened> {
    let lock = StoreLock::open_or_create(env, &LIMITS, 1).await?;
    let (shard, recovery) = Shard::open(env, lock.superblock(), 0, LIMITS).await?;
    Ok((lock, shard, recovery))
}

/// One client, and what it was told.
struct Client {
    shard: Shard<SimEnv>,
    ledger: Rc<RefCell<Ledger>>,
}

impl Client {
    fn commit(&self, number: u8, batch: &Batch, resident: bool) -> Ticket {
        let id = object(number);
        let after = self.ledger.borrow().after(&id, batch);
        let resident = resident.then_some(&after as &dyn dormouse_engine::Resident);
        let ticket = self.shard.commit(&id, batch, resident).expect("accepted");
        self.ledger.borrow_mut().submitted(&id, batch, ticket.version());
        ticket
    }

    async fn acknowledged(&self, number: u8, ticket: Ticket) {
        ticket.await.expect("durable");
        self.ledger.borrow_mut().acknowledged(&object(number));
    }

    async fn durable(&self, number: u8, batch: &Batch, resident: bool) {
        self.acknowledged(number, self.commit(number, batch, resident)).await;
    }
}

fn put(key: u8, value: u8, bytes: usize) -> Batch {
    Batch::new().put([b'k', key], vec![value; bytes])
}

/// Images, deltas, alarms; a commit while another one is on its way.
async fn small_commits(client: &Client, round: u8) {
    for number in 0..2 {
        let batch = put(round, number, 40).set_alarm(u64::from(round) + 1);
        client.durable(number, &batch, false).await;
        client.durable(number, &put(round + 1, number, 30), false).await;
    }
    client.durable(2, &put(0, round, 200).set_alarm(7), true).await;
    let first = client.commit(0, &Batch::new().put("both", [round]), false);
    let second = client.commit(1, &Batch::new().delete([b'k', round]).delete_alarm(), false);
    client.acknowledged(0, first).await;
    client.acknowledged(1, second).await;
}

/// One commit that no batch can hold.
async fn in_parts(client: &Client, value: u8) {
    let large = (0..32).fold(Batch::new(), |batch, key| batch.put([b'p', key], [value; 250]));
    assert!(large.ops().count() * 250 > LIMITS.batch_bytes_max);
    client.durable(3, &large, false).await;
}

/// A large object, all of whose pages get more keys, so that they split, and then lose most, so that they are
/// joined; how often that was done.
async fn pages(client: &Client, env: &SimEnv) -> u64 {
    let before = client.shard.stats().trees_updated;
    in_parts(client, 4).await;
    let more = (0..32).fold(Batch::new(), |batch, key| batch.put([b'p', key, b'+'], [5; 60]));
    client.durable(3, &more, false).await;
    env.sleep(Duration::from_millis(20)).await;
    let gone = |batch: Batch, key| batch.delete([b'p', key]).delete([b'p', key, b'+']);
    let fewer = (3..30).fold(Batch::new(), gone);
    client.durable(3, &fewer.put("large", [6; 250]).put("too", [6; 250]), false).await;
    env.sleep(Duration::from_millis(20)).await;
    client.shard.stats().trees_updated - before
}

/// A chain that nests until the shard writes it again as one image, with a commit that comes while
/// it is read for that; how much the log grew by the rewrite.
async fn nested(client: &Client, env: &SimEnv) -> u64 {
    // All but the last at a time, in few batches.
    let mut tickets = Vec::new();
    for commit in 0..NESTING_COMMITS - 1 {
        tickets.push(client.commit(4, &put(commit % 8, commit, 200 - usize::from(commit)), false));
    }
    for ticket in tickets {
        client.acknowledged(4, ticket).await;
    }
    client.durable(4, &put(9, 9, 100), false).await;
    client.durable(4, &put(10, 10, 100), false).await;
    let before = client.shard.stats().log_bytes;
    env.sleep(Duration::from_millis(40)).await;
    client.shard.stats().log_bytes - before
}

/// What the life has passed through, as the store itself counts it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Passed {
    parts_bytes: u64,
    rewrite_bytes: u64,
    /// When the first session ends.
    segments: usize,
    checkpoints: u64,
    runs: usize,
    /// What the last opening replayed.
    replayed: u64,
    /// Files that were there when the last session began, and are gone.
    segments_removed: usize,
    runs_removed: usize,
    /// Once it was made compact.
    compact_runs: usize,
    /// In the sessions that commit.
    segments_cleaned: u64,
    segments_recycled: u64,
    trees_updated: u64,
}

/// Images, a nested chain, a commit in parts, deleted objects, checkpoints; then a close in order.
async fn first_session(env: SimEnv, ledger: Rc<RefCell<Ledger>>) -> Passed {
    let (_lock, shard, _) = open(&env).await.expect("a store");
    let client = Client { shard: shard.clone(), ledger };
    small_commits(&client, 0).await;
    let before = shard.stats().log_bytes;
    in_parts(&client, 1).await;
    let parts_bytes = shard.stats().log_bytes - before;
    let rewrite_bytes = nested(&client, &env).await;
    client.durable(0, &Batch::new().delete_all().delete_alarm(), false).await;
    small_commits(&client, 2).await;
    shard.close().await.expect("closed");
    let stats = shard.stats();
    let (segments, checkpoints, runs) = (stats.segments, stats.checkpoints, stats.runs);
    let mut passed =
        Passed { parts_bytes, rewrite_bytes, segments, checkpoints, runs, ..Passed::default() };
    passed.cleaned(&stats);
    passed
}

/// Opens the store and closes it: its segment has no frame and goes with a later checkpoint.
async fn idle_session(env: SimEnv) {
    let (_lock, shard, _) = open(&env).await.expect("a store");
    shard.close().await.expect("closed");
}

async fn last_session(env: SimEnv, ledger: Rc<RefCell<Ledger>>, passed: Passed) -> Passed {
    let before = env.disk().list().await.expect("a directory");
    let (_lock, shard, recovery) = open(&env).await.expect("a store");
    assert_eq!((recovery.dropped, recovery.damaged), (None, Vec::new()));
    let client = Client { shard: shard.clone(), ledger };
    small_commits(&client, 4).await;
    in_parts(&client, 2).await;
    client.durable(3, &Batch::new().delete_all(), false).await;
    in_parts(&client, 3).await;
    let trees_updated = pages(&client, &env).await;
    small_commits(&client, 6).await;
    shard.compact().await.expect("compact");
    let compact_runs = shard.stats().runs;
    small_commits(&client, 8).await;
    shard.close().await.expect("closed");
    let after = env.disk().list().await.expect("a directory");
    let gone = |kind: &str| {
        let gone = |name: &&String| !after.contains(name) && name.contains(kind);
        before.iter().filter(gone).count()
    };
    let (segments_removed, runs_removed) = (gone("segment"), gone("run"));
    let mut passed = Passed {
        replayed: recovery.batches,
        segments_removed,
        runs_removed,
        compact_runs,
        trees_updated,
        ..passed
    };
    passed.cleaned(&shard.stats());
    passed
}

/// Lives the whole life, or until the machine stands still: then `None`.
pub(crate) fn live(world: &World, ledger: &Rc<RefCell<Ledger>>) -> Option<Passed> {
    let process = world.process();
    let env = process.core();
    let passed = world.block_on(&env.clone(), STEPS, first_session(env, ledger.clone()))?;
    process.kill();
    let process = world.process();
    let env = process.core();
    world.block_on(&env.clone(), STEPS, idle_session(env))?;
    process.kill();
    let env = world.process().core();
    world.block_on(&env.clone(), STEPS, last_session(env, ledger.clone(), passed))
}

impl Passed {
    fn cleaned(&mut self, stats: &ShardStats) {
        self.segments_cleaned += stats.segments_cleaned;
        self.segments_recycled += stats.segments_recycled;
    }

    /// That the life went everywhere.
    pub(crate) fn check(&self) {
        let batch = LIMITS.batch_bytes_max as u64;
        assert!(self.parts_bytes > batch, "a commit in parts: {self:?}");
        assert!(self.rewrite_bytes > 2 * CLOSE_BYTES, "a nested chain was rewritten: {self:?}");
        assert!(self.segments > 2, "segments were changed: {self:?}");
        // Each checkpoint here makes a run; those that are gone went into younger ones.
        assert!(self.checkpoints >= 2, "checkpoints were made: {self:?}");
        assert!((self.runs as u64) < self.checkpoints, "runs were merged: {self:?}");
        assert!(self.replayed > 0, "reopening replayed: {self:?}");
        assert!(self.segments_removed > 0, "segments were removed: {self:?}");
        assert!(self.runs_removed > 0, "runs were removed: {self:?}");
        assert_eq!(self.compact_runs, 1, "made compact: {self:?}");
        assert!(self.segments_cleaned > 0, "segments were cleaned: {self:?}");
        assert!(self.trees_updated >= 2, "pages were split and joined: {self:?}");
        assert!(self.segments_recycled > 0, "files were used again: {self:?}");
    }
}
