//! [`Disk`] over `pread` and `pwrite` on a few blocking threads: where io_uring is not to be had,
//! and, for what is rare, beneath the io_uring disk.

#![expect(
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "the seam to the real file system"
)]

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_channel::oneshot;
use rustix::fs::{FlockOperation, OFlags};

use super::{Create, Disk, Entry, File, Mode, Open, PageBuf, Properties};

/// Blocking threads of one disk.
const THREADS: usize = 2;
/// Alignment that every known device takes.
const BLOCK_BYTES: usize = 4096;
/// How often a lock that is held elsewhere is tried.
const LOCK_EVERY: Duration = Duration::from_millis(2);

type Job = Box<dyn FnOnce() + Send>;

/// One directory, reached by blocking calls.
#[derive(Clone)]
pub struct PosixDisk {
    dir: Arc<PathBuf>,
    direct: bool,
    jobs: Sender<Job>,
}

impl PosixDisk {
    /// The disk of this directory, which is created (mode 0700) if absent.
    ///
    /// Errors: the directory can't be made or written.
    pub fn new(dir: &Path) -> io::Result<Self> {
        use std::os::unix::fs::DirBuilderExt;
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let (jobs, receiver) = channel::<Job>();
        let receiver = Arc::new(Mutex::new(receiver));
        for index in 0..THREADS {
            let receiver = receiver.clone();
            std::thread::Builder::new()
                .name(format!("dormouse-disk-{index}"))
                .spawn(move || work(&receiver))?;
        }
        Ok(Self { dir: Arc::new(dir.to_owned()), direct: probe_direct(dir)?, jobs })
    }

    /// Runs a blocking call. It goes on if the future is dropped.
    async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let (reply, result) = oneshot::channel();
        let job: Job = Box::new(move || drop(reply.send(job())));
        self.jobs.send(job).map_err(|_| io::Error::other("the disk's threads ended"))?;
        result.await.map_err(|_| io::Error::other("a disk thread panicked"))?
    }
}

fn work(jobs: &Mutex<Receiver<Job>>) {
    loop {
        let job = match jobs.lock() {
            Ok(jobs) => jobs.recv(),
            Err(_) => return,
        };
        match job {
            Ok(job) => job(),
            Err(_) => return,
        }
    }
}

fn direct_flag() -> i32 {
    #[cfg(target_os = "linux")]
    let flag = OFlags::DIRECT;
    #[cfg(not(target_os = "linux"))]
    let flag = OFlags::empty();
    i32::try_from(flag.bits()).expect("flags fit")
}

fn sync_flag() -> i32 {
    i32::try_from(OFlags::DSYNC.bits()).expect("flags fit")
}

/// Whether the directory's file system takes direct I/O: tried on a file of its own.
fn probe_direct(dir: &Path) -> io::Result<bool> {
    if direct_flag() == 0 {
        return Ok(false);
    }
    static PROBES: AtomicU64 = AtomicU64::new(0);
    // Several cores may look at one directory at the same time.
    let probe = PROBES.fetch_add(1, Ordering::Relaxed);
    let path = dir.join(format!("probe-{}-{probe}", std::process::id()));
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(true).mode(0o600);
    let opened = options.custom_flags(direct_flag()).open(&path);
    let direct = match opened {
        Ok(file) => {
            let block = PageBuf::zeroed(BLOCK_BYTES);
            file.write_at(&block, 0).is_ok_and(|bytes| bytes == BLOCK_BYTES)
        }
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => false,
        Err(error) => return Err(error),
    };
    fs::remove_file(&path)?;
    if !direct {
        tracing::warn!(dir = %dir.display(), "no direct I/O here: reads go through the page cache");
    }
    Ok(direct)
}

fn open_locked(path: &Path, open: Open, direct: bool) -> io::Result<fs::File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    match open.create {
        Create::Never => {}
        Create::IfAbsent => drop(options.create(true)),
        Create::New => drop(options.create_new(true)),
    }
    if open.mode == Mode::Through {
        let direct = if direct { direct_flag() } else { 0 };
        options.custom_flags(sync_flag() | direct);
    }
    let file = options.open(path)?;
    let deadline = Instant::now() + open.lock_wait;
    loop {
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        if Instant::now() >= deadline {
            let what = format!("{} is locked by another process", path.display());
            return Err(io::Error::new(io::ErrorKind::WouldBlock, what));
        }
        std::thread::sleep(LOCK_EVERY);
    }
}

impl Disk for PosixDisk {
    type File = PosixFile;

