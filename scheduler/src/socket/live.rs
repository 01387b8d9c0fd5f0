//! [`LiveSocket`]: a socket that the object reads itself, and that keeps it in memory.
//!
//! Invariants: the core counts it as open until the object was told of its end, or dropped the
//! handle; what was sent before the drop leaves before the connection ends.

use std::fmt;
use std::rc::Rc;

use super::connection::Connection;
use super::event::{Closed, SocketEvent};
use super::handle::WebSocket;
use super::message::{CloseFrame, Frame, Message, ReadyState};
use super::read::NO_CLOSE_FRAME;
use super::sockets::Sockets;
use super::wire::Incoming;
use crate::error::Result;
use crate::instance::Instance;

/// An ordinary WebSocket of this object: one that it accepted, or opened to the outside. While it is open the object stays in memory; it goes with
/// the instance, and with this handle.
///
/// Have a task of [`State::wait_until`](crate::State::wait_until) receive from it: each event
/// passes the object's input gate on its way there.
pub struct LiveSocket(WebSocket);

impl fmt::Debug for LiveSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ready_state = self.ready_state();
        f.debug_struct("LiveSocket").field("ready_state", &ready_state).finish_non_exhaustive()
    }
}

impl LiveSocket {
    pub(crate) fn new(instance: Rc<Instance>, connection: Rc<Connection>) -> Self {
        Self(WebSocket::new(instance, connection))
    }

    /// The next event; `None` once [`SocketEvent::Closed`] or [`SocketEvent::Error`] was given. A
    /// close frame is answered with the same code by itself.
    ///
    /// One task at a time. Cancel: nothing is lost.
    pub async fn recv(&self) -> Option<SocketEvent> {
        loop {
            if !self.sockets().is_live(&self.0.connection) {
                return None;
            }
            let event = match self.0.connection.wire.receive().await {
                Incoming::Frame(Frame::Message(message)) => self.message(message),
                Incoming::Frame(Frame::Ping(bytes)) => {
                    self.0.connection.wire.room(|| self.0.connection.has_room()).await;
                    self.0.connection.send_ungated(Frame::Pong(bytes));
                    continue;
                }
                Incoming::Frame(Frame::Pong(_)) => continue,
                Incoming::Frame(Frame::Close(close)) => self.close_frame(close),
                Incoming::Lost | Incoming::HungUp => SocketEvent::Closed(Closed {
                    code: 1006,
                    reason: NO_CLOSE_FRAME.to_owned(),
                    was_clean: false,
                }),
                Incoming::Broken(error) => SocketEvent::Error(error),
            };
            self.0.connection.set_inbound(event.inbound());
            if !matches!(event, SocketEvent::Message(_)) {
                self.is_over();
            }
            return Some(event);
        }
    }

    fn message(&self, message: Message) -> SocketEvent {
        let most = self.sockets().limits().message_bytes;
        match self.0.connection.refuse_if_longer(&message, most) {
            Some(error) => SocketEvent::Error(error),
            None => SocketEvent::Message(message),
        }
    }

    fn close_frame(&self, close: CloseFrame) -> SocketEvent {
        self.0.connection.close_received();
        self.0.close_with(close.clone());
        let code = close.code.unwrap_or(1005);
        SocketEvent::Closed(Closed { code, reason: close.reason, was_clean: true })
    }

    /// Sends a message. As [`WebSocket::send`](crate::WebSocket::send), errors too.
    pub fn send(&self, message: impl Into<Message>) -> Result<()> {
        self.0.send(message)
    }

    /// Sends a close frame. As [`WebSocket::close`](crate::WebSocket::close), errors too; go on
    /// receiving until the client's comes.
    pub fn close(&self, code: impl Into<Option<u16>>, reason: &str) -> Result<()> {
        self.0.close(code, reason)
    }

    /// How far it is.
    pub fn ready_state(&self) -> ReadyState {
        self.0.ready_state()
    }

    fn sockets(&self) -> &Sockets {
        self.0.instance.sockets().expect("this one was accepted there")
    }

    /// It keeps the object in memory no longer.
    fn is_over(&self) {
        self.sockets().live_is_over(&self.0.connection);
    }
}

impl Drop for LiveSocket {
    fn drop(&mut self) {
        if self.0.connection.is_kept() {
            return;
        }
        self.is_over();
        // Nothing is left with the instance to do: its tasks, and this with them, may be dropped at
        // any moment, and what then waited in it would keep it.
        self.0.connection.hang_up_behind();
    }
}
