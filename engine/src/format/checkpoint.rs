//! A checkpoint: what a shard's directory is made of as of one durable batch, and which files that
//! needs. It lies in one of two slots of the shard's manifest; the valid one of the higher
//! generation is the truth.
//!
//! | offset | size | field | range |
//! |---|---|---|---|
//! | 0 | 8 | magic `DMCHECKP` | |
//! | 8 | 2 | format version | 1 |
//! | 10 | 2 | shard | |
//! | 12 | 4 | crc32c of all bytes of the checkpoint, this field as zero | |
//! | 16 | 16 | store id | |
//! | 32 | 8 | generation | 1.. |
//! | 40 | 4 | bytes of the checkpoint | |
//! | 44 | 4 | epoch of the last batch | 1.. |
//! | 48 | 8 | the last batch's sequence number | 1.. |
//! | 56 | 4 | its header's checksum | |
//! | 60 | 4 | number of the segment that it lies in | 1.. |
//! | 64 | 4 | offset where it ends | |
//! | 68 | 4 | segments | 1.. |
//! | 72 | 8 | next version | 1.. |
//! | 80 | 8 | objects | |
//! | 88 | 8 | bytes of all batches of the log so far | |
//! | 96 | 8 | wall clock, ms since 1970 | |
//! | 104 | 4 | runs | |
//! | 108 | 4 | next run's number | 1.. |
//! | 112 | 4 | bytes of a slot: where the second one begins, whatever the file's length | 1.. |
//! | 116 | 4 | flags: 1 live bytes may be too many | |
//! | 120 | 4 | namespaces | |
//! | 124 | 4 | reserved | 0 |
//! | 128 | 24 each | segments: number (4), bytes (4), live bytes (4; the highest bit: kept), newest commit in s since 1970 (4), incarnation (8) | numbers rise |
//! | | 24 each | runs, newest first: number (4), blocks of entries (4), of alarms (4), 0 (4), incarnation (8) | |
//! | | 16 each | what the objects of a namespace need: its tag (8), bytes (8) | tags rise; no bytes are 0 |
//!
//! Segments behind that of the last batch are not in the list: replay finds them.

use super::{
    Rejected, VERSION, all_zero, crc_without, get, get_u16, get_u32, get_u64, len_u32, put,
};
use crate::ids::{Epoch, Incarnation, NamespaceTag, SegmentNumber, Sequence, StoreId};

/// Bytes of a checkpoint before its lists.
pub const HEADER_BYTES: usize = 128;
const SEGMENT_BYTES: usize = 24;
const RUN_BYTES: usize = 24;
/// Bytes that it takes to keep what one namespace holds.
pub const NAMESPACE_BYTES: usize = 16;
const MAGIC: [u8; 8] = *b"DMCHECKP";
/// Set beside the live bytes of a segment; segments have fewer.
const KEPT: u32 = 1 << 31;

/// A segment that a checkpoint needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentRef {
    /// Its number.
    pub number: SegmentNumber,
    /// Its file's bytes.
    pub bytes: u32,
    /// Bytes of the frames in it that an object needs (`live`).
    pub live_bytes: u32,
    /// Whether it is kept whatever is live: it holds batches that recovery gave up, which a repair may
    /// want.
    pub kept: bool,
    /// When its newest commit was made by the wall clock, seconds since 1970.
    pub newest_s: u32,
    /// This use of its file.
    pub incarnation: Incarnation,
}

/// A run that a checkpoint needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunRef {
    /// Its number.
    pub number: u32,
    /// Blocks of entries: with this the run is read though its header is damaged.
    pub entry_blocks: u32,
    /// Blocks of alarms.
    pub alarm_blocks: u32,
    /// This use of its file.
    pub incarnation: Incarnation,
}

