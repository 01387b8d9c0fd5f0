//! [`ActorCache`]: the storage operations of one object.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::fmt;
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use dormouse_engine::{Contents, Error, Host, Result, Version};

use crate::answer::Answer;
use crate::budget::Budget;
use crate::entries::Entries;
use crate::flush::{self, Backing};
use crate::gate::input::InputGate;
use crate::gate::output::OutputGate;
use crate::keys::{Listing, Lookup};
use crate::limits::CacheLimits;
use crate::ops::{
    AlarmRun, AlarmToo, Outcome, Read, Write, check_count, check_key, check_keys, check_value,
    code, refuse_if,
};
use crate::reads::Reads;
use crate::state::State;
use crate::txn::Transaction;
use dormouse_engine::List;

/// The cache in front of one resident object's storage. Cheap to clone; one core's.
///
/// Errors of all operations: [`Kind::Invalid`](dormouse_engine::Kind::Invalid) with a
/// [`code`] for a broken limit or rule, checked before anything is applied; the reason of
/// a [shutdown](Self::shutdown) or of a failed flush, for good.
///
/// While a transaction is open, all operations take part in the innermost one.
pub struct ActorCache<E: Host, B: Backing>(pub(crate) Rc<Inner<E, B>>);

pub(crate) struct Inner<E: Host, B: Backing> {
    pub(crate) env: E,
    pub(crate) backing: B,
    pub(crate) limits: Arc<CacheLimits>,
    pub(crate) budget: Budget,
    pub(crate) state: RefCell<State>,
    pub(crate) output: OutputGate,
    input: InputGate,
    /// Why no operation works any more: a shutdown or a failed flush, whichever was first.
    terminal: RefCell<Option<Error>>,
    /// An operation came after the end: the next flush fails and breaks the gate.
    doomed: Cell<bool>,
    flusher: Cell<bool>,
    pub(crate) reads: Reads,
}

impl<E: Host, B: Backing> Clone for ActorCache<E, B> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<E: Host, B: Backing> fmt::Debug for ActorCache<E, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ActorCache")
            .field("version", &self.version())
            .field("dirty_bytes", &self.dirty_bytes())
            .finish_non_exhaustive()
    }
}

impl<E: Host, B: Backing> ActorCache<E, B> {
    /// The cache of an object that holds `contents` durably, with a part in its core's `budget`. It
    /// must be the object's only way to its storage from now on.
    pub fn new(
        env: &E,
        backing: B,
        contents: Contents,
        limits: impl Into<Arc<CacheLimits>>,
        budget: &Budget,
    ) -> Self {
        Self::with(env, backing, limits, budget, |gate| State::new(contents, gate, budget))
    }

    /// The same, of an object whose keys and values are read when they are asked for: those of `head` are not
    /// looked at.
    pub fn in_parts(
        env: &E,
        backing: B,
        head: Contents,
        limits: impl Into<Arc<CacheLimits>>,
        budget: &Budget,
    ) -> Self {
        Self::with(env, backing, limits, budget, |gate| State::new(head, gate, budget).in_parts())
    }

    fn with(
        env: &E,
        backing: B,
        limits: impl Into<Arc<CacheLimits>>,
        budget: &Budget,
        state: impl FnOnce(OutputGate) -> State,
    ) -> Self {
        let limits = limits.into();
        limits.check();
        let output = OutputGate::default();
        Self(Rc::new(Inner {
            env: env.clone(),
            backing,
            limits,
            budget: budget.clone(),
            state: RefCell::new(state(output.clone())),
            output,
            input: InputGate::new(),
            terminal: RefCell::new(None),
            doomed: Cell::new(false),
            flusher: Cell::new(false),
            reads: Reads::default(),
        }))
    }

    /// The value of a key.
    pub fn get(&self, key: &[u8], options: Read) -> Answer<Option<Bytes>> {
        let found = self.read(|state, limits| {
            check_key(limits, key)?;
            Ok(state.get(key, options))
        });
        match found {
            Ok(Lookup::Value(value)) => Answer::ready(Ok(Some(value))),
            Ok(Lookup::Absent) => Answer::ready(Ok(None)),
            Ok(Lookup::Unknown) => Answer::waiting(self.0.fetch(key, options.caches())),
            Err(error) => Answer::ready(Err(error)),
        }
    }

