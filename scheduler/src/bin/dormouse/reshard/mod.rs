//! `reshard`: rewrites a closed store with another number of shards.
//!
//! The new store is built beside the old one, checked, and put in its place in one step ([`dirs`]). Until
//! then nothing of the old one changes; after that, nothing of it is needed.

mod copy;
mod dirs;

use std::path::PathBuf;

use clap::{Args, value_parser};

use crate::access::{self, Opened};
use crate::{Done, Verdict};
use dirs::Dirs;

/// Rewrites a closed store with another number of shards.
///
/// Builds a new store in DIR.resharding, copies every object with its alarm, namespace and name, reads all
/// of it again and compares it with the old one, and swaps the two directories in one step. The old
/// store stays as DIR.before-reshard, unless --remove-old is given. Versions begin anew.
///
/// A crash or a kill at any moment leaves DIR usable, as it was or as it will be: reshard again. Needs room
/// for both stores, and a file system that can swap directories. Refuses if anything can't be read. Also
/// without changing the number of shards: what is no longer needed is left behind.
#[derive(Args)]
#[command(
    verbatim_doc_comment,
    after_help = "\
Examples:
  cargo store reshard data --shards 8
  cargo store reshard data --shards 1 --remove-old"
)]
pub(crate) struct Reshard {
    /// The store's directory.
    dir: PathBuf,
    /// How many shards it is to have.
    #[arg(long, value_parser = value_parser!(u16).range(1..=4096))]
    shards: u16,
    /// Removes the old store in the end.
    #[arg(long)]
    remove_old: bool,
}

impl Reshard {
    pub(crate) fn run(self) -> Done {
        let dir = self.dir.clone();
        access::read(&dir, async move |opened| self.reshard(&opened).await)
    }

    async fn reshard(&self, opened: &Opened) -> Done {
        let dirs = Dirs::of(&self.dir)?;
        let now = opened.superblock.shards;
        if dirs.finish_interrupted()? {
            println!("reshard: an interrupted one was finished, the store has {now} shards");
            self.conclude(&dirs)?;
            if now == self.shards {
                return Ok(Verdict::Fine);
            }
        }
        dirs.prepare(opened.superblock.store)?;
        let copied = copy::copy(opened, dirs.new_store(), self.shards).await;
        let objects = match copied.and_then(|objects| dirs.exchange().map(|()| objects)) {
            Ok(objects) => objects,
            Err(error) => {
                // As if nothing had been tried; what stays is removed or finished by the next run.
                let _removed = dirs.discard();
                return Err(error);
            }
        };
        dirs.finish()?;
        println!("reshard: {objects} objects, {now} shards before, {} now", self.shards);
        self.conclude(&dirs)?;
        Ok(Verdict::Fine)
    }

    fn conclude(&self, dirs: &Dirs) -> anyhow::Result<()> {
        match self.remove_old {
            true => dirs.remove_old()?,
            false => println!("The old store is in {}", dirs.old_store().display()),
        }
        Ok(())
    }
}
