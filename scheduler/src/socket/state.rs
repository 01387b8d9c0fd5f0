//! What [`State`] offers of WebSockets.

use std::time::Duration;

use futures_util::FutureExt;

use super::handle::WebSocket;
use super::live::LiveSocket;
use super::upgrade::Upgrade;
use crate::error::Result;
use crate::event::closed;
use crate::instance::Work;
use crate::state::State;
use crate::watch::Awake;

impl State {
    /// Accepts a socket that stays open while the object sleeps; its events come to the object's
    /// `web_socket_message`, `web_socket_close` and `web_socket_error`.
    ///
    /// Errors: `bad-argument` if it was accepted already, for more than 10 distinct tags or
    /// one over 256 bytes; `too-many-sockets` beyond 32,768 of one object;
    /// `Overloaded`, code `sockets-full`: those of this core hold too much together.
    pub fn accept_web_socket(
        &self,
        socket: &Upgrade,
        tags: impl IntoIterator<Item = impl Into<String>>,
    ) -> Result<WebSocket> {
        let instance = self.instance();
        instance.check_resident()?;
        socket.check()?;
        let sockets = instance.sockets_or_new()?;
        let tags = sockets.check(tags.into_iter().map(Into::into))?;
        let wire = socket.accept().ok_or_else(closed)?;
        let connection = sockets.accept(&instance.id, wire, tags)?;
        Ok(WebSocket::new(instance.clone(), connection))
    }

    /// Accepts a socket that the object reads itself; it stays in memory while that is open (R-701,
    ///
    ///
    /// Errors: `bad-argument` if it was accepted already.
    pub fn accept(&self, socket: &Upgrade) -> Result<LiveSocket> {
        let instance = self.instance();
        instance.check_resident()?;
        socket.check()?;
        let wire = socket.accept().ok_or_else(closed)?;
        let (connection, over) = instance.sockets_or_new()?.accept_live(wire)?;
        instance.push(Work::Task(Awake::Socket, over.boxed_local()));
        Ok(LiveSocket::new(instance.clone(), connection))
    }

    /// The sockets with this tag, oldest first; with `None` all of them, newest first
    /// . Those accepted by earlier instances too. Empty where there is none.
    pub fn web_sockets<'a>(&self, tag: impl Into<Option<&'a str>>) -> Vec<WebSocket> {
        let instance = self.instance();
        let tag = tag.into();
        let listed = instance.sockets().into_iter().flat_map(|sockets| sockets.listed(tag));
        listed.map(|connection| WebSocket::new(instance.clone(), connection)).collect()
    }

    /// From now on a text message that is exactly the first is answered with the second, on every
    /// hibernatable socket, without the object: it is not woken, and does not see it (R-738,
    /// `None` ends that. Kept while the object sleeps; a reset ends it.
    ///
    /// Errors: `bad-argument` if either is over 2048 bytes.
    pub fn set_web_socket_auto_response(&self, pair: Option<(&str, &str)>) -> Result<()> {
        self.instance().check_resident()?;
        self.instance().sockets_or_new()?.set_auto_response(pair)
    }

    /// The pair that was set.
    pub fn web_socket_auto_response(&self) -> Option<(String, String)> {
        let pair = self.instance().sockets()?.auto_response()?;
        Some((pair.request.to_string(), pair.response.to_string()))
    }

    /// Limits the time of each handler of a socket's event; one that takes longer has the object
    /// reset. `None` or zero: no limit. Kept while the object sleeps.
    ///
    /// Errors: `bad-argument` over seven days.
    pub fn set_web_socket_event_timeout(&self, limit: Option<Duration>) -> Result<()> {
        self.instance().check_resident()?;
        self.instance().sockets_or_new()?.set_event_timeout(limit)
    }

    /// The limit that was set.
    pub fn web_socket_event_timeout(&self) -> Option<Duration> {
        self.instance().sockets()?.event_timeout()
    }
}
