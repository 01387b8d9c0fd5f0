//! The numbers of the engine, each a type of its own, so that none is taken for another.

use std::fmt;

/// An object's id: 32 bytes, opaque to the engine.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectId([u8; 32]);

impl ObjectId {
    /// Bytes of an id.
    pub const BYTES: usize = 32;

    /// The id with these bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The id's bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The shard of a store with `shards` shards that owns this object: crc32c of the id modulo
    /// `shards`. Part of the format: changing it loses objects.
    pub fn shard(&self, shards: u16) -> u16 {
        assert!(shards > 0);
        let shard = crc32c::crc32c(&self.0) % u32::from(shards);
        u16::try_from(shard).expect("less than shards")
    }
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// An object's version: raised by every commit, never used twice by an object, zero for one that
/// does not exist. Drawn from one counter of the shard, so gaps are normal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(pub u64);

impl Version {
    /// The version of an object that does not exist.
    pub const NONE: Self = Self(0);
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Stands for a namespace where its objects' bytes are counted: a hash of its name. Names are chosen by whoever
/// writes the program, so nobody makes two of one tag on purpose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct NamespaceTag(pub u64);

impl NamespaceTag {
    /// That of objects of which no namespace is known.
    pub const NONE: Self = Self(0);

    /// That of a namespace.
    pub fn of(namespace: &str) -> Self {
        Self::of_bytes(namespace.as_bytes())
    }

    /// That of the namespace whose name has these bytes: FNV-1a of 64 bits, and never 0. It is on disk, so it never changes.
    pub(crate) fn of_bytes(namespace: &[u8]) -> Self {
        let hash = namespace.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        Self(hash.max(1))
    }
}

/// Identifies one store; drawn at random when it is created.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreId(pub u128);

/// Identifies one use of a segment's file; drawn at random for each use, so that what an earlier
/// use left in the file is never taken for live.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Incarnation(pub u64);

/// A segment's place in the log of its shard: later segments have higher numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SegmentNumber(pub u32);

/// A batch's place in the log of its shard: 1, 2, 3, … without gaps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Sequence(pub u64);

impl Sequence {
    /// The next batch's.
    pub fn next(self) -> Self {
        Self(self.0.checked_add(1).expect("sequence numbers do not run out"))
    }
}

/// A shard's life between two recoveries; raised by each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Epoch(pub u32);
