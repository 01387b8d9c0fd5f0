//! A tree that is not written yet: what of it stays as it is, and what is new.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::Change;
use crate::batch::{Op, Ops};
use crate::format::frame::{ADDRESS_BYTES, Address, Share};
use crate::format::page::{CHILD_BYTES, LEAF_ENTRY_BYTES, Page, Value};
use crate::limits::Limits;

/// A page that is to be written, with what it leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Draft {
    Leaf(Vec<(Bytes, Put)>),
    /// Level (1..) and children.
    Inner(u8, Vec<Child>),
}

/// The value of a key in a leaf that is to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Put {
    /// As it was.
    Kept(Value),
    /// To be written, inline or in a frame of its own.
    New(Bytes),
}

impl Put {
    /// Bytes that are written for it.
    pub(super) fn new_bytes(&self) -> usize {
        match self {
            Self::New(value) | Self::Kept(Value::Inline(value)) => value.len(),
            Self::Kept(Value::Apart { .. }) => ADDRESS_BYTES,
        }
    }
}

/// A child with its separator.
pub(crate) type Child = (Bytes, Link);

/// Where a child is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Link {
    /// As it was.
    Kept(Address),
    /// To be written.
    New(Box<Draft>),
}

/// How large pages are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PageSizes {
    pub(crate) page: usize,
    /// A larger value lies in a frame of its own.
    pub(crate) inline: usize,
}

impl PageSizes {
    pub(crate) fn of(limits: &Limits) -> Self {
        Self { page: limits.page_bytes, inline: limits.page_bytes / 4 }
    }

    /// Bytes of an entry of a leaf.
    fn entry(&self, key: &Bytes, put: &Put) -> usize {
        let value = match put {
            Put::Kept(Value::Inline(value)) => value.len(),
            Put::New(value) if value.len() <= self.inline => value.len(),
            Put::New(_) | Put::Kept(Value::Apart { .. }) => ADDRESS_BYTES,
        };
        LEAF_ENTRY_BYTES + key.len() + value
    }

    fn child(&self, (separator, _): &Child) -> usize {
        CHILD_BYTES + separator.len()
    }

    /// Bytes of the entries of a page.
    pub(super) fn bytes(&self, draft: &Draft) -> usize {
        match draft {
            Draft::Leaf(entries) => entries.iter().map(|(key, put)| self.entry(key, put)).sum(),
            Draft::Inner(_, children) => children.iter().map(|child| self.child(child)).sum(),
        }
    }

    /// Whether a page is better joined with a neighbour.
    pub(super) fn is_small(&self, draft: &Draft) -> bool {
        self.bytes(draft) < self.page / 3
    }
}

impl From<Page> for Draft {
    fn from(page: Page) -> Self {
        match page {
            Page::Leaf(entries) => {
                let kept = |(key, value)| (key, Put::Kept(value));
                Self::Leaf(entries.into_iter().map(kept).collect())
            }
            Page::Inner(level, children) => {
                let kept = |(separator, address)| (separator, Link::Kept(address));
                Self::Inner(level, children.into_iter().map(kept).collect())
            }
        }
    }
}

impl Draft {
    /// The tree of what encoded puts say, which are sorted by key. `owned` are their bytes.
    pub(crate) fn of_puts(owned: &Bytes, sizes: &PageSizes) -> Self {
        let put = |op| match op {
            Ok(Op::Put(key, value)) => (owned.slice_ref(key), Put::New(owned.slice_ref(value))),
            _ => unreachable!("an image is puts"),
        };
        Self::grown(split(Self::Leaf(Ops::new(owned).map(put).collect()), sizes), sizes)
    }

    /// One page above all of these, which are of one level, and those between.
    pub(crate) fn grown(mut pages: Vec<Self>, sizes: &PageSizes) -> Self {
        while pages.len() > 1 {
            let level = pages[0].level() + 1;
            let child = |page: Self| (page.first(), Link::New(Box::new(page)));
            let children = pages.into_iter().map(child).collect();
            pages = split(Self::Inner(level, children), sizes);
        }
        pages.pop().unwrap_or(Self::Leaf(Vec::new()))
    }

    /// 0 for a leaf.
    pub(crate) fn level(&self) -> u8 {
        match self {
            Self::Leaf(_) => 0,
            Self::Inner(level, _) => *level,
        }
    }

    /// Its first key, or separator.
    pub(super) fn first(&self) -> Bytes {
        match self {
            Self::Leaf(entries) => entries.first().map(|(key, _)| key.clone()),
            Self::Inner(_, children) => children.first().map(|(separator, _)| separator.clone()),
        }
        .unwrap_or_default()
    }

