//! Writing a run: a few blocks at a time, so that the core has other turns between them.

use std::rc::Rc;

use super::guide::Guide;
use super::{Frozen, Merge, Recent, Run};
use crate::env::Env;
use crate::error::{Error, Kind, Result};
use crate::format::run::{self, BLOCK_BYTES, BlockBuilder, RunHeader};
use crate::ids::{Incarnation, ObjectId};
use crate::io::{Create, Disk, File, Mode, Open, PageBuf, write_all_at};
use crate::log::reserve::Taker;
use crate::log::segments::{FileOf, Recycled};
use crate::shard::Inner;

/// Blocks that are written at a time.
const CHUNK_BLOCKS: usize = 16;
/// Entries that are walked over in one turn of the core.
const TURN_ENTRIES: usize = 128;

/// The beginning of the names of a shard's runs.
pub(crate) fn name_prefix(shard: u16) -> String {
    format!("shard-{shard:04}-run-")
}

/// The name of a run's file.
pub(crate) fn file_name(shard: u16, number: u32) -> String {
    format!("{}{number:010}", name_prefix(shard))
}

/// The number in a run's name.
pub(crate) fn number_in_name(shard: u16, name: &str) -> Option<u32> {
    name.strip_prefix(&name_prefix(shard))?.parse().ok()
}

/// What goes into a run.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct How {
    /// The merged runs are all that there are, so that deleted objects leave nothing.
    pub(crate) all: bool,
    /// Damaged blocks are left out, and what they held is forgotten.
    pub(crate) forget: bool,
}

/// Writes run `number` of frozen entries and older runs, youngest first, and makes it durable. `None`
/// if nothing is left. `pause` is awaited every few entries; where it fails the writing ends. On a full disk
/// the run goes into a file of the reserve, if it may have one.
///
/// Errors: `NoSpace`, `Retry`, those of `pause`; `Corrupt`, if one of the runs is damaged and `how` does not say to
/// forget that. The file is removed again.
pub(crate) async fn write_run<E: Env>(
    inner: &Inner<E>,
    number: u32,
    frozen: Option<Frozen>,
    runs: &[Rc<Run<FileOf<E>>>],
    how: How,
    mut pause: impl AsyncFnMut() -> Result<()>,
) -> Result<Option<Run<FileOf<E>>>> {
    let again = frozen.as_ref().map(Frozen::again);
    let name = file_name(inner.number, number);
    let written = write_file(inner, number, Create::New, frozen, runs, how, &mut pause).await;
    if !matches!(written, Ok(Some(_))) {
        // Nothing names it; one that stays is taken away by the next recovery.
        let _ = inner.env.disk().remove(&name).await;
    }
    let error = match written {
        Err(error) if error.kind() == Kind::NoSpace => error,
        written => return written,
    };
    // Nobody takes a file while some are made, or cut.
    inner.changed.until(|| (!inner.state.borrow().reserve.running).then_some(())).await;
    let file = {
        let state = &mut *inner.state.borrow_mut();
        state.found_full(inner.env.now(), error.clone());
        let taker = if again.is_some() { Taker::Checkpoint } else { Taker::Merge };
        state.reserve.take(taker)
    };
    let Some(file) = file else { return Err(error) };
    if let Err(source) = inner.env.disk().rename(&file.name, &name).await {
        inner.state.borrow_mut().reserve.files.push(file);
        return Err(Error::making(format!("making {name} of the reserve"), source));
    }
    let written = write_file(inner, number, Create::Never, again, runs, how, pause).await;
    if !matches!(written, Ok(Some(_))) {
        give_back(inner, &name, file).await;
    }
    written
}

/// A file of the reserve in which there is no run after all belongs to it again, unless it was cut already.
async fn give_back<E: Env>(inner: &Inner<E>, name: &str, file: Recycled) {
    let disk = inner.env.disk();
    let open = Open { create: Create::Never, mode: Mode::Cached, lock_wait: None };
    let len = async { disk.open(name, open).await?.len().await };
    if len.await.is_ok_and(|len| len >= u64::from(file.bytes))
        && disk.rename(name, &file.name).await.is_ok()
    {
        inner.state.borrow_mut().reserve.files.push(file);
    } else {
        // Nothing names it; one that stays is taken away by the next recovery.
        let _ = disk.remove(name).await;
    }
}

