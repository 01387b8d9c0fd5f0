//! [`Sockets`]: the connections of one object, and what it set for all of them.
//!
//! It is kept by the core, beside the object's instance, for as long as it has something to keep.
//! Invariants:
//!
//! - A connection is listed from its acceptance until its close or error event has been delivered
//!   sets by tag hold the same connections as the list.
//! - One that is not listed any more, but not closed by both sides either, is kept until the client
//!   goes or the instance leaves memory: only this instance can still close it.
//! - [`disconnect`](Sockets::disconnect) leaves nothing.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::{Rc, Weak};
use std::time::Duration;

use dormouse_engine as engine;
use dormouse_engine::Host;
use futures_channel::oneshot;
use futures_util::FutureExt;

use super::connection::{Connection, Held};
use super::message::CloseFrame;
use super::read::Reader;
use super::wire::Wire;
use super::{
    AUTO_BYTES_MAX, EVENT_TIMEOUT_MS_MAX, SocketLimits, TAG_BYTES_MAX, TAGS_MAX, bad_argument,
};
use crate::core::Inner;
use crate::error::Result;
use crate::event::closed;
use crate::id::Id;

/// A text frame that is answered without the object.
#[derive(Debug)]
pub(crate) struct AutoResponse {
    pub(crate) request: Box<str>,
    pub(crate) response: Rc<str>,
}

/// A connection that the object reads itself.
struct Live {
    connection: Rc<Connection>,
    /// Dropped when it is over.
    _open: oneshot::Sender<()>,
}

pub(crate) struct Sockets {
    /// Weak: the core keeps this.
    core: Weak<Inner>,
    class: usize,
    limits: SocketLimits,
    next: Cell<u64>,
    open: RefCell<BTreeMap<u64, Rc<Connection>>>,
    by_tag: RefCell<BTreeMap<Rc<str>, BTreeSet<u64>>>,
    leaving: RefCell<BTreeMap<u64, Rc<Connection>>>,
    /// Those that the object reads itself: never listed, and gone with its instance.
    live: RefCell<BTreeMap<u64, Live>>,
    auto_response: RefCell<Option<Rc<AutoResponse>>>,
    event_timeout: Cell<Option<Duration>>,
    /// Requests and WebSockets to the outside that are open.
    #[cfg(feature = "server")]
    pub(crate) outside: Cell<usize>,
}

impl Sockets {
    pub(crate) fn new(core: &Rc<Inner>, class: usize, limits: SocketLimits) -> Rc<Self> {
        Rc::new(Self {
            core: Rc::downgrade(core),
            class,
            limits,
            next: Cell::new(0),
            open: RefCell::default(),
            by_tag: RefCell::default(),
            leaving: RefCell::default(),
            live: RefCell::default(),
            auto_response: RefCell::default(),
            event_timeout: Cell::default(),
            #[cfg(feature = "server")]
            outside: Cell::default(),
        })
    }

    /// Takes a connection on for the object `id`, and begins to read it.
    ///
    /// Errors: `bad-argument` (tags, R-705, R-706), `too-many-sockets`, `sockets-full`, `Closed`.
    pub(crate) fn accept(
        self: &Rc<Self>,
        id: &Id,
        wire: Wire,
        tags: Vec<String>,
    ) -> Result<Rc<Connection>> {
        let core = self.core()?;
        let connection = self.connection(&core, wire, self.intern(tags))?;
        let number = connection.number;
        for tag in &connection.tags {
            self.by_tag.borrow_mut().entry(tag.clone()).or_default().insert(number);
        }
        self.open.borrow_mut().insert(number, connection.clone());
        let reader = Reader {
            core: core.clone(),
            sockets: self.clone(),
            id: id.clone(),
            class: self.class,
            connection: connection.clone(),
        };
        core.host.spawn("socket", reader.run());
        Ok(connection)
    }

    fn core(&self) -> Result<Rc<Inner>> {
        self.core.upgrade().filter(|core| !core.is_draining()).ok_or_else(closed)
    }

