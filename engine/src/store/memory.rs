//! Objects that a core keeps in memory, under a budget of bytes.
//!
//! What is kept is an object's *appended* state: it holds commits that are not durable yet, so that
//! readers never wait for a pause between commits. A reader is told only once everything that it
//! saw is durable, unless commits are answered before they are. When a commit fails, so do all that were appended after it; whoever looks next
//! finds the last one failed, and forgets the object.
//!
//! What is read again and again, and is durable, is published for all threads ([`super::published`]): an object
//! is published only while it is here, and only as it is here.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use crate::batch::{Batch, Op};
use crate::contents::{Contents, Origin, Resident};
use crate::directory::IdMap;
use crate::ids::{ObjectId, Version};
use crate::log::queue::{Outcome, Ticket};

use super::published::Published;

/// What a map's entry costs beside its bytes, roughly.
const ENTRY_BYTES: usize = 96;

/// Reads of an object without a commit between after which it is published: one that is written and read by turns would be
/// copied each time.
const READS: u8 = 2;

/// An object in memory.
pub(super) struct Held {
    pub(super) contents: Arc<Contents>,
    /// How the newest commit in it ended, if it is not known to be durable.
    last: Option<Rc<Outcome>>,
    /// Number of keys, and bytes of all keys and values.
    size: (usize, usize),
    used: u64,
    /// Reads since the last commit, up to [`READS`].
    reads: u8,
    published: bool,
}

impl Held {
    pub(super) fn new(contents: Contents) -> Self {
        let size = (contents.map.len(), contents.bytes());
        let contents = Arc::new(contents);
        Self { contents, last: None, size, used: 0, reads: 0, published: false }
    }

    fn bytes(&self) -> usize {
        self.size.0 * ENTRY_BYTES + self.size.1 + ENTRY_BYTES
    }

    /// Applies a commit that was appended.
    pub(super) fn apply(&mut self, batch: &Batch, version: Version, outcome: &Rc<Outcome>) {
        self.size = After::new(&self.contents, self.size, batch).size;
        Arc::make_mut(&mut self.contents).apply(batch, version);
        self.last = Some(outcome.clone());
        self.reads = 0;
    }

    /// What the log says of it; [`Version::NONE`] once it holds nothing and was written as an image.
    pub(super) fn set_version(&mut self, version: Version) {
        if self.contents.version != version {
            Arc::make_mut(&mut self.contents).version = version;
        }
    }

    /// What a reader must wait for.
    pub(super) fn unsettled(&self) -> Option<Rc<Outcome>> {
        self.last.clone()
    }
}

/// The objects of one core.
pub(super) struct Memory {
    objects: IdMap<Held>,
    /// Least recently used first.
    order: BTreeMap<u64, ObjectId>,
    clock: u64,
    bytes: usize,
    bytes_max: usize,
    published: Arc<Published>,
}

impl Memory {
    pub(super) fn new(bytes_max: usize, published: Arc<Published>) -> Self {
        let (objects, order) = (IdMap::default(), BTreeMap::new());
        Self { objects, order, clock: 0, bytes: 0, bytes_max, published }
    }

    /// Number of objects, and their bytes.
    pub(super) fn size(&self) -> (usize, usize) {
        (self.objects.len(), self.bytes)
    }

    /// The object, if it is here; one with a failed commit in it is not.
    pub(super) fn get(&mut self, id: &ObjectId) -> Option<&Held> {
        self.take_note(id)?;
        self.objects.get(id)
    }

    /// Marks the object as used, and forgets it if a commit in it failed.
    fn take_note(&mut self, id: &ObjectId) -> Option<()> {
        let held = self.objects.get_mut(id)?;
        match held.last.as_ref().and_then(|last| last.result()) {
            Some(Ok(())) => held.last = None,
            Some(Err(_)) => {
                self.forget(id);
                return None;
            }
            None => {}
        }
        self.touch(id);
        Some(())
    }

    /// It is the one used last.
    fn touch(&mut self, id: &ObjectId) {
        let held = self.objects.get_mut(id).expect("it is here");
        self.order.remove(&held.used);
        self.clock += 1;
        held.used = self.clock;
        self.order.insert(self.clock, *id);
    }

    /// What the object holds was read: once that was often enough, others may do so without asking.
    pub(super) fn was_read(&mut self, id: &ObjectId, contents: &Arc<Contents>) {
        let Some(held) = self.objects.get_mut(id) else { return };
        let durable = held.last.as_ref().is_none_or(|last| matches!(last.result(), Some(Ok(()))));
        if held.published || !durable || !Arc::ptr_eq(&held.contents, contents) {
            return;
        }
        held.reads += 1;
        if held.reads >= READS {
            held.published = true;
            self.published.publish(*id, contents.clone());
        }
    }

    fn forget(&mut self, id: &ObjectId) {
        if let Some(held) = self.objects.remove(id) {
            if held.published {
                self.published.withdraw(id);
            }
            self.order.remove(&held.used);
            self.bytes -= held.bytes();
        }
    }

    /// Keeps an object, if it fits the budget.
    pub(super) fn insert(&mut self, id: ObjectId, mut held: Held) {
        self.forget(&id);
        self.clock += 1;
        held.used = self.clock;
        self.bytes += held.bytes();
        self.order.insert(self.clock, id);
        self.objects.insert(id, held);
        self.shrink();
    }

