//! `scrub`: reads everything, and lists what is damaged.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use dormouse_engine::{Error, ObjectId};
use serde::Serialize;

use crate::access::{self, Opened, RealShard};
use crate::{Done, Verdict, print};

/// Reads every object and every block of the directory, and lists what is damaged.
///
/// Three kinds of damage are told apart: objects that can't be read, by id, and by namespace and name
/// where known; blocks of the directory, which may have held objects that nothing else names; and what
/// keeps a shard from opening (the rest of it is read all the same). The last line is
/// `scrub: O objects, B bytes, D damaged`. Exits with 1 if anything is damaged.
#[derive(Args)]
#[command(
    verbatim_doc_comment,
    after_help = "\
Examples:
  cargo store scrub data
  cargo store scrub data --json | jq -r .objects_damaged[].id"
)]
pub(crate) struct Scrub {
    /// The store's directory.
    dir: PathBuf,
    /// One JSON document.
    #[arg(long)]
    json: bool,
}

/// What a scrub found.
#[derive(Default, Serialize)]
pub(crate) struct Findings {
    /// Objects that were read.
    objects: u64,
    /// Bytes of their keys and values.
    bytes: u64,
    objects_damaged: Vec<Damaged>,
    directory_damaged: Vec<String>,
    /// What keeps a shard from opening.
    shards_damaged: Vec<String>,
    /// Where live bytes were counted wrong.
    miscounted: Vec<String>,
}

#[derive(Serialize)]
struct Damaged {
    id: String,
    namespace: Option<String>,
    name: Option<String>,
    reason: String,
}

impl Scrub {
    pub(crate) fn run(self) -> Done {
        access::read(&self.dir, async move |opened| {
            let found = scrub(&opened).await?;
            let mut out = print::out();
            match self.json {
                true => print::json(&mut out, &found)?,
                false => found.print(&mut out)?,
            }
            out.flush()?;
            Ok(Verdict::fine_if(found.is_clean()))
        })
    }
}

async fn scrub(opened: &Opened) -> Result<Findings, Error> {
    let mut found = Findings::default();
    for number in 0..opened.superblock.shards {
        // What else is damaged behind a loss is to be seen too.
        let (shard, losses) = opened.damaged_shard(number, true).await?;
        let closed = |loss| format!("keeps shard {number} closed: {loss}");
        found.shards_damaged.extend(losses.into_iter().map(closed));
        found.add(&shard, number).await?;
        shard.close().await?;
    }
    Ok(found)
}

impl Findings {
    /// Scrubs one shard.
    pub(crate) async fn add(&mut self, shard: &RealShard, number: u16) -> Result<(), Error> {
        let bar = print::bar(&format!("scrubbing shard {number}"), shard.stats().objects);
        let found = shard.scrub(|objects| bar.set_position(objects)).await;
        bar.finish_and_clear();
        let found = found?;
        self.objects += found.objects;
        self.bytes += found.bytes;
        let damaged = |(id, error): &(ObjectId, Error)| Damaged::new(shard, id, error);
        self.objects_damaged.extend(found.unreadable.iter().map(damaged));
        self.directory_damaged.extend(found.directory.iter().map(Error::to_string));
        self.miscounted.extend(found.miscounted);
        Ok(())
    }

    fn damaged(&self) -> usize {
        self.objects_damaged.len() + self.directory_damaged.len() + self.shards_damaged.len()
    }

    pub(crate) fn is_clean(&self) -> bool {
        self.damaged() == 0 && self.miscounted.is_empty()
    }

    pub(crate) fn print(&self, out: &mut impl Write) -> std::io::Result<()> {
        for Damaged { id, namespace, name, reason } in &self.objects_damaged {
            let (namespace, name) = (namespace.as_deref(), name.as_deref());
            let (namespace, name) = (print::name(namespace), print::name(name));
            writeln!(out, "damaged object {id} (namespace {namespace}, name {name}): {reason}")?;
        }
        for reason in &self.directory_damaged {
            writeln!(out, "damaged directory: {reason}")?;
        }
        for reason in &self.shards_damaged {
            writeln!(out, "{reason}")?;
        }
        for wrong in &self.miscounted {
            writeln!(out, "miscounted: {wrong}")?;
        }
        let Self { objects, bytes, .. } = self;
        writeln!(out, "scrub: {objects} objects, {bytes} bytes, {} damaged", self.damaged())
    }
}

impl Damaged {
    fn new(shard: &RealShard, id: &ObjectId, error: &Error) -> Self {
        // The part of the directory that names it may be damaged too.
        let info = shard.info(id).ok().flatten();
        let text = |text: &std::sync::Arc<str>| text.to_string();
        Self {
            id: id.to_string(),
            namespace: info.as_ref().and_then(|info| info.namespace.as_ref().map(text)),
            name: info.as_ref().and_then(|info| info.name.as_ref().map(text)),
            reason: error.to_string(),
        }
    }
}
