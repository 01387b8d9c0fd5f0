//! [`Map`]: the keys and values of one object, in order.
//!
//! Most objects have a few keys. A `BTreeMap` takes room for eleven entries with its first one; here they
//! lie in a vector of about their number, and only many are in a tree.
//!
//! Invariant: `Few` is sorted by its keys, each once, and holds at most [`FEW_MAX`].

use std::collections::BTreeMap;

use bytes::Bytes;
use dormouse_engine::list::{Bounds, Sorted};

/// Entries that are kept in a vector: with more, moving them for a new one costs what a tree does.
const FEW_MAX: usize = 8;

/// A node of the tree, with as many entries as it has after it was split.
const NODE_BYTES: usize = 720;
const NODE_ENTRIES: usize = 6;
const ENTRY_BYTES: usize = size_of::<(Bytes, Bytes)>();

/// See the module.
#[derive(Debug)]
pub(crate) enum Map {
    Few(Vec<(Bytes, Bytes)>),
    Many(BTreeMap<Bytes, Bytes>),
}

impl Default for Map {
    fn default() -> Self {
        Self::Few(Vec::new())
    }
}

impl From<BTreeMap<Bytes, Bytes>> for Map {
    fn from(map: BTreeMap<Bytes, Bytes>) -> Self {
        match map.len() <= FEW_MAX {
            true => Self::Few(map.into_iter().collect()),
            false => Self::Many(map),
        }
    }
}

fn find(few: &[(Bytes, Bytes)], key: &[u8]) -> Result<usize, usize> {
    few.binary_search_by(|(other, _)| (**other).cmp(key))
}

impl Map {
    /// Bytes that a map of so many entries takes, beside what they refer to.
    pub(crate) fn memory_of(entries: usize) -> usize {
        match entries <= FEW_MAX {
            true => entries * ENTRY_BYTES,
            false => entries.div_ceil(NODE_ENTRIES) * NODE_BYTES,
        }
    }

    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Few(few) => few.len(),
            Self::Many(many) => many.len(),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    #[inline]
    pub(crate) fn get(&self, key: &[u8]) -> Option<&Bytes> {
        match self {
            Self::Few(few) => find(few, key).ok().map(|place| &few[place].1),
            Self::Many(many) => many.get(key),
        }
    }

    pub(crate) fn get_key_value(&self, key: &[u8]) -> Option<(&Bytes, &Bytes)> {
        match self {
            Self::Few(few) => find(few, key).ok().map(|place| (&few[place].0, &few[place].1)),
            Self::Many(many) => many.get_key_value(key),
        }
    }

    /// Sets a key; its value before.
    pub(crate) fn insert(&mut self, key: Bytes, value: Bytes) -> Option<Bytes> {
        let few = match self {
            Self::Few(few) => few,
            Self::Many(many) => return many.insert(key, value),
        };
        match find(few, &key) {
            Ok(place) => Some(std::mem::replace(&mut few[place].1, value)),
            Err(place) if few.len() < FEW_MAX => {
                if few.len() == few.capacity() {
                    // A vector's own first step is four.
                    few.reserve_exact(few.len().max(1));
                }
                few.insert(place, (key, value));
                None
            }
            Err(_) => {
                let entries = std::mem::take(few).into_iter();
                *self = Self::Many(entries.chain([(key, value)]).collect());
                None
            }
        }
    }

    /// Removes a key; its value.
    pub(crate) fn remove(&mut self, key: &[u8]) -> Option<Bytes> {
        match self {
            Self::Few(few) => find(few, key).ok().map(|place| few.remove(place).1),
            Self::Many(many) => many.remove(key),
        }
    }

