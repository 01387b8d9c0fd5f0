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
//! may anything be answered (E9). Until the fence is durable nothing that was accepted is touched, so
//! that a crash anywhere here changes nothing (E7). Files from which nothing was accepted and that no
//! checkpoint names are removed first, so that crash after crash leaves no more of them.
//!
//! Replay begins where the newest checkpoint ends whose files are there:
//!
//! | the newest slot | the other slot | replay begins |
//! |---|---|---|
//! | valid, its runs whole | any | behind it |
//! | valid, a run missing or damaged | valid, its runs whole | behind the other; the log must reach what the newest vouches for |
//! | valid, its segment missing | any | nowhere: the shard does not open |
//! | none is valid, or none can be used | | at the log's beginning; without one the shard does not open |

use std::collections::BTreeSet;
use std::rc::Rc;

use crate::checkpoint::{Manifest, Needs, Progress, read_manifest};
use crate::directory::{self, Directory, IdMap, Run};
use crate::env::Env;
use crate::error::{Error, Kind, Result};
use crate::format::batch::{BatchHeader, Home, Role, Trailer};
use crate::format::checkpoint::Checkpoint;
use crate::format::frame::{self, Address};
use crate::format::run::{self, BLOCK_BYTES, RunHeader};
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
    /// Batches replayed: those since the last checkpoint.
    pub batches: u64,
    /// Segments that they lie in.
    pub segments: usize,
    /// Why an unvouched tail was dropped, if one was: sequence number, bytes and reason.
    pub dropped: Option<String>,
    /// Objects that damage in what was replayed made unreadable, sorted.
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

/// Where replay begins.
struct Base<F: File> {
    /// The checkpoint, and the slot that it lies in.
    chosen: Option<(Checkpoint, usize)>,
    /// Its runs, youngest first.
    runs: Vec<Rc<Run<F>>>,
    /// The last batch that any slot says was durable.
    vouched: Sequence,
    needs: [Vec<Needs>; 2],
    generation: u64,
}

