//! What is known of one WebSocket: the reference that both of its ends are held to.
//!
//! What the client sent is handled in order, each message once and whole; what the object said
//! arrives in order, whole, and not before what was written earlier is durable; automatic responses
//! come in the order of what they answer and overtake nothing. The object is told of the end once,
//! and as what the client did. A reset of the object, or the end of its process, may lose what is
//! on its way, and nothing else may.

use std::collections::VecDeque;

use anyhow::{Context, Result, bail, ensure};
use dormouse_scheduler::{Closed, Error, Message};

use super::codec::Frame;
use crate::plan::Turn;

/// What a frame costs in a bounded queue beside its bytes, as the scheduler counts.
const FRAME_BYTES: usize = 64;

/// Why the sockets of an object that is deleted are closed.
const DELETED: &[u8] = b"the object was deleted";

/// What was sent, in the order of sending.
enum Sent {
    /// This request, in so many bytes.
    Message { token: u64, bytes: u16, binary: bool },
    /// The text that an automatic response may answer: its number, and what the object had set then.
    Ask { which: u8, version: u64, is_set: bool },
}

impl Sent {
    /// Which automatic response it asks for.
    fn asks(&self) -> Option<u8> {
        match self {
            Self::Ask { which, .. } => Some(*which),
            Self::Message { .. } => None,
        }
    }
}

struct Item {
    what: Sent,
    /// The object saw it, or the client its answer.
    done: bool,
    wall_ms: u64,
    /// How much the object had said when it was sent.
    said_before: u64,
}

/// What the object said.
pub(super) enum What {
    Message { bytes: u16, binary: bool },
    Close { code: Option<u16>, reason: Vec<u8> },
}

struct Said {
    number: u64,
    what: What,
    /// How many of the object's groups must be durable when it arrives.
    groups: u64,
}

/// How a client ended it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// By a close frame.
    Close(Option<u16>, String),
    /// By its end, after all that it sent.
    Finish,
    /// At any byte.
    Reset,
    /// Without a sign.
    Silence,
    /// With what no client may send; the code that it is told.
    Break(u16),
}

/// What the object was told of the end.
#[derive(Debug)]
pub(super) enum Told {
    Closed(Closed),
    Error(Error),
}

/// What came of a frame that reached the client.
pub(super) enum Arrived {
    /// So many groups of its object are durable.
    Said(u64),
    Answered,
    Pong,
    Ping(Vec<u8>),
    /// The object is deleted; with the reason that the client gets.
    Deleted(Vec<u8>),
    /// So many groups are durable. The client answers it, unless it has closed itself.
    Close(u64, Option<u16>, Vec<u8>),
}

/// One WebSocket.
pub(super) struct Line {
    pub(super) number: u64,
    pub(super) object: String,
    pub(super) live: bool,
    pub(super) tags: Vec<String>,
    /// What the object does at its end.
    pub(super) end_turn: Turn,
    /// The instance that accepted it.
    pub(super) accepted: Option<u64>,
    items: VecDeque<Item>,
    said: VecDeque<Said>,
    said_total: u64,
    arrived_total: u64,
    pings: VecDeque<Vec<u8>>,
    pub(super) attachment: Option<(u16, u8)>,
    pub(super) closed_by_object: bool,
    pub(super) endings: Vec<Ending>,
    /// The event in which the object was told.
    pub(super) told: Option<u64>,
    /// The object was reset: anything on its way may be lost, and nobody is told.
    pub(super) cut: bool,
    /// Its object is or was being deleted since it was opened.
    pub(super) doomed: bool,
    /// That is what cut it.
    pub(super) deleted: bool,
    /// Its client read nothing for a while.
    pub(super) held: bool,
    /// The last answer's request was sent then or later.
    answered_ms: Option<u64>,
    asked: bool,
    /// Nothing follows the object's close frame.
    close_arrived: bool,
}

/// The text of a message: a letter and a number, and more bytes after them, some of which are in
/// characters of two.
pub(super) fn text(kind: char, number: u64, bytes: u16) -> String {
    let mut text = format!("{kind}{number} ");
    while text.len() + 2 <= usize::from(bytes) {
        text.push('é');
    }
    text
}

/// The texts of an automatic response.
pub(super) fn pair(which: u8) -> (String, String) {
    (format!("ask-{which}"), format!("auto-{which}"))
}

/// The value that is attached.
pub(super) fn attachment(line: u64, bytes: u16, fill: u8) -> (u64, String) {
    (line, char::from(b'a' + fill % 26).to_string().repeat(usize::from(bytes)))
}

