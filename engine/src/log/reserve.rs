//! The reserve: files beside the log, with blocks of their own, so that on a full disk what frees space can
//! still be written (docs/design.md, 3.5).
//!
//! A shard has [`FILES`] of them, each as large as a small segment. Whoever may use one takes it by renaming it: it
//! becomes a segment, as a file that is used again does, or a run. Nobody else on the file system can take
//! its blocks between. What the cleaner frees fills the reserve up before anything else is made of
//! it; and new data is taken only while the reserve is whole ([`super::room`]).
//!
//! | who | leaves at least |
//! |---|---|
//! | a segment for commits that only free | 3 |
//! | segments for rewrites, with which such commits may go; a run in which others are merged | 1 |
//! | a run of a checkpoint; the segment with which a shard is opened | 0 |
//!
//! It takes two checkpoints to let a segment go, but while the log stands still the second one has no run.
//!
//! A file that is much larger than a small segment, as one that was a large segment is, is cut: on a full disk too,
//! for its other blocks are room for the files that are missing, and for new data. While that task runs nobody takes
//! a file.
//!
//! A young shard has none: its reserve is the second half of the segment that it is opened with. The files are
//! made, off the path of commits, when the log comes near to that.
//!
//! | a crash while | leaves |
//! |---|---|
//! | a file is made | a file that is too short: the next recovery removes it |
//! | a file is cut | it, as long as before, or shorter |
//! | a segment that nobody needs is given to the reserve | it, by one of its two names |
//! | a file of it is taken | it; or a segment that is not finished, or a run that no slot names: removed |

use std::rc::Rc;
use std::time::Duration;

use super::segments::Recycled;
use crate::env::Env;
use crate::error::{Error, Result};
use crate::io::{Create, Disk, File, Mode, Open};
use crate::shard::{Inner, Life, State};

/// Files of a whole reserve.
pub(crate) const FILES: usize = 4;
/// How long after a try that found no room the next one may be made.
const PAUSE: Duration = Duration::from_millis(100);
/// Segments of a shard that is young.
const YOUNG_SEGMENTS: usize = 2;

/// What a commit has a claim on where room is short. Those that have a lesser one are refused first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Claim {
    /// It brings something: nothing of the reserve.
    #[default]
    New,
    /// It rewrites an object.
    Move,
    /// It only takes away.
    Free,
}

/// How many there are.
pub(crate) const CLAIMS: usize = 3;

impl Claim {
    pub(crate) const ALL: [Self; CLAIMS] = [Self::New, Self::Move, Self::Free];
}

/// Who takes a file of the reserve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Taker {
    Frees,
    Moves,
    Merge,
    Checkpoint,
}

impl Taker {
    /// Files that it leaves to the others.
    fn leaves(self) -> usize {
        match self {
            Self::Frees => 3,
            Self::Moves | Self::Merge => 1,
            Self::Checkpoint => 0,
        }
    }
}

/// The files that are there, and why there are no more.
#[derive(Debug, Default)]
pub(crate) struct Reserve {
    pub(crate) files: Vec<Recycled>,
    /// The number of the next one.
    pub(crate) next: u32,
    /// Whether a task makes files.
    pub(crate) running: bool,
    /// When room was last looked for in vain, since new data was last taken, and why there was none.
    full: Option<(Duration, Error)>,
    /// Whether there may be more room than there was then.
    freed: bool,
}

impl Reserve {
    /// That recovery found; `next`: no file has this number, or a higher one.
    pub(crate) fn found(files: Vec<Recycled>, next: u32) -> Self {
        Self { files, next, ..Self::default() }
    }

    pub(crate) fn is_whole(&self) -> bool {
        self.files.len() >= FILES
    }

    /// Bytes of its files.
    pub(crate) fn bytes(&self) -> u64 {
        self.files.iter().map(|file| u64::from(file.bytes)).sum()
    }

    /// Whether `taker` may take one.
    pub(crate) fn has(&self, taker: Taker) -> bool {
        self.files.len() > taker.leaves()
    }

