//! The replay of one shard's log: which batches are accepted, where the log ends, and what damage
//! takes away.

use std::collections::BTreeSet;

use super::Place;
use super::base::Base;
use super::files::{Scanned, Unknown, lone_batches};
use crate::directory::Directory;
use crate::error::{Error, Result};
use crate::format::batch::{BatchHeader, Role, Trailer};
use crate::format::checkpoint::Checkpoint;
use crate::format::frame::{self, Address};
use crate::format::superblock::Superblock;
use crate::format::{Rejected, len_u32};
use crate::ids::{Epoch, ObjectId, Sequence};
use crate::io::File;
use crate::live::Live;
use crate::namespaces::Namespaces;

/// Versions that a lost batch may have used at most; skipped, so that none is used twice.
const LOST_VERSIONS: u64 = 1 << 20;

/// The replay of one shard's log.
pub(super) struct Replay<F: File> {
    pub(super) directory: Directory<F>,
    pub(super) live: Live,
    /// Objects that lost batches held.
    pub(super) damaged: BTreeSet<ObjectId>,
    pub(super) epoch: Epoch,
    pub(super) last: Sequence,
    pub(super) last_crc: u32,
    pub(super) next_version: u64,
    pub(super) batches: u64,
    pub(super) log_bytes: u64,
    pub(super) dropped: Option<String>,
    pub(super) unknown: Vec<String>,
    shard: u16,
    accept_losses: bool,
}

/// Where in the files a batch lies: index of the file, offset.
type Spot = (usize, usize);

impl<F: File> Replay<F> {
    pub(super) fn new(place: &Place<'_>, base: &Base<F>) -> Self {
        let checkpoint = base.checkpoint();
        let objects = checkpoint.map_or(0, |it| it.objects);
        let counted = checkpoint.iter().flat_map(|it| &it.segments);
        let counted = counted.map(|it| (it.number.0, it.live_bytes, it.newest_s));
        let inexact = checkpoint.is_some_and(|it| it.inexact);
        let sums = checkpoint.iter().flat_map(|it| &it.namespaces).copied();
        Self {
            directory: Directory::new(place.superblock.store, base.runs.clone(), objects),
            live: Live::kept(counted, Namespaces::kept(sums), inexact),
            damaged: BTreeSet::new(),
            epoch: checkpoint.map_or(Epoch(0), |it| it.epoch),
            last: checkpoint.map_or(Sequence(0), |it| it.last),
            last_crc: checkpoint.map_or(0, |it| it.last_crc),
            next_version: checkpoint.map_or(1, |it| it.next_version),
            batches: 0,
            log_bytes: checkpoint.map_or(0, |it| it.log_bytes),
            dropped: None,
            unknown: Vec::new(),
            shard: place.shard,
            accept_losses: place.opening.accept_losses,
        }
    }

    /// Objects that lost batches held, and that no later commit made whole.
    pub(super) fn damaged(&self) -> Vec<ObjectId> {
        let is_damaged =
            |id: &&ObjectId| matches!(self.directory.get(id), Ok(Some(entry)) if entry.damaged);
        self.damaged.iter().filter(is_damaged).copied().collect()
    }

    /// Where the checkpoint ends.
    fn start(&mut self, files: &mut [Scanned<F>], checkpoint: &Checkpoint) -> Result<Option<Spot>> {
        let wanted = checkpoint.segments.last().expect("the one that it ends in");
        let found = files.iter_mut().enumerate().find(|(_, file)| {
            let header = file.segment.header;
            header.number == wanted.number && header.incarnation == wanted.incarnation
        });
        let Some((index, file)) = found else {
            let number = wanted.number.0;
            self.unknown(format!(
                "segment {number}, in which the checkpoint ends, is gone or damaged"
            ))?;
            return Ok(None);
        };
        file.accepted = true;
        Ok(Some((index, checkpoint.offset as usize)))
    }

    pub(super) fn run(
        &mut self,
        files: &mut [Scanned<F>],
        checkpoint: Option<&Checkpoint>,
    ) -> Result<()> {
        // Where the next batch would be, if it is in the same segment.
        let mut here = match checkpoint {
            Some(checkpoint) => self.start(files, checkpoint)?,
            None => None,
        };
        loop {
            let next = self.fence(files).or_else(|| self.next(files, here));
            let (file, offset) = match next {
                Some(place) => place,
                None => {
                    self.check_newer(files, here)?;
                    match self.vouched(files, here) {
                        None => break,
                        Some(place) => {
                            self.lose(files, here, place)?;
                            place
                        }
                    }
                }
            };
            let header = files[file].batch_at(offset).expect("checked by whoever chose it");
            self.accept(&mut files[file], offset, &header)?;
            here = Some((file, offset + header.bytes as usize));
        }
        if self.batches == 0 && checkpoint.is_none() {
            self.unknown("its log has no beginning".to_owned())?;
        }
        self.dropped =
            candidates(files, here).find_map(|(file, offset)| self.torn_end(&files[file], offset));
        Ok(())
    }

