//! [`Connection`]: one accepted socket, whether its object is in memory or not.
//!
//! Invariants:
//!
//! - Frames reach the wire in the order of the calls. One that waits for the output gate
//!   holds back all that were queued after it, automatic responses too; with nothing
//!   waiting those leave at once.
//! - One gated frame is released by one [`release`](Connection::release): the instance whose gate
//!   it waits for calls it when that wait is over.
//! - Nothing leaves after a close frame.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use bytes::Bytes;
use dormouse_engine as engine;

use super::message::{CloseFrame, Frame, Message, ReadyState};
use super::wire::Wire;
use super::{ATTACHMENT_BYTES_MAX, SOCKET_BYTES, bad_argument};
use crate::error::{Error, Result};

/// How far the client's direction is, as the object was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Inbound {
    /// Next: closed, broken.
    Open,
    /// The close event began.
    Closed,
    /// The error event began: what is sent goes nowhere.
    Broken,
}

enum Queued {
    /// Waits for the output gate of the instance that sent it.
    Gated(Frame),
    /// Waits only for those before it.
    Behind(Frame),
}

/// What all connections of a core hold, and may: [`SocketLimits::core_bytes`].
///
/// [`SocketLimits::core_bytes`]: super::SocketLimits::core_bytes
pub(crate) struct SocketBudget {
    used: Cell<usize>,
    most: usize,
}

impl SocketBudget {
    pub(crate) fn new(most: usize) -> Rc<Self> {
        Rc::new(Self { used: Cell::new(0), most })
    }
}

/// A connection's part of a [`SocketBudget`]. It goes with it.
pub(crate) struct Held {
    budget: Rc<SocketBudget>,
    mine: Cell<usize>,
}

impl Held {
    /// What a new connection takes.
    ///
    /// Errors: `Overloaded`, code `sockets-full`.
    pub(crate) fn new(budget: &Rc<SocketBudget>) -> Result<Self> {
        let this = Self { budget: budget.clone(), mine: Cell::new(0) };
        this.set(SOCKET_BYTES)?;
        Ok(this)
    }

    /// Takes `bytes` in all, if there is room for more than before.
    fn set(&self, bytes: usize) -> Result<()> {
        let SocketBudget { used, most } = &*self.budget;
        let others = used.get() - self.mine.get();
        if bytes > self.mine.get() && others + bytes > *most {
            let text = format!("the sockets of this core hold {others} bytes, of {most} at most");
            let kind = engine::Kind::Overloaded;
            return Err(engine::Error::coded(kind, "sockets-full", text).into());
        }
        used.set(others + bytes);
        self.mine.set(bytes);
        Ok(())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let used = &self.budget.used;
        used.set(used.get() - self.mine.get());
    }
}

pub(crate) struct Connection {
    /// Its place in the order of acceptance.
    pub(crate) number: u64,
    pub(crate) tags: Box<[Rc<str>]>,
    pub(crate) wire: Wire,
    outgoing_bytes_max: usize,
    attachment: RefCell<Option<Bytes>>,
    held: Held,
    auto_response_ms: Cell<Option<u64>>,
    inbound: Cell<Inbound>,
    /// The client's close frame was read.
    close_received: Cell<bool>,
    /// `close()` was called.
    close_called: Cell<bool>,
    /// Its frame is on the wire.
    close_sent: Cell<bool>,
    /// It was ended by [`break_off`](Self::break_off).
    broken_off: Cell<bool>,
    /// It ends when all that waits has left.
    ending: Cell<bool>,
    /// Its object is being deleted, which is to say why it ends: its handle does not end it.
    kept: Cell<bool>,
    queue: RefCell<VecDeque<Queued>>,
    queued_bytes: Cell<usize>,
}

impl Connection {
    pub(crate) fn new(
        number: u64,
        tags: Box<[Rc<str>]>,
        wire: Wire,
        outgoing_bytes_max: usize,
        held: Held,
    ) -> Self {
        Self {
            number,
            tags,
            wire,
            outgoing_bytes_max,
            attachment: RefCell::default(),
            held,
            auto_response_ms: Cell::default(),
            inbound: Cell::new(Inbound::Open),
            close_received: Cell::default(),
            close_called: Cell::default(),
            close_sent: Cell::default(),
            broken_off: Cell::default(),
            ending: Cell::default(),
            kept: Cell::default(),
            queue: RefCell::default(),
            queued_bytes: Cell::default(),
        }
    }

    /// Bytes that wait for the gate or for the client.
    fn backlog(&self) -> usize {
        self.queued_bytes.get() + self.wire.outgoing_bytes()
    }

    pub(crate) fn has_room(&self) -> bool {
        self.backlog() < self.outgoing_bytes_max
    }

