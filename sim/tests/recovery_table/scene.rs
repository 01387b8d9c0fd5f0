//! The files of a row before they are opened, and what can be done to them.

use std::ops::Range;

use dormouse_engine::format::batch::{BatchHeader, HEADER_BYTES, Home, Role};
use dormouse_engine::format::checkpoint::{Checkpoint, RunRef};
use dormouse_engine::format::segment::{self, SegmentHeader};
use dormouse_engine::format::superblock::{self, Superblock};

use crate::story::{Files, LIMITS, Moment, Story, id};

/// Of each batch of the story that has commits.
pub(crate) const BATCH_BYTES: usize = 1024;
pub(crate) const SUPERBLOCK: &str = "superblock";
pub(crate) const MANIFEST: &str = "shard-0000-manifest";
const RESERVE: &str = "shard-0000-reserve-";
const SEGMENT: &str = "shard-0000-segment-";
const RUN: &str = "shard-0000-run-";

/// Part of a file.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) file: String,
    pub(crate) range: Range<usize>,
}

impl Place {
    fn new(file: &str, range: Range<usize>) -> Self {
        Self { file: file.to_owned(), range }
    }

    /// The first block: of a batch, its header and its table.
    pub(crate) fn head(&self) -> Self {
        Self::new(&self.file, self.range.start..self.range.start + LIMITS.block_bytes)
    }

    /// The last block: of a batch, its table again.
    pub(crate) fn tail(&self) -> Self {
        Self::new(&self.file, self.range.end - LIMITS.block_bytes..self.range.end)
    }
}

/// One of the two slots of a manifest.
#[derive(Clone, Copy)]
pub(crate) enum Slot {
    Newest,
    Other,
}

pub(crate) struct Scene<'a> {
    pub(crate) files: Files,
    pub(crate) elsewhere: bool,
    story: &'a Story,
    /// As they were before anything was done to them: here things are looked up.
    whole: &'a Files,
}

impl<'a> Scene<'a> {
    pub(crate) fn new(story: &'a Story, moment: Moment) -> Self {
        let whole = &story[&moment].files;
        Self { files: whole.clone(), elsewhere: false, story, whole }
    }

    /// The newest batch that holds a commit of the object.
    pub(crate) fn batch(&self, object: &str) -> Place {
        self.batches_of(object).pop().expect("written in the story")
    }

    /// All batches that hold commits of the object, oldest first.
    pub(crate) fn batches_of(&self, object: &str) -> Vec<Place> {
        let holds = |(place, header): &(Place, BatchHeader)| {
            let batch = &self.whole[&place.file][place.range.clone()];
            header.table(batch).expect("whole").contains(&id(object))
        };
        let batches = batches(self.whole).into_iter().filter(holds);
        batches.map(|(place, _)| place).collect()
    }

    /// The newest batch of this kind.
    pub(crate) fn newest(&self, role: Role) -> Place {
        let mut batches = batches(self.whole).into_iter().rev();
        batches.find(|(_, header)| header.role == role).expect("written in the story").0
    }

    /// The file of the first segment that is there.
    pub(crate) fn first_segment(&self) -> String {
        batches(self.whole).remove(0).0.file
    }

    fn slot_places(&self) -> [(Place, Option<Checkpoint>); 2] {
        let half = self.whole[MANIFEST].len() / 2;
        let store = superblock_of(self.whole).store;
        [0, half].map(|at| {
            let bytes = &self.whole[MANIFEST][at..at + half];
            let checkpoint = Checkpoint::decode(bytes, store, 0).ok();
            let len = checkpoint.as_ref().map_or(half, Checkpoint::bytes);
            (Place::new(MANIFEST, at..at + len), checkpoint)
        })
    }

    /// A slot's place, and the checkpoint in it.
    pub(crate) fn slot(&self, slot: Slot) -> (Place, Checkpoint) {
        let mut slots = self.slot_places().map(|(place, it)| (place, it.expect("both are used")));
        slots.sort_by_key(|(_, checkpoint)| checkpoint.generation);
        let [other, newest] = slots;
        match slot {
            Slot::Newest => newest,
            Slot::Other => other,
        }
    }

    /// The file of the youngest run of a slot's checkpoint, which the other slot does not need.
    pub(crate) fn run(&self, slot: Slot) -> String {
        let youngest = |slot| self.slot(slot).1.runs[0].number;
        let of_slots = [Slot::Newest, Slot::Other].map(|slot| self.slot(slot).1.runs);
        let needs = |runs: &&Vec<_>| runs.iter().any(|run: &RunRef| run.number == youngest(slot));
        let slots = of_slots.iter().filter(needs);
        assert_eq!(slots.count(), 1, "runs are merged between two checkpoints");
        format!("{RUN}{:010}", youngest(slot))
    }

    /// The file of the segment in which the newest checkpoint ends.
    pub(crate) fn checkpoint_segment(&self) -> String {
        format!("{SEGMENT}{:010}", self.slot(Slot::Newest).1.segment.0)
    }

    pub(crate) fn remove(&mut self, file: &str) {
        assert!(self.files.remove(file).is_some(), "{file}");
    }

    pub(crate) fn remove_all(&mut self, prefix: &str) {
        self.files.retain(|file, _| !file.starts_with(prefix));
    }

    pub(crate) fn truncate(&mut self, file: &str, bytes: usize) {
        self.files.get_mut(file).expect("there").truncate(bytes);
    }

