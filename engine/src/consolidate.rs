//! Consolidation: an object whose state is spread over many frames is read and written as one image. Of a
//! large one, which is a tree ([`crate::tree`]), the deltas are gathered in the root, or put into those of its pages
//! that they are for.
//!
//! What is read is the durable state; commits made meanwhile are put on it, so that an object that is
//! written all the time is consolidated too. The image is of the version that it holds, and counts
//! only if that is still the newest one (docs/design.md, 3.3).

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use crate::append::{Appending, waiting_max};
use crate::batch::{Batch, OP_HEADER_BYTES};
use crate::contents::Contents;
use crate::directory::{Entry, merged};
use crate::env::Env;
use crate::error::{Kind, Result};
use crate::format::frame::Share;
use crate::ids::{ObjectId, Version};
use crate::log::queue::{Outcome, Ticket};
use crate::shard::{Inner, Shard, head};
use crate::snapshot::{Opened, Over};
use crate::tree::{self, Change, Draft, Moving, Root, Updated};

/// Segments that a tree lies in before some of it is moved, or twice as many as it needs.
const SEGMENTS_MAX: u64 = 64;

/// A commit to an object that is being read to be rewritten.
pub(crate) struct Meanwhile {
    pub(crate) batch: Batch,
    pub(crate) version: Version,
    pub(crate) outcome: Rc<Outcome>,
    /// Whether it was written as an image: nothing that was there before is needed any more.
    pub(crate) image: bool,
}

impl<E: Env> Shard<E> {
    /// Reads an object and appends it as one image, or its deltas to its tree, unless it changes meanwhile.
    ///
    /// Commits made while it is read are put on what was read, so that a busy object is rewritten
    /// too: otherwise its nested chains would grow for as long as it is written to. Whether it was done.
    pub(crate) async fn rewrite(&self, id: &ObjectId, moving: Moving) -> Result<bool> {
        let Some(rewrite) = self.begin_rewrite(id, moving).await? else { return Ok(false) };
        match self.append_rewrite(rewrite)? {
            Some((ticket, _)) => ticket.await.map(|_| true),
            None => Ok(false),
        }
    }

    /// Rewrites an object for as long as there is reason to: a large one is done some megabytes at a time. On a
    /// full disk it is left to the cleaner, which knows what to do with the room that there is.
    pub(crate) async fn consolidate(&self, id: &ObjectId) -> Result<()> {
        let is_full = || self.0.state.borrow().reserve.full().is_some();
        while !is_full() && self.rewrite(id, Moving::Nothing).await? {
            let is_due =
                head(&self.0.state.borrow(), id)?.is_some_and(|it| it.is_due(&self.0.limits));
            if !is_due {
                break;
            }
        }
        Ok(())
    }

    /// Reads what is needed of an object that is to be rewritten: all of a small one, of a large one the pages
    /// that change or move. `None` if another task does so.
    ///
    /// Errors: as [`Shard::load`].
    pub(crate) async fn begin_rewrite(
        &self,
        id: &ObjectId,
        moving: Moving,
    ) -> Result<Option<Rewrite<E>>> {
        self.check_open()?;
        if self.0.state.borrow().rewriting.contains_key(id) {
            return Ok(None);
        }
        self.0.state.borrow_mut().rewriting.insert(*id, Vec::new());
        let rewriting = Rewriting { inner: self.0.clone(), id: *id };
        let snapshot = self.snapshot(id).await?;
        let limits = &self.0.limits;
        let Opened { over, root } = snapshot.opened();
        let form = match root {
            // It has shrunk to an image, with room to grow.
            Some(root) if root.bytes() > limits.image_bytes_max as u64 / 2 => {
                let (tree, over) = self.begin_tree(id, root, over, moving).await?;
                match tree.draft.whole() {
                    Some(map) if over.contents.map.is_empty() && over.deleted.is_empty() => {
                        Form::Whole(Contents { map, ..over.contents })
                    }
                    _ => Form::Tree(tree, over),
                }
            }
            _ => Form::Whole(snapshot.into_contents().await?),
        };
        Ok(Some(Rewrite { rewriting, form }))
    }

