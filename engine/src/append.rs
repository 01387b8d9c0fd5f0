//! From a batch to frames in the queue: which of them are images, trees or deltas, and in how many parts.

use std::collections::BTreeMap;
use std::rc::Rc;

use crate::batch::{Batch, OP_HEADER_BYTES, Op, split_ops};
use crate::contents::{Origin, Resident};
use crate::directory::{Entry, Stamp, merged};
use crate::env::Env;
use crate::format::batch::batch_bytes;
use crate::format::frame::{self, Address, Frame, Share, Sizes};
use crate::format::{len_u32, page};
use crate::ids::{NamespaceTag, ObjectId, Version};
use crate::limits::{FRAME_BYTES_MAX, Limits};
use crate::log::queue::{OPEN, Ticket, Update};
use crate::log::reserve::Claim;
use crate::log::segments::FileOf;
use crate::shard::{Inner, Pending, State};
use crate::tree::{Draft, PageSizes, Pushed};

/// Images up to this size are written again whenever the chain is full.
const SMALL_IMAGE_BYTES: usize = 16 << 10;

/// One commit on its way into the queue.
pub(crate) struct Appending<'a, E: Env> {
    pub(crate) inner: &'a Rc<Inner<E>>,
    pub(crate) id: &'a ObjectId,
    pub(crate) version: Version,
    pub(crate) alarm: Option<u64>,
    /// When the commit was made by the wall clock, ms since 1970.
    pub(crate) written_ms: u64,
    pub(crate) head: Option<Entry>,
    /// The namespace for which the object counts.
    pub(crate) namespace: NamespaceTag,
    /// Whether there was an entry, known or not.
    pub(crate) existed: bool,
    pub(crate) rewrite: bool,
}

