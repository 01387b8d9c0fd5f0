//! What of a recorded directory is durable at a moment, and what a power cut then may leave.
//!
//! | event | what the model does |
//! |---|---|
//! | a write begins | its sectors of 512 bytes have one more version, and may be on the disk |
//! | a write to a `Through` file returns | its bytes are durable, and the length that they need |
//! | a sync of a file returns | durable: writes that had returned when it began, and the length of then |
//! | the process has ended | what it had in flight has landed, unheard of: not durable until a sync |
//! | a name is changed | may be on the disk from its beginning on |
//! | a sync of the directory returns | durable: changes of names that had returned when it began |
//!
//! A power cut leaves what is durable, and of each sector that or any later version. Of the changes
//! of names it leaves what is durable, a prefix of those that returned since, in the order in which
//! they did, and any of those in flight: a file system with one journal (ext4, XFS) commits the
//! changes of one directory in order. Names, lengths and contents are lost each by themselves: with
//! delayed allocation a file may have its name and not its length, or its length and no contents,
//! which then read as zeros.

use std::collections::{BTreeMap, BTreeSet};

use dormouse_engine::io::Mode;

use crate::random::Random;
use crate::record::{Event, Op};

const SECTOR_BYTES: usize = 512;

type Sector = [u8; SECTOR_BYTES];

/// One way to make something durable that the model believes did nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LeftOut {
    /// Writes of batches.
    BatchWrite,
    /// Those of the first batch of each segment: fences, mostly.
    FenceWrite,
    /// Writes of the manifest's slots.
    SlotWrite,
    /// The sync of a run before the slot that names it.
    RunSync,
    /// The sync of the directory after a run was created.
    RunName,
    /// The sync of the directory after a segment was made and renamed.
    SegmentName,
    /// The sync of what recovery accepted from an earlier process (E9).
    ReplaySync,
}

impl LeftOut {
    pub(crate) const ALL: [Self; 7] = [
        Self::BatchWrite,
        Self::FenceWrite,
        Self::SlotWrite,
        Self::RunSync,
        Self::RunName,
        Self::SegmentName,
        Self::ReplaySync,
    ];
}

/// The files of a directory after a power cut.
pub(crate) type Files = BTreeMap<String, Vec<u8>>;

struct File {
    name: String,
    mode: Mode,
    /// Which process created it.
    process: usize,
    durable: Vec<u8>,
    /// The length that it has once all that has begun has returned.
    bytes: usize,
    /// The length that what has returned gives it.
    returned_bytes: usize,
    /// For each sector what is not durable, by the operation that wrote it, oldest first.
    versions: BTreeMap<usize, Vec<(usize, Sector)>>,
    /// Writes that have returned, or landed, and are not durable.
    visible: BTreeSet<usize>,
    /// Of a segment: the first write behind its header.
    first_batch: Option<usize>,
}

struct NameChange {
    op: usize,
    change: Op,
    returned: bool,
}

/// What an operation that has begun will make durable.
enum Promise {
    Write { file: usize, offset: usize },
    Allocate { file: usize, bytes: usize },
    Sync { file: usize, writes: BTreeSet<usize>, bytes: usize },
    Name,
    SyncDir { changes: BTreeSet<usize> },
    Nothing,
}

/// A directory on a device.
pub(crate) struct Model {
    left_out: Option<LeftOut>,
    processes: usize,
    files: Vec<File>,
    names: BTreeMap<String, usize>,
    /// In the order in which they returned; those in flight behind them.
    changes: Vec<NameChange>,
    in_flight: BTreeMap<usize, Promise>,
}

impl Model {
    pub(crate) fn new(left_out: Option<LeftOut>) -> Self {
        let (files, names, changes, in_flight) = Default::default();
        Self { left_out, processes: 0, files, names, changes, in_flight }
    }

    /// Goes on by one event of the log.
    pub(crate) fn apply(&mut self, event: &Event) {
        match event {
            Event::Process => self.processes += 1,
            Event::Ended => self.land(),
            Event::Begin(op, what) => {
                let promise = self.begin(*op, what);
                self.in_flight.insert(*op, promise);
            }
            Event::End(op, bytes) => {
                let promise = self.in_flight.remove(op).expect("it has begun");
                self.end(*op, promise, *bytes);
            }
            Event::Submitted(..) | Event::Acknowledged(..) | Event::Found(..) => {}
        }
    }

