//! The cleaner on a real disk: space levels off, history stays within its window, damage stays where it is.

#![expect(clippy::disallowed_methods, reason = "damages a file of a closed store")]

mod common;

use std::path::Path;
use std::pin::pin;
use std::time::Duration;

use common::dir;
use dormouse_engine::format::frame::Address;
use dormouse_engine::real::{DiskChoice, RealEnv, block_on};
use dormouse_engine::{
    Batch, Env, Error, Host, Kind, Limits, ObjectId, Result, Shard, ShardStats, StoreLock,
};
use futures_util::future::{FutureExt, select, try_join};

const OBJECTS: u8 = 20;
const ROUNDS: u16 = 150;

fn id(number: u8) -> ObjectId {
    ObjectId::from_bytes([number; 32])
}

/// Opens the one shard of a store, does something with it, and closes it.
fn with<T: Send + 'static, F: Future<Output = Result<T>> + 'static>(
    dir: &Path,
    limits: Limits,
    work: impl FnOnce(RealEnv, Shard<RealEnv>) -> F + Send + 'static,
) -> T {
    let main = async move |env: RealEnv| {
        let lock = StoreLock::open_or_create(&env, &limits, 1).await?;
        let (shard, _) = Shard::open(&env, lock.superblock(), 0, limits).await?;
        let result = work(env, shard.clone()).await?;
        shard.close().await?;
        Ok::<_, Error>(result)
    };
    block_on(dir, DiskChoice::Auto, main).expect("a core").expect("no error")
}

/// Commits to all objects but the first, over and over; to some only now and then, so that segments do not
/// empty by themselves.
async fn overwrite(shard: &Shard<RealEnv>, rounds: u16) -> Result<()> {
    for round in 0..rounds {
        let mut tickets = Vec::new();
        let seldom = round % 10 == 0 || round + 1 == rounds;
        for number in 1..if seldom { OBJECTS } else { OBJECTS - 6 } {
            let value = [u8::try_from(round % 256).expect("a byte"); 300];
            let batch = Batch::new().put([b'k', number % 3], value);
            tickets.push(shard.commit(&id(number), &batch, None)?);
        }
        for ticket in tickets {
            ticket.await?;
        }
    }
    Ok(())
}

/// Waits until the cleaner has done what it can.
async fn settled<E: Env>(env: &E, shard: &Shard<E>) -> ShardStats {
    let mut before = shard.stats();
    loop {
        env.sleep(Duration::from_millis(300)).await;
        let now = shard.stats();
        if now == before && !now.cleaning {
            return now;
        }
        before = now;
    }
}

#[test]
fn space_levels_off_under_overwrites() {
    let dir = dir();
    let first = with(dir.path(), Limits::TINY, async |env, shard| {
        overwrite(&shard, ROUNDS).await?;
        Ok(settled(&env, &shard).await)
    });
    let second = with(dir.path(), Limits::TINY, async |env, shard| {
        overwrite(&shard, 4 * ROUNDS).await?;
        let stats = settled(&env, &shard).await;
        let scrub = shard.scrub(|_| {}).await?;
        assert!(scrub.is_clean(), "{scrub:?}");
        for number in 1..OBJECTS {
            let contents = shard.load(&id(number)).await?;
            let last = u8::try_from((4 * ROUNDS - 1) % 256).expect("a byte");
            assert_eq!(contents.map[&[b'k', number % 3][..]], [last; 300][..]);
        }
        Ok(stats)
    });
    for stats in [&first, &second] {
        assert!(stats.segments_cleaned > 0 && stats.cleaned_bytes > 0, "{stats:?}");
        assert!(stats.segments_freed > 0 && stats.segments_recycled > 0, "{stats:?}");
        let slack = Limits::TINY.space_slack_bytes + u64::from(Limits::TINY.segment_bytes_max);
        assert!(stats.full_segment_bytes <= 2 * stats.live_bytes + slack, "{stats:?}");
    }
    assert!(second.log_bytes > 3 * first.log_bytes, "{second:?}");
    // Those that are ready and those that are to be used again may come and go.
    let ready = 3 * u64::from(Limits::TINY.segment_bytes_max);
    let most = first.segment_bytes.max(2 * second.live_bytes) + ready;
    assert!(second.segment_bytes <= most, "{first:?}, then {second:?}");
}

#[test]
fn a_compact_shard_holds_one_image_of_each_object_and_no_more_than_it_may() {
    let dir = dir();
    let (before, after) = with(dir.path(), Limits::TINY, async |_, shard| {
        overwrite(&shard, 40).await?;
        let before = shard.stats();
        // Commits go on meanwhile, and another one that wants the same.
        let compact = try_join(shard.compact(), shard.compact());
        try_join(compact, overwrite(&shard, 3)).await?;
        shard.compact().await?;
        Ok((before, shard.stats()))
    });
    // A value of 300 bytes, and what a frame says besides.
    let image = 600;
    // Deltas that nobody has put together yet.
    assert!(before.live_bytes > after.live_bytes * 5 / 4, "{before:?}, then {after:?}");
    assert!(after.live_bytes < u64::from(OBJECTS) * image, "{after:?}");
    let most = after.live_bytes * 11 / 10 + u64::from(Limits::TINY.segment_bytes_min);
    assert!(after.full_segment_bytes <= most, "{after:?}");
    with(dir.path(), Limits::TINY, async |_, shard| {
        let scrub = shard.scrub(|_| {}).await?;
        assert!(scrub.is_clean(), "{scrub:?}");
        for number in 1..OBJECTS {
            let contents = shard.load(&id(number)).await?;
            assert_eq!(contents.map[&[b'k', number % 3][..]], [2; 300][..]);
        }
        Ok(())
    });
}

