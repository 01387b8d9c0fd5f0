//! [`Distribution`]: how often values of each size were seen, in a fixed number of buckets.
//!
//! Values below [`PARTS`] have a bucket each; above, each power of two is split into [`PARTS`] buckets of
//! equal width, so that a bucket's middle is off by an eighth of the value at most.
//!
//! Only one thread records, so that this is a load and a store; any may read.

use std::sync::atomic::{AtomicU64, Ordering};

/// Buckets of a power of two.
const PARTS: u64 = 4;
/// Its binary logarithm.
const PARTS_LOG: u32 = PARTS.ilog2();
/// All larger values are in the last bucket: 18 minutes in nanoseconds, a tebibyte in bytes.
const VALUE_MAX: u64 = (1 << 40) - 1;
/// How many buckets there are.
pub(crate) const BUCKETS: usize = bucket(VALUE_MAX) + 1;

/// A value's bucket.
#[expect(clippy::cast_possible_truncation, reason = "a few hundred at most")]
const fn bucket(value: u64) -> usize {
    let value = if value > VALUE_MAX { VALUE_MAX } else { value };
    if value < PARTS {
        return value as usize;
    }
    let power = value.ilog2();
    let part = (value >> (power - PARTS_LOG)) - PARTS;
    ((power - PARTS_LOG + 1) as u64 * PARTS + part) as usize
}

/// The middle of a bucket.
pub(crate) fn middle(bucket: usize) -> f64 {
    let bucket = bucket as u64;
    let (row, part) = (bucket / PARTS, bucket % PARTS);
    match row {
        0 => part as f64,
        row => ((PARTS + part) << (row - 1)) as f64 + ((1_u64 << (row - 1)) - 1) as f64 / 2.0,
    }
}

/// How often each bucket was met.
#[derive(Debug)]
pub(crate) struct Distribution([AtomicU64; BUCKETS]);

impl Default for Distribution {
    fn default() -> Self {
        Self(std::array::from_fn(|_| AtomicU64::new(0)))
    }
}

impl Distribution {
    /// Sees a value; only the owner calls this.
    pub(crate) fn record(&self, value: u64) {
        let count = &self.0[bucket(value)];
        count.store(count.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }

    /// Adds what was seen to `sums`.
    pub(crate) fn add_to(&self, sums: &mut [u64; BUCKETS]) {
        for (sum, count) in sums.iter_mut().zip(&self.0) {
            *sum += count.load(Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_middle_of_its_bucket_is_near_a_value(power in 0..40_u32, low in any::<u64>()) {
            let value = (1 << power) | (low & ((1 << power) - 1));
            let middle = middle(bucket(value));
            prop_assert!((middle - value as f64).abs() <= value as f64 / 8.0, "{value}: {middle}");
            prop_assert!(bucket(value) <= bucket(value + 1) && bucket(value) < BUCKETS);
        }
    }

    #[test]
    fn what_is_too_large_is_in_the_last_bucket() {
        let (seen, mut sums) = (Distribution::default(), [0; BUCKETS]);
        for value in [0, 3, u64::MAX, u64::MAX] {
            seen.record(value);
        }
        seen.add_to(&mut sums);
        assert_eq!((sums[0], sums[3], sums[BUCKETS - 1]), (1, 1, 2));
    }
}
