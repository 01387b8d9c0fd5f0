//! E5 and E6, over every byte: a closed store of which one place is damaged opens and answers for
//! each object as before or `Corrupt`, or it refuses to open. It never shows anything else; a scrub
//! names what can't be read; and a repair leaves a store in which all can be read, each object at a
//! state that it once had, and those that were not hit as they were.
//!
//! | damage | where |
//! |---|---|
//! | a bit is flipped | in every byte of every file; which of the eight goes with its place |
//! | the file ends | at every block |
//! | a block is zero | every block |
//! | a block is another one | of the same file, and of another file; every block |
//! | a block is what it was before | every block that an earlier moment shows otherwise |

mod story;

use std::collections::BTreeSet;

use dormouse_engine::repair::Repair;
use dormouse_engine::{Contents, Kind, ObjectId, Opening, Recovery, Result, Shard, StoreLock};
use dormouse_sim::{DiskFaults, SimEnv, World};
use story::{Files, LIMITS, STEPS, Story};

const BLOCK: usize = 512;
/// Flips after which the store is opened again, and repaired: once in so many.
const REPAIR_EVERY: usize = 61;

/// What one place of the disk became.
#[derive(Clone, Debug)]
enum Damage {
    Flip(usize),
    Cut(usize),
    Zero(usize),
    Copy(usize, String, usize),
    Earlier(usize, usize),
}

fn block(files: &Files, file: &str, at: usize) -> Vec<u8> {
    let bytes = &files[file];
    bytes[at * BLOCK..bytes.len().min((at + 1) * BLOCK)].to_vec()
}

impl Damage {
    /// The files with this damage to one of them; `None` if nothing is another than before.
    fn apply(&self, story: &Story, file: &str) -> Option<Files> {
        let mut files = story.files.clone();
        let bytes = files.get_mut(file).expect("a file of the store");
        let mut put = |at: usize, new: &[u8]| {
            let old = &mut bytes[at * BLOCK..][..new.len()];
            old.copy_from_slice(new);
        };
        match self {
            Self::Flip(at) => bytes[*at] ^= 1 << (at % 8),
            Self::Cut(at) => bytes.truncate(at * BLOCK),
            Self::Zero(at) => put(*at, &[0; BLOCK]),
            Self::Copy(at, other, from) => put(*at, &block(&story.files, other, *from)),
            Self::Earlier(at, moment) => put(*at, &block(&story.earlier[*moment], file, *at)),
        }
        (files != story.files).then_some(files)
    }

    /// Every damage to a file that is looked at.
    fn all(story: &Story, file: &str) -> Vec<Self> {
        let (bytes, names) = (story.files[file].len(), story.files.keys().collect::<Vec<_>>());
        let flips = (0..bytes).map(Self::Flip);
        let blocks = (0..bytes / BLOCK).flat_map(|at| {
            let other = names[(at * 31 + 7) % names.len()];
            let (here, there) = (bytes / BLOCK, story.files[other].len() / BLOCK);
            let earlier = (0..story.earlier.len())
                .filter(|moment| {
                    story.earlier[*moment].get(file).is_some_and(|it| it.len() == bytes)
                })
                .map(move |moment| Self::Earlier(at, moment));
            let copy = |name: &str, count| Self::Copy(at, name.to_owned(), (at * 17 + 1) % count);
            [Self::Cut(at), Self::Zero(at), copy(file, here), copy(other, there)]
                .into_iter()
                .chain(earlier)
        });
        flips.chain(blocks).collect()
    }
}

/// What became of all cases.
#[derive(Debug, Default)]
struct Found {
    harmless: usize,
    contained: usize,
    refused: usize,
    repaired: usize,
    brought_back: usize,
    dropped: usize,
}

/// The store opened, with what its objects answer.
struct Looked {
    whole: BTreeSet<ObjectId>,
    clean: bool,
}

async fn open(
    env: &SimEnv,
    opening: Opening,
) -> Result<(StoreLock<SimEnv>, Shard<SimEnv>, Recovery)> {
    let lock = match opening.read_only {
        true => StoreLock::open_read_only(env, &LIMITS).await?,
        false => StoreLock::open_or_create(env, &LIMITS, 1).await?,
    };
    let (shard, recovery) = Shard::open_as(env, lock.superblock(), 0, LIMITS, opening).await?;
    Ok((lock, shard, recovery))
}

