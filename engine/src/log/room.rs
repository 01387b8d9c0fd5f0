//! Where the next batch goes, and who may go on where there is no room.
//!
//! A batch with new data is written only where that leaves a whole reserve ([`super::reserve`]), and either the next
//! segment ready or half of this one. Otherwise room is looked for: the missing files are made, unless that was
//! tried a moment ago; and if there is none, the new data that waits is refused, all of it, for so it stays a prefix of each
//! object's commits. What only frees, and what moves, goes on in what is left of the segment, in the one that is
//! ready, and then in files of the reserve, as far as they may; then it waits for the cleaner, and is refused
//! only when that can do no more. What the cleaner has begun has the room that is left for some milliseconds first.

use std::rc::Rc;
use std::time::Duration;

use futures_util::future::select;

use super::handles::Handle;
use super::reserve::{self, Claim, Taker};
use super::segments::{self, Blocks, FileOf, Recycled, Segment};
use super::writer::Spare;
use crate::clean;
use crate::env::Env;
use crate::error::{Error, Kind, Result};
use crate::ids::SegmentNumber;
use crate::io::File;
use crate::limits::Limits;
use crate::shard::{Inner, Life, State};

/// How long what only frees leaves the room that is left to the cleaner, at most.
const CLEANER_FIRST: Duration = Duration::from_millis(20);
/// Steps of the cleaner for each segment that there is.
const STEPS: usize = 2;

/// The segment and offset where a batch goes.
pub(crate) type Place<F> = (Segment<F>, u32);

impl<F: File> State<F> {
    /// Bytes that the next segment should have: by those that there are, but for what is to be cleaned.
    pub(crate) fn next_bytes(&self, limits: &Limits) -> u32 {
        let current = self.segments[&self.tail.segment.0].header.bytes;
        let all = self.segments.values().map(|segment| u64::from(segment.header.bytes)).sum();
        segments::next_bytes(current, self.allowed_bytes(limits).min(all), limits)
    }

    /// Whether a batch of so many bytes goes into the segment that is written.
    fn fits(&self, bytes: usize) -> bool {
        let current = self.segments[&self.tail.segment.0].header.bytes as usize;
        !self.tail.full && self.tail.offset as usize + bytes <= current
    }

    /// Whether new data of so many bytes may be written.
    fn admits(&self, bytes: usize) -> bool {
        let whole = self.reserve.is_whole();
        let half = self.segments[&self.tail.segment.0].header.bytes as usize / 2;
        let leaves_half = self.fits(bytes) && self.tail.offset as usize + bytes <= half;
        match leaves_half && !self.tail.reserved {
            true => whole || self.is_young(),
            false => whole && matches!(self.spare, Spare::Ready(_)),
        }
    }

    /// There was no room: the cleaner does what it can from now on.
    pub(crate) fn found_full(&mut self, now: Duration, error: Error) {
        let before = self.reserve.full().is_some();
        self.reserve.found_full(now, error);
        if !before {
            let all = self.live.total();
            self.cleaning.may_move(all);
        }
    }

    /// A file could not be made, be it for want of room.
    pub(crate) fn found_no_room(&mut self, now: Duration, error: Error) {
        match error.kind() {
            Kind::NoSpace => self.found_full(now, error),
            _ => self.reserve.kept(),
        }
    }

    /// If there is all that new data asks for, the disk is full no more.
    pub(crate) fn look_for_end_of_full(&mut self) {
        if self.reserve.is_whole() && matches!(self.spare, Spare::Ready(_)) {
            self.reserve.found_room();
        }
    }

    /// Bytes of rewrites that there is room for, whatever the disk says.
    pub(crate) fn room_for_moves(&self) -> u64 {
        let current = self.segments[&self.tail.segment.0].header.bytes;
        let ready = match &self.spare {
            Spare::Ready(segment) => segment.header.bytes,
            _ => 0,
        };
        u64::from(current - self.tail.offset) + u64::from(ready) + self.reserve.bytes_for_moves()
    }

    /// The place of a batch that fits.
    fn place(&self) -> Place<F> {
        let current = &self.segments[&self.tail.segment.0];
        let Handle::Open { file, .. } = &current.file else {
            unreachable!("the segment that is written stays open")
        };
        (current.with(file.clone()), self.tail.offset)
    }

    fn take_ready(&mut self) -> Option<Segment<F>> {
        match std::mem::replace(&mut self.spare, Spare::None) {
            Spare::Ready(segment) => Some(segment),
            other => {
                self.spare = other;
                None
            }
        }
    }

    fn take_number(&mut self) -> SegmentNumber {
        let number = self.next_segment;
        self.next_segment.0 += 1;
        number
    }

