//! [`Store`]: the engine for those who embed it, from any thread, any runtime, or none.
//!
//! The shards run on threads of their own, one for each core; a [`Store`] and its [`Object`]s send
//! requests to them through bounded mailboxes. Commits and deletes of one thread for one object take
//! effect in the order in which they were asked for, and reads see those that were asked for before. Objects that are
//! read again and again are read where the reader is (`published`).

mod durability;
mod memory;
mod object;
mod objects;
mod published;
mod scan;
mod serve;
mod stats;
#[cfg(test)]
mod tests;
mod turns;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, mpsc};

use futures_channel::oneshot;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};

use crate::call::Call;
use crate::clock::Clock;
use crate::env::Env;
use crate::error::{Error, Kind, Result};
use crate::format::superblock::Superblock;
use crate::ids::ObjectId;
use crate::limits::Limits;
use crate::mailbox::{Refused, Sender, mailbox};
use crate::namespaces::Quotas;
use crate::real::{CoreOptions, CoreThread, DiskChoice};
use crate::shard::{Opening, Shard};
use crate::store_lock::StoreLock;

pub use durability::Durability;
use durability::Told;
pub use object::{Keys, Object};
pub use objects::{Filter, ObjectInfo, Objects, Page};
use published::Published;
use serve::{Request, Served};
pub use stats::StoreStats;

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
    /// Bytes that all objects of a namespace may hold together, as [`ObjectInfo::log_bytes`] counts them: what would bring more
    /// is refused (`NoSpace`, `namespace-full`), what only frees is taken. An object counts for the namespace that its first
    /// commit named ([`Batch::named`](crate::Batch::named)). Several cores at once may pass it, each by one commit.
    pub namespace_bytes_max: BTreeMap<String, u64>,
    /// When a commit is answered.
    pub durability: Durability,
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
            namespace_bytes_max: BTreeMap::new(),
            durability: Durability::Always,
            cache_bytes: 64 << 20,
            requests_max: 4096,
        }
    }
}

/// A store. Cheap to clone; `Send + Sync`. When the last clone and the last [`Object`] are
/// dropped, its threads finish what they were asked for and end; [`Store::close`] waits for that.
///
/// ```
/// use dormouse_engine::{Batch, ObjectId, Options, Store};
///
/// # let dir = std::env::temp_dir().join(format!("dormouse-store-{}", std::process::id()));
/// let store = Store::open(&dir, Options::default())?;
/// let object = store.object(ObjectId::from_bytes([7; 32]));
/// let writer = std::thread::spawn(move || object.commit(Batch::new().put("a", "1")).wait());
/// let version = writer.join().expect("no panic")?;
/// for object in store.objects().blocking() {
///     assert_eq!(object?.version, version);
/// }
/// assert_eq!(store.stats().wait()?.total.objects, 1);
/// store.close().wait()?;
/// # std::fs::remove_dir_all(dir).expect("made above");
/// # Ok::<(), dormouse_engine::Error>(())
/// ```
#[derive(Clone)]
pub struct Store(Arc<Inner>);

struct Inner {
    shards: u16,
    mailboxes: Vec<Sender<Request>>,
    told: Told,
    published: Arc<Published>,
    threads: Mutex<Threads>,
}

enum Threads {
    Running(Vec<CoreThread<Result<()>>>),
    /// How the store's end went, for everybody who closes it.
    Closing(Shared<BoxFuture<'static, Result<()>>>),
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.mailboxes.iter().for_each(Sender::close);
    }
}

