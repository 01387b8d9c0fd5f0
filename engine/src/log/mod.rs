//! The log of one shard: segments that hold batches that hold frames.
//!
//! [`queue`] gathers commits into batches, [`writer`] writes them, one at a time, and
//! [`segments`] makes the files that they go into. How the log is read again is in
//! [`crate::recover`].

pub(crate) mod queue;
pub(crate) mod segments;
pub(crate) mod writer;
