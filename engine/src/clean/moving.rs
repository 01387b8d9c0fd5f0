//! Emptying a segment: what objects need of it is written anew elsewhere, a group of them at a time, with the pauses that
//! commits are due.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{join_all, select};

use super::may_go_on;
use crate::directory::Entry;
use crate::env::Env;
use crate::error::{Error, Kind, Result};
use crate::format::batch::BatchHeader;
use crate::format::frame::Share;
use crate::ids::{ObjectId, Version};
use crate::io::{File, PageBuf, read_full_at};
use crate::limits::Limits;
use crate::log::handles;
use crate::log::reserve::{Claim, Taker};
use crate::log::segments::{FileOf, Segment};
use crate::shard::{Inner, Life, Shard, head};
use crate::tree::{self, Moving};

/// Objects that are moved together, at most.
pub(crate) const GROUP_OBJECTS: usize = 64;
/// Likewise beside commits, which wait for the device as long as the group's reads take.
const BUSY_GROUP_OBJECTS: usize = 8;
/// Bytes that they need together at most, but for one alone.
pub(crate) const GROUP_BYTES: u64 = 128 << 10;
/// A large object up to so many times as large as an image may be is moved as a whole.
const WHOLE_IMAGES: u64 = 4;
/// Rewrites of a large object, one after the other, that may move nothing for what was committed meanwhile.
const VAIN_MAX: u32 = 8;
/// The share of the bytes, or of the time, that the cleaner takes at most while there is room, in percent.
const SHARE_PERCENT: u32 = 30;

/// Moves what is live in a segment elsewhere.
///
/// Errors: why that could not go on; what was moved is.
pub(super) async fn clean<E: Env>(shard: &Shard<E>, victim: u32) -> Result<()> {
    let inner = &shard.0;
    let before = inner.state.borrow().live.bytes(victim);
    let is_full = || inner.state.borrow().reserve.full().is_some();
    let counted = is_full();
    let mut walk = match handles::opened(inner, victim).await {
        Ok(Some(segment)) => Walk { at: segment.header.block_bytes, segment },
        Ok(None) => return Ok(()),
        Err(error) if error.kind() == Kind::Corrupt => {
            inner.state.borrow_mut().cleaning.stuck.insert(victim, before);
            return Err(error);
        }
        Err(error) => return Err(error),
    };
    if counted {
        let cost = cost(inner, victim, Walk { segment: walk.segment.clone(), ..walk }).await;
        let state = &mut *inner.state.borrow_mut();
        if cost > state.room_to_empty() {
            state.cleaning.dear.insert(victim, (before, cost));
            return Ok(());
        }
        state.cleaning.promised = cost;
    }
    let (mut damaged, mut large) = (None, BTreeMap::<_, BTreeSet<_>>::new());
    let live = || inner.state.borrow().live.bytes(victim);
    // What left it is paid for, whatever it took to write it elsewhere.
    let mut there = before;
    let mut charge = || {
        let state = &mut *inner.state.borrow_mut();
        let left = state.live.bytes(victim);
        state.cleaning.credit = state.cleaning.credit.saturating_sub(there.saturating_sub(left));
        there = left;
    };
    while live() > 0 {
        let ids = match walk.next(inner.limits.batch_bytes_max).await {
            Ok(Some(ids)) => ids,
            Ok(None) => break,
            Err(error) => {
                damaged = Some(error);
                break;
            }
        };
        let mut rest: Vec<_> = ids.into_iter().collect();
        while !rest.is_empty() {
            // On a disk that became full it is to be counted first whether there is room for all.
            if !may_go_on(inner).await || is_full() && !counted {
                return Ok(());
            }
            let group = next_group(inner, victim, &mut rest, &mut large);
            if !group.is_empty() {
                damaged = move_group(shard, group).await?.or(damaged);
                charge();
            }
            let space = inner.state.borrow().space(inner.env.wall_ms(), &inner.limits);
            match space.urgency() {
                0 => inner.env.idle().await,
                _ => inner.env.turn_end().await,
            }
        }
    }
    for (id, keys) in large {
        if live() == 0 || !may_go_on(inner).await {
            break;
        }
        damaged = move_large(shard, victim, id, keys).await?.or(damaged);
        charge();
    }
    let state = &mut *inner.state.borrow_mut();
    let left = state.live.bytes(victim);
    if left == 0 {
        state.cleaning.victims += 1;
        state.cleaning.stuck.remove(&victim);
    } else {
        state.cleaning.stuck.insert(victim, left);
    }
    let shard = inner.number;
    tracing::debug!(shard, segment = victim, before, left, "segment cleaned");
    if let Some(error) = damaged {
        tracing::error!(shard, segment = victim, %error, "not all of a segment can be moved; it stays");
    }
    Ok(())
}