    /// The keys that exist, ascending, each once.
    pub fn get_many(&self, keys: &[&[u8]], options: Read) -> Answer<Vec<(Bytes, Bytes)>> {
        let found = self.read(|state, limits| {
            check_keys(limits, keys)?;
            let keys: BTreeSet<&[u8]> = keys.iter().copied().collect();
            let (mut found, mut unknown) = (Vec::new(), Vec::new());
            for key in keys {
                match state.get(key, options) {
                    Lookup::Value(value) => found.push((Bytes::copy_from_slice(key), value)),
                    Lookup::Absent => {}
                    Lookup::Unknown => unknown.push(Bytes::copy_from_slice(key)),
                }
            }
            Ok((found, unknown))
        });
        match found {
            Err(error) => Answer::ready(Err(error)),
            Ok((found, unknown)) if unknown.is_empty() => Answer::ready(Ok(found)),
            Ok((mut found, unknown)) => {
                let read = self.0.fetch_all(&unknown, options.caches());
                Answer::waiting(async move {
                    found.extend(read.await?);
                    found.sort_by(|(one, _), (other, _)| one.cmp(other));
                    Ok(found)
                })
            }
        }
    }

    /// The keys of a range and their values, as of this call.
    pub fn list(&self, list: &List, options: Read) -> Answer<Entries> {
        match self.read(|state, _| state.list(list, options)) {
            Ok(Listing::All(entries)) => Answer::ready(Ok(entries)),
            Ok(Listing::Some(missing)) => Answer::waiting(self.0.fill(missing, options.caches())),
            Err(error) => Answer::ready(Err(error)),
        }
    }

    /// Sets a key. In effect at once; the answer waits only while too much is dirty (R-215,
    ///
    pub fn put(&self, key: &[u8], value: Bytes, options: Write) -> Answer<()> {
        self.write(|state, limits| {
            check_key(limits, key)?;
            check_value(limits, &value)?;
            state.write(key, Some(value), options);
            Ok(())
        })
    }

    /// Sets keys, all or none. A key given twice gets its last value.
    pub fn put_many(&self, entries: &[(Bytes, Bytes)], options: Write) -> Answer<()> {
        self.write(|state, limits| {
            check_count(limits, entries.len())?;
            for (key, value) in entries {
                check_key(limits, key)?;
                check_value(limits, value)?;
            }
            for (key, value) in entries {
                state.write(key, Some(value.clone()), options);
            }
            Ok(())
        })
    }

    /// Removes a key; whether it was there.
    pub fn delete(&self, key: &[u8], options: Write) -> Answer<bool> {
        self.delete_each(&[key], options).map(|existed| existed > 0)
    }

    /// Removes keys; how many were there, a key given twice counting once. Any
    /// number of keys. Those of which it is not in memory whether they are there are read; they are
    /// removed in any case.
    pub fn delete_many(&self, keys: &[&[u8]], options: Write) -> Answer<usize> {
        self.delete_each(keys, options)
    }

    fn delete_each(&self, keys: &[&[u8]], options: Write) -> Answer<usize> {
        let mut unknown = Vec::new();
        let deleted = self.write(|state, limits| {
            keys.iter().try_for_each(|key| check_key(limits, key))?;
            let mut existed = 0;
            for key in keys {
                match state.write(key, None, options) {
                    Some(there) => existed += usize::from(there),
                    None => unknown.push(Bytes::copy_from_slice(key)),
                }
            }
            Ok(existed)
        });
        if unknown.is_empty() {
            return deleted;
        }
        let counted = self.0.count(unknown);
        Answer::waiting(async move { Ok(counted.await? + deleted.await?) })
    }

