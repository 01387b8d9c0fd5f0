//! W4 and W6: gets and lists of what is in memory.

use std::hint::black_box;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Result, ensure};
use dormouse_cache::{ActorCache, Backing, Budget, CacheLimits, Read, Stored};
use dormouse_engine::real::RealEnv;
use dormouse_engine::{Batch, List, ObjectId, Resident, Shard, Ticket};
use futures_util::future::{FutureExt, LocalBoxFuture};

use crate::context::Context;
use crate::data::{self, HOT_KEYS, HOT_OBJECT, Id, KEYS, Key, LIST_KEYS, LIST_OBJECT, Rng};
use crate::engines::{Engine, dormouse};
use crate::floor;
use crate::stats::closed_loop;

/// Objects whose keys are read in W4b.
pub(crate) const HOT_OBJECTS: u64 = 1_000;
/// Gets of one read transaction.
const GETS: usize = 4_096;

/// An object's number among those that are read, and the key.
pub(crate) type Wanted = (u64, Key);

/// Random keys of the hot object.
pub(crate) fn hot_keys(rng: &mut Rng) -> Vec<Wanted> {
    (0..GETS).map(|_| (HOT_OBJECT, data::key(rng.below(HOT_KEYS)))).collect()
}

/// Random keys of the first thousand objects.
pub(crate) fn keys_of_many(rng: &mut Rng) -> Vec<Wanted> {
    let objects = HOT_OBJECTS;
    (0..GETS).map(|_| (rng.below(objects), data::key(rng.below(KEYS)))).collect()
}

/// Gets `keys` again and again; nanoseconds for each get.
pub(crate) fn time_gets(
    time: Duration,
    keys: &[Wanted],
    mut get: impl FnMut(&Wanted) -> bool,
) -> Result<f64> {
    let timing = closed_loop(time, || {
        let found = keys.iter().filter(|wanted| get(wanted)).count();
        ensure!(found == keys.len(), "{} of {} keys are there", found, keys.len());
        Ok(found as u64)
    })?;
    Ok(timing.mean_us() * 1e3)
}

/// W4a and W4b.
pub(crate) fn gets(context: &mut Context) -> Result<()> {
    match context.engine {
        Engine::Floor => floor::gets(context),
        Engine::Dormouse => cached_gets(context),
        _ => peer_gets(context),
    }
}

/// The keys of W4b, of the objects that this engine has.
fn keys_there(context: &Context, rng: &mut Rng) -> Vec<Wanted> {
    let objects = context.objects();
    keys_of_many(rng).into_iter().map(|(object, key)| (object % objects, key)).collect()
}

fn with_ids(wanted: &[Wanted]) -> Vec<(Id, Key)> {
    wanted.iter().map(|(object, key)| (data::id(*object), *key)).collect()
}

fn peer_gets(context: &mut Context) -> Result<()> {
    let (mut rng, time) = (context.rng(), context.settings.measure);
    for (workload, wanted) in [("W4a", hot_keys(&mut rng)), ("W4b", keys_there(context, &mut rng))]
    {
        let mut keys = with_ids(&wanted);
        // An engine with a file for each object has a transaction for each: one after the other.
        if context.engine.has_file_per_object() {
            keys.sort_unstable();
        }
        let timing = context.with_peer(|peer| {
            closed_loop(time, || {
                let bytes = peer.get_many(&keys)?;
                ensure!(bytes == 100 * keys.len() as u64, "a key is missing");
                Ok(keys.len() as u64)
            })
        })?;
        context.record(workload, "time", timing.mean_us() * 1e3);
    }
    Ok(())
}

/// An object's home in a shard: what its cache commits to.
struct Home {
    shard: Shard<RealEnv>,
    id: ObjectId,
}

impl Backing for Home {
    type Ticket = Ticket;

    fn commit(
        &self,
        batch: &Batch,
        resident: Option<&dyn Resident>,
    ) -> dormouse_engine::Result<Ticket> {
        self.shard.commit(&self.id, batch, resident)
    }

    fn snapshot(&self) -> LocalBoxFuture<'static, dormouse_engine::Result<Rc<dyn Stored>>> {
        let (shard, id) = (self.shard.clone(), self.id);
        async move { Ok(Rc::new(shard.snapshot(&id).await?) as Rc<dyn Stored>) }.boxed_local()
    }
}

type Cache = ActorCache<RealEnv, Home>;

async fn cache_of(env: &RealEnv, shard: &Shard<RealEnv>, number: u64) -> Result<Cache> {
    let id = dormouse::object(number);
    let contents = shard.load(&id).await?;
    let home = Home { shard: shard.clone(), id };
    let budget = Budget::new(usize::MAX);
    Ok(ActorCache::new(env, home, contents, CacheLimits::PRODUCTION, &budget))
}

fn hit(cache: &Cache, key: &Key) -> bool {
    let answer = black_box(cache.get(black_box(key), Read::default())).try_ready();
    matches!(answer, Ok(Ok(Some(value))) if value.len() == 100)
}

