//! The actor cache: what an object remembers, what it still owes the disk, and its gates.
//!
//! One [`ActorCache`] stands in front of the storage of one resident object. A small object is brought
//! in as a whole before it runs, so every read is a hit, absences included. Of a large one what was asked
//! for is there, and what was written: values, absences, and ranges of which all is known; the rest is
//! read when it is asked for, and an [`Answer`] waits for it.
//!
//! Invariants:
//!
//! - Operations take effect in the order of the calls, at the call, and a read that
//!   waits gives what was there at its call.
//! - All that a turn writes goes into one commit; at most one commit of an object is in flight;
//!   whatever is dirty when it starts is in it, and nothing that is written later.
//! - A transaction's changes are in no commit until its outermost commit, and then all in one
//!
//! - Nothing passes the output gate before the confirmed writes made earlier are durable
//!   once a commit has failed, nothing passes ever.
//! - No state is borrowed while a future is awaited or a waker runs.

mod answer;
mod budget;
mod cache;
mod entries;
mod flush;
mod gate;
mod keys;
mod limits;
mod map;
mod ops;
mod ranges;
mod reads;
mod state;
mod txn;
mod watch;

pub use answer::Answer;
pub use budget::Budget;
pub use cache::ActorCache;
pub use dormouse_engine::list::{Direction, List};
pub use entries::{Entries, IntoIter};
pub use flush::{Backing, Stored};
pub use gate::input::{EventId, Gated, InputGate, Lock, Section, SectionWait};
pub use gate::output::{OutputGate, OutputWait};
pub use keys::memory_bytes;
pub use limits::CacheLimits;
pub use ops::{AlarmRun, AlarmToo, Outcome, Read, Write, code};
pub use txn::Transaction;
