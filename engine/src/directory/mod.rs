//! From an object's id to where its newest state lies, and its alarm.
//!
//! What changed since the last checkpoint is an overlay in memory; the rest lies in immutable sorted
//! runs on disk ([`crate::format::run`]). A checkpoint freezes the overlay and writes it as a run. Runs
//! are merged in the background, so that their number stays small (`merges`).
//!
//! Invariants:
//!
//! - It changes when a batch is durable, never before.
//! - The newest of overlay, frozen overlay and runs, youngest first, that knows an object decides.
//! - `alarms` are those of the objects that overlay or frozen overlay know.

mod entry;
mod guide;
mod merge;
mod run;
#[cfg(test)]
mod tests;
mod write;

use std::collections::BTreeSet;
use std::rc::Rc;

use futures_util::future::join_all;

use crate::contents::Origin;
use crate::error::{Error, Result};
use crate::format::checkpoint::RunRef;
use crate::format::entry::RawEntry;
use crate::format::frame::{Address, Frame, Kind};
use crate::format::run::Key;
use crate::ids::{ObjectId, StoreId, Version};
use crate::io::File;
use crate::limits::Limits;
use crate::live::Live;

pub(crate) use entry::merged;
pub use entry::{CHAIN_MAX, Entry, Known, SHARES_MAX, Stamp};
pub(crate) use merge::{Merge, Recent};
pub(crate) use run::Run;
pub(crate) use write::{How, file_name, number_in_name, write_run};

/// A map keyed by object ids with a fixed hash. Its order means nothing: never show it.
#[expect(clippy::disallowed_types, reason = "the hasher is fixed, and no order is shown")]
pub type IdMap<V> = std::collections::HashMap<ObjectId, V, foldhash::fast::FixedState>;

/// Objects that a new overlay has room for at most before it grows.
const ROOM_MAX: usize = 1 << 14;

/// Entries of what is frozen that are encoded at a time: all at once would keep the core for a millisecond.
const ENCODED: usize = 128;

/// What a checkpoint is made of: the entries of the frozen overlay, in order of their keys.
pub(crate) struct Frozen {
    map: Rc<IdMap<Known>>,
    keys: Rc<Vec<Key>>,
    /// Of these, those that are encoded.
    taken: usize,
    encoded: std::vec::IntoIter<Keyed>,
}

impl Frozen {
    /// The same from the beginning.
    pub(crate) fn again(&self) -> Self {
        let (map, keys) = (self.map.clone(), self.keys.clone());
        Self { map, keys, taken: 0, encoded: Vec::new().into_iter() }
    }
}

impl Iterator for Frozen {
    type Item = Keyed;

    fn next(&mut self) -> Option<Keyed> {
        if let Some(next) = self.encoded.next() {
            return Some(next);
        }
        let keys = &self.keys[self.taken..self.keys.len().min(self.taken + ENCODED)];
        self.taken += keys.len();
        let entries = RawEntry::of_all(keys.iter().map(|key| (&key.id, &self.map[&key.id])));
        self.encoded = keys.iter().copied().zip(entries).collect::<Vec<_>>().into_iter();
        self.encoded.next()
    }
}

/// An object's key and its entry.
pub(crate) type Keyed = (Key, RawEntry);

/// The directory of one shard.
pub(crate) struct Directory<F: File> {
    store: StoreId,
    overlay: IdMap<Known>,
    /// The overlay that a checkpoint is being made of.
    frozen: Rc<IdMap<Known>>,
    /// Youngest first.
    runs: Vec<Rc<Run<F>>>,
    alarms: BTreeSet<(u64, ObjectId)>,
    objects: u64,
}

impl<F: File> Directory<F> {
    /// The directory that these runs make up, youngest first, with so many objects.
    pub(crate) fn new(store: StoreId, runs: Vec<Rc<Run<F>>>, objects: u64) -> Self {
        let (overlay, frozen, alarms) = Default::default();
        Self { store, overlay, frozen, runs, alarms, objects }
    }

    /// What overlay and frozen overlay know of an object.
    fn recent(&self, id: &ObjectId) -> Option<&Known> {
        self.overlay.get(id).or_else(|| self.frozen.get(id))
    }

