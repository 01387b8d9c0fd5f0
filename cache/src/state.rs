//! What one object has in memory: its keys and alarm as the object sees them, and what of it the
//! disk does not have yet.
//!
//! A key is *dirty* from the write until a flush takes it, *in flight* until that flush is
//! durable, and clean otherwise. Values are in `keys` alone: a key in the dirty set that is not
//! there is a deletion, so that only the last value of a key is ever written.
//!
//! Invariants:
//!
//! - `Dirty::bytes` is the sum of what it stands for; `share` is the bytes of what is dirty and of what
//!   is in flight. Of all that is, `keys` knows whether it is there.
//! - `keys` holds no change of an open transaction; those are in `overlays`.
//! - `alarm` is what storage will hold once all that is dirty is written, `durable_alarm` what it
//!   holds now. While `deferred`, the alarm's handler runs and the object sees none.
//! - A deferred alarm was not set or deleted since its handler started.

use std::collections::BTreeMap;

use bytes::Bytes;
use dormouse_engine::{Batch, Contents, Origin, Resident, Version};

use crate::budget::{Budget, Share};
use crate::entries::Entries;
use crate::gate::output::OutputGate;
use crate::keys::{ENTRY_BYTES, Keys, Listing, Lookup};
use crate::ops::{AlarmRun, AlarmToo, Confirmation, Outcome, Read, Write};
use crate::ranges::Span;
use crate::txn::Overlays;
use dormouse_engine::List;

/// The state of one object.
pub(crate) struct State {
    keys: Keys,
    alarm: Option<u64>,
    durable_alarm: Option<u64>,
    deferred: bool,
    origin: Origin,
    version: Version,
    dirty: Dirty,
    in_flight: Option<InFlight>,
    /// What is dirty or in flight, as the core counts it.
    share: Share,
    gate: OutputGate,
    pub(crate) overlays: Overlays,
}

/// What a flush writes.
#[derive(Debug, Default)]
struct Dirty {
    keys: BTreeMap<Bytes, DirtyKey>,
    bytes: usize,
    delete_all: bool,
    alarm: bool,
}

#[derive(Clone, Copy, Debug)]
struct DirtyKey {
    /// What it counts for backpressure.
    bytes: usize,
    /// Whether its value is kept once it is durable.
    keeps: bool,
}

/// A flush on its way.
#[derive(Debug)]
struct InFlight {
    taken: Dirty,
    /// The alarm that storage holds once it is durable.
    alarm: Option<u64>,
}

impl Dirty {
    fn is_empty(&self) -> bool {
        self.keys.is_empty() && !self.delete_all && !self.alarm
    }

    fn insert(&mut self, key: Bytes, dirty: DirtyKey) {
        self.bytes += dirty.bytes;
        self.bytes -= self.keys.insert(key, dirty).map_or(0, |older| older.bytes);
    }

    /// Puts `older`, which was not written, under what is dirty now.
    fn put_under(&mut self, older: Self) {
        self.alarm |= older.alarm;
        if self.delete_all {
            return;
        }
        self.delete_all = older.delete_all;
        for (key, dirty) in older.keys {
            if !self.keys.contains_key(&key) {
                self.insert(key, dirty);
            }
        }
    }
}

impl State {
    /// Of an object that holds `contents` durably.
    pub(crate) fn new(contents: Contents, gate: OutputGate, budget: &Budget) -> Self {
        let map_bytes = contents.bytes();
        let Contents { version, alarm, origin, map } = contents;
        Self {
            keys: Keys::whole(map.into(), map_bytes),
            alarm,
            durable_alarm: alarm,
            deferred: false,
            origin,
            version,
            dirty: Dirty::default(),
            in_flight: None,
            share: Share::new(budget),
            gate,
            overlays: Overlays::default(),
        }
    }

    /// The same object, but of its keys none is known.
    pub(crate) fn in_parts(self) -> Self {
        Self { keys: Keys::unknown(), ..self }
    }

    /// The value that the object sees.
    #[inline]
    pub(crate) fn get(&mut self, key: &[u8], options: Read) -> Lookup {
        if self.overlays.is_empty() {
            return self.keys.get(key, options.caches());
        }
        match self.overlays.get(key) {
            Some(Some(value)) => Lookup::Value(value.clone()),
            Some(None) => Lookup::Absent,
            None => self.keys.get(key, options.caches()),
        }
    }

    /// The keys that the object sees in a range.
    pub(crate) fn list(&mut self, list: &List, options: Read) -> dormouse_engine::Result<Listing> {
        let Some(range) = list.resolve()? else { return Ok(Listing::All(Entries::default())) };
        Ok(self.keys.list(&range, &self.overlays, options.caches()))
    }

