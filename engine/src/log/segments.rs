//! The files of a shard's log: made ready off the path of commits, found again at opening, used again.
//!
//! A file goes through *preparing* (allocated, its beginning written over once with zeros, header written, synced;
//! under a name that says so) and *ready* (renamed, the next to be written) to *current* and *full*. One
//! that is ready and was never written is taken over by the next opening, with a header of its own. One that
//! nobody needs any more is removed, or is *preparing* again, for another number and incarnation: it was
//! written already, and its first place for a batch is made zero, for that tells one in which
//! nothing was written; what lies behind that is of another incarnation.
//! What a file is stands in its header block, with which its name agrees. A file that has a segment's
//! name was whole once: without a valid header that says the same number, or cut short, it is damaged.

use std::collections::BTreeMap;
use std::rc::Rc;

use super::handles::Handle;
use crate::env::Env;
use crate::error::{Error, Result};
use crate::format::batch::Home;
use crate::format::segment::SegmentHeader;
use crate::format::superblock::Superblock;
use crate::ids::{Incarnation, SegmentNumber};
use crate::io::{Create, Disk, File, Mode, Open, PageBuf, write_all_at};
use crate::limits::Limits;

/// The file type of an environment's disk.
pub(crate) type FileOf<E> = <<E as Env>::Disk as Disk>::File;

/// One segment's file, open and locked where `F` is a file, and what its header says.
#[derive(Clone)]
pub(crate) struct Segment<F> {
    pub(crate) file: F,
    pub(crate) name: String,
    pub(crate) header: SegmentHeader,
    /// Whether it stays whatever is live in it: it holds batches that recovery gave up, which a repair may
    /// want.
    pub(crate) kept: bool,
    /// Where blocks begin, if it is the next to be written, that were never written to ([`super::ahead`]).
    pub(crate) written_to: u32,
    /// Whoever reads it holds one: while there is one besides this, its file stays what it is.
    pub(crate) pin: Rc<()>,
}

impl<F> Segment<F> {
    pub(crate) fn new(file: F, name: String, header: SegmentHeader) -> Self {
        Self { file, name, header, kept: false, written_to: 0, pin: Rc::default() }
    }

    /// Whether anybody reads it.
    pub(crate) fn is_pinned(&self) -> bool {
        Rc::strong_count(&self.pin) > 1
    }

    /// The same segment with something else for its file.
    pub(crate) fn with<G>(&self, file: G) -> Segment<G> {
        let Self { name, header, kept, written_to, pin, .. } = self;
        let (name, pin) = (name.clone(), pin.clone());
        Segment { file, name, header: *header, kept: *kept, written_to: *written_to, pin }
    }

    /// The same segment in the care of [`Segments`].
    pub(crate) fn kept(self) -> Segment<Handle<F>> {
        let Self { file, name, header, kept, written_to, pin } = self;
        Segment { file: Handle::open(file), name, header, kept, written_to, pin }
    }

    /// Where its batches belong.
    pub(crate) fn home(&self) -> Home {
        Home {
            store: self.header.store,
            shard: self.header.shard,
            incarnation: self.header.incarnation,
            block_bytes: self.header.block_bytes,
        }
    }
}

/// All segments of a shard by number.
pub(crate) type Segments<F> = BTreeMap<u32, Segment<Handle<F>>>;

/// The beginning of the names of a shard's segments.
pub(crate) fn name_prefix(shard: u16) -> String {
    format!("shard-{shard:04}-segment-")
}

/// The beginning of the names of segments that are being made.
fn preparing_prefix(shard: u16) -> String {
    format!("shard-{shard:04}-preparing-")
}

fn file_name(shard: u16, number: SegmentNumber) -> String {
    format!("{}{:010}", name_prefix(shard), number.0)
}

/// The number in a segment's name.
pub(crate) fn number_in_name(shard: u16, name: &str) -> Option<u32> {
    name.strip_prefix(&name_prefix(shard))?.parse().ok()
}

/// The number in the name of a segment that was not finished.
pub(crate) fn number_in_preparing(shard: u16, name: &str) -> Option<u32> {
    name.strip_prefix(&preparing_prefix(shard))?.parse().ok()
}

/// Bytes of the segment after one of `current` bytes, in a log whose segments have `log_bytes`: twice as many, for it
/// is made ready while half of the current one is written, and an eighth of the log at most.
pub(crate) fn next_bytes(current: u32, log_bytes: u64, limits: &Limits) -> u32 {
    let wanted = u32::try_from(log_bytes / 8).unwrap_or(u32::MAX).min(limits.segment_bytes_max);
    let wanted = wanted.min(current.saturating_mul(2));
    wanted.next_power_of_two().clamp(limits.segment_bytes_min, limits.segment_bytes_max)
}

/// The file of a segment that nobody needs any more: to be used again, under another name.
#[derive(Clone, Debug)]
pub(crate) struct Recycled {
    pub(crate) name: String,
    pub(crate) bytes: u32,
}

impl Recycled {
    /// Whether it is as large as the next segment should be, or about so.
    pub(crate) fn fits(&self, bytes: u32) -> bool {
        (bytes / 2..=bytes.saturating_mul(2)).contains(&self.bytes)
    }
}