/// Runs `task` on a machine that has these files.
fn on<T: 'static>(world: &World, what: &str, task: impl AsyncFnOnce(SimEnv) -> T + 'static) -> T {
    let process = world.process();
    let env = process.core();
    let done = world.block_on(&env.clone(), STEPS, task(env));
    assert_eq!(world.take_panics(), [] as [String; 0], "{what}");
    process.kill();
    done.unwrap_or_else(|| panic!("{what}: not done"))
}

/// Opens the damaged store and holds it to what was in it; `None` if it refuses.
fn look(world: &World, story: &Story, what: &str) -> Option<Looked> {
    let (objects, text) = (story.objects.clone(), what.to_owned());
    on(world, what, async move |env| {
        let (_lock, shard, recovery) = match open(&env, Opening::default()).await {
            Ok(opened) => opened,
            Err(error) => {
                assert_eq!(error.kind(), Kind::Corrupt, "{text}: {error}");
                return None;
            }
        };
        let mut unreadable = Vec::new();
        for (id, wanted) in &objects {
            match shard.load(id).await {
                Ok(contents) => {
                    let (found, version) = (contents.version, wanted.version);
                    let same = &contents == wanted;
                    assert!(same, "{text}: {id} is at {found}, not as it was at {version}");
                }
                Err(error) => {
                    assert_eq!(error.kind(), Kind::Corrupt, "{text}: {error}");
                    assert!(error.message().contains(&id.to_string()), "{text}: {error}");
                    unreadable.push(*id);
                }
            }
        }
        let named = recovery.damaged.iter().all(|id| unreadable.contains(id));
        assert!(named, "{text}: {:?} are named, and can be read", recovery.damaged);
        let scrub = shard.scrub(|_| {}).await.expect("read");
        let found: Vec<_> = scrub.unreadable.iter().map(|(id, _)| *id).collect();
        let hidden = !scrub.directory.is_empty();
        assert!(unreadable.iter().all(|id| found.contains(id) || hidden), "{text}: {scrub:?}");
        let absent = |id: &&ObjectId| !objects.contains_key(id);
        assert_eq!(found.iter().find(absent), None, "{text}: never there, or deleted");
        assert!(found.iter().all(|id| unreadable.contains(id)), "{text}: {scrub:?}");
        shard.close().await.expect("closed");
        let whole = objects.keys().filter(|id| !unreadable.contains(id)).copied().collect();
        Some(Looked { whole, clean: scrub.is_clean() })
    })
}

/// Repairs the damaged store, a dry run first; whatever it says it does.
fn repair(files: &Files, what: &str) -> (World, Repair) {
    let world = World::new(9, DiskFaults::default());
    world.bring_back(files);
    let text = what.to_owned();
    let planned = on(&world, what, async move |env| {
        let opening = Opening { read_only: true, accept_losses: true };
        let (_lock, shard, _) = open(&env, opening).await.unwrap_or_else(|e| panic!("{text}: {e}"));
        let planned = shard.repair(false).await.expect("a plan");
        shard.close().await.expect("closed");
        planned
    });
    assert_eq!(&world.save(), files, "{what}: a dry run changes nothing");
    let text = what.to_owned();
    let done = on(&world, what, async move |env| {
        let opening = Opening { read_only: false, accept_losses: true };
        let (_lock, shard, _) = open(&env, opening).await.unwrap_or_else(|e| panic!("{text}: {e}"));
        let done = shard.repair(true).await.unwrap_or_else(|e| panic!("{text}: {e}"));
        shard.close().await.expect("closed");
        done
    });
    assert_eq!(planned.objects, done.objects, "{what}");
    (world, done)
}

