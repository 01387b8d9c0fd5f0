//! The superblock: what a store is. One block at the start of the file `superblock`, written once,
//! when everything else that a new store needs is durable.
//!
//! | offset | size | field | range |
//! |---|---|---|---|
//! | 0 | 8 | magic `DORMOUSE` | |
//! | 8 | 2 | format version | 1 |
//! | 10 | 2 | shards | 1.. |
//! | 12 | 4 | crc32c of bytes 0..64, this field as zero | |
//! | 16 | 16 | store id | not zero |
//! | 32 | 4 | block bytes | power of two, 512..=4096 |
//! | 36 | 4 | reserved | 0 |
//! | 40 | 8 | created, ms since 1970 | |
//! | 48 | 16 | reserved | 0 |

use super::{
    Rejected, VERSION, all_zero, checked, crc_without, get, get_u16, get_u32, get_u64, len_u32, put,
};
use crate::ids::StoreId;

/// Bytes of a superblock.
pub const BYTES: usize = 64;
const MAGIC: [u8; 8] = *b"DORMOUSE";

/// What a store is; fixed when it is created.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// The store.
    pub store: StoreId,
    /// Number of shards.
    pub shards: u16,
    /// Alignment and unit of batches in bytes.
    pub block_bytes: usize,
    /// When it was created, in milliseconds since 1970.
    pub created_ms: u64,
}

impl Superblock {
    /// The superblock's bytes.
    pub fn encode(&self) -> [u8; BYTES] {
        assert!(self.shards > 0);
        let mut bytes = [0; BYTES];
        put(&mut bytes, 0, &MAGIC);
        put(&mut bytes, 8, &VERSION.to_le_bytes());
        put(&mut bytes, 10, &self.shards.to_le_bytes());
        put(&mut bytes, 16, &self.store.0.to_le_bytes());
        put(&mut bytes, 32, &len_u32(self.block_bytes).to_le_bytes());
        put(&mut bytes, 40, &self.created_ms.to_le_bytes());
        let crc = crc_without(&bytes, 12);
        put(&mut bytes, 12, &crc.to_le_bytes());
        bytes
    }

    /// Checks and reads a superblock from the start of `bytes`.
    pub fn decode(bytes: &[u8]) -> Result<Self, Rejected> {
        let bytes = checked(bytes, BYTES, &MAGIC)?;
        let block_bytes = get_u32(bytes, 32) as usize;
        if !block_bytes.is_power_of_two() || !(512..=4096).contains(&block_bytes) {
            return Err(Rejected::Malformed("block bytes"));
        }
        let store = u128::from_le_bytes(get(bytes, 16));
        if store == 0 || get_u16(bytes, 8) == 0 {
            return Err(Rejected::Malformed("store id or version"));
        }
        let shards = get_u16(bytes, 10);
        if shards == 0 || !all_zero(&bytes[36..40]) || !all_zero(&bytes[48..]) {
            return Err(Rejected::Malformed("shards or reserved bytes"));
        }
        let created_ms = get_u64(bytes, 40);
        Ok(Self { store: StoreId(store), shards, block_bytes, created_ms })
    }
}
