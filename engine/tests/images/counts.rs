//! What a commit and an activation ask of the disk, counted: design.md, 3.3 and 3.4.

use std::time::Duration;

use dormouse_engine::real::{DiskChoice, block_on};
use dormouse_engine::{Batch, Contents, Host, Limits, ObjectId, Shard, StoreLock, Version};
use futures_util::future::join_all;

use crate::common::{dir, disks};
use crate::record::{Life, Log, Op, Recorded};

/// Those of use; but no close record comes between two commits.
const LIMITS: Limits = Limits { quiet: Duration::from_secs(3600), ..Limits::PRODUCTION };
/// With these a few thousand objects are enough for a checkpoint, and so for a run.
const MAKING: Limits = Limits { checkpoint_bytes: 64 << 10, replay_bytes_max: 128 << 10, ..LIMITS };

fn object(number: u32) -> ObjectId {
    let mut bytes = [0xc0; 32];
    bytes[..4].copy_from_slice(&number.to_le_bytes());
    ObjectId::from_bytes(bytes)
}

/// Opens a store that nobody else has open, and leaves it closed.
async fn with_store(
    env: Recorded,
    limits: Limits,
    visit: impl AsyncFnOnce(&Recorded, &Shard<Recorded>),
) -> Log {
    let lock = StoreLock::open_or_create(&env, &limits, 1).await.expect("a store");
    let (shard, _) = Shard::open(&env, lock.superblock(), 0, limits).await.expect("a shard");
    visit(&env, &shard).await;
    shard.close().await.expect("closed");
    env.recorder().finish()
}

/// Writes each object as one image, all of them in as few batches as fit.
async fn make(shard: &Shard<Recorded>, objects: std::ops::Range<u32>) {
    let commits = objects.map(|number| {
        let batch = Batch::new().put("key", [7; 100]);
        shard.commit(&object(number), &batch, None).expect("a commit")
    });
    for ticket in join_all(commits).await {
        ticket.expect("durable");
    }
}

/// A store of so many objects, closed.
fn store_of(dir: &std::path::Path, disk: DiskChoice, objects: u32) -> Log {
    block_on(dir, disk, async move |env| {
        let env = Recorded::new(env, Log::default(), Life::Whole);
        with_store(env, MAKING, async |_, shard| make(shard, 0..objects).await).await
    })
    .expect("a core")
}

/// The first commit to a segment begins the next one: done, so that what follows is counted alone.
async fn first_commit(env: &Recorded, shard: &Shard<Recorded>) {
    let from = env.recorder().len();
    make(shard, u32::MAX - 1..u32::MAX).await;
    let is_ready = |op: &Op| matches!(op, Op::SyncDir);
    while !env.recorder().begun_since(from).iter().any(is_ready) {
        env.sleep(Duration::from_millis(1)).await;
    }
    env.sleep(Duration::from_millis(10)).await;
}

/// What began while `doing` was going on.
async fn during(env: &Recorded, doing: impl Future<Output = ()>) -> Vec<Op> {
    let from = env.recorder().len();
    doing.await;
    env.recorder().begun_since(from)
}

/// In a store just opened and in one of few objects and of many: one read of one file, of no more
/// blocks than the frame lies in.
#[test]
fn an_activation_is_one_read() {
    for disk in disks() {
        for (objects, with_run) in [(10, false), (5000, true)] {
            let dir = dir();
            let log = store_of(dir.path(), disk, objects);
            let activates = async move |env: &Recorded, shard: &Shard<Recorded>| {
                assert_eq!(shard.stats().runs > 0, with_run);
                // What a look into the directory wants of a run comes in with the first that want it.
                for brings_in in [with_run, false] {
                    for number in (0..objects).step_by(objects as usize / 10) {
                        let id = object(number);
                        let load = async || {
                            let contents = shard.load(&id).await.expect("an object");
                            assert_eq!(contents.map[&b"key"[..]], [7; 100][..]);
                        };
                        let ops = during(env, load()).await;
                        let (frame, windows) = ops.split_last().expect("a read");
                        let is_small = |op: &Op| matches!(op, Op::Read { bytes: 1..=65_536, .. });
                        let windows_max = if brings_in { shard.stats().runs } else { 0 };
                        let is_as_wanted = matches!(frame, Op::Read { bytes: 1..=8192, .. })
                            && windows.iter().all(is_small)
                            && windows.len() <= windows_max;
                        assert!(is_as_wanted, "{disk:?}: {}", brief(&ops));
                    }
                }
            };
            let reopened = block_on(dir.path(), disk, async move |env| {
                with_store(Recorded::new(env, log, Life::Whole), LIMITS, activates).await
            });
            reopened.expect("a core");
        }
    }
}

