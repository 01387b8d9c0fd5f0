//! A frame: one self-describing record of one object.
//!
//! | offset | size | field | range |
//! |---|---|---|---|
//! | 0 | 4 | bytes of the frame | multiple of 8 |
//! | 4 | 4 | crc32c of its place (incarnation, offset in the segment) and of bytes 0..4 and 8.. | |
//! | 8 | 1 | kind: 1 delta, 2 image, 3 page, 4 value, 5 note | |
//! | 9 | 1 | reserved | 0 |
//! | 10 | 2 | flags: 1 part, 2 chain, 4 rewrite; the rest reserved, refused by readers | |
//! | 12 | 4 | bytes of the payload | |
//! | 16 | 32 | object id | |
//! | 48 | 8 | object's version | 1.. |
//! | 56 | 12 | address of its predecessor: the object's newest frame before it; 0 for none | |
//! | 68 | 2 | addresses in the chain | |
//! | 70 | 2 | addresses of frames that it makes dead | |
//! | 72 | 8 | wall clock, ms since 1970 | |
//! | 80 | 8 | alarm after this commit, ms since 1970; 0 for none | |
//! | 88 | 2 | bytes of the namespace | |
//! | 90 | 2 | bytes of the name | |
//! | 92 | 4 | reserved | 0 |
//! | 96 | 12 each | the chain that it builds on, oldest first | |
//! | | 12 each | frames that it makes dead | |
//! | | | namespace, name (UTF-8), payload, zeros to a multiple of 8 | |
//!
//! The payload of a delta is operations ([`crate::batch`]); that of an image is puts, sorted by
//! key. Pages, values and notes have a kind and no writer yet. A *part* belongs to a commit that
//! one batch could not hold: it counts only through the chain of the commit's last frame, which
//! is no part. A *rewrite* changes where an object lies, not what it holds.
//!
//! An address is segment number (4 bytes), offset in the segment (4) and bytes of the frame (4).

use super::{Rejected, all_zero, get, get_u16, get_u32, get_u64, len_u32, put};
use crate::contents::Origin;
use crate::ids::{Incarnation, ObjectId, Version};

/// Bytes of a frame before its variable part.
pub const HEADER_BYTES: usize = 96;
/// Bytes of an address.
pub const ADDRESS_BYTES: usize = 12;
/// Namespaces and names longer than this are not kept.
pub const ORIGIN_BYTES_MAX: usize = 1024;
const FLAG_PART: u16 = 1;
const FLAG_CHAIN: u16 = 2;
const FLAG_REWRITE: u16 = 4;

/// Where a frame lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    /// The segment's number.
    pub segment: u32,
    /// Offset in the segment, in bytes.
    pub offset: u32,
    /// Bytes of the frame.
    pub bytes: u32,
}

impl Address {
    /// The address's bytes.
    pub fn encode(&self) -> [u8; ADDRESS_BYTES] {
        let mut bytes = [0; ADDRESS_BYTES];
        put(&mut bytes, 0, &self.segment.to_le_bytes());
        put(&mut bytes, 4, &self.offset.to_le_bytes());
        put(&mut bytes, 8, &self.bytes.to_le_bytes());
        bytes
    }

    /// Reads an address; zeros are `None`.
    pub fn decode(bytes: &[u8; ADDRESS_BYTES]) -> Option<Self> {
        let address = Self {
            segment: get_u32(bytes, 0),
            offset: get_u32(bytes, 4),
            bytes: get_u32(bytes, 8),
        };
        (address.segment != 0).then_some(address)
    }
}

/// What a frame holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Operations on what the chain before it holds.
    Delta,
    /// The whole object.
    Image,
}

/// A frame, as written or read.
#[derive(Clone, Debug)]
pub struct Frame<'a> {
    /// What the payload is.
    pub kind: Kind,
    /// Whether it is a part of a larger commit.
    pub part: bool,
    /// Whether it only moves the object.
    pub rewrite: bool,
    /// The object.
    pub object: ObjectId,
    /// Its version with this commit.
    pub version: Version,
    /// The object's newest frame before this one.
    pub predecessor: Option<Address>,
    /// The chain that it builds on, oldest first; `None` where the directory holds it.
    pub chain: Option<Vec<Address>>,
    /// Wall clock, ms since 1970.
    pub wall_ms: u64,
    /// The alarm after this commit, ms since 1970.
    pub alarm: Option<u64>,
    /// Namespace and name, where known; images only.
    pub origin: Origin,
    /// Operations.
    pub payload: &'a [u8],
}

