//! W1, W1r, W3 and W2a: clients that commit on one thread. For Dormouse that thread is the shard's
//! core.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::context::Context;
use crate::data::{self, KEYS, ONE_OBJECT, Put, Rng};
use crate::engines::{Engine, dormouse};
use crate::machine::{self, Counters, Device};
use crate::stats::{Timing, closed_loop};

/// Puts of one turn of W3.
const TURN_PUTS: u64 = 10;
/// Clients of W2.
pub(crate) const CLIENTS: usize = 64;

/// Counts what commits cost beyond their time: CPU time of the process, and flushes of the device
/// less those that others made just before.
struct Meter {
    device: Device,
    others: Option<(f64, f64)>,
    before: Option<Counters>,
    cpu: Duration,
    began: Instant,
}

struct Cost {
    cpu: Duration,
    flushes: Option<f64>,
}

impl Meter {
    fn start(device: Device) -> Self {
        let others = device.background();
        let (before, cpu, began) = (device.counters(), machine::cpu_time(), Instant::now());
        Self { device, others, before, cpu, began }
    }

    fn stop(self) -> Cost {
        let cpu = machine::cpu_time().saturating_sub(self.cpu);
        let counted = self.before.zip(self.device.counters()).zip(self.others);
        let flushes = counted.map(|((before, after), (_, others))| {
            let all = after.flushes.saturating_sub(before.flushes) as f64;
            (all - others * self.began.elapsed().as_secs_f64()).max(0.0)
        });
        Cost { cpu, flushes }
    }
}

/// W1: one client, one put, durable, always the same object.
pub(crate) fn one_object(context: &mut Context) -> Result<()> {
    let mut rng = context.rng();
    let mut next = move || {
        let number = rng.below(KEYS);
        [data::put(&mut rng, ONE_OBJECT, number)]
    };
    let device = context.device.clone();
    let (timing, cost) = match context.engine {
        Engine::Dormouse => on_shard(context, 1, Some(device), next)?,
        _ => {
            let measure = context.settings.measure;
            context.with_peer(|peer| {
                let meter = Meter::start(device);
                let timing = closed_loop(measure, || peer.commit(&next()).map(|()| 1))?;
                Ok((timing, Some(meter.stop())))
            })?
        }
    };
    context.record_timing("W1", &timing);
    let Some(cost) = cost else { return Ok(()) };
    let commits = timing.total as f64;
    context.record("W1", "cpu", cost.cpu.as_secs_f64() * 1e6 / commits);
    if let Some(flushes) = cost.flushes {
        context.record("W1", "flushes", flushes / commits);
    }
    Ok(())
}

/// W1r: a random object each time.
pub(crate) fn random_objects(context: &mut Context) -> Result<()> {
    let (mut rng, objects) = (context.rng(), context.objects());
    let next = move || [data::random_put(&mut rng, objects)];
    simple(context, "W1r", next)
}

/// W3: one atomic durable turn of ten puts to one object.
pub(crate) fn turns(context: &mut Context) -> Result<()> {
    let (mut rng, objects) = (context.rng(), context.objects());
    let next = move || {
        let object = rng.below(objects);
        (0..TURN_PUTS).map(|number| data::put(&mut rng, object, number)).collect::<Vec<_>>()
    };
    simple(context, "W3", next)
}

/// One client that commits what `next` gives, each time one commit.
fn simple<P: AsRef<[Put]>>(
    context: &mut Context,
    workload: &str,
    mut next: impl FnMut() -> P + Send + 'static,
) -> Result<()> {
    let timing = match context.engine {
        Engine::Dormouse => on_shard(context, 1, None, next)?.0,
        _ => {
            let measure = context.settings.measure;
            context.with_peer(|peer| {
                closed_loop(measure, || peer.commit(next().as_ref()).map(|()| 1))
            })?
        }
    };
    context.record_timing(workload, &timing);
    Ok(())
}

/// W2a: for peers one thread that folds 64 puts into each commit.
pub(crate) fn sixty_four(context: &mut Context) -> Result<()> {
    if context.engine == Engine::Dormouse {
        let timing = tasks(context, CLIENTS)?;
        context.record("W2a", "p999", timing.quantile_us(0.999));
        context.record_timing("W2a", &timing);
        return Ok(());
    }
    let (mut rng, objects, measure) = (context.rng(), context.objects(), context.settings.measure);
    let timing = context.with_peer(|peer| {
        closed_loop(measure, || {
            let puts: Vec<_> = (0..CLIENTS).map(|_| data::random_put(&mut rng, objects)).collect();
            peer.commit(&puts).map(|()| CLIENTS as u64)
        })
    })?;
    context.record("W2a", "p999", timing.quantile_us(0.999));
    context.record_timing("W2a", &timing);
    Ok(())
}

/// W2 with 1,024 tasks on the shard's core.
pub(crate) fn thousand(context: &mut Context) -> Result<()> {
    let timing = tasks(context, 1_024)?;
    context.record_timing("W2a-1024", &timing);
    Ok(())
}

fn tasks(context: &Context, clients: usize) -> Result<Timing> {
    let (mut rng, objects) = (context.rng(), context.objects());
    let next = move || [data::random_put(&mut rng, objects)];
    Ok(on_shard(context, clients, None, next)?.0)
}

/// `clients` tasks on the shard's core; its costs if `device` says where flushes are counted.
fn on_shard<P: AsRef<[Put]>>(
    context: &Context,
    clients: usize,
    device: Option<Device>,
    next: impl FnMut() -> P + Send + 'static,
) -> Result<(Timing, Option<Cost>)> {
    let (dir, cpu, measure) = (context.dir(), context.device.cpu, context.settings.measure);
    dormouse::on_core(&dir, cpu, async move |env, shard| {
        let next = Rc::new(RefCell::new(next));
        let next = move || {
            let puts = next.borrow_mut()();
            let puts: &[Put] = puts.as_ref();
            (dormouse::object_id(&puts[0].object), dormouse::batch(puts))
        };
        let meter = device.map(Meter::start);
        let timing = dormouse::closed_loop(&env, &shard, clients, measure, next).await?;
        Ok((timing, meter.map(Meter::stop)))
    })
}

/// The generator of one of several clients.
pub(crate) fn client_rng(context: &Context, client: usize) -> Rng {
    let mut rng = context.rng();
    let seed = rng.next() ^ (client as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    Rng::new(seed)
}
