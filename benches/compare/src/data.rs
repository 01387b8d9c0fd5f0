//! The keys and values of docs/performance.md section 2: 16 random bytes of object id, 12 bytes of
//! key, 100 incompressible bytes of value.
//!
//! Everything follows from a seed, which differs in every round: an engine that skips bytes which
//! are there already gains nothing.

/// Bytes of an object's id in the peers; Dormouse's has 32.
pub(crate) type Id = [u8; 16];
/// Bytes of a key.
pub(crate) type Key = [u8; 12];

/// Keys of an ordinary object.
pub(crate) const KEYS: u64 = 4;
/// Keys of the large object, which lists and gets of W4 and W6 read.
pub(crate) const LIST_KEYS: u64 = 1_000;
/// Keys of the hot object of W4.
pub(crate) const HOT_KEYS: u64 = 10_000;
/// Bytes that a key counts as in amplifications: id, key and value.
pub(crate) const PUT_BYTES: u64 = 128;

/// What one put sets.
#[derive(Clone, Copy)]
pub(crate) struct Put {
    pub object: Id,
    pub key: Key,
    pub value: [u8; 100],
}

/// A small generator (SplitMix64): fast enough to cost nothing beside a commit.
#[derive(Clone)]
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub(crate) fn value(&mut self) -> [u8; 100] {
        let mut value = [0; 100];
        for chunk in value.chunks_mut(8) {
            chunk.copy_from_slice(&self.next().to_le_bytes()[..chunk.len()]);
        }
        value
    }

    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            let other = self.below(last as u64 + 1);
            items.swap(last, usize::try_from(other).expect("an index"));
        }
    }
}

fn mix(mut word: u64) -> u64 {
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// The id of object `number`: as good as random, and the same in every process of a round.
pub(crate) fn id(number: u64) -> Id {
    let mut id = [0; 16];
    id[..8].copy_from_slice(&mix(number ^ 0x5bd1_e995_0000_0001).to_le_bytes());
    id[8..].copy_from_slice(&mix(number.wrapping_add(0x1234_5678_9abc_def0)).to_le_bytes());
    id
}

/// Stands for the object of [`LIST_KEYS`] keys.
pub(crate) const LIST_OBJECT: u64 = u64::MAX;
/// Stands for the object of [`HOT_KEYS`] keys.
pub(crate) const HOT_OBJECT: u64 = u64::MAX - 1;
/// Stands for the object that W1 puts to.
pub(crate) const ONE_OBJECT: u64 = 0;

/// Key `number` of any object, in the order of numbers.
pub(crate) fn key(number: u64) -> Key {
    let mut key = *b"key-00000000";
    let mut rest = number;
    for digit in key[4..].iter_mut().rev() {
        *digit = b'0' + u8::try_from(rest % 10).expect("a digit");
        rest /= 10;
    }
    key
}

/// A put of key `number` of object `object` with a new value.
pub(crate) fn put(rng: &mut Rng, object: u64, number: u64) -> Put {
    Put { object: id(object), key: key(number), value: rng.value() }
}

/// A put to a random key of a random object of the loaded ones.
pub(crate) fn random_put(rng: &mut Rng, objects: u64) -> Put {
    let (object, number) = (rng.below(objects), rng.below(KEYS));
    put(rng, object, number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_differ_and_keys_are_ordered() {
        let mut ids: Vec<_> = (0..1_000).chain([LIST_OBJECT, HOT_OBJECT]).map(id).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), 1_002);
        assert_eq!(&key(12_345), b"key-00012345");
        assert!(key(99) < key(100));
    }

    #[test]
    fn rounds_write_different_bytes() {
        assert_ne!(Rng::new(1).value(), Rng::new(2).value());
        assert_eq!(Rng::new(1).value(), Rng::new(1).value());
    }
}
