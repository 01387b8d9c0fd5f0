//! [`Batch`]: what one commit of one object changes, kept in the bytes that its frame will hold.
//!
//! An operation, little-endian:
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 1 | tag: 1 put, 2 delete |
//! | 1 | 2 | key bytes `k` |
//! | 3 | 4 | value bytes `v`, 0 for a delete |
//! | 7 | k | key |
//! | 7 + k | v | value |

use bytes::Bytes;

use crate::contents::Origin;
use crate::ids::Version;

/// Bytes of an operation before its key.
pub(crate) const OP_HEADER_BYTES: usize = 7;
const TAG_PUT: u8 = 1;
const TAG_DELETE: u8 = 2;

/// What a commit does to the object's alarm.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AlarmChange {
    /// Leaves it as it is.
    #[default]
    Keep,
    /// Clears it.
    Clear,
    /// Sets it, in milliseconds since 1970.
    Set(u64),
}

/// Puts, deletes and an alarm change that become visible and durable together (E1).
///
/// Later operations on a key win over earlier ones of the same batch.
///
/// ```
/// use dormouse_engine::Batch;
/// let batch = Batch::new().put("topic", "mice").delete("old").set_alarm(4_102_444_800_000);
/// assert_eq!(batch.len(), 2);
/// ```
#[derive(Clone, Debug, Default)]
pub struct Batch {
    ops: Vec<u8>,
    len: usize,
    /// Of these, puts.
    puts: usize,
    largest_key: usize,
    largest_value: usize,
    delete_all: bool,
    alarm: AlarmChange,
    only_if: Option<Version>,
    origin: Origin,
}

impl Batch {
    /// An empty batch: its commit raises the version and changes nothing else.
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty batch with room for so many operations of so many bytes of keys and values, before it grows.
    pub fn with_capacity(ops: usize, bytes: usize) -> Self {
        Self { ops: Vec::with_capacity(ops * OP_HEADER_BYTES + bytes), ..Self::default() }
    }

    /// Sets `key` to `value`.
    ///
    /// # Panics
    /// If the key has more than 65,535 bytes or the value more than 4 GiB.
    #[must_use]
    pub fn put(mut self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Self {
        self.push(TAG_PUT, key.as_ref(), value.as_ref());
        self
    }

    /// Removes `key`.
    ///
    /// # Panics
    /// If the key has more than 65,535 bytes.
    #[must_use]
    pub fn delete(mut self, key: impl AsRef<[u8]>) -> Self {
        self.push(TAG_DELETE, key.as_ref(), &[]);
        self
    }

    /// Removes every key that the object has; operations before this one are forgotten. The alarm
    /// stays.
    #[must_use]
    pub fn delete_all(mut self) -> Self {
        self.ops.clear();
        (self.len, self.puts) = (0, 0);
        self.delete_all = true;
        self
    }

    /// Sets the alarm, in milliseconds since 1970; 0 means the first millisecond.
    #[must_use]
    pub fn set_alarm(mut self, at_ms: u64) -> Self {
        self.alarm = AlarmChange::Set(at_ms.max(1));
        self
    }

    /// Clears the alarm.
    #[must_use]
    pub fn delete_alarm(mut self) -> Self {
        self.alarm = AlarmChange::Clear;
        self
    }

    /// Commits only if the object is at this version ([`Version::NONE`]: does not exist);
    /// otherwise the commit fails with `Conflict` and changes nothing. So a change that rests on what
    /// was read is safe without locks:
    ///
    /// ```
    /// use dormouse_engine::{Batch, Kind, ObjectId, Options, Store};
    ///
    /// # let dir = std::env::temp_dir().join(format!("dormouse-only-if-{}", std::process::id()));
    /// # let store = Store::open(&dir, Options::default())?;
    /// let counter = store.object(ObjectId::from_bytes([7; 32]));
    /// let count = loop {
    ///     let now = counter.contents().wait()?;
    ///     let count = now.map.get(&b"count"[..]).map_or(0, |count| count[0]) + 1;
    ///     match counter.commit(Batch::new().put("count", [count]).only_if(now.version)).wait() {
    ///         Ok(_) => break count,
    ///         Err(error) if error.kind() == Kind::Conflict => {} // somebody came between: again
    ///         Err(error) => return Err(error),
    ///     }
    /// };
    /// assert_eq!(count, 1);
    /// # store.close().wait()?;
    /// # std::fs::remove_dir_all(dir).expect("made above");
    /// # Ok::<(), dormouse_engine::Error>(())
    /// ```
    #[must_use]
    pub fn only_if(mut self, version: Version) -> Self {
        self.only_if = Some(version);
        self
    }

    /// Says where the object's id comes from, so that a store can be listed by namespace and name.
    /// Kept with the object; texts of more than 1,024 bytes are not (R-122).
    #[must_use]
    pub fn named(mut self, namespace: &str, name: &str) -> Self {
        self.origin = Origin { namespace: Some(namespace.into()), name: Some(name.into()) };
        self
    }

    /// [`Batch::named`] with what is known: a namespace without a name, as of an object that is copied.
    #[must_use]
    pub fn with_origin(mut self, origin: Origin) -> Self {
        self.origin = origin;
        self
    }

    /// What [`Batch::named`] said.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// Operations on keys.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the batch has no operation on a key; it may still delete all or change the alarm.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The operations in order.
    pub fn ops(&self) -> impl Iterator<Item = Op<'_>> {
        Ops::new(&self.ops).map(|op| op.expect("encoded here"))
    }

