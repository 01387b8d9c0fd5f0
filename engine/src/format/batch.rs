//! A batch: what one write of the log carries. It starts and ends on a block.
//!
//! | part | bytes |
//! |---|---|
//! | header | 128 |
//! | table of object ids | 32 each, in order of the frames |
//! | frames | see [`super::frame`] |
//! | padding | zero |
//! | table again | as above |
//! | trailer | 48, ending with the batch |
//!
//! Header:
//!
//! | offset | size | field | range |
//! |---|---|---|---|
//! | 0 | 8 | magic `DMSBATCH` | |
//! | 8 | 2 | format version | 1 |
//! | 10 | 2 | flags: 1 fence, 2 close | |
//! | 12 | 4 | crc32c of the header, this field as zero | |
//! | 16 | 16 | store id | |
//! | 32 | 2 | shard | |
//! | 34 | 2 | reserved | 0 |
//! | 36 | 4 | epoch | 1.. |
//! | 40 | 8 | segment incarnation | |
//! | 48 | 8 | sequence number | 1.. |
//! | 56 | 4 | crc of the previous batch's header; 0 for the first | |
//! | 60 | 4 | ids in the table | |
//! | 64 | 8 | highest sequence number known durable | below its own |
//! | 72 | 4 | bytes of the batch | multiple of the block |
//! | 76 | 4 | bytes of the frames | |
//! | 80 | 4 | crc32c of all bytes after the header | |
//! | 84 | 4 | crc32c of the table | |
//! | 88 | 8 | wall clock, ms since 1970 | |
//! | 96 | 4 | offset in the segment: a batch elsewhere was misdirected | |
//! | 100 | 28 | reserved | 0 |
//!
//! A *fence* opens the log of a new epoch: its sequence number and previous checksum name the last
//! batch that recovery accepted, and whatever an older epoch wrote behind that is dead. A *close*
//! has no frames; it vouches for all before it. The trailer lets the table be found when the
//! header is lost (E6):
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 8 | magic `DMSTRAIL` |
//! | 8 | 8 | segment incarnation |
//! | 16 | 8 | sequence number |
//! | 24 | 4 | bytes of the batch |
//! | 28 | 4 | ids in the table |
//! | 32 | 4 | crc32c of the table |
//! | 36 | 4 | epoch |
//! | 40 | 4 | crc32c of the trailer, this field as zero |
//! | 44 | 4 | reserved, 0 |

use super::{
    Rejected, VERSION, all_zero, checked, crc_without, get, get_u16, get_u32, get_u64, len_u32, put,
};
use crate::ids::{Epoch, Incarnation, ObjectId, Sequence, StoreId};

/// Bytes of a batch's header.
pub const HEADER_BYTES: usize = 128;
/// Bytes of a batch's trailer.
pub const TRAILER_BYTES: usize = 48;
const MAGIC: [u8; 8] = *b"DMSBATCH";
const TRAILER_MAGIC: [u8; 8] = *b"DMSTRAIL";
const FLAG_FENCE: u16 = 1;
const FLAG_CLOSE: u16 = 2;

/// What a batch is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Carries commits.
    Commits,
    /// Opens an epoch.
    Fence,
    /// Vouches for all before it.
    Close,
}

/// Where a batch belongs: the same for all batches of one segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Home {
    /// The store.
    pub store: StoreId,
    /// The shard.
    pub shard: u16,
    /// This use of the segment's file.
    pub incarnation: Incarnation,
    /// Alignment and unit of batches.
    pub block_bytes: usize,
}

/// A batch's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchHeader {
    /// What the batch is for.
    pub role: Role,
    /// The shard's life in which it was written.
    pub epoch: Epoch,
    /// Its place in the log.
    pub sequence: Sequence,
    /// Header checksum of the batch before it.
    pub previous_crc: u32,
    /// Highest sequence number that was durable when it was sealed.
    pub durable: Sequence,
    /// Bytes of the whole batch.
    pub bytes: u32,
    /// Ids in its table.
    pub ids: u32,
    /// Bytes of its frames.
    pub frames_bytes: u32,
    /// Wall clock when it was sealed, ms since 1970.
    pub wall_ms: u64,
    /// Checksum of the table.
    pub table_crc: u32,
    /// Checksum of all that follows the header.
    pub body_crc: u32,
    /// Checksum of this header.
    pub crc: u32,
}