    /// What was read of the object as it was in an epoch; see [`Keys::learn`].
    pub(crate) fn learn(&mut self, epoch: u64, span: Span, entries: &[(Bytes, Bytes)]) {
        self.keys.learn(epoch, span, entries);
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.keys.epoch()
    }

    /// Forgets what is clean and takes more room than `max` bytes.
    pub(crate) fn trim(&mut self, max: usize) {
        let Self { keys, dirty, in_flight, share, .. } = self;
        let in_flight = in_flight.iter().flat_map(|flush| flush.taken.keys.keys());
        keys.trim(max.saturating_add(share.bytes()), dirty.keys.keys().chain(in_flight));
    }

    /// Sets a key or, with `None`, deletes it: in the innermost open transaction if there is one.
    /// Says whether the key was there, if that is known.
    pub(crate) fn write(
        &mut self,
        key: &[u8],
        value: Option<Bytes>,
        options: Write,
    ) -> Option<bool> {
        let confirmation = options.confirmation();
        if self.overlays.is_empty() {
            return self.write_through(key, value, confirmation, options.caches());
        }
        let existed = match self.get(key, Read::default()) {
            Lookup::Value(_) => Some(true),
            Lookup::Absent => Some(false),
            Lookup::Unknown => None,
        };
        self.overlays.write(key, value, confirmation);
        existed
    }

    /// The same, past all transactions.
    fn write_through(
        &mut self,
        key: &[u8],
        value: Option<Bytes>,
        confirmation: Confirmation,
        keeps: bool,
    ) -> Option<bool> {
        let value_bytes = value.as_ref().map_or(0, Bytes::len);
        let (existed, changed) = self.keys.write(key, value, keeps);
        let Some(owned) = changed else {
            self.unchanged(confirmation, |dirty| dirty.delete_all || dirty.keys.contains_key(key));
            return existed;
        };
        let bytes = ENTRY_BYTES + key.len() + value_bytes;
        self.dirty.insert(owned, DirtyKey { bytes, keeps });
        self.share_dirty();
        self.gate.written(confirmation);
        existed
    }

    /// A write found its value there already: it costs nothing. But if that value is still
    /// on the way as an unconfirmed write, and this one is confirmed, output waits from now on.
    fn unchanged(&mut self, confirmation: Confirmation, concerns: impl Fn(&Dirty) -> bool) {
        if confirmation == Confirmation::Unconfirmed {
            return;
        }
        if concerns(&self.dirty) {
            self.gate.written(confirmation);
        } else if self.in_flight.as_ref().is_some_and(|flush| concerns(&flush.taken)) {
            self.gate.confirm_in_flight();
        }
    }

    /// Empties the map at once; what was dirty need not be written any more.
    pub(crate) fn delete_all(&mut self, alarm: AlarmToo, confirmation: Confirmation) {
        assert!(self.overlays.is_empty());
        if alarm == AlarmToo::Clear {
            self.set_alarm_through(None, confirmation);
        }
        if self.keys.clear() {
            self.unchanged(confirmation, |dirty| dirty.delete_all || !dirty.keys.is_empty());
            return;
        }
        self.dirty.keys.clear();
        self.dirty.bytes = 0;
        self.dirty.delete_all = true;
        self.share_dirty();
        self.gate.written(confirmation);
    }

    /// The alarm that the object sees.
    pub(crate) fn alarm(&self) -> Option<u64> {
        match self.overlays.alarm() {
            Some(change) => change,
            None if self.deferred => None,
            None => self.alarm,
        }
    }

    /// Sets or clears the alarm, in the innermost open transaction if there is one.
    pub(crate) fn set_alarm(&mut self, at_ms: Option<u64>, confirmation: Confirmation) {
        match self.overlays.is_empty() {
            true => self.set_alarm_through(at_ms, confirmation),
            false => self.overlays.set_alarm(at_ms, confirmation),
        }
    }

    fn set_alarm_through(&mut self, at_ms: Option<u64>, confirmation: Confirmation) {
        // While its handler runs, setting the same time is a new alarm.
        if !self.deferred && self.alarm == at_ms {
            self.unchanged(confirmation, |dirty| dirty.alarm);
            return;
        }
        self.deferred = false;
        self.alarm = at_ms;
        self.dirty.alarm = true;
        self.gate.written(confirmation);
    }

    /// The alarm's handler is to run: for the alarm that is set, or for one whose change is not
    /// durable yet (R-626, T-147, T-148).
    pub(crate) fn alarm_begin(&mut self, scheduled_ms: u64) -> AlarmRun {
        assert!(!self.deferred, "one handler of an object runs at a time (R-614)");
        if self.alarm == Some(scheduled_ms) {
            self.deferred = true;
            AlarmRun::Run
        } else if self.durable_alarm == Some(scheduled_ms) {
            AlarmRun::Run
        } else {
            AlarmRun::Cancelled
        }
    }