    fn begin(&mut self, op: usize, what: &Op) -> Promise {
        match what {
            Op::Read { .. } => Promise::Nothing,
            Op::Create { file, name, mode } => {
                assert_eq!(*file, self.files.len());
                self.files.push(File::new(name, *mode, self.processes));
                self.change_name(op, what)
            }
            Op::Rename { .. } | Op::Remove { .. } => self.change_name(op, what),
            Op::Write { file, offset, bytes } => {
                let (file, offset) = (*file, *offset);
                self.files[file].write(op, offset, bytes);
                Promise::Write { file, offset }
            }
            Op::Allocate { file, bytes } => {
                let (file, bytes) = (*file, *bytes);
                self.files[file].bytes = self.files[file].bytes.max(bytes);
                Promise::Allocate { file, bytes }
            }
            Op::Sync { file } => {
                let (file, of_file) = (*file, &self.files[*file]);
                let (writes, bytes) = (of_file.visible.clone(), of_file.returned_bytes);
                Promise::Sync { file, writes, bytes }
            }
            Op::SyncDir => {
                let returned = self.changes.iter().filter(|change| change.returned);
                Promise::SyncDir { changes: returned.map(|change| change.op).collect() }
            }
        }
    }

    fn change_name(&mut self, op: usize, change: &Op) -> Promise {
        self.changes.push(NameChange { op, change: change.clone(), returned: false });
        Promise::Name
    }

    fn end(&mut self, op: usize, promise: Promise, bytes: usize) {
        match promise {
            Promise::Nothing => {}
            Promise::Allocate { file, bytes } => self.files[file].has_returned(bytes),
            Promise::Write { file, offset } => {
                let believed = self.believes_write(op, file);
                let file = &mut self.files[file];
                file.has_returned(offset + bytes);
                if believed {
                    // What a short write has left of a sector is not known to be whole.
                    let sectors = offset / SECTOR_BYTES..(offset + bytes) / SECTOR_BYTES;
                    sectors.for_each(|sector| file.settle(sector, |of| of == op));
                } else {
                    file.visible.insert(op);
                }
            }
            Promise::Sync { file, writes, bytes } => {
                if self.believes_sync(file) {
                    let file = &mut self.files[file];
                    let sectors: Vec<usize> = file.versions.keys().copied().collect();
                    sectors.into_iter().for_each(|at| file.settle(at, |op| writes.contains(&op)));
                    file.visible.retain(|op| !writes.contains(op));
                    file.durable.resize(file.durable.len().max(bytes), 0);
                }
            }
            Promise::Name => {
                let at = self.changes.iter().position(|change| change.op == op);
                let mut change = self.changes.remove(at.expect("it has begun"));
                change.returned = true;
                let returned = self.changes.iter().filter(|change| change.returned).count();
                self.changes.insert(returned, change);
            }
            Promise::SyncDir { changes } => {
                let (synced, left): (Vec<_>, Vec<_>) = std::mem::take(&mut self.changes)
                    .into_iter()
                    .partition(|it| changes.contains(&it.op) && self.believes_name(&it.change));
                self.changes = left;
                synced.iter().for_each(|it| rename(&mut self.names, &it.change));
            }
        }
    }

    /// What a process had in flight has happened; whoever comes after it can't know.
    fn land(&mut self) {
        for (op, promise) in std::mem::take(&mut self.in_flight) {
            match promise {
                Promise::Write { file, .. } => {
                    let file = &mut self.files[file];
                    file.visible.insert(op);
                    file.has_returned(file.bytes);
                }
                Promise::Name | Promise::Allocate { .. } => self.end(op, promise, 0),
                // Nobody relies on a sync that was not seen to return.
                Promise::Sync { .. } | Promise::SyncDir { .. } | Promise::Nothing => {}
            }
        }
    }

    fn believes_write(&self, op: usize, file: usize) -> bool {
        let file = &self.files[file];
        let is_first = file.first_batch == Some(op);
        let is_batch = is_segment(&file.name) && file.first_batch.is_some() && !is_first;
        file.mode == Mode::Through
            && match self.left_out {
                Some(LeftOut::BatchWrite) => !is_batch,
                Some(LeftOut::FenceWrite) => !(is_segment(&file.name) && is_first),
                Some(LeftOut::SlotWrite) => !file.name.ends_with("-manifest"),
                _ => true,
            }
    }

    fn believes_sync(&self, file: usize) -> bool {
        let file = &self.files[file];
        match self.left_out {
            Some(LeftOut::RunSync) => !is_run(&file.name),
            Some(LeftOut::ReplaySync) => !is_segment(&file.name) || file.process == self.processes,
            _ => true,
        }
    }