impl Line {
    pub(super) fn new(
        number: u64,
        object: String,
        live: bool,
        tags: &[u8],
        end_turn: Turn,
    ) -> Self {
        let mut names = vec![format!("line-{number}")];
        for tag in tags.iter().map(|tag| format!("tag-{tag}")) {
            if !names.contains(&tag) {
                names.push(tag);
            }
        }
        Self {
            number,
            object,
            live,
            tags: names,
            end_turn,
            accepted: None,
            items: VecDeque::new(),
            said: VecDeque::new(),
            said_total: 0,
            arrived_total: 0,
            pings: VecDeque::new(),
            attachment: None,
            closed_by_object: false,
            endings: Vec::new(),
            told: None,
            cut: false,
            doomed: false,
            deleted: false,
            held: false,
            answered_ms: None,
            asked: false,
            close_arrived: false,
        }
    }

    /// Whether the object lists it, as far as nothing happens to it now.
    pub(super) fn is_open(&self) -> bool {
        self.accepted.is_some() && self.told.is_none() && !self.cut
    }

    /// Whether something is on its way that wakes the object; `version` and `set` are its automatic
    /// response as it is now.
    pub(super) fn wakes(&self, version: u64, set: Option<u8>) -> bool {
        let unseen = |item: &Item| match item.what {
            _ if item.done => false,
            Sent::Message { .. } => true,
            Sent::Ask { which, version: then, .. } => version != then || set != Some(which),
        };
        let ends = !self.endings.is_empty() || self.closed_by_object;
        self.is_open() && (ends || self.items.iter().any(unseen))
    }

    // The client's side.

    pub(super) fn sent(&mut self, token: u64, bytes: u16, binary: bool, wall_ms: u64) {
        self.push(Sent::Message { token, bytes, binary }, wall_ms);
    }

    pub(super) fn asked(&mut self, which: u8, version: u64, set: Option<u8>, wall_ms: u64) {
        self.asked = true;
        self.push(Sent::Ask { which, version, is_set: set == Some(which) }, wall_ms);
    }

    fn push(&mut self, what: Sent, wall_ms: u64) {
        let said_before = self.said_total;
        self.items.push_back(Item { what, done: false, wall_ms, said_before });
    }

    pub(super) fn pinged(&mut self, bytes: Vec<u8>) {
        self.pings.push_back(bytes);
    }

    /// A frame reached the client; `version` and `set` are the object's automatic response.
    pub(super) fn arrives(
        &mut self,
        frame: Frame,
        version: u64,
        set: Option<u8>,
        closing: bool,
    ) -> Result<Arrived> {
        ensure!(!self.close_arrived, "{frame:?} after a close frame");
        match frame {
            Frame::Ping(bytes) => Ok(Arrived::Ping(bytes)),
            Frame::Pong(bytes) => {
                let wanted = self.pings.pop_front();
                ensure!(wanted.as_ref() == Some(&bytes), "pong {bytes:?}, not {wanted:?}");
                Ok(Arrived::Pong)
            }
            Frame::Message { binary, bytes } if !binary && bytes.starts_with(b"auto-") => {
                self.answered(&bytes, version, set)?;
                Ok(Arrived::Answered)
            }
            Frame::Message { binary, bytes } => {
                let said = self.said.pop_front().context("a message that nobody said")?;
                let What::Message { bytes: len, binary: kind } = said.what else {
                    bail!("message {:?} in the place of a close", String::from_utf8_lossy(&bytes));
                };
                let wanted = text('s', said.number, len);
                let got = String::from_utf8_lossy(&bytes);
                ensure!(got == wanted && binary == kind, "message {got:?}, not {wanted:?}");
                self.arrived_total += 1;
                Ok(Arrived::Said(said.groups))
            }
            Frame::Close(code, reason) => {
                self.close_arrived = true;
                let broken =
                    |ending: &Ending| matches!(ending, Ending::Break(of) if Some(*of) == code);
                if self.endings.iter().any(broken) || closing && code == Some(1001) {
                    return Ok(Arrived::Close(0, code, reason));
                }
                if code == Some(1001) && reason == DELETED {
                    ensure!(self.doomed, "closed as deleted, and nobody deleted its object");
                    self.cut = true;
                    return Ok(Arrived::Deleted(reason));
                }
                let said = self.said.pop_front().context("a close that nobody said")?;
                let What::Close { code: wanted, reason: why } = said.what else {
                    bail!("close {code:?} in the place of message {}", said.number);
                };
                ensure!(code == wanted && reason == why, "close {code:?}, not {wanted:?}");
                self.arrived_total += 1;
                Ok(Arrived::Close(said.groups, code, reason))
            }
        }
    }

