//! What the object of a life does with its sockets, and how it compares them with what is known.

use std::rc::Rc;

use anyhow::ensure;
use dormouse_scheduler::prelude::*;
use dormouse_scheduler::{Kind, LiveSocket, SocketEvent};

use super::line::{self, Ending, Told, What};
use super::object::Inner;
use super::shared::Mark;
use crate::plan::{Op, To, Turn};

/// A socket of the object's, whoever reads it.
#[derive(Clone)]
pub(super) enum Handle {
    Sleeps(WebSocket),
    Live(Rc<LiveSocket>),
}

impl Handle {
    fn send(&self, message: Message) -> Result<()> {
        match self {
            Self::Sleeps(socket) => socket.send(message),
            Self::Live(socket) => socket.send(message),
        }
    }

    fn close(&self, code: u16, reason: &str) -> Result<()> {
        match self {
            Self::Sleeps(socket) => socket.close(code, reason),
            Self::Live(socket) => socket.close(code, reason),
        }
    }
}

/// The number of the line of a socket, by its first tag.
fn number_of(socket: &WebSocket) -> Option<u64> {
    socket.tags().first()?.strip_prefix("line-")?.parse().ok()
}

fn message(text: String, binary: bool) -> Message {
    if binary { Message::from(text.into_bytes()) } else { Message::from(text) }
}

impl Inner {
    /// Accepts a socket: the path is the number of its line.
    pub(super) async fn open(self: &Rc<Self>, request: Request) -> Result<Response> {
        let number: u64 = request.uri().path().trim_start_matches('/').parse().expect("a number");
        let shared = &self.shared;
        let open = shared.lines.borrow_mut().opens.remove(&number);
        let (client, accept) = open.expect("each is asked for once");
        shared.check(&self.name, shared.arrives(&self.name, number, Some(client)));
        shared.called(&self.name, number);
        self.on(number, |_| Ok(()));
        let upgrade = request.web_socket_upgrade()?.expect("a socket is asked for");
        let tags = shared.on_line(number, |line| Ok(line.tags.clone()));
        let handle = match accept.live {
            true => self.state.accept(&upgrade).map(|socket| Handle::Live(Rc::new(socket))),
            false => self.state.accept_web_socket(&upgrade, tags).map(Handle::Sleeps),
        };
        let result = match handle {
            Ok(handle) => {
                self.accepted(number, &handle);
                self.events.borrow_mut().insert(number, (number, handle));
                self.clone().turn(number, &accept.turn).await
            }
            Err(error) => self.refused(error),
        };
        self.events.borrow_mut().remove(&number);
        if result.is_err() {
            // Nobody gets the client's end.
            shared.line_ending(number, Ending::Finish);
        }
        let groups = shared.on(&self.name, |ghost| {
            ghost.pause();
            Ok(ghost.confirmed())
        });
        shared.ended.borrow_mut().insert(number, (self.name.clone(), groups));
        result.map(|()| upgrade.into_response())
    }

    fn accepted(self: &Rc<Self>, number: u64, handle: &Handle) {
        let shared = &self.shared;
        shared.count(false);
        shared.on_line(number, |line| {
            line.accepted = Some(self.instance);
            Ok(())
        });
        if let Handle::Live(socket) = handle {
            shared.mark(Mark::OrdinarySocket);
            shared.lines.borrow_mut().room(&self.name).live.push(number);
            let (this, socket) = (self.clone(), socket.clone());
            self.state.wait_until(async move { this.listen(number, socket).await });
            return;
        }
        let mut lines = shared.lines.borrow_mut();
        lines.room(&self.name).accepted.push(number);
        drop(lines);
        self.check_sockets(number);
    }

