//! [`List`]: which keys a listing gives, and in which order; and the walk that gives them, over
//! the object's map and whatever lies over it: open transactions, a batch on its way (R-219–R-225,
//! R-415).

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;

use crate::error::{Error, Kind, Result};

/// The [code](Error::code) of a list with a limit below one, or with two starts (R-220, R-223).
pub const BAD_ARGUMENT: &str = "bad-argument";

/// The order of a listing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Direction {
    /// By ascending key bytes.
    #[default]
    Ascending,
    /// By descending key bytes; a limit counts from the high end (R-224).
    Descending,
}

/// Which keys to list. The default is all, ascending.
///
/// ```
/// use dormouse_engine::List;
/// let newest = List::prefix("msg:").reverse().limit(10);
/// assert_eq!(newest.limit, Some(10));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct List {
    /// The first key, inclusive (R-219).
    pub start: Option<Bytes>,
    /// The key before the first; not together with `start` (R-220).
    pub start_after: Option<Bytes>,
    /// The key after the last (R-219).
    pub end: Option<Bytes>,
    /// Only keys that begin with it (R-221).
    pub prefix: Option<Bytes>,
    /// The order.
    pub direction: Direction,
    /// How many keys at most; at least 1 (R-223).
    pub limit: Option<i64>,
}

impl List {
    /// All keys.
    pub fn all() -> Self {
        Self::default()
    }

    /// The keys that begin with `prefix`; none for an empty prefix means all (R-221).
    pub fn prefix(prefix: impl AsRef<[u8]>) -> Self {
        Self { prefix: Some(Bytes::copy_from_slice(prefix.as_ref())), ..Self::default() }
    }

    /// From `key` on, inclusive.
    #[must_use]
    pub fn start(mut self, key: impl AsRef<[u8]>) -> Self {
        self.start = Some(Bytes::copy_from_slice(key.as_ref()));
        self
    }

    /// From the key after `key` on.
    #[must_use]
    pub fn start_after(mut self, key: impl AsRef<[u8]>) -> Self {
        self.start_after = Some(Bytes::copy_from_slice(key.as_ref()));
        self
    }

    /// Up to `key`, exclusive.
    #[must_use]
    pub fn end(mut self, key: impl AsRef<[u8]>) -> Self {
        self.end = Some(Bytes::copy_from_slice(key.as_ref()));
        self
    }

    /// Descending.
    #[must_use]
    pub fn reverse(mut self) -> Self {
        self.direction = Direction::Descending;
        self
    }

    /// At most `keys` keys.
    #[must_use]
    pub fn limit(mut self, keys: i64) -> Self {
        self.limit = Some(keys);
        self
    }

    /// The bounds of the range, `None` if it is provably empty (R-222). Arguments are checked
    /// first, also for an empty range (R-223).
    ///
    /// Errors: `Invalid`, [`BAD_ARGUMENT`].
    pub fn resolve(&self) -> Result<Option<Range>> {
        let refused = |why: &str| Err(Error::coded(Kind::Invalid, BAD_ARGUMENT, why));
        if self.limit.is_some_and(|limit| limit <= 0) {
            return refused("the limit of a list must be at least 1");
        }
        if self.start.is_some() && self.start_after.is_some() {
            return refused("a list takes start or start_after, not both");
        }
        // A limit beyond the address space is none.
        let limit =
            self.limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
        let mut start = match (&self.start, &self.start_after) {
            (Some(key), _) => key.clone(),
            (None, Some(key)) => successor(key),
            (None, None) => Bytes::new(),
        };
        let mut end = self.end.clone();
        if let Some(prefix) = &self.prefix {
            start = start.max(prefix.clone());
            end = match (end, prefix_end(prefix)) {
                (Some(end), Some(prefix_end)) => Some(end.min(prefix_end)),
                (end, prefix_end) => end.or(prefix_end),
            };
        }
        if end.as_ref().is_some_and(|end| *end <= start) {
            return Ok(None);
        }
        Ok(Some(Range { start, end, direction: self.direction, limit }))
    }
}

/// The key right after `key` (R-203).
fn successor(key: &[u8]) -> Bytes {
    let mut next = Vec::with_capacity(key.len() + 1);
    next.extend_from_slice(key);
    next.push(0);
    next.into()
}

/// The first key after all keys with this prefix; `None` if there is none (R-221).
fn prefix_end(prefix: &[u8]) -> Option<Bytes> {
    let last = prefix.iter().rposition(|byte| *byte != u8::MAX)?;
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    Some(end.into())
}

/// From which key to which.
pub type Bounds<'a> = (Bound<&'a [u8]>, Bound<&'a [u8]>);

/// A map of keys and values in the order of the keys.
pub trait Sorted {
    /// Its entries from one key to another, that does not come before.
    fn range(&self, bounds: Bounds<'_>) -> impl DoubleEndedIterator<Item = (&Bytes, &Bytes)>;
}

impl Sorted for BTreeMap<Bytes, Bytes> {
    fn range(&self, bounds: Bounds<'_>) -> impl DoubleEndedIterator<Item = (&Bytes, &Bytes)> {
        self.range::<[u8], _>(bounds)
    }
}

/// A checked, nonempty range of keys.
#[derive(Clone, Debug)]
pub struct Range {
    start: Bytes,
    end: Option<Bytes>,
    direction: Direction,
    limit: usize,
}

/// A key, and what an overlay says about it: a value, or that it is deleted.
pub type OverlayEntry<'a> = (&'a Bytes, Option<&'a Bytes>);

impl Range {
    /// The first key of the range.
    pub fn start(&self) -> &Bytes {
        &self.start
    }

