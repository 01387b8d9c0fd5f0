//! One run of the directory on disk: mapped, and believed block by block.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;

use super::guide::Guide;
use super::{Entry, Keyed, Known};
use crate::error::{Error, Result};
use crate::format::Rejected;
use crate::format::checkpoint::RunRef;
use crate::format::entry::RawEntry;
use crate::format::run::{self, BLOCK_BYTES, Key, RunHeader};
use crate::ids::{Incarnation, ObjectId};
use crate::io::{File, PageBuf, read_full_at};

/// Guesses by interpolation before the search goes on by halves.
const GUESSES: u32 = 6;
/// Blocks that are brought in around a guess: 64 KiB, which a device gives about as fast as one. In a run of a hundred
/// thousand objects 19 guesses of 20 are this near.
const WARM_BLOCKS: u32 = 16;
/// How often that is done for one look: each time the guess is nearer, in a run of a hundred million too.
const WARM_ROUNDS: usize = 4;

/// An open run. Its file stays open, and so locked, for as long as it is used.
pub(crate) struct Run<F: File> {
    pub(crate) header: RunHeader,
    file: F,
    pub(super) map: F::Map,
    guide: Guide,
    /// Whether a block was found damaged: it is not merged with others again and again.
    pub(crate) damaged: Cell<bool>,
    /// Whether it is being merged with others.
    pub(crate) merging: Cell<bool>,
    /// Alarms before this one are of objects that have a newer entry elsewhere.
    passed: Cell<usize>,
    /// Alarms that were read last.
    alarms: RefCell<Alarms>,
}

/// Some of a run's alarms, earliest first: those of one block, for all of them may be many, or, where the
/// blocks are damaged, all.
#[derive(Default)]
struct Alarms {
    /// The place of the first one among all.
    first: usize,
    read: Vec<(u64, ObjectId)>,
    are_all: bool,
}

impl<F: File> Run<F> {
    /// The run that a file holds, its header checked.
    pub(crate) fn opened(header: RunHeader, file: F) -> std::io::Result<Self> {
        Self::new(header, file, Guide::unknown(header.entry_blocks))
    }

    /// A run that was written just now.
    pub(super) fn new(header: RunHeader, file: F, guide: Guide) -> std::io::Result<Self> {
        let map = file.map()?;
        let (damaged, merging, passed, alarms) = Default::default();
        Ok(Self { header, file, map, guide, damaged, merging, passed, alarms })
    }

    /// As a checkpoint names it.
    pub(crate) fn to_ref(&self) -> RunRef {
        let RunHeader { number, incarnation, entry_blocks, alarm_blocks, .. } = self.header;
        RunRef { number, entry_blocks, alarm_blocks, incarnation }
    }

    /// Blocks of the file.
    pub(crate) fn blocks(&self) -> u64 {
        run::file_blocks(&self.header)
    }

    fn block(&self, number: u32) -> &[u8] {
        let start = number as usize * BLOCK_BYTES;
        self.map.get(start..start + BLOCK_BYTES).unwrap_or_default()
    }

    fn error(&self, number: u32, why: Rejected) -> Error {
        let run = self.header.number;
        Error::corrupt(format!("block {number} of run {run} of the directory: {why}"))
    }

    /// The hash of the block's first key, and whether that is above `key`.
    fn first(&self, block: u32, key: &Key) -> Result<(u64, bool), Rejected> {
        if let Some(hash) = self.guide.first(block).filter(|hash| *hash != key.hash) {
            return Ok((hash, hash > key.hash));
        }
        let id = run::first_id(self.block(block), self.header.incarnation, block)?;
        let first = Key::new(self.header.store, id);
        self.guide.learn(block, first.hash);
        Ok((first.hash, first > *key))
    }

    /// The entry of an object: `None` if the run knows nothing of it, `Some(None)` if it was deleted.
    ///
    /// Errors: `Corrupt`, if a damaged block may hold it.
    pub(crate) fn find(&self, key: &Key) -> Result<Option<Option<Entry>>> {
        self.find_with(key, run::find)
    }

    /// All that the run says of an object.
    ///
    /// Errors: as [`Run::find`].
    pub(crate) fn find_known(&self, key: &Key) -> Result<Option<Known>> {
        self.find_with(key, run::find_known)
    }