    /// Takes the smallest file. Not while files are made or cut.
    pub(crate) fn take(&mut self, taker: Taker) -> Option<Recycled> {
        assert!(!self.running);
        if !self.has(taker) {
            return None;
        }
        let smallest = (0..self.files.len()).min_by_key(|index| self.files[*index].bytes);
        smallest.map(|index| self.files.remove(index))
    }

    /// Bytes of the files that rewrites may take.
    pub(crate) fn bytes_for_moves(&self) -> u64 {
        let files = self.files.iter().rev().skip(Taker::Moves.leaves());
        files.map(|file| u64::from(file.bytes)).sum()
    }

    /// A file that is so much larger than it need be that another one fits into the rest.
    fn large(&self, bytes_min: u32) -> Option<usize> {
        self.files.iter().position(|file| file.bytes >= bytes_min.saturating_mul(2))
    }

    /// Whether files are to be made, or cut, before anything else is looked for; `tried`: that was done in vain.
    pub(crate) fn wants_filling(&self, bytes_min: u32, tried: bool) -> bool {
        !self.is_whole() || !tried && self.large(bytes_min).is_some()
    }

    /// A file that is to be cut, as long as it will be: by one file, where some are missing, which is made of its
    /// blocks at once, before anybody else has them; else to the least.
    fn begin_cut(&mut self, bytes_min: u32) -> Option<Recycled> {
        let index = self.large(bytes_min)?;
        let whole = self.is_whole();
        let file = &mut self.files[index];
        file.bytes = if whole { bytes_min } else { file.bytes - bytes_min };
        Some(file.clone())
    }

    /// A name for one more file.
    pub(crate) fn new_name(&mut self, shard: u16) -> String {
        self.next += 1;
        format!("{}{:010}", name_prefix(shard), self.next - 1)
    }

    /// Why there is no room, if the disk is full as far as is known.
    pub(crate) fn full(&self) -> Option<&Error> {
        self.full.as_ref().map(|(_, error)| error)
    }

    /// There was no room.
    pub(crate) fn found_full(&mut self, now: Duration, error: Error) {
        self.full = Some((now, error));
        self.freed = false;
    }

    /// There is room for all.
    pub(crate) fn found_room(&mut self) {
        self.full = None;
    }

    /// Something was removed or given back.
    pub(crate) fn freed(&mut self) {
        self.freed = true;
    }

    /// Whether something is, will be seen.
    pub(crate) fn kept(&mut self) {
        self.freed = false;
    }

    /// Whether something was, since there was no room.
    pub(crate) fn was_freed(&self) -> bool {
        self.freed
    }

    /// Whether room may be looked for: not again and again.
    pub(crate) fn may_look(&self, now: Duration) -> bool {
        self.freed || self.full.as_ref().is_none_or(|(at, _)| now.saturating_sub(*at) >= PAUSE)
    }
}

/// The beginning of the names of the files of a shard's reserve.
pub(crate) fn name_prefix(shard: u16) -> String {
    format!("shard-{shard:04}-reserve-")
}

/// The number in the name of such a file.
pub(crate) fn number_in_name(shard: u16, name: &str) -> Option<u32> {
    name.strip_prefix(&name_prefix(shard))?.parse().ok()
}

impl<F: File> State<F> {
    /// Whether the shard may do without a reserve as long as it stays so small.
    pub(crate) fn is_young(&self) -> bool {
        self.segments.len() <= YOUNG_SEGMENTS
    }

    /// Whether the reserve is to be made, for the log comes near to where it needs one.
    pub(crate) fn reserve_is_due(&self, now: Duration, bytes_min: u32) -> bool {
        let Self { reserve, tail, segments, .. } = self;
        let begun = tail.offset >= segments[&tail.segment.0].header.bytes / 4;
        let wants = reserve.wants_filling(bytes_min, false);
        let idle = self.life == Life::Open && !reserve.running;
        wants && idle && reserve.may_look(now) && (begun || !self.is_young())
    }

