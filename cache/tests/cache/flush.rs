//! What goes into which commit, and what follows when one fails.

use std::time::Duration;

use dormouse_cache::{AlarmToo, CacheLimits, Read, Write};
use dormouse_engine::{Contents, Error, Host, Kind, Version};

use super::env::yield_now;
use super::{World, bytes, contents, now, poll};

/// T-053, T-054.
#[test]
fn a_turn_is_one_commit_with_the_last_value_of_each_key() {
    let world = World::new(&[("gone", "x")]);
    for value in ["1", "2", "3"] {
        world.put("k", value);
    }
    world.put("a", "1");
    world.delete("gone");
    now(world.cache.set_alarm(Some(77), Write::default())).unwrap();
    assert_eq!(world.store.calls(), 0, "nothing before the end of the turn");
    let commit = world.commit();
    assert_eq!(commit.show(), "a=1 -gone k=3 alarm=77");
    commit.succeed();
    world.env.run();
    assert!(world.cache.is_idle());
    assert_eq!((world.cache.version(), world.env.tasks()), (Version(2), 0));
}

/// a turn lasts until no task is ready, not until the flusher has been polled.
#[test]
fn what_other_tasks_of_the_turn_write_is_in_the_same_commit() {
    let world = World::new(&[]);
    world.put("a", "1");
    let cache = world.cache.clone();
    world.env.spawn("writer", async move {
        for key in [b"b", b"c"] {
            yield_now().await;
            now(cache.put(key, bytes("1"), Write::default())).unwrap();
        }
    });
    let commit = world.commit();
    assert_eq!(commit.show(), "a=1 b=1 c=1");
    commit.succeed();
    world.env.run();
    assert_eq!(world.store.calls(), 1);
}

/// neither a commit that is on its way nor the end of the turn comes between.
#[test]
fn what_is_written_in_one_step_is_in_one_commit() {
    let world = World::new(&[]);
    world.put("before", "1");
    let first = world.commit();
    let entries: Vec<_> = ["a", "b", "c"].map(|key| (bytes(key), bytes("1"))).into();
    now(world.cache.put_many(&entries, Write::default())).unwrap();
    first.succeed();
    assert_eq!(world.commit().show(), "a=1 b=1 c=1");
}

/// T-055, T-056.
#[test]
fn a_write_that_changes_nothing_costs_nothing() {
    let world = World::new(&[("k", "1")]);
    world.put("k", "1");
    assert!(!world.delete("missing"));
    now(world.cache.set_alarm(None, Write::default())).unwrap();
    assert!(world.cache.is_idle() && world.cache.output_gate().is_open());
    world.env.run();
    assert_eq!(world.store.calls(), 0);
}

#[test]
fn delete_all_of_an_empty_object_costs_nothing() {
    let world = World::new(&[]);
    now(world.cache.delete_all(AlarmToo::Clear, Write::default())).unwrap();
    world.env.run();
    assert_eq!(world.store.calls(), 0);
}

/// T-057.
#[test]
fn a_key_overwritten_in_flight_goes_again() {
    let world = World::new(&[]);
    world.put("k", "1");
    let first = world.commit();
    world.put("k", "2");
    world.put("other", "x");
    world.env.run();
    assert!(!world.store.has_commit(), "the next flush waits");
    assert_eq!(world.get("k").as_deref(), Some("2"));
    assert_eq!(first.show(), "k=1");
    first.succeed();
    let second = world.commit();
    assert_eq!(second.show(), "k=2 other=x");
    second.succeed();
    world.env.run();
    assert!(world.cache.is_idle());
}

/// T-046: storage holds 1, 2 is in flight, so 1 has to be written again.
#[test]
fn the_stored_value_is_dirty_while_another_is_in_flight() {
    let world = World::new(&[("k", "1")]);
    world.put("k", "2");
    let first = world.commit();
    world.put("k", "1");
    first.succeed();
    assert_eq!(world.commit().show(), "k=1");
}

/// R-336 for a value in flight: it is not written twice.
#[test]
fn the_value_in_flight_is_not_written_again() {
    let world = World::new(&[]);
    world.put("k", "1");
    let first = world.commit();
    world.put("k", "1");
    first.succeed();
    world.env.run();
    assert!(world.cache.is_idle());
}

