//! [`Answer`]: the result of a storage operation, at once or later.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use dormouse_engine::Result;

/// The result of a storage operation: there at once, or a future.
///
/// A hit is [`Answer::Ready`] and costs no allocation, no lock on the input gate and no turn
/// boundary. The operation itself took effect at the call; dropping the answer
/// undoes nothing.
pub enum Answer<T> {
    /// The result; `None` once it was taken by polling.
    Ready(Option<Result<T>>),
    /// The operation waits.
    Waiting(Pin<Box<dyn Future<Output = Result<T>>>>),
}

// Neither variant is pinned in place: a result is moved out, a future is behind its own box.
impl<T> Unpin for Answer<T> {}

impl<T> Answer<T> {
    /// An answer that is there.
    pub fn ready(result: Result<T>) -> Self {
        Self::Ready(Some(result))
    }

    /// An answer that has to be waited for.
    pub fn waiting(future: impl Future<Output = Result<T>> + 'static) -> Self {
        Self::Waiting(Box::pin(future))
    }

    /// Whether the result is there, so that waiting for it needs no lock.
    pub fn is_ready(&self) -> bool {
        matches!(self, Self::Ready(_))
    }

    /// The result if it is there, else the answer again.
    ///
    /// # Panics
    /// If the result was already taken by polling.
    pub fn try_ready(self) -> Result<Result<T>, Self> {
        match self {
            Self::Ready(result) => Ok(result.expect("polled after it was ready")),
            waiting => Err(waiting),
        }
    }

    /// The answer with its value changed by `change`.
    pub fn map<U>(self, change: impl FnOnce(T) -> U + 'static) -> Answer<U>
    where
        T: 'static,
    {
        match self {
            Self::Ready(result) => Answer::Ready(result.map(|result| result.map(change))),
            Self::Waiting(future) => Answer::waiting(async move { future.await.map(change) }),
        }
    }
}

impl<T> Future for Answer<T> {
    type Output = Result<T>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<T>> {
        match self.get_mut() {
            Self::Ready(result) => Poll::Ready(result.take().expect("polled after it was ready")),
            Self::Waiting(future) => future.as_mut().poll(cx),
        }
    }
}

impl<T: fmt::Debug> fmt::Debug for Answer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ready(result) => f.debug_tuple("Ready").field(result).finish(),
            Self::Waiting(_) => f.write_str("Waiting"),
        }
    }
}
