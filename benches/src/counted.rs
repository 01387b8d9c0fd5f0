//! [`RealEnv`] with a disk that counts what this thread asks of it.

use std::cell::Cell;
use std::io;
use std::time::Duration;

use dormouse_engine::io::{Disk, File, Open, PageBuf, Properties};
use dormouse_engine::real::{RealDisk, RealEnv, RealFile};
use dormouse_engine::{Env, Host};

/// What was asked of the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Reads, and their bytes.
    pub reads: u64,
    /// Bytes of the reads.
    pub read_bytes: u64,
    /// Writes.
    pub writes: u64,
    /// Bytes of the writes.
    pub written_bytes: u64,
    /// Everything else: syncs, opening, allocating, listing, renaming, removing.
    pub others: u64,
}

impl Counts {
    /// What this thread asked of disks so far.
    pub fn now() -> Self {
        COUNTS.get()
    }

    /// What came after `before`.
    #[must_use]
    pub fn since(self, before: Self) -> Self {
        Self {
            reads: self.reads - before.reads,
            read_bytes: self.read_bytes - before.read_bytes,
            writes: self.writes - before.writes,
            written_bytes: self.written_bytes - before.written_bytes,
            others: self.others - before.others,
        }
    }
}

thread_local! {
    static COUNTS: Cell<Counts> = const { Cell::new(Counts {
        reads: 0,
        read_bytes: 0,
        writes: 0,
        written_bytes: 0,
        others: 0,
    }) };
}

fn count(change: impl FnOnce(&mut Counts)) {
    let mut counts = COUNTS.get();
    change(&mut counts);
    COUNTS.set(counts);
}

/// A real core whose disk counts.
#[derive(Clone)]
pub struct CountedEnv {
    env: RealEnv,
    disk: CountedDisk,
}

impl CountedEnv {
    /// The same core; only what goes through this environment is counted.
    pub fn new(env: RealEnv) -> Self {
        let disk = CountedDisk(env.disk().clone());
        Self { env, disk }
    }
}

impl Host for CountedEnv {
    fn now(&self) -> Duration {
        self.env.now()
    }

    fn wall_ms(&self) -> u64 {
        self.env.wall_ms()
    }

    fn sleep(&self, duration: Duration) -> impl Future<Output = ()> + 'static {
        self.env.sleep(duration)
    }

    fn random(&self) -> u64 {
        self.env.random()
    }

    fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + 'static) {
        self.env.spawn(name, task);
    }

    fn turn_end(&self) -> impl Future<Output = ()> + 'static {
        self.env.turn_end()
    }

    fn idle(&self) -> impl Future<Output = ()> + 'static {
        self.env.idle()
    }
}

impl Env for CountedEnv {
    type Disk = CountedDisk;

    fn disk(&self) -> &CountedDisk {
        &self.disk
    }
}

/// A real directory, counted.
#[derive(Clone)]
pub struct CountedDisk(RealDisk);

impl Disk for CountedDisk {
    type File = CountedFile;

    fn properties(&self) -> Properties {
        self.0.properties()
    }

    async fn open(&self, name: &str, open: Open) -> io::Result<CountedFile> {
        count(|counts| counts.others += 1);
        self.0.open(name, open).await.map(CountedFile)
    }

    async fn list(&self) -> io::Result<Vec<String>> {
        count(|counts| counts.others += 1);
        self.0.list().await
    }

    async fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        count(|counts| counts.others += 1);
        self.0.rename(from, to).await
    }

    async fn remove(&self, name: &str) -> io::Result<()> {
        count(|counts| counts.others += 1);
        self.0.remove(name).await
    }

    async fn sync_dir(&self) -> io::Result<()> {
        count(|counts| counts.others += 1);
        self.0.sync_dir().await
    }
}

/// One real file, counted.
#[derive(Clone)]
pub struct CountedFile(RealFile);

impl File for CountedFile {
    type Map = <RealFile as File>::Map;

    async fn read_at(&self, buf: PageBuf, offset: u64) -> (io::Result<usize>, PageBuf) {
        count(|counts| {
            counts.reads += 1;
            counts.read_bytes += buf.len() as u64;
        });
        self.0.read_at(buf, offset).await
    }

    async fn write_at(&self, buf: PageBuf, offset: u64) -> (io::Result<usize>, PageBuf) {
        count(|counts| {
            counts.writes += 1;
            counts.written_bytes += buf.len() as u64;
        });
        self.0.write_at(buf, offset).await
    }

    async fn sync(&self) -> io::Result<()> {
        count(|counts| counts.others += 1);
        self.0.sync().await
    }

    async fn allocate(&self, bytes: u64) -> io::Result<()> {
        count(|counts| counts.others += 1);
        self.0.allocate(bytes).await
    }

    async fn shrink(&self, bytes: u64) -> io::Result<()> {
        count(|counts| counts.others += 1);
        self.0.shrink(bytes).await
    }

    async fn len(&self) -> io::Result<u64> {
        count(|counts| counts.others += 1);
        self.0.len().await
    }

    fn map(&self) -> io::Result<Self::Map> {
        count(|counts| counts.others += 1);
        self.0.map()
    }
}
