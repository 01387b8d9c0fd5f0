//! A shard's files as recovery finds them: which are read whole, which are kept, and which nothing
//! needs.

use std::collections::BTreeSet;

use futures_util::future::join_all;

use super::Place;
use super::base::Base;
use crate::directory;
use crate::env::Env;
use crate::error::{Error, Kind, Result};
use crate::format::batch::{BatchHeader, Home, Trailer};
use crate::format::checkpoint::SegmentRef;
use crate::format::segment::SegmentHeader;
use crate::format::superblock::Superblock;
use crate::format::{Rejected, all_zero, get, len_u32};
use crate::ids::{Incarnation, SegmentNumber, Sequence};
use crate::io::{Create, Disk, File, Mode, Open, PageBuf, read_full_at};
use crate::log::handles::Handle;
use crate::log::reserve::{self, Reserve};
use crate::log::segments::{self, FileOf, Recycled, Segment, Segments};

/// A segment's file with the bytes of the log that may be in it.
pub(super) struct Scanned<F> {
    pub(super) segment: Segment<F>,
    pub(super) bytes: PageBuf,
    pub(super) accepted: bool,
}

impl<F> Scanned<F> {
    pub(super) fn header_at(&self, offset: usize) -> Result<BatchHeader, Rejected> {
        let bytes = self.bytes.get(offset..).ok_or(Rejected::Short)?;
        BatchHeader::decode(bytes, &self.segment.home(), offset)
    }

    /// The whole batch at `offset`, header and body checked.
    pub(super) fn batch_at(&self, offset: usize) -> Result<BatchHeader, Rejected> {
        let header = self.header_at(offset)?;
        header.check_body(&self.bytes[offset..])?;
        Ok(header)
    }

    /// Whether anything of a batch after `last` lies at `offset` or behind it: a header, or the
    /// trailer of a batch whose header never came.
    pub(super) fn is_written_behind(&self, offset: usize, last: Sequence) -> bool {
        let (block, home) = (self.first(), self.segment.home());
        (offset..self.bytes.len()).step_by(block).any(|at| {
            let trailer = || Trailer::decode(&self.bytes[..at + block], &home);
            self.header_at(at).is_ok_and(|header| header.sequence > last)
                || trailer().is_ok_and(|trailer| trailer.sequence > last)
        })
    }

    pub(super) fn first(&self) -> usize {
        self.segment.header.block_bytes
    }
}

/// A file that has a segment's name, and no valid header or too few bytes.
pub(super) struct Unknown {
    pub(super) name: String,
    /// Bytes of the file.
    pub(super) len: u64,
    /// They, and zeros to the end of the last block.
    pub(super) bytes: PageBuf,
}

pub(super) struct Files<F> {
    /// From where replay begins, in order of their numbers.
    pub(super) scanned: Vec<Scanned<F>>,
    /// Those before that are needed.
    pub(super) old: Segments<F>,
    /// Names of files that nothing needs.
    pub(super) stale: Vec<String>,
    pub(super) unknown: Vec<Unknown>,
    pub(super) next_number: u32,
    /// Runs that a slot needs and that are there.
    pub(super) runs: BTreeSet<u32>,
    pub(super) reserve: Reserve,
}

/// A segment's file as it was opened.
struct Found<F> {
    name: String,
    /// Its number by its name.
    named: u32,
    file: F,
    len: u64,
    /// Its first block.
    head: PageBuf,
}

/// What one segment's file is to recovery.
enum Taken<F> {
    Scanned(Scanned<F>),
    Old(Segment<F>),
    Unknown(Unknown),
}

