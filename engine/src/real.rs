//! [`RealEnv`], and the threads that it lives on.

#![expect(clippy::disallowed_methods, reason = "the seam to the real world")]

use std::cell::RefCell;
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use futures_channel::oneshot;
use tokio::net::UnixStream;
use tokio::task::unconstrained;

use crate::blocking::BlockingPool;
use crate::clock::{Clock, CoreClock};
use crate::env::{Env, Host, Work};
use crate::executor::Executor;
use crate::io::posix::{PosixDisk, PosixFile};
#[cfg(all(target_os = "linux", not(dormouse_loom)))]
use crate::io::uring::{UringDisk, UringFile};
use crate::io::{Disk, File, Open, PageBuf, Properties};

/// Which implementation of [`Disk`] a core uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DiskChoice {
    /// io_uring where it is to be had, otherwise blocking threads, with the cause in the log.
    #[default]
    Auto,
    /// io_uring, or an error.
    Uring,
    /// Blocking threads.
    Posix,
}

macro_rules! either {
    ($value:expr, $inner:ident => $call:expr) => {
        match $value {
            #[cfg(all(target_os = "linux", not(dormouse_loom)))]
            Self::Uring($inner) => $call,
            Self::Posix($inner) => $call,
        }
    };
}

/// The disk of a real core.
#[derive(Clone)]
pub enum RealDisk {
    /// Over io_uring.
    #[cfg(all(target_os = "linux", not(dormouse_loom)))]
    Uring(UringDisk),
    /// Over blocking threads.
    Posix(PosixDisk),
}

impl Disk for RealDisk {
    type File = RealFile;

    fn properties(&self) -> Properties {
        either!(self, disk => disk.properties())
    }

    async fn open(&self, name: &str, open: Open) -> io::Result<RealFile> {
        match self {
            #[cfg(all(target_os = "linux", not(dormouse_loom)))]
            Self::Uring(disk) => disk.open(name, open).await.map(RealFile::Uring),
            Self::Posix(disk) => disk.open(name, open).await.map(RealFile::Posix),
        }
    }

    async fn list(&self) -> io::Result<Vec<String>> {
        either!(self, disk => disk.list().await)
    }

    async fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        either!(self, disk => disk.rename(from, to).await)
    }

    async fn remove(&self, name: &str) -> io::Result<()> {
        either!(self, disk => disk.remove(name).await)
    }

    async fn sync_dir(&self) -> io::Result<()> {
        either!(self, disk => disk.sync_dir().await)
    }
}

/// A file of a real core.
#[derive(Clone)]
pub enum RealFile {
    /// Over io_uring.
    #[cfg(all(target_os = "linux", not(dormouse_loom)))]
    Uring(UringFile),
    /// Over blocking threads.
    Posix(PosixFile),
}

impl File for RealFile {
    type Map = memmap2::Mmap;

    async fn read_at(&self, buf: PageBuf, offset: u64) -> (io::Result<usize>, PageBuf) {
        either!(self, file => file.read_at(buf, offset).await)
    }

    async fn write_at(&self, buf: PageBuf, offset: u64) -> (io::Result<usize>, PageBuf) {
        either!(self, file => file.write_at(buf, offset).await)
    }

    async fn sync(&self) -> io::Result<()> {
        either!(self, file => file.sync().await)
    }

    async fn allocate(&self, bytes: u64) -> io::Result<()> {
        either!(self, file => file.allocate(bytes).await)
    }

    async fn shrink(&self, bytes: u64) -> io::Result<()> {
        either!(self, file => file.shrink(bytes).await)
    }

    async fn len(&self) -> io::Result<u64> {
        either!(self, file => file.len().await)
    }

    fn map(&self) -> io::Result<memmap2::Mmap> {
        either!(self, file => file.map())
    }
}

/// [`Env`] of a real core.
#[derive(Clone)]
pub struct RealEnv(Rc<Inner>);

