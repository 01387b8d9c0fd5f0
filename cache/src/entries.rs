//! [`Entries`]: what a list gives.
//!
//! Handles of keys and values would cost two atomic counts for each entry when they are made, and
//! two more when they go: of a thousand small entries that takes six times as long as to copy them
//! into one buffer. So small values are copied, and only large ones are handles.

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
}

#[derive(Clone)]
struct Place {
    key_start: usize,
    key_end: usize,
    value: Value,
}

#[derive(Clone)]
enum Value {
    /// Behind its key, up to there.
    Copied(usize),
    Shared(Bytes),
}

impl Entries {
    /// The entries that `walk` shows; it is asked twice, and shows the same.
    pub(crate) fn collect(mut walk: impl FnMut(&mut dyn FnMut(&Bytes, &Bytes))) -> Self {
        let (mut count, mut bytes) = (0, 0);
        walk(&mut |key, value| {
            count += 1;
            bytes += key.len() + if value.len() > COPIED_MAX { 0 } else { value.len() };
        });
        let (mut text, mut places) = (Vec::with_capacity(bytes), Vec::with_capacity(count));
        walk(&mut |key, value| {
            let key_start = text.len();
            text.extend_from_slice(key);
            let key_end = text.len();
            let value = match value.len() > COPIED_MAX {
                true => Value::Shared(value.clone()),
                false => {
                    text.extend_from_slice(value);
                    Value::Copied(text.len())
                }
            };
            places.push(Place { key_start, key_end, value });
        });
        assert!(text.len() == bytes && places.len() == count, "the walk shows the same twice");
        Self { text: text.into(), places }
    }

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
        self.places.iter().map(|place| {
            let value = match &place.value {
                Value::Copied(end) => &self.text[place.key_end..*end],
                Value::Shared(value) => value,
            };
            (&self.text[place.key_start..place.key_end], value)
        })
    }
}

impl IntoIterator for Entries {
    type Item = (Bytes, Bytes);
    type IntoIter = IntoIter;

    fn into_iter(self) -> IntoIter {
        IntoIter { text: self.text, places: self.places.into_iter() }
    }
}

/// Handles of the keys and values of [`Entries`].
pub struct IntoIter {
    text: Bytes,
    places: std::vec::IntoIter<Place>,
}

impl Iterator for IntoIter {
    type Item = (Bytes, Bytes);

    fn next(&mut self) -> Option<(Bytes, Bytes)> {
        let place = self.places.next()?;
        let key = self.text.slice(place.key_start..place.key_end);
        let value = match place.value {
            Value::Copied(end) => self.text.slice(place.key_end..end),
            Value::Shared(value) => value,
        };
        Some((key, value))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.places.size_hint()
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
        f.debug_struct("IntoIter").field("left", &self.places.len()).finish_non_exhaustive()
    }
}