#[test]
fn a_compaction_that_nobody_waits_for_goes_on_and_is_in_nobodys_way() {
    let dir = dir();
    with(dir.path(), Limits::TINY, async |env, shard| {
        overwrite(&shard, ROUNDS).await?;
        // Given up at some moment: before anything happened, and ever later.
        for wait in 0..20 {
            let compact = pin!(shard.compact());
            select(compact, pin!(env.sleep(Duration::from_micros(100 * wait)))).await;
            overwrite(&shard, 10).await?;
        }
        shard.compact().await
    });
    with(dir.path(), Limits::TINY, async |_, shard| {
        // Closed in the midst of one.
        assert!(shard.compact().now_or_never().is_none());
        Ok(())
    });
}

#[test]
fn beside_commits_nothing_moves_while_there_is_room() {
    // So little is written that there is room, and there is no lull.
    let limits =
        Limits { lull: Duration::from_secs(3600), busy_space_slack_bytes: 1 << 30, ..Limits::TINY };
    let dir = dir();
    with(dir.path(), limits, async |env, shard| {
        overwrite(&shard, ROUNDS).await?;
        let busy = settled(&env, &shard).await;
        assert_eq!(busy.cleaned_bytes, 0, "{busy:?}");
        assert!(
            busy.full_segment_bytes > 2 * busy.live_bytes,
            "there is something to clean: {busy:?}"
        );
        shard.compact().await?;
        let compact = shard.stats();
        assert!(compact.segment_bytes < busy.segment_bytes / 2, "{busy:?}, then {compact:?}");
        Ok(())
    });
    // Without room it works beside them, or a disk would be full of what nobody needs.
    let limits = Limits { lull: Duration::from_secs(3600), ..Limits::TINY };
    with(dir.path(), limits, async move |env, shard| {
        overwrite(&shard, ROUNDS).await?;
        let stats = settled(&env, &shard).await;
        assert!(stats.segments_cleaned > 0, "{stats:?}");
        let most =
            stats.live_bytes * limits.busy_space_percent / 100 + limits.busy_space_slack_bytes;
        assert!(
            stats.full_segment_bytes <= most + u64::from(limits.segment_bytes_max),
            "{stats:?}"
        );
        Ok(())
    });
}

#[test]
fn history_stays_for_as_long_as_is_asked() {
    for (retention, all) in [(Duration::from_secs(3600), true), (Duration::ZERO, false)] {
        let limits = Limits { retention, ..Limits::TINY };
        let dir = dir();
        let commits = with(dir.path(), limits, async move |env, shard| {
            overwrite(&shard, ROUNDS).await?;
            let stats = settled(&env, &shard).await;
            // The first one holds no commit: opening begins another.
            assert_eq!(stats.segments_freed <= 1, all, "{stats:?}");
            assert_eq!(stats.segments_cleaned == 0, all, "{stats:?}");
            shard.history(&id(1)).await
        });
        let commits =
            commits.iter().filter(|it| it.form != dormouse_engine::history::Form::Rewrite);
        assert_eq!(commits.count() >= usize::from(ROUNDS), all);
    }
}

#[test]
fn an_object_that_cannot_be_read_stays_and_the_others_leave_it() {
    let dir = dir();
    let place: Address = with(dir.path(), Limits::TINY, async |_, shard| {
        shard.commit(&id(0), &Batch::new().put("only", "here"), None)?.await?;
        let place = shard.history(&id(0)).await?[0].frames[0];
        overwrite(&shard, 3).await?;
        Ok(place)
    });
    let path = dir.path().join(format!("shard-0000-segment-{:010}", place.segment));
    let mut bytes = std::fs::read(&path).expect("a segment");
    bytes[(place.offset + place.bytes - 9) as usize] ^= 1;
    std::fs::write(&path, bytes).expect("damaged");
    let kept = path.clone();
    with(dir.path(), Limits::TINY, async move |env, shard| {
        overwrite(&shard, ROUNDS).await?;
        let stats = settled(&env, &shard).await;
        assert!(stats.segments_freed > 0, "{stats:?}");
        let error = shard.load(&id(0)).await.expect_err("damaged");
        assert_eq!(error.kind(), Kind::Corrupt, "{error}");
        assert!(kept.exists(), "what may be left of the object stays");
        for number in 1..OBJECTS {
            shard.load(&id(number)).await?;
        }
        // Nobody needs it any more.
        shard.commit(&id(0), &Batch::new().delete_all().delete_alarm(), None)?.await?;
        overwrite(&shard, ROUNDS).await?;
        shard.compact().await?;
        assert!(!kept.exists(), "it goes with the object");
        Ok(())
    });
}
