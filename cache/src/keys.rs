//! [`Keys`]: the keys and values of an object that are in memory: all, or some.
//!
//! Of a whole object, what is not in the map is absent. Of one in parts ([`Parts`]) it is absent where its
//! key lies in a known range, and unknown elsewhere; what is in the map is known wherever it lies.
//!
//! What is known and clean is forgotten when it takes too much room: first what was not used since the
//! last time, then, if that is not enough, all of it. So what is used stays, for no more than a note of the
//! ranges that were used.
//!
//! Invariants:
//!
//! - `map_bytes` is the sum of the keys and values in the map.
//! - What was known and then forgotten has another `epoch` behind it: what was read before is not learned.

use std::collections::BTreeMap;

use bytes::Bytes;
use dormouse_engine::Contents;
use dormouse_engine::list::{Direction, List, Range, Sorted};

use crate::entries::{Entries, Size, is_large};
use crate::map::Map;
use crate::ranges::{Ranges, Span, contains, only};
use crate::txn::Overlays;

/// A list with more gaps than so many reads all from the first to the last: one walk reads each page once.
const GAPS_MAX: usize = 4;

/// What an entry counts beside its key and its value.
pub(crate) const ENTRY_BYTES: usize = 64;

/// What shares the bytes of a key and of a value, and what the allocator rounds up.
const SHARED_BYTES: usize = 48;

fn memory_of(entries: usize, bytes: usize) -> usize {
    Map::memory_of(entries) + entries * SHARED_BYTES + bytes
}

/// What the cache of an object with these contents takes for keys and values, all of them clean.
pub fn memory_bytes(contents: &Contents) -> usize {
    memory_of(contents.map.len(), contents.bytes())
}

/// What is known of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Lookup {
    Value(Bytes),
    Absent,
    /// It has to be read.
    Unknown,
}

/// The keys and values that are in memory.
#[derive(Debug)]
pub(crate) struct Keys {
    map: Map,
    map_bytes: usize,
    /// None if all are.
    parts: Option<Box<Parts>>,
    epoch: u64,
}

/// Of which keys it is known whether they are there.
#[derive(Debug, Default)]
struct Parts {
    known: Ranges,
    /// What was asked for or written since something was forgotten.
    used: Ranges,
}

impl Parts {
    fn touch(&mut self, key: &[u8]) {
        if !self.used.contains(key) {
            self.used.add(only(key));
        }
    }
}

/// A value without what it was read with: a handle of a small one keeps all of a page.
fn alone(value: &Bytes) -> Bytes {
    if is_large(value) { value.clone() } else { Bytes::copy_from_slice(value) }
}

fn room_of(ranges: &Ranges) -> usize {
    ranges.bytes() + ENTRY_BYTES * ranges.len()
}

fn known((key, value): (&Bytes, &Bytes)) -> (Bytes, Option<Bytes>) {
    (key.clone(), Some(value.clone()))
}

/// What a list found.
pub(crate) enum Listing {
    All(Entries),
    /// Some of it has to be read.
    Some(Missing),
}

impl Keys {
    /// All keys.
    pub(crate) fn whole(map: Map, map_bytes: usize) -> Self {
        Self { map, map_bytes, parts: None, epoch: 0 }
    }

    /// None, of an object that has some.
    pub(crate) fn unknown() -> Self {
        Self { parts: Some(Box::default()), ..Self::whole(Map::default(), 0) }
    }

    /// The map, if it holds all keys.
    pub(crate) fn all(&self) -> Option<&Map> {
        self.parts.is_none().then_some(&self.map)
    }

    /// The value of a key that was written and is not durable yet.
    pub(crate) fn dirty(&self, key: &[u8]) -> Option<&Bytes> {
        self.map.get(key)
    }

    /// How many are in memory, and their bytes.
    pub(crate) fn size(&self) -> (usize, usize) {
        (self.map.len(), self.map_bytes)
    }

    /// What they take, with what keeps them.
    pub(crate) fn memory_bytes(&self) -> usize {
        let ranges = |parts: &Parts| {
            let (known, used) = (&parts.known, &parts.used);
            memory_of(known.len() + used.len(), known.bytes() + used.bytes())
        };
        memory_of(self.map.len(), self.map_bytes)
            + self.parts.as_ref().map_or(0, |parts| ranges(parts))
    }

