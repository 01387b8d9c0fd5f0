//! A core that one object keeps busy, and what another object's durable commits wait for it.

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::Result;
use dormouse_engine::Host;

use crate::context::Context;
use crate::engines::dormouse;

/// How long the busy object computes in each turn.
const BUSY: Duration = Duration::from_micros(50);

/// Dormouse alone: peers share no core with their clients.
pub(crate) fn measure(context: &mut Context) -> Result<()> {
    let (dir, cpu, measure) = (context.dir(), context.device.cpu, context.settings.measure);
    let (seed, objects) = (context.seed, context.objects());
    let timing = dormouse::on_core(&dir, cpu, async move |env, shard| {
        let over = Rc::new(Cell::new(false));
        let (busy, stop) = (env.clone(), over.clone());
        env.spawn("busy", async move {
            while !stop.get() {
                let began = Instant::now();
                while began.elapsed() < BUSY {
                    std::hint::spin_loop();
                }
                busy.turn_end().await;
            }
        });
        let next = dormouse::random_puts(seed, objects);
        let timing = dormouse::closed_loop(&env, &shard, 1, measure, next).await;
        over.set(true);
        timing
    })?;
    context.record("hog", "p50", timing.quantile_us(0.5));
    context.record("hog", "p99", timing.quantile_us(0.99));
    Ok(())
}
