//! Consolidation: an object whose state is spread over many frames is read and written as one image.
//!
//! What is read is the durable state; commits made meanwhile are put on it, so that an object that is
//! written all the time is consolidated too. The image is of the version that it holds, and counts
//! only if that is still the newest one (docs/design.md, 3.3).

use std::rc::Rc;

use crate::append::Appending;
use crate::batch::Batch;
use crate::env::Env;
use crate::error::{Kind, Result};
use crate::ids::{ObjectId, Version};
use crate::log::queue::Outcome;
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
        if self.0.state.borrow().rewriting.contains_key(id) {
            return Ok(());
        }
        self.0.state.borrow_mut().rewriting.insert(*id, Vec::new());
        let rewriting = Rewriting { inner: &self.0, id: *id };
        let mut contents = self.load(id).await?;
        let commits = rewriting.end();
        for Meanwhile { batch, version, outcome } in commits {
            if matches!(outcome.result(), Some(Err(_))) {
                return Ok(());
            }
            if version > contents.version {
                contents.apply(&batch, version);
            }
        }
        if contents.bytes() + contents.map.len() * 7 > self.0.limits.commit_bytes_max {
            // Too large for one image until objects are trees.
            return Ok(());
        }
        // Reading took a while: nobody writes what is appended to a shard that has failed.
        self.check_open()?;
        let ticket = {
            let state = &mut *self.0.state.borrow_mut();
            let newest = head(state, id)?;
            let head = newest.filter(|head| head.version == contents.version);
            let Some(head) = head else { return Ok(()) };
            let commit = Appending {
                inner: &self.0,
                id,
                version: contents.version,
                alarm: contents.alarm,
                head: Some(head),
                existed: true,
                rewrite: true,
            };
            commit.append(state, &Batch::new(), Some(&contents))
        };
        self.0.work.notify();
        ticket.await.map(|_| ())
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

/// An object that is being rewritten; also where that is given up, its commits are forgotten.
struct Rewriting<'a, E: Env> {
    inner: &'a Rc<Inner<E>>,
    id: ObjectId,
}

impl<E: Env> Rewriting<'_, E> {
    /// The commits made since it began.
    fn end(self) -> Vec<Meanwhile> {
        self.inner.state.borrow_mut().rewriting.remove(&self.id).unwrap_or_default()
    }
}

impl<E: Env> Drop for Rewriting<'_, E> {
    fn drop(&mut self) {
        self.inner.state.borrow_mut().rewriting.remove(&self.id);
    }
}
