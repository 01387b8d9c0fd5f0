//! What the output gate waits for, and `sync`.

use dormouse_cache::{AlarmToo, Write};
use dormouse_engine::Kind;

use super::{World, bytes, now, poll};

/// T-122, T-127.
#[test]
fn a_wait_covers_what_was_written_before_it_and_no_more() {
    let world = World::new(&[]);
    assert!(world.cache.output_gate().wait().is_ready());
    world.put("a", "1");
    let mut first_wait = world.cache.output_gate().wait();
    let first = world.commit();
    world.put("b", "2");
    let mut second_wait = world.cache.output_gate().wait();
    assert!(poll(&mut first_wait).is_pending());
    first.succeed();
    world.env.run();
    assert!(poll(&mut first_wait).is_ready());
    assert!(poll(&mut second_wait).is_pending());
    world.settle();
    assert!(poll(&mut second_wait).is_ready() && world.cache.output_gate().is_open());
}

/// A wait that began when nothing was dirty is not delayed by a write after it.
#[test]
fn a_wait_before_the_write_is_open() {
    let world = World::new(&[]);
    let wait = world.cache.output_gate().wait();
    world.put("a", "1");
    assert!(wait.is_ready());
}

/// T-123.
#[test]
fn an_unconfirmed_write_does_not_hold_output_but_breaks_the_gate() {
    let world = World::new(&[]);
    now(world.cache.put(b"k", bytes("1"), Write::allow_unconfirmed())).unwrap();
    assert!(world.cache.output_gate().is_open());
    let commit = world.commit();
    assert!(world.cache.output_gate().is_open());
    commit.fail(Kind::Unknown);
    world.env.run();
    assert_eq!(world.cache.broken_reason().unwrap().kind(), Kind::Unknown);
}

/// T-124.
#[test]
fn a_confirmed_write_that_joins_an_unconfirmed_flush_holds_output() {
    let world = World::new(&[]);
    now(world.cache.put(b"a", bytes("1"), Write::allow_unconfirmed())).unwrap();
    world.put("b", "1");
    assert!(!world.cache.output_gate().is_open());
    world.settle();
    assert!(world.cache.output_gate().is_open());
}

/// What a confirmed write promises holds even if an unconfirmed one wrote the same before it.
#[test]
fn a_confirmed_write_of_an_unconfirmed_value_holds_output() {
    for in_flight in [false, true] {
        for deletes in [false, true] {
            let world = World::new(&[("gone", "x")]);
            now(world.cache.put(b"k", bytes("1"), Write::allow_unconfirmed())).unwrap();
            now(world.cache.delete(b"gone", Write::allow_unconfirmed())).unwrap();
            let commit = in_flight.then(|| world.commit());
            match deletes {
                true => assert!(!world.delete("gone")),
                false => world.put("k", "1"),
            }
            assert!(!world.cache.output_gate().is_open());
            let commit = commit.unwrap_or_else(|| world.commit());
            commit.succeed();
            world.env.run();
            assert!(world.cache.output_gate().is_open() && world.cache.is_idle());
            assert_eq!(world.store.calls(), 1, "nothing is written twice");
        }
    }
}

/// R-371, whose defect is not copied.
#[test]
fn a_write_after_an_unconfirmed_delete_all_keeps_its_own_confirmation() {
    let world = World::new(&[("a", "1")]);
    now(world.cache.delete_all(AlarmToo::Keep, Write::allow_unconfirmed())).unwrap();
    assert!(world.cache.output_gate().is_open());
    world.put("b", "2");
    assert!(!world.cache.output_gate().is_open());
    assert_eq!(world.commit().show(), "delete-all b=2");
}

/// T-031, T-080.
#[test]
fn sync_waits_for_all_writes_before_it() {
    let world = World::new(&[]);
    now(world.cache.sync()).unwrap();
    now(world.cache.put(b"a", bytes("1"), Write::allow_unconfirmed())).unwrap();
    let first = world.commit();
    world.put("b", "2");
    let mut sync = world.cache.sync();
    first.succeed();
    let second = world.commit();
    world.put("c", "3");
    assert!(poll(&mut sync).is_pending());
    second.succeed();
    world.env.run();
    assert!(poll(&mut sync).is_ready(), "the write after it does not extend it");
    assert!(!world.cache.is_idle());
}

/// Waits that are dropped leave nothing behind, and the others are woken.
#[test]
fn dropped_waits_are_forgotten() {
    let world = World::new(&[]);
    world.put("a", "1");
    let mut kept = world.cache.output_gate().wait();
    let mut dropped = world.cache.output_gate().wait();
    assert!(poll(&mut kept).is_pending() && poll(&mut dropped).is_pending());
    drop(dropped);
    world.settle();
    assert!(poll(&mut kept).is_ready());
}
