//! Checkpoints: the directory as of a durable batch made permanent, so that replay stays short and
//! what is no longer needed can go (docs/design.md, 3.4).
//!
//! A checkpoint freezes the overlay between two batches, writes it as a run, and then writes a slot
//! of the shard's manifest: the older of the two, so that the other one is the truth until this one
//! is durable. Nothing is removed before: a file goes when neither slot needs it, and nobody reads it; a
//! segment's may be kept, to be used again. One that fails changes nothing, and another is made after
//! some more of the log. Runs are merged apart from it ([`crate::merges`]). Where there is no room for a run, the
//! younger slot can be said again in the older one's place ([`repeat`]): that takes no room, and what only the
//! older one needed can go.
//!
//! It needs the segments with live bytes ([`crate::live`]), those behind its batch, those in which a
//! commit began that has not ended, those that recovery kept for a repair, and those of which the newest
//! commit is younger than [`Limits::retention`].
//!
//! | a crash while | leaves |
//! |---|---|
//! | the run is written | a file that no slot names; the next recovery removes it |
//! | the slot is written | a torn slot, or the new one, with everything that it names |
//! | files are removed | files that no slot names |

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use crate::directory::{Frozen, How, Run, write_run};
use crate::env::Env;
use crate::error::{Error, Kind, Result};
use crate::format::checkpoint::{Checkpoint, SegmentRef};
use crate::format::run::BLOCK_BYTES;
use crate::format::{Rejected, len_u32};
use crate::io::{Create, Disk, File, Mode, Open, PageBuf, read_full_at, write_all_at};
use crate::limits::Limits;
use crate::log::segments::{FileOf, Recycled, Segment};
use crate::merges;
use crate::shard::{Inner, Life, State};

/// Segments since the last checkpoint after which opening makes one: so that crash after crash
/// leaves no more of them.
pub(crate) const SEGMENTS_MAX: usize = 4;

/// Files of segments that are kept to be used again.
const RECYCLED_MAX: usize = 2;

/// Bytes of a slot at least ([`Limits::check`]).
const SLOT_BYTES_LEAST: usize = 4096;

/// The name of a shard's manifest.
pub(crate) fn manifest_name(shard: u16) -> String {
    format!("shard-{shard:04}-manifest")
}

/// What a slot needs on the disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Needs {
    /// Segments from this number on.
    pub(crate) replay_from: u32,
    pub(crate) segments: BTreeMap<u32, SegmentRef>,
    pub(crate) runs: BTreeSet<u32>,
}

impl Needs {
    /// What a slot without a checkpoint needs: replay from the log's beginning stands in for it.
    pub(crate) fn all() -> Self {
        Self::default()
    }

    pub(crate) fn of(checkpoint: &Checkpoint) -> Self {
        Self {
            replay_from: checkpoint.segment.0,
            segments: checkpoint.segments.iter().map(|it| (it.number.0, *it)).collect(),
            runs: checkpoint.runs.iter().map(|run| run.number).collect(),
        }
    }

    pub(crate) fn segment(&self, number: u32) -> bool {
        number >= self.replay_from || self.segments.contains_key(&number)
    }
}

/// The manifest, and how far checkpoints have come.
pub(crate) struct Progress<F> {
    /// `None` where the shard is only read and there is none.
    pub(crate) manifest: Option<F>,
    pub(crate) slot_bytes: usize,
    /// The slot that is written next.
    pub(crate) next_slot: usize,
    pub(crate) generation: u64,
    /// What each slot needs, or, if its last write failed, may need.
    pub(crate) needs: [Vec<Needs>; 2],
    pub(crate) next_run: u32,
    pub(crate) runs_on_disk: BTreeSet<u32>,
    /// `log_bytes` when the last one was begun.
    pub(crate) begun_at: u64,
    pub(crate) running: bool,
    /// Merges that are being made.
    pub(crate) merges: usize,
}

impl<F> Progress<F> {
    /// A number for a run that will be written.
    pub(crate) fn new_run(&mut self) -> u32 {
        self.next_run += 1;
        self.next_run - 1
    }

    /// The older slot holds this one now.
    fn written(&mut self, checkpoint: &Checkpoint) {
        self.needs[self.next_slot] = vec![Needs::of(checkpoint)];
        self.generation = checkpoint.generation;
        self.next_slot = 1 - self.next_slot;
    }
}