    /// The object's entry.
    ///
    /// Errors: `Corrupt`, if it would be in a damaged block of a run.
    pub(crate) fn get(&self, id: &ObjectId) -> Result<Option<Entry>> {
        match self.recent(id) {
            Some(known) => Ok(known.entry.clone()),
            None if self.runs.is_empty() => Ok(None),
            None => self.find(id, &self.runs).map(Option::flatten),
        }
    }

    /// Brings in what [`Directory::get`] will want of runs that may lie on the device alone. It borrows nothing.
    pub(crate) fn warm(&self, id: &ObjectId) -> Option<impl Future<Output = ()> + use<F>> {
        if self.recent(id).is_some() {
            return None;
        }
        let key = Key::new(self.store, *id);
        let cold: Vec<_> = self.runs.iter().filter(|run| run.is_cold(&key)).cloned().collect();
        if cold.is_empty() {
            return None;
        }
        Some(async move { drop(join_all(cold.iter().map(|run| run.warm(&key))).await) })
    }

    fn find(&self, id: &ObjectId, runs: &[Rc<Run<F>>]) -> Result<Option<Option<Entry>>> {
        let key = Key::new(self.store, *id);
        runs.iter().find_map(|run| run.find(&key).transpose()).transpose()
    }

    /// Where the object's id comes from, as far as any entry knows.
    ///
    /// Errors: `Corrupt`, if that would be in a damaged block of a run.
    pub(crate) fn origin(&self, id: &ObjectId) -> Result<Origin> {
        let key = Key::new(self.store, *id);
        let mut origin = Origin::default();
        for recent in [&self.overlay, &self.frozen] {
            recent.get(id).into_iter().for_each(|recent| origin.learn(&recent.origin));
        }
        for run in &self.runs {
            if origin.name.is_some() {
                break;
            }
            run.find_known(&key)?.into_iter().for_each(|older| origin.learn(&older.origin));
        }
        Ok(origin)
    }

    /// Sets or removes the object's entry; `existed` is whether there was one, `origin` what its
    /// newest frame says.
    pub(crate) fn set(
        &mut self,
        id: ObjectId,
        existed: bool,
        entry: Option<Entry>,
        origin: &Origin,
    ) {
        self.objects += u64::from(entry.is_some());
        self.objects = self.objects.saturating_sub(u64::from(existed));
        let old_alarm = self.recent(&id).and_then(|old| old.entry.as_ref()?.alarm);
        old_alarm.into_iter().for_each(|at| assert!(self.alarms.remove(&(at, id))));
        let new_alarm = entry.as_ref().and_then(|new| new.alarm);
        new_alarm.into_iter().for_each(|at| assert!(self.alarms.insert((at, id))));
        if entry.is_none() && self.frozen.is_empty() && self.runs.is_empty() {
            self.overlay.remove(&id);
            return;
        }
        let known = self.overlay.entry(id).or_default();
        known.entry = entry;
        let older = std::mem::replace(&mut known.origin, origin.clone());
        known.origin.learn(&older);
    }

    /// Marks an object as unreadable: a frame that it needs was in a lost batch.
    pub(crate) fn damage(&mut self, id: ObjectId) {
        let entry = self.get(&id).unwrap_or(None);
        let existed = entry.is_some();
        let damaged = entry.map_or_else(|| Entry::lost(Version(1)), Entry::into_damaged);
        self.set(id, existed, Some(damaged), &Origin::default());
    }

