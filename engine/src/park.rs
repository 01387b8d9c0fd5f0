//! How a core sleeps without missing a wake-up.
//!
//! Whoever has work for a core first makes it visible, then calls [`Park::unpark`]. The core
//! announces that it will sleep, then looks for work once more. One of the two sees the other:
//! either the core finds the work, or the waker finds the announcement and wakes. While the core
//! is awake, `unpark` is one atomic swap and no system call.

use std::task::{Poll, Waker};

use crate::sync::{AtomicBool, Mutex, Ordering};

/// The sleep of one core.
#[derive(Debug)]
pub struct Park {
    /// The core sleeps, or is about to.
    parked: AtomicBool,
    /// Wakes it; touched only around a sleep.
    waker: Mutex<Option<Waker>>,
}

impl Park {
    /// A core that is awake.
    #[expect(clippy::new_without_default, reason = "loom has no const form of it")]
    pub fn new() -> Self {
        Self { parked: AtomicBool::new(false), waker: Mutex::new(None) }
    }

    /// Ready as soon as there is work; otherwise leaves `waker` for [`Park::unpark`].
    pub fn poll(&self, waker: &Waker, has_work: impl Fn() -> bool) -> Poll<()> {
        *self.waker.lock().expect("no code panics under it") = Some(waker.clone());
        self.parked.swap(true, Ordering::SeqCst);
        if has_work() {
            self.parked.swap(false, Ordering::SeqCst);
            return Poll::Ready(());
        }
        Poll::Pending
    }

    /// Wakes the core if it sleeps. Call it after the work is visible.
    pub fn unpark(&self) {
        if self.parked.swap(false, Ordering::SeqCst) {
            let waker = self.waker.lock().expect("no code panics under it").take();
            waker.into_iter().for_each(Waker::wake);
        }
    }
}

#[cfg(all(test, dormouse_loom))]
mod tests {
    use std::sync::Arc as StdArc;
    use std::task::Wake;

    use loom::sync::Arc;
    use loom::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Stands in for the core's thread: a wake-up is a count.
    struct Wakes(std::sync::atomic::AtomicUsize);

    impl Wake for Wakes {
        fn wake(self: StdArc<Self>) {
            self.0.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        }
    }

    /// A push and a core that goes to sleep, in every order. The counter stands in for the queue,
    /// which loom can't look into. Either the core saw the work, or it was woken.
    fn push_against_park(park_first: bool) {
        loom::model(move || {
            let park = Arc::new(Park::new());
            let queue = Arc::new(AtomicUsize::new(0));
            let wakes = StdArc::new(Wakes(std::sync::atomic::AtomicUsize::new(0)));
            let pusher = {
                let (park, queue) = (park.clone(), queue.clone());
                loom::thread::spawn(move || {
                    match park_first {
                        true => {
                            queue.fetch_add(1, Ordering::SeqCst);
                            park.unpark();
                        }
                        // The broken twin wakes before the work is visible.
                        false => {
                            park.unpark();
                            queue.fetch_add(1, Ordering::SeqCst);
                        }
                    }
                })
            };
            let waker = Waker::from(wakes.clone());
            let polled = park.poll(&waker, || queue.load(Ordering::SeqCst) > 0);
            pusher.join().expect("the pusher ends");
            let woken = wakes.0.load(std::sync::atomic::Ordering::SeqCst) > 0;
            assert!(polled.is_ready() || woken, "a core sleeps on work");
        });
    }

    #[test]
    fn loom_no_wake_up_is_lost() {
        push_against_park(true);
    }

    #[test]
    #[should_panic(expected = "a core sleeps on work")]
    fn loom_waking_before_the_work_is_visible_loses_it() {
        push_against_park(false);
    }
}