    fn properties(&self) -> Properties {
        Properties { block_bytes: BLOCK_BYTES, direct: self.direct, name: "posix" }
    }

    async fn open(&self, name: &str, open: Open) -> io::Result<PosixFile> {
        let (path, direct) = (self.dir.join(name), self.direct);
        let file = self.run(move || open_locked(&path, open, direct)).await?;
        Ok(PosixFile { disk: self.clone(), file: Arc::new(file), mode: open.mode })
    }

    async fn list(&self) -> io::Result<Vec<Entry>> {
        let dir = self.dir.clone();
        self.run(move || {
            let mut entries = Vec::new();
            for entry in fs::read_dir(&*dir)? {
                let entry = entry?;
                let metadata = entry.metadata()?;
                if metadata.is_file()
                    && let Ok(name) = entry.file_name().into_string()
                {
                    entries.push(Entry { name, bytes: metadata.len() });
                }
            }
            entries.sort_by(|a, b| a.name.cmp(&b.name));
            Ok(entries)
        })
        .await
    }

    async fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let (from, to) = (self.dir.join(from), self.dir.join(to));
        self.run(move || fs::rename(from, to)).await
    }

    async fn remove(&self, name: &str) -> io::Result<()> {
        let path = self.dir.join(name);
        self.run(move || fs::remove_file(path)).await
    }

    async fn sync_dir(&self) -> io::Result<()> {
        let dir = self.dir.clone();
        self.run(move || fs::File::open(&*dir)?.sync_all()).await
    }
}

/// One file, reached by blocking calls.
#[derive(Clone)]
pub struct PosixFile {
    disk: PosixDisk,
    file: Arc<fs::File>,
    mode: Mode,
}

impl PosixFile {
    /// The open file, whose description holds the lock.
    #[cfg(all(target_os = "linux", not(dormouse_loom)))]
    pub(super) fn as_file(&self) -> &fs::File {
        &self.file
    }
}

impl File for PosixFile {
    type Map = memmap2::Mmap;

    async fn read_at(&self, buf: PageBuf, offset: u64) -> (io::Result<usize>, PageBuf) {
        self.transfer(buf, move |file, buf| file.read_at(buf, offset)).await
    }

    async fn write_at(&self, buf: PageBuf, offset: u64) -> (io::Result<usize>, PageBuf) {
        self.transfer(buf, move |file, buf| file.write_at(buf, offset)).await
    }

    async fn sync(&self) -> io::Result<()> {
        let file = self.file.clone();
        self.disk.run(move || file.sync_data()).await
    }

    async fn allocate(&self, bytes: u64) -> io::Result<()> {
        let file = self.file.clone();
        self.disk.run(move || allocate(&file, bytes)).await
    }

    async fn len(&self) -> io::Result<u64> {
        let file = self.file.clone();
        self.disk.run(move || Ok(file.metadata()?.len())).await
    }

    fn map(&self) -> io::Result<memmap2::Mmap> {
        assert_eq!(self.mode, Mode::Cached, "no file is both direct and mapped");
        map(&self.file)
    }
}

impl PosixFile {
    async fn transfer(
        &self,
        buf: PageBuf,
        call: impl FnOnce(&fs::File, &mut [u8]) -> io::Result<usize> + Send + 'static,
    ) -> (io::Result<usize>, PageBuf) {
        let file = self.file.clone();
        let mut buf = buf;
        let done = self.disk.run(move || {
            let result = call(&file, &mut buf);
            Ok((result, buf))
        });
        match done.await {
            Ok(done) => done,
            // The buffer went down with the thread; an empty one stands for it.
            Err(error) => (Err(error), PageBuf::zeroed(1)),
        }
    }
}

fn allocate(file: &fs::File, bytes: u64) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    match rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), 0, bytes) {
        Ok(()) => return Ok(()),
        Err(rustix::io::Errno::OPNOTSUPP) => {}
        Err(error) => return Err(error.into()),
    }
    match file.metadata()?.len() < bytes {
        true => file.set_len(bytes),
        false => Ok(()),
    }
}

#[expect(unsafe_code, reason = "a mapping")]
fn map(file: &fs::File) -> io::Result<memmap2::Mmap> {
    // SAFETY: the file is locked by us for as long as it is open, and Cached files that are mapped
    // are never written again (io::Disk), so the bytes do not change under the mapping.
    let map = unsafe { memmap2::Mmap::map(file)? };
    map.advise(memmap2::Advice::Random)?;
    Ok(map)
}
