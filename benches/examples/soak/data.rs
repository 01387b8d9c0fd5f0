//! What the store holds: objects of three sizes, and for each key a value that says which one it is and how often
//! it was written.

use dormouse_engine::ObjectId;

/// Objects of one size.
#[derive(Clone, Copy)]
pub(crate) struct Class {
    /// Keys of each.
    pub(crate) keys: usize,
    /// Bytes of a value, on average.
    pub(crate) value_bytes: usize,
    /// Of 100 bytes in the store, those in objects of this class.
    percent: u64,
    /// Of 100 commits, those to objects of this class.
    pub(crate) commits: u64,
    /// Of so many commits to an object one writes all of it anew.
    pub(crate) anew: u64,
}

/// Some kilobyte, some ten, and two megabytes: the last are trees.
pub(crate) const CLASSES: [Class; 3] = [
    Class { keys: 4, value_bytes: 300, percent: 30, commits: 60, anew: 64 },
    Class { keys: 16, value_bytes: 2 << 10, percent: 35, commits: 30, anew: 64 },
    Class { keys: 256, value_bytes: 8 << 10, percent: 35, commits: 10, anew: 512 },
];

/// One object.
#[derive(Clone, Copy)]
pub(crate) struct Object {
    pub(crate) id: ObjectId,
    pub(crate) class: usize,
    /// The number of its first key among all keys.
    pub(crate) first: usize,
}

impl Object {
    pub(crate) fn keys(&self) -> usize {
        CLASSES[self.class].keys
    }
}

/// All objects.
pub(crate) struct Plan {
    objects: Vec<Object>,
    slots: usize,
}

impl Plan {
    /// So many bytes of values.
    pub(crate) fn new(bytes: u64) -> Self {
        let (mut objects, mut slots) = (Vec::new(), 0);
        for (number, class) in CLASSES.iter().enumerate() {
            let each = (class.keys * class.value_bytes) as u64;
            for _ in 0..(bytes * class.percent / 100 / each).max(1) {
                let id = id(objects.len() as u64);
                objects.push(Object { id, class: number, first: slots });
                slots += class.keys;
            }
        }
        Self { objects, slots }
    }

    pub(crate) fn objects(&self) -> &[Object] {
        &self.objects
    }

    /// Keys of all objects.
    pub(crate) fn slots(&self) -> usize {
        self.slots
    }

    /// Bytes of all values, on average.
    pub(crate) fn bytes(&self) -> u64 {
        let each = |object: &Object| (object.keys() * CLASSES[object.class].value_bytes) as u64;
        self.objects.iter().map(each).sum()
    }
}

fn id(number: u64) -> ObjectId {
    let mut bytes = [0; 32];
    for (at, word) in (1..).zip(bytes.chunks_exact_mut(8)) {
        word.copy_from_slice(&mixed(number.wrapping_mul(4) + at).to_le_bytes());
    }
    ObjectId::from_bytes(bytes)
}

/// SplitMix64's finalizer.
pub(crate) fn mixed(number: u64) -> u64 {
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

/// A sequence of numbers.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(mixed(seed.wrapping_add(0x9e37_79b9_7f4a_7c15)))
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mixed(self.0) % bound
    }
}

pub(crate) fn key(number: usize) -> String {
    format!("key-{number:06}")
}

/// The value of a key when it is written for the `stamp`th time: half to one and a half times what its class
/// says.
pub(crate) fn value(slot: usize, class: usize, stamp: u64) -> Vec<u8> {
    let mean = CLASSES[class].value_bytes as u64;
    let mut random = Random::new((slot as u64) << 32 ^ stamp);
    let bytes = usize::try_from(mean / 2 + random.below(mean)).expect("small");
    let mut value = Vec::with_capacity(bytes + 8);
    value.extend_from_slice(&stamp.to_le_bytes());
    value.extend_from_slice(&(slot as u64).to_le_bytes());
    while value.len() < bytes {
        value.extend_from_slice(&random.below(u64::MAX).to_le_bytes());
    }
    value.truncate(bytes);
    value
}

/// How often the key was written whose value this is; `None` if it is no value that was ever written to it.
pub(crate) fn stamp(slot: usize, class: usize, found: &[u8]) -> Option<u64> {
    let stamp = u64::from_le_bytes(found.get(..8)?.try_into().ok()?);
    (value(slot, class, stamp) == found).then_some(stamp)
}