    /// What is known of a key; `uses` it if it is to stay known.
    #[inline]
    pub(crate) fn get(&mut self, key: &[u8], uses: bool) -> Lookup {
        if self.parts.is_some() {
            return self.get_of_parts(key, uses);
        }
        self.map.get(key).map_or(Lookup::Absent, |value| Lookup::Value(value.clone()))
    }

    fn get_of_parts(&mut self, key: &[u8], uses: bool) -> Lookup {
        if let Some(parts) = self.parts.as_mut().filter(|_| uses) {
            parts.touch(key);
        }
        match self.map.get(key) {
            Some(value) => Lookup::Value(value.clone()),
            None if self.is_unknown(key) => Lookup::Unknown,
            None => Lookup::Absent,
        }
    }

    /// Whether it is not known whether a key is there that is not in the map.
    #[inline]
    fn is_unknown(&self, key: &[u8]) -> bool {
        self.parts.as_ref().is_some_and(|parts| !parts.known.contains(key))
    }

    /// Sets a key or deletes it: whether it was there, if that is known, and a handle of the key if
    /// anything changes; `uses` it if it is to stay known.
    pub(crate) fn write(
        &mut self,
        key: &[u8],
        value: Option<Bytes>,
        uses: bool,
    ) -> (Option<bool>, Option<Bytes>) {
        let old = self.map.get_key_value(key);
        let existed = match old {
            Some(_) => Some(true),
            None => (!self.is_unknown(key)).then_some(false),
        };
        if existed.is_some() && old.map(|(_, old)| old) == value.as_ref() {
            return (existed, None);
        }
        let owned = old.map_or_else(|| Bytes::copy_from_slice(key), |(key, _)| key.clone());
        if let Some(parts) = &mut self.parts {
            if uses {
                parts.touch(key);
            }
            if value.is_none() && !parts.known.contains(key) {
                parts.known.add(only(key));
            }
        }
        let replaced = match value {
            Some(value) => {
                self.map_bytes += key.len() + value.len();
                self.map.insert(owned.clone(), value)
            }
            None => self.map.remove(key),
        };
        self.map_bytes -= replaced.map_or(0, |value| key.len() + value.len());
        (existed, Some(owned))
    }

    /// Deletes all: it is whole then. Whether there was nothing, for sure.
    pub(crate) fn clear(&mut self) -> bool {
        let was_empty = self.map.is_empty() && self.parts.is_none();
        *self = Self { epoch: self.epoch, ..Self::whole(Map::default(), 0) };
        was_empty
    }

    /// Of what was read now and comes later, whether it may be [learned](Self::learn).
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Takes in all keys of a span, as they were read of the object as it was in `epoch`; what is known
    /// already is newer.
    pub(crate) fn learn(&mut self, epoch: u64, span: Span, entries: &[(Bytes, Bytes)]) {
        let Some(parts) = self.parts.as_mut().filter(|_| epoch == self.epoch) else { return };
        for (key, value) in entries {
            if !parts.known.contains(key) && self.map.get(key).is_none() {
                self.map_bytes += key.len() + value.len();
                self.map.insert(Bytes::copy_from_slice(key), alone(value));
            }
        }
        parts.known.add(span);
        if parts.known.is_all() {
            self.parts = None;
        }
    }

    /// Forgets keys that were written without the wish to keep them, but for those that were used since.
    pub(crate) fn forget(&mut self, keys: impl Iterator<Item = Bytes>) {
        let Some(parts) = &mut self.parts else { return };
        for key in keys.filter(|key| !parts.used.contains(key)) {
            parts.known.remove(&only(&key));
            if let Some(value) = self.map.remove(&key) {
                self.map_bytes -= key.len() + value.len();
            }
            self.epoch += 1;
        }
    }

