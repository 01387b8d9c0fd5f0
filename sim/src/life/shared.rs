//! What objects, clients and driver of a life know together; it outlives processes.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::ops::{Deref, DerefMut};
use std::rc::Rc;

use anyhow::{Result, ensure};
use dormouse_scheduler::{Error, SocketLimits};

use super::body::Exchanges;
use super::ghost::Ghost;
use super::lines::Lines;
use super::work::Works;
use crate::plan::{Plan, Turn};
use crate::world::World;

/// States that a long run must have been in; each is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "their names say it")]
pub enum Mark {
    LostUnacknowledged,
    EvictedWhileDirty,
    CalledFromAnObject,
    TransactionCommitted,
    TransactionRolledBack,
    SavepointRolledBack,
    SectionRan,
    Aborted,
    Panicked,
    AlarmFired,
    AlarmRetried,
    AlarmGivenUp,
    AlarmSetWhileItsHandlerRuns,
    AlarmFoundAfterAReset,
    CallWasDropped,
    ErrorWasAnswered,
    WaitedForStorage,
    CrashInFlight,
    CrashWhileOpening,
    TailDropped,
    Conflict,
    OpeningFailed,
    ShardPoisoned,
    RefusedForSpace,
    RefusedByAFullMailbox,
    RefusedForMemory,
    RefusedByABusyObject,
    LeftWhenIdle,
    TransactionDropped,
    DamageRefused,
    DamageContained,
    DamageHarmless,
    OrdinarySocket,
    SocketOutlivedItsObject,
    EndOutlivedItsObject,
    WokeWithSockets,
    AutoResponse,
    AnsweredForASleeper,
    SocketClosed,
    SocketLost,
    LostInSilence,
    SocketBroken,
    SocketsReset,
    SlowReader,
    TooManySockets,
    CutInsideAFrame,
    FrameHeldInACrash,
    SegmentCleaned,
    SegmentRecycled,
    MoveOvertaken,
    CrashWhileCleaning,
    Compacted,
    ReadInParts,
    TreeUpdated,
    ReadLater,
    DeletedWhileDirty,
    DeletedWithAnAlarm,
    DeletedWithSockets,
    DeletedInACrash,
    DeletedBesideAnother,
    BodyWhole,
    BodyCutByItsSender,
    BodyCutByAReset,
    BodyReaderLeft,
    BodyWaitedForRoom,
    BodyInACrash,
    WorkAwaited,
    WorkPanicked,
    WorkLeftAlone,
    WorkBesideOthers,
    ConnectionRested,
    WorkOfAResetObject,
    FreedOnAFullDisk,
}

impl Mark {
    /// All of them.
    pub const ALL: [Self; 73] = [
        Self::LostUnacknowledged,
        Self::EvictedWhileDirty,
        Self::CalledFromAnObject,
        Self::TransactionCommitted,
        Self::TransactionRolledBack,
        Self::SavepointRolledBack,
        Self::SectionRan,
        Self::Aborted,
        Self::Panicked,
        Self::AlarmFired,
        Self::AlarmRetried,
        Self::AlarmGivenUp,
        Self::AlarmSetWhileItsHandlerRuns,
        Self::AlarmFoundAfterAReset,
        Self::CallWasDropped,
        Self::ErrorWasAnswered,
        Self::WaitedForStorage,
        Self::CrashInFlight,
        Self::CrashWhileOpening,
        Self::TailDropped,
        Self::Conflict,
        Self::OpeningFailed,
        Self::ShardPoisoned,
        Self::RefusedForSpace,
        Self::RefusedByAFullMailbox,
        Self::RefusedForMemory,
        Self::RefusedByABusyObject,
        Self::LeftWhenIdle,
        Self::TransactionDropped,
        Self::DamageRefused,
        Self::DamageContained,
        Self::DamageHarmless,
        Self::OrdinarySocket,
        Self::SocketOutlivedItsObject,
        Self::EndOutlivedItsObject,
        Self::WokeWithSockets,
        Self::AutoResponse,
        Self::AnsweredForASleeper,
        Self::SocketClosed,
        Self::SocketLost,
        Self::LostInSilence,
        Self::SocketBroken,
        Self::SocketsReset,
        Self::SlowReader,
        Self::TooManySockets,
        Self::CutInsideAFrame,
        Self::FrameHeldInACrash,
        Self::SegmentCleaned,
        Self::SegmentRecycled,
        Self::MoveOvertaken,
        Self::CrashWhileCleaning,
        Self::Compacted,
        Self::ReadInParts,
        Self::TreeUpdated,
        Self::ReadLater,
        Self::DeletedWhileDirty,
        Self::DeletedWithAnAlarm,
        Self::DeletedWithSockets,
        Self::DeletedInACrash,
        Self::DeletedBesideAnother,
        Self::BodyWhole,
        Self::BodyCutByItsSender,
        Self::BodyCutByAReset,
        Self::BodyReaderLeft,
        Self::BodyWaitedForRoom,
        Self::BodyInACrash,
        Self::WorkAwaited,
        Self::WorkPanicked,
        Self::WorkLeftAlone,
        Self::WorkBesideOthers,
        Self::ConnectionRested,
        Self::WorkOfAResetObject,
        Self::FreedOnAFullDisk,
    ];
}

