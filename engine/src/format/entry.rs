//! What a run of the directory says of one object:
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 1 | bits 0 to 2: addresses, at most 4; 8 alarm; 16 damaged; 32 deleted; 64 origin; 128 shares |
//! | 1 | 2 | chains nested in the first frame |
//! | 3 | 4 | bytes of the image |
//! | 7 | 4 | bytes of the deltas after it |
//! | 11 | 8 | version |
//! | 19 | 32 | object id |
//! | 51 | 8 | wall clock at the newest commit, ms since 1970 |
//! | 59 | 8 | alarm, ms since 1970, if there is one |
//! | | 12 each | addresses ([`super::frame`]), oldest first |
//! | | 2 | bits 0 to 13: shares; 0x4000 tree, 0x8000 scattered ([`super::frame`]); if there are shares |
//! | | 8 each | shares, by rising segments |
//! | | 2 | bytes of the namespace (bits 0 to 13), and how its tag is written (`format/tag.rs`), if there is an origin |
//! | | 2 | bytes of the name, likewise; 0 for none |
//! | | 0 or 8 | the tag of the namespace for which the object counts, where it stands apart |
//! | | | namespace and name (UTF-8) |
//!
//! An entry goes from run to run as it is; only who asks for its object reads it.

use std::sync::Arc;

use bytes::Bytes;

use super::frame::{ADDRESS_BYTES, Address, SHARE_BYTES, Share, text};
use super::tag::{self, Tagged};
use super::{Rejected, get, get_u16, get_u32, get_u64, put};
use crate::contents::Origin;
use crate::directory::{CHAIN_MAX, Entry, Known, Stamp};
use crate::ids::{NamespaceTag, ObjectId, Version};

const FIXED_BYTES: usize = 59;
/// Where the object id stands.
const ID_AT: usize = 19;
/// Bytes of an entry before shares and origin, at most.
const HEAD_BYTES_MAX: usize = FIXED_BYTES + 8 + ADDRESS_BYTES * CHAIN_MAX;
const COUNT_MASK: u8 = 7;
const FLAG_ALARM: u8 = 8;
const FLAG_DAMAGED: u8 = 16;
const FLAG_DELETED: u8 = 32;
const FLAG_ORIGIN: u8 = 64;
const FLAG_SHARES: u8 = 128;
const SCATTERED: u16 = 1 << 15;
const TREE: u16 = 1 << 14;
const COUNT: u16 = TREE - 1;
const MALFORMED: Rejected = Rejected::Malformed("entry of a run");

/// An entry as it lies in a block. Its bytes are as many as its flags and lengths say; what else it
/// says is checked when it is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawEntry(Bytes);

impl RawEntry {
    /// Shapes: `bytes` are those of one entry, as [`split`] gives them.
    pub(super) fn new(bytes: Bytes) -> Self {
        Self(bytes)
    }

    /// The entry that says what is known of an object.
    pub fn of(id: &ObjectId, known: &Known) -> Self {
        let mut bytes = Vec::with_capacity(HEAD_BYTES_MAX + 4);
        encode(id, known, &mut bytes);
        Self(bytes.into())
    }

    /// The entries that say what is known of some objects, which share one buffer.
    pub fn of_all<'a>(all: impl ExactSizeIterator<Item = (&'a ObjectId, &'a Known)>) -> Vec<Self> {
        let (mut bytes, mut ends) = (Vec::new(), Vec::with_capacity(all.len()));
        for (id, known) in all {
            encode(id, known, &mut bytes);
            ends.push(bytes.len());
        }
        let (bytes, mut start) = (Bytes::from(bytes), 0);
        let entry = |end| Self(bytes.slice(std::mem::replace(&mut start, end)..end));
        ends.into_iter().map(entry).collect()
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The object.
    pub fn id(&self) -> ObjectId {
        id(&self.0)
    }

    /// Whether it says that the object was deleted.
    pub fn is_deleted(&self) -> bool {
        self.0[0] == FLAG_DELETED
    }

    /// The object's alarm, ms since 1970.
    pub fn alarm(&self) -> Option<u64> {
        (self.0[0] & FLAG_ALARM != 0).then(|| get_u64(&self.0, FIXED_BYTES))
    }

    /// All that it says. Most neighbours are of one namespace, which is kept once: that of the entry
    /// `before`, if it is the same.
    pub fn known(&self, before: Option<&Arc<str>>) -> Result<Known, Rejected> {
        known(&self.0, before)
    }