    fn connection(&self, core: &Inner, wire: Wire, tags: Box<[Rc<str>]>) -> Result<Rc<Connection>> {
        let held = Held::new(&core.socket_budget)?;
        wire.limit(&self.limits);
        let number = self.next.get();
        self.next.set(number + 1);
        let most = self.limits.outgoing_bytes;
        Ok(Rc::new(Connection::new(number, tags, wire, most, held)))
    }

    /// Takes a connection on that the object reads itself. The second part resolves when it is
    /// over: until then the instance stays in memory.
    ///
    /// Errors: `Closed`, `sockets-full`.
    pub(crate) fn accept_live(
        &self,
        wire: Wire,
    ) -> Result<(Rc<Connection>, impl Future<Output = ()> + 'static)> {
        let connection = self.connection(&*self.core()?, wire, Box::default())?;
        let (open, over) = oneshot::channel();
        let live = Live { connection: connection.clone(), _open: open };
        self.live.borrow_mut().insert(connection.number, live);
        Ok((connection, over.map(drop)))
    }

    pub(crate) fn is_live(&self, connection: &Connection) -> bool {
        self.live.borrow().contains_key(&connection.number)
    }

    pub(crate) fn live_is_over(&self, connection: &Connection) {
        self.live.borrow_mut().remove(&connection.number);
    }

    /// They outlive the instance that reads them, to be closed with the others.
    pub(crate) fn keep_live(&self) {
        self.live.borrow().values().for_each(|live| live.connection.keep());
    }

    /// Whoever reads such a socket is told that it is lost.
    pub(crate) fn hang_up_live(&self) {
        let live = std::mem::take(&mut *self.live.borrow_mut());
        live.into_values().for_each(|live| live.connection.wire.hang_up());
    }

    /// Whether one more could be accepted with these tags; gives them without duplicates.
    ///
    /// Errors: as [`accept`](Self::accept).
    pub(crate) fn check(&self, tags: impl IntoIterator<Item = String>) -> Result<Vec<String>> {
        let most = self.limits.per_object;
        if self.open.borrow().len() >= most {
            let text = format!("an object has at most {most} WebSockets");
            let error = engine::Error::coded(engine::Kind::Invalid, "too-many-sockets", text);
            return Err(error.into());
        }
        let mut distinct: Vec<String> = Vec::new();
        for tag in tags {
            // Counted before it is known for a duplicate.
            if distinct.len() >= TAGS_MAX {
                return Err(bad_argument(format!("a WebSocket has at most {TAGS_MAX} tags")));
            }
            if tag.len() > TAG_BYTES_MAX {
                let text = format!("a tag of {} bytes; at most {TAG_BYTES_MAX}", tag.len());
                return Err(bad_argument(text));
            }
            if !distinct.contains(&tag) {
                distinct.push(tag);
            }
        }
        Ok(distinct)
    }

    /// One copy of each tag, however many sockets have it.
    fn intern(&self, tags: Vec<String>) -> Box<[Rc<str>]> {
        let by_tag = self.by_tag.borrow();
        let known = |tag: &str| by_tag.get_key_value(tag).map(|(tag, _)| tag.clone());
        tags.into_iter().map(|tag| known(&tag).unwrap_or_else(|| tag.into())).collect()
    }

    /// Those with this tag, oldest first; without one all, newest first.
    pub(crate) fn listed(&self, tag: Option<&str>) -> Vec<Rc<Connection>> {
        let open = self.open.borrow();
        let Some(tag) = tag else { return open.values().rev().cloned().collect() };
        let by_tag = self.by_tag.borrow();
        let numbers = by_tag.get(tag).into_iter().flatten();
        numbers.map(|number| open[number].clone()).collect()
    }