/// Bytes of a frame with this payload, chain and origin.
pub fn frame_bytes(payload: usize, chain: usize, origin: &Origin) -> usize {
    let strings = text(&origin.namespace).len() + text(&origin.name).len();
    (HEADER_BYTES + chain * ADDRESS_BYTES + strings + payload).next_multiple_of(8)
}

pub(super) fn text(text: &Option<std::sync::Arc<str>>) -> &[u8] {
    text.as_deref().map_or(&[], |text| match text.len() <= ORIGIN_BYTES_MAX {
        true => text.as_bytes(),
        false => &[],
    })
}

impl Frame<'_> {
    /// Appends the frame to `out`, its checksum still zero (see [`set_crc`]: the place is known
    /// only when the batch is sealed). Returns its bytes.
    pub fn encode(&self, out: &mut Vec<u8>) -> usize {
        let start = out.len();
        let chain = self.chain.as_deref().unwrap_or(&[]);
        let (namespace, name) = (text(&self.origin.namespace), text(&self.origin.name));
        let bytes = frame_bytes(self.payload.len(), chain.len(), &self.origin);
        let mut header = [0; HEADER_BYTES];
        let flags = [(self.part, FLAG_PART), (self.chain.is_some(), FLAG_CHAIN)]
            .into_iter()
            .chain([(self.rewrite, FLAG_REWRITE)])
            .filter_map(|(set, flag)| set.then_some(flag))
            .fold(0, |flags, flag| flags | flag);
        let len16 = |len: usize| u16::try_from(len).expect("checked by the writer").to_le_bytes();
        put(&mut header, 0, &len_u32(bytes).to_le_bytes());
        header[8] = match self.kind {
            Kind::Delta => 1,
            Kind::Image => 2,
        };
        put(&mut header, 10, &flags.to_le_bytes());
        put(&mut header, 12, &len_u32(self.payload.len()).to_le_bytes());
        put(&mut header, 16, self.object.as_bytes());
        put(&mut header, 48, &self.version.0.to_le_bytes());
        if let Some(predecessor) = self.predecessor {
            put(&mut header, 56, &predecessor.encode());
        }
        put(&mut header, 68, &len16(chain.len()));
        put(&mut header, 72, &self.wall_ms.to_le_bytes());
        put(&mut header, 80, &self.alarm.unwrap_or(0).to_le_bytes());
        put(&mut header, 88, &len16(namespace.len()));
        put(&mut header, 90, &len16(name.len()));
        out.extend_from_slice(&header);
        chain.iter().for_each(|address| out.extend_from_slice(&address.encode()));
        out.extend_from_slice(namespace);
        out.extend_from_slice(name);
        out.extend_from_slice(self.payload);
        out.resize(start + bytes, 0);
        bytes
    }

    /// The puts and deletes of the payload; ends with `Err` at the first that is malformed.
    pub fn ops(&self) -> impl Iterator<Item = Result<crate::batch::Op<'_>, Rejected>> {
        let ops = crate::batch::Ops::new(self.payload);
        ops.map(|op| op.map_err(|_| Rejected::Malformed("operations")))
    }
}

/// Offsets in a frame of the addresses that it holds: predecessor first, then the chain.
pub(crate) fn address_offsets(chain: usize) -> impl Iterator<Item = usize> {
    std::iter::once(56).chain((0..chain).map(|index| HEADER_BYTES + index * ADDRESS_BYTES))
}

/// Bytes of the frame that starts here, before anything of it is believed.
pub fn peek_bytes(bytes: &[u8]) -> Result<usize, Rejected> {
    let header = bytes.get(..HEADER_BYTES).ok_or(Rejected::Short)?;
    let frame = get_u32(header, 0) as usize;
    if frame < HEADER_BYTES || !frame.is_multiple_of(8) || frame > bytes.len() {
        return Err(Rejected::Malformed("frame bytes"));
    }
    Ok(frame)
}

