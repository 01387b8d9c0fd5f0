//! [`Snapshot`]: one object at one version, whatever is committed meanwhile. Of a small one all is in
//! memory; of a large one (`engine/src/tree`) what was committed lately, and the root of its tree: pages are
//! read when a key in them is asked for.
//!
//! While it is there, what it needs stays in its place: let it go when it is not needed any more, for space
//! that it holds is not given back.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;

use bytes::Bytes;

use crate::batch::{Batch, Op};
use crate::contents::{Contents, Origin};
use crate::directory::{Entry, Stamp};
use crate::env::Env;
use crate::error::Result;
use crate::format::page::Value;
use crate::ids::{ObjectId, Version};
use crate::list::{Direction, List, Range};
use crate::load;
use crate::shard::{Inner, Shard};
use crate::tree::{self, Change, Root, Walk, WalkBatch};

/// Large objects whose roots are kept in memory, and bytes of the keys and values that lie over each, at most.
const RECENT_MAX: usize = 16;
const RECENT_BYTES_MAX: usize = 256 << 10;
/// Bytes of values in frames of their own that are read at once, but for one alone.
const APART_BYTES_MAX: usize = 1 << 20;

/// What is known of an object beside its tree: all, if it has none.
#[derive(Clone, Debug, Default)]
pub(crate) struct Over {
    /// Keys that were put.
    pub(crate) contents: Contents,
    /// Keys that were deleted, if there is a tree below.
    pub(crate) deleted: BTreeSet<Bytes>,
}

impl Over {
    pub(crate) fn new(stamp: Stamp) -> Self {
        let Stamp { version, alarm, .. } = stamp;
        let contents = Contents { version, alarm, ..Contents::default() };
        Self { contents, deleted: BTreeSet::new() }
    }

    /// Takes over what a newer frame says of where the id comes from.
    pub(crate) fn learn(&mut self, newer: &Origin) {
        let older = std::mem::replace(&mut self.contents.origin, newer.clone());
        self.contents.origin.learn(&older);
    }

    /// Takes in an operation; `share` gives a slice of it that is kept.
    pub(crate) fn apply_op(&mut self, op: Op<'_>, on_tree: bool, share: impl Fn(&[u8]) -> Bytes) {
        match op {
            Op::Put(key, value) => {
                self.deleted.remove(key);
                self.contents.map.insert(share(key), share(value));
            }
            Op::Delete(key) => {
                self.contents.map.remove(key);
                if on_tree {
                    self.deleted.insert(share(key));
                }
            }
        }
    }

    /// Takes in a commit on a tree.
    pub(crate) fn apply(&mut self, batch: &Batch, version: Version) {
        assert!(!batch.deletes_all(), "nothing is below it any more");
        self.contents.apply(batch, version);
        for op in batch.ops() {
            self.apply_op(op, true, Bytes::copy_from_slice);
        }
    }

    /// Its operations, encoded: puts by rising keys, then deletes.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let put = |batch: Batch, (key, value)| batch.put(key, value);
        let batch = self.contents.map.iter().fold(Batch::new(), put);
        let batch = self.deleted.iter().fold(batch, Batch::delete);
        batch.encoded_ops().to_vec()
    }

    /// Forgets all, or what comes before a key.
    pub(crate) fn forget(&mut self, before: Option<&Bytes>) {
        let rest = |key| (self.contents.map.split_off(key), self.deleted.split_off(key));
        (self.contents.map, self.deleted) = before.map(rest).unwrap_or_default();
    }

    /// Its operations, sorted by their keys.
    pub(crate) fn changes(&self) -> BTreeMap<Bytes, Change> {
        let puts = self.contents.map.iter();
        let puts = puts.map(|(key, value)| (key.clone(), Change::Put(value.clone())));
        let deletes = self.deleted.iter().map(|key| (key.clone(), Change::Delete));
        puts.chain(deletes).collect()
    }
}

/// E4: nothing is read of a shard that has failed.
fn check_healthy<E: Env>(inner: &Rc<Inner<E>>) -> Result<()> {
    Shard(inner.clone()).check_healthy()
}

/// What is in memory of an object that is read.
#[derive(Clone, Debug, Default)]
pub(crate) struct Opened {
    pub(crate) over: Over,
    pub(crate) root: Option<Root>,
}

/// Large objects that were read lately, so that each of many reads does not read the root again: as their
/// entries of the directory were, which say where all of it lies.
#[derive(Debug, Default)]
pub(crate) struct Recent(VecDeque<(ObjectId, Entry, Rc<Opened>)>);

impl Recent {
    /// What was read of the object, if this is its entry still.
    fn find(&mut self, id: &ObjectId, entry: &Entry) -> Option<Rc<Opened>> {
        let at = self.0.iter().position(|(its_id, ..)| its_id == id)?;
        let found = self.0.remove(at).filter(|(_, its_entry, _)| its_entry == entry)?;
        let opened = found.2.clone();
        self.0.push_front(found);
        Some(opened)
    }

