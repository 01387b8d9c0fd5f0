//! Workloads of the actor cache: one hot object in front of a shard, on the shard's core.

use std::collections::BTreeMap;
use std::future::{Ready, ready};
use std::hint::black_box;
use std::rc::Rc;

use bytes::Bytes;
use dormouse_cache::{ActorCache, Backing, Budget, CacheLimits, List, Read, Stored, Write};
use dormouse_engine::{Batch, Contents, Env, Limits, Resident, Result, Shard, Ticket, Version};
use futures_util::future::{FutureExt, LocalBoxFuture};

use crate::engine::{KEYS, key, object, value, with_shard};
use crate::rounds::{Rounds, Span};

/// Puts of one turn.
const TURN: u32 = 10;

/// The shard, as the cache of one object sees it.
pub struct Home<E: Env>(Shard<E>);

impl<E: Env> Backing for Home<E> {
    type Ticket = Ticket;

    fn commit(&self, batch: &Batch, resident: Option<&dyn Resident>) -> Result<Ticket> {
        self.0.commit(&object(0), batch, resident)
    }

    fn snapshot(&self) -> LocalBoxFuture<'static, Result<Rc<dyn Stored>>> {
        let shard = self.0.clone();
        async move { Ok(Rc::new(shard.snapshot(&object(0)).await?) as Rc<dyn Stored>) }
            .boxed_local()
    }
}

/// The cache of an object of so many keys, all of them durable.
pub async fn with_cache<E: Env, T>(
    env: &E,
    limits: Limits,
    keys: u32,
    visit: impl AsyncFnOnce(&ActorCache<E, Home<E>>) -> T,
) -> T {
    with_shard(env, limits, async |shard| {
        let contents = shard.load(&object(0)).await.expect("an object");
        let home = Home(shard.clone());
        let budget = Budget::new(usize::MAX);
        let cache = ActorCache::new(env, home, contents, CacheLimits::PRODUCTION, &budget);
        for number in 0..keys {
            put(&cache, number, Bytes::copy_from_slice(&value(u64::from(number)))).await;
        }
        cache.sync().await.expect("durable");
        let result = visit(&cache).await;
        cache.sync().await.expect("durable");
        result
    })
    .await
}

async fn put<E: Env>(cache: &ActorCache<E, Home<E>>, number: u32, value: Bytes) {
    cache.put(&key(number), value, Write::default()).await.expect("put");
}

/// Rounds of one get; the value is there or not.
pub async fn gets<E: Env, R>(
    cache: &ActorCache<E, Home<E>>,
    number: u32,
    rounds: Rounds,
    read: fn() -> R,
) -> Span<R> {
    let key = key(number);
    let get = async |_| {
        black_box(cache.get(black_box(&key), Read::default()).await.expect("got"));
    };
    rounds.span(read, get).await
}

/// One key after the other, each with the other value in turn: one that is there already costs nothing.
struct Overwrites {
    values: [Bytes; 2],
    keys: u32,
    next: u32,
}

impl Overwrites {
    fn new(keys: u32) -> Self {
        Self { values: [251, 252].map(|byte| Bytes::from(vec![byte; 100])), keys, next: 0 }
    }

    fn next(&mut self) -> (u32, Bytes) {
        let (key, round) = (self.next % self.keys, self.next / self.keys);
        self.next = (self.next + 1) % (2 * self.keys);
        (key, self.values[usize::from(round == 1)].clone())
    }
}

/// Rounds of one put over one of `keys` keys. No turn ends, so that nothing is flushed meanwhile.
pub async fn puts<E: Env, R>(
    cache: &ActorCache<E, Home<E>>,
    keys: u32,
    rounds: Rounds,
    read: fn() -> R,
) -> Span<R> {
    let mut overwrites = Overwrites::new(keys);
    let over = async |_| {
        let (key, value) = overwrites.next();
        put(cache, key, value).await;
    };
    rounds.span(read, over).await
}

/// Rounds of ten puts in one turn, durable before the next round.
pub async fn turns<E: Env, R>(
    cache: &ActorCache<E, Home<E>>,
    rounds: Rounds,
    read: fn() -> R,
) -> Span<R> {
    // As many as there are different ones: no put finds its value there already.
    let values: Vec<_> = (0..251).map(|n| Bytes::copy_from_slice(&value(n))).collect();
    let turn = async |round| {
        let value = &values[usize::try_from(round % 251).expect("small")];
        for number in 0..TURN {
            put(cache, number, value.clone()).await;
        }
        cache.sync().await.expect("durable");
    };
    rounds.span(read, turn).await
}

