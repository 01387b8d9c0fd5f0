//! From an object's id to where its newest state lies, and its alarm.
//!
//! In memory for now, rebuilt by replay. It changes when a batch is durable, never before.

use std::collections::BTreeSet;

use crate::format::frame::{Address, Frame, Kind};
use crate::ids::{ObjectId, Version};

/// Addresses that one entry holds at most.
pub const CHAIN_MAX: usize = 4;

/// A map keyed by object ids with a fixed hash. Its order means nothing: never show it.
#[expect(clippy::disallowed_types, reason = "the hasher is fixed, and no order is shown")]
pub type IdMap<V> = std::collections::HashMap<ObjectId, V, foldhash::fast::FixedState>;

/// Where one object's state lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    chain: [Option<Address>; CHAIN_MAX],
    /// The newest commit's version.
    pub version: Version,
    /// The alarm, ms since 1970.
    pub alarm: Option<u64>,
    /// Bytes of the image at the start of the chain, as far as known.
    pub image_bytes: u32,
    /// Bytes of the deltas after it.
    pub delta_bytes: u32,
    /// How many chains are nested in the first frame.
    pub depth: u16,
    /// Whether a frame that it needs was lost: the object answers `Corrupt`.
    pub damaged: bool,
}

impl Entry {
    /// The entry of an object whose whole state is one image.
    pub fn image(address: Address, version: Version, alarm: Option<u64>) -> Self {
        let chain = [Some(address), None, None, None];
        let image_bytes = address.bytes;
        Self { chain, version, alarm, image_bytes, delta_bytes: 0, depth: 0, damaged: false }
    }

    /// The entry of an object of which nothing can be read any more.
    pub fn lost(version: Version) -> Self {
        Self {
            chain: [None; CHAIN_MAX],
            version,
            alarm: None,
            image_bytes: 0,
            delta_bytes: 0,
            depth: 0,
            damaged: true,
        }
    }

    /// The frames to read, oldest first.
    pub fn chain(&self) -> impl DoubleEndedIterator<Item = Address> + '_ {
        self.chain.iter().flatten().copied()
    }

    /// The newest frame.
    pub fn newest(&self) -> Option<Address> {
        self.chain().next_back()
    }

    /// Whether a further delta must carry the chain itself.
    pub fn is_full(&self) -> bool {
        self.chain[CHAIN_MAX - 1].is_some()
    }

    /// The entry after a delta at `address`; `nested`: the delta carries the chain itself.
    pub fn with_delta(
        &self,
        address: Address,
        version: Version,
        alarm: Option<u64>,
        nested: bool,
    ) -> Self {
        assert!(version > self.version);
        let mut entry = *self;
        entry.version = version;
        entry.alarm = alarm;
        entry.delta_bytes = entry.delta_bytes.saturating_add(address.bytes);
        if nested {
            entry.chain = [Some(address), None, None, None];
            entry.depth = entry.depth.saturating_add(1);
        } else {
            let free = entry.chain.iter_mut().find(|slot| slot.is_none());
            *free.expect("the writer nests a full chain") = Some(address);
        }
        entry
    }

    /// Replaces addresses, as `resolve` says.
    pub(crate) fn resolve(&mut self, resolve: impl Fn(Address) -> Address) {
        for address in self.chain.iter_mut().flatten() {
            *address = resolve(*address);
        }
    }
}

/// The directory of one shard.
#[derive(Debug, Default)]
pub struct Directory {
    entries: IdMap<Entry>,
    alarms: BTreeSet<(u64, ObjectId)>,
}

impl Directory {
    /// The object's entry.
    pub fn get(&self, id: &ObjectId) -> Option<&Entry> {
        self.entries.get(id)
    }

    /// Sets or removes the object's entry.
    pub fn set(&mut self, id: ObjectId, entry: Option<Entry>) {
        let old = match entry {
            Some(entry) => self.entries.insert(id, entry),
            None => self.entries.remove(&id),
        };
        let old_alarm = old.and_then(|old| old.alarm);
        let new_alarm = entry.and_then(|new| new.alarm);
        if old_alarm != new_alarm {
            old_alarm.into_iter().for_each(|at| assert!(self.alarms.remove(&(at, id))));
            new_alarm.into_iter().for_each(|at| assert!(self.alarms.insert((at, id))));
        }
    }

    /// Marks an object as unreadable: a frame that it needs was in a lost batch.
    pub fn damage(&mut self, id: ObjectId) {
        let entry = match self.entries.get(&id) {
            Some(entry) => Entry { damaged: true, ..*entry },
            None => Entry::lost(Version(1)),
        };
        self.set(id, Some(entry));
    }

    /// Enters a frame that replay accepted. A part counts only through its commit's last frame, a
    /// rewrite only if it holds the version that is there.
    pub fn replay(&mut self, frame: &Frame<'_>, address: Address) {
        if frame.part {
            return;
        }
        let before = self.get(&frame.object).copied();
        let after = match (frame.kind, before) {
            (Kind::Image, Some(before)) if frame.rewrite && before.version != frame.version => {
                return;
            }
            (Kind::Image, None) if frame.rewrite => return,
            (Kind::Image, _) => {
                let empty = frame.payload.is_empty() && frame.chain.is_none();
                let exists = !empty || frame.alarm.is_some();
                exists.then(|| Entry::image(address, frame.version, frame.alarm))
            }
            (Kind::Delta, Some(before)) if before.damaged => {
                Some(Entry { version: frame.version, alarm: frame.alarm, ..before })
            }
            (Kind::Delta, Some(before)) if frame.chain.is_some() || !before.is_full() => {
                let nested = frame.chain.is_some();
                Some(before.with_delta(address, frame.version, frame.alarm, nested))
            }
            (Kind::Delta, _) => Some(Entry::lost(frame.version)),
        };
        self.set(frame.object, after);
    }

    /// The earliest alarm.
    pub fn next_alarm(&self) -> Option<(u64, ObjectId)> {
        self.alarms.first().copied()
    }

    /// Alarms at or before `now_ms`, earliest first, at most `max`.
    pub fn alarms_due(&self, now_ms: u64, max: usize) -> Vec<(u64, ObjectId)> {
        self.alarms.iter().take_while(|(at, _)| *at <= now_ms).take(max).copied().collect()
    }

    /// Number of objects.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Entries in the order of their ids, from the one after `after` on; at most `max`.
    pub fn page(&self, after: Option<ObjectId>, max: usize) -> Vec<(ObjectId, Entry)> {
        let later = |id: &&ObjectId| after.is_none_or(|after| **id > after);
        let mut ids: Vec<_> = self.entries.keys().filter(later).copied().collect();
        if ids.len() > max {
            ids.select_nth_unstable(max);
            ids.truncate(max);
        }
        ids.sort_unstable();
        ids.into_iter().map(|id| (id, self.entries[&id])).collect()
    }

    /// All ids, sorted.
    pub fn ids(&self) -> Vec<ObjectId> {
        let mut ids: Vec<_> = self.entries.keys().copied().collect();
        ids.sort_unstable();
        ids
    }

    /// The ids of unreadable objects, sorted.
    pub fn damaged(&self) -> Vec<ObjectId> {
        let damaged = self.entries.iter().filter(|(_, entry)| entry.damaged);
        let mut ids: Vec<_> = damaged.map(|(id, _)| *id).collect();
        ids.sort_unstable();
        ids
    }
}
