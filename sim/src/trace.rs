//! The trace hash: 128 bits over everything that happens in a simulation, in order.

/// An odd number with well spread bits.
const MIX: u64 = 0x9fb2_1c65_1e98_df25;

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
        *a = (*a ^ value).wrapping_mul(MIX).rotate_left(29);
        *b = (*b).wrapping_add(*a ^ value.rotate_left(17)).wrapping_mul(0xd6e8_feb8_6659_fd93);
        *b ^= *b >> 32;
    }

    /// Folds bytes in, with their length.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        // Long ones in four lanes that don't wait for each other, each a bijection of a word.
        let (blocks, rest) = bytes.as_chunks::<32>();
        if !blocks.is_empty() {
            let mut lanes = [self.0[0], self.0[1], !self.0[0], !self.0[1]];
            for block in blocks {
                let (words, _) = block.as_chunks::<8>();
                for (lane, word) in lanes.iter_mut().zip(words) {
                    *lane = (*lane ^ u64::from_le_bytes(*word)).wrapping_mul(MIX).rotate_left(29);
                }
            }
            lanes.into_iter().for_each(|lane| self.number(lane));
        }
        let (words, rest) = rest.as_chunks::<8>();
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
