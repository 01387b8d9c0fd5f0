//! A run: part of a shard's directory, sorted and never changed. A file of blocks of 4,096 bytes:
//! one header, then entries in the order of [`Key`], then alarms in the order of their times.
//!
//! Header:
//!
//! | offset | size | field | range |
//! |---|---|---|---|
//! | 0 | 8 | magic `DMDIRRUN` | |
//! | 8 | 2 | format version | 1 |
//! | 10 | 2 | shard | |
//! | 12 | 4 | crc32c of the block, this field as zero | |
//! | 16 | 16 | store id | |
//! | 32 | 4 | run number | 1.. |
//! | 36 | 4 | blocks of entries | |
//! | 40 | 8 | incarnation | not zero |
//! | 48 | 4 | blocks of alarms | |
//! | 52 | 12 | reserved, as the rest of the block | 0 |
//!
//! Every other block:
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 4 | crc32c of incarnation, block number (4 bytes) and bytes 4.. of the block |
//! | 4 | 2 | entries in the block, 1.. |
//! | 6 | 2 | bytes of the block that are used |
//! | 8 | | entries |
//!
//! An entry:
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 1 | bits 0 to 2: addresses, at most 4; 8 alarm; 16 damaged; 32 deleted; 64 origin |
//! | 1 | 2 | chains nested in the first frame |
//! | 3 | 4 | bytes of the image |
//! | 7 | 4 | bytes of the deltas after it |
//! | 11 | 8 | version |
//! | 19 | 32 | object id |
//! | 51 | 8 | wall clock at the newest commit, ms since 1970 |
//! | 59 | 8 | alarm, ms since 1970, if there is one |
//! | | 12 each | addresses ([`super::frame`]), oldest first |
//! | | 2 | bytes of the namespace, if there is an origin |
//! | | 2 | bytes of the name, likewise; 0 for none |
//! | | | namespace and name (UTF-8) |
//!
//! An alarm is its time (8 bytes, ms since 1970) and the object id (32). It is a hint: the object's
//! newest entry decides.

use std::sync::Arc;

use super::frame::{ADDRESS_BYTES, Address, text};
use super::{
    Rejected, VERSION, all_zero, checked, crc_without, get, get_u16, get_u32, get_u64, len_u32, put,
};
use crate::contents::Origin;
use crate::directory::{CHAIN_MAX, Entry, Known, Stamp};
use crate::ids::{Incarnation, ObjectId, StoreId, Version};

/// Bytes of a block.
pub const BLOCK_BYTES: usize = 4096;
/// Bytes of a block before its entries.
const HEAD_BYTES: usize = 8;
const ENTRY_BYTES: usize = 59;
/// Bytes of an entry without the text of its origin, at most.
const ENTRY_BYTES_MAX: usize = ENTRY_BYTES + 8 + ADDRESS_BYTES * CHAIN_MAX + 4;
/// Bytes of an alarm.
const ALARM_BYTES: usize = 40;
const MAGIC: [u8; 8] = *b"DMDIRRUN";
const COUNT_MASK: u8 = 7;
const FLAG_ALARM: u8 = 8;
const FLAG_DAMAGED: u8 = 16;
const FLAG_DELETED: u8 = 32;
const FLAG_ORIGIN: u8 = 64;

/// Where an object stands in a run: a hash of its id, keyed by the store so that nobody can choose
/// ids that crowd together, then the id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// The hash: spread evenly, so that a place can be guessed from it.
    pub hash: u64,
    /// The id.
    pub id: ObjectId,
}

impl Key {
    /// The key of an object in this store. Part of the format.
    pub fn new(store: StoreId, id: ObjectId) -> Self {
        // The store's two halves begin the state; each word is mixed in by splitmix64's finalizer.
        let halves = store.0.to_le_bytes();
        let mut hash = get_u64(&halves, 0) ^ get_u64(&halves, 8).rotate_left(32);
        for word in id.as_bytes().chunks_exact(8) {
            hash = (hash ^ get_u64(word, 0)).wrapping_add(0x9e37_79b9_7f4a_7c15);
            hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            hash ^= hash >> 31;
        }
        Self { hash, id }
    }
}

