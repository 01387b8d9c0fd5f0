//! Flushes: everything dirty goes to the engine in one commit.
//!
//! The first write after a quiet time starts one flusher task. It waits for the end of the turn,
//! so that all that the turn writes is in one commit, takes everything that is dirty, and
//! waits until it is durable. What is written meanwhile gathers for the next round; with
//! nothing dirty the task ends. A commit that fails breaks the output gate for good, and so
//! does one that takes longer than [`flush_max`](crate::CacheLimits::flush_max); only one
//! of which the engine says that nothing was written is tried again.
//!
//! A flush waits until a snapshot of the object that is being opened is open: see `reads`.

use std::future::{Future, poll_fn, ready};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use dormouse_engine::snapshot::Snapshot;
use dormouse_engine::{Batch, Contents, Env, Error, Host, Kind, List, Resident, Result, Version};
use futures_util::FutureExt;
use futures_util::future::LocalBoxFuture;

use crate::cache::Inner;
use crate::watch::Watch;

/// What the cache needs of the engine: commits and reads of one object.
pub trait Backing: 'static {
    /// Resolves when the commit is durable.
    type Ticket: Future<Output = Result<Version>> + 'static;

    /// Appends a commit of the object at once, in call order. `resident` is the object as it is
    /// after `batch`, if all of it is in memory. Must not call the cache back.
    ///
    /// Errors, here and from the ticket: [`Kind::Retry`] if nothing was written and the same
    /// commit may be tried again; every other kind is final.
    fn commit(&self, batch: &Batch, resident: Option<&dyn Resident>) -> Result<Self::Ticket>;

    /// The object as it is durably, once the commit that is in flight has ended. No other begins before.
    ///
    /// Errors: [`Kind::Retry`] if it may be tried again.
    fn snapshot(&self) -> LocalBoxFuture<'static, Result<Rc<dyn Stored>>>;
}

/// An object as it was when a snapshot was made of it.
pub trait Stored {
    /// The value of a key.
    ///
    /// Errors: [`Kind::Retry`] if it may be tried again.
    fn get<'a>(&'a self, key: &'a [u8]) -> LocalBoxFuture<'a, Result<Option<Bytes>>>;

    /// How many of these keys, which are sorted, are there.
    ///
    /// Errors: as [`Stored::get`].
    fn count<'a>(&'a self, keys: &'a [Bytes]) -> LocalBoxFuture<'a, Result<usize>>;

    /// The keys and values of a list, in its order.
    ///
    /// Errors: as [`Stored::get`].
    fn list<'a>(&'a self, list: &'a List) -> LocalBoxFuture<'a, Result<Vec<(Bytes, Bytes)>>>;
}

impl<E: Env> Stored for Snapshot<E> {
    fn get<'a>(&'a self, key: &'a [u8]) -> LocalBoxFuture<'a, Result<Option<Bytes>>> {
        Snapshot::get(self, key).boxed_local()
    }

    fn count<'a>(&'a self, keys: &'a [Bytes]) -> LocalBoxFuture<'a, Result<usize>> {
        Snapshot::count(self, keys).boxed_local()
    }

    fn list<'a>(&'a self, list: &'a List) -> LocalBoxFuture<'a, Result<Vec<(Bytes, Bytes)>>> {
        async move {
            let (mut scan, mut all) = (self.scan(list)?, Vec::new());
            while let Some(some) = scan.next().await? {
                all.extend(some);
            }
            Ok(all)
        }
        .boxed_local()
    }
}

/// One that is in memory.
impl Stored for Contents {
    fn get<'a>(&'a self, key: &'a [u8]) -> LocalBoxFuture<'a, Result<Option<Bytes>>> {
        ready(Ok(self.map.get(key).cloned())).boxed_local()
    }

    fn count<'a>(&'a self, keys: &'a [Bytes]) -> LocalBoxFuture<'a, Result<usize>> {
        let there = |key: &&Bytes| self.map.contains_key(&key[..]);
        ready(Ok(keys.iter().filter(there).count())).boxed_local()
    }