fn cached_gets(context: &mut Context) -> Result<()> {
    let (dir, cpu) = (context.dir(), context.device.cpu);
    let (mut rng, time) = (context.rng(), context.settings.measure);
    let objects = context.objects();
    let (hot, many) = (hot_keys(&mut rng), keys_of_many(&mut rng));
    let figures = dormouse::on_core(&dir, cpu, async move |env, shard| {
        let one = cache_of(&env, &shard, HOT_OBJECT).await?;
        let mut caches = Vec::new();
        for number in 0..HOT_OBJECTS {
            caches.push(cache_of(&env, &shard, number % objects).await?);
        }
        let caches = Rc::new(caches);
        let of = |object: &u64| &caches[usize::try_from(*object).expect("an index")];
        let mut from_one = |(_, key): &Wanted| hit(&one, key);
        let mut from_many = |(object, key): &Wanted| hit(of(object), key);
        Ok([
            (time_gets(time, &hot, &mut from_one)?, allocations(&hot, &mut from_one)),
            (time_gets(time, &many, &mut from_many)?, allocations(&many, &mut from_many)),
        ])
    })?;
    for (workload, (time, allocations)) in ["W4a", "W4b"].into_iter().zip(figures) {
        context.record(workload, "time", time);
        context.record(workload, "allocations", allocations);
    }
    Ok(())
}

/// Allocations of one get.
fn allocations(keys: &[Wanted], get: &mut impl FnMut(&Wanted) -> bool) -> f64 {
    let counted = allocation_counter::measure(|| {
        for wanted in keys {
            black_box(get(wanted));
        }
    });
    counted.count_total as f64 / keys.len() as f64
}

/// W4b through the engine alone: `Object`, and each get of a peer by itself.
pub(crate) fn single_gets(context: &mut Context) -> Result<()> {
    let (mut rng, time) = (context.rng(), context.settings.measure);
    let wanted = keys_there(context, &mut rng);
    let nanoseconds = if context.engine == Engine::Dormouse {
        let store = dormouse::store(&context.handle_dir())?;
        let mut failed = None;
        let mut get = |(object, key): &Wanted| match store
            .object(dormouse::object(*object))
            .get(key)
            .wait()
        {
            Ok(value) => value.is_some_and(|value| value.len() == 100),
            Err(error) => {
                failed = Some(error);
                false
            }
        };
        // Hot: each object was read before.
        for wanted in &wanted {
            get(wanted);
        }
        let timed = single(time, &wanted, &mut get);
        failed.map_or(Ok(()), Err)?;
        store.close().wait()?;
        timed?
    } else {
        let keys = with_ids(&wanted);
        context.with_peer(|peer| {
            let mut at = 0;
            let timing = closed_loop(time, || {
                let (object, key) = &keys[at % keys.len()];
                at += 1;
                ensure!(peer.get(object, key)? == 100, "a key is missing");
                Ok(1)
            })?;
            Ok(timing.mean_us() * 1e3)
        })?
    };
    context.record("W4b-single", "time", nanoseconds);
    Ok(())
}

/// One get for each call, so that slow ones end in time.
fn single(time: Duration, keys: &[Wanted], get: &mut impl FnMut(&Wanted) -> bool) -> Result<f64> {
    let mut at = 0;
    let timing = closed_loop(time, || {
        ensure!(get(&keys[at % keys.len()]), "a key is missing");
        at += 1;
        Ok(1)
    })?;
    Ok(timing.mean_us() * 1e3)
}

/// W6: all keys of the object of 1,000.
pub(crate) fn lists(context: &mut Context) -> Result<()> {
    let time = context.settings.measure;
    if context.engine != Engine::Dormouse {
        let object = data::id(LIST_OBJECT);
        let timing = context.with_peer(|peer| {
            closed_loop(time, || {
                let (keys, bytes) = peer.list(&object)?;
                ensure!(keys == LIST_KEYS && bytes == LIST_KEYS * 100, "{keys} keys");
                Ok(1)
            })
        })?;
        context.record("W6", "time", timing.mean_us());
        return Ok(());
    }
    let (dir, cpu) = (context.dir(), context.device.cpu);
    let cached = dormouse::on_core(&dir, cpu, async move |env, shard| {
        let cache = cache_of(&env, &shard, LIST_OBJECT).await?;
        let timing = closed_loop(time, || {
            let answer = cache.list(&List::all(), Read::default()).try_ready();
            let Ok(entries) = answer else { anyhow::bail!("the list waits") };
            let bytes: usize = black_box(entries?).iter().map(|(_, value)| value.len()).sum();
            ensure!(bytes as u64 == LIST_KEYS * 100, "{bytes} bytes");
            Ok(1)
        })?;
        Ok(timing.mean_us())
    })?;
    context.record("W6", "time", cached);
    let store = dormouse::store(&context.handle_dir())?;
    let object = store.object(dormouse::object(LIST_OBJECT));
    let timing = closed_loop(time, || {
        let (mut keys, mut bytes) = (0, 0);
        for entry in object.list(List::all()).blocking() {
            keys += 1;
            bytes += entry?.1.len() as u64;
        }
        ensure!(keys == LIST_KEYS && bytes == LIST_KEYS * 100, "{keys} keys");
        Ok(1)
    })?;
    store.close().wait()?;
    context.record("W6-object", "time", timing.mean_us());
    Ok(())
}