    /// A fence of a newer epoch that names the last batch accepted; of several, the newest.
    fn fence(&self, files: &[Scanned<F>]) -> Option<Spot> {
        let fences = files.iter().enumerate().filter_map(|(index, file)| {
            let header = file.batch_at(file.first()).ok()?;
            let follows = header.role == Role::Fence
                && header.epoch > self.epoch
                && header.sequence == self.last.next()
                && header.previous_crc == self.last_crc;
            follows.then_some((header.epoch, (index, file.first())))
        });
        fences.max_by_key(|(epoch, place)| (*epoch, *place)).map(|(_, place)| place)
    }

    /// The next batch of this epoch, right here or at the head of a later segment.
    fn next(&self, files: &[Scanned<F>], here: Option<Spot>) -> Option<Spot> {
        candidates(files, here).find(|(file, offset)| {
            files[*file].batch_at(*offset).is_ok_and(|header| {
                header.sequence == self.last.next()
                    && header.epoch == self.epoch
                    && header.previous_crc == self.last_crc
            })
        })
    }

    /// What newer code wrote is neither an end nor damage (E8).
    fn check_newer(&self, files: &[Scanned<F>], here: Option<Spot>) -> Result<()> {
        for (file, offset) in candidates(files, here) {
            if let Err(Rejected::Version(version)) = files[file].header_at(offset) {
                let what = format!("a batch of {}", files[file].segment.name);
                return Err(Error::newer_format(&what, version));
            }
        }
        Ok(())
    }

    /// A valid batch that says that the missing one was durable: the log is damaged before it.
    fn vouched(&self, files: &[Scanned<F>], here: Option<Spot>) -> Option<Spot> {
        let missing = self.last.next();
        let vouches = |(file, offset): &Spot| {
            files[*file].batch_at(*offset).is_ok_and(|header| {
                header.sequence > missing && header.durable >= missing && header.epoch >= self.epoch
            })
        };
        // Also behind the head of a later segment: the head itself may be what is damaged.
        let (current, first) = here.unwrap_or((0, 0));
        let mut blocks = (current..files.len()).flat_map(|index| {
            let block = files[index].first();
            let start = if index == current { first.max(block) } else { block };
            (start..files[index].bytes.len()).step_by(block).map(move |offset| (index, offset))
        });
        blocks.find(vouches)
    }

    /// Gives up the batches before `next`: whatever their tables name is unreadable. Without the
    /// table of each, nobody knows what was lost, and the shard must not open.
    fn lose(&mut self, files: &mut [Scanned<F>], here: Option<Spot>, next: Spot) -> Result<()> {
        let upto = files[next.0].batch_at(next.1).expect("chosen by `vouched`").sequence;
        let mut missing = self.last.next();
        while missing < upto {
            let Some(ids) = find_table(files, here, missing) else {
                let place = match here {
                    Some((file, offset)) => {
                        format!("at {} offset {offset}", files[file].segment.name)
                    }
                    None => "at the log's beginning, and no checkpoint can be used".to_owned(),
                };
                self.unknown(format!(
                    "batch {} was durable and is lost, {place}; nothing says which objects it held",
                    missing.0
                ))?;
                missing = missing.next();
                continue;
            };
            for id in ids {
                self.damaged.insert(id);
                self.directory.damage(id);
            }
            missing = missing.next();
        }
        self.next_version += LOST_VERSIONS;
        // What is left of these batches stays: the next opening needs it to find the same (E7), and
        // a repair to bring back what it can. So their files are kept, whatever is live in them.
        let first = here.map_or(0, |(file, _)| file);
        for file in &mut files[first..=next.0] {
            file.accepted = true;
            file.segment.kept = true;
        }
        Ok(())
    }

    fn accept(&mut self, file: &mut Scanned<F>, offset: usize, header: &BatchHeader) -> Result<()> {
        file.accepted = true;
        let frames = header.frames();
        let (mut at, end) = (offset + frames.start, offset + frames.end);
        let incarnation = file.segment.header.incarnation;
        while at < end {
            let place = len_u32(at);
            let decoded = frame::decode(&file.bytes[at..end], incarnation, place);
            let frame = decoded.map_err(|why| {
                Error::corrupt(format!(
                    "{} offset {at}: frame in a whole batch: {why}",
                    file.segment.name
                ))
            })?;
            let bytes = frame::peek_bytes(&file.bytes[at..end]).expect("decoded above");
            let segment = file.segment.header.number.0;
            let address = Address { segment, offset: place, bytes: len_u32(bytes) };
            self.next_version = self.next_version.max(frame.version.0 + 1);
            self.directory.replay(&frame, address, &mut self.live);
            at += bytes;
        }
        self.epoch = header.epoch;
        self.last = header.sequence;
        self.last_crc = header.crc;
        self.batches += 1;
        self.log_bytes += u64::from(header.bytes);
        Ok(())
    }

