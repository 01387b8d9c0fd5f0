//! [`Runtime`]: objects on a real directory, a thread for each core.

#[cfg(feature = "server")]
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
#[cfg(feature = "server")]
use std::sync::Mutex;
use std::sync::mpsc;

use dormouse_engine as engine;
use dormouse_engine::clock::Clock;
use dormouse_engine::real::{CoreOptions, CoreThread, DiskChoice, RealEnv};
use dormouse_engine::{Limits, StoreLock, Superblock};
use futures_channel::oneshot;
use futures_util::future::{Either, FutureExt, select};

use crate::error::Result;
use crate::id::Id;
use crate::object::DurableObject;
use crate::options::NamespaceOptions;
#[cfg(feature = "server")]
use crate::outside::{OutsideLimits, TokioNetwork};
#[cfg(feature = "server")]
use crate::server::{self, Router, Server, ServerOptions};
#[cfg(feature = "server")]
use crate::stub::Call;
use crate::stub::Namespace;
use crate::topology::{StackLimits, Topology, TopologyBuilder};
use crate::watch::{Resident, WatchThread};

/// Builds a [`Runtime`].
#[derive(Clone)]
pub struct RuntimeBuilder {
    dir: PathBuf,
    topology: TopologyBuilder,
    cores: Option<usize>,
    disk: DiskChoice,
    clock: Clock,
}

impl RuntimeBuilder {
    /// Adds the objects of type `T`; the name is part of their ids, so keep it.
    ///
    /// # Panics
    /// If the name or the type is there already.
    #[must_use]
    pub fn namespace<T: DurableObject>(self, name: &str) -> Self {
        self.namespace_with::<T>(name, NamespaceOptions::DEFAULT)
    }

    /// [`namespace`](Self::namespace), with options.
    ///
    /// # Panics
    /// Likewise.
    #[must_use]
    pub fn namespace_with<T: DurableObject>(
        mut self,
        name: &str,
        options: NamespaceOptions,
    ) -> Self {
        self.topology = self.topology.namespace_with::<T>(name, options);
        self
    }

    /// How many cores to use, and, if the store is new, how many shards it gets. All that the
    /// machine has, unless said.
    #[must_use]
    pub fn cores(mut self, cores: usize) -> Self {
        self.cores = Some(cores.max(1));
        self
    }

    /// The bounds of each core; [`StackLimits::PRODUCTION`] unless said.
    #[must_use]
    pub fn limits(mut self, limits: StackLimits) -> Self {
        self.topology = self.topology.limits(limits);
        self
    }

    /// The bounds of what objects open to the outside; [`OutsideLimits::PRODUCTION`] unless said.
    #[cfg(feature = "server")]
    #[must_use]
    pub fn outside(mut self, limits: OutsideLimits) -> Self {
        self.topology = self.topology.outside(TokioNetwork, limits);
        self
    }

    /// How to reach the disk.
    #[must_use]
    pub fn disk(mut self, disk: DiskChoice) -> Self {
        self.disk = disk;
        self
    }

    pub(crate) fn clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }

    /// Opens or creates the store, recovers it, and starts serving. Blocks until then.
    ///
    /// Errors: `Retry` (open elsewhere), `Corrupt`, `NoSpace`, `Invalid` (a newer format).
    pub fn start(self) -> Result<Runtime> {
        let available = || std::thread::available_parallelism().map_or(1, usize::from);
        let cores = self.cores.unwrap_or_else(available);
        let shards = u16::try_from(cores).unwrap_or(u16::MAX);
        let topology = self.topology.cores(cores).clock(self.clock.clone()).build(entropy);
        let mut runtime = Runtime {
            topology,
            threads: Vec::new(),
            watch: None,
            kills: Vec::new(),
            #[cfg(feature = "server")]
            servers: Mutex::default(),
        };
        let first = Start { dir: self.dir, disk: self.disk, clock: self.clock, shards };
        let superblock = runtime.start_core(&first, 0, cores, None)?;
        for core in 1..cores {
            runtime.start_core(&first, core, cores, Some(superblock))?;
        }
        let watch = WatchThread::start(runtime.topology.clone()).map_err(io)?;
        runtime.watch = Some(watch);
        Ok(runtime)
    }
}

