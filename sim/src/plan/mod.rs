//! [`Plan`]: all that happens in one simulated life, as data and as a text that a person edits.
//!
//! A plan says what clients ask of which object, how each request ends, where the machine fails
//! and how each process ends. What it leaves open (the order of ready tasks, how long the disk
//! takes, which fault strikes which operation) follows from its `seed`. Equal plans are equal
//! lives. The text is RON: [`Plan::print`] and [`Plan::parse`] are each other's inverse.
//!
//! Keys are numbers ([`key`] names them), values a length and a byte that fills it.

mod exchange;
mod generate;
pub mod shrink;
mod talk;

use std::fmt::Write;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

pub use self::exchange::{Ends, Exchange, Flow, Work};

use crate::disk::DiskFaults;
use crate::net::NetFaults;

/// One life.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Decides what the rest leaves open.
    pub seed: u64,
    /// Which layers live.
    pub level: Level,
    /// Threads of each process; 1 at [`Level::Engine`].
    pub cores: usize,
    /// Logs of the store.
    pub shards: u16,
    /// What the disk does wrong until the last session, which has none of it.
    pub faults: DiskFaults,
    /// A core stands still once in so many polls; 0 for never.
    #[serde(default)]
    pub stalls: u64,
    /// A wake-up from another core takes a while once in so many; 0 for never.
    #[serde(default)]
    pub late_wakes: u64,
    /// Messages that a core's mailbox holds; 0 for as many as in use.
    #[serde(default)]
    pub mailbox: usize,
    /// What the network does with the bytes of sockets.
    #[serde(default)]
    pub net: NetFaults,
    /// Whether sockets have bounds of a few messages, and objects of a few sockets.
    #[serde(default)]
    pub tiny_sockets: bool,
    /// Whether the caches have bounds of a few keys.
    #[serde(default)]
    pub tiny_caches: bool,
    /// Whether, after it all, a sector of the closed store is damaged: at [`Level::Engine`].
    #[serde(default)]
    pub damage: bool,
    /// What objects do when their alarm fires, one after the other.
    pub alarms: Vec<Turn>,
    /// Processes, one after the other.
    pub sessions: Vec<Session>,
}

/// Which layers live.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Level {
    /// Clients commit to shards.
    Engine,
    /// Clients call objects through stubs.
    Stack,
}

/// One process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Session {
    /// What each client does, in its order.
    pub clients: Vec<Vec<Step>>,
    /// How the process ends.
    pub end: End,
    /// When, at the latest once all clients are done.
    pub at: At,
}

/// How a process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum End {
    /// In order.
    Close,
    /// By SIGKILL.
    Kill,
    /// With the machine's power.
    PowerCut,
    /// By SIGKILL, and so many steps later goes the power.
    KillThenPowerCut(u64),
}

/// When a process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum At {
    /// When all clients are done.
    Done,
    /// After so many steps of the machine, opening included.
    Steps(u64),
    /// After so many steps with a write on its way to the disk.
    InFlight(u64),
}

/// One thing that a client does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Step {
    /// Asks an object for a turn.
    Call(u8, Turn, Wait),
    /// Has an object dropped from memory.
    Evict(u8),
    /// Waits, in microseconds.
    Pause(u32),
    /// Moves the wall clock, in milliseconds.
    Clock(i32),
    /// Deletes an object for good.
    Delete(u8, Wait),
    /// Sends a request whose bodies come chunk by chunk, and reads the response.
    Fetch(u8, Exchange),
    /// Does something with one of its sockets.
    Socket(u8, Talk),
    /// Engine: commits one after the other, waiting for none before all are made.
    Commit(u8, Vec<Vec<Change>>),
    /// Engine: commits one after the other as an object does that keeps all its keys in memory.
    CommitResident(u8, Vec<Vec<Change>>),
    /// Engine: commits for a version that the object is not at.
    CommitStale(u8, Vec<Change>),
    /// Engine: reads a whole object.
    Load(u8),
    /// Engine: has the shard of an object made compact.
    Compact(u8),
}

/// What a client does with a socket.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Talk {
    /// Opens one to an object, and drops the one of this number that it had.
    Open(u8, Accept),
    /// Sends a message, for which the object does this: so many bytes, binary or text, in so many
    /// frames.
    Send(u16, bool, u8, Turn),
    /// Sends the text that an automatic response of this number is for.
    Ask(u8),
    /// Sends a ping of so many bytes.
    Ping(u8),
    /// Sends a close frame: its code, 0 for none, and how long its reason is.
    Close(u16, u8),
    /// Is gone.
    Leave(Leave),
    /// Sends what no client may send.
    Break(Break),
    /// Reads nothing any more.
    Hold,
    /// Reads again.
    Read,
}

/// How an object accepts a socket.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Accept {
    /// Whether it reads the socket itself, and so stays in memory.
    pub live: bool,
    /// Tags, as numbers.
    pub tags: Vec<u8>,
    /// What it does when it has accepted.
    pub turn: Turn,
    /// What it does when it is told of the end.
    pub end: Turn,
}

/// How a client leaves without a close frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Leave {
    /// What it sent arrives before its end.
    Finish,
    /// At any byte.
    Reset,
    /// It says and takes nothing more.
    Silent,
}

/// What no client may send.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Break {
    /// A frame without a mask.
    Unmasked,
    /// A frame of a kind that there is not.
    Unknown,
    /// A text that is none.
    NotUtf8,
    /// A frame that says that it is longer than a message may be.
    TooLong,
    /// A part of a message that never began.
    Headless,
}

