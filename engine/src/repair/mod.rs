//! Scrub and repair: finding out what of a shard can't be read, and bringing back what can.
//!
//! | what is damaged | what scrub says | what repair does |
//! |---|---|---|
//! | a frame that an object needs | the object | brings it back to the last version all frames of which can be read, else drops it |
//! | a batch that recovery lost (E6) | the objects of its table | the same |
//! | a block of the directory | the block | looks through the log for objects that may have been in it; the rest of the run is written anew |
//! | what keeps a shard closed (E6) | the shard does not open | accepts the loss ([`crate::Opening::accept_losses`]) and says what nobody can know |
//!
//! What was brought back is a commit like any other, of a version of its own: nothing is changed in
//! place (E3), and a crash half-way leaves some objects repaired and the others as they were.

pub(crate) mod scan;

use std::collections::BTreeSet;
use std::rc::Rc;

use crate::batch::Batch;
use crate::clean::Hold;
use crate::contents::Contents;
use crate::env::Env;
use crate::error::{Error, Kind, Result};
use crate::ids::{ObjectId, Version};
use crate::list::List;
use crate::shard::{Inner, Shard};
use crate::snapshot::Snapshot;
use crate::{checkpoint, load};
use scan::{Found, scan};

/// Objects that are looked at before others of the core have a turn.
const STEP: usize = 64;

/// What a scrub found.
#[derive(Clone, Debug, Default)]
pub struct Scrub {
    /// Objects that were read.
    pub objects: u64,
    /// Bytes of their keys and values.
    pub bytes: u64,
    /// Objects that can't be read, with the reason; sorted.
    pub unreadable: Vec<(ObjectId, Error)>,
    /// Blocks of the directory that can't be read: objects in them are not in `unreadable`.
    pub directory: Vec<Error>,
    /// Where live bytes were counted wrong ([`Shard::audit`]).
    pub miscounted: Vec<String>,
}

impl Scrub {
    /// Whether all is whole.
    pub fn is_clean(&self) -> bool {
        self.unreadable.is_empty() && self.directory.is_empty() && self.miscounted.is_empty()
    }
}

/// What becomes of an object that could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is again what it was at this version; what was committed later is lost.
    BroughtBack {
        /// The version.
        version: Version,
        /// When that was committed by the wall clock, in milliseconds since 1970.
        written_ms: u64,
        /// Its keys.
        keys: usize,
    },
    /// The newest version of which all can be read is that it was deleted: it no longer exists.
    Deleted,
    /// Of no version all can be read: it no longer exists.
    Dropped,
    /// It can be read at this version, and is too large to be written as one commit.
    TooLarge(Version),
}

/// What a repair does, or would do.
#[derive(Clone, Debug, Default)]
pub struct Repair {
    /// The objects that could not be read, sorted.
    pub objects: Vec<(ObjectId, Fate)>,
    /// Blocks of the directory that are given up.
    pub directory: Vec<Error>,
}

impl<E: Env> Shard<E> {
    /// Blocks of the directory that can't be read, found by reading all of it: no walk gives the
    /// objects in them (E6).
    pub fn damaged_blocks(&self) -> Vec<Error> {
        self.0.state.borrow().directory.damaged_blocks()
    }

    /// Reads every object and every block of the directory. `progress` is told after each few
    /// objects how many were read.
    ///
    /// Errors: `Poisoned`; damage is in what is returned.
    pub async fn scrub(&self, mut progress: impl FnMut(u64)) -> Result<Scrub> {
        // What lies on the device is what counts.
        self.0.state.borrow_mut().recent.clear();
        let mut scrub = Scrub { directory: self.damaged_blocks(), ..Scrub::default() };
        let mut after = None;
        loop {
            let ids = self.0.next_ids(after);
            let Some(last) = ids.last() else { break };
            after = Some(*last);
            for id in ids {
                match self.read_bytes(&id).await {
                    Ok(bytes) => {
                        scrub.objects += 1;
                        scrub.bytes += bytes;
                    }
                    Err(error) if error.kind() == Kind::Corrupt => {
                        scrub.unreadable.push((id, error));
                    }
                    Err(error) => return Err(error),
                }
            }
            progress(scrub.objects);
            self.0.env.turn_end().await;
        }
        scrub.unreadable.sort_by_key(|(id, _)| *id);
        scrub.miscounted = self.audit().await?;
        Ok(scrub)
    }