    fn answered(&mut self, bytes: &[u8], version: u64, set: Option<u8>) -> Result<()> {
        let arrived = self.arrived_total;
        let (item, which, then, is_set) = loop {
            let at = self.items.iter().position(|item| !item.done);
            let at = at.context("an automatic response to nothing")?;
            let Sent::Ask { which, version, is_set } = self.items[at].what else {
                bail!("an automatic response before a message that was sent earlier began");
            };
            if bytes == pair(which).1.as_bytes() {
                break (&mut self.items[at], which, version, is_set);
            }
            // Then this is the one that the object saw, and not a later one that is like it.
            let is_like = |item: &Item| item.done && item.what.asks() == Some(which);
            let like = (at + 1..self.items.len()).find(|later| is_like(&self.items[*later]));
            let like =
                like.with_context(|| format!("another response than that of ask {which}"))?;
            self.items[at].done = true;
            self.items[like].done = false;
        };
        ensure!(
            version != then || is_set && set == Some(which),
            "ask {which} was answered, for which nothing is set"
        );
        ensure!(
            item.said_before <= arrived,
            "an automatic response overtook what the object said before: {arrived} of {} came",
            item.said_before
        );
        item.done = true;
        self.answered_ms = Some(item.wall_ms);
        self.forget_done();
        Ok(())
    }

    /// The client sees that the connection is over.
    pub(super) fn ends(&self, excused: bool) -> Result<()> {
        let closed = self.closed_by_object || self.deleted;
        let by_client = !self.endings.is_empty() || closed && self.held;
        let by_object = self.close_arrived;
        // A deletion says what it is.
        let cut = self.cut && !self.deleted;
        ensure!(excused || cut || by_client || by_object, "it is lost, and nobody ended it");
        Ok(())
    }

    /// It ended with its process, in order: all that was said is there.
    pub(super) fn said_all(&self) -> Result<()> {
        let left = self.said.len();
        let may_lose = !self.endings.is_empty() || self.cut || self.is_given_up();
        ensure!(left == 0 || may_lose, "{left} frames were never sent");
        Ok(())
    }

    /// Its client read nothing while it had time to answer the object's close: it was lost, with
    /// what it had not taken.
    fn is_given_up(&self) -> bool {
        self.held && self.closed_by_object && self.told.is_some()
    }

    /// Whether something that the object said has not arrived.
    pub(super) fn has_unsent(&self) -> bool {
        !self.said.is_empty()
    }

    // The object's side.

    /// A message begins to be handled: its request.
    pub(super) fn begins(
        &mut self,
        message: &Message,
        version: u64,
        set: Option<u8>,
    ) -> Result<Option<u64>> {
        ensure!(!self.cut, "a socket that a reset dropped has a message");
        ensure!(self.told.is_none(), "a message after the end");
        let binary = message.as_text().is_none();
        let got = String::from_utf8_lossy(message.as_bytes()).into_owned();
        // Of several asks that are alike an earlier one may have been answered, and the answer be on
        // its way: the last that it can be is taken, and `answered` takes that back if it must.
        let mut ask = None;
        for (at, item) in self.items.iter_mut().enumerate().filter(|(_, item)| !item.done) {
            let wrong = match item.what {
                Sent::Message { .. } if ask.is_some() => break,
                Sent::Message { token, bytes, binary: kind } => {
                    let wanted = text('m', token, bytes);
                    ensure!(got == wanted && binary == kind, "message {got:?}, not {wanted:?}");
                    item.done = true;
                    self.forget_done();
                    return Ok(Some(token));
                }
                Sent::Ask { which, version: then, is_set } if got == pair(which).0 => {
                    let must_be_answered = version == then && is_set && set == Some(which);
                    if !must_be_answered {
                        ask = Some(at);
                    }
                    must_be_answered.then(|| format!("ask {which} reached the object"))
                }
                // It may have been answered, and the answer be on its way.
                Sent::Ask { version: then, is_set, .. } => {
                    (!is_set && version == then).then(|| format!("{got:?} came before an ask"))
                }
            };
            if let Some(wrong) = wrong {
                ensure!(ask.is_some(), wrong);
                break;
            }
        }
        if let Some(at) = ask {
            self.items[at].done = true;
            self.forget_done();
            return Ok(None);
        }
        bail!("message {got:?} was not sent, or came before")
    }

    fn forget_done(&mut self) {
        while self.items.front().is_some_and(|item| item.done) {
            self.items.pop_front();
        }
    }