#[expect(clippy::disallowed_methods, reason = "ids are made on any thread, off the cores")]
fn entropy() -> u64 {
    getrandom::u64().expect("the system gives entropy")
}

#[derive(Clone)]
struct Start {
    dir: PathBuf,
    disk: DiskChoice,
    clock: Clock,
    shards: u16,
}

/// Objects on a directory, served by threads of their own. Dropped, it is closed.
pub struct Runtime {
    topology: Topology,
    threads: Vec<CoreThread<Result<()>>>,
    watch: Option<WatchThread>,
    /// Sent, they end the cores at once. Dropped, they do nothing.
    kills: Vec<oneshot::Sender<()>>,
    #[cfg(feature = "server")]
    servers: Mutex<Vec<Server>>,
}

impl Runtime {
    /// A runtime on the store in `dir`, which is created if it is not there.
    pub fn builder(dir: impl AsRef<Path>) -> RuntimeBuilder {
        let builder = RuntimeBuilder {
            dir: dir.as_ref().to_owned(),
            topology: Topology::builder(),
            cores: None,
            disk: DiskChoice::Auto,
            clock: Clock::System,
        };
        #[cfg(feature = "server")]
        let builder = builder.outside(OutsideLimits::PRODUCTION);
        builder
    }

    /// The namespace of the objects of type `T`.
    ///
    /// # Panics
    /// If the builder was not told of it.
    pub fn namespace<T: DurableObject>(&self) -> Namespace<T> {
        self.topology.namespace()
    }

    /// Drops an object from memory as soon as nothing would be lost; its next call builds it
    /// anew.
    pub async fn evict(&self, id: &Id) {
        self.topology.evict(id).await;
    }

    /// Ends an object's instance at once: what is not durable is lost, calls that wait get `reason`, and
    /// the next one builds it anew.
    pub async fn abort(&self, id: &Id, reason: impl Into<String>) {
        self.topology.abort(id, reason).await;
    }

    /// Objects in memory, each with why it is awake and why it last woke: the first `max` whose ids are behind
    /// `after`, in the order of ids; for the next page give the last one's id. Of a single object its
    /// [`Stub`](crate::Stub::resident) says it.
    ///
    /// Errors: `Overloaded` (a core's mailbox is full), `Closed`.
    pub async fn residents(&self, after: Option<&Id>, max: usize) -> Result<Vec<Resident>> {
        self.topology.residents(after, max).await
    }

    /// Tells the recorder of metrics that is installed what has changed since the last time. This happens once
    /// a second by itself.
    pub fn publish_metrics(&self) {
        self.topology.publish_metrics();
    }

    /// Serves HTTP and WebSockets on `address`: `/<namespace>/<name>/…` goes to the object of that
    /// name, which sees the rest of the path. Gives the address, for a port that was left to the
    /// system; it is served until [`close`](Self::close). Blocks while the address is resolved.
    ///
    /// Errors: `Retry`: the address can't be had; `Overloaded`: a core's mailbox is full; `Closed`.
    #[cfg(feature = "server")]
    pub fn serve(&self, address: impl ToSocketAddrs) -> Call<SocketAddr> {
        self.serve_router(address, self.router(ServerOptions::PRODUCTION))
    }

    /// [`serve`](Self::serve) with other bounds, or answers of one's own: a router of this runtime.
    #[cfg(feature = "server")]
    pub fn serve_router(&self, address: impl ToSocketAddrs, router: Router) -> Call<SocketAddr> {
        let (listening, address_is) = oneshot::channel();
        let started = server::start(address, router).map(|(server, address)| {
            self.servers.lock().expect("no code panics under it").push(server);
            address
        });
        let _it_is_there = listening.send(started);
        Call::new(address_is)
    }

    /// Serves the process's metrics at `/metrics` on `address`, as Prometheus reads them: this runtime's
    /// (docs/metrics.md), and what objects tell the `metrics` facade. They have no place on an address that clients can
    /// reach. Gives the address, as [`serve`](Self::serve) does.
    ///
    /// Errors: `Invalid`, code `recorder-there` (another recorder of metrics is installed); `Retry`: the
    /// address can't be had.
    #[cfg(feature = "server")]
    pub fn serve_metrics(&self, address: impl ToSocketAddrs) -> Call<SocketAddr> {
        match server::metrics_router(&self.topology) {
            Ok(router) => self.serve_router(address, router),
            Err(error) => {
                let (refused, answer) = oneshot::channel();
                let _it_is_there = refused.send(Err(error));
                Call::new(answer)
            }
        }
    }

