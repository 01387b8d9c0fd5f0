//! [`Disk`] over io_uring, through tokio-uring: the only file that names that crate.
//!
//! Reads, writes and syncs go through the ring, each in a task of its own, so that dropping the
//! caller's future drops no operation. What is rare (opening, listing, renaming, allocating)
//! goes to the blocking threads of a [`PosixDisk`]. Operations in flight are bounded below the
//! ring's size, and [`UringDisk::drain`] waits for all of them: a runtime must not be dropped
//! before, for it would free buffers that the kernel may still use.

use std::cell::Cell;
use std::io;
use std::path::Path;
use std::rc::Rc;

use futures_channel::oneshot;
use tokio_uring::buf::{IoBuf, IoBufMut};

use super::posix::{PosixDisk, PosixFile};
use super::{Disk, File, Open, PageBuf, Properties};
use crate::signal::Signal;

/// Operations in flight at most; the ring has 256 entries.
const IN_FLIGHT_MAX: usize = 128;

#[derive(Default)]
struct Flight {
    count: Cell<usize>,
    changed: Signal,
}

/// One directory, reached through the core's ring. Lives inside a tokio-uring runtime.
#[derive(Clone)]
pub struct UringDisk {
    posix: PosixDisk,
    flight: Rc<Flight>,
}

impl UringDisk {
    /// The disk of this directory, which is created if absent.
    ///
    /// Errors: the directory can't be made or written.
    pub fn new(dir: &Path) -> io::Result<Self> {
        Ok(Self { posix: PosixDisk::new(dir)?, flight: Rc::default() })
    }

    /// Operations in flight.
    pub fn in_flight(&self) -> usize {
        self.flight.count.get()
    }

    /// Returns when nothing is in flight.
    pub async fn drain(&self) {
        let flight = &self.flight;
        flight.changed.until(|| (flight.count.get() == 0).then_some(())).await;
    }
}

impl Disk for UringDisk {
    type File = UringFile;

    fn properties(&self) -> Properties {
        Properties { name: "uring", ..self.posix.properties() }
    }

    async fn open(&self, name: &str, open: Open) -> io::Result<UringFile> {
        let posix = self.posix.open(name, open).await?;
        // A duplicate shares the description, and so the lock that is on it (E8).
        let ring = tokio_uring::fs::File::from_std(posix.as_file().try_clone()?);
        Ok(UringFile { posix, ring: Rc::new(ring), flight: self.flight.clone() })
    }

    async fn list(&self) -> io::Result<Vec<String>> {
        self.posix.list().await
    }

    async fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.posix.rename(from, to).await
    }

    async fn remove(&self, name: &str) -> io::Result<()> {
        self.posix.remove(name).await
    }

    async fn sync_dir(&self) -> io::Result<()> {
        self.posix.sync_dir().await
    }
}

/// One file, reached through the core's ring.
#[derive(Clone)]
pub struct UringFile {
    posix: PosixFile,
    ring: Rc<tokio_uring::fs::File>,
    flight: Rc<Flight>,
}

impl UringFile {
    /// Runs an operation in a task of the runtime, once there is room in the ring.
    #[expect(clippy::disallowed_methods, reason = "the runtime's task owns the operation")]
    async fn start<T: 'static>(
        &self,
        op: impl AsyncFnOnce(Rc<tokio_uring::fs::File>) -> T + 'static,
    ) -> T {
        let flight = &self.flight;
        let room = || (flight.count.get() < IN_FLIGHT_MAX).then_some(());
        flight.changed.until(room).await;
        flight.count.set(flight.count.get() + 1);
        let (reply, result) = oneshot::channel();
        let (ring, flight) = (self.ring.clone(), self.flight.clone());
        tokio_uring::spawn(async move {
            let done = op(ring).await;
            flight.count.set(flight.count.get() - 1);
            flight.changed.notify();
            // Nobody may be waiting any more.
            let _ = reply.send(done);
        });
        result.await.expect("the task ends by replying")
    }
}

impl File for UringFile {
    type Map = memmap2::Mmap;

    async fn read_at(&self, buf: PageBuf, offset: u64) -> (io::Result<usize>, PageBuf) {
        self.start(async move |ring| ring.read_at(buf, offset).await).await
    }

    async fn write_at(&self, buf: PageBuf, offset: u64) -> (io::Result<usize>, PageBuf) {
        self.start(async move |ring| ring.write_at(buf, offset).submit().await).await
    }

    async fn sync(&self) -> io::Result<()> {
        self.start(async move |ring| ring.sync_data().await).await
    }

    async fn allocate(&self, bytes: u64) -> io::Result<()> {
        self.posix.allocate(bytes).await
    }

    async fn shrink(&self, bytes: u64) -> io::Result<()> {
        self.posix.shrink(bytes).await
    }

    async fn len(&self) -> io::Result<u64> {
        self.posix.len().await
    }

    fn map(&self) -> io::Result<memmap2::Mmap> {
        self.posix.map()
    }
}

#[expect(unsafe_code, reason = "the kernel reads the window")]
// SAFETY: the memory of a PageBuf does not move when the value does, and is all initialised.
unsafe impl IoBuf for PageBuf {
    fn stable_ptr(&self) -> *const u8 {
        self.as_window_ptr()
    }

    fn bytes_init(&self) -> usize {
        self.len()
    }

    fn bytes_total(&self) -> usize {
        self.len()
    }
}

#[expect(unsafe_code, reason = "the kernel writes the window")]
// SAFETY: as above, and whoever holds the buffer holds it alone.
unsafe impl IoBufMut for PageBuf {
    fn stable_mut_ptr(&mut self) -> *mut u8 {
        self.as_window_mut_ptr()
    }

    unsafe fn set_init(&mut self, _bytes: usize) {
        // The window is always initialised.
    }
}

/// A runtime whose thread has a ring, tried out with one operation.
///
/// Errors: why io_uring is not to be had here (in containers usually EPERM or ENOSYS).
pub(crate) fn runtime() -> io::Result<tokio_uring::Runtime> {
    let runtime = tokio_uring::Runtime::new(&tokio_uring::builder())?;
    runtime.block_on(async { tokio_uring::no_op().await })?;
    Ok(runtime)
}

/// Runs a future as a task of the runtime. Whoever wakes the runtime's main future makes it look for I/O
/// once more, in vain; a task is woken without a system call.
#[expect(clippy::disallowed_methods, reason = "the core itself is the task")]
pub(crate) async fn as_task<T: 'static>(future: impl Future<Output = T> + 'static) -> T {
    match tokio_uring::spawn(future).await {
        Ok(value) => value,
        Err(ended) => std::panic::resume_unwind(ended.into_panic()),
    }
}