    /// One too many.
    fn refused(&self, error: Error) -> Result<()> {
        let lines = self.shared.lines.borrow();
        let open = lines.of(&self.name).filter(|line| line.is_open()).count();
        drop(lines);
        let is_full = error.code() == Some("too-many-sockets");
        if is_full && open >= self.shared.socket_limits.per_object {
            self.shared.mark(Mark::TooManySockets);
        } else if !self.shared.closing.get() {
            self.shared.fail(format!("{}: not accepted, with {open}: {error}", self.name));
        }
        Err(Error::user("as planned"))
    }

    /// Reads a socket that keeps the object in memory.
    async fn listen(self: Rc<Self>, number: u64, socket: Rc<LiveSocket>) {
        let handle = Handle::Live(socket.clone());
        while let Some(event) = socket.recv().await {
            match event {
                SocketEvent::Message(message) => {
                    let result = self.message(number, handle.clone(), message).await;
                    if result.as_ref().is_err_and(|error| error.kind() != Kind::User) {
                        self.tolerate(result);
                    }
                }
                SocketEvent::Closed(closed) => {
                    if closed.was_clean {
                        // It is answered by itself.
                        let code = Some(closed.code).filter(|code| *code != 1005);
                        let what = What::Close { code, reason: closed.reason.clone().into() };
                        self.shared.on_line(number, |line| line.says(0, what, 0, 0, &Ok(())));
                    }
                    drop(self.told(number, handle.clone(), Told::Closed(closed)).await);
                }
                SocketEvent::Error(error) => {
                    drop(self.told(number, handle.clone(), Told::Error(error)).await);
                }
            }
        }
    }

    pub(super) async fn socket_message(
        self: &Rc<Self>,
        socket: &WebSocket,
        message: Message,
    ) -> Result<()> {
        let Some(number) = number_of(socket) else { return self.without_tags() };
        self.message(number, Handle::Sleeps(socket.clone()), message).await
    }

    pub(super) async fn socket_ends(self: &Rc<Self>, socket: &WebSocket, told: Told) -> Result<()> {
        let Some(number) = number_of(socket) else { return self.without_tags() };
        if !self.state.web_sockets(None).contains(socket) {
            self.shared.fail(format!("line {number} is not listed while it ends"));
        }
        self.told(number, Handle::Sleeps(socket.clone()), told).await
    }

    fn without_tags(&self) -> Result<()> {
        self.shared.fail(format!("{}: a socket without its tags", self.name));
        Ok(())
    }

    async fn message(self: &Rc<Self>, number: u64, handle: Handle, message: Message) -> Result<()> {
        let shared = &self.shared;
        shared.note(|| format!("{} line {number} {message:?}", self.name));
        let (version, set) = match handle {
            Handle::Sleeps(_) => shared.lines.borrow().auto_of(number),
            Handle::Live(_) => (u64::MAX, None),
        };
        let (token, outlived) = shared.on_line(number, |line| {
            let outlived = line.accepted != Some(self.instance);
            Ok((line.begins(&message, version, set)?, outlived))
        });
        if outlived {
            shared.mark(Mark::SocketOutlivedItsObject);
        }
        shared.count(false);
        let event = token.unwrap_or_else(|| shared.number());
        self.on(event, |_| Ok(()));
        if let Handle::Sleeps(_) = handle {
            self.check_sockets(event);
        }
        let turn = token.and_then(|token| shared.lines.borrow_mut().turns.remove(&token));
        let Some(turn) = turn else { return Ok(()) };
        self.turn_on_line(event, (number, handle), &turn).await
    }

    /// Makes the turn of an event of a socket.
    async fn turn_on_line(
        self: &Rc<Self>,
        event: u64,
        line: (u64, Handle),
        turn: &Turn,
    ) -> Result<()> {
        self.events.borrow_mut().insert(event, line);
        let result = self.clone().turn(event, turn).await;
        self.events.borrow_mut().remove(&event);
        self.shared.on(&self.name, |ghost| {
            ghost.pause();
            Ok(())
        });
        result
    }