impl<F: File> Base<F> {
    /// Chooses the newest checkpoint whose runs are whole.
    ///
    /// Errors: `Retry`.
    async fn choose<E: Env>(
        env: &E,
        superblock: &Superblock,
        shard: u16,
        limits: &Limits,
        slots: &[Option<Checkpoint>; 2],
    ) -> Result<Base<FileOf<E>>> {
        let valid = || slots.iter().enumerate().filter_map(|(slot, it)| Some((it.as_ref()?, slot)));
        let mut base = Base {
            chosen: None,
            runs: Vec::new(),
            vouched: valid().map(|(it, _)| it.last).max().unwrap_or(Sequence(0)),
            needs: [0, 1].map(|slot: usize| slots[slot].iter().map(Needs::of).collect()),
            generation: valid().map(|(it, _)| it.generation).max().unwrap_or(0),
        };
        let mut newest_first: Vec<_> = valid().collect();
        newest_first.sort_by_key(|(it, _)| std::cmp::Reverse(it.generation));
        for (checkpoint, slot) in newest_first {
            match open_runs(env, superblock, shard, limits, checkpoint).await {
                Ok(runs) => {
                    base.chosen = Some((checkpoint.clone(), slot));
                    base.runs = runs;
                    break;
                }
                Err(error) if error.kind() == Kind::Corrupt => {
                    let generation = checkpoint.generation;
                    tracing::error!(shard, generation, %error, "a checkpoint can't be used");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(base)
    }

    fn checkpoint(&self) -> Option<&Checkpoint> {
        self.chosen.as_ref().map(|(checkpoint, _)| checkpoint)
    }

    fn needs_segment(&self, number: u32) -> bool {
        self.needs.iter().flatten().any(|needs| needs.segment(number))
    }
}

async fn open_runs<E: Env>(
    env: &E,
    superblock: &Superblock,
    shard: u16,
    limits: &Limits,
    checkpoint: &Checkpoint,
) -> Result<Vec<Rc<Run<FileOf<E>>>>> {
    let mut runs = Vec::new();
    for wanted in &checkpoint.runs {
        let name = directory::file_name(shard, wanted.number);
        let failed = |source: std::io::Error| {
            let kind = match source.kind() {
                std::io::ErrorKind::NotFound => Kind::Corrupt,
                _ => Kind::Retry,
            };
            Error::io(kind, format!("opening {name}"), source)
        };
        let open = Open { create: Create::Never, mode: Mode::Cached, lock_wait: limits.lock_wait };
        let file = env.disk().open(&name, open).await.map_err(failed)?;
        let buf = PageBuf::zeroed(BLOCK_BYTES);
        let (result, buf) = read_full_at(&file, buf, 0, BLOCK_BYTES).await;
        let read = result.map_err(failed)?;
        let rejected = |why: Rejected| Error::corrupt(format!("{name}: {why}"));
        let header = RunHeader::decode(&buf[..read], superblock.store, shard).map_err(rejected)?;
        let bytes = run::file_blocks(&header) * BLOCK_BYTES as u64;
        let is_wanted = header.number == wanted.number && header.incarnation == wanted.incarnation;
        if !is_wanted || file.len().await.map_err(failed)? < bytes {
            return Err(rejected(Rejected::Foreign));
        }
        runs.push(Rc::new(Run::new(header, file).map_err(failed)?));
    }
    Ok(runs)
}

/// Rebuilds a shard's state and opens its log for a new epoch.
pub(crate) async fn recover<E: Env>(
    env: &E,
    superblock: &Superblock,
    shard: u16,
    limits: &Limits,
) -> Result<(State<FileOf<E>>, Recovery)> {
    let Manifest { file: manifest, slot_bytes, slots } =
        read_manifest(env, superblock, shard, limits).await?;
    let base = Base::<FileOf<E>>::choose(env, superblock, shard, limits, &slots).await?;
    let Files { mut scanned, old, mut stale, unknown, next_number, runs } =
        read_files(env, superblock, shard, limits, &base).await?;
    let mut replay = Replay::new(superblock, &base);
    replay.run(&mut scanned, shard, base.checkpoint())?;
    replay.check_unknown(&unknown, superblock, shard)?;
    if replay.last < base.vouched {
        let (last, vouched) = (replay.last.0, base.vouched.0);
        let what = format!(
            "shard {shard}: a checkpoint vouches for batches up to {vouched}, the log ends after \
             {last}: repair or restore the store"
        );
        return Err(Error::corrupt(what));
    }
    for file in scanned.iter().filter(|file| file.accepted) {
        file.segment.file.sync().await.map_err(|source| {
            Error::io(Kind::Retry, format!("syncing {}", file.segment.name), source)
        })?;
    }
    let mut segments = old;
    let replayed = scanned.iter().filter(|file| file.accepted).count();
    for file in scanned {
        match file.accepted {
            true => drop(segments.insert(file.segment.header.number.0, file.segment)),
            false => stale.push(file.segment.name),
        }
    }
    stale.extend(unknown.into_iter().map(|file| file.name));
    remove_stale(env, stale).await;

    let epoch = Epoch(replay.epoch.0 + 1);
    let number = SegmentNumber(next_number);
    let bytes = segments::segment_bytes(replay.log_bytes, limits);
    let segment = segments::prepare(env, superblock, shard, number, bytes, limits).await?;
    let tail = write_fence(env, &segment, epoch, replay.last, replay.last_crc).await?;
    segments.insert(number.0, segment);
    if let Some(dropped) = &replay.dropped {
        tracing::warn!(shard, dropped, "recovery dropped an unacknowledged tail");
    }
    let next_run = runs.last().map_or(1, |last| last + 1);
    let progress = Progress {
        manifest,
        slot_bytes,
        next_slot: base.chosen.as_ref().map_or(0, |(_, slot)| 1 - slot),
        generation: base.generation,
        next_run: base.checkpoint().map_or(1, |it| it.next_run).max(next_run),
        begun_at: base.checkpoint().map_or(0, |it| it.log_bytes),
        needs: base.needs,
        runs_on_disk: runs,
        running: false,
    };
    let recovery = Recovery {
        batches: replay.batches,
        segments: replayed,
        damaged: replay.damaged(),
        dropped: replay.dropped,
    };
    let state = State {
        directory: replay.directory,
        progress,
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

async fn remove_stale<E: Env>(env: &E, names: Vec<String>) {
    for name in names {
        // Nothing needs the file; the next recovery tries again.
        if let Err(error) = env.disk().remove(&name).await {
            tracing::warn!(name, %error, "could not remove a stale file");
        }
    }
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
    /// From where replay begins, in order of their numbers.
    scanned: Vec<Scanned<F>>,
    /// Those before that are needed.
    old: Segments<F>,
    /// Names of files that nothing needs.
    stale: Vec<String>,
    unknown: Vec<Unknown>,
    next_number: u32,
    /// Runs that a slot needs and that are there.
    runs: BTreeSet<u32>,
}

async fn read_files<E: Env>(
    env: &E,
    superblock: &Superblock,
    shard: u16,
    limits: &Limits,
    base: &Base<FileOf<E>>,
) -> Result<Files<FileOf<E>>> {
    let failed = |name: &str, source| Error::io(Kind::Retry, format!("reading {name}"), source);
    let list = env.disk().list().await.map_err(|source| failed("the directory", source))?;
    let mut files = Files {
        scanned: Vec::new(),
        old: Segments::new(),
        stale: Vec::new(),
        unknown: Vec::new(),
        next_number: 1,
        runs: BTreeSet::new(),
    };
    for entry in list {
        let name = entry.name;
        if let Some(run) = directory::number_in_name(shard, &name) {
            match base.needs.iter().flatten().any(|needs| needs.runs.contains(&run)) {
                true => drop(files.runs.insert(run)),
                false => files.stale.push(name),
            }
            continue;
        }
        let Some(named) = segments::number_in_name(shard, &name) else { continue };
        files.next_number = files.next_number.max(named.saturating_add(1));
        let open = Open { create: Create::Never, mode: Mode::Through, lock_wait: limits.lock_wait };
        let file = env.disk().open(&name, open).await.map_err(|source| failed(&name, source))?;
        files.read(superblock, shard, base, (name, named), file).await?;
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

impl<F: File> Files<F> {
    /// Reads of one segment's file what is needed.
    async fn read(
        &mut self,
        superblock: &Superblock,
        shard: u16,
        base: &Base<F>,
        (name, named): (String, u32),
        file: F,
    ) -> Result<()> {
        let failed = |name: &str, source| Error::io(Kind::Retry, format!("reading {name}"), source);
        let block = superblock.block_bytes;
        let len = file.len().await.map_err(|source| failed(&name, source))?;
        let head = PageBuf::zeroed(block);
        let (result, head) = read_full_at(&file, head, 0, block).await;
        result.map_err(|source| failed(&name, source))?;
        let from = base.checkpoint().map_or(0, |checkpoint| checkpoint.segment.0);
        let wanted = base.checkpoint().and_then(|checkpoint| {
            checkpoint.segments.iter().find(|wanted| wanted.number.0 == named)
        });
        let header = match SegmentHeader::decode(&head, superblock, shard) {
            Err(Rejected::Version(version)) => {
                let what = format!("{name} has format version {version}, newer than this code");
                return Err(Error::coded(Kind::Invalid, "newer-format", what));
            }
            Ok(header) => Some(header),
            // The checkpoint says what the header said; the frames have checksums of their own.
            Err(_) => wanted.filter(|wanted| wanted.number.0 < from).map(|wanted| SegmentHeader {
                store: superblock.store,
                shard,
                number: wanted.number,
                bytes: wanted.bytes,
                incarnation: wanted.incarnation,
                block_bytes: block,
            }),
        };
        let header = header.filter(|header| u64::from(header.bytes) <= len);
        let number = header.map_or(named, |header| header.number.0);
        self.next_number = self.next_number.max(number.saturating_add(1));
        let wanted = wanted
            .filter(|wanted| header.is_some_and(|header| header.incarnation == wanted.incarnation));
        let frames_bytes = wanted.map_or(0, |wanted| wanted.frames_bytes);
        if let Some(header) = header.filter(|header| header.number.0 < from) {
            match wanted.is_some() || base.needs_segment(number) {
                true => {
                    let segment = Segment { file, name, header, frames_bytes };
                    self.old.insert(number, segment);
                }
                false => self.stale.push(name),
            }
            return Ok(());
        }
        let bytes = read_file(&file, block).await.map_err(|source| failed(&name, source))?;
        match header {
            Some(header) => {
                let segment = Segment { file, name, header, frames_bytes };
                self.scanned.push(Scanned { segment, bytes, accepted: false });
            }
            None => self.unknown.push(Unknown { name, bytes }),
        }
        Ok(())
    }
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
struct Replay<F: File> {
    directory: Directory<F>,
    /// Objects that lost batches held.
    damaged: BTreeSet<ObjectId>,
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

impl<F: File> Replay<F> {
    fn new(superblock: &Superblock, base: &Base<F>) -> Self {
        let checkpoint = base.checkpoint();
        let objects = checkpoint.map_or(0, |it| it.objects);
        Self {
            directory: Directory::new(superblock.store, base.runs.clone(), objects),
            damaged: BTreeSet::new(),
            epoch: checkpoint.map_or(Epoch(0), |it| it.epoch),
            last: checkpoint.map_or(Sequence(0), |it| it.last),
            last_crc: checkpoint.map_or(0, |it| it.last_crc),
            next_version: checkpoint.map_or(1, |it| it.next_version),
            batches: 0,
            log_bytes: checkpoint.map_or(0, |it| it.log_bytes),
            dropped: None,
        }
    }

    /// Objects that lost batches held, and that no later commit made whole.
    fn damaged(&self) -> Vec<ObjectId> {
        let is_damaged =
            |id: &&ObjectId| matches!(self.directory.get(id), Ok(Some(entry)) if entry.damaged);
        self.damaged.iter().filter(is_damaged).copied().collect()
    }

    /// Where the checkpoint ends.
    fn start(files: &mut [Scanned<F>], shard: u16, checkpoint: &Checkpoint) -> Result<Place> {
        let wanted = checkpoint.segments.last().expect("the one that it ends in");
        let found = files.iter_mut().enumerate().find(|(_, file)| {
            let header = file.segment.header;
            header.number == wanted.number && header.incarnation == wanted.incarnation
        });
        let (index, file) = found.ok_or_else(|| {
            let what = format!(
                "shard {shard}: segment {}, in which the checkpoint ends, is gone or damaged: \
                 repair or restore the store",
                wanted.number.0
            );
            Error::corrupt(what)
        })?;
        file.accepted = true;
        Ok((index, checkpoint.offset as usize))
    }

    fn run(
        &mut self,
        files: &mut [Scanned<F>],
        shard: u16,
        checkpoint: Option<&Checkpoint>,
    ) -> Result<()> {
        // Where the next batch would be, if it is in the same segment.
        let mut here: Option<Place> =
            checkpoint.map(|it| Self::start(files, shard, it)).transpose()?;
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
        if self.batches == 0 && checkpoint.is_none() {
            let what = format!("shard {shard}: its log has no beginning; restore the store");
            return Err(Error::corrupt(what));
        }
        if let Some((file, offset)) = here {
            self.note_torn_end(&files[file], offset);
        }
        Ok(())
    }

    /// A fence of a newer epoch that names the last batch accepted; of several, the newest.
    fn fence(&self, files: &[Scanned<F>]) -> Option<Place> {
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
    fn next(&self, files: &[Scanned<F>], here: Option<Place>) -> Option<Place> {
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
    fn vouched(&self, files: &[Scanned<F>], here: Option<Place>) -> Option<Place> {
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
    fn lose(
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
            for id in ids {
                self.damaged.insert(id);
                self.directory.damage(id);
            }
            missing = missing.next();
        }
        self.next_version += LOST_VERSIONS;
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
            self.directory.replay(&frame, address);
            at += bytes;
        }
        self.epoch = header.epoch;
        self.last = header.sequence;
        self.last_crc = header.crc;
        self.batches += 1;
        file.segment.frames_bytes += header.frames_bytes;
        self.log_bytes += u64::from(header.bytes);
        Ok(())
    }

    /// Something was begun at the log's end and never acknowledged: say so.
    fn note_torn_end(&mut self, file: &Scanned<F>, offset: usize) {
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