    /// Goes on in another segment.
    fn open_segment(&mut self, segment: &Segment<F>, reserved: bool, limits: &Limits) {
        // Replay goes by the numbers, and what a slot needs too.
        assert!(segment.header.number > self.tail.segment, "the log goes back");
        let offset = crate::format::len_u32(segment.header.block_bytes);
        self.tail.segment = segment.header.number;
        self.tail.offset = offset;
        self.tail.full = false;
        self.tail.reserved = reserved;
        self.ahead.begin(segment.written_to.max(offset));
        self.segments.insert(segment.header.number.0, segment.clone().kept());
        self.close_idle(limits);
    }
}

/// Waits for what the next batch needs, and refuses what there is no room for. `None`: nothing waits any more.
pub(crate) async fn for_next<E: Env>(inner: &Rc<Inner<E>>) -> Option<Place<FileOf<E>>> {
    let block_bytes = inner.superblock.block_bytes;
    let mut tried = Tried::default();
    loop {
        let (bytes, claim) = inner.state.borrow().queue.next(block_bytes)?;
        if claim > Claim::New {
            match for_frees(inner, bytes, &mut tried).await {
                Some(place) => return Some(place),
                None => continue,
            }
        }
        if inner.state.borrow().admits(bytes) {
            return Some(take(inner, bytes));
        }
        if let Err(error) = make_room(inner, bytes).await
            // Without room for another segment this one goes on, as far as it goes.
            && !std::mem::take(&mut inner.state.borrow_mut().tail.full)
        {
            refuse(inner, Claim::New, &error);
        }
    }
}

/// Likewise for a close record: it is no reason to use the reserve.
pub(crate) async fn for_close<E: Env>(
    inner: &Rc<Inner<E>>,
    bytes: usize,
) -> Option<Place<FileOf<E>>> {
    let fits = inner.state.borrow().fits(bytes).then(|| inner.state.borrow().place());
    if fits.is_some() {
        return fits;
    }
    let made = make_room(inner, bytes).await;
    if made.is_ok() {
        return Some(take(inner, bytes));
    }
    // Without room for another segment this one goes on.
    let state = &mut *inner.state.borrow_mut();
    state.tail.full = false;
    state.fits(bytes).then(|| state.place())
}

/// The place of a batch that fits, here or into the segment that is ready.
fn take<E: Env>(inner: &Rc<Inner<E>>, bytes: usize) -> Place<FileOf<E>> {
    let state = &mut *inner.state.borrow_mut();
    if state.reserve.is_whole() {
        state.reserve.found_room();
    }
    if !state.fits(bytes) {
        let segment = state.take_ready().expect("admitted");
        open(inner, state, &segment, false);
    }
    state.place()
}

fn open<E: Env>(
    inner: &Inner<E>,
    state: &mut State<FileOf<E>>,
    segment: &Segment<FileOf<E>>,
    reserved: bool,
) {
    let (number, bytes) = (segment.header.number.0, segment.header.bytes);
    tracing::debug!(shard = inner.number, segment = number, bytes, reserved, "segment opened");
    state.open_segment(segment, reserved, &inner.limits);
}

/// Has all made that new data asks for, unless that was tried a moment ago.
///
/// Errors: why there is no room: `NoSpace`, or `Retry` where the disk fails otherwise.
async fn make_room<E: Env>(inner: &Rc<Inner<E>>, bytes: usize) -> Result<()> {
    let (mut filled, mut made) = (false, false);
    loop {
        settled(inner).await;
        let fill = {
            let state = inner.state.borrow();
            if state.admits(bytes) {
                return Ok(());
            }
            let fill = state.reserve.wants_filling(inner.limits.segment_bytes_min, filled);
            let tried = if fill { filled } else { made };
            if tried || !state.reserve.may_look(inner.env.now()) {
                return Err(no_room(inner, &state));
            }
            fill
        };
        filled |= fill;
        made |= !fill;
        look(inner, fill);
    }
}

/// Looks for room: the reserve comes first.
fn look<E: Env>(inner: &Rc<Inner<E>>, fill: bool) {
    match fill {
        true => reserve::start_filling(inner),
        false => start_spare(inner),
    }
}

/// Waits until nothing is being made.
async fn settled<E: Env>(inner: &Rc<Inner<E>>) {
    let settled = || {
        let state = inner.state.borrow();
        (!state.reserve.running && !matches!(state.spare, Spare::Preparing)).then_some(())
    };
    inner.changed.until(settled).await;
}