    fn shrink(&mut self) {
        while self.bytes > self.bytes_max {
            let Some((_, oldest)) = self.order.first_key_value() else { return };
            let oldest = *oldest;
            // Where others read it without asking it only seems to be.
            match self.objects[&oldest].published && self.published.was_used(&oldest) {
                true => self.touch(&oldest),
                false => self.forget(&oldest),
            }
        }
    }

    /// Commits: `commit` is given the object's keys after the batch, if it is here, and `version`
    /// is asked afterwards.
    pub(super) fn commit<X>(
        &mut self,
        id: &ObjectId,
        batch: &Batch,
        commit: impl FnOnce(Option<&dyn Resident>) -> Result<Ticket, X>,
        version: impl FnOnce() -> Version,
    ) -> Result<Ticket, X> {
        if self.take_note(id).is_none() {
            return commit(None);
        }
        let held = self.objects.get_mut(id).expect("noted above");
        let before = held.bytes();
        let ticket = commit(Some(&After::new(&held.contents, held.size, batch)))?;
        if std::mem::take(&mut held.published) {
            self.published.withdraw(id);
        }
        held.apply(batch, ticket.version, &ticket.outcome);
        held.set_version(version());
        self.bytes = self.bytes - before + held.bytes();
        self.shrink();
        Ok(ticket)
    }
}

impl Drop for Memory {
    /// A core that ended, be it by a panic, answers nothing any more.
    fn drop(&mut self) {
        let published = self.objects.iter().filter(|(_, held)| held.published);
        published.for_each(|(id, _)| self.published.withdraw(id));
    }
}

/// An object's keys after a batch, without changing them.
struct After<'a> {
    contents: &'a Contents,
    delete_all: bool,
    /// What the batch says last about each key.
    over: BTreeMap<&'a [u8], Option<&'a [u8]>>,
    size: (usize, usize),
}

impl<'a> After<'a> {
    fn new(contents: &'a Contents, size: (usize, usize), batch: &'a Batch) -> Self {
        let over: BTreeMap<_, _> = batch
            .ops()
            .map(|op| match op {
                Op::Put(key, value) => (key, Some(value)),
                Op::Delete(key) => (key, None),
            })
            .collect();
        let delete_all = batch.deletes_all();
        let mut size = if delete_all { (0, 0) } else { size };
        for (key, value) in &over {
            if let Some(old) = contents.map.get(*key).filter(|_| !delete_all) {
                size = (size.0 - 1, size.1 - key.len() - old.len());
            }
            if let Some(value) = value {
                size = (size.0 + 1, size.1 + key.len() + value.len());
            }
        }
        Self { contents, delete_all, over, size }
    }
}

impl Resident for After<'_> {
    fn size(&self) -> (usize, usize) {
        self.size
    }

    fn visit(&self, visit: &mut dyn FnMut(&[u8], &[u8])) {
        let base = self.contents.map.iter().filter(|_| !self.delete_all);
        let mut base = base.filter(|(key, _)| !self.over.contains_key(&key[..])).peekable();
        for (key, value) in self.over.iter().filter_map(|(key, value)| Some((*key, (*value)?))) {
            while let Some((before, its_value)) = base.next_if(|(before, _)| before[..] < *key) {
                visit(before, its_value);
            }
            visit(key, value);
        }
        base.for_each(|(key, value)| visit(key, value));
    }

    fn origin(&self) -> &Origin {
        &self.contents.origin
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contents(keys: &[&str]) -> Contents {
        let batch = keys.iter().fold(Batch::new(), |batch, key| batch.put(key, "old"));
        let mut contents = Contents::default();
        contents.apply(&batch, Version(1));
        contents
    }

    #[test]
    fn keys_after_a_batch_are_those_of_applying_it() {
        let before = contents(&["a", "c", "e", "g"]);
        let size = (before.map.len(), before.bytes());
        for batch in [
            Batch::new(),
            Batch::new().put("b", "new").delete("c").put("c", "x").delete("g").put("z", ""),
            Batch::new().put("a", "1").delete_all().put("e", "2").delete("e"),
            Batch::new().delete_all().put("b", "3"),
        ] {
            let mut wanted = before.clone();
            wanted.apply(&batch, Version(2));
            let after = After::new(&before, size, &batch);
            let mut got = Vec::new();
            after.visit(&mut |key, value| got.push((key.to_vec(), value.to_vec())));
            let wanted_keys: Vec<_> =
                wanted.map.iter().map(|(key, value)| (key.to_vec(), value.to_vec())).collect();
            assert_eq!(got, wanted_keys);
            assert_eq!(after.size(), (wanted.map.len(), wanted.bytes()));
        }
    }

    #[test]
    fn the_least_recently_used_goes_first() {
        let one = Held::new(contents(&["a"])).bytes();
        let mut memory = Memory::new(2 * one, Arc::new(Published::new(1)));
        let id = |byte| ObjectId::from_bytes([byte; 32]);
        memory.insert(id(1), Held::new(contents(&["a"])));
        memory.insert(id(2), Held::new(contents(&["a"])));
        assert!(memory.get(&id(1)).is_some());
        memory.insert(id(3), Held::new(contents(&["a"])));
        assert!(memory.get(&id(2)).is_none());
        assert!(memory.get(&id(1)).is_some() && memory.get(&id(3)).is_some());
        memory.insert(id(4), Held::new(contents(&["too", "large", "for", "it"])));
        assert!(memory.get(&id(4)).is_none());
        assert_eq!(memory.bytes, memory.objects.values().map(Held::bytes).sum::<usize>());
    }
}