/// Whether an object is written anew as a whole, wherever it lies.
fn moves_whole(entry: &Entry, limits: &Limits) -> bool {
    !entry.is_tree() || entry.log_bytes() <= WHOLE_IMAGES * limits.image_bytes_max as u64
}

/// Bytes that are written to have an object need nothing of the victim. Of a tree of which but a part moves the pages
/// between that and the root are not counted.
fn cost_of(entry: &Entry, victim: u32, limits: &Limits) -> u64 {
    let bytes = |share: Share| u64::from(share.bytes);
    let here = entry.needs().filter(|share| share.segment == victim).map(bytes).sum();
    match here {
        0 => 0,
        _ if moves_whole(entry, limits) => entry.log_bytes(),
        _ => here + entry.chain().map(|it| bytes(it.into())).sum::<u64>(),
    }
}

/// Bytes that are written to empty a segment, or as many of them as are more than there is room for.
async fn cost<E: Env>(inner: &Rc<Inner<E>>, victim: u32, mut walk: Walk<FileOf<E>>) -> u64 {
    let (mut seen, mut cost) = (BTreeSet::new(), 0);
    // What is damaged moves nowhere.
    while let Ok(Some(ids)) = walk.next(inner.limits.batch_bytes_max).await {
        let state = inner.state.borrow();
        for id in ids.into_keys() {
            let Ok(Some(entry)) = head(&state, &id) else { continue };
            if seen.insert(id) {
                cost += cost_of(&entry, victim, &inner.limits);
            }
        }
        if cost > state.room_to_empty() {
            break;
        }
    }
    cost
}

/// Moves what a large object has in a segment, all that these keys lead to, some megabytes at a time. Gives the
/// error that keeps some of it there.
///
/// Errors: nothing can be moved now.
async fn move_large<E: Env>(
    shard: &Shard<E>,
    victim: u32,
    id: ObjectId,
    keys: BTreeSet<Bytes>,
) -> Result<Option<Error>> {
    let inner = &shard.0;
    let left = || {
        let entry = head(&inner.state.borrow(), &id).ok().flatten();
        let of_it = |entry: Entry| {
            let shares = entry.needs().filter(|share| share.segment == victim);
            (shares.collect(), entry.delta_bytes, entry.version)
        };
        entry.map_or((Vec::new(), 0, Version::NONE), of_it)
    };
    let (mut moving, mut vain) = (Moving::Segment(victim, keys), 0);
    loop {
        let (before, waited, version) = left();
        if before.is_empty() || !may_go_on(inner).await {
            return Ok(None);
        }
        if let Some(error) = move_group(shard, vec![(id, moving.clone())]).await? {
            return Ok(Some(error));
        }
        let (after, waits, now) = left();
        // Of what is written at a time commits that go into its pages take their part, and may take all.
        vain = if after == before { vain + 1 } else { 0 };
        let others = waits < waited || now != version;
        if vain == 0 || others && vain < VAIN_MAX {
            continue;
        }
        let by_keys = matches!(moving, Moving::Segment(..));
        if !by_keys {
            return Ok(None);
        }
        // Where a frame that nobody needs can't be read, those behind it were not seen.
        inner.state.borrow_mut().cleaning.searched += 1;
        (moving, vain) = (Moving::All([victim].into()), 0);
    }
}

