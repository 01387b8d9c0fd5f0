//! The seam to the disk: [`Disk`] is one directory, [`File`] one file in it.
//!
//! Rules that every implementation keeps, checked by [`conformance`]:
//!
//! - **Buffers** are moved in and come back with the result, on success and on failure.
//! - **Short transfers** are normal: a result says how many bytes, at least one unless the file
//!   ended (read) or there is no room (write). [`read_full_at`] and [`write_all_at`] loop.
//! - **Dropped futures**: an operation that has begun goes on; only its result is lost.
//! - **Order**: none between operations in flight.
//! - **Durability**: a write to a file opened [`Mode::Through`] is durable when it returns. A
//!   write to a [`Mode::Cached`] file is durable once a [`File::sync`] that began after it has
//!   succeeded. A name (created, renamed, removed) is durable after [`Disk::sync_dir`], a length
//!   after [`File::sync`].
//! - **Locks**: `open` takes an exclusive lock on the very description through which the file is
//!   written, and waits for it (E8): a request that a dead process left in the kernel keeps the
//!   lock, so that no late write lands behind the back of the next owner.
//! - **Alignment**: offset, window start and window length of reads and writes of `Through` files
//!   are multiples of [`Properties::block_bytes`].

pub mod buf;
pub mod conformance;
pub mod posix;
#[cfg(all(target_os = "linux", not(dormouse_loom)))]
pub mod uring;
#[cfg(all(target_os = "linux", not(dormouse_loom)))]
pub mod watched;

use std::future::Future;
use std::io;
use std::ops::Deref;
use std::time::Duration;

pub use buf::PageBuf;

/// How a file is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Past the page cache where the file system allows it, each write durable when it returns.
    /// Never mapped.
    Through,
    /// Through the page cache; durable after `sync`. May be mapped.
    Cached,
}

/// Whether `open` may or must create the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Create {
    /// The file must exist.
    Never,
    /// The file must exist, and is only read: permission to do so is enough.
    ReadOnly,
    /// Created if absent.
    IfAbsent,
    /// The file must not exist.
    New,
}

/// How to open a file. Files are created with mode 0600.
#[derive(Clone, Copy, Debug)]
pub struct Open {
    /// Whether to create it.
    pub create: Create,
    /// How it is written.
    pub mode: Mode,
    /// How long to wait for the lock before failing with `WouldBlock`. `None`: it is not locked; for
    /// files that nobody writes to any more.
    pub lock_wait: Option<Duration>,
}

/// What a disk is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Properties {
    /// Alignment of reads and writes of [`Mode::Through`] files: a power of two, 512 to 4,096.
    pub block_bytes: usize,
    /// Whether reads of `Through` files see the device and not the page cache (E9).
    pub direct: bool,
    /// The implementation's name, for logs and statistics: `uring`, `posix` or `sim`.
    pub name: &'static str,
}

/// One directory: opens, lists, renames and removes its files. Cheap to clone; one core's.
pub trait Disk: Clone + 'static {
    /// A file of this disk.
    type File: File;

    /// What this disk is like.
    fn properties(&self) -> Properties;

    /// Opens `name` and, as `open` says, locks it.
    ///
    /// Errors: `NotFound`, `AlreadyExists`, `WouldBlock` (locked for all of `lock_wait`).
    fn open(&self, name: &str, open: Open) -> impl Future<Output = io::Result<Self::File>>;

    /// The names of all files, sorted. Directories are left out. Other cores make and remove files of
    /// theirs meanwhile; these may be there or not.
    fn list(&self) -> impl Future<Output = io::Result<Vec<String>>>;

    /// Renames a file, replacing `to`. Locks and open files are not affected.
    fn rename(&self, from: &str, to: &str) -> impl Future<Output = io::Result<()>>;

    /// Removes a name. Open files stay usable.
    fn remove(&self, name: &str) -> impl Future<Output = io::Result<()>>;

    /// Makes creations, renames and removals that returned before this call durable.
    fn sync_dir(&self) -> impl Future<Output = io::Result<()>>;
}

