//! The cleaner on a real disk: space levels off, history stays within its window, damage stays where it is.

#![expect(clippy::disallowed_methods, reason = "damages a file of a closed store")]

mod common;

use std::path::Path;
use std::time::Duration;

use common::dir;
use dormouse_engine::format::frame::Address;
use dormouse_engine::real::{DiskChoice, RealEnv, block_on};
use dormouse_engine::{
    Batch, Env, Error, Kind, Limits, ObjectId, Result, Shard, ShardStats, StoreLock,
};

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

/// Commits to all objects but the first, over and over; some of them keep all their keys in memory.
async fn overwrite(shard: &Shard<RealEnv>, rounds: u16) -> Result<()> {
    for round in 0..rounds {
        let mut tickets = Vec::new();
        for number in 1..OBJECTS {
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
    assert!(second.segment_bytes <= first.segment_bytes * 3 / 2, "{first:?}, then {second:?}");
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
        settled(&env, &shard).await;
        assert!(!kept.exists(), "it goes with the object");
        Ok(())
    });
}
