//! What the objects of each namespace hold: bytes of the log that they need, as live bytes are counted
//! (`live`), and bounds of them.
//!
//! An object counts for the namespace that its first commit named, for as long as it exists: its entry and each of its
//! frames say the namespace's tag, so that commit and replay count alike without a look-up. A checkpoint keeps
//! the sums. So a store of any number of objects knows them once it is open, after a crash too.
//!
//! A shard has sums of its own objects. A bound is about the whole store: each shard adds its changes to
//! one atomic number, which is all that its cores share. What a shard that is being opened anew had added
//! stays there until its successor says what it found.
//!
//! Invariants:
//!
//! - Sums change with the directory, when a batch is durable. What waits in the queue is counted apart.
//! - A namespace is in the table for as long as any byte of it is there or waits.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use crate::batch::Batch;
use crate::contents::Resident;
use crate::directory::Entry;
use crate::error::{Error, Kind, Result};
use crate::format::frame::HEADER_BYTES;
use crate::ids::{NamespaceTag, ObjectId};
use crate::sync::{AtomicU64, Mutex, Ordering};

/// Bounds of the bytes that all objects of a namespace may hold in a store. Cheap to clone; the shards of one store
/// share one, and no two stores do.
#[derive(Clone, Debug, Default)]
pub struct Quotas(Arc<[Arc<Quota>]>);

impl Quotas {
    /// Bounds by namespace, in bytes.
    pub fn new(bounds: impl IntoIterator<Item = (Arc<str>, u64)>) -> Self {
        let quota = |(name, bytes_max)| {
            let (total, shards) = (AtomicU64::new(0), Mutex::default());
            Arc::new(Quota { name, bytes_max, total, shards })
        };
        Self(bounds.into_iter().map(quota).collect())
    }

    /// Errors: `Invalid`, of more than so many bounds: what is bounded has a place in each checkpoint.
    pub(crate) fn check(&self, max: usize) -> Result<()> {
        let bounds = self.0.len();
        if bounds <= max {
            return Ok(());
        }
        let what = format!("bounds for {bounds} namespaces, at most {max} may have one");
        Err(Error::coded(Kind::Invalid, "too-many-bounds", what))
    }
}

/// The bound of one namespace.
struct Quota {
    name: Arc<str>,
    bytes_max: u64,
    /// The sum of `shards`. It wraps around where one is changed before another: only the sum means something.
    total: AtomicU64,
    /// What each shard holds, the newest of its number.
    shards: Mutex<BTreeMap<u16, Arc<AtomicU64>>>,
}

impl Quota {
    /// Bytes that all shards hold, with what waits.
    fn total(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }

    fn set(&self, mine: &AtomicU64, bytes: u64) {
        // One thread at a time writes to it.
        let before = mine.swap(bytes, Ordering::Relaxed);
        self.total.fetch_add(bytes.wrapping_sub(before), Ordering::Relaxed);
    }
}

impl fmt::Debug for Quota {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} of {}", self.name, self.total(), self.bytes_max)
    }
}

/// What the objects of one namespace hold of a shard.
#[derive(Clone, Debug, Default)]
struct Held {
    /// What is durable.
    bytes: u64,
    /// Frames of commits that wait.
    waiting: u64,
    /// The namespace's bound, and the shard's part of its sum.
    bound: Option<(Arc<Quota>, Arc<AtomicU64>)>,
}

impl Held {
    fn publish(&self) {
        if let Some((quota, mine)) = &self.bound {
            quota.set(mine, self.bytes + self.waiting);
        }
    }

    fn is_needed(&self) -> bool {
        self.bytes > 0 || self.waiting > 0 || self.bound.is_some()
    }
}

/// What the objects of each namespace hold of a shard.
#[derive(Clone, Debug, Default)]
pub(crate) struct Namespaces(BTreeMap<NamespaceTag, Held>);

impl Namespaces {
    /// Of an older time: as they were kept by a checkpoint.
    pub(crate) fn kept(sums: impl IntoIterator<Item = (NamespaceTag, u64)>) -> Self {
        let held = |(tag, bytes)| (tag, Held { bytes, ..Held::default() });
        Self(sums.into_iter().map(held).collect())
    }

    /// The shard of this number is open, and its sums count for these bounds.
    pub(crate) fn bind(&mut self, quotas: &Quotas, shard: u16) {
        for quota in &*quotas.0 {
            let mine = {
                let mut shards = quota.shards.lock().expect("no code panics under it");
                shards.entry(shard).or_insert_with(|| Arc::new(AtomicU64::new(0))).clone()
            };
            let held = self.0.entry(NamespaceTag::of(&quota.name)).or_default();
            held.bound = Some((quota.clone(), mine));
            held.publish();
        }
    }