/// The two slots of a manifest, as they were read: `None` where a slot is not valid.
pub(crate) struct Manifest<F> {
    pub(crate) file: Option<F>,
    pub(crate) slot_bytes: usize,
    pub(crate) slots: [Option<Checkpoint>; 2],
}

/// Opens and reads a shard's manifest, or makes an empty one; with `read_only` nothing changes. What is
/// read, and that the file is there, may not be durable yet.
///
/// Errors: `Retry`, `NoSpace`, `Invalid` (a newer format).
pub(crate) async fn read_manifest<E: Env>(
    env: &E,
    superblock: &crate::Superblock,
    shard: u16,
    limits: &Limits,
    read_only: bool,
) -> Result<Manifest<FileOf<E>>> {
    let name = manifest_name(shard);
    let failed = |source: std::io::Error| Error::making(format!("opening {name}"), source);
    let create = if read_only { Create::ReadOnly } else { Create::IfAbsent };
    let open = Open { create, mode: Mode::Through, lock_wait: Some(limits.lock_wait) };
    let file = match env.disk().open(&name, open).await {
        Err(error) if read_only && error.kind() == std::io::ErrorKind::NotFound => {
            return Ok(Manifest { file: None, slot_bytes: 0, slots: [None, None] });
        }
        opened => opened.map_err(failed)?,
    };
    let block = superblock.block_bytes;
    let bytes = usize::try_from(file.len().await.map_err(failed)?).expect("an address space");
    let buf = PageBuf::zeroed(bytes.next_multiple_of(block).max(block));
    let (result, buf) = read_full_at(&file, buf, 0, block).await;
    result.map_err(failed)?;
    // A file that was cut may still hold the first slot, which says where the second one was.
    let said = Checkpoint::decode(&buf, superblock.store, shard).map(|it| it.slot_bytes as usize);
    let slot_bytes = match said {
        Ok(said) => said,
        Err(_) if bytes < 2 * SLOT_BYTES_LEAST => limits.manifest_slot_bytes,
        Err(_) => bytes / 2 / block * block,
    };
    if !read_only && bytes < 2 * slot_bytes {
        file.allocate(2 * slot_bytes as u64).await.map_err(failed)?;
    }
    let slot = |index: usize| {
        let (start, end) = (index * slot_bytes, (index + 1) * slot_bytes);
        let bytes = buf.get(start..end.min(buf.len())).unwrap_or_default();
        match Checkpoint::decode(bytes, superblock.store, shard) {
            Ok(checkpoint) => Ok(Some(checkpoint)),
            // It is no damage, and what the other slot says is older (E8).
            Err(Rejected::Version(version)) => Err(Error::newer_format(&name, version)),
            Err(_) => Ok(None),
        }
    };
    let slots = [slot(0)?, slot(1)?];
    Ok(Manifest { file: Some(file), slot_bytes, slots })
}

impl<F: File> State<F> {
    /// Whether a segment is needed for what is in it.
    pub(crate) fn is_needed<G>(&self, segment: &Segment<G>, wall_ms: u64, limits: &Limits) -> bool {
        let number = segment.header.number;
        number >= self.tail.segment
            || segment.kept
            || self.live.bytes(number.0) > 0
            || self.unfinished.is_some_and(|first| number.0 >= first)
            || self.is_retained(number.0, wall_ms, limits)
    }

    /// Whether the newest commit in a segment is so young that history is to show it.
    pub(crate) fn is_retained(&self, number: u32, wall_ms: u64, limits: &Limits) -> bool {
        let newest_ms = u64::from(self.live.newest_s(number)) * 1000;
        wall_ms.saturating_sub(newest_ms)
            < u64::try_from(limits.retention.as_millis()).unwrap_or(u64::MAX)
    }

    fn checkpoint_due(&self, limits: &Limits) -> bool {
        let since = self.log_bytes - self.progress.begun_at;
        let waits = self.progress.running || !self.directory.has_room(limits);
        since >= limits.checkpoint_bytes && !waits
    }

