//! E4: after a failed write nothing is ever acknowledged again through the same handle, and no
//! other shard notices. A full disk is another matter: it refuses, and goes on once there is room.

use dormouse_engine::{Batch, Host, Kind, Limits, ObjectId, Shard, StoreLock};
use dormouse_sim::{DiskFaults, SimEnv, World};

const STEPS: u64 = 1_000_000;
const LIMITS: Limits = Limits::TINY;

/// An object of this shard of two.
fn object_of(shard: u16) -> ObjectId {
    let ids = (0..=u8::MAX).map(|number| ObjectId::from_bytes([number; 32]));
    ids.into_iter().find(|id| id.shard(2) == shard).expect("one of 256")
}

async fn open(env: &SimEnv) -> (StoreLock<SimEnv>, Shard<SimEnv>, Shard<SimEnv>) {
    let lock = StoreLock::open_or_create(env, &LIMITS, 2).await.expect("a store");
    let superblock = lock.superblock();
    let (first, _) = Shard::open(env, superblock, 0, LIMITS).await.expect("a shard");
    let (second, _) = Shard::open(env, superblock, 1, LIMITS).await.expect("a shard");
    (lock, first, second)
}

#[test]
fn a_failed_write_poisons_its_shard_for_good_and_no_other() {
    for seed in 0..50 {
        let world = World::new(seed, DiskFaults::default());
        let process = world.process();
        let env = process.core();
        let (machine, core) = (world.clone(), env.clone());
        let done = world.block_on(&env, STEPS, async move {
            let (_lock, first, second) = open(&core).await;
            let (id, other) = (object_of(0), object_of(1));
            let put = |value: u8| Batch::new().put("key", [value]);
            let commit = |value| first.commit(&id, &put(value), None).expect("accepted");
            commit(1).await.expect("durable");
            machine.set_faults(DiskFaults { write_error: 1, ..DiskFaults::default() });
            let (failing, behind) = (commit(2), commit(3));
            let failed = failing.await.expect_err("the write fails");
            assert_eq!(failed.kind(), Kind::Unknown, "{failed}");
            assert_eq!(behind.await.expect_err("behind it").kind(), Kind::Unknown);
            // The disk is well again, and says so; what was in flight stays unknown.
            machine.set_faults(DiskFaults::default());
            for refused in [
                first.commit(&id, &put(4), None).err(),
                first.load(&id).await.err(),
                first.close().await.err(),
            ] {
                let refused = refused.expect("poisoned");
                assert_eq!(refused.kind(), Kind::Poisoned, "{refused}");
                assert!(refused.to_string().contains("simulated write error"), "{refused}");
            }
            assert!(first.poisoned().is_some() && second.poisoned().is_none());
            second.commit(&other, &put(5), None).expect("accepted").await.expect("durable");
            second.close().await.expect("closed");
        });
        assert_eq!(world.take_panics(), [] as [String; 0]);
        done.expect("done");
        match seed % 2 {
            0 => process.kill(),
            _ => world.power_cut(),
        }
        let env = world.process().core();
        let core = env.clone();
        let done = world.block_on(&env, STEPS, async move {
            let (_lock, first, second) = open(&core).await;
            let found = first.load(&object_of(0)).await.expect("readable").map;
            let value = found[&b"key"[..]][0];
            assert!((1..=3).contains(&value), "acknowledged was 1, refused 4; found {value}");
            let found = second.load(&object_of(1)).await.expect("readable").map;
            assert_eq!(found[&b"key"[..]], [5][..]);
        });
        done.expect("done");
    }
}

#[test]
fn a_full_disk_refuses_and_goes_on_once_there_is_room() {
    let world = World::new(1, DiskFaults::default());
    let env = world.process().core();
    let (machine, core) = (world.clone(), env.clone());
    let done = world.block_on(&env, STEPS, async move {
        let (_lock, first, _second) = open(&core).await;
        let id = object_of(0);
        machine.set_faults(DiskFaults { capacity: 1, ..DiskFaults::default() });
        let (mut kept, mut refused) = (0, 0);
        for value in 0..200_u8 {
            let batch = Batch::new().put("key", vec![value; 400]);
            match first.commit(&id, &batch, None).expect("accepted").await {
                Ok(_) if refused == 0 => kept = value,
                Ok(_) => panic!("went on without room"),
                Err(error) => {
                    assert_eq!(error.kind(), Kind::NoSpace, "{error}");
                    refused += 1;
                }
            }
        }
        assert!(refused > 0, "two segments hold no 200 commits");
        // The object was to be rewritten, too, and what stands behind that in the queue fails with it.
        core.sleep(std::time::Duration::from_millis(1)).await;
        let read = async || first.load(&id).await.expect("readable").map[&b"key"[..]][0];
        assert_eq!(read().await, kept, "what was refused did not happen");
        machine.set_faults(DiskFaults::default());
        // Room is not looked for again and again.
        core.sleep(std::time::Duration::from_millis(150)).await;
        let batch = Batch::new().put("key", [255]);
        first.commit(&id, &batch, None).expect("accepted").await.expect("there is room");
        assert_eq!(read().await, 255);
        first.close().await.expect("closed");
    });
    assert_eq!(world.take_panics(), [] as [String; 0]);
    done.expect("done");
}

/// A log that stays quiet without room for its close record does not ask for room again and again.
#[test]
fn a_full_disk_leaves_an_idle_shard_idle() {
    let world = World::new(2, DiskFaults::default());
    let env = world.process().core();
    let (machine, core) = (world.clone(), env.clone());
    let filled = world.block_on(&env, STEPS, async move {
        let opened = open(&core).await;
        machine.set_faults(DiskFaults { capacity: 1, ..DiskFaults::default() });
        // A block each, as a close record, for which no room is left then.
        let batch = Batch::new().put("key", [1]);
        while opened.1.commit(&object_of(0), &batch, None).expect("accepted").await.is_ok() {}
        opened
    });
    let opened = filled.expect("the disk is full");
    let idle = Host::sleep(&env, std::time::Duration::from_secs(300));
    // Five minutes: some forty tries of a few steps each.
    assert!(world.block_on(&env, 4000, idle).is_some(), "an idle shard keeps its core busy");
    drop(opened);
}
