//! [`Durability`]: when a commit is answered; and what was answered before it was durable.
//!
//! Batches of a shard are written in order, and one that fails takes all that wait behind it with
//! it; but on a full disk only those of one claim ([`crate::log::reserve`]). So the newest commit of each claim
//! that was answered early tells of all before it: if it is durable, so are they, and if any of them failed,
//! so did it. After such a failure the shard takes no commit until a flush has told somebody: what is durable
//! stays a prefix of what was answered, up to the gap that the flush tells of (E2). On a full disk what
//! only frees may lie behind that gap.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Error, Kind, Result};
use crate::log::queue::{Outcome, Ticket};
use crate::log::reserve::CLAIMS;

/// When a commit is answered.
///
/// ```
/// use dormouse_engine::{Batch, Durability, ObjectId, Options, Store};
///
/// # let dir = std::env::temp_dir().join(format!("dormouse-flush-{}", std::process::id()));
/// let options = Options { durability: Durability::OnFlush, ..Options::default() };
/// let store = Store::open(&dir, options)?;
/// let object = store.object(ObjectId::from_bytes([1; 32]));
/// for line in 0..100_u32 {
///     // Does not wait for the device; a crash now may lose it, and everything after it.
///     object.commit(Batch::new().put(line.to_be_bytes(), "imported")).wait()?;
/// }
/// store.flush().wait()?; // all hundred survive any crash from here on
/// store.close().wait()?;
/// # std::fs::remove_dir_all(dir).expect("made above");
/// # Ok::<(), dormouse_engine::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// When it is durable: an answered commit survives any crash (E2).
    #[default]
    Always,
    /// As soon as it is in the log's queue, before it is written. Atomicity and order are as
    /// always: a crash may take the newest of what a shard answered, never an older commit and not
    /// the newer one, and never a part of one. Reads see what was answered.
    ///
    /// [`Store::flush`](super::Store::flush) makes all that was answered durable, and so does
    /// [`Store::close`](super::Store::close). A commit that fails after it was answered (a full disk,
    /// a failed write) is told by the next flush or close; until then its shard takes no further
    /// commits. Those that only free ([`Batch::only_frees`](crate::Batch::only_frees)) may be durable all the
    /// same where a full disk refused others that were answered before them. Commits made faster than the device writes are refused in the end (`Overloaded`):
    /// flush, and go on.
    OnFlush,
}

/// A commit that failed after it was answered.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    pub(super) shard: u16,
    /// It is about this commit and some before it: how many the shard had answered with it.
    number: u64,
    pub(super) error: Error,
}

/// For each shard, up to which of its commits somebody was told of failures. Whoever asked says so
/// himself once he has the answer: one that is lost on its way has told nobody.
#[derive(Clone)]
pub(super) struct Told(Arc<[AtomicU64]>);

impl Told {
    pub(super) fn new(shards: u16) -> Self {
        Self((0..shards).map(|_| AtomicU64::new(0)).collect())
    }

    pub(super) fn tell(&self, failure: &Failure) {
        self.0[usize::from(failure.shard)].fetch_max(failure.number, Ordering::AcqRel);
    }

    fn is_told(&self, shard: u16, number: u64) -> bool {
        self.0[usize::from(shard)].load(Ordering::Acquire) >= number
    }
}

/// What one shard answered, as far as it is not known to be durable.
pub(super) struct Answered {
    shard: u16,
    durability: Durability,
    told: Told,
    /// How the newest commit of each claim will end: of one claim, all that wait behind one that is refused
    /// are refused too. With how many were answered by then.
    last: [Option<(Rc<Outcome>, u64)>; CLAIMS],
    /// How many commits were answered.
    count: u64,
    /// The newest failure, and the last commit that it is about, until somebody was told.
    failed: Option<(u64, Error)>,
}

impl Answered {
    pub(super) fn new(shard: u16, durability: Durability, told: Told) -> Self {
        Self { shard, durability, told, last: Default::default(), count: 0, failed: None }
    }

    /// A commit was taken.
    pub(super) fn note(&mut self, ticket: &Ticket) {
        self.count += 1;
        match &mut self.last[ticket.claim as usize] {
            Some((last, number)) if Rc::ptr_eq(last, &ticket.outcome) => *number = self.count,
            last => *last = Some((ticket.outcome.clone(), self.count)),
        }
    }