    async fn told(self: &Rc<Self>, number: u64, handle: Handle, told: Told) -> Result<()> {
        let shared = &self.shared;
        shared.note(|| format!("{} line {number} {told:?}", self.name));
        let event = shared.number();
        let excused = shared.closing.get() || shared.lenient.get();
        self.on(event, |_| Ok(()));
        let (turn, woke, silent) = shared.on_line(number, |line| {
            line.is_told(event, &told, excused)?;
            let (turn, silent) = (line.end_turn.clone(), line.endings.contains(&Ending::Silence));
            Ok((Some(turn), line.accepted != Some(self.instance), silent))
        });
        shared.count(false);
        shared.mark(match &told {
            Told::Error(_) => Mark::SocketBroken,
            Told::Closed(closed) if closed.was_clean => Mark::SocketClosed,
            Told::Closed(_) if silent => Mark::LostInSilence,
            Told::Closed(_) => Mark::SocketLost,
        });
        if woke {
            shared.mark(Mark::EndOutlivedItsObject);
        }
        let Some(turn) = turn else { return Ok(()) };
        self.turn_on_line(event, (number, handle), &turn).await
    }

    /// Does what concerns sockets.
    pub(super) fn socket_op(&self, event: u64, op: &Op) {
        match op {
            Op::Say(to, bytes, binary) => self.say(event, *to, *bytes, *binary),
            Op::Shut(to, code) => self.shut(event, *to, *code),
            Op::Attach(to, bytes, fill) => self.attach(event, *to, *bytes, *fill),
            Op::AutoResponse(which) => self.set_auto_response(*which),
            _ => unreachable!("handled elsewhere"),
        }
    }

    fn targets(&self, event: u64, to: To) -> Vec<(u64, Handle)> {
        let listed = match to {
            To::This => return self.events.borrow().get(&event).cloned().into_iter().collect(),
            To::Tag(tag) => self.state.web_sockets(&*format!("tag-{tag}")),
            To::All => self.state.web_sockets(None),
        };
        let numbered = |socket| Some((number_of(&socket)?, Handle::Sleeps(socket)));
        listed.into_iter().filter_map(numbered).collect()
    }

    fn say(&self, event: u64, to: To, bytes: u16, binary: bool) {
        let groups = self.on(event, |ghost| Ok(ghost.confirmed()));
        for (line, handle) in self.targets(event, to) {
            let number = self.shared.number();
            let result = handle.send(message(line::text('s', number, bytes), binary));
            self.said(event, line, number, What::Message { bytes, binary }, groups, &result);
        }
    }

    fn shut(&self, event: u64, to: To, code: u16) {
        let groups = self.on(event, |ghost| Ok(ghost.confirmed()));
        for (line, handle) in self.targets(event, to) {
            let number = self.shared.number();
            let reason = format!("bye {number}");
            let result = handle.close(code, &reason);
            let what = What::Close { code: Some(code), reason: reason.into_bytes() };
            self.said(event, line, number, what, groups, &result);
        }
    }

    fn said(
        &self,
        event: u64,
        line: u64,
        number: u64,
        what: What,
        groups: u64,
        result: &Result<()>,
    ) {
        let most = self.shared.socket_limits.outgoing_bytes;
        self.unsaid.borrow_mut().push((event, line, number));
        if self.shared.on_line(line, |line| line.says(number, what, groups, most, result)) {
            self.shared.mark(Mark::SlowReader);
        }
    }

    /// The turn resets the object: what it said since it last could wait is never said.
    pub(super) fn unsay(&self, event: u64) {
        for (_, line, number) in self.unsaid.take().into_iter().filter(|(of, ..)| *of == event) {
            self.shared.on_line(line, |line| {
                line.unsay(number);
                Ok(())
            });
        }
    }

    fn attach(&self, event: u64, to: To, bytes: u16, fill: u8) {
        for (line, handle) in self.targets(event, to) {
            let Handle::Sleeps(socket) = handle else { continue };
            match socket.set_attachment(&line::attachment(line, bytes, fill)) {
                Ok(()) => self.shared.on_line(line, |line| {
                    line.attachment = Some((bytes, fill));
                    Ok(())
                }),
                Err(error) => self.shared.fail(format!("line {line}: an attachment: {error}")),
            }
        }
    }

