//! What the directory says of one object.

use crate::contents::Origin;
use crate::format::frame::{Address, Frame, Sizes};
use crate::ids::Version;

/// Addresses that one entry holds at most.
pub const CHAIN_MAX: usize = 4;

/// What a commit says of its object, besides where it lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Its version.
    pub version: Version,
    /// The alarm after it, ms since 1970.
    pub alarm: Option<u64>,
    /// When it was made by the wall clock, ms since 1970.
    pub written_ms: u64,
}

/// Where one object's state lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    chain: [Option<Address>; CHAIN_MAX],
    /// The newest commit's version.
    pub version: Version,
    /// The alarm, ms since 1970.
    pub alarm: Option<u64>,
    /// When that commit was made by the wall clock, ms since 1970.
    pub written_ms: u64,
    /// Bytes of the image at the start of the chain, as far as known.
    pub image_bytes: u32,
    /// Bytes of the deltas after it.
    pub delta_bytes: u32,
    /// How many chains are nested in the first frame.
    pub depth: u16,
    /// Whether a frame that it needs was lost: the object answers `Corrupt`.
    pub damaged: bool,
}

impl Entry {
    /// The entry of an object whose whole state is one image.
    pub fn image(address: Address, stamp: Stamp) -> Self {
        let mut entry = Self::lost(stamp.version);
        entry.chain[0] = Some(address);
        entry.image_bytes = address.bytes;
        entry.damaged = false;
        entry.stamped(stamp)
    }

    fn stamped(self, stamp: Stamp) -> Self {
        let Stamp { version, alarm, written_ms } = stamp;
        Self { version, alarm, written_ms, ..self }
    }

    /// The same object once a frame that it needs was lost.
    pub(crate) fn into_damaged(self) -> Self {
        Self { damaged: true, ..self }
    }

    /// The same object after a commit that needs what was lost.
    pub(crate) fn still_damaged(self, stamp: Stamp) -> Self {
        assert!(self.damaged);
        self.stamped(stamp)
    }

    /// The entry of an object of which nothing can be read any more.
    pub fn lost(version: Version) -> Self {
        Self {
            chain: [None; CHAIN_MAX],
            version,
            alarm: None,
            written_ms: 0,
            image_bytes: 0,
            delta_bytes: 0,
            depth: 0,
            damaged: true,
        }
    }

    /// What its newest commit says.
    pub(crate) fn stamp(&self) -> Stamp {
        let Self { version, alarm, written_ms, .. } = *self;
        Stamp { version, alarm, written_ms }
    }

    /// The frames to read, oldest first.
    pub fn chain(&self) -> impl DoubleEndedIterator<Item = Address> + '_ {
        self.chain.iter().flatten().copied()
    }

    /// The newest frame.
    pub fn newest(&self) -> Option<Address> {
        self.chain().next_back()
    }

    /// Whether a further delta must carry the chain itself.
    pub fn is_full(&self) -> bool {
        self.chain[CHAIN_MAX - 1].is_some()
    }

    /// The entry after a delta at `address`; `nested`: the delta carries the chain itself.
    pub fn with_delta(&self, address: Address, stamp: Stamp, nested: bool) -> Self {
        assert!(stamp.version > self.version);
        let mut entry = self.stamped(stamp);
        entry.delta_bytes = entry.delta_bytes.saturating_add(address.bytes);
        if nested {
            entry.chain = [Some(address), None, None, None];
            entry.depth = entry.depth.saturating_add(1);
        } else {
            let free = entry.chain.iter_mut().find(|slot| slot.is_none());
            *free.expect("the writer nests a full chain") = Some(address);
        }
        entry
    }

    /// The entry that a delta which was read builds on, as far as the entry after it takes from it.
    pub(crate) fn before(frame: &Frame<'_>) -> Self {
        let mut entry = Self::lost(Version::NONE);
        let Sizes { image_bytes, delta_bytes, depth } = frame.sizes;
        // One that nests takes nothing from it but the sizes.
        let chain = if frame.nests { &[][..] } else { &frame.chain };
        entry.chain.iter_mut().zip(chain).for_each(|(slot, address)| *slot = Some(*address));
        Self { image_bytes, delta_bytes, depth, damaged: false, ..entry }
    }

    /// What its chain amounts to.
    pub(crate) fn sizes(&self) -> Sizes {
        let Self { image_bytes, delta_bytes, depth, .. } = *self;
        Sizes { image_bytes, delta_bytes, depth }
    }

    pub(crate) fn of_chain(chain: [Option<Address>; CHAIN_MAX], stamp: Stamp) -> Self {
        Self { chain, ..Self::lost(stamp.version) }.stamped(stamp)
    }

    /// Replaces addresses, as `resolve` says.
    pub(crate) fn resolve(&mut self, resolve: impl Fn(Address) -> Address) {
        for address in self.chain.iter_mut().flatten() {
            *address = resolve(*address);
        }
    }
}

/// All that the directory says of an object that it knows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// Its entry; `None` if it was deleted.
    pub entry: Option<Entry>,
    /// Its namespace and name, where this entry knows them. An older one may know more: where an id
    /// comes from never changes.
    pub origin: Origin,
}
