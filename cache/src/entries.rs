//! [`Entries`]: what a list gives.
//!
//! Handles of keys and values would cost two atomic counts for each entry when they are made, and
//! two more when they go: of a thousand small entries that takes six times as long as to copy them
//! into one buffer. So small values are copied, and only large ones are handles.
//!
//! Invariant: an entry of `large` is that of a place without a value in the buffer, and each such
//! place has one, in the order of the places.

use std::fmt;

use bytes::Bytes;

/// Values up to so many bytes are copied: as much as fits into the time of a handle's counts.
const COPIED_MAX: usize = 1024;

/// The keys and values that a list gives, in its order.
///
/// Most of them lie in one buffer. Handles that are taken of it ([`IntoIterator`]) keep all of it.
#[derive(Clone, Default)]
pub struct Entries {
    /// Keys and copied values, one after the other.
    text: Bytes,
    places: Vec<Place>,
    /// Values that were not copied, by the number of their place.
    large: Vec<(usize, Bytes)>,
}

/// Where a key and its value end; the key begins where the place before ends.
#[derive(Clone, Copy)]
struct Place {
    key_end: usize,
    end: usize,
}

/// How much room entries take.
#[derive(Default)]
pub(crate) struct Size {
    places: usize,
    bytes: usize,
}

impl Size {
    #[inline]
    pub(crate) fn add(&mut self, key: &[u8], value: &[u8]) {
        self.places += 1;
        self.bytes += key.len() + if is_large(value) { 0 } else { value.len() };
    }

    /// Room for what was added, which is then to be pushed.
    pub(crate) fn reserve(self) -> Builder {
        let (text, places) = (Vec::with_capacity(self.bytes), Vec::with_capacity(self.places));
        Builder { size: self, text, places, large: Vec::new() }
    }
}

/// Entries that are being put together.
pub(crate) struct Builder {
    size: Size,
    text: Vec<u8>,
    places: Vec<Place>,
    large: Vec<(usize, Bytes)>,
}

impl Builder {
    #[inline]
    pub(crate) fn push(&mut self, key: &Bytes, value: &Bytes) {
        self.text.extend_from_slice(key);
        let key_end = self.text.len();
        match is_large(value) {
            true => self.large.push((self.places.len(), value.clone())),
            false => self.text.extend_from_slice(value),
        }
        self.places.push(Place { key_end, end: self.text.len() });
    }

    pub(crate) fn finish(self) -> Entries {
        let Self { size, text, places, large } = self;
        assert!((places.len(), text.len()) == (size.places, size.bytes), "what was added");
        Entries { text: text.into(), places, large }
    }
}

/// Whether a value is better kept where it is than copied.
#[inline]
pub(crate) fn is_large(value: &[u8]) -> bool {
    value.len() > COPIED_MAX
}

impl Entries {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Each key and its value.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (&[u8], &[u8])> + ExactSizeIterator {
        self.places.iter().enumerate().map(|(number, place)| {
            let key = &self.text[self.start(number)..place.key_end];
            let value = match self.large_value(number) {
                None => &self.text[place.key_end..place.end],
                Some(value) => &value[..],
            };
            (key, value)
        })
    }

    #[inline]
    fn start(&self, number: usize) -> usize {
        number.checked_sub(1).map_or(0, |before| self.places[before].end)
    }

    #[inline]
    fn large_value(&self, number: usize) -> Option<&Bytes> {
        if self.large.is_empty() {
            return None;
        }
        let found = self.large.binary_search_by_key(&number, |(place, _)| *place).ok()?;
        Some(&self.large[found].1)
    }
}

impl IntoIterator for Entries {
    type Item = (Bytes, Bytes);
    type IntoIter = IntoIter;

    fn into_iter(self) -> IntoIter {
        IntoIter { entries: self, next: 0 }
    }
}

/// Handles of the keys and values of [`Entries`].
pub struct IntoIter {
    entries: Entries,
    next: usize,
}

impl Iterator for IntoIter {
    type Item = (Bytes, Bytes);

    fn next(&mut self) -> Option<(Bytes, Bytes)> {
        let (entries, number) = (&self.entries, self.next);
        let place = entries.places.get(number)?;
        self.next += 1;
        let key = entries.text.slice(entries.start(number)..place.key_end);
        let value = entries.large_value(number).cloned();
        Some((key, value.unwrap_or_else(|| entries.text.slice(place.key_end..place.end))))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.entries.len() - self.next;
        (left, Some(left))
    }
}

impl ExactSizeIterator for IntoIter {}

impl PartialEq for Entries {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl Eq for Entries {}

impl fmt::Debug for Entries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl fmt::Debug for IntoIter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IntoIter").field("left", &self.len()).finish_non_exhaustive()
    }
}
