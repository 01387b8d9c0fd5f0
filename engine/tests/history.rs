//! `Shard::history`: an object's commits as the log holds them.

#![expect(clippy::disallowed_methods, reason = "damages a file of a closed store")]

mod common;

use std::path::Path;
use std::time::Duration;

use common::dir;
use dormouse_engine::history::{Change, Commit, Form};
use dormouse_engine::real::{DiskChoice, RealEnv, block_on};
use dormouse_engine::{Batch, Contents, Host, Limits, ObjectId, Opening, Result, Shard, StoreLock};

const ROOM: ObjectId = ObjectId::from_bytes([7; 32]);
const OTHER: ObjectId = ObjectId::from_bytes([8; 32]);
/// Nothing vouches for the log's end unless a test closes it, and no commit goes.
const LIMITS: Limits = Limits {
    quiet: Duration::from_secs(3600),
    retention: Duration::from_secs(3600),
    ..Limits::TINY
};
const WRITING: Opening = Opening { read_only: false, accept_losses: false };
const READING: Opening = Opening { read_only: true, accept_losses: false };

/// Opens the one shard of a store and does something with it, without closing it.
fn with<T: Send + 'static, F: Future<Output = Result<T>> + 'static>(
    dir: &Path,
    opening: Opening,
    work: impl FnOnce(RealEnv, Shard<RealEnv>) -> F + Send + 'static,
) -> T {
    let main = async move |env: RealEnv| {
        let lock = StoreLock::open_or_create(&env, &LIMITS, 1).await?;
        let opened = Shard::open_as(&env, lock.superblock(), 0, LIMITS, opening).await?;
        work(env, opened.0).await
    };
    block_on(dir, DiskChoice::Auto, main).expect("a core").expect("no error")
}

fn history(dir: &Path) -> Vec<Commit> {
    with(dir, READING, async |_, shard| shard.history(&ROOM).await)
}

fn put(key: &str, value_bytes: usize) -> Change {
    Change::Put { key: key.to_owned().into(), value_bytes }
}

#[test]
fn commits_are_told_newest_first_each_with_what_it_did() {
    let dir = dir();
    let versions = with(dir.path(), WRITING, async |_, shard| {
        let large = (0..40).fold(Batch::new(), |large, n| large.put(format!("{n:02}"), [1; 500]));
        let mut versions = Vec::new();
        for batch in [
            Batch::new().put("topic", "mice").named("rooms", "lobby"),
            Batch::new().put("a", "1").delete("topic").set_alarm(5),
            large,
            Batch::new().delete_all().delete_alarm(),
            Batch::new().put("again", ""),
        ] {
            shard.commit(&OTHER, &batch, None)?.await?;
            versions.push(shard.commit(&ROOM, &batch, None)?.await?);
        }
        shard.close().await?;
        Ok(versions)
    });
    let mut history = history(dir.path());
    // A large object may be written anew at any time.
    history.retain(|commit| commit.form != Form::Rewrite);
    let told: Vec<_> = history.iter().rev().map(|commit| commit.version).collect();
    assert_eq!(told, versions);
    let [again, gone, large, delta, image] = &history[..] else { panic!("{history:?}") };
    assert_eq!((image.form, &image.changes[..]), (Form::Image, &[put("topic", 4)][..]));
    assert_eq!(image.origin.name.as_deref(), Some("lobby"));
    let changes = [put("a", 1), Change::Delete { key: "topic".into() }];
    assert_eq!((delta.form, &delta.changes[..], delta.alarm), (Form::Delta, &changes[..], Some(5)));
    // One commit, in parts (E1).
    let keys: Vec<_> = (0..40).map(|n| put(&format!("{n:02}"), 500)).collect();
    assert!(large.frames.len() > 1 && large.log_bytes() > 20_000, "{:?}", large.frames);
    assert_eq!((&large.changes, large.alarm), (&keys, Some(5)));
    assert!(gone.deletes() && !again.deletes());
    assert_eq!(again.changes, [put("again", 0)]);
    assert!(history.iter().all(|commit| commit.whole && commit.written_ms > 1_700_000_000_000));
}

#[test]
fn a_rewrite_is_told_from_a_commit() {
    let dir = dir();
    with(dir.path(), WRITING, async |env, shard| {
        // Nobody keeps the object in memory, so that its chains nest until it is written anew.
        for n in 0..100_u8 {
            shard.commit(&ROOM, &Batch::new().put([n], [n]), None)?.await?;
            // It is written anew unless it changes meanwhile.
            if n >= 90 {
                env.sleep(Duration::from_millis(20)).await;
            }
        }
        shard.close().await
    });
    let history = history(dir.path());
    let commits = history.iter().filter(|commit| commit.form != Form::Rewrite).count();
    assert_eq!(commits, 100);
    let rewrites: Vec<_> =
        (0..history.len()).filter(|at| history[*at].form == Form::Rewrite).collect();
    assert!(!rewrites.is_empty());
    for at in rewrites {
        let (rewrite, older) = (&history[at], &history[at + 1..]);
        assert_eq!(rewrite.version, older[0].version, "right after what it rewrites");
        let commits = older.iter().filter(|commit| commit.form != Form::Rewrite).count();
        assert_eq!(rewrite.changes.len(), commits, "all keys so far");
    }
}

/// A batch that recovery dropped was never acknowledged: its frames are whole, and no commits (3.2).
#[test]
fn what_was_dropped_is_no_commit() {
    let dir = dir();
    with(dir.path(), WRITING, async |_, shard| {
        shard.commit(&ROOM, &Batch::new().put("k", "first"), None)?.await?;
        shard.commit(&ROOM, &Batch::new().put("k", "dropped"), None)?.await?;
        Ok(())
    });
    let segments =
        std::fs::read_dir(dir.path()).expect("a store").map(|entry| entry.unwrap().path());
    let segments = segments.filter(|path| path.to_string_lossy().contains("-segment-"));
    let find = |path: std::path::PathBuf| {
        let bytes = std::fs::read(&path).expect("a segment");
        let at = bytes.windows(7).position(|window| window == b"dropped")?;
        Some((path, bytes, at))
    };
    let (path, mut bytes, at) = segments.into_iter().find_map(find).expect("it is there");
    // The batch's padding, before its table and trailer: the frame itself stays whole.
    let block = dir_block(dir.path());
    bytes[at - at % block + block - 81] ^= 1;
    std::fs::write(path, bytes).expect("written");
    let told = |history: &[Commit]| -> Vec<u64> {
        history.iter().map(|commit| commit.version.0).collect()
    };
    assert_eq!(told(&history(dir.path())), [1]);
    let contents: Contents = with(dir.path(), WRITING, async |_, shard| {
        shard.commit(&ROOM, &Batch::new().put("k", "second").put("l", ""), None)?.await?;
        let contents = shard.load(&ROOM).await?;
        shard.close().await?;
        Ok(contents)
    });
    assert_eq!(contents.map[&b"k"[..]], "second");
    let history = history(dir.path());
    assert_eq!(told(&history), [contents.version.0, 1]);
    assert_eq!(history[0].changes, [put("k", 6), put("l", 0)]);
}

/// The block that this disk made of the store's.
fn dir_block(dir: &Path) -> usize {
    let main = async |env: RealEnv| {
        let lock = StoreLock::open_read_only(&env, &LIMITS).await?;
        Ok::<_, dormouse_engine::Error>(lock.superblock().block_bytes)
    };
    block_on(dir, DiskChoice::Auto, main).expect("a core").expect("a store")
}