    /// The object says something; what became of it.
    pub(super) fn says(
        &mut self,
        number: u64,
        what: What,
        groups: u64,
        outgoing_bytes_max: usize,
        result: &Result<(), Error>,
    ) -> Result<bool> {
        let is_close = matches!(what, What::Close { .. });
        match result {
            Ok(()) if is_close && self.closed_by_object => return Ok(false),
            Ok(()) => ensure!(!self.closed_by_object, "it says something after it closed"),
            Err(error) if error.code() == Some("bad-argument") => {
                ensure!(self.closed_by_object && !is_close, "refused: {error}");
                return Ok(false);
            }
            Err(error) if error.code() == Some("socket-queue-full") => {
                let cost = self.backlog() + cost(&what);
                ensure!(cost > outgoing_bytes_max, "refused with {cost} bytes: {error}");
                return Ok(true);
            }
            Err(error) => bail!("refused: {error:?}"),
        }
        self.closed_by_object |= is_close;
        self.said_total += 1;
        self.said.push_back(Said { number, what, groups });
        Ok(false)
    }

    /// Bytes that may wait for the client, at most.
    fn backlog(&self) -> usize {
        let said: usize = self.said.iter().map(|said| cost(&said.what)).sum();
        let pongs: usize = self.pings.iter().map(|bytes| FRAME_BYTES + bytes.len()).sum();
        let asks = self.items.iter().filter(|item| matches!(item.what, Sent::Ask { .. }));
        said + pongs + asks.count() * (FRAME_BYTES + pair(0).1.len())
    }

    /// What was said in a turn that reset the object never leaves.
    pub(super) fn unsay(&mut self, number: u64) {
        self.said.retain(|said| said.number != number);
    }

    /// The object is told of the end.
    pub(super) fn is_told(&mut self, event: u64, told: &Told, excused: bool) -> Result<()> {
        ensure!(!self.cut, "a socket that a reset dropped is told {told:?}");
        let before = self.told.replace(event);
        ensure!(before.is_none(), "it is told twice: {told:?}");
        if excused {
            return Ok(());
        }
        let by = |ending: &Ending| self.endings.contains(ending);
        let lost = by(&Ending::Reset) || by(&Ending::Silence) || by(&Ending::Finish);
        let broken = self.endings.iter().any(|ending| matches!(ending, Ending::Break(_)));
        let fits = match told {
            Told::Closed(closed) if closed.was_clean => self.endings.iter().any(|ending| {
                matches!(ending, Ending::Close(code, reason)
                    if code.unwrap_or(1005) == closed.code && *reason == closed.reason)
            }),
            Told::Closed(closed) => {
                closed.code == 1006 && (lost || self.closed_by_object && self.held)
            }
            Told::Error(error) => broken && error.code() == Some("socket-protocol"),
        };
        ensure!(fits, "told {told:?} of {:?}", self.endings);
        let may_lose = by(&Ending::Reset) || by(&Ending::Silence) || broken || self.held;
        let unseen = |item: &&Item| !item.done && matches!(item.what, Sent::Message { .. });
        let missing = self.items.iter().filter(unseen).count();
        ensure!(missing == 0 || may_lose, "told {told:?}, and {missing} messages never came");
        Ok(())
    }

    /// What the object reads of the last automatic response.
    pub(super) fn check_time(&self, at_ms: Option<u64>, now_ms: u64, jumped: bool) -> Result<()> {
        match (at_ms, self.answered_ms) {
            (None, None) => {}
            (None, Some(_)) => bail!("no time of an automatic response"),
            (Some(at), _) if !self.asked => bail!("the time {at} of no automatic response"),
            (Some(at), since) if !jumped => ensure!(
                at <= now_ms && since.is_none_or(|since| at >= since),
                "the last automatic response was after {since:?}, not at {at}"
            ),
            _ => {}
        }
        Ok(())
    }

    /// All has come to rest: what is open has everything, and the end of what is not was told.
    pub(super) fn check_rest(&self) -> Result<()> {
        if self.accepted.is_none() || self.cut {
            return Ok(());
        }
        if !self.endings.is_empty() {
            ensure!(self.told.is_some(), "{:?} was never told", self.endings);
            return Ok(());
        }
        if self.is_given_up() {
            return Ok(());
        }
        let unseen = self.items.iter().filter(|item| !item.done).count();
        ensure!(unseen == 0, "{unseen} messages never came, nor their answers");
        ensure!(self.said.is_empty(), "{} frames never came", self.said.len());
        ensure!(self.pings.is_empty(), "{} pings were never answered", self.pings.len());
        Ok(())
    }
}

fn cost(what: &What) -> usize {
    FRAME_BYTES
        + match what {
            What::Message { bytes, .. } => text('s', 0, *bytes).len() + 20,
            What::Close { reason, .. } => reason.len(),
        }
}