/// Which sockets of its own an object means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum To {
    /// The one whose event this is; none in other events.
    This,
    /// Those with a tag.
    Tag(u8),
    /// All that it does not read itself.
    All,
}

/// What a client does about the answer of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Wait {
    /// Waits for it.
    Now,
    /// Waits for it once all its steps are made.
    Last,
    /// Drops the call.
    Never,
}

/// One event of an object.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Turn {
    /// Operations in order. Writes that stand side by side are made without a pause.
    pub ops: Vec<Op>,
    /// How it ends.
    pub fate: Fate,
}

/// How an event of an object ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fate {
    /// With an answer.
    Fine,
    /// With an error, which takes nothing back.
    Error,
    /// The object aborts itself; writes since the last pause leave no trace.
    Abort,
    /// As an abort.
    Panic,
}

/// One operation of an object.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Op {
    /// A write.
    Write(Change),
    /// A put that output does not wait for.
    Unconfirmed(u8, u16, u8),
    /// Several puts, as one call.
    PutMany(Vec<(u8, u16, u8)>),
    /// Several deletes, as one call.
    DeleteMany(Vec<u8>),
    /// Reads a key.
    Get(u8),
    /// Reads some keys.
    GetMany(Vec<u8>),
    /// Lists keys from one to before another, at most so many; descending if so wished.
    List(u8, u8, u8, bool),
    /// A read of keys that is waited for together with the writes that follow it.
    Ahead(Box<Op>),
    /// Reads the alarm.
    GetAlarm,
    /// Waits until all is durable.
    Sync,
    /// Adds one to a counter: reads it, and writes it.
    Increment(u8),
    /// Waits in microseconds, letting others in.
    Pause(u16),
    /// A transaction; inside another one, a savepoint.
    Transaction(Vec<Op>, Close),
    /// A critical section.
    Section(Vec<Op>),
    /// Goes on beside the event.
    Beside(Vec<Op>),
    /// Has work done beside the core.
    Work(Work),
    /// Calls another object and waits.
    Call(u8, Turn),
    /// Sends a message of so many bytes, binary or text.
    Say(To, u16, bool),
    /// Closes, with this code.
    Shut(To, u16),
    /// Attaches so many bytes of this value.
    Attach(To, u16, u8),
    /// From now on answers what `Ask` of this number sends; none, if there is none.
    AutoResponse(Option<u8>),
}

/// How a transaction ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Close {
    /// It is made.
    Commit,
    /// It is taken back by the object.
    Rollback,
    /// It fails, which takes it back.
    Fail,
    /// Its future is dropped before it ends, which takes it back.
    Drop,
}

/// One change of an object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// Sets a key to so many bytes of this value.
    Put(u8, u16, u8),
    /// Removes a key.
    Delete(u8),
    /// Removes all keys; with the alarm if so wished.
    DeleteAll(bool),
    /// Sets the alarm, in milliseconds from now; at [`Level::Engine`] since 1970.
    Alarm(u32),
    /// Clears the alarm.
    NoAlarm,
}

/// The name of a key: most are short, some lie at the bounds of what a key may be.
pub fn key(number: u8) -> String {
    match number {
        250 => String::new(),
        251 => "\0".to_owned(),
        252 => "\u{10ffff}".to_owned(),
        253 => "k".repeat(dormouse_engine::Limits::TINY.key_bytes_max),
        number => format!("key-{number}"),
    }
}

const HEAD: &str = "\
// A life, step by step; `cargo sim play FILE` lives it, `cargo sim shrink` makes shorter ones.
// Keys are numbers. Put(1, 40, 7) sets key 1 to 40 bytes of the value 7; List(from, to, limit,
// descending); Alarm(ms from now); Pause in microseconds; Clock in milliseconds. An end strikes
// At Done, after Steps(n) of the machine, or after n steps with a write InFlight. Socket(number, Send(
// bytes, binary, frames, what the object does)); Say(to, bytes, binary) is the object's message.
// Fetch(object, (the request's body, what the object does, and does before each chunk, its response)).
";

impl Plan {
    /// The plan as text.
    ///
    /// # Panics
    /// Never: a plan always has a text.
    pub fn print(&self) -> String {
        let style = ron::ser::PrettyConfig::new().depth_limit(5).new_line("\n");
        let mut text = HEAD.to_owned();
        let body = ron::ser::to_string_pretty(self, style).expect("plain data");
        writeln!(text, "{body}").expect("a string");
        text
    }

    /// The plan that a text is of.
    ///
    /// Errors: where the text is not a plan.
    pub fn parse(text: &str) -> Result<Self> {
        ron::from_str(text).context("not a plan")
    }

    /// Whether any client opens a socket.
    pub(crate) fn has_sockets(&self) -> bool {
        let mut steps = self.sessions.iter().flat_map(|session| session.clients.iter().flatten());
        steps.any(|step| matches!(step, Step::Socket(..)))
    }

    /// Whether objects read any sockets themselves.
    pub(crate) fn has_live_sockets(&self) -> bool {
        let mut steps = self.sessions.iter().flat_map(|session| session.clients.iter().flatten());
        steps.any(|step| matches!(step, Step::Socket(_, Talk::Open(_, Accept { live: true, .. }))))
    }

    /// How much there is to read: what shrinking makes less.
    pub fn size(&self) -> usize {
        let faults = ron::to_string(&self.faults).map_or(0, |text| text.len());
        self.print().len() + faults
    }
}