    /// Whether it removes every key first.
    pub fn deletes_all(&self) -> bool {
        self.delete_all
    }

    /// What it does to the alarm.
    pub fn alarm(&self) -> AlarmChange {
        self.alarm
    }

    /// Whether it only takes away: it puts nothing, and sets no alarm. A full disk takes such a commit all
    /// the same.
    pub fn only_frees(&self) -> bool {
        self.puts == 0 && !matches!(self.alarm, AlarmChange::Set(_))
    }

    /// The version that it needs, if it needs one.
    pub fn required_version(&self) -> Option<Version> {
        self.only_if
    }

    /// The operations as a frame holds them.
    pub(crate) fn encoded_ops(&self) -> &[u8] {
        &self.ops
    }

    /// The same, kept.
    pub(crate) fn into_encoded_ops(self) -> Vec<u8> {
        self.ops
    }

    /// [`Batch::put`] in place, for many.
    pub(crate) fn add(&mut self, key: &[u8], value: &[u8]) {
        self.push(TAG_PUT, key, value);
    }

    /// Bytes of the largest key and of the largest value, for the limits.
    pub(crate) fn largest(&self) -> (usize, usize) {
        (self.largest_key, self.largest_value)
    }

    fn push(&mut self, tag: u8, key: &[u8], value: &[u8]) {
        let key_len = u16::try_from(key.len()).expect("keys have at most 65,535 bytes");
        let value_len = u32::try_from(value.len()).expect("values have less than 4 GiB");
        let ([k0, k1], [v0, v1, v2, v3]) = (key_len.to_le_bytes(), value_len.to_le_bytes());
        let header: [u8; OP_HEADER_BYTES] = [tag, k0, k1, v0, v1, v2, v3];
        self.ops.reserve(OP_HEADER_BYTES + key.len() + value.len());
        self.ops.extend_from_slice(&header);
        self.ops.extend_from_slice(key);
        self.ops.extend_from_slice(value);
        self.len += 1;
        self.puts += usize::from(tag == TAG_PUT);
        self.largest_key = self.largest_key.max(key.len());
        self.largest_value = self.largest_value.max(value.len());
    }
}

/// One operation on a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op<'a> {
    /// Sets the key to the value.
    Put(&'a [u8], &'a [u8]),
    /// Removes the key.
    Delete(&'a [u8]),
}

/// Decodes operations; ends with `Err` at the first that is malformed.
pub(crate) struct Ops<'a> {
    rest: &'a [u8],
}

/// The bytes are not operations.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

