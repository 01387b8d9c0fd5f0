//! [`TestRuntime`]: a runtime for tests, whose time stands still and whose process can die.
//!
//! ```
//! use std::time::Duration;
//!
//! use dormouse_engine::call::wait;
//! use dormouse_scheduler::prelude::*;
//!
//! struct Egg { state: State }
//!
//! impl DurableObject for Egg {
//!     fn new(state: State) -> Self { Egg { state } }
//!
//!     async fn fetch(&self, _: Request) -> Result<Response> {
//!         if self.state.storage().get_alarm().await?.is_none() {
//!             self.state.storage().set_alarm(In(Duration::from_secs(21 * 86_400))).await?;
//!         }
//!         Response::json(&self.state.storage().get::<bool>("hatched").await?)
//!     }
//!
//!     async fn alarm(&self, _: AlarmInfo) -> Result<()> {
//!         self.state.storage().put("hatched", &true).await
//!     }
//! }
//!
//! # fn main() -> Result<()> {
//! # let dir = std::env::temp_dir().join(format!("dormouse-egg-{}", std::process::id()));
//! let mut runtime = Runtime::builder(&dir).namespace::<Egg>("eggs").start_test()?;
//! let ask = |runtime: &TestRuntime| {
//!     let egg = runtime.namespace::<Egg>().get_by_name("of the goose");
//!     wait(egg.fetch(Request::get("/").body(())?).wait()?.into_body().text())
//! };
//! assert_eq!(ask(&runtime)?, "null");
//! runtime.crash()?;
//! wait(runtime.advance(Duration::from_secs(21 * 86_400)));
//! assert_eq!(ask(&runtime)?, "true");
//! runtime.close()?;
//! # std::fs::remove_dir_all(dir).ok();
//! # Ok(())
//! # }
//! ```

use std::future::Future;
use std::ops::Deref;
use std::time::Duration;

use dormouse_engine::clock::{Clock, TestClock};
use futures_channel::oneshot;

use crate::error::Result;
use crate::runtime::{Runtime, RuntimeBuilder};
use crate::topology::Topology;

/// A [`Runtime`] in test mode: its clock stands still until [`advance`](Self::advance), and it can
/// [`crash`](Self::crash). [`evict`](Runtime::evict) and [`abort`](Runtime::abort) are there as always.
///
/// By this clock are alarms and their retries, `State::sleep` and `State::now_ms`, how long an object
/// stays idle, and all limits of time; not what a server waits for. When it is closed or dropped,
/// time goes on by itself.
pub struct TestRuntime {
    /// None only while it is being replaced.
    runtime: Option<Runtime>,
    builder: RuntimeBuilder,
    clock: TestClock,
}

impl RuntimeBuilder {
    /// As [`start`](Self::start), in test mode.
    ///
    /// Errors: likewise.
    pub fn start_test(self) -> Result<TestRuntime> {
        let clock = TestClock::new();
        let builder = self.clock(Clock::Test(clock.clone()));
        let runtime = Some(builder.clone().start()?);
        Ok(TestRuntime { runtime, builder, clock })
    }
}

impl Deref for TestRuntime {
    type Target = Runtime;

    fn deref(&self) -> &Runtime {
        self.runtime.as_ref().expect("only a failed crash leaves none")
    }
}

impl TestRuntime {
    /// Moves the clock on, at the call. Resolves when each alarm that is due then, or due to be tried
    /// again, has run to its end.
    ///
    /// The clock jumps: a timer that is due is woken and sees the new time, and what is set then counts
    /// from it. So of something that repeats once in a minute an hour shows one; advance by minutes to
    /// see all. An alarm's handler that waits for time itself needs a further call, made before the
    /// first is awaited.
    pub fn advance(&self, by: Duration) -> impl Future<Output = ()> + use<> {
        self.clock.advance(by);
        let settled = self.topology().settle();
        async {
            for core in settled {
                let _a_core_that_ended_is_settled = core.await;
            }
        }
    }

    /// Ends the process, as far as the store can see, and starts another one on what is there: nothing is
    /// flushed, answered or closed; each write that the disk was given before lands, and no other. Objects
    /// are in memory no more, calls that wait fail, sockets are lost, and stubs of before reach nobody.
    /// The clock stands where it stood. Blocks until then.
    ///
    /// Errors: of [`start`](RuntimeBuilder::start).
    ///
    /// # Panics
    /// Every use of it, if that failed.
    pub fn crash(&mut self) -> Result<()> {
        if let Some(runtime) = self.runtime.take() {
            runtime.kill();
        }
        self.runtime = Some(self.builder.clone().start()?);
        Ok(())
    }

    /// See [`Runtime::close`].
    ///
    /// Errors: likewise.
    pub fn close(mut self) -> Result<()> {
        self.clock.release();
        self.runtime.take().map_or(Ok(()), Runtime::close)
    }
}

impl Drop for TestRuntime {
    fn drop(&mut self) {
        self.clock.release();
    }
}

impl Topology {
    /// For each core: resolves when no alarm is due or runs.
    pub(crate) fn settle(&self) -> Vec<oneshot::Receiver<()>> {
        (0..self.cores()).map(|core| self.settle_core(core)).collect()
    }
}