/// An object that is not in memory, its entry in a run or not, its chain full or not.
#[test]
fn a_commit_to_a_cold_object_reads_nothing() {
    for disk in disks() {
        let dir = dir();
        let log = store_of(dir.path(), disk, 5000);
        let commits = async move |env: &Recorded, shard: &Shard<Recorded>| {
            assert!(shard.stats().runs > 0);
            first_commit(env, shard).await;
            for number in (0..10).flat_map(|_| (0..5000).step_by(1000)) {
                let commit = async {
                    let batch = Batch::new().put("key", "new");
                    let made = shard.commit(&object(number), &batch, None).expect("a commit");
                    made.await.expect("durable");
                };
                let ops = during(env, commit).await;
                let is_one_write = matches!(ops[..], [Op::Write { .. }]);
                assert!(is_one_write, "{disk:?}: {}", brief(&ops));
            }
        };
        let reopened = block_on(dir.path(), disk, async move |env| {
            with_store(Recorded::new(env, log, Life::Whole), LIMITS, commits).await
        });
        reopened.expect("a core");
    }
}

/// New objects, images and deltas, one commit at a time and twenty: one write of whole blocks, and
/// no sync, for the file is opened so that each write is durable.
#[test]
fn a_commit_is_one_write_and_nothing_else() {
    for disk in disks() {
        let dir = dir();
        let ended = block_on(dir.path(), disk, async move |env| {
            let env = Recorded::new(env, Log::default(), Life::Whole);
            with_store(env, LIMITS, async |env, shard| commit_in_all_ways(disk, env, shard).await)
                .await
        });
        ended.expect("a core");
    }
}

async fn commit_in_all_ways(disk: DiskChoice, env: &Recorded, shard: &Shard<Recorded>) {
    first_commit(env, shard).await;
    let mut contents = Contents::default();
    for number in 0..30_u64 {
        let batch = Batch::new().put(format!("key {number}"), [7; 100]);
        contents.apply(&batch, Version(contents.version.0 + 1));
        let resident = (number % 2 == 0).then_some(&contents as &dyn dormouse_engine::Resident);
        let made = shard.commit(&object(1), &batch, resident).expect("a commit");
        let ops = during(env, async { assert!(made.await.is_ok()) }).await;
        assert_is_one_write(disk, &ops, 8192);
    }
    for first in (0..200).step_by(20) {
        let ops = during(env, make(shard, first..first + 20)).await;
        assert_is_one_write(disk, &ops, 16 << 10);
    }
}

fn assert_is_one_write(disk: DiskChoice, ops: &[Op], bytes_max: usize) {
    match ops {
        [Op::Write { bytes, .. }] => assert!(bytes.len() <= bytes_max, "{}", bytes.len()),
        _ => panic!("{disk:?}: {}", brief(ops)),
    }
}

fn brief(ops: &[Op]) -> String {
    let brief = |op: &Op| match op {
        Op::Write { file, offset, bytes } => {
            format!("write of {} bytes at {offset} of file {file}", bytes.len())
        }
        op => format!("{op:?}"),
    };
    ops.iter().map(brief).collect::<Vec<_>>().join(", ")
}

/// An image and its deltas that came one after the other are one read, and four of a nested chain are.
#[test]
fn neighbours_are_read_at_once() {
    for disk in disks() {
        let dir = dir();
        let ended = block_on(dir.path(), disk, async move |env| {
            let env = Recorded::new(env, Log::default(), Life::Whole);
            with_store(env, LIMITS, async |env, shard| {
                first_commit(env, shard).await;
                let id = object(1);
                for number in 1..=16_u32 {
                    let batch = Batch::new().put(number.to_be_bytes(), [7; 100]);
                    shard.commit(&id, &batch, None).expect("a commit").await.expect("durable");
                    let load = async { shard.load(&id).await.expect("read").map.len() };
                    let mut keys = 0;
                    let reads = during(env, async { keys = load.await }).await.len();
                    assert_eq!(keys, number as usize);
                    assert_eq!(reads, number.div_ceil(4) as usize, "{disk:?}: {number} commits");
                }
            })
            .await
        });
        ended.expect("a core");
    }
}

/// An object that is written all the time by someone who never reads it is consolidated all the same:
/// it never takes more reads than some nested chains have frames, those included that come while it
/// is read for that.
#[test]
fn a_busy_object_that_nobody_reads_stays_quick_to_read() {
    for disk in disks() {
        let dir = dir();
        let ended = block_on(dir.path(), disk, async move |env| {
            let env = Recorded::new(env, Log::default(), Life::Whole);
            with_store(env, LIMITS, async |env, shard| {
                let id = object(1);
                for number in 0..500_u32 {
                    let batch = Batch::new().put((number % 7).to_be_bytes(), number.to_be_bytes());
                    shard.commit(&id, &batch, None).expect("a commit").await.expect("durable");
                }
                let load = async { assert_eq!(shard.load(&id).await.expect("read").map.len(), 7) };
                let reads = during(env, load).await.len();
                assert!(reads <= 4 * 50, "{disk:?}: {reads} reads");
            })
            .await
        });
        ended.expect("a core");
    }
}