/// What a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunHeader {
    /// The store.
    pub store: StoreId,
    /// The shard.
    pub shard: u16,
    /// The run's number in its shard; later runs have higher numbers.
    pub number: u32,
    /// This use of the file.
    pub incarnation: Incarnation,
    /// Blocks of entries; the first is block 1.
    pub entry_blocks: u32,
    /// Blocks of alarms, behind them.
    pub alarm_blocks: u32,
}

impl RunHeader {
    /// The header's block.
    pub fn encode(&self) -> [u8; BLOCK_BYTES] {
        let mut bytes = [0; BLOCK_BYTES];
        put(&mut bytes, 0, &MAGIC);
        put(&mut bytes, 8, &VERSION.to_le_bytes());
        put(&mut bytes, 10, &self.shard.to_le_bytes());
        put(&mut bytes, 16, &self.store.0.to_le_bytes());
        put(&mut bytes, 32, &self.number.to_le_bytes());
        put(&mut bytes, 36, &self.entry_blocks.to_le_bytes());
        put(&mut bytes, 40, &self.incarnation.0.to_le_bytes());
        put(&mut bytes, 48, &self.alarm_blocks.to_le_bytes());
        let crc = crc_without(&bytes, 12);
        put(&mut bytes, 12, &crc.to_le_bytes());
        bytes
    }

    /// Checks and reads the header of a run of this store and shard.
    pub fn decode(bytes: &[u8], store: StoreId, shard: u16) -> Result<Self, Rejected> {
        let bytes = checked(bytes, BLOCK_BYTES, &MAGIC)?;
        let header = Self {
            store: StoreId(u128::from_le_bytes(get(bytes, 16))),
            shard: get_u16(bytes, 10),
            number: get_u32(bytes, 32),
            entry_blocks: get_u32(bytes, 36),
            incarnation: Incarnation(get_u64(bytes, 40)),
            alarm_blocks: get_u32(bytes, 48),
        };
        if header.store != store || header.shard != shard {
            return Err(Rejected::Foreign);
        }
        if header.number == 0 || header.incarnation.0 == 0 || !all_zero(&bytes[52..]) {
            return Err(Rejected::Malformed("run header"));
        }
        Ok(header)
    }
}

/// Blocks of the whole file.
pub fn file_blocks(header: &RunHeader) -> u64 {
    1 + u64::from(header.entry_blocks) + u64::from(header.alarm_blocks)
}

fn block_crc(bytes: &[u8], incarnation: Incarnation, number: u32) -> u32 {
    let crc = crc32c::crc32c(&incarnation.0.to_le_bytes());
    let crc = crc32c::crc32c_append(crc, &number.to_le_bytes());
    crc32c::crc32c_append(crc, &bytes[4..])
}

/// Checks a block; gives how many entries it holds, and their bytes.
fn open(bytes: &[u8], incarnation: Incarnation, number: u32) -> Result<(usize, &[u8]), Rejected> {
    let bytes = bytes.get(..BLOCK_BYTES).ok_or(Rejected::Short)?;
    if get_u32(bytes, 0) != block_crc(bytes, incarnation, number) {
        return Err(Rejected::Checksum);
    }
    let (count, used) = (usize::from(get_u16(bytes, 4)), usize::from(get_u16(bytes, 6)));
    if count == 0 || !(HEAD_BYTES..=BLOCK_BYTES).contains(&used) || !all_zero(&bytes[used..]) {
        return Err(Rejected::Malformed("block of a run"));
    }
    Ok((count, &bytes[HEAD_BYTES..used]))
}