    /// What was begun where the log ends, and nobody vouches for: which batch, and what is wrong
    /// with it.
    fn torn_end(&self, file: &Scanned<F>, offset: usize) -> Option<String> {
        let why = match file.batch_at(offset) {
            Ok(header) if header.sequence == self.last.next() => {
                Rejected::Malformed("epoch").to_string()
            }
            Ok(_) => return None,
            Err(Rejected::Short | Rejected::Foreign | Rejected::Magic) => {
                match file.is_written_behind(offset, self.last) {
                    true => "its header is gone".to_owned(),
                    false => return None,
                }
            }
            Err(why) => why.to_string(),
        };
        let name = &file.segment.name;
        let sequence = self.last.next().0;
        let bytes = match file.header_at(offset) {
            Ok(header) => format!("{} bytes", header.bytes),
            Err(_) => "unknown bytes".into(),
        };
        Some(format!("batch {sequence}, {bytes}, at {name} offset {offset}: {why}"))
    }

    /// A damaged file may be one in which the log went on, unless it shows that nothing was written
    /// to it, or nothing that the log lacks.
    pub(super) fn check_unknown(
        &mut self,
        unknown: &[Unknown],
        superblock: &Superblock,
    ) -> Result<()> {
        for file in unknown {
            // Any batch, not only the first: that one may be damaged too.
            let batches: Vec<_> = lone_batches(&file.bytes, superblock, self.shard).collect();
            let newest = batches.iter().map(|(_, header, _)| header.sequence).max();
            let block = superblock.block_bytes;
            let first = file.bytes.get(block..2 * block).filter(|_| file.len >= 2 * block as u64);
            // Batches behind it may be left of what the file held before it was used again.
            let unused = || first.is_some_and(crate::format::all_zero);
            let known = || batches.first().is_some_and(|(at, ..)| *at == block);
            let name = &file.name;
            if newest.is_some_and(|newest| newest > self.last) {
                self.unknown(format!("{name} is damaged, and the log goes on in it"))?;
            } else if !known() && !unused() {
                self.unknown(format!("{name} is damaged, and nothing says what was in it"))?;
            }
        }
        Ok(())
    }

    /// The log must reach what any checkpoint says was durable.
    pub(super) fn check_vouched(&mut self, vouched: Sequence) -> Result<()> {
        if self.last < vouched {
            let (last, upto) = (self.last.0, vouched.0);
            self.unknown(format!(
                "a checkpoint vouches for batches up to {upto}, the log ends after {last}"
            ))?;
            self.last = vouched;
        }
        Ok(())
    }

    /// Something was lost, and nothing says which objects it held.
    ///
    /// Errors: `Corrupt`, unless losses are accepted.
    fn unknown(&mut self, what: String) -> Result<()> {
        let what = format!("shard {}: {what}", self.shard);
        if !self.accept_losses {
            return Err(Error::corrupt(format!("{what}: repair or restore the store")));
        }
        tracing::error!(what, "a loss is accepted");
        self.next_version += LOST_VERSIONS;
        self.unknown.push(what);
        Ok(())
    }
}

/// Where the next batch may lie: right here, or at the head of a later segment.
fn candidates<F>(files: &[Scanned<F>], here: Option<Spot>) -> impl Iterator<Item = Spot> + '_ {
    let heads = here.map_or(files.len(), |(current, _)| current + 1)..files.len();
    here.into_iter().chain(heads.map(|index| (index, files[index].first())))
}

/// Searches for the table of a lost batch, at its head or at its tail.
fn find_table<F>(
    files: &[Scanned<F>],
    here: Option<Spot>,
    sequence: Sequence,
) -> Option<Vec<ObjectId>> {
    let first = here.map_or(0, |(file, _)| file);
    files[first..].iter().enumerate().find_map(|(index, file)| {
        let block = file.first();
        let start = match here {
            Some((_, offset)) if index == 0 => offset,
            _ => block,
        };
        let home = file.segment.home();
        (start..file.bytes.len()).step_by(block).find_map(|at| {
            let head = BatchHeader::decode(&file.bytes[at..], &home, at)
                .ok()
                .filter(|header| header.sequence == sequence)
                .and_then(|header| header.table(&file.bytes[at..]).ok());
            head.or_else(|| {
                let tail = Trailer::decode(&file.bytes[..at + block], &home).ok()?;
                (tail.sequence == sequence).then_some(tail.ids)
            })
        })
    })
}
