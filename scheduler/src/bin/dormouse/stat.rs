//! `stat`: what a store is and what it holds, shard by shard.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use dormouse_engine::io::Disk;
use dormouse_engine::{Env, Error, Filter, Kind, Superblock};
use serde::Serialize;

use crate::access::{self, Opened};
use crate::{Done, Verdict, print};

/// What the store is and what it holds: in all and in each shard.
///
/// Says of each shard what opening it found: how much of the log it replayed, what it dropped (a tail
/// that was never acknowledged) and which objects are damaged. Exits with 1 if anything is damaged.
#[derive(Args)]
#[command(
    verbatim_doc_comment,
    after_help = "\
Examples:
  cargo store stat data
  cargo store stat data --json | jq .total.objects"
)]
pub(crate) struct Stat {
    /// The store's directory.
    dir: PathBuf,
    /// One JSON document.
    #[arg(long)]
    json: bool,
}

/// A store's figures.
#[derive(Serialize)]
struct Store {
    id: String,
    block_bytes: usize,
    created: String,
    total: Figures,
    shards: Vec<Figures>,
}

/// A shard's figures, or all shards' together.
#[derive(Default, Serialize)]
struct Figures {
    objects: u64,
    log_bytes: u64,
    segments: usize,
    segment_bytes: u64,
    /// Bytes of the segments that objects need.
    live_bytes: u64,
    disk_bytes: u64,
    checkpoints: u64,
    runs: usize,
    replayed_batches: u64,
    replayed_segments: usize,
    /// Tails that opening dropped.
    dropped: Vec<String>,
    /// Objects that can't be read.
    damaged: Vec<String>,
    /// Blocks of the directory that can't be read, or why the shard does not open.
    failures: Vec<String>,
}

impl Stat {
    pub(crate) fn run(self) -> Done {
        let json = self.json;
        access::read(&self.dir, async move |opened| {
            let store = figures(&opened).await?;
            let mut out = print::out();
            match json {
                true => print::json(&mut out, &store)?,
                false => store.print(&mut out)?,
            }
            out.flush()?;
            let Figures { damaged, failures, .. } = &store.total;
            Ok(Verdict::fine_if(damaged.is_empty() && failures.is_empty()))
        })
    }
}

async fn figures(opened: &Opened) -> anyhow::Result<Store> {
    let Superblock { store, shards: count, block_bytes, created_ms } = opened.superblock;
    let mut shards = Vec::new();
    for number in 0..count {
        let mut figures = match of_shard(opened, number).await {
            Ok(figures) => figures,
            // The other shards have something to say all the same.
            Err(error) if error.kind() == Kind::Corrupt => {
                Figures { failures: vec![error.to_string()], ..Figures::default() }
            }
            Err(error) => return Err(error.into()),
        };
        let prefix = format!("shard-{number:04}-");
        for name in opened.env.disk().list().await?.iter().filter(|it| it.starts_with(&prefix)) {
            figures.disk_bytes += opened.dir.join(name).metadata()?.len();
        }
        shards.push(figures);
    }
    let mut total = Figures::default();
    shards.iter().for_each(|shard| total.add(shard));
    let (id, created) = (format!("{:032x}", store.0), print::time(created_ms));
    Ok(Store { id, block_bytes, created, total, shards })
}

async fn of_shard(opened: &Opened, number: u16) -> Result<Figures, Error> {
    let shard = opened.shard(number).await?;
    let stats = shard.stats();
    // Opening names the objects that it found damaged; the directory, those of earlier ones too.
    let filter = Filter::default();
    let damaged = access::objects(&shard, &filter).filter(|object| object.damaged);
    let damaged = damaged.map(|object| object.id.to_string()).collect();
    let failures = shard.damaged_blocks().iter().map(Error::to_string).collect();
    shard.close().await?;
    Ok(Figures {
        objects: stats.objects,
        log_bytes: stats.log_bytes,
        segments: stats.segments,
        segment_bytes: stats.segment_bytes,
        live_bytes: stats.live_bytes,
        disk_bytes: 0,
        checkpoints: stats.checkpoints,
        runs: stats.runs,
        replayed_batches: stats.recovery.batches,
        replayed_segments: stats.recovery.segments,
        dropped: stats.recovery.dropped.into_iter().collect(),
        damaged,
        failures,
    })
}

impl Figures {
    fn add(&mut self, other: &Self) {
        self.objects += other.objects;
        self.log_bytes += other.log_bytes;
        self.segments += other.segments;
        self.segment_bytes += other.segment_bytes;
        self.live_bytes += other.live_bytes;
        self.disk_bytes += other.disk_bytes;
        self.checkpoints += other.checkpoints;
        self.runs += other.runs;
        self.replayed_batches += other.replayed_batches;
        self.replayed_segments += other.replayed_segments;
        self.dropped.extend_from_slice(&other.dropped);
        self.damaged.extend_from_slice(&other.damaged);
        self.failures.extend_from_slice(&other.failures);
    }

    fn print(&self, out: &mut impl Write, what: &str) -> std::io::Result<()> {
        let Self { objects, log_bytes, segments, disk_bytes, checkpoints, runs, .. } = self;
        let damaged = self.damaged.len();
        writeln!(
            out,
            "{what}: {objects} objects, {damaged} damaged; {log_bytes} bytes of log so far in \
             {segments} segments, {checkpoints} checkpoints, {runs} runs; {disk_bytes} bytes on disk"
        )?;
        let Self { segment_bytes, live_bytes, .. } = self;
        let amplification = *segment_bytes as f64 / (*live_bytes).max(1) as f64;
        writeln!(
            out,
            "  {live_bytes} live bytes in {segment_bytes} bytes of segments: {amplification:.2} for each"
        )
    }

    fn print_opening(&self, out: &mut impl Write) -> std::io::Result<()> {
        let dropped = match self.dropped.is_empty() {
            true => "nothing".to_owned(),
            false => self.dropped.join("; "),
        };
        let (batches, segments) = (self.replayed_batches, self.replayed_segments);
        writeln!(
            out,
            "  opening replayed {batches} batches of {segments} segments, dropped {dropped}"
        )?;
        for id in &self.damaged {
            writeln!(out, "  damaged: {id}")?;
        }
        for failure in &self.failures {
            writeln!(out, "  damaged: {failure}")?;
        }
        Ok(())
    }
}

impl Store {
    fn print(&self, out: &mut impl Write) -> std::io::Result<()> {
        let Self { id, block_bytes, created, total, shards } = self;
        let count = shards.len();
        writeln!(
            out,
            "store {id}: {count} shards, blocks of {block_bytes} bytes, created {created}"
        )?;
        for (number, shard) in shards.iter().enumerate() {
            shard.print(out, &format!("shard {number}"))?;
            shard.print_opening(out)?;
        }
        total.print(out, "total")
    }
}