    /// What [`serve`](Self::serve) serves, as a tower `Service`, to be mounted elsewhere.
    #[cfg(feature = "server")]
    pub fn router(&self, options: ServerOptions) -> Router {
        Router::new(self.topology.clone(), options)
    }

    /// Takes no new calls, answers those that are there, makes everything durable, and ends the
    /// threads. Blocks until then.
    ///
    /// Errors: what was answered is durable all the same; a shard was poisoned, or a core ended
    /// by a panic.
    pub fn close(mut self) -> Result<()> {
        self.end()
    }

    pub(crate) fn topology(&self) -> &Topology {
        &self.topology
    }

    /// Ends the cores at once, as the process's end would: what the disk has not been given by then
    /// never reaches it.
    pub(crate) fn kill(mut self) {
        let kills = std::mem::take(&mut self.kills);
        for kill in kills {
            let _it_ended_before = kill.send(());
        }
        if let Err(error) = self.end() {
            tracing::debug!(%error, "a killed runtime");
        }
    }

    fn end(&mut self) -> Result<()> {
        #[cfg(feature = "server")]
        {
            let servers = std::mem::take(self.servers.get_mut().expect("no panic under it"));
            servers.iter().for_each(Server::stop);
            servers.into_iter().for_each(Server::drain);
        }
        self.topology.shutdown();
        let threads = std::mem::take(&mut self.threads).into_iter();
        let ended: Vec<_> = threads.map(CoreThread::join).collect();
        self.watch.take().into_iter().for_each(WatchThread::join);
        ended.into_iter().try_for_each(|end| end.map_err(io)?)
    }

    /// Starts one core and waits until it serves.
    fn start_core(
        &mut self,
        start: &Start,
        core: usize,
        cores: usize,
        superblock: Option<Superblock>,
    ) -> Result<Superblock> {
        let cpu = (cores > 1).then_some(core);
        let name = format!("dormouse-{core}");
        let (dir, disk, clock) = (start.dir.clone(), start.disk, start.clock.clone());
        let options = CoreOptions { name, cpu, dir, disk, clock };
        let (sender, receiver) = mpsc::channel();
        let (topology, shards) = (self.topology.clone(), start.shards);
        let (kill, killed) = oneshot::channel();
        self.kills.push(kill);
        let main = move |env| {
            let serving = serve(env, topology, core, superblock, shards, sender);
            async move {
                match select(Box::pin(serving), killed.then(only_if_sent).boxed_local()).await {
                    Either::Left((ended, _)) => ended,
                    Either::Right(_) => Ok(()),
                }
            }
        };
        self.threads.push(CoreThread::spawn(options, main).map_err(io)?);
        match receiver.recv() {
            Ok(superblock) => Ok(superblock),
            // It ended before it served: its error says why.
            Err(_) => Err(self
                .end()
                .err()
                .unwrap_or_else(|| io(std::io::Error::other("a core ended early")))),
        }
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            tracing::error!(%error, "closing the runtime");
        }
    }
}

async fn only_if_sent(kill: Result<(), oneshot::Canceled>) {
    if kill.is_err() {
        std::future::pending().await
    }
}

async fn serve(
    env: RealEnv,
    topology: Topology,
    core: usize,
    superblock: Option<Superblock>,
    shards: u16,
    started: mpsc::Sender<Superblock>,
) -> Result<()> {
    let limits = Limits::PRODUCTION;
    // The first core opens the store and keeps it locked.
    let lock = match superblock {
        None => Some(StoreLock::open_or_create(&env, &limits, shards).await?),
        Some(_) => None,
    };
    let superblock = superblock.or(lock.as_ref().map(StoreLock::superblock));
    let superblock = superblock.expect("one of the two");
    let core = topology.open(&env, core, superblock, limits).await?;
    let _starter_is_gone = started.send(superblock);
    drop(started);
    core.serve().await
}

fn io(error: std::io::Error) -> crate::error::Error {
    engine::Error::io(engine::Kind::Retry, "a core's thread", error).into()
}
