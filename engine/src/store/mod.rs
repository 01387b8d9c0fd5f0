//! [`Store`]: the engine for those who embed it, from any thread, any runtime, or none.
//!
//! The shards run on threads of their own, one for each core; a [`Store`] and its [`Object`]s send
//! requests to them through bounded mailboxes. Requests of one thread for one object take effect
//! in the order in which they were made.

mod listing;
mod memory;
mod object;
mod serve;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, mpsc};

use crate::call::Call;
use crate::env::Env;
use crate::error::{Error, Kind, Result};
use crate::format::superblock::Superblock;
use crate::ids::ObjectId;
use crate::limits::Limits;
use crate::mailbox::{Refused, Sender, mailbox};
use crate::real::{CoreOptions, CoreThread, DiskChoice};
use crate::shard::{Shard, ShardStats};
use crate::store_lock::StoreLock;

pub use listing::{Filter, ObjectInfo, Objects, Page};
pub use object::{Keys, Object};
use serve::{Request, Served};

/// How to open a [`Store`].
#[derive(Clone, Debug)]
pub struct Options {
    /// Threads. As many as the machine has, unless said; never more than shards.
    pub cores: Option<usize>,
    /// Shards, if the store is new. As many as cores, unless said.
    pub shards: Option<u16>,
    /// How to reach the disk.
    pub disk: DiskChoice,
    /// Bounds.
    pub limits: Limits,
    /// Bytes of objects that are kept in memory, over all cores.
    pub cache_bytes: usize,
    /// Requests that may wait for one core; beyond, they are refused (`Overloaded`).
    pub requests_max: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            cores: None,
            shards: None,
            disk: DiskChoice::Auto,
            limits: Limits::PRODUCTION,
            cache_bytes: 64 << 20,
            requests_max: 4096,
        }
    }
}

/// A store. Cheap to clone; `Send + Sync`. When the last clone and the last [`Object`] are
/// dropped, its threads finish what they were asked for and end; [`Store::close`] waits for that.
#[derive(Clone)]
pub struct Store(Arc<Inner>);

struct Inner {
    shards: u16,
    mailboxes: Vec<Sender<Request>>,
    threads: Mutex<Vec<CoreThread<Result<()>>>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.mailboxes.iter().for_each(Sender::close);
    }
}

impl Store {
    /// Opens the store in `dir`, or creates it, and recovers it. Blocks until then.
    ///
    /// Errors: `Retry` (open elsewhere, or the disk fails), `Corrupt`, `NoSpace`, `Invalid` (a
    /// newer format, or blocks smaller than this disk can write).
    pub fn open(dir: impl AsRef<Path>, options: Options) -> Result<Self> {
        let available = || std::thread::available_parallelism().map_or(1, usize::from);
        let cores = options.cores.unwrap_or_else(available).max(1);
        let shards = options.shards.unwrap_or_else(|| u16::try_from(cores).unwrap_or(u16::MAX));
        let start = Start { dir: dir.as_ref().to_owned(), options, cores, shards };
        let mut inner = Inner { shards: 0, mailboxes: Vec::new(), threads: Mutex::default() };
        let superblock = start.core(&mut inner, 0, None)?;
        inner.shards = superblock.shards;
        for core in 1..start.cores_of(superblock) {
            start.core(&mut inner, core, Some(superblock))?;
        }
        Ok(Self(Arc::new(inner)))
    }

    /// A handle to an object, which need not exist. Costs nothing.
    pub fn object(&self, id: ObjectId) -> Object {
        Object::new(self.clone(), id)
    }

    /// All objects that exist, shard by shard in an order of the store's own; each is there as it is
    /// when the walk comes by.
    pub fn objects(&self) -> Objects {
        Objects::new(self.clone())
    }

    /// Counters of each shard.
    ///
    /// Errors: `Overloaded`, `Closed`.
    pub async fn stats(&self) -> Result<Vec<ShardStats>> {
        let mut stats = Vec::new();
        for shard in 0..self.0.shards {
            let ask = |reply| Request::Stats { shard, reply };
            stats.push(self.send(shard, Kind::Closed, ask).await?);
        }
        Ok(stats)
    }