/// Fills one block.
#[derive(Debug, Default)]
pub struct BlockBuilder {
    entries: Vec<u8>,
    count: u16,
}

impl BlockBuilder {
    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    fn push(&mut self, bytes: &[&[u8]]) -> bool {
        let len: usize = bytes.iter().map(|bytes| bytes.len()).sum();
        if HEAD_BYTES + self.entries.len() + len > BLOCK_BYTES {
            return false;
        }
        bytes.iter().for_each(|bytes| self.entries.extend_from_slice(bytes));
        self.count += 1;
        true
    }

    /// Adds what is known of an object; whether it had room.
    pub fn push_entry(&mut self, id: &ObjectId, known: &Known) -> bool {
        let mut bytes = [0; ENTRY_BYTES_MAX];
        let mut end = ENTRY_BYTES;
        let (mut namespace, mut name): (&[u8], &[u8]) = (&[], &[]);
        put(&mut bytes, 19, id.as_bytes());
        match &known.entry {
            None => bytes[0] = FLAG_DELETED,
            Some(entry) => {
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
                (namespace, name) = (text(&known.origin.namespace), text(&known.origin.name));
                if !namespace.is_empty() || !name.is_empty() {
                    bytes[0] |= FLAG_ORIGIN;
                    put(&mut bytes, end, &len_u32(namespace.len()).to_le_bytes()[..2]);
                    put(&mut bytes, end + 2, &len_u32(name.len()).to_le_bytes()[..2]);
                    end += 4;
                }
            }
        }
        self.push(&[&bytes[..end], namespace, name])
    }

    /// Adds an alarm; whether it had room.
    pub fn push_alarm(&mut self, at_ms: u64, id: &ObjectId) -> bool {
        let mut bytes = [0; ALARM_BYTES];
        put(&mut bytes, 0, &at_ms.to_le_bytes());
        put(&mut bytes, 8, id.as_bytes());
        self.push(&[&bytes])
    }

    /// Writes the block for its place, and begins another one.
    ///
    /// Shapes: `out` has [`BLOCK_BYTES`].
    pub fn finish(&mut self, out: &mut [u8], incarnation: Incarnation, number: u32) {
        assert!(out.len() == BLOCK_BYTES && !self.is_empty());
        out.fill(0);
        let used = HEAD_BYTES + self.entries.len();
        put(out, 4, &self.count.to_le_bytes());
        put(out, 6, &len_u32(used).to_le_bytes()[..2]);
        put(out, HEAD_BYTES, &self.entries);
        let crc = block_crc(out, incarnation, number);
        put(out, 0, &crc.to_le_bytes());
        self.entries.clear();
        self.count = 0;
    }
}

/// Checks a block of entries; gives the first one's id.
pub fn first_id(bytes: &[u8], incarnation: Incarnation, number: u32) -> Result<ObjectId, Rejected> {
    let (_, mut rest) = open(bytes, incarnation, number)?;
    take_entry(&mut rest).map(|(id, ..)| id)
}

/// Checks a block of entries; gives that of an object: `Some(None)` if it was deleted.
pub fn find(
    bytes: &[u8],
    incarnation: Incarnation,
    number: u32,
    wanted: &ObjectId,
) -> Result<Option<Option<Entry>>, Rejected> {
    let (count, mut rest) = open(bytes, incarnation, number)?;
    for _ in 0..count {
        let (id, entry, _) = take_entry(&mut rest)?;
        if id == *wanted {
            return Ok(Some(entry));
        }
    }
    Ok(None)
}

/// Checks a block of entries; gives all that it says of an object.
pub fn find_known(
    bytes: &[u8],
    incarnation: Incarnation,
    number: u32,
    wanted: &ObjectId,
) -> Result<Option<Known>, Rejected> {
    let found = entries(bytes, incarnation, number)?.into_iter().find(|(id, _)| id == wanted);
    Ok(found.map(|(_, known)| known))
}

