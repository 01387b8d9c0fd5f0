//! Transactions: all or nothing, seen from inside at once.

use dormouse_cache::{AlarmToo, CacheLimits, List, Read, Write};
use dormouse_engine::{Error, Kind};

use super::{World, bytes, code, contents, now, pairs, poll, show};

/// T-094, section 0: storage calls take part.
#[test]
fn changes_are_seen_at_once_and_committed_together() {
    let world = World::new(&[("a", "1"), ("b", "2")]);
    let txn = world.cache.begin();
    now(txn.put(b"c", bytes("3"), Write::default())).unwrap();
    assert!(now(txn.delete(b"a", Write::default())).unwrap());
    assert!(!now(txn.delete(b"a", Write::default())).unwrap());
    world.put("d", "4");
    assert_eq!(world.all(), "b=2 c=3 d=4");
    world.env.run();
    assert_eq!(world.store.calls(), 0);
    assert!(world.cache.output_gate().is_open() && !world.cache.is_idle());
    now(txn.commit()).unwrap();
    assert!(!world.cache.output_gate().is_open());
    let commit = world.commit();
    assert_eq!(commit.show(), "-a c=3 d=4");
    commit.succeed();
    world.env.run();
    assert!(world.cache.is_idle());
}

/// T-095, T-102, T-103.
#[test]
fn dropped_it_leaves_nothing() {
    let world = World::new(&[("a", "1")]);
    let txn = world.cache.begin();
    now(txn.put(b"a", bytes("2"), Write::default())).unwrap();
    world.put("b", "2");
    now(txn.set_alarm(Some(5), Write::default())).unwrap();
    assert_eq!(now(world.cache.get_alarm(Read::default())).unwrap(), Some(5));
    drop(txn);
    assert_eq!((world.all().as_str(), world.cache.stored_alarm()), ("a=1", None));
    assert!(world.cache.is_idle() && world.cache.output_gate().is_open());
}

/// A flush that runs meanwhile writes what was written before, and nothing of the transaction.
#[test]
fn a_flush_meanwhile_has_none_of_its_changes() {
    let world = World::new(&[]);
    world.put("k", "before");
    let txn = world.cache.begin();
    now(txn.put(b"k", bytes("inside"), Write::default())).unwrap();
    let mut sync = world.cache.sync();
    let commit = world.commit();
    assert_eq!(commit.show(), "k=before");
    commit.succeed();
    world.env.run();
    assert!(poll(&mut sync).is_ready());
    assert_eq!(world.get("k").as_deref(), Some("inside"));
    now(txn.commit()).unwrap();
    assert_eq!(world.commit().show(), "k=inside");
}

/// T-096, T-097.
#[test]
fn after_its_end_the_handle_is_dead() {
    let world = World::new(&[("a", "1")]);
    let txn = world.cache.begin();
    now(txn.put(b"a", bytes("2"), Write::default())).unwrap();
    txn.rollback().unwrap();
    txn.rollback().unwrap();
    assert!(txn.is_rolled_back());
    assert_eq!(code(txn.get(b"a", Read::default())), "transaction-rolled-back");
    assert_eq!(code(txn.set_alarm(None, Write::default())), "transaction-rolled-back");
    world.put("b", "2");
    now(txn.commit()).unwrap();
    assert_eq!(world.all(), "a=1 b=2");

    let txn = world.cache.begin();
    now(txn.commit()).unwrap();
    assert_eq!(code(txn.put(b"a", bytes("3"), Write::default())), "transaction-ended");
    assert_eq!(code(txn.commit()), "transaction-ended");
    assert_eq!(txn.rollback().unwrap_err().code(), Some("transaction-ended"));
}

/// T-098: through either handle, and the transaction goes on.
#[test]
fn delete_all_is_refused_inside() {
    let world = World::new(&[("a", "1")]);
    let txn = world.cache.begin();
    let refused = "delete-all-in-transaction";
    assert_eq!(code(txn.delete_all(AlarmToo::Keep, Write::default())), refused);
    assert_eq!(code(world.cache.delete_all(AlarmToo::Keep, Write::default())), refused);
    now(txn.put(b"b", bytes("2"), Write::default())).unwrap();
    now(txn.commit()).unwrap();
    now(world.cache.delete_all(AlarmToo::Keep, Write::default())).unwrap();
    assert_eq!(world.commit().show(), "delete-all");
}

