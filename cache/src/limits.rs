//! Every bound of the cache, in one value: [`CacheLimits::PRODUCTION`] for use,
//! [`CacheLimits::TINY`] to make tests pass through every edge.

use std::time::Duration;

use dormouse_engine::Limits;

/// Bounds of one actor cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheLimits {
    /// Bytes of a key.
    pub key_bytes_max: usize,
    /// Bytes of a value.
    pub value_bytes_max: usize,
    /// Keys in one call.
    pub keys_max: usize,
    /// Dirty bytes of the object above which writes are answered, and turns start, only after a flush
    /// . All objects of a core together have a [`Budget`](crate::Budget).
    pub dirty_bytes_max: usize,
    /// Bytes of keys and values of the object, and 64 for each, that are kept beside what is dirty: beyond,
    /// what was not used lately is forgotten, and read when it is asked for again. Of one list no more than half
    /// of them is kept.
    pub kept_bytes_max: usize,
    /// Tries of one flush, or of one read, while the engine says that nothing was done.
    pub flush_attempts_max: u32,
    /// How long a flush may take, all its tries together, before the object is reset.
    pub flush_max: Duration,
}

impl CacheLimits {
    /// For use.
    pub const PRODUCTION: Self = Self {
        key_bytes_max: Limits::PRODUCTION.key_bytes_max,
        value_bytes_max: Limits::PRODUCTION.value_bytes_max,
        keys_max: 128,
        dirty_bytes_max: 8 << 20,
        kept_bytes_max: 16 << 20,
        flush_attempts_max: 5,
        flush_max: Duration::from_secs(30),
    };

    /// For tests: a few keys fill every bound.
    pub const TINY: Self = Self {
        key_bytes_max: Limits::TINY.key_bytes_max,
        value_bytes_max: Limits::TINY.value_bytes_max,
        keys_max: 8,
        dirty_bytes_max: 1024,
        kept_bytes_max: 1024,
        flush_attempts_max: 2,
        flush_max: Duration::from_secs(30),
    };

    /// Checks the relations between the bounds that the code relies on.
    ///
    /// # Panics
    /// If one does not hold.
    pub const fn check(&self) {
        assert!(self.keys_max > 0);
        assert!(self.flush_attempts_max > 0);
        assert!(self.key_bytes_max <= u16::MAX as usize);
    }
}

const _: () = CacheLimits::PRODUCTION.check();
const _: () = CacheLimits::TINY.check();
