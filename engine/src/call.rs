//! [`Call`]: an answer on its way from a core, for any runtime and for none.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Wake};

use futures_channel::oneshot;
use futures_util::FutureExt;

use crate::error::{Error, Kind, Result};

/// The answer of a core. What was asked for is under way already: dropping this takes nothing
/// back. Await it on any runtime, or [`wait`](Call::wait) for it without one.
#[must_use = "whether it succeeded is not known before it is awaited"]
#[derive(Debug)]
pub struct Call<T> {
    reply: oneshot::Receiver<Result<T>>,
    /// What it means when no answer comes.
    lost: Kind,
}

impl<T> Call<T> {
    /// The two ends of an answer; `lost` is the kind of error if the first is dropped unused.
    pub(crate) fn new(lost: Kind) -> (oneshot::Sender<Result<T>>, Self) {
        let (sender, reply) = oneshot::channel();
        (sender, Self { reply, lost })
    }

    /// Blocks this thread until the answer is there. Not for use in async code.
    ///
    /// Errors: those of the call.
    pub fn wait(self) -> Result<T> {
        wait(self)
    }
}

impl<T> Future for Call<T> {
    type Output = Result<T>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<T>> {
        let lost = self.lost;
        self.reply.poll_unpin(context).map(|reply| {
            reply.unwrap_or_else(|_| Err(Error::new(lost, "the store ended before it answered")))
        })
    }
}

struct Unpark(std::thread::Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Blocks this thread until `future` is done.
pub fn wait<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    let waker = Arc::new(Unpark(std::thread::current())).into();
    let mut context = Context::from_waker(&waker);
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(value) => return value,
            Poll::Pending => std::thread::park(),
        }
    }
}