async fn write_file<E: Env>(
    inner: &Inner<E>,
    number: u32,
    create: Create,
    frozen: Option<Frozen>,
    runs: &[Rc<Run<FileOf<E>>>],
    how: How,
    pause: impl AsyncFnMut() -> Result<()>,
) -> Result<Option<Run<FileOf<E>>>> {
    let Inner { env, superblock, number: shard, limits, .. } = inner;
    let name = file_name(*shard, number);
    let failed = |source: std::io::Error| Error::making(format!("writing {name}"), source);
    let open = Open { create, mode: Mode::Cached, lock_wait: Some(limits.lock_wait) };
    let file = env.disk().open(&name, open).await.map_err(failed)?;
    let header = RunHeader {
        store: superblock.store,
        shard: *shard,
        number,
        incarnation: Incarnation(env.random().max(1)),
        entry_blocks: 0,
        alarm_blocks: 0,
    };
    let mut writer = Writer::new(&file, header);
    let frozen = frozen.into_iter().map(|frozen| Box::new(frozen) as Recent<'_>);
    let merged = Merge::new(frozen.collect(), runs, None);
    let header = writer.write(merged, how, pause).await?.map_err(failed)?;
    if header.entry_blocks == 0 {
        return Ok(None);
    }
    if create == Create::Never {
        // The rest of it is room again.
        let bytes = run::file_blocks(&header) * BLOCK_BYTES as u64;
        file.shrink(bytes).await.map_err(failed)?;
        inner.state.borrow_mut().reserve.freed();
    }
    file.sync().await.map_err(failed)?;
    env.disk().sync_dir().await.map_err(failed)?;
    let guide = std::mem::take(&mut writer.guide);
    Run::new(header, file.clone(), guide).map(Some).map_err(failed)
}

pub(super) struct Writer<'a, F> {
    file: &'a F,
    /// Blocks on their way, and how many of them are filled.
    chunk: PageBuf,
    filled: usize,
    next_block: u32,
    header: RunHeader,
    block: BlockBuilder,
    pub(super) guide: Guide,
}

impl<'a, F: File> Writer<'a, F> {
    /// A writer of the run of this header, whose counts of blocks are not known yet.
    pub(super) fn new(file: &'a F, header: RunHeader) -> Self {
        let chunk = PageBuf::zeroed(CHUNK_BLOCKS * BLOCK_BYTES);
        let (block, guide) = Default::default();
        Self { file, chunk, filled: 0, next_block: 1, header, block, guide }
    }

    /// Writes all entries; gives the header. Errors of runs that are read and of `pause`, and of the file.
    pub(super) async fn write(
        &mut self,
        entries: Merge<'_, F>,
        how: How,
        mut pause: impl AsyncFnMut() -> Result<()>,
    ) -> Result<std::io::Result<RunHeader>> {
        let mut alarms: Vec<(u64, ObjectId)> = Vec::new();
        for (walked, entry) in entries.enumerate() {
            if walked % TURN_ENTRIES == TURN_ENTRIES - 1 {
                pause().await?;
            }
            let (key, entry) = match entry {
                Err(_) if how.forget => continue,
                Ok((_, entry)) if how.forget && entry.known(None).is_err() => continue,
                entry => entry?,
            };
            if how.all && entry.is_deleted() {
                continue;
            }
            alarms.extend(entry.alarm().map(|at_ms| (at_ms, key.id)));
            while !self.block.push_entry(&key, &entry) {
                if let Err(error) = self.finish_block().await {
                    return Ok(Err(error));
                }
            }
            // Nothing is older than all runs: nobody would look further.
            self.guide.wrote(self.next_block, &key, !how.all);
        }
        Ok(self.finish(alarms).await)
    }

    async fn finish(&mut self, mut alarms: Vec<(u64, ObjectId)>) -> std::io::Result<RunHeader> {
        self.finish_block().await?;
        self.header.entry_blocks = self.next_block - 1;
        if self.header.entry_blocks == 0 {
            return Ok(self.header);
        }
        alarms.sort_unstable();
        for (at_ms, id) in &alarms {
            while !self.block.push_alarm(*at_ms, id) {
                self.finish_block().await?;
            }
        }
        self.finish_block().await?;
        self.flush().await?;
        self.header.alarm_blocks = self.next_block - 1 - self.header.entry_blocks;
        self.chunk.set_window(0..BLOCK_BYTES);
        self.chunk.copy_from_slice(&self.header.encode());
        self.write_at(0).await?;
        Ok(self.header)
    }

    async fn finish_block(&mut self) -> std::io::Result<()> {
        if self.block.is_empty() {
            return Ok(());
        }
        let start = self.filled * BLOCK_BYTES;
        let out = &mut self.chunk[start..start + BLOCK_BYTES];
        self.block.finish(out, self.header.incarnation, self.next_block);
        self.filled += 1;
        self.next_block += 1;
        match self.filled == CHUNK_BLOCKS {
            true => self.flush().await,
            false => Ok(()),
        }
    }

    async fn flush(&mut self) -> std::io::Result<()> {
        if self.filled == 0 {
            return Ok(());
        }
        let first = u64::from(self.next_block) - self.filled as u64;
        self.chunk.set_window(0..self.filled * BLOCK_BYTES);
        let offset = first * BLOCK_BYTES as u64;
        self.file.allocate(offset + self.chunk.len() as u64).await?;
        self.write_at(offset).await?;
        self.filled = 0;
        Ok(())
    }

    /// Writes the chunk's window.
    async fn write_at(&mut self, offset: u64) -> std::io::Result<()> {
        let chunk = std::mem::replace(&mut self.chunk, PageBuf::zeroed(BLOCK_BYTES));
        let (result, chunk) = write_all_at(self.file, chunk, offset, BLOCK_BYTES).await;
        self.chunk = chunk;
        let whole = 0..self.chunk.capacity();
        self.chunk.set_window(whole);
        result
    }
}