/// T-059 (R-339, section 0): its count is that of the call, and one put is left to write.
#[test]
fn a_key_deleted_and_put_again_is_one_put() {
    let world = World::new(&[("k", "1")]);
    assert!(world.delete("k"));
    world.put("k", "5");
    assert!(world.delete("k"), "the new one");
    world.put("k", "6");
    assert_eq!(world.commit().show(), "k=6");
}

/// an entry, its key and its value, until they are durable; each key once.
#[test]
fn dirty_bytes_are_those_of_what_is_not_durable() {
    let world = World::new(&[("gone", "x")]);
    let entry = 64;
    world.put("key", "long");
    assert_eq!(world.cache.dirty_bytes(), entry + 3 + 4);
    world.put("key", "12");
    assert_eq!(world.cache.dirty_bytes(), entry + 3 + 2);
    world.delete("gone");
    assert_eq!(world.cache.dirty_bytes(), 2 * entry + 3 + 2 + 4);
    let first = world.commit();
    world.put("key", "3");
    assert_eq!(world.cache.dirty_bytes(), 3 * entry + 3 + 2 + 4 + 3 + 1, "in flight counts");
    first.succeed();
    world.env.run();
    assert_eq!(world.cache.dirty_bytes(), entry + 3 + 1);
    world.put("dropped", "4");
    now(world.cache.delete_all(AlarmToo::Keep, Write::default())).unwrap();
    assert_eq!(world.cache.dirty_bytes(), entry + 3 + 1, "what is in flight (R-348)");
}

/// T-081, T-086 (R-227, R-372, R-381, section 0).
#[test]
fn delete_all_comes_before_the_puts_that_followed_it() {
    let world = World::new(&[("a", "1"), ("b", "2")]);
    world.put("dropped", "x");
    now(world.cache.delete_all(AlarmToo::Keep, Write::default())).unwrap();
    assert_eq!(world.all(), "");
    assert!(!world.delete("a"), "known to be absent");
    world.put("b", "3");
    world.put("c", "4");
    assert!(world.delete("c"));
    let commit = world.commit();
    assert_eq!(commit.show(), "delete-all b=3");
    commit.succeed();
    world.env.run();
    assert_eq!(world.store.durable().map.len(), 1);
}

/// T-083.
#[test]
fn delete_all_during_a_flush_is_in_the_next() {
    let world = World::new(&[]);
    world.put("a", "1");
    let first = world.commit();
    world.put("b", "2");
    now(world.cache.delete_all(AlarmToo::Keep, Write::default())).unwrap();
    first.succeed();
    let second = world.commit();
    assert_eq!(second.show(), "delete-all");
    second.succeed();
    world.env.run();
    assert!(world.store.durable().map.is_empty());
}

/// T-084, T-085 (R-376, section 0): before the first is on its way, and after.
#[test]
fn a_second_delete_all_swallows_what_lies_between() {
    let world = World::new(&[("a", "1")]);
    let delete_all = || now(world.cache.delete_all(AlarmToo::Keep, Write::default())).unwrap();
    delete_all();
    world.put("x", "2");
    delete_all();
    world.put("y", "3");
    let first = world.commit();
    assert_eq!(first.show(), "delete-all y=3");
    delete_all();
    first.succeed();
    let second = world.commit();
    assert_eq!(second.show(), "delete-all");
    second.succeed();
    world.env.run();
    assert!(world.store.durable().map.is_empty());
}

/// T-088, T-089: one atomic step with the alarm.
#[test]
fn delete_all_takes_the_alarm_along_if_asked() {
    let stored = || Contents { alarm: Some(50), ..contents(&[("a", "1")]) };
    let world = World::with(stored(), CacheLimits::PRODUCTION);
    now(world.cache.delete_all(AlarmToo::Clear, Write::default())).unwrap();
    assert_eq!(now(world.cache.get_alarm(Read::default())).unwrap(), None);
    assert_eq!(world.commit().show(), "delete-all alarm=none");

    let world = World::with(stored(), CacheLimits::PRODUCTION);
    now(world.cache.delete_all(AlarmToo::Clear, Write::default())).unwrap();
    now(world.cache.set_alarm(Some(60), Write::default())).unwrap();
    assert_eq!(world.commit().show(), "delete-all alarm=60");

    let world = World::with(stored(), CacheLimits::PRODUCTION);
    now(world.cache.delete_all(AlarmToo::Keep, Write::default())).unwrap();
    assert_eq!(now(world.cache.get_alarm(Read::default())).unwrap(), Some(50));
    assert_eq!(world.commit().show(), "delete-all");
}

