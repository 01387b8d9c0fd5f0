//! What a store answers before it is durable, on a real disk whose writes can be held, failed, or
//! refused for want of room.

mod faulty;
mod reads;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_channel::oneshot;
use futures_util::FutureExt;
use futures_util::future::join;

use super::durability::{Durability, Told};
use super::published::Published;
use super::{Inner, Options, Store, Threads, open};
use crate::batch::Batch;
use crate::call::Call;
use crate::env::Host;
use crate::error::{Error, Kind, Result};
use crate::ids::{ObjectId, Version};
use crate::limits::Limits;
use crate::list::List;
use crate::mailbox::mailbox;
use crate::real::{DiskChoice, block_on};
use crate::shard::Shard;
use crate::store_lock::StoreLock;

use faulty::{Fault, FaultyEnv};

/// A store of one shard on the core of whoever asks, and how its end will be.
struct Here {
    store: Store,
    ended: oneshot::Receiver<Result<()>>,
}

impl Here {
    async fn open(env: &FaultyEnv, durability: Durability, cache_bytes: usize) -> Self {
        // Nothing is written that no test asked for, rewrites included.
        let limits = Limits {
            quiet: Duration::from_secs(3600),
            batch_bytes_max: 16 << 10,
            image_bytes_max: 9 << 10,
            segment_bytes_min: 24 << 10,
            ..Limits::TINY
        };
        let options = Options { durability, cache_bytes, limits, ..Options::default() };
        let lock = StoreLock::open_or_create(env, &limits, 1).await.expect("a store");
        let begun = (lock.superblock(), Told::new(1), Arc::new(Published::new(1)));
        let quotas = crate::namespaces::Quotas::default();
        let served = open(env, &begun, (0, 1), &options, &quotas).await.expect("a shard");
        let (_, told, published) = begun;
        let (sender, mail) = mailbox(64);
        let (end, ended) = oneshot::channel();
        env.spawn("serve", async move {
            let result = served.run(mail).await;
            drop(lock);
            let _nobody_asks = end.send(result);
        });
        let threads = Mutex::new(Threads::Running(Vec::new()));
        let inner = Inner { shards: 1, mailboxes: vec![sender], told, published, threads };
        Self { store: Store(Arc::new(inner)), ended }
    }

    fn put(&self, key: u32) -> Call<Version> {
        let object = self.store.object(id());
        object.commit(Batch::new().put(key.to_be_bytes(), [7; 100]))
    }

    /// The keys, which are those from 0 on (E2), and one more, if it is given.
    async fn count(&self, more: Option<u32>) -> u32 {
        let contents = self.store.object(id()).contents().await.expect("readable");
        let keys = contents.map.keys().map(|key| u32::from_be_bytes(key[..].try_into().unwrap()));
        let keys: Vec<_> = keys.filter(|key| Some(*key) != more).collect();
        let count = u32::try_from(keys.len()).expect("few");
        assert_eq!(keys, (0..count).collect::<Vec<_>>(), "a prefix of what was answered");
        count
    }

    async fn close(self) -> Result<()> {
        self.store.close().await.expect("it has no threads");
        self.ended.await.expect("it serves until then")
    }
}

fn id() -> ObjectId {
    ObjectId::from_bytes([1; 32])
}

fn on_faulty_disk(test: impl AsyncFnOnce(FaultyEnv) + Send + 'static) {
    let dir = tempfile::TempDir::new().expect("a directory");
    block_on(dir.path(), DiskChoice::Posix, async |env| test(FaultyEnv::new(env)).await)
        .expect("a core");
}

/// Lets everything happen that does not wait for the disk.
async fn pause(env: &FaultyEnv) {
    env.sleep(Duration::from_millis(30)).await;
}