struct Inner {
    executor: Executor,
    disk: RealDisk,
    clock: CoreClock,
    entropy: RefCell<Vec<u64>>,
    blocking: BlockingPool,
}

impl RealEnv {
    fn new(disk: RealDisk, clock: Clock) -> Self {
        let executor = Executor::new();
        let (entropy, blocking) = (RefCell::default(), BlockingPool::new());
        Self(Rc::new(Inner { executor, disk, clock: CoreClock::new(clock), entropy, blocking }))
    }

    /// Turns that the core has made so far.
    pub fn turns(&self) -> u64 {
        self.0.executor.turns()
    }
}

impl Env for RealEnv {
    type Disk = RealDisk;

    fn disk(&self) -> &RealDisk {
        &self.0.disk
    }
}

impl Host for RealEnv {
    fn now(&self) -> Duration {
        self.0.clock.now()
    }

    fn wall_ms(&self) -> u64 {
        self.0.clock.wall_ms()
    }

    fn sleep(&self, duration: Duration) -> impl Future<Output = ()> + 'static {
        self.0.clock.sleep(duration)
    }

    fn random(&self) -> u64 {
        let mut entropy = self.0.entropy.borrow_mut();
        if entropy.is_empty() {
            // Many at once: one system call for a whole run of ids.
            let mut bytes = [0; 512];
            getrandom::fill(&mut bytes).expect("the system gives entropy");
            let numbers = bytes.chunks_exact(8).map(|chunk| chunk.try_into().expect("8 bytes"));
            entropy.extend(numbers.map(u64::from_le_bytes));
        }
        entropy.pop().expect("filled above")
    }

    fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + 'static) {
        self.0.executor.spawn(name, task);
    }

    fn spawn_boxed(&self, name: &'static str, task: Pin<Box<dyn Future<Output = ()>>>) {
        self.0.executor.spawn_boxed(name, task);
    }

    fn turn_end(&self) -> impl Future<Output = ()> + 'static {
        self.0.executor.turn_end()
    }

    fn idle(&self) -> impl Future<Output = ()> + 'static {
        self.0.executor.idle()
    }

    fn spawn_blocking(&self, work: Work) -> crate::error::Result<()> {
        self.0.blocking.submit(work)
    }
}

/// How to start a core.
#[derive(Clone, Debug)]
pub struct CoreOptions {
    /// The thread's name.
    pub name: String,
    /// The CPU to pin it to.
    pub cpu: Option<usize>,
    /// The store's directory.
    pub dir: PathBuf,
    /// How to reach the disk.
    pub disk: DiskChoice,
    /// What time it is.
    pub clock: Clock,
}

/// A core's thread. It runs until the future that it was started with is done and nothing is in
/// flight any more.
#[derive(Debug)]
pub struct CoreThread<T> {
    handle: std::thread::JoinHandle<io::Result<T>>,
    ended: oneshot::Receiver<()>,
}

impl<T: Send + 'static> CoreThread<T> {
    /// Starts a thread, pins it, and runs `main` on it; everything that `main` spawns through its
    /// environment runs there too, until `main` returns.
    ///
    /// Errors: the thread can't be started.
    pub fn spawn<F: Future<Output = T> + 'static>(
        options: CoreOptions,
        main: impl FnOnce(RealEnv) -> F + Send + 'static,
    ) -> io::Result<Self> {
        let builder = std::thread::Builder::new().name(options.name.clone());
        let (alive, ended) = oneshot::channel::<()>();
        let handle = builder.spawn(move || {
            // Dropped last, also by a panic: then no file is open any more.
            let _alive = alive;
            run(&options, main)
        })?;
        Ok(Self { handle, ended })
    }

    /// Returns when [`CoreThread::join`] need not wait any more.
    pub async fn ended(&mut self) {
        let _dropped = (&mut self.ended).await;
    }

    /// Waits for the thread's end.
    ///
    /// Errors: the runtime could not be set up, or the thread panicked.
    pub fn join(self) -> io::Result<T> {
        self.handle.join().map_err(|_| io::Error::other("a core's thread panicked"))?
    }
}

