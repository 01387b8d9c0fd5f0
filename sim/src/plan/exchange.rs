//! Requests whose bodies come chunk by chunk, in both directions: what they are, and how they are drawn.

use serde::{Deserialize, Serialize};

use super::generate::{Inside, Swarm};
use super::{Op, Turn};

/// A request and its response.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Exchange {
    /// The request's body.
    pub up: Flow,
    /// What the object does when it has read that.
    pub turn: Turn,
    /// What it does before each chunk of its response.
    pub between: Vec<Op>,
    /// The response's body.
    pub down: Flow,
}

/// A body on its way.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Flow {
    /// Bytes of each chunk.
    pub chunks: Vec<u16>,
    /// How its sender ends it.
    pub end: Ends,
    /// Chunks after which its reader goes, if it does.
    pub taken: Option<u8>,
}

/// How the sender of a body ends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ends {
    /// It is finished.
    Whole,
    /// The sender is dropped.
    Dropped,
    /// With an error.
    Failed,
}

/// What a thread beside the core does, and what the object does about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Work {
    /// It waits for the result.
    Awaited,
    /// It does not wait.
    Dropped,
    /// The work panics, and the object is told.
    Panics,
}

impl Swarm {
    pub(super) fn exchange(&mut self) -> Exchange {
        let (up, turn) = (self.flow(), self.turn(1));
        let between = (0..self.random.below(3)).map(|_| self.op(0, Inside::Section)).collect();
        Exchange { up, turn, between, down: self.flow() }
    }

    fn flow(&mut self) -> Flow {
        let count = self.random.below(6);
        let large = self.random.one_in(6);
        let most = if large { 40_000 } else { 200 };
        let chunks = (0..count)
            .map(|_| u16::try_from(self.random.between(10, most)).expect("small"))
            .collect();
        let end = match self.random.below(6) {
            0 => Ends::Dropped,
            1 => Ends::Failed,
            _ => Ends::Whole,
        };
        let leaves = self.random.one_in(4);
        let taken = leaves.then(|| u8::try_from(self.random.below(count + 1)).expect("few"));
        Flow { chunks, end, taken }
    }

    pub(super) fn work(&mut self) -> Work {
        match self.random.below(4) {
            0 => Work::Dropped,
            1 => Work::Panics,
            _ => Work::Awaited,
        }
    }
}
