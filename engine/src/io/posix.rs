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
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_channel::oneshot;
use rustix::fs::FlockOperation;

use super::{Create, Disk, File, Mode, Open, PageBuf, Properties};

/// Blocking threads of one disk.
const THREADS: usize = 2;
/// Alignment that every known device takes; used where the file system doesn't say.
const BLOCK_BYTES: usize = 4096;
/// Zeros that are written at a time where space can't be taken otherwise.
const ZERO_BYTES: usize = 1 << 20;
/// How often a lock that is held elsewhere is tried.
const LOCK_EVERY: Duration = Duration::from_millis(2);

type Job = Box<dyn FnOnce() + Send>;

/// One directory, reached by blocking calls.
#[derive(Clone)]
pub struct PosixDisk {
    dir: Arc<PathBuf>,
    properties: Properties,
    jobs: Sender<Job>,
}

impl PosixDisk {
    /// The disk of this directory, which is created (mode 0700) if absent.
    ///
    /// Errors: the directory can't be made. Whether it may be written shows when a file is.
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
        Ok(Self { dir: Arc::new(dir.to_owned()), properties: probe(dir)?, jobs })
    }

    /// Runs a blocking call. It goes on if the future is dropped.
    async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        self.run_with((), |()| job()).await.0
    }

    /// Runs a blocking call on something that comes back whatever happens.
    async fn run_with<B: Send + 'static, T: Send + 'static>(
        &self,
        mut lent: B,
        job: impl FnOnce(&mut B) -> io::Result<T> + Send + 'static,
    ) -> (io::Result<T>, B) {
        let (reply, result) = oneshot::channel();
        let job: Job = Box::new(move || {
            let done = catch_unwind(AssertUnwindSafe(|| job(&mut lent)));
            let done = done.unwrap_or_else(|_| Err(io::Error::other("a disk operation panicked")));
            drop(reply.send((done, lent)));
        });
        assert!(self.jobs.send(job).is_ok(), "disk threads outlive their disk");
        result.await.expect("a job replies, whatever happens in it")
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
    return libc::O_DIRECT;
    #[cfg(not(target_os = "linux"))]
    return 0;
}

/// A write returns when its bytes are durable; times of the file may not be. rustix's `OFlags::DSYNC` is
/// `O_SYNC`: then each write waits for the file system's journal too (docs/decisions/0005).
fn sync_flag() -> i32 {
    libc::O_DSYNC
}

/// What the directory's file system takes: tried on a file of its own.
fn probe(dir: &Path) -> io::Result<Properties> {
    let cached = Properties { block_bytes: BLOCK_BYTES, direct: false, name: "posix" };
    if direct_flag() == 0 {
        return Ok(cached);
    }
    static PROBES: AtomicU64 = AtomicU64::new(0);
    // Several cores may look at one directory at the same time.
    let probe = PROBES.fetch_add(1, Ordering::Relaxed);
    let path = dir.join(format!("probe-{}-{probe}", std::process::id()));
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(true).mode(0o600);
    let opened = options.custom_flags(direct_flag()).open(&path);
    let properties = match opened {
        Ok(file) => probe_file(&file, cached),
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => cached,
        // Enough for whoever only reads; who writes is refused when it opens a file.
        Err(error) if is_refused(&error) => return Ok(cached),
        Err(error) => return Err(error),
    };
    fs::remove_file(&path)?;
    if !properties.direct {
        tracing::warn!(dir = %dir.display(), "no direct I/O here: reads go through the page cache");
    }
    Ok(properties)
}

/// Whether the directory may not be written.
fn is_refused(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem)
}

/// The smallest blocks that a file opened for direct I/O takes, if it takes any.
fn probe_file(file: &fs::File, cached: Properties) -> Properties {
    let takes = |block_bytes: usize| {
        let mut block = PageBuf::zeroed(block_bytes);
        let written = file.write_at(&block, block_bytes as u64);
        let read = file.read_at(&mut block, block_bytes as u64);
        [written, read].into_iter().all(|done| done.is_ok_and(|bytes| bytes == block_bytes))
    };
    match [direct_alignment(file), BLOCK_BYTES].into_iter().find(|bytes| takes(*bytes)) {
        Some(block_bytes) => Properties { block_bytes, direct: true, ..cached },
        None => cached,
    }
}

/// The alignment of direct I/O, as the file system says (`STATX_DIOALIGN`, Linux 6.1).
#[cfg(target_os = "linux")]
fn direct_alignment(file: &fs::File) -> usize {
    use rustix::fs::{AtFlags, StatxFlags, statx};
    let said = statx(file, c"", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN);
    match said {
        Ok(said) if said.stx_mask & StatxFlags::DIOALIGN.bits() != 0 => {
            let align = said.stx_dio_offset_align.max(said.stx_dio_mem_align) as usize;
            match align.is_power_of_two() && align <= BLOCK_BYTES {
                true => align.max(512),
                false => BLOCK_BYTES,
            }
        }
        _ => BLOCK_BYTES,
    }
}