fn crc(frame: &[u8], incarnation: Incarnation, offset: u32) -> u32 {
    let crc = crc32c::crc32c(&incarnation.0.to_le_bytes());
    let crc = crc32c::crc32c_append(crc, &offset.to_le_bytes());
    let crc = crc32c::crc32c_append(crc, &frame[..4]);
    crc32c::crc32c_append(crc, &frame[8..])
}

/// Writes the checksum of a complete frame for its place.
pub fn set_crc(frame: &mut [u8], incarnation: Incarnation, offset: u32) {
    let crc = crc(frame, incarnation, offset);
    put(frame, 4, &crc.to_le_bytes());
}

/// Checks and reads the frame that starts at `bytes`, which lies at `offset` of a segment.
pub fn decode(bytes: &[u8], incarnation: Incarnation, offset: u32) -> Result<Frame<'_>, Rejected> {
    let bytes = &bytes[..peek_bytes(bytes)?];
    if get_u32(bytes, 4) != crc(bytes, incarnation, offset) {
        return Err(Rejected::Checksum);
    }
    let kind = match bytes[8] {
        1 => Kind::Delta,
        2 => Kind::Image,
        _ => return Err(Rejected::Malformed("frame kind")),
    };
    let flags = get_u16(bytes, 10);
    if flags & !(FLAG_PART | FLAG_CHAIN | FLAG_REWRITE) != 0 || bytes[9] != 0 {
        return Err(Rejected::Malformed("frame flags"));
    }
    let chain_len = usize::from(get_u16(bytes, 68));
    let dead_len = usize::from(get_u16(bytes, 70));
    let take = |rest: &mut &'_ [u8], len: usize| -> Result<std::ops::Range<usize>, Rejected> {
        let start = bytes.len() - rest.len();
        *rest = rest.get(len..).ok_or(Rejected::Malformed("frame's parts"))?;
        Ok(start..start + len)
    };
    let mut rest = &bytes[HEADER_BYTES..];
    let chain_at = take(&mut rest, chain_len * ADDRESS_BYTES)?;
    take(&mut rest, dead_len * ADDRESS_BYTES)?;
    let namespace = take(&mut rest, usize::from(get_u16(bytes, 88)))?;
    let name = take(&mut rest, usize::from(get_u16(bytes, 90)))?;
    let payload = take(&mut rest, get_u32(bytes, 12) as usize)?;
    if rest.len() >= 8 || !all_zero(rest) || !all_zero(&bytes[92..96]) {
        return Err(Rejected::Malformed("frame padding"));
    }
    let string = |range: std::ops::Range<usize>| match std::str::from_utf8(&bytes[range]) {
        Ok("") => Ok(None),
        Ok(text) => Ok(Some(text.into())),
        Err(_) => Err(Rejected::Malformed("name")),
    };
    let chain: Option<Vec<Address>> = bytes[chain_at]
        .chunks_exact(ADDRESS_BYTES)
        .map(|address| Address::decode(&get(address, 0)))
        .collect();
    let chain = chain.ok_or(Rejected::Malformed("chain"))?;
    let version = Version(get_u64(bytes, 48));
    if version == Version::NONE || (flags & FLAG_CHAIN == 0 && chain_len != 0) {
        return Err(Rejected::Malformed("version or chain"));
    }
    Ok(Frame {
        kind,
        part: flags & FLAG_PART != 0,
        rewrite: flags & FLAG_REWRITE != 0,
        object: ObjectId::from_bytes(get(bytes, 16)),
        version,
        predecessor: Address::decode(&get(bytes, 56)),
        chain: (flags & FLAG_CHAIN != 0).then_some(chain),
        wall_ms: get_u64(bytes, 72),
        alarm: Some(get_u64(bytes, 80)).filter(|alarm| *alarm != 0),
        origin: Origin { namespace: string(namespace)?, name: string(name)? },
        payload: &bytes[payload],
    })
}