impl<F> From<Segment<F>> for Recycled {
    fn from(segment: Segment<F>) -> Self {
        Self { name: segment.name, bytes: segment.header.bytes }
    }
}

/// What a segment is made of.
#[derive(Clone, Copy)]
pub(crate) enum Blocks<'a> {
    /// Blocks of its own, of which those of so many bytes are written over with zeros.
    New(u32),
    /// A file of as many bytes that was a segment before.
    Again(&'a Recycled),
}

/// Makes a segment ready to be written: real blocks, header, all durable.
///
/// Errors: `NoSpace`; `Retry` for anything else: nothing depends on the file yet, and it is removed
/// as far as possible.
pub(crate) async fn prepare<E: Env>(
    env: &E,
    superblock: &Superblock,
    shard: u16,
    number: SegmentNumber,
    bytes: u32,
    blocks: Blocks<'_>,
    limits: &Limits,
) -> Result<Segment<FileOf<E>>> {
    let name = file_name(shard, number);
    let header = SegmentHeader {
        store: superblock.store,
        shard,
        number,
        bytes,
        incarnation: Incarnation(env.random().max(1)),
        block_bytes: superblock.block_bytes,
    };
    let preparing = format!("{}{:010}", preparing_prefix(shard), number.0);
    let made = async {
        let file = match blocks {
            Blocks::Again(recycled) => {
                assert_eq!(recycled.bytes, bytes);
                write_again(env, recycled, &preparing, &header, limits).await?
            }
            Blocks::New(zeros) => write_new(env, &preparing, &header, zeros, limits).await?,
        };
        env.disk().rename(&preparing, &name).await?;
        env.disk().sync_dir().await?;
        Ok(file)
    };
    match made.await {
        Ok(file) => {
            let written_to = match blocks {
                Blocks::Again(_) => bytes,
                Blocks::New(zeros) => bytes.min(zeros),
            };
            Ok(Segment { written_to, ..Segment::new(file, name, header) })
        }
        Err(source) => {
            // Best effort: a file that stays is taken away by the next recovery.
            let _ = env.disk().remove(&preparing).await;
            let _ = env.disk().remove(&name).await;
            if let Blocks::Again(recycled) = blocks {
                let _ = env.disk().remove(&recycled.name).await;
            }
            Err(Error::making(format!("making segment {name} of {bytes} bytes ready"), source))
        }
    }
}

/// Takes over a segment that is ready and was never written: it becomes another one in the same place, so
/// that nobody who knew the old one can be taken for a writer of this one.
///
/// Errors: as [`prepare`].
pub(crate) async fn take_over<E: Env>(
    env: &E,
    spare: Segment<FileOf<E>>,
) -> Result<Segment<FileOf<E>>> {
    let header = SegmentHeader { incarnation: Incarnation(env.random().max(1)), ..spare.header };
    let segment = Segment { header, ..spare };
    match write_header(&segment.file, &header).await {
        Ok(()) => Ok(segment),
        Err(source) => {
            // Best effort: torn or whole, nothing is in it, and the next recovery sees that.
            let _ = env.disk().remove(&segment.name).await;
            Err(Error::making(format!("taking segment {} over", segment.name), source))
        }
    }
}

async fn write_header<F: File>(file: &F, header: &SegmentHeader) -> std::io::Result<()> {
    let mut block = PageBuf::zeroed(header.block_bytes);
    let encoded = header.encode();
    block[..encoded.len()].copy_from_slice(&encoded);
    write_all_at(file, block, 0, header.block_bytes).await.0
}

/// Takes a file for another segment. Its old name must be gone for good before its header changes: a file
/// that has a segment's name is that segment's.
async fn write_again<E: Env>(
    env: &E,
    recycled: &Recycled,
    name: &str,
    header: &SegmentHeader,
    limits: &Limits,
) -> std::io::Result<FileOf<E>> {
    let lock_wait = Some(limits.lock_wait);
    let open = Open { create: Create::Never, mode: Mode::Through, lock_wait };
    let file = env.disk().open(&recycled.name, open).await?;
    env.disk().rename(&recycled.name, name).await?;
    env.disk().sync_dir().await?;
    // The first place of a batch is zero until one is written, as in a new file: what lies behind it is of
    // another incarnation.
    let mut blocks = PageBuf::zeroed(2 * header.block_bytes);
    let encoded = header.encode();
    blocks[..encoded.len()].copy_from_slice(&encoded);
    write_all_at(&file, blocks, 0, header.block_bytes).await.0?;
    file.sync().await?;
    Ok(file)
}

async fn write_new<E: Env>(
    env: &E,
    name: &str,
    header: &SegmentHeader,
    zeros: u32,
    limits: &Limits,
) -> std::io::Result<FileOf<E>> {
    let open = Open { create: Create::New, mode: Mode::Through, lock_wait: Some(limits.lock_wait) };
    let file = env.disk().open(name, open).await?;
    file.allocate(u64::from(header.bytes)).await?;
    if zeros > 0 {
        let zeros = PageBuf::zeroed(header.bytes.min(zeros) as usize);
        write_all_at(&file, zeros, 0, header.block_bytes).await.0?;
    }
    write_header(&file, header).await?;
    file.sync().await?;
    Ok(file)
}
