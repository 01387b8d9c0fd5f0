//! Dormouse through its public interface: a shard on its own core, and `Store` with its handles.

use std::cell::{Cell, RefCell};
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::Result;
use dormouse_engine::clock::Clock;
use dormouse_engine::real::{CoreOptions, CoreThread, DiskChoice, RealEnv};
use dormouse_engine::signal::Signal;
use dormouse_engine::{Batch, Host, Limits, ObjectId, Options, Shard, Store, StoreLock};

use crate::data::{self, Put, Rng};
use crate::stats::{Timing, Window};

/// A peer's id of 16 bytes, made as long as an object's id is here.
pub(crate) fn object_id(id: &data::Id) -> ObjectId {
    let mut bytes = [0; 32];
    bytes[..16].copy_from_slice(id);
    for (byte, from) in bytes[16..].iter_mut().zip(id.iter().rev()) {
        *byte = from.wrapping_mul(167);
    }
    ObjectId::from_bytes(bytes)
}

/// The id of object `number`.
pub(crate) fn object(number: u64) -> ObjectId {
    object_id(&data::id(number))
}

pub(crate) fn batch(puts: &[Put]) -> Batch {
    puts.iter().fold(Batch::new(), |batch, put| batch.put(put.key, put.value))
}

/// Opens the store of one shard in `dir`, makes it if need be, and runs `work` on its core.
pub(crate) fn on_core<T: Send + 'static, F>(
    dir: &Path,
    cpu: Option<usize>,
    work: impl FnOnce(RealEnv, Shard<RealEnv>) -> F + Send + 'static,
) -> Result<T>
where
    F: Future<Output = Result<T>> + 'static,
{
    let options = CoreOptions {
        name: "shard".into(),
        cpu,
        dir: dir.to_owned(),
        disk: DiskChoice::Auto,
        clock: Clock::System,
    };
    let main = async move |env: RealEnv| {
        let limits = Limits::PRODUCTION;
        let lock = StoreLock::open_or_create(&env, &limits, 1).await?;
        let (shard, _) = Shard::open(&env, lock.superblock(), 0, limits).await?;
        let result = work(env, shard.clone()).await;
        shard.close().await?;
        drop(lock);
        result
    };
    CoreThread::spawn(options, main)?.join()?
}

/// `clients` tasks on the shard's core, each making one commit after another of what `next` gives.
pub(crate) async fn closed_loop(
    env: &RealEnv,
    shard: &Shard<RealEnv>,
    clients: usize,
    measure: Duration,
    next: impl Fn() -> (ObjectId, Batch) + Clone + 'static,
) -> Result<Timing> {
    let window = Window::new(measure);
    let timing = Rc::new(RefCell::new(Timing::new()));
    let failed = Rc::new(RefCell::new(None));
    let (running, ended) = (Rc::new(Cell::new(clients)), Rc::new(Signal::default()));
    for _ in 0..clients {
        let (shard, next, timing, failed) =
            (shard.clone(), next.clone(), timing.clone(), failed.clone());
        let (running, ended) = (running.clone(), ended.clone());
        env.spawn("client", async move {
            if let Err(error) = client(&shard, window, &next, &timing).await {
                failed.borrow_mut().get_or_insert(error);
            }
            running.set(running.get() - 1);
            ended.notify();
        });
    }
    ended.until(|| (running.get() == 0).then_some(())).await;
    if let Some(error) = failed.take() {
        return Err(error);
    }
    let mut timing = timing.replace(Timing::new());
    timing.elapsed = window.end - window.warm;
    Ok(timing)
}

async fn client(
    shard: &Shard<RealEnv>,
    window: Window,
    next: &impl Fn() -> (ObjectId, Batch),
    timing: &RefCell<Timing>,
) -> Result<()> {
    let mut before = Instant::now();
    while before < window.end {
        let (id, batch) = next();
        shard.commit(&id, &batch, None)?.await?;
        let now = Instant::now();
        // What ended within the window counts: the clients end at different times.
        match before >= window.warm && now <= window.end {
            true => timing.borrow_mut().record(now - before, 1),
            false => timing.borrow_mut().total += 1,
        }
        before = now;
    }
    Ok(())
}

/// What the clients of a loop put: a random key of a random object.
pub(crate) fn random_puts(seed: u64, objects: u64) -> impl Fn() -> (ObjectId, Batch) + Clone {
    let rng = Rc::new(RefCell::new(Rng::new(seed)));
    move || {
        let put = data::random_put(&mut rng.borrow_mut(), objects);
        (object_id(&put.object), batch(&[put]))
    }
}

/// Opens the store with default options.
pub(crate) fn store(dir: &Path) -> Result<Store> {
    Ok(Store::open(dir, Options::default())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_stay_apart_when_they_are_made_longer() {
        assert_ne!(object(1), object(2));
        assert_eq!(object(1).as_bytes()[..16], data::id(1));
    }

    #[test]
    fn a_loop_on_the_core_commits_what_it_counts() {
        let dir = tempfile::TempDir::new().expect("a directory");
        let (done, objects) = on_core(dir.path(), None, async move |env, shard| {
            let measure = Duration::from_millis(50);
            let next = random_puts(1, 10);
            let timing = closed_loop(&env, &shard, 8, measure, next).await?;
            Ok((timing.done, shard.stats().objects))
        })
        .expect("a shard");
        assert!(done > 0);
        assert!((1..=10).contains(&objects));
    }
}
