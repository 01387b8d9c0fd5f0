//! The real disks: the conformance suite on each, and a core that is never idle.

mod common;

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use common::{dir, disks};
use dormouse_engine::io::{Create, Disk, File, Mode, Open, PageBuf, conformance};
use dormouse_engine::real::{DiskChoice, block_on};
use dormouse_engine::{Env, Host};

#[test]
fn every_disk_conforms() {
    for choice in disks() {
        let dir = dir();
        let name = block_on(dir.path(), choice, async |env| {
            conformance::run(env.disk()).await;
            env.disk().properties().name
        });
        println!("{choice:?}: {}", name.expect("a core"));
    }
}

/// tokio-uring submits only when its thread parks, and a core with ready tasks never parks of
/// itself: the turn must.
#[test]
fn a_write_completes_while_a_thousand_tasks_are_always_ready() {
    for choice in disks() {
        let dir = dir();
        let turns = block_on(dir.path(), choice, async |env| {
            let open = Open {
                create: Create::New,
                mode: Mode::Through,
                lock_wait: Some(Duration::from_secs(1)),
            };
            let file = env.disk().open("file", open).await.expect("create");
            file.allocate(4096).await.expect("allocate");
            let stop = Rc::new(Cell::new(false));
            for _ in 0..1000 {
                let stop = stop.clone();
                env.spawn(
                    "ready",
                    std::future::poll_fn(move |context| {
                        context.waker().wake_by_ref();
                        match stop.get() {
                            true => std::task::Poll::Ready(()),
                            false => std::task::Poll::Pending,
                        }
                    }),
                );
            }
            let before = env.turns();
            let mut most = 0;
            for _ in 0..20 {
                let started = env.turns();
                file.write_at(PageBuf::zeroed(4096), 0).await.0.expect("write");
                most = most.max(env.turns() - started);
            }
            stop.set(true);
            assert!(env.turns() > before);
            most
        });
        let turns = turns.expect("a core");
        println!("{choice:?}: at most {turns} turns for a durable write");
        // A turn takes some tens of microseconds here, a durable write some hundred.
        assert!(turns < 2000, "{choice:?}: a write took {turns} turns");
    }
}

#[test]
fn a_panic_ends_its_task_alone() {
    let dir = dir();
    let alive = block_on(dir.path(), DiskChoice::Posix, async |env| {
        env.spawn("panics", async { panic!("on purpose") });
        env.sleep(Duration::from_millis(5)).await;
        true
    });
    assert!(alive.expect("a core"));
}

#[test]
fn a_panic_of_the_main_task_ends_the_core() {
    for choice in disks() {
        let dir = dir();
        let ended = block_on(dir.path(), choice, async |env| {
            env.turn_end().await;
            panic!("on purpose");
        });
        assert!(ended.is_err(), "{choice:?}");
        let _: std::io::Result<()> = ended;
    }
}

#[test]
fn what_wakes_a_task_is_not_the_end_of_its_turn() {
    for choice in disks() {
        let dir = dir();
        let ended = block_on(dir.path(), choice, async |env| {
            let mut end = pin!(env.turn_end());
            poll_fn(|cx| {
                assert!(end.as_mut().poll(cx).is_pending());
                assert!(end.as_mut().poll(cx).is_pending(), "something else woke it");
                Poll::Ready(())
            })
            .await;
            end.await;
        });
        ended.expect("the turn ends");
    }
}

#[test]
fn a_wake_up_from_another_thread_arrives() {
    for choice in disks() {
        let dir = dir();
        let count = block_on(dir.path(), choice, async |_env| {
            let mut count = 0;
            for _ in 0..200 {
                let (sender, receiver) = futures_channel::oneshot::channel();
                let thread = std::thread::Builder::new().spawn(move || sender.send(1));
                count += receiver.await.expect("sent");
                thread.expect("a thread").join().expect("no panic").expect("received");
            }
            count
        });
        assert_eq!(count.expect("a core"), 200);
    }
}
