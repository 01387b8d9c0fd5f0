//! The whole stack on one simulated machine, two cores, for one trace.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use dormouse_cache::AlarmToo;
use dormouse_engine::{Env, Host, Limits, StoreLock};
use dormouse_scheduler::{Call, Namespace, NamespaceOptions, Stub, Topology};

use super::object::Recorded;
use crate::disk::DiskFaults;
use crate::random::Random;
use crate::world::{Process, SimEnv, World};

const CORES: usize = 2;
/// Steps that one answer may take.
const STEPS_MAX: u64 = 20_000_000;

/// A machine, and the process that serves objects on it.
pub(crate) struct Stack {
    world: World,
    process: Process,
    env: SimEnv,
    topology: Topology,
    options: NamespaceOptions,
    ended: Rc<RefCell<Vec<dormouse_scheduler::Result<()>>>>,
}

impl Stack {
    /// An empty disk, and a process on it. The seed decides how the disk behaves and in which
    /// order things happen that have no order; `delete_all` is the namespace's option.
    pub(crate) fn new(seed: u64, delete_all: AlarmToo) -> Result<Self> {
        let mut random = Random::new(seed);
        let short_io = if random.one_in(3) { 10 } else { 0 };
        let faults = DiskFaults { short_io, buffered: random.one_in(4), ..DiskFaults::default() };
        let options = NamespaceOptions { delete_all, ..NamespaceOptions::DEFAULT };
        Self::start(World::new(seed, faults), options)
    }

    fn start(world: World, options: NamespaceOptions) -> Result<Self> {
        let process = world.process();
        let env = process.core();
        let ids = AtomicU64::new(1);
        let topology = Topology::builder()
            .namespace_with::<Recorded>("dormouse-trace-kv", options)
            .cores(CORES)
            .build(move || ids.fetch_add(1, Ordering::Relaxed));
        let ended = Rc::default();
        let stack = Self { world, process, env, topology, options, ended };
        stack.open()?;
        Ok(stack)
    }

    fn open(&self) -> Result<()> {
        let (env, topology, ended) = (self.env.clone(), self.topology.clone(), self.ended.clone());
        let envs: Vec<SimEnv> = (0..CORES).map(|_| self.process.core()).collect();
        let limits = Limits::PRODUCTION;
        let opened = self.run(async move {
            let lock = StoreLock::open_or_create(&env, &limits, 4).await?;
            let superblock = lock.superblock();
            for (number, core_env) in envs.iter().enumerate() {
                let core = topology.open(core_env, number, superblock, limits).await?;
                let ended = ended.clone();
                core_env.spawn("core", async move {
                    let end = core.serve().await;
                    ended.borrow_mut().push(end);
                });
            }
            // The lock lives as long as the process.
            let disk = env.disk().clone();
            env.spawn("lock", async move {
                let _keep = (lock, disk);
                std::future::pending::<()>().await;
            });
            Ok::<_, dormouse_scheduler::Error>(())
        })?;
        opened.context("opening the store")
    }

    /// Waits for something in the machine.
    pub(crate) fn run<T: 'static>(&self, future: impl Future<Output = T> + 'static) -> Result<T> {
        let value = self.world.block_on(&self.env, STEPS_MAX, future);
        if let Some(panic) = self.world.take_panics().into_iter().next() {
            bail!("a task of the stack panicked: {panic}");
        }
        value.ok_or_else(|| anyhow!("the stack does not answer"))
    }

    /// A time that goes by beside other things.
    pub(crate) fn sleep(&self, time: Duration) -> impl Future<Output = ()> + 'static {
        self.env.sleep(time)
    }

    /// Lets time go by.
    pub(crate) fn pass(&self, time: Duration) -> Result<()> {
        self.run(self.env.sleep(time))
    }

    pub(crate) fn call<R: 'static>(&self, call: Call<R>) -> Result<dormouse_scheduler::Result<R>> {
        self.run(call)
    }

    pub(crate) fn objects(&self) -> Namespace<Recorded> {
        self.topology.namespace()
    }

    pub(crate) fn stub(&self, name: &str) -> Stub<Recorded> {
        self.objects().get_by_name(name)
    }

    /// The process ends, by SIGKILL or by itself, and another one starts on the same disk.
    pub(crate) fn restart(self, kill: bool) -> Result<Self> {
        if !kill {
            self.topology.shutdown();
            let ended = self.ended.clone();
            for _ in 0..STEPS_MAX {
                if ended.borrow().len() == CORES {
                    break;
                }
                self.world.step();
            }
            let ends = std::mem::take(&mut *self.ended.borrow_mut());
            anyhow::ensure!(ends.len() == CORES, "the process does not end");
            ends.into_iter().try_for_each(|end| end.context("closing"))?;
        }
        self.process.kill();
        let Self { world, options, .. } = self;
        Self::start(world, options)
    }
}