    /// Removes all keys, and the alarm if so wished, in one atomic step.
    ///
    /// Errors: [`code::DELETE_ALL_IN_TRANSACTION`].
    pub fn delete_all(&self, alarm: AlarmToo, options: Write) -> Answer<()> {
        self.write(|state, _| {
            refuse_if(!state.overlays.is_empty(), code::DELETE_ALL_IN_TRANSACTION, || {
                "delete-all is not possible in a transaction".into()
            })?;
            state.delete_all(alarm, options.confirmation());
            Ok(())
        })
    }

    /// The alarm in milliseconds since 1970; none while its handler runs, unless that set one
    ///
    pub fn get_alarm(&self, _options: Read) -> Answer<Option<u64>> {
        Answer::ready(self.read(|state, _| Ok(state.alarm())))
    }

    /// Sets the alarm, in milliseconds since 1970, or clears it. A time in the past
    /// is taken as it is: putting the object's now in its place is the caller's.
    ///
    /// Errors: [`code::BAD_ARGUMENT`] for time zero.
    pub fn set_alarm(&self, at_ms: Option<u64>, options: Write) -> Answer<()> {
        self.write(|state, _| {
            refuse_if(at_ms == Some(0), code::BAD_ARGUMENT, || "an alarm is after 1970".into())?;
            state.set_alarm(at_ms, options.confirmation());
            Ok(())
        })
    }

    /// The handler of the alarm of `scheduled_ms` is to start: whether it may. If it runs
    /// for the alarm that is set, the object sees none from now on.
    ///
    /// # Panics
    /// If the handler runs already.
    pub fn alarm_begin(&self, scheduled_ms: u64) -> AlarmRun {
        if self.0.terminal().is_some() {
            return AlarmRun::Cancelled;
        }
        self.0.state.borrow_mut().alarm_begin(scheduled_ms)
    }

    /// The run that [`alarm_begin`](Self::alarm_begin) allowed is over. After success, wait at the
    /// output gate before it is reported.
    pub fn alarm_end(&self, outcome: Outcome) {
        if self.0.terminal().is_none() {
            self.0.state.borrow_mut().alarm_end(outcome);
            self.0.schedule();
        }
    }

    /// The alarm as storage has it, or will have it when all that is dirty is durable: also while
    /// its handler runs, and without the changes of open transactions.
    pub fn stored_alarm(&self) -> Option<u64> {
        self.0.state.borrow().stored_alarm()
    }

    /// Waits until all writes made before this call are durable, unconfirmed ones too; at once if
    /// there are none. Those of an open transaction are not made yet.
    pub fn sync(&self) -> Answer<()> {
        if let Err(error) = self.0.check_open() {
            return Answer::ready(Err(error));
        }
        let wait = self.0.output.wait_for_all();
        match wait.is_ready() {
            true => Answer::ready(Ok(())),
            false => Answer::waiting(wait),
        }
    }

    /// Opens a transaction; a savepoint in the innermost open one, if there is one.
    pub fn begin(&self) -> Transaction<E, B> {
        Transaction::begin(self.clone())
    }

    /// Waits while more is dirty than [`CacheLimits::dirty_bytes_max`], or in all objects of the core
    /// more than their [`Budget`] allows: before a turn of the object starts.
    pub fn backpressure(&self) -> Answer<()> {
        self.backpressured(())
    }

    /// The object's output gate.
    pub fn output_gate(&self) -> OutputGate {
        self.0.output.clone()
    }

    /// The object's input gate.
    pub fn input_gate(&self) -> InputGate {
        self.0.input.clone()
    }

    /// Ends the cache: a flush that has not started is not made, one in flight is left to finish;
    /// operations fail with `reason` from now on, and the first of them breaks the output gate.
    /// The first reason stays.
    pub fn shutdown(&self, reason: Error) {
        self.0.terminal.borrow_mut().get_or_insert(reason);
    }

    /// Returns the reason once the output gate is broken: the object must be reset.
    pub fn broken(&self) -> impl Future<Output = Error> + Unpin + use<E, B> {
        self.0.output.broken()
    }

    /// Why the output gate is broken, if it is.
    pub fn broken_reason(&self) -> Option<Error> {
        self.0.output.broken_reason()
    }