    /// Whether so much was written since the last checkpoint that the log should wait for the one
    /// that is being made, or for the merge that it waits for.
    pub(crate) fn checkpoint_lags(&self, limits: &Limits) -> bool {
        (self.progress.running || !self.directory.has_room(limits))
            && self.log_bytes - self.progress.begun_at >= limits.replay_bytes_max
            && self.poison.is_none()
    }
}

/// Begins a checkpoint if the log has grown by enough. To be called between two batches.
pub(crate) fn start_if_due<E: Env>(inner: &Rc<Inner<E>>) {
    let state = inner.state.borrow();
    if !state.checkpoint_due(&inner.limits) || state.life != Life::Open || state.poison.is_some() {
        return;
    }
    drop(state);
    let begun = begin(inner, false);
    let task_inner = inner.clone();
    inner.env.spawn("checkpoint", async move {
        let inner = task_inner;
        if let Err(error) = finish(&inner, begun).await {
            tracing::warn!(shard = inner.number, %error, "a checkpoint failed; one is made later");
        }
    });
}

/// Makes a checkpoint now, after the one that is being made. With `forget`, one of a single run, in
/// which nothing is left of damaged blocks.
///
/// Errors: why there is none; the shard is as before.
pub(crate) async fn make<E: Env>(inner: &Rc<Inner<E>>, forget: bool) -> Result<()> {
    merges::start_if_due(inner);
    let idle = || {
        let State { progress, directory, .. } = &*inner.state.borrow();
        let waits = match forget {
            true => progress.merges > 0,
            false => !directory.has_room(&inner.limits),
        };
        (!progress.running && !waits).then_some(())
    };
    inner.changed.until(idle).await;
    let begun = begin(inner, forget);
    finish(inner, begun).await
}

/// Writes what the younger slot says into the older one as well, so that nothing is needed for that any more; whether
/// there was such a thing.
///
/// Errors: `Retry`, `Poisoned`: the slots are as before, or may be.
pub(crate) async fn repeat<E: Env>(inner: &Rc<Inner<E>>) -> Result<bool> {
    let idle = || (!inner.state.borrow().progress.running).then_some(());
    inner.changed.until(idle).await;
    {
        let progress = &mut inner.state.borrow_mut().progress;
        let [younger, older] = [1 - progress.next_slot, progress.next_slot];
        if progress.generation == 0 || progress.needs[older] == progress.needs[younger] {
            return Ok(false);
        }
        progress.running = true;
    }
    let repeated = write_again(inner).await;
    if repeated.is_ok() {
        remove_unneeded(inner).await;
    }
    inner.state.borrow_mut().progress.running = false;
    merges::start_if_due(inner);
    inner.changed.notify();
    repeated.map(|()| true)
}

async fn write_again<E: Env>(inner: &Rc<Inner<E>>) -> Result<()> {
    let (manifest, slot, slot_bytes, generation) = {
        let progress = &inner.state.borrow().progress;
        let manifest = progress.manifest.clone().expect("opened for writing");
        (manifest, 1 - progress.next_slot, progress.slot_bytes, progress.generation)
    };
    let (block, name) = (inner.superblock.block_bytes, manifest_name(inner.number));
    let offset = slot as u64 * slot_bytes as u64;
    let (result, buf) = read_full_at(&manifest, PageBuf::zeroed(slot_bytes), offset, block).await;
    result.map_err(|source| Error::io(Kind::Retry, format!("reading {name}"), source))?;
    let said = Checkpoint::decode(&buf, inner.superblock.store, inner.number);
    let Some(mut checkpoint) = said.ok().filter(|said| said.generation == generation) else {
        let what = format!("{name}: the younger slot can't be read any more");
        return Err(Error::new(Kind::Retry, what));
    };
    checkpoint.generation += 1;
    write_slot(inner, &checkpoint).await?;
    tracing::debug!(shard = inner.number, checkpoint.generation, "the younger slot said again");
    inner.state.borrow_mut().progress.written(&checkpoint);
    Ok(())
}

/// What a checkpoint holds, as of the moment at which it was begun.
struct Begun<F: File> {
    checkpoint: Checkpoint,
    run: u32,
    frozen: Frozen,
    /// The runs whose place it takes.
    merged: Vec<Rc<Run<F>>>,
    how: How,
}

