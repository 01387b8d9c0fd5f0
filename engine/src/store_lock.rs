//! A store's superblock, and the lock that keeps a second process out.

use crate::env::Env;
use crate::error::{Error, Kind, Result};
use crate::format::Rejected;
use crate::format::superblock::Superblock;
use crate::ids::StoreId;
use crate::io::{Create, Disk, File, Mode, Open, PageBuf, read_full_at, write_all_at};
use crate::limits::Limits;
use crate::log::segments::FileOf;
use crate::recover;

const NAME: &str = "superblock";

/// The open, locked superblock. Keep it for as long as any shard of the store is open (E8).
pub struct StoreLock<E: Env> {
    _file: FileOf<E>,
    superblock: Superblock,
}

impl<E: Env> StoreLock<E> {
    /// Opens the store in `env`'s directory, or creates it with `shards` shards and blocks of
    /// `limits.block_bytes`. Waits up to `limits.lock_wait` for another process, or for the last
    /// writes of a dead one.
    ///
    /// Durability: a store that this created survives any crash from here on; one whose creation
    /// was interrupted is created anew by the next call.
    /// Errors: `Retry` (open elsewhere, or the disk fails), `NoSpace`, `Corrupt` (the superblock is
    /// damaged, or lost while data is there), `Invalid` (a newer format, or blocks smaller than this
    /// disk can write).
    pub async fn open_or_create(env: &E, limits: &Limits, shards: u16) -> Result<Self> {
        let (file, decoded) = read(env, limits, Create::IfAbsent).await?;
        let superblock = match decoded {
            Ok(superblock) => {
                // E9: what a dead process left visible must be durable before it is built upon.
                file.sync()
                    .await
                    .map_err(|source| Error::io(Kind::Retry, "syncing the superblock", source))?;
                superblock
            }
            Err(Rejected::Version(version)) => {
                return Err(Error::newer_format("the store", version));
            }
            Err(why) => {
                if recover::holds_commits(env, limits).await? {
                    let what = format!("superblock: {why}, but there are commits in the log");
                    return Err(Error::corrupt(what));
                }
                create(env, limits, shards, &file).await?
            }
        };
        Self::new(env, file, superblock)
    }

    /// Locks the store in `env`'s directory, which is there, and changes nothing on the disk: for
    /// [`Opening::read_only`](crate::Opening::read_only).
    ///
    /// Errors: `Invalid` (there is no store), and those of [`StoreLock::open_or_create`].
    pub async fn open_read_only(env: &E, limits: &Limits) -> Result<Self> {
        let (file, decoded) = read(env, limits, Create::ReadOnly).await?;
        match decoded {
            Ok(superblock) => Self::new(env, file, superblock),
            Err(Rejected::Version(version)) => Err(Error::newer_format("the store", version)),
            Err(why) => Err(Error::corrupt(format!("superblock: {why}"))),
        }
    }

    fn new(env: &E, file: FileOf<E>, superblock: Superblock) -> Result<Self> {
        let (bytes, block) = (superblock.block_bytes, env.disk().properties().block_bytes);
        if bytes < block {
            let what = format!("the store has blocks of {bytes} bytes, this disk needs {block}");
            return Err(Error::invalid(what));
        }
        Ok(Self { _file: file, superblock })
    }

    /// What the store is.
    pub fn superblock(&self) -> Superblock {
        self.superblock
    }
}

/// Opens the superblock and reads it.
async fn read<E: Env>(
    env: &E,
    limits: &Limits,
    create: Create,
) -> Result<(FileOf<E>, Result<Superblock, Rejected>)> {
    let open = Open { create, mode: Mode::Through, lock_wait: Some(limits.lock_wait) };
    let file = env.disk().open(NAME, open).await.map_err(|source| match source.kind() {
        std::io::ErrorKind::WouldBlock => {
            Error::io(Kind::Retry, "the store is open elsewhere", source)
        }
        std::io::ErrorKind::NotFound => Error::io(Kind::Invalid, "there is no store", source),
        _ => Error::io(Kind::Retry, "opening the superblock", source),
    })?;
    let block = env.disk().properties().block_bytes;
    let buf = PageBuf::zeroed(block.max(512));
    let (result, buf) = read_full_at(&file, buf, 0, block).await;
    result.map_err(|source| Error::io(Kind::Retry, "reading the superblock", source))?;
    // A failed write may have left a shorter file; what is missing of the block is zero, as it is
    // after a crash: what is believed must not depend on that.
    Ok((file, Superblock::decode(&buf)))
}

/// Makes every shard's first segment, then the superblock: with it the store exists.
async fn create<E: Env>(
    env: &E,
    limits: &Limits,
    shards: u16,
    file: &FileOf<E>,
) -> Result<Superblock> {
    limits.check();
    if shards == 0 {
        return Err(Error::invalid("a store needs a shard"));
    }
    let block_bytes = limits.block_bytes.max(env.disk().properties().block_bytes);
    let store = StoreId((u128::from(env.random()) << 64 | u128::from(env.random())).max(1));
    let superblock = Superblock { store, shards, block_bytes, created_ms: env.wall_ms() };
    for shard in 0..shards {
        recover::create(env, &superblock, shard, limits).await?;
    }
    let mut block = PageBuf::zeroed(block_bytes);
    let encoded = superblock.encode();
    block[..encoded.len()].copy_from_slice(&encoded);
    let failed = |source| Error::io(Kind::Retry, "writing the superblock", source);
    write_all_at(file, block, 0, block_bytes).await.0.map_err(failed)?;
    file.sync().await.map_err(failed)?;
    env.disk().sync_dir().await.map_err(failed)?;
    Ok(superblock)
}