#[test]
fn a_commit_waits_for_the_device_and_one_on_flush_does_not() {
    for (durability, cache_bytes) in
        [(Durability::Always, 1 << 20), (Durability::OnFlush, 1 << 20), (Durability::OnFlush, 0)]
    {
        on_faulty_disk(async move |env| {
            let here = Here::open(&env, durability, cache_bytes).await;
            here.put(0).await.expect("taken");
            assert_eq!(here.count(None).await, 1);
            here.store.flush().await.expect("durable");
            env.set(Fault::Hold);
            let mut commit = here.put(1);
            let mut flush = here.store.flush();
            pause(&env).await;
            assert!((&mut flush).now_or_never().is_none(), "nothing is durable yet");
            match durability {
                Durability::Always => assert!((&mut commit).now_or_never().is_none()),
                Durability::OnFlush => {
                    let version = (&mut commit).now_or_never().expect("answered");
                    let version = version.expect("taken");
                    let object = here.store.object(id());
                    assert_eq!(object.head().await.expect("a head"), (version, None));
                    if cache_bytes > 0 {
                        assert_eq!(here.count(None).await, 2, "reads see what was answered");
                        let first = object.list(List::all().reverse()).next().await;
                        assert_eq!(first.expect("readable").expect("two keys").0[..], [0, 0, 0, 1]);
                    }
                    let stale = Batch::new().put("a", "").only_if(Version(1));
                    let refused = object.commit(stale).await.expect_err("it is newer");
                    assert_eq!(refused.kind(), Kind::Conflict);
                }
            }
            env.set(Fault::None);
            flush.await.expect("durable");
            if durability == Durability::Always {
                commit.await.expect("durable");
            }
            assert_eq!(here.count(None).await, 2);
            here.close().await.expect("closed");
        });
    }
}

/// Whoever does not wait can't fill the memory: what the device has not taken is bounded.
#[test]
fn more_than_the_queue_holds_is_refused_until_the_device_has_caught_up() {
    on_faulty_disk(async |env| {
        let here = Here::open(&env, Durability::OnFlush, 1 << 20).await;
        env.set(Fault::Hold);
        // One commit each: a long chain of one object would be consolidated at the end.
        let object = |number: u32| {
            let mut id = [0; 32];
            id[..4].copy_from_slice(&number.to_le_bytes());
            here.store.object(ObjectId::from_bytes(id))
        };
        let put = |number| object(number).commit(Batch::new().put("a", [7; 400]));
        let mut answered = 0;
        let refused = loop {
            match put(answered).await {
                Ok(_) => answered += 1,
                Err(error) => break error,
            }
            assert!(answered < 2000, "400 bytes each");
        };
        assert_eq!(refused.kind(), Kind::Overloaded, "{refused}");
        env.set(Fault::None);
        here.store.flush().await.expect("what was refused is no failure");
        put(answered).await.expect("there is room again");
        for number in 0..=answered {
            let read = object(number).get("a").await.expect("readable");
            assert_eq!(read.expect("answered").len(), 400);
        }
        here.close().await.expect("closed");
    });
}

/// Commits until the shard refuses one, with the failure of an earlier one.
async fn until_refused(here: &Here, env: &FaultyEnv, fault: Fault) -> (u32, Error) {
    for key in 0..20 {
        here.put(key).await.expect("room enough");
    }
    here.store.flush().await.expect("durable");
    env.set(fault);
    for key in 20..10_000 {
        if let Err(error) = here.put(key).await {
            return (key, error);
        }
        if key % 8 == 0 {
            pause(env).await;
        }
    }
    panic!("never refused");
}

