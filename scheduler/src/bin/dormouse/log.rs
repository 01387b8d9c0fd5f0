//! `log`: the commits of one object that the log still holds.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use dormouse_engine::history::{Change, Commit, Form};
use serde::Serialize;

use crate::access;
use crate::inspect::Which;
use crate::print::{self, Out, Text};
use crate::{Done, Verdict};

/// Keys of a commit that are shown.
const KEYS: usize = 20;

/// The commits of one object that the log still holds, newest first; also of one that was deleted.
///
/// Of each: when it was made, its version, how it lies in the log (`image`: the whole object; `delta`: what
/// changed; `rewrite`: the whole object once more, nothing changed), the alarm after it, its bytes and
/// where they lie, and its keys: `+` put, with the bytes of the value, `-` deleted. Of an image, these are all
/// keys. Reads the whole log of the object's shard. Exits with 1 if there are none.
#[derive(Args)]
#[command(
    verbatim_doc_comment,
    after_help = "\
Examples:
  cargo store log data 2225079e58bee60f097055c8b2a88eb5647bd2d337894f77e8e5ad6c2e78452f
  cargo store log data --namespace rooms --name lobby --json | jq -c '[.version, .written]'"
)]
pub(crate) struct Log {
    /// The store's directory.
    dir: PathBuf,
    #[command(flatten)]
    which: Which,
    /// All keys of each commit; otherwise at most 20.
    #[arg(long)]
    full: bool,
    /// A JSON object a line, with all keys.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Line<'a> {
    version: u64,
    written: String,
    form: &'static str,
    deletes: bool,
    alarm: Option<String>,
    whole: bool,
    log_bytes: u64,
    /// Segment, offset, bytes.
    frames: Vec<(u32, u32, u32)>,
    changes: Vec<Changed<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "lowercase")]
enum Changed<'a> {
    Put { key: Text<'a>, bytes: usize },
    Delete { key: Text<'a> },
}

impl Log {
    pub(crate) fn run(self) -> Done {
        let (id, dir) = (self.which.id()?, self.dir.clone());
        access::read(&dir, async move |opened| {
            let shard = opened.shard_of(&id).await?;
            let bar = print::waiting("reading the log");
            let history = shard.history(&id).await;
            bar.finish_and_clear();
            let history = history?;
            shard.close().await?;
            if history.is_empty() {
                eprintln!("the log holds no commit of object {id}");
                return Ok(Verdict::Not);
            }
            let mut out = print::out();
            for commit in &history {
                match self.json {
                    true => print::json(&mut out, &Line::of(commit))?,
                    false => self.print(&mut out, commit)?,
                }
            }
            out.flush()?;
            Ok(Verdict::Fine)
        })
    }

    fn print(&self, out: &mut Out, commit: &Commit) -> std::io::Result<()> {
        let last = commit.frames.last().expect("a commit has a frame");
        let parts = match commit.frames.len() {
            1 => String::new(),
            parts => format!(" in {parts} parts, the last"),
        };
        writeln!(
            out,
            "{} version {} {}, alarm {}, {} bytes{parts} at offset {} of segment {}{}",
            print::time(commit.written_ms),
            commit.version,
            form(commit),
            print::time_or_none(commit.alarm),
            commit.log_bytes(),
            last.offset,
            last.segment,
            if commit.whole { "" } else { "; what it builds on can't all be read" },
        )?;
        let shown = if self.full { usize::MAX } else { KEYS };
        for change in commit.changes.iter().take(shown) {
            match change {
                Change::Put { key, value_bytes } => {
                    writeln!(out, "  + {} ({value_bytes} bytes)", print::escaped(key))?;
                }
                Change::Delete { key } => writeln!(out, "  - {}", print::escaped(key))?,
            }
        }
        match commit.changes.len().saturating_sub(shown) {
            0 => Ok(()),
            more => writeln!(out, "  … and {more} more"),
        }
    }
}

fn form(commit: &Commit) -> &'static str {
    match commit.form {
        _ if commit.deletes() => "image of nothing: deleted",
        Form::Image => "image",
        Form::Delta => "delta",
        Form::Rewrite => "rewrite",
    }
}

impl<'a> Line<'a> {
    fn of(commit: &'a Commit) -> Self {
        let changed = |change: &'a Change| match change {
            Change::Put { key, value_bytes } => {
                Changed::Put { key: Text::of(key), bytes: *value_bytes }
            }
            Change::Delete { key } => Changed::Delete { key: Text::of(key) },
        };
        let frames = commit.frames.iter();
        Self {
            version: commit.version.0,
            written: print::time(commit.written_ms),
            form: if commit.deletes() { "image" } else { form(commit) },
            deletes: commit.deletes(),
            alarm: commit.alarm.map(print::time),
            whole: commit.whole,
            log_bytes: commit.log_bytes(),
            frames: frames.map(|it| (it.segment, it.offset, it.bytes)).collect(),
            changes: commit.changes.iter().map(changed).collect(),
        }
    }
}