    /// Whether nothing is dirty or in flight and no transaction is open, so that nothing is lost
    /// when the object leaves memory.
    pub fn is_idle(&self) -> bool {
        !self.0.flusher.get() && self.0.state.borrow().is_settled()
    }

    /// Bytes of keys and values, and of what keeps them, that are not durable yet.
    pub fn dirty_bytes(&self) -> usize {
        self.0.state.borrow().dirty_bytes()
    }

    /// Bytes that the object's keys and values take in memory, with what keeps them.
    pub fn memory_bytes(&self) -> usize {
        self.0.state.borrow().memory_bytes()
    }

    /// The version of the newest durable state.
    pub fn version(&self) -> Version {
        self.0.state.borrow().version()
    }

    fn read<T>(&self, read: impl FnOnce(&mut State, &CacheLimits) -> Result<T>) -> Result<T> {
        self.0.check_open()?;
        read(&mut self.0.state.borrow_mut(), &self.0.limits)
    }

    fn write<T: 'static>(
        &self,
        write: impl FnOnce(&mut State, &CacheLimits) -> Result<T>,
    ) -> Answer<T> {
        let written = self.0.check_open().and_then(|()| {
            let mut state = self.0.state.borrow_mut();
            write(&mut state, &self.0.limits)
        });
        match written {
            Ok(value) => self.written(value),
            Err(error) => Answer::ready(Err(error)),
        }
    }

    /// Sees to it that what was written is flushed, and answers with `value`.
    pub(crate) fn written<T: 'static>(&self, value: T) -> Answer<T> {
        self.0.schedule();
        // A delete-all may have made room.
        self.0.budget.let_in();
        match self.0.state.borrow().overlays.is_empty() {
            true => self.backpressured(value),
            false => Answer::ready(Ok(value)),
        }
    }

    fn backpressured<T: 'static>(&self, value: T) -> Answer<T> {
        if !self.0.is_over() && !self.0.budget.is_full() {
            return Answer::ready(Ok(value));
        }
        let inner = self.0.clone();
        Answer::waiting(async move {
            loop {
                while inner.is_over() {
                    inner.output.wait_for_next().await?;
                }
                inner.budget.room().await;
                if let Some(reason) = inner.output.broken_reason() {
                    return Err(reason);
                }
                if !inner.is_over() {
                    return Ok(value);
                }
            }
        })
    }
}

impl<E: Host, B: Backing> Inner<E, B> {
    /// Why nothing works any more, if so.
    pub(crate) fn terminal(&self) -> Option<Error> {
        self.terminal.borrow().clone()
    }

    /// Refuses an operation after the end, and breaks the gate with the flush that it would have
    /// needed, so that a live request can't return what is stale.
    #[inline]
    pub(crate) fn check_open(self: &Rc<Self>) -> Result<()> {
        match self.terminal.borrow().is_none() {
            true => Ok(()),
            false => Err(self.refuse()),
        }
    }

    #[cold]
    fn refuse(self: &Rc<Self>) -> Error {
        let reason = self.terminal().expect("looked at");
        if self.output.broken_reason().is_none() {
            self.doomed.set(true);
            self.schedule();
        }
        reason
    }

    /// Whether too much of this object is dirty.
    #[inline]
    fn is_over(&self) -> bool {
        self.state.borrow().dirty_bytes() > self.limits.dirty_bytes_max
    }

    /// Whether a flush has something to do.
    pub(crate) fn flush_due(&self) -> bool {
        self.doomed.get() || self.state.borrow().is_dirty()
    }

    /// Starts the flusher if it has something to do and is not there.
    fn schedule(self: &Rc<Self>) {
        if self.flush_due() && !self.flusher.replace(true) {
            self.env.spawn("flush", flush::run(self.clone()));
        }
    }

    /// A flush failed: nothing works any more, nothing is flushed any more.
    pub(crate) fn break_with(&self, reason: Error) {
        let reason = self.terminal.borrow_mut().get_or_insert(reason).clone();
        self.state.borrow_mut().discard();
        self.doomed.set(false);
        self.output.break_with(reason);
        self.budget.let_in();
    }

    pub(crate) fn flusher_ended(&self) {
        assert!(self.flusher.replace(false));
    }
}
