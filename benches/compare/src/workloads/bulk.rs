//! W7: the bulk load that every other workload starts from, and overwrites.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use dormouse_engine::real::RealEnv;
use dormouse_engine::{Batch, ObjectId, Shard};

use crate::context::Context;
use crate::data::{self, HOT_KEYS, HOT_OBJECT, KEYS, LIST_KEYS, LIST_OBJECT, PUT_BYTES, Put, Rng};
use crate::engines::{Engine, Peer, dormouse};
use crate::machine;

/// Objects of one durable group of the load.
const LOAD_OBJECTS: u64 = 10_000;
/// Puts of one durable group of the overwrites.
const OVERWRITE_PUTS: usize = 4_000;
/// How often each key is overwritten.
const OVERWRITES: u64 = 3;
/// Commits on their way at a time where a store's mailboxes bound them.
const WINDOW: usize = 4_000;

/// Records rate and amplifications of `keys` keys that were written since `written`.
fn record(
    context: &mut Context,
    workload: &str,
    keys: u64,
    time: Duration,
    written: u64,
) -> Result<()> {
    let dir = context.dir();
    machine::sync(&dir)?;
    let bytes = machine::written_bytes()?.saturating_sub(written);
    let live = (context.objects() * KEYS * PUT_BYTES) as f64;
    context.record(workload, "rate", keys as f64 / time.as_secs_f64());
    context.record(workload, "write-amp", bytes as f64 / (keys * PUT_BYTES) as f64);
    context.record(workload, "space-amp", machine::disk_bytes(&dir)? as f64 / live);
    Ok(())
}

/// Loads the objects in durable groups, and settles; then the objects that W4 and W6 read.
pub(crate) fn load(context: &mut Context) -> Result<()> {
    let (dir, objects, mut rng) = (context.dir(), context.objects(), context.rng());
    let written = machine::written_bytes()?;
    let time = match context.engine {
        Engine::Dormouse => load_shard(&dir, objects, rng.next())?,
        _ => {
            let time = context.with_peer(|peer| load_peer(peer, objects, &mut rng))?;
            let peer = context.open()?;
            peer.settle()?;
            peer.close()?;
            time
        }
    };
    record(context, "W7-load", objects * KEYS, time, written)?;
    if context.engine == Engine::Dormouse {
        let handle_dir = context.handle_dir();
        load_store(&handle_dir, objects, &mut rng)?;
        record_disk(context, &handle_dir)?;
        return large_objects_of_shard(&dir, rng.next())
            .and(large_objects_of_store(&handle_dir, &mut rng));
    }
    record_disk(context, &dir)?;
    let peer = context.open()?;
    for (object, keys) in [(LIST_OBJECT, LIST_KEYS), (HOT_OBJECT, HOT_KEYS)] {
        peer.commit(&puts_of(&mut rng, object, keys))?;
    }
    peer.close()
}

/// W9's blocks on disk, before anything but the load was written.
fn record_disk(context: &mut Context, dir: &Path) -> Result<()> {
    let bytes = machine::disk_bytes(dir)?;
    context.record("W9", "disk", bytes as f64 / context.objects() as f64);
    Ok(())
}

fn puts_of(rng: &mut Rng, object: u64, keys: u64) -> Vec<Put> {
    (0..keys).map(|number| data::put(rng, object, number)).collect()
}

fn load_peer(peer: &dyn Peer, objects: u64, rng: &mut Rng) -> Result<Duration> {
    let began = Instant::now();
    let mut next = 0;
    while next < objects {
        let group = next..objects.min(next + LOAD_OBJECTS);
        next = group.end;
        let puts: Vec<_> = group.flat_map(|object| puts_of(rng, object, KEYS)).collect();
        peer.commit(&puts)?;
    }
    Ok(began.elapsed())
}

/// Appends commits, and waits until all of them are durable.
async fn group(
    shard: &Shard<RealEnv>,
    commits: impl Iterator<Item = (ObjectId, Batch)>,
) -> Result<()> {
    let tickets = commits.map(|(id, batch)| shard.commit(&id, &batch, None));
    for ticket in tickets.collect::<dormouse_engine::Result<Vec<_>>>()? {
        ticket.await?;
    }
    Ok(())
}

