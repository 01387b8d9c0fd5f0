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
//! Then everything accepted is made durable, and what says so; a segment in which nothing was ever
//! written (one that was ready, else a new one) is opened with a fence; and only then may anything be
//! answered (E9). Until the fence is durable nothing that was accepted is touched, so that a crash
//! anywhere here changes nothing (E7). Files from which nothing was accepted and that no checkpoint names
//! are removed then too, so that crash after crash leaves no more of them.
//!
//! Replay begins where the newest checkpoint ends whose files are there:
//!
//! | the newest slot | the other slot | replay begins |
//! |---|---|---|
//! | valid, its runs whole | any | behind it |
//! | valid, a run missing or damaged | valid, its runs whole | behind the other; the log must reach what the newest vouches for |
//! | valid, its segment missing | any | nowhere: the shard does not open |
//! | none is valid, or none can be used | | at the log's beginning; without one the shard does not open |
//! | of a newer format, as anything else | any | nowhere: refused by name (E8) |
//!
//! A slot that holds nothing needs the whole log, for the log's beginning stands in for it: so one
//! damaged slot is survived from the first checkpoint on.
//!
//! docs/recovery.md has the whole table, row by row, and `sim/tests/recovery_table` tests each.

mod base;
mod files;
mod replay;

use futures_util::future::{join, join_all};

use base::Base;
pub(crate) use files::read_file;
use files::{Files, Scanned, read_files};
use replay::Replay;

use crate::checkpoint::{Manifest, Progress, manifest_name, read_manifest};
use crate::clean::Cleaning;
use crate::directory::IdMap;
use crate::env::Env;
use crate::error::{Error, Kind, Result};
use crate::format::batch::Role;
use crate::format::len_u32;
use crate::format::superblock::Superblock;
use crate::ids::{Epoch, ObjectId, SegmentNumber, Sequence};
use crate::io::{Create, Disk, File, Mode, Open, write_all_at};
use crate::limits::Limits;
use crate::log::ahead::Ahead;
use crate::log::queue::Queue;
use crate::log::reserve::{self, Reserve, Taker};
use crate::log::segments::{self, Blocks, FileOf, Segment};
use crate::log::writer::{Spare, Tail};
use crate::shard::{Life, State};
use crate::snapshot::Recent;

/// How a shard is opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Opening {
    /// Nothing on the disk changes, and commits are refused. What is read is a consistent state;
    /// nobody has made it durable (E9).
    pub read_only: bool,
    /// Damage that hides which objects it hit does not keep the shard closed (E6):
    /// [`Recovery::unknown`] says what nobody can know any more. For repair.
    pub accept_losses: bool,
}

impl Opening {
    /// How a file that is there is opened.
    pub(crate) fn create(self) -> Create {
        if self.read_only { Create::ReadOnly } else { Create::Never }
    }
}

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
    /// What was lost without a trace of the objects that it held; only where losses are accepted
    /// ([`Opening::accept_losses`]).
    pub unknown: Vec<String>,
}

impl Recovery {
    /// Takes in what opening another shard found.
    pub(crate) fn add(&mut self, other: &Self) {
        let Self { batches, segments, dropped, damaged, unknown } = other;
        self.batches += batches;
        self.segments += segments;
        let dropped = self.dropped.iter().chain(dropped).cloned();
        self.dropped = dropped.reduce(|one, other| format!("{one}; {other}"));
        self.damaged.extend(damaged);
        self.damaged.sort_unstable();
        self.unknown.extend(unknown.iter().cloned());
    }
}

/// Which shard is opened, and how.
#[derive(Clone, Copy)]
struct Place<'a> {
    superblock: &'a Superblock,
    shard: u16,
    limits: &'a Limits,
    opening: Opening,
}

