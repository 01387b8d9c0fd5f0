//! The bytes of one simulated file: durable ones, and versions of sectors that are not yet.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use super::fate::{Fate, Torn};
use crate::trace::Trace;

/// What a device writes as a whole, or tears.
pub(super) const SECTOR_BYTES: usize = 512;

type Sector = [u8; SECTOR_BYTES];

/// One file's bytes.
#[derive(Clone, Default)]
pub(super) struct Contents {
    durable: Vec<u8>,
    /// Visible length; the durable one is that of `durable`.
    len: usize,
    /// Whether it was cut since the last sync.
    shrunk: bool,
    /// For each sector what was written to it and is not durable, oldest first.
    versions: BTreeMap<usize, Vec<Sector>>,
    /// What each sector held durably before its last write, where that is kept.
    before: Option<BTreeMap<usize, Sector>>,
    /// Sectors that the device can't read.
    unreadable: BTreeSet<usize>,
}

impl Contents {
    pub(super) fn new(history: bool) -> Self {
        Self { before: history.then(BTreeMap::new), ..Self::default() }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    fn durable_sector(&self, sector: usize) -> Sector {
        let mut bytes = [0; SECTOR_BYTES];
        let start = sector * SECTOR_BYTES;
        if let Some(rest) = self.durable.get(start..) {
            let kept = rest.len().min(SECTOR_BYTES);
            bytes[..kept].copy_from_slice(&rest[..kept]);
        }
        bytes
    }

    fn visible_sector(&self, sector: usize) -> Sector {
        match self.versions.get(&sector).and_then(|versions| versions.last()) {
            Some(version) => *version,
            None => self.durable_sector(sector),
        }
    }

    /// Reads what is visible; returns how many bytes there were.
    pub(super) fn read(&self, offset: usize, out: &mut [u8]) -> usize {
        let end = (offset + out.len()).min(self.len);
        let mut at = offset;
        if self.versions.is_empty() && at < end {
            // What is not there yet reads as zero.
            let there = self.durable.get(at..end.min(self.durable.len())).unwrap_or_default();
            out[..there.len()].copy_from_slice(there);
            out[there.len()..end - offset].fill(0);
            at = end;
        }
        while at < end {
            let bytes = self.visible_sector(at / SECTOR_BYTES);
            let within = at % SECTOR_BYTES;
            let count = (SECTOR_BYTES - within).min(end - at);
            out[at - offset..at - offset + count].copy_from_slice(&bytes[within..within + count]);
            at += count;
        }
        end.saturating_sub(offset)
    }

    /// Calls `set` with each sector that a write touches, and its bytes after the write.
    fn each_sector(&mut self, offset: usize, bytes: &[u8], set: fn(&mut Self, usize, Sector)) {
        let end = offset + bytes.len();
        self.len = self.len.max(end);
        let mut at = offset;
        while at < end {
            let sector = at / SECTOR_BYTES;
            let within = at % SECTOR_BYTES;
            let count = (SECTOR_BYTES - within).min(end - at);
            let part = &bytes[at - offset..at - offset + count];
            let new = match Sector::try_from(part) {
                Ok(whole) => whole,
                Err(_) => {
                    let mut new = self.visible_sector(sector);
                    new[within..within + count].copy_from_slice(part);
                    new
                }
            };
            set(self, sector, new);
            at += count;
        }
    }

    /// Writes so that a power cut may still take it.
    pub(super) fn write_visible(&mut self, offset: usize, bytes: &[u8]) {
        self.each_sector(offset, bytes, |contents, sector, new| {
            contents.versions.entry(sector).or_default().push(new);
        });
    }

    /// Writes for good.
    pub(super) fn write_durable(&mut self, offset: usize, bytes: &[u8]) {
        let end = offset + bytes.len();
        let plain = self.versions.is_empty() && self.before.is_none() && self.unreadable.is_empty();
        if plain && end.is_multiple_of(SECTOR_BYTES) {
            self.len = self.len.max(end);
            if self.durable.len() < end {
                self.durable.resize(end, 0);
            }
            self.durable[offset..end].copy_from_slice(bytes);
            return;
        }
        self.each_sector(offset, bytes, Self::settle);
    }

    /// Fails if the device can't read a sector of this range.
    pub(super) fn check_readable(&self, offset: usize, bytes: usize) -> io::Result<()> {
        let sectors = offset / SECTOR_BYTES..(offset + bytes).div_ceil(SECTOR_BYTES);
        match self.unreadable.range(sectors).next() {
            Some(at) => Err(io::Error::other(format!("simulated: sector {at} can't be read"))),
            None => Ok(()),
        }
    }

    /// From now on the device can't read this sector, until it is written anew.
    pub(super) fn make_unreadable(&mut self, at: usize) {
        self.unreadable.insert(at);
    }

    fn settle(&mut self, sector: usize, bytes: Sector) {
        self.versions.remove(&sector);
        self.unreadable.remove(&sector);
        let old = self.before.is_some().then(|| self.durable_sector(sector));
        if let (Some(before), Some(old)) = (&mut self.before, old) {
            before.insert(sector, old);
        }
        let end = (sector + 1) * SECTOR_BYTES;
        if self.durable.len() < end {
            self.durable.resize(end, 0);
        }
        self.durable[end - SECTOR_BYTES..end].copy_from_slice(&bytes);
    }

    /// What a sync that begins now covers: sectors, and how many of their versions.
    pub(super) fn unsynced(&self) -> Vec<(usize, usize)> {
        self.versions.iter().map(|(sector, versions)| (*sector, versions.len())).collect()
    }

    /// Makes durable what a sync covered when it began.
    pub(super) fn sync(&mut self, covers: &[(usize, usize)], bytes: usize) {
        for (sector, count) in covers {
            let Some(mut versions) = self.versions.remove(sector) else { continue };
            let count = (*count).min(versions.len());
            let later = versions.split_off(count);
            let newest = versions.pop().expect("a covered sector has a version");
            self.settle(*sector, newest);
            if !later.is_empty() {
                self.versions.insert(*sector, later);
            }
        }
        if self.durable.len() < bytes || self.shrunk && bytes == self.len {
            self.durable.resize(bytes, 0);
            self.shrunk = false;
        }
    }

    /// Makes the file this long at most; for good with the next sync.
    pub(super) fn shrink(&mut self, bytes: usize) {
        if bytes < self.len {
            self.len = bytes;
            self.versions.retain(|sector, _| sector * SECTOR_BYTES < bytes);
            self.shrunk = true;
        }
    }

    /// Makes the file at least this long, with zeros.
    pub(super) fn extend(&mut self, bytes: usize) {
        self.len = self.len.max(bytes);
    }

    /// Durable sectors that hold something.
    pub(super) fn used_sectors(&self) -> Vec<usize> {
        let sectors = self.durable.chunks(SECTOR_BYTES).enumerate();
        let used = sectors.filter(|(_, bytes)| bytes.iter().any(|byte| *byte != 0));
        used.map(|(at, _)| at).collect()
    }

    pub(super) fn sector(&self, at: usize) -> Sector {
        self.durable_sector(at)
    }

    pub(super) fn sector_before(&self, at: usize) -> Sector {
        self.before
            .as_ref()
            .and_then(|before| before.get(&at))
            .copied()
            .unwrap_or([0; SECTOR_BYTES])
    }

    pub(super) fn set_sector(&mut self, at: usize, bytes: Sector) {
        self.settle(at, bytes);
    }

    /// Makes each sector what `fate` says; so many of them stand or fall together.
    pub(super) fn power_cut(&mut self, fate: &mut dyn Fate, together: usize) {
        let versions = std::mem::take(&mut self.versions);
        let mut blocks: BTreeMap<usize, Vec<(usize, Vec<Sector>)>> = BTreeMap::new();
        for (sector, versions) in versions {
            blocks.entry(sector / together).or_default().push((sector, versions));
        }
        for sectors in blocks.into_values() {
            // By age: 0 is what was durable. A sector that was written less often has older ones.
            let newest = sectors.iter().map(|(_, versions)| versions.len()).max().unwrap_or(0);
            let Torn { first, second, at } = fate.block(newest, together * SECTOR_BYTES);
            for (sector, versions) in sectors {
                let old = self.durable_sector(sector);
                let version = |age: usize| match age.min(versions.len()) {
                    0 => old,
                    age => versions[age - 1],
                };
                let mut bytes = version(first);
                let start = sector % together * SECTOR_BYTES;
                let kept = at.saturating_sub(start).min(SECTOR_BYTES);
                bytes[kept..].copy_from_slice(&version(second)[kept..]);
                self.settle(sector, bytes);
            }
        }
        // An unsynced length may be lost too, down to the last sector that is durable.
        if !fate.length() {
            self.len = self.durable.len();
        }
        self.durable.resize(self.len.max(self.durable.len()), 0);
        self.len = self.durable.len();
    }

    /// Blocks of so many sectors that a power cut may change.
    pub(super) fn unsynced_blocks(&self, together: usize) -> usize {
        let mut blocks: Vec<_> = self.versions.keys().map(|sector| sector / together).collect();
        blocks.dedup();
        blocks.len()
    }

    /// Folds its bytes in, durable or not.
    pub(super) fn fold(&self, trace: &mut Trace) {
        trace.number(self.len as u64);
        trace.bytes(&self.durable);
        for (sector, versions) in &self.versions {
            trace.number(*sector as u64);
            versions.iter().for_each(|version| trace.bytes(version));
        }
    }
}
