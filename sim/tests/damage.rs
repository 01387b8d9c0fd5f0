//! E5 and E6, over every sector: a closed store of which any one sector is damaged opens and
//! answers for each object as before or `Corrupt`, or it refuses to open. It never shows anything
//! else, and what it shows as damaged can be made anew.

use std::collections::BTreeMap;

use dormouse_engine::{Batch, Contents, Kind, Limits, ObjectId, Result, Shard, StoreLock};
use dormouse_sim::{Damage, DiskFaults, SimEnv, World};

const STEPS: u64 = 1_000_000;
const OBJECTS: u8 = 6;
const LIMITS: Limits = Limits::TINY;

fn object(number: u8) -> ObjectId {
    ObjectId::from_bytes([number; 32])
}

type Opened = (StoreLock<SimEnv>, Shard<SimEnv>, Vec<ObjectId>);

async fn open(env: &SimEnv) -> Result<Opened> {
    let lock = StoreLock::open_or_create(env, &LIMITS, 1).await?;
    let (shard, recovery) = Shard::open(env, lock.superblock(), 0, LIMITS).await?;
    Ok((lock, shard, recovery.damaged))
}

/// A store of a few segments: images, chains, nested chains, commits in parts, two epochs.
fn make(world: &World) -> BTreeMap<ObjectId, Contents> {
    for session in 0..2_u8 {
        let process = world.process();
        let env = process.core();
        let made = world.block_on(&env.clone(), STEPS, async move {
            let (_lock, shard, _) = open(&env).await.expect("a store");
            for round in 0..7_u8 {
                for number in 0..OBJECTS {
                    let batch = Batch::new()
                        .put(format!("key-{}", round % 4), vec![round; 20 + usize::from(number)])
                        .put("both", [session, round])
                        .set_alarm(u64::from(round) + 1);
                    let commit = shard.commit(&object(number), &batch, None);
                    commit.expect("accepted").await.expect("durable");
                }
            }
            let large = (0..25_u8).fold(Batch::new(), |batch, key| batch.put([key], [key; 500]));
            shard.commit(&object(0), &large, None).expect("accepted").await.expect("durable");
            shard.close().await.expect("closed");
        });
        made.expect("done");
        process.kill();
    }
    let env = world.process().core();
    let contents = world.block_on(&env.clone(), STEPS, async move {
        let (_lock, shard, _) = open(&env).await.expect("a store");
        let mut all = BTreeMap::new();
        for number in 0..OBJECTS {
            let id = object(number);
            all.insert(id, shard.load(&id).await.expect("readable"));
        }
        shard.close().await.expect("closed");
        all
    });
    contents.expect("done")
}

#[derive(Debug, Default)]
struct Found {
    harmless: usize,
    contained: usize,
    refused: usize,
}

/// Opens the damaged store and holds it to what was in it.
fn look(world: &World, wanted: &BTreeMap<ObjectId, Contents>, what: &str, found: &mut Found) {
    let env = world.process().core();
    let (wanted, text) = (wanted.clone(), what.to_owned());
    let looked = world.block_on(&env.clone(), STEPS, async move {
        let (_lock, shard, named) = match open(&env).await {
            Ok(opened) => opened,
            Err(error) => {
                assert_eq!(error.kind(), Kind::Corrupt, "{text}: {error}");
                return None;
            }
        };
        let mut damaged = 0;
        for (id, wanted) in &wanted {
            match shard.load(id).await {
                Ok(contents) => {
                    assert_eq!(&contents, wanted, "{text}: {id}");
                    assert!(!named.contains(id), "{text}: {id} is named, and can be read");
                }
                Err(error) => {
                    assert_eq!(error.kind(), Kind::Corrupt, "{text}: {error}");
                    assert!(error.message().contains(&id.to_string()), "{text}: {error}");
                    damaged += 1;
                    let delta = Batch::new().put("more", "1");
                    if named.contains(id) {
                        let refused = shard.commit(id, &delta, None).err().map(|e| e.kind());
                        assert_eq!(refused, Some(Kind::Corrupt), "{text}: {id}");
                    }
                    let anew = Batch::new().delete_all().delete_alarm().put("anew", "1");
                    shard.commit(id, &anew, None).expect("taken").await.expect("durable");
                    assert_eq!(shard.load(id).await.expect("readable").map.len(), 1, "{text}");
                }
            }
        }
        shard.close().await.expect("closed");
        Some(damaged)
    });
    assert_eq!(world.take_panics(), [] as [String; 0], "{what}");
    match looked.unwrap_or_else(|| panic!("{what}: not done")) {
        None => found.refused += 1,
        Some(0) => found.harmless += 1,
        Some(_) => found.contained += 1,
    }
}

#[test]
fn no_damaged_sector_passes_for_data() {
    let world = || World::new(7, DiskFaults::default());
    let whole = world();
    let wanted = make(&whole);
    let sectors = whole.used_sectors();
    assert!(sectors.len() > 100, "{} sectors", sectors.len());
    let mut found = Found::default();
    for (index, sector) in sectors.iter().enumerate() {
        let other = sectors[(index * 31 + 7) % sectors.len()].clone();
        let flips = [3, 65, 700, 2049, 4095].map(Damage::Flip);
        for damage in flips.into_iter().chain([Damage::Zero, Damage::Copy(other)]) {
            // The same life again, up to the damage.
            let world = world();
            assert_eq!(make(&world), wanted);
            world.damage(sector, &damage);
            look(&world, &wanted, &format!("{sector:?}: {damage:?}"), &mut found);
        }
    }
    println!("{} sectors: {found:?}", sectors.len());
    assert!(found.harmless > 0 && found.contained > 0 && found.refused > 0, "{found:?}");
}