fn begin<E: Env>(inner: &Rc<Inner<E>>, forget: bool) -> Begun<FileOf<E>> {
    let state = &mut *inner.state.borrow_mut();
    assert!(!state.progress.running);
    state.progress.running = true;
    state.progress.begun_at = state.log_bytes;
    if forget {
        state.directory.recount();
        state.directory.count_live(&mut state.live);
    }
    let frozen = state.directory.freeze();
    let merged = match forget {
        true => state.directory.all_runs(),
        false => Vec::new(),
    };
    merged.iter().for_each(|run| run.merging.set(true));
    let run = state.progress.new_run();
    let tail = state.tail;
    let wall_ms = inner.env.wall_ms();
    let needed = |segment: &&Segment<_>| {
        let number = segment.header.number;
        number <= tail.segment && state.is_needed(segment, wall_ms, &inner.limits)
    };
    let segments = state.segments.values().filter(needed).map(|segment| SegmentRef {
        number: segment.header.number,
        bytes: segment.header.bytes,
        live_bytes: u32::try_from(state.live.bytes(segment.header.number.0)).unwrap_or(u32::MAX)
            & (u32::MAX >> 1),
        kept: segment.kept,
        newest_s: state.live.newest_s(segment.header.number.0),
        incarnation: segment.header.incarnation,
    });
    let checkpoint = Checkpoint {
        generation: state.progress.generation + 1,
        epoch: state.epoch,
        last: tail.last,
        last_crc: tail.last_crc,
        segment: tail.segment,
        offset: tail.offset,
        next_version: state.next_version,
        objects: state.directory.len(),
        log_bytes: state.log_bytes,
        wall_ms,
        next_run: 0,
        slot_bytes: len_u32(state.progress.slot_bytes),
        inexact: state.live.is_inexact(),
        segments: segments.collect(),
        runs: Vec::new(),
        namespaces: state.live.namespaces.sums().collect(),
    };
    let how = How { all: state.directory.reach_the_oldest(&merged), forget };
    Begun { checkpoint, run, frozen, merged, how }
}

async fn finish<E: Env>(inner: &Rc<Inner<E>>, begun: Begun<FileOf<E>>) -> Result<()> {
    let merged = begun.merged.clone();
    let written = write(inner, begun).await;
    if written.is_err() {
        inner.state.borrow_mut().directory.thaw();
        merged.iter().for_each(|run| run.merging.set(false));
    }
    if written.is_ok() {
        remove_unneeded(inner).await;
    }
    inner.state.borrow_mut().progress.running = false;
    merges::start_if_due(inner);
    inner.changed.notify();
    written
}

/// Writes run and slot; what is written takes its place in the directory.
async fn write<E: Env>(inner: &Rc<Inner<E>>, begun: Begun<FileOf<E>>) -> Result<()> {
    let Begun { mut checkpoint, run: number, frozen, merged, how } = begun;
    let turn = async || {
        inner.env.turn_end().await;
        Ok(())
    };
    let run = write_run(inner, number, Some(frozen), &merged, how, turn).await?;
    let number = run.as_ref().map(|run| run.header.number);
    {
        let state = &mut *inner.state.borrow_mut();
        state.progress.runs_on_disk.extend(number);
        let newest = run.as_ref().map(Run::to_ref);
        let kept = state.directory.run_refs().into_iter().skip(merged.len());
        checkpoint.runs = newest.into_iter().chain(kept).collect();
        checkpoint.next_run = state.progress.next_run;
    }
    write_slot(inner, &checkpoint).await?;
    tracing::debug!(
        shard = inner.number,
        generation = checkpoint.generation,
        run = number,
        bytes = run.as_ref().map_or(0, Run::blocks) * BLOCK_BYTES as u64,
        merged = merged.len(),
        objects = checkpoint.objects,
        "checkpoint made"
    );
    let state = &mut *inner.state.borrow_mut();
    state.directory.install(run, &merged);
    state.progress.written(&checkpoint);
    Ok(())
}

