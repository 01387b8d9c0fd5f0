//! W5: cold activations: all keys of a random object, whose blocks are on the device alone.
//!
//! Cold index: the store is closed, the page cache dropped, and the store opened again before each
//! activation. Cached index: that once, then one object in twenty is read, which brings in what
//! leads to all of them; what is measured are other objects. The same for all engines.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use dormouse_engine::Shard;
use dormouse_engine::real::RealEnv;
use futures_util::future::join_all;

use crate::context::Context;
use crate::data::{self, KEYS, Rng};
use crate::engines::{Engine, dormouse};
use crate::machine::{self, Device};
use crate::stats::Timing;

/// Activations with a cached index.
const CACHED: u64 = 400;
/// Activations at a time where many are.
const AT_ONCE: usize = 32;

pub(crate) fn after_load(context: &mut Context) -> Result<()> {
    measure(context, "W5")?;
    match context.engine {
        Engine::Dormouse => many_at_once(context),
        _ => Ok(()),
    }
}

pub(crate) fn after_overwrites(context: &mut Context) -> Result<()> {
    measure(context, "W5o")
}

/// Activations and the device's reads meanwhile, less those that others made just before.
struct Cold {
    timing: Timing,
    reads: f64,
    device: Device,
    others: f64,
}

impl Cold {
    fn new(device: Device) -> Self {
        let others = device.background().map_or(0.0, |(reads, _)| reads);
        Self { timing: Timing::new(), reads: 0.0, device, others }
    }

    async fn once(&mut self, work: impl AsyncFnOnce() -> Result<u64>) -> Result<()> {
        let before = self.device.counters().unwrap_or_default();
        let began = Instant::now();
        let keys = work().await?;
        let took = began.elapsed();
        let after = self.device.counters().unwrap_or_default();
        ensure!(keys >= KEYS, "{keys} keys instead of {KEYS}");
        self.timing.record(took, 1);
        let reads = after.reads.saturating_sub(before.reads) as f64;
        self.reads += (reads - self.others * took.as_secs_f64()).max(0.0);
        Ok(())
    }

    fn record(&self, context: &mut Context, workload: &str) {
        let timing = &self.timing;
        context.record(workload, "p50", timing.quantile_us(0.5));
        context.record(workload, "p99", timing.quantile_us(0.99));
        context.record(workload, "reads", self.reads / timing.done as f64);
    }
}

/// The objects that are read to bring the index in, and those that are measured: none is both.
fn choose(rng: &mut Rng, objects: u64) -> (Vec<u64>, Vec<u64>) {
    let mut numbers: Vec<_> = (0..objects).collect();
    rng.shuffle(&mut numbers);
    let warming = usize::try_from((objects / 20).max(1)).expect("objects in memory");
    let measured = usize::try_from(CACHED.min(objects / 4)).expect("a few");
    let others = numbers[warming..].iter().take(measured).copied().collect();
    numbers.truncate(warming);
    (numbers, others)
}

fn measure(context: &mut Context, name: &str) -> Result<()> {
    let (mut rng, objects) = (context.rng(), context.objects());
    let reopenings = context.settings.reopenings;
    let mut cold = Cold::new(context.device.clone());
    for _ in 0..reopenings {
        cold = activate(context, vec![], vec![rng.below(objects)], cold)?;
    }
    cold.record(context, &format!("{name}-cold"));
    let (warming, measured) = choose(&mut rng, objects);
    let cold = Cold::new(context.device.clone());
    let cached = activate(context, warming, measured, cold)?;
    cached.record(context, &format!("{name}-cached"));
    Ok(())
}

/// Drops the caches, opens the store, reads the objects of `warming`, and measures the others.
fn activate(
    context: &Context,
    warming: Vec<u64>,
    measured: Vec<u64>,
    mut cold: Cold,
) -> Result<Cold> {
    machine::drop_caches(&context.dir())?;
    if context.engine == Engine::Dormouse {
        return dormouse::on_core(&context.dir(), context.device.cpu, async move |_, shard| {
            for number in warming {
                load(&shard, number).await?;
            }
            for number in measured {
                cold.once(async || load(&shard, number).await).await?;
            }
            Ok(cold)
        });
    }
    context.with_peer(|peer| {
        for number in warming {
            peer.list(&data::id(number))?;
        }
        for number in measured {
            let once = cold.once(async || Ok(peer.list(&data::id(number))?.0));
            futures_util::FutureExt::now_or_never(once).context("nothing waits here")??;
        }
        Ok(cold)
    })
}

async fn load(shard: &Shard<RealEnv>, number: u64) -> Result<u64> {
    Ok(shard.load(&dormouse::object(number)).await?.map.len() as u64)
}

/// Activations 32 at a time, with a cached index.
fn many_at_once(context: &mut Context) -> Result<()> {
    let (mut rng, objects) = (context.rng(), context.objects());
    let (warming, measured) = choose(&mut rng, objects);
    machine::drop_caches(&context.dir())?;
    let (dir, cpu) = (context.dir(), context.device.cpu);
    let (done, took) = dormouse::on_core(&dir, cpu, async move |_, shard| {
        for number in warming {
            load(&shard, number).await?;
        }
        let done = measured.len();
        let waiting = Rc::new(RefCell::new(measured));
        let began = Instant::now();
        let tasks = (0..AT_ONCE).map(|_| {
            let (waiting, shard) = (waiting.clone(), shard.clone());
            async move {
                loop {
                    let next = waiting.borrow_mut().pop();
                    let Some(number) = next else { return Ok(()) };
                    ensure!(load(&shard, number).await? >= KEYS, "keys are missing");
                }
            }
        });
        for ended in join_all(tasks).await {
            ended?;
        }
        Ok::<(usize, Duration), _>((done, began.elapsed()))
    })?;
    context.record("W5-cached-32", "rate", done as f64 / took.as_secs_f64());
    Ok(())
}
