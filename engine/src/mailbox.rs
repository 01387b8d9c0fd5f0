//! A bounded queue into one core, from any thread.
//!
//! Invariants:
//!
//! - A message that [`Sender::send`] took is received, or dropped when the mailbox closes; never
//!   left behind. The sender looks once more after its push whether the mailbox was closed, and
//!   clears it then; the closer sets its mark before it clears. One of the two sees the message.
//! - A receiver never sleeps on a message: push, then wake (see [`crate::park`]).
//! - Messages of one thread arrive in the order in which they were sent.
//!
//! The models below put a plain queue under a lock in the place of crossbeam's, which loom can't
//! look into: they show push, park, wake and close, not the queue itself.

use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};

use crate::park::Park;
use crate::sync::{ArrayQueue, AtomicBool, Ordering};

struct Shared<T> {
    queue: ArrayQueue<T>,
    closed: AtomicBool,
    park: Park,
}

impl<T> Shared<T> {
    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// Drops what nobody will receive any more.
    fn clear(&self) {
        while self.queue.pop().is_some() {}
    }
}

/// A queue that holds `capacity` messages.
pub fn mailbox<T>(capacity: usize) -> (Sender<T>, Receiver<T>) {
    let queue = ArrayQueue::new(capacity);
    let closed = AtomicBool::new(false);
    let shared = Arc::new(Shared { queue, closed, park: Park::new() });
    (Sender(shared.clone()), Receiver(shared))
}

/// Why a message was not taken; gives it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused<T> {
    /// The mailbox is full: slow down.
    Full(T),
    /// Nobody receives any more.
    Closed(T),
}

/// The end that any thread may hold. Cheap to clone.
pub struct Sender<T>(Arc<Shared<T>>);

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> fmt::Debug for Sender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sender").field("closed", &self.0.is_closed()).finish_non_exhaustive()
    }
}

impl<T> Sender<T> {
    /// Puts a message in, without waiting.
    ///
    /// Errors: the message, if the mailbox is full or closed. A message that was taken may still
    /// be dropped, if the mailbox closes.
    pub fn send(&self, message: T) -> Result<(), Refused<T>> {
        if self.0.is_closed() {
            return Err(Refused::Closed(message));
        }
        self.0.queue.push(message).map_err(Refused::Full)?;
        if self.0.is_closed() {
            self.0.clear();
        }
        self.0.park.unpark();
        Ok(())
    }

    /// How many messages wait; may be another number already.
    pub fn len(&self) -> usize {
        self.0.queue.len()
    }

    /// Whether none waits; may be otherwise already.
    pub fn is_empty(&self) -> bool {
        self.0.queue.is_empty()
    }

    /// Closes the mailbox: what it holds is still received, nothing new is taken.
    pub fn close(&self) {
        self.0.closed.store(true, Ordering::SeqCst);
        self.0.park.unpark();
    }
}

/// The core's end. Dropped, it closes the mailbox and drops what it holds.
pub struct Receiver<T>(Arc<Shared<T>>);

impl<T> fmt::Debug for Receiver<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receiver").field("closed", &self.0.is_closed()).finish_non_exhaustive()
    }
}

impl<T> Receiver<T> {
    /// The next message if one is there; costs no system call and leaves no waker.
    pub fn try_recv(&self) -> Option<T> {
        self.0.queue.pop()
    }

    /// The next message; `None` once the mailbox is closed and empty. Wakes `cx` when either
    /// changes.
    pub fn poll_recv(&self, cx: &mut Context<'_>) -> Poll<Option<T>> {
        let shared = &self.0;
        loop {
            if let Some(message) = shared.queue.pop() {
                return Poll::Ready(Some(message));
            }
            if shared.is_closed() {
                // One that was pushed before the mark was set.
                return Poll::Ready(shared.queue.pop());
            }
            let changed = || !shared.queue.is_empty() || shared.is_closed();
            if shared.park.poll(cx.waker(), changed).is_pending() {
                return Poll::Pending;
            }
        }
    }

    /// See [`Receiver::poll_recv`].
    pub async fn recv(&self) -> Option<T> {
        std::future::poll_fn(|cx| self.poll_recv(cx)).await
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        self.0.closed.store(true, Ordering::SeqCst);
        self.0.clear();
    }
}

#[cfg(all(test, not(dormouse_loom)))]
mod tests {
    use std::task::Waker;

