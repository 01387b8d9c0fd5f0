//! The cleaner: gives back the space of what nobody needs any more (docs/design.md, 3.5).
//!
//! A task of each shard. It looks at the log when commits have made some bytes live, or dead. There is
//! work while the full segments take more than [`Limits::space_percent`] of the live bytes and
//! [`Limits::space_slack_bytes`] beyond; but beside commits, which would wait for the device and the core
//! with it, only above [`Limits::busy_space_percent`] and its slack: there it works a little at a
//! time, and otherwise waits for a lull, or for somebody who wants the shard compact ([`crate::compact`]).
//! It takes one step after the other:
//!
//! | what there is | step |
//! |---|---|
//! | segments without live bytes, an eighth of all or enough | checkpoints, until neither slot needs them: then they go |
//! | others | the victim's objects are written anew elsewhere, as consolidation does |
//! | none that can be emptied | it waits |
//!
//! The victim is the one of most benefit for its cost, free share × age / (1 + live share), from exact
//! live bytes (Rosenblum and Ousterhout, *The design and implementation of a log-structured file
//! system*, 1992): so one with cold data is taken while it is still rather full, one with hot data is left to
//! empty by itself. The age is that of the newest commit, and what was moved keeps its own.
//!
//! An object is moved by a rewrite ([`crate::consolidate`]): of the version that it has, in the directory only
//! if nothing newer came, so that no commit is buried. Some objects are read, then appended in one
//! turn, so that they share a batch. Between two such groups there is, beside commits, a pause until others have
//! written 70 of 100 bytes, or had 70 of 100 parts of the time to do so; it shrinks to nothing as space runs out. For each
//! byte that commits make live or dead three may be moved, and at opening each once: so it ends also
//! where batches that do not fill their blocks and segments keep the log from being any smaller.
//!
//! Of a large object only those pages and values move that lie in the victim, and those above them: the keys
//! in their frames lead to them ([`crate::tree`]). One that is not much larger than an image moves as a whole.
//!
//! On a full disk ([`crate::log::reserve`]) it waits for nothing: it empties, of the segments for whose objects
//! there is room, whatever gains a tenth. An object that is moved as a whole takes all its bytes, be there only a
//! delta of it in the victim: so the room is for what is written, not for what is live there, and nothing is begun
//! that would use the reserve up before the victim is empty.
//!
//! A segment stays as long as an object that can't be read needs it: the
//! others leave it, and it is no victim again until its live bytes change. It stays, too, while its newest
//! commit is younger than [`Limits::retention`], while somebody reads it, and while history or repair
//! look at the log as a whole.

mod moving;

use std::collections::BTreeMap;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use futures_util::future::select;

use moving::clean;
pub(crate) use moving::{GROUP_BYTES, GROUP_OBJECTS, move_group};

use crate::checkpoint;
use crate::env::Env;
use crate::error::{Error, Kind, Result};
use crate::io::File;
use crate::limits::Limits;
use crate::log::handles;
use crate::log::reserve::Claim;
use crate::log::segments::Segment;
use crate::shard::{Inner, Life, Shard, State};

/// A segment with a larger share of live bytes is no victim.
const FULL_PERCENT: u64 = 90;
/// Bytes of full segments for 100 live bytes in a compact shard.
const COMPACT_PERCENT: u64 = 110;
/// Bytes that may be moved for each byte that commits made live or dead.
const CREDIT: u64 = 3;
/// How long a segment that only readers hold is left alone.
const PINNED_WAIT: Duration = Duration::from_secs(1);

