//! W8: a process that commits is killed; how long it takes to open what it leaves and read one key.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::child;
use crate::context::Context;
use crate::data;
use crate::engines::{Engine, dormouse};
use crate::machine;

pub(crate) fn measure(context: &mut Context) -> Result<()> {
    let dir = match context.engine {
        Engine::Dormouse => context.handle_dir(),
        _ => context.dir(),
    };
    let mut rng = context.rng();
    for (workload, cold) in [("W8-warm", false), ("W8-cold", true)] {
        let objects = context.objects();
        let mut child = child::start_commits(context.engine, &dir, objects, rng.next())?;
        std::thread::sleep((context.settings.measure).max(Duration::from_millis(300)));
        child.kill()?;
        child.wait()?;
        if cold {
            machine::drop_caches(&dir)?;
        }
        let took = open_and_read(context.engine, &dir, rng.below(objects))?;
        context.record(workload, "time", took.as_secs_f64() * 1e3);
    }
    Ok(())
}

fn open_and_read(engine: Engine, dir: &Path, number: u64) -> Result<Duration> {
    let began = Instant::now();
    if engine == Engine::Dormouse {
        let store = dormouse::store(dir)?;
        let value = store.object(dormouse::object(number)).get(data::key(3)).wait()?;
        let took = began.elapsed();
        ensure!(value.is_some_and(|value| value.len() == 100), "the key is gone");
        store.close().wait()?;
        return Ok(took);
    }
    let peer = engine.open(dir)?;
    let bytes = peer.get(&data::id(number), &data::key(3))?;
    let took = began.elapsed();
    ensure!(bytes == 100, "the key is gone");
    peer.close()?;
    Ok(took)
}
