//! Recovery: from the files of a shard to its directory, and a log that can go on.
//!
//! Batches are replayed in order of their sequence numbers, each checked against the checksum of
//! the one before it. Where the next one is missing:
//!
//! | what is there | result |
//! |---|---|
//! | a fence of a newer epoch that names the last batch accepted | go on behind the fence; what the old epoch wrote after that batch is dead |
//! | the next batch at the head of a later segment | go on there |
//! | a later batch, close record or fence that says the missing one was durable | damage: the objects in its table are unreadable (E6); without a table the shard does not open |
//! | none of these | the log's end; a torn batch there was never acknowledged, and is reported |
//!
//! Then everything accepted is made durable, a new segment is opened with a fence, and only then
//! may anything be answered (E9). Until the fence is durable nothing old is touched, so that a
//! crash anywhere here changes nothing (E7). Segments from which nothing was accepted are removed
//! at the end.

use crate::directory::{Directory, IdMap};
use crate::env::Env;
use crate::error::{Error, Kind, Result};
use crate::format::batch::{BatchHeader, Home, Role, Trailer};
use crate::format::frame::{self, Address};
use crate::format::segment::SegmentHeader;
use crate::format::superblock::Superblock;
use crate::format::{Rejected, get, len_u32};
use crate::ids::{Epoch, Incarnation, ObjectId, SegmentNumber, Sequence};
use crate::io::{Create, Disk, File, Mode, Open, PageBuf, read_full_at, write_all_at};
use crate::limits::Limits;
use crate::log::queue::Queue;
use crate::log::segments::{self, FileOf, Segment, Segments};
use crate::log::writer::{Spare, Tail};
use crate::shard::{Life, State};

/// Versions that a lost batch may have used at most; skipped, so that none is used twice.
const LOST_VERSIONS: u64 = 1 << 20;

/// What recovery found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovery {
    /// Batches accepted.
    pub batches: u64,
    /// Why an unvouched tail was dropped, if one was: sequence number, bytes and reason.
    pub dropped: Option<String>,
    /// Objects that damage made unreadable, sorted.
    pub damaged: Vec<ObjectId>,
}

/// A segment's file with all its bytes.
struct Scanned<F> {
    segment: Segment<F>,
    bytes: PageBuf,
    accepted: bool,
}

impl<F> Scanned<F> {
    fn header_at(&self, offset: usize) -> Result<BatchHeader, Rejected> {
        let bytes = self.bytes.get(offset..).ok_or(Rejected::Short)?;
        BatchHeader::decode(bytes, &self.segment.home())
    }

    /// The whole batch at `offset`, header and body checked.
    fn batch_at(&self, offset: usize) -> Result<BatchHeader, Rejected> {
        let header = self.header_at(offset)?;
        header.check_body(&self.bytes[offset..])?;
        Ok(header)
    }

    fn first(&self) -> usize {
        self.segment.header.block_bytes
    }
}

/// Rebuilds a shard's state and opens its log for a new epoch.
pub(crate) async fn recover<E: Env>(
    env: &E,
    superblock: &Superblock,
    shard: u16,
    limits: &Limits,
) -> Result<(State<FileOf<E>>, Recovery)> {
    let Files { mut scanned, unknown, next_number } =
        read_files(env, superblock, shard, limits).await?;
    let mut replay = Replay::new();
    replay.run(&mut scanned, shard)?;
    replay.check_unknown(&unknown, superblock, shard)?;
    for file in scanned.iter().filter(|file| file.accepted) {
        file.segment.file.sync().await.map_err(|source| {
            Error::io(Kind::Retry, format!("syncing {}", file.segment.name), source)
        })?;
    }
    let epoch = Epoch(replay.epoch.0 + 1);
    let number = SegmentNumber(next_number);
    let bytes = segments::segment_bytes(replay.log_bytes, limits);
    let segment = segments::prepare(env, superblock, shard, number, bytes, limits).await?;
    let tail = write_fence(env, &segment, epoch, replay.last, replay.last_crc).await?;

    let mut segments = Segments::new();
    let mut stale: Vec<String> = unknown.into_iter().map(|file| file.name).collect();
    for file in scanned {
        match file.accepted {
            true => drop(segments.insert(file.segment.header.number.0, file.segment)),
            false => stale.push(file.segment.name),
        }
    }
    segments.insert(number.0, segment);
    for name in stale {
        // Nothing needs the file; the next recovery tries again.
        if let Err(error) = env.disk().remove(&name).await {
            tracing::warn!(name, %error, "could not remove a stale segment");
        }
    }
    if let Some(dropped) = &replay.dropped {
        tracing::warn!(shard, dropped, "recovery dropped an unacknowledged tail");
    }
    let recovery = Recovery {
        batches: replay.batches,
        dropped: replay.dropped,
        damaged: replay.directory.damaged(),
    };
    let state = State {
        directory: replay.directory,
        pending: IdMap::default(),
        queue: Queue::default(),
        segments,
        spare: Spare::None,
        next_segment: SegmentNumber(next_number + 1),
        tail,
        epoch,
        next_version: replay.next_version,
        log_bytes: replay.log_bytes + u64::from(tail.offset),
        poison: None,
        life: Life::Open,
    };
    Ok((state, recovery))
}