    /// The key after its last.
    pub fn end(&self) -> Option<&Bytes> {
        self.end.as_ref()
    }

    /// Its order.
    pub fn direction(&self) -> Direction {
        self.direction
    }

    /// How many keys it gives at most.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Whether a key lies in it.
    pub fn contains(&self, key: &Bytes) -> bool {
        *key >= self.start && self.end.as_ref().is_none_or(|end| key < end)
    }

    /// What of it comes before a key, in its order, and the rest: `bound` is the first key of the rest,
    /// or, descending, of what comes before. Without one all comes before.
    pub(crate) fn cut(self, bound: Option<&Bytes>) -> (Option<Self>, Option<Self>) {
        let Some(bound) = bound else { return (Some(self), None) };
        let low = Self { end: Some(bound.clone()), ..self.clone() };
        let high = Self { start: bound.clone(), ..self.clone() };
        let some =
            |part: Self| part.end.as_ref().is_none_or(|end| part.start < *end).then_some(part);
        let within =
            |key: &Bytes| *key > self.start && self.end.as_ref().is_none_or(|end| key < end);
        match (self.direction, within(bound)) {
            (Direction::Ascending, true) => (some(low), some(high)),
            (Direction::Descending, true) => (some(high), some(low)),
            (Direction::Ascending, false) if *bound <= self.start => (None, Some(self)),
            (Direction::Descending, false) if *bound > self.start => (None, Some(self)),
            (_, false) => (Some(self), None),
        }
    }

    /// What of it comes behind a key in it, and `rest`, which comes behind all of it.
    pub(crate) fn behind(&self, key: &Bytes, rest: Option<Self>) -> Self {
        let rest = rest.as_ref().unwrap_or(self);
        match self.direction {
            Direction::Ascending => Self { start: successor(key), ..rest.clone() },
            Direction::Descending => Self { end: Some(key.clone()), ..rest.clone() },
        }
    }

    /// The same, once so many of its keys were given.
    pub(crate) fn without(self, keys: usize) -> Option<Self> {
        let limit = self.limit - keys;
        (limit > 0).then_some(Self { limit, ..self })
    }

    /// The range's bounds, for `BTreeMap::range`.
    pub fn bounds(&self) -> Bounds<'_> {
        let end = self.end.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
        (Bound::Included(&self.start), end)
    }

    /// Shows the keys of `map` in the range and their values, in its order, at most its limit.
    pub fn visit(&self, map: &impl Sorted, mut visit: impl FnMut(&Bytes, &Bytes)) {
        let entries = map.range(self.bounds());
        let each = |(key, value)| visit(key, value);
        match self.direction {
            Direction::Ascending => entries.take(self.limit).for_each(each),
            Direction::Descending => entries.rev().take(self.limit).for_each(each),
        }
    }

    /// Shows the first `count` keys of `map` in what is left of the range, or all that there are, and takes them out of it:
    /// a walk that borrows nothing between its steps.
    pub(crate) fn take(
        &mut self,
        map: &BTreeMap<Bytes, Bytes>,
        count: usize,
        mut show: impl FnMut(&Bytes, &Bytes),
    ) {
        if self.end.as_ref().is_some_and(|end| *end <= self.start) {
            return;
        }
        let part = Self { limit: self.limit.min(count), ..self.clone() };
        let mut last = None;
        part.visit(map, |key, value| {
            show(key, value);
            self.limit -= 1;
            last = Some(key.clone());
        });
        match (self.direction, last) {
            (_, None) => self.limit = 0,
            (Direction::Ascending, Some(last)) => self.start = successor(&last),
            (Direction::Descending, last) => self.end = last,
        }
    }

    /// What [`Range::visit`] shows with `overlay` (keys in the range, ascending) over the map:
    /// merged, then cut at the limit (R-415, R-416).
    pub fn visit_under<'a>(
        &self,
        map: &'a impl Sorted,
        overlay: impl DoubleEndedIterator<Item = OverlayEntry<'a>>,
        mut visit: impl FnMut(&Bytes, &Bytes),
    ) {
        let entries = map.range(self.bounds());
        let each = |(key, value)| visit(key, value);
        match self.direction {
            Direction::Ascending => {
                merge(entries, overlay, Bytes::cmp).take(self.limit).for_each(each);
            }
            Direction::Descending => {
                let descending = |a: &Bytes, b: &Bytes| b.cmp(a);
                merge(entries.rev(), overlay.rev(), descending).take(self.limit).for_each(each);
            }
        }
    }
}

/// Merges two sequences sorted by `order`; on equal keys the overlay wins, and its deletions
/// remove.
fn merge<'a>(
    base: impl Iterator<Item = (&'a Bytes, &'a Bytes)>,
    overlay: impl Iterator<Item = OverlayEntry<'a>>,
    order: impl Fn(&Bytes, &Bytes) -> Ordering,
) -> impl Iterator<Item = (&'a Bytes, &'a Bytes)> {
    let (mut base, mut overlay) = (base.peekable(), overlay.peekable());
    std::iter::from_fn(move || {
        loop {
            let next = match (base.peek(), overlay.peek()) {
                (None, None) => return None,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some((key, _)), Some((over, _))) => order(key, over),
            };
            if next == Ordering::Less {
                return base.next();
            }
            if next == Ordering::Equal {
                base.next();
            }
            if let Some((key, Some(value))) = overlay.next() {
                return Some((key, value));
            }
        }
    })
}
