//! Commits gathered into batches that wait for the device.
//!
//! A frame's address is known only when its batch is sealed. Until then it has an *open* address:
//! the segment field holds [`OPEN`] and the batch's ordinal, the offset counts from the first
//! frame. Frames that name open addresses are listed as fixups and corrected when sealed, entries
//! likewise.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use crate::contents::Origin;
use crate::directory::Entry;
use crate::error::{Error, Kind, Result};
use crate::format::batch::{Home, Role, Seal, batch_bytes, seal};
use crate::format::frame::{self, ADDRESS_BYTES, Address, Frame, Share};
use crate::format::{get, get_u32, len_u32, put};
use crate::ids::{NamespaceTag, ObjectId, SegmentNumber, Version};
use crate::io::PageBuf;
use crate::log::reserve::{CLAIMS, Claim};

/// Set in the segment field of an open address; segment numbers stay below it.
pub(crate) const OPEN: u32 = 1 << 31;

/// How a batch ended, shared by all its tickets.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    result: RefCell<Option<Result<()>>>,
    waiting: RefCell<Vec<Waker>>,
}

impl Outcome {
    /// Says how the batch ended; once.
    pub(crate) fn resolve(&self, result: Result<()>) {
        let before = self.result.replace(Some(result));
        assert!(before.is_none());
        let waiting = std::mem::take(&mut *self.waiting.borrow_mut());
        waiting.into_iter().for_each(Waker::wake);
    }

    /// The result, if there is one.
    pub(crate) fn result(&self) -> Option<Result<()>> {
        self.result.borrow().clone()
    }

    /// Waits for the result.
    pub(crate) async fn settled(&self) -> Result<()> {
        std::future::poll_fn(|context| self.poll(context)).await
    }

    /// The result, or a wake-up when there is one.
    pub(crate) fn poll(&self, context: &Context<'_>) -> Poll<Result<()>> {
        if let Some(result) = &*self.result.borrow() {
            return Poll::Ready(result.clone());
        }
        self.waiting.borrow_mut().push(context.waker().clone());
        Poll::Pending
    }
}

/// A commit on its way to the device; resolves to its version once it is durable, in the order in
/// which the shard's commits were made.
///
/// Cancel: dropping it changes nothing; the commit goes on.
#[derive(Debug)]
pub struct Ticket {
    pub(crate) id: ObjectId,
    pub(crate) version: Version,
    pub(crate) claim: Claim,
    /// Whether it only frees, but builds on what has a lesser claim.
    pub(crate) lowered: bool,
    pub(crate) outcome: Rc<Outcome>,
}

impl Ticket {
    /// The version that the commit has.
    pub fn version(&self) -> Version {
        self.version
    }
}

impl Future for Ticket {
    type Output = Result<Version>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let named = |error: Error| match error.kind() {
            Kind::NoSpace if self.lowered => Error::coded(
                Kind::NoSpace,
                "behind-refused",
                format!(
                    "object {}: this waited behind something of the object that found no room; by itself \
                     there is room for what only frees: try it again ({error})",
                    self.id
                ),
            ),
            Kind::NoSpace => Error::caused(Kind::NoSpace, format!("object {}", self.id), error),
            _ => error,
        };
        self.outcome.poll(context).map(|result| result.map(|()| self.version).map_err(named))
    }
}

/// A change of the directory.
pub(crate) struct Update {
    pub(crate) id: ObjectId,
    /// Whether there was an entry before.
    pub(crate) existed: bool,
    /// What there is afterwards.
    pub(crate) entry: Option<Entry>,
    /// Whether the object only moved.
    pub(crate) rewrite: bool,
    /// Bytes of its frames that count for its namespace while they wait.
    pub(crate) waits: u32,
    /// What the pages and values of its tree amount to, if it is one that was written anew.
    pub(crate) kept: Vec<Share>,
    pub(crate) claim: Claim,
    /// The parts of the commit, before its last frame.
    pub(crate) parts: Vec<Address>,
    /// What was there before, if nothing builds on it any more.
    pub(crate) dead: Option<Entry>,
    /// Where the id comes from, if the newest frame says it.
    pub(crate) origin: Origin,
}