    /// Of files that nobody needs, those that the reserve is to have, with their names in it, and the others.
    pub(crate) fn give_to_reserve<E: Env>(
        &mut self,
        mut files: Vec<Recycled>,
        inner: &Inner<E>,
    ) -> (Vec<(Recycled, String)>, Vec<Recycled>) {
        let missing = match self.is_young() && self.reserve.full.is_none() {
            true => 0,
            false => FILES.saturating_sub(self.reserve.files.len()),
        };
        files.sort_by_key(|file| (file.bytes < inner.limits.segment_bytes_min, file.bytes));
        let fit = files.iter().take(missing);
        let fit = fit.take_while(|file| file.bytes >= inner.limits.segment_bytes_min).count();
        let others = files.split_off(fit);
        let given = files.into_iter().map(|file| (file, self.reserve.new_name(inner.number)));
        (given.collect(), others)
    }
}

/// Cuts the files that are large, and makes those that are missing.
pub(crate) fn start_filling<E: Env>(inner: &Rc<Inner<E>>) {
    inner.state.borrow_mut().reserve.running = true;
    let filling = Filling(inner.clone());
    inner.env.spawn("reserve", async move {
        let inner = &filling.0;
        let filled = fill(inner).await;
        let state = &mut *inner.state.borrow_mut();
        if let Err(error) = filled {
            tracing::warn!(shard = inner.number, %error, "the reserve is not whole");
            state.found_no_room(inner.env.now(), error);
        }
        state.look_for_end_of_full();
    });
}

/// The task that makes files: the shard is closed only when it has ended.
struct Filling<E: Env>(Rc<Inner<E>>);

impl<E: Env> Drop for Filling<E> {
    fn drop(&mut self) {
        self.0.state.borrow_mut().reserve.running = false;
        self.0.space.notify();
        self.0.changed.notify();
    }
}

async fn fill<E: Env>(inner: &Rc<Inner<E>>) -> Result<()> {
    let bytes = inner.limits.segment_bytes_min;
    loop {
        let (cut, name) = {
            let state = &mut *inner.state.borrow_mut();
            // What waits when the shard is closed is still to be written.
            if state.life == Life::Closed || state.poison.is_some() {
                return Ok(());
            }
            let cut = state.reserve.begin_cut(bytes);
            let missing = !state.reserve.is_whole();
            (cut, missing.then(|| state.reserve.new_name(inner.number)))
        };
        match (cut, name) {
            (None, None) => return Ok(()),
            (Some(file), _) => cut_to(inner, &file).await?,
            (None, Some(name)) => add(inner, name, bytes).await?,
        }
    }
}

/// Makes one more file.
async fn add<E: Env>(inner: &Inner<E>, name: String, bytes: u32) -> Result<()> {
    if let Err(source) = make(inner, &name, bytes).await {
        // Best effort: what stays is too short, and the next recovery removes it.
        let _ = inner.env.disk().remove(&name).await;
        return Err(Error::making(format!("making {name} of {bytes} bytes"), source));
    }
    inner.state.borrow_mut().reserve.files.push(Recycled { name, bytes });
    Ok(())
}

/// Cuts a file to the length that it is said to have. One that can't be cut is no longer of the reserve: the next
/// recovery takes it in again.
async fn cut_to<E: Env>(inner: &Inner<E>, file: &Recycled) -> Result<()> {
    let Recycled { name, bytes } = file;
    let lock_wait = Some(inner.limits.lock_wait);
    let open = Open { create: Create::Never, mode: Mode::Through, lock_wait };
    let cut = async {
        let file = inner.env.disk().open(name, open).await?;
        file.shrink(u64::from(*bytes)).await?;
        file.sync().await
    };
    let cut = cut.await;
    let reserve = &mut inner.state.borrow_mut().reserve;
    reserve.freed();
    cut.map_err(|source| {
        reserve.files.retain(|other| other.name != *name);
        Error::making(format!("cutting {name} to {bytes} bytes"), source)
    })
}

async fn make<E: Env>(inner: &Inner<E>, name: &str, bytes: u32) -> std::io::Result<()> {
    let lock_wait = Some(inner.limits.lock_wait);
    let open = Open { create: Create::New, mode: Mode::Through, lock_wait };
    let file = inner.env.disk().open(name, open).await?;
    file.allocate(u64::from(bytes)).await?;
    file.sync().await?;
    inner.env.disk().sync_dir().await
}
