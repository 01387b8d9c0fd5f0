//! How frames and entries say for which namespace their object counts ([`NamespaceTag`]): in the two highest bits of the
//! length of the namespace's name.
//!
//! | bits | the tag is |
//! |---|---|
//! | 0 | none |
//! | 0x4000 | that of the name, which is there |
//! | 0x8000 | in the 8 bytes before the name: of a delta, which says no name, or one that was named later |

use super::{Rejected, get_u64};
use crate::ids::NamespaceTag;

const OF_NAME: u16 = 1 << 14;
const APART: u16 = 1 << 15;
const LENGTH: u16 = OF_NAME - 1;
/// Bytes of a tag that stands apart.
pub(super) const TAG_BYTES: usize = 8;

/// A tag as it is written beside a namespace's name.
pub(super) struct Tagged {
    bits: u16,
    tag: NamespaceTag,
}

impl Tagged {
    pub(super) fn new(tag: NamespaceTag, name: &[u8]) -> Self {
        let bits = match tag {
            NamespaceTag::NONE => 0,
            tag if !name.is_empty() && tag == NamespaceTag::of_bytes(name) => OF_NAME,
            _ => APART,
        };
        Self { bits, tag }
    }

    /// The length's field.
    pub(super) fn field(&self, length: u16) -> u16 {
        assert!(length <= LENGTH, "names that are too long are not kept");
        length | self.bits
    }

    /// Bytes before the name.
    pub(super) fn bytes(&self) -> usize {
        apart_bytes(self.bits)
    }

    pub(super) fn put(&self, out: &mut Vec<u8>) {
        if self.bits & APART != 0 {
            out.extend_from_slice(&self.tag.0.to_le_bytes());
        }
    }
}

/// Bytes of the name that a length's field speaks of.
pub(super) fn name_bytes(field: u16) -> usize {
    usize::from(field & LENGTH)
}

/// Bytes before the name.
pub(super) fn apart_bytes(field: u16) -> usize {
    if field & APART != 0 { TAG_BYTES } else { 0 }
}

/// Reads the tag: `apart` are the bytes before the name.
pub(super) fn read(field: u16, apart: &[u8], name: &[u8]) -> Result<NamespaceTag, Rejected> {
    let tag = match field & !LENGTH {
        0 => return Ok(NamespaceTag::NONE),
        OF_NAME if !name.is_empty() => NamespaceTag::of_bytes(name),
        APART => NamespaceTag(get_u64(apart, 0)),
        _ => return Err(Rejected::Malformed("tag of a namespace")),
    };
    // There is one way to write each.
    match Tagged::new(tag, name).bits == field & !LENGTH {
        true => Ok(tag),
        false => Err(Rejected::Malformed("tag of a namespace")),
    }
}
