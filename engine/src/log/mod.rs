//! The log of one shard: segments that hold batches that hold frames.
//!
//! [`queue`] gathers commits into batches, [`writer`] writes them, one at a time,
//! [`segments`] makes the files that they go into, [`ahead`] sees to it that their blocks were written before, and [`handles`] says which of them are open. How the
//! log is read again is in [`crate::recover`].

pub(crate) mod ahead;
pub(crate) mod handles;
pub(crate) mod queue;
pub(crate) mod segments;
pub(crate) mod writer;
