//! What lies on disk. Each module opens with its table of bytes.
//!
//! All numbers are little-endian. Reserved bytes are written as zero and must be zero. A decoder
//! gives nothing before magic, checksum, version, store, shard and bounds have been checked (E5),
//! and never panics on what it reads: every `decode` returns a [`Rejected`] that says why.
//!
//! Magic, version and checksum of superblock, segment and batch stay where they are, over the same
//! bytes, in every version to come: so a newer format is told from a damaged byte.

pub mod batch;
pub mod checkpoint;
pub mod entry;
pub mod frame;
pub mod page;
pub mod run;
pub mod segment;
pub mod superblock;
mod tag;

/// The format version that this code writes; a store of a newer one is refused by name.
pub const VERSION: u16 = 1;

/// Why bytes were not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Rejected {
    /// Fewer bytes than the structure has.
    Short,
    /// Another magic: nothing of this kind was ever written here, or it is gone.
    Magic,
    /// Written by a newer version of Dormouse.
    Version(u16),
    /// The checksum does not fit: torn or rotten.
    Checksum,
    /// Valid, but of another store, shard, segment incarnation or epoch.
    Foreign,
    /// The checksum fits, but a field lies outside its range.
    Malformed(&'static str),
}

impl std::fmt::Display for Rejected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Short => f.write_str("too few bytes"),
            Self::Magic => f.write_str("no such structure here"),
            Self::Version(version) => write!(f, "format version {version} is newer than {VERSION}"),
            Self::Checksum => f.write_str("checksum does not fit"),
            Self::Foreign => f.write_str("belongs to another store, shard or incarnation"),
            Self::Malformed(field) => write!(f, "{field} out of range"),
        }
    }
}

pub(crate) fn get<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("N bytes")
}

pub(crate) fn get_u16(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(get(bytes, at))
}

pub(crate) fn get_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(get(bytes, at))
}

pub(crate) fn get_u64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(get(bytes, at))
}

pub(crate) fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

/// crc32c of `bytes` with the four bytes at `at` taken as zero: how a structure covers itself.
pub(crate) fn crc_without(bytes: &[u8], at: usize) -> u32 {
    let crc = crc32c::crc32c(&bytes[..at]);
    let crc = crc32c::crc32c_append(crc, &[0; 4]);
    crc32c::crc32c_append(crc, &bytes[at + 4..])
}

/// What every header begins with, checked in this order: magic (8 bytes), a checksum (4, at 12)
/// over the `len` bytes of the header, version (2, at 8). Gives these bytes.
pub(crate) fn checked<'a>(
    bytes: &'a [u8],
    len: usize,
    magic: &[u8; 8],
) -> Result<&'a [u8], Rejected> {
    let bytes = bytes.get(..len).ok_or(Rejected::Short)?;
    if bytes[..8] != *magic {
        return Err(Rejected::Magic);
    }
    if get_u32(bytes, 12) != crc_without(bytes, 12) {
        return Err(Rejected::Checksum);
    }
    match get_u16(bytes, 8) {
        version if version > VERSION => Err(Rejected::Version(version)),
        _ => Ok(bytes),
    }
}

pub(crate) fn all_zero(bytes: &[u8]) -> bool {
    // In pieces that need no look at each byte by itself.
    bytes.chunks(256).all(|piece| piece.iter().fold(0, |any, byte| any | byte) == 0)
}

/// A length as the 32 bits that it has on disk; every bound of `Limits` fits.
pub(crate) fn len_u32(len: usize) -> u32 {
    u32::try_from(len).expect("lengths on disk have 32 bits")
}