    /// Shows all, in order.
    pub(crate) fn visit(&self, visit: &mut dyn FnMut(&[u8], &[u8])) {
        match self {
            Self::Few(few) => few.iter().for_each(|(key, value)| visit(key, value)),
            Self::Many(many) => many.iter().for_each(|(key, value)| visit(key, value)),
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Bytes, &Bytes)> {
        self.range((std::ops::Bound::Unbounded, std::ops::Bound::Unbounded))
    }
}

impl Sorted for Map {
    fn range(&self, bounds: Bounds<'_>) -> impl DoubleEndedIterator<Item = (&Bytes, &Bytes)> {
        let (few, many) = match self {
            Self::Few(few) => (within(few, bounds), None),
            Self::Many(many) => (&[][..], Some(many.range::<[u8], _>(bounds))),
        };
        few.iter().map(|(key, value)| (key, value)).chain(many.into_iter().flatten())
    }
}

/// The entries of a range, which is not one that ends before it starts.
fn within<'a>(few: &'a [(Bytes, Bytes)], (start, end): Bounds<'_>) -> &'a [(Bytes, Bytes)] {
    use std::ops::Bound::{Excluded, Included, Unbounded};
    let before = |key: &[u8]| few.partition_point(|(other, _)| **other < *key);
    let up_to = |key: &[u8]| few.partition_point(|(other, _)| **other <= *key);
    let from = match start {
        Included(key) => before(key),
        Excluded(key) => up_to(key),
        Unbounded => 0,
    };
    let to = match end {
        Included(key) => up_to(key),
        Excluded(key) => before(key),
        Unbounded => few.len(),
    };
    &few[from..to]
}

#[cfg(test)]
mod tests {
    use std::ops::Bound;

    use proptest::prelude::*;

    use super::*;

    fn bound() -> impl Strategy<Value = Bound<u8>> {
        let key = 0..16_u8;
        prop_oneof![
            key.clone().prop_map(Bound::Included),
            key.prop_map(Bound::Excluded),
            Just(Bound::Unbounded)
        ]
    }

    fn key_of(bound: Bound<&Bound<u8>>) -> Option<u8> {
        match bound {
            Bound::Included(Bound::Included(key) | Bound::Excluded(key)) => Some(*key),
            _ => None,
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..Default::default() })]

        /// As a tree, on its way from few to many.
        #[test]
        fn it_is_a_sorted_map(
            stored in 0..12_u8,
            steps in prop::collection::vec((0..16_u8, 0..7_u8), 0..60),
            start in bound(),
            end in bound(),
        ) {
            let bytes = |byte: u8| Bytes::copy_from_slice(&[byte]);
            let mut tree: BTreeMap<_, _> = (0..stored).map(|n| (bytes(n), bytes(n))).collect();
            let mut map = Map::from(tree.clone());
            let ends = [key_of(Bound::Included(&start)), key_of(Bound::Included(&end))];
            let in_order = match ends {
                [Some(start), Some(end)] => start < end,
                _ => true,
            };
            for (number, (key, what)) in (100..).zip(steps) {
                let key = bytes(key);
                match what {
                    0 => prop_assert_eq!(map.remove(&key), tree.remove(&key)),
                    _ => {
                        let value = bytes(number);
                        prop_assert_eq!(map.insert(key.clone(), value.clone()), tree.insert(key.clone(), value));
                    }
                }
                prop_assert_eq!(map.get(&key), tree.get(&key));
                prop_assert_eq!(map.get_key_value(&key), tree.get_key_value(&key));
                prop_assert_eq!((map.len(), map.is_empty()), (tree.len(), tree.is_empty()));
                prop_assert!(map.iter().eq(tree.iter()));
                let mut shown = BTreeMap::new();
                map.visit(&mut |key, value| {
                    shown.insert(Bytes::copy_from_slice(key), Bytes::copy_from_slice(value));
                });
                prop_assert_eq!(&shown, &tree);
                if in_order {
                    let (start, end) = (start.map(|key| [key]), end.map(|key| [key]));
                    let bounds: Bounds<'_> = (start.as_ref().map(|key| &key[..]), end.as_ref().map(|key| &key[..]));
                    prop_assert!(map.range(bounds).eq(tree.range::<[u8], _>(bounds)));
                    prop_assert!(map.range(bounds).rev().eq(tree.range::<[u8], _>(bounds).rev()));
                }
            }
        }
    }
}