    /// Enters a frame that replay accepted, without a look at the runs: it says all of its entry. A part
    /// counts only through its commit's last frame, a rewrite only if it holds the version that is there.
    pub(crate) fn replay(&mut self, frame: &Frame<'_>, address: Address, live: &mut Live) {
        if frame.part {
            live.written(address.segment, frame.wall_ms);
            return;
        }
        let known = self.recent(&frame.object).map(|known| known.entry.clone());
        let is_known = known.is_some();
        let existed = known.as_ref().map_or(frame.existed, |entry| entry.is_some());
        let before = known.flatten();
        let version_before = before.as_ref().map(|it| it.version);
        if frame.rewrite && is_known && version_before != Some(frame.version) {
            return;
        }
        let (version, alarm) = (frame.version, frame.alarm);
        let stamp = Stamp { version, alarm, written_ms: frame.wall_ms };
        // What it builds on may be in a batch whose loss was accepted.
        let newest_before = before.as_ref().and_then(|it| it.newest());
        let follows = !is_known || newest_before == frame.predecessor;
        let frames = || frame.parts().iter().copied().chain([address]);
        let live_before = live.total();
        let after = match (frame.kind, before) {
            (Kind::Image, before) => {
                match before {
                    Some(before) => live.lower_all(&before),
                    // What it says of what it makes dead is about what there was.
                    None if is_known => {}
                    None => frame.shares.iter().for_each(|share| live.lower(*share)),
                }
                live.note_scattered(frame.scattered);
                let empty = frame.payload.is_empty() && frame.chain.is_empty();
                let exists = !empty || frame.alarm.is_some();
                frames().filter(|_| exists).for_each(|frame| live.raise(frame));
                frame.kept.iter().for_each(|share| live.raise(*share));
                exists.then(|| match frame.tree {
                    true => {
                        let waiting = frame.sizes.delta_bytes;
                        Entry::tree(address, stamp, &frame.kept, frame.parts(), waiting)
                    }
                    false => Entry::image(address, stamp, frame.parts()),
                })
            }
            (Kind::Delta, Some(before)) if before.damaged => Some(before.still_damaged(stamp)),
            (Kind::Delta, before) if !follows => {
                before.iter().for_each(|before| live.lower_all(before));
                Some(Entry::lost(frame.version))
            }
            (Kind::Page | Kind::Value, _) => unreachable!("always parts"),
            (Kind::Delta, _) => {
                frames().for_each(|frame| live.raise(frame));
                let before = Entry::before(frame);
                Some(before.with_delta(address, stamp, frame.nests, frame.parts()))
            }
        };
        live.written(address.segment, frame.wall_ms);
        live.count(frame.namespace, 0, live_before);
        let after = after.map(|entry| entry.counting_for(frame.namespace));
        self.set(frame.object, existed, after, &frame.origin);
    }

    /// The earliest alarm.
    pub(crate) fn next_alarm(&self) -> Option<(u64, ObjectId)> {
        self.alarms(u64::MAX, 1, &|_| false).first().copied()
    }

    /// Alarms at or before `now_ms`, earliest first, at most `max`; without those that `skip` takes out.
    pub(crate) fn alarms(
        &self,
        now_ms: u64,
        max: usize,
        skip: &dyn Fn(&(u64, ObjectId)) -> bool,
    ) -> Vec<(u64, ObjectId)> {
        let due = |(at_ms, _): &(u64, ObjectId)| *at_ms <= now_ms;
        let recent = self.alarms.iter().copied().take_while(due);
        let mut all: Vec<_> = recent.filter(|alarm| !skip(alarm)).take(max).collect();
        for (index, run) in self.runs.iter().enumerate() {
            let (mut passed, mut count) = (Some(0), 0);
            for alarm in run.alarms().take_while(due) {
                // Whoever knows the object better has its alarm too; also where that can't be read.
                let newer = self.recent(&alarm.1).is_some()
                    || !matches!(self.find(&alarm.1, &self.runs[..index]), Ok(None));
                if newer {
                    passed = passed.map(|passed| passed + 1);
                    continue;
                }
                run.pass(passed.take().unwrap_or(0));
                if skip(&alarm) {
                    continue;
                }
                all.push(alarm);
                count += 1;
                if count == max {
                    break;
                }
            }
            run.pass(passed.unwrap_or(0));
        }
        all.sort_unstable();
        all.truncate(max);
        all
    }

    /// Number of objects.
    pub(crate) fn len(&self) -> u64 {
        self.objects
    }

    /// Blocks of runs that can't be read.
    pub(crate) fn damaged_blocks(&self) -> Vec<Error> {
        self.runs.iter().flat_map(|run| run.damaged_blocks()).collect()
    }