    /// Takes over what an older entry of the same object knows of where its id comes from, and this one
    /// does not.
    pub fn learn(&mut self, older: &Self) {
        if self.is_deleted() || older.0[0] & FLAG_ORIGIN == 0 {
            return;
        }
        // What can't be understood stays as it is.
        let (Ok(mut known), Ok(older)) = (self.known(None), older.known(None)) else { return };
        let before = known.origin.clone();
        known.origin.learn(&older.origin);
        if known.origin != before {
            *self = Self::of(&self.id(), &known);
        }
    }
}

fn encode(id: &ObjectId, known: &Known, out: &mut Vec<u8>) {
    let mut bytes = [0; HEAD_BYTES_MAX];
    let mut end = FIXED_BYTES;
    put(&mut bytes, ID_AT, id.as_bytes());
    let Some(entry) = &known.entry else {
        bytes[0] = FLAG_DELETED;
        out.extend_from_slice(&bytes[..end]);
        return;
    };
    put(&mut bytes, 51, &entry.written_ms.to_le_bytes());
    put(&mut bytes, 1, &entry.depth.to_le_bytes());
    put(&mut bytes, 3, &entry.image_bytes.to_le_bytes());
    put(&mut bytes, 7, &entry.delta_bytes.to_le_bytes());
    put(&mut bytes, 11, &entry.version.0.to_le_bytes());
    bytes[0] |= if entry.damaged { FLAG_DAMAGED } else { 0 };
    if let Some(at_ms) = entry.alarm {
        bytes[0] |= FLAG_ALARM;
        put(&mut bytes, end, &at_ms.to_le_bytes());
        end += 8;
    }
    for address in entry.chain() {
        bytes[0] += 1;
        put(&mut bytes, end, &address.encode());
        end += ADDRESS_BYTES;
    }
    let nested = entry.nested();
    bytes[0] |= if nested.is_empty() { 0 } else { FLAG_SHARES };
    let (namespace, name) = (text(&known.origin.namespace), text(&known.origin.name));
    let tagged = Tagged::new(entry.namespace, namespace);
    let has_origin =
        entry.namespace != NamespaceTag::NONE || !namespace.is_empty() || !name.is_empty();
    bytes[0] |= if has_origin { FLAG_ORIGIN } else { 0 };
    out.extend_from_slice(&bytes[..end]);
    if !nested.is_empty() {
        let mut count = u16::try_from(nested.len()).expect("SHARES_MAX");
        count |= if entry.is_scattered() { SCATTERED } else { 0 };
        count |= if entry.is_tree() { TREE } else { 0 };
        out.extend_from_slice(&count.to_le_bytes());
        nested.iter().for_each(|share| out.extend_from_slice(&share.encode()));
    }
    if has_origin {
        let length = |part: &[u8]| u16::try_from(part.len()).expect("long ones are not kept");
        for field in [tagged.field(length(namespace)), length(name)] {
            out.extend_from_slice(&field.to_le_bytes());
        }
        tagged.put(out);
        [namespace, name].iter().for_each(|part| out.extend_from_slice(part));
    }
}

/// Takes the next entry's bytes.
pub(super) fn split<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], Rejected> {
    let flags = *rest.first().ok_or(MALFORMED)?;
    let mut bytes = FIXED_BYTES + ADDRESS_BYTES * usize::from(flags & COUNT_MASK);
    bytes += if flags & FLAG_ALARM != 0 { 8 } else { 0 };
    if flags & FLAG_SHARES != 0 {
        let count = get_u16(rest.get(bytes..bytes + 2).ok_or(MALFORMED)?, 0) & COUNT;
        bytes += 2 + SHARE_BYTES * usize::from(count);
    }
    if flags & FLAG_ORIGIN != 0 {
        let lens = rest.get(bytes..bytes + 4).ok_or(MALFORMED)?;
        let field = get_u16(lens, 0);
        bytes += 4 + tag::apart_bytes(field) + tag::name_bytes(field);
        bytes += usize::from(get_u16(lens, 2));
    }
    let (entry, after) = rest.split_at_checked(bytes).ok_or(MALFORMED)?;
    *rest = after;
    Ok(entry)
}