/// Takes some objects that need something of the segment; large ones are put together with the keys that lead
/// there, and come when all of it was looked at.
fn next_group<E: Env>(
    inner: &Rc<Inner<E>>,
    victim: u32,
    rest: &mut Vec<(ObjectId, BTreeSet<Bytes>)>,
    large: &mut BTreeMap<ObjectId, BTreeSet<Bytes>>,
) -> Vec<(ObjectId, Moving)> {
    let state = inner.state.borrow();
    let (mut group, mut bytes) = (Vec::new(), 0);
    let beside = state.is_beside_commits(inner.env.now(), &inner.limits);
    let urgency = state.space(inner.env.wall_ms(), &inner.limits).urgency() as usize;
    let objects_max = match beside {
        false => GROUP_OBJECTS,
        true => BUSY_GROUP_OBJECTS + (GROUP_OBJECTS - BUSY_GROUP_OBJECTS) * urgency / 100,
    };
    while let Some((id, keys)) = rest.pop() {
        // Where that can't be read, the segment stays.
        let Ok(Some(entry)) = head(&state, &id) else { continue };
        if !entry.needs().any(|share| share.segment == victim) {
            continue;
        }
        let needs = entry.log_bytes();
        let moving = match entry.is_tree() {
            false => Moving::Nothing,
            // Else it would be moved again for each segment that it lies in.
            true if moves_whole(&entry, &inner.limits) => {
                Moving::All(entry.needs().map(|share| share.segment).collect())
            }
            true => {
                large.entry(id).or_default().extend(keys);
                continue;
            }
        };
        if !group.is_empty() && bytes + needs > GROUP_BYTES {
            rest.push((id, keys));
            break;
        }
        bytes += needs;
        group.push((id, moving));
        if group.len() == objects_max {
            break;
        }
    }
    group
}

/// Moves some objects, and then leaves the device to others for as long as they are to have it. Gives the error of
/// one that can't be read.
///
/// Errors: nothing can be moved now.
pub(crate) async fn move_group<E: Env>(
    shard: &Shard<E>,
    group: Vec<(ObjectId, Moving)>,
) -> Result<Option<Error>> {
    let inner = &shard.0;
    let began = inner.env.now();
    let Moved { mut bytes, mut damaged, skipped } = move_once(shard, group).await?;
    for (id, moving) in skipped {
        // Others rewrite it; that may not be all that is to be done. On a full disk they wait for room.
        let free = || {
            let state = inner.state.borrow();
            let is_full = state.reserve.full().is_some();
            (is_full || !state.rewriting.contains_key(&id)).then_some(())
        };
        inner.changed.until(free).await;
        let again = move_once(shard, vec![(id, moving)]).await?;
        bytes += again.bytes;
        damaged = again.damaged.or(damaged);
    }
    pause(inner, bytes, inner.env.now() - began).await;
    Ok(damaged)
}

/// What came of moving some objects.
#[derive(Default)]
struct Moved {
    /// Bytes that were written.
    bytes: u64,
    /// Why one can't be read.
    damaged: Option<Error>,
    /// Those that others were rewriting, or committed to in a way that was refused.
    skipped: Vec<(ObjectId, Moving)>,
}

/// Reads some objects, appends all of them in one turn, and waits until they are durable.
///
/// Errors: nothing can be moved now.
async fn move_once<E: Env>(shard: &Shard<E>, group: Vec<(ObjectId, Moving)>) -> Result<Moved> {
    let inner = &shard.0;
    let awaiting = await_commits(inner, &group)?;
    let read = group.iter().map(|(id, moving)| shard.begin_rewrite(id, moving.clone()));
    let read = join_all(read).await;
    drop(awaiting);
    let (mut tickets, mut moved) = (Vec::new(), Moved::default());
    for (rewrite, (id, moving)) in read.into_iter().zip(group) {
        match rewrite {
            Ok(Some(rewrite)) => {
                let overtaken = rewrite.is_overtaken();
                inner.state.borrow_mut().cleaning.overtaken += u64::from(overtaken);
                match shard.append_rewrite(rewrite)? {
                    Some((ticket, bytes)) => tickets.push((ticket, bytes, moving)),
                    None if overtaken => moved.skipped.push((id, moving)),
                    None => {}
                }
            }
            Ok(None) => moved.skipped.push((id, moving)),
            Err(error) if error.kind() == Kind::Corrupt => moved.damaged = Some(error),
            Err(error) => return Err(error),
        }
    }
    for (ticket, bytes, moving) in tickets {
        let (id, claim) = (ticket.id, ticket.claim);
        match ticket.await {
            Ok(_) => moved.bytes += bytes,
            // It built on new data, for which there is no room.
            Err(error) if claim == Claim::New && error.kind() != Kind::Unknown => {
                moved.skipped.push((id, moving));
            }
            Err(error) => return Err(error),
        }
    }
    let cleaning = &mut inner.state.borrow_mut().cleaning;
    cleaning.cleaned_bytes += moved.bytes;
    cleaning.promised = cleaning.promised.saturating_sub(moved.bytes);
    Ok(moved)
}