/// Why there is no room.
fn no_room<E: Env>(inner: &Inner<E>, state: &State<FileOf<E>>) -> Error {
    let failed = match (&state.spare, state.reserve.full()) {
        (_, Some(full)) => full.clone(),
        (Spare::Failed(error), None) => error.clone(),
        _ => Error::new(Kind::Retry, "a file could not be made"),
    };
    if failed.kind() != Kind::NoSpace {
        return failed;
    }
    let what = format!(
        "the disk of shard {} is full: only deletes are taken; delete something, or make room on the disk",
        inner.number
    );
    Error::caused(Kind::NoSpace, what, failed)
}

/// Refuses what waits and has no greater claim than this: nothing was written of it, it did not happen.
fn refuse<E: Env>(inner: &Inner<E>, claim: Claim, error: &Error) {
    let state = &mut *inner.state.borrow_mut();
    state.queue.refuse(claim, error);
    state.pending = state.queue.pending();
    state.live.namespaces.wait_anew(state.queue.waiting());
}

/// What was tried in vain for a batch that brings nothing.
#[derive(Default)]
struct Tried {
    /// To fill the reserve, and to make a segment.
    filled: bool,
    made: bool,
    let_go: bool,
    cleaned: bool,
    /// To leave the room to the cleaner.
    waited: bool,
}

/// What brings such a batch nearer to its room.
enum Step {
    /// Something is being made.
    Wait,
    /// The disk may have room.
    Look,
    /// This file of the reserve becomes a segment.
    Take(Recycled),
    /// Segments and runs that nobody needs go.
    LetGo,
    /// The cleaner empties some.
    Clean,
    Refuse(Claim),
}

/// Finds room for a batch that brings nothing, or goes a step towards it: then `None`.
async fn for_frees<E: Env>(
    inner: &Rc<Inner<E>>,
    bytes: usize,
    tried: &mut Tried,
) -> Option<Place<FileOf<E>>> {
    if !tried.waited && inner.state.borrow().leaves_to_cleaner(bytes) {
        let done = || (!inner.state.borrow().leaves_to_cleaner(bytes)).then_some(());
        let (moves, changed) = (inner.work.until(done), inner.changed.until(done));
        let cleaner = select(Box::pin(moves), Box::pin(changed));
        // Not for ever: what the cleaner reads may wait for a commit that came meanwhile.
        select(cleaner, Box::pin(inner.env.sleep(CLEANER_FIRST))).await;
        tried.waited = true;
        // The batch may have grown.
        return None;
    }
    if let Some(place) = at_hand(inner, bytes) {
        return Some(place);
    }
    let (step, why) = {
        let state = &mut *inner.state.borrow_mut();
        let (now, wall_ms) = (inner.env.now(), inner.env.wall_ms());
        let step = state.step_to_room(now, wall_ms, tried, &inner.limits);
        (step, no_room(inner, state))
    };
    match step {
        Step::Wait => settled(inner).await,
        Step::Look => {
            let bytes_min = inner.limits.segment_bytes_min;
            let fill = inner.state.borrow().reserve.wants_filling(bytes_min, tried.filled);
            tried.filled |= fill;
            tried.made |= !fill;
            look(inner, fill);
        }
        Step::Take(file) => open_reserved(inner, file).await,
        Step::LetGo => {
            let gone = clean::make_room(inner).await;
            *tried = match gone {
                true => Tried::default(),
                false => Tried { let_go: true, ..*tried },
            };
        }
        Step::Clean => {
            let cleaned = !cleaned(inner, &why).await;
            *tried = Tried { cleaned, ..Tried::default() };
        }
        Step::Refuse(claim) => refuse(inner, claim, &why),
    }
    None
}

impl<F: File> State<F> {
    fn step_to_room(
        &mut self,
        now: Duration,
        wall_ms: u64,
        tried: &Tried,
        limits: &Limits,
    ) -> Step {
        let moves = self.queue.has(Claim::Move);
        let taker = match moves || self.cleaning.awaits_commits > 0 {
            true => Taker::Moves,
            false => Taker::Frees,
        };
        if self.reserve.running || matches!(self.spare, Spare::Preparing) {
            return Step::Wait;
        }
        let fill = self.reserve.wants_filling(limits.segment_bytes_min, tried.filled);
        let looked = if fill { tried.filled } else { tried.made };
        if !looked && self.reserve.may_look(now) {
            return Step::Look;
        }
        match self.reserve.take(taker) {
            Some(file) => Step::Take(file),
            None if !tried.let_go && self.has_unneeded(wall_ms, limits) && !self.is_held() => {
                Step::LetGo
            }
            // A merge may have had a file of the reserve while the cleaner looked.
            None if taker == Taker::Frees && (!tried.cleaned || self.has_more_room_to_empty()) => {
                Step::Clean
            }
            // Nobody is refused for a look that was not taken.
            None if !looked => Step::Look,
            None if moves => Step::Refuse(Claim::Move),
            None => Step::Refuse(Claim::Free),
        }
    }
}