/// E2: what is durable is a prefix of what was answered, up to a gap that flush tells of.
#[test]
fn a_full_disk_found_after_the_answer_is_told_by_flush() {
    on_faulty_disk(async |env| {
        let here = Here::open(&env, Durability::OnFlush, 1 << 20).await;
        let (refused, error) = until_refused(&here, &env, Fault::Full).await;
        assert_eq!(error.kind(), Kind::NoSpace, "{error}");
        env.set(Fault::None);
        // Room again; but who was answered does not know yet.
        assert_eq!(here.put(refused).await.expect_err("not told yet").kind(), Kind::NoSpace);
        let deleted = here.store.object(id()).delete_prefix("").await;
        assert_eq!(deleted.expect_err("not told yet").kind(), Kind::NoSpace);
        // An answer that nobody looks at tells nobody; two that ask at once are both told.
        drop(here.store.flush());
        let (one, two) = join(here.store.flush(), here.store.flush()).await;
        let one = one.expect_err("some did not happen");
        assert_eq!(one.kind(), Kind::NoSpace, "{one}");
        assert_eq!(two.expect_err("as the first").kind(), Kind::NoSpace);
        here.store.flush().await.expect("told once");
        let kept = here.count(None).await;
        assert!((20..refused).contains(&kept), "{kept} of {refused}");
        // Room is not looked for again and again.
        env.sleep(Duration::from_millis(150)).await;
        here.put(90_000).await.expect("taken");
        here.store.flush().await.expect("durable");
        here.close().await.expect("told before");
        let here = Here::open(&env, Durability::OnFlush, 0).await;
        assert_eq!(here.count(Some(90_000)).await, kept);
        assert_eq!(
            here.store.object(id()).get(90_000_u32.to_be_bytes()).await.unwrap().unwrap().len(),
            100
        );
        here.close().await.expect("closed");
    });
}

#[test]
fn a_failure_that_no_flush_told_is_told_by_close() {
    for (fault, kind) in [(Fault::Full, Kind::NoSpace), (Fault::Write, Kind::Unknown)] {
        on_faulty_disk(async move |env| {
            let here = Here::open(&env, Durability::OnFlush, 1 << 20).await;
            until_refused(&here, &env, fault).await;
            assert_eq!(here.close().await.expect_err("not told before").kind(), kind);
        });
    }
}

/// E4, and that a flush under way is told too.
#[test]
fn a_failed_write_is_told_by_flush_and_then_the_shard_is_poisoned() {
    on_faulty_disk(async |env| {
        let here = Here::open(&env, Durability::OnFlush, 1 << 20).await;
        for key in 0..3 {
            here.put(key).await.expect("taken");
        }
        let other = here.store.object(ObjectId::from_bytes([2; 32]));
        other.commit(Batch::new().put("a", "1")).await.expect("taken");
        here.store.flush().await.expect("durable");
        assert_eq!(other.get("a").await.expect("readable").expect("put above"), "1");
        env.set(Fault::Hold);
        here.put(3).await.expect("taken");
        let under_way = here.store.flush();
        pause(&env).await;
        env.set(Fault::Write);
        let failed = under_way.await.expect_err("the write failed");
        assert_eq!(failed.kind(), Kind::Unknown, "{failed}");
        env.set(Fault::None);
        let poisoned = [
            here.store.flush().await.err(),
            here.put(4).await.err(),
            here.store.object(id()).get("a").await.err(),
            // It is in memory, whole and durable; the shard answers nothing all the same.
            other.get("a").await.err(),
            other.head().await.err(),
            other.delete_prefix("").await.err(),
            here.close().await.err(),
        ];
        for error in poisoned {
            assert_eq!(error.expect("refused").kind(), Kind::Poisoned);
        }
    });
}

/// Where commits are answered when they are durable, those that waited were told of the failure:
/// flush does not stand in the way.
#[test]
fn a_failure_that_was_answered_is_not_told_again() {
    on_faulty_disk(async |env| {
        let here = Here::open(&env, Durability::Always, 1 << 20).await;
        let (refused, error) = until_refused(&here, &env, Fault::Full).await;
        assert_eq!(error.kind(), Kind::NoSpace, "{error}");
        // The cleaner may have made a little room meanwhile.
        let mut next = refused;
        let again = loop {
            let waiting = here.put(next);
            here.store.flush().await.expect("all that was answered is durable");
            match waiting.await {
                Ok(_) => next += 1,
                Err(error) => break error,
            }
            assert!(next < refused + 1000, "never refused again");
        };
        assert_eq!(again.kind(), Kind::NoSpace, "{again}");
        env.set(Fault::None);
        // Room is not looked for again and again.
        env.sleep(Duration::from_millis(150)).await;
        here.put(next).await.expect("there is room again");
        assert_eq!(here.count(None).await, next + 1);
        here.close().await.expect("closed");
    });
}