/// What the cleaner knows.
#[derive(Debug, Default)]
pub(crate) struct Cleaning {
    /// Whether its task runs ([`Running`]).
    pub(crate) running: bool,
    /// Who needs the log to stay as it is.
    held: usize,
    /// Tasks that make the shard compact.
    pub(crate) compacting: usize,
    /// Steps that may still be taken for one of them.
    asked: u32,
    /// How often all was done for one, or could not be.
    pub(crate) answered: u64,
    /// Why not, the last time.
    pub(crate) failure: Option<Error>,
    /// When the last commit became durable, by the core's clock.
    last_commit: Option<Duration>,
    /// When there were last so many that it was no lull; at first, when the shard was opened.
    last_busy: Duration,
    /// Bytes committed within [`Limits::lull`] from a moment on.
    committed: (Duration, u64),
    /// The segment that is being emptied.
    pub(crate) victim: Option<u32>,
    /// Whether that waits for a lull.
    pub(crate) waiting: bool,
    /// Bytes that became live or died by commits, or were freed by a rewrite.
    others_changed: u64,
    /// `others_changed` from which on it looks again.
    look_at: u64,
    /// Bytes that rewrites have freed in all, less those by which objects grew in them; and the most that it ever was.
    freed_by_rewrites: (i64, i64),
    /// Bytes that it may still write: where what is live can't lie any closer, it must not move it for
    /// ever.
    credit: u64,
    /// Segments that could not be emptied, and their live bytes then.
    stuck: BTreeMap<u32, u64>,
    /// On a full disk: their live bytes, and what had to be written to empty them ([`moving::cost`]), of segments for
    /// which that was too much.
    dear: BTreeMap<u32, (u64, u64)>,
    /// Likewise the bytes that are still to be written to empty the victim: what only frees must not take their room.
    pub(crate) promised: u64,
    /// Likewise the room that there was when it looked last ([`State::room_to_empty`]).
    looked_with: u64,
    /// Bytes of frames that it wrote.
    pub(crate) cleaned_bytes: u64,
    /// Reads of what is to be moved that wait for commits which were made before.
    pub(crate) awaits_commits: u32,
    /// Segments that it emptied.
    pub(crate) victims: u64,
    /// Objects that were committed to while it moved them.
    pub(crate) overtaken: u64,
    /// Large objects of which all pages were read, for keys led to but some of what was to be moved.
    pub(crate) searched: u64,
    /// Segments that went.
    pub(crate) freed: u64,
    /// Of these, segments whose files were taken for new ones.
    pub(crate) recycled: u64,
}

impl Cleaning {
    /// Commits made so many bytes live, or dead; or a rewrite has freed them.
    pub(crate) fn others_changed(&mut self, bytes: u64) {
        self.others_changed += bytes;
        self.credit = self.credit.saturating_add(bytes.saturating_mul(CREDIT));
    }

    /// A rewrite changed the live bytes. What it frees counts but once: an object that is moved to and fro may take
    /// some bytes less each time, and some more between.
    pub(crate) fn rewritten(&mut self, before: u64, after: u64) {
        let (now, most) = self.freed_by_rewrites;
        let now = now.saturating_add_unsigned(before).saturating_sub_unsigned(after);
        self.freed_by_rewrites = (now, most.max(now));
        if now > most {
            self.others_changed(now.abs_diff(most));
        }
    }

    /// A batch of commits became durable, of so many bytes.
    pub(crate) fn committed(&mut self, now: Duration, bytes: u64, limits: &Limits) {
        self.last_commit = Some(now);
        let (since, before) = self.committed;
        let recent =
            if now.saturating_sub(since) < limits.lull { (since, before) } else { (now, 0) };
        self.committed = (recent.0, recent.1 + bytes);
        if self.committed.1 >= limits.lull_bytes {
            self.last_busy = now;
        }
    }

    /// All that is there, so many bytes, may be moved once, and it looks at once.
    pub(crate) fn may_move(&mut self, bytes: u64) {
        self.credit = self.credit.max(bytes);
        self.look_at = 0;
    }

    /// Asks it to do now what there is to do, in so many steps at most: commits may make more and more.
    /// How often it had answered before.
    pub(crate) fn ask(&mut self, bytes: u64, steps: usize) -> u64 {
        self.may_move(bytes);
        self.asked = u32::try_from(steps).unwrap_or(u32::MAX);
        self.failure = None;
        self.answered
    }

    /// What was asked of it is done, as far as it can be.
    fn answer(&mut self, failure: Option<Error>) {
        if std::mem::take(&mut self.asked) > 0 {
            self.answered += 1;
            self.failure = failure;
        }
    }

    /// Whether enough has changed since it looked last, or it was asked.
    pub(crate) fn wants_to_look(&self) -> bool {
        self.asked > 0 || self.others_changed >= self.look_at
    }

