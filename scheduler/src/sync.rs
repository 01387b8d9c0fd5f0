//! What threads share is built from these, so that loom can stand in for them: the only file of this
//! crate that knows `cfg(dormouse_loom)`, beside the models themselves.

#[cfg(dormouse_loom)]
pub(crate) use loom::sync::{Mutex, MutexGuard};
#[cfg(not(dormouse_loom))]
pub(crate) use std::sync::{Mutex, MutexGuard};

/// What the models share.
#[cfg(all(test, dormouse_loom))]
pub(crate) mod models {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Wake, Waker};

    /// Stands in for a task: a wake-up is a count.
    #[derive(Default)]
    pub(crate) struct Wakes(AtomicUsize);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    impl Wakes {
        pub(crate) fn any(&self) -> bool {
            self.0.load(Ordering::SeqCst) > 0
        }
    }

    pub(crate) fn wakes() -> (Arc<Wakes>, Waker) {
        let wakes = Arc::<Wakes>::default();
        (wakes.clone(), Waker::from(wakes))
    }
}