pub(super) async fn read_files<E: Env>(
    env: &E,
    place: &Place<'_>,
    base: &Base<FileOf<E>>,
) -> Result<Files<FileOf<E>>> {
    let Place { shard, limits, .. } = *place;
    let list = env.disk().list().await.map_err(|source| failed("the directory", source))?;
    let mut files = Files {
        scanned: Vec::new(),
        old: Segments::new(),
        stale: Vec::new(),
        unknown: Vec::new(),
        next_number: 1,
        runs: BTreeSet::new(),
        reserve: Reserve::default(),
    };
    let from = base.checkpoint().map_or(0, |checkpoint| checkpoint.segment.0);
    let (mut opening, mut reserved) = (Vec::new(), Vec::new());
    for name in list {
        if let Some(number) = reserve::number_in_name(shard, &name) {
            reserved.push((number, name));
            continue;
        }
        if let Some(run) = directory::number_in_name(shard, &name) {
            match base.needs.iter().flatten().any(|needs| needs.runs.contains(&run)) {
                true => drop(files.runs.insert(run)),
                false => files.stale.push(name),
            }
            continue;
        }
        if let Some(number) = segments::number_in_preparing(shard, &name) {
            files.next_number = files.next_number.max(number.saturating_add(1));
            files.stale.push(name);
            continue;
        }
        let Some(named) = segments::number_in_name(shard, &name) else { continue };
        files.next_number = files.next_number.max(named.saturating_add(1));
        if named < from
            && let Some(wanted) = base.segment(named).or_else(|| base.other_segment(named))
        {
            files.keep(place, name, wanted);
            continue;
        }
        if named < from && !base.needs_segment(named) {
            // Whatever is in it: it may have been about to be used again.
            files.stale.push(name);
            continue;
        }
        opening.push(find(env, place, name, named));
    }
    if !place.opening.read_only {
        files.find_reserve(env, place, reserved).await?;
    }
    let mut reading = Vec::new();
    // Where the log goes on in a file, those before it are full of it, or an opening or a compaction left them:
    // either way so much less of it is to come, but for what a compaction left, behind which its checkpoint
    // comes at once.
    let mut unread = limits.replay_bytes_max;
    for found in join_all(opening).await {
        let found = found?;
        let log_bytes = found.len.saturating_sub(start(place, base, found.named) as u64);
        let filled = log_bytes.saturating_sub(limits.batch_bytes_max as u64);
        reading.push(take(place, base, found, unread));
        unread = unread.saturating_sub(filled);
    }
    for taken in join_all(reading).await {
        match taken? {
            Taken::Scanned(file) => files.scanned.push(file),
            Taken::Old(segment) => {
                drop(files.old.insert(segment.header.number.0, segment.kept()));
            }
            Taken::Unknown(file) => files.unknown.push(file),
        }
    }
    files.scanned.sort_by_key(|file| file.segment.header.number);
    if let Some(checkpoint) = base.checkpoint() {
        for wanted in &checkpoint.segments {
            let (number, at) = (wanted.number, checkpoint.segment);
            if number < at && !files.old.contains_key(&number.0) {
                // What needs it says so when it is read (E6).
                tracing::error!(shard, segment = number.0, "a segment of the log is gone");
            }
        }
    }
    Ok(files)
}

fn failed(name: &str, source: std::io::Error) -> Error {
    Error::io(Kind::Retry, format!("reading {name}"), source)
}

impl<F: File> Files<F> {
    /// Takes in the files of the reserve that are whole, as many as there are to be.
    async fn find_reserve<E: Env<Disk: Disk<File = F>>>(
        &mut self,
        env: &E,
        place: &Place<'_>,
        names: Vec<(u32, String)>,
    ) -> Result<()> {
        let next = names.iter().map(|(number, _)| number.saturating_add(1)).max().unwrap_or(1);
        let mut found = Vec::new();
        for (_, name) in names {
            let lock_wait = Some(place.limits.lock_wait);
            let open = Open { create: Create::Never, mode: Mode::Through, lock_wait };
            let len = async { env.disk().open(&name, open).await?.len().await };
            let len = len.await.map_err(|source| failed(&name, source))?;
            let bytes = u32::try_from(len).unwrap_or(0) / len_u32(place.superblock.block_bytes)
                * len_u32(place.superblock.block_bytes);
            match bytes >= place.limits.segment_bytes_min && found.len() < reserve::FILES {
                true => found.push(Recycled { name, bytes }),
                false => self.stale.push(name),
            }
        }
        self.reserve = Reserve::found(found, next);
        Ok(())
    }

    /// Takes in a full segment without a look at it: what a slot says of it is what its header says, and
    /// frames have checksums of their own. It is opened when something in it is read.
    fn keep(&mut self, place: &Place<'_>, name: String, wanted: SegmentRef) {
        let header = header_of(place, wanted);
        let SegmentRef { number, kept, .. } = wanted;
        let segment = Segment { kept, ..Segment::new(Handle::Closed, name, header) };
        self.old.insert(number.0, segment);
    }
}

/// Opens one segment's file.
async fn find<E: Env>(
    env: &E,
    place: &Place<'_>,
    name: String,
    named: u32,
) -> Result<Found<FileOf<E>>> {
    let lock_wait = Some(place.limits.lock_wait);
    let open = Open { create: place.opening.create(), mode: Mode::Through, lock_wait };
    let file = env.disk().open(&name, open).await.map_err(|source| failed(&name, source))?;
    let block = place.superblock.block_bytes;
    let (len, head) = read_head(&file, block).await.map_err(|source| failed(&name, source))?;
    Ok(Found { name, named, file, len, head })
}