impl BatchHeader {
    /// Checks and reads the header of a batch that begins with `bytes`, at `offset` of its segment;
    /// everything but the body.
    pub fn decode(bytes: &[u8], home: &Home, offset: usize) -> Result<Self, Rejected> {
        let bytes = checked(bytes, HEADER_BYTES, &MAGIC)?;
        if u128::from_le_bytes(get(bytes, 16)) != home.store.0
            || get_u16(bytes, 32) != home.shard
            || get_u64(bytes, 40) != home.incarnation.0
            || get_u32(bytes, 96) as usize != offset
        {
            return Err(Rejected::Foreign);
        }
        let role = match get_u16(bytes, 10) {
            0 => Role::Commits,
            FLAG_FENCE => Role::Fence,
            FLAG_CLOSE => Role::Close,
            _ => return Err(Rejected::Malformed("batch flags")),
        };
        let header = Self {
            role,
            epoch: Epoch(get_u32(bytes, 36)),
            sequence: Sequence(get_u64(bytes, 48)),
            previous_crc: get_u32(bytes, 56),
            ids: get_u32(bytes, 60),
            durable: Sequence(get_u64(bytes, 64)),
            bytes: get_u32(bytes, 72),
            frames_bytes: get_u32(bytes, 76),
            body_crc: get_u32(bytes, 80),
            table_crc: get_u32(bytes, 84),
            wall_ms: get_u64(bytes, 88),
            crc: get_u32(bytes, 12),
        };
        if !all_zero(&bytes[100..]) || !all_zero(&bytes[34..36]) {
            return Err(Rejected::Malformed("reserved bytes"));
        }
        header.check_bounds(home)?;
        Ok(header)
    }

    fn check_bounds(&self, home: &Home) -> Result<(), Rejected> {
        let bytes = self.bytes as usize;
        if bytes == 0 || !bytes.is_multiple_of(home.block_bytes) {
            return Err(Rejected::Malformed("batch bytes"));
        }
        let table = (self.ids as usize).saturating_mul(ObjectId::BYTES);
        let needed = HEADER_BYTES
            .saturating_add(table.saturating_mul(2))
            .saturating_add(self.frames_bytes as usize)
            .saturating_add(TRAILER_BYTES);
        if needed > bytes {
            return Err(Rejected::Malformed("table or frames"));
        }
        if self.epoch.0 == 0 || self.sequence.0 == 0 || self.durable >= self.sequence {
            return Err(Rejected::Malformed("epoch or sequence"));
        }
        Ok(())
    }

    /// Checks the whole batch against its body's checksum.
    pub fn check_body(&self, batch: &[u8]) -> Result<(), Rejected> {
        let batch = batch.get(..self.bytes as usize).ok_or(Rejected::Short)?;
        match crc32c::crc32c(&batch[HEADER_BYTES..]) == self.body_crc {
            true => Ok(()),
            false => Err(Rejected::Checksum),
        }
    }

    /// The ids in the table at the batch's head, if they are whole; the body need not be.
    pub fn table(&self, batch: &[u8]) -> Result<Vec<ObjectId>, Rejected> {
        let end = HEADER_BYTES + self.ids as usize * ObjectId::BYTES;
        let table = batch.get(HEADER_BYTES..end).ok_or(Rejected::Short)?;
        read_table(table, self.table_crc)
    }

    /// Where the frames lie in the batch.
    pub fn frames(&self) -> std::ops::Range<usize> {
        let start = HEADER_BYTES + self.ids as usize * ObjectId::BYTES;
        start..start + self.frames_bytes as usize
    }
}

fn read_table(table: &[u8], crc: u32) -> Result<Vec<ObjectId>, Rejected> {
    if crc32c::crc32c(table) != crc {
        return Err(Rejected::Checksum);
    }
    Ok(table.chunks_exact(ObjectId::BYTES).map(|id| ObjectId::from_bytes(get(id, 0))).collect())
}

/// What a trailer says about a batch whose header may be lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trailer {
    /// The batch's place in the log.
    pub sequence: Sequence,
    /// Its epoch.
    pub epoch: Epoch,
    /// Its bytes; it ends where the trailer ends.
    pub bytes: u32,
    /// The ids of its table.
    pub ids: Vec<ObjectId>,
}

impl Trailer {
    /// Checks and reads the trailer, and the table before it, at the end of `bytes`.
    pub fn decode(bytes: &[u8], home: &Home) -> Result<Self, Rejected> {
        let at = bytes.len().checked_sub(TRAILER_BYTES).ok_or(Rejected::Short)?;
        let trailer = &bytes[at..];
        if trailer[..8] != TRAILER_MAGIC {
            return Err(Rejected::Magic);
        }
        if get_u32(trailer, 40) != crc_without(trailer, 40) {
            return Err(Rejected::Checksum);
        }
        if get_u64(trailer, 8) != home.incarnation.0 {
            return Err(Rejected::Foreign);
        }
        let table_bytes = (get_u32(trailer, 28) as usize).saturating_mul(ObjectId::BYTES);
        let table = at.checked_sub(table_bytes).ok_or(Rejected::Short)?;
        Ok(Self {
            sequence: Sequence(get_u64(trailer, 16)),
            epoch: Epoch(get_u32(trailer, 36)),
            bytes: get_u32(trailer, 24),
            ids: read_table(&bytes[table..at], get_u32(trailer, 32))?,
        })
    }
}