/// One open file. Cheap to clone; the lock, if it has one, goes with the last clone and the last
/// operation in flight.
#[expect(clippy::len_without_is_empty, reason = "a file's length, not a collection's")]
pub trait File: Clone + 'static {
    /// A read-only mapping.
    type Map: Deref<Target = [u8]>;

    /// Reads into the window of `buf`. Returns how many bytes; 0 only at the end of the file (or
    /// for an empty window).
    fn read_at(
        &self,
        buf: PageBuf,
        offset: u64,
    ) -> impl Future<Output = (io::Result<usize>, PageBuf)>;

    /// Writes the window of `buf`. Returns how many bytes.
    fn write_at(
        &self,
        buf: PageBuf,
        offset: u64,
    ) -> impl Future<Output = (io::Result<usize>, PageBuf)>;

    /// Makes contents and length durable: all writes that returned before this call.
    fn sync(&self) -> impl Future<Output = io::Result<()>>;

    /// Takes real blocks for `0..bytes` and makes the file at least that long; new bytes read as
    /// zero. Errors: `StorageFull`.
    fn allocate(&self, bytes: u64) -> impl Future<Output = io::Result<()>>;

    /// Cuts the file where it is longer than this, and gives its blocks behind that back.
    fn shrink(&self, bytes: u64) -> impl Future<Output = io::Result<()>>;

    /// The file's length in bytes.
    fn len(&self) -> impl Future<Output = io::Result<u64>>;

    /// Maps the whole file; map and file are advised for random access. Only for [`Mode::Cached`] files.
    fn map(&self) -> io::Result<Self::Map>;
}

/// Reads until the window of `buf` is full or the file ends; returns how many bytes were read.
/// The window is as before afterwards. A read that does not get on before the file ends is an error:
/// fewer bytes always mean a shorter file.
pub async fn read_full_at<F: File>(
    file: &F,
    buf: PageBuf,
    offset: u64,
    block_bytes: usize,
) -> (io::Result<usize>, PageBuf) {
    let wanted = buf.len();
    let (result, buf) =
        transfer(buf, block_bytes, async |buf, done| file.read_at(buf, offset + done).await).await;
    let done = match result {
        Ok(done) if done < wanted => done,
        result => return (result, buf),
    };
    let result = file.len().await.and_then(|len| match offset + done as u64 >= len {
        true => Ok(done),
        false => Err(io::Error::other(format!("read {done} of {wanted} bytes at {offset}"))),
    });
    (result, buf)
}

/// Writes the whole window of `buf`; a write that does not get on is `WriteZero`. The window is as
/// before afterwards.
pub async fn write_all_at<F: File>(
    file: &F,
    buf: PageBuf,
    offset: u64,
    block_bytes: usize,
) -> (io::Result<()>, PageBuf) {
    let wanted = buf.len();
    let (result, buf) =
        transfer(buf, block_bytes, async |buf, done| file.write_at(buf, offset + done).await).await;
    let result = result.and_then(|written| match written == wanted {
        true => Ok(()),
        false => Err(io::Error::new(
            io::ErrorKind::WriteZero,
            format!("wrote {written} of {wanted} bytes at {offset}"),
        )),
    });
    (result, buf)
}

/// How often a transfer may end at the same place inside a block before that is the end.
const STALLS_MAX: u32 = 16;

/// Repeats `step` on what is left of the window until it is done, ends, fails or stops advancing.
/// A transfer that ends inside a block is repeated from that block's start; it may come no further
/// by chance, so it is tried some times.
async fn transfer(
    mut buf: PageBuf,
    block_bytes: usize,
    step: impl AsyncFn(PageBuf, u64) -> (io::Result<usize>, PageBuf),
) -> (io::Result<usize>, PageBuf) {
    assert!(block_bytes.is_power_of_two());
    let window = buf.window();
    let (mut done, mut stalls) = (0, 0);
    let result = loop {
        let aligned = done - done % block_bytes;
        buf.set_window(window.start + aligned..window.end);
        let (result, returned) = step(buf, aligned as u64).await;
        buf = returned;
        match result {
            Ok(bytes) if aligned + bytes > done => (done, stalls) = (aligned + bytes, 0),
            Ok(bytes) if bytes == 0 || stalls == STALLS_MAX => break Ok(done),
            Ok(_) => stalls += 1,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => break Err(error),
        }
        if done == window.len() {
            break Ok(done);
        }
    };
    buf.set_window(window);
    (result, buf)
}