    /// The namespace for which an object counts after a commit: that of its first one. None, where there are `max`
    /// namespaces already.
    pub(crate) fn tag(
        &self,
        head: Option<&Entry>,
        batch: &Batch,
        resident: Option<&dyn Resident>,
        max: usize,
    ) -> NamespaceTag {
        if let Some(head) = head {
            return head.namespace;
        }
        let said = batch.origin().namespace.as_ref();
        let said = said.or_else(|| resident?.origin().namespace.as_ref());
        let tag = said.map_or(NamespaceTag::NONE, |name| NamespaceTag::of(name));
        match self.0.len() < max || self.0.contains_key(&tag) {
            true => tag,
            false => NamespaceTag::NONE,
        }
    }

    /// Whether a namespace may hold what it would after a commit to one of its objects.
    ///
    /// Errors: `NoSpace`, `namespace-full`.
    pub(crate) fn check(
        &self,
        namespace: NamespaceTag,
        id: &ObjectId,
        head: Option<&Entry>,
        batch: &Batch,
    ) -> Result<()> {
        let held = self.0.get(&namespace).filter(|_| !batch.only_frees());
        let Some((quota, _)) = held.and_then(|held| held.bound.as_ref()) else { return Ok(()) };
        let dead = head.filter(|_| batch.deletes_all()).map_or(0, Entry::log_bytes);
        let brings = (HEADER_BYTES + batch.encoded_ops().len()) as u64;
        let (name, holds, max) = (&quota.name, quota.total(), quota.bytes_max);
        if holds.saturating_sub(dead) + brings <= max {
            return Ok(());
        }
        let what = format!(
            "namespace {name} holds {holds} bytes, limit {max}, and {brings} more were to come with object {id}: \
             delete something of it, or raise the limit"
        );
        Err(Error::coded(Kind::NoSpace, "namespace-full", what))
    }

    /// Changes what is counted of a namespace.
    fn change(&mut self, tag: NamespaceTag, change: impl FnOnce(&mut Held)) {
        if tag == NamespaceTag::NONE {
            return;
        }
        let held = self.0.entry(tag).or_default();
        change(held);
        held.publish();
        if !held.is_needed() {
            self.0.remove(&tag);
        }
    }

    /// A commit of so many bytes waits.
    pub(crate) fn wait(&mut self, tag: NamespaceTag, bytes: u64) {
        self.change(tag, |held| held.waiting += bytes);
    }

    /// A commit of which so many bytes waited is durable: what the shard's objects need went from `before` to `after`.
    pub(crate) fn settle(&mut self, tag: NamespaceTag, waited: u64, before: u64, after: u64) {
        self.change(tag, |held| {
            held.waiting = held.waiting.saturating_sub(waited);
            held.bytes = (held.bytes + after).saturating_sub(before);
        });
    }

    /// Some of what waited was refused: this is all that still waits.
    pub(crate) fn wait_anew(&mut self, waiting: impl Iterator<Item = (NamespaceTag, u64)>) {
        self.0.values_mut().for_each(|held| held.waiting = 0);
        for (tag, bytes) in waiting.filter(|(tag, _)| *tag != NamespaceTag::NONE) {
            self.0.entry(tag).or_default().waiting += bytes;
        }
        self.0.values().for_each(Held::publish);
        self.0.retain(|_, held| held.is_needed());
    }

    /// Counts anew: these entries are all that there are.
    pub(crate) fn recount<'a>(&mut self, entries: impl IntoIterator<Item = &'a Entry>) {
        self.0.values_mut().for_each(|held| held.bytes = 0);
        for entry in entries {
            self.change(entry.namespace, |held| held.bytes += entry.log_bytes());
        }
        self.0.values().for_each(Held::publish);
        self.0.retain(|_, held| held.is_needed());
    }

    /// Durable bytes of a namespace.
    pub(crate) fn bytes(&self, tag: NamespaceTag) -> u64 {
        self.0.get(&tag).map_or(0, |held| held.bytes)
    }

    /// Durable bytes of all namespaces that have some, by rising tags.
    pub(crate) fn sums(&self) -> impl Iterator<Item = (NamespaceTag, u64)> + '_ {
        self.0.iter().map(|(tag, held)| (*tag, held.bytes)).filter(|(_, bytes)| *bytes > 0)
    }
}
