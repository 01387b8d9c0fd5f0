//! Object ids and the keys of namespaces.
//!
//! An id is a 16-byte base and a 16-byte check part that only the namespace's key can make.
//! Invariant: the check part of every [`Id`] belongs to its base under the key that made it.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use dormouse_engine::{Error, Kind, ObjectId, Result};
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

/// Bytes of each half of an id.
const HALF: usize = 16;

/// The id of an object, with the name that it was made of where there was one.
///
/// Ids with equal bytes are equal, whatever their names.
#[derive(Clone)]
pub struct Id {
    bytes: ObjectId,
    name: Option<Arc<str>>,
}

impl Id {
    /// The name given to [`NamespaceKey::id_from_name`]; `None` for every other id.
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// [`Id::name`], without a copy.
    pub(crate) fn shared_name(&self) -> Option<Arc<str>> {
        self.name.clone()
    }

    /// The id of an object that the engine names.
    pub(crate) const fn unnamed(bytes: ObjectId) -> Self {
        Self { bytes, name: None }
    }

    /// The 32 bytes, as the engine knows them.
    pub const fn object(&self) -> ObjectId {
        self.bytes
    }
}

impl PartialEq for Id {
    fn eq(&self, other: &Self) -> bool {
        self.bytes == other.bytes
    }
}

impl Eq for Id {}

impl Hash for Id {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.bytes.hash(state);
    }
}

/// 64 lower-case hexadecimal digits.
impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.bytes.fmt(f)
    }
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Id({self})")
    }
}

/// The secret of a namespace, which makes its ids and tells them from others'.
#[derive(Clone, PartialEq, Eq)]
pub struct NamespaceKey([u8; 32]);

impl NamespaceKey {
    /// The key of the namespace with this unique key: its SHA-256, unsalted.
    pub fn new(unique_key: &str) -> Self {
        Self(Sha256::digest(unique_key.as_bytes()).into())
    }

    /// The id of a name: always the same, without any look-up.
    pub fn id_from_name(&self, name: &str) -> Id {
        let bytes = self.complete(self.mac(name.as_bytes()));
        Id { bytes, name: Some(name.into()) }
    }

    /// A new id from 16 bytes of the caller's randomness.
    pub fn new_unique_id(&self, randomness: [u8; HALF]) -> Id {
        Id { bytes: self.complete(randomness), name: None }
    }

    /// The id that was printed as `text`; digits of either case.
    ///
    /// # Errors
    ///
    /// `id-malformed` unless 64 hexadecimal digits; `id-foreign` where the check part is
    /// not this namespace's.
    pub fn id_from_string(&self, text: &str) -> Result<Id> {
        let mut bytes = [0; ObjectId::BYTES];
        hex::decode_to_slice(text, &mut bytes).map_err(|_| {
            Error::coded(Kind::Invalid, "id-malformed", "an object id must be 64 hex digits")
        })?;
        let bytes = ObjectId::from_bytes(bytes);
        if !self.owns(bytes) {
            let message = format!("object id {bytes} is not valid for this namespace");
            return Err(Error::coded(Kind::Invalid, "id-foreign", message));
        }
        Ok(Id { bytes, name: None })
    }

    /// Whether this namespace made the id.
    pub fn owns(&self, id: ObjectId) -> bool {
        let (base, _) = id.as_bytes().split_first_chunk::<HALF>().expect("32 bytes");
        self.complete(*base) == id
    }

    /// The id of this base: the base and its check part.
    fn complete(&self, base: [u8; HALF]) -> ObjectId {
        let mut bytes = [0; ObjectId::BYTES];
        bytes[..HALF].copy_from_slice(&base);
        bytes[HALF..].copy_from_slice(&self.mac(&base));
        ObjectId::from_bytes(bytes)
    }

    /// The first 16 bytes of HMAC-SHA256 under this key.
    fn mac(&self, data: &[u8]) -> [u8; HALF] {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).expect("HMAC takes any key");
        mac.update(data);
        let full: [u8; 32] = mac.finalize().into_bytes().into();
        *full.first_chunk().expect("32 bytes")
    }
}

/// The key is a secret, so it is not printed.
impl fmt::Debug for NamespaceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NamespaceKey(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KV: &str = "dormouse-trace-kv";
    const SQL: &str = "dormouse-trace-sql";

    /// Ids recorded from workerd 1.20261117.1.
    const RECORDED: [(&str, &str, &str); 5] = [
        (KV, "", "8cd76d932e7fa0539933bf9e33ece24a137cc9eb4519badcc1290cc8172f7c90"),
        (KV, "a", "badaff717892b27e88c2e144518ccbae7e36841cfe84d806fc4b495505e63c2d"),
        (KV, "\0", "87fee79881ecd7eb89c827da13c6f9a97b1660378b8d2f6b02f06cf9cb7e939c"),
        (KV, "room-1", "2225079e58bee60f097055c8b2a88eb5647bd2d337894f77e8e5ad6c2e78452f"),
        (SQL, "😀", "56c3a3d2e871c6124ff84655613184bbdf308aab6aab9154b3685ae43551a392"),
    ];

    fn code(key: &NamespaceKey, text: &str) -> Option<&'static str> {
        key.id_from_string(text).expect_err("refused").code()
    }

    #[test]
    fn names_give_the_recorded_ids() {
        for (unique_key, name, text) in RECORDED {
            let key = NamespaceKey::new(unique_key);
            let id = key.id_from_name(name);
            assert_eq!(id.to_string(), text);
            assert_eq!(id.name(), Some(name));
            let read = key.id_from_string(&text.to_uppercase()).expect("own id");
            assert_eq!((&read, read.name()), (&id, None));
            assert_eq!(read.to_string(), text);
        }
    }

    #[test]
    fn malformed_text_is_refused() {
        let key = NamespaceKey::new(KV);
        let good = RECORDED[1].2;
        let (long, bad) = (format!("{good}0"), format!("{}g", &good[..63]));
        for text in ["", &good[..63], &good[..62], &long, &bad] {
            assert_eq!(code(&key, text), Some("id-malformed"), "{text}");
        }
    }

    #[test]
    fn foreign_ids_are_refused() {
        let key = NamespaceKey::new(KV);
        assert_eq!(code(&key, RECORDED[4].2), Some("id-foreign"));
        let good = *key.id_from_name("a").object().as_bytes();
        for bit in 0..256 {
            let mut bytes = good;
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(code(&key, &hex::encode(bytes)), Some("id-foreign"), "bit {bit}");
        }
    }

    #[test]
    fn unique_ids_follow_their_randomness() {
        let key = NamespaceKey::new(KV);
        let (one, two) = (key.new_unique_id([1; 16]), key.new_unique_id([2; 16]));
        assert_ne!(one, two);
        assert_eq!(one, key.new_unique_id([1; 16]));
        assert_eq!(one.name(), None);
        assert!(key.owns(one.object()));
    }
}
