//! All WebSockets of a process, by object and by request.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use super::codec::Frame;
use super::line::{Arrived, Ending, Line};
use super::peer::SharedPeer;
use super::shared::{Mark, Shared};
use crate::net::SimNet;
use crate::plan::{Accept, Turn};

/// What an object set for all its sockets, and which it accepted.
#[derive(Default)]
pub(super) struct Room {
    /// In the order of acceptance; those that are over too.
    pub(super) accepted: Vec<u64>,
    /// Those that it reads itself.
    pub(super) live: Vec<u64>,
    pub(super) auto: Option<u8>,
    /// Counts changes of that.
    pub(super) version: u64,
    /// Calls that were made and did not arrive.
    pub(super) calls: BTreeSet<u64>,
}

/// All sockets of one process.
#[derive(Default)]
pub(super) struct Lines {
    pub(super) net: Option<SimNet>,
    pub(super) lines: BTreeMap<u64, Line>,
    pub(super) rooms: BTreeMap<String, Room>,
    pub(super) peers: BTreeMap<u64, SharedPeer>,
    /// Requests to accept one.
    pub(super) opens: BTreeMap<u64, (u64, Accept)>,
    /// What the object does for a message.
    pub(super) turns: BTreeMap<u64, Turn>,
}

impl Lines {
    pub(super) fn room(&mut self, object: &str) -> &mut Room {
        if !self.rooms.contains_key(object) {
            self.rooms.insert(object.to_owned(), Room::default());
        }
        self.rooms.get_mut(object).expect("just made")
    }

    /// The automatic response that the object of this line has: changes so far, and its number.
    pub(super) fn auto_of(&self, line: u64) -> (u64, Option<u8>) {
        let object = self.lines.get(&line).map(|line| &*line.object);
        let room = object.and_then(|object| self.rooms.get(object));
        room.map_or((0, None), |room| (room.version, room.auto))
    }

    /// Lines that the object may list, oldest first.
    pub(super) fn of<'a>(&'a self, object: &str) -> impl Iterator<Item = &'a Line> + use<'a> {
        let accepted = self.rooms.get(object).map(|room| &room.accepted[..]).unwrap_or_default();
        accepted.iter().filter_map(|line| self.lines.get(line))
    }

    /// The object is reset: nothing of its sockets is left.
    fn reset(&mut self, object: &str) -> bool {
        let room = self.room(object);
        room.auto = None;
        room.version += 1;
        let accepted = std::mem::take(&mut room.accepted);
        let live = std::mem::take(&mut room.live);
        let mut any = false;
        for line in accepted.into_iter().chain(live) {
            if let Some(line) = self.lines.get_mut(&line) {
                any |= line.is_open();
                line.cut = true;
            }
        }
        any
    }
}

impl Shared {
    /// Runs `use_it` on a line, and keeps what is wrong.
    pub(super) fn on_line<T: Default>(
        &self,
        number: u64,
        use_it: impl FnOnce(&mut Line) -> anyhow::Result<T>,
    ) -> T {
        let mut lines = self.lines.borrow_mut();
        let Some(line) = lines.lines.get_mut(&number) else {
            self.fail(format!("there is no line {number}"));
            return T::default();
        };
        let object = line.object.clone();
        let result = use_it(line);
        drop(lines);
        result.unwrap_or_else(|error| {
            self.fail(format!("line {number} of object {object}: {error:#}"));
            T::default()
        })
    }

    /// The object of these sockets is reset.
    pub(super) fn lines_reset(&self, object: &str) {
        if self.sockets && self.lines.borrow_mut().reset(object) {
            self.mark(Mark::SocketsReset);
        }
    }

    /// Reads fail: an object that can't be brought into memory for an end or a message of a socket
    /// loses that socket, and is not told, since there is nobody to tell. From the outside
    /// this shows only in what the next instance lists. A socket that was to wake its object and is
    /// missed is therefore taken for lost, and none may be told of it any more.
    pub(super) fn lines_forgotten(&self, object: &str, listed: &BTreeSet<u64>) {
        let lines = &mut *self.lines.borrow_mut();
        let Some(room) = lines.rooms.get(object) else { return };
        for number in room.accepted.iter().filter(|number| !listed.contains(number)) {
            let line = lines.lines.get_mut(number);
            let line = line.filter(|line| line.wakes(room.version, room.auto));
            line.into_iter().for_each(|line| line.cut = true);
        }
    }

