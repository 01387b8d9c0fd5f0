//! [`Resident`]: what an object in memory says of itself: why it is awake, and why it last woke.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::id::Id;

/// Why an object is awake: what it has to do, or waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Awake {
    /// It is being read, or waits for room in memory.
    Starting,
    /// It is being deleted; what comes meanwhile waits.
    Deleting,
    /// An HTTP request that waits or is being answered.
    Request,
    /// A typed call that waits or is being answered.
    Call,
    /// Its alarm's handler.
    Alarm,
    /// The handler of a message, close or error of a WebSocket.
    SocketEvent,
    /// An operation of its storage that is not over.
    Storage,
    /// A critical section (`block_concurrency_while`), such as a constructor's.
    Section,
    /// A task of `wait_until`.
    WaitUntil,
    /// A sleep that is not over.
    Timer,
    /// A call to another object that it made and whose reply it has not taken.
    OutsideCall,
    /// A request to the outside (`State::fetch`) that is not over.
    OutsideRequest,
    /// Work beside the core (`State::spawn_blocking`) that is not over.
    Blocking,
    /// A body that it sends piece by piece, and that has not ended.
    Body,
    /// A WebSocket that it reads itself, and that is open.
    Socket,
    /// What it said to others waits until its writes are durable.
    Saying,
    /// It was told to leave memory, and waits until its writes are durable.
    Leaving,
    /// Bytes that it wrote and that are not durable yet.
    DirtyBytes,
}

impl Awake {
    /// Whether somebody waits for a reply.
    pub(crate) fn is_call(self) -> bool {
        matches!(self, Self::Request | Self::Call)
    }

    /// Whether it comes from outside of the object.
    pub(crate) fn is_event(self) -> bool {
        self.is_call() || matches!(self, Self::Alarm | Self::SocketEvent)
    }

    /// One of them, and several.
    fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Starting => ("start", "starts"),
            Self::Deleting => ("deletion", "deletions"),
            Self::Request => ("request", "requests"),
            Self::Call => ("call", "calls"),
            Self::Alarm => ("alarm", "alarms"),
            Self::SocketEvent => ("socket event", "socket events"),
            Self::Storage => ("storage operation", "storage operations"),
            Self::Section => ("critical section", "critical sections"),
            Self::WaitUntil => ("task", "tasks"),
            Self::Timer => ("timer", "timers"),
            Self::OutsideCall => ("call to another object", "calls to other objects"),
            Self::OutsideRequest => ("request to the outside", "requests to the outside"),
            Self::Blocking => ("work beside the core", "works beside the core"),
            Self::Body => ("body", "bodies"),
            Self::Socket => ("socket of its own", "sockets of its own"),
            Self::Saying => ("outbox", "outboxes"),
            Self::Leaving => ("order to leave", "orders to leave"),
            Self::DirtyBytes => ("dirty byte", "dirty bytes"),
        }
    }
}

/// One reason for which an object is awake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reason {
    /// What it is.
    pub why: Awake,
    /// How many of them there are; bytes, of [`Awake::DirtyBytes`].
    pub count: usize,
    /// For how long the oldest is there, where that is known.
    pub oldest: Option<Duration>,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (one, several) = self.why.names();
        write!(f, "{} {}", self.count, if self.count == 1 { one } else { several })?;
        match self.oldest {
            Some(oldest) => write!(f, " (for {oldest:.1?})"),
            None => Ok(()),
        }
    }
}

/// An object that is in memory, or is being brought there.
#[derive(Clone, Debug)]
pub struct Resident {
    /// Its id.
    pub id: Id,
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Why it is awake; empty if it is idle. In the order of [`Awake`].
    pub awake: Vec<Reason>,
    /// What woke it last.
    pub woken_by: Awake,
    /// How long ago that was.
    pub woken: Duration,
    /// How long ago it last had something to do.
    pub last_turn: Duration,
    /// Requests and calls that wait for it or run in it.
    pub calls: usize,
    /// Connections that stay open while it sleeps.
    pub sockets: usize,
    /// Bytes that it takes in memory, as residency counts them.
    pub bytes: usize,
}

impl Resident {
    /// Whether it has nothing to do, and will leave memory after a while.
    pub fn is_idle(&self) -> bool {
        self.awake.is_empty()
    }
}

impl fmt::Display for Resident {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.namespace, self.id)?;
        if let Some(name) = self.id.name() {
            write!(f, " ({name:?})")?;
        }
        match &*self.awake {
            [] => write!(f, ": idle for {:.1?}", self.last_turn)?,
            [first, others @ ..] => {
                write!(f, ": awake for {first}")?;
                others.iter().try_for_each(|other| write!(f, ", {other}"))?;
            }
        }
        write!(f, "; last woken by a {}, {:.1?} ago", self.woken_by.names().0, self.woken)
    }
}

/// Reasons of one object, added up by kind.
#[derive(Default)]
pub(crate) struct Reasons(std::collections::BTreeMap<Awake, Reason>);

impl Reasons {
    /// Adds `count` of a kind; the first with an age is the oldest.
    pub(crate) fn add(&mut self, why: Awake, count: usize, age: Option<Duration>) {
        if count > 0 {
            let new = Reason { why, count: 0, oldest: age };
            self.0.entry(why).or_insert(new).count += count;
        }
    }

    pub(crate) fn into_vec(self) -> Vec<Reason> {
        self.0.into_values().collect()
    }
}