/// Where what is to be replayed begins in a segment.
fn start<F: File>(place: &Place<'_>, base: &Base<F>, named: u32) -> usize {
    let begins = base.checkpoint().filter(|checkpoint| checkpoint.segment.0 == named);
    begins.map_or(place.superblock.block_bytes, |checkpoint| checkpoint.offset as usize)
}

/// Reads of one segment's file what is needed; `unread` bytes of the log may be in it.
async fn take<F: File>(
    place: &Place<'_>,
    base: &Base<F>,
    found: Found<F>,
    unread: u64,
) -> Result<Taken<F>> {
    let Found { name, named, file, len, head } = found;
    let Place { superblock, shard, opening, .. } = *place;
    let from = base.checkpoint().map_or(0, |checkpoint| checkpoint.segment.0);
    let wanted = base.segment(named);
    let header = match SegmentHeader::decode(&head, superblock, shard) {
        Err(Rejected::Version(version)) => return Err(Error::newer_format(&name, version)),
        // It says what the header said; batches and frames have checksums of their own.
        _ if wanted.is_some() => wanted.map(|wanted| header_of(place, wanted)),
        // Otherwise it is another segment's.
        decoded => decoded.ok().filter(|header| header.number.0 == named),
    };
    // Of a file that was cut, what is left counts, and what is gone says so when it is read; but
    // the log does not go on in it.
    let is_whole = |header: &SegmentHeader| u64::from(header.bytes) <= len;
    let header = header.filter(|header| named < from || is_whole(header));
    if let Some(header) = header.filter(|_| named < from) {
        // No slot lists it, so nothing in it is needed; but a slot's replay may pass through it.
        return Ok(Taken::Old(Segment::new(file, name, header)));
    }
    let read = match header {
        Some(header) => {
            let home = Segment::new((), String::new(), header).home();
            read_log(&file, len, start(place, base, named), place, unread, &home).await
        }
        None => read_file(&file, superblock.block_bytes).await,
    };
    let bytes = read.map_err(|source| failed(&name, source))?;
    let replayed = base.checkpoint().map_or(Sequence(0), |checkpoint| checkpoint.last);
    let header = match header.filter(|it| !is_stale(it, &bytes, superblock, shard, replayed)) {
        None if opening.accept_losses => adopt(&bytes, superblock, shard, named),
        header => header,
    };
    Ok(match header {
        Some(header) => {
            let kept = wanted.is_some_and(|wanted| wanted.kept);
            let segment = Segment { kept, ..Segment::new(file, name, header) };
            Taken::Scanned(Scanned { segment, bytes, accepted: false })
        }
        None => Taken::Unknown(Unknown { name, len, bytes }),
    })
}

/// Whether the header was written before the batches behind it, and since then brought back: it is none
/// of this segment. Batches that the file held before it was used again are older than `replayed`, and in
/// its first place there is none of them.
fn is_stale(
    header: &SegmentHeader,
    bytes: &[u8],
    superblock: &Superblock,
    shard: u16,
    replayed: Sequence,
) -> bool {
    let block = superblock.block_bytes;
    let first = bytes.get(block..2 * block).unwrap_or_default();
    if all_zero(first) {
        return false;
    }
    let mut others = lone_batches(bytes, superblock, shard)
        .take_while(|(_, _, incarnation)| *incarnation != header.incarnation);
    others.any(|(at, batch, _)| at == block || batch.sequence > replayed)
}

/// A file's length and its first block.
async fn read_head<F: File>(file: &F, block_bytes: usize) -> std::io::Result<(u64, PageBuf)> {
    let len = file.len().await?;
    let (result, head) = read_full_at(file, PageBuf::zeroed(block_bytes), 0, block_bytes).await;
    result.map(|_| (len, head))
}