/// Makes the first segment of a new shard, with the fence of its first epoch.
pub(crate) async fn create<E: Env>(
    env: &E,
    superblock: &Superblock,
    shard: u16,
    limits: &Limits,
) -> Result<()> {
    let prefix = segments::name_prefix(shard);
    let failed = |source| Error::io(Kind::Retry, format!("creating shard {shard}"), source);
    for entry in env.disk().list().await.map_err(failed)? {
        if entry.name.starts_with(&prefix) {
            // Left by a creation that was interrupted: `holds_commits` looked.
            env.disk().remove(&entry.name).await.map_err(failed)?;
        }
    }
    let bytes = limits.segment_bytes_min;
    let segment =
        segments::prepare(env, superblock, shard, SegmentNumber(1), bytes, limits).await?;
    write_fence(env, &segment, Epoch(1), Sequence(0), 0).await?;
    Ok(())
}

async fn write_fence<E: Env>(
    env: &E,
    segment: &Segment<FileOf<E>>,
    epoch: Epoch,
    last: Sequence,
    last_crc: u32,
) -> Result<Tail> {
    let mut queue = Queue::default();
    let mut fence = queue.lone(Role::Fence);
    let fields = crate::format::batch::Seal {
        role: Role::Fence,
        epoch,
        sequence: last.next(),
        previous_crc: last_crc,
        durable: last,
        wall_ms: env.wall_ms(),
    };
    let block = segment.header.block_bytes;
    let place = (segment.header.number, len_u32(block));
    let (buf, crc) = queue.seal(&mut fence, &segment.home(), &fields, place);
    let bytes = buf.len();
    let (result, _) = write_all_at(&segment.file, buf, block as u64, block).await;
    result.map_err(|source| {
        Error::io(Kind::Retry, format!("writing the fence of {}", segment.name), source)
    })?;
    Ok(Tail {
        segment: segment.header.number,
        offset: len_u32(block + bytes),
        last: last.next(),
        last_crc: crc,
        vouched: true,
    })
}

/// A file that has a segment's name and no valid header.
struct Unknown {
    name: String,
    bytes: PageBuf,
}

struct Files<F> {
    /// In order of their numbers.
    scanned: Vec<Scanned<F>>,
    unknown: Vec<Unknown>,
    next_number: u32,
}