    /// Queues a message; whether something is to be released.
    ///
    /// Errors: `bad-argument` after `close()`; `Overloaded`, code `socket-queue-full`.
    pub(crate) fn send(&self, message: Message) -> Result<bool> {
        if self.close_called.get() {
            return Err(bad_argument("a WebSocket can't send after close()"));
        }
        if self.is_broken() {
            return Ok(false);
        }
        let frame = Frame::Message(message);
        let backlog = self.backlog();
        // One message always fits into an empty queue.
        if backlog > 0 && backlog + frame.cost() > self.outgoing_bytes_max {
            let text = format!("{backlog} bytes wait for a client that does not take them");
            let kind = engine::Kind::Overloaded;
            return Err(engine::Error::coded(kind, "socket-queue-full", text).into());
        }
        self.push_gated(frame);
        Ok(true)
    }

    /// Queues a close frame; whether something is to be released. A second one is ignored.
    pub(crate) fn close(&self, close: CloseFrame) -> bool {
        if self.close_called.replace(true) || self.is_broken() {
            return false;
        }
        self.push_gated(Frame::Close(close));
        true
    }

    /// Whether what is sent goes nowhere.
    fn is_broken(&self) -> bool {
        self.broken_off.get() || self.inbound.get() == Inbound::Broken
    }

    fn push_gated(&self, frame: Frame) {
        self.queued_bytes.set(self.queued_bytes.get() + frame.cost());
        self.queue.borrow_mut().push_back(Queued::Gated(frame));
    }

    /// The first gated frame may leave, and all that only waited behind it.
    pub(crate) fn release(&self) {
        if self.broken_off.get() {
            return;
        }
        let mut queue = self.queue.borrow_mut();
        let first = queue.pop_front();
        assert!(matches!(first, Some(Queued::Gated(_))), "one release for each gated frame");
        let mut next = first;
        while let Some(Queued::Gated(frame) | Queued::Behind(frame)) = next {
            self.queued_bytes.set(self.queued_bytes.get() - frame.cost());
            self.put(frame);
            let is_free = matches!(queue.front(), Some(Queued::Behind(_)));
            next = if is_free { queue.pop_front() } else { None };
        }
        if queue.is_empty() {
            // Most sockets are silent most of the time.
            *queue = VecDeque::new();
        }
        drop(queue);
        self.hang_up_if_left();
    }

    /// It outlives the object's handle on it, until whoever keeps it ends it.
    pub(crate) fn keep(&self) {
        self.kept.set(true);
    }

    pub(crate) fn is_kept(&self) -> bool {
        self.kept.get()
    }

    /// Ends the connection when all that waits for a gate has left.
    pub(crate) fn hang_up_behind(&self) {
        self.ending.set(true);
        self.hang_up_if_left();
    }

    fn hang_up_if_left(&self) {
        if self.ending.get() && self.queue.borrow().is_empty() {
            self.wire.hang_up();
        }
    }

    /// Sends what no gate concerns: an automatic response, a pong. Swallowed after `close()`
    ///
    pub(crate) fn send_ungated(&self, frame: Frame) {
        if self.close_called.get() || self.is_broken() {
            return;
        }
        let mut queue = self.queue.borrow_mut();
        if queue.is_empty() {
            drop(queue);
            return self.put(frame);
        }
        self.queued_bytes.set(self.queued_bytes.get() + frame.cost());
        queue.push_back(Queued::Behind(frame));
    }

    fn put(&self, frame: Frame) {
        assert!(!self.close_sent.get(), "nothing follows a close frame");
        self.close_sent.set(matches!(frame, Frame::Close(_)));
        self.wire.put(frame);
        self.hang_up_if_closed();
    }

    /// The client's close frame was read.
    pub(crate) fn close_received(&self) {
        self.close_received.set(true);
        self.hang_up_if_closed();
    }

    /// Both have closed: the connection is over.
    fn hang_up_if_closed(&self) {
        if self.close_received.get() && self.close_sent.get() {
            self.wire.hang_up();
        }
    }

    /// Ends the connection if the message has more bytes than it may; gives what the object
    /// is told then, code `message-too-large`.
    pub(crate) fn refuse_if_longer(&self, message: &Message, most: usize) -> Option<Error> {
        let len = message.as_bytes().len();
        if len <= most {
            return None;
        }
        let text = format!("Message is too large: {len} > {most}");
        self.break_off(CloseFrame { code: Some(1009), reason: text.clone() });
        let kind = engine::Kind::Invalid;
        Some(engine::Error::coded(kind, "message-too-large", text).into())
    }

    /// Ends the connection before what is queued was sent, because of what the client sent
    /// or because its object is gone: the frame says why.
    pub(crate) fn break_off(&self, close: CloseFrame) {
        self.broken_off.set(true);
        self.queue.borrow_mut().clear();
        self.queued_bytes.set(0);
        if !self.close_sent.replace(true) {
            self.wire.put(Frame::Close(close));
        }
    }

    pub(crate) fn set_inbound(&self, inbound: Inbound) {
        self.inbound.set(inbound);
    }

    pub(crate) fn ready_state(&self) -> ReadyState {
        match (self.inbound.get(), self.close_called.get()) {
            (Inbound::Open, false) => ReadyState::Open,
            (Inbound::Open, true) | (Inbound::Closed, false) => ReadyState::Closing,
            (Inbound::Closed, true) | (Inbound::Broken, _) => ReadyState::Closed,
        }
    }

