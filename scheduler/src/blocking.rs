//! [`State::spawn_blocking`]: work that would hold up the core, on a thread beside it.
//!
//! Invariants: the object stays in memory until the work is done, whoever awaits it; the
//! result is an event of the object like any other from outside, so it comes while no operation of
//! its storage waits; of an instance that has ended it goes nowhere.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};

use dormouse_engine::{Host, Work as Blocking};
use futures_channel::oneshot;
use futures_util::FutureExt;

use crate::error::{Error, Result};
use crate::event::closed;
use crate::instance::Work;
use crate::state::State;
use crate::watch::Awake;

impl State {
    /// Runs `work`, which may block or compute for long, on a thread beside the core's; other
    /// events run meanwhile. It takes effect at the call: dropping the future leaves it running, and
    /// the object in memory until it is done. As all that an object says to the outside, it begins
    /// when what was written before is durable.
    ///
    /// If the object is reset meanwhile, work that has not begun is dropped, and of what has the
    /// result.
    ///
    /// Errors: the work panicked; `Overloaded`, code `blocking-full`: 1,024 of the core wait for its
    /// 8 threads.
    pub fn spawn_blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> impl Future<Output = Result<T>> + 'static {
        let instance = self.instance();
        let (done, result) = oneshot::channel();
        let job: Blocking = Box::new(move || {
            // Otherwise the instance has ended.
            if !done.is_canceled() {
                let ended = catch_unwind(AssertUnwindSafe(work));
                let _nobody_waits = done.send(ended.map_err(|panic| Error::work_panicked(&*panic)));
            }
        });
        let (taken, begun) = oneshot::channel();
        let host = instance.host.clone();
        instance.say(move || drop(taken.send(host.spawn_blocking(job))));
        let (tell, told) = oneshot::channel();
        let task = async move {
            let ended = match begun.await {
                Ok(Ok(())) => result.await.unwrap_or_else(|_| Err(closed())),
                Ok(Err(refused)) => Err(refused.into()),
                // It is not said any more.
                Err(_) => return,
            };
            let _nobody_waits = tell.send(ended);
        };
        instance.push(Work::Task(Awake::Blocking, task.boxed_local()));
        told.map(|told| told.unwrap_or_else(|_| Err(closed())))
    }
}
