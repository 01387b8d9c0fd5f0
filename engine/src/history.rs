//! History: the commits of one object that the log still holds, for people who want to know how it came to
//! be what it is.
//!
//! Nothing points to most of them any more, so the whole log is read. What recovery dropped, and what lies
//! behind a fence (docs/design.md, 3.2), was never acknowledged and is no commit: it is left out.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::batch::{Op, Ops};
use crate::clean::Hold;
use crate::contents::Origin;
use crate::env::Env;
use crate::error::Result;
use crate::format::frame::{self, Address, Frame};
use crate::format::page::{Page, Value, decode_root};
use crate::ids::{Epoch, ObjectId, Sequence, Version};
use crate::repair::scan::{Epochs, Seen, walk};
use crate::shard::Shard;

/// How a commit lies in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// The whole object as it was after the commit.
    Image,
    /// What the commit changed.
    Delta,
    /// The object again, at the version that it had: nothing changed. Of a large one, as much of it as was
    /// written anew.
    Rewrite,
}

/// One operation on a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The key was set, or is in the image.
    Put {
        /// The key.
        key: Bytes,
        /// Bytes of its value.
        value_bytes: usize,
    },
    /// The key was removed.
    Delete {
        /// The key.
        key: Bytes,
    },
}

/// One commit of an object, as the log holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Commit {
    /// The version that it made.
    pub version: Version,
    /// When that was written by the wall clock, in milliseconds since 1970; of a rewrite, when the commit
    /// that it rewrites was.
    pub written_ms: u64,
    /// How it lies in the log.
    pub form: Form,
    /// What it did to the keys; of an image, all keys.
    pub changes: Vec<Change>,
    /// The alarm after it, in milliseconds since 1970.
    pub alarm: Option<u64>,
    /// Namespace and name, where it says so.
    pub origin: Origin,
    /// Where it lies: the last of the frames holds the mark, those before it are parts of a commit that
    /// one batch could not hold.
    pub frames: Vec<Address>,
    /// Whether every frame that it names can be read.
    pub whole: bool,
}

impl Commit {
    /// Bytes of its frames.
    pub fn log_bytes(&self) -> u64 {
        self.frames.iter().map(|frame| u64::from(frame.bytes)).sum()
    }

    /// Whether the object did not exist after it.
    pub fn deletes(&self) -> bool {
        self.form == Form::Image && self.changes.is_empty() && self.alarm.is_none()
    }
}

/// A frame of the object, where it stands in the log, and the chain nested in it.
struct Found {
    epoch: Epoch,
    sequence: Sequence,
    part: bool,
    chain: Vec<Address>,
    /// Of an image that is a tree, bytes of all its pages and values.
    tree_bytes: Option<u64>,
    /// Whether it is one of these.
    of_tree: bool,
    commit: Commit,
}

impl<E: Env> Shard<E> {
    /// The commits of an object that the log still holds, newest first; also of one that exists no
    /// more. Reads the whole log. Commits made meanwhile may be in it or not, durable or not.
    ///
    /// Errors: `Poisoned`; `Retry`, if a file of the log can't be read at all. A damaged frame is left
    /// out: [`Commit::whole`] says so of a commit that names one.
    pub async fn history(&self, id: &ObjectId) -> Result<Vec<Commit>> {
        self.settled(id).await?;
        let _hold = Hold::new(&self.0);
        let mut epochs = Epochs::new(&self.0);
        let mut found = BTreeMap::new();
        let mut batch = (Epoch(0), Sequence(0));
        walk(&self.0, |seen| match seen {
            Seen::Batch(epoch, sequence) => {
                batch = (epoch, sequence);
                epochs.note(epoch, sequence);
            }
            Seen::Frame(address, frame) if frame.object == *id => {
                found.insert(address, Found::new(batch, address, frame));
            }
            Seen::Frame(..) => {}
        })
        .await?;
        found.retain(|_, frame| epochs.accepted((frame.epoch, frame.sequence)));
        Ok(commits(&found))
    }
}