    /// These segments are gone.
    pub(crate) fn gone(&mut self, segments: &[u32]) {
        self.freed += segments.len() as u64;
        self.stuck.retain(|number, _| !segments.contains(number));
        self.dear.retain(|number, _| !segments.contains(number));
    }
}

/// What it does next.
enum Step {
    /// Checkpoints, so that empty segments go.
    Free,
    Clean(u32),
    /// Nothing for so long, for somebody commits.
    Wait(Duration),
    /// The shard is closed, or poisoned.
    End,
}

/// While it is there, no segment goes and nothing moves.
pub(crate) struct Hold<E: Env>(Rc<Inner<E>>);

impl<E: Env> Hold<E> {
    pub(crate) fn new(inner: &Rc<Inner<E>>) -> Self {
        inner.state.borrow_mut().cleaning.held += 1;
        Self(inner.clone())
    }
}

impl<E: Env> Drop for Hold<E> {
    fn drop(&mut self) {
        self.0.state.borrow_mut().cleaning.held -= 1;
        self.0.space.notify();
    }
}

/// The cleaner's task: the shard is closed only when it has ended, be it by a panic.
pub(crate) struct Running<E: Env>(Rc<Inner<E>>);

impl<E: Env> Running<E> {
    pub(crate) fn new(inner: &Rc<Inner<E>>) -> Self {
        inner.state.borrow_mut().cleaning.running = true;
        Self(inner.clone())
    }
}

impl<E: Env> Drop for Running<E> {
    fn drop(&mut self) {
        let cleaning = &mut self.0.state.borrow_mut().cleaning;
        (cleaning.running, cleaning.promised) = (false, 0);
        self.0.work.notify();
        self.0.changed.notify();
    }
}

/// How much space a shard takes, beside the segment that is written and those to come.
#[derive(Clone, Copy, Debug)]
struct Space {
    /// Bytes of full segments.
    bytes: u64,
    /// Of these, bytes of segments that nobody needs but perhaps a slot.
    empty: u64,
    /// What there may be.
    allowed: u64,
    /// What there may be beside commits.
    allowed_busy: u64,
}

impl Space {
    /// How badly space is needed, in percent: nothing is left to others once half as much again is taken as is
    /// allowed beside them.
    fn urgency(&self) -> u32 {
        let over = self.bytes.saturating_sub(self.allowed_busy).saturating_mul(200);
        u32::try_from(over / self.allowed_busy.max(1)).unwrap_or(u32::MAX).min(100)
    }
}

impl<F: File> State<F> {
    /// Whether segments must stay for somebody who looks at the whole log.
    pub(crate) fn is_held(&self) -> bool {
        self.cleaning.held > 0
    }

    pub(crate) fn full_segments(&self) -> impl Iterator<Item = &Segment<handles::Handle<F>>> {
        self.segments.range(..self.tail.segment.0).map(|(_, segment)| segment)
    }

    /// Bytes of full segments that there may be while nobody commits.
    pub(crate) fn allowed_bytes(&self, limits: &Limits) -> u64 {
        let (percent, slack) = match self.cleaning.compacting {
            _ if self.reserve.full().is_some() => (COMPACT_PERCENT, 0),
            0 => (limits.space_percent, limits.space_slack_bytes),
            _ => (COMPACT_PERCENT, u64::from(limits.segment_bytes_min)),
        };
        (self.live.total().saturating_mul(percent) / 100).saturating_add(slack)
    }

    /// Whether there are full segments, or runs, that nobody needs but perhaps a slot.
    pub(crate) fn has_unneeded(&self, wall_ms: u64, limits: &Limits) -> bool {
        let mut runs = self.progress.runs_on_disk.iter();
        runs.any(|run| !self.directory.uses(*run))
            || self.full_segments().any(|segment| !self.is_needed(segment, wall_ms, limits))
    }

    fn space(&self, wall_ms: u64, limits: &Limits) -> Space {
        let (mut bytes, mut empty) = (0, 0);
        for segment in self.full_segments() {
            let of_it = u64::from(segment.header.bytes);
            bytes += of_it;
            empty += if self.is_needed(segment, wall_ms, limits) { 0 } else { of_it };
        }
        let allowed = self.allowed_bytes(limits);
        let live = self.live.total().saturating_mul(limits.busy_space_percent) / 100;
        let allowed_busy = live + limits.busy_space_slack_bytes;
        let allowed_busy = match self.reserve.full() {
            Some(_) => allowed,
            None => allowed_busy.max(allowed),
        };
        Space { bytes, empty, allowed, allowed_busy }
    }