/// Rounds of one list of all `keys` keys.
pub async fn lists<E: Env, R>(
    cache: &ActorCache<E, Home<E>>,
    keys: usize,
    rounds: Rounds,
    read: fn() -> R,
) -> Span<R> {
    let list = List::all();
    let all = async |_| {
        let found = cache.list(black_box(&list), Read::default()).await.expect("listed");
        assert_eq!(found.len(), keys);
    };
    rounds.span(read, all).await
}

/// A store that has everything at once.
struct Nowhere;

impl Backing for Nowhere {
    type Ticket = Ready<Result<Version>>;

    fn commit(&self, _batch: &Batch, _resident: Option<&dyn Resident>) -> Result<Self::Ticket> {
        Ok(ready(Ok(Version(1))))
    }

    fn snapshot(&self) -> LocalBoxFuture<'static, Result<Rc<dyn Stored>>> {
        unreachable!("all is in the cache")
    }
}

/// Hot objects of [`gets_of_many`], of [`KEYS`] keys each.
const OBJECTS: u32 = 1000;

/// Which object's and which key's turn it is: each of them once in a round of all, in an order that no
/// prefetcher knows.
fn places() -> Vec<(usize, u32)> {
    let mut places: Vec<_> =
        (0..OBJECTS).flat_map(|object| (0..KEYS).map(move |key| (object as usize, key))).collect();
    let mut state = 1_u64;
    for last in (1..places.len()).rev() {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let other = usize::try_from(state >> 33).expect("31 bits") % (last + 1);
        places.swap(last, other);
    }
    places
}

/// Rounds of one get of one of the hot objects, another one each time.
pub async fn gets_of_many<E: Env, R>(env: &E, rounds: Rounds, read: fn() -> R) -> Span<R> {
    let budget = Budget::new(usize::MAX);
    let cache = |_| {
        let contents = Contents { map: map(KEYS), ..Contents::default() };
        ActorCache::new(env, Nowhere, contents, CacheLimits::PRODUCTION, &budget)
    };
    let caches: Vec<_> = (0..OBJECTS).map(cache).collect();
    let keys: Vec<_> = places().into_iter().map(|(object, number)| (object, key(number))).collect();
    let mut next = keys.iter().cycle();
    let get = async |_| {
        let (object, key) = next.next().expect("it cycles");
        black_box(caches[*object].get(key, Read::default()).await.expect("got"));
    };
    rounds.span(read, get).await
}

/// The same of as many maps.
pub async fn map_gets_of_many<R>(rounds: Rounds, read: fn() -> R) -> Span<R> {
    let maps: Vec<_> = (0..OBJECTS).map(|_| map(KEYS)).collect();
    let keys: Vec<_> = places().into_iter().map(|(object, number)| (object, key(number))).collect();
    let mut next = keys.iter().cycle();
    let get = async |_| {
        let (object, key) = next.next().expect("it cycles");
        black_box(maps[*object].get(&key[..]).cloned());
    };
    rounds.span(read, get).await
}

/// What a cache's costs are compared with: a map with the same contents.
pub fn map(keys: u32) -> BTreeMap<Bytes, Bytes> {
    let entry = |number: u32| {
        (Bytes::copy_from_slice(&key(number)), Bytes::copy_from_slice(&value(number.into())))
    };
    (0..keys).map(entry).collect()
}

/// As [`gets`], of a map: the value's handle is cloned, as a get's answer is one.
pub async fn map_gets<R>(
    map: &BTreeMap<Bytes, Bytes>,
    number: u32,
    rounds: Rounds,
    read: fn() -> R,
) -> Span<R> {
    let key = key(number);
    let get = async |_| {
        black_box(map.get(&black_box(&key)[..]).cloned());
    };
    rounds.span(read, get).await
}

/// As [`puts`], into a map.
pub async fn map_puts<R>(
    map: &mut BTreeMap<Bytes, Bytes>,
    keys: u32,
    rounds: Rounds,
    read: fn() -> R,
) -> Span<R> {
    let mut overwrites = Overwrites::new(keys);
    let over = async |_| {
        let (number, value) = overwrites.next();
        *map.get_mut(&key(number)[..]).expect("there") = value;
    };
    rounds.span(read, over).await
}

/// As [`lists`], of a map: handles of all keys and values.
pub async fn map_lists<R>(
    map: &BTreeMap<Bytes, Bytes>,
    rounds: Rounds,
    read: fn() -> R,
) -> Span<R> {
    let all = async |_| {
        let entries = black_box(map).iter().map(|(key, value)| (key.clone(), value.clone()));
        let mut found = Vec::with_capacity(map.len());
        found.extend(entries);
        black_box(found);
    };
    rounds.span(read, all).await
}
