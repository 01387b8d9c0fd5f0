//! What a power cut leaves of what was not durable: chance decides, or a test, one outcome after
//! another.

use crate::random::Random;

/// What a block becomes: up to a byte one version, from there on another. Versions are counted by
/// age: 0 is what was durable, then what was written since, oldest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Torn {
    /// The version that it begins with.
    pub first: usize,
    /// The version that it ends with.
    pub second: usize,
    /// The byte between them; the block's size where it is whole.
    pub at: usize,
}

/// Decides what a power cut leaves.
pub trait Fate {
    /// How many of so many changes of names since the last `sync_dir` survive: the first ones.
    fn names(&mut self, changes: usize) -> usize;

    /// What becomes of a block of `bytes` bytes that was written `newest` times since it was
    /// durable. Asked once for each such block, in order of names and places.
    fn block(&mut self, newest: usize, bytes: usize) -> Torn;

    /// Whether a length that is not durable survives. Asked once for each file.
    fn length(&mut self) -> bool;
}

/// Anything that a device may do.
impl Fate for Random {
    fn names(&mut self, changes: usize) -> usize {
        self.index(changes + 1)
    }

    fn block(&mut self, newest: usize, bytes: usize) -> Torn {
        let (first, second) = (self.index(newest + 1), self.index(newest + 1));
        let at = match self.one_in(3) {
            true => self.index(bytes),
            false => bytes,
        };
        Torn { first, second, at }
    }

    fn length(&mut self) -> bool {
        !self.one_in(2)
    }
}

/// An outcome without chance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plain {
    /// Whether changes of names survive.
    pub names: bool,
    /// Whether what was written to files, and their lengths, survive.
    pub bytes: bool,
    /// Counts down to a block that is torn at a byte, new before it and old behind.
    pub torn: Option<(usize, usize)>,
}

impl Plain {
    /// All or nothing of the names, all or nothing of the bytes.
    pub fn new(names: bool, bytes: bool) -> Self {
        Self { names, bytes, torn: None }
    }

    /// All survives but one block: this one, counted from 0, has new bytes before `at` only.
    pub fn torn(block: usize, at: usize) -> Self {
        Self { names: true, bytes: true, torn: Some((block, at)) }
    }
}

impl Fate for Plain {
    fn names(&mut self, changes: usize) -> usize {
        if self.names { changes } else { 0 }
    }

    fn block(&mut self, newest: usize, bytes: usize) -> Torn {
        let whole = if self.bytes { newest } else { 0 };
        match &mut self.torn {
            Some((0, at)) => {
                let at = *at;
                self.torn = None;
                Torn { first: newest, second: 0, at }
            }
            torn => {
                torn.iter_mut().for_each(|(block, _)| *block -= 1);
                Torn { first: whole, second: whole, at: bytes }
            }
        }
    }

    fn length(&mut self) -> bool {
        self.bytes
    }
}