    /// How long it lasts at least until there is a lull; `None` if there is one, or somebody wants the shard
    /// compact, or waits for what it was asked, or the disk is full.
    fn until_lull(&self, now: Duration, limits: &Limits) -> Option<Duration> {
        let Cleaning { last_busy, compacting, asked, .. } = self.cleaning;
        let left = (last_busy + limits.lull).saturating_sub(now);
        let waits = compacting == 0 && asked == 0 && self.reserve.full().is_none();
        (waits && !left.is_zero()).then_some(left)
    }

    /// Whether there was a commit a moment ago, be it one.
    fn is_beside_commits(&self, now: Duration, limits: &Limits) -> bool {
        self.cleaning.last_commit.is_some_and(|at| now.saturating_sub(at) < limits.lull)
    }

    /// How long it is to wait for a lull, if at all.
    fn waits(&self, now: Duration, wall_ms: u64, limits: &Limits) -> Option<Duration> {
        let left = self.until_lull(now, limits)?;
        let space = self.space(wall_ms, limits);
        (space.bytes <= space.allowed_busy).then_some(left)
    }

    /// What is to be done, if anything.
    fn step(&mut self, now: Duration, wall_ms: u64, limits: &Limits) -> Option<Step> {
        if self.life != Life::Open || self.poison.is_some() {
            return Some(Step::End);
        }
        if self.is_held() || !self.cleaning.wants_to_look() {
            return None;
        }
        self.cleaning.looked_with = self.room_to_empty();
        let space = self.space(wall_ms, limits);
        let wait = self.until_lull(now, limits).filter(|_| space.bytes <= space.allowed_busy);
        let step = match space {
            // Each time that segments go it costs a run or two: so all are emptied first for which there is room.
            Space { bytes, empty, allowed, .. } if self.reserve.full().is_some() => {
                let victim = self.victim(wall_ms, limits);
                let moves = bytes > allowed && self.cleaning.credit > 0;
                match victim.filter(|_| moves) {
                    Some(victim) => Some(Step::Clean(victim)),
                    None => (empty > 0).then_some(Step::Free),
                }
            }
            Space { empty, .. } if empty > 0 && self.cleaning.compacting > 0 => Some(Step::Free),
            Space { bytes, allowed, .. } if bytes <= allowed => None,
            _ if wait.is_some() => wait.map(Step::Wait),
            Space { bytes, empty, allowed, .. }
                if empty > 0 && empty >= (bytes - allowed).min(bytes / 8) =>
            {
                Some(Step::Free)
            }
            Space { empty, .. } => {
                match self.victim(wall_ms, limits).filter(|_| self.cleaning.credit > 0) {
                    Some(victim) => Some(Step::Clean(victim)),
                    None => (empty > 0).then_some(Step::Free),
                }
            }
        };
        if step.is_none() {
            self.look_later(limits);
        }
        match (&step, self.cleaning.asked) {
            (None, _) | (_, 1) => self.cleaning.answer(None),
            (Some(_), asked) => self.cleaning.asked = asked.saturating_sub(1),
        }
        step
    }

    /// Whether a slot needs a segment that nobody else does, or on a full disk a run.
    fn slot_needs_unneeded(&self, wall_ms: u64, limits: &Limits) -> bool {
        let slots = || self.progress.needs.iter().flatten();
        let mut runs = slots().flat_map(|needs| &needs.runs);
        if self.reserve.full().is_some() && runs.any(|run| !self.directory.uses(*run)) {
            return true;
        }
        let mut full = self.full_segments();
        full.any(|segment| {
            !self.is_needed(segment, wall_ms, limits)
                && slots().any(|needs| needs.segment(segment.header.number.0))
        })
    }

    fn look_later(&mut self, limits: &Limits) {
        let step = match self.reserve.full() {
            Some(_) => 1,
            None => u64::from(limits.segment_bytes_min) / 4,
        };
        self.cleaning.look_at = self.cleaning.others_changed + step;
    }

