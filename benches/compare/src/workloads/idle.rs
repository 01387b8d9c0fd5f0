//! W9: what objects cost that nobody uses, beyond what an empty store costs; each store is opened
//! in a process of its own.

use anyhow::Result;

use super::child;
use crate::context::Context;
use crate::engines::Engine;
use crate::machine;

/// Objects that are touched.
const TOUCHED: u64 = 2_000;

pub(crate) fn measure(context: &mut Context) -> Result<()> {
    let (engine, objects) = (context.engine, context.objects());
    let empty_dir = context.fresh_dir("empty");
    let empty = child::ask_idle(engine, &empty_dir, 0, 0)?;
    let disk = machine::disk_bytes(&empty_dir)?;
    std::fs::remove_dir_all(&empty_dir)?;
    let dir = match engine {
        Engine::Dormouse => context.handle_dir(),
        _ => context.dir(),
    };
    let touched = TOUCHED.min(objects);
    let full = child::ask_idle(engine, &dir, objects, touched)?;
    let less = |more: u64, less: u64| more as f64 - less as f64;
    context.record("W9", "empty-disk", disk as f64);
    context.record("W9", "empty-memory", empty.opened as f64);
    context.record("W9", "heap-idle", less(full.opened, empty.opened).max(0.0) / objects as f64);
    let touching = less(full.touched, full.opened).max(0.0);
    context.record("W9", "heap-touched", touching / touched as f64);
    context.record("W9", "descriptors", less(full.descriptors, empty.descriptors));
    context.record("W9", "threads", less(full.threads, empty.threads));
    Ok(())
}