    /// Puts into the pages of a tree what lies over it, if that is enough to be worth it, and moves what is to
    /// move. Gives the tree and what lies over it then.
    async fn begin_tree(
        &self,
        id: &ObjectId,
        root: &Root,
        over: &Over,
        moving: Moving,
    ) -> Result<(Tree, Over)> {
        let moving = match moving {
            Moving::Nothing => gathered(root, self.0.limits.segment_bytes_max),
            other => other,
        };
        let mut over = over.clone();
        // What is deleted frees its space only once it is out of the pages, and the cleaner is there to free some.
        let is_worth_it = over.encode().len() > self.0.limits.root_ops_bytes
            || !over.deleted.is_empty()
            || !matches!(moving, Moving::Nothing);
        let mut changes = if is_worth_it { over.changes() } else { BTreeMap::new() };
        let into_pages = !changes.is_empty();
        if let Moving::Segment(_, keys) = &moving {
            for key in keys {
                changes.entry(key.clone()).or_insert(Change::Touch);
            }
        }
        let changes: Vec<_> = changes.into_iter().collect();
        let bytes_max = self.0.limits.rewrite_bytes_max;
        let updated = tree::update(&self.0, id, root, &changes, &moving, bytes_max).await?;
        let Updated { draft, freed, undone } = updated;
        if into_pages {
            self.0.state.borrow_mut().trees_updated += 1;
            over.forget(undone.as_ref());
        }
        Ok((Tree { draft, kept: less(&root.kept, freed) }, over))
    }

