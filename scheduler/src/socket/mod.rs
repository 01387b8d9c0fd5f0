//! WebSockets that outlive their object's instance (semantics.md §7).
//!
//! Who owns what:
//!
//! - [`wire`]: two bounded queues between a client's end, on any thread, and the object's core. A
//!   transport (a test, the simulator, a server) moves frames in and out of the client's end.
//! - [`connection`]: one accepted socket: tags, attachment, state, and the frames that wait for the
//!   output gate. It belongs to the core, so that frames outlive the instance.
//! - [`sockets`]: all connections of one object. Kept while the object sleeps,
//!   dropped when it is reset.
//! - [`read`]: a task for each connection that brings its frames to the object, one after the other
//!   and answers what the object need not see.
//! - [`event`]: what the object is told, and when it counts as told.
//! - [`handle`], [`upgrade`], [`state`]: what a user's code holds.
//! - [`live`]: a socket that does not outlive the instance, and is read by the object's own code.
//!
//! Invariant: nothing here refers to an instance but the user's handles, which go with it.

pub(crate) mod connection;
pub(crate) mod event;
mod handle;
mod live;
mod message;
pub(crate) mod read;
pub(crate) mod sockets;
mod state;
mod upgrade;
mod wire;

use dormouse_cache::code::BAD_ARGUMENT;
use dormouse_engine as engine;

use crate::error::Error;

pub use event::{Closed, SocketEvent};
pub use handle::WebSocket;
pub use live::LiveSocket;
pub use message::{CloseFrame, Message, ReadyState};
#[cfg(feature = "server")]
pub(crate) use upgrade::names;
pub use upgrade::{Upgrade, UpgradeRequest, UpgradeResponse};
#[cfg(feature = "server")]
pub(crate) use wire::wire;
pub use wire::{ClientSocket, Received};

/// Bounds of WebSockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketLimits {
    /// Sockets of one object.
    pub per_object: usize,
    /// Bytes that all sockets of a core may hold while they are silent: [`SOCKET_BYTES`] and the
    /// attachment of each. Beyond, none is accepted, and no attachment grows (`Overloaded`, code
    /// `sockets-full`).
    pub core_bytes: usize,
    /// Bytes of a message from a client; one that is longer ends its connection.
    pub message_bytes: usize,
    /// Bytes of frames from a client that wait for the object; beyond, the client waits.
    pub incoming_bytes: usize,
    /// Bytes of frames that wait for the output gate or for the client; beyond, `send` is refused.
    pub outgoing_bytes: usize,
}

impl SocketLimits {
    /// For use.
    pub const PRODUCTION: Self = Self {
        per_object: 32_768,
        core_bytes: 256 << 20,
        message_bytes: 1 << 20,
        incoming_bytes: 256 << 10,
        outgoing_bytes: 4 << 20,
    };
}

/// What a socket counts beside its attachment: its record on the core, its two queues, and the task
/// of its connection. Held near the truth by a test (`tests/silent.rs`).
pub const SOCKET_BYTES: usize = 2 << 10;

/// Distinct tags of one socket.
const TAGS_MAX: usize = 10;
/// Bytes of a tag.
const TAG_BYTES_MAX: usize = 256;
/// Bytes of an attachment.
const ATTACHMENT_BYTES_MAX: usize = 16_384;
/// Bytes of either text of an automatic response.
const AUTO_BYTES_MAX: usize = 2048;
/// Milliseconds that a handler may be given at most: seven days.
const EVENT_TIMEOUT_MS_MAX: u128 = 604_800_000;

/// A caller's own mistake.
pub(crate) fn bad_argument(text: impl Into<String>) -> Error {
    engine::Error::coded(engine::Kind::Invalid, BAD_ARGUMENT, text).into()
}
