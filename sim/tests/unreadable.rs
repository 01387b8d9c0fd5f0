//! E5: what can't be read costs the objects that need it, and no other. Frames that lie near one
//! another are read at once, with what lies between them: a sector there is needed by nobody.

use dormouse_engine::{Batch, Kind, Limits, ObjectId, Shard, StoreLock};
use dormouse_sim::{Damage, DiskFaults, SimEnv, World};

const STEPS: u64 = 1_000_000;
const LIMITS: Limits = Limits::TINY;
const SECTOR_BYTES: usize = 512;

/// Whose frames lie first and last, and whose lies between them.
const OUTER: ObjectId = ObjectId::from_bytes([1; 32]);
const INNER: ObjectId = ObjectId::from_bytes([2; 32]);

async fn open(env: &SimEnv) -> (StoreLock<SimEnv>, Shard<SimEnv>) {
    let lock = StoreLock::open_or_create(env, &LIMITS, 1).await.expect("a store");
    let (shard, _) = Shard::open(env, lock.superblock(), 0, LIMITS).await.expect("a shard");
    (lock, shard)
}

async fn put(shard: &Shard<SimEnv>, id: &ObjectId, key: &'static str, byte: u8) {
    let batch = Batch::new().put(key, [byte; SECTOR_BYTES]);
    shard.commit(id, &batch, None).expect("accepted").await.expect("durable");
}

/// The first sector, in the only segment, that is full of this byte.
fn sector_of(world: &World, byte: u8) -> (String, usize) {
    let files = world.save();
    let segments = files.iter().filter(|(name, _)| name.contains("segment"));
    let sectors = segments.flat_map(|(name, bytes)| {
        bytes.chunks(SECTOR_BYTES).enumerate().map(move |(at, sector)| (name, at, sector))
    });
    let full = |sector: &[u8]| sector.iter().filter(|it| **it == byte).count() > SECTOR_BYTES / 2;
    let found = sectors.into_iter().find(|(_, _, sector)| full(sector));
    found.map(|(name, at, _)| (name.clone(), at)).expect("the value is on the disk")
}

#[test]
fn a_sector_between_two_frames_of_an_object_is_not_needed_by_it() {
    let world = World::new(1, DiskFaults::default());
    let env = world.process().core();
    let (machine, core) = (world.clone(), env.clone());
    let done = world.block_on(&env, STEPS, async move {
        let (_lock, shard) = open(&core).await;
        put(&shard, &OUTER, "first", 0xa1).await;
        put(&shard, &INNER, "key", 0xb2).await;
        put(&shard, &OUTER, "last", 0xa3).await;

        machine.damage(&sector_of(&machine, 0xb2), &Damage::Unreadable);
        let outer = shard.load(&OUTER).await.expect("nothing that it needs is lost");
        assert_eq!(outer.map[&b"first"[..]], [0xa1; SECTOR_BYTES][..]);
        assert_eq!(outer.map[&b"last"[..]], [0xa3; SECTOR_BYTES][..]);
        let inner = shard.load(&INNER).await.expect_err("its frame can't be read");
        assert_eq!(inner.kind(), Kind::Corrupt);
        assert!(inner.to_string().contains(&INNER.to_string()), "{inner}");

        machine.damage(&sector_of(&machine, 0xa3), &Damage::Unreadable);
        let outer = shard.load(&OUTER).await.expect_err("its last frame can't be read");
        assert_eq!(outer.kind(), Kind::Corrupt);
    });
    done.expect("done");
}
