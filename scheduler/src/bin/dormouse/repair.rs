//! `repair`: brings back what of a damaged store can be brought back, or says what it would do.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use dormouse_engine::repair::Fate;
use dormouse_engine::{Error, ObjectId};
use serde::Serialize;

use crate::access::{self, Opened, RealShard};
use crate::print::{self, Out};
use crate::scrub::Findings;
use crate::{Done, Verdict};

/// Brings damaged objects back to the last state that can be read. Without --apply, only says so.
///
/// An object of which no state can be read any more is dropped. Damage that hides which objects it hit,
/// and so keeps a shard closed, is accepted and said: nobody can know what was lost by it. A damaged block of the directory is given
/// up, after the log was searched for the objects that may have been in it.
///
/// The dry run changes nothing and exits with 1 if there is something to do. With --apply, everything is
/// scrubbed afterwards; exits with 0 if nothing was to be done or all was done. Copy the store first: what a
/// repair gives up is not kept.
#[derive(Args)]
#[command(
    verbatim_doc_comment,
    after_help = "\
Examples:
  cargo store repair data
  cargo store repair data --apply"
)]
pub(crate) struct Repair {
    /// The store's directory.
    dir: PathBuf,
    /// Does it.
    #[arg(long)]
    apply: bool,
    /// JSON lines: one for each loss, object and block of the directory.
    #[arg(long)]
    json: bool,
}

/// One thing that is to be done.
#[derive(Serialize)]
#[serde(tag = "what", rename_all = "kebab-case")]
enum Step {
    /// What keeps a shard closed is accepted, with the losses that it hides.
    Accepted { loss: String },
    /// An object is brought back to an earlier state.
    BroughtBack { id: String, version: u64, written: String, keys: usize },
    /// An object's deletion is said again.
    Deleted { id: String },
    /// An object is dropped.
    Dropped { id: String },
    /// An object is too large to be brought back.
    TooLarge { id: String, version: u64 },
    /// A block of the directory is given up.
    GivenUp { block: String },
}

impl Repair {
    pub(crate) fn run(self) -> Done {
        let dir = self.dir.clone();
        match self.apply {
            true => access::write(&dir, async move |opened| self.repair(&opened).await),
            false => access::read(&dir, async move |opened| self.repair(&opened).await),
        }
    }

    async fn repair(&self, opened: &Opened) -> Done {
        let (mut out, mut steps) = (print::out(), 0);
        let mut after = Findings::default();
        for number in 0..opened.superblock.shards {
            let (shard, losses) = opened.damaged_shard(number, !self.apply).await?;
            for loss in losses {
                self.print(&mut out, &Step::Accepted { loss })?;
                steps += 1;
            }
            let done = self.repair_shard(&shard, number, &mut out).await;
            if let (Ok(_), true) = (&done, self.apply) {
                after.add(&shard, number).await?;
            }
            // What was repaired is durable, whatever else went wrong.
            out.flush()?;
            shard.close().await?;
            steps += done?;
        }
        self.conclude(&mut out, steps, &after)?;
        out.flush()?;
        let fine = if self.apply { after.is_clean() } else { steps == 0 };
        Ok(Verdict::fine_if(fine))
    }

    /// How many things were to be done.
    async fn repair_shard(
        &self,
        shard: &RealShard,
        number: u16,
        out: &mut Out,
    ) -> anyhow::Result<usize> {
        let bar = print::waiting(&format!("repairing shard {number}"));
        let repaired = shard.repair(self.apply).await;
        bar.finish_and_clear();
        let repaired = repaired?;
        let objects = repaired.objects.iter().map(|(id, fate)| Step::of(id, fate));
        let blocks = repaired.directory.iter().map(Error::to_string);
        let steps: Vec<_> = objects.chain(blocks.map(|block| Step::GivenUp { block })).collect();
        steps.iter().try_for_each(|step| self.print(out, step))?;
        Ok(steps.len())
    }

    fn print(&self, out: &mut Out, step: &Step) -> std::io::Result<()> {
        if self.json {
            return print::json(out, step);
        }
        let will = if self.apply { "" } else { "would be " };
        match step {
            Step::Accepted { loss } => writeln!(
                out,
                "{will}accepted: {loss}; what is lost by it without a trace, nobody can know"
            ),
            Step::BroughtBack { id, version, written, keys } => writeln!(
                out,
                "object {id}: {will}brought back to version {version} of {written}, {keys} keys; \
                 later commits are lost"
            ),
            Step::Deleted { id } => writeln!(
                out,
                "object {id}: {will}deleted, as it was by its newest commit that can be read"
            ),
            Step::Dropped { id } => {
                writeln!(out, "object {id}: {will}dropped, no state of it can be read")
            }
            Step::TooLarge { id, version } => writeln!(
                out,
                "object {id}: can be read at version {version}, and is too large to be brought back"
            ),
            Step::GivenUp { block } => writeln!(out, "{will}given up: {block}"),
        }
    }

    fn conclude(&self, out: &mut Out, steps: usize, after: &Findings) -> std::io::Result<()> {
        match (steps, self.apply) {
            _ if self.json => Ok(()),
            (0, false) => writeln!(out, "repair: nothing to do"),
            (_, false) => writeln!(out, "repair: {steps} to do; --apply does it"),
            (_, true) => {
                after.print(out)?;
                let all = if after.is_clean() { "all is clean" } else { "not all is clean" };
                writeln!(out, "repair: {steps} done, {all}")
            }
        }
    }
}

impl Step {
    fn of(id: &ObjectId, fate: &Fate) -> Self {
        let id = id.to_string();
        match fate {
            Fate::BroughtBack { version, written_ms, keys } => Self::BroughtBack {
                id,
                version: version.0,
                written: print::time(*written_ms),
                keys: *keys,
            },
            Fate::Deleted => Self::Deleted { id },
            Fate::Dropped => Self::Dropped { id },
            Fate::TooLarge(version) => Self::TooLarge { id, version: version.0 },
        }
    }
}