    /// Bytes that may be written to empty a segment.
    fn room_to_empty(&self) -> u64 {
        match self.reserve.full() {
            Some(_) => {
                let room = self.room_for_moves().saturating_sub(self.queue.bytes() as u64);
                room / 100 * FULL_PERCENT
            }
            None => u64::MAX,
        }
    }

    /// Whether a batch of so many bytes, of what only frees, is to wait until the cleaner writes some more, or waits for
    /// it: else it would take the room that is left for what the cleaner has begun.
    pub(crate) fn leaves_to_cleaner(&self, bytes: usize) -> bool {
        let Cleaning { promised, awaits_commits, .. } = self.cleaning;
        promised > 0
            && self.reserve.full().is_some()
            && awaits_commits == 0
            && !self.queue.has(Claim::Move)
            && self.room_for_moves() < promised + 2 * bytes as u64
    }

    /// Whether there is more room than when it looked last.
    pub(crate) fn has_more_room_to_empty(&self) -> bool {
        let looks = self.cleaning.running && self.life == Life::Open && !self.is_held();
        looks && self.room_to_empty() > self.cleaning.looked_with
    }

    /// The full segment that is best cleaned now.
    fn victim(&self, wall_ms: u64, limits: &Limits) -> Option<u32> {
        let now_s = wall_ms / 1000;
        // On a full disk one that can be emptied as a whole: nothing goes before it is.
        let room = self.room_to_empty();
        let candidates = self.full_segments().filter_map(|segment| {
            let number = segment.header.number.0;
            let (live, bytes) = (self.live.bytes(number), u64::from(segment.header.bytes));
            let dear = self.cleaning.dear.get(&number).filter(|(then, _)| *then == live);
            let taken = live > 0
                && dear.map_or(live, |(_, cost)| *cost) <= room
                && live * 100 <= bytes * FULL_PERCENT
                && !segment.kept
                && self.cleaning.stuck.get(&number) != Some(&live)
                && !self.is_retained(number, wall_ms, limits);
            // One that is just full has an age too.
            let age = 1 + now_s.saturating_sub(self.live.newest_s(number).into());
            // Benefit by cost, as whole numbers: in billionths.
            let free = u128::from(bytes - live.min(bytes));
            let benefit = match self.reserve.full() {
                // Every block counts, and the youngest may empty by itself: of about as much the oldest.
                Some(_) => free * 8 / u128::from(bytes),
                None => free * u128::from(age) * 1_000_000_000 / u128::from(bytes + live),
            };
            taken.then_some((benefit, std::cmp::Reverse(number)))
        });
        candidates.max().map(|(_, std::cmp::Reverse(number))| number)
    }
}

/// Runs until the shard is closed or poisoned.
pub(crate) async fn run<E: Env>(shard: Shard<E>, _running: Running<E>) {
    let inner = &shard.0;
    {
        let state = &mut *inner.state.borrow_mut();
        let all = state.live.total() + u64::from(inner.limits.segment_bytes_min);
        state.cleaning.may_move(all);
        state.cleaning.last_busy = inner.env.now();
    }
    loop {
        let next = || {
            let (now, wall_ms) = (inner.env.now(), inner.env.wall_ms());
            let state = &mut *inner.state.borrow_mut();
            let before = state.cleaning.answered;
            let step = state.step(now, wall_ms, &inner.limits);
            if state.cleaning.answered > before {
                inner.changed.notify();
            }
            step
        };
        let done = match inner.space.until(next).await {
            Step::End => break,
            Step::Wait(time) => {
                wait_for_lull(inner, time).await;
                continue;
            }
            Step::Free => free(inner).await,
            Step::Clean(victim) => {
                inner.state.borrow_mut().cleaning.victim = Some(victim);
                clean(&shard, victim).await
            }
        };
        {
            let cleaning = &mut inner.state.borrow_mut().cleaning;
            (cleaning.victim, cleaning.promised) = (None, 0);
        }
        inner.work.notify();
        if let Err(error) = done {
            if inner.state.borrow().life == Life::Open {
                tracing::warn!(shard = inner.number, %error, "cleaning failed; it is tried later");
            }
            let state = &mut *inner.state.borrow_mut();
            state.look_later(&inner.limits);
            state.cleaning.answer(Some(error));
            inner.changed.notify();
        }
        inner.env.idle().await;
    }
}