    /// The handler's run ended.
    pub(crate) fn alarm_end(&mut self, outcome: Outcome) {
        if !self.deferred {
            return;
        }
        match outcome {
            Outcome::Failed => self.deferred = false,
            Outcome::Succeeded | Outcome::Abandoned => {
                self.set_alarm_through(None, Confirmation::Confirmed);
            }
        }
    }

    /// Commits the innermost transaction: into the one around it, or, in key order and in one
    /// step, into what the next flush writes.
    pub(crate) fn commit_overlay(&mut self) {
        let Some(overlay) = self.overlays.fold() else { return };
        for (key, change) in overlay.changes {
            self.write_through(&key, change.value, change.confirmation, true);
        }
        if let Some((at_ms, confirmation)) = overlay.alarm {
            self.set_alarm_through(at_ms, confirmation);
        }
    }

    /// Whether there is something that no flush has taken.
    pub(crate) fn is_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// Whether all is durable and no transaction is open.
    pub(crate) fn is_settled(&self) -> bool {
        self.dirty.is_empty() && self.in_flight.is_none() && self.overlays.is_empty()
    }

    /// What counts for backpressure.
    #[inline]
    pub(crate) fn dirty_bytes(&self) -> usize {
        self.share.bytes()
    }

    /// What is dirty or in flight has changed.
    fn share_dirty(&mut self) {
        let in_flight = self.in_flight.as_ref().map_or(0, |flush| flush.taken.bytes);
        self.share.set(self.dirty.bytes + in_flight);
    }

    /// What keys and values take, with what keeps them.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.keys.memory_bytes() + self.dirty_bytes()
    }

    pub(crate) fn version(&self) -> Version {
        self.version
    }

    /// The whole object, if all of it is in memory.
    pub(crate) fn resident(&self) -> Option<&dyn Resident> {
        self.keys.all().map(|_| self as &dyn Resident)
    }

    pub(crate) fn stored_alarm(&self) -> Option<u64> {
        self.alarm
    }

    /// A flush starts: takes all that is dirty. Delete-all first, then keys in order.
    pub(crate) fn start_flush(&mut self) -> Batch {
        assert!(self.in_flight.is_none(), "one flush at a time (R-356)");
        assert!(!self.dirty.is_empty());
        assert_eq!(self.share.bytes(), self.dirty.bytes);
        let taken = std::mem::take(&mut self.dirty);
        let keys = taken.keys.len();
        let mut batch = Batch::with_capacity(keys, taken.bytes - keys * ENTRY_BYTES);
        if self.keys.all().is_none() {
            // No resident says it, and there may be nothing left of the object that does.
            batch = batch.with_origin(self.origin.clone());
        }
        if taken.delete_all {
            batch = batch.delete_all();
        }
        for key in taken.keys.keys() {
            batch = match self.keys.dirty(key) {
                Some(value) => batch.put(key, value),
                None if taken.delete_all => batch,
                None => batch.delete(key),
            };
        }
        if taken.alarm {
            batch = match self.alarm {
                Some(at_ms) => batch.set_alarm(at_ms),
                None => batch.delete_alarm(),
            };
        }
        let alarm = if taken.alarm { self.alarm } else { self.durable_alarm };
        self.in_flight = Some(InFlight { taken, alarm });
        self.gate.started();
        batch
    }

    /// The flush is durable. The gate is told by the caller, once nothing is borrowed.
    pub(crate) fn finish_flush(&mut self, version: Version) {
        let flush = self.in_flight.take().expect("a flush is in flight");
        self.durable_alarm = flush.alarm;
        assert!(version > self.version, "every commit raises the version");
        self.version = version;
        self.share_dirty();
        let Self { keys, dirty, .. } = self;
        let leaves = |(key, taken): (Bytes, DirtyKey)| {
            (!taken.keeps && !dirty.keys.contains_key(&key)).then_some(key)
        };
        keys.forget(flush.taken.keys.into_iter().filter_map(leaves));
    }

    /// The flush did not happen: what it took is dirty again, under what was written since.
    pub(crate) fn retake_flush(&mut self) {
        let flush = self.in_flight.take().expect("a flush is in flight");
        self.dirty.put_under(flush.taken);
        self.share_dirty();
    }

    /// A flush failed for good: what was not written is lost by design.
    pub(crate) fn discard(&mut self) {
        self.dirty = Dirty::default();
        self.in_flight = None;
        self.share_dirty();
    }
}

impl Resident for State {
    fn size(&self) -> (usize, usize) {
        self.keys.size()
    }

    fn visit(&self, visit: &mut dyn FnMut(&[u8], &[u8])) {
        self.keys.all().expect("only a whole object is shown").visit(visit);
    }

    fn origin(&self) -> &Origin {
        &self.origin
    }
}
