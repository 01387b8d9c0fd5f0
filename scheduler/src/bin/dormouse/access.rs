//! How a command gets at a store: locked, on a core of its own, for reading unless it says otherwise.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use dormouse_engine::real::{DiskChoice, RealEnv, block_on};
use dormouse_engine::{
    Error, Filter, Kind, Limits, ObjectId, ObjectInfo, Opening, Shard, StoreLock, Superblock,
};

/// How the store itself is locked: whoever has it open has its superblock, and is not waited for. The last
/// writes of a dead one may keep files of the log for longer, and are waited for (E8).
const LIMITS: Limits = Limits { lock_wait: Duration::from_millis(200), ..Limits::PRODUCTION };

/// A shard on a real disk.
pub(crate) type RealShard = Shard<RealEnv>;

/// A store that nobody else can open meanwhile.
pub(crate) struct Opened {
    pub(crate) env: RealEnv,
    pub(crate) dir: PathBuf,
    pub(crate) superblock: Superblock,
    _lock: StoreLock<RealEnv>,
}

/// Whether the directory holds a store. The superblock of one whose creation was interrupted is empty.
pub(crate) fn is_store(dir: &Path) -> bool {
    dir.join("superblock").metadata().is_ok_and(|superblock| superblock.len() > 0)
}

/// Locks the store in `dir` and runs `look` on a core, for reading.
pub(crate) fn read<T, F>(dir: &Path, look: impl FnOnce(Opened) -> F + Send + 'static) -> Result<T>
where
    T: Send + 'static,
    F: Future<Output = Result<T>> + 'static,
{
    open(dir, true, look)
}

/// Locks the store in `dir` and runs `change` on a core.
pub(crate) fn write<T, F>(
    dir: &Path,
    change: impl FnOnce(Opened) -> F + Send + 'static,
) -> Result<T>
where
    T: Send + 'static,
    F: Future<Output = Result<T>> + 'static,
{
    open(dir, false, change)
}

fn open<T, F>(
    dir: &Path,
    read_only: bool,
    main: impl FnOnce(Opened) -> F + Send + 'static,
) -> Result<T>
where
    T: Send + 'static,
    F: Future<Output = Result<T>> + 'static,
{
    let shown = || dir.display().to_string();
    let path = dir.to_owned();
    ensure!(is_store(dir), "{}: there is no store here (no superblock)", shown());
    let done = block_on(dir, DiskChoice::Auto, async move |env| {
        let mut lock = StoreLock::open_read_only(&env, &LIMITS).await?;
        if !read_only {
            // It is a store, so none is created in its place.
            let shards = lock.superblock().shards;
            drop(lock);
            lock = StoreLock::open_or_create(&env, &LIMITS, shards).await?;
        }
        main(Opened { superblock: lock.superblock(), env, dir: path, _lock: lock }).await
    });
    done.context("a core's thread").flatten().with_context(shown)
}

impl Opened {
    /// Opens a shard for reading, as it is: damage that hides which objects it hit is an error.
    pub(crate) async fn shard(&self, number: u16) -> dormouse_engine::Result<RealShard> {
        self.shard_as(number, Opening { read_only: true, accept_losses: false }).await
    }

    async fn shard_as(&self, number: u16, opening: Opening) -> dormouse_engine::Result<RealShard> {
        let opened =
            Shard::open_as(&self.env, self.superblock, number, Limits::PRODUCTION, opening);
        opened.await.map(|(shard, _)| shard)
    }

    /// Opens a shard whatever is damaged, and says what keeps it closed otherwise.
    pub(crate) async fn damaged_shard(
        &self,
        number: u16,
        read_only: bool,
    ) -> dormouse_engine::Result<(RealShard, Vec<String>)> {
        let refused = match self.shard(number).await {
            Ok(shard) if read_only => return Ok((shard, Vec::new())),
            Ok(shard) => {
                shard.close().await?;
                None
            }
            Err(error) if error.kind() == Kind::Corrupt => Some(error.to_string()),
            Err(error) => return Err(error),
        };
        let opening = Opening { read_only, accept_losses: refused.is_some() };
        let shard = self.shard_as(number, opening).await?;
        let mut losses = shard.stats().recovery.unknown;
        // What was in the way may have been put right without a loss.
        if losses.is_empty() {
            losses.extend(refused);
        }
        Ok((shard, losses))
    }

    /// Opens the shard of an object for reading.
    pub(crate) async fn shard_of(&self, id: &ObjectId) -> dormouse_engine::Result<RealShard> {
        self.shard(id.shard(self.superblock.shards)).await
    }

    /// Opens all shards for reading.
    pub(crate) async fn shards(&self) -> dormouse_engine::Result<Vec<RealShard>> {
        let mut shards = Vec::new();
        for number in 0..self.superblock.shards {
            shards.push(self.shard(number).await?);
        }
        Ok(shards)
    }
}

/// All objects of a shard that the filter takes, in the directory's order, a page at a time.
pub(crate) fn objects<'a>(
    shard: &'a RealShard,
    filter: &'a Filter,
) -> impl Iterator<Item = ObjectInfo> + 'a {
    let mut page = shard.page(filter, None);
    let mut objects = std::mem::take(&mut page.objects).into_iter();
    std::iter::from_fn(move || {
        loop {
            if let Some(object) = objects.next() {
                return Some(object);
            }
            page = shard.page(filter, Some(page.next?));
            objects = std::mem::take(&mut page.objects).into_iter();
        }
    })
}

/// Says on the error output what a walk over the shards had to leave out (E6). Whether it was nothing.
pub(crate) fn tell_left_out(damage: &[Error]) -> bool {
    for error in damage {
        eprintln!("objects are left out: {error}");
    }
    damage.is_empty()
}