    pub(crate) fn attachment(&self) -> Option<Bytes> {
        self.attachment.borrow().clone()
    }

    /// Replaces the attachment.
    ///
    /// Errors: `bad-argument` over 16,384 bytes; `Overloaded`, code `sockets-full`.
    pub(crate) fn set_attachment(&self, bytes: Bytes) -> Result<()> {
        if bytes.len() > ATTACHMENT_BYTES_MAX {
            let text = format!(
                "an attachment of {} bytes; at most {ATTACHMENT_BYTES_MAX} are kept",
                bytes.len()
            );
            return Err(bad_argument(text));
        }
        self.held.set(SOCKET_BYTES + bytes.len())?;
        *self.attachment.borrow_mut() = Some(bytes);
        Ok(())
    }

    pub(crate) fn auto_response_ms(&self) -> Option<u64> {
        self.auto_response_ms.get()
    }

    pub(crate) fn responded_at(&self, wall_ms: u64) {
        self.auto_response_ms.set(Some(wall_ms));
    }
}

#[cfg(test)]
mod tests {
    use dormouse_engine::call::wait;
    use futures_util::FutureExt;

    use super::super::wire::{ClientSocket, Received, wire};
    use super::*;

    fn connection(outgoing_bytes_max: usize) -> (Connection, ClientSocket) {
        let (core, client) = wire();
        let held = Held::new(&SocketBudget::new(SOCKET_BYTES)).unwrap();
        (Connection::new(0, Box::default(), core, outgoing_bytes_max, held), client)
    }

    fn received(client: &ClientSocket) -> Vec<Received> {
        std::iter::from_fn(|| client.recv().now_or_never().flatten()).collect()
    }

    fn text(text: &str) -> Received {
        Received::Message(text.into())
    }

    /// R-743, also for one that queued behind the first of two gated frames.
    #[test]
    fn what_no_gate_concerns_keeps_its_place_and_waits_for_no_later_gate() {
        let (connection, client) = connection(1000);
        connection.send_ungated(Frame::Message("at once".into()));
        assert_eq!(received(&client), [text("at once")]);
        assert!(connection.send("first".into()).unwrap());
        connection.send_ungated(Frame::Message("between".into()));
        assert!(connection.send("second".into()).unwrap());
        assert_eq!(received(&client), []);
        connection.release();
        assert_eq!(received(&client), [text("first"), text("between")]);
        connection.release();
        assert_eq!(received(&client), [text("second")]);
        connection.send_ungated(Frame::Message("again".into()));
        assert_eq!(received(&client), [text("again")]);
    }

    #[test]
    fn a_client_that_takes_nothing_bounds_what_is_queued_for_it() {
        let (connection, client) = connection(1000);
        let mut sent = 0;
        let error = loop {
            match connection.send("x".repeat(36).into()) {
                Ok(_) => sent += 1,
                Err(error) => break error,
            }
            // Half of them wait for the gate, half for the client.
            if sent % 2 == 0 {
                connection.release();
            }
            assert!(sent < 100, "no bound");
        };
        assert_eq!((error.code(), error.is_overloaded()), (Some("socket-queue-full"), true));
        assert_eq!(sent, 10);
        assert_eq!(received(&client).len(), 5);
        assert!(connection.send("x".into()).is_ok(), "there is room again");
    }

    #[test]
    fn what_sockets_hold_is_counted_together_and_given_back() {
        let most = 2 * SOCKET_BYTES + 100;
        let all = SocketBudget::new(most);
        let [one, two] = [Held::new(&all).unwrap(), Held::new(&all).unwrap()];
        let error = Held::new(&all).err().unwrap();
        assert_eq!((error.code(), error.is_overloaded()), (Some("sockets-full"), true));
        one.set(SOCKET_BYTES + 60).unwrap();
        assert!(two.set(SOCKET_BYTES + 41).is_err(), "there are 40 left");
        two.set(SOCKET_BYTES + 40).unwrap();
        one.set(SOCKET_BYTES).unwrap();
        two.set(SOCKET_BYTES + 100).unwrap();
        assert_eq!(all.used.get(), most);
        drop((one, two));
        assert_eq!(all.used.get(), 0);
    }

    #[test]
    fn both_closes_end_the_connection_whichever_comes_first() {
        for client_first in [true, false] {
            let (connection, client) = connection(1000);
            if client_first {
                connection.close_received();
            }
            assert!(connection.close(CloseFrame::new(Some(4000), "x").unwrap()));
            assert!(!connection.close(CloseFrame::default()), "the second is ignored");
            connection.release();
            if !client_first {
                assert!(!connection.wire.is_hung_up());
                connection.close_received();
            }
            assert!(connection.wire.is_hung_up());
            assert!(matches!(wait(client.recv()), Some(Received::Close(_))));
            assert_eq!(wait(client.recv()), None);
        }
    }
}
