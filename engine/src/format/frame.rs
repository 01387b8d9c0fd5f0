//! A frame: one self-describing record of one object.
//!
//! | offset | size | field | range |
//! |---|---|---|---|
//! | 0 | 4 | bytes of the frame | multiple of 8 |
//! | 4 | 4 | crc32c of its place (incarnation, offset in the segment) and of bytes 0..4 and 8.. | |
//! | 8 | 1 | kind: 1 delta, 2 image, 3 page, 4 value, 5 note | |
//! | 9 | 1 | how many of the last addresses of the chain are parts of this very commit | |
//! | 10 | 2 | flags: 1 part, 2 nests, 4 rewrite, 8 existed, 16 scattered, 32 tree; the rest reserved, refused by readers | |
//! | 12 | 4 | bytes of the payload | |
//! | 16 | 32 | object id | |
//! | 48 | 8 | object's version | 1.. |
//! | 56 | 12 | address of its predecessor: the object's newest frame before it; 0 for none | |
//! | 68 | 2 | addresses listed of the chain | |
//! | 70 | 2 | shares | |
//! | 72 | 8 | wall clock, ms since 1970 | |
//! | 80 | 8 | alarm after this commit, ms since 1970; 0 for none | |
//! | 88 | 2 | bytes of the namespace (bits 0 to 13), and how its tag is written (`format/tag.rs`) | |
//! | 90 | 2 | bytes of the name | |
//! | 92 | 2 | chains nested in the first frame of the chain | |
//! | 94 | 2 | shares kept | of images that are trees |
//! | 96 | 4 | bytes of the image at the start of the chain | |
//! | 100 | 4 | bytes of the deltas of the chain | |
//! | 104 | 12 each | the chain that it builds on, oldest first | |
//! | | 8 each | shares: segment (4), bytes (4) | none is 0 |
//! | | 8 each | shares kept | none is 0 |
//! | | 0 or 8 | the tag of the namespace for which the object counts, where it stands apart | |
//! | | | namespace, name (UTF-8), payload, zeros to a multiple of 8 | |
//!
//! The payload of a delta is operations ([`crate::batch`]); that of an image is puts, sorted by
//! key, or, of one that is a *tree*, its root; pages and values are what the root leads to ([`super::page`]).
//! Notes have a kind and no writer yet. A *part* belongs to a commit that
//! one batch could not hold, or is a page or value: it counts only through the commit's last frame, which
//! is no part. A *rewrite* changes where an object lies, not what it holds; its wall clock is that
//! of the commit that it rewrites.
//!
//! A frame says all that the directory says of its object after it, so that replay looks nothing up:
//! whether the object *existed* before, and of a delta the chain and sizes of the entry before it. One that
//! *nests* is the only one to name its chain: the entry is it alone, and whoever reads it reads the
//! chain too. Of another delta's chain the last address is the predecessor, and not listed again.
//!
//! An address is segment number (4 bytes), offset in the segment (4) and bytes of the frame (4). A *share* says
//! how many bytes of a segment belong together: those of a delta are what the frames amount to that are
//! nested in the chain it builds on, those of an image all that the object needed before, which is dead
//! with it. Shares *kept* are what all pages and values of a tree amount to, those of this commit included. So live bytes stay exact without a look at any older frame (`live`). *Scattered*: the
//! shares of the entry before are not all ([`crate::directory::SHARES_MAX`]). Of a delta *tree* says that the
//! chain that it builds on begins with one.

use super::tag::{self, Tagged};
use super::{Rejected, all_zero, get, get_u16, get_u32, get_u64, len_u32, put};
use crate::contents::Origin;
use crate::directory::CHAIN_MAX;
use crate::ids::{Incarnation, NamespaceTag, ObjectId, Version};

/// Bytes of a frame before its variable part.
pub const HEADER_BYTES: usize = 104;
/// Bytes of an address.
pub const ADDRESS_BYTES: usize = 12;
/// Namespaces and names longer than this are not kept.
pub const ORIGIN_BYTES_MAX: usize = 1024;
const KIND_PAGE: u8 = 3;
const KIND_VALUE: u8 = 4;
const FLAG_PART: u16 = 1;
const FLAG_NESTS: u16 = 2;
const FLAG_REWRITE: u16 = 4;
const FLAG_EXISTED: u16 = 8;
const FLAG_SCATTERED: u16 = 16;
const FLAG_TREE: u16 = 32;
/// Bytes of a share.
pub const SHARE_BYTES: usize = 8;

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
        // Shorter than any frame: also none of no bytes at all.
        let is_frame = address.segment != 0 && address.bytes as usize >= HEADER_BYTES;
        is_frame.then_some(address)
    }
}

