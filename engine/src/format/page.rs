//! Pages of a large object's tree (`engine/src/tree`), and values that lie in frames of their own.
//!
//! The payload of a page:
//!
//! | offset | size | field | range |
//! |---|---|---|---|
//! | 0 | 2 | entries `n` | 1.. |
//! | 2 | 1 | level | 0 for a leaf |
//! | 3 | | `n` entries, by rising keys | |
//!
//! An entry of a leaf is a key and its value; the value of a large one lies in a frame of its own:
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 2 | key bytes `k` |
//! | 2 | 4 | value bytes `v`; bit 31: it lies in a frame of its own |
//! | 6 | k | key |
//! | 6 + k | v, or 12 | value, or the address of its frame |
//!
//! An entry of an inner page is a child, a page of the next lower level. No key in it is below the
//! separator, but in the first child; none reaches the separator of the next one:
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 2 | separator bytes `k` |
//! | 2 | 12 | address of the child |
//! | 14 | k | separator |
//!
//! The payload of a value frame is key bytes (2), key, value. That of an image that is a tree: bytes of
//! operations (4), operations ([`crate::batch`]) that are not in the tree yet, and its root, as a page.

use bytes::Bytes;

use super::frame::{ADDRESS_BYTES, Address};
use super::{Rejected, get, get_u16, get_u32, len_u32};

const HEADER_BYTES: usize = 3;
/// Bytes of an entry of a leaf beside key and value.
pub const LEAF_ENTRY_BYTES: usize = 6;
/// Bytes of an entry of an inner page beside the separator.
pub const CHILD_BYTES: usize = 2 + ADDRESS_BYTES;
const APART: u32 = 1 << 31;
const MALFORMED: Rejected = Rejected::Malformed("page");

/// The value of a key in a leaf.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// The value.
    Inline(Bytes),
    /// It lies in a frame of its own.
    Apart {
        /// The frame.
        address: Address,
        /// Bytes of the value.
        bytes: u32,
    },
}

/// What a page holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Page {
    /// Keys and values.
    Leaf(Vec<(Bytes, Value)>),
    /// Level (1..), and children with their separators.
    Inner(u8, Vec<(Bytes, Address)>),
}

impl Page {
    /// 0 for a leaf.
    pub fn level(&self) -> u8 {
        match self {
            Self::Leaf(_) => 0,
            Self::Inner(level, _) => *level,
        }
    }

    /// Its first key, or separator.
    pub fn first(&self) -> Option<&Bytes> {
        match self {
            Self::Leaf(entries) => entries.first().map(|(key, _)| key),
            Self::Inner(_, children) => children.first().map(|(key, _)| key),
        }
    }

    /// Appends the payload to `out`. Gives the offsets in `out` of the addresses that it holds.
    pub fn encode(&self, out: &mut Vec<u8>) -> Vec<u32> {
        let mut links = Vec::new();
        let len16 = |len: usize| u16::try_from(len).expect("checked by the writer").to_le_bytes();
        let head = |out: &mut Vec<u8>, entries: usize| {
            assert!(entries > 0, "no page is empty");
            out.extend_from_slice(&len16(entries));
            out.push(self.level());
        };
        match self {
            Self::Leaf(entries) => {
                head(out, entries.len());
                for (key, value) in entries {
                    out.extend_from_slice(&len16(key.len()));
                    let bytes = match value {
                        Value::Inline(value) => len_u32(value.len()),
                        Value::Apart { bytes, .. } => bytes | APART,
                    };
                    out.extend_from_slice(&bytes.to_le_bytes());
                    out.extend_from_slice(key);
                    match value {
                        Value::Inline(value) => out.extend_from_slice(value),
                        Value::Apart { address, .. } => {
                            links.push(len_u32(out.len()));
                            out.extend_from_slice(&address.encode());
                        }
                    }
                }
            }
            Self::Inner(level, children) => {
                assert!(*level > 0);
                head(out, children.len());
                for (separator, address) in children {
                    out.extend_from_slice(&len16(separator.len()));
                    links.push(len_u32(out.len()));
                    out.extend_from_slice(&address.encode());
                    out.extend_from_slice(separator);
                }
            }
        }
        links
    }

    /// Reads a page that fills all of `payload`, which it shares.
    pub fn decode(payload: &Bytes) -> Result<Self, Rejected> {
        let mut rest = Rest { bytes: payload, at: 0 };
        let head = rest.take(HEADER_BYTES)?;
        let (count, level) = (usize::from(get_u16(&head, 0)), head[2]);
        // Before room is made for them: no entry is shorter.
        if count == 0 || count > payload.len() / LEAF_ENTRY_BYTES {
            return Err(MALFORMED);
        }
        let page = match level {
            0 => Self::Leaf((0..count).map(|_| rest.entry()).collect::<Result<_, _>>()?),
            _ => Self::Inner(level, (0..count).map(|_| rest.child()).collect::<Result<_, _>>()?),
        };
        let rises = match &page {
            Self::Leaf(entries) => entries.is_sorted_by(|(a, _), (b, _)| a < b),
            Self::Inner(_, children) => children.is_sorted_by(|(a, _), (b, _)| a < b),
        };
        match rises && rest.at == payload.len() {
            true => Ok(page),
            false => Err(MALFORMED),
        }
    }
}

