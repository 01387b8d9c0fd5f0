//! E7, and docs/design.md 3.2: crash after crash doesn't eat the disk. A store that dies while it
//! opens or straight after, by SIGKILL and by power in turns, stays within the bounds that
//! docs/recovery.md states.

use dormouse_engine::{Batch, Limits, ObjectId, Shard, StoreLock};
use dormouse_sim::{DiskFaults, SimEnv, World};

const STEPS: u64 = 1_000_000;
const LIMITS: Limits = Limits::TINY;
/// Superblock and manifest; the segment with the one commit; those that were begun since the
/// checkpoint in each slot, six: opening makes one when five have to be replayed, and has opened the
/// sixth by then; the run of each slot, and one that is being made; four of the reserve, which a segment that goes
/// fills up.
const FILES: usize = 2 + 1 + 2 * 6 + 3 + 4;

fn id() -> ObjectId {
    ObjectId::from_bytes([1; 32])
}

async fn open(env: &SimEnv) -> (StoreLock<SimEnv>, Shard<SimEnv>) {
    let lock = StoreLock::open_or_create(env, &LIMITS, 1).await.expect("a store");
    let (shard, _) = Shard::open(env, lock.superblock(), 0, LIMITS).await.expect("a shard");
    (lock, shard)
}

/// Opens the store and commits `value`.
async fn commit(env: SimEnv, value: u32) {
    let (_lock, shard) = open(&env).await;
    let batch = Batch::new().put("crash", value.to_le_bytes());
    shard.commit(&id(), &batch, None).expect("accepted").await.expect("durable");
}

fn value(world: &World) -> u32 {
    let env = world.process().core();
    let value = world.block_on(&env.clone(), STEPS, async move {
        let (_lock, shard) = open(&env).await;
        let contents = shard.load(&id()).await.expect("readable");
        shard.close().await.expect("closed");
        u32::from_le_bytes(contents.map[&b"crash"[..]][..].try_into().expect("four bytes"))
    });
    value.expect("done")
}

/// A life that ends after so many steps, or when it is done; then every second time the power goes
/// instead of the process. Gives the files and bytes that are there.
fn crash(
    world: &World,
    number: u32,
    life: impl Future<Output = ()> + 'static,
    env: &SimEnv,
    steps: u64,
) -> (usize, usize) {
    let _done = world.block_on(env, steps, life);
    assert_eq!(world.take_panics(), [] as [String; 0]);
    let files = world.save();
    if number % 2 == 1 {
        world.power_cut();
    }
    (files.len(), files.values().map(Vec::len).sum())
}

#[test]
fn a_thousand_crashes_at_opening_keep_the_store_small() {
    let world = World::new(3, DiskFaults::default());
    let env = world.process().core();
    world.block_on(&env.clone(), STEPS, commit(env, 7)).expect("durable");
    world.power_cut();
    let (mut most, mut opened) = ((0, 0), 0);
    for number in 0..1000 {
        let process = world.process();
        let env = process.core();
        // Some lives end while they open, at any step; half of them are open when they end.
        let steps = if number % 4 < 2 { STEPS } else { u64::from(number) * 13 % 250 };
        let core = env.clone();
        let life = async move { drop(open(&core).await) };
        let (files, bytes) = crash(&world, number, life, &env, steps);
        process.kill();
        opened += u32::from(steps == STEPS);
        most = (files.max(most.0), bytes.max(most.1));
    }
    println!("{opened} openings ended, at most {most:?} files and bytes");
    assert!(most.0 <= FILES, "{} files", most.0);
    assert!(most.1 <= FILES * LIMITS.segment_bytes_max as usize, "{} bytes", most.1);
    assert_eq!(value(&world), 7);
}

/// Nothing is cleaned yet: a life that commits anything keeps the segment that it wrote.
#[test]
fn a_crash_behind_a_commit_costs_one_segment() {
    let world = World::new(4, DiskFaults::default());
    for number in 0..250 {
        let process = world.process();
        let env = process.core();
        let life = commit(env.clone(), number);
        let (files, bytes) = crash(&world, number, life, &env, STEPS);
        process.kill();
        let bound = FILES + number as usize;
        assert!(files <= bound, "{files} files after {number} crashes");
        assert!(bytes <= bound * LIMITS.segment_bytes_max as usize, "{bytes} bytes");
    }
    assert_eq!(value(&world), 249);
}