    fn set_auto_response(&self, which: Option<u8>) {
        let texts = which.map(line::pair);
        let pair = texts.as_ref().map(|(request, response)| (&**request, &**response));
        if let Err(error) = self.state.set_web_socket_auto_response(pair) {
            self.shared.fail(format!("{}: an automatic response: {error}", self.name));
        }
        let mut lines = self.shared.lines.borrow_mut();
        let room = lines.room(&self.name);
        room.auto = which;
        room.version += 1;
    }

    /// A new instance finds the sockets of the one before.
    pub(super) fn check_birth(&self) {
        if !self.shared.sockets {
            return;
        }
        self.shared.check(&self.name, self.shared.check_wanted(&self.name));
        let listed = self.state.web_sockets(None);
        let known = self.shared.lines.borrow().of(&self.name).any(line::Line::is_open);
        let nothing_set = self.state.web_socket_auto_response().is_none();
        let deleted = self.shared.on(&self.name, |ghost| Ok(ghost.may_be_deleted()));
        let lenient = self.shared.lenient.get();
        if (lenient || deleted) && listed.is_empty() && nothing_set {
            // A reset that was not announced, or a deletion.
            self.shared.lines_reset(&self.name);
        } else if known {
            self.shared.mark(Mark::WokeWithSockets);
        }
        self.check_sockets(0);
    }

    /// The object's sockets are those that are known, in their order, with all that they keep.
    fn check_sockets(&self, event: u64) {
        if self.shared.closing.get() {
            return;
        }
        if self.shared.lenient.get() {
            let listed = self.state.web_sockets(None).iter().filter_map(number_of).collect();
            self.shared.lines_forgotten(&self.name, &listed);
        }
        let checked = self.compare_sockets();
        self.shared.check(&format!("{} in event {event}", self.name), checked);
    }

    fn compare_sockets(&self) -> anyhow::Result<()> {
        let lines = self.shared.lines.borrow();
        let set = lines.rooms.get(&self.name).and_then(|room| room.auto).map(line::pair);
        let found = self.state.web_socket_auto_response();
        ensure!(found == set, "the automatic response is {found:?}, not {set:?}");
        let all = self.state.web_sockets(None);
        let numbers =
            |sockets: &[WebSocket]| sockets.iter().filter_map(number_of).collect::<Vec<_>>();
        let open = || lines.of(&self.name).filter(|line| line.is_open());
        let mut wanted: Vec<_> = open().map(|line| line.number).collect();
        wanted.reverse();
        let found = numbers(&all);
        ensure!(found == wanted, "all sockets are {found:?}, not {wanted:?}");
        let now = self.state.now_ms().max(self.shared.wall_max_ms.get());
        for (socket, number) in all.iter().zip(wanted) {
            let line = &lines.lines[&number];
            ensure!(socket.tags() == line.tags, "line {number} has {:?}", socket.tags());
            let kept = socket.attachment::<(u64, String)>()?;
            let wanted = line.attachment.map(|(len, fill)| line::attachment(number, len, fill));
            ensure!(kept == wanted, "line {number} keeps {kept:?}, not {wanted:?}");
            let jumped = self.shared.jumped.get();
            line.check_time(socket.auto_response_timestamp_ms(), now, jumped)?;
        }
        for tag in ["tag-0", "tag-1", "tag-2"] {
            let tagged = open().filter(|line| line.tags.iter().any(|other| other == tag));
            let wanted: Vec<_> = tagged.map(|line| line.number).collect();
            let found = numbers(&self.state.web_sockets(tag));
            ensure!(found == wanted, "sockets of {tag} are {found:?}, not {wanted:?}");
        }
        Ok(())
    }
}