/// What is left of a payload.
struct Rest<'a> {
    bytes: &'a Bytes,
    at: usize,
}

impl Rest<'_> {
    fn take(&mut self, len: usize) -> Result<Bytes, Rejected> {
        let end = self.at + len;
        if end > self.bytes.len() {
            return Err(MALFORMED);
        }
        let taken = self.bytes.slice(self.at..end);
        self.at = end;
        Ok(taken)
    }

    fn address(&mut self) -> Result<Address, Rejected> {
        Address::decode(&get(&self.take(ADDRESS_BYTES)?, 0)).ok_or(MALFORMED)
    }

    fn entry(&mut self) -> Result<(Bytes, Value), Rejected> {
        let head = self.take(LEAF_ENTRY_BYTES)?;
        let (key, bytes) = (usize::from(get_u16(&head, 0)), get_u32(&head, 2));
        let key = self.take(key)?;
        let value = match bytes & APART {
            0 => Value::Inline(self.take(bytes as usize)?),
            _ => Value::Apart { address: self.address()?, bytes: bytes & !APART },
        };
        Ok((key, value))
    }

    fn child(&mut self) -> Result<(Bytes, Address), Rejected> {
        let key = usize::from(get_u16(&self.take(2)?, 0));
        let address = self.address()?;
        Ok((self.take(key)?, address))
    }
}

/// Appends the payload of the frame of a value to `out`.
pub fn encode_value(key: &[u8], value: &[u8], out: &mut Vec<u8>) {
    let len = u16::try_from(key.len()).expect("checked by the writer");
    out.extend_from_slice(&len.to_le_bytes());
    out.extend_from_slice(key);
    out.extend_from_slice(value);
}

/// Key and value of such a payload.
pub fn decode_value(payload: &Bytes) -> Result<(Bytes, Bytes), Rejected> {
    let mut rest = Rest { bytes: payload, at: 0 };
    let len = usize::from(get_u16(&rest.take(2)?, 0));
    let key = rest.take(len)?;
    Ok((key, payload.slice(rest.at..)))
}

/// Appends operations that are not in the tree yet, and the root, to `out`. Gives the offsets in `out` of
/// the addresses that it holds.
pub fn encode_root(operations: &[u8], root: &Page, out: &mut Vec<u8>) -> Vec<u32> {
    out.extend_from_slice(&len_u32(operations.len()).to_le_bytes());
    out.extend_from_slice(operations);
    root.encode(out)
}

/// Operations and root of the payload of an image that is a tree.
pub fn decode_root(payload: &Bytes) -> Result<(Bytes, Page), Rejected> {
    let mut rest = Rest { bytes: payload, at: 0 };
    let len = get_u32(&rest.take(4)?, 0) as usize;
    let operations = rest.take(len)?;
    Ok((operations, Page::decode(&payload.slice(rest.at..))?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(offset: u32) -> Address {
        Address { segment: 3, offset, bytes: 200 }
    }

    fn leaf() -> Page {
        let apart = Value::Apart { address: address(8), bytes: 70_000 };
        Page::Leaf(vec![
            ("".into(), Value::Inline("empty key".into())),
            ("a".into(), apart),
            ("b".into(), Value::Inline("".into())),
        ])
    }

    #[test]
    fn pages_are_read_as_written() {
        let inner = Page::Inner(2, vec![("".into(), address(16)), ("m".into(), address(24))]);
        for page in [leaf(), inner] {
            let mut bytes = vec![7; 5];
            let links = page.encode(&mut bytes);
            let payload = Bytes::from(bytes).slice(5..);
            assert_eq!(Page::decode(&payload), Ok(page.clone()));
            for at in links {
                let at = at as usize - 5;
                assert!(Address::decode(&get(&payload, at)).is_some());
            }
            for len in 0..payload.len() {
                assert!(Page::decode(&payload.slice(..len)).is_err(), "cut at {len}");
            }
        }
    }

    #[test]
    fn roots_and_values_are_read_as_written() {
        let mut bytes = Vec::new();
        encode_root(b"operations", &leaf(), &mut bytes);
        assert_eq!(decode_root(&bytes.into()), Ok(("operations".into(), leaf())));
        let mut bytes = Vec::new();
        encode_value(b"key", b"value", &mut bytes);
        assert_eq!(decode_value(&bytes.into()), Ok(("key".into(), "value".into())));
        assert!(decode_value(&Bytes::from_static(&[9, 0, 1])).is_err());
    }

    #[test]
    fn keys_out_of_order_and_no_entries_are_refused() {
        let value = || Value::Inline(Bytes::new());
        for keys in [["b", "a"], ["a", "a"]] {
            let page = Page::Leaf(keys.iter().map(|key| (Bytes::from(*key), value())).collect());
            let mut bytes = Vec::new();
            page.encode(&mut bytes);
            assert_eq!(Page::decode(&bytes.into()), Err(MALFORMED));
        }
        assert_eq!(Page::decode(&Bytes::from_static(&[0, 0, 0])), Err(MALFORMED));
    }
}
