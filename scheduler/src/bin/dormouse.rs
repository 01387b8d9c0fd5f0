//! `cargo store`: looks into a store without any code.
//!
//! Opening a store recovers it, as a program would; it must not be open elsewhere.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use dormouse_engine::real::{DiskChoice, RealEnv, block_on};
use dormouse_engine::{
    Error, Filter, Limits, ObjectId, ObjectInfo, Result, Shard, StoreLock, Superblock,
};

/// Looks into a store. It must not be open elsewhere; an interrupted one is recovered first.
#[derive(Parser)]
#[command(name = "cargo store", version)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// What the store is and what it holds, a line for each shard.
    Stat {
        /// The store's directory.
        dir: PathBuf,
    },
    /// All objects, in the store's own order: id, version, alarm (milliseconds since 1970, or -).
    Ls {
        /// The store's directory.
        dir: PathBuf,
    },
    /// One object's alarm, keys and values.
    Cat {
        /// The store's directory.
        dir: PathBuf,
        /// The object's id, 64 hexadecimal digits.
        id: String,
    },
}

fn main() -> ExitCode {
    let (dir, show): (PathBuf, Show) = match Args::parse().command {
        Command::Stat { dir } => (dir, Show::Stat),
        Command::Ls { dir } => (dir, Show::Ls),
        Command::Cat { dir, id } => match parse(&id) {
            Some(id) => (dir, Show::Cat(id)),
            None => return fail("an object's id is 64 hexadecimal digits"),
        },
    };
    if !dir.join("superblock").exists() {
        return fail(&format!("{}: there is no store here (no file superblock)", dir.display()));
    }
    match look(&dir, show) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&format!("{}: {error}", dir.display())),
    }
}

fn fail(message: &str) -> ExitCode {
    eprintln!("{message}");
    ExitCode::FAILURE
}

fn parse(id: &str) -> Option<ObjectId> {
    let mut bytes = [0; ObjectId::BYTES];
    hex::decode_to_slice(id, &mut bytes).ok()?;
    Some(ObjectId::from_bytes(bytes))
}

#[derive(Clone, Copy)]
enum Show {
    Stat,
    Ls,
    Cat(ObjectId),
}

fn look(dir: &Path, show: Show) -> Result<()> {
    let looked = block_on(dir, DiskChoice::Auto, async move |env| {
        let lock = StoreLock::open_or_create(&env, &Limits::PRODUCTION, 1).await?;
        let superblock = lock.superblock();
        if matches!(show, Show::Stat) {
            let Superblock { shards, block_bytes, created_ms, .. } = superblock;
            println!(
                "store: {shards} shards, blocks of {block_bytes} bytes, created {created_ms} ms after 1970"
            );
        }
        for number in 0..superblock.shards {
            if matches!(show, Show::Cat(id) if id.shard(superblock.shards) != number) {
                continue;
            }
            look_into(&env, superblock, number, show).await?;
        }
        Ok(())
    });
    looked.map_err(|error| Error::io(dormouse_engine::Kind::Retry, "starting a core", error))?
}

async fn look_into(env: &RealEnv, superblock: Superblock, number: u16, show: Show) -> Result<()> {
    let (shard, _) = Shard::open(env, superblock, number, Limits::PRODUCTION).await?;
    match show {
        Show::Stat => stat(&shard, number),
        Show::Ls => ls(&shard),
        Show::Cat(id) => cat(&shard, &id).await?,
    }
    shard.close().await
}

fn stat(shard: &Shard<RealEnv>, number: u16) {
    let stats = shard.stats();
    let damaged: Vec<_> = objects(shard).filter(|object| object.damaged).collect();
    println!(
        "shard {number}: {} objects, {} bytes of log so far, {} segments of {} bytes, \
         {} checkpoints, {} runs, {} objects damaged",
        stats.objects,
        stats.log_bytes,
        stats.segments,
        stats.segment_bytes,
        stats.checkpoints,
        stats.runs,
        damaged.len(),
    );
    let found = &stats.recovery;
    println!(
        "  opening replayed {} batches of {} segments and dropped {}",
        found.batches,
        found.segments,
        found.dropped.as_deref().unwrap_or("nothing"),
    );
    // Opening names those that it found now; the directory, those that earlier ones found too.
    found.damaged.iter().for_each(|id| println!("  damaged in what was replayed: {id}"));
    damaged.iter().for_each(|object| println!("  damaged: {}", object.id));
}

/// All objects, in the directory's order.
fn objects(shard: &Shard<RealEnv>) -> impl Iterator<Item = ObjectInfo> + '_ {
    let filter = Filter::default();
    let mut page = shard.page(&filter, None);
    let mut objects = std::mem::take(&mut page.objects).into_iter();
    std::iter::from_fn(move || {
        loop {
            if let Some(object) = objects.next() {
                return Some(object);
            }
            page = shard.page(&filter, Some(page.next?));
            objects = std::mem::take(&mut page.objects).into_iter();
        }
    })
}

fn shown(alarm: Option<u64>) -> String {
    alarm.map_or_else(|| "-".to_owned(), |at_ms| at_ms.to_string())
}

fn ls(shard: &Shard<RealEnv>) {
    for object in objects(shard) {
        println!("{} {:?} {}", object.id, object.version, shown(object.alarm));
    }
}

async fn cat(shard: &Shard<RealEnv>, id: &ObjectId) -> Result<()> {
    let contents = shard.load(id).await?;
    println!("alarm {}", shown(contents.alarm));
    for (key, value) in &contents.map {
        println!("{} = {}", key.escape_ascii(), value.escape_ascii());
    }
    Ok(())
}
