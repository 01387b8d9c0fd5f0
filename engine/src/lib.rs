//! Log-structured store of many small objects: each a private ordered map with one alarm, all of
//! them in one log for each core, every commit atomic and, unless asked otherwise, on the device when
//! it returns.
//!
//! ```
//! use dormouse_engine::{Batch, List, ObjectId, Options, Store};
//!
//! # async fn example(dir: &std::path::Path) -> dormouse_engine::Result<()> {
//! let store = Store::open(dir, Options::default())?; // any thread, any runtime
//! let room = store.object(ObjectId::from_bytes([7; 32])); // costs nothing, need not exist
//! room.commit(Batch::new().put("topic", "mice").delete("old")).await?; // durable when it returns
//! assert_eq!(room.get("topic").await?.expect("put above"), "mice");
//! let mut keys = room.list(List::prefix("msg:").reverse().limit(10)); // one consistent state
//! while let Some((key, value)) = keys.next().await? {
//!     println!("{key:?}: {} bytes", value.len());
//! }
//! let mut objects = store.objects();
//! while let Some(object) = objects.next().await? {
//!     println!("{} at version {}", object.id, object.version);
//! }
//! store.close().await
//! # }
//! # let dir = std::env::temp_dir().join(format!("dormouse-example-{}", std::process::id()));
//! # dormouse_engine::call::wait(example(&dir)).expect("a store");
//! # std::fs::remove_dir_all(dir).expect("made above");
//! ```
//!
//! Without async: `room.get("topic").wait()`, `room.list(list).blocking()`; examples/embed.rs is a
//! program that does all of it. [`Durability`] says when a commit is answered. Below [`Store`] lies [`Shard`], the single-threaded
//! core that it and the actor cache build on.
//!
//! What must hold is in docs/design.md (E1 to E9); the bytes on disk are in [`mod@format`].

mod append;
mod audit;
pub mod batch;
mod blocking;
pub mod call;
mod checkpoint;
mod clean;
pub mod clock;
mod compact;
mod consolidate;
pub mod contents;
pub mod directory;
pub mod env;
pub mod error;
pub mod executor;
mod find;
pub mod format;
pub mod heartbeat;
pub mod history;
pub mod ids;
pub mod io;
pub mod limits;
pub mod list;
mod live;
mod load;
mod log;
pub mod mailbox;
mod merges;
pub mod namespaces;
pub mod park;
pub mod real;
mod recover;
pub mod repair;
pub mod shard;
pub mod signal;
pub mod snapshot;
pub mod store;
pub mod store_lock;
mod sync;
mod tree;

pub use batch::{AlarmChange, Batch, Op};
pub use call::Call;
pub use contents::{Contents, Origin, Resident};
pub use env::{Env, Host, Work};
pub use error::{Error, Kind, Result};
pub use find::Found;
pub use format::superblock::Superblock;
pub use ids::{ObjectId, Version};
pub use limits::Limits;
pub use list::List;
pub use namespaces::Quotas;
pub use shard::{Opening, Recovery, Shard, ShardStats, Ticket, Written};
pub use store::{
    Durability, Filter, Keys, Object, ObjectInfo, Objects, Options, Page, Store, StoreStats,
};
pub use store_lock::StoreLock;
