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
//! | 8 | 4 | crc32c of incarnation, block number, bytes 4..8, and the table |
//! | 12 | 8 each | table: of each entry its offset in the block (2 bytes), the low half of its key's low half (2), and its crc32c (4) |
//! | | | entries ([`super::entry`]), one behind the other |
//!
//! So that a look for one object has to believe, and to touch, the table and one entry alone. Who reads all
//! checks all. A block of alarms has no table, and 0 for its checksum; an alarm is its time (8 bytes, ms since
//! 1970) and the object id (32). It is a hint: the object's newest entry decides.

use bytes::Bytes;

use super::entry::{self, RawEntry};
use super::{
    Rejected, VERSION, all_zero, checked, crc_without, get, get_u16, get_u32, get_u64, len_u32, put,
};
use crate::directory::{Entry, Known};
use crate::ids::{Incarnation, ObjectId, StoreId};

/// Bytes of a block.
pub const BLOCK_BYTES: usize = 4096;
/// Bytes of a block before table or alarms.
pub const HEAD_BYTES: usize = 12;
/// Bytes of the table for each entry.
pub const SLOT_BYTES: usize = 8;
/// Bytes of an alarm.
const ALARM_BYTES: usize = 40;
/// Alarms of a block; the last one may have fewer.
pub const ALARMS_PER_BLOCK: usize = (BLOCK_BYTES - HEAD_BYTES) / ALARM_BYTES;
const MAGIC: [u8; 8] = *b"DMDIRRUN";

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

/// The checksum of parts of a block, bound to its place.
fn crc(incarnation: Incarnation, number: u32, parts: [&[u8]; 2]) -> u32 {
    let mut place = [0; 12];
    put(&mut place, 0, &incarnation.0.to_le_bytes());
    put(&mut place, 8, &number.to_le_bytes());
    parts.iter().fold(crc32c::crc32c(&place), |crc, part| crc32c::crc32c_append(crc, part))
}

/// What a key is told by in a block's table.
fn tag(hash: u64) -> [u8; 2] {
    get(&hash.to_le_bytes(), 0)
}

/// How many entries a block holds, and how much of it is used.
fn counts(bytes: &[u8]) -> (usize, usize) {
    (usize::from(get_u16(bytes, 4)), usize::from(get_u16(bytes, 6)))
}

/// Checks all of a block; gives how many entries it holds, and what is used of it behind the head.
fn open(bytes: &[u8], incarnation: Incarnation, number: u32) -> Result<(usize, &[u8]), Rejected> {
    let bytes = bytes.get(..BLOCK_BYTES).ok_or(Rejected::Short)?;
    if get_u32(bytes, 0) != crc(incarnation, number, [&bytes[4..], &[]]) {
        return Err(Rejected::Checksum);
    }
    let (count, used) = counts(bytes);
    if count == 0 || !(HEAD_BYTES..=BLOCK_BYTES).contains(&used) || !all_zero(&bytes[used..]) {
        return Err(Rejected::Malformed("block of a run"));
    }
    Ok((count, &bytes[HEAD_BYTES..used]))
}

/// Fills one block.
#[derive(Debug, Default)]
pub struct BlockBuilder {
    table: Vec<u8>,
    entries: Vec<u8>,
    count: u16,
}

impl BlockBuilder {
    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    fn push(&mut self, slot: &[u8], bytes: &[u8]) -> bool {
        let before = HEAD_BYTES + self.table.len() + self.entries.len();
        if before + slot.len() + bytes.len() > BLOCK_BYTES {
            return false;
        }
        self.table.extend_from_slice(slot);
        self.entries.extend_from_slice(bytes);
        self.count += 1;
        true
    }

    /// Adds the entry of an object; whether it had room.
    pub fn push_entry(&mut self, key: &Key, entry: &RawEntry) -> bool {
        let mut slot = [0; SLOT_BYTES];
        // From the first entry on, until the table's length is known.
        put(&mut slot, 0, &len_u32(self.entries.len()).to_le_bytes()[..2]);
        put(&mut slot, 2, &tag(key.hash));
        put(&mut slot, 4, &crc32c::crc32c(entry.as_bytes()).to_le_bytes());
        self.push(&slot, entry.as_bytes())
    }

    /// Adds an alarm; whether it had room.
    pub fn push_alarm(&mut self, at_ms: u64, id: &ObjectId) -> bool {
        let mut bytes = [0; ALARM_BYTES];
        put(&mut bytes, 0, &at_ms.to_le_bytes());
        put(&mut bytes, 8, id.as_bytes());
        self.push(&[], &bytes)
    }

    /// Writes the block for its place, and begins another one.
    ///
    /// Shapes: `out` has [`BLOCK_BYTES`].
    pub fn finish(&mut self, out: &mut [u8], incarnation: Incarnation, number: u32) {
        assert!(out.len() == BLOCK_BYTES && !self.is_empty());
        let entries_at = HEAD_BYTES + self.table.len();
        let used = entries_at + self.entries.len();
        out[used..].fill(0);
        put(out, 4, &self.count.to_le_bytes());
        put(out, 6, &len_u32(used).to_le_bytes()[..2]);
        for slot in self.table.chunks_exact_mut(SLOT_BYTES) {
            let at = entries_at + usize::from(get_u16(slot, 0));
            put(slot, 0, &len_u32(at).to_le_bytes()[..2]);
        }
        put(out, HEAD_BYTES, &self.table);
        put(out, entries_at, &self.entries);
        set_crcs(out, self.table.len(), incarnation, number);
        self.table.clear();
        self.entries.clear();
        self.count = 0;
    }
}