/// T-066: nothing was written, so it is tried again, with what was written meanwhile.
#[test]
fn a_flush_that_did_not_happen_is_made_again_with_all_that_is_dirty() {
    let world = World::new(&[("old", "x")]);
    now(world.cache.delete_all(AlarmToo::Keep, Write::default())).unwrap();
    world.put("a", "1");
    world.put("k", "1");
    now(world.cache.set_alarm(Some(9), Write::default())).unwrap();
    let first = world.commit();
    world.put("k", "2");
    world.delete("a");
    let mut early = world.cache.output_gate().wait();
    first.fail(Kind::Retry);
    let second = world.commit();
    assert_eq!(second.show(), "delete-all k=2 alarm=9");
    assert!(poll(&mut early).is_pending());
    second.succeed();
    world.env.run();
    assert!(poll(&mut early).is_ready() && world.cache.is_idle());
    assert_eq!(world.cache.dirty_bytes(), 0);
}

/// T-067: five tries in all, refusals at the call counted too.
#[test]
fn the_tries_of_a_flush_are_bounded() {
    let world = World::new(&[]);
    world.put("k", "1");
    (0..4).for_each(|_| world.store.refuse(Kind::Retry));
    world.commit().fail(Kind::Retry);
    world.env.run();
    assert_eq!(world.store.calls(), 5);
    assert_eq!(world.cache.broken_reason().unwrap().kind(), Kind::Retry);
}

/// T-068, T-125.
#[test]
fn a_failed_commit_breaks_the_gate_for_good() {
    for at_the_call in [true, false] {
        let world = World::new(&[("k", "0")]);
        let mut before = world.cache.output_gate().wait();
        world.put("k", "1");
        let mut wait = world.cache.output_gate().wait();
        let mut broken = Box::pin(world.cache.broken());
        assert!(poll(&mut broken).is_pending());
        if at_the_call {
            world.store.refuse(Kind::Unknown);
            world.env.run();
        } else {
            world.commit().fail(Kind::Unknown);
            world.env.run();
        }
        assert!(poll(&mut before).ready_and(|result| result.is_ok()));
        assert!(poll(&mut wait).ready_and(|result| result.is_err()));
        assert!(poll(&mut broken).is_ready());
        assert!(poll(&mut world.cache.output_gate().wait()).ready_and(|result| result.is_err()));
        assert!(now(world.cache.get(b"k", Read::default())).is_err());
        assert!(now(world.cache.put(b"k", bytes("2"), Write::default())).is_err());
        world.env.run();
        assert_eq!(world.store.calls(), 1, "nothing is tried after a final failure");
        assert!(world.cache.is_idle());
    }
}

/// T-126: the limit is each flush's own, and all its tries together have it.
#[test]
fn a_flush_that_takes_too_long_breaks_the_gate() {
    let limit = CacheLimits::PRODUCTION.flush_max;
    let world = World::new(&[]);
    world.put("k", "1");
    let quick = world.commit();
    world.env.pass(limit - Duration::from_millis(1));
    quick.succeed();
    world.env.run();
    world.put("k", "2");
    let again = world.commit();
    world.env.pass(limit / 2);
    again.fail(Kind::Retry);
    let _held = world.commit();
    world.env.pass(limit / 2 - Duration::from_millis(1));
    assert!(world.cache.broken_reason().is_none());
    world.env.pass(Duration::from_millis(1));
    assert_eq!(world.cache.broken_reason().unwrap().kind(), Kind::Overloaded);
    assert_eq!(world.env.tasks(), 0);
}

/// T-072.
#[test]
fn writes_wait_while_too_much_is_dirty() {
    let limits = CacheLimits::TINY;
    let world = World::with(contents(&[]), limits);
    let value = bytes(&"v".repeat(400));
    now(world.cache.put(b"a", value.clone(), Write::default())).unwrap();
    now(world.cache.put(b"b", value.clone(), Write::default())).unwrap();
    let mut third = world.cache.put(b"c", value, Write::default());
    assert!(world.cache.dirty_bytes() > limits.dirty_bytes_max);
    assert!(!third.is_ready() && poll(&mut third).is_pending());
    assert!(!world.cache.backpressure().is_ready());
    assert_eq!(world.get("c").unwrap().len(), 400, "in effect at once (R-215)");
    let first = world.commit();
    assert!(poll(&mut third).is_pending(), "in flight still counts");
    first.succeed();
    world.env.run();
    assert!(matches!(poll(&mut third), std::task::Poll::Ready(Ok(()))));
    assert!(world.cache.backpressure().is_ready());
}