    fn find_with<T>(
        &self,
        key: &Key,
        find: impl Fn(&[u8], Incarnation, u32, &Key) -> Result<Option<T>, Rejected>,
    ) -> Result<Option<T>> {
        let (block, next_is_readable) = self.candidate(key);
        let found = match block.filter(|block| self.guide.may_hold(*block, key)) {
            None => None,
            Some(block) => find(self.block(block), self.header.incarnation, block, key)
                .map_err(|why| self.error(block, why))?,
        };
        match found.is_some() || next_is_readable {
            true => Ok(found),
            false => Err(self.error(block.map_or(1, |block| block + 1), Rejected::Checksum)),
        }
    }

    /// The last block whose beginning is known, or can be read, and is not above `key`; and whether
    /// that of the block behind it is known too, or there is none.
    fn candidate(&self, key: &Key) -> (Option<u32>, bool) {
        // Blocks are numbered from 1. Those before `left` begin at or below the key, those from
        // `right` on above it, or they are damaged.
        let (mut left, mut right) = (1, self.header.entry_blocks + 1);
        let (mut low, mut high) = (0, u64::MAX);
        let (mut guesses, mut next_is_readable) = (0, true);
        while left < right {
            let guess = match guesses < GUESSES {
                true => guess(key.hash, (low, high), left, right),
                false => left + (right - left) / 2,
            };
            guesses += 1;
            let readable = |at: u32| Some((at, self.first(at, key).ok()?));
            let from_guess = (guess..right).find_map(readable);
            match from_guess.or_else(|| (left..guess).rev().find_map(readable)) {
                None => (right, next_is_readable) = (left, false),
                Some((at, (first, true))) => {
                    (right, next_is_readable) = (at.min(guess), at <= guess);
                    high = first;
                }
                Some((at, (first, false))) => {
                    (left, low) = (at + 1, first);
                    if at < guess {
                        (right, next_is_readable) = (left, false);
                    }
                }
            }
        }
        ((left > 1).then(|| left - 1), next_is_readable)
    }

    /// The block of which a look for this key would first have to find out how it begins: `None` if it has only
    /// known ones to look at.
    fn unknown(&self, key: &Key) -> Option<u32> {
        let (mut left, mut right) = (1, self.header.entry_blocks + 1);
        let (mut low, mut high) = (0, u64::MAX);
        while left < right {
            let guess = guess(key.hash, (low, high), left, right);
            match self.guide.first(guess) {
                None => return Some(guess),
                Some(first) if first > key.hash => (right, high) = (guess, first),
                Some(first) => (left, low) = (guess + 1, first),
            }
        }
        None
    }

    /// Whether a look for this key would meet a block of which nothing is known yet.
    pub(crate) fn is_cold(&self, key: &Key) -> bool {
        self.unknown(key).is_some()
    }

    /// Brings in what a look for this key will want of a run that may lie on the device alone, so that the look, which
    /// can't wait, does not stop the core for each block that it meets. What can't be read is the look's to tell of.
    pub(crate) async fn warm(&self, key: &Key) {
        for _ in 0..WARM_ROUNDS {
            let Some(block) = self.unknown(key) else { return };
            let first = block.saturating_sub(WARM_BLOCKS / 2).max(1);
            let blocks = first..(first + WARM_BLOCKS).min(self.header.entry_blocks + 1);
            let buf = PageBuf::zeroed(blocks.len() * BLOCK_BYTES);
            let offset = u64::from(first) * BLOCK_BYTES as u64;
            let (read, _in_the_page_cache) =
                read_full_at(&self.file, buf, offset, BLOCK_BYTES).await;
            if read.is_err() {
                return;
            }
            for block in blocks.filter(|block| self.guide.first(*block).is_none()) {
                if let Ok(id) = run::first_id(self.block(block), self.header.incarnation, block) {
                    self.guide.learn(block, Key::new(self.header.store, id).hash);
                }
            }
        }
    }

