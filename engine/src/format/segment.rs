//! A segment's first block says what the file is; its name says nothing. Batches follow from the
//! second block on.
//!
//! | offset | size | field | range |
//! |---|---|---|---|
//! | 0 | 8 | magic `DMSEGMNT` | |
//! | 8 | 2 | format version | 1 |
//! | 10 | 2 | shard | |
//! | 12 | 4 | crc32c of bytes 0..64, this field as zero | |
//! | 16 | 16 | store id | |
//! | 32 | 4 | segment number | 1.. |
//! | 36 | 4 | segment bytes, header block included | |
//! | 40 | 8 | incarnation | not zero |
//! | 48 | 4 | block bytes | |
//! | 52 | 12 | reserved | 0 |

use super::{
    Rejected, VERSION, all_zero, checked, crc_without, get, get_u16, get_u32, get_u64, len_u32, put,
};
use crate::format::superblock::Superblock;
use crate::ids::{Incarnation, SegmentNumber, StoreId};

/// Bytes of a segment's header; the rest of its block is zero.
pub const BYTES: usize = 64;
const MAGIC: [u8; 8] = *b"DMSEGMNT";

/// What one use of a segment's file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// The store.
    pub store: StoreId,
    /// The shard.
    pub shard: u16,
    /// The place in the shard's log.
    pub number: SegmentNumber,
    /// Bytes of the file, this header's block included.
    pub bytes: u32,
    /// This use of the file.
    pub incarnation: Incarnation,
    /// Alignment and unit of its batches.
    pub block_bytes: usize,
}

impl SegmentHeader {
    /// The header's bytes.
    pub fn encode(&self) -> [u8; BYTES] {
        assert!(self.incarnation.0 != 0);
        assert!(self.number.0 != 0);
        let mut bytes = [0; BYTES];
        put(&mut bytes, 0, &MAGIC);
        put(&mut bytes, 8, &VERSION.to_le_bytes());
        put(&mut bytes, 10, &self.shard.to_le_bytes());
        put(&mut bytes, 16, &self.store.0.to_le_bytes());
        put(&mut bytes, 32, &self.number.0.to_le_bytes());
        put(&mut bytes, 36, &self.bytes.to_le_bytes());
        put(&mut bytes, 40, &self.incarnation.0.to_le_bytes());
        put(&mut bytes, 48, &len_u32(self.block_bytes).to_le_bytes());
        let crc = crc_without(&bytes, 12);
        put(&mut bytes, 12, &crc.to_le_bytes());
        bytes
    }

    /// Checks and reads a header of a segment of this shard.
    pub fn decode(bytes: &[u8], superblock: &Superblock, shard: u16) -> Result<Self, Rejected> {
        let bytes = checked(bytes, BYTES, &MAGIC)?;
        let header = Self {
            store: StoreId(u128::from_le_bytes(get(bytes, 16))),
            shard: get_u16(bytes, 10),
            number: SegmentNumber(get_u32(bytes, 32)),
            bytes: get_u32(bytes, 36),
            incarnation: Incarnation(get_u64(bytes, 40)),
            block_bytes: get_u32(bytes, 48) as usize,
        };
        if header.store != superblock.store || header.shard != shard {
            return Err(Rejected::Foreign);
        }
        if header.block_bytes != superblock.block_bytes
            || header.number.0 == 0
            || header.incarnation.0 == 0
            || !(header.bytes as usize).is_multiple_of(header.block_bytes)
            || header.bytes as usize <= header.block_bytes
            || !all_zero(&bytes[52..])
        {
            return Err(Rejected::Malformed("segment header"));
        }
        Ok(header)
    }
}