/// Puts commits together, newest first.
fn commits(found: &BTreeMap<Address, Found>) -> Vec<Commit> {
    let mut all: Vec<_> = found.iter().collect();
    all.sort_by_key(|(address, frame)| (frame.sequence, **address));
    let (mut commits, mut of_tree) = (Vec::new(), Vec::new());
    for (_, frame) in all {
        match (frame.of_tree, frame.part) {
            (true, _) => of_tree.push(frame),
            (false, true) => {}
            // Pages and values come right before their root; what a crash left of others counts for nothing.
            (false, false) => {
                let same = |part: &&Found| part.commit.version == frame.commit.version;
                let parts: Vec<_> = std::mem::take(&mut of_tree).into_iter().filter(same).collect();
                commits.push(frame.with_parts(found, &parts));
            }
        }
    }
    commits.reverse();
    commits
}

impl Found {
    /// The commit that ends in this frame; `of_tree` are its pages and values.
    fn with_parts(&self, found: &BTreeMap<Address, Self>, of_tree: &[&Self]) -> Commit {
        let mut commit = self.commit.clone();
        let named: Vec<_> = self.chain.iter().filter_map(|address| found.get(address)).collect();
        commit.whole = named.len() == self.chain.len();
        let of_it = |part: &&Self| part.part && part.commit.version == commit.version;
        let parts = named.into_iter().filter(of_it).chain(of_tree.iter().copied());
        let parts: Vec<_> = parts.map(|part| &part.commit).collect();
        let written: u64 = parts.iter().map(|part| part.log_bytes()).sum();
        // Of a rewrite most of the tree is older.
        let wanted = self.tree_bytes.filter(|_| commit.form == Form::Image);
        commit.whole &= wanted.is_none_or(|wanted| wanted == written);
        let all = || parts.iter().copied().chain([&self.commit]);
        commit.changes = all().flat_map(|part| part.changes.clone()).collect();
        commit.frames = all().flat_map(|part| part.frames.clone()).collect();
        commit
    }

    fn new((epoch, sequence): (Epoch, Sequence), address: Address, frame: &Frame<'_>) -> Self {
        let form = match frame.kind {
            _ if frame.rewrite => Form::Rewrite,
            frame::Kind::Image => Form::Image,
            frame::Kind::Delta | frame::Kind::Page | frame::Kind::Value => Form::Delta,
        };
        let commit = Commit {
            version: frame.version,
            written_ms: frame.wall_ms,
            form,
            changes: changes(frame),
            alarm: frame.alarm,
            origin: frame.origin.clone(),
            frames: vec![address],
            whole: true,
        };
        let chain = if frame.nests { frame.chain.clone() } else { Vec::new() };
        let kept = frame.kept.iter().map(|share| u64::from(share.bytes)).sum();
        let tree_bytes = (frame.kind == frame::Kind::Image && frame.tree).then_some(kept);
        let of_tree = matches!(frame.kind, frame::Kind::Page | frame::Kind::Value);
        Self { epoch, sequence, part: frame.part, chain, tree_bytes, of_tree, commit }
    }
}

/// What a frame does to keys. One that is whole can be read, or was written by something else.
fn changes(frame: &Frame<'_>) -> Vec<Change> {
    let change = |op| match op {
        Op::Put(key, value) => {
            Change::Put { key: Bytes::copy_from_slice(key), value_bytes: value.len() }
        }
        Op::Delete(key) => Change::Delete { key: Bytes::copy_from_slice(key) },
    };
    let payload = || Bytes::copy_from_slice(frame.payload);
    match (frame.kind, frame.tree) {
        (frame::Kind::Value, _) => Vec::new(),
        (frame::Kind::Page, _) => Page::decode(&payload()).map(keys).unwrap_or_default(),
        (frame::Kind::Image, true) => {
            let Ok((waiting, root)) = decode_root(&payload()) else { return Vec::new() };
            let mut changes = keys(root);
            changes.extend(Ops::new(&waiting).map_while(Result::ok).map(change));
            changes
        }
        _ => frame.ops().map_while(Result::ok).map(change).collect(),
    }
}

/// The keys of a leaf.
fn keys(page: Page) -> Vec<Change> {
    let Page::Leaf(entries) = page else { return Vec::new() };
    let put = |(key, value)| match value {
        Value::Inline(value) => Change::Put { key, value_bytes: value.len() },
        Value::Apart { bytes, .. } => Change::Put { key, value_bytes: bytes as usize },
    };
    entries.into_iter().map(put).collect()
}