/// Rebuilds a shard's state and opens its log for a new epoch.
pub(crate) async fn recover<E: Env>(
    env: &E,
    superblock: &Superblock,
    shard: u16,
    limits: &Limits,
    opening: Opening,
) -> Result<(State<FileOf<E>>, Recovery)> {
    let Manifest { file: manifest, slot_bytes, slots } =
        read_manifest(env, superblock, shard, limits, opening.read_only).await?;
    let place = Place { superblock, shard, limits, opening };
    let base = Base::<FileOf<E>>::choose(env, &place, &slots).await?;
    let Files { mut scanned, old, mut stale, unknown, next_number, runs, mut reserve } =
        read_files(env, &place, &base).await?;
    let mut replay = Replay::new(&place, &base);
    replay.run(&mut scanned, base.checkpoint())?;
    replay.check_unknown(&unknown, superblock)?;
    replay.check_vouched(base.vouched)?;
    if let Some(manifest) = manifest.as_ref().filter(|_| !opening.read_only) {
        make_durable(env, shard, manifest, &scanned).await?;
    }
    let mut segments = old;
    let replayed = scanned.iter().filter(|file| file.accepted).count();
    let first =
        scanned.iter().filter(|file| file.accepted).map(|file| file.segment.header.number.0);
    let replayed_from = first.min().unwrap_or(next_number);
    let spare = if opening.read_only { None } else { files::unwritten(&mut scanned) };
    for file in scanned {
        match file.accepted {
            true => drop(segments.insert(file.segment.header.number.0, file.segment.kept())),
            false => stale.push(file.segment.name),
        }
    }
    stale.extend(unknown.into_iter().map(|file| file.name));
    let epoch = Epoch(replay.epoch.0 + 1);
    let tail = match opening.read_only {
        true => Tail {
            segment: SegmentNumber(next_number),
            offset: 0,
            last: replay.last,
            last_crc: replay.last_crc,
            vouched: true,
            full: false,
            reserved: false,
        },
        false => {
            let removed = remove_stale(env, stale);
            let begin = async |segment| {
                let tail = write_fence(env, &segment, epoch, replay.last, replay.last_crc).await?;
                Ok::<_, Error>((segment, tail))
            };
            let (segment, tail) = if let Some(spare) = spare {
                let begun = async { begin(segments::take_over(env, spare).await?).await };
                join(removed, begun).await.1?
            } else {
                // First, for there may be no room otherwise.
                removed.await;
                let number = SegmentNumber(next_number);
                let (segment, reserved) = first_segment(env, &place, number, &mut reserve).await?;
                let (segment, tail) = begin(segment).await?;
                (segment, Tail { reserved, ..tail })
            };
            segments.insert(tail.segment.0, segment.kept());
            tail
        }
    };
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
        merges: 0,
    };
    if !replay.unknown.is_empty() {
        // What was counted is about what is lost.
        replay.directory.recount();
        replay.directory.count_live(&mut replay.live);
    }
    let recovery = Recovery {
        batches: replay.batches,
        segments: replayed,
        damaged: replay.damaged(),
        dropped: replay.dropped,
        unknown: replay.unknown,
    };
    let mut state = State {
        directory: replay.directory,
        progress,
        pending: IdMap::default(),
        rewriting: IdMap::default(),
        queue: Queue::default(),
        segments,
        live: replay.live,
        unfinished: None,
        cleaning: Cleaning::default(),
        trees_updated: 0,
        recent: Recent::default(),
        replayed_from,
        recycled: Vec::new(),
        reserve,
        ahead: Ahead::default(),
        reads: 0,
        spare: Spare::None,
        next_segment: SegmentNumber(next_number + 1),
        tail,
        epoch,
        next_version: replay.next_version,
        log_bytes: replay.log_bytes + u64::from(tail.offset),
        poison: None,
        life: if opening.read_only { Life::Reading } else { Life::Open },
    };
    if let Some(segment) = state.segments.get(&tail.segment.0) {
        state.ahead.begin(segment.written_to.max(tail.offset));
    }
    state.close_idle(limits);
    Ok((state, recovery))
}