/// T-105: nested ones are savepoints.
#[test]
fn nested_transactions_are_savepoints() {
    let world = World::new(&[("a", "1")]);
    let outer = world.cache.begin();
    now(outer.put(b"a", bytes("outer"), Write::default())).unwrap();
    let inner = world.cache.begin();
    now(inner.put(b"a", bytes("inner"), Write::default())).unwrap();
    now(inner.set_alarm(Some(9), Write::default())).unwrap();
    assert_eq!(outer.rollback().unwrap_err().code(), Some("transaction-nested-open"));
    assert_eq!(code(outer.commit()), "transaction-nested-open");
    inner.rollback().unwrap();
    assert_eq!(world.all(), "a=outer");
    assert_eq!(now(outer.get_alarm(Read::default())).unwrap(), None);

    let inner = world.cache.begin();
    now(inner.delete(b"a", Write::default())).unwrap();
    now(inner.put(b"b", bytes("inner"), Write::default())).unwrap();
    now(inner.commit()).unwrap();
    assert_eq!(world.all(), "b=inner");
    world.env.run();
    assert_eq!(world.store.calls(), 0, "only the outermost commit writes");
    drop(outer);
    assert_eq!(world.all(), "a=1");
}

#[test]
fn the_outer_one_dropped_takes_the_inner_along() {
    let world = World::new(&[]);
    let outer = world.cache.begin();
    let inner = world.cache.begin();
    now(inner.put(b"a", bytes("1"), Write::default())).unwrap();
    drop(outer);
    assert!(inner.is_rolled_back() && world.cache.is_idle());
    assert_eq!(code(inner.commit()), "transaction-rolled-back", "nobody asked for that");
    inner.rollback().unwrap();
    now(inner.commit()).unwrap();
    let next = world.cache.begin();
    drop(inner);
    now(next.put(b"b", bytes("2"), Write::default())).unwrap();
    now(next.commit()).unwrap();
    assert_eq!(world.all(), "b=2");
}

/// T-100: merged, then cut.
#[test]
fn lists_inside_are_cut_after_the_merge() {
    let world = World::new(&[("a", "1"), ("c", "3"), ("e", "5"), ("g", "7")]);
    let txn = world.cache.begin();
    for key in [b"b", b"e"] {
        now(txn.put(key, bytes("new"), Write::default())).unwrap();
    }
    now(txn.delete(b"a", Write::default())).unwrap();
    now(txn.delete(b"g", Write::default())).unwrap();
    let list = |list: List| show(&pairs(now(txn.list(&list, Read::default()))));
    assert_eq!(list(List::all().limit(2)), "b=new c=3");
    assert_eq!(list(List::all().reverse().limit(2)), "e=new c=3");
    assert_eq!(list(List::all().start("f")), "");
    let keys: [&[u8]; 3] = [b"b", b"a", b"c"];
    assert_eq!(show(&now(txn.get_many(&keys, Read::default())).unwrap()), "b=new c=3");
    assert_eq!(now(txn.delete_many(&keys, Write::default())).unwrap(), 2);
}

/// R-336 at commit, R-426.
#[test]
fn commit_suppresses_what_changes_nothing_and_keeps_confirmation() {
    let world = World::new(&[("a", "1")]);
    let txn = world.cache.begin();
    now(txn.put(b"a", bytes("2"), Write::default())).unwrap();
    now(txn.put(b"a", bytes("1"), Write::default())).unwrap();
    now(txn.delete(b"missing", Write::default())).unwrap();
    now(txn.commit()).unwrap();
    assert!(world.cache.is_idle());

    let txn = world.cache.begin();
    now(txn.put(b"a", bytes("2"), Write::allow_unconfirmed())).unwrap();
    now(txn.commit()).unwrap();
    assert!(world.cache.output_gate().is_open() && !world.cache.is_idle());
    let txn = world.cache.begin();
    now(txn.put(b"b", bytes("2"), Write::default())).unwrap();
    let inner = world.cache.begin();
    now(inner.put(b"b", bytes("3"), Write::allow_unconfirmed())).unwrap();
    now(inner.commit()).unwrap();
    now(txn.commit()).unwrap();
    assert!(!world.cache.output_gate().is_open(), "one of the two was confirmed");
}

#[test]
fn nothing_is_committed_after_a_shutdown() {
    let world = World::new(&[]);
    let txn = world.cache.begin();
    now(txn.put(b"a", bytes("1"), Write::default())).unwrap();
    world.cache.shutdown(Error::new(Kind::Closed, "over"));
    assert_eq!(now(txn.commit()).unwrap_err().kind(), Kind::Closed);
    drop(txn);
    world.env.run();
    assert_eq!(world.store.calls(), 0);
}

/// puts inside are answered at once, whatever they add up to.
#[test]
fn only_the_commit_waits_for_room() {
    let world = World::with(contents(&[]), CacheLimits::TINY);
    let txn = world.cache.begin();
    for key in [b"a", b"b", b"c"] {
        now(txn.put(key, bytes(&"v".repeat(500)), Write::default())).unwrap();
    }
    let mut committed = txn.commit();
    assert!(poll(&mut committed).is_pending());
    world.settle();
    assert!(poll(&mut committed).is_ready());
}