impl Store {
    /// Opens the store in `dir`, or creates it, and recovers it. Blocks until then.
    ///
    /// Errors: `Retry` (open elsewhere, or the disk or a thread fails), `Corrupt`, `NoSpace`,
    /// `Invalid` (no shard, no room for requests, a newer format, or blocks smaller than this disk
    /// can write).
    ///
    /// # Panics
    /// If the limits contradict each other ([`Limits::check`]).
    pub fn open(dir: impl AsRef<Path>, options: Options) -> Result<Self> {
        let available = || std::thread::available_parallelism().map_or(1, usize::from);
        let cores = options.cores.unwrap_or_else(available).max(1);
        let shards = options.shards.unwrap_or_else(|| u16::try_from(cores).unwrap_or(u16::MAX));
        options.limits.check();
        if options.requests_max == 0 || shards == 0 {
            return Err(Error::invalid("a store needs a shard, and room for a request"));
        }
        let bounds = options.namespace_bytes_max.iter();
        let quotas = Quotas::new(bounds.map(|(name, bytes)| (name.as_str().into(), *bytes)));
        let start = Start { dir: dir.as_ref().to_owned(), options, quotas, cores, shards };
        let threads = Mutex::new(Threads::Running(Vec::new()));
        // How many shards there are is known once the first core has looked.
        let (told, published) = (Told::new(0), Arc::new(Published::new(0)));
        let mut inner = Inner { shards: 0, mailboxes: Vec::new(), told, published, threads };
        let first = start.core(0, None)?;
        // The others make ready while the first one locks the store.
        let others: Vec<_> = (1..cores)
            .map(|core| {
                let (tell, opened) = oneshot::channel();
                (tell, start.core(core, Some(opened)))
            })
            .collect();
        let Ok(begun @ (superblock, _, _)) = &first.begun.recv() else {
            others.into_iter().for_each(|(tell, starting)| not_needed(tell, starting));
            return Err(first.failed());
        };
        inner.shards = superblock.shards;
        (inner.told, inner.published) = (begun.1.clone(), begun.2.clone());
        let mut starting = vec![Ok(first)];
        for (core, (tell, other)) in (1..).zip(others) {
            if core < start.cores_of(*superblock) {
                let _failed_already = tell.send(begun.clone());
                starting.push(other);
            } else {
                not_needed(tell, other);
            }
        }
        let mut failed = Ok(());
        let mut threads = Vec::new();
        for starting in starting {
            match starting.and_then(Starting::serves) {
                Ok((mailbox, thread)) => {
                    inner.mailboxes.push(mailbox);
                    threads.push(thread);
                }
                Err(error) => failed = failed.and(Err(error)),
            }
        }
        if let Err(error) = failed {
            // Their files are to be free for whoever tries again; why they can't be used is known.
            inner.mailboxes.iter().for_each(Sender::close);
            threads.into_iter().for_each(|thread| drop(thread.join()));
            return Err(error);
        }
        inner.threads = Mutex::new(Threads::Running(threads));
        Ok(Self(Arc::new(inner)))
    }

    /// A handle to an object, which need not exist. Costs nothing.
    pub fn object(&self, id: ObjectId) -> Object {
        Object::new(self.clone(), id)
    }

    /// All objects that exist, shard by shard in an order of the store's own; each is there as it is
    /// durably when the walk comes by.
    pub fn objects(&self) -> Objects {
        Objects::new(self.clone())
    }

    /// Counters of each shard, and of all together.
    ///
    /// Errors: `Overloaded`, `Closed`.
    pub fn stats(&self) -> Call<StoreStats> {
        let asked = self.ask_all(Kind::Closed, |reply| Request::Stats { reply });
        Call::gathered(async move {
            let mut cores = Vec::new();
            for core in asked {
                cores.push(core.await?);
            }
            Ok(StoreStats::new(&cores))
        })
    }

    /// Bytes of the log that all objects of a namespace need durably: those whose first commit named it.
    ///
    /// Errors: `Overloaded`, `Closed`.
    pub fn namespace_bytes(&self, namespace: &str) -> Call<u64> {
        let namespace: Arc<str> = namespace.into();
        let asked = self.ask_all(Kind::Closed, |reply| {
            let namespace = namespace.clone();
            Request::NamespaceBytes { namespace, reply }
        });
        Call::gathered(async move {
            let mut bytes = 0;
            for core in asked {
                bytes += core.await?;
            }
            Ok(bytes)
        })
    }