/// Bounds of a few frames, and of a few sockets.
const TINY: SocketLimits = SocketLimits {
    per_object: 3,
    message_bytes: 1000,
    incoming_bytes: 300,
    outgoing_bytes: 500,
    ..SocketLimits::PRODUCTION
};

/// How often a life was in each [`Mark`], by its number.
#[derive(Clone, Copy, Debug)]
pub struct Marks([u64; Mark::ALL.len()]);

impl Default for Marks {
    fn default() -> Self {
        Self([0; Mark::ALL.len()])
    }
}

impl Deref for Marks {
    type Target = [u64];

    fn deref(&self) -> &[u64] {
        &self.0
    }
}

impl DerefMut for Marks {
    fn deref_mut(&mut self) -> &mut [u64] {
        &mut self.0
    }
}

pub(super) struct Shared {
    pub(super) world: World,
    pub(super) ghosts: RefCell<BTreeMap<String, Ghost>>,
    /// By request: the object that handled it, and how many of its groups the answer stands for.
    pub(super) ended: RefCell<BTreeMap<u64, (String, u64)>>,
    begun: RefCell<BTreeSet<u64>>,
    /// By client and object: the last request that arrived.
    arrived: RefCell<BTreeMap<(u64, String), u64>>,
    next: Cell<u64>,
    pub(super) alarms: Vec<Turn>,
    /// Nothing more is to be asked of alarms.
    pub(super) quiet: Cell<bool>,
    /// The disk fails: errors are to be expected, and resets at any time.
    pub(super) lenient: Cell<bool>,
    pub(super) closing: Cell<bool>,
    /// Objects that a client has dropped from memory.
    pub(super) evicting: RefCell<BTreeSet<String>>,
    /// The latest time that the wall clock showed.
    pub(super) wall_max_ms: Cell<u64>,
    /// It was moved.
    pub(super) jumped: Cell<bool>,
    /// Whether the plan has any socket.
    pub(super) sockets: bool,
    pub(super) socket_limits: SocketLimits,
    /// Those of the process that lives now.
    pub(super) lines: RefCell<Lines>,
    /// Requests of the process whose bodies come chunk by chunk.
    pub(super) exchanges: RefCell<Exchanges>,
    /// Work that has not begun.
    pub(super) works: RefCell<Works>,
    pub(super) operations: Cell<u64>,
    pub(super) writes: Cell<u64>,
    pub(super) marks: RefCell<Marks>,
    pub(super) failure: RefCell<Option<String>>,
    log: Option<RefCell<Vec<String>>>,
}

thread_local! {
    /// The life that this thread lives: objects are built from their state alone.
    pub(super) static LIFE: RefCell<Option<Rc<Shared>>> = const { RefCell::new(None) };
}

pub(super) fn shared() -> Rc<Shared> {
    LIFE.with_borrow(|life| life.clone().expect("objects run within a life"))
}

impl Shared {
    pub(super) fn new(world: World, plan: &Plan, keep_log: bool) -> Rc<Self> {
        Rc::new(Self {
            world,
            ghosts: RefCell::default(),
            ended: RefCell::default(),
            begun: RefCell::default(),
            arrived: RefCell::default(),
            next: Cell::new(1),
            alarms: plan.alarms.clone(),
            quiet: Cell::new(false),
            lenient: Cell::new(plan.faults.fails()),
            closing: Cell::new(false),
            evicting: RefCell::default(),
            wall_max_ms: Cell::new(0),
            jumped: Cell::new(false),
            sockets: plan.has_sockets(),
            socket_limits: if plan.tiny_sockets { TINY } else { SocketLimits::PRODUCTION },
            lines: RefCell::default(),
            exchanges: RefCell::default(),
            works: RefCell::default(),
            operations: Cell::new(0),
            writes: Cell::new(0),
            marks: RefCell::default(),
            failure: RefCell::new(None),
            log: keep_log.then(RefCell::default),
        })
    }

