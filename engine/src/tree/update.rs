//! Puts changes into a tree: reads the pages that they are for, and gives those that take their place.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::pin::Pin;
use std::rc::Rc;

use bytes::Bytes;

use super::draft::{Child, Draft, Link, PageSizes, Put, change_leaf, split};
use super::read::{AT_ONCE, pages, values};
use super::{Change, Root};
use crate::env::Env;
use crate::error::Result;
use crate::format::frame::{Address, Share};
use crate::format::page::{Page, Value};
use crate::ids::ObjectId;
use crate::shard::Inner;

/// Which pages and values of a tree are to be written anew, changed or not.
#[derive(Clone, Debug, Default)]
pub(crate) enum Moving {
    /// None.
    #[default]
    Nothing,
    /// Those in this segment that are on the way to these keys.
    Segment(u32, BTreeSet<Bytes>),
    /// All in these segments, however many pages that means to read.
    All(BTreeSet<u32>),
}

impl Moving {
    fn moves(&self, segment: u32) -> bool {
        match self {
            Self::Nothing => false,
            Self::Segment(leaving, _) => segment == *leaving,
            Self::All(leaving) => leaving.contains(&segment),
        }
    }
}

/// A tree after changes.
pub(crate) struct Updated {
    pub(crate) draft: Draft,
    /// What is needed no more of what the root before amounted to.
    pub(crate) freed: Vec<Share>,
    /// The first key whose change is still to be put into it, for enough was to be written before it.
    pub(crate) undone: Option<Bytes>,
}

/// Puts `changes`, sorted by their keys, into the tree below `root`, and moves what is to be moved; no more of
/// both once `bytes_max` bytes of pages and values are to be written.
///
/// Errors: `Corrupt`, with the place; `Retry`.
pub(crate) async fn update<E: Env>(
    inner: &Rc<Inner<E>>,
    id: &ObjectId,
    root: &Root,
    changes: &[(Bytes, Change)],
    moving: &Moving,
    bytes_max: usize,
) -> Result<Updated> {
    let sizes = PageSizes::of(&inner.limits);
    let (freed, undone, bytes) = Default::default();
    let update = Update { inner, id, sizes, moving, bytes_max, bytes, freed, undone };
    let (pages, _changed) = update.page(root.page.clone(), changes).await?;
    let mut draft = Draft::grown(pages, &sizes);
    // A root with one child is none.
    while let Draft::Inner(level, children) = &mut draft {
        if children.len() > 1 {
            break;
        }
        let level = *level;
        draft = match children.pop() {
            Some((_, link)) => update.taken(link, level - 1).await?,
            None => Draft::Leaf(Vec::new()),
        };
    }
    let Update { freed, undone, .. } = update;
    Ok(Updated { draft, freed: freed.into_inner(), undone: undone.into_inner() })
}

struct Update<'a, E: Env> {
    inner: &'a Rc<Inner<E>>,
    id: &'a ObjectId,
    sizes: PageSizes,
    moving: &'a Moving,
    bytes_max: usize,
    /// Bytes that are to be written by now.
    bytes: Cell<usize>,
    freed: RefCell<Vec<Share>>,
    undone: RefCell<Option<Bytes>>,
}

type Future<'a, T> = Pin<Box<dyn std::future::Future<Output = Result<T>> + 'a>>;

