//! Log-structured store of many small objects: each a private ordered map with one alarm, all of
//! them in one log for each core, every commit atomic and on the device when it returns.
//!
//! ```
//! use dormouse_engine::real::{DiskChoice, block_on};
//! use dormouse_engine::{Batch, Limits, ObjectId, Shard, StoreLock};
//!
//! # fn main() -> std::io::Result<()> {
//! let dir = std::env::temp_dir().join(format!("dormouse-example-{}", std::process::id()));
//! let topic = block_on(&dir, DiskChoice::Auto, async |env| {
//!     let limits = Limits::PRODUCTION;
//!     let lock = StoreLock::open_or_create(&env, &limits, 1).await?;
//!     let (shard, _recovery) = Shard::open(&env, lock.superblock(), 0, limits).await?;
//!     let room = ObjectId::from_bytes([7; 32]);
//!     shard.commit(&room, &Batch::new().put("topic", "mice").delete("old"), None)?.await?;
//!     let contents = shard.load(&room).await?;
//!     shard.close().await?;
//!     Ok::<_, dormouse_engine::Error>(contents.map[&b"topic"[..]].clone())
//! })?;
//! assert_eq!(topic.expect("a store"), "mice");
//! # std::fs::remove_dir_all(dir)
//! # }
//! ```
//!
//! What must hold is in docs/design.md (E1 to E9); the bytes on disk are in [`mod@format`].

pub mod batch;
pub mod contents;
pub mod directory;
pub mod env;
pub mod error;
pub mod executor;
pub mod format;
pub mod ids;
pub mod io;
pub mod limits;
mod load;
mod log;
pub mod mailbox;
pub mod park;
pub mod real;
mod recover;
pub mod shard;
pub mod signal;
pub mod store_lock;
mod sync;

pub use batch::{AlarmChange, Batch, Op};
pub use contents::{Contents, Origin, Resident};
pub use env::{Env, Host};
pub use error::{Error, Kind, Result};
pub use format::superblock::Superblock;
pub use ids::{ObjectId, Version};
pub use limits::Limits;
pub use shard::{Recovery, Shard, Ticket};
pub use store_lock::StoreLock;