    pub(super) fn number(&self) -> u64 {
        let number = self.next.get();
        self.next.set(number + 1);
        number
    }

    pub(super) fn fail(&self, text: impl Display) {
        self.note(|| format!("FAILED {text}"));
        self.failure.borrow_mut().get_or_insert_with(|| text.to_string());
    }

    /// What happened is wrong, unless the disk fails.
    pub(super) fn fail_if_strict(&self, text: impl Display) {
        if !self.lenient.get() {
            self.fail(text);
        }
    }

    pub(super) fn check(&self, what: &str, result: Result<()>) {
        if let Err(error) = result {
            self.fail(format!("{what}: {error:#}"));
        }
    }

    pub(super) fn mark(&self, mark: Mark) {
        self.marks.borrow_mut()[mark as usize] += 1;
    }

    pub(super) fn count(&self, wrote: bool) {
        self.operations.set(self.operations.get() + 1);
        self.writes.set(self.writes.get() + u64::from(wrote));
    }

    /// Adds a line to the log, where one is kept: time, part of the hash so far, what happened.
    pub(super) fn note(&self, line: impl FnOnce() -> String) {
        if let Some(log) = &self.log {
            let at = self.world.now().as_micros();
            let hash = self.world.trace_hash() & 0xffff;
            log.borrow_mut().push(format!("{at:>12} us {hash:04x}  {}", line()));
        }
    }

    pub(super) fn take_log(&self) -> Vec<String> {
        self.log.as_ref().map(|log| std::mem::take(&mut *log.borrow_mut())).unwrap_or_default()
    }

    /// Runs `use_it` on what is known of an object, and keeps what is wrong.
    pub(super) fn on<T: Default>(
        &self,
        object: &str,
        use_it: impl FnOnce(&mut Ghost) -> Result<T>,
    ) -> T {
        let mut ghosts = self.ghosts.borrow_mut();
        if !ghosts.contains_key(object) {
            match Ghost::new() {
                Ok(ghost) => drop(ghosts.insert(object.to_owned(), ghost)),
                Err(error) => {
                    self.fail(format!("the reference: {error:#}"));
                    return T::default();
                }
            }
        }
        let result = use_it(ghosts.get_mut(object).expect("just made"));
        drop(ghosts);
        result.unwrap_or_else(|error| {
            self.fail(format!("object {object}: {error:#}"));
            T::default()
        })
    }

    /// A request arrives at its object: once, and in the order in which its client made them.
    pub(super) fn arrives(&self, object: &str, token: u64, client: Option<u64>) -> Result<()> {
        ensure!(self.begun.borrow_mut().insert(token), "request {token} came twice");
        if let Some(client) = client {
            let last = self.arrived.borrow_mut().insert((client, object.to_owned()), token);
            ensure!(last.is_none_or(|last| last < token), "request {token} came after {last:?}");
        }
        Ok(())
    }

    /// A call was refused: there is no room for it now.
    pub(super) fn refused(&self, error: &Error) {
        // A request like one that a reset answers.
        self.count(false);
        self.mark(match error.code() {
            Some("memory-full") => Mark::RefusedForMemory,
            Some("object-overloaded") => Mark::RefusedByABusyObject,
            _ => Mark::RefusedByAFullMailbox,
        });
    }

    /// The answer of a request reached whoever made it.
    pub(super) fn answered(&self, token: u64, got: Option<u64>) {
        self.count(false);
        self.world.fold(&token.to_le_bytes());
        let ended = self.ended.borrow().get(&token).cloned();
        match (ended, got) {
            (_, Some(got)) if got != token => {
                self.fail(format!("request {token} got answer {got}"))
            }
            (Some((object, groups)), _) => self.on(&object, |ghost| {
                ghost.acknowledge(groups);
                Ok(())
            }),
            (None, _) => self.fail(format!("request {token} was answered before it ended")),
        }
    }
}
