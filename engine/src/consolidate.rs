//! Consolidation: an object whose state is spread over many frames is read and written as one image.
//!
//! What is read is the durable state; commits made meanwhile are put on it, so that an object that is
//! written all the time is consolidated too. The image is of the version that it holds, and counts
//! only if that is still the newest one (docs/design.md, 3.3).

use std::rc::Rc;

use crate::append::Appending;
use crate::batch::Batch;
use crate::contents::Contents;
use crate::env::Env;
use crate::error::{Kind, Result};
use crate::ids::{ObjectId, Version};
use crate::log::queue::{Outcome, Ticket};
use crate::shard::{Inner, Shard, head};

/// A commit to an object that is being read to be rewritten.
pub(crate) struct Meanwhile {
    pub(crate) batch: Batch,
    pub(crate) version: Version,
    pub(crate) outcome: Rc<Outcome>,
}

impl<E: Env> Shard<E> {
    /// Reads an object and appends it as one image, unless it changes meanwhile.
    ///
    /// Commits made while it is read are put on what was read, so that a busy object is rewritten
    /// too: otherwise its nested chains would grow for as long as it is written to.
    pub(crate) async fn rewrite(&self, id: &ObjectId) -> Result<()> {
        let Some(rewrite) = self.begin_rewrite(id).await? else { return Ok(()) };
        match self.append_rewrite(rewrite)? {
            Some((ticket, _)) => ticket.await.map(|_| ()),
            None => Ok(()),
        }
    }

    /// Reads an object that is to be rewritten; `None` if another task does so.
    ///
    /// Errors: as [`Shard::load`].
    pub(crate) async fn begin_rewrite(&self, id: &ObjectId) -> Result<Option<Rewrite<E>>> {
        if self.0.state.borrow().rewriting.contains_key(id) {
            return Ok(None);
        }
        self.0.state.borrow_mut().rewriting.insert(*id, Vec::new());
        let rewriting = Rewriting { inner: self.0.clone(), id: *id };
        let contents = self.load(id).await?;
        Ok(Some(Rewrite { rewriting, contents }))
    }

    /// Appends what was read, with the commits made meanwhile on it, as one image: at once, so that
    /// several share a batch. Gives the bytes of its frames too; `None` if it has changed otherwise, or is too
    /// large.
    ///
    /// Errors: `Poisoned`, `Closed`, `Corrupt`.
    pub(crate) fn append_rewrite(&self, rewrite: Rewrite<E>) -> Result<Option<(Ticket, u64)>> {
        let Rewrite { rewriting, mut contents } = rewrite;
        let id = &rewriting.id.clone();
        let commits = rewriting.end();
        for Meanwhile { batch, version, outcome } in commits {
            if matches!(outcome.result(), Some(Err(_))) {
                return Ok(None);
            }
            if version > contents.version {
                contents.apply(&batch, version);
            }
        }
        if contents.bytes() + contents.map.len() * 7 > self.0.limits.commit_bytes_max {
            // Too large for one image until objects are trees.
            return Ok(None);
        }
        // Reading took a while: nobody writes what is appended to a shard that has failed.
        self.check_open()?;
        let appended = {
            let state = &mut *self.0.state.borrow_mut();
            let newest = head(state, id)?;
            let head = newest.filter(|head| head.version == contents.version);
            let Some(head) = head else { return Ok(None) };
            let commit = Appending {
                inner: &self.0,
                id,
                version: contents.version,
                alarm: contents.alarm,
                head: Some(head),
                existed: true,
                rewrite: true,
            };
            let ticket = commit.append(state, &Batch::new(), Some(&contents));
            // One without a key and an alarm is gone with it.
            let needs = state.pending[id].entry.iter().flat_map(|entry| entry.needs());
            let bytes = needs.map(|share| u64::from(share.bytes)).sum();
            (ticket, bytes)
        };
        self.0.work.notify();
        Ok(Some(appended))
    }

    /// E9 where reads may come from the page cache: what was replayed is written again.
    pub(crate) async fn rewrite_changed(&self) -> Result<()> {
        let changed = self.0.state.borrow().directory.changed();
        for id in changed {
            match self.rewrite(&id).await {
                Err(error) if error.kind() != Kind::Corrupt => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }
}

/// An object that was read to be rewritten.
pub(crate) struct Rewrite<E: Env> {
    rewriting: Rewriting<E>,
    contents: Contents,
}

impl<E: Env> Rewrite<E> {
    /// Whether it was committed to since it is being read.
    pub(crate) fn is_overtaken(&self) -> bool {
        let Rewriting { inner, id } = &self.rewriting;
        inner.state.borrow().rewriting.get(id).is_some_and(|commits| !commits.is_empty())
    }
}

/// An object that is being rewritten; also where that is given up, its commits are forgotten.
struct Rewriting<E: Env> {
    inner: Rc<Inner<E>>,
    id: ObjectId,
}

impl<E: Env> Rewriting<E> {
    /// The commits made since it began.
    fn end(self) -> Vec<Meanwhile> {
        self.inner.state.borrow_mut().rewriting.remove(&self.id).unwrap_or_default()
    }
}

impl<E: Env> Drop for Rewriting<E> {
    fn drop(&mut self) {
        self.inner.state.borrow_mut().rewriting.remove(&self.id);
    }
}
