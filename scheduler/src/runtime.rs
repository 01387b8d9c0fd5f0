//! [`Runtime`]: objects on a real directory, a thread for each core.

use std::path::{Path, PathBuf};
use std::sync::mpsc;

use dormouse_engine as engine;
use dormouse_engine::real::{CoreOptions, CoreThread, DiskChoice, RealEnv};
use dormouse_engine::{Limits, StoreLock, Superblock};

use crate::error::Result;
use crate::id::Id;
use crate::object::DurableObject;
use crate::stub::Namespace;
use crate::topology::{StackLimits, Topology, TopologyBuilder};

/// Builds a [`Runtime`].
pub struct RuntimeBuilder {
    dir: PathBuf,
    topology: TopologyBuilder,
    cores: Option<usize>,
    disk: DiskChoice,
}

impl RuntimeBuilder {
    /// Adds the objects of type `T`; the name is part of their ids, so keep it.
    ///
    /// # Panics
    /// If the name or the type is there already.
    #[must_use]
    pub fn namespace<T: DurableObject>(mut self, name: &str) -> Self {
        self.topology = self.topology.namespace::<T>(name);
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

    /// How to reach the disk.
    #[must_use]
    pub fn disk(mut self, disk: DiskChoice) -> Self {
        self.disk = disk;
        self
    }

    /// Opens or creates the store, recovers it, and starts serving. Blocks until then.
    ///
    /// Errors: `Retry` (open elsewhere), `Corrupt`, `NoSpace`, `Invalid` (a newer format).
    pub fn start(self) -> Result<Runtime> {
        let available = || std::thread::available_parallelism().map_or(1, usize::from);
        let cores = self.cores.unwrap_or_else(available);
        let shards = u16::try_from(cores).unwrap_or(u16::MAX);
        let topology = self.topology.cores(cores).build(entropy);
        let mut runtime = Runtime { topology, threads: Vec::new() };
        let first = Start { dir: self.dir, disk: self.disk, shards };
        let superblock = runtime.start_core(&first, 0, cores, None)?;
        for core in 1..cores {
            runtime.start_core(&first, core, cores, Some(superblock))?;
        }
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
    shards: u16,
}

/// Objects on a directory, served by threads of their own. Dropped, it is closed.
pub struct Runtime {
    topology: Topology,
    threads: Vec<CoreThread<Result<()>>>,
}

impl Runtime {
    /// A runtime on the store in `dir`, which is created if it is not there.
    pub fn builder(dir: impl AsRef<Path>) -> RuntimeBuilder {
        RuntimeBuilder {
            dir: dir.as_ref().to_owned(),
            topology: Topology::builder(),
            cores: None,
            disk: DiskChoice::Auto,
        }
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

    /// Takes no new calls, answers those that are there, makes everything durable, and ends the
    /// threads. Blocks until then.
    ///
    /// Errors: what was answered is durable all the same; a shard was poisoned, or a core ended
    /// by a panic.
    pub fn close(mut self) -> Result<()> {
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        self.topology.shutdown();
        let threads = std::mem::take(&mut self.threads).into_iter();
        let ended: Vec<_> = threads.map(CoreThread::join).collect();
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
        let options = CoreOptions { name, cpu, dir: start.dir.clone(), disk: start.disk };
        let (sender, receiver) = mpsc::channel();
        let (topology, shards) = (self.topology.clone(), start.shards);
        let main = move |env| serve(env, topology, core, superblock, shards, sender);
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