/// Makes the first segment of an epoch; on a full disk out of a file of the reserve, and whether it is.
async fn first_segment<E: Env>(
    env: &E,
    place: &Place<'_>,
    number: SegmentNumber,
    reserve: &mut Reserve,
) -> Result<(Segment<FileOf<E>>, bool)> {
    let Place { superblock, shard, limits, .. } = *place;
    // Small, for nobody knows yet what will be written; those after it grow again.
    let (bytes, blocks) = (limits.segment_bytes_min, Blocks::New(0));
    let full = match segments::prepare(env, superblock, shard, number, bytes, blocks, limits).await
    {
        Err(error) if error.kind() == Kind::NoSpace => error,
        made => return made.map(|segment| (segment, false)),
    };
    let Some(file) = reserve.take(Taker::Checkpoint) else { return Err(full) };
    reserve.found_full(env.now(), full);
    let (bytes, blocks) = (file.bytes, Blocks::Again(&file));
    let made = segments::prepare(env, superblock, shard, number, bytes, blocks, limits).await;
    made.map(|segment| (segment, true))
}

/// What a dead process left visible is made durable before it is built upon (E9): what was accepted, and the
/// slots that say what else is needed.
async fn make_durable<E: Env>(
    env: &E,
    shard: u16,
    manifest: &FileOf<E>,
    scanned: &[Scanned<FileOf<E>>],
) -> Result<()> {
    let failed = |name: &str, source| Error::io(Kind::Retry, format!("syncing {name}"), source);
    let accepted = scanned.iter().filter(|file| file.accepted).map(async |file| {
        let Segment { file, name, .. } = &file.segment;
        file.sync().await.map_err(|source| failed(name, source))
    });
    let named = async {
        manifest.sync().await.map_err(|source| failed(&manifest_name(shard), source))?;
        env.disk().sync_dir().await.map_err(|source| failed("the directory", source))
    };
    let (accepted, named) = join(join_all(accepted), named).await;
    accepted.into_iter().chain([named]).collect()
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
    for name in env.disk().list().await.map_err(failed)? {
        let preparing = segments::number_in_preparing(shard, &name).is_some()
            || reserve::number_in_name(shard, &name).is_some();
        if preparing || name.starts_with(&prefix) {
            // Left by a creation that was interrupted: `holds_commits` looked.
            env.disk().remove(&name).await.map_err(failed)?;
        }
    }
    let bytes = limits.segment_bytes_min;
    let (number, blocks) = (SegmentNumber(1), Blocks::New(0));
    let segment = segments::prepare(env, superblock, shard, number, bytes, blocks, limits).await?;
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
    let block = segment.header.block_bytes;
    let fields = crate::format::batch::Seal {
        role: Role::Fence,
        epoch,
        sequence: last.next(),
        previous_crc: last_crc,
        durable: last,
        wall_ms: env.wall_ms(),
        offset: len_u32(block),
    };
    let (buf, crc) = queue.seal(&mut fence, &segment.home(), &fields, segment.header.number);
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
        full: false,
        reserved: false,
    })
}

/// Whether any shard's log holds more than its creation put there. Used when there is no
/// superblock: then either the creation was interrupted, or a superblock was lost.
pub(crate) async fn holds_commits<E: Env>(env: &E, limits: &Limits) -> Result<bool> {
    let failed = |source| Error::io(Kind::Retry, "looking for a log without a superblock", source);
    for name in env.disk().list().await.map_err(failed)? {
        if !name.starts_with("shard-") {
            continue;
        }
        let open =
            Open { create: Create::Never, mode: Mode::Through, lock_wait: Some(limits.lock_wait) };
        let file = env.disk().open(&name, open).await.map_err(failed)?;
        let block = limits.block_bytes.max(env.disk().properties().block_bytes);
        let bytes = read_file(&file, block).await.map_err(failed)?;
        // Header block, fence, and nothing else.
        if bytes.get(2 * block..).is_some_and(|rest| !crate::format::all_zero(rest)) {
            return Ok(true);
        }
    }
    Ok(false)
}
