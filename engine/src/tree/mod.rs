//! Large objects: a copy-on-write B+tree of pages of any size, in frames of the log (docs/design.md, 3.3).
//!
//! An object whose keys and values take more than [`Limits::image_bytes_max`] is written as a tree when an
//! image of it would be: its pages and large values as parts, then the image, which holds the root. Commits are
//! deltas on it, as on any image. What deltas say gathers in the root when their chain has grown, and goes
//! into the pages when there is enough of it, so that a page is not written anew for each key.
//!
//! | | |
//! |---|---|
//! | [`page`](crate::format::page) | the bytes of a page |
//! | `draft` | a tree that is not written yet, and how changes are put into its pages |
//! | `update` | which pages are read for that |
//! | `walk` | keys in order, a few pages at a time |
//! | [`crate::snapshot`] | the object as a whole: tree, operations that wait in the root, deltas |
//!
//! Invariants:
//!
//! - Pages are never changed: a new one takes the place of an old one, and of those above it up to the root.
//! - A page belongs to one object and, below one root, to one parent.
//! - The root's frame says what all pages and values amount to in each segment; the directory's entry says the
//!   same, so that live bytes stay exact without a look at any page ([`crate::live`]).

mod draft;
mod read;
mod update;
mod walk;

pub(crate) use draft::{Draft, PageSizes, Pushed};
pub(crate) use read::{frames, get, values};
pub(crate) use update::{Moving, Updated, update};
pub(crate) use walk::{Batch as WalkBatch, Walk};

use bytes::Bytes;

use crate::batch::{Op, Ops};
use crate::directory::merged;
use crate::error::{Error, Result};
use crate::format::frame::{self, Kind, Share};
use crate::format::len_u32;
use crate::format::page::{Page, decode_root, decode_value};
use crate::ids::{Incarnation, ObjectId};
#[expect(unused_imports, reason = "for the documentation")]
use crate::limits::Limits;

/// The root of a tree, as its frame holds it.
#[derive(Clone, Debug)]
pub(crate) struct Root {
    pub(crate) page: Page,
    /// What all pages and values below it amount to.
    pub(crate) kept: Vec<Share>,
}

impl Root {
    /// Reads the payload of an image that is a tree, of which its frame says what it keeps; the operations that
    /// wait in it, too.
    pub(crate) fn read(kept: Vec<Share>, payload: &Bytes, id: &ObjectId) -> Result<(Self, Bytes)> {
        let malformed = |why| Error::corrupt(format!("object {id}: the root of its tree: {why}"));
        let (operations, page) = decode_root(payload).map_err(malformed)?;
        // A segment is named for each batch that was written.
        let kept = merged(kept.into_iter());
        Ok((Self { page, kept }, operations))
    }

    /// Bytes of all pages and values.
    pub(crate) fn bytes(&self) -> u64 {
        self.kept.iter().map(|share| u64::from(share.bytes)).sum()
    }
}

/// What a commit, or what waits in a root, does to a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Put(Bytes),
    Delete,
    /// Nothing: but pages on the way to it may have to move.
    Touch,
}

/// Shows the keys that lead to the pages and values among these frames, the first of which lies at `offset`
/// of its segment; what can't be read is left out.
pub(crate) fn keys_in(
    frames: &[u8],
    incarnation: Incarnation,
    offset: usize,
    mut visit: impl FnMut(ObjectId, Bytes),
) {
    let mut at = 0;
    while let Ok(bytes) = frame::peek_bytes(&frames[at..]) {
        if frame::peek_is_of_tree(&frames[at..])
            && let Ok(frame) = frame::decode(&frames[at..], incarnation, len_u32(offset + at))
        {
            let payload = Bytes::copy_from_slice(frame.payload);
            let key = match frame.kind {
                Kind::Page => Page::decode(&payload).ok().and_then(|page| page.first().cloned()),
                _ => decode_value(&payload).ok().map(|(key, _)| key),
            };
            key.into_iter().for_each(|key| visit(frame.object, key));
        }
        at += bytes;
    }
}

/// Malformed operations of an object.
pub(crate) fn malformed(id: &ObjectId) -> Error {
    Error::corrupt(format!("object {id}: malformed operations"))
}

/// The operations in `bytes`.
pub(crate) fn ops<'a>(bytes: &'a [u8], id: &'a ObjectId) -> impl Iterator<Item = Result<Op<'a>>> {
    Ops::new(bytes).map(move |op| op.map_err(|_| malformed(id)))
}