impl Update {
    /// The namespace for which its object counts; none where nothing was there and nothing is.
    pub(crate) fn namespace(&self) -> NamespaceTag {
        let entry = self.entry.as_ref().or(self.dead.as_ref());
        entry.map_or(NamespaceTag::NONE, |entry| entry.namespace)
    }
}

/// One frame of a batch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Start {
    /// Where it begins in `frames`.
    pub(super) at: u32,
    /// Whose it is, in `ids`.
    pub(super) id: u32,
    pub(super) claim: Claim,
    /// Whether its commit goes on behind it.
    pub(super) part: bool,
}

/// How the commits of a batch end, by what they have a claim on: all alike, unless some are refused.
#[derive(Clone, Default)]
pub(crate) struct Outcomes([Option<Rc<Outcome>>; CLAIMS]);

impl Outcomes {
    /// Says how those ended that did not yet.
    pub(crate) fn resolve(&self, result: &Result<()>) {
        let open = self.0.iter().flatten().filter(|outcome| outcome.result().is_none());
        open.for_each(|outcome| outcome.resolve(result.clone()));
    }

    /// Takes out those of this claim.
    pub(super) fn take(&mut self, claim: Claim) -> Option<Rc<Outcome>> {
        self.0[claim as usize].take()
    }

    /// That of this claim.
    fn get(&self, claim: Claim) -> Option<&Rc<Outcome>> {
        self.0[claim as usize].as_ref()
    }
}

/// One batch that is still open.
pub(crate) struct OpenBatch {
    pub(crate) ordinal: u32,
    pub(crate) role: Role,
    pub(super) frames: Vec<u8>,
    pub(super) starts: Vec<Start>,
    pub(super) ids: Vec<ObjectId>,
    /// Offsets in `frames` of addresses that may be open.
    pub(super) fixups: Vec<u32>,
    /// Offsets in `frames` of shares of batches that are open.
    pub(super) shares: Vec<u32>,
    /// The least claim of what is in it.
    pub(super) claim: Claim,
    /// What the directory learns when the batch is durable.
    pub(crate) updates: Vec<Update>,
    pub(crate) outcomes: Outcomes,
}

impl OpenBatch {
    pub(crate) fn new(ordinal: u32, role: Role) -> Self {
        Self {
            ordinal,
            role,
            frames: Vec::new(),
            starts: Vec::new(),
            ids: Vec::new(),
            fixups: Vec::new(),
            shares: Vec::new(),
            claim: Claim::Free,
            updates: Vec::new(),
            outcomes: Outcomes::default(),
        }
    }

    /// How commits of this claim will end.
    pub(crate) fn outcome(&mut self, claim: Claim) -> Rc<Outcome> {
        self.outcomes.0[claim as usize].get_or_insert_default().clone()
    }

    /// Whether the last frame is a part: the commit ends in a later batch.
    pub(crate) fn ends_with_part(&self) -> bool {
        self.starts.last().is_some_and(|last| last.part)
    }

    pub(crate) fn bytes(&self, block_bytes: usize) -> usize {
        batch_bytes(self.ids.len(), self.frames.len(), block_bytes)
    }

    fn has_room(&self, frame_bytes: usize, block_bytes: usize, bytes_max: usize) -> bool {
        let bytes = batch_bytes(self.ids.len() + 1, self.frames.len() + frame_bytes, block_bytes);
        bytes <= bytes_max
    }