#[test]
fn a_write_that_waits_fails_with_the_flush() {
    let world = World::with(contents(&[]), CacheLimits::TINY);
    let value = bytes(&"v".repeat(512));
    let entries = [(bytes("a"), value.clone()), (bytes("b"), value)];
    let mut answer = world.cache.put_many(&entries, Write::default());
    assert!(poll(&mut answer).is_pending());
    world.commit().fail(Kind::NoSpace);
    world.env.run();
    let std::task::Poll::Ready(Err(error)) = poll(&mut answer) else { panic!("must fail") };
    assert_eq!(error.kind(), Kind::NoSpace);
}

/// not performed, and the gate breaks when it would start. First reason wins.
#[test]
fn a_scheduled_flush_is_not_made_after_a_shutdown() {
    let world = World::new(&[]);
    world.put("k", "1");
    world.cache.shutdown(Error::new(Kind::Closed, "first"));
    world.cache.shutdown(Error::new(Kind::Retry, "second"));
    assert!(world.cache.broken_reason().is_none(), "not by the shutdown itself (R-389)");
    world.env.run();
    assert_eq!(world.store.calls(), 0);
    assert_eq!(world.cache.broken_reason().unwrap().message(), "first");
}

/// what is in flight is left to finish, and holds the gate as before.
#[test]
fn a_flush_in_flight_outlives_a_shutdown() {
    for outcome in [Ok(()), Err(Kind::Retry)] {
        let world = World::new(&[]);
        world.put("k", "1");
        let mut wait = world.cache.output_gate().wait();
        let commit = world.commit();
        world.cache.shutdown(Error::new(Kind::Closed, "over"));
        assert!(poll(&mut wait).is_pending());
        match outcome {
            Ok(()) => commit.succeed(),
            Err(kind) => commit.fail(kind),
        }
        world.env.run();
        assert!(poll(&mut wait).ready_and(|result| result.is_ok() == outcome.is_ok()));
        assert_eq!(world.cache.broken_reason().is_some(), outcome.is_err());
        assert_eq!(world.store.calls(), 1);
    }
}

///
#[test]
fn the_first_operation_after_a_shutdown_breaks_the_gate() {
    let operations: [fn(&World) -> Error; 4] = [
        |world| now(world.cache.get(b"k", Read::default())).unwrap_err(),
        |world| now(world.cache.get_alarm(Read::default())).unwrap_err(),
        |world| now(world.cache.set_alarm(Some(5), Write::default())).unwrap_err(),
        |world| now(world.cache.sync()).unwrap_err(),
    ];
    for operation in operations {
        let world = World::new(&[("k", "1")]);
        world.cache.shutdown(Error::new(Kind::Closed, "over"));
        world.env.run();
        assert!(world.cache.output_gate().is_open());
        assert_eq!(operation(&world).kind(), Kind::Closed);
        world.env.run();
        assert_eq!(world.cache.broken_reason().unwrap().kind(), Kind::Closed);
        assert!(!world.store.has_commit(), "nothing of it is written");
    }
}

/// nobody waits forever for a flusher that is gone.
#[test]
fn a_dropped_flusher_breaks_the_gate() {
    let world = World::new(&[]);
    world.put("k", "1");
    let mut wait = world.cache.output_gate().wait();
    let _held = world.commit();
    world.env.drop_tasks();
    assert!(poll(&mut wait).ready_and(|result| result.is_err()));
}

/// Says of a poll that it is over, and how.
trait ReadyAnd<T> {
    fn ready_and(self, check: impl FnOnce(T) -> bool) -> bool;
}

impl<T> ReadyAnd<T> for std::task::Poll<T> {
    fn ready_and(self, check: impl FnOnce(T) -> bool) -> bool {
        match self {
            std::task::Poll::Ready(value) => check(value),
            std::task::Poll::Pending => false,
        }
    }
}