    /// Makes durable what was answered before this call; of use with [`Durability::OnFlush`].
    ///
    /// After an error no commit that was answered since the last flush is sure to be durable; those
    /// that are, are the oldest of each shard.
    ///
    /// Errors: the first failure of a commit that was answered, which nobody was told before:
    /// `NoSpace`, `Retry` (it did not happen), `Unknown` (it may have). `Poisoned`: a failure that
    /// somebody was told. `Overloaded`: call again. `Closed`.
    pub fn flush(&self) -> Call<()> {
        let asked = self.ask_all(Kind::Unknown, |reply| Request::Flush { reply });
        let told = self.0.told.clone();
        Call::gathered(async move {
            let (mut failures, mut others) = (Vec::new(), Ok(()));
            for core in asked {
                match core.await {
                    Ok(failed) => failures.extend(failed),
                    Err(error) => others = others.and(Err(error)),
                }
            }
            failures.iter().for_each(|failure| told.tell(failure));
            failures.into_iter().next().map_or(others, |failure| Err(failure.error))
        })
    }

    /// Writes each object that lies in several places of the log as one image, and gives back the space that
    /// this frees: for after a bulk load or many overwrites, before a copy of the files, or in quiet
    /// hours. By itself a store does the same by and by, as far as space asks for it. Requests are
    /// answered meanwhile.
    ///
    /// Objects that can't be read stay as they are; scrub names them.
    ///
    /// Errors: `NoSpace`, `Retry`, `Poisoned`, `Overloaded`, `Closed`: not all is compact, and nothing is lost.
    pub fn compact(&self) -> Call<()> {
        let asked = self.ask_all(Kind::Closed, |reply| Request::Compact { reply });
        Call::gathered(async move {
            let mut done = Ok(());
            for core in asked {
                done = done.and(core.await);
            }
            done
        })
    }

    /// Takes no new requests, answers those that are there, makes everything durable, and ends the
    /// threads. The store can be opened again when this returns. Closing twice is fine: both wait for
    /// the same end.
    ///
    /// Errors: the first failure of a commit that was answered ([`Store::flush`]), if nobody was told
    /// before. `Poisoned`, with the first cause; where commits are answered when they are durable,
    /// those that were answered are.
    pub fn close(&self) -> Call<()> {
        self.0.published.end_all();
        self.0.mailboxes.iter().for_each(Sender::close);
        let mut threads = self.0.threads.lock().expect("no code panics under it");
        if let Threads::Running(running) = &mut *threads {
            let running = std::mem::take(running);
            *threads = Threads::Closing(ended(running).boxed().shared());
        }
        let Threads::Closing(closing) = &*threads else { unreachable!("set above") };
        Call::gathered(closing.clone())
    }

