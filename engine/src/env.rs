//! The seam to the world: clock, timers, randomness, tasks on this core, and a [`Disk`].
//!
//! Engine, cache and scheduler reach all of these through [`Env`] alone, so that the same code
//! runs on a real core (`RealEnv`) and in the simulator (`SimEnv`).

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use crate::error::Result;
use crate::io::Disk;

/// Work that may block its thread.
pub type Work = Box<dyn FnOnce() + Send>;

/// What a core offers its tasks, whatever it keeps data on. Cheap to clone; never leaves its core.
pub trait Host: Clone + 'static {
    /// Time since an arbitrary start; never goes back.
    fn now(&self) -> Duration;

    /// Milliseconds since 1970 by the wall clock; may jump either way.
    fn wall_ms(&self) -> u64;

    /// Returns after `duration`, never earlier.
    fn sleep(&self, duration: Duration) -> impl Future<Output = ()> + 'static;

    /// 64 random bits; from the system's entropy on a real core.
    fn random(&self) -> u64;

    /// Runs `task` on this core until it ends. A panic ends that task alone and is logged with
    /// its name.
    fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + 'static);

    /// As [`spawn`](Self::spawn), of one that is in a box already and needs no second one.
    fn spawn_boxed(&self, name: &'static str, task: Pin<Box<dyn Future<Output = ()>>>) {
        self.spawn(name, task);
    }

    /// Returns when no other task of this core is ready, or the turn's budget is used up: the
    /// moment to do what all tasks of a turn share.
    fn turn_end(&self) -> impl Future<Output = ()> + 'static;

    /// Returns when this core has nothing else to do, not even with what the disk has just answered; or, where
    /// there is always something, after some turns. For work that nobody waits for.
    fn idle(&self) -> impl Future<Output = ()> + 'static {
        self.turn_end()
    }

    /// Runs `work`, which may block, where the core does not wait for it; it says by itself what came
    /// of it. At the core's end it is dropped if it has not begun. A host without threads runs it as
    /// a task.
    ///
    /// Errors: `Overloaded`, code `blocking-full`, if too much waits; `Retry`, if there is no thread.
    fn spawn_blocking(&self, work: Work) -> Result<()> {
        self.spawn("blocking", async move { work() });
        Ok(())
    }
}

/// A core's access to the world: its [`Host`], and the disk.
pub trait Env: Host {
    /// The disk's implementation.
    type Disk: Disk;

    /// The store's directory.
    fn disk(&self) -> &Self::Disk;
}
