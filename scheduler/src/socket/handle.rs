//! [`WebSocket`]: an object's handle on one of its connections.

use std::fmt;
use std::rc::Rc;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::connection::Connection;
use super::message::{CloseFrame, Message, ReadyState};
use crate::error::Result;
use crate::instance::Instance;
use crate::value;

/// A hibernatable WebSocket of this object. Cheap to clone; equal if it is the same connection.
///
/// The connection outlives the instance; handles go with the instance, and the next one gets its
/// own from [`State::web_sockets`](crate::State::web_sockets) or with an event.
#[derive(Clone)]
pub struct WebSocket {
    pub(super) instance: Rc<Instance>,
    pub(super) connection: Rc<Connection>,
}

impl PartialEq for WebSocket {
    fn eq(&self, other: &Self) -> bool {
        Rc::ptr_eq(&self.connection, &other.connection)
    }
}

impl Eq for WebSocket {}

impl fmt::Debug for WebSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WebSocket")
            .field("tags", &self.connection.tags)
            .field("ready_state", &self.ready_state())
            .finish_non_exhaustive()
    }
}

impl WebSocket {
    pub(crate) fn new(instance: Rc<Instance>, connection: Rc<Connection>) -> Self {
        Self { instance, connection }
    }

    /// Sends a message, without waiting. It leaves when all that was written before this call is
    /// durable, after all that was sent before; if that fails, or this instance is
    /// reset first, never. To a client that is lost it goes nowhere.
    ///
    /// Errors: `bad-argument` after [`close`](Self::close); `Overloaded`, code
    /// `socket-queue-full`, while the client does not take what it was sent; `Closed` from a
    /// handle of an instance that has left memory.
    pub fn send(&self, message: impl Into<Message>) -> Result<()> {
        self.instance.check_resident()?;
        if self.connection.send(message.into())? {
            self.release_when_durable();
        }
        Ok(())
    }

    /// Sends a close frame; `None` and no reason send an empty one. A second call is ignored
    /// . Waits as a message does. Allowed in `web_socket_close`: nothing else answers the
    /// client's close frame.
    ///
    /// Errors: `bad-argument` for a code outside of 1000–4999, or 1004, 1005, 1006, 1015; for a
    /// reason without a code or over 123 bytes, whatever the socket's state.
    pub fn close(&self, code: impl Into<Option<u16>>, reason: &str) -> Result<()> {
        let close = CloseFrame::new(code.into(), reason)?;
        self.instance.check_resident()?;
        self.close_with(close);
        Ok(())
    }

    /// Sends this close frame, unless one was sent before.
    pub(super) fn close_with(&self, close: CloseFrame) {
        if self.connection.close(close) {
            self.release_when_durable();
        }
    }

    fn release_when_durable(&self) {
        let connection = self.connection.clone();
        self.instance.say_after_turn(move || connection.release());
    }

    /// The tags that it was accepted with, without duplicates, in their order.
    pub fn tags(&self) -> Vec<&str> {
        self.connection.tags.iter().map(|tag| &**tag).collect()
    }

    /// How far it is.
    pub fn ready_state(&self) -> ReadyState {
        self.connection.ready_state()
    }

    /// Keeps `value` with the connection, in the place of the one before, for as long as it lasts
    /// . Kept as values in storage are; not durable: it ends with the process.
    ///
    /// Errors: `bad-argument` over 16,384 bytes; `Overloaded`, code `sockets-full`: the sockets of this
    /// core hold too much together; `value` can't be written.
    pub fn set_attachment(&self, value: &impl Serialize) -> Result<()> {
        self.connection.set_attachment(value::encode(value)?)
    }

    /// A copy of what [`set_attachment`](Self::set_attachment) kept; `None` if nothing.
    ///
    /// Errors: it is no `T`.
    pub fn attachment<T: DeserializeOwned>(&self) -> Result<Option<T>> {
        let bytes = self.connection.attachment();
        bytes.map(|bytes| value::decode(&bytes)).transpose()
    }

    /// When a message was last answered for the object, in milliseconds since 1970.
    pub fn auto_response_timestamp_ms(&self) -> Option<u64> {
        self.connection.auto_response_ms()
    }
}