    /// Forgets what takes more room than `max` bytes, but for what is `dirty`.
    pub(crate) fn trim<'a>(&mut self, max: usize, dirty: impl Iterator<Item = &'a Bytes> + Clone) {
        if self.room() <= max {
            return;
        }
        let parts = self.parts.take().map(|parts| *parts);
        let Parts { known, used } =
            parts.unwrap_or_else(|| Parts { known: Ranges::all(), ..Parts::default() });
        self.epoch += 1;
        let stays = |key: &Bytes| used.contains(key);
        let old = self.keep(stays, dirty.clone());
        let mut known = known.intersection(&used);
        if self.room_of_map() + room_of(&known) > max - max / 4 {
            known = Ranges::default();
            let _used = self.keep(|_| false, dirty.clone());
        }
        drop(old);
        // Of what is dirty and not in the map, it is known that it is deleted.
        for key in dirty.filter(|key| self.map.get(key).is_none()) {
            known.add(only(key));
        }
        self.parts = Some(Box::new(Parts { known, used: Ranges::default() }));
    }

    /// Keeps some of the map, and what is dirty; gives what it was.
    fn keep<'a>(
        &mut self,
        stays: impl Fn(&Bytes) -> bool,
        dirty: impl Iterator<Item = &'a Bytes>,
    ) -> Map {
        let old = std::mem::take(&mut self.map);
        let dirty = dirty.filter_map(|key| old.get_key_value(key));
        let clean = old.iter().filter(|(key, _)| stays(key));
        let kept = clean.chain(dirty).map(|(key, value)| (key.clone(), value.clone()));
        self.map = kept.collect::<BTreeMap<_, _>>().into();
        self.map_bytes = self.map.iter().map(|(key, value)| key.len() + value.len()).sum();
        old
    }

    /// What is bounded.
    fn room(&self) -> usize {
        let of_parts = |parts: &Parts| room_of(&parts.known) + room_of(&parts.used);
        self.room_of_map() + self.parts.as_ref().map_or(0, |parts| of_parts(parts))
    }

    fn room_of_map(&self) -> usize {
        self.map_bytes + ENTRY_BYTES * self.map.len()
    }

    /// The keys of a range with open transactions over them.
    pub(crate) fn list(&mut self, range: &Range, overlays: &Overlays, uses: bool) -> Listing {
        let Some(parts) = &mut self.parts else {
            return Listing::All(self.list_whole(range, overlays));
        };
        let over = overlays.flatten(range);
        let over = || over.iter().copied();
        // Behind as many keys as it gives nothing is of interest.
        let (mut found, mut last) = (0, None);
        range.visit_under(&self.map, over(), |key, _| {
            found += 1;
            last = (found == range.limit()).then(|| key.clone());
        });
        let mut span = (range.start().clone(), range.end().cloned());
        match (range.direction(), last) {
            (_, None) => {}
            (Direction::Ascending, Some(last)) => span.1 = only(&last).1,
            (Direction::Descending, Some(last)) => span.0 = last,
        }
        let within = |key: &Bytes| contains(&span, key);
        let in_map = self.map.range(range.bounds());
        let mut seen: BTreeMap<Bytes, Option<Bytes>> = match range.direction() {
            Direction::Ascending => in_map.take_while(|(key, _)| within(key)).map(known).collect(),
            Direction::Descending => {
                in_map.rev().take_while(|(key, _)| within(key)).map(known).collect()
            }
        };
        let over = over().filter(|(key, _)| within(key));
        seen.extend(over.map(|(key, value)| (key.clone(), value.cloned())));
        if uses {
            parts.used.add(span.clone());
        }
        let gaps = parts.known.gaps(&span);
        let missing = Missing { range: range.clone(), seen, gaps, epoch: self.epoch };
        match missing.gaps.is_empty() {
            true => Listing::All(missing.with(Vec::new())),
            false => Listing::Some(missing),
        }
    }

    fn list_whole(&self, range: &Range, overlays: &Overlays) -> Entries {
        let mut size = Size::default();
        if overlays.is_empty() {
            range.visit(&self.map, |key, value| size.add(key, value));
            let mut entries = size.reserve();
            range.visit(&self.map, |key, value| entries.push(key, value));
            return entries.finish();
        }
        let overlay = overlays.flatten(range);
        let over = || overlay.iter().copied();
        range.visit_under(&self.map, over(), |key, value| size.add(key, value));
        let mut entries = size.reserve();
        range.visit_under(&self.map, over(), |key, value| entries.push(key, value));
        entries.finish()
    }
}