    /// All entries from the one behind `after` on, in order of their keys.
    pub(crate) fn entries(&self, after: Option<&Key>) -> Entries<'_, F> {
        let block = after.and_then(|after| self.candidate(after).0).unwrap_or(1);
        Entries { run: self, block, read: Vec::new().into_iter(), after: after.copied() }
    }

    /// Its blocks of entries that are damaged, be it in an entry or two.
    pub(crate) fn damaged_entry_blocks(&self) -> BTreeSet<u32> {
        let is_damaged = |block: &u32| {
            run::entries(self.block(*block), self.header.incarnation, *block).is_err()
        };
        (1..=self.header.entry_blocks).filter(is_damaged).collect()
    }

    /// The block that holds the key, if the run does.
    pub(crate) fn block_of(&self, key: &Key) -> Option<u32> {
        self.candidate(key).0
    }

    /// What of it can't be read.
    pub(crate) fn damaged_blocks(&self) -> Vec<Error> {
        let (entries, incarnation) = (self.header.entry_blocks, self.header.incarnation);
        let blocks = 1..=entries + self.header.alarm_blocks;
        let damaged = blocks.filter_map(|number| {
            let read = match number <= entries {
                true => {
                    let entries = run::entries(self.block(number), incarnation, number);
                    entries.and_then(|all| all.iter().try_for_each(|it| it.known(None).map(drop)))
                }
                false => run::alarms(self.block(number), incarnation, number).map(drop),
            };
            Some(self.error(number, read.err()?))
        });
        damaged.collect()
    }

    /// Alarms, earliest first, without those that were passed.
    pub(crate) fn alarms(&self) -> impl Iterator<Item = (u64, ObjectId)> {
        let mut next = self.passed.get();
        std::iter::from_fn(move || {
            let alarm = self.alarm(next)?;
            next += 1;
            Some(alarm)
        })
    }

    fn alarm(&self, place: usize) -> Option<(u64, ObjectId)> {
        let alarms = &mut *self.alarms.borrow_mut();
        let there = |alarms: &Alarms| alarms.read.get(place.checked_sub(alarms.first)?).copied();
        if let Some(alarm) = there(alarms) {
            return Some(alarm);
        }
        let block = place / run::ALARMS_PER_BLOCK;
        if alarms.are_all || block >= self.header.alarm_blocks as usize {
            return None;
        }
        let number = 1 + self.header.entry_blocks + u32::try_from(block).expect("checked above");
        *alarms = match run::alarms(self.block(number), self.header.incarnation, number) {
            Ok(read) => Alarms { first: block * run::ALARMS_PER_BLOCK, read, are_all: false },
            Err(why) => self.alarms_of_entries(why),
        };
        there(alarms)
    }

    /// The earliest so many alarms are no longer this run's to know.
    pub(crate) fn pass(&self, count: usize) {
        self.passed.set(self.passed.get() + count);
    }

    /// All alarms as the entries have them: those in the blocks are a hint only.
    fn alarms_of_entries(&self, why: Rejected) -> Alarms {
        let run = self.header.number;
        tracing::error!(run, %why, "the alarms of a run are damaged: read from its entries");
        let entries = self.entries(None).filter_map(Result::ok);
        let mut read: Vec<_> =
            entries.filter_map(|(key, entry)| Some((entry.alarm()?, key.id))).collect();
        read.sort_unstable();
        Alarms { first: 0, read, are_all: true }
    }
}

/// Where a hash may stand between two others.
fn guess(hash: u64, (low, high): (u64, u64), left: u32, right: u32) -> u32 {
    let (span, within) = (high.saturating_sub(low).max(1), hash.saturating_sub(low));
    let offset = u128::from(within) * u128::from(right - left) / u128::from(span);
    let offset = u32::try_from(offset).unwrap_or(u32::MAX);
    left.saturating_add(offset).min(right - 1)
}

/// A walk over a run's entries. A damaged block is given as an error, once, and left out.
pub(crate) struct Entries<'a, F: File> {
    run: &'a Run<F>,
    block: u32,
    read: std::vec::IntoIter<RawEntry>,
    after: Option<Key>,
}

impl<F: File> Iterator for Entries<'_, F> {
    type Item = Result<Keyed>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            for entry in self.read.by_ref() {
                let key = Key::new(self.run.header.store, entry.id());
                if self.after.is_none_or(|after| key > after) {
                    return Some(Ok((key, entry)));
                }
            }
            if self.block > self.run.header.entry_blocks {
                return None;
            }
            let block = self.block;
            self.block += 1;
            match run::entries(self.run.block(block), self.run.header.incarnation, block) {
                Ok(read) => self.read = read.into_iter(),
                Err(why) => {
                    self.run.damaged.set(true);
                    return Some(Err(self.run.error(block, why)));
                }
            }
        }
    }
}
