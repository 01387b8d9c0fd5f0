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
use crate::error::{Error, Result};
use crate::format::batch::{Home, Role, Seal, batch_bytes, seal};
use crate::format::frame::{self, ADDRESS_BYTES, Address, Frame, Share};
use crate::format::{get, get_u32, len_u32, put};
use crate::ids::{ObjectId, SegmentNumber, Version};
use crate::io::PageBuf;

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
    pub(crate) version: Version,
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
        self.outcome.poll(context).map(|result| result.map(|()| self.version))
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
    /// What the pages and values of its tree amount to, if it is one that was written anew.
    pub(crate) kept: Vec<Share>,
    /// The parts of the commit, before its last frame.
    pub(crate) parts: Vec<Address>,
    /// What was there before, if nothing builds on it any more.
    pub(crate) dead: Option<Entry>,
    /// Where the id comes from, if the newest frame says it.
    pub(crate) origin: Origin,
}

/// One batch that is still open.
pub(crate) struct OpenBatch {
    pub(crate) ordinal: u32,
    pub(crate) role: Role,
    frames: Vec<u8>,
    /// Offset of each frame in `frames`.
    starts: Vec<u32>,
    ids: Vec<ObjectId>,
    /// Offsets in `frames` of addresses that may be open.
    fixups: Vec<u32>,
    /// Offsets in `frames` of shares of batches that are open.
    shares: Vec<u32>,
    /// Whether the last frame is a part: the commit ends in a later batch.
    pub(crate) ends_with_part: bool,
    /// What the directory learns when the batch is durable.
    pub(crate) updates: Vec<Update>,
    pub(crate) outcome: Rc<Outcome>,
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
            ends_with_part: false,
            updates: Vec::new(),
            outcome: Rc::default(),
        }
    }

    pub(crate) fn bytes(&self, block_bytes: usize) -> usize {
        batch_bytes(self.ids.len(), self.frames.len(), block_bytes)
    }

    fn has_room(&self, frame_bytes: usize, block_bytes: usize, bytes_max: usize) -> bool {
        let bytes = batch_bytes(self.ids.len() + 1, self.frames.len() + frame_bytes, block_bytes);
        bytes <= bytes_max
    }

    fn push(&mut self, frame: &Frame<'_>) -> Address {
        let start = self.frames.len();
        let bytes = frame.encode(&mut self.frames);
        self.fixups.extend(frame.address_offsets().map(|offset| len_u32(start + offset)));
        let open = frame.share_offsets().filter(|(_, share)| share.segment & OPEN != 0);
        self.shares.extend(open.map(|(offset, _)| len_u32(start + offset)));
        self.starts.push(len_u32(start));
        self.ends_with_part = frame.part;
        if self.ids.last() != Some(&frame.object) {
            self.ids.push(frame.object);
        }
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
    batches: VecDeque<OpenBatch>,
    bytes: usize,
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
        batch.push(frame)
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
        self.batches.drain(..).for_each(|batch| batch.outcome.resolve(Err(error.clone())));
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
        let ends = batch.starts.iter().skip(1).copied().chain([len_u32(batch.frames.len())]);
        for (start, end) in batch.starts.iter().zip(ends) {
            let frame = &mut batch.frames[*start as usize..end as usize];
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
