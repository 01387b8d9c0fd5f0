//! The seam between connections and the world (feature `net`), and what carries a WebSocket over it.
//!
//! [`Net`] says what a connection's bytes come through, and how time passes for it: tokio's in a
//! server, a simulated network's in the simulator. What stands above is one code path: the
//! protocol's frames (`frames`), and the task that brings them to the object and back
//! (`bridge`). How connections are listened for is the server's, beneath the HTTP that they
//! begin with. What objects open to the outside is carried the same way, with the sides turned round;
//! how it is opened is said by `Network` (feature `server`).

mod bridge;
pub(crate) mod frames;

use std::future::Future;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};

pub use bridge::{Bounds, Rest, Resting, carry};
pub use frames::{Client, Server, Side};

/// A network, and the clock of those who wait for it.
pub trait Net {
    /// One connection: bytes both ways, in order, until either end is gone.
    type Stream: AsyncRead + AsyncWrite;

    /// What comes of `future`, if that takes no longer than `limit`.
    fn within<F: Future>(
        &self,
        limit: Duration,
        future: F,
    ) -> impl Future<Output = Option<F::Output>>;
}

/// Bounds of a connection that carries a WebSocket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CarryLimits {
    /// A client that was silent for so long is pinged, and lost after as long again; one that takes
    /// nothing for twice as long is lost as well.
    pub silence_time: Duration,
    /// A connection that may rest does so when its client has been silent for so long.
    pub rest_time: Duration,
    /// How long one side waits for the other's close frame.
    pub close_time: Duration,
    /// Bytes of a message from a client.
    pub message_bytes: usize,
    /// Bytes that messages hold which have not come whole, of all connections with these [`Bounds`]
    /// together (those below 32 KiB don't count). The one whose message would be too much is closed
    /// with 1013.
    pub partial_bytes: usize,
}