    /// It is not listed any more; kept only while something can still be done with it.
    pub(crate) fn unlist(&self, connection: &Rc<Connection>) {
        let number = connection.number;
        if self.open.borrow_mut().remove(&number).is_none() {
            return;
        }
        let mut by_tag = self.by_tag.borrow_mut();
        for tag in &connection.tags {
            let numbers = by_tag.get_mut(tag).expect("listed by all its tags");
            numbers.remove(&number);
            if numbers.is_empty() {
                by_tag.remove(tag);
            }
        }
        if !connection.wire.is_hung_up() {
            self.leaving.borrow_mut().insert(number, connection.clone());
        }
    }

    /// The connection is over.
    pub(crate) fn forget(&self, connection: &Rc<Connection>) {
        self.unlist(connection);
        self.leaving.borrow_mut().remove(&connection.number);
        connection.wire.hang_up();
    }

    /// The instance leaves memory: nobody can close those any more.
    pub(crate) fn drop_leaving(&self) {
        let leaving = std::mem::take(&mut *self.leaving.borrow_mut());
        leaving.into_values().for_each(|connection| connection.wire.hang_up());
    }

    /// Drops everything: clients see that they are disconnected, the object nothing.
    pub(crate) fn disconnect(&self) {
        self.drop_leaving();
        self.hang_up_live();
        let open = std::mem::take(&mut *self.open.borrow_mut());
        open.into_values().for_each(|connection| connection.wire.hang_up());
        self.by_tag.take();
        self.auto_response.take();
        self.event_timeout.take();
    }

    /// Ends all connections with this frame; then as [`disconnect`](Self::disconnect).
    pub(crate) fn close_all(&self, close: &CloseFrame) {
        self.open.borrow().values().for_each(|connection| connection.break_off(close.clone()));
        let live = self.live.borrow();
        live.values().for_each(|live| live.connection.break_off(close.clone()));
        drop(live);
        self.disconnect();
    }

    /// Whether it keeps nothing that a new one would not have.
    pub(crate) fn is_empty(&self) -> bool {
        !self.has_connections()
            && self.auto_response.borrow().is_none()
            && self.event_timeout.get().is_none()
    }

    /// Whether there is a connection, whatever becomes of it.
    pub(crate) fn has_connections(&self) -> bool {
        let (open, leaving) = (self.open.borrow(), self.leaving.borrow());
        !(open.is_empty() && leaving.is_empty() && self.live.borrow().is_empty())
    }

    /// Connections that stay open while the object sleeps.
    pub(crate) fn count(&self) -> usize {
        self.open.borrow().len() + self.leaving.borrow().len()
    }

    pub(crate) fn limits(&self) -> &SocketLimits {
        &self.limits
    }

    pub(crate) fn auto_response(&self) -> Option<Rc<AutoResponse>> {
        self.auto_response.borrow().clone()
    }

    /// Errors: `bad-argument` if either text is over 2048 bytes.
    pub(crate) fn set_auto_response(&self, pair: Option<(&str, &str)>) -> Result<()> {
        for (what, text) in pair.iter().flat_map(|pair| [("request", pair.0), ("response", pair.1)])
        {
            if text.len() > AUTO_BYTES_MAX {
                let len = text.len();
                let text = format!("the {what} of an auto-response has {len} bytes; at most 2048");
                return Err(bad_argument(text));
            }
        }
        let pair = pair.map(|(request, response)| AutoResponse {
            request: request.into(),
            response: response.into(),
        });
        *self.auto_response.borrow_mut() = pair.map(Rc::new);
        Ok(())
    }

    pub(crate) fn event_timeout(&self) -> Option<Duration> {
        self.event_timeout.get()
    }

    /// Zero is none. Errors: `bad-argument` over seven days.
    pub(crate) fn set_event_timeout(&self, limit: Option<Duration>) -> Result<()> {
        if limit.is_some_and(|limit| limit.as_millis() > EVENT_TIMEOUT_MS_MAX) {
            return Err(bad_argument("an event timeout is at most seven days"));
        }
        self.event_timeout.set(limit.filter(|limit| !limit.is_zero()));
        Ok(())
    }
}
