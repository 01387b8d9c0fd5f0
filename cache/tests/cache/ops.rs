//! The operations' results, limits and argument checks.

use bytes::Bytes;
use dormouse_cache::{CacheLimits, List, Read, Write};

use super::{World, bytes, code, contents, now, pairs, show};

fn list(world: &World, list: List) -> String {
    show(&pairs(now(world.cache.list(&list, Read::default()))))
}

/// T-023.
#[test]
fn get_many_is_ascending_each_key_once() {
    let world = World::new(&[("a", "1"), ("b", "2"), ("c", "3")]);
    let found = now(world.cache.get_many(&[b"b", b"a", b"zz", b"b"], Read::default())).unwrap();
    assert_eq!(show(&found), "a=1 b=2");
    assert!(now(world.cache.get_many(&[], Read::default())).unwrap().is_empty());
}

/// T-025.
#[test]
fn deletes_are_counted_as_the_object_sees_them() {
    let world = World::new(&[("a", "1"), ("b", "2")]);
    assert!(!world.delete("missing"));
    world.put("new", "x");
    let keys: [&[u8]; 4] = [b"a", b"a", b"new", b"missing"];
    assert_eq!(now(world.cache.delete_many(&keys, Write::default())).unwrap(), 2);
    assert!(!world.delete("a") && world.delete("b"));
    assert_eq!(now(world.cache.delete_many(&[], Write::default())).unwrap(), 0);
}

/// a key given twice gets its last value.
#[test]
fn put_many_applies_in_order() {
    let world = World::new(&[]);
    let entries = [(bytes("k"), bytes("1")), (bytes("j"), bytes("")), (bytes("k"), bytes("2"))];
    now(world.cache.put_many(&entries, Write::default())).unwrap();
    assert_eq!(world.all(), "j= k=2");
}

/// T-018, T-019, T-108 (R-204, R-205, section 0), on the bytes.
#[test]
fn keys_and_values_are_limited_in_bytes() {
    let world = World::new(&[]);
    let limits = CacheLimits::PRODUCTION;
    let (fits, over) = ("k".repeat(limits.key_bytes_max), "é".repeat(1025));
    let value = Bytes::from(vec![0; limits.value_bytes_max]);
    now(world.cache.put(fits.as_bytes(), value.clone(), Write::default())).unwrap();
    let over = over.as_bytes();
    assert_eq!(over.len(), limits.key_bytes_max + 2);
    let large = Bytes::from(vec![0; limits.value_bytes_max + 1]);
    let txn = world.cache.begin();
    assert_eq!(code(txn.put(over, value.clone(), Write::default())), "key-too-large");
    assert_eq!(code(txn.put(b"k", large.clone(), Write::default())), "value-too-large");
    txn.rollback().unwrap();
    let cache = &world.cache;
    assert_eq!(code(cache.put(over, value, Write::default())), "key-too-large");
    assert_eq!(code(cache.put(b"k", large, Write::default())), "value-too-large");
    assert_eq!(code(cache.get(over, Read::default())), "key-too-large");
    assert_eq!(code(cache.get_many(&[over], Read::default())), "key-too-large");
    assert_eq!(code(cache.delete(over, Write::default())), "key-too-large");
    assert_eq!(code(cache.delete_many(&[over], Write::default())), "key-too-large");
    now(cache.list(&List::prefix(over).start(over).end(over), Read::default())).unwrap();
    // The figures, but not the key.
    let error = now(cache.delete(over, Write::default())).unwrap_err();
    assert_eq!(error.message(), "key of 2050 bytes, at most 2048 are allowed");
}

/// T-020 (R-206, section 0).
#[test]
fn calls_but_delete_take_at_most_128_keys() {
    let world = World::new(&[]);
    let names: Vec<String> = (0..129).map(|n| format!("k{n}")).collect();
    let keys: Vec<&[u8]> = names.iter().map(|name| name.as_bytes()).collect();
    let entries: Vec<_> = names.iter().map(|name| (bytes(name), bytes("v"))).collect();
    let cache = &world.cache;
    assert_eq!(code(cache.put_many(&entries, Write::default())), "too-many-keys");
    assert_eq!(code(cache.get_many(&keys, Read::default())), "too-many-keys");
    now(cache.put_many(&entries[..128], Write::default())).unwrap();
    assert_eq!(now(cache.get_many(&keys[..128], Read::default())).unwrap().len(), 128);
    // All but this one.
    assert_eq!(now(cache.delete_many(&keys, Write::default())).unwrap(), 128);
}

/// T-022.
#[test]
fn a_call_that_is_refused_applies_nothing() {
    let world = World::with(contents(&[("a", "1")]), CacheLimits::TINY);
    let large = bytes(&"v".repeat(513));
    let entries = [(bytes("b"), bytes("2")), (bytes("c"), large)];
    assert_eq!(code(world.cache.put_many(&entries, Write::default())), "value-too-large");
    let long = "k".repeat(65);
    let keys: [&[u8]; 2] = [b"a", long.as_bytes()];
    assert_eq!(code(world.cache.delete_many(&keys, Write::default())), "key-too-large");
    assert_eq!(world.all(), "a=1");
    assert!(world.cache.is_idle());
}