/// Waits, but not beyond the shard's end.
async fn sleep<E: Env>(inner: &Rc<Inner<E>>, duration: Duration) {
    let ended = || is_over(inner).then_some(());
    select(pin!(inner.changed.until(ended)), pin!(inner.env.sleep(duration))).await;
}

fn is_over<E: Env>(inner: &Rc<Inner<E>>) -> bool {
    let state = inner.state.borrow();
    state.life != Life::Open || state.poison.is_some()
}

/// Lets empty segments go, and on a full disk runs: with a checkpoint for each slot that still needs some.
async fn let_go<E: Env>(inner: &Rc<Inner<E>>) -> Result<()> {
    for _slot in 0..2 {
        let wall_ms = inner.env.wall_ms();
        if !inner.state.borrow().slot_needs_unneeded(wall_ms, &inner.limits) || is_over(inner) {
            break;
        }
        let made = checkpoint::make(inner, false).await;
        let no_room = made.as_ref().is_err_and(|error| error.kind() == Kind::NoSpace);
        // What only the older slot needs can go even so.
        if !(no_room && checkpoint::repeat(inner).await?) {
            made?;
        }
    }
    checkpoint::remove_unneeded(inner).await;
    Ok(())
}

/// Likewise, for who has no room; whether anything went.
pub(crate) async fn make_room<E: Env>(inner: &Rc<Inner<E>>) -> bool {
    inner.state.borrow_mut().reserve.kept();
    if let Err(error) = let_go(inner).await {
        tracing::warn!(shard = inner.number, %error, "nothing can go");
    }
    inner.state.borrow().reserve.was_freed()
}

async fn free<E: Env>(inner: &Rc<Inner<E>>) -> Result<()> {
    let before = inner.state.borrow().cleaning.freed;
    let_go(inner).await?;
    if inner.state.borrow().cleaning.freed == before {
        let pinned = inner.state.borrow().full_segments().any(Segment::is_pinned);
        // Whoever asked does not wait for readers.
        inner.state.borrow_mut().cleaning.answer(None);
        inner.changed.notify();
        match pinned {
            true => sleep(inner, PINNED_WAIT).await,
            false => inner.state.borrow_mut().look_later(&inner.limits),
        }
    }
    Ok(())
}

/// Waits for so long, unless the cleaner is wanted before: there may be no room for waiting any more, or
/// somebody wants the shard compact.
async fn wait_for_lull<E: Env>(inner: &Rc<Inner<E>>, time: Duration) {
    {
        let state = &mut *inner.state.borrow_mut();
        state.look_later(&inner.limits);
        state.cleaning.waiting = true;
    }
    let wanted = || {
        let State { cleaning, life, poison, .. } = &*inner.state.borrow();
        let over = *life != Life::Open || poison.is_some();
        let wanted = cleaning.wants_to_look() || cleaning.compacting > 0 || cleaning.held > 0;
        (over || wanted).then_some(())
    };
    select(pin!(inner.space.until(wanted)), pin!(inner.env.sleep(time))).await;
    let cleaning = &mut inner.state.borrow_mut().cleaning;
    cleaning.waiting = false;
    cleaning.look_at = cleaning.look_at.min(cleaning.others_changed);
}

/// Waits while commits come first; whether the segment is still to be emptied then.
async fn may_go_on<E: Env>(inner: &Rc<Inner<E>>) -> bool {
    loop {
        if is_over(inner) || inner.state.borrow().is_held() {
            return false;
        }
        let (now, wall_ms) = (inner.env.now(), inner.env.wall_ms());
        let waits = inner.state.borrow().waits(now, wall_ms, &inner.limits);
        match waits {
            None => return true,
            Some(time) => wait_for_lull(inner, time).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An object that is moved to and fro takes again what it freed: else the cleaner would move it for ever.
    #[test]
    fn what_a_rewrite_frees_counts_but_once() {
        let mut cleaning = Cleaning::default();
        for _ in 0..100 {
            cleaning.rewritten(1000, 900);
            cleaning.rewritten(900, 1000);
        }
        assert_eq!(cleaning.credit, 100 * CREDIT);
        cleaning.rewritten(1000, 700);
        assert_eq!(cleaning.credit, 300 * CREDIT);
    }
}
