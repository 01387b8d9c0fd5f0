//! What an object is told of a socket, and when it counts as told.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use futures_channel::oneshot;
use futures_util::future::LocalBoxFuture;

use super::connection::{Connection, Inbound};
use super::message::Message;
use super::sockets::Sockets;
use crate::error::{Error, Result};

/// How a connection ended, as the object is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Closed {
    /// The client's code; 1005 if its close frame had none, 1006 if none came.
    pub code: u16,
    /// The client's reason.
    pub reason: String,
    /// Whether a close frame came.
    pub was_clean: bool,
}

/// One event of a socket.
#[derive(Clone, Debug)]
pub enum SocketEvent {
    /// A message.
    Message(Message),
    /// The client closed it, or was lost.
    Closed(Closed),
    /// It broke in another way.
    Error(Error),
}

impl SocketEvent {
    /// What the client's direction is from then on.
    pub(crate) fn inbound(&self) -> Inbound {
        match self {
            Self::Message(_) => Inbound::Open,
            Self::Closed(_) => Inbound::Closed,
            Self::Error(_) => Inbound::Broken,
        }
    }
}

/// An event on its way to the object.
pub(crate) struct SocketCall {
    pub(crate) connection: Rc<Connection>,
    pub(crate) event: SocketEvent,
    /// Told after the first turn of the handler; dropped if there was none.
    pub(crate) delivered: oneshot::Sender<()>,
}

/// A handler that says when its first turn has run.
pub(crate) struct Delivery {
    handler: LocalBoxFuture<'static, Result<()>>,
    sockets: Rc<Sockets>,
    connection: Rc<Connection>,
    inbound: Inbound,
    delivered: Option<oneshot::Sender<()>>,
    /// For the limit of the event's time.
    began: Option<oneshot::Sender<()>>,
}

impl Delivery {
    /// The second part resolves when the handler has begun.
    pub(crate) fn new(
        sockets: Rc<Sockets>,
        connection: Rc<Connection>,
        inbound: Inbound,
        handler: LocalBoxFuture<'static, Result<()>>,
        delivered: oneshot::Sender<()>,
    ) -> (Self, oneshot::Receiver<()>) {
        let (began, begins) = oneshot::channel();
        let (delivered, began) = (Some(delivered), Some(began));
        (Self { handler, sockets, connection, inbound, delivered, began }, begins)
    }
}

impl Future for Delivery {
    type Output = Result<()>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        let this = &mut *self;
        let Some(delivered) = this.delivered.take() else { return this.handler.as_mut().poll(cx) };
        if this.inbound != Inbound::Open {
            this.connection.set_inbound(this.inbound);
        }
        let result = this.handler.as_mut().poll(cx);
        // In the handler's first turn the socket is still listed; after it not.
        if this.inbound != Inbound::Open {
            this.sockets.unlist(&this.connection);
        }
        let _the_reader_is_gone = delivered.send(());
        let _no_limit = this.began.take().map(|began| began.send(()));
        result
    }
}