/// T-016, T-017.
#[test]
fn order_is_that_of_the_bytes_and_the_empty_key_is_first() {
    let world = World::new(&[]);
    for key in ["\u{1F600}", "z", "é", "", "\u{FFFD}", "a"] {
        world.put(key, "");
    }
    assert_eq!(world.all(), "= a= z= é= \u{FFFD}= \u{1F600}=");
}

/// T-028–T-030.
#[test]
fn lists_at_their_edges() {
    let world = World::new(&[("a", "1"), ("b", "2"), ("b\0", "3"), ("b1", "4"), ("c", "5")]);
    assert_eq!(list(&world, List::all().start("b").end("c")), "b=2 b\0=3 b1=4");
    assert_eq!(list(&world, List::all().start_after("b")), "b\0=3 b1=4 c=5");
    assert_eq!(list(&world, List::prefix("b").start_after("b").limit(1)), "b\0=3");
    assert_eq!(list(&world, List::all().reverse().limit(2)), "c=5 b1=4");
    assert_eq!(list(&world, List::prefix("b").reverse().end("b1")), "b\0=3 b=2");
    assert_eq!(list(&world, List::prefix("").limit(1)), "a=1");
    for empty in [
        List::prefix("a").end("a"),
        List::prefix("b").start("c"),
        List::all().start("c").end("b"),
        List::all().start("b").end("b"),
        List::all().start_after("b").end("b"),
        List::all().end(""),
    ] {
        assert_eq!(list(&world, empty), "");
    }
}

/// a prefix of 0xFF bytes has no end.
#[test]
fn prefixes_that_end_in_ff() {
    let world = World::new(&[]);
    for key in [&[0xFF][..], &[0xFF, 0xFF, 1], &[7, 0xFF], &[7, 0xFF, 9], &[8]] {
        now(world.cache.put(key, Bytes::new(), Write::default())).unwrap();
    }
    let count = |prefix: &[u8]| {
        now(world.cache.list(&List::prefix(prefix), Read::default())).unwrap().len()
    };
    assert_eq!((count(&[0xFF]), count(&[0xFF, 0xFF]), count(&[7, 0xFF])), (2, 1, 2));
}

/// T-027: also where the range is empty.
#[test]
fn bad_arguments_of_lists() {
    let world = World::new(&[]);
    for bad in [
        List::all().limit(0),
        List::all().limit(-1).start("b").end("a"),
        List::all().start("a").start_after("a"),
    ] {
        assert_eq!(code(world.cache.list(&bad, Read::default())), "bad-argument");
    }
    assert_eq!(list(&world, List::all().limit(i64::MAX)), "");
}

/// Small values are copied, large ones shared; either is right from both ends and as handles.
#[test]
fn entries_of_a_list_are_what_was_put() {
    let world = World::new(&[]);
    let sizes = [0, 1, 1024, 1025, 5000, 3];
    let entries = sizes.map(|size| (bytes(&size.to_string()), Bytes::from(vec![1; size])));
    now(world.cache.put_many(&entries, Write::default())).unwrap();
    let mut entries = Vec::from(entries);
    entries.sort();
    let listed = now(world.cache.list(&List::all(), Read::default())).unwrap();
    let slices = |(key, value): &(Bytes, Bytes)| (key.to_vec(), value.to_vec());
    let mut wanted: Vec<_> = entries.iter().map(slices).collect();
    let found = |(key, value): (&[u8], &[u8])| (key.to_vec(), value.to_vec());
    assert_eq!(listed.iter().map(found).collect::<Vec<_>>(), wanted);
    wanted.reverse();
    assert_eq!(listed.iter().rev().map(found).collect::<Vec<_>>(), wanted);
    assert_eq!((listed.len(), listed.is_empty()), (6, false));
    assert_eq!(pairs(Ok(listed)), entries);
}

/// the result is that of the call.
#[test]
fn results_are_snapshots() {
    let world = World::new(&[("a", "1")]);
    let listed = world.cache.list(&List::all(), Read::default());
    let got = world.cache.get(b"a", Read::default());
    world.put("a", "2");
    world.put("b", "3");
    assert_eq!(show(&pairs(now(listed))), "a=1");
    assert_eq!(now(got).unwrap(), Some(bytes("1")));
}

/// no lock is needed, for the cache is its core's alone. Were it `Send`, this would be
/// ambiguous and not compile.
#[test]
fn a_cache_belongs_to_one_core() {
    trait Belongs<Place> {
        fn to_one_core() {}
    }
    struct Anywhere;
    impl<T> Belongs<()> for T {}
    impl<T: Send> Belongs<Anywhere> for T {}
    <super::Cache as Belongs<_>>::to_one_core();
}