impl<E: Env> Appending<'_, E> {
    /// Appends the commit as an image, if one is to be written, or as a delta.
    pub(crate) fn append(
        &self,
        state: &mut State<FileOf<E>>,
        batch: &Batch,
        resident: Option<&dyn Resident>,
    ) -> Ticket {
        let claim = self.claim(state, batch);
        let before = state.queue.bytes();
        state.queue.begin(claim);
        let written = match self.image(batch, resident) {
            Some((payload, origin)) if payload.len() > self.inner.limits.image_bytes_max => {
                let sizes = PageSizes::of(&self.inner.limits);
                let draft = Draft::of_puts(&payload.into(), &sizes);
                self.tree(state, draft, Vec::new(), &[], origin)
            }
            Some((payload, origin)) => {
                let exists = !payload.is_empty() || self.alarm.is_some();
                let Appended { address, .. } =
                    self.frames(state, frame::Kind::Image, &payload, &origin);
                let entry = exists.then(|| Entry::image(address, self.stamp(), &[]));
                Written { entry, parts: Vec::new(), kept: Vec::new(), image: true, origin }
            }
            None => {
                let head = self.head.as_ref();
                let head = head.expect("an object that does not exist gets an image");
                let origin = batch.origin().clone();
                let Appended { address, parts, nests } =
                    self.frames(state, frame::Kind::Delta, batch.encoded_ops(), &origin);
                let entry = Some(head.with_delta(address, self.stamp(), nests, &parts));
                Written { entry, parts, kept: Vec::new(), image: false, origin }
            }
        };
        let ticket = self.enter(state, claim, before, written);
        Ticket { lowered: batch.only_frees() && claim < Claim::Free && !self.rewrite, ..ticket }
    }

    /// Appends the object as a tree: `draft` is what is new of it, `kept` what all that it takes over from
    /// the tree before amounts to, `operations` what waits in the root.
    pub(crate) fn append_tree(
        &self,
        state: &mut State<FileOf<E>>,
        draft: Draft,
        kept: Vec<Share>,
        operations: &[u8],
        origin: Origin,
    ) -> Ticket {
        let claim = self.claim(state, &Batch::new());
        let before = state.queue.bytes();
        state.queue.begin(claim);
        let written = self.tree(state, draft, kept, operations, origin);
        self.enter(state, claim, before, written)
    }

    /// What the directory says after it.
    fn stamp(&self) -> Stamp {
        Stamp { version: self.version, alarm: self.alarm, written_ms: self.written_ms }
    }

    /// Notes what was written, since so many bytes waited, for when its batch is durable.
    fn enter(
        &self,
        state: &mut State<FileOf<E>>,
        claim: Claim,
        before: usize,
        written: Written,
    ) -> Ticket {
        let Written { entry, parts, kept, image, origin } = written;
        let entry = entry.map(|entry| entry.counting_for(self.namespace));
        // What only moves takes the place of what it frees.
        let waits = if self.rewrite { 0 } else { len_u32(state.queue.bytes() - before) };
        let open = state.queue.last_mut();
        let (id, existed, rewrite) = (*self.id, self.existed, self.rewrite);
        let dead = self.head.clone().filter(|_| image);
        let update = Update {
            id,
            existed,
            entry: entry.clone(),
            rewrite,
            waits,
            claim,
            kept,
            parts,
            dead,
            origin,
        };
        state.live.namespaces.wait(update.namespace(), waits.into());
        open.updates.push(update);
        let (ordinal, outcome) = (open.ordinal, open.outcome(claim));
        let pending = Pending { entry, ordinal, claim, outcome: outcome.clone() };
        state.pending.insert(*self.id, pending);
        Ticket { id: *self.id, version: self.version, claim, lowered: false, outcome }
    }

    /// What the commit has a claim on where room is short: never on more than what waits for it to be
    /// written before it, for on that it builds.
    fn claim(&self, state: &State<FileOf<E>>, batch: &Batch) -> Claim {
        let own = match (self.rewrite, batch.only_frees()) {
            (true, _) => Claim::Move,
            (false, true) => Claim::Free,
            (false, false) => return Claim::New,
        };
        let before = state.pending.get(self.id);
        let before = before.filter(|before| state.queue.holds(before.ordinal));
        before.map_or(own, |before| own.min(before.claim))
    }

    /// Writes a tree: all that is new as parts, and then its root.
    fn tree(
        &self,
        state: &mut State<FileOf<E>>,
        draft: Draft,
        mut kept: Vec<Share>,
        operations: &[u8],
        origin: Origin,
    ) -> Written {
        let (block, max) = (self.inner.superblock.block_bytes, self.inner.limits.batch_bytes_max);
        let mut payload = Vec::new();
        let mut push = |pushed: Pushed<'_>| {
            payload.clear();
            let (kind, links) = match pushed {
                Pushed::Page(page) => (frame::Kind::Page, page.encode(&mut payload)),
                Pushed::Value(key, value) => {
                    page::encode_value(key, value, &mut payload);
                    (frame::Kind::Value, Vec::new())
                }
            };
            let frame = Frame { part: true, links: &links, ..self.frame(kind, &payload) };
            let address = state.queue.push(&frame, block, max);
            // Most follow one of the same batch.
            match kept.last_mut() {
                Some(last) if last.segment == address.segment => last.bytes += address.bytes,
                _ => kept.push(address.into()),
            }
            address
        };
        let root = draft.write(&PageSizes::of(&self.inner.limits), &mut push);
        let kept = merged(kept.into_iter());
        let shares = self.head.as_ref().map_or(Vec::new(), |dead| merged(dead.needs()));
        let (mut payload, mut empty) = (Vec::new(), Vec::new());
        page::encode_root(&[], &root, &mut empty);
        let room =
            self.payload_max(ROOT_PARTS_MAX, shares.len() + kept.len(), &origin) - empty.len();
        let (runs, last) = split_ops(operations, room);
        let parts: Vec<_> = runs
            .into_iter()
            .map(|run| {
                let frame = Frame { part: true, ..self.frame(frame::Kind::Delta, run) };
                state.queue.push(&frame, block, max)
            })
            .collect();
        let links = page::encode_root(last, &root, &mut payload);
        let waiting = len_u32(operations.len());
        let frame = Frame {
            tree: true,
            kept: kept.clone(),
            chain: parts.clone(),
            parts: parts.len(),
            nests: !parts.is_empty(),
            shares,
            links: &links,
            sizes: Sizes { delta_bytes: waiting, ..Sizes::default() },
            origin: origin.clone(),
            namespace: self.namespace,
            ..self.frame(frame::Kind::Image, &payload)
        };
        let address = state.queue.push(&frame, block, max);
        let entry = Some(Entry::tree(address, self.stamp(), &kept, &parts, waiting));
        Written { entry, parts, kept, image: true, origin }
    }

    /// A frame of this commit that names nothing yet but its predecessor.
    fn frame<'a>(&self, kind: frame::Kind, payload: &'a [u8]) -> Frame<'a> {
        Frame {
            kind,
            part: false,
            rewrite: self.rewrite,
            object: *self.id,
            version: self.version,
            predecessor: self.head.as_ref().and_then(|head| head.newest()),
            existed: self.existed,
            chain: Vec::new(),
            parts: 0,
            shares: Vec::new(),
            scattered: self.head.as_ref().is_some_and(|head| head.is_scattered()),
            tree: false,
            kept: Vec::new(),
            nests: false,
            sizes: Sizes::default(),
            wall_ms: self.written_ms,
            alarm: self.alarm,
            origin: Origin::default(),
            namespace: NamespaceTag::NONE,
            payload,
            links: &[],
        }
    }

    /// The payload and origin of an image, where an image is to be written.
    fn image(&self, batch: &Batch, resident: Option<&dyn Resident>) -> Option<(Vec<u8>, Origin)> {
        let mut origin = batch.origin().clone();
        resident.into_iter().for_each(|resident| origin.learn(resident.origin()));
        if let Some(resident) = resident.filter(|resident| self.wants_image(batch, *resident)) {
            let (keys, bytes) = resident.size();
            let mut image = Batch::with_capacity(keys, bytes);
            resident.visit(&mut |key, value| image.add(key, value));
            return Some((image.into_encoded_ops(), origin));
        }
        if self.head.is_some() && !batch.deletes_all() {
            return None;
        }
        let mut map = BTreeMap::new();
        for op in batch.ops() {
            match op {
                Op::Put(key, value) => drop(map.insert(key, value)),
                Op::Delete(key) => drop(map.remove(key)),
            }
        }
        let mut image = Batch::new();
        map.into_iter().for_each(|(key, value)| image.add(key, value));
        Some((image.into_encoded_ops(), origin))
    }

    /// Whether an image of a resident object is worth its bytes: always when it is hardly larger
    /// than the delta or when nothing is left, and when a full chain has earned it. A large object's tree is
    /// not written anew for a commit: what changed is put into its pages later.
    fn wants_image(&self, batch: &Batch, resident: &dyn Resident) -> bool {
        let (keys, bytes) = resident.size();
        let image = bytes + keys * OP_HEADER_BYTES;
        if image > self.inner.limits.commit_bytes_max {
            return false;
        }
        let Some(head) = &self.head else { return true };
        let delta = batch.encoded_ops().len();
        let earned = image <= SMALL_IMAGE_BYTES || head.delta_bytes as usize >= image / 2;
        self.rewrite
            || (keys == 0 && self.alarm.is_none())
            || image <= delta + delta / 2
            || (head.is_full() && earned && image <= self.inner.limits.image_bytes_max)
    }

    /// Payload bytes that one frame can hold beside a chain of `chain` addresses, and `shares`.
    fn payload_max(&self, chain: usize, shares: usize, origin: &Origin) -> usize {
        let limits = &self.inner.limits;
        let fixed = frame::frame_bytes(0, chain, shares, origin, self.namespace) + 8;
        let empty = batch_bytes(1, fixed, 1);
        limits.batch_bytes_max.checked_sub(empty).expect("Limits::check")
    }

    /// Appends the commit's frames: the last one carries the mark and, in its chain, the parts.
    fn frames(
        &self,
        state: &mut State<FileOf<E>>,
        kind: frame::Kind,
        payload: &[u8],
        origin: &Origin,
    ) -> Appended {
        let (block, max) = (self.inner.superblock.block_bytes, self.inner.limits.batch_bytes_max);
        // An image builds on nothing.
        let base = self.head.as_ref().filter(|_| kind == frame::Kind::Delta);
        let shares: Vec<Share> = match (base, &self.head) {
            (Some(base), _) => base.nested().to_vec(),
            (None, Some(dead)) => merged(dead.needs()),
            (None, None) => Vec::new(),
        };
        let payload_max = self.payload_max(CHAIN_RESERVE, shares.len(), origin);
        let (runs, last) = split_ops(payload, payload_max);
        let mut chain: Vec<_> = base.iter().flat_map(|base| base.chain()).collect();
        assert!(chain.len() + runs.len() <= CHAIN_RESERVE, "Limits::check: parts fit a chain");
        let nests = !runs.is_empty() || base.is_some_and(|base| base.is_full());
        let mut parts = Vec::new();
        for run in runs {
            let frame = Frame { part: true, ..self.frame(kind, run) };
            parts.push(state.queue.push(&frame, block, max));
        }
        chain.extend_from_slice(&parts);
        let frame = Frame {
            tree: base.is_some_and(|base| base.is_tree()),
            chain,
            parts: parts.len(),
            shares,
            nests,
            sizes: base.map(|base| base.sizes()).unwrap_or_default(),
            origin: origin.clone(),
            namespace: self.namespace,
            ..self.frame(kind, last)
        };
        let address = state.queue.push(&frame, block, max);
        assert!(address.segment & OPEN != 0);
        Appended { address, parts, nests }
    }
}