/// A list of which some has to be read.
pub(crate) struct Missing {
    range: Range,
    /// What was known in the range at the call: values, and what open transactions deleted.
    seen: BTreeMap<Bytes, Option<Bytes>>,
    /// The parts of it of which that is not all, ascending.
    gaps: Vec<Span>,
    pub(crate) epoch: u64,
}

impl Missing {
    /// What has to be read, in the order of the list: the gaps, or what they lie in.
    pub(crate) fn spans(&self) -> Vec<Span> {
        if self.gaps.len() > GAPS_MAX {
            let (first, last) = (&self.gaps[0], &self.gaps[self.gaps.len() - 1]);
            return vec![(first.0.clone(), last.1.clone())];
        }
        let mut gaps = self.gaps.clone();
        if self.range.direction() == Direction::Descending {
            gaps.reverse();
        }
        gaps
    }

    /// What to read of a span once so many keys were read before it; `None` if they are enough.
    pub(crate) fn ask(&self, (start, end): &Span, read: usize) -> Option<List> {
        let mut list = List {
            start: Some(start.clone()),
            end: end.clone(),
            direction: self.range.direction(),
            ..List::default()
        };
        if self.range.limit() == usize::MAX {
            return Some(list);
        }
        let before = match (self.range.direction(), end) {
            (Direction::Ascending, _) => self.seen.range(..start.clone()),
            (Direction::Descending, Some(end)) => self.seen.range(end.clone()..),
            (Direction::Descending, None) => self.seen.range(..Bytes::new()),
        };
        let before = before.filter(|(_, value)| value.is_some()).count();
        let left = self.range.limit().checked_sub(before + read).filter(|left| *left > 0)?;
        // Keys that are known are read too.
        let known = match end {
            Some(end) => self.seen.range(start.clone()..end.clone()).count(),
            None => self.seen.range(start.clone()..).count(),
        };
        list.limit = i64::try_from(left.saturating_add(known)).ok();
        Some(list)
    }

    /// How much of a span was read with `entries`, and what is left of it: nothing, if they are not as many as
    /// were asked for.
    pub(crate) fn reached(
        &self,
        (start, end): Span,
        asked: &List,
        entries: &[(Bytes, Bytes)],
    ) -> (Span, Option<Span>) {
        let full = asked.limit.is_some_and(|limit| entries.len() as i64 >= limit);
        match (entries.last().filter(|_| full), self.range.direction()) {
            (None, _) => ((start, end), None),
            (Some((last, _)), Direction::Ascending) => {
                let (_, next) = only(last);
                let rest = next.clone().map(|next| (next, end));
                ((start, next), rest)
            }
            (Some((last, _)), Direction::Descending) => {
                let rest = (*last > start).then(|| (start, Some(last.clone())));
                ((last.clone(), end), rest)
            }
        }
    }

    /// Those of which nothing was known.
    pub(crate) fn news(
        &self,
        entries: Vec<(Bytes, Bytes)>,
    ) -> impl Iterator<Item = (Bytes, Bytes)> {
        entries.into_iter().filter(|(key, _)| self.is_missing(key) && !self.seen.contains_key(key))
    }

    /// Whether a key lies in a gap.
    fn is_missing(&self, key: &Bytes) -> bool {
        let behind = self.gaps.partition_point(|(start, _)| start <= key);
        let gap = behind.checked_sub(1).map(|place| &self.gaps[place]);
        gap.is_some_and(|gap| contains(gap, key))
    }

    /// What the list gives, with what was read.
    pub(crate) fn with(self, read: Vec<(Bytes, Bytes)>) -> Entries {
        let there = self.seen.into_iter().filter_map(|(key, value)| Some((key, value?)));
        let mut all: Vec<_> = there.chain(read).collect();
        all.sort_by(|(one, _), (other, _)| one.cmp(other));
        if self.range.direction() == Direction::Descending {
            all.reverse();
        }
        all.truncate(self.range.limit());
        let mut size = Size::default();
        all.iter().for_each(|(key, value)| size.add(key, value));
        let mut entries = size.reserve();
        all.iter().for_each(|(key, value)| entries.push(key, value));
        entries.finish()
    }
}
