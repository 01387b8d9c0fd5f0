//! What threads share is built from these, so that loom can stand in for them: the only file that
//! knows `cfg(dormouse_loom)`, beside the models themselves and the io_uring disk, which does not
//! compile under loom.

#[cfg(not(dormouse_loom))]
pub(crate) use crossbeam_queue::ArrayQueue;
#[cfg(dormouse_loom)]
pub(crate) use loom::sync::{
    Condvar, Mutex,
    atomic::{AtomicBool, AtomicU64, Ordering, fence},
};
#[cfg(not(dormouse_loom))]
pub(crate) use std::sync::{
    Condvar, Mutex,
    atomic::{AtomicBool, AtomicU64, Ordering, fence},
};

#[cfg(dormouse_loom)]
pub(crate) use stand_in::{ArrayQueue, SharedMap};

/// A map that any thread may read without a lock.
#[cfg(not(dormouse_loom))]
pub(crate) struct SharedMap<K, V>(papaya::HashMap<K, V, foldhash::fast::FixedState>);

#[cfg(not(dormouse_loom))]
impl<K: Ord + std::hash::Hash, V> SharedMap<K, V> {
    pub(crate) fn new() -> Self {
        Self(papaya::HashMap::with_hasher(foldhash::fast::FixedState::default()))
    }

    pub(crate) fn read<T>(&self, key: &K, read: impl FnOnce(&V) -> T) -> Option<T> {
        self.0.pin().get(key).map(read)
    }

    pub(crate) fn insert(&self, key: K, value: V) {
        self.0.pin().insert(key, value);
    }

    /// What it held goes when no thread reads it any more, and a few others are to go.
    pub(crate) fn remove(&self, key: &K) {
        self.0.pin().remove(key);
    }
}

/// A queue that loom can look into, in the place of crossbeam's; and a map, in the place of papaya's.
#[cfg(dormouse_loom)]
mod stand_in {
    use std::collections::{BTreeMap, VecDeque};

    use loom::sync::Mutex;

    pub(crate) struct ArrayQueue<T> {
        items: Mutex<VecDeque<T>>,
        capacity: usize,
    }

    impl<T> ArrayQueue<T> {
        pub(crate) fn new(capacity: usize) -> Self {
            Self { items: Mutex::new(VecDeque::new()), capacity }
        }

        pub(crate) fn push(&self, item: T) -> Result<(), T> {
            let mut items = self.items.lock().expect("no code panics under it");
            if items.len() == self.capacity {
                return Err(item);
            }
            items.push_back(item);
            Ok(())
        }

        pub(crate) fn pop(&self) -> Option<T> {
            self.items.lock().expect("no code panics under it").pop_front()
        }

        pub(crate) fn len(&self) -> usize {
            self.items.lock().expect("no code panics under it").len()
        }

        pub(crate) fn is_empty(&self) -> bool {
            self.items.lock().expect("no code panics under it").is_empty()
        }
    }

    pub(crate) struct SharedMap<K, V>(Mutex<BTreeMap<K, V>>);

    impl<K: Ord, V> SharedMap<K, V> {
        pub(crate) fn new() -> Self {
            Self(Mutex::new(BTreeMap::new()))
        }

        pub(crate) fn read<T>(&self, key: &K, read: impl FnOnce(&V) -> T) -> Option<T> {
            self.0.lock().expect("no code panics under it").get(key).map(read)
        }

        pub(crate) fn insert(&self, key: K, value: V) {
            self.0.lock().expect("no code panics under it").insert(key, value);
        }

        pub(crate) fn remove(&self, key: &K) {
            self.0.lock().expect("no code panics under it").remove(key);
        }
    }
}
