//! Tasks of a server on a core: connections live on the core's own runtime, beside its objects.
//!
//! A guest is started by mail. A core that ends waits for its guests once its objects have left, so that clients are
//! told what these said last; but not for long.

use std::cell::{Cell, OnceCell};
use std::rc::Rc;
use std::time::Duration;

use dormouse_engine::Host;
use dormouse_engine::signal::Signal;
use futures_util::FutureExt;
use futures_util::future::{LocalBoxFuture, select};

use crate::host::CoreHost;
use crate::server::Resting;

/// How long the end of a core waits for its guests.
const GUESTS_TIME: Duration = Duration::from_secs(2);

/// Makes a guest's task, on its core.
type Start = Box<dyn FnOnce(&CoreHost, Stay) -> LocalBoxFuture<'static, ()> + Send>;

/// A guest that is not on its core yet.
pub(crate) struct Guest {
    name: &'static str,
    start: Start,
}

impl Guest {
    /// One that is called `name` in the log; `start` makes its task, on the core, which it has been left by when what it
    /// was given is dropped.
    pub(crate) fn new(
        name: &'static str,
        start: impl FnOnce(&CoreHost, Stay) -> LocalBoxFuture<'static, ()> + Send + 'static,
    ) -> Self {
        Self { name, start: Box::new(start) }
    }
}

/// The guests of one core.
#[derive(Default)]
pub(crate) struct Guests(Rc<There>);

#[derive(Default)]
struct There {
    count: Cell<usize>,
    left: Signal,
    /// Where connections rest, once there was one; none where that can't be.
    resting: OnceCell<Option<Rc<Resting>>>,
}

impl Guests {
    pub(crate) fn take_in(&self, host: &CoreHost, guest: Guest) {
        self.0.resting.get_or_init(|| {
            let started = Resting::start(host);
            started.inspect_err(|error| tracing::warn!(%error, "connections don't rest")).ok()
        });
        let task = (guest.start)(host, Stay::new(self.0.clone()));
        host.spawn_boxed(guest.name, task);
    }

    /// Waits until all have left, or have had their time.
    pub(crate) async fn leave(&self, host: &CoreHost) {
        let all = self.0.left.until(|| (self.0.count.get() == 0).then_some(()));
        select(all.boxed_local(), host.sleep(GUESTS_TIME).boxed_local()).await;
    }
}

/// While it is there, so is a guest.
pub(crate) struct Stay(Rc<There>);

impl Stay {
    fn new(there: Rc<There>) -> Self {
        there.count.set(there.count.get() + 1);
        Self(there)
    }

    /// Where the core's connections rest.
    pub(crate) fn resting(&self) -> Option<Rc<Resting>> {
        self.0.resting.get().cloned().flatten()
    }
}

impl Clone for Stay {
    fn clone(&self) -> Self {
        Self::new(self.0.clone())
    }
}

impl Drop for Stay {
    fn drop(&mut self) {
        self.0.count.set(self.0.count.get() - 1);
        self.0.left.notify();
    }
}
