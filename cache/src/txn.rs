//! Transactions: changes that are seen at once, and become part of the object's state together or
//! not at all (R-401–R-426, as section 0 of the contract changes them).
//!
//! Each open transaction is an overlay over the object's map; nested ones stack up as savepoints.
//! Every storage operation of the object, through whichever handle, goes to the innermost one. The
//! map itself stays as it was: a flush that runs meanwhile writes no change of a transaction, and
//! waiting for it inside of one can't deadlock.
//!
//! That no other event runs meanwhile is the input gate's (a critical section, R-401), so
//! transactions never conflict.

use std::cell::Cell;
use std::collections::BTreeMap;

use bytes::Bytes;
use dormouse_engine::{Error, Host, Kind, Result};

use crate::answer::Answer;
use crate::cache::ActorCache;
use crate::entries::Entries;
use crate::flush::Backing;
use crate::ops::{AlarmToo, Confirmation, Read, Write, code, refuse_if};
use dormouse_engine::list::{List, OverlayEntry, Range};

/// The overlays of all open transactions, outermost first.
#[derive(Debug, Default)]
pub(crate) struct Overlays {
    stack: Vec<Overlay>,
    opened: u64,
}

/// The pending changes of one transaction.
#[derive(Debug)]
pub(crate) struct Overlay {
    number: u64,
    pub(crate) changes: BTreeMap<Bytes, Change>,
    pub(crate) alarm: Option<(Option<u64>, Confirmation)>,
}

/// A pending change of a key.
#[derive(Debug)]
pub(crate) struct Change {
    /// The new value, `None` for a deletion.
    pub(crate) value: Option<Bytes>,
    pub(crate) confirmation: Confirmation,
}

impl Overlays {
    pub(crate) fn is_empty(&self) -> bool {
        self.stack.is_empty()
    }

    /// What the innermost transaction that changed the key says: a value, or that it is deleted.
    pub(crate) fn get(&self, key: &[u8]) -> Option<Option<&Bytes>> {
        let change = self.stack.iter().rev().find_map(|overlay| overlay.changes.get(key))?;
        Some(change.value.as_ref())
    }

    pub(crate) fn alarm(&self) -> Option<Option<u64>> {
        self.stack.iter().rev().find_map(|overlay| overlay.alarm).map(|(at_ms, _)| at_ms)
    }

    /// All overlays as one, in a range, by ascending keys.
    pub(crate) fn flatten(&self, range: &Range) -> Vec<OverlayEntry<'_>> {
        let mut flat = BTreeMap::new();
        for overlay in &self.stack {
            for (key, change) in overlay.changes.range::<[u8], _>(range.bounds()) {
                flat.insert(key, change.value.as_ref());
            }
        }
        flat.into_iter().collect()
    }

    pub(crate) fn write(&mut self, key: &[u8], value: Option<Bytes>, confirmation: Confirmation) {
        self.top().write(Bytes::copy_from_slice(key), Change { value, confirmation });
    }

    pub(crate) fn set_alarm(&mut self, at_ms: Option<u64>, confirmation: Confirmation) {
        self.top().set_alarm(at_ms, confirmation);
    }

    /// Ends the innermost transaction by commit: its changes go into the one around it, or are
    /// returned if there is none.
    pub(crate) fn fold(&mut self) -> Option<Overlay> {
        let overlay = self.stack.pop().expect("a transaction is open");
        let Some(parent) = self.stack.last_mut() else { return Some(overlay) };
        for (key, change) in overlay.changes {
            parent.write(key, change);
        }
        if let Some((at_ms, confirmation)) = overlay.alarm {
            parent.set_alarm(at_ms, confirmation);
        }
        None
    }

    fn top(&mut self) -> &mut Overlay {
        self.stack.last_mut().expect("a transaction is open")
    }

    fn open(&mut self) -> u64 {
        self.opened += 1;
        let (changes, alarm) = (BTreeMap::new(), None);
        self.stack.push(Overlay { number: self.opened, changes, alarm });
        self.opened
    }

    fn place(&self, number: u64) -> Option<usize> {
        self.stack.iter().position(|overlay| overlay.number == number)
    }

    /// Ends a transaction, with all inside it, by rollback.
    fn discard(&mut self, number: u64) {
        if let Some(place) = self.place(number) {
            self.stack.truncate(place);
        }
    }
}

