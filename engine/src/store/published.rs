//! Objects that any thread may read without asking their core.
//!
//! A core publishes an object that it keeps in memory once it was asked for it twice without a commit between, and
//! withdraws it before it commits to it, or forgets it. So what is read here is what the core would answer:
//!
//! - Only what is durable is published, and it is withdrawn before a commit to it is taken. So whoever
//!   knows that a commit was answered does not see the state before it.
//! - Reads see the commits that their thread has asked for before, answered or not: while a commit is on its way to
//!   the core it is counted ([`UnderWay`]), and who finds the count above 0 asks the core. Objects share counts, which
//!   costs some of them a way to the core now and then, and nothing else.
//! - Once the shard is poisoned or the store is closed nothing is read here any more (E4): the core says why.
//!
//! What was withdrawn is freed a few objects later (the map's threads keep up to 32 each), so a commit to a published
//! object copies it in memory once.

use std::sync::Arc;

use crate::contents::Contents;
use crate::ids::ObjectId;
use crate::sync::{AtomicBool, AtomicU64, Ordering, SharedMap};

/// Counts of commits that are under way in each shard.
const COUNTS: usize = 64;

/// An object, as its core published it.
struct Seen {
    contents: Arc<Contents>,
    /// Whether it was read since its core looked last.
    used: AtomicBool,
}

struct Lane {
    /// Whether its core has to be asked, whatever is here.
    ended: AtomicBool,
    under_way: Vec<Arc<AtomicU64>>,
    objects: SharedMap<ObjectId, Seen>,
}

/// What the cores of a store have published, by shard.
pub(super) struct Published(Vec<Lane>);

/// A commit that was asked for and has not taken effect yet, or never will.
pub(super) struct UnderWay(Arc<AtomicU64>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        // Whoever sees this sees also that the object was withdrawn.
        self.0.fetch_sub(1, Ordering::Release);
    }
}

impl Published {
    pub(super) fn new(shards: u16) -> Self {
        let lane = || Lane {
            ended: AtomicBool::new(false),
            under_way: (0..COUNTS).map(|_| Arc::new(AtomicU64::new(0))).collect(),
            objects: SharedMap::new(),
        };
        Self((0..shards).map(|_| lane()).collect())
    }

    fn lane(&self, id: &ObjectId) -> &Lane {
        let shards = u16::try_from(self.0.len()).expect("made of as many");
        &self.0[usize::from(id.shard(shards))]
    }

    /// A commit to this object is asked for now.
    pub(super) fn begin(&self, id: &ObjectId) -> UnderWay {
        let count = self.lane(id).count(id);
        count.fetch_add(1, Ordering::Relaxed);
        UnderWay(count.clone())
    }

    /// Reads the object; `None` if its core has to be asked.
    pub(super) fn read<T>(
        &self,
        id: &ObjectId,
        read: impl FnOnce(&Arc<Contents>) -> T,
    ) -> Option<T> {
        let lane = self.lane(id);
        if lane.count(id).load(Ordering::Acquire) > 0 || lane.ended.load(Ordering::Acquire) {
            return None;
        }
        lane.objects.read(id, |seen| {
            // A look costs less than a write to what other threads read too.
            if !seen.used.load(Ordering::Relaxed) {
                seen.used.store(true, Ordering::Relaxed);
            }
            read(&seen.contents)
        })
    }

    /// Only by the object's core, which calls [`Published::withdraw`] before the object changes.
    pub(super) fn publish(&self, id: ObjectId, contents: Arc<Contents>) {
        let seen = Seen { contents, used: AtomicBool::new(true) };
        self.lane(&id).objects.insert(id, seen);
    }

    pub(super) fn withdraw(&self, id: &ObjectId) {
        self.lane(id).objects.remove(id);
    }

    /// Whether the object was read here since this was asked last.
    pub(super) fn was_used(&self, id: &ObjectId) -> bool {
        let used = |seen: &Seen| seen.used.swap(false, Ordering::Relaxed);
        self.lane(id).objects.read(id, used).unwrap_or(false)
    }

    /// Nothing of this shard is read here any more.
    pub(super) fn end(&self, shard: u16) {
        self.0[usize::from(shard)].ended.store(true, Ordering::Release);
    }

    /// Nor of any other one.
    pub(super) fn end_all(&self) {
        self.0.iter().for_each(|lane| lane.ended.store(true, Ordering::Release));
    }
}

impl Lane {
    fn count(&self, id: &ObjectId) -> &Arc<AtomicU64> {
        let byte = id.as_bytes().iter().fold(0, |all, byte| all ^ byte);
        &self.under_way[usize::from(byte) % COUNTS]
    }
}

#[cfg(all(test, dormouse_loom))]
mod models {
    use super::*;
    use crate::ids::Version;

    /// An object is published; a commit to it is asked for, which `core` takes and then answers.
    fn commit(core: impl Fn(&Published, UnderWay, &AtomicBool) + Send + Sync + 'static) {
        let core = Arc::new(core);
        // Three threads: with every order it takes long.
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(3);
        model.check(move || {
            let id = ObjectId::from_bytes([1; 32]);
            let published = Arc::new(Published::new(1));
            published
                .publish(id, Arc::new(Contents { version: Version(1), ..Contents::default() }));
            let answered = Arc::new(AtomicBool::new(false));
            let under_way = published.begin(&id);
            let (its, said, core) = (published.clone(), answered.clone(), core.clone());
            let core = loom::thread::spawn(move || core(&its, under_way, &said));
            let (its, said) = (published.clone(), answered);
            let other = loom::thread::spawn(move || {
                let knows = said.load(Ordering::Acquire);
                let read = its.read(&id, |contents| contents.version);
                assert!(!knows || read.is_none(), "a state before the commit, known to another");
            });
            let read = published.read(&id, |contents| contents.version);
            assert!(read.is_none(), "a state before the commit, to who asked for it");
            core.join().expect("it ends");
            other.join().expect("it ends");
        });
    }

    #[test]
    fn loom_nobody_reads_what_was_before_a_commit() {
        commit(|published, under_way, answered| {
            published.withdraw(&ObjectId::from_bytes([1; 32]));
            drop(under_way);
            answered.store(true, Ordering::Release);
        });
    }

    #[test]
    #[should_panic(expected = "a state before the commit")]
    fn loom_a_commit_that_is_taken_before_its_object_is_withdrawn_is_not_seen() {
        commit(|published, under_way, answered| {
            drop(under_way);
            published.withdraw(&ObjectId::from_bytes([1; 32]));
            answered.store(true, Ordering::Release);
        });
    }
}