pub(super) fn id_bytes(entry: &[u8]) -> &[u8] {
    &entry[ID_AT..ID_AT + ObjectId::BYTES]
}

pub(super) fn id(entry: &[u8]) -> ObjectId {
    ObjectId::from_bytes(get(entry, ID_AT))
}

/// What an entry says of where its object lies; `None` if it was deleted.
pub(super) fn entry(bytes: &[u8]) -> Result<Option<Entry>, Rejected> {
    decode(bytes).map(|(entry, _)| entry)
}

pub(super) fn known(bytes: &[u8], before: Option<&Arc<str>>) -> Result<Known, Rejected> {
    let (entry, Text { namespace, name }) = decode(bytes)?;
    let namespace = match before.filter(|before| before.as_bytes() == namespace) {
        Some(before) => Some(before.clone()),
        None => read_text(namespace)?,
    };
    Ok(Known { entry, origin: Origin { namespace, name: read_text(name)? } })
}

/// An entry's namespace and name, not checked yet.
#[derive(Default)]
struct Text<'a> {
    namespace: &'a [u8],
    name: &'a [u8],
}

fn read_text(bytes: &[u8]) -> Result<Option<Arc<str>>, Rejected> {
    let text = std::str::from_utf8(bytes).map_err(|_| Rejected::Malformed("origin of an entry"))?;
    Ok((!text.is_empty()).then(|| text.into()))
}

/// Checks and reads the bytes of one entry.
fn decode(bytes: &[u8]) -> Result<(Option<Entry>, Text<'_>), Rejected> {
    let (fixed, mut rest) = bytes.split_at_checked(FIXED_BYTES).ok_or(MALFORMED)?;
    let mut take = |len| -> Result<&[u8], Rejected> {
        let (taken, after) = rest.split_at_checked(len).ok_or(MALFORMED)?;
        rest = after;
        Ok(taken)
    };
    let flags = fixed[0];
    if flags == FLAG_DELETED {
        return Ok((None, Text::default()));
    }
    let count = usize::from(flags & COUNT_MASK);
    let known = COUNT_MASK | FLAG_ALARM | FLAG_DAMAGED | FLAG_ORIGIN | FLAG_SHARES;
    if flags & !known != 0 || count > CHAIN_MAX {
        return Err(MALFORMED);
    }
    let alarm = match flags & FLAG_ALARM {
        0 => None,
        _ => Some(get_u64(take(8)?, 0)),
    };
    let mut chain = [None; CHAIN_MAX];
    for address in &mut chain[..count] {
        *address = Some(Address::decode(&get(take(ADDRESS_BYTES)?, 0)).ok_or(MALFORMED)?);
    }
    let (mut nested, mut scattered, mut tree) = (Vec::new(), false, false);
    if flags & FLAG_SHARES != 0 {
        let count = get_u16(take(2)?, 0);
        (scattered, tree) = (count & SCATTERED != 0, count & TREE != 0);
        let shares = take(SHARE_BYTES * usize::from(count & COUNT))?.chunks_exact(SHARE_BYTES);
        let shares: Option<Vec<_>> = shares.map(|share| Share::decode(&get(share, 0))).collect();
        nested = shares.filter(|shares| !shares.is_empty()).ok_or(MALFORMED)?;
    }
    let (mut text, mut namespace) = (Text::default(), NamespaceTag::NONE);
    if flags & FLAG_ORIGIN != 0 {
        let lens = take(4)?;
        let field = get_u16(lens, 0);
        let apart = take(tag::apart_bytes(field))?;
        text.namespace = take(tag::name_bytes(field))?;
        text.name = take(usize::from(get_u16(lens, 2)))?;
        namespace = tag::read(field, apart, text.namespace)?;
    }
    let version = Version(get_u64(fixed, 11));
    let stamp = Stamp { version, alarm, written_ms: get_u64(fixed, 51) };
    let mut entry = Entry::of_chain(chain, nested, scattered, stamp);
    entry.damaged = flags & FLAG_DAMAGED != 0;
    entry.tree = tree;
    entry.namespace = namespace;
    entry.depth = get_u16(fixed, 1);
    entry.image_bytes = get_u32(fixed, 3);
    entry.delta_bytes = get_u32(fixed, 7);
    match entry.version == Version::NONE || (count == 0 && !entry.damaged) {
        true => Err(MALFORMED),
        false => Ok((Some(entry), text)),
    }
}
