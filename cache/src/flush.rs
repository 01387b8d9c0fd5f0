//! Flushes: everything dirty goes to the engine in one commit.
//!
//! The first write after a quiet time starts one flusher task. It waits for the end of the turn,
//! so that all that the turn writes is in one commit, takes everything that is dirty, and
//! waits until it is durable. What is written meanwhile gathers for the next round; with
//! nothing dirty the task ends. A commit that fails breaks the output gate for good, and so
//! does one that takes longer than [`flush_max`](crate::CacheLimits::flush_max); only one
//! of which the engine says that nothing was written is tried again.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use dormouse_engine::{Batch, Error, Host, Kind, Resident, Result, Version};

use crate::cache::Inner;
use crate::watch::Watch;

/// What the cache needs of the engine: commits of one object.
pub trait Backing: 'static {
    /// Resolves when the commit is durable.
    type Ticket: Future<Output = Result<Version>> + 'static;

    /// Appends a commit of the object at once, in call order. `resident` is the object as it is
    /// after `batch`. Must not call the cache back.
    ///
    /// Errors, here and from the ticket: [`Kind::Retry`] if nothing was written and the same
    /// commit may be tried again; every other kind is final.
    fn commit(&self, batch: &Batch, resident: &dyn Resident) -> Result<Self::Ticket>;
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
        // Also between tries: after a shutdown nothing starts any more.
        if let Some(reason) = cache.terminal() {
            return Err(reason);
        }
        let batch = cache.state.borrow_mut().start_flush();
        let ticket = cache.backing.commit(&batch, &*cache.state.borrow());
        let result = match ticket {
            Ok(ticket) => in_time(cache, began, ticket).await,
            Err(error) => Err(error),
        };
        match result {
            Ok(version) => {
                cache.state.borrow_mut().finish_flush(version);
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
async fn in_time<E: Host, B: Backing>(
    cache: &Inner<E, B>,
    began: Duration,
    ticket: B::Ticket,
) -> Result<Version> {
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