/// What one slot says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Raised by each checkpoint.
    pub generation: u64,
    /// Epoch of the last batch that it holds.
    pub epoch: Epoch,
    /// That batch.
    pub last: Sequence,
    /// Its header's checksum.
    pub last_crc: u32,
    /// The segment that it lies in.
    pub segment: SegmentNumber,
    /// Where it ends, and replay begins.
    pub offset: u32,
    /// Versions from here on were not used.
    pub next_version: u64,
    /// Objects that exist.
    pub objects: u64,
    /// Bytes of all batches of the log so far.
    pub log_bytes: u64,
    /// When it was made, in milliseconds since 1970.
    pub wall_ms: u64,
    /// The number of the next run.
    pub next_run: u32,
    /// Bytes of each slot of the manifest.
    pub slot_bytes: u32,
    /// Whether live bytes may be counted that are not: of an object that was too large to be consolidated.
    pub inexact: bool,
    /// The segments that it needs, by number.
    pub segments: Vec<SegmentRef>,
    /// The runs that it needs, newest first.
    pub runs: Vec<RunRef>,
    /// Bytes of the log that the objects of each namespace need, by rising tags.
    pub namespaces: Vec<(NamespaceTag, u64)>,
}

impl Checkpoint {
    /// Bytes of its encoding.
    pub fn bytes(&self) -> usize {
        let files = self.segments.len() * SEGMENT_BYTES + self.runs.len() * RUN_BYTES;
        HEADER_BYTES + files + self.namespaces.len() * NAMESPACE_BYTES
    }

    /// Writes it to the start of `out`, which has room for [`Checkpoint::bytes`].
    pub fn encode(&self, out: &mut [u8], store: StoreId, shard: u16) {
        let out = &mut out[..self.bytes()];
        out.fill(0);
        put(out, 0, &MAGIC);
        put(out, 8, &VERSION.to_le_bytes());
        put(out, 10, &shard.to_le_bytes());
        put(out, 16, &store.0.to_le_bytes());
        put(out, 32, &self.generation.to_le_bytes());
        put(out, 40, &len_u32(out.len()).to_le_bytes());
        put(out, 44, &self.epoch.0.to_le_bytes());
        put(out, 48, &self.last.0.to_le_bytes());
        put(out, 56, &self.last_crc.to_le_bytes());
        put(out, 60, &self.segment.0.to_le_bytes());
        put(out, 64, &self.offset.to_le_bytes());
        put(out, 68, &len_u32(self.segments.len()).to_le_bytes());
        put(out, 72, &self.next_version.to_le_bytes());
        put(out, 80, &self.objects.to_le_bytes());
        put(out, 88, &self.log_bytes.to_le_bytes());
        put(out, 96, &self.wall_ms.to_le_bytes());
        put(out, 104, &len_u32(self.runs.len()).to_le_bytes());
        put(out, 108, &self.next_run.to_le_bytes());
        put(out, 112, &self.slot_bytes.to_le_bytes());
        put(out, 116, &u32::from(self.inexact).to_le_bytes());
        put(out, 120, &len_u32(self.namespaces.len()).to_le_bytes());
        let mut at = HEADER_BYTES;
        for segment in &self.segments {
            put(out, at, &segment.number.0.to_le_bytes());
            put(out, at + 4, &segment.bytes.to_le_bytes());
            assert!(segment.live_bytes & KEPT == 0);
            let live = segment.live_bytes | if segment.kept { KEPT } else { 0 };
            put(out, at + 8, &live.to_le_bytes());
            put(out, at + 12, &segment.newest_s.to_le_bytes());
            put(out, at + 16, &segment.incarnation.0.to_le_bytes());
            at += SEGMENT_BYTES;
        }
        for run in &self.runs {
            put(out, at, &run.number.to_le_bytes());
            put(out, at + 4, &run.entry_blocks.to_le_bytes());
            put(out, at + 8, &run.alarm_blocks.to_le_bytes());
            put(out, at + 16, &run.incarnation.0.to_le_bytes());
            at += RUN_BYTES;
        }
        for (tag, bytes) in &self.namespaces {
            put(out, at, &tag.0.to_le_bytes());
            put(out, at + 8, &bytes.to_le_bytes());
            at += NAMESPACE_BYTES;
        }
        let crc = crc_without(out, 12);
        put(out, 12, &crc.to_le_bytes());
    }

