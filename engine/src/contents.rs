//! What an object holds, outside the log: [`Contents`] as an activation brings it, and
//! [`Resident`], how whoever keeps it in memory shows it to the log when it writes a new image.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use crate::batch::{AlarmChange, Batch, Op};
use crate::ids::Version;

/// Where an object's id comes from, as far as known: kept in its images, so that a store can tell
/// what is in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// The namespace.
    pub namespace: Option<Arc<str>>,
    /// The name that the id was made from.
    pub name: Option<Arc<str>>,
}

impl Origin {
    /// Takes over what `other` knows and this does not.
    pub fn learn(&mut self, other: &Self) {
        let learn = |mine: &mut Option<Arc<str>>, other: &Option<Arc<str>>| {
            if mine.is_none() {
                mine.clone_from(other);
            }
        };
        learn(&mut self.namespace, &other.namespace);
        learn(&mut self.name, &other.name);
    }
}

/// Everything that one object stores, at one version.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// The version; [`Version::NONE`] for an object that does not exist.
    pub version: Version,
    /// Keys and values in order of the keys' bytes.
    pub map: BTreeMap<Bytes, Bytes>,
    /// The alarm, in milliseconds since 1970.
    pub alarm: Option<u64>,
    /// Its namespace and name, where known.
    pub origin: Origin,
}

impl Contents {
    /// Applies a batch that was committed as `version`.
    pub fn apply(&mut self, batch: &Batch, version: Version) {
        assert!(version > self.version);
        self.version = version;
        let before = std::mem::replace(&mut self.origin, batch.origin().clone());
        self.origin.learn(&before);
        if batch.deletes_all() {
            self.map.clear();
        }
        for op in batch.ops() {
            match op {
                Op::Put(key, value) => {
                    self.map.insert(Bytes::copy_from_slice(key), Bytes::copy_from_slice(value));
                }
                Op::Delete(key) => {
                    self.map.remove(key);
                }
            }
        }
        match batch.alarm() {
            AlarmChange::Keep => {}
            AlarmChange::Clear => self.alarm = None,
            AlarmChange::Set(at) => self.alarm = Some(at),
        }
    }

    /// Bytes of keys and values.
    pub fn bytes(&self) -> usize {
        self.map.iter().map(|(key, value)| key.len() + value.len()).sum()
    }
}

/// The keys of an object that is in memory, *as they are after the batch that is being
/// committed*. The log asks for them when it writes an image instead of a delta.
pub trait Resident {
    /// Number of keys, and bytes of all keys and values.
    fn size(&self) -> (usize, usize);

    /// Calls `visit` for each key and value, in order of the keys.
    fn visit(&self, visit: &mut dyn FnMut(&[u8], &[u8]));

    /// Namespace and name, where known.
    fn origin(&self) -> &Origin;
}

impl Resident for Contents {
    fn size(&self) -> (usize, usize) {
        (self.map.len(), self.bytes())
    }

    fn visit(&self, visit: &mut dyn FnMut(&[u8], &[u8])) {
        self.map.iter().for_each(|(key, value)| visit(key, value));
    }

    fn origin(&self) -> &Origin {
        &self.origin
    }
}