    /// Appends what was read, with the commits made meanwhile on it: at once, so that
    /// several share a batch. Gives the bytes of its frames too; `None` if it has changed otherwise, or is too
    /// large.
    ///
    /// Errors: `Poisoned`, `Closed`, `Corrupt`.
    pub(crate) fn append_rewrite(&self, rewrite: Rewrite<E>) -> Result<Option<(Ticket, u64)>> {
        let Rewrite { rewriting, mut form } = rewrite;
        let id = &rewriting.id.clone();
        for Meanwhile { batch, version, outcome, image } in rewriting.end() {
            if matches!(outcome.result(), Some(Err(_))) {
                return Ok(None);
            }
            match &mut form {
                Form::Whole(contents) if version > contents.version => {
                    contents.apply(&batch, version);
                }
                // Nothing of the tree is needed any more.
                Form::Tree(..) if image => return Ok(None),
                Form::Tree(_, over) if version > over.contents.version => {
                    over.apply(&batch, version);
                }
                Form::Whole(_) | Form::Tree(..) => {}
            }
        }
        let limits = &self.0.limits;
        let contents = form.contents();
        let operations = match &form {
            Form::Whole(contents) if image_bytes(contents) > limits.commit_bytes_max => {
                tracing::warn!(%id, "an object is too large to be rewritten at once");
                return Ok(None);
            }
            Form::Whole(_) => Vec::new(),
            Form::Tree(_, over) => over.encode(),
        };
        if operations.len() > waiting_max(limits) {
            tracing::warn!(%id, bytes = operations.len(), "too much was committed while it was rewritten");
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
                written_ms: head.written_ms,
                namespace: head.namespace,
                head: Some(head),
                existed: true,
                rewrite: true,
            };
            let before = state.queue.bytes();
            let ticket = match form {
                Form::Whole(contents) => commit.append(state, &Batch::new(), Some(&contents)),
                Form::Tree(Tree { draft, kept }, over) => {
                    let origin = over.contents.origin;
                    commit.append_tree(state, draft, kept, &operations, origin)
                }
            };
            (ticket, (state.queue.bytes() - before) as u64)
        };
        self.0.work.notify();
        Ok(Some(appended))
    }

    /// E9 where reads may come from the page cache: what was replayed is written again.
    pub(crate) async fn rewrite_changed(&self) -> Result<()> {
        let (changed, replayed): (_, BTreeSet<u32>) = {
            let state = self.0.state.borrow();
            let replayed = state.segments.range(state.replayed_from..).map(|(number, _)| *number);
            (state.directory.changed(), replayed.collect())
        };
        for id in changed {
            match self.leave(&id, &replayed).await {
                Err(error) if error.kind() != Kind::Corrupt => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// Rewrites an object until it needs nothing of these segments, or can't be.
    pub(crate) async fn leave(&self, id: &ObjectId, segments: &BTreeSet<u32>) -> Result<()> {
        let needs = |entry: Entry| entry.needs().any(|share| segments.contains(&share.segment));
        while head(&self.0.state.borrow(), id)?.is_some_and(needs)
            && self.rewrite(id, Moving::All(segments.clone())).await?
        {}
        Ok(())
    }
}

/// Bytes of an image of it.
fn image_bytes(contents: &Contents) -> usize {
    contents.bytes() + contents.map.len() * OP_HEADER_BYTES
}

/// What a tree that lies in too many segments is to leave: those with the least of it, half of all. As with
/// runs of the directory, what is moved is soon too much to be moved again.
fn gathered(root: &Root, segment_bytes_max: u32) -> Moving {
    let rises = root.kept.is_sorted_by(|one, other| one.segment < other.segment);
    assert!(rises, "each segment is named once: {:?}", root.kept);
    let least = root.bytes() / u64::from(segment_bytes_max);
    if root.kept.len() as u64 <= SEGMENTS_MAX.max((2 * least).min(least + SEGMENTS_MAX)) {
        return Moving::Nothing;
    }
    let mut kept = root.kept.clone();
    kept.sort_unstable_by_key(|share| (share.bytes, share.segment));
    Moving::All(kept[..kept.len() / 2].iter().map(|share| share.segment).collect())
}

/// What is left of shares without those that are freed.
fn less(kept: &[Share], freed: Vec<Share>) -> Vec<Share> {
    let freed = merged(freed.into_iter());
    let left = merged(kept.iter().copied()).into_iter().filter_map(|share| {
        let gone = freed.binary_search_by_key(&share.segment, |freed| freed.segment);
        let gone = gone.map_or(0, |at| freed[at].bytes);
        let bytes = share.bytes.checked_sub(gone).expect("a tree holds what it frees");
        (bytes > 0).then_some(Share { bytes, ..share })
    });
    left.collect()
}

/// An object that was read to be rewritten.
pub(crate) struct Rewrite<E: Env> {
    rewriting: Rewriting<E>,
    form: Form,
}

/// How it is to be written.
enum Form {
    /// As an image, or a tree that is wholly new.
    Whole(Contents),
    /// As the tree that it was, and what lies over it.
    Tree(Tree, Over),
}

impl Form {
    /// What it says beside its keys.
    fn contents(&self) -> Contents {
        let (Self::Whole(contents) | Self::Tree(_, Over { contents, .. })) = self;
        let Contents { version, alarm, .. } = *contents;
        Contents { version, alarm, ..Contents::default() }
    }
}

/// A tree after changes.
struct Tree {
    draft: Draft,
    /// What is still needed of what the tree before amounted to.
    kept: Vec<Share>,
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
        let commits = self.inner.state.borrow_mut().rewriting.remove(&self.id);
        commits.unwrap_or_default()
    }
}

impl<E: Env> Drop for Rewriting<E> {
    fn drop(&mut self) {
        self.inner.state.borrow_mut().rewriting.remove(&self.id);
        // The shard's end waits for what reads, and the cleaner for its turn.
        self.inner.changed.notify();
    }
}