    use super::*;

    #[test]
    fn messages_come_in_order_and_a_full_mailbox_gives_them_back() {
        let (sender, receiver) = mailbox(2);
        assert_eq!(sender.send(1), Ok(()));
        assert_eq!(sender.send(2), Ok(()));
        assert_eq!(sender.send(3), Err(Refused::Full(3)));
        assert_eq!((sender.len(), sender.is_empty()), (2, false));
        assert_eq!((receiver.try_recv(), receiver.try_recv()), (Some(1), Some(2)));
        assert!(receiver.poll_recv(&mut Context::from_waker(Waker::noop())).is_pending());
    }

    #[test]
    fn a_closed_mailbox_gives_what_it_holds_and_then_ends() {
        let (sender, receiver) = mailbox(2);
        assert_eq!(sender.send(1), Ok(()));
        sender.close();
        assert_eq!(sender.send(2), Err(Refused::Closed(2)));
        let cx = &mut Context::from_waker(Waker::noop());
        assert_eq!(receiver.poll_recv(cx), Poll::Ready(Some(1)));
        assert_eq!(receiver.poll_recv(cx), Poll::Ready(None));
    }

    #[test]
    fn a_dropped_receiver_drops_what_it_holds() {
        let (sender, receiver) = mailbox(2);
        let message = Arc::new(());
        assert!(sender.send(message.clone()).is_ok());
        drop(receiver);
        assert_eq!(Arc::strong_count(&message), 1);
        assert!(matches!(sender.send(message), Err(Refused::Closed(_))));
    }
}

#[cfg(all(test, dormouse_loom))]
mod models {
    use std::sync::atomic::{AtomicUsize as StdCount, Ordering as StdOrdering};
    use std::task::{Wake, Waker};

    use super::*;

    struct Wakes(StdCount);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, StdOrdering::SeqCst);
        }
    }

    /// A send against a receiver that goes to sleep: it gets the message or is woken.
    #[test]
    fn loom_a_receiver_never_sleeps_on_a_message() {
        loom::model(|| {
            let (sender, receiver) = mailbox(1);
            let wakes = Arc::new(Wakes(StdCount::new(0)));
            let thread = loom::thread::spawn(move || sender.send(7).is_ok());
            let waker = Waker::from(wakes.clone());
            let polled = receiver.poll_recv(&mut Context::from_waker(&waker));
            assert!(thread.join().expect("the sender ends"));
            assert!(polled == Poll::Ready(Some(7)) || wakes.0.load(StdOrdering::SeqCst) > 0);
        });
    }

    /// A close against a receiver that goes to sleep: it ends or is woken.
    #[test]
    fn loom_a_receiver_never_sleeps_through_the_close() {
        loom::model(|| {
            let (sender, receiver) = mailbox::<u8>(1);
            let wakes = Arc::new(Wakes(StdCount::new(0)));
            let thread = loom::thread::spawn(move || sender.close());
            let waker = Waker::from(wakes.clone());
            let polled = receiver.poll_recv(&mut Context::from_waker(&waker));
            thread.join().expect("the closer ends");
            assert!(polled == Poll::Ready(None) || wakes.0.load(StdOrdering::SeqCst) > 0);
        });
    }

    /// A send against the receiver's end: the message is given back or dropped, never left.
    fn send_against_the_end(send: impl Fn(&Sender<Arc<()>>, Arc<()>) + Send + Sync + 'static) {
        let send = Arc::new(send);
        loom::model(move || {
            let (sender, receiver) = mailbox(1);
            let message = Arc::new(());
            let (thread_sender, sent, send) = (sender.clone(), message.clone(), send.clone());
            let thread = loom::thread::spawn(move || send(&thread_sender, sent));
            drop(receiver);
            thread.join().expect("the sender ends");
            assert_eq!(Arc::strong_count(&message), 1, "a message is left behind");
        });
    }

    #[test]
    fn loom_no_message_is_left_behind() {
        send_against_the_end(|sender, message| drop(sender.send(message)));
    }

    #[test]
    #[should_panic(expected = "a message is left behind")]
    fn loom_a_sender_that_does_not_look_again_leaves_one_behind() {
        send_against_the_end(|sender, message| {
            if !sender.0.is_closed() {
                drop(sender.0.queue.push(message));
            }
        });
    }
}