    /// Tells which objects are lost where damaged blocks are given up, as a whole, be their own entries
    /// readable or not.
    pub(crate) fn in_damaged_blocks(&self) -> impl Fn(&Self, &ObjectId) -> bool + use<F> {
        let damaged = self.runs.iter().map(|run| (run.clone(), run.damaged_entry_blocks()));
        let damaged: Vec<_> = damaged.filter(|(_, blocks)| !blocks.is_empty()).collect();
        move |directory, id| {
            let key = Key::new(directory.store, *id);
            let lies_in = |(run, blocks): &(Rc<Run<F>>, BTreeSet<u32>)| {
                run.block_of(&key).is_none_or(|block| blocks.contains(&block))
            };
            directory.recent(id).is_none() && damaged.iter().any(lies_in)
        }
    }

    /// Counts the objects anew, after blocks of a run were given up.
    pub(crate) fn recount(&mut self) {
        let there = self
            .entries(None)
            .filter(|entry| entry.as_ref().is_ok_and(|(_, known)| known.entry.is_some()));
        self.objects = there.count() as u64;
    }

    /// Counts live bytes anew; what damaged blocks hold is left out.
    pub(crate) fn count_live(&self, live: &mut Live) {
        let entries: Vec<_> = self.entries(None).filter_map(|it| it.ok()?.1.entry).collect();
        live.recount(&entries);
    }

    /// Objects that changed since the last checkpoint began.
    pub(crate) fn changed(&self) -> Vec<ObjectId> {
        let mut ids: Vec<_> = self.overlay.keys().copied().collect();
        ids.sort_unstable();
        ids
    }

    /// All that is known behind `after`, in the directory's own order. A damaged block, or entry, is given
    /// as an error.
    pub(crate) fn entries(
        &self,
        after: Option<ObjectId>,
    ) -> impl Iterator<Item = Result<(Key, Known)>> + use<'_, F> {
        let after = after.map(|id| Key::new(self.store, id));
        let recent = [&self.overlay, &*self.frozen]
            .map(|map| Box::new(self.sorted(map, after.as_ref()).into_iter()) as Recent<'_>);
        let mut namespace = None;
        Merge::new(recent.into(), &self.runs, after.as_ref()).map(move |entry| {
            let (key, entry) = entry?;
            let damaged =
                |why| Error::corrupt(format!("object {} in the directory: {why}", key.id));
            let known = entry.known(namespace.as_ref()).map_err(damaged)?;
            namespace.clone_from(&known.origin.namespace);
            Ok((key, known))
        })
    }

    fn sorted(&self, map: &IdMap<Known>, after: Option<&Key>) -> Vec<Keyed> {
        let keyed = map.iter().map(|(id, known)| (Key::new(self.store, *id), known));
        let mut sorted: Vec<_> =
            keyed.filter(|(key, _)| after.is_none_or(|after| key > after)).collect();
        sorted.sort_unstable_by_key(|(key, _)| *key);
        let entries = RawEntry::of_all(sorted.iter().map(|(key, known)| (&key.id, *known)));
        sorted.into_iter().map(|(key, _)| key).zip(entries).collect()
    }

    /// The runs, youngest first, as a checkpoint names them.
    pub(crate) fn run_refs(&self) -> Vec<RunRef> {
        self.runs.iter().map(|run| run.to_ref()).collect()
    }

    /// A checkpoint begins: the overlay so far, sorted. Until it ends, changes gather in a new one.
    pub(crate) fn freeze(&mut self) -> Frozen {
        assert!(self.frozen.is_empty(), "one checkpoint at a time");
        // About as much will come again: a map that grows by doubling moves all that it holds. After a
        // long replay it was more than that.
        let room = self.overlay.len().min(ROOM_MAX);
        let room = IdMap::with_capacity_and_hasher(room, Default::default());
        self.frozen = Rc::new(std::mem::replace(&mut self.overlay, room));
        let mut keys: Vec<_> = self.frozen.keys().map(|id| Key::new(self.store, *id)).collect();
        keys.sort_unstable();
        let (map, keys) = (self.frozen.clone(), Rc::new(keys));
        Frozen { map, keys, taken: 0, encoded: Vec::new().into_iter() }
    }