impl Overlay {
    /// A change over an earlier one of the same transaction: confirmed if either is.
    fn write(&mut self, key: Bytes, mut change: Change) {
        if let Some(old) = self.changes.get(&key) {
            change.confirmation = change.confirmation.max(old.confirmation);
        }
        self.changes.insert(key, change);
    }

    fn set_alarm(&mut self, at_ms: Option<u64>, confirmation: Confirmation) {
        let old = self.alarm.map_or(Confirmation::Unconfirmed, |(_, old)| old);
        self.alarm = Some((at_ms, confirmation.max(old)));
    }
}

/// How a transaction ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Next: committed, rolled back.
    Open,
    Committed,
    RolledBack,
}

/// An open transaction; a savepoint if one is open around it. Dropped without commit, it is
/// rolled back, with all that are open inside it.
///
/// Operations answer as those of [`ActorCache`]; after the end they fail with the codes
/// [`code::TRANSACTION_ROLLED_BACK`] and [`code::TRANSACTION_ENDED`].
pub struct Transaction<E: Host, B: Backing> {
    cache: ActorCache<E, B>,
    number: u64,
    phase: Cell<Phase>,
}

impl<E: Host, B: Backing> std::fmt::Debug for Transaction<E, B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Transaction").field("phase", &self.phase()).finish_non_exhaustive()
    }
}

impl<E: Host, B: Backing> Transaction<E, B> {
    pub(crate) fn begin(cache: ActorCache<E, B>) -> Self {
        let number = cache.0.state.borrow_mut().overlays.open();
        Self { cache, number, phase: Cell::new(Phase::Open) }
    }

    /// See [`ActorCache::get`].
    pub fn get(&self, key: &[u8], options: Read) -> Answer<Option<Bytes>> {
        self.open(|cache| cache.get(key, options))
    }

    /// See [`ActorCache::get_many`].
    pub fn get_many(&self, keys: &[&[u8]], options: Read) -> Answer<Vec<(Bytes, Bytes)>> {
        self.open(|cache| cache.get_many(keys, options))
    }

    /// See [`ActorCache::list`].
    pub fn list(&self, list: &List, options: Read) -> Answer<Entries> {
        self.open(|cache| cache.list(list, options))
    }

    /// See [`ActorCache::put`]. Never gives backpressure.
    pub fn put(&self, key: &[u8], value: Bytes, options: Write) -> Answer<()> {
        self.open(|cache| cache.put(key, value, options))
    }

    /// See [`ActorCache::put_many`].
    pub fn put_many(&self, entries: &[(Bytes, Bytes)], options: Write) -> Answer<()> {
        self.open(|cache| cache.put_many(entries, options))
    }

    /// See [`ActorCache::delete`].
    pub fn delete(&self, key: &[u8], options: Write) -> Answer<bool> {
        self.open(|cache| cache.delete(key, options))
    }

    /// See [`ActorCache::delete_many`].
    pub fn delete_many(&self, keys: &[&[u8]], options: Write) -> Answer<usize> {
        self.open(|cache| cache.delete_many(keys, options))
    }

    /// Always fails, with [`code::DELETE_ALL_IN_TRANSACTION`]; the transaction goes on.
    pub fn delete_all(&self, alarm: AlarmToo, options: Write) -> Answer<()> {
        self.open(|cache| cache.delete_all(alarm, options))
    }

    /// See [`ActorCache::get_alarm`].
    pub fn get_alarm(&self, options: Read) -> Answer<Option<u64>> {
        self.open(|cache| cache.get_alarm(options))
    }