/// A panic of the engine itself poisons its shard (design, section 7): nobody waits for ever.
#[test]
fn a_panic_of_the_writer_is_told_to_all_that_wait() {
    for durability in [Durability::Always, Durability::OnFlush] {
        on_faulty_disk(async move |env| {
            let here = Here::open(&env, durability, 1 << 20).await;
            env.set(Fault::Panic);
            let (commit, flush) = (here.put(0), here.store.flush());
            match durability {
                Durability::Always => {
                    assert_eq!(commit.await.expect_err("not written").kind(), Kind::Unknown);
                    assert_eq!(flush.await.expect_err("told").kind(), Kind::Poisoned);
                }
                Durability::OnFlush => {
                    commit.await.expect("answered");
                    assert_eq!(flush.await.expect_err("not written").kind(), Kind::Unknown);
                }
            }
            assert_eq!(here.put(1).await.expect_err("refused").kind(), Kind::Poisoned);
            assert_eq!(here.close().await.expect_err("refused").kind(), Kind::Poisoned);
        });
    }
}

/// Whatever write fails while a store is being opened: nobody was answered anything, so it can be
/// tried again, and then all is there (E7, E9).
#[test]
fn an_opening_that_fails_to_write_can_be_tried_again() {
    on_faulty_disk(async |env| {
        let here = Here::open(&env, Durability::Always, 0).await;
        for key in 0..5 {
            here.put(key).await.expect("durable");
        }
        here.close().await.expect("closed");
        env.set_buffered();
        let limits = Limits::TINY;
        let (mut failed, mut writes) = (0, 0);
        loop {
            env.set(Fault::WriteAfter(writes));
            let lock = StoreLock::open_or_create(&env, &limits, 1).await.expect("it is there");
            match Shard::open(&env, lock.superblock(), 0, limits).await {
                Ok((shard, _)) => {
                    env.set(Fault::None);
                    shard.close().await.expect("closed");
                    break;
                }
                Err(error) => assert_eq!(error.kind(), Kind::Retry, "{writes} writes: {error}"),
            }
            (failed, writes) = (failed + 1, writes + 1);
        }
        // Zeros are written beside the others, and where those alone fail it opens: so it is not one for each write.
        assert!(failed >= 3, "header, fence, what is written again: {failed}");
        let here = Here::open(&env, Durability::Always, 0).await;
        assert_eq!(here.count(None).await, 5);
        here.close().await.expect("closed");
    });
}

/// What is asked for after a delete of a prefix, without waiting for it, comes after it, also while
/// it has to read the object.
#[test]
fn requests_behind_a_delete_of_a_prefix_wait_for_their_turn() {
    for durability in [Durability::Always, Durability::OnFlush] {
        on_faulty_disk(async move |env| {
            let here = Here::open(&env, durability, 0).await;
            let object = here.store.object(id());
            let batch = Batch::new().put("a:1", "").put("a:2", "").put("b", "");
            object.commit(batch).await.expect("taken");
            let deleted = object.delete_prefix("a:");
            let read = object.contents();
            let committed = object.commit(Batch::new().put("a:3", ""));
            let head = object.head();
            let again = object.delete_prefix("a:");
            let end = object.contents();
            assert_eq!(deleted.await.expect("deleted"), 2);
            let read = read.await.expect("readable");
            assert!(read.map.contains_key(&b"b"[..]), "{read:?}");
            assert!(!read.map.contains_key(&b"a:1"[..]), "{read:?}");
            let committed = committed.await.expect("taken");
            assert!(head.await.expect("a head").0 >= committed);
            assert_eq!(again.await.expect("deleted"), 1);
            assert_eq!(end.await.expect("readable").map.len(), 1);
            assert_eq!(object.delete_prefix("a:").await.expect("deleted"), 0);
            here.close().await.expect("closed");
        });
    }
}