/// Bytes of a batch with so many ids and bytes of frames.
pub fn batch_bytes(ids: usize, frames_bytes: usize, block_bytes: usize) -> usize {
    (HEADER_BYTES + 2 * ids * ObjectId::BYTES + frames_bytes + TRAILER_BYTES)
        .next_multiple_of(block_bytes)
}

/// What [`seal`] writes into a batch beside its frames.
#[derive(Clone, Copy, Debug)]
pub struct Seal {
    /// What the batch is for.
    pub role: Role,
    /// Its epoch.
    pub epoch: Epoch,
    /// Its sequence number.
    pub sequence: Sequence,
    /// Header checksum of the batch before it.
    pub previous_crc: u32,
    /// Highest sequence number known durable.
    pub durable: Sequence,
    /// Wall clock, ms since 1970.
    pub wall_ms: u64,
    /// Where in its segment it begins.
    pub offset: u32,
}

/// Writes header, tables, padding and trailer around frames that already lie in `batch` behind
/// the room for header and table. Returns the header's checksum.
///
/// Shapes: `batch` is exactly [`batch_bytes`] long.
pub fn seal(
    batch: &mut [u8],
    home: &Home,
    seal: &Seal,
    ids: &[ObjectId],
    frames_bytes: usize,
) -> u32 {
    assert_eq!(batch.len(), batch_bytes(ids.len(), frames_bytes, home.block_bytes));
    let table_bytes = ids.len() * ObjectId::BYTES;
    let trailer_at = batch.len() - TRAILER_BYTES;
    let tail_at = trailer_at - table_bytes;
    batch[HEADER_BYTES + table_bytes + frames_bytes..tail_at].fill(0);
    for (index, id) in ids.iter().enumerate() {
        put(batch, HEADER_BYTES + index * ObjectId::BYTES, id.as_bytes());
        put(batch, tail_at + index * ObjectId::BYTES, id.as_bytes());
    }
    let table_crc = crc32c::crc32c(&batch[tail_at..trailer_at]);
    let bytes = len_u32(batch.len());

    let trailer = &mut batch[trailer_at..];
    trailer.fill(0);
    put(trailer, 0, &TRAILER_MAGIC);
    put(trailer, 8, &home.incarnation.0.to_le_bytes());
    put(trailer, 16, &seal.sequence.0.to_le_bytes());
    put(trailer, 24, &bytes.to_le_bytes());
    put(trailer, 28, &len_u32(ids.len()).to_le_bytes());
    put(trailer, 32, &table_crc.to_le_bytes());
    put(trailer, 36, &seal.epoch.0.to_le_bytes());
    let crc = crc_without(trailer, 40);
    put(trailer, 40, &crc.to_le_bytes());

    let (header, body) = batch.split_at_mut(HEADER_BYTES);
    let flags = match seal.role {
        Role::Commits => 0,
        Role::Fence => FLAG_FENCE,
        Role::Close => FLAG_CLOSE,
    };
    header.fill(0);
    put(header, 0, &MAGIC);
    put(header, 8, &VERSION.to_le_bytes());
    put(header, 10, &flags.to_le_bytes());
    put(header, 16, &home.store.0.to_le_bytes());
    put(header, 32, &home.shard.to_le_bytes());
    put(header, 36, &seal.epoch.0.to_le_bytes());
    put(header, 40, &home.incarnation.0.to_le_bytes());
    put(header, 48, &seal.sequence.0.to_le_bytes());
    put(header, 56, &seal.previous_crc.to_le_bytes());
    put(header, 60, &len_u32(ids.len()).to_le_bytes());
    put(header, 64, &seal.durable.0.to_le_bytes());
    put(header, 72, &bytes.to_le_bytes());
    put(header, 76, &len_u32(frames_bytes).to_le_bytes());
    put(header, 80, &crc32c::crc32c(body).to_le_bytes());
    put(header, 84, &table_crc.to_le_bytes());
    put(header, 88, &seal.wall_ms.to_le_bytes());
    put(header, 96, &seal.offset.to_le_bytes());
    let crc = crc_without(header, 12);
    put(header, 12, &crc.to_le_bytes());
    crc
}