/// The place of a batch that only frees, where that is ready.
fn at_hand<E: Env>(inner: &Inner<E>, bytes: usize) -> Option<Place<FileOf<E>>> {
    let state = &mut *inner.state.borrow_mut();
    if !state.fits(bytes) {
        match state.take_ready() {
            Some(segment) => open(inner, state, &segment, false),
            // Without room for another segment this one goes on.
            None => state.tail.full = false,
        }
    }
    state.fits(bytes).then(|| state.place())
}

/// Goes on in a file of the reserve.
async fn open_reserved<E: Env>(inner: &Rc<Inner<E>>, file: Recycled) {
    let Inner { env, superblock, number: shard, limits, .. } = &**inner;
    let number = inner.state.borrow_mut().take_number();
    let (bytes, blocks) = (file.bytes, Blocks::Again(&file));
    let made = segments::prepare(env, superblock, *shard, number, bytes, blocks, limits).await;
    match made {
        Ok(segment) => open(inner, &mut inner.state.borrow_mut(), &segment, true),
        Err(error) => tracing::warn!(shard, %error, "a file of the reserve is lost"),
    }
}

/// Has the cleaner free what it can; whether there may be room now, or more of the reserve may be used. New data is
/// refused meanwhile, for `why`: what the cleaner moves may build on some, and would wait for who waits for it.
async fn cleaned<E: Env>(inner: &Rc<Inner<E>>, why: &Error) -> bool {
    let before = {
        let state = &mut *inner.state.borrow_mut();
        let (all, segments) = (state.live.total(), state.segments.len());
        state.cleaning.ask(all, STEPS * segments + STEPS)
    };
    inner.space.notify();
    let ended = || {
        let state = inner.state.borrow();
        let cleaning = &state.cleaning;
        let over = state.life != Life::Open || state.poison.is_some();
        let moves = state.queue.has(Claim::Move) || cleaning.awaits_commits > 0;
        if over || !cleaning.running || state.is_held() {
            return Some(false);
        }
        match moves || state.reserve.has(Taker::Frees) || state.reserve.was_freed() {
            true => Some(true),
            false => (cleaning.answered > before).then_some(false),
        }
    };
    loop {
        refuse(inner, Claim::New, why);
        let next = || {
            let refuses = inner.state.borrow().queue.has(Claim::New).then_some(None);
            ended().map(Some).or(refuses)
        };
        let (moves, changed) = (inner.work.until(next), inner.changed.until(next));
        if let Some(ended) = select(Box::pin(moves), Box::pin(changed)).await.factor_first().0 {
            return ended;
        }
    }
}

/// Begins to make the next segment, off the path of commits.
pub(crate) fn start_spare<E: Env>(inner: &Rc<Inner<E>>) {
    let (number, bytes, recycled, zeros) = {
        let mut state = inner.state.borrow_mut();
        state.spare = Spare::Preparing;
        let number = state.take_number();
        let bytes = state.next_bytes(&inner.limits);
        let recycled = state.recycled.iter().position(|file| file.fits(bytes));
        let recycled = recycled.map(|index| state.recycled.swap_remove(index));
        let bytes = recycled.as_ref().map_or(bytes, |file| file.bytes);
        (number, bytes, recycled, state.ahead.zeros_at_first(&inner.limits))
    };
    let task_inner = inner.clone();
    inner.env.spawn("segment", async move {
        let inner = task_inner;
        let limits = &inner.limits;
        let (env, superblock) = (&inner.env, &inner.superblock);
        let mut blocks = recycled.as_ref().map_or(Blocks::New(zeros), Blocks::Again);
        let mut bytes = bytes;
        let prepared = loop {
            let prepared =
                segments::prepare(env, superblock, inner.number, number, bytes, blocks, limits);
            match prepared.await {
                // A smaller one may find room yet.
                Err(error) if error.kind() == Kind::NoSpace && bytes > limits.segment_bytes_min => {
                    bytes = (bytes / 2).max(limits.segment_bytes_min);
                    blocks = Blocks::New(zeros);
                }
                prepared => break prepared,
            }
        };
        {
            let state = &mut *inner.state.borrow_mut();
            let again = matches!(blocks, Blocks::Again(_));
            state.cleaning.recycled += u64::from(again && prepared.is_ok());
            state.spare = match prepared {
                Ok(segment) => Spare::Ready(segment),
                Err(error) => {
                    state.found_no_room(env.now(), error.clone());
                    Spare::Failed(error)
                }
            };
            state.look_for_end_of_full();
        }
        inner.space.notify();
        inner.changed.notify();
    });
}
