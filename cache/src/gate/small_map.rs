//! [`SmallMap`]: a sorted map of few entries, which costs an idle object little.
//!
//! A B-tree keeps a node of eleven entries, also when it is empty again. Keys here rise, and mostly the
//! oldest goes first, so that entries come at the back of a queue and leave at its front.

use std::collections::VecDeque;

/// A map in the order of its keys.
#[derive(Debug)]
pub(crate) struct SmallMap<K, V>(VecDeque<(K, V)>);

/// What an empty map keeps room for at most.
const ROOM_MAX: usize = 8;

impl<K, V> Default for SmallMap<K, V> {
    fn default() -> Self {
        Self(VecDeque::new())
    }
}

impl<K: Ord + Copy, V> SmallMap<K, V> {
    /// A map of one entry, and no room for more.
    pub(crate) fn of(key: K, value: V) -> Self {
        let mut entries = VecDeque::with_capacity(1);
        entries.push_back((key, value));
        Self(entries)
    }

    fn find(&self, key: K) -> Result<usize, usize> {
        // Mostly it is the only one, or newer than all.
        match self.0.back() {
            None => Err(0),
            Some((last, _)) if *last == key => Ok(self.0.len() - 1),
            Some((last, _)) if *last < key => Err(self.0.len()),
            Some(_) => self.0.binary_search_by_key(&key, |(key, _)| *key),
        }
    }

    pub(crate) fn get(&self, key: K) -> Option<&V> {
        self.find(key).ok().map(|at| &self.0[at].1)
    }

    pub(crate) fn get_mut(&mut self, key: K) -> Option<&mut V> {
        self.find(key).ok().map(|at| &mut self.0[at].1)
    }

    /// The value of a key, which is entered if it is not there.
    pub(crate) fn or_default(&mut self, key: K) -> &mut V
    where
        V: Default,
    {
        let at = self.find(key).unwrap_or_else(|at| {
            self.0.insert(at, (key, V::default()));
            at
        });
        &mut self.0[at].1
    }

    /// Sets the value of a key.
    pub(crate) fn insert(&mut self, key: K, value: V) {
        match self.find(key) {
            Ok(at) => self.0[at].1 = value,
            Err(at) => self.0.insert(at, (key, value)),
        }
    }

    pub(crate) fn remove(&mut self, key: K) -> Option<V> {
        let removed = self.0.remove(self.find(key).ok()?);
        self.shrink();
        removed.map(|(_, value)| value)
    }

    pub(crate) fn retain(&mut self, mut keep: impl FnMut(K, &mut V) -> bool) {
        self.0.retain_mut(|(key, value)| keep(*key, value));
        self.shrink();
    }

    /// A burst leaves no room behind.
    fn shrink(&mut self) {
        if self.0.is_empty() && self.0.capacity() > ROOM_MAX {
            self.0.shrink_to(ROOM_MAX);
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn values(&self) -> impl Iterator<Item = &V> {
        self.0.iter().map(|(_, value)| value)
    }

    pub(crate) fn values_mut(&mut self) -> impl Iterator<Item = &mut V> {
        self.0.iter_mut().map(|(_, value)| value)
    }

    pub(crate) fn into_values(self) -> impl Iterator<Item = V> {
        self.0.into_iter().map(|(_, value)| value)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_a_map(operations in prop::collection::vec((0_u8..4, 0_u64..40, any::<u8>()), 0..200)) {
            let (mut small, mut model) = (SmallMap::default(), BTreeMap::new());
            for (operation, key, value) in operations {
                match operation {
                    0 => {
                        small.insert(key, value);
                        model.insert(key, value);
                    }
                    1 => prop_assert_eq!(small.remove(key), model.remove(&key)),
                    2 => prop_assert_eq!(small.or_default(key), model.entry(key).or_default()),
                    _ => {
                        small.retain(|key, _| key % 7 != u64::from(value % 7));
                        model.retain(|key, _| key % 7 != u64::from(value % 7));
                    }
                }
                prop_assert_eq!(small.get(key), model.get(&key));
                prop_assert_eq!(small.get_mut(key), model.get_mut(&key));
                prop_assert_eq!(small.len(), model.len());
                prop_assert!(small.values().eq(model.values()));
            }
            prop_assert!(small.into_values().eq(model.into_values()));
        }
    }
}