/// What a commit comes to.
struct Written {
    /// The directory's entry after it; `None` if the object exists no more.
    entry: Option<Entry>,
    /// Of a delta, its parts but the last one.
    parts: Vec<Address>,
    /// Whether nothing that was there before is needed, but what the entry names.
    image: bool,
    /// Of a tree, what all its pages and values amount to.
    kept: Vec<Share>,
    origin: Origin,
}

/// Where a commit's frames lie.
struct Appended {
    /// The last one.
    address: Address,
    /// Those before it.
    parts: Vec<Address>,
    /// Whether the last one alone names its chain.
    nests: bool,
}

/// Addresses for which room is kept in a frame that may carry a chain and parts.
const CHAIN_RESERVE: usize = 160;

/// Parts of operations that wait in the root of a tree, at most.
const ROOT_PARTS_MAX: usize = 128;

/// Bytes of operations that may wait in the root of a tree and its parts.
pub(crate) fn waiting_max(limits: &Limits) -> usize {
    let op = OP_HEADER_BYTES + limits.key_bytes_max + limits.value_bytes_max;
    let root = FRAME_BYTES_MAX + limits.page_bytes + 2 * limits.key_bytes_max;
    ROOT_PARTS_MAX * limits.batch_bytes_max.saturating_sub(root + op)
}
