//! docs/design.md, 3.4: a full segment's file is opened when something in it is read, and a bounded
//! number stays open. So neither opening a store nor reading all of it takes descriptors as it grows.

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use dormouse_engine::{Batch, Limits, ObjectId, Shard, StoreLock};
use dormouse_sim::{DiskFaults, SimEnv, World};

const STEPS: u64 = 10_000_000;
/// Nothing is cleaned: what the cleaner reads it has open for as long as it moves a group of objects.
const LIMITS: Limits = Limits { space_slack_bytes: 1 << 40, ..Limits::TINY };
/// Superblock, manifest, the runs, the segment that is written, the next one, and full ones: of these,
/// those that were replayed are open from the start. Besides, the run that a merge writes.
const FILES: usize = 2 + LIMITS.runs_max + 2 + LIMITS.open_segments_max + 1;
const OBJECTS: u8 = 200;

fn id(number: u8) -> ObjectId {
    ObjectId::from_bytes([number; 32])
}

async fn open(env: &SimEnv) -> (StoreLock<SimEnv>, Shard<SimEnv>) {
    let lock = StoreLock::open_or_create(env, &LIMITS, 1).await.expect("a store");
    let (shard, _) = Shard::open(env, lock.superblock(), 0, LIMITS).await.expect("a shard");
    (lock, shard)
}

async fn is_there(shard: &Shard<SimEnv>, number: u8) {
    let contents = shard.load(&id(number)).await.expect("readable");
    assert_eq!(contents.map[&b"key"[..]], [number; 500][..]);
}

/// A store of many more segments than may be open, closed.
fn filled(world: &World) {
    let env = world.process().core();
    let made = world.block_on(&env.clone(), STEPS, async move {
        let (_lock, shard) = open(&env).await;
        for round in 0..4 {
            for number in 0..OBJECTS {
                let batch = Batch::new().put("key", [number; 500]).put("round", [round; 400]);
                shard.commit(&id(number), &batch, None).expect("accepted").await.expect("durable");
            }
        }
        let segments = shard.stats().segments;
        shard.close().await.expect("closed");
        assert!(segments > 4 * LIMITS.open_segments_max, "{segments} segments");
    });
    made.expect("done");
}

#[test]
fn neither_opening_nor_reading_all_opens_more_files_as_the_store_grows() {
    let world = World::new(1, DiskFaults::default());
    filled(&world);
    let (env, seen) = (world.process().core(), world.clone());
    let read = world.block_on(&env.clone(), STEPS, async move {
        let (_lock, shard) = open(&env).await;
        let opened = seen.open_files();
        assert!(opened <= FILES, "{opened} files are open after opening");
        for number in 0..OBJECTS {
            is_there(&shard, number).await;
            let open = seen.open_files();
            assert!(open <= FILES, "{open} files are open");
        }
        shard.close().await.expect("closed");
    });
    read.expect("done");
}

/// Whoever gives up while a file is being opened is in nobody's way, and those who wait for the same
/// file share one opening.
#[test]
fn a_reader_that_gives_up_while_it_opens_a_file_leaves_it_to_the_next() {
    let world = World::new(2, DiskFaults::default());
    filled(&world);
    let env = world.process().core();
    let read = world.block_on(&env.clone(), STEPS, async move {
        let (_lock, shard) = open(&env).await;
        for number in 0..OBJECTS {
            {
                let mut given_up = pin!(is_there(&shard, number));
                let mut context = Context::from_waker(Waker::noop());
                assert_eq!(given_up.as_mut().poll(&mut context), Poll::Pending);
            }
            let readers = [number; 3].map(|number| is_there(&shard, number));
            futures_util::future::join_all(readers).await;
        }
        shard.close().await.expect("closed");
    });
    read.expect("done");
}