impl<'a> Ops<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// Where the next operation starts, counted from the end of the bytes.
    pub(crate) fn remaining(&self) -> usize {
        self.rest.len()
    }

    fn take(&mut self) -> Result<Op<'a>, Malformed> {
        let (header, rest) = self.rest.split_at_checked(OP_HEADER_BYTES).ok_or(Malformed)?;
        let key_len = usize::from(u16::from_le_bytes([header[1], header[2]]));
        let value_len = u32::from_le_bytes([header[3], header[4], header[5], header[6]]) as usize;
        let (key, rest) = rest.split_at_checked(key_len).ok_or(Malformed)?;
        let (value, rest) = rest.split_at_checked(value_len).ok_or(Malformed)?;
        self.rest = rest;
        match header[0] {
            TAG_PUT => Ok(Op::Put(key, value)),
            TAG_DELETE if value_len == 0 => Ok(Op::Delete(key)),
            _ => Err(Malformed),
        }
    }
}

impl<'a> Iterator for Ops<'a> {
    type Item = Result<Op<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let op = self.take();
        if op.is_err() {
            self.rest = &[];
        }
        Some(op)
    }
}

/// Splits encoded operations into runs of at most `bytes_max` bytes, at operations' boundaries. The
/// last one is given apart: mostly it is the only one.
pub(crate) fn split_ops(ops: &[u8], bytes_max: usize) -> (Vec<&[u8]>, &[u8]) {
    let mut runs = Vec::new();
    if ops.len() <= bytes_max {
        return (runs, ops);
    }
    let (mut start, mut end) = (0, 0);
    let mut decoder = Ops::new(ops);
    while let Some(op) = decoder.next() {
        op.expect("encoded by Batch");
        let next = ops.len() - decoder.remaining();
        if next - start > bytes_max && end > start {
            runs.push(&ops[start..end]);
            start = end;
        }
        assert!(next - start <= bytes_max, "Limits::check: one operation fits");
        end = next;
    }
    (runs, &ops[start..end])
}

/// Copies a slice of a shared frame without copying its bytes.
pub(crate) fn share(frame: &Bytes, slice: &[u8]) -> Bytes {
    frame.slice_ref(slice)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_decode_to_what_was_pushed() {
        let batch = Batch::new().put("a", "1").delete("b").put("", "");
        let ops: Vec<_> = batch.ops().collect();
        assert_eq!(ops, [Op::Put(b"a", b"1"), Op::Delete(b"b"), Op::Put(b"", b"")]);
        assert_eq!(batch.encoded_ops()[..9], [1, 1, 0, 1, 0, 0, 0, b'a', b'1']);
    }

    #[test]
    fn delete_all_forgets_what_came_before() {
        let batch = Batch::new().put("a", "1").delete_all().put("b", "2");
        assert!(batch.deletes_all());
        assert_eq!(batch.ops().collect::<Vec<_>>(), [Op::Put(b"b", b"2")]);
    }

    #[test]
    fn a_batch_that_only_frees_brings_nothing() {
        assert!(Batch::new().only_frees());
        assert!(Batch::new().put("a", "1").delete_all().delete("b").delete_alarm().only_frees());
        assert!(!Batch::new().delete_all().put("a", "").only_frees());
        assert!(!Batch::new().delete("a").set_alarm(1).only_frees());
    }

    #[test]
    fn malformed_operations_end_the_iteration() {
        for bytes in [&[1, 0][..], &[3, 0, 0, 0, 0, 0, 0], &[2, 0, 0, 1, 0, 0, 0, 9]] {
            let decoded: Vec<_> = Ops::new(bytes).collect();
            assert_eq!(decoded, [Err(Malformed)]);
        }
    }

    #[test]
    fn a_split_keeps_every_operation_whole() {
        let batch = Batch::new().put("a", [1; 40]).put("b", [2; 40]).delete("c");
        let (runs, last) = split_ops(batch.encoded_ops(), 60);
        assert_eq!(runs.len(), 1);
        assert_eq!([runs[0], last].concat(), batch.encoded_ops());
        assert_eq!(split_ops(batch.encoded_ops(), 200), (vec![], batch.encoded_ops()));
        assert_eq!(split_ops(&[], 60), (vec![], &[] as &[u8]));
    }
}