    /// Takes no new requests, answers those that are there, makes everything durable, and ends the
    /// threads. The store can be opened again when this returns. Closing twice is fine.
    ///
    /// Errors: what was answered is durable all the same; `Poisoned`, with the first cause.
    pub async fn close(&self) -> Result<()> {
        self.0.mailboxes.iter().for_each(Sender::close);
        let threads = std::mem::take(&mut *self.0.threads.lock().expect("no code panics under it"));
        let mut closed = Ok(());
        for mut thread in threads {
            thread.ended().await;
            let ended = thread.join().map_err(core_failed).and_then(|ended| ended);
            closed = closed.and(ended);
        }
        closed
    }

    /// Sends a request to the core of a shard. `lost`: see [`Call::new`].
    fn send<T>(
        &self,
        shard: u16,
        lost: Kind,
        request: impl FnOnce(serve::Reply<T>) -> Request,
    ) -> Call<T> {
        let (reply, call) = Call::new(lost);
        let core = usize::from(shard) % self.0.mailboxes.len();
        let (refused, kind, why) = match self.0.mailboxes[core].send(request(reply)) {
            Ok(()) => return call,
            Err(Refused::Full(request)) => {
                (request, Kind::Overloaded, "its core's mailbox is full")
            }
            Err(Refused::Closed(request)) => (request, Kind::Closed, "the store is closed"),
        };
        refused.refuse(Error::new(kind, format!("shard {shard}: {why}")));
        call
    }
}

fn core_failed(source: std::io::Error) -> Error {
    Error::io(Kind::Retry, "a core's thread", source)
}

struct Start {
    dir: PathBuf,
    options: Options,
    cores: usize,
    shards: u16,
}

impl Start {
    fn cores_of(&self, superblock: Superblock) -> usize {
        self.cores.min(usize::from(superblock.shards))
    }

    /// Starts one core and waits until it serves. The first opens the store and keeps it locked.
    fn core(
        &self,
        inner: &mut Inner,
        core: usize,
        superblock: Option<Superblock>,
    ) -> Result<Superblock> {
        let cpu = (self.cores > 1).then_some(core);
        let name = format!("dormouse-{core}");
        let options = CoreOptions { name, cpu, dir: self.dir.clone(), disk: self.options.disk };
        let (sender, mail) = mailbox(self.options.requests_max);
        let (started, starts) = mpsc::channel();
        let (limits, shards) = (self.options.limits, self.shards);
        let (cores, cache_bytes) = (self.cores, self.options.cache_bytes);
        let main = async move |env| {
            let lock = match superblock {
                None => Some(StoreLock::open_or_create(&env, &limits, shards).await?),
                Some(_) => None,
            };
            let superblock = superblock.or(lock.as_ref().map(StoreLock::superblock));
            let superblock = superblock.expect("one of the two");
            let cores = cores.min(usize::from(superblock.shards));
            let served = open(&env, superblock, core, cores, limits, cache_bytes).await?;
            let _starter_is_gone = started.send(superblock);
            drop(started);
            served.run(mail).await
        };
        let thread = CoreThread::spawn(options, main).map_err(core_failed)?;
        match starts.recv() {
            Ok(superblock) => {
                inner.mailboxes.push(sender);
                inner.threads.get_mut().expect("no code panics under it").push(thread);
                Ok(superblock)
            }
            // It ended before it served: its error says why.
            Err(_) => Err(match thread.join() {
                Ok(Err(error)) => error,
                Ok(Ok(())) => Error::new(Kind::Closed, "the core ended early"),
                Err(error) => core_failed(error),
            }),
        }
    }
}

/// Opens the shards of one core: those whose number, modulo the number of cores, is the core's.
async fn open<E: Env>(
    env: &E,
    superblock: Superblock,
    core: usize,
    cores: usize,
    limits: Limits,
    cache_bytes: usize,
) -> Result<Served<E>> {
    let mut shards = Vec::new();
    for number in (0..superblock.shards).skip(core).step_by(cores) {
        let (shard, recovery) = Shard::open(env, superblock, number, limits).await?;
        if !recovery.damaged.is_empty() {
            let objects = recovery.damaged.len();
            tracing::error!(shard = number, objects, "damage: these objects can't be read");
        }
        shards.push(shard);
    }
    Ok(Served::new(env.clone(), shards, superblock.shards, cores, cache_bytes / cores))
}
