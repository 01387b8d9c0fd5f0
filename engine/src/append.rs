//! From a batch to frames in the queue: which of them are images, which deltas, and in how many parts.

use std::collections::BTreeMap;
use std::rc::Rc;

use crate::batch::{Batch, Op, split_ops};
use crate::contents::{Origin, Resident};
use crate::directory::{Entry, Stamp, merged};
use crate::env::Env;
use crate::format::batch::batch_bytes;
use crate::format::frame::{self, Address, Frame, Share, Sizes};
use crate::ids::{ObjectId, Version};
use crate::log::queue::{OPEN, Ticket, Update};
use crate::log::reserve::Claim;
use crate::log::segments::FileOf;
use crate::shard::{Inner, Pending, State};

/// Images up to this size are written again whenever the chain is full.
const SMALL_IMAGE_BYTES: usize = 16 << 10;

/// One commit on its way into the queue.
pub(crate) struct Appending<'a, E: Env> {
    pub(crate) inner: &'a Rc<Inner<E>>,
    pub(crate) id: &'a ObjectId,
    pub(crate) version: Version,
    pub(crate) alarm: Option<u64>,
    pub(crate) head: Option<Entry>,
    /// Whether there was an entry, known or not.
    pub(crate) existed: bool,
    pub(crate) rewrite: bool,
}

impl<E: Env> Appending<'_, E> {
    pub(crate) fn append(
        &self,
        state: &mut State<FileOf<E>>,
        batch: &Batch,
        resident: Option<&dyn Resident>,
    ) -> Ticket {
        let claim = self.claim(state, batch);
        state.queue.begin(claim);
        let wall_ms = self.inner.env.wall_ms();
        let mut stamp = Stamp { version: self.version, alarm: self.alarm, written_ms: wall_ms };
        if let Some(head) = self.head.as_ref().filter(|_| self.rewrite) {
            stamp.written_ms = head.written_ms;
        }
        let mut known = batch.origin().clone();
        let (entry, parts, dead) = match self.image(batch, resident) {
            Some((payload, origin)) => {
                let exists = !payload.is_empty() || self.alarm.is_some();
                let kind = frame::Kind::Image;
                let Appended { address, parts, .. } =
                    self.frames(state, kind, &payload, stamp, &origin);
                known = origin;
                let entry = exists.then(|| Entry::image(address, stamp, &parts));
                (entry, parts, self.head.clone())
            }
            None => {
                let head = self.head.as_ref();
                let head = head.expect("an object that does not exist gets an image");
                let (kind, payload) = (frame::Kind::Delta, batch.encoded_ops());
                let Appended { address, parts, nests } =
                    self.frames(state, kind, payload, stamp, &known);
                (Some(head.with_delta(address, stamp, nests, &parts)), parts, None)
            }
        };
        let open = state.queue.last_mut();
        let (id, existed, rewrite) = (*self.id, self.existed, self.rewrite);
        open.updates.push(Update {
            id,
            existed,
            entry: entry.clone(),
            rewrite,
            claim,
            parts,
            dead,
            origin: known,
        });
        let (ordinal, outcome) = (open.ordinal, open.outcome(claim));
        let pending = Pending { entry, ordinal, claim, outcome: outcome.clone() };
        state.pending.insert(*self.id, pending);
        Ticket { id: *self.id, version: self.version, claim, outcome }
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

    /// The payload and origin of an image, where an image is to be written.
    fn image(&self, batch: &Batch, resident: Option<&dyn Resident>) -> Option<(Vec<u8>, Origin)> {
        let mut origin = batch.origin().clone();
        resident.into_iter().for_each(|resident| origin.learn(resident.origin()));
        if let Some(resident) = resident.filter(|resident| self.wants_image(batch, *resident)) {
            let mut image = Batch::new();
            resident.visit(&mut |key, value| image = std::mem::take(&mut image).put(key, value));
            return Some((image.encoded_ops().to_vec(), origin));
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
        let image = map.iter().fold(Batch::new(), |image, (key, value)| image.put(key, value));
        Some((image.encoded_ops().to_vec(), origin))
    }

    /// Whether an image of a resident object is worth its bytes: always when it is hardly larger
    /// than the delta or when nothing is left, and when a full chain has earned it.
    fn wants_image(&self, batch: &Batch, resident: &dyn Resident) -> bool {
        let (keys, bytes) = resident.size();
        let image = bytes + keys * crate::batch::OP_HEADER_BYTES;
        if image > self.inner.limits.commit_bytes_max {
            return false;
        }
        let Some(head) = &self.head else { return true };
        let delta = batch.encoded_ops().len();
        self.rewrite
            || (keys == 0 && self.alarm.is_none())
            || image <= delta + delta / 2
            || (head.is_full()
                && (image <= SMALL_IMAGE_BYTES || head.delta_bytes as usize >= image / 2))
    }

    /// Payload bytes that one frame can hold beside a chain of `chain` addresses, and `shares`.
    fn payload_max(&self, chain: usize, shares: usize, origin: &Origin) -> usize {
        let limits = &self.inner.limits;
        let fixed = frame::frame_bytes(0, chain, shares, origin) + 8;
        let empty = batch_bytes(1, fixed, 1);
        limits.batch_bytes_max.checked_sub(empty).expect("Limits::check")
    }

    /// Appends the commit's frames: the last one carries the mark and, in its chain, the parts.
    fn frames(
        &self,
        state: &mut State<FileOf<E>>,
        kind: frame::Kind,
        payload: &[u8],
        stamp: Stamp,
        origin: &Origin,
    ) -> Appended {
        let (block, max) = (self.inner.superblock.block_bytes, self.inner.limits.batch_bytes_max);
        // An image builds on nothing but its parts.
        let base = self.head.as_ref().filter(|_| kind == frame::Kind::Delta);
        let shares: Vec<Share> = match (base, &self.head) {
            (Some(base), _) => base.nested().to_vec(),
            (None, Some(dead)) => merged(dead.needs()),
            (None, None) => Vec::new(),
        };
        let payload_max = self.payload_max(CHAIN_RESERVE, shares.len(), origin);
        let (runs, last) = split_ops(payload, payload_max);
        let predecessor = self.head.as_ref().and_then(|head| head.newest());
        let mut chain: Vec<_> = base.iter().flat_map(|base| base.chain()).collect();
        let mut frame = Frame {
            kind,
            part: true,
            rewrite: self.rewrite,
            object: *self.id,
            version: self.version,
            predecessor,
            existed: self.existed,
            chain: Vec::new(),
            parts: 0,
            shares: Vec::new(),
            scattered: self.head.as_ref().is_some_and(|head| head.is_scattered()),
            nests: false,
            sizes: Sizes::default(),
            wall_ms: stamp.written_ms,
            alarm: self.alarm,
            origin: Origin::default(),
            payload: last,
        };
        assert!(chain.len() + runs.len() <= CHAIN_RESERVE, "Limits::check: parts fit a chain");
        let nests = !runs.is_empty() || base.is_some_and(|base| base.is_full());
        let mut parts = Vec::new();
        for run in runs {
            frame.payload = run;
            parts.push(state.queue.push(&frame, block, max));
        }
        chain.extend_from_slice(&parts);
        frame.parts = parts.len();
        frame.shares = shares;
        frame.part = false;
        frame.nests = nests;
        frame.sizes = base.map(|base| base.sizes()).unwrap_or_default();
        frame.payload = last;
        frame.origin = origin.clone();
        frame.chain = chain;
        let address = state.queue.push(&frame, block, max);
        assert!(address.segment & OPEN != 0);
        Appended { address, parts, nests }
    }
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
