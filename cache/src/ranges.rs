//! [`Ranges`]: a set of keys, as the ranges that it is made of.
//!
//! Invariants: the ranges are not empty, do not overlap and do not touch; so equal sets are equal values.
//! `bytes` is the sum of their ends.

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;

/// Some keys from the first, which is in it, to the second, which is not; without one, to the last.
pub(crate) type Span = (Bytes, Option<Bytes>);

/// A set of keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ranges {
    map: BTreeMap<Bytes, Option<Bytes>>,
    bytes: usize,
}

/// The span of one key.
pub(crate) fn only(key: &[u8]) -> Span {
    let mut next = Vec::with_capacity(key.len() + 1);
    next.extend_from_slice(key);
    next.push(0);
    // Both ends in one allocation.
    let next = Bytes::from(next);
    (next.slice(..key.len()), Some(next))
}

/// Whether a span that ends there has keys from `key` on.
fn reaches(end: Option<&Bytes>, key: &[u8]) -> bool {
    end.is_none_or(|end| end[..] > *key)
}

/// Whether a key lies in a span.
pub(crate) fn contains((start, end): &Span, key: &[u8]) -> bool {
    start[..] <= *key && reaches(end.as_ref(), key)
}

/// The end that comes first.
fn earlier(one: Option<&Bytes>, other: Option<&Bytes>) -> Option<Bytes> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other).clone()),
        (end, None) | (None, end) => end.cloned(),
    }
}

impl Ranges {
    /// All keys.
    pub(crate) fn all() -> Self {
        Self { map: BTreeMap::from([(Bytes::new(), None)]), bytes: 0 }
    }

    pub(crate) fn is_all(&self) -> bool {
        self.map.first_key_value().is_some_and(|(start, end)| start.is_empty() && end.is_none())
    }

    /// Of how many ranges it is made.
    pub(crate) fn len(&self) -> usize {
        self.map.len()
    }

