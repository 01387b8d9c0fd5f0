//! What the directory says of one object.

use std::sync::Arc;

use crate::contents::Origin;
use crate::format::frame::{Address, Frame, Share, Sizes};
use crate::ids::{NamespaceTag, Version};
use crate::limits::Limits;

/// Addresses that one entry holds at most.
pub const CHAIN_MAX: usize = 4;
/// Segments that one entry names for what is nested in its frames. What lies in further ones counts as
/// live for good (`live`): only a tree of ten gigabytes and more comes so far.
pub const SHARES_MAX: usize = 160;

/// Nested chains of an object that nobody keeps resident, before it is read and written as one
/// image.
const NESTED_CHAINS_MAX: u16 = 16;
/// Likewise, segments that these lie in.
const NESTED_SEGMENTS_MAX: usize = 32;
/// Nested chains of a large object, before what they say is gathered in the root of its tree: that costs
/// little, and whoever reads the object reads them one after the other.
const TREE_CHAINS_MAX: u16 = 4;

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
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    chain: [Option<Address>; CHAIN_MAX],
    /// What the frames amount to that are nested in those of the chain, by rising segments.
    nested: Option<Arc<[Share]>>,
    /// Whether there is more than `nested` says.
    scattered: bool,
    /// Whether the chain begins with a tree: `nested` says what its pages and values amount to, too.
    pub(crate) tree: bool,
    /// The namespace for which it counts ([`crate::namespaces`]): never another one while the object exists.
    pub namespace: NamespaceTag,
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
    /// The entry of an object whose whole state is one image, of which `parts` lie in frames of their own.
    pub fn image(address: Address, stamp: Stamp, parts: &[Address]) -> Self {
        let mut entry = Self::lost(stamp.version);
        entry.chain[0] = Some(address);
        entry.image_bytes = address.bytes;
        entry.damaged = false;
        entry.nest(parts.iter().copied().map(Share::from));
        entry.stamped(stamp)
    }

    /// The entry of an object whose state is a tree with this root; `kept` is what its pages and values
    /// amount to, `waiting` how many bytes of operations wait in the root, and in `parts`.
    pub(crate) fn tree(
        address: Address,
        stamp: Stamp,
        kept: &[Share],
        parts: &[Address],
        waiting: u32,
    ) -> Self {
        let mut entry = Self::image(address, stamp, parts);
        entry.nest(kept.iter().copied());
        Self { tree: true, delta_bytes: waiting, ..entry }
    }

    /// Takes in what further frames that are nested amount to.
    fn nest(&mut self, more: impl Iterator<Item = Share>) {
        let mut shares = merged(self.nested().iter().copied().chain(more));
        self.scattered |= shares.len() > SHARES_MAX;
        shares.truncate(SHARES_MAX);
        self.nested = (!shares.is_empty()).then(|| shares.into());
    }

    fn stamped(self, stamp: Stamp) -> Self {
        let Stamp { version, alarm, written_ms } = stamp;
        Self { version, alarm, written_ms, ..self }
    }

    /// The same entry of an object that counts for this namespace.
    pub(crate) fn counting_for(self, namespace: NamespaceTag) -> Self {
        Self { namespace, ..self }
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
            nested: None,
            scattered: false,
            tree: false,
            namespace: NamespaceTag::NONE,
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

    /// What the frames amount to that are nested in those of the chain, by rising segments.
    pub fn nested(&self) -> &[Share] {
        self.nested.as_deref().unwrap_or_default()
    }

    /// Whether its state is more than one image.
    pub(crate) fn has_deltas(&self) -> bool {
        self.chain[1].is_some() || self.depth > 0
    }

    /// Whether the object is a tree, which is not read as a whole.
    pub fn is_tree(&self) -> bool {
        self.tree
    }

    /// Whether the object is to be rewritten, so that it is read quickly.
    pub(crate) fn is_due(&self, limits: &Limits) -> bool {
        let delta_bytes = self.delta_bytes as usize;
        match self.tree {
            true => self.depth >= TREE_CHAINS_MAX || delta_bytes > 2 * limits.root_ops_bytes,
            false => {
                self.depth >= NESTED_CHAINS_MAX
                    || self.nested().len() >= NESTED_SEGMENTS_MAX
                    || delta_bytes > 2 * limits.image_bytes_max
            }
        }
    }

    /// Bytes of all frames that it needs.
    pub fn log_bytes(&self) -> u64 {
        self.needs().map(|share| u64::from(share.bytes)).sum()
    }

    /// Whether more is nested than [`Entry::nested`] says.
    pub fn is_scattered(&self) -> bool {
        self.scattered
    }

    /// All that the object needs, as far as the entry says: one share for each frame of the chain, then
    /// what is nested in them.
    pub fn needs(&self) -> impl Iterator<Item = Share> + '_ {
        self.chain().map(Share::from).chain(self.nested().iter().copied())
    }

    /// Whether a further delta must carry the chain itself.
    pub fn is_full(&self) -> bool {
        self.chain[CHAIN_MAX - 1].is_some()
    }

    /// The entry after a delta at `address`; `nested`: the delta carries the chain itself, and then the
    /// parts of its own commit.
    pub fn with_delta(
        &self,
        address: Address,
        stamp: Stamp,
        nested: bool,
        parts: &[Address],
    ) -> Self {
        assert!(stamp.version > self.version);
        assert!(nested || parts.is_empty());
        let mut entry = self.clone().stamped(stamp);
        let frames = parts.iter().chain([&address]);
        entry.delta_bytes = frames.fold(entry.delta_bytes, |sum, it| sum.saturating_add(it.bytes));
        if nested {
            entry.nest(self.chain().chain(parts.iter().copied()).map(Share::from));
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
        let base = frame.base();
        entry.chain.iter_mut().zip(base).for_each(|(slot, address)| *slot = Some(*address));
        entry.nest(frame.shares.iter().copied());
        entry.scattered |= frame.scattered;
        entry.tree = frame.tree;
        Self { image_bytes, delta_bytes, depth, damaged: false, ..entry }
    }

    /// What its chain amounts to.
    pub(crate) fn sizes(&self) -> Sizes {
        let Self { image_bytes, delta_bytes, depth, .. } = *self;
        Sizes { image_bytes, delta_bytes, depth }
    }

    pub(crate) fn of_chain(
        chain: [Option<Address>; CHAIN_MAX],
        nested: Vec<Share>,
        scattered: bool,
        stamp: Stamp,
    ) -> Self {
        let nested = (!nested.is_empty()).then(|| nested.into());
        Self { chain, nested, scattered, ..Self::lost(stamp.version) }.stamped(stamp)
    }

    /// Replaces addresses of the chain.
    pub(crate) fn relocate(&mut self, place: impl Fn(Address) -> Address) {
        self.chain.iter_mut().flatten().for_each(|address| *address = place(*address));
    }

    /// Replaces segments that were not known yet: `resolve` gives the number of one, and what is to be
    /// added to offsets in it.
    pub(crate) fn resolve(&mut self, resolve: impl Fn(u32) -> Option<(u32, u32)>) {
        for address in self.chain.iter_mut().flatten() {
            if let Some((segment, base)) = resolve(address.segment) {
                *address = Address { segment, offset: base + address.offset, ..*address };
            }
        }
        if self.nested().iter().any(|share| resolve(share.segment).is_some()) {
            let shares = self.nested().iter().map(|share| match resolve(share.segment) {
                Some((segment, _)) => Share { segment, ..*share },
                None => *share,
            });
            self.nested = Some(merged(shares).into());
        }
    }
}

/// One share for each segment, by rising segments.
pub(crate) fn merged(shares: impl Iterator<Item = Share>) -> Vec<Share> {
    let mut shares: Vec<_> = shares.collect();
    shares.sort_unstable_by_key(|share| share.segment);
    shares.dedup_by(|next, kept| {
        let same = next.segment == kept.segment;
        kept.bytes = if same { kept.bytes.saturating_add(next.bytes) } else { kept.bytes };
        same
    });
    shares
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
