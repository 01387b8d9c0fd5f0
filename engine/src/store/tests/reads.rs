//! Reads that ask no core: what they see is what the core would answer.

use futures_util::FutureExt;

use super::{Fault, FaultyEnv, Here, id, on_faulty_disk, pause};
use crate::batch::Batch;
use crate::error::Kind;
use crate::ids::{ObjectId, Version};
use crate::list::List;
use crate::store::durability::Durability;

const KEY: [u8; 4] = 0_u32.to_be_bytes();

/// Whether the object is read without its core: on one thread the core can't have answered.
fn is_published(here: &Here) -> bool {
    here.store.object(id()).get(KEY).now_or_never().is_some()
}

/// A store with one object, of one key, that is published.
async fn published(env: &FaultyEnv, durability: Durability) -> Here {
    let here = Here::open(env, durability, 1 << 20).await;
    here.put(0).await.expect("taken");
    here.store.flush().await.expect("durable");
    assert!(!is_published(&here), "nobody has read it yet");
    for _ in 0..2 {
        let value = here.store.object(id()).get(KEY).await.expect("readable");
        assert_eq!(value.expect("put")[..], [7; 100]);
    }
    assert!(is_published(&here));
    here
}

#[test]
fn what_is_read_again_is_read_without_its_core() {
    on_faulty_disk(async |env| {
        let here = published(&env, Durability::Always).await;
        let object = here.store.object(id());
        assert_eq!(object.get("no key").now_or_never().expect("at once").expect("readable"), None);
        let contents = object.contents().now_or_never().expect("at once").expect("readable");
        assert_eq!(contents.map.len(), 1);
        let listed: Vec<_> = object.list(List::all().reverse()).blocking().collect();
        assert_eq!(listed.len(), 1);
        here.close().await.expect("closed");
    });
}

#[test]
fn a_thread_reads_what_it_has_asked_for() {
    for durability in [Durability::Always, Durability::OnFlush] {
        on_faulty_disk(async move |env| {
            let here = published(&env, durability).await;
            env.set(Fault::Hold);
            let commit = here.put(1);
            // Nobody has taken the commit yet.
            assert!(!is_published(&here));
            let mut listed = here.store.object(id()).list(List::all());
            pause(&env).await;
            // It was taken, and is not durable.
            assert!(!is_published(&here));
            env.set(Fault::None);
            commit.await.expect("durable");
            let mut keys = 0;
            while listed.next().await.expect("readable").is_some() {
                keys += 1;
            }
            assert_eq!(keys, 2, "the list was asked for behind the commit");
            here.close().await.expect("closed");
        });
    }
}

#[test]
fn a_walk_keeps_to_its_state() {
    on_faulty_disk(async |env| {
        let here = published(&env, Durability::Always).await;
        let object = here.store.object(id());
        let mut walk = object.list(List::all());
        object.delete().await.expect("durable");
        assert!(!is_published(&here));
        assert_eq!(walk.next().await.expect("readable").expect("as it was").0[..], KEY);
        assert_eq!(walk.next().await.expect("readable"), None);
        assert_eq!(object.get(KEY).await.expect("readable"), None);
        here.close().await.expect("closed");
    });
}

#[test]
fn a_prefix_that_is_deleted_is_waited_for() {
    on_faulty_disk(async |env| {
        let here = published(&env, Durability::Always).await;
        let object = here.store.object(id());
        let deleted = object.delete_prefix([0]);
        assert!(!is_published(&here));
        assert_eq!(object.get(KEY).await.expect("readable"), None);
        assert_eq!(deleted.await.expect("durable"), 1);
        here.close().await.expect("closed");
    });
}

/// A commit that is refused before it reaches its core leaves nothing behind.
#[test]
fn a_commit_that_was_not_taken_is_not_waited_for() {
    on_faulty_disk(async |env| {
        let here = published(&env, Durability::Always).await;
        let object = here.store.object(id());
        let asked: Vec<_> = (0..100).map(|_| object.head()).collect();
        let refused = object.commit(Batch::new().put("a", "")).await;
        assert_eq!(refused.expect_err("no room in the mailbox").kind(), Kind::Overloaded);
        assert!(is_published(&here));
        drop(asked);
        let stale = Batch::new().put("a", "").only_if(Version(u64::MAX));
        pause(&env).await;
        assert_eq!(object.commit(stale).await.expect_err("stale").kind(), Kind::Conflict);
        assert!(is_published(&here), "nothing was changed");
        here.close().await.expect("closed");
    });
}

/// E4: once the shard has failed no object is read as if it had not.
#[test]
fn a_poisoned_shard_publishes_nothing() {
    on_faulty_disk(async |env| {
        let here = published(&env, Durability::Always).await;
        env.set(Fault::Write);
        let other = here.store.object(ObjectId::from_bytes([2; 32]));
        other.commit(Batch::new().put("a", "")).await.expect_err("the write fails");
        assert!(!is_published(&here));
        let refused = here.store.object(id()).get(KEY).await.expect_err("poisoned");
        assert_eq!(refused.kind(), Kind::Poisoned);
        here.close().await.expect_err("poisoned");
    });
}

#[test]
fn a_closed_store_reads_nothing() {
    on_faulty_disk(async |env| {
        let here = published(&env, Durability::Always).await;
        let object = here.store.object(id());
        here.close().await.expect("closed");
        assert_eq!(object.get(KEY).await.expect_err("closed").kind(), Kind::Closed);
        let listed = object.list(List::all()).next().await;
        assert_eq!(listed.expect_err("closed").kind(), Kind::Closed);
    });
}

/// Memory forgets first what nobody uses, whoever reads it.
#[test]
fn what_is_read_without_its_core_stays() {
    on_faulty_disk(async |env| {
        // Room for some five objects.
        let here = Here::open(&env, Durability::Always, 2_000).await;
        here.put(0).await.expect("durable");
        let object = |number: u8| here.store.object(ObjectId::from_bytes([number; 32]));
        for number in 2..40 {
            for _ in 0..3 {
                here.store.object(id()).get(KEY).await.expect("readable").expect("put");
            }
            assert!(is_published(&here), "{number} others came");
            object(number).commit(Batch::new().put("a", [7; 100])).await.expect("durable");
            object(number).get("a").await.expect("readable").expect("put");
        }
        // Nobody reads it any more.
        for number in 2..40 {
            object(number).get("a").await.expect("readable").expect("put");
        }
        assert!(!is_published(&here));
        here.close().await.expect("closed");
    });
}
