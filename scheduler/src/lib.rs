//! Durable Objects on a thread for each core: ids, namespaces, stubs, life cycle, alarms.

mod error;
mod id;

pub use error::{Error, Kind, Result};
pub use id::{Id, NamespaceKey};