    /// Checks and reads a checkpoint of this store and shard from the start of a slot.
    pub fn decode(bytes: &[u8], store: StoreId, shard: u16) -> Result<Self, Rejected> {
        let header = bytes.get(..HEADER_BYTES).ok_or(Rejected::Short)?;
        if header[..8] != MAGIC {
            return Err(Rejected::Magic);
        }
        let len = get_u32(header, 40) as usize;
        let bytes = bytes.get(..len.max(HEADER_BYTES)).ok_or(Rejected::Short)?;
        if get_u32(bytes, 12) != crc_without(bytes, 12) {
            return Err(Rejected::Checksum);
        }
        if get_u16(bytes, 8) > VERSION {
            return Err(Rejected::Version(get_u16(bytes, 8)));
        }
        if u128::from_le_bytes(get(bytes, 16)) != store.0 || get_u16(bytes, 10) != shard {
            return Err(Rejected::Foreign);
        }
        let Lists { segments, runs, namespaces } = lists(bytes)?;
        let checkpoint = Self {
            generation: get_u64(bytes, 32),
            epoch: Epoch(get_u32(bytes, 44)),
            last: Sequence(get_u64(bytes, 48)),
            last_crc: get_u32(bytes, 56),
            segment: SegmentNumber(get_u32(bytes, 60)),
            offset: get_u32(bytes, 64),
            next_version: get_u64(bytes, 72),
            objects: get_u64(bytes, 80),
            log_bytes: get_u64(bytes, 88),
            wall_ms: get_u64(bytes, 96),
            next_run: get_u32(bytes, 108),
            slot_bytes: get_u32(bytes, 112),
            inexact: bytes[116] != 0,
            segments,
            runs,
            namespaces,
        };
        let counted = checkpoint.namespaces.iter();
        let counted = counted.clone().all(|(tag, bytes)| *tag != NamespaceTag::NONE && *bytes > 0)
            && counted.is_sorted_by(|(one, _), (next, _)| one < next);
        let rises = checkpoint.segments.is_sorted_by(|one, next| one.number < next.number);
        let last = checkpoint.segments.last().map(|segment| segment.number);
        if checkpoint.generation == 0
            || checkpoint.epoch.0 == 0
            || checkpoint.last.0 == 0
            || checkpoint.next_version == 0
            || !rises
            || !counted
            || last != Some(checkpoint.segment)
            || (checkpoint.slot_bytes as usize) < bytes.len()
            || bytes[116] > 1
            || !all_zero(&bytes[117..120])
            || !all_zero(&bytes[124..128])
        {
            return Err(Rejected::Malformed("checkpoint"));
        }
        Ok(checkpoint)
    }
}

struct Lists {
    segments: Vec<SegmentRef>,
    runs: Vec<RunRef>,
    namespaces: Vec<(NamespaceTag, u64)>,
}

fn lists(bytes: &[u8]) -> Result<Lists, Rejected> {
    let bytes_of = |at, each| (get_u32(bytes, at) as usize).saturating_mul(each);
    let segments_bytes = bytes_of(68, SEGMENT_BYTES);
    let runs_bytes = bytes_of(104, RUN_BYTES);
    let files_bytes = segments_bytes.saturating_add(runs_bytes);
    let wanted = files_bytes.saturating_add(bytes_of(120, NAMESPACE_BYTES));
    if HEADER_BYTES.saturating_add(wanted) != bytes.len() {
        return Err(Rejected::Malformed("checkpoint bytes"));
    }
    let (segments, rest) = bytes[HEADER_BYTES..].split_at(segments_bytes);
    let (runs, namespaces) = rest.split_at(runs_bytes);
    let segments = segments.chunks_exact(SEGMENT_BYTES).map(|bytes| SegmentRef {
        number: SegmentNumber(get_u32(bytes, 0)),
        bytes: get_u32(bytes, 4),
        live_bytes: get_u32(bytes, 8) & !KEPT,
        kept: get_u32(bytes, 8) & KEPT != 0,
        newest_s: get_u32(bytes, 12),
        incarnation: Incarnation(get_u64(bytes, 16)),
    });
    let runs = runs.chunks_exact(RUN_BYTES).map(|bytes| RunRef {
        number: get_u32(bytes, 0),
        entry_blocks: get_u32(bytes, 4),
        alarm_blocks: get_u32(bytes, 8),
        incarnation: Incarnation(get_u64(bytes, 16)),
    });
    let namespaces = namespaces.chunks_exact(NAMESPACE_BYTES);
    let namespaces = namespaces.map(|bytes| (NamespaceTag(get_u64(bytes, 0)), get_u64(bytes, 8)));
    let (segments, runs) = (segments.collect(), runs.collect());
    Ok(Lists { segments, runs, namespaces: namespaces.collect() })
}
