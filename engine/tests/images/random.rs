//! Choices that depend on a seed alone: splitmix64 (G. Steele, D. Lea, C. Flood, "Fast splittable
//! pseudorandom number generators", 2014).

/// A stream of numbers.
#[derive(Clone, Copy)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A number below `bound`.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        let product = u128::from(self.bits()) * bound as u128;
        usize::try_from(product >> 64).expect("below a usize")
    }

    /// A number that depends on this stream's place and on `of`, which stays where it is.
    pub(crate) fn percent_of(&self, of: [usize; 2]) -> usize {
        let mixed = of.iter().fold(self.0, |state, part| mix(state ^ mix(*part as u64 + 1)));
        Self(mixed).below(100)
    }
}

fn mix(number: u64) -> u64 {
    let mut mixed = number;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}
