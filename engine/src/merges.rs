//! Merging the directory's runs, apart from checkpoints, so that no checkpoint, and so no commit, waits
//! for a large merge.
//!
//! A merge writes one run of what several neighbours hold, a few entries in each turn of the core, and puts it in
//! their place in memory. The next checkpoint names it instead of them; until both slots do without them, their
//! files stay. Several may be made at a time, small ones in front of a large one, each of runs of its own.
//!
//! | a crash while | leaves |
//! |---|---|
//! | the run is written | a file that no slot names; the next recovery removes it |
//! | no checkpoint names it yet | the same, and the runs that it was made of |
//!
//! One that fails changes nothing; it is tried again after the next checkpoint. A shard that is closed, or
//! poisoned, gives up those that it is making.

use std::rc::Rc;

use crate::checkpoint;
use crate::directory::{How, Run, write_run};
use crate::env::Env;
use crate::error::{Error, Kind, Result};
use crate::format::run::BLOCK_BYTES;
use crate::log::segments::FileOf;
use crate::shard::{Inner, Life, State};

/// Begins the merges that there are to make.
pub(crate) fn start_if_due<E: Env>(inner: &Rc<Inner<E>>) {
    let (runs, how, number) = {
        let state = &mut *inner.state.borrow_mut();
        if state.life != Life::Open || state.poison.is_some() {
            return;
        }
        let runs = state.directory.to_merge(&inner.limits);
        if runs.is_empty() {
            return;
        }
        runs.iter().for_each(|run| run.merging.set(true));
        state.progress.merges += 1;
        let how = How { all: state.directory.reach_the_oldest(&runs), forget: false };
        (runs, how, state.progress.new_run())
    };
    let task_inner = inner.clone();
    inner.env.spawn("merge", async move {
        let inner = task_inner;
        let merged = merge(&inner, number, &runs, how).await;
        if merged.is_err() {
            runs.iter().for_each(|run| run.merging.set(false));
        }
        inner.state.borrow_mut().progress.merges -= 1;
        match merged {
            Ok(()) => start_if_due(&inner),
            Err(error) if error.kind() == Kind::Closed => {}
            Err(error) => {
                tracing::warn!(shard = inner.number, %error, "a merge failed; it is tried again later");
            }
        }
        // One may have waited for room.
        checkpoint::start_if_due(&inner);
        inner.changed.notify();
    });
}

/// Makes one run of all that there are, after the merges that are being made. A damaged one stays as it is, and
/// with it all others. Whether there was anything to do.
///
/// Errors: `Closed` (also where the shard is poisoned), `NoSpace`, `Retry`: the runs are as before.
pub(crate) async fn merge_all<E: Env>(inner: &Rc<Inner<E>>) -> Result<bool> {
    let over = |state: &State<FileOf<E>>| state.life != Life::Open || state.poison.is_some();
    let idle = || {
        let state = inner.state.borrow();
        (over(&state) || state.progress.merges == 0 && !state.progress.running).then_some(())
    };
    inner.changed.until(idle).await;
    let (runs, number) = {
        let state = &mut *inner.state.borrow_mut();
        if over(state) {
            return Err(Error::new(Kind::Closed, "the shard needs no merge any more"));
        }
        let runs = state.directory.all_runs();
        if runs.len() < 2 || runs.iter().any(|run| run.damaged.get()) {
            return Ok(false);
        }
        runs.iter().for_each(|run| run.merging.set(true));
        state.progress.merges += 1;
        (runs, state.progress.new_run())
    };
    let merging = Merging { inner, runs: &runs };
    merge(inner, number, &runs, How { all: true, forget: false }).await?;
    drop(merging);
    Ok(true)
}

/// A merge that somebody waits for: also where that is given up, it is under way no more.
struct Merging<'a, E: Env> {
    inner: &'a Rc<Inner<E>>,
    runs: &'a [Rc<Run<FileOf<E>>>],
}

impl<E: Env> Drop for Merging<'_, E> {
    fn drop(&mut self) {
        self.runs.iter().for_each(|run| run.merging.set(false));
        self.inner.state.borrow_mut().progress.merges -= 1;
        self.inner.changed.notify();
    }
}

async fn merge<E: Env>(
    inner: &Rc<Inner<E>>,
    number: u32,
    runs: &[Rc<Run<FileOf<E>>>],
    how: How,
) -> Result<()> {
    let go_on = async || {
        inner.env.turn_end().await;
        let state = inner.state.borrow();
        match state.life == Life::Open && state.poison.is_none() {
            true => Ok(()),
            false => Err(Error::new(Kind::Closed, "the shard needs no merge any more")),
        }
    };
    let run = write_run(inner, number, None, runs, how, go_on).await?;
    let blocks = |run: &Run<_>| run.blocks() * BLOCK_BYTES as u64;
    tracing::debug!(
        shard = inner.number,
        run = number,
        bytes = run.as_ref().map_or(0, blocks),
        merged = runs.len(),
        "runs merged"
    );
    let state = &mut *inner.state.borrow_mut();
    state.progress.runs_on_disk.extend(run.as_ref().map(|_| number));
    state.directory.replace(runs, run);
    Ok(())
}
