//! [`Call`]: an answer on its way from a core, for any runtime and for none.

use std::fmt;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Wake};

use futures_channel::oneshot;
use futures_util::FutureExt;

use crate::error::{Error, Kind, Result};

/// The answer of a core, or of all of them. What was asked for is under way already: dropping this
/// takes nothing back. Await it on any runtime, or [`wait`](Call::wait) for it without one.
#[must_use = "whether it succeeded is not known before it is awaited"]
pub struct Call<T>(Source<T>);

enum Source<T> {
    /// Taken once.
    Done(Option<Result<T>>),
    Reply {
        reply: oneshot::Receiver<Result<T>>,
        /// What it means when no answer comes.
        lost: Kind,
    },
    Gathered(Pin<Box<dyn Future<Output = Result<T>> + Send + Sync>>),
}

impl<T> Call<T> {
    /// The two ends of an answer; `lost` is the kind of error if the first is dropped unused.
    pub(crate) fn new(lost: Kind) -> (oneshot::Sender<Result<T>>, Self) {
        let (sender, reply) = oneshot::channel();
        (sender, Self(Source::Reply { reply, lost }))
    }

    /// An answer that is there.
    pub(crate) fn done(answer: Result<T>) -> Self {
        Self(Source::Done(Some(answer)))
    }

    /// An answer put together from those of several cores, which were all asked.
    pub(crate) fn gathered(
        answers: impl Future<Output = Result<T>> + Send + Sync + 'static,
    ) -> Self {
        Self(Source::Gathered(Box::pin(answers)))
    }

    /// Blocks this thread until the answer is there. Not for use in async code.
    ///
    /// Errors: those of the call.
    pub fn wait(self) -> Result<T> {
        match self.0 {
            Source::Done(Some(answer)) => answer,
            source => wait(Self(source)),
        }
    }
}

// Nothing in it is pinned but what is boxed.
impl<T> Unpin for Call<T> {}

impl<T> fmt::Debug for Call<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call").finish_non_exhaustive()
    }
}

impl<T> Future for Call<T> {
    type Output = Result<T>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<T>> {
        match &mut self.0 {
            Source::Done(answer) => Poll::Ready(answer.take().expect("polled after it was ready")),
            Source::Reply { reply, lost } => reply.poll_unpin(context).map(|reply| {
                let ended = || Error::new(*lost, "the store ended before it answered");
                reply.unwrap_or_else(|_| Err(ended()))
            }),
            Source::Gathered(answers) => answers.as_mut().poll(context),
        }
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
