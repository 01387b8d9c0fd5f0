//! HTTP requests and WebSockets from an object to the outside (feature `server`).
//!
//! [`State::fetch`] sends a request, [`State::connect`] opens a WebSocket. Both are I/O that the
//! object awaits, on its own core:
//!
//! - Nothing leaves before all that was written before the call is durable; if that
//!   fails, never.
//! - While it is awaited other events come in (R-507, T-111), and what comes of it passes the input
//!   gate, as all that an object's code resumes for.
//! - It keeps the object in memory, and ends with the instance: a reset cuts the connection,
//!   as dropping the future does.
//!
//! Each has a connection of its own, bounds ([`OutsideLimits`]) and a time. No redirect is followed,
//! and there is no TLS: who needs it puts a proxy of his own in between, on the same machine.
//!
//! [`Network`] is the seam to the world: tokio's net, or what a test puts in its place.

mod connect;
mod fetch;
mod network;
mod target;

use std::time::Duration;
use std::{fmt, sync::Arc};

use dormouse_engine as engine;

use crate::error::Error;
use crate::socket::sockets::Sockets;

pub(crate) use network::TokioNetwork;
pub use network::{Network, Stream};

/// Bounds of what an object opens to the outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutsideLimits {
    /// Requests and WebSockets of one object at a time; beyond, `Overloaded`, code `outside-full`.
    pub per_object: usize,
    /// How long a connection may take to be opened.
    pub connect_time: Duration,
    /// How long a whole answer may take after that, and the handshake of a WebSocket.
    pub answer_time: Duration,
    /// Bytes of an answer's body.
    pub answer_bytes: usize,
    /// The other end of a WebSocket that was silent for so long is pinged, and lost after as long
    /// again.
    pub silence_time: Duration,
}

impl OutsideLimits {
    /// For use.
    pub const PRODUCTION: Self = Self {
        per_object: 64,
        connect_time: Duration::from_secs(10),
        answer_time: Duration::from_secs(60),
        answer_bytes: 8 << 20,
        silence_time: Duration::from_secs(30),
    };
}

/// The way to the outside that all objects of a runtime have.
#[derive(Clone)]
pub(crate) struct Outside {
    pub(crate) network: Arc<dyn Network>,
    pub(crate) limits: OutsideLimits,
}

impl fmt::Debug for Outside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outside").field("limits", &self.limits).finish_non_exhaustive()
    }
}

/// One connection to the outside, counted until it is dropped.
struct Open(std::rc::Rc<Sockets>);

impl Open {
    fn new(sockets: &std::rc::Rc<Sockets>, most: usize) -> Result<Self, Error> {
        let open = sockets.outside.get();
        if open >= most {
            let text = format!("{open} requests and WebSockets to the outside are open");
            return Err(engine::Error::coded(engine::Kind::Overloaded, "outside-full", text).into());
        }
        sockets.outside.set(open + 1);
        Ok(Self(sockets.clone()))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.outside.set(self.0.outside.get() - 1);
    }
}

/// No connection: nothing happened.
fn unreachable(text: impl fmt::Display) -> Error {
    let text = format!("the outside could not be reached: {text}");
    engine::Error::coded(engine::Kind::Retry, "outside-unreachable", text).into()
}

/// The request left, and no answer came.
fn lost(text: impl fmt::Display) -> Error {
    let text = format!("an answer from the outside was lost: {text}");
    engine::Error::coded(engine::Kind::Unknown, "outside-lost", text).into()
}

fn too_late(limit: Duration) -> Error {
    let text = format!("no answer from the outside within {limit:?}");
    engine::Error::coded(engine::Kind::Unknown, "outside-timeout", text).into()
}
