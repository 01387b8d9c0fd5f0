//! A real core whose disk does what a test says.

use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use crate::env::{Env, Host};
use crate::io::{Disk, File, Open, PageBuf, Properties};
use crate::real::{RealDisk, RealEnv, RealFile};
use crate::signal::Signal;

/// What the disk does from now on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Fault {
    #[default]
    None,
    /// Writes wait until there is another fault, or none.
    Hold,
    /// Writes fail.
    Write,
    /// So many more writes succeed, then all fail.
    WriteAfter(u32),
    /// The code that writes panics.
    Panic,
    /// There is no room for new blocks.
    Full,
}

#[derive(Default)]
struct Switch {
    fault: Cell<Fault>,
    changed: Signal,
    /// Reads may come from the page cache (E9).
    buffered: Cell<bool>,
}

#[derive(Clone)]
pub(super) struct FaultyEnv {
    real: RealEnv,
    disk: FaultyDisk,
}

impl FaultyEnv {
    pub(super) fn new(real: RealEnv) -> Self {
        let disk = FaultyDisk { real: real.disk().clone(), switch: Rc::default() };
        Self { real, disk }
    }

    /// As on a file system without direct I/O.
    pub(super) fn set_buffered(&self) {
        self.disk.switch.buffered.set(true);
    }

    pub(super) fn set(&self, fault: Fault) {
        self.disk.switch.fault.set(fault);
        self.disk.switch.changed.notify();
    }
}

impl Env for FaultyEnv {
    type Disk = FaultyDisk;

    fn disk(&self) -> &FaultyDisk {
        &self.disk
    }
}

impl Host for FaultyEnv {
    fn now(&self) -> Duration {
        self.real.now()
    }

    fn wall_ms(&self) -> u64 {
        self.real.wall_ms()
    }

    fn sleep(&self, duration: Duration) -> impl Future<Output = ()> + 'static {
        self.real.sleep(duration)
    }

    fn random(&self) -> u64 {
        self.real.random()
    }

    fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + 'static) {
        self.real.spawn(name, task);
    }

    fn turn_end(&self) -> impl Future<Output = ()> + 'static {
        self.real.turn_end()
    }

    fn idle(&self) -> impl Future<Output = ()> + 'static {
        self.real.idle()
    }
}

#[derive(Clone)]
pub(super) struct FaultyDisk {
    real: RealDisk,
    switch: Rc<Switch>,
}

impl Disk for FaultyDisk {
    type File = FaultyFile;

    fn properties(&self) -> Properties {
        let real = self.real.properties();
        Properties { direct: real.direct && !self.switch.buffered.get(), ..real }
    }

    async fn open(&self, name: &str, open: Open) -> io::Result<FaultyFile> {
        let real = self.real.open(name, open).await?;
        Ok(FaultyFile { real, switch: self.switch.clone() })
    }

    async fn list(&self) -> io::Result<Vec<String>> {
        self.real.list().await
    }

    async fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.real.rename(from, to).await
    }

    async fn remove(&self, name: &str) -> io::Result<()> {
        self.real.remove(name).await
    }

    async fn sync_dir(&self) -> io::Result<()> {
        self.real.sync_dir().await
    }
}

#[derive(Clone)]
pub(super) struct FaultyFile {
    real: RealFile,
    switch: Rc<Switch>,
}

impl File for FaultyFile {
    type Map = <RealFile as File>::Map;

    async fn read_at(&self, buf: PageBuf, offset: u64) -> (io::Result<usize>, PageBuf) {
        self.real.read_at(buf, offset).await
    }

    async fn write_at(&self, buf: PageBuf, offset: u64) -> (io::Result<usize>, PageBuf) {
        let fault = &self.switch.fault;
        self.switch.changed.until(|| (fault.get() != Fault::Hold).then_some(())).await;
        match fault.get() {
            Fault::Write | Fault::WriteAfter(0) => {
                (Err(io::Error::other("a write that fails on purpose")), buf)
            }
            Fault::Panic => panic!("on purpose"),
            Fault::WriteAfter(more) => {
                fault.set(Fault::WriteAfter(more - 1));
                self.real.write_at(buf, offset).await
            }
            Fault::None | Fault::Full | Fault::Hold => self.real.write_at(buf, offset).await,
        }
    }

    async fn sync(&self) -> io::Result<()> {
        self.real.sync().await
    }

    async fn allocate(&self, bytes: u64) -> io::Result<()> {
        match self.switch.fault.get() {
            Fault::Full => Err(io::ErrorKind::StorageFull.into()),
            _ => self.real.allocate(bytes).await,
        }
    }

    async fn shrink(&self, bytes: u64) -> io::Result<()> {
        self.real.shrink(bytes).await
    }

    async fn len(&self) -> io::Result<u64> {
        self.real.len().await
    }

    fn map(&self) -> io::Result<<RealFile as File>::Map> {
        self.real.map()
    }
}