#[cfg(not(target_os = "linux"))]
fn direct_alignment(_file: &fs::File) -> usize {
    BLOCK_BYTES
}

fn open_file(path: &Path, open: Open, direct: bool) -> io::Result<fs::File> {
    let mut options = OpenOptions::new();
    options.read(true).write(open.create != Create::ReadOnly).mode(0o600);
    match open.create {
        Create::Never | Create::ReadOnly => {}
        Create::IfAbsent => drop(options.create(true)),
        Create::New => drop(options.create_new(true)),
    }
    if open.mode == Mode::Through {
        let direct = if direct { direct_flag() } else { 0 };
        options.custom_flags(sync_flag() | direct);
    }
    options.open(path)
}

/// Whether the lock could be had at once.
fn try_lock(file: &fs::File) -> io::Result<bool> {
    match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

impl Disk for PosixDisk {
    type File = PosixFile;

    fn properties(&self) -> Properties {
        self.properties
    }

    async fn open(&self, name: &str, open: Open) -> io::Result<PosixFile> {
        let (path, direct) = (self.dir.join(name), self.properties.direct);
        let deadline = open.lock_wait.map(|wait| Instant::now() + wait);
        let (mut file, mut locked) = self
            .run(move || {
                let file = open_file(&path, open, direct)?;
                let locked = open.lock_wait.is_none() || try_lock(&file)?;
                Ok((file, locked))
            })
            .await?;
        // A thread that slept for the lock would keep other operations from going on.
        while !locked {
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                let what =
                    format!("{} is locked by another process", self.dir.join(name).display());
                return Err(io::Error::new(io::ErrorKind::WouldBlock, what));
            }
            tokio::time::sleep(LOCK_EVERY).await;
            let (tried, lent) = self.run_with(file, |file| try_lock(file)).await;
            (file, locked) = (lent, tried?);
        }
        Ok(PosixFile { disk: self.clone(), file: Arc::new(file), mode: open.mode })
    }

    async fn list(&self) -> io::Result<Vec<String>> {
        let dir = self.dir.clone();
        self.run(move || {
            let mut names = Vec::new();
            for entry in fs::read_dir(&*dir)? {
                let entry = entry?;
                let kind = match entry.file_type() {
                    // Another core removed or renamed it meanwhile.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    kind => kind?,
                };
                if kind.is_file()
                    && let Ok(name) = entry.file_name().into_string()
                {
                    names.push(name);
                }
            }
            names.sort_unstable();
            Ok(names)
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

    async fn shrink(&self, bytes: u64) -> io::Result<()> {
        let file = self.file.clone();
        let shrink = move || match file.metadata()?.len() > bytes {
            true => file.set_len(bytes),
            false => Ok(()),
        };
        self.disk.run(shrink).await
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
        self.disk.run_with(buf, move |buf| call(&file, buf)).await
    }
}

fn allocate(file: &fs::File, bytes: u64) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    loop {
        match rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), 0, bytes) {
            Ok(()) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::OPNOTSUPP) => break,
            Err(error) => return Err(error.into()),
        }
    }
    allocate_by_writing(file, bytes)
}

/// Takes blocks on a file system that has no call for it. What is there already stays.
fn allocate_by_writing(file: &fs::File, bytes: u64) -> io::Result<()> {
    let block = BLOCK_BYTES as u64;
    let len = file.metadata()?.len();
    if len >= bytes {
        return Ok(());
    }
    let mut at = len.next_multiple_of(block);
    let mut zeros = PageBuf::zeroed(ZERO_BYTES);
    while at < bytes {
        let left = usize::try_from(bytes - at).unwrap_or(usize::MAX);
        zeros.set_window(0..left.next_multiple_of(BLOCK_BYTES).min(ZERO_BYTES));
        match file.write_at(&zeros, at) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            // A transfer that ends inside a block is begun again at that block.
            Ok(written) => at += written as u64 / block * block,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    file.set_len(bytes)
}

#[expect(unsafe_code, reason = "a mapping")]
fn map(file: &fs::File) -> io::Result<memmap2::Mmap> {
    // SAFETY: the file is locked by us for as long as it is open, and Cached files that are mapped
    // are never written again (io::Disk), so the bytes do not change under the mapping.
    let map = unsafe { memmap2::Mmap::map(file)? };
    map.advise(memmap2::Advice::Random)?;
    // Reads too: the default readahead is megabytes on some devices.
    rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::Random)?;
    Ok(map)
}

#[cfg(all(test, not(dormouse_loom)))]
mod tests {
    use super::*;
    use crate::real::{DiskChoice, block_on};

    fn dir() -> tempfile::TempDir {
        // Below the crate and not in a temporary directory, which may be in memory.
        tempfile::TempDir::new_in(concat!(env!("CARGO_MANIFEST_DIR"), "/../target"))
            .expect("a directory")
    }

