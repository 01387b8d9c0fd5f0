//! [`Watches`]: the timers of a core's flushes, each of which must not take too long.
//!
//! Setting one costs more than a flush should, and keeping one for each object more than an idle object
//! should. So a flush goes along with a timer that an earlier one set and has no use for any more,
//! whichever object that was of: as many are set in a while as flushes are under way at a time.

use std::cell::RefCell;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use dormouse_engine::Host;

/// So many are kept.
const KEPT: usize = 256;

/// A timer that is set.
pub(crate) struct Watch {
    /// When it ends, by the core's clock.
    ends: Duration,
    pub(crate) timer: Pin<Box<dyn Future<Output = ()>>>,
}

impl Watch {
    pub(crate) fn new(env: &impl Host, left: Duration) -> Self {
        Self { ends: env.now() + left, timer: Box::pin(env.sleep(left)) }
    }
}

/// Timers of flushes that are over, the latest last; some may have ended since.
#[derive(Default)]
pub(crate) struct Watches(RefCell<Vec<Watch>>);

impl Watches {
    /// One that ends by then.
    pub(crate) fn take(&self, by: Duration) -> Option<Watch> {
        self.0.borrow_mut().pop_if(|last| last.ends <= by)
    }

    pub(crate) fn give_back(&self, watch: Watch) {
        let mut kept = self.0.borrow_mut();
        if kept.len() < KEPT {
            kept.push(watch);
        }
    }
}

impl fmt::Debug for Watches {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Watches").field(&self.0.borrow().len()).finish()
    }
}
