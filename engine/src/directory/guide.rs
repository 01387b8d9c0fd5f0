//! What a process remembers of a run, so that a look at it reads one block at most.
//!
//! A run never changes, so what was once read of it and checked stays true, whatever becomes of the
//! file: where each block begins is kept once it is known. Of a run that this process wrote itself all
//! of it is known, and, where there are older runs, a filter for each block too: an object that
//! an older run holds is mostly not looked for in the younger ones.
//!
//! Memory: 8 bytes a block, some 0.2 for each object; 64 more a block of a run with a filter, some 1.8
//! for each object in it. The oldest run, which mostly holds most of the objects, has none.

use std::cell::RefCell;

use crate::format::run::Key;

/// A Bloom filter over the objects of one block, 69 at most.
type Filter = [u64; 8];
/// Bits of a filter that stand for one object: with 36 objects in the block one in 600 others is
/// taken for one of them.
const PROBES: u32 = 6;

/// What is remembered of one run. Blocks are numbered from 1.
#[derive(Debug, Default)]
pub(crate) struct Guide {
    /// The hash of each block's first key; 0 where that is not known.
    firsts: RefCell<Vec<u64>>,
    /// Empty where nothing is known.
    filters: Vec<Filter>,
}

impl Guide {
    /// Of a run of which nothing was read yet.
    pub(crate) fn unknown(blocks: u32) -> Self {
        Self { firsts: RefCell::new(vec![0; blocks as usize]), filters: Vec::new() }
    }

    /// A key was written to a block, which is the last one so far or the next one.
    pub(crate) fn wrote(&mut self, block: u32, key: &Key, with_filter: bool) {
        let firsts = self.firsts.get_mut();
        if firsts.len() < block as usize {
            firsts.push(key.hash);
            self.filters.extend(with_filter.then_some(Filter::default()));
        }
        if with_filter {
            let filter = self.filters.last_mut().expect("pushed above");
            probes(key).for_each(|(word, bit)| filter[word] |= bit);
        }
    }

    /// The hash of the block's first key, if it is known.
    pub(crate) fn first(&self, block: u32) -> Option<u64> {
        Some(self.firsts.borrow()[block as usize - 1]).filter(|hash| *hash != 0)
    }

    /// The block was checked, and begins so.
    pub(crate) fn learn(&self, block: u32, first: u64) {
        self.firsts.borrow_mut()[block as usize - 1] = first;
    }

    /// Whether the block may hold the key, if it is in the run at all.
    pub(crate) fn may_hold(&self, block: u32, key: &Key) -> bool {
        let filter = self.filters.get(block as usize - 1);
        filter.is_none_or(|filter| probes(key).all(|(word, bit)| filter[word] & bit != 0))
    }
}

/// Word and bit of each probe. The keys of a block are neighbours: their hashes are mixed once more.
fn probes(key: &Key) -> impl Iterator<Item = (usize, u64)> {
    let mixed = (key.hash ^ (key.hash >> 29)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    (0..PROBES).map(move |probe| {
        let bits = mixed >> (9 * probe);
        ((bits >> 6 & 7) as usize, 1 << (bits & 63))
    })
}