    fn believes_name(&self, change: &Op) -> bool {
        match (self.left_out, change) {
            (Some(LeftOut::SegmentName), Op::Rename { to, .. }) => !is_segment(to),
            (Some(LeftOut::RunName), Op::Create { name, .. }) => !is_run(name),
            _ => true,
        }
    }

    /// What a power cut leaves now.
    pub(crate) fn power_cut(&self, random: &mut Random) -> Files {
        // All, nothing, or some: writes as a whole, or sector by sector.
        let kept = [0, 100, 50, 50, 10, 90][random.below(6)];
        let whole_writes = random.below(2) == 0;
        let coins = *random;
        let is_kept = |op: usize, sector: usize| {
            coins.percent_of([op, if whole_writes { 0 } else { sector }]) < kept
        };
        let mut names = self.names.clone();
        let returned = self.changes.iter().filter(|change| change.returned).count();
        let upto = [0, returned, random.below(returned + 1)][random.below(3)];
        for (index, it) in self.changes.iter().enumerate() {
            if index < upto || (!it.returned && random.below(2) == 0) {
                rename(&mut names, &it.change);
            }
        }
        let bytes_of = |file: &File, random: &mut Random| {
            let with_length = random.below(2) == 0;
            file.power_cut(with_length, is_kept)
        };
        names.into_iter().map(|(name, at)| (name, bytes_of(&self.files[at], random))).collect()
    }
}

/// A segment, also while it is being made.
fn is_segment(name: &str) -> bool {
    name.contains("-segment-") || name.contains("-preparing-")
}

fn is_run(name: &str) -> bool {
    name.contains("-run-")
}

fn rename(names: &mut BTreeMap<String, usize>, change: &Op) {
    match change {
        Op::Create { file, name, .. } => drop(names.insert(name.clone(), *file)),
        Op::Remove { name } => drop(names.remove(name)),
        Op::Rename { from, to } => {
            if let Some(file) = names.remove(from) {
                names.insert(to.clone(), file);
            }
        }
        _ => unreachable!("no change of names"),
    }
}

impl File {
    fn new(name: &str, mode: Mode, process: usize) -> Self {
        let (durable, versions, visible) = Default::default();
        let (name, bytes, returned_bytes, first_batch) = (name.to_owned(), 0, 0, None);
        Self { name, mode, process, durable, bytes, returned_bytes, versions, visible, first_batch }
    }

    fn has_returned(&mut self, bytes: usize) {
        self.returned_bytes = self.returned_bytes.max(bytes);
    }

    fn write(&mut self, op: usize, offset: usize, bytes: &[u8]) {
        assert!(offset.is_multiple_of(SECTOR_BYTES) && bytes.len().is_multiple_of(SECTOR_BYTES));
        self.bytes = self.bytes.max(offset + bytes.len());
        if offset > 0 {
            self.first_batch.get_or_insert(op);
        }
        for (index, sector) in bytes.chunks_exact(SECTOR_BYTES).enumerate() {
            let versions = self.versions.entry(offset / SECTOR_BYTES + index).or_default();
            versions.push((op, sector.try_into().expect("a sector")));
        }
    }

    /// The newest version of a sector that is of such an operation becomes durable.
    fn settle(&mut self, sector: usize, is_durable: impl Fn(usize) -> bool) {
        let Some(versions) = self.versions.get_mut(&sector) else { return };
        let Some(newest) = versions.iter().rposition(|(op, _)| is_durable(*op)) else { return };
        let (_, bytes) = versions.drain(..=newest).next_back().expect("found above");
        if versions.is_empty() {
            self.versions.remove(&sector);
        }
        put(&mut self.durable, sector, &bytes);
    }

    fn power_cut(&self, with_length: bool, is_kept: impl Fn(usize, usize) -> bool) -> Vec<u8> {
        let mut left = self.durable.clone();
        let bytes = if with_length { left.len().max(self.bytes) } else { left.len() };
        left.resize(bytes, 0);
        for (sector, versions) in &self.versions {
            let kept = versions.iter().rfind(|(op, _)| is_kept(*op, *sector));
            // Behind the end nothing can be read.
            if let Some((_, bytes)) = kept.filter(|_| (sector + 1) * SECTOR_BYTES <= bytes) {
                put(&mut left, *sector, bytes);
            }
        }
        left
    }
}

fn put(bytes: &mut Vec<u8>, sector: usize, new: &Sector) {
    let end = (sector + 1) * SECTOR_BYTES;
    bytes.resize(bytes.len().max(end), 0);
    bytes[end - SECTOR_BYTES..end].copy_from_slice(new);
}