impl<E: Env> Update<'_, E> {
    /// The pages that take the place of one, and whether that is because anything below it, or in it, changed.
    fn page<'a>(
        &'a self,
        page: Page,
        changes: &'a [(Bytes, Change)],
    ) -> Future<'a, (Vec<Draft>, bool)> {
        Box::pin(async move {
            match page {
                Page::Leaf(_) => self.leaf(page, changes).await,
                Page::Inner(level, children) => self.inner_page(level, children, changes).await,
            }
        })
    }

    async fn leaf(&self, page: Page, changes: &[(Bytes, Change)]) -> Result<(Vec<Draft>, bool)> {
        let Draft::Leaf(mut entries) = Draft::from(page) else { unreachable!("a leaf") };
        let (freed, changed) = change_leaf(&mut entries, changes);
        self.freed.borrow_mut().extend(freed);
        let moves = |put: &Put| match put {
            Put::Kept(Value::Apart { address, bytes }) => {
                self.moving.moves(address.segment).then_some((*address, *bytes))
            }
            _ => None,
        };
        let places: Vec<_> =
            (0..entries.len()).filter(|at| moves(&entries[*at].1).is_some()).collect();
        for some in places.chunks(AT_ONCE) {
            let wanted = some.iter().map(|at| {
                let (key, put) = &entries[*at];
                let (address, bytes) = moves(put).expect("chosen above");
                (key.clone(), address, bytes)
            });
            let wanted: Vec<_> = wanted.collect();
            let read = values(self.inner, self.id, &wanted).await?;
            for ((at, value), (_, address, _)) in some.iter().zip(read).zip(wanted) {
                entries[*at].1 = Put::New(value);
                self.freed.borrow_mut().push(address.into());
            }
        }
        let changed = changed || !places.is_empty();
        if changed {
            let written =
                entries.iter().map(|(key, put)| key.len() + put.new_bytes()).sum::<usize>();
            self.bytes.set(self.bytes.get() + written);
        }
        Ok((split(Draft::Leaf(entries), &self.sizes), changed))
    }

    async fn inner_page(
        &self,
        level: u8,
        children: Vec<(Bytes, Address)>,
        changes: &[(Bytes, Change)],
    ) -> Result<(Vec<Draft>, bool)> {
        let (mut after, mut changed) = (Vec::<Child>::new(), false);
        let mut rest = changes;
        let with_changes: Vec<_> = children
            .iter()
            .enumerate()
            .map(|(index, child)| {
                let next = children.get(index + 1);
                let here = |(key, _): &(Bytes, Change)| next.is_none_or(|(next, _)| key < next);
                let (of_it, others) = rest.split_at(rest.partition_point(here));
                rest = others;
                (child, of_it)
            })
            .collect();
        let all = matches!(self.moving, Moving::All(_));
        for some in with_changes.chunks(AT_ONCE) {
            let is_wanted = |of_it: &[(Bytes, Change)]| all || !of_it.is_empty();
            let wanted = some.iter().filter(|(_, of_it)| is_wanted(of_it));
            let wanted: Vec<_> = wanted.map(|((_, address), _)| *address).collect();
            let mut read = pages(self.inner, self.id, &wanted, level - 1).await?.into_iter();
            for ((separator, address), of_it) in some {
                if !is_wanted(of_it) {
                    after.push((separator.clone(), Link::Kept(*address)));
                    continue;
                }
                let page = read.next().expect("one for each that was wanted");
                if self.bytes.get() >= self.bytes_max {
                    let first = of_it.iter().find(|(_, change)| *change != Change::Touch);
                    let undone = &mut *self.undone.borrow_mut();
                    *undone = undone.take().or_else(|| first.map(|(key, _)| key.clone()));
                    after.push((separator.clone(), Link::Kept(*address)));
                    continue;
                }
                let (drafts, differs) = self.page(page, of_it).await?;
                if !differs && !self.moving.moves(address.segment) {
                    after.push((separator.clone(), Link::Kept(*address)));
                    continue;
                }
                changed = true;
                self.freed.borrow_mut().push((*address).into());
                let mut old = Some(separator.clone());
                after.extend(drafts.into_iter().map(|draft| {
                    let first = draft.first();
                    // In the first child of all, keys may be below its separator.
                    let separator = old.take().map_or(first.clone(), |old| old.min(first));
                    (separator, Link::New(Box::new(draft)))
                }));
            }
        }
        let after = if changed { self.joined(after, level - 1).await? } else { after };
        Ok((split(Draft::Inner(level, after), &self.sizes), changed))
    }

    /// Joins new pages that are small with a neighbour.
    async fn joined(&self, children: Vec<Child>, level: u8) -> Result<Vec<Child>> {
        let small = |link: &Link| match link {
            Link::New(draft) => self.sizes.is_small(draft),
            Link::Kept(_) => false,
        };
        let mut after: Vec<Child> = Vec::with_capacity(children.len());
        for (separator, link) in children {
            let Some((_, before)) =
                after.last().filter(|(_, before)| small(before) || small(&link))
            else {
                after.push((separator, link));
                continue;
            };
            let (one, other) =
                (self.bytes_of(before, level).await?, self.bytes_of(&link, level).await?);
            if one + other > self.sizes.page {
                after.push((separator, link));
                continue;
            }
            let (first, before) = after.pop().expect("looked at above");
            let mut joined = self.taken(before, level).await?;
            joined.append(self.taken(link, level).await?);
            after.push((first, Link::New(Box::new(joined))));
        }
        Ok(after)
    }

    async fn bytes_of(&self, link: &Link, level: u8) -> Result<usize> {
        match link {
            Link::New(draft) => Ok(self.sizes.bytes(draft)),
            Link::Kept(address) => Ok(self.sizes.bytes(&self.read(*address, level).await?)),
        }
    }

    async fn read(&self, address: Address, level: u8) -> Result<Draft> {
        let read = pages(self.inner, self.id, &[address], level).await?;
        Ok(read.into_iter().map(Draft::from).next().expect("one was wanted"))
    }

    /// A child that is to be part of another page: its own frame is needed no more.
    async fn taken(&self, link: Link, level: u8) -> Result<Draft> {
        match link {
            Link::New(draft) => Ok(*draft),
            Link::Kept(address) => {
                let draft = self.read(address, level).await?;
                self.freed.borrow_mut().push(address.into());
                Ok(draft)
            }
        }
    }
}