    /// Bytes of the keys at their ends.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    fn insert(&mut self, start: Bytes, end: Option<Bytes>) {
        self.bytes += start.len() + end.as_ref().map_or(0, Bytes::len);
        let before = self.map.insert(start, end);
        assert!(before.is_none(), "they do not overlap");
    }

    fn take(&mut self, start: &Bytes) {
        let end = self.map.remove(start).expect("one of them");
        self.bytes -= start.len() + end.map_or(0, |end| end.len());
    }

    pub(crate) fn contains(&self, key: &[u8]) -> bool {
        let before =
            self.map.range::<[u8], _>((Bound::Unbounded, Bound::Included(key))).next_back();
        before.is_some_and(|(_, end)| reaches(end.as_ref(), key))
    }

    /// Adds the keys of a span, which may be empty.
    pub(crate) fn add(&mut self, (mut start, mut end): Span) {
        if end.as_ref().is_some_and(|end| *end <= start) {
            return;
        }
        // All that begin at or before its end and end at or behind its start become one with it.
        let upper = end.as_deref().map_or(Bound::Unbounded, Bound::Included);
        let mut one: Vec<Bytes> = Vec::new();
        for (its_start, its_end) in self.map.range::<[u8], _>((Bound::Unbounded, upper)).rev() {
            if its_end.as_ref().is_some_and(|its_end| *its_end < start) {
                break;
            }
            end = match (its_end, &end) {
                (Some(its_end), Some(end)) => Some(its_end.max(end).clone()),
                _ => None,
            };
            one.push(its_start.clone());
        }
        for its_start in one {
            self.take(&its_start);
            start = start.min(its_start);
        }
        self.insert(start, end);
    }

    /// Takes out the keys of a span.
    pub(crate) fn remove(&mut self, span: &Span) {
        let parts: Vec<_> = self.within(span).collect();
        for (start, end) in parts {
            let upper = (Bound::Unbounded, Bound::Included(&start[..]));
            let (its_start, its_end) =
                self.map.range::<[u8], _>(upper).next_back().expect("it is within one");
            let (its_start, its_end) = (its_start.clone(), its_end.clone());
            self.take(&its_start);
            if its_start < start {
                self.insert(its_start, Some(start));
            }
            if let Some(end) = end.filter(|end| reaches(its_end.as_ref(), end)) {
                self.insert(end, its_end);
            }
        }
    }

    /// The parts of a span that are in the set.
    fn within<'a>(&'a self, (start, end): &'a Span) -> impl Iterator<Item = Span> + 'a {
        let mut before = self.map.range::<[u8], _>((Bound::Unbounded, Bound::Excluded(&start[..])));
        let before = before.next_back().filter(|(_, its_end)| reaches(its_end.as_ref(), start));
        let upper = end.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
        let empty = end.as_ref().is_some_and(|end| end <= start);
        let inside =
            (!empty).then(|| self.map.range::<[u8], _>((Bound::Included(&start[..]), upper)));
        let all = before.filter(|_| !empty).into_iter().chain(inside.into_iter().flatten());
        all.map(|(its_start, its_end)| {
            (its_start.max(start).clone(), earlier(its_end.as_ref(), end.as_ref()))
        })
    }

    /// The parts of a span that are not in the set, ascending.
    pub(crate) fn gaps(&self, span: &Span) -> Vec<Span> {
        let (mut from, mut gaps) = (Some(span.0.clone()), Vec::new());
        for (start, end) in self.within(span) {
            let left = from.take().expect("only the last range has no end");
            if left < start {
                gaps.push((left, Some(start)));
            }
            from = end;
            if from.is_none() {
                break;
            }
        }
        gaps.extend(from.map(|from| (from, span.1.clone())));
        gaps.retain(|(start, end)| reaches(end.as_ref(), start));
        gaps
    }

    /// The keys that are in both.
    pub(crate) fn intersection(&self, other: &Self) -> Self {
        let spans = other.map.iter().map(|(start, end)| (start.clone(), end.clone()));
        let mut both = Self::default();
        for span in spans {
            self.within(&span).for_each(|span| both.add(span));
        }
        both
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// All keys of up to two letters: what a set says of them is all that it can say of spans between them.
    fn keys() -> Vec<Bytes> {
        let letters = [b"a".as_slice(), b"b", b"c"];
        let two = letters.iter().flat_map(|one| letters.map(|two| [*one, two].concat()));
        let one = letters.map(<[u8]>::to_vec);
        let mut keys: Vec<_> = two.chain(one).chain([Vec::new()]).map(Bytes::from).collect();
        keys.sort();
        keys
    }

    fn span() -> impl Strategy<Value = Span> {
        let key = || prop::sample::select(keys());
        (key(), prop::option::of(key()))
    }

    fn covered(span: &Span) -> BTreeSet<Bytes> {
        keys().into_iter().filter(|key| contains(span, key)).collect()
    }

    fn built(spans: &[Span]) -> (Ranges, BTreeSet<Bytes>) {
        let mut ranges = Ranges::default();
        spans.iter().cloned().for_each(|span| ranges.add(span));
        let ends: Vec<_> = ranges.map.iter().collect();
        assert!(ends.iter().all(|(start, end)| reaches(end.as_ref(), start)), "none is empty");
        let apart = |pair: &[(&Bytes, &Option<Bytes>)]| {
            pair[0].1.as_ref().is_some_and(|end| end < pair[1].0)
        };
        assert!(ends.windows(2).all(apart), "they do not touch: {ranges:?}");
        let bytes = |(start, end): &(&Bytes, &Option<Bytes>)| {
            start.len() + end.as_ref().map_or(0, Bytes::len)
        };
        assert_eq!(ranges.bytes(), ends.iter().map(bytes).sum::<usize>());
        (ranges, spans.iter().flat_map(covered).collect())
    }

    proptest! {
        #[test]
        fn they_are_sets_of_keys(
            spans in prop::collection::vec(span(), 0..6),
            others in prop::collection::vec(span(), 0..4),
            asked in span(),
        ) {
            let ((ranges, set), (other, other_set)) = (built(&spans), built(&others));
            let of = |ranges: &Ranges| -> BTreeSet<Bytes> {
                keys().into_iter().filter(|key| ranges.contains(key)).collect()
            };
            prop_assert_eq!(of(&ranges), set.clone());
            prop_assert_eq!(of(&ranges.intersection(&other)), &set & &other_set);
            let gaps: BTreeSet<_> = ranges.gaps(&asked).iter().flat_map(covered).collect();
            prop_assert_eq!(gaps, &covered(&asked) - &set);
            let mut left = ranges.clone();
            left.remove(&asked);
            prop_assert_eq!(of(&left), &set - &covered(&asked));
            let kept = left.map.into_iter().collect::<Vec<_>>();
            prop_assert_eq!(built(&kept).0.len(), kept.len());
            let mut filled = ranges.clone();
            ranges.gaps(&Ranges::everything()).into_iter().for_each(|gap| filled.add(gap));
            prop_assert!(filled.is_all());
            prop_assert_eq!(ranges.gaps(&Ranges::everything()).is_empty(), ranges.is_all());
        }
    }

    impl Ranges {
        fn everything() -> Span {
            (Bytes::new(), None)
        }
    }

    #[test]
    fn one_key_is_a_span() {
        let mut ranges = Ranges::default();
        ranges.add(only(b"a"));
        assert!(ranges.contains(b"a") && !ranges.contains(b"a\0") && !ranges.contains(b""));
        ranges.add(only(b"a\0"));
        assert_eq!(ranges.len(), 1);
        assert_eq!(Ranges::all().gaps(&(Bytes::new(), None)), []);
    }
}