async fn read_files<E: Env>(
    env: &E,
    superblock: &Superblock,
    shard: u16,
    limits: &Limits,
) -> Result<Files<FileOf<E>>> {
    let failed = |name: &str, source| Error::io(Kind::Retry, format!("reading {name}"), source);
    let list = env.disk().list().await.map_err(|source| failed("the directory", source))?;
    let mut files = Files { scanned: Vec::new(), unknown: Vec::new(), next_number: 1 };
    for entry in list {
        let Some(named) = segments::number_in_name(shard, &entry.name) else { continue };
        files.next_number = files.next_number.max(named.saturating_add(1));
        let name = entry.name;
        let open = Open { create: Create::Never, mode: Mode::Through, lock_wait: limits.lock_wait };
        let file = env.disk().open(&name, open).await.map_err(|source| failed(&name, source))?;
        let bytes = read_file(&file, superblock.block_bytes)
            .await
            .map_err(|source| failed(&name, source))?;
        match SegmentHeader::decode(&bytes, superblock, shard) {
            Ok(header) if header.bytes as usize <= bytes.len() => {
                files.next_number = files.next_number.max(header.number.0.saturating_add(1));
                let segment = Segment { file, name, header };
                files.scanned.push(Scanned { segment, bytes, accepted: false });
            }
            Err(Rejected::Version(version)) => {
                let what = format!("{name} has format version {version}, newer than this code");
                return Err(Error::coded(Kind::Invalid, "newer-format", what));
            }
            _ => files.unknown.push(Unknown { name, bytes }),
        }
    }
    files.scanned.sort_by_key(|file| file.segment.header.number);
    Ok(files)
}

/// Reads a whole file; what is missing of its last block reads as zero.
async fn read_file<F: File>(file: &F, block_bytes: usize) -> std::io::Result<PageBuf> {
    let bytes = usize::try_from(file.len().await?).expect("a file fits an address space");
    let buf = PageBuf::zeroed(bytes.next_multiple_of(block_bytes).max(block_bytes));
    let (result, buf) = read_full_at(file, buf, 0, block_bytes).await;
    result.map(|_| buf)
}