    pub(super) fn is_empty(&self) -> bool {
        match self {
            Self::Leaf(entries) => entries.is_empty(),
            Self::Inner(_, children) => children.is_empty(),
        }
    }

    /// The keys and values of a leaf that holds all of them; `None` of any other tree.
    pub(crate) fn whole(&self) -> Option<BTreeMap<Bytes, Bytes>> {
        let Self::Leaf(entries) = self else { return None };
        let inline = |(key, put): &(Bytes, Put)| match put {
            Put::Kept(Value::Inline(value)) | Put::New(value) => Some((key.clone(), value.clone())),
            Put::Kept(Value::Apart { .. }) => None,
        };
        entries.iter().map(inline).collect()
    }

    /// Adds what follows on a page of the same level.
    pub(super) fn append(&mut self, next: Self) {
        match (self, next) {
            (Self::Leaf(entries), Self::Leaf(more)) => entries.extend(more),
            (Self::Inner(level, children), Self::Inner(next, more)) if *level == next => {
                children.extend(more);
            }
            _ => unreachable!("neighbours are of one level"),
        }
    }

    /// Writes all that is new: children before those that name them, values before leaves. Gives the root, and
    /// what was written.
    pub(crate) fn write(
        self,
        sizes: &PageSizes,
        push: &mut impl FnMut(Pushed<'_>) -> Address,
    ) -> Page {
        match self {
            Self::Leaf(entries) => {
                let mut write = |(key, put): (Bytes, Put)| {
                    let value = match put {
                        Put::Kept(value) => value,
                        Put::New(value) if value.len() <= sizes.inline => Value::Inline(value),
                        Put::New(value) => {
                            let bytes = crate::format::len_u32(value.len());
                            Value::Apart { address: push(Pushed::Value(&key, &value)), bytes }
                        }
                    };
                    (key, value)
                };
                Page::Leaf(entries.into_iter().map(&mut write).collect())
            }
            Self::Inner(level, children) => {
                let mut write = |(separator, link): Child| {
                    let address = match link {
                        Link::Kept(address) => address,
                        Link::New(draft) => {
                            let page = draft.write(sizes, push);
                            push(Pushed::Page(&page))
                        }
                    };
                    (separator, address)
                };
                Page::Inner(level, children.into_iter().map(&mut write).collect())
            }
        }
    }
}

/// What is to be written as a frame.
pub(crate) enum Pushed<'a> {
    Page(&'a Page),
    /// Key and value.
    Value(&'a [u8], &'a [u8]),
}

/// Puts sorted changes into the entries of a leaf. Gives the frames that are needed no more, and whether
/// anything changed.
pub(super) fn change_leaf(
    entries: &mut Vec<(Bytes, Put)>,
    changes: &[(Bytes, Change)],
) -> (Vec<Share>, bool) {
    let before = std::mem::take(entries);
    let (mut freed, mut changed) = (Vec::new(), false);
    let mut free = |put: &Put| {
        if let Put::Kept(Value::Apart { address, .. }) = put {
            freed.push(Share::from(*address));
        }
    };
    let mut changes = changes.iter().filter(|(_, change)| *change != Change::Touch).peekable();
    let mut put = |entries: &mut Vec<(Bytes, Put)>, key: &Bytes, change: &Change, had: bool| {
        changed |= had || *change != Change::Delete;
        if let Change::Put(value) = change {
            entries.push((key.clone(), Put::New(value.clone())));
        }
    };
    for (key, value) in before {
        while let Some((new, change)) = changes.next_if(|(new, _)| *new < key) {
            put(entries, new, change, false);
        }
        match changes.next_if(|(new, _)| *new == key) {
            Some((_, change)) => {
                free(&value);
                put(entries, &key, change, true);
            }
            None => entries.push((key, value)),
        }
    }
    changes.for_each(|(new, change)| put(entries, new, change, false));
    (freed, changed)
}

/// Splits a page into pages that are not too large, of about one size; none of an empty one.
pub(super) fn split(draft: Draft, sizes: &PageSizes) -> Vec<Draft> {
    if draft.is_empty() {
        return Vec::new();
    }
    if sizes.bytes(&draft) <= sizes.page {
        return vec![draft];
    }
    match draft {
        Draft::Leaf(entries) => {
            let pieces = pieces(entries, 1, sizes.page, |(key, put)| sizes.entry(key, put));
            pieces.into_iter().map(Draft::Leaf).collect()
        }
        Draft::Inner(level, children) => {
            // Two at least, so that each level is smaller than the one below it.
            let pieces = pieces(children, 2, sizes.page, |child| sizes.child(child));
            pieces.into_iter().map(|children| Draft::Inner(level, children)).collect()
        }
    }
}

/// Cuts into pieces of about one size, `max` at most, but of `least` items at least.
fn pieces<T>(items: Vec<T>, least: usize, max: usize, bytes: impl Fn(&T) -> usize) -> Vec<Vec<T>> {
    let mut left: usize = items.iter().map(&bytes).sum();
    let mut pieces: Vec<Vec<T>> = vec![Vec::new()];
    let mut filled = 0;
    // What is left is spread over as many pieces as it needs.
    let goal = |left: usize| left.div_ceil(left.div_ceil(max).max(1));
    let mut wanted = goal(left);
    let mut rest = items.len();
    for item in items {
        let size = bytes(&item);
        let piece = pieces.last().expect("one at least");
        let full = filled + size > max || filled >= wanted;
        if full && piece.len() >= least && rest >= least {
            wanted = goal(left);
            pieces.push(Vec::new());
            filled = 0;
        }
        filled += size;
        left -= size;
        rest -= 1;
        pieces.last_mut().expect("one at least").push(item);
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZES: PageSizes = PageSizes { page: 64, inline: 16 };

    fn puts(count: usize, value: usize) -> Bytes {
        let put = |batch: crate::Batch, n| batch.put(format!("key-{n:03}"), vec![b'v'; value]);
        (0..count).fold(crate::Batch::new(), put).encoded_ops().to_vec().into()
    }

    fn check(draft: &Draft, keys: &mut Vec<Bytes>) {
        assert!(!draft.is_empty());
        match draft {
            Draft::Leaf(entries) => {
                assert!(SIZES.bytes(draft) <= SIZES.page || entries.len() == 1);
                keys.extend(entries.iter().map(|(key, _)| key.clone()));
            }
            Draft::Inner(level, children) => {
                assert!(SIZES.bytes(draft) <= SIZES.page || children.len() <= 3);
                assert!(children.len() >= 2);
                for (index, (separator, link)) in children.iter().enumerate() {
                    let Link::New(child) = link else { panic!("all is new") };
                    assert_eq!(child.level(), level - 1);
                    let from = keys.len();
                    check(child, keys);
                    assert!(index == 0 || *separator <= keys[from]);
                    assert!(from == 0 || keys[from - 1] < *separator || index == 0);
                }
            }
        }
    }

    #[test]
    fn a_tree_holds_all_keys_in_order_on_pages_of_fair_size() {
        for (count, value) in [(1, 3), (5, 3), (40, 3), (400, 9), (400, 40)] {
            let tree = Draft::of_puts(&puts(count, value), &SIZES);
            let mut keys = Vec::new();
            check(&tree, &mut keys);
            assert_eq!(keys.len(), count);
            assert!(keys.is_sorted());
        }
    }

    #[test]
    fn children_are_written_before_their_parents() {
        let tree = Draft::of_puts(&puts(60, 40), &SIZES);
        let (mut at, mut values, mut pages) = (8, 0, 0);
        let root = tree.write(&SIZES, &mut |pushed| {
            let address = Address { segment: 1, offset: at, bytes: 200 };
            match pushed {
                Pushed::Value(..) => values += 1,
                Pushed::Page(Page::Inner(_, children)) => {
                    assert!(children.iter().all(|(_, child)| child.offset < at));
                    pages += 1;
                }
                Pushed::Page(Page::Leaf(_)) => pages += 1,
            }
            at += 200;
            address
        });
        assert!(root.level() > 1 && pages > 20);
        assert_eq!(values, 60);
    }

    #[test]
    fn changes_of_a_leaf_keep_its_order() {
        let address = Address { segment: 1, offset: 8, bytes: 200 };
        let apart = Put::Kept(Value::Apart { address, bytes: 99 });
        let inline = |text: &'static str| Put::Kept(Value::Inline(text.into()));
        let mut entries =
            vec![("b".into(), inline("1")), ("d".into(), apart), ("f".into(), inline("2"))];
        let changes = [
            ("a".into(), Change::Put("3".into())),
            ("b".into(), Change::Touch),
            ("c".into(), Change::Delete),
            ("d".into(), Change::Delete),
            ("f".into(), Change::Put("4".into())),
            ("g".into(), Change::Put("5".into())),
        ];
        let (freed, changed) = change_leaf(&mut entries, &changes);
        assert!(changed);
        assert_eq!(freed, [Share::from(address)]);
        let new = |text: &'static str| Put::New(text.into());
        let wanted = [("a", new("3")), ("b", inline("1")), ("f", new("4")), ("g", new("5"))];
        assert_eq!(entries, wanted.map(|(key, put)| (Bytes::from(key), put)));
        let unchanged = [("b".into(), Change::Touch), ("c".into(), Change::Delete)];
        assert!(!change_leaf(&mut entries, &unchanged).1);
    }
}