    fn reserve(&self) -> Vec<String> {
        let names = self.whole.keys().filter(|name| name.starts_with(RESERVE));
        let names: Vec<_> = names.cloned().collect();
        assert!(names.len() >= 4, "a whole reserve: {names:?}");
        names
    }

    /// All files of the reserve but so many are gone.
    pub(crate) fn remove_reserve(&mut self, left: usize) {
        self.reserve().iter().skip(left).for_each(|file| self.remove(file));
    }

    /// They were not finished, each at another length.
    pub(crate) fn cut_reserve(&mut self) {
        let cuts = self.reserve().into_iter().enumerate();
        cuts.for_each(|(number, file)| self.truncate(&file, number * 5000));
    }

    /// They hold what a segment held that nobody needed any more.
    pub(crate) fn fill_reserve(&mut self, segment: &str) {
        let bytes = self.whole[segment].clone();
        for file in self.reserve() {
            self.files.insert(file, bytes.clone());
        }
    }

    fn bytes(&mut self, place: &Place) -> &mut [u8] {
        &mut self.files.get_mut(&place.file).expect("there")[place.range.clone()]
    }

    /// Flips a bit near the place's beginning, behind the magic.
    pub(crate) fn damage(&mut self, place: &Place) {
        self.bytes(place)[17] ^= 4;
    }

    /// Flips a bit in its middle: of a batch, in its frames.
    pub(crate) fn damage_body(&mut self, place: &Place) {
        let middle = place.range.len() / 2;
        self.bytes(place)[middle] ^= 4;
    }

    /// Damages the first bytes of a file: its header.
    pub(crate) fn damage_header(&mut self, file: &str) {
        self.damage(&Place::new(file, 0..64));
    }

    /// A write to one place went to another.
    pub(crate) fn misdirect(&mut self, from: &Place, to: &Place) {
        let bytes = self.bytes(from).to_vec();
        self.bytes(to).copy_from_slice(&bytes);
    }

    /// The header that a segment had before it was taken over: of another incarnation.
    pub(crate) fn make_stale(&mut self, header: &Place) {
        let bytes = self.bytes(header);
        bytes[40] ^= 1;
        bytes[12..16].fill(0);
        let crc = crc32c::crc32c(bytes);
        bytes[12..16].copy_from_slice(&crc.to_le_bytes());
    }

    /// As before anything was written there.
    pub(crate) fn zero(&mut self, place: &Place) {
        self.bytes(place).fill(0);
    }

    /// Both tables of a batch are lost.
    pub(crate) fn damage_tables(&mut self, batch: &Place) {
        self.damage(&batch.head());
        self.zero(&batch.tail());
    }

    /// Brings a file back as it was at another moment.
    pub(crate) fn bring_back(&mut self, file: &str, moment: Moment) {
        let bytes = self.story[&moment].files[file].clone();
        self.files.insert(file.to_owned(), bytes);
    }

    /// Brings back all files of another moment that are not there any more.
    pub(crate) fn bring_back_removed(&mut self, moment: Moment) {
        let mut count = 0;
        for (file, bytes) in &self.story[&moment].files {
            if !self.files.contains_key(file) {
                self.files.insert(file.clone(), bytes.clone());
                count += 1;
            }
        }
        assert!(count > 0, "nothing was removed since {moment:?}");
    }

    /// Names another format version, with a checksum that fits; the magics, versions and checksums
    /// of all structures lie at the same place.
    pub(crate) fn make_newer(&mut self, place: &Place) {
        let bytes = self.bytes(place);
        bytes[8..10].copy_from_slice(&2_u16.to_le_bytes());
        bytes[12..16].fill(0);
        let crc = crc32c::crc32c(bytes);
        bytes[12..16].copy_from_slice(&crc.to_le_bytes());
    }

    pub(crate) fn superblock(&self) -> Place {
        Place::new(SUPERBLOCK, 0..superblock::BYTES)
    }

    pub(crate) fn segment_header(&self, file: &str) -> Place {
        Place::new(file, 0..segment::BYTES)
    }

    pub(crate) fn batch_header(&self, batch: &Place) -> Place {
        Place::new(&batch.file, batch.range.start..batch.range.start + HEADER_BYTES)
    }

    /// The n-th block of a run's file.
    pub(crate) fn run_block(&self, file: &str, number: usize) -> Place {
        Place::new(file, number * 4096..(number + 1) * 4096)
    }
}

fn superblock_of(files: &Files) -> Superblock {
    Superblock::decode(&files[SUPERBLOCK]).expect("whole")
}

/// All batches of all segments, in order of the log.
fn batches(files: &Files) -> Vec<(Place, BatchHeader)> {
    let superblock = superblock_of(files);
    let mut all = Vec::new();
    for (file, bytes) in files.iter().filter(|(file, _)| file.starts_with(SEGMENT)) {
        // One that is being made has no header yet.
        let Ok(header) = SegmentHeader::decode(bytes, &superblock, 0) else { continue };
        let SegmentHeader { store, shard, incarnation, block_bytes, .. } = header;
        let home = Home { store, shard, incarnation, block_bytes };
        let mut at = block_bytes;
        while let Ok(batch) = BatchHeader::decode(&bytes[at..], &home, at) {
            let end = at + batch.bytes as usize;
            all.push((Place::new(file, at..end), batch));
            at = end;
        }
    }
    all
}

/// Bytes that are free in the segment that is written.
pub(crate) fn room(files: &Files) -> usize {
    let (last, _) = batches(files).pop().expect("every log has a fence");
    files[&last.file].len() - last.range.end
}