async fn write_slot<E: Env>(inner: &Rc<Inner<E>>, checkpoint: &Checkpoint) -> Result<()> {
    let (manifest, slot, slot_bytes) = {
        let state = &mut *inner.state.borrow_mut();
        if let Some(cause) = &state.poison {
            return Err(Error::caused(Kind::Poisoned, "making a checkpoint", cause.clone()));
        }
        let progress = &mut state.progress;
        // Also one whose write fails may be there afterwards, until another one takes its place.
        progress.needs[progress.next_slot].push(Needs::of(checkpoint));
        let manifest = progress.manifest.clone().expect("opened for writing");
        (manifest, progress.next_slot, progress.slot_bytes)
    };
    let block = inner.superblock.block_bytes;
    let bytes = checkpoint.bytes().next_multiple_of(block);
    if bytes > slot_bytes {
        let (segments, runs) = (checkpoint.segments.len(), checkpoint.runs.len());
        let what = format!("{segments} segments and {runs} runs do not fit a slot of {slot_bytes}");
        return Err(Error::new(Kind::Retry, what));
    }
    let mut buf = PageBuf::zeroed(bytes);
    checkpoint.encode(&mut buf, inner.superblock.store, inner.number);
    let offset = slot as u64 * slot_bytes as u64;
    let (result, _buf) = write_all_at(&manifest, buf, offset, block).await;
    result.map_err(|source| {
        Error::io(Kind::Retry, format!("writing {}", manifest_name(inner.number)), source)
    })
}

/// Removes the segments and runs that neither slot needs and nobody reads.
pub(crate) async fn remove_unneeded<E: Env>(inner: &Rc<Inner<E>>) {
    let (names, given) = {
        let state = &mut *inner.state.borrow_mut();
        let held = state.is_held();
        let State { progress, segments, live, cleaning, .. } = state;
        let slots = || progress.needs.iter().flatten();
        let unneeded = |(number, segment): &(&u32, &Segment<_>)| {
            !held && !segment.is_pinned() && !slots().any(|needs| needs.segment(**number))
        };
        let gone: Vec<u32> = segments.iter().filter(unneeded).map(|(number, _)| *number).collect();
        gone.iter().for_each(|number| live.forget(*number));
        cleaning.gone(&gone);
        let gone = gone.iter().filter_map(|number| segments.remove(number));
        let gone: Vec<_> = gone.map(Recycled::from).collect();
        let (given, gone) = state.give_to_reserve(gone, inner);
        let next_bytes = state.next_bytes(&inner.limits);
        let (again, gone): (Vec<_>, Vec<_>) =
            gone.into_iter().partition(|file| file.fits(next_bytes));
        let (mut fitting, others): (Vec<_>, Vec<_>) =
            std::mem::take(&mut state.recycled).into_iter().partition(|file| file.fits(next_bytes));
        fitting.extend(again);
        state.recycled = fitting;
        let room = RECYCLED_MAX.min(state.recycled.len());
        let gone = gone
            .into_iter()
            .chain(others)
            .chain(state.recycled.split_off(room))
            .map(|file| file.name);
        let State { progress, directory, .. } = state;
        let slots = || progress.needs.iter().flatten();
        let runs: Vec<u32> = progress.runs_on_disk.iter().copied().collect();
        // Those that were merged since are in no slot yet.
        let needed =
            |run: &u32| directory.uses(*run) || slots().any(|needs| needs.runs.contains(run));
        let runs = runs.into_iter().filter(|run| !needed(run));
        let runs: Vec<u32> = runs.collect();
        runs.iter().for_each(|run| assert!(progress.runs_on_disk.remove(run)));
        let runs = runs.into_iter().map(|run| crate::directory::file_name(inner.number, run));
        (gone.chain(runs).collect::<Vec<_>>(), given)
    };
    for (file, name) in given {
        // First of all: nobody else is to have its blocks.
        match inner.env.disk().rename(&file.name, &name).await {
            Ok(()) => inner.state.borrow_mut().reserve.files.push(Recycled { name, ..file }),
            // As below.
            Err(error) => tracing::warn!(name, %error, "could not give a segment to the reserve"),
        }
        inner.state.borrow_mut().reserve.freed();
    }
    for name in names {
        inner.state.borrow_mut().reserve.freed();
        // Nothing needs the file; the next recovery tries again.
        if let Err(error) = inner.env.disk().remove(&name).await {
            tracing::warn!(name, %error, "could not remove what no checkpoint needs");
        }
    }
}