/// Somebody reads what is to be moved, and waits for its commits in flight: on a full disk these may wait for what
/// the cleaner frees, and are to be written first.
struct Awaiting<E: Env>(Rc<Inner<E>>);

impl<E: Env> Drop for Awaiting<E> {
    fn drop(&mut self) {
        self.0.state.borrow_mut().cleaning.awaits_commits -= 1;
    }
}

/// To be held while these objects are read, if they have commits in flight.
///
/// Errors: `NoSpace`: there is no room for them.
fn await_commits<E: Env>(
    inner: &Rc<Inner<E>>,
    group: &[(ObjectId, Moving)],
) -> Result<Option<Awaiting<E>>> {
    let state = &mut *inner.state.borrow_mut();
    if !group.iter().any(|(id, _)| state.pending.contains_key(id)) {
        return Ok(None);
    }
    if state.reserve.full().is_some() && !state.reserve.has(Taker::Moves) {
        return Err(Error::new(Kind::NoSpace, "commits to what is to be moved wait for room"));
    }
    state.cleaning.awaits_commits += 1;
    inner.work.notify();
    Ok(Some(Awaiting(inner.clone())))
}

/// Leaves the device to others for as long as their share is: until they have written it, or had the time
/// to. The less room there is, the shorter.
async fn pause<E: Env>(inner: &Rc<Inner<E>>, moved: u64, took: Duration) {
    let (others, until) = {
        let state = inner.state.borrow();
        if !state.is_beside_commits(inner.env.now(), &inner.limits) {
            return;
        }
        let space = state.space(inner.env.wall_ms(), &inner.limits);
        let others = (100 - SHARE_PERCENT) * (100 - space.urgency());
        let bytes = moved * u64::from(others) / u64::from(SHARE_PERCENT * 100);
        (others, state.log_bytes + bytes)
    };
    let have_written = || {
        let state = inner.state.borrow();
        let over = state.life != Life::Open || state.poison.is_some();
        (over || state.log_bytes >= until).then_some(())
    };
    let time = took * others / (SHARE_PERCENT * 100);
    select(pin!(inner.changed.until(have_written)), pin!(inner.env.sleep(time))).await;
}

/// A walk over the tables of a segment's batches, a few at a time.
struct Walk<F: File> {
    segment: Segment<F>,
    at: usize,
}

impl<F: File> Walk<F> {
    /// The ids of some more batches, each with keys whose pages or values lie in them, so that they are found
    /// in its tree; `None` at the end. What is in a batch whose head is damaged is left out.
    ///
    /// Errors: `Corrupt`: the segment can't be read.
    async fn next(
        &mut self,
        bytes_max: usize,
    ) -> Result<Option<BTreeMap<ObjectId, BTreeSet<Bytes>>>> {
        let (home, block) = (self.segment.home(), self.segment.header.block_bytes);
        let end = self.segment.header.bytes as usize;
        if self.at >= end {
            return Ok(None);
        }
        let buf = PageBuf::zeroed(bytes_max.min(end - self.at));
        let (read, buf) = read_full_at(&self.segment.file, buf, self.at as u64, block).await;
        read.map_err(|source| {
            Error::io(Kind::Corrupt, format!("reading {}", self.segment.name), source)
        })?;
        let (mut ids, mut at) = (BTreeMap::<_, BTreeSet<_>>::new(), 0);
        while at < buf.len() {
            let Ok(header) = BatchHeader::decode(&buf[at..], &home, self.at + at) else {
                at += block;
                continue;
            };
            let end = at + header.bytes as usize;
            match header.table(&buf[at..]) {
                // It goes on behind what was read.
                _ if end > buf.len() && at > 0 => break,
                Ok(table) => {
                    for id in table {
                        ids.entry(id).or_default();
                    }
                    let frames = header.frames();
                    let frames = at + frames.start..(at + frames.end).min(buf.len());
                    let place = self.at + frames.start;
                    tree::keys_in(&buf[frames], home.incarnation, place, |id, key| {
                        ids.entry(id).or_default().insert(key);
                    });
                    at = end;
                }
                Err(_) => at += block,
            }
        }
        self.at += at;
        Ok(Some(ids))
    }
}