fn load_shard(dir: &Path, objects: u64, seed: u64) -> Result<Duration> {
    dormouse::on_core(dir, None, async move |_, shard| {
        let mut rng = Rng::new(seed);
        let began = Instant::now();
        let mut next = 0;
        while next < objects {
            let numbers = next..objects.min(next + LOAD_OBJECTS);
            next = numbers.end;
            let commits = numbers.map(|number| {
                (dormouse::object(number), dormouse::batch(&puts_of(&mut rng, number, KEYS)))
            });
            group(&shard, commits).await?;
        }
        let took = began.elapsed();
        shard.compact().await?;
        Ok(took)
    })
}

fn large_objects_of_shard(dir: &Path, seed: u64) -> Result<()> {
    dormouse::on_core(dir, None, async move |_, shard| {
        let mut rng = Rng::new(seed);
        let objects = [(LIST_OBJECT, LIST_KEYS), (HOT_OBJECT, HOT_KEYS)];
        let commits = objects.map(|(number, keys)| {
            (dormouse::object(number), dormouse::batch(&puts_of(&mut rng, number, keys)))
        });
        group(&shard, commits.into_iter()).await
    })
}

/// Loads the second store, through its handles.
fn load_store(dir: &Path, objects: u64, rng: &mut Rng) -> Result<()> {
    let store = dormouse::store(dir)?;
    let mut calls = Vec::new();
    for number in 0..objects {
        let batch = dormouse::batch(&puts_of(rng, number, KEYS));
        calls.push(store.object(dormouse::object(number)).commit(batch));
        if calls.len() == WINDOW || number + 1 == objects {
            calls.drain(..).try_for_each(|call| call.wait().map(drop))?;
        }
    }
    store.compact().wait()?;
    Ok(store.close().wait()?)
}

fn large_objects_of_store(dir: &Path, rng: &mut Rng) -> Result<()> {
    let store = dormouse::store(dir)?;
    for (number, keys) in [(LIST_OBJECT, LIST_KEYS), (HOT_OBJECT, HOT_KEYS)] {
        let batch = dormouse::batch(&puts_of(rng, number, keys));
        store.object(dormouse::object(number)).commit(batch).wait()?;
    }
    Ok(store.close().wait()?)
}

/// Overwrites every key three times in random order, in durable groups, and settles.
pub(crate) fn overwrite(context: &mut Context) -> Result<()> {
    let (dir, objects, mut rng) = (context.dir(), context.objects(), context.rng());
    let mut order: Vec<u64> = (0..objects * KEYS).collect();
    let mut rounds = Vec::new();
    for _ in 0..OVERWRITES {
        rng.shuffle(&mut order);
        rounds.extend_from_slice(&order);
    }
    let keys = rounds.len() as u64;
    let written = machine::written_bytes()?;
    let time = match context.engine {
        Engine::Dormouse => overwrite_shard(&dir, rounds, rng.next())?,
        _ => {
            let time = context.with_peer(|peer| overwrite_peer(peer, &rounds, &mut rng))?;
            let peer = context.open()?;
            peer.settle()?;
            peer.close()?;
            time
        }
    };
    record(context, "W7-overwrite", keys, time, written)
}

fn overwrite_peer(peer: &dyn Peer, order: &[u64], rng: &mut Rng) -> Result<Duration> {
    let began = Instant::now();
    for numbers in order.chunks(OVERWRITE_PUTS) {
        let puts: Vec<_> = numbers.iter().map(|at| data::put(rng, at / KEYS, at % KEYS)).collect();
        peer.commit(&puts)?;
    }
    Ok(began.elapsed())
}

fn overwrite_shard(dir: &Path, order: Vec<u64>, seed: u64) -> Result<Duration> {
    dormouse::on_core(dir, None, async move |_, shard| {
        let mut rng = Rng::new(seed);
        let began = Instant::now();
        for numbers in order.chunks(OVERWRITE_PUTS) {
            let commits = numbers.iter().map(|at| {
                let put = data::put(&mut rng, at / KEYS, at % KEYS);
                (dormouse::object_id(&put.object), dormouse::batch(&[put]))
            });
            group(&shard, commits).await?;
        }
        let took = began.elapsed();
        shard.compact().await?;
        Ok(took)
    })
}