    /// The runs that are to be merged next, youngest first; none if there is no need. Where `merge_runs` of about one
    /// size have come together they become one, with which some larger ones may then be complete. So an
    /// entry is written anew once for each size, and not with each checkpoint.
    pub(crate) fn to_merge(&self, limits: &Limits) -> Vec<Rc<Run<F>>> {
        // Those behind a run that is being merged wait for it. A damaged one stays as it is, so that what it
        // holds is not forgotten.
        let is_free = |run: &&Rc<Run<F>>| !run.damaged.get() && !run.merging.get();
        let free = &self.runs[..self.runs.iter().take_while(is_free).count()];
        let (mut merged, mut blocks) = (0, free.first().map_or(0, |run| run.blocks()));
        loop {
            let rest = &free[merged..];
            let alike =
                rest.iter().take_while(|run| run.blocks() <= blocks.saturating_mul(2)).count();
            if alike == 0 || alike + usize::from(merged > 0) < limits.merge_runs {
                break;
            }
            merged += alike;
            blocks = free[..merged].iter().map(|run| run.blocks()).sum();
        }
        // Room for the next checkpoint's.
        let too_many = (self.runs.len() + 2).saturating_sub(limits.runs_max);
        match merged.max(if too_many > 1 { too_many } else { 0 }).min(free.len()) {
            0 | 1 => Vec::new(),
            merged => free[..merged].to_vec(),
        }
    }

    /// Whether a checkpoint may add a run now, or has to wait for those that are being merged.
    pub(crate) fn has_room(&self, limits: &Limits) -> bool {
        self.runs.len() < limits.runs_max || !self.runs.iter().any(|run| run.merging.get())
    }

    /// All runs, for one that takes the place of all.
    pub(crate) fn all_runs(&self) -> Vec<Rc<Run<F>>> {
        self.runs.clone()
    }

    /// Whether nothing is older than these, which are some of the runs, youngest first: then nothing needs to
    /// know what was deleted.
    pub(crate) fn reach_the_oldest(&self, runs: &[Rc<Run<F>>]) -> bool {
        match (self.runs.last(), runs.last()) {
            (Some(oldest), Some(run)) => Rc::ptr_eq(oldest, run),
            (oldest, _) => oldest.is_none(),
        }
    }

    /// Whether this run is one of the directory's.
    pub(crate) fn uses(&self, run: u32) -> bool {
        self.runs.iter().any(|used| used.header.number == run)
    }

    /// The checkpoint failed: what was frozen is part of the overlay again.
    pub(crate) fn thaw(&mut self) {
        for (id, frozen) in Rc::unwrap_or_clone(std::mem::take(&mut self.frozen)) {
            match self.overlay.entry(id) {
                std::collections::hash_map::Entry::Vacant(free) => drop(free.insert(frozen)),
                std::collections::hash_map::Entry::Occupied(mut newer) => {
                    newer.get_mut().origin.learn(&frozen.origin);
                }
            }
        }
    }

    /// The checkpoint is made: `run` holds what was frozen, and what `merged` held.
    pub(crate) fn install(&mut self, run: Option<Run<F>>, merged: &[Rc<Run<F>>]) {
        for (id, known) in &*std::mem::take(&mut self.frozen) {
            if let Some(at_ms) = known.entry.as_ref().and_then(|entry| entry.alarm)
                && !self.overlay.contains_key(id)
            {
                assert!(self.alarms.remove(&(at_ms, *id)));
            }
        }
        self.replace(merged, run);
    }

    /// `run` holds what `merged` held, which stand side by side; where these are none it is the youngest.
    pub(crate) fn replace(&mut self, merged: &[Rc<Run<F>>], run: Option<Run<F>>) {
        let place = merged.first().map_or(0, |first| {
            let place = self.runs.iter().position(|run| Rc::ptr_eq(run, first));
            place.expect("only its merge takes a run away")
        });
        let gone = place..place + merged.len();
        assert!(self.runs[gone.clone()].iter().zip(merged).all(|(run, it)| Rc::ptr_eq(run, it)));
        self.runs.splice(gone, run.map(Rc::new));
    }
}