    /// See [`ActorCache::set_alarm`].
    pub fn set_alarm(&self, at_ms: Option<u64>, options: Write) -> Answer<()> {
        self.open(|cache| cache.set_alarm(at_ms, options))
    }

    /// Whether it was rolled back, by itself or with the one around it.
    pub fn is_rolled_back(&self) -> bool {
        self.phase() == Phase::RolledBack
    }

    /// Discards all changes; the second time does nothing.
    ///
    /// Errors: [`code::TRANSACTION_ENDED`] after a commit, [`code::TRANSACTION_NESTED_OPEN`] while
    /// a transaction inside it is open.
    pub fn rollback(&self) -> Result<()> {
        match self.phase() {
            // One that was lost with the one around it is from now on one that was rolled back.
            Phase::RolledBack => {
                self.phase.set(Phase::RolledBack);
                Ok(())
            }
            Phase::Committed => Err(self.ended()),
            Phase::Open => {
                self.check_innermost()?;
                self.discard();
                Ok(())
            }
        }
    }

    /// Makes all changes part of what is around: of the outer transaction, or of the object's
    /// state, where the next flush writes them together. The answer waits for
    /// backpressure only; durable they are when the output gate says so. After a
    /// [`rollback`](Self::rollback) it does nothing.
    ///
    /// Errors: as [`rollback`](Self::rollback); [`code::TRANSACTION_ROLLED_BACK`] if it was lost with
    /// the one around it, and its changes with it; the reason, after a shutdown.
    pub fn commit(&self) -> Answer<()> {
        match (self.phase.get(), self.phase()) {
            (Phase::RolledBack, _) => return Answer::ready(Ok(())),
            (_, Phase::RolledBack) => return Answer::ready(Err(Self::rolled_back())),
            (_, Phase::Committed) => return Answer::ready(Err(self.ended())),
            (_, Phase::Open) => {}
        }
        if let Err(error) = self.check_innermost().and_then(|()| self.cache.0.check_open()) {
            return Answer::ready(Err(error));
        }
        self.phase.set(Phase::Committed);
        self.cache.0.state.borrow_mut().commit_overlay();
        self.cache.written(())
    }

    fn open<T>(&self, operation: impl FnOnce(&ActorCache<E, B>) -> Answer<T>) -> Answer<T> {
        match self.phase() {
            Phase::Open => operation(&self.cache),
            Phase::Committed => Answer::ready(Err(self.ended())),
            Phase::RolledBack => Answer::ready(Err(Self::rolled_back())),
        }
    }

    fn phase(&self) -> Phase {
        let open = || self.cache.0.state.borrow().overlays.place(self.number).is_some();
        match self.phase.get() {
            Phase::Open if !open() => Phase::RolledBack,
            phase => phase,
        }
    }

    fn check_innermost(&self) -> Result<()> {
        let state = self.cache.0.state.borrow();
        let innermost = state.overlays.stack.last().map(|overlay| overlay.number);
        refuse_if(innermost != Some(self.number), code::TRANSACTION_NESTED_OPEN, || {
            "a transaction inside this one is still open".into()
        })
    }

    fn discard(&self) {
        self.phase.set(Phase::RolledBack);
        self.cache.0.state.borrow_mut().overlays.discard(self.number);
    }

    fn rolled_back() -> Error {
        let text = "the transaction was rolled back, or the one around it ended without it";
        Error::coded(Kind::Invalid, code::TRANSACTION_ROLLED_BACK, text)
    }

    fn ended(&self) -> Error {
        Error::coded(
            Kind::Invalid,
            code::TRANSACTION_ENDED,
            "the transaction was committed: its handle was used outside of its closure",
        )
    }
}

impl<E: Host, B: Backing> Drop for Transaction<E, B> {
    fn drop(&mut self) {
        if self.phase.get() == Phase::Open {
            self.discard();
        }
    }
}
