//! The log of one shard: segments that hold batches that hold frames.
//!
//! [`queue`] gathers commits into batches, [`writer`] writes them, one at a time, where [`room`] says,
//! [`segments`] makes the files that they go into, [`reserve`] keeps some of them for a full disk, [`ahead`] sees to it that their blocks were written before, and [`handles`] says which of them are open. How the
//! log is read again is in [`crate::recover`].

pub(crate) mod ahead;
pub(crate) mod handles;
pub(crate) mod queue;
mod refused;
pub(crate) mod reserve;
pub(crate) mod room;
pub(crate) mod segments;
pub(crate) mod writer;
