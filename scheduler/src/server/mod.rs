//! HTTP and WebSockets from outside (feature `server`): hyper over tokio's net, on the cores' own runtimes.
//!
//! [`Router`] brings a request to the object that its path names, and is a `tower` service, so that
//! it can stand behind another server too. With its upgrade to a WebSocket a connection moves to its object's core,
//! where [`net::carry`](crate::net::carry) brings its frames to and fro; behind another server it stays where it is.
//!
//! TLS is the proxy's in front of it.
//!
//! Invariants: everything that a client can make grow has a bound in [`ServerOptions`]; a client
//! that is slow or hostile delays and ends only its own connection; a shutdown waits for what was
//! asked for, and no longer than [`ServerOptions::drain_time`].

mod body;
mod fair;
mod handshake;
mod hostile;
mod listen;
mod metrics;
mod patience;
#[cfg(target_os = "linux")]
mod resting;
/// Only Linux has what connections rest beneath.
#[cfg(not(target_os = "linux"))]
mod resting {
    use std::io;
    use std::os::fd::OwnedFd;
    use std::rc::Rc;
    use std::time::Duration;

    use super::router::Carried;
    use crate::guests::Stay;
    use crate::host::CoreHost;

    pub(crate) enum Resting {}

    impl Resting {
        pub(crate) fn start(_host: &CoreHost) -> io::Result<Rc<Self>> {
            Err(io::ErrorKind::Unsupported.into())
        }

        pub(super) fn rest(&self, _: OwnedFd, _: Carried, _: Stay, _: Duration) {
            match *self {}
        }
    }
}
mod router;
mod tokio_net;
mod upload;

use std::time::Duration;

pub(crate) use fair::Fair;
pub use hostile::hostile;
pub use listen::until_signal;
pub(crate) use listen::{Server, start};
pub(crate) use metrics::{router as metrics_router, upkeep as metrics_upkeep};
pub(crate) use resting::Resting;
pub use router::{ClientAddress, Route, Router};
pub(crate) use tokio_net::TokioNet;

/// Bounds of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerOptions {
    /// Connections at a time that are no WebSockets; further ones wait to be accepted.
    pub connections: usize,
    /// WebSockets at a time; further ones get 503.
    pub sockets: usize,
    /// Bytes of a request's headers.
    pub header_bytes: usize,
    /// Bytes of a request's body; beyond, 413. They are never held as a whole here: what an object does
    /// with them is its own affair.
    pub body_bytes: usize,
    /// Bytes that messages of WebSockets hold which have not come whole, of all sockets together (those
    /// below 32 KiB don't count). The socket whose message would be too much is closed with 1013.
    pub partial_bytes: usize,
    /// How long a client may take for its headers.
    pub header_time: Duration,
    /// How long a client may take for the next piece of its body; then 408.
    pub body_time: Duration,
    /// How long an object may take, from the last piece of the request's body that it took; then 504.
    pub answer_time: Duration,
    /// A client of a WebSocket that was silent for so long is pinged, and lost after as long again;
    /// any client that takes nothing of what it is sent for twice as long is lost as well.
    pub silence_time: Duration,
    /// The connection of a WebSocket whose client is silent for so long rests: it takes little memory then, and some
    /// microseconds to go on.
    pub rest_time: Duration,
    /// How long one side of a WebSocket waits for the other's close frame.
    pub close_time: Duration,
    /// How long a shutdown waits for requests that are being answered.
    pub drain_time: Duration,
    /// Which pages of a browser may open a WebSocket here.
    pub origins: Origins,
}

/// Which origins may open a WebSocket. Clients that are no browsers send none, and are let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origins {
    /// Only pages of the host that the request itself names.
    Same,
    /// All: objects check for themselves.
    Any,
}

impl ServerOptions {
    /// For use.
    pub const PRODUCTION: Self = Self {
        connections: 16_384,
        sockets: 32_768,
        header_bytes: 32 << 10,
        body_bytes: 8 << 20,
        partial_bytes: 64 << 20,
        header_time: Duration::from_secs(10),
        body_time: Duration::from_secs(30),
        answer_time: Duration::from_secs(60),
        silence_time: Duration::from_secs(30),
        rest_time: Duration::from_secs(2),
        close_time: Duration::from_secs(30),
        drain_time: Duration::from_secs(10),
        origins: Origins::Same,
    };
}