/// Whether any shard's log holds more than its creation put there. Used when there is no
/// superblock: then either the creation was interrupted, or a superblock was lost.
pub(crate) async fn holds_commits<E: Env>(env: &E, limits: &Limits) -> Result<bool> {
    let failed = |source| Error::io(Kind::Retry, "looking for a log without a superblock", source);
    for entry in env.disk().list().await.map_err(failed)? {
        if !entry.name.starts_with("shard-") {
            continue;
        }
        let open = Open { create: Create::Never, mode: Mode::Through, lock_wait: limits.lock_wait };
        let file = env.disk().open(&entry.name, open).await.map_err(failed)?;
        let block = limits.block_bytes.max(env.disk().properties().block_bytes);
        let bytes = read_file(&file, block).await.map_err(failed)?;
        // Header block, fence, and nothing else.
        if bytes.get(2 * block..).is_some_and(|rest| !crate::format::all_zero(rest)) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The replay of one shard's log.
struct Replay {
    directory: Directory,
    epoch: Epoch,
    last: Sequence,
    last_crc: u32,
    next_version: u64,
    batches: u64,
    log_bytes: u64,
    dropped: Option<String>,
}

/// Where in the files a batch lies: index of the file, offset.
type Place = (usize, usize);

impl Replay {
    fn new() -> Self {
        Self {
            directory: Directory::default(),
            epoch: Epoch(0),
            last: Sequence(0),
            last_crc: 0,
            next_version: 1,
            batches: 0,
            log_bytes: 0,
            dropped: None,
        }
    }

    fn run<F>(&mut self, files: &mut [Scanned<F>], shard: u16) -> Result<()> {
        // Where the next batch would be, if it is in the same segment.
        let mut here: Option<Place> = None;
        loop {
            let next = self.fence(files).or_else(|| self.next(files, here));
            let (file, offset) = match next {
                Some(place) => place,
                None => match self.vouched(files, here) {
                    None => break,
                    Some(place) => {
                        self.lose(files, here, place, shard)?;
                        place
                    }
                },
            };
            let header = files[file].batch_at(offset).expect("checked by whoever chose it");
            self.accept(&mut files[file], offset, &header)?;
            here = Some((file, offset + header.bytes as usize));
        }
        if self.batches == 0 {
            let what = format!("shard {shard}: its log has no beginning; restore the store");
            return Err(Error::corrupt(what));
        }
        if let Some((file, offset)) = here {
            self.note_torn_end(&files[file], offset);
        }
        Ok(())
    }

    /// A fence of a newer epoch that names the last batch accepted; of several, the newest.
    fn fence<F>(&self, files: &[Scanned<F>]) -> Option<Place> {
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
    fn next<F>(&self, files: &[Scanned<F>], here: Option<Place>) -> Option<Place> {
        let (current, _) = here?;
        let heads = (current + 1..files.len()).map(|index| (index, files[index].first()));
        here.into_iter().chain(heads).find(|(file, offset)| {
            files[*file].batch_at(*offset).is_ok_and(|header| {
                header.sequence == self.last.next()
                    && header.epoch == self.epoch
                    && header.previous_crc == self.last_crc
            })
        })
    }

    /// A valid batch that says that the missing one was durable: the log is damaged before it.
    fn vouched<F>(&self, files: &[Scanned<F>], here: Option<Place>) -> Option<Place> {
        let missing = self.last.next();
        let vouches = |(file, offset): &Place| {
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
    fn lose<F>(
        &mut self,
        files: &[Scanned<F>],
        here: Option<Place>,
        next: Place,
        shard: u16,
    ) -> Result<()> {
        let upto = files[next.0].batch_at(next.1).expect("chosen by `vouched`").sequence;
        let mut missing = self.last.next();
        while missing < upto {
            let Some(ids) = find_table(files, here, missing) else {
                let (name, offset) = match here {
                    Some((file, offset)) => (files[file].segment.name.as_str(), offset),
                    None => ("the first segment", 0),
                };
                let what = format!(
                    "shard {shard}: batch {} was durable and is lost, at {name} offset {offset}; \
                     nothing says which objects it held: repair or restore the store",
                    missing.0
                );
                return Err(Error::corrupt(what));
            };
            ids.into_iter().for_each(|id| self.directory.damage(id));
            missing = missing.next();
        }
        self.next_version += LOST_VERSIONS;
        Ok(())
    }

    fn accept<F>(
        &mut self,
        file: &mut Scanned<F>,
        offset: usize,
        header: &BatchHeader,
    ) -> Result<()> {
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
            self.directory.replay(&frame, address);
            at += bytes;
        }
        self.epoch = header.epoch;
        self.last = header.sequence;
        self.last_crc = header.crc;
        self.batches += 1;
        self.log_bytes += u64::from(header.bytes);
        Ok(())
    }

    /// Something was begun at the log's end and never acknowledged: say so.
    fn note_torn_end<F>(&mut self, file: &Scanned<F>, offset: usize) {
        let why = match file.batch_at(offset) {
            Ok(header) if header.sequence == self.last.next() => Rejected::Malformed("epoch"),
            Ok(_) | Err(Rejected::Short | Rejected::Foreign | Rejected::Magic) => return,
            Err(why) => why,
        };
        let name = &file.segment.name;
        let sequence = self.last.next().0;
        let bytes = match file.header_at(offset) {
            Ok(header) => format!("{} bytes", header.bytes),
            Err(_) => "unknown bytes".into(),
        };
        self.dropped = Some(format!("batch {sequence}, {bytes}, at {name} offset {offset}: {why}"));
    }

    /// A file without a valid header is a segment that was never finished, unless it holds a batch
    /// that the log lacks.
    fn check_unknown(
        &self,
        unknown: &[Unknown],
        superblock: &Superblock,
        shard: u16,
    ) -> Result<()> {
        for file in unknown {
            let block = superblock.block_bytes;
            let Some(bytes) = file.bytes.get(block..).filter(|bytes| bytes.len() >= 48) else {
                continue;
            };
            let incarnation = Incarnation(u64::from_le_bytes(get(bytes, 40)));
            let home = Home { store: superblock.store, shard, incarnation, block_bytes: block };
            let lost = BatchHeader::decode(bytes, &home).is_ok_and(|header| {
                header.sequence > self.last && header.check_body(bytes).is_ok()
            });
            if lost {
                let what = format!(
                    "shard {shard}: the header of {} is damaged, and the log goes on in it: \
                     repair or restore the store",
                    file.name
                );
                return Err(Error::corrupt(what));
            }
        }
        Ok(())
    }
}

/// Searches for the table of a lost batch, at its head or at its tail.
fn find_table<F>(
    files: &[Scanned<F>],
    here: Option<Place>,
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
            let head = BatchHeader::decode(&file.bytes[at..], &home)
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