    /// A frame reached its client.
    pub(super) fn arrived(&self, number: u64, frame: Frame) -> Option<Arrived> {
        let (version, set) = self.lines.borrow().auto_of(number);
        let closing = self.closing.get();
        let (object, arrived) = self.on_line(number, |line| {
            let arrived = line.arrives(frame, version, set, closing)?;
            Ok((line.object.clone(), Some(arrived)))
        });
        let arrived = arrived?;
        self.count(false);
        self.world.fold(&number.to_le_bytes());
        if let Arrived::Said(groups) | Arrived::Close(groups, ..) = &arrived {
            self.on(&object, |ghost| {
                ghost.acknowledge(*groups);
                Ok(())
            });
        }
        if let Arrived::Deleted(_) = &arrived {
            self.mark(Mark::DeletedWithSockets);
        }
        if let Arrived::Answered = &arrived {
            let asleep = self.on(&object, |ghost| Ok(ghost.instance.is_none()));
            self.mark(if asleep { Mark::AnsweredForASleeper } else { Mark::AutoResponse });
        }
        Some(arrived)
    }

    /// A client ends its socket so.
    pub(super) fn line_ending(&self, number: u64, ending: Ending) {
        self.on_line(number, |line| {
            line.endings.push(ending);
            Ok(())
        });
    }

    /// A client sees the end of its socket.
    pub(super) fn line_ends(&self, number: u64) {
        self.note(|| format!("line {number} is over"));
        let (closing, lenient) = (self.closing.get(), self.lenient.get());
        self.on_line(number, |line| {
            line.ends(closing || lenient)?;
            if closing && !lenient && line.accepted.is_some() { line.said_all() } else { Ok(()) }
        });
    }

    /// The process is gone, and with it all sockets.
    pub(super) fn lines_crashed(&self) {
        let peers = std::mem::take(&mut self.lines.borrow_mut().peers);
        for peer in peers.into_values() {
            peer.borrow_mut().crash(self);
        }
        let lines = std::mem::take(&mut *self.lines.borrow_mut());
        let held = |line: &Line| line.is_open() && line.endings.is_empty() && line.has_unsent();
        for line in lines.lines.values().filter(|line| held(line)) {
            if self.on(&line.object, |ghost| Ok(ghost.is_dirty())) {
                self.mark(Mark::FrameHeldInACrash);
            }
        }
    }

    /// A call is made to this object.
    pub(super) fn calls(&self, object: &str, token: u64) {
        if self.sockets {
            self.lines.borrow_mut().room(object).calls.insert(token);
        }
    }

    /// The call arrived, or never will.
    pub(super) fn called(&self, object: &str, token: u64) {
        if self.sockets {
            self.lines.borrow_mut().room(object).calls.remove(&token);
        }
    }

    /// An object that has sockets comes to life: somebody wanted it.
    pub(super) fn check_wanted(&self, object: &str) -> anyhow::Result<()> {
        let alarm = self.on(object, |ghost| Ok(ghost.had_alarm));
        let lines = self.lines.borrow();
        let Some(room) = lines.rooms.get(object) else { return Ok(()) };
        let wakes = lines.of(object).any(|line| line.wakes(room.version, room.auto));
        anyhow::ensure!(
            wakes || alarm || !room.calls.is_empty() || self.closing.get(),
            "it came to life, and nobody wanted anything of it"
        );
        Ok(())
    }

    /// The network of the process that lives now.
    pub(super) fn net(&self) -> SimNet {
        self.lines.borrow().net.clone().expect("a process lives")
    }

    /// The client's end of a line, if it is connected.
    pub(super) fn peer(&self, number: u64) -> Option<SharedPeer> {
        self.lines.borrow().peers.get(&number).map(Rc::clone)
    }
}
