//! Clients of Dormouse's `Store`, on threads that are no cores of it.

use std::cell::RefCell;
use std::time::Instant;

use anyhow::Result;
use dormouse_engine::Store;
use futures_util::future::join_all;

use super::commits::{CLIENTS, client_rng};
use crate::context::Context;
use crate::data::{self, Rng};
use crate::engines::dormouse;
use crate::stats::{Timing, Window, closed_loop};

/// W1r through the handle: one client that waits for each commit.
pub(crate) fn one_client(context: &mut Context) -> Result<()> {
    let (mut rng, objects) = (context.rng(), context.objects());
    let store = dormouse::store(&context.handle_dir())?;
    let timing = closed_loop(context.settings.measure, || commit(&store, &mut rng, objects))?;
    store.close().wait()?;
    context.record_timing("W1r-handle", &timing);
    Ok(())
}

/// One durable put to a random object.
pub(crate) fn commit(store: &Store, rng: &mut Rng, objects: u64) -> Result<u64> {
    let put = data::random_put(rng, objects);
    let object = store.object(dormouse::object_id(&put.object));
    object.commit(dormouse::batch(&[put])).wait()?;
    Ok(1)
}

/// W2c: 64 asynchronous clients on one thread.
pub(crate) fn async_clients(context: &mut Context) -> Result<()> {
    let objects = context.objects();
    let store = dormouse::store(&context.handle_dir())?;
    let window = Window::new(context.settings.measure);
    let timing = RefCell::new(Timing::new());
    let clients = (0..CLIENTS).map(|client| {
        let (store, timing, mut rng) = (&store, &timing, client_rng(context, client));
        async move {
            let mut before = Instant::now();
            while before < window.end {
                let put = data::random_put(&mut rng, objects);
                let object = store.object(dormouse::object_id(&put.object));
                object.commit(dormouse::batch(&[put])).await?;
                let now = Instant::now();
                if before >= window.warm && now <= window.end {
                    timing.borrow_mut().record(now - before, 1);
                }
                before = now;
            }
            Ok::<_, anyhow::Error>(())
        }
    });
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    for ended in runtime.block_on(join_all(clients)) {
        ended?;
    }
    store.close().wait()?;
    let mut timing = timing.into_inner();
    timing.elapsed = window.end - window.warm;
    context.record_timing("W2c", &timing);
    Ok(())
}
