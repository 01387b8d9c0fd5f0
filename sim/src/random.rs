//! The generator behind every choice of a simulation: xoshiro256**, seeded through splitmix64.
//!
//! A generator may instead begin with a *tape*, bytes that somebody else chose, so that a fuzzer
//! decides what otherwise chance does; behind its end goes the generator.
//!
//! Source: D. Blackman, S. Vigna, "Scrambled linear pseudorandom number generators", 2021.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

/// A stream of random numbers that depends on its seed, and its tape if it has one, alone.
#[derive(Clone, Debug)]
pub struct Random {
    state: [u64; 4],
    tape: Option<Arc<Mutex<VecDeque<u8>>>>,
}

impl Random {
    /// The stream of this seed.
    pub fn new(seed: u64) -> Self {
        let mut state = seed;
        let state = std::array::from_fn(|_| {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut mixed = state;
            mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            mixed ^ (mixed >> 31)
        });
        Self { state, tape: None }
    }

    /// The stream that these bytes begin.
    pub fn from_tape(bytes: &[u8]) -> Self {
        let tape = Arc::new(Mutex::new(VecDeque::from(bytes.to_vec())));
        Self { tape: Some(tape), ..Self::new(0) }
    }

    /// So many bytes of the tape as a number, if it has not come to its end.
    fn next_of_tape(&mut self, bytes: u32) -> Option<u64> {
        let mut tape = self.tape.as_ref()?.lock().expect("no panic under it");
        let first = tape.pop_front()?;
        let rest = (1..bytes).map(|_| tape.pop_front().unwrap_or(0));
        Some(rest.fold(u64::from(first), |number, byte| number << 8 | u64::from(byte)))
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        if self.tape.is_some()
            && let Some(number) = self.next_of_tape(8)
        {
            return number;
        }
        let [a, b, c, d] = &mut self.state;
        let result = b.wrapping_mul(5).rotate_left(7).wrapping_mul(9);
        let shifted = *b << 17;
        *c ^= *a;
        *d ^= *b;
        *b ^= *c;
        *a ^= *d;
        *c ^= shifted;
        *d = d.rotate_left(45);
        result
    }

    /// A number below `bound`.
    ///
    /// # Panics
    /// If `bound` is zero.
    pub fn below(&mut self, bound: u64) -> u64 {
        assert!(bound > 0);
        if self.tape.is_some() {
            let bytes = (u64::BITS - (bound - 1).leading_zeros()).div_ceil(8);
            if let Some(number) = self.next_of_tape(bytes.max(1)) {
                return number % bound;
            }
        }
        // The high half of the product; its bias is below 2^-32 for the bounds used here.
        let product = u128::from(self.bits()) * u128::from(bound);
        u64::try_from(product >> 64).expect("the high half has 64 bits")
    }

    /// An index below `len`.
    ///
    /// # Panics
    /// If `len` is zero.
    pub fn index(&mut self, len: usize) -> usize {
        usize::try_from(self.below(len as u64)).expect("below a usize")
    }

    /// A number in `low..=high`.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// A generator of its own, seeded from this one; a tape they share.
    pub fn fork(&mut self) -> Self {
        Self { tape: self.tape.clone(), ..Self::new(self.bits()) }
    }
}
