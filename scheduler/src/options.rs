//! [`NamespaceOptions`]: what may differ from one namespace to another.

use std::sync::Arc;
use std::time::Duration;

use dormouse_cache::{AlarmToo, CacheLimits};

use crate::topology::StackLimits;

/// Options of a namespace. What is not said is as [`StackLimits`] say for all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NamespaceOptions {
    /// Whether [`Storage::delete_all`](crate::Storage::delete_all) clears the alarm, too: yes, unless
    /// said.
    pub delete_all: AlarmToo,
    /// How long its objects stay in memory with nothing to do.
    pub idle: Option<Duration>,
    /// Calls that wait or run in one of its objects; beyond, calls to it are refused.
    pub calls: Option<usize>,
    /// Of the cache of each of its objects.
    pub cache: Option<CacheLimits>,
    /// Bytes that its live objects take together, on each core, before idle ones leave sooner; at
    /// twice of it no further one is started. They then count here, and not in
    /// [`StackLimits::resident_bytes`].
    pub resident_bytes: Option<usize>,
    /// Bytes that all its objects may hold on disk, in all shards together; no bound unless said. What would bring more is
    /// refused (`NoSpace`, `namespace-full`), what only frees is taken. These are the bytes of the log that the objects need:
    /// what was overwritten counts until its object is written as one image, which begins when a write is
    /// refused for it. Several cores at once may pass it, each by one commit.
    pub disk_bytes: Option<u64>,
}

impl NamespaceOptions {
    /// Those of a namespace of which nothing is said.
    pub const DEFAULT: Self = Self {
        delete_all: AlarmToo::Clear,
        idle: None,
        calls: None,
        cache: None,
        resident_bytes: None,
        disk_bytes: None,
    };
}

impl Default for NamespaceOptions {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// The bounds of one namespace's objects, with all of them said.
#[derive(Clone, Debug)]
pub(crate) struct Bounds {
    pub(crate) delete_all: AlarmToo,
    pub(crate) idle: Duration,
    pub(crate) calls: usize,
    pub(crate) cache: Arc<CacheLimits>,
}

impl Bounds {
    pub(crate) fn new(options: &NamespaceOptions, limits: &StackLimits) -> Self {
        Self {
            delete_all: options.delete_all,
            idle: options.idle.unwrap_or(limits.idle),
            calls: options.calls.unwrap_or(limits.calls),
            cache: Arc::new(options.cache.unwrap_or(limits.cache)),
        }
    }
}