    fn push(&mut self, frame: &Frame<'_>, claim: Claim) -> Address {
        let start = self.frames.len();
        let bytes = frame.encode(&mut self.frames);
        self.fixups.extend(frame.address_offsets().map(|offset| len_u32(start + offset)));
        let open = frame.share_offsets().filter(|(_, share)| share.segment & OPEN != 0);
        self.shares.extend(open.map(|(offset, _)| len_u32(start + offset)));
        if self.ids.last() != Some(&frame.object) {
            self.ids.push(frame.object);
        }
        self.claim = self.claim.min(claim);
        let id = len_u32(self.ids.len() - 1);
        self.starts.push(Start { at: len_u32(start), id, claim, part: frame.part });
        Address { segment: OPEN | self.ordinal, offset: len_u32(start), bytes: len_u32(bytes) }
    }
}

/// Where the frames of sealed batches begin, for whoever still holds open addresses of theirs.
#[derive(Debug, Default)]
struct Bases(VecDeque<(u32, SegmentNumber, u32)>);

impl Bases {
    /// The segment that an open one has become, and where the batch's frames begin in it.
    fn find(&self, segment: u32) -> Option<(u32, u32)> {
        if segment & OPEN == 0 {
            return None;
        }
        let sealed = self.0.iter().rfind(|(sealed, ..)| *sealed == segment & !OPEN);
        sealed.map(|(_, segment, base)| (segment.0, *base))
    }

    fn resolve(&self, address: Address) -> Address {
        if address.segment & OPEN == 0 {
            return address;
        }
        let (segment, base) =
            self.find(address.segment).expect("a batch is sealed after those that it builds on");
        Address { segment, offset: base + address.offset, bytes: address.bytes }
    }
}

/// The batches that wait.
#[derive(Default)]
pub(crate) struct Queue {
    pub(super) batches: VecDeque<OpenBatch>,
    pub(super) bytes: usize,
    /// What the frames that are appended have a claim on.
    claim: Claim,
    next_ordinal: Cell<u32>,
    bases: Bases,
}

impl Queue {
    /// Whether nothing waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }

    /// Bytes of frames that wait.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The next batch: its bytes, and the least claim of what is in it.
    pub(crate) fn next(&self, block_bytes: usize) -> Option<(usize, Claim)> {
        let batch = self.batches.front()?;
        Some((batch.bytes(block_bytes), batch.claim))
    }

    /// Whether commits of this claim wait.
    pub(crate) fn has(&self, claim: Claim) -> bool {
        self.batches.iter().any(|batch| batch.outcomes.get(claim).is_some())
    }

    /// How the commits to an object that wait and have a greater claim will end.
    pub(crate) fn outcomes_beyond(&self, claim: Claim, id: &ObjectId) -> Vec<Rc<Outcome>> {
        if !Claim::ALL.into_iter().any(|greater| greater > claim && self.has(greater)) {
            return Vec::new();
        }
        let outcomes = self.batches.iter().flat_map(|batch| {
            let of_it =
                batch.updates.iter().filter(|update| update.claim > claim && update.id == *id);
            of_it.filter_map(|update| batch.outcomes.get(update.claim).cloned())
        });
        outcomes.collect()
    }

    /// Whether the batch of this ordinal waits.
    pub(crate) fn holds(&self, ordinal: u32) -> bool {
        let Some(front) = self.batches.front() else { return false };
        let behind = |ordinal: u32| ordinal.wrapping_sub(front.ordinal) & !OPEN;
        self.batches.back().is_some_and(|back| behind(ordinal) <= behind(back.ordinal))
    }

    /// What is pushed from now on has a claim on this.
    pub(crate) fn begin(&mut self, claim: Claim) {
        self.claim = claim;
    }

    /// A batch that goes past the queue: a fence or a close record.
    pub(crate) fn lone(&self, role: Role) -> OpenBatch {
        OpenBatch::new(self.take_ordinal(), role)
    }

    fn take_ordinal(&self) -> u32 {
        let ordinal = self.next_ordinal.get();
        self.next_ordinal.set((ordinal + 1) & !OPEN);
        ordinal
    }

