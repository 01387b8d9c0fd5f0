//! `ls`: the objects of a store, a line each.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use dormouse_engine::{Filter, ObjectInfo};
use serde::Serialize;

use crate::access::{self, Opened};
use crate::print::{self, Out};
use crate::{Done, Verdict};

/// The objects of the store, a line each.
///
/// Fields, separated by tabs, `-` for what is not known or not there: id, namespace, name, version,
/// bytes in the log, last write, next alarm; after them the word `damaged` for an object that can't be
/// read. Times are UTC. The order is the store's own, and nothing is held in memory, unless --sort is
/// given. Exits with 1 if the directory itself is damaged: then objects may be missing.
#[derive(Args)]
#[command(
    verbatim_doc_comment,
    after_help = "\
Examples:
  cargo store ls data
  cargo store ls data --namespace rooms --prefix lobby- --sort
  cargo store ls data --json | jq -r 'select(.alarm) | .name'"
)]
pub(crate) struct Ls {
    /// The store's directory.
    dir: PathBuf,
    /// Only objects of this namespace.
    #[arg(long)]
    namespace: Option<String>,
    /// Only objects whose name begins so.
    #[arg(long)]
    prefix: Option<String>,
    /// By namespace, name and id. All are held in memory for it.
    #[arg(long)]
    sort: bool,
    /// A JSON object a line.
    #[arg(long)]
    json: bool,
}

/// What a listing says of an object.
#[derive(Serialize)]
pub(crate) struct Line<'a> {
    id: String,
    namespace: Option<&'a str>,
    name: Option<&'a str>,
    version: u64,
    log_bytes: u64,
    written: String,
    alarm: Option<String>,
    damaged: bool,
}

impl Ls {
    pub(crate) fn run(self) -> Done {
        let dir = self.dir.clone();
        access::read(&dir, async move |opened| self.list(&opened).await)
    }

    async fn list(&self, opened: &Opened) -> Done {
        let filter = Filter {
            namespace: self.namespace.as_deref().map(Into::into),
            name_prefix: self.prefix.as_deref().map(Into::into),
        };
        let (mut out, mut sorted, mut whole) = (print::out(), Vec::new(), true);
        for number in 0..opened.superblock.shards {
            let shard = opened.shard(number).await?;
            for object in access::objects(&shard, &filter) {
                match self.sort {
                    true => sorted.push(object),
                    false => self.print(&mut out, &object)?,
                }
            }
            whole &= access::tell_left_out(&shard.damaged_blocks());
            shard.close().await?;
        }
        let key = |object: &ObjectInfo| (object.namespace.clone(), object.name.clone(), object.id);
        sorted.sort_by_cached_key(key);
        sorted.iter().try_for_each(|object| self.print(&mut out, object))?;
        out.flush()?;
        Ok(Verdict::fine_if(whole))
    }

    fn print(&self, out: &mut Out, object: &ObjectInfo) -> std::io::Result<()> {
        if self.json {
            return print::json(out, &Line::of(object));
        }
        let ObjectInfo { id, version, log_bytes, written_ms, .. } = object;
        writeln!(
            out,
            "{id}\t{}\t{}\t{version}\t{log_bytes}\t{}\t{}{}",
            print::name(object.namespace.as_deref()),
            print::name(object.name.as_deref()),
            print::time(*written_ms),
            print::time_or_none(object.alarm),
            if object.damaged { "\tdamaged" } else { "" },
        )
    }
}

impl<'a> Line<'a> {
    pub(crate) fn of(object: &'a ObjectInfo) -> Self {
        Self {
            id: object.id.to_string(),
            namespace: object.namespace.as_deref(),
            name: object.name.as_deref(),
            version: object.version.0,
            log_bytes: object.log_bytes,
            written: print::time(object.written_ms),
            alarm: object.alarm.map(print::time),
            damaged: object.damaged,
        }
    }
}