    /// Whether a commit can be taken.
    ///
    /// Errors: the kind of the failure that nobody was told yet.
    pub(super) fn check(&mut self) -> Result<()> {
        match self.failure() {
            // The shard is poisoned, and says so itself.
            Some(failure) if failure.error.kind() == Kind::Unknown => Ok(()),
            Some(Failure { error, .. }) => {
                let what = "a commit before this one failed after it was answered; flush tells";
                Err(Error::caused(error.kind(), what, error))
            }
            None => Ok(()),
        }
    }

    /// The failure that nobody was told yet.
    pub(super) fn failure(&mut self) -> Option<Failure> {
        let mut failed = None;
        for last in &mut self.last {
            let Some((outcome, number)) = last else { continue };
            let (ended, number) = (outcome.result(), *number);
            if ended.is_some() {
                *last = None;
            }
            if let Some(Err(error)) = ended {
                failed = Some(both(failed, (number, error)));
            }
        }
        // Who waits for a commit until it is durable was answered with the failure.
        if let Some(failed) = failed.filter(|_| self.durability == Durability::OnFlush) {
            tracing::error!(shard = self.shard, error = %failed.1, "failed after it was answered");
            self.failed = Some(both(self.failed.take(), failed));
        }
        // Who was told of one commit knows nothing of those that were answered later.
        self.failed.take_if(|(number, _)| self.told.is_told(self.shard, *number));
        let (number, error) = self.failed.clone()?;
        Some(Failure { shard: self.shard, number, error })
    }

    /// What a flush that begins now has to wait for.
    pub(super) fn begin(&mut self) -> Flush {
        match self.failure() {
            Some(failure) => Flush::Failed(failure),
            None => Flush::Waiting {
                last: self.last.clone().map(|last| last.map(|(outcome, _)| outcome)),
                shard: self.shard,
                number: self.count,
                early: self.durability == Durability::OnFlush,
            },
        }
    }
}

/// Two failures as one: what the first says, about the commits of both.
fn both(before: Option<(u64, Error)>, (number, error): (u64, Error)) -> (u64, Error) {
    before.map_or((number, error), |(of_it, first)| (of_it.max(number), first))
}

/// One shard's part of a flush.
pub(super) enum Flush {
    Failed(Failure),
    Waiting { last: [Option<Rc<Outcome>>; CLAIMS], shard: u16, number: u64, early: bool },
}

impl Flush {
    /// Waits until everything is durable that was taken before the flush began. Two flushes that
    /// wait for the same commit are both told of its failure.
    pub(super) async fn done(self) -> Option<Failure> {
        let (last, shard, number, early) = match self {
            Self::Failed(failure) => return Some(failure),
            Self::Waiting { last, shard, number, early } => (last, shard, number, early),
        };
        let mut failed = Ok(());
        for last in last.into_iter().flatten() {
            failed = failed.and(last.settled().await);
        }
        let error = failed.err().filter(|_| early)?;
        Some(Failure { shard, number, error })
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::ids::{ObjectId, Version};
    use crate::log::reserve::Claim;

    /// A flush tells of what was answered before it; what comes behind and is refused with it is for the next one.
    #[test]
    fn who_flushed_before_a_commit_is_not_told_of_it() {
        let told = Told::new(1);
        let mut answered = Answered::new(0, Durability::OnFlush, told.clone());
        let outcome = Rc::<Outcome>::default();
        let ticket = |version| Ticket {
            id: ObjectId::from_bytes([1; 32]),
            version: Version(version),
            claim: Claim::New,
            lowered: false,
            outcome: outcome.clone(),
        };
        answered.note(&ticket(1));
        let flush = answered.begin();
        answered.note(&ticket(2));
        outcome.resolve(Err(Error::new(Kind::NoSpace, "full")));
        let first = flush.done().now_or_never().expect("it has ended").expect("refused");
        told.tell(&first);
        assert!(answered.check().is_err(), "nobody knows of the second one");
        let Flush::Failed(second) = answered.begin() else { panic!("it is not durable") };
        told.tell(&second);
        assert!(answered.check().is_ok());
        assert!(matches!(answered.begin(), Flush::Waiting { .. }));
    }
}
