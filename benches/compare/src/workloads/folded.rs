//! W2b and W2c: 64 clients that wait for their commits, each committing by itself, or all of them
//! behind one thread that folds what is there into one commit.

use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

use super::commits::{CLIENTS, client_rng};
use super::handle;
use crate::context::Context;
use crate::data::{self, Put, Rng};
use crate::engines::{Engine, Peer, dormouse};
use crate::stats::{Timing, Window};

/// W2b: each of 64 threads commits by itself.
pub(crate) fn natural(context: &mut Context) -> Result<()> {
    let objects = context.objects();
    let timing = match context.engine {
        Engine::Dormouse => {
            let store = dormouse::store(&context.handle_dir())?;
            let timing = threads(context, |_| {
                let store = store.clone();
                move |rng: &mut Rng| handle::commit(&store, rng, objects).map(drop)
            });
            store.close().wait()?;
            timing?
        }
        _ => {
            let peer = context.open()?;
            let timing = threads(context, |_| {
                let peer = &*peer;
                move |rng: &mut Rng| peer.commit(&[data::random_put(rng, objects)])
            });
            peer.close()?;
            timing?
        }
    };
    context.record_timing("W2b", &timing);
    Ok(())
}

/// 64 threads in closed loops, each with a client of its own; what all of them did.
fn threads<C>(context: &Context, client: impl Fn(usize) -> C) -> Result<Timing>
where
    C: FnMut(&mut Rng) -> Result<()> + Send,
{
    let window = Window::new(context.settings.measure);
    std::thread::scope(|scope| {
        let started: Vec<_> = (0..CLIENTS)
            .map(|number| {
                let (once, rng) = (client(number), client_rng(context, number));
                scope.spawn(move || one_thread(window, rng, once))
            })
            .collect();
        let mut whole = Timing::new();
        for thread in started {
            let one = thread.join().map_err(|_| anyhow!("a client panicked"))??;
            whole.latencies.add(one.latencies)?;
            whole.done += one.done;
        }
        whole.elapsed = window.end - window.warm;
        Ok(whole)
    })
}

fn one_thread(
    window: Window,
    mut rng: Rng,
    mut once: impl FnMut(&mut Rng) -> Result<()>,
) -> Result<Timing> {
    let (mut timing, mut before) = (Timing::new(), Instant::now());
    while before < window.end {
        once(&mut rng)?;
        let now = Instant::now();
        if before >= window.warm && now <= window.end {
            timing.record(now - before, 1);
        }
        before = now;
    }
    Ok(timing)
}

/// W2c: 64 client threads and one that commits for all; for Dormouse 64 asynchronous clients.
pub(crate) fn folded(context: &mut Context) -> Result<()> {
    if context.engine == Engine::Dormouse {
        return handle::async_clients(context);
    }
    let (peer, objects) = (context.open()?, context.objects());
    let (sender, receiver) = channel();
    let timing = std::thread::scope(|scope| {
        let committer = scope.spawn(|| commit_for_all(&*peer, receiver));
        let timing = threads(context, |_| {
            let sender = sender.clone();
            let (done, answer) = sync_channel(1);
            move |rng: &mut Rng| ask(&sender, &done, &answer, data::random_put(rng, objects))
        });
        // The last sender: the committer ends.
        drop(sender);
        let ended = committer.join().unwrap_or_else(|_| Err(anyhow!("the committer panicked")));
        ended.and(timing)
    });
    peer.close()?;
    context.record_timing("W2c", &timing?);
    Ok(())
}

/// A put on its way to the committer, and whom to tell that it is durable.
type Asked = (Put, SyncSender<()>);

fn ask(
    committer: &Sender<Asked>,
    done: &SyncSender<()>,
    answer: &Receiver<()>,
    put: Put,
) -> Result<()> {
    committer.send((put, done.clone())).map_err(|_| anyhow!("the committer is gone"))?;
    // The client holds a sender itself, so only time tells that the committer failed.
    answer.recv_timeout(Duration::from_secs(30)).map_err(|_| anyhow!("no answer"))
}

/// Commits what waits, 64 puts at most, as one; then tells the clients.
fn commit_for_all(peer: &dyn Peer, asked: Receiver<Asked>) -> Result<()> {
    let (mut puts, mut clients) = (Vec::new(), Vec::new());
    while let Ok((put, client)) = asked.recv() {
        puts.push(put);
        clients.push(client);
        let more = std::iter::from_fn(|| asked.try_recv().ok()).take(CLIENTS - 1);
        for (put, client) in more {
            puts.push(put);
            clients.push(client);
        }
        peer.commit(&puts)?;
        puts.clear();
        for client in clients.drain(..) {
            // A client that is gone needs no answer.
            let _ = client.send(());
        }
    }
    Ok(())
}