/// Sets the checksums of a block with a table of so many bytes.
///
/// Shapes: `block` has [`BLOCK_BYTES`].
pub fn set_crcs(block: &mut [u8], table_bytes: usize, incarnation: Incarnation, number: u32) {
    let table = &block[HEAD_BYTES..HEAD_BYTES + table_bytes];
    let table_crc = match table.is_empty() {
        true => 0,
        false => crc(incarnation, number, [&block[4..8], table]),
    };
    put(block, 8, &table_crc.to_le_bytes());
    let whole_crc = crc(incarnation, number, [&block[4..], &[]]);
    put(block, 0, &whole_crc.to_le_bytes());
}

/// The table of a block, checked, for a look at some of its entries.
struct Table<'a> {
    block: &'a [u8],
    slots: &'a [u8],
    used: usize,
}

impl<'a> Table<'a> {
    fn open(block: &'a [u8], incarnation: Incarnation, number: u32) -> Result<Self, Rejected> {
        let block = block.get(..BLOCK_BYTES).ok_or(Rejected::Short)?;
        let (count, used) = counts(block);
        // A count that is damaged may say that it is longer than the block.
        let slots = block.get(HEAD_BYTES..HEAD_BYTES + count * SLOT_BYTES);
        let slots = slots.ok_or(Rejected::Checksum)?;
        if get_u32(block, 8) != crc(incarnation, number, [&block[4..8], slots]) {
            return Err(Rejected::Checksum);
        }
        match count > 0 && used <= BLOCK_BYTES {
            true => Ok(Self { block, slots, used }),
            false => Err(Rejected::Malformed("table of a run")),
        }
    }

    /// Where an entry begins; behind the last one, where it ends.
    fn start(&self, index: usize) -> usize {
        let slot = self.slots.get(index * SLOT_BYTES..);
        slot.filter(|rest| !rest.is_empty()).map_or(self.used, |slot| get_u16(slot, 0).into())
    }

    /// Checks and gives the bytes of an entry.
    fn entry(&self, index: usize) -> Result<&'a [u8], Rejected> {
        let range = self.start(index)..self.start(index + 1);
        let malformed = Rejected::Malformed("table of a run");
        let mut bytes = self.block.get(range).ok_or(malformed)?;
        if get_u32(self.slots, index * SLOT_BYTES + 4) != crc32c::crc32c(bytes) {
            return Err(Rejected::Checksum);
        }
        let entry = entry::split(&mut bytes)?;
        if bytes.is_empty() { Ok(entry) } else { Err(malformed) }
    }

    /// Checks and gives the bytes of an object's entry.
    fn find(&self, key: &Key) -> Result<Option<&'a [u8]>, Rejected> {
        let tag = tag(key.hash);
        for (index, slot) in self.slots.chunks_exact(SLOT_BYTES).enumerate() {
            if slot[2..4] == tag {
                let entry = self.entry(index)?;
                if entry::id_bytes(entry) == key.id.as_bytes() {
                    return Ok(Some(entry));
                }
            }
        }
        Ok(None)
    }
}

/// Checks the beginning of a block of entries; gives the first one's id.
pub fn first_id(bytes: &[u8], incarnation: Incarnation, number: u32) -> Result<ObjectId, Rejected> {
    Table::open(bytes, incarnation, number)?.entry(0).map(entry::id)
}

/// Looks into a block of entries, which is checked as far as need be; gives that of an object:
/// `Some(None)` if it was deleted.
pub fn find(
    bytes: &[u8],
    incarnation: Incarnation,
    number: u32,
    key: &Key,
) -> Result<Option<Option<Entry>>, Rejected> {
    let found = Table::open(bytes, incarnation, number)?.find(key)?;
    found.map(entry::entry).transpose()
}

/// Likewise; gives all that it says of an object.
pub fn find_known(
    bytes: &[u8],
    incarnation: Incarnation,
    number: u32,
    key: &Key,
) -> Result<Option<Known>, Rejected> {
    let found = Table::open(bytes, incarnation, number)?.find(key)?;
    found.map(|found| entry::known(found, None)).transpose()
}

/// Checks a copy of a block of entries, and gives them as they lie there: what was checked is what they
/// say, whatever becomes of the block. What they say of their objects is checked when it is read.
pub fn entries(
    bytes: &[u8],
    incarnation: Incarnation,
    number: u32,
) -> Result<Vec<RawEntry>, Rejected> {
    let bytes = Bytes::copy_from_slice(bytes.get(..BLOCK_BYTES).ok_or(Rejected::Short)?);
    let (count, rest) = open(&bytes, incarnation, number)?;
    let mut rest = rest.get(count * SLOT_BYTES..).ok_or(Rejected::Malformed("table of a run"))?;
    let mut entries = Vec::with_capacity(count);
    for _ in 0..count {
        let entry = entry::split(&mut rest)?;
        entries.push(RawEntry::new(bytes.slice_ref(entry)));
    }
    match rest.is_empty() {
        true => Ok(entries),
        false => Err(Rejected::Malformed("entries of a run")),
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
