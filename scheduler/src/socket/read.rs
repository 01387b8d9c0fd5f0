//! The read loop of a connection.
//!
//! Invariants: the next frame is read only when the event of the one before has been delivered, or
//! answered, so frames that arrive meanwhile stay on the wire and their sender
//! waits; at most one close event; when the loop has ended the connection is not listed
//!

use std::future::Future;
use std::rc::Rc;

use dormouse_engine as engine;
use dormouse_engine::Host;
use futures_channel::oneshot;

use super::connection::Connection;
use super::event::{Closed, SocketCall, SocketEvent};
use super::message::{Frame, Message};
use super::sockets::Sockets;
use super::wire::Incoming;
use crate::core::Inner;
use crate::error::Error;
use crate::id::Id;
use crate::instance::Work;

/// What the close event says when no close frame came.
pub(crate) const NO_CLOSE_FRAME: &str = "WebSocket disconnected without sending Close frame.";

/// Reads one connection.
pub(crate) struct Reader {
    pub(crate) core: Rc<Inner>,
    pub(crate) sockets: Rc<Sockets>,
    pub(crate) id: Id,
    pub(crate) class: usize,
    pub(crate) connection: Rc<Connection>,
}

impl Reader {
    /// Reads until the connection ends.
    #[expect(clippy::manual_async_fn, reason = "it would have room for `self` twice")]
    pub(crate) fn run(self) -> impl Future<Output = ()> + 'static {
        async move {
            loop {
                let incoming = self.connection.wire.receive().await;
                // What is not delivered was promised to nobody; the shutdown disconnects the client.
                if self.core.is_draining() || matches!(incoming, Incoming::HungUp) {
                    break;
                }
                // Apart, so that a connection on which nothing happens holds nothing for it.
                if !Box::pin(self.take(incoming)).await {
                    break;
                }
            }
            // Nobody reads any more, but the object may still close it, and the client may go.
            while !matches!(self.connection.wire.receive().await, Incoming::Lost | Incoming::HungUp)
            {
            }
            self.sockets.forget(&self.connection);
            self.core.socket_left(self.id.object());
        }
    }

    /// Whether the loop goes on.
    async fn take(&self, incoming: Incoming) -> bool {
        match incoming {
            Incoming::Frame(Frame::Message(message)) => return self.message(message).await,
            Incoming::Frame(Frame::Ping(bytes)) => {
                self.answer(Frame::Pong(bytes)).await;
                return true;
            }
            Incoming::Frame(Frame::Pong(_)) => return true,
            Incoming::Frame(Frame::Close(close)) => {
                self.connection.close_received();
                self.closed(close.code.unwrap_or(1005), close.reason, true).await;
            }
            Incoming::Lost => self.closed(1006, NO_CLOSE_FRAME.to_owned(), false).await,
            Incoming::Broken(error) => self.broken(error).await,
            Incoming::HungUp => {}
        }
        false
    }

    /// Whether the loop goes on.
    async fn message(&self, message: Message) -> bool {
        let most = self.sockets.limits().message_bytes;
        if let Some(error) = self.connection.refuse_if_longer(&message, most) {
            self.broken(error).await;
            return false;
        }
        let auto = self.sockets.auto_response();
        if let Some(auto) = auto.filter(|auto| message.as_text() == Some(&auto.request)) {
            // Its time is recorded first, and also where nothing is sent.
            self.connection.responded_at(self.core.host.wall_ms());
            self.answer(Frame::Message(Message::from(&*auto.response))).await;
            return true;
        }
        let delivered = self.deliver(SocketEvent::Message(message)).await;
        if !delivered && !self.connection.wire.is_hung_up() {
            // The object can't be brought into memory.
            let text = "the object could not take a message of its WebSocket";
            let error = engine::Error::coded(engine::Kind::Closed, "socket-not-delivered", text);
            self.broken(error.into()).await;
        }
        delivered
    }

    /// Sends what the object need not see, as soon as there is room for it: a client that asks and
    /// does not read waits by this.
    async fn answer(&self, frame: Frame) {
        self.connection.wire.room(|| self.connection.has_room()).await;
        self.connection.send_ungated(frame);
    }

    async fn closed(&self, code: u16, reason: String, was_clean: bool) {
        let event = SocketEvent::Closed(Closed { code, reason, was_clean });
        if !self.deliver(event).await {
            self.sockets.forget(&self.connection);
        }
    }

    /// The last event, and the end of the connection, whatever becomes of it.
    async fn broken(&self, error: Error) {
        self.deliver(SocketEvent::Error(error)).await;
        self.sockets.forget(&self.connection);
    }

    /// Whether the handler's first turn has run.
    async fn deliver(&self, event: SocketEvent) -> bool {
        let (delivered, told) = oneshot::channel();
        let connection = self.connection.clone();
        let call = SocketCall { connection, event, delivered };
        self.core.deliver(self.id.clone(), self.class, Work::Socket(call));
        told.await.is_ok()
    }
}
