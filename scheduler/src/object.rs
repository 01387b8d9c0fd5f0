//! What a user writes: [`DurableObject`] and [`Handler`].

use std::future::Future;

use crate::error::{Error, Result};
use crate::http::{Request, Response};
use crate::socket::{Closed, Message, WebSocket};
use crate::state::State;

/// An object: built from its [`State`] on first use, and anew after eviction, reset or crash.
///
/// All its methods run on one core. While one waits for storage no other event is let in;
/// at any other await others may run.
pub trait DurableObject: Sized + 'static {
    /// The instance. Work that must be done before the first event goes into
    /// [`State::block_concurrency_while`]. A panic fails all waiting calls.
    fn new(state: State) -> Self;

    /// Answers an HTTP request. The response leaves when all that was written before it is
    /// durable.
    fn fetch(&self, request: Request) -> impl Future<Output = Result<Response>> {
        let _ = request;
        async { Err(Error::user("this object has no fetch")) }
    }

    /// The alarm: at least once, never early; an error has it run again later.
    fn alarm(&self, info: AlarmInfo) -> impl Future<Output = Result<()>> {
        let _ = info;
        async { Ok(()) }
    }

    /// A message of a socket that was accepted by
    /// [`State::accept_web_socket`], by this instance or an earlier one. Those of one
    /// socket begin in their order; one that waits may be overtaken. An error is logged,
    /// and changes nothing.
    fn web_socket_message(
        &self,
        socket: &WebSocket,
        message: Message,
    ) -> impl Future<Output = Result<()>> {
        let _ = (socket, message);
        async { Ok(()) }
    }

    /// The client closed the socket, or was lost. Nothing answers its close frame
    /// but [`WebSocket::close`], here or later.
    fn web_socket_close(
        &self,
        socket: &WebSocket,
        closed: Closed,
    ) -> impl Future<Output = Result<()>> {
        let _ = (socket, closed);
        async { Ok(()) }
    }

    /// The socket broke in another way: a message over the limit, or what is no WebSocket's
    /// . It is disconnected; what is sent goes nowhere.
    fn web_socket_error(
        &self,
        socket: &WebSocket,
        error: Error,
    ) -> impl Future<Output = Result<()>> {
        let _ = (socket, error);
        async { Ok(()) }
    }
}

/// A typed call beside HTTP.
pub trait Handler<M: Send + 'static>: DurableObject {
    /// What the call gives.
    type Reply: Send + 'static;

    /// Answers `message`. The reply leaves when all that was written before it is durable
    ///
    fn handle(&self, message: M) -> impl Future<Output = Result<Self::Reply>>;
}

/// One run of the alarm handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AlarmInfo {
    /// The time it was set for, in milliseconds since 1970.
    pub scheduled_ms: u64,
    /// Counted failures so far.
    pub retry_count: u32,
    /// Whether it failed before.
    pub is_retry: bool,
}
