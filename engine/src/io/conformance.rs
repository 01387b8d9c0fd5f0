//! What every [`Disk`] must do, as one suite that runs on each of them.

use std::time::Duration;

use futures_util::future::join_all;

use super::{Create, Disk, File, Mode, Open, PageBuf, read_full_at, write_all_at};

const THROUGH: Open =
    Open { create: Create::IfAbsent, mode: Mode::Through, lock_wait: Some(Duration::from_secs(5)) };

/// Runs the suite in an empty directory.
///
/// # Panics
/// At the first thing that the disk does differently, saying which.
pub async fn run<D: Disk>(disk: &D) {
    assert!(disk.list().await.expect("list").is_empty(), "the suite wants an empty directory");
    names(disk).await;
    contents(disk).await;
    locks(disk).await;
    shrinking(disk).await;
    concurrency(disk).await;
    maps(disk).await;
    for name in disk.list().await.expect("list") {
        disk.remove(&name).await.expect("remove");
    }
}

fn filled(bytes: usize, fill: u8) -> PageBuf {
    let mut buf = PageBuf::zeroed(bytes);
    buf.fill(fill);
    buf
}

async fn names<D: Disk>(disk: &D) {
    let missing = disk.open("a", Open { create: Create::Never, ..THROUGH }).await;
    let kind = missing.err().map(|error| error.kind());
    assert_eq!(kind, Some(std::io::ErrorKind::NotFound), "opening what is not there");
    let file = disk.open("a", Open { create: Create::New, ..THROUGH }).await.expect("create");
    drop(file);
    let again = disk.open("a", Open { create: Create::New, ..THROUGH }).await;
    let kind = again.err().map(|error| error.kind());
    assert_eq!(kind, Some(std::io::ErrorKind::AlreadyExists), "creating what is there");
    drop(disk.open("b", THROUGH).await.expect("create"));
    assert_eq!(disk.list().await.expect("list"), ["a", "b"], "sorted");
    disk.rename("b", "a").await.expect("rename replaces");
    assert_eq!(disk.list().await.expect("list"), ["a"], "renamed");
    let kind = disk.remove("b").await.err().map(|error| error.kind());
    assert_eq!(kind, Some(std::io::ErrorKind::NotFound), "removing what is not there");
    disk.sync_dir().await.expect("sync_dir");
}

async fn contents<D: Disk>(disk: &D) {
    let block = disk.properties().block_bytes;
    let file = disk.open("a", THROUGH).await.expect("open");
    file.allocate(8 * block as u64).await.expect("allocate");
    assert_eq!(file.len().await.expect("len"), 8 * block as u64, "allocate sets the length");
    let (read, buf) = read_full_at(&file, filled(8 * block, 9), 0, block).await;
    assert_eq!(read.expect("read"), 8 * block);
    assert!(buf.iter().all(|byte| *byte == 0), "allocated bytes read as zero");

    let (written, buf) = write_all_at(&file, filled(3 * block, 1), block as u64, block).await;
    written.expect("write");
    assert_eq!(buf.len(), 3 * block, "the buffer comes back whole");
    file.sync().await.expect("sync");
    let (read, buf) = read_full_at(&file, PageBuf::zeroed(5 * block), 0, block).await;
    assert_eq!(read.expect("read"), 5 * block);
    for (index, chunk) in buf.chunks(block).enumerate() {
        let fill = u8::from((1..4).contains(&index));
        assert!(chunk.iter().all(|byte| *byte == fill), "block {index}");
    }
    let (read, _) = read_full_at(&file, PageBuf::zeroed(4 * block), 6 * block as u64, block).await;
    assert_eq!(read.expect("read"), 2 * block, "a read ends at the end of the file");
    let (read, _) = file.read_at(PageBuf::zeroed(block), 8 * block as u64).await;
    assert_eq!(read.expect("read"), 0, "nothing behind the end");

    let mut window = PageBuf::zeroed(2 * block);
    window.set_window(block..2 * block);
    window.fill(7);
    write_all_at(&file, window, 0, block).await.0.expect("write of a window");
    let (_, buf) = read_full_at(&file, PageBuf::zeroed(block), 0, block).await;
    assert!(buf.iter().all(|byte| *byte == 7), "the window was written");

    disk.remove("a").await.expect("remove while open");
    let (read, _) = read_full_at(&file, PageBuf::zeroed(block), 0, block).await;
    assert_eq!(read.expect("read"), block, "an open file outlives its name");
}

async fn locks<D: Disk>(disk: &D) {
    let file = disk.open("locked", THROUGH).await.expect("open");
    let busy = Open { lock_wait: Some(Duration::from_millis(20)), ..THROUGH };
    let kind = disk.open("locked", busy).await.err().map(|error| error.kind());
    assert_eq!(kind, Some(std::io::ErrorKind::WouldBlock), "a second opening is refused");
    let other = file.clone();
    drop(file);
    let kind = disk.open("locked", busy).await.err().map(|error| error.kind());
    assert_eq!(kind, Some(std::io::ErrorKind::WouldBlock), "a clone keeps the lock");
    drop(other);
    disk.open("locked", THROUGH).await.expect("the lock went with the last clone");
}

async fn shrinking<D: Disk>(disk: &D) {
    let block = disk.properties().block_bytes;
    let open = Open { create: Create::New, mode: Mode::Cached, lock_wait: None };
    let file = disk.open("shrunk", open).await.expect("open");
    file.allocate(8 * block as u64).await.expect("allocate");
    let (written, _) = write_all_at(&file, filled(8 * block, 1), 0, block).await;
    written.expect("write");
    for (shrunk, bytes) in [(9, 8), (3, 3)] {
        file.shrink(shrunk * block as u64).await.expect("shrink");
        file.sync().await.expect("sync");
        assert_eq!(file.len().await.expect("len"), bytes * block as u64);
    }
    let (read, buf) = read_full_at(&file, PageBuf::zeroed(8 * block), 0, block).await;
    assert_eq!(read.expect("read"), 3 * block);
    assert!(buf[..3 * block].iter().all(|byte| *byte == 1), "what is left stays");
    disk.remove("shrunk").await.expect("remove");
}

async fn concurrency<D: Disk>(disk: &D) {
    let block = disk.properties().block_bytes;
    let file = disk.open("many", THROUGH).await.expect("open");
    file.allocate(200 * block as u64).await.expect("allocate");
    let writes = (0..200_u8).map(|index| {
        write_all_at(&file, filled(block, index), u64::from(index) * block as u64, block)
    });
    for (result, _) in join_all(writes).await {
        result.expect("one of many writes");
    }
    let (read, buf) = read_full_at(&file, PageBuf::zeroed(200 * block), 0, block).await;
    assert_eq!(read.expect("read"), 200 * block);
    for (index, chunk) in buf.chunks(block).enumerate() {
        assert!(chunk.iter().all(|byte| usize::from(*byte) == index), "block {index}");
    }
}

async fn maps<D: Disk>(disk: &D) {
    let cached = Open { mode: Mode::Cached, ..THROUGH };
    let file = disk.open("mapped", cached).await.expect("open");
    let block = disk.properties().block_bytes;
    write_all_at(&file, filled(3 * block, 5), 0, block).await.0.expect("write");
    file.sync().await.expect("sync");
    let map = file.map().expect("map");
    assert_eq!(map.len(), 3 * block, "the whole file is mapped");
    assert!(map.iter().all(|byte| *byte == 5), "the mapping shows what was written");
}
