//! Live bytes: how much of each segment objects need. What nobody needs can go; what is hardly needed is
//! what the cleaner takes ([`crate::clean`]).
//!
//! A frame is live if reading some object reads it: it is in the chain of the object's entry in the
//! directory, or nested in such a frame, as deep as that goes.
//!
//! | a durable commit | makes live | makes dead |
//! |---|---|---|
//! | a delta, nested or not | its frame and its parts | nothing: what it builds on is still read |
//! | an image, rewrites too | its frame; of a tree all that it keeps, which was dead for a moment, and all that is new | all that the entry before needed |
//! | one after which the object does not exist | nothing: its frame only tells replay | the same |
//! | one in a lost batch, or a delta on one | nothing that is known | nothing, or what is known to have been there |
//!
//! What an entry needs, nested chains included, is in the entry itself: its chain, and *shares*, one for
//! each segment that something nested lies in ([`crate::directory::Entry::needs`]). The other ways were
//! to read the nested chain when an image takes its place, which a commit that deletes all of a cold
//! object can't wait for, or to note the old chain as to be counted later, which would have to survive
//! crashes beside the log. So shares are known whenever a chain nests: they are those of the entry, and
//! the frames that it names no longer. A frame carries the shares of the entry before it (of an image: all
//! that the entry needed, for that is dead now), so that replay counts as the commit did, without a look
//! at runs. A checkpoint keeps the counters as of its batch; replay goes on from there.
//!
//! Pages and values of a large object's tree count as nested: its image names what they amount to, *kept*
//! and new ones. A tree of ten gigabytes and more may come to need more segments than an entry has
//! shares for ([`crate::directory::SHARES_MAX`]). What lies in the further ones is counted as live and, for nobody knows it any more, not
//! as dead when it dies: the counters are then too high (`inexact`, which a checkpoint keeps too), never
//! too low. Such segments stay until the store is resharded.
//!
//! Invariants:
//!
//! - Counters follow the directory: they change with it, when a batch is durable, and never before.
//! - Of a segment of which any byte is needed the counter is above zero.

use std::collections::BTreeMap;

use crate::directory::Entry;
use crate::format::frame::Share;
use crate::ids::NamespaceTag;
use crate::namespaces::Namespaces;

/// What is counted of one segment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Count {
    bytes: u64,
    /// When its newest commit was made by the wall clock, seconds since 1970; that of a rewrite is that of
    /// the commit that it rewrites.
    newest_s: u32,
}

/// The live bytes of a shard.
#[derive(Clone, Debug, Default)]
pub(crate) struct Live {
    segments: BTreeMap<u32, Count>,
    total: u64,
    /// Of these, what the objects of each namespace need.
    pub(crate) namespaces: Namespaces,
    /// All bytes that became live or died so far.
    changed: u64,
    inexact: bool,
    /// Bytes that were to be taken from a segment that did not have them.
    missing: u64,
}

impl Live {
    /// Of an older time: as it was kept by a checkpoint.
    pub(crate) fn kept(
        segments: impl IntoIterator<Item = (u32, u32, u32)>,
        namespaces: Namespaces,
        inexact: bool,
    ) -> Self {
        let mut live = Self { inexact, namespaces, ..Self::default() };
        for (segment, bytes, newest_s) in segments {
            live.segments.insert(segment, Count { bytes: bytes.into(), newest_s });
            live.total += u64::from(bytes);
        }
        live
    }

    /// These bytes are needed now.
    pub(crate) fn raise(&mut self, share: impl Into<Share>) {
        let Share { segment, bytes } = share.into();
        self.segments.entry(segment).or_default().bytes += u64::from(bytes);
        self.total += u64::from(bytes);
        self.changed += u64::from(bytes);
    }

    /// Nobody needs these bytes any more.
    pub(crate) fn lower(&mut self, Share { segment, bytes }: Share) {
        let bytes = u64::from(bytes);
        let has = self.bytes(segment);
        if bytes > has {
            self.missing += bytes - has;
            tracing::error!(
                segment,
                has,
                bytes,
                "more bytes die than were live: counting is wrong"
            );
        }
        if let Some(count) = self.segments.get_mut(&segment) {
            count.bytes -= bytes.min(has);
        }
        self.total -= bytes.min(has);
        self.changed += bytes;
    }

    /// What the entry of an object needs is needed no more.
    pub(crate) fn lower_all(&mut self, entry: &Entry) {
        entry.needs().for_each(|share| self.lower(share));
        self.inexact |= entry.is_scattered();
    }

    /// An entry of which not all is known is gone.
    pub(crate) fn note_scattered(&mut self, scattered: bool) {
        self.inexact |= scattered;
    }

    /// All that changed since there were `before` bytes in all is about one commit, to an object that counts
    /// for this namespace; `waited` bytes of it waited until now.
    pub(crate) fn count(&mut self, namespace: NamespaceTag, waited: u64, before: u64) {
        self.namespaces.settle(namespace, waited, before, self.total);
    }

    /// A commit of this time was written to a segment.
    pub(crate) fn written(&mut self, segment: u32, wall_ms: u64) {
        let newest_s = &mut self.segments.entry(segment).or_default().newest_s;
        *newest_s = (*newest_s).max(u32::try_from(wall_ms / 1000).unwrap_or(u32::MAX));
    }

    /// Live bytes of a segment.
    pub(crate) fn bytes(&self, segment: u32) -> u64 {
        self.segments.get(&segment).map_or(0, |count| count.bytes)
    }

    /// When the newest commit in a segment was made, seconds since 1970.
    pub(crate) fn newest_s(&self, segment: u32) -> u32 {
        self.segments.get(&segment).map_or(0, |count| count.newest_s)
    }

    /// Live bytes of all segments.
    pub(crate) fn total(&self) -> u64 {
        self.total
    }

    /// Bytes that became live or died since the shard was opened.
    pub(crate) fn changed(&self) -> u64 {
        self.changed
    }

    /// Whether more may be counted than is live.
    pub(crate) fn is_inexact(&self) -> bool {
        self.inexact
    }

    /// Bytes that were to be taken from a segment that did not have them: 0 if counting is right.
    pub(crate) fn missing(&self) -> u64 {
        self.missing
    }

    /// The segment is gone.
    pub(crate) fn forget(&mut self, segment: u32) {
        let gone = self.segments.remove(&segment).unwrap_or_default();
        self.total -= gone.bytes;
    }

    /// Counts anew: these entries are all that there are.
    pub(crate) fn recount<'a, I>(&mut self, entries: I)
    where
        I: IntoIterator<Item = &'a Entry, IntoIter: Clone>,
    {
        let entries = entries.into_iter();
        self.namespaces.recount(entries.clone());
        self.segments.values_mut().for_each(|count| count.bytes = 0);
        (self.total, self.missing, self.inexact) = (0, 0, false);
        for entry in entries {
            entry.needs().for_each(|share| self.raise(share));
            self.inexact |= entry.is_scattered();
        }
    }

    /// Segments with live bytes, and how many.
    pub(crate) fn segments(&self) -> impl Iterator<Item = (u32, u64)> + '_ {
        let all = self.segments.iter().map(|(segment, count)| (*segment, count.bytes));
        all.filter(|(_, bytes)| *bytes > 0)
    }
}