/// So many bytes of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Share {
    /// The segment's number.
    pub segment: u32,
    /// Bytes of frames in it.
    pub bytes: u32,
}

impl Share {
    /// The share's bytes.
    pub fn encode(&self) -> [u8; SHARE_BYTES] {
        let mut bytes = [0; SHARE_BYTES];
        put(&mut bytes, 0, &self.segment.to_le_bytes());
        put(&mut bytes, 4, &self.bytes.to_le_bytes());
        bytes
    }

    /// Reads a share; one of nothing is `None`.
    pub fn decode(bytes: &[u8; SHARE_BYTES]) -> Option<Self> {
        let share = Self { segment: get_u32(bytes, 0), bytes: get_u32(bytes, 4) };
        (share.segment != 0 && share.bytes != 0).then_some(share)
    }
}

impl From<Address> for Share {
    fn from(Address { segment, bytes, .. }: Address) -> Self {
        Self { segment, bytes }
    }
}

/// What a frame holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Operations on what the chain before it holds.
    Delta,
    /// The whole object.
    Image,
    /// A page of a large object's tree; always a part.
    Page,
    /// A large value of such an object; always a part.
    Value,
}

/// What the chain of an object amounts to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    /// Bytes of the image at its start.
    pub image_bytes: u32,
    /// Bytes of the deltas after it.
    pub delta_bytes: u32,
    /// How many chains are nested in its first frame.
    pub depth: u16,
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
    /// Whether the object existed before it.
    pub existed: bool,
    /// The chain that it builds on, oldest first, and then the parts of this commit; of an image, these
    /// alone.
    pub chain: Vec<Address>,
    /// How many of the chain's last addresses are parts of this commit.
    pub parts: usize,
    /// Of a delta, what is nested in the chain before it; of an image, all that is dead with it.
    pub shares: Vec<Share>,
    /// Whether it is a tree, or builds on one.
    pub tree: bool,
    /// Of an image that is a tree: what all its pages and values amount to, those of this commit included.
    pub kept: Vec<Share>,
    /// Whether the shares of the entry before were not all.
    pub scattered: bool,
    /// Whether whoever reads it reads the chain too; otherwise the directory's entry names them all.
    pub nests: bool,
    /// Sizes of that chain; of a delta only.
    pub sizes: Sizes,
    /// Wall clock, ms since 1970.
    pub wall_ms: u64,
    /// The alarm after this commit, ms since 1970.
    pub alarm: Option<u64>,
    /// Namespace and name, where known; images only.
    pub origin: Origin,
    /// The namespace for which the object counts; of a part none.
    pub namespace: NamespaceTag,
    /// Operations, a page or a value.
    pub payload: &'a [u8],
    /// Offsets in the payload of the addresses that it holds; for the writer alone.
    pub links: &'a [u32],
}

/// Bytes of a frame with this payload, so many listed addresses and shares of both kinds, this origin, and a tag
/// that may stand apart.
pub fn frame_bytes(
    payload: usize,
    chain: usize,
    shares: usize,
    origin: &Origin,
    namespace: NamespaceTag,
) -> usize {
    let strings = strings_bytes(origin, namespace);
    let listed = chain * ADDRESS_BYTES + shares * SHARE_BYTES;
    (HEADER_BYTES + listed + strings + payload).next_multiple_of(8)
}

/// Bytes of namespace and name, and of the tag before them.
fn strings_bytes(origin: &Origin, namespace: NamespaceTag) -> usize {
    let name = text(&origin.namespace);
    Tagged::new(namespace, name).bytes() + name.len() + text(&origin.name).len()
}

pub(super) fn text(text: &Option<std::sync::Arc<str>>) -> &[u8] {
    text.as_deref().map_or(&[], |text| match text.len() <= ORIGIN_BYTES_MAX {
        true => text.as_bytes(),
        false => &[],
    })
}