    fn keep(&mut self, id: &ObjectId, entry: &Entry, opened: &Rc<Opened>) {
        if opened.root.is_none() || opened.over.contents.bytes() > RECENT_BYTES_MAX {
            return;
        }
        self.0.retain(|(its_id, ..)| its_id != id);
        self.0.push_front((*id, entry.clone(), opened.clone()));
        self.0.truncate(RECENT_MAX);
    }

    /// Has all of them read again.
    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }
}

/// One object at one version.
pub struct Snapshot<E: Env> {
    inner: Rc<Inner<E>>,
    id: ObjectId,
    opened: Rc<Opened>,
    /// What keeps it readable.
    _pins: Vec<Rc<()>>,
}

impl<E: Env> Snapshot<E> {
    /// One of an object that does not exist.
    pub(crate) fn empty(inner: &Rc<Inner<E>>, id: &ObjectId) -> Self {
        Self { inner: inner.clone(), id: *id, opened: Rc::default(), _pins: Vec::new() }
    }

    /// The object that `entry`, the one of the directory now, points to.
    pub(crate) async fn read(inner: &Rc<Inner<E>>, id: &ObjectId, entry: &Entry) -> Result<Self> {
        let _pins = load::pins(inner, entry);
        let recent = inner.state.borrow_mut().recent.find(id, entry);
        let opened = match recent {
            Some(opened) => opened,
            None => {
                let (over, root) =
                    load::load_chain(inner, id, entry.chain(), entry.stamp()).await?;
                let opened = Rc::new(Opened { over, root });
                inner.state.borrow_mut().recent.keep(id, entry, &opened);
                opened
            }
        };
        Ok(Self { inner: inner.clone(), id: *id, opened, _pins })
    }

    /// What was found at an older place in the log, with nothing to keep it there.
    pub(crate) fn found(
        inner: &Rc<Inner<E>>,
        id: &ObjectId,
        (over, root): (Over, Option<Root>),
    ) -> Self {
        let opened = Rc::new(Opened { over, root });
        Self { inner: inner.clone(), id: *id, opened, _pins: Vec::new() }
    }

    /// What of it is in memory.
    pub(crate) fn opened(&self) -> &Opened {
        &self.opened
    }

    /// Its version; [`Version::NONE`] if it does not exist.
    pub fn version(&self) -> Version {
        self.opened.over.contents.version
    }

    /// Its alarm, in milliseconds since 1970.
    pub fn alarm(&self) -> Option<u64> {
        self.opened.over.contents.alarm
    }

    /// Namespace and name, where known.
    pub fn origin(&self) -> &Origin {
        &self.opened.over.contents.origin
    }

    /// What is known of it beside its keys.
    pub fn head(&self) -> Contents {
        let Contents { version, alarm, ref origin, .. } = self.opened.over.contents;
        Contents { version, alarm, origin: origin.clone(), ..Contents::default() }
    }

    /// Whether all of it is in memory, so that nothing is read any more.
    pub fn is_whole(&self) -> bool {
        self.opened.root.is_none()
    }

    /// The value of a key.
    ///
    /// Errors: `Corrupt`, with the place; `Retry` (a file of the log can't be opened now); `Poisoned`.
    pub async fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        check_healthy(&self.inner)?;
        let Opened { over, root } = &*self.opened;
        if let Some(value) = over.contents.map.get(key) {
            return Ok(Some(value.clone()));
        }
        match root {
            Some(root) if !over.deleted.contains(key) => {
                tree::get(&self.inner, &self.id, root, key).await
            }
            _ => Ok(None),
        }
    }

    /// How many of these keys, which are sorted, are there. A leaf is read once for all keys in it.
    ///
    /// Errors: as [`Snapshot::get`].
    pub async fn count(&self, keys: &[Bytes]) -> Result<usize> {
        let (mut count, mut left) = (0, keys);
        while let Some(first) = left.first() {
            let mut scan = self.scan(&List::all().start(first))?;
            let Some(some) = scan.next_keys().await? else { break };
            // Up to its last key this is all that there is.
            let (last, _) = some.last().expect("not empty");
            let known = left.partition_point(|key| key <= last);
            let there = |key: &&Bytes| some.binary_search_by(|(other, _)| other.cmp(key)).is_ok();
            count += left[..known].iter().filter(there).count();
            left = &left[known..];
        }
        Ok(count)
    }

    /// All of it, in memory.
    ///
    /// Errors: as [`Snapshot::get`].
    pub async fn into_contents(self) -> Result<Contents> {
        if self.opened.root.is_none() {
            let Opened { over, .. } = Rc::unwrap_or_clone(self.opened);
            return Ok(over.contents);
        }
        let mut map = BTreeMap::new();
        let mut scan = self.scan(&List::all())?;
        while let Some(some) = scan.next().await? {
            map.extend(some);
        }
        Ok(Contents { map, ..self.head() })
    }

    /// Walks over keys and values, some at a time.
    ///
    /// Errors: `Invalid`, for a list that makes no sense.
    pub fn scan(&self, list: &List) -> Result<Scan<'_, E>> {
        let range = list.resolve()?;
        let walk = match (&range, &self.opened.root) {
            (Some(range), Some(root)) => Some(Walk::new(root, range)),
            _ => None,
        };
        Ok(Scan { snapshot: self, range, walk, leaf: None })
    }
}

