//! The trace hash: 128 bits over everything that happens in a simulation, in order.

/// What a run did, folded. Equal hashes mean equal runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trace([u64; 2]);

impl Default for Trace {
    fn default() -> Self {
        Self([0x243f_6a88_85a3_08d3, 0x1319_8a2e_0370_7344])
    }
}

impl Trace {
    /// Folds one number in.
    pub fn number(&mut self, value: u64) {
        let [a, b] = &mut self.0;
        *a = (*a ^ value).wrapping_mul(0x9fb2_1c65_1e98_df25).rotate_left(29);
        *b = (*b).wrapping_add(*a ^ value.rotate_left(17)).wrapping_mul(0xd6e8_feb8_6659_fd93);
        *b ^= *b >> 32;
    }

    /// Folds bytes in, with their length.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        let (words, rest) = bytes.as_chunks::<8>();
        words.iter().for_each(|word| self.number(u64::from_le_bytes(*word)));
        if !rest.is_empty() {
            let mut word = [0; 8];
            word[..rest.len()].copy_from_slice(rest);
            self.number(u64::from_le_bytes(word));
        }
    }

    /// The hash so far.
    pub fn value(&self) -> u128 {
        u128::from(self.0[0]) << 64 | u128::from(self.0[1])
    }
}