fn pin(cpu: usize) {
    let mut set = rustix::thread::CpuSet::new();
    set.set(cpu);
    if let Err(error) = rustix::thread::sched_setaffinity(None, &set) {
        tracing::warn!(cpu, %error, "could not pin a core's thread");
    }
}

fn run<T: 'static, F: Future<Output = T> + 'static>(
    options: &CoreOptions,
    main: impl FnOnce(RealEnv) -> F + 'static,
) -> io::Result<T> {
    options.cpu.into_iter().for_each(pin);
    let clock = options.clock.clone();
    #[cfg(all(target_os = "linux", not(dormouse_loom)))]
    if options.disk != DiskChoice::Posix {
        match tokio_uring_runtime() {
            Ok(runtime) => {
                let disk = UringDisk::new(&options.dir)?;
                let core = async move {
                    let value = turns(RealDisk::Uring(disk.clone()), clock, main).await?;
                    disk.drain().await;
                    Ok(value)
                };
                return runtime.block_on(as_task(unconstrained(core)));
            }
            Err(error) if options.disk == DiskChoice::Uring => return Err(error),
            Err(error) => tracing::warn!(%error, "no io_uring here: using blocking threads"),
        }
    }
    if options.disk == DiskChoice::Uring {
        return Err(io::Error::new(io::ErrorKind::Unsupported, "io_uring is Linux's"));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let disk = PosixDisk::new(&options.dir)?;
    runtime.block_on(unconstrained(turns(RealDisk::Posix(disk), clock, main)))
}

#[cfg(all(target_os = "linux", not(dormouse_loom)))]
use crate::io::uring::{as_task, runtime as tokio_uring_runtime};

/// The one task of the runtime: the core's run queue. It runs without tokio's budget for tasks: beyond it, connections of
/// all tasks would claim to have nothing, and a turn ends in time by itself.
async fn turns<T: 'static, F: Future<Output = T> + 'static>(
    disk: RealDisk,
    clock: Clock,
    main: impl FnOnce(RealEnv) -> F,
) -> io::Result<T> {
    let env = RealEnv::new(disk, clock);
    let executor = env.0.executor.clone();
    let (kick, kicked) = UnixStream::pair()?;
    let main = main(env);
    let park_at_once = async || {
        // A readable descriptor: the runtime parks, submits, looks for completions, and comes
        // straight back.
        kick.try_write(&[1]).expect("an empty socket takes a byte");
        let mut byte = [0; 8];
        kicked.readable().await.expect("the runtime polls the socket");
        // Read dry, so that the next call waits for the runtime to look again.
        while kicked.try_read(&mut byte).is_ok() {}
        // Completions may wait for a kernel thread on this very CPU.
        std::thread::yield_now();
    };
    let cleared = Cleared(executor);
    Ok(cleared.0.run(main, park_at_once).await)
}

/// Drops the core's tasks, which hold the environment, as it holds them; also when the main one panicked: who waits for
/// another of them is told.
struct Cleared(Executor);

impl Drop for Cleared {
    fn drop(&mut self) {
        self.0.clear();
    }
}

/// Runs one future to its end on a core of its own, and waits for it: for tools and tests.
///
/// Errors: the core could not be started.
pub fn block_on<T: Send + 'static, F: Future<Output = T> + 'static>(
    dir: &Path,
    disk: DiskChoice,
    main: impl FnOnce(RealEnv) -> F + Send + 'static,
) -> io::Result<T> {
    let name = "dormouse-core".to_owned();
    let clock = Clock::System;
    let options = CoreOptions { name, cpu: None, dir: dir.to_owned(), disk, clock };
    CoreThread::spawn(options, main)?.join()
}