impl Frame<'_> {
    /// The chain that it builds on.
    pub fn base(&self) -> &[Address] {
        &self.chain[..self.chain.len() - self.parts]
    }

    /// The parts of this commit before this frame.
    pub fn parts(&self) -> &[Address] {
        &self.chain[self.chain.len() - self.parts..]
    }

    /// The addresses of the chain that the frame lists.
    pub fn listed(&self) -> &[Address] {
        match self.nests {
            true => &self.chain,
            false => self.chain.split_last().map_or(&[], |(_predecessor, listed)| listed),
        }
    }

    /// Its bytes.
    pub fn bytes(&self) -> usize {
        let shares = self.shares.len() + self.kept.len();
        let (payload, listed) = (self.payload.len(), self.listed().len());
        frame_bytes(payload, listed, shares, &self.origin, self.namespace)
    }

    /// Offsets in the frame of the addresses that it holds: predecessor, those listed, those of the payload.
    pub(crate) fn address_offsets(&self) -> impl Iterator<Item = usize> {
        let listed = (0..self.listed().len()).map(|index| HEADER_BYTES + index * ADDRESS_BYTES);
        let shares = (self.shares.len() + self.kept.len()) * SHARE_BYTES;
        let strings = strings_bytes(&self.origin, self.namespace);
        let payload = HEADER_BYTES + self.listed().len() * ADDRESS_BYTES + shares + strings;
        let links = self.links.iter().map(move |at| payload + *at as usize);
        std::iter::once(56).chain(listed).chain(links)
    }

    /// Offsets in the frame of its shares, those kept last.
    pub(crate) fn share_offsets(&self) -> impl Iterator<Item = (usize, &Share)> {
        let start = HEADER_BYTES + self.listed().len() * ADDRESS_BYTES;
        let shares = self.shares.iter().chain(&self.kept).enumerate();
        shares.map(move |(index, share)| (start + index * SHARE_BYTES, share))
    }

    /// Appends the frame to `out`, its checksum still zero (see [`set_crc`]: the place is known
    /// only when the batch is sealed). Returns its bytes.
    pub fn encode(&self, out: &mut Vec<u8>) -> usize {
        let start = out.len();
        let chain = self.listed();
        assert!(
            self.nests || self.chain.is_empty() || self.chain.last() == self.predecessor.as_ref()
        );
        let (namespace, name) = (text(&self.origin.namespace), text(&self.origin.name));
        let tagged = Tagged::new(self.namespace, namespace);
        let bytes = self.bytes();
        let mut header = [0; HEADER_BYTES];
        let flags = [(self.part, FLAG_PART), (self.nests, FLAG_NESTS)]
            .into_iter()
            .chain([(self.rewrite, FLAG_REWRITE), (self.existed, FLAG_EXISTED)])
            .chain([(self.scattered, FLAG_SCATTERED), (self.tree, FLAG_TREE)])
            .filter_map(|(set, flag)| set.then_some(flag))
            .fold(0, |flags, flag| flags | flag);
        let short = |len: usize| u16::try_from(len).expect("checked by the writer");
        let len16 = |len: usize| short(len).to_le_bytes();
        put(&mut header, 0, &len_u32(bytes).to_le_bytes());
        header[8] = match self.kind {
            Kind::Delta => 1,
            Kind::Image => 2,
            Kind::Page => KIND_PAGE,
            Kind::Value => KIND_VALUE,
        };
        header[9] = u8::try_from(self.parts).expect("checked by the writer");
        put(&mut header, 10, &flags.to_le_bytes());
        put(&mut header, 12, &len_u32(self.payload.len()).to_le_bytes());
        put(&mut header, 16, self.object.as_bytes());
        put(&mut header, 48, &self.version.0.to_le_bytes());
        if let Some(predecessor) = self.predecessor {
            put(&mut header, 56, &predecessor.encode());
        }
        put(&mut header, 68, &len16(chain.len()));
        put(&mut header, 70, &len16(self.shares.len()));
        put(&mut header, 72, &self.wall_ms.to_le_bytes());
        put(&mut header, 80, &self.alarm.unwrap_or(0).to_le_bytes());
        put(&mut header, 88, &tagged.field(short(namespace.len())).to_le_bytes());
        put(&mut header, 90, &len16(name.len()));
        put(&mut header, 92, &self.sizes.depth.to_le_bytes());
        put(&mut header, 94, &len16(self.kept.len()));
        put(&mut header, 96, &self.sizes.image_bytes.to_le_bytes());
        put(&mut header, 100, &self.sizes.delta_bytes.to_le_bytes());
        out.extend_from_slice(&header);
        chain.iter().for_each(|address| out.extend_from_slice(&address.encode()));
        let shares = self.shares.iter().chain(&self.kept);
        shares.for_each(|share| out.extend_from_slice(&share.encode()));
        tagged.put(out);
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

/// Bytes of the frame that starts here, before anything of it is believed.
pub fn peek_bytes(bytes: &[u8]) -> Result<usize, Rejected> {
    let header = bytes.get(..HEADER_BYTES).ok_or(Rejected::Short)?;
    let frame = get_u32(header, 0) as usize;
    if frame < HEADER_BYTES || !frame.is_multiple_of(8) || frame > bytes.len() {
        return Err(Rejected::Malformed("frame bytes"));
    }
    Ok(frame)
}

/// Whether the frame that starts here says that it is a page or value of a tree, before anything of it is
/// believed; it has its header.
pub fn peek_is_of_tree(bytes: &[u8]) -> bool {
    matches!(bytes[8], KIND_PAGE | KIND_VALUE)
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
        KIND_PAGE => Kind::Page,
        KIND_VALUE => Kind::Value,
        _ => return Err(Rejected::Malformed("frame kind")),
    };
    let flags = get_u16(bytes, 10);
    let known = FLAG_PART | FLAG_NESTS | FLAG_REWRITE | FLAG_EXISTED | FLAG_SCATTERED;
    let known = known | FLAG_TREE;
    if flags & !known != 0 {
        return Err(Rejected::Malformed("frame flags"));
    }
    let listed_len = usize::from(get_u16(bytes, 68));
    let shares_len = usize::from(get_u16(bytes, 70));
    let take = |rest: &mut &'_ [u8], len: usize| -> Result<std::ops::Range<usize>, Rejected> {
        let start = bytes.len() - rest.len();
        *rest = rest.get(len..).ok_or(Rejected::Malformed("frame's parts"))?;
        Ok(start..start + len)
    };
    let mut rest = &bytes[HEADER_BYTES..];
    let chain_at = take(&mut rest, listed_len * ADDRESS_BYTES)?;
    let shares_at = take(&mut rest, shares_len * SHARE_BYTES)?;
    let kept_at = take(&mut rest, usize::from(get_u16(bytes, 94)) * SHARE_BYTES)?;
    let field = get_u16(bytes, 88);
    let apart = take(&mut rest, tag::apart_bytes(field))?;
    let namespace = take(&mut rest, tag::name_bytes(field))?;
    let name = take(&mut rest, usize::from(get_u16(bytes, 90)))?;
    let payload = take(&mut rest, get_u32(bytes, 12) as usize)?;
    if rest.len() >= 8 || !all_zero(rest) {
        return Err(Rejected::Malformed("frame padding"));
    }
    let tag = tag::read(field, &bytes[apart], &bytes[namespace.clone()])?;
    let string = |range: std::ops::Range<usize>| match std::str::from_utf8(&bytes[range]) {
        Ok("") => Ok(None),
        Ok(text) => Ok(Some(text.into())),
        Err(_) => Err(Rejected::Malformed("name")),
    };
    let (part, nests) = (flags & FLAG_PART != 0, flags & FLAG_NESTS != 0);
    let predecessor = Address::decode(&get(bytes, 56));
    let follows = kind == Kind::Delta && !part && !nests;
    let listed = bytes[chain_at].chunks_exact(ADDRESS_BYTES);
    let chain: Option<Vec<Address>> = listed
        .map(|address| Address::decode(&get(address, 0)))
        .chain(follows.then_some(predecessor))
        .collect();
    let chain = chain.ok_or(Rejected::Malformed("chain"))?;
    let chain_max = match (nests, follows) {
        (true, _) => usize::MAX,
        (false, true) => CHAIN_MAX - 1,
        (false, false) => 0,
    };
    let shares = |range: std::ops::Range<usize>| {
        let shares = bytes[range].chunks_exact(SHARE_BYTES);
        let shares: Option<Vec<Share>> =
            shares.map(|share| Share::decode(&get(share, 0))).collect();
        shares.ok_or(Rejected::Malformed("shares"))
    };
    let (shares, kept) = (shares(shares_at)?, shares(kept_at)?);
    let parts = usize::from(bytes[9]);
    let base = chain.len().checked_sub(parts);
    let tree = flags & FLAG_TREE != 0;
    let (is_root, apart) = (tree && kind == Kind::Image, matches!(kind, Kind::Page | Kind::Value));
    if (!is_root && !kept.is_empty()) || (apart && !part) {
        return Err(Rejected::Malformed("what only a tree has"));
    }
    let base_max = if kind == Kind::Delta { CHAIN_MAX } else { 0 };
    let fits = base.is_some_and(|base| base <= base_max && (nests || parts == 0));
    let version = Version(get_u64(bytes, 48));
    if version == Version::NONE || chain.len() > chain_max || !fits {
        return Err(Rejected::Malformed("version or chain"));
    }
    Ok(Frame {
        kind,
        part,
        rewrite: flags & FLAG_REWRITE != 0,
        object: ObjectId::from_bytes(get(bytes, 16)),
        version,
        predecessor,
        existed: flags & FLAG_EXISTED != 0,
        chain,
        parts,
        shares,
        scattered: flags & FLAG_SCATTERED != 0,
        tree,
        kept,
        nests,
        sizes: Sizes {
            image_bytes: get_u32(bytes, 96),
            delta_bytes: get_u32(bytes, 100),
            depth: get_u16(bytes, 92),
        },
        wall_ms: get_u64(bytes, 72),
        alarm: Some(get_u64(bytes, 80)).filter(|alarm| *alarm != 0),
        origin: Origin { namespace: string(namespace)?, name: string(name)? },
        namespace: tag,
        payload: &bytes[payload],
        links: &[],
    })
}