/// What every object holds after a repair.
fn check_repaired(world: &World, story: &Story, whole: &BTreeSet<ObjectId>, what: &str) {
    let (history, objects) = (story.history.clone(), story.objects.clone());
    let (text, whole) = (what.to_owned(), whole.clone());
    on(world, what, async move |env| {
        let opened = open(&env, Opening::default()).await;
        let (_lock, shard, recovery) = opened.unwrap_or_else(|e| panic!("{text}: repaired: {e}"));
        assert_eq!((recovery.damaged, recovery.unknown), (vec![], vec![]), "{text}");
        for (id, history) in &history {
            let found = shard.load(id).await.unwrap_or_else(|e| panic!("{text}: repaired: {e}"));
            let same = |once: &&Contents| (&once.map, once.alarm) == (&found.map, found.alarm);
            let once = history.iter().rev().find(same);
            assert!(once.is_some(), "{text}: {id} is what it never was");
            if whole.contains(id) {
                let wanted = &objects[id];
                let same = (&found.map, found.alarm) == (&wanted.map, wanted.alarm);
                assert!(same, "{text}: {id} was whole, and is another one");
            }
        }
        let scrub = shard.scrub(|_| {}).await.expect("read");
        assert!(scrub.is_clean(), "{text}: {scrub:?}");
        let count = shard.stats().objects;
        assert_eq!(count, scrub.objects, "{text}: objects that are counted");
        shard.close().await.expect("closed");
    });
}

fn try_damage(story: &Story, file: &str, damage: &Damage, number: usize, found: &mut Found) {
    let Some(files) = damage.apply(story, file) else { return };
    let what = format!("{file}: {damage:?}");
    let world = World::new(8, DiskFaults::default());
    world.bring_back(&files);
    let looked = look(&world, story, &what);
    let clean = looked.as_ref().is_some_and(|looked| looked.clean);
    match &looked {
        None => found.refused += 1,
        Some(_) if clean => found.harmless += 1,
        Some(_) => found.contained += 1,
    }
    let often = !matches!(damage, Damage::Flip(_)) || number.is_multiple_of(REPAIR_EVERY);
    if often {
        // What opening writes must not change what the next one finds (E7).
        let again = look(&world, story, &what);
        assert_eq!(again.map(|it| it.whole), looked.as_ref().map(|it| it.whole.clone()), "{what}");
    }
    if clean || !often || file == "superblock" {
        return;
    }
    let (world, repair) = repair(&files, &what);
    let nothing = BTreeSet::new();
    check_repaired(&world, story, looked.as_ref().map_or(&nothing, |it| &it.whole), &what);
    found.repaired += 1;
    for (_, fate) in &repair.objects {
        match fate {
            dormouse_engine::repair::Fate::Dropped => found.dropped += 1,
            _ => found.brought_back += 1,
        }
    }
}

/// Tries every damage to the files that are meant.
fn try_all(is_meant: impl Fn(&str) -> bool) -> Found {
    let story = story::tell();
    let bytes: usize = story.files.values().map(Vec::len).sum();
    assert!(bytes < 256 << 10, "{bytes} bytes");
    let mut found = Found::default();
    for file in story.files.keys().filter(|file| is_meant(file)) {
        let cases = Damage::all(&story, file);
        for (number, damage) in cases.iter().enumerate() {
            try_damage(&story, file, damage, number, &mut found);
        }
        println!(
            "{file}: {} bytes, {} cases; so far {found:?}",
            story.files[file].len(),
            cases.len()
        );
    }
    assert!(found.harmless > 0 && found.contained > 0 && found.refused > 0, "{found:?}");
    found
}

fn is_segment(file: &str) -> bool {
    file.contains("segment")
}

#[test]
fn no_damage_to_a_segment_passes_for_data_and_what_is_lost_is_named() {
    let found = try_all(is_segment);
    assert!(found.repaired > 0 && found.brought_back > 0 && found.dropped > 0, "{found:?}");
}

#[test]
fn no_damage_to_another_file_passes_for_data_and_what_is_lost_is_named() {
    for kind in ["superblock", "manifest", "run"] {
        assert!(story::tell().files.keys().any(|name| name.contains(kind)), "no {kind}");
    }
    let found = try_all(|file| !is_segment(file));
    assert!(found.repaired > 0, "{found:?}");
}
