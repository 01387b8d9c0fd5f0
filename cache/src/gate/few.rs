//! [`Few`]: a map that seldom has more than one entry, and mostly none.
//!
//! Every resident object has several of these for as long as it lives. A `BTreeMap` takes room for
//! eleven entries with its first one, and keeps it when it is empty again; here the first entry
//! needs none, nothing is kept, and what holds the others is one word until there are any.
//!
//! Invariant: the lone entry came when there was none. So if keys only ever rise, entries are in
//! the order of their keys.

use std::collections::BTreeMap;

#[derive(Debug)]
pub(crate) struct Few<K, V> {
    lone: Option<(K, V)>,
    #[expect(clippy::box_collection, reason = "a word of an idle object instead of three")]
    others: Option<Box<BTreeMap<K, V>>>,
}

impl<K, V> Default for Few<K, V> {
    fn default() -> Self {
        Self { lone: None, others: None }
    }
}

impl<K: Ord + Copy, V> Few<K, V> {
    pub(crate) fn is_empty(&self) -> bool {
        self.lone.is_none() && self.others.is_none()
    }

    pub(crate) fn len(&self) -> usize {
        usize::from(self.lone.is_some()) + self.others.as_ref().map_or(0, |others| others.len())
    }

    pub(crate) fn get(&self, key: K) -> Option<&V> {
        match &self.lone {
            Some((lone, value)) if *lone == key => Some(value),
            _ => self.others.as_ref()?.get(&key),
        }
    }

    pub(crate) fn get_mut(&mut self, key: K) -> Option<&mut V> {
        match &mut self.lone {
            Some((lone, value)) if *lone == key => Some(value),
            _ => self.others.as_mut()?.get_mut(&key),
        }
    }

    pub(crate) fn contains_key(&self, key: K) -> bool {
        self.get(key).is_some()
    }

    /// The entry of `key`, made of `Default` if there is none.
    pub(crate) fn or_default(&mut self, key: K) -> &mut V
    where
        V: Default,
    {
        if self.is_empty() {
            return &mut self.lone.insert((key, V::default())).1;
        }
        match &mut self.lone {
            Some((lone, value)) if *lone == key => value,
            _ => self.others.get_or_insert_default().entry(key).or_default(),
        }
    }

    pub(crate) fn insert(&mut self, key: K, value: V) {
        if self.is_empty() {
            self.lone = Some((key, value));
        } else if let Some(there) = self.get_mut(key) {
            *there = value;
        } else {
            self.others.get_or_insert_default().insert(key, value);
        }
    }

    pub(crate) fn remove(&mut self, key: K) -> Option<V> {
        if let Some((_, value)) = self.lone.take_if(|(lone, _)| *lone == key) {
            return Some(value);
        }
        let removed = self.others.as_mut()?.remove(&key);
        self.give_back();
        removed
    }

    /// The entry with the lowest key.
    pub(crate) fn pop_first(&mut self) -> Option<(K, V)> {
        let first = self.others.as_ref().and_then(|others| others.keys().next().copied());
        let lone = self.lone.take_if(|(lone, _)| first.is_none_or(|first| *lone < first));
        lone.or_else(|| Some((first?, self.remove(first?)?)))
    }

    /// Moves all of `other` here, which has none of these keys.
    pub(crate) fn append(&mut self, other: Self) {
        let Self { lone, others } = other;
        let others = others.into_iter().flat_map(|others| *others);
        lone.into_iter().chain(others).for_each(|(key, value)| self.insert(key, value));
    }

    pub(crate) fn retain(&mut self, mut keep: impl FnMut(&V) -> bool) {
        self.lone.take_if(|(_, value)| !keep(value));
        if let Some(others) = &mut self.others {
            others.retain(|_, value| keep(value));
            self.give_back();
        }
    }

    pub(crate) fn values(&self) -> impl Iterator<Item = &V> {
        self.lone
            .iter()
            .map(|(_, value)| value)
            .chain(self.others.iter().flat_map(|others| others.values()))
    }

    pub(crate) fn values_mut(&mut self) -> impl Iterator<Item = &mut V> {
        self.lone
            .iter_mut()
            .map(|(_, value)| value)
            .chain(self.others.iter_mut().flat_map(|others| others.values_mut()))
    }

    pub(crate) fn into_values(self) -> impl Iterator<Item = V> {
        let others = self.others.into_iter().flat_map(|others| others.into_values());
        self.lone.into_iter().map(|(_, value)| value).chain(others)
    }

    fn give_back(&mut self) {
        self.others.take_if(|others| others.is_empty());
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..Default::default() })]

        #[test]
        fn it_is_a_map(steps in prop::collection::vec((0..5_u8, 0..4_u8), 0..40)) {
            let (mut few, mut map) = (Few::default(), BTreeMap::new());
            for (number, (key, what)) in (0_u32..).zip(steps) {
                match what {
                    0 => {
                        few.insert(key, number);
                        map.insert(key, number);
                    }
                    1 => prop_assert_eq!(few.remove(key), map.remove(&key)),
                    2 if key == 0 => prop_assert_eq!(few.pop_first(), map.pop_first()),
                    2 => {
                        *few.or_default(key) += 1;
                        *map.entry(key).or_default() += 1;
                    }
                    _ => {
                        few.retain(|value| value % 3 != 0);
                        map.retain(|_, value| *value % 3 != 0);
                    }
                }
                for key in 0..5 {
                    prop_assert_eq!(few.get(key), map.get(&key));
                    prop_assert_eq!(few.get_mut(key), map.get_mut(&key));
                    prop_assert_eq!(few.contains_key(key), map.contains_key(&key));
                }
                prop_assert_eq!((few.len(), few.is_empty()), (map.len(), map.is_empty()));
                let sorted = |values: Vec<u32>| {
                    let mut values = values;
                    values.sort_unstable();
                    values
                };
                let all = sorted(map.values().copied().collect());
                prop_assert_eq!(sorted(few.values().copied().collect()), all.clone());
                prop_assert_eq!(sorted(few.values_mut().map(|value| *value).collect()), all);
            }
        }

        #[test]
        fn keys_that_rise_are_in_order(
            steps in prop::collection::vec(prop::option::of(0..9_u8), 0..40)
        ) {
            let mut few = Few::default();
            for (key, remove) in (0_u8..).zip(steps) {
                few.insert(key, key);
                if let Some(back) = remove {
                    few.remove(key.saturating_sub(back));
                }
            }
            let values: Vec<u8> = few.into_values().collect();
            prop_assert!(values.is_sorted());
        }
    }
}
