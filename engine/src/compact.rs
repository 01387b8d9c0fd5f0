//! Compaction on demand: the least space, and the fewest reads, that a shard's objects can have.
//!
//! An object that lies in several frames is read and written as one image; then the cleaner, which does
//! not wait for a lull any more, empties what is left too empty, the directory's runs become one, and the files that
//! nobody needs go, those included that were kept to be used again. What is committed meanwhile is as durable,
//! and as little in the way, as with the cleaner: it does the same, of the version that an object has.

use std::rc::Rc;

use crate::checkpoint;
use crate::clean::{self, GROUP_BYTES, GROUP_OBJECTS};
use crate::env::Env;
use crate::error::{Error, Kind, Result};
use crate::ids::ObjectId;
use crate::io::Disk;
use crate::log::writer::Spare;
use crate::merges;
use crate::shard::{Inner, Life, Shard};

/// Entries of the directory that are looked at in one turn.
const TURN_ENTRIES: usize = 1024;

/// While it is there, the cleaner does not wait for a lull.
struct Compacting<E: Env>(Rc<Inner<E>>);

impl<E: Env> Compacting<E> {
    fn new(inner: &Rc<Inner<E>>) -> Self {
        inner.state.borrow_mut().cleaning.compacting += 1;
        inner.space.notify();
        Self(inner.clone())
    }
}

impl<E: Env> Drop for Compacting<E> {
    fn drop(&mut self) {
        self.0.state.borrow_mut().cleaning.compacting -= 1;
    }
}

impl<E: Env> Shard<E> {
    /// Writes each object that lies in several frames as one image, and gives back the space that this frees: for
    /// after a bulk load or many overwrites, before a copy of the files, or in quiet hours. The cleaner
    /// does the same by and by, as far as space asks for it. Commits and reads go on meanwhile. Dropped
    /// half-way it leaves what is done.
    ///
    /// Objects that can't be read stay as they are, as with the cleaner; scrub names them.
    ///
    /// Errors: `NoSpace`, `Retry`, `Poisoned`, `Closed`: not all is compact.
    pub async fn compact(&self) -> Result<()> {
        let inner = &self.0;
        self.check_open()?;
        let _compacting = Compacting::new(inner);
        self.gather_scattered().await?;
        self.cleaned().await?;
        if self.roll().await {
            self.cleaned().await?;
        }
        // What the directory has in memory belongs to its one run, too; the second one names that.
        checkpoint::make(inner, false).await?;
        let merged = merges::merge_all(inner).await;
        self.check_open()?;
        merged?;
        checkpoint::make(inner, false).await?;
        let recycled = std::mem::take(&mut inner.state.borrow_mut().recycled);
        for file in recycled {
            let removed = inner.env.disk().remove(&file.name).await;
            removed.map_err(|source| {
                Error::io(Kind::Retry, format!("removing {}", file.name), source)
            })?;
        }
        Ok(())
    }

    /// Waits until the cleaner has done what there is to do now.
    async fn cleaned(&self) -> Result<()> {
        let inner = &self.0;
        let before = {
            let state = &mut *inner.state.borrow_mut();
            let all = state.live.total() + u64::from(inner.limits.segment_bytes_min);
            state.cleaning.may_move(all);
            state.cleaning.compacted
        };
        inner.space.notify();
        let done = || {
            let state = inner.state.borrow();
            let over = state.life != Life::Open || state.poison.is_some();
            (over || state.cleaning.compacted > before).then_some(())
        };
        inner.changed.until(done).await;
        self.check_open()
    }

    /// Goes on in a segment of a fitting size, if the current one, or the one made for later, is too large for
    /// what there is now, and mostly empty; whether it did.
    async fn roll(&self) -> bool {
        let inner = &self.0;
        let fitting = inner.state.borrow().next_bytes(&inner.limits);
        let spare = {
            let state = &mut *inner.state.borrow_mut();
            match std::mem::replace(&mut state.spare, Spare::None) {
                Spare::Ready(spare) if spare.header.bytes > fitting => Some(spare),
                other => {
                    state.spare = other;
                    None
                }
            }
        };
        if let Some(spare) = spare {
            // One that stays is taken for what it is by the next opening.
            let _ = inner.env.disk().remove(&spare.name).await;
        }
        let from = {
            let state = &mut *inner.state.borrow_mut();
            let from = state.tail.segment;
            let bytes = state.segments[&from.0].header.bytes;
            if bytes <= fitting || state.live.bytes(from.0) * 2 > u64::from(bytes) {
                return false;
            }
            state.tail.full = true;
            from
        };
        inner.work.notify();
        let done = || {
            let state = inner.state.borrow();
            let over = state.life != Life::Open || state.poison.is_some();
            (over || !state.tail.full || state.tail.segment != from).then_some(())
        };
        inner.changed.until(done).await;
        true
    }

    /// Rewrites the objects that lie in several frames.
    async fn gather_scattered(&self) -> Result<()> {
        let mut after = None;
        loop {
            let (scattered, next) = self.scattered(after);
            let mut rest = scattered.as_slice();
            while !rest.is_empty() {
                let mut bytes = 0;
                let fits = |(_, needs): &&(ObjectId, u64)| {
                    bytes += needs;
                    bytes <= GROUP_BYTES
                };
                let fitting = rest.iter().take(GROUP_OBJECTS).take_while(fits).count().max(1);
                let (group, others) = rest.split_at(fitting);
                rest = others;
                let group: Vec<_> = group.iter().map(|(id, _)| *id).collect();
                if let Some(error) = clean::move_group(self, &group).await? {
                    tracing::error!(shard = self.0.number, %error, "an object can't be made compact");
                }
                self.0.env.idle().await;
                self.check_open()?;
            }
            let Some(next) = next else { return Ok(()) };
            after = Some(next);
            self.0.env.idle().await;
        }
    }

    /// Some objects behind `after` that lie in several frames, with the bytes of these, and where to go on.
    fn scattered(&self, after: Option<ObjectId>) -> (Vec<(ObjectId, u64)>, Option<ObjectId>) {
        let state = self.0.state.borrow();
        let (mut scattered, mut last) = (Vec::new(), None);
        for (walked, known) in state.directory.entries(after).enumerate() {
            // What is damaged is scrub's to tell.
            let Ok((key, known)) = known else { continue };
            let Some(entry) = known.entry.filter(|entry| !entry.damaged) else { continue };
            if entry.has_deltas() {
                scattered.push((key.id, entry.needs().map(|share| u64::from(share.bytes)).sum()));
            }
            if walked >= TURN_ENTRIES {
                last = Some(key.id);
                break;
            }
        }
        (scattered, last)
    }
}