    /// Sends a request to every core.
    fn ask_all<T>(&self, lost: Kind, request: impl Fn(serve::Reply<T>) -> Request) -> Vec<Call<T>> {
        let cores = 0..u16::try_from(self.0.mailboxes.len()).expect("a core has a shard");
        cores.map(|shard| self.send(shard, lost, &request)).collect()
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

/// Waits for the end of all threads.
async fn ended(threads: Vec<CoreThread<Result<()>>>) -> Result<()> {
    let mut closed = Ok(());
    for mut thread in threads {
        thread.ended().await;
        let panicked = |source| Error::io(Kind::Poisoned, "a core's thread", source);
        closed = closed.and(thread.join().map_err(panicked).and_then(|ended| ended));
    }
    closed
}

fn core_failed(source: std::io::Error) -> Error {
    Error::io(Kind::Retry, "a core's thread", source)
}

struct Start {
    dir: PathBuf,
    options: Options,
    quotas: Quotas,
    cores: usize,
    shards: u16,
}

/// What the first core tells: what the store is, where failures are told, and where objects are published.
type Begun = (Superblock, Told, Arc<Published>);

impl Start {
    fn cores_of(&self, superblock: Superblock) -> usize {
        self.cores.min(usize::from(superblock.shards))
    }

    /// Starts one core. The first opens the store and keeps it locked; the others are told what it is.
    fn core(&self, core: usize, opened: Option<oneshot::Receiver<Begun>>) -> Result<Starting> {
        let cpu = (self.cores > 1).then_some(core);
        let name = format!("dormouse-{core}");
        let core_options = CoreOptions {
            name,
            cpu,
            dir: self.dir.clone(),
            disk: self.options.disk,
            clock: Clock::System,
        };
        let (mailbox, mail) = mailbox(self.options.requests_max);
        let ((begins, begun), (starts, served)) = (mpsc::channel(), mpsc::channel());
        let (options, quotas) = (self.options.clone(), self.quotas.clone());
        let (shards, cores) = (self.shards, self.cores);
        let main = async move |env| {
            let mut lock = None;
            let begun = match opened {
                Some(opened) => match opened.await {
                    Ok(opened) => opened,
                    // The store has fewer shards, or can't be opened.
                    Err(_) => return Ok(()),
                },
                None => {
                    let opening = StoreLock::open_or_create(&env, &options.limits, shards);
                    let superblock = lock.insert(opening.await?).superblock();
                    let shards = superblock.shards;
                    (superblock, Told::new(shards), Arc::new(Published::new(shards)))
                }
            };
            let _nobody_waits = begins.send(begun.clone());
            let cores = cores.min(usize::from(begun.0.shards));
            let served = open(&env, &begun, (core, cores), &options, &quotas).await?;
            let _starter_is_gone = starts.send(());
            drop(starts);
            let ended = served.run(mail).await;
            drop(lock);
            ended
        };
        let thread = CoreThread::spawn(core_options, main).map_err(core_failed)?;
        Ok(Starting { thread, mailbox, begun, served })
    }
}

/// Ends a core that was made ready in vain.
fn not_needed(tell: oneshot::Sender<Begun>, starting: Result<Starting>) {
    drop(tell);
    starting.into_iter().for_each(|starting| drop(starting.thread.join()));
}

/// A core that recovers its shards.
struct Starting {
    thread: CoreThread<Result<()>>,
    mailbox: Sender<Request>,
    /// Told once the store is locked.
    begun: mpsc::Receiver<Begun>,
    /// Told once the core serves.
    served: mpsc::Receiver<()>,
}

impl Starting {
    /// Waits until it serves.
    fn serves(self) -> Result<(Sender<Request>, CoreThread<Result<()>>)> {
        match self.served.recv() {
            Ok(()) => Ok((self.mailbox, self.thread)),
            Err(_) => Err(self.failed()),
        }
    }

    /// It ended before it served: its error says why.
    fn failed(self) -> Error {
        match self.thread.join() {
            Ok(Err(error)) => error,
            Ok(Ok(())) => Error::new(Kind::Closed, "the core ended early"),
            Err(error) => core_failed(error),
        }
    }
}

/// Opens the shards of one core: those whose number, modulo the number of cores, is the core's.
async fn open<E: Env>(
    env: &E,
    (superblock, told, published): &Begun,
    (core, cores): (usize, usize),
    options: &Options,
    quotas: &Quotas,
) -> Result<Served<E>> {
    let superblock = *superblock;
    let mut shards = Vec::new();
    for number in (0..superblock.shards).skip(core).step_by(cores) {
        let (limits, opening) = (options.limits, Opening::default());
        let opened = Shard::open_bounded(env, superblock, number, limits, opening, quotas);
        let (shard, recovery) = opened.await?;
        if !recovery.damaged.is_empty() {
            let objects = recovery.damaged.len();
            tracing::error!(shard = number, objects, "damage: these objects can't be read");
        }
        shards.push(shard);
    }
    let count = superblock.shards;
    Ok(Served::new(env.clone(), shards, (core, cores), count, options, (told, published)))
}