/// Reads a segment of `len` bytes from `start` on, to where nothing was written: so much without the head
/// or the tail of a batch of its own that none lies between, be one of them damaged, and more was read than
/// `unread`, what replay should need. Bytes before it read as zero. Behind it may lie what the file held
/// before it was used again.
async fn read_log<F: File>(
    file: &F,
    len: u64,
    start: usize,
    place: &Place<'_>,
    unread: u64,
    home: &Home,
) -> std::io::Result<PageBuf> {
    let (block_bytes, limits) = (place.superblock.block_bytes, place.limits);
    let bytes = usize::try_from(len).expect("a file fits an address space");
    let total = bytes.next_multiple_of(block_bytes).max(block_bytes);
    let mut buf = PageBuf::zeroed(total);
    let (mut at, mut empty) = (start.min(total), 0);
    while at < total && empty < 2 {
        // What one batch in flight may leave unwritten at most.
        let upto = total.min(at + limits.batch_bytes_max);
        buf.set_window(at..upto);
        let (result, returned) = read_full_at(file, buf, at as u64, block_bytes).await;
        result?;
        buf = returned;
        let enough = (at - start) as u64 >= unread;
        empty = match all_zero(&buf) {
            true => 2,
            false if has_batch(&buf, at, home) => 0,
            false => empty + 1,
        };
        empty = if enough { empty } else { 0 };
        at = upto;
    }
    buf.set_window(0..at);
    Ok(buf)
}

/// Whether the head or the tail of a batch lies in these blocks, which begin at `start` of the segment.
fn has_batch(bytes: &[u8], start: usize, home: &Home) -> bool {
    let block = home.block_bytes;
    (0..bytes.len()).step_by(block).any(|at| {
        let head = || BatchHeader::decode(&bytes[at..], home, start + at).is_ok();
        let tail = || Trailer::decode(&bytes[..bytes.len().min(at + block)], home).is_ok();
        !all_zero(&bytes[at..bytes.len().min(at + block)]) && (head() || tail())
    })
}

/// Takes the file that was ready to be written next, if no batch of it was ever written: its first place
/// was zero when it became ready. Whatever was begun in it is none of whoever takes it over.
pub(super) fn unwritten<F>(scanned: &mut Vec<Scanned<F>>) -> Option<Segment<F>> {
    let last = scanned.pop_if(|last| {
        let first = last.first();
        let is_empty = last.bytes.get(first..2 * first).is_some_and(all_zero);
        let home = last.segment.home();
        !last.accepted && is_empty && !has_batch(&last.bytes[first..], first, &home)
    });
    last.map(|last| last.segment)
}

/// The header that a segment has, as a checkpoint says.
fn header_of(place: &Place<'_>, wanted: SegmentRef) -> SegmentHeader {
    SegmentHeader {
        store: place.superblock.store,
        shard: place.shard,
        number: wanted.number,
        bytes: wanted.bytes,
        incarnation: wanted.incarnation,
        block_bytes: place.superblock.block_bytes,
    }
}

/// The header that a segment must have had, by its first batch and its name.
fn adopt(bytes: &[u8], superblock: &Superblock, shard: u16, named: u32) -> Option<SegmentHeader> {
    let block = superblock.block_bytes;
    // Others may be left of what the file held before it was used again.
    let batches = lone_batches(bytes, superblock, shard);
    let (.., incarnation) = batches.max_by_key(|(_, batch, _)| batch.sequence)?;
    Some(SegmentHeader {
        store: superblock.store,
        shard,
        number: SegmentNumber(named),
        bytes: len_u32(bytes.len() / block * block),
        incarnation,
        block_bytes: block,
    })
}

/// The batches of a file without a segment's header that are this shard's, and where they lie. The header alone says
/// which incarnation this was; the batches' own word must do.
pub(super) fn lone_batches(
    bytes: &[u8],
    superblock: &Superblock,
    shard: u16,
) -> impl Iterator<Item = (usize, BatchHeader, Incarnation)> {
    let (store, block_bytes) = (superblock.store, superblock.block_bytes);
    (block_bytes..bytes.len()).step_by(block_bytes).filter_map(move |at| {
        let bytes = &bytes[at..];
        let incarnation = Incarnation(u64::from_le_bytes(get(bytes, 40)));
        let home = Home { store, shard, incarnation, block_bytes };
        let header = BatchHeader::decode(bytes, &home, at).ok()?;
        header.check_body(bytes).is_ok().then_some((at, header, incarnation))
    })
}

/// Reads a whole file; what is missing of its last block reads as zero.
pub(crate) async fn read_file<F: File>(file: &F, block_bytes: usize) -> std::io::Result<PageBuf> {
    let bytes = usize::try_from(file.len().await?).expect("a file fits an address space");
    let buf = PageBuf::zeroed(bytes.next_multiple_of(block_bytes).max(block_bytes));
    let (result, buf) = read_full_at(file, buf, 0, block_bytes).await;
    result.map(|_| buf)
}