    /// Every core has shards in the same directory, and makes and removes files of theirs.
    #[test]
    #[expect(clippy::disallowed_methods, reason = "another core's work")]
    fn files_that_go_while_a_directory_is_listed_are_no_error() {
        let dir = dir();
        let others = std::thread::scope(|scope| {
            let churn = scope.spawn(|| {
                for number in 0..40_000 {
                    let path = dir.path().join(format!("file-{}", number % 400));
                    match number / 400 % 2 {
                        0 => fs::write(&path, "").expect("written"),
                        _ => fs::remove_file(&path).expect("removed"),
                    }
                }
            });
            let listed = block_on(dir.path(), DiskChoice::Posix, async |env| {
                for _ in 0..1000 {
                    crate::Env::disk(&env).list().await?;
                }
                io::Result::Ok(())
            });
            churn.join().expect("no panic");
            listed
        });
        others.expect("a core").expect("lists");
    }

    /// With `O_SYNC` each write would wait for the file system's journal too.
    #[test]
    #[cfg(target_os = "linux")]
    fn a_write_waits_for_its_bytes_and_not_for_the_times_of_the_file() {
        let dir = dir();
        let flags = block_on(dir.path(), DiskChoice::Posix, async |env| {
            let lock_wait = Some(std::time::Duration::ZERO);
            let open = Open { create: Create::New, mode: Mode::Through, lock_wait };
            let crate::real::RealDisk::Posix(disk) = crate::Env::disk(&env) else {
                unreachable!("it was chosen")
            };
            let opened = disk.open("file", open).await.expect("a file");
            rustix::fs::fcntl_getfl(&*opened.file).expect("flags").bits()
        });
        let synced = flags.expect("a core") & libc::O_SYNC.cast_unsigned();
        assert_eq!(synced, libc::O_DSYNC.cast_unsigned());
    }

    /// As in a directory of a read-only file system; root may write to those that merely forbid it.
    #[test]
    #[cfg(target_os = "linux")]
    fn a_directory_that_may_not_be_written_can_be_read() {
        let disk = PosixDisk::new(Path::new("/sys")).expect("nothing is to be written");
        assert!(!disk.properties().direct);
        let entries = block_on(Path::new("/sys/kernel"), DiskChoice::Posix, async |env| {
            crate::Env::disk(&env).list().await
        });
        assert!(!entries.expect("a core").expect("a list").is_empty());
    }

    #[test]
    fn space_taken_by_writing_is_real_and_what_is_there_stays() {
        use std::os::unix::fs::MetadataExt;
        let dir = dir();
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(dir.path().join("file"))
            .expect("create");
        file.write_all_at(b"here before", 5).expect("write");
        allocate_by_writing(&file, 3 << 20).expect("allocate");
        let metadata = file.metadata().expect("metadata");
        assert_eq!(metadata.len(), 3 << 20);
        assert!(metadata.blocks() * 512 >= 3 << 20, "{} blocks", metadata.blocks());
        let mut start = [1; 32];
        file.read_exact_at(&mut start, 0).expect("read");
        assert_eq!(&start[..20], b"\0\0\0\0\0here before\0\0\0\0");
        allocate_by_writing(&file, 1000).expect("nothing to do");
        assert_eq!(file.metadata().expect("metadata").len(), 3 << 20);
    }

    #[test]
    fn a_panic_on_a_disk_thread_is_an_error_and_the_buffer_comes_back() {
        let dir = dir();
        let lent = block_on(dir.path(), DiskChoice::Posix, async |env| {
            let crate::real::RealDisk::Posix(disk) = crate::Env::disk(&env).clone() else {
                unreachable!("asked for above")
            };
            let mut lent = PageBuf::zeroed(5000);
            for _ in 0..2 * THREADS {
                let panics = |_: &mut PageBuf| -> io::Result<()> { panic!("on purpose") };
                let (result, back) = disk.run_with(lent, panics).await;
                assert!(result.is_err());
                lent = back;
            }
            disk.list().await.expect("the threads live on");
            lent.len()
        });
        assert_eq!(lent.expect("a core"), 5000);
    }

    #[test]
    fn waiting_for_a_lock_keeps_no_thread_busy() {
        let dir = dir();
        let opened = block_on(dir.path(), DiskChoice::Posix, async |env| {
            let disk = crate::Env::disk(&env);
            let wait = Open {
                create: Create::IfAbsent,
                mode: Mode::Through,
                lock_wait: Some(Duration::from_secs(20)),
            };
            let held = disk.open("held", wait).await.expect("open");
            let waiting: Vec<_> = (0..2 * THREADS)
                .map(|_| {
                    let (disk, opened) =
                        (disk.clone(), std::rc::Rc::new(std::cell::Cell::new(false)));
                    let set = opened.clone();
                    crate::Host::spawn(&env, "waits", async move {
                        disk.open("held", wait).await.expect("free in the end");
                        set.set(true);
                    });
                    opened
                })
                .collect();
            let other = disk.open("other", wait).await.expect("open");
            for _ in 0..10 {
                other.sync().await.expect("goes on");
            }
            assert!(waiting.iter().all(|opened| !opened.get()));
            drop(held);
            while !waiting.iter().all(|opened| opened.get()) {
                crate::Host::sleep(&env, LOCK_EVERY).await;
            }
        });
        opened.expect("a core");
    }
}