    /// Reads all of an object, of a large one some pages at a time; the bytes of its keys and values.
    async fn read_bytes(&self, id: &ObjectId) -> Result<u64> {
        let snapshot = self.snapshot(id).await?;
        let (mut scan, mut bytes) = (snapshot.scan(&List::all())?, 0);
        while let Some(some) = scan.next().await? {
            bytes += some.iter().map(|(key, value)| (key.len() + value.len()) as u64).sum::<u64>();
        }
        Ok(bytes)
    }

    /// Brings back what a scrub can't read, as far as the log still holds it; with `apply` false it
    /// only says what it would do. Nobody else may use the shard meanwhile.
    ///
    /// Durability: what it says is durable when it returns.
    /// Errors: as [`Shard::commit`].
    pub async fn repair(&self, apply: bool) -> Result<Repair> {
        let _hold = Hold::new(&self.0);
        let scrub = self.scrub(|_| {}).await?;
        let mut wanted: BTreeSet<ObjectId> = scrub.unreadable.iter().map(|(id, _)| *id).collect();
        let found = scan(&self.0, &wanted).await?;
        wanted.extend(found.keys().copied());
        let mut repair = Repair { objects: Vec::new(), directory: scrub.directory };
        for id in wanted {
            let frames = found.get(&id).map_or(&[][..], |frames| frames);
            let good = self.last_good(&id, frames).await;
            let fate = self.bring_back(&id, good.as_ref(), apply).await?;
            repair.objects.push((id, fate));
        }
        // A block that holds what could not be brought back is not given up.
        let too_large = |(_, fate): &(ObjectId, Fate)| matches!(fate, Fate::TooLarge(_));
        let forget = !repair.directory.is_empty() && !repair.objects.iter().any(too_large);
        if apply {
            // What is still lost stays so.
            let state = &mut *self.0.state.borrow_mut();
            state.segments.values_mut().for_each(|segment| segment.kept = false);
        }
        if apply {
            checkpoint::make(&self.0, forget).await?;
        }
        Ok(repair)
    }

    /// The newest state of which every frame can be read.
    async fn last_good(&self, id: &ObjectId, frames: &[Found]) -> Option<(Contents, u64)> {
        for newest in frames.iter().rev() {
            let Some(chain) = scan::chain(frames, newest) else { continue };
            let loaded = load::load_chain(&self.0, id, chain, newest.stamp).await;
            let Ok(loaded) = loaded else { continue };
            if let Ok(contents) = Snapshot::found(&self.0, id, loaded).into_contents().await {
                return Some((contents, newest.stamp.written_ms));
            }
        }
        None
    }

    async fn bring_back(
        &self,
        id: &ObjectId,
        good: Option<&(Contents, u64)>,
        apply: bool,
    ) -> Result<Fate> {
        let mut batch = Batch::new().delete_all().delete_alarm();
        let fate = match good {
            None => Fate::Dropped,
            // Said again, for what says it may lie in a block that is given up, before an older
            // run that still holds the object.
            Some((contents, _)) if contents.map.is_empty() && contents.alarm.is_none() => {
                Fate::Deleted
            }
            Some((contents, written_ms)) => {
                let put = |batch: Batch, (key, value)| batch.put(key, value);
                batch = contents.map.iter().fold(batch, put);
                batch = contents.alarm.into_iter().fold(batch, Batch::set_alarm);
                batch = batch.with_origin(contents.origin.clone());
                let (version, written_ms) = (contents.version, *written_ms);
                let keys = contents.map.len();
                Fate::BroughtBack { version, written_ms, keys }
            }
        };
        if batch.encoded_ops().len() > self.0.limits.commit_bytes_max {
            let version = good.map_or(Version::NONE, |(contents, _)| contents.version);
            return Ok(Fate::TooLarge(version));
        }
        if apply {
            self.commit(id, &batch, None)?.await?;
        }
        Ok(fate)
    }
}

impl<E: Env> Inner<E> {
    /// The next few objects of the directory; those of damaged blocks are left out.
    fn next_ids(self: &Rc<Self>, after: Option<ObjectId>) -> Vec<ObjectId> {
        let state = self.state.borrow();
        let entries = state.directory.entries(after).filter_map(Result::ok);
        let there = entries.filter_map(|(key, known)| known.entry.map(|_| key.id));
        there.take(STEP).collect()
    }
}