    fn list<'a>(&'a self, list: &'a List) -> LocalBoxFuture<'a, Result<Vec<(Bytes, Bytes)>>> {
        let all = || {
            let (range, mut all) = (list.resolve()?, Vec::new());
            if let Some(range) = range {
                range.visit(&self.map, |key, value| all.push((key.clone(), value.clone())));
            }
            Ok(all)
        };
        ready(all()).boxed_local()
    }
}

/// Flushes until nothing is dirty, or one flush fails.
pub(crate) async fn run<E: Host, B: Backing>(cache: Rc<Inner<E, B>>) {
    let guard = Guard(&cache);
    loop {
        cache.env.turn_end().await;
        if let Err(reason) = flush(&cache).await {
            cache.break_with(reason);
            break;
        }
        if !cache.flush_due() {
            break;
        }
    }
    guard.finish();
}

/// One flush, with its retries. Errors are final.
async fn flush<E: Host, B: Backing>(cache: &Inner<E, B>) -> Result<()> {
    let (began, mut attempt) = (cache.env.now(), 1);
    loop {
        while let Some(opening) = cache.reads.being_opened() {
            // Whether it could be read is for those who read.
            in_time(cache, began, opening.map(|_| Ok(()))).await?;
        }
        // Also between tries: after a shutdown nothing starts any more.
        if let Some(reason) = cache.terminal() {
            return Err(reason);
        }
        cache.reads.flush_begins();
        let batch = cache.state.borrow_mut().start_flush();
        let ticket = cache.backing.commit(&batch, cache.state.borrow().resident());
        let result = match ticket {
            Ok(ticket) => in_time(cache, began, ticket).await,
            Err(error) => Err(error),
        };
        match result {
            Ok(version) => {
                let mut state = cache.state.borrow_mut();
                state.finish_flush(version);
                state.trim(cache.limits.kept_bytes_max);
                drop(state);
                cache.output.finished();
                cache.budget.let_in();
                return Ok(());
            }
            Err(error)
                if error.kind() == Kind::Retry && attempt < cache.limits.flush_attempts_max =>
            {
                cache.state.borrow_mut().retake_flush();
                attempt += 1;
            }
            Err(error) => return Err(error),
        }
    }
}

/// What the ticket says, or that the flush that began then has taken too long.
async fn in_time<E: Host, B: Backing, T>(
    cache: &Inner<E, B>,
    began: Duration,
    ticket: impl Future<Output = Result<T>>,
) -> Result<T> {
    let mut ticket = pin!(ticket);
    let mut watch = None;
    let result = poll_fn(|cx| {
        if let Poll::Ready(result) = ticket.as_mut().poll(cx) {
            return Poll::Ready(result);
        }
        loop {
            let left = (began + cache.limits.flush_max).saturating_sub(cache.env.now());
            if left.is_zero() {
                let text = "a flush took too long; whether it happened is not known";
                return Poll::Ready(Err(Error::new(Kind::Overloaded, text)));
            }
            let set = || cache.budget.watches().take(began + cache.limits.flush_max);
            let set = watch.take().or_else(set);
            let mut set = set.unwrap_or_else(|| Watch::new(&cache.env, left));
            if set.timer.as_mut().poll(cx).is_pending() {
                watch = Some(set);
                return Poll::Pending;
            }
        }
    })
    .await;
    watch.into_iter().for_each(|watch| cache.budget.watches().give_back(watch));
    result
}

/// Breaks the gate if the flusher is dropped or panics before its work is done: what waits for it
/// would wait forever.
struct Guard<'a, E: Host, B: Backing>(&'a Inner<E, B>);

impl<E: Host, B: Backing> Guard<'_, E, B> {
    fn finish(self) {
        self.0.flusher_ended();
        std::mem::forget(self);
    }
}

impl<E: Host, B: Backing> Drop for Guard<'_, E, B> {
    fn drop(&mut self) {
        self.0.break_with(Error::new(Kind::Unknown, "a flush was cancelled before it completed"));
        self.0.flusher_ended();
    }
}