/// Checks a block of entries and reads them, each with its id.
pub fn entries(
    bytes: &[u8],
    incarnation: Incarnation,
    number: u32,
) -> Result<Vec<(ObjectId, Known)>, Rejected> {
    let (count, mut rest) = open(bytes, incarnation, number)?;
    let mut entries: Vec<(ObjectId, Known)> = Vec::with_capacity(count);
    for _ in 0..count {
        let (id, entry, Text { namespace, name }) = take_entry(&mut rest)?;
        let mut origin = Origin { namespace: None, name: read_text(name)? };
        // Most objects of a block are of one namespace, which is kept once.
        let before = entries.last().and_then(|(_, before)| before.origin.namespace.clone());
        origin.namespace = match before.filter(|before| before.as_bytes() == namespace) {
            Some(before) => Some(before),
            None => read_text(namespace)?,
        };
        entries.push((id, Known { entry, origin }));
    }
    match rest.is_empty() {
        true => Ok(entries),
        false => Err(Rejected::Malformed("entries of a run")),
    }
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

fn take_entry<'a>(rest: &mut &'a [u8]) -> Result<(ObjectId, Option<Entry>, Text<'a>), Rejected> {
    const SHORT: Rejected = Rejected::Malformed("entry of a run");
    let (fixed, after) = rest.split_at_checked(ENTRY_BYTES).ok_or(SHORT)?;
    *rest = after;
    let mut take = |len| -> Result<&'a [u8], Rejected> {
        let (taken, after) = rest.split_at_checked(len).ok_or(SHORT)?;
        *rest = after;
        Ok(taken)
    };
    let flags = fixed[0];
    let id = ObjectId::from_bytes(get(fixed, 19));
    if flags == FLAG_DELETED {
        return Ok((id, None, Text::default()));
    }
    let count = usize::from(flags & COUNT_MASK);
    let known = COUNT_MASK | FLAG_ALARM | FLAG_DAMAGED | FLAG_ORIGIN;
    if flags & !known != 0 || count > CHAIN_MAX {
        return Err(SHORT);
    }
    let alarm = match flags & FLAG_ALARM {
        0 => None,
        _ => Some(get_u64(take(8)?, 0)),
    };
    let mut chain = [None; CHAIN_MAX];
    for address in &mut chain[..count] {
        *address = Some(Address::decode(&get(take(ADDRESS_BYTES)?, 0)).ok_or(SHORT)?);
    }
    let mut text = Text::default();
    if flags & FLAG_ORIGIN != 0 {
        let lens = take(4)?;
        text.namespace = take(usize::from(get_u16(lens, 0)))?;
        text.name = take(usize::from(get_u16(lens, 2)))?;
    }
    let version = Version(get_u64(fixed, 11));
    let stamp = Stamp { version, alarm, written_ms: get_u64(fixed, 51) };
    let mut entry = Entry::of_chain(chain, stamp);
    entry.damaged = flags & FLAG_DAMAGED != 0;
    entry.depth = get_u16(fixed, 1);
    entry.image_bytes = get_u32(fixed, 3);
    entry.delta_bytes = get_u32(fixed, 7);
    match entry.version == Version::NONE || (count == 0 && !entry.damaged) {
        true => Err(SHORT),
        false => Ok((id, Some(entry), text)),
    }
}

/// Checks a block of alarms and reads them.
pub fn alarms(
    bytes: &[u8],
    incarnation: Incarnation,
    number: u32,
) -> Result<Vec<(u64, ObjectId)>, Rejected> {
    let (count, rest) = open(bytes, incarnation, number)?;
    if rest.len() != count * ALARM_BYTES {
        return Err(Rejected::Malformed("alarms of a run"));
    }
    let alarms = rest.chunks_exact(ALARM_BYTES);
    Ok(alarms.map(|alarm| (get_u64(alarm, 0), ObjectId::from_bytes(get(alarm, 8)))).collect())
}
