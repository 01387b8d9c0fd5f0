//! Compaction on demand: the least space, and the fewest reads, that a shard's objects can have.
//!
//! An object that lies in several frames is read and written as one image; then the cleaner, which does
//! not wait for a lull any more, empties what is left too empty, the directory's runs become one, and the files that
//! nobody needs go, those included that were kept to be used again. What is committed meanwhile is as
//! durable as with the cleaner, and has the same share of the device: it does the same, of the version
//! that an object has.
//!
//! It is a task of its own, so that it goes on where nobody waits for it any more; the shard is closed
//! only when it has ended, which it does soon then.

use std::rc::Rc;

use futures_channel::oneshot;

use crate::checkpoint;
use crate::clean::{self, GROUP_BYTES, GROUP_OBJECTS};
use crate::env::Env;
use crate::error::{Error, Kind, Result};
use crate::ids::ObjectId;
use crate::io::Disk;
use crate::log::room;
use crate::log::writer::Spare;
use crate::merges;
use crate::shard::{Inner, Life, Shard};
use crate::tree::Moving;

/// Entries of the directory that are looked at in one turn.
const TURN_ENTRIES: usize = 1024;
/// Steps of the cleaner for each segment that there is: to empty it, and to let it go.
const STEPS: usize = 2;

/// While it is there, the cleaner does not wait for a lull, and the shard is not closed.
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
        self.0.changed.notify();
    }
}

impl<E: Env> Shard<E> {
    /// Writes each object that lies in several frames as one image, and gives back the space that this frees: for
    /// after a bulk load or many overwrites, before a copy of the files, or in quiet hours. The cleaner
    /// does the same by and by, as far as space asks for it. Commits and reads go on meanwhile; what
    /// they leave behind is not waited for. Where this future is dropped, it goes on.
    ///
    /// Objects that can't be read stay as they are, as with the cleaner; scrub names them.
    ///
    /// Errors: `NoSpace`, `Retry`, `Poisoned`, `Closed`: not all is compact, and nothing is lost.
    pub async fn compact(&self) -> Result<()> {
        self.check_open()?;
        let (done, answer) = oneshot::channel();
        let (shard, compacting) = (self.clone(), Compacting::new(&self.0));
        self.0.env.spawn("compact", async move {
            let compact = shard.make_compact().await;
            drop(compacting);
            let _nobody_waits = done.send(compact);
        });
        let ended =
            |_| Err(Error::new(Kind::Closed, "the compaction ended by a panic, or with its core"));
        answer.await.unwrap_or_else(ended)
    }

    async fn make_compact(&self) -> Result<()> {
        let inner = &self.0;
        self.gather().await?;
        self.cleaned().await?;
        if self.roll().await {
            self.cleaned().await?;
        }
        self.check_open()?;
        // What the directory has in memory belongs to its one run, too.
        checkpoint::make(inner, false).await?;
        let merged = merges::merge_all(inner).await;
        self.check_open()?;
        if merged? {
            // Both slots are to do without the runs that were merged.
            for _slot in 0..2 {
                checkpoint::make(inner, false).await?;
                self.check_open()?;
            }
        }
        loop {
            let file = inner.state.borrow_mut().recycled.pop();
            let Some(file) = file else { return Ok(()) };
            self.remove(&file.name).await;
        }
    }

    async fn remove(&self, name: &str) {
        // Nothing needs the file; the next recovery tries again.
        if let Err(error) = self.0.env.disk().remove(name).await {
            tracing::warn!(name, %error, "could not remove what a compact shard does not need");
        }
    }

    /// Has the cleaner do what there is to do now.
    async fn cleaned(&self) -> Result<()> {
        let inner = &self.0;
        let before = {
            let state = &mut *inner.state.borrow_mut();
            let all = state.live.total() + u64::from(inner.limits.segment_bytes_min);
            let segments = state.segments.len();
            state.cleaning.ask(all, STEPS * segments + STEPS)
        };
        inner.space.notify();
        let done = || {
            let cleaning = &inner.state.borrow().cleaning;
            (cleaning.answered > before || !cleaning.running).then_some(())
        };
        inner.changed.until(done).await;
        self.check_open()?;
        let cleaning = &inner.state.borrow().cleaning;
        match (&cleaning.failure, cleaning.running) {
            (Some(error), _) => Err(error.clone()),
            (None, true) => Ok(()),
            (None, false) => {
                Err(Error::new(Kind::Retry, "the cleaner ended by a panic: open the store anew"))
            }
        }
    }

    /// Goes on in a segment of a fitting size, if the current one, or the one made for later, is too large for
    /// what there is now, and mostly empty; whether it did.
    async fn roll(&self) -> bool {
        let inner = &self.0;
        let fitting = inner.state.borrow().next_bytes(&inner.limits);
        self.replace_spare(fitting).await;
        let from = {
            let state = &mut *inner.state.borrow_mut();
            let from = state.tail.segment;
            let bytes = state.segments[&from.0].header.bytes;
            let mostly_empty = state.live.bytes(from.0) * 2 <= u64::from(bytes);
            if bytes <= fitting || !mostly_empty || state.life != Life::Open {
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
        inner.state.borrow().tail.segment != from
    }

    /// Has another segment made ready, if the one that is has more than `fitting` bytes; that one goes only
    /// once there is the other.
    async fn replace_spare(&self, fitting: u32) {
        let inner = &self.0;
        let large = {
            let state = &mut *inner.state.borrow_mut();
            match std::mem::replace(&mut state.spare, Spare::None) {
                Spare::Ready(spare) if spare.header.bytes > fitting => spare,
                other => {
                    state.spare = other;
                    return;
                }
            }
        };
        room::start_spare(inner);
        let made = || (!matches!(inner.state.borrow().spare, Spare::Preparing)).then_some(());
        inner.changed.until(made).await;
        let unneeded = {
            let state = &mut *inner.state.borrow_mut();
            match &state.spare {
                // The log never goes back: it may be in the new one already.
                Spare::Failed(_) | Spare::None if large.header.number > state.tail.segment => {
                    state.spare = Spare::Ready(large);
                    None
                }
                _ => Some(large.name),
            }
        };
        if let Some(name) = unneeded {
            self.remove(&name).await;
        }
    }

    /// Rewrites the objects that lie in several frames.
    async fn gather(&self) -> Result<()> {
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
                let group = group.iter().map(|(id, _)| (*id, Moving::Nothing)).collect();
                if let Some(error) = clean::move_group(self, group).await? {
                    tracing::error!(shard = self.0.number, %error, "an object can't be made compact");
                }
                self.0.env.idle().await;
                self.check_open()?;
            }
            let Some(next) = next else { return Ok(()) };
            after = Some(next);
            self.0.env.idle().await;
            self.check_open()?;
        }
    }

    /// Some objects behind `after` that lie in several frames, with the bytes of these, and where to go on.
    fn scattered(&self, after: Option<ObjectId>) -> (Vec<(ObjectId, u64)>, Option<ObjectId>) {
        let state = self.0.state.borrow();
        let (mut scattered, mut last) = (Vec::new(), None);
        for (walked, known) in state.directory.entries(after).enumerate() {
            if walked >= TURN_ENTRIES && last.is_some() {
                return (scattered, last);
            }
            // What is damaged is scrub's to tell.
            let Ok((key, known)) = known else { continue };
            last = Some(key.id);
            let Some(entry) = known.entry.filter(|entry| !entry.damaged) else { continue };
            if entry.has_deltas() {
                scattered.push((key.id, entry.log_bytes()));
            }
        }
        (scattered, None)
    }
}