    /// Appends a frame to the last batch, or to a new one where it does not fit.
    pub(crate) fn push(
        &mut self,
        frame: &Frame<'_>,
        block_bytes: usize,
        bytes_max: usize,
    ) -> Address {
        let bytes = frame.bytes();
        let fits = |batch: &OpenBatch| batch.has_room(bytes, block_bytes, bytes_max);
        if !self.batches.back().is_some_and(fits) {
            self.batches.push_back(OpenBatch::new(self.take_ordinal(), Role::Commits));
        }
        self.bytes += bytes;
        let batch = self.batches.back_mut().expect("pushed above");
        assert!(batch.has_room(bytes, block_bytes, bytes_max) || !batch.frames.is_empty());
        batch.push(frame, self.claim)
    }

    /// The batch that [`Queue::push`] last wrote to.
    pub(crate) fn last_mut(&mut self) -> &mut OpenBatch {
        self.batches.back_mut().expect("a frame was pushed")
    }

    /// Takes the next batch.
    pub(crate) fn pop(&mut self) -> Option<OpenBatch> {
        let batch = self.batches.pop_front()?;
        self.bytes -= batch.frames.len();
        Some(batch)
    }

    /// Gives up everything that waits.
    pub(crate) fn fail(&mut self, error: &Error) {
        self.bytes = 0;
        self.bases.0.clear();
        let failed = Err(error.clone());
        self.batches.drain(..).for_each(|batch| batch.outcomes.resolve(&failed));
    }

    /// Seals a batch that will be written to a segment: gives every frame its address
    /// and checksum. Returns the bytes to write and the header's checksum.
    pub(crate) fn seal(
        &mut self,
        batch: &mut OpenBatch,
        home: &Home,
        fields: &Seal,
        segment: SegmentNumber,
    ) -> (PageBuf, u32) {
        let offset = fields.offset;
        let mut buf = PageBuf::zeroed(batch.bytes(home.block_bytes));
        let table_bytes = batch.ids.len() * ObjectId::BYTES;
        let frames_at = crate::format::batch::HEADER_BYTES + table_bytes;
        let base = offset + len_u32(frames_at);
        self.bases.0.push_back((batch.ordinal, segment, base));
        for at in &batch.fixups {
            let at = *at as usize;
            if let Some(address) = Address::decode(&get(&batch.frames, at)) {
                let sealed = self.bases.resolve(address).encode();
                put(&mut batch.frames[at..at + ADDRESS_BYTES], 0, &sealed);
            }
        }
        for at in &batch.shares {
            let at = *at as usize;
            let (number, _) = self.bases.find(get_u32(&batch.frames, at)).expect("as an address");
            put(&mut batch.frames, at, &number.to_le_bytes());
        }
        let starts = batch.starts.iter().map(|start| start.at);
        let ends = starts.clone().skip(1).chain([len_u32(batch.frames.len())]);
        for (start, end) in starts.zip(ends) {
            let frame = &mut batch.frames[start as usize..end as usize];
            frame::set_crc(frame, home.incarnation, base + start);
        }
        for update in &mut batch.updates {
            for entry in [&mut update.entry, &mut update.dead].into_iter().flatten() {
                entry.resolve(|segment| self.bases.find(segment));
            }
            update.parts.iter_mut().for_each(|part| *part = self.bases.resolve(*part));
            for share in &mut update.kept {
                if let Some((segment, _)) = self.bases.find(share.segment) {
                    share.segment = segment;
                }
            }
        }
        buf[frames_at..frames_at + batch.frames.len()].copy_from_slice(&batch.frames);
        let crc = seal(&mut buf, home, fields, &batch.ids, batch.frames.len());
        (buf, crc)
    }

    /// To be called when the entries that are pending were corrected too: where nothing waits, nobody can
    /// name a batch before the last one by an open address.
    pub(crate) fn forget_sealed(&mut self) {
        if self.batches.is_empty() {
            self.bases.0.drain(..self.bases.0.len() - 1);
        }
    }

    /// Corrects the open addresses of sealed batches in an entry.
    pub(crate) fn resolve(&self, entry: &mut Entry) {
        entry.resolve(|segment| self.bases.find(segment));
    }
}