/// A walk over the keys of a [`Snapshot`].
pub struct Scan<'a, E: Env> {
    snapshot: &'a Snapshot<E>,
    /// What was not given yet.
    range: Option<Range>,
    walk: Option<Walk>,
    /// The leaf that is being given.
    leaf: Option<WalkBatch>,
}

impl<E: Env> Scan<'_, E> {
    /// The next keys and their values, in the order of the list: those of a page, or all that are in
    /// memory; `None` at the end. Of a large object a few pages are held at a time.
    ///
    /// Errors: as [`Snapshot::get`]. Cancel: nothing is lost; call it again.
    pub async fn next(&mut self) -> Result<Option<Vec<(Bytes, Bytes)>>> {
        self.step(true).await
    }

    /// Likewise, but large values may be left out: keys are what is wanted.
    pub(crate) async fn next_keys(&mut self) -> Result<Option<Vec<(Bytes, Bytes)>>> {
        self.step(false).await
    }

    async fn step(&mut self, values: bool) -> Result<Option<Vec<(Bytes, Bytes)>>> {
        check_healthy(&self.snapshot.inner)?;
        let Snapshot { inner, id, opened, .. } = self.snapshot;
        let over = &opened.over;
        loop {
            let Some(range) = &self.range else { return Ok(None) };
            if self.leaf.is_none() {
                self.leaf = match &mut self.walk {
                    Some(walk) => walk.next(inner, id).await?,
                    None => None,
                };
            }
            let leaf = self.leaf.get_or_insert_default();
            let (here, rest) = range.clone().cut(leaf.bound.as_ref());
            let Some(here) = here else {
                (self.range, self.leaf) = (rest, None);
                continue;
            };
            let mut some = merged(over, &leaf.entries, &here);
            if here.direction() == Direction::Descending {
                some.reverse();
            }
            some.truncate(here.limit());
            let whole = some.len();
            some.truncate(fitting(&some));
            let given = some.len();
            let rest = match some.last() {
                Some((last, _)) if given < whole => Some(here.behind(last, rest)),
                _ => rest,
            };
            let some = match values {
                true => with_values(inner, id, some).await?,
                false => some.into_iter().map(|(key, _)| (key, Bytes::new())).collect(),
            };
            self.range = rest.and_then(|rest| rest.without(given));
            if given == whole {
                self.leaf = None;
            }
            if given > 0 {
                return Ok(Some(some));
            }
        }
    }
}

/// How many of these are read at once: values in frames of their own are large.
fn fitting(some: &[(Bytes, Value)]) -> usize {
    let mut bytes = 0;
    let fits = |(_, value): &&(Bytes, Value)| {
        bytes += match value {
            Value::Inline(_) => 0,
            Value::Apart { bytes, .. } => *bytes as usize,
        };
        bytes <= APART_BYTES_MAX
    };
    some.iter().take_while(fits).count().max(1).min(some.len())
}

/// What a leaf says with what lies over it, in a range of keys, by rising keys.
fn merged(over: &Over, entries: &[(Bytes, Value)], range: &Range) -> Vec<(Bytes, Value)> {
    let puts = over.contents.map.range::<[u8], _>(range.bounds());
    let puts = puts.map(|(key, value)| (key.clone(), Value::Inline(value.clone())));
    if entries.is_empty() {
        return puts.collect();
    }
    let below = entries.iter().filter(|(key, _)| {
        range.contains(key) && !over.deleted.contains(key) && !over.contents.map.contains_key(key)
    });
    let mut all: Vec<_> = below.cloned().chain(puts).collect();
    // Two sorted runs: what this is quick at.
    all.sort_by(|(one, _), (other, _)| one.cmp(other));
    all
}

/// Reads the values that lie in frames of their own.
async fn with_values<E: Env>(
    inner: &Rc<Inner<E>>,
    id: &ObjectId,
    some: Vec<(Bytes, Value)>,
) -> Result<Vec<(Bytes, Bytes)>> {
    let apart = some.iter().filter_map(|(key, value)| match value {
        Value::Inline(_) => None,
        Value::Apart { address, bytes } => Some((key.clone(), *address, *bytes)),
    });
    let apart: Vec<_> = apart.collect();
    let mut read = match apart.is_empty() {
        true => Vec::new(),
        false => tree::values(inner, id, &apart).await?,
    }
    .into_iter();
    let value = |(key, value)| match value {
        Value::Inline(value) => (key, value),
        Value::Apart { .. } => (key, read.next().expect("one for each that lies apart")),
    };
    Ok(some.into_iter().map(value).collect())
}
