//! Where replay begins: the newest checkpoint whose runs are whole.

use std::rc::Rc;

use futures_util::future::join_all;

use super::Place;
use crate::checkpoint::Needs;
use crate::directory::{self, Run};
use crate::env::Env;
use crate::error::{Error, Kind, Result};
use crate::format::Rejected;
use crate::format::checkpoint::{Checkpoint, RunRef, SegmentRef};
use crate::format::run::{self, BLOCK_BYTES, RunHeader};
use crate::ids::Sequence;
use crate::io::{Disk, File, Mode, Open, PageBuf, read_full_at};
use crate::log::segments::FileOf;

/// Where replay begins.
pub(super) struct Base<F: File> {
    /// The checkpoint, and the slot that it lies in.
    pub(super) chosen: Option<(Checkpoint, usize)>,
    /// Its runs, youngest first.
    pub(super) runs: Vec<Rc<Run<F>>>,
    /// The last batch that any slot says was durable.
    pub(super) vouched: Sequence,
    pub(super) needs: [Vec<Needs>; 2],
    pub(super) generation: u64,
}

impl<F: File> Base<F> {
    /// Chooses the newest checkpoint whose runs are whole.
    ///
    /// Errors: `Retry`, `Invalid` (a newer format).
    pub(super) async fn choose<E: Env>(
        env: &E,
        place: &Place<'_>,
        slots: &[Option<Checkpoint>; 2],
    ) -> Result<Base<FileOf<E>>> {
        let valid = || slots.iter().enumerate().filter_map(|(slot, it)| Some((it.as_ref()?, slot)));
        let mut base = Base {
            chosen: None,
            runs: Vec::new(),
            vouched: valid().map(|(it, _)| it.last).max().unwrap_or(Sequence(0)),
            needs: slots
                .each_ref()
                .map(|slot| vec![slot.as_ref().map_or_else(Needs::all, Needs::of)]),
            generation: valid().map(|(it, _)| it.generation).max().unwrap_or(0),
        };
        let mut newest_first: Vec<_> = valid().collect();
        newest_first.sort_by_key(|(it, _)| std::cmp::Reverse(it.generation));
        for (checkpoint, slot) in newest_first {
            match open_runs(env, place, checkpoint).await {
                Ok(runs) => {
                    base.chosen = Some((checkpoint.clone(), slot));
                    base.runs = runs;
                    break;
                }
                Err(error) if error.kind() == Kind::Corrupt => {
                    let generation = checkpoint.generation;
                    tracing::error!(shard = place.shard, generation, %error, "a checkpoint can't be used");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(base)
    }

    pub(super) fn checkpoint(&self) -> Option<&Checkpoint> {
        self.chosen.as_ref().map(|(checkpoint, _)| checkpoint)
    }

    /// What the chosen checkpoint says of a segment.
    pub(super) fn segment(&self, number: u32) -> Option<SegmentRef> {
        let segments = &self.checkpoint()?.segments;
        segments.iter().find(|wanted| wanted.number.0 == number).copied()
    }

    /// What the other slot says of a segment that the chosen one does not need.
    pub(super) fn other_segment(&self, number: u32) -> Option<SegmentRef> {
        self.needs.iter().flatten().find_map(|needs| needs.segments.get(&number)).copied()
    }

    pub(super) fn needs_segment(&self, number: u32) -> bool {
        self.needs.iter().flatten().any(|needs| needs.segment(number))
    }
}

/// Opens a checkpoint's runs, all at once.
async fn open_runs<E: Env>(
    env: &E,
    place: &Place<'_>,
    checkpoint: &Checkpoint,
) -> Result<Vec<Rc<Run<FileOf<E>>>>> {
    let opening = checkpoint.runs.iter().map(|wanted| open_run(env, place, wanted));
    join_all(opening).await.into_iter().collect()
}

async fn open_run<E: Env>(
    env: &E,
    place: &Place<'_>,
    wanted: &RunRef,
) -> Result<Rc<Run<FileOf<E>>>> {
    let Place { superblock, shard, limits, opening } = *place;
    let name = directory::file_name(shard, wanted.number);
    let failed = |source: std::io::Error| {
        let kind = match source.kind() {
            std::io::ErrorKind::NotFound => Kind::Corrupt,
            _ => Kind::Retry,
        };
        Error::io(kind, format!("opening {name}"), source)
    };
    let open =
        Open { create: opening.create(), mode: Mode::Cached, lock_wait: Some(limits.lock_wait) };
    let file = env.disk().open(&name, open).await.map_err(failed)?;
    let (result, buf) = read_full_at(&file, PageBuf::zeroed(BLOCK_BYTES), 0, BLOCK_BYTES).await;
    let read = result.map_err(failed)?;
    // The checkpoint says what the header said; blocks have checksums of their own.
    let said = RunHeader {
        store: superblock.store,
        shard,
        number: wanted.number,
        incarnation: wanted.incarnation,
        entry_blocks: wanted.entry_blocks,
        alarm_blocks: wanted.alarm_blocks,
    };
    let header = match RunHeader::decode(&buf[..read], superblock.store, shard) {
        Err(Rejected::Version(version)) => return Err(Error::newer_format(&name, version)),
        Err(why) => {
            tracing::error!(name, %why, "the header of a run is damaged; nothing is lost");
            said
        }
        Ok(header) => header,
    };
    let bytes = run::file_blocks(&said) * BLOCK_BYTES as u64;
    if header != said || file.len().await.map_err(failed)? < bytes {
        return Err(Error::corrupt(format!("{name}: {}", Rejected::Foreign)));
    }
    Ok(Rc::new(Run::opened(header, file).map_err(failed)?))
}
