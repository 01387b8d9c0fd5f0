//! The alarm while its handler runs.

use dormouse_cache::{AlarmRun, AlarmToo, CacheLimits, Outcome, Read, Write};
use dormouse_engine::{Contents, Version};

use super::{World, code, now};

fn armed(at_ms: u64) -> World {
    let contents = Contents { version: Version(1), alarm: Some(at_ms), ..Contents::default() };
    World::with(contents, CacheLimits::PRODUCTION)
}

fn alarm(world: &World) -> Option<u64> {
    now(world.cache.get_alarm(Read::default())).unwrap()
}

fn set(world: &World, at_ms: Option<u64>) {
    now(world.cache.set_alarm(at_ms, Write::default())).unwrap();
}

/// T-131.
#[test]
fn the_alarm_looks_deleted_while_it_runs_and_is_after_success() {
    let world = armed(5);
    assert_eq!(world.cache.alarm_begin(5), AlarmRun::Run);
    assert_eq!((alarm(&world), world.cache.stored_alarm()), (None, Some(5)));
    world.put("k", "1");
    let commit = world.commit();
    assert_eq!(commit.show(), "k=1", "still there in storage");
    commit.succeed();
    world.cache.alarm_end(Outcome::Succeeded);
    assert!(!world.cache.output_gate().is_open(), "the deletion is confirmed");
    assert_eq!(world.commit().show(), "alarm=none");
}

/// T-133: also the very time that runs.
#[test]
fn an_alarm_set_in_its_handler_stays() {
    for at_ms in [5, 9] {
        let world = armed(5);
        assert_eq!(world.cache.alarm_begin(5), AlarmRun::Run);
        set(&world, Some(at_ms));
        world.cache.alarm_end(Outcome::Succeeded);
        assert_eq!(alarm(&world), Some(at_ms));
        assert_eq!(world.commit().show(), format!("alarm={at_ms}"));
    }
}

/// T-134, and R-380 for delete-all.
#[test]
fn an_alarm_deleted_in_its_handler_is_deleted_once() {
    for all in [false, true] {
        let world = armed(5);
        assert_eq!(world.cache.alarm_begin(5), AlarmRun::Run);
        match all {
            false => set(&world, None),
            true => now(world.cache.delete_all(AlarmToo::Clear, Write::default())).unwrap(),
        }
        assert_eq!(world.commit().show(), "alarm=none");
        world.cache.alarm_end(Outcome::Succeeded);
        world.env.run();
        assert!(!world.store.has_commit());
    }
}

///
#[test]
fn after_failure_the_alarm_is_as_before_and_after_abandonment_gone() {
    let world = armed(5);
    assert_eq!(world.cache.alarm_begin(5), AlarmRun::Run);
    world.cache.alarm_end(Outcome::Failed);
    assert_eq!(alarm(&world), Some(5));
    assert!(world.cache.is_idle());

    assert_eq!(world.cache.alarm_begin(5), AlarmRun::Run);
    world.cache.alarm_end(Outcome::Abandoned);
    assert_eq!(world.commit().show(), "alarm=none");

    let world = armed(5);
    assert_eq!(world.cache.alarm_begin(5), AlarmRun::Run);
    set(&world, Some(8));
    world.cache.alarm_end(Outcome::Abandoned);
    assert_eq!(alarm(&world), Some(8));
}

///
#[test]
fn a_delivery_of_another_time_runs_only_while_the_change_is_not_durable() {
    let world = armed(5);
    assert_eq!(world.cache.alarm_begin(4), AlarmRun::Cancelled);
    set(&world, Some(7));
    for step in ["dirty", "in flight"] {
        let commit = (step == "in flight").then(|| world.commit());
        assert_eq!(world.cache.alarm_begin(5), AlarmRun::Run, "{step}");
        assert_eq!(alarm(&world), Some(7), "no deferred deletion");
        world.cache.alarm_end(Outcome::Succeeded);
        assert_eq!(alarm(&world), Some(7));
        commit.into_iter().for_each(|commit| commit.succeed());
    }
    world.settle();
    assert_eq!(world.cache.alarm_begin(5), AlarmRun::Cancelled);
    assert_eq!(world.cache.alarm_begin(7), AlarmRun::Run);
}

/// T-148: an alarm that is durably gone does not fire, though another one is dirty.
#[test]
fn a_delivery_of_an_alarm_that_is_durably_another_is_cancelled_while_a_third_is_dirty() {
    let world = armed(5);
    set(&world, None);
    world.settle();
    set(&world, Some(7));
    assert_eq!(world.cache.alarm_begin(5), AlarmRun::Cancelled, "dirty");
    let commit = world.commit();
    assert_eq!(world.cache.alarm_begin(5), AlarmRun::Cancelled, "in flight");
    commit.succeed();
    assert_eq!(world.cache.alarm_begin(7), AlarmRun::Run);
}

/// A time set back to the stored one while dirty is still written, though its handler runs.
#[test]
fn a_dirty_alarm_that_runs_is_written_until_the_run_ends() {
    let world = armed(5);
    set(&world, Some(7));
    let first = world.commit();
    set(&world, Some(5));
    assert_eq!(world.cache.alarm_begin(5), AlarmRun::Run);
    first.succeed();
    let second = world.commit();
    assert_eq!(second.show(), "alarm=5");
    second.succeed();
    world.cache.alarm_end(Outcome::Failed);
    world.settle();
    assert_eq!(world.store.durable().alarm, Some(5));
}

/// the flush in flight takes nothing along that comes after it.
#[test]
fn an_alarm_set_during_a_flush_is_in_the_next() {
    let world = armed(5);
    set(&world, Some(7));
    let first = world.commit();
    set(&world, Some(9));
    assert_eq!(first.show(), "alarm=7");
    first.succeed();
    let second = world.commit();
    assert_eq!((second.show().as_str(), alarm(&world)), ("alarm=9", Some(9)));
    second.succeed();
    world.settle();
    assert_eq!(world.store.durable().alarm, Some(9));
}

///
#[test]
fn the_same_time_again_is_no_write_and_zero_is_refused() {
    let world = armed(5);
    set(&world, Some(5));
    assert!(world.cache.is_idle());
    assert_eq!(code(world.cache.set_alarm(Some(0), Write::default())), "bad-argument");
}
