//! What rides on an operation: [`Read`], [`Write`], the words of the alarm, and the codes of the
//! errors that a caller's own mistake gives.

use dormouse_engine::{Error, Kind, Result};

use crate::limits::CacheLimits;

/// Codes of the errors of this crate ([`Error::code`]); all are of [`Kind::Invalid`].
pub mod code {
    /// A key over [`key_bytes_max`](crate::CacheLimits::key_bytes_max).
    pub const KEY_TOO_LARGE: &str = "key-too-large";
    /// A value over [`value_bytes_max`](crate::CacheLimits::value_bytes_max).
    pub const VALUE_TOO_LARGE: &str = "value-too-large";
    /// More keys in one call than [`keys_max`](crate::CacheLimits::keys_max).
    pub const TOO_MANY_KEYS: &str = "too-many-keys";
    /// A list with a limit below one or with two starts, an alarm at zero.
    pub use dormouse_engine::list::BAD_ARGUMENT;
    /// Delete-all while a transaction is open.
    pub const DELETE_ALL_IN_TRANSACTION: &str = "delete-all-in-transaction";
    /// A transaction was used after its rollback.
    pub const TRANSACTION_ROLLED_BACK: &str = "transaction-rolled-back";
    /// A transaction was used after its commit.
    pub const TRANSACTION_ENDED: &str = "transaction-ended";
    /// A transaction was to end while one inside it was open.
    pub const TRANSACTION_NESTED_OPEN: &str = "transaction-nested-open";
    /// More than 64 sections inside one another.
    pub const NESTED_TOO_DEEPLY: &str = "nested-too-deeply";
}

/// Options of a read. Neither changes a result.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Read {
    concurrency: bool,
    no_cache: bool,
}

impl Read {
    /// Lets other events in while this read waits.
    pub const fn allow_concurrency() -> Self {
        Self { concurrency: true, no_cache: false }
    }

    /// Does not keep what had to be fetched. Without effect on an object that is in memory as a whole.
    pub const fn no_cache() -> Self {
        Self { concurrency: false, no_cache: true }
    }

    /// Both options' wishes.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self {
            concurrency: self.concurrency | other.concurrency,
            no_cache: self.no_cache | other.no_cache,
        }
    }

    /// Whether other events may run while the read waits.
    pub const fn allows_concurrency(self) -> bool {
        self.concurrency
    }

    /// Whether what had to be fetched is kept.
    pub(crate) const fn caches(self) -> bool {
        !self.no_cache
    }
}

/// Options of a write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Write {
    concurrency: bool,
    no_cache: bool,
    unconfirmed: bool,
}

impl Write {
    /// Lets other events in while this write waits for its answer.
    pub const fn allow_concurrency() -> Self {
        Self { concurrency: true, no_cache: false, unconfirmed: false }
    }

    /// Does not keep the value once it is durable, unless it was read until then. Without effect on an
    /// object that is in memory as a whole.
    pub const fn no_cache() -> Self {
        Self { concurrency: false, no_cache: true, unconfirmed: false }
    }

    /// The output gate does not wait for this write; its failure still breaks the gate (R-236,
    ///
    pub const fn allow_unconfirmed() -> Self {
        Self { concurrency: false, no_cache: false, unconfirmed: true }
    }

    /// Both options' wishes.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self {
            concurrency: self.concurrency | other.concurrency,
            no_cache: self.no_cache | other.no_cache,
            unconfirmed: self.unconfirmed | other.unconfirmed,
        }
    }

    /// Whether other events may run while the write waits.
    pub const fn allows_concurrency(self) -> bool {
        self.concurrency
    }

    /// Whether output need not wait for it.
    pub const fn allows_unconfirmed(self) -> bool {
        self.unconfirmed
    }

    /// Whether the value is kept once it is durable.
    pub(crate) const fn caches(self) -> bool {
        !self.no_cache
    }

    pub(crate) const fn confirmation(self) -> Confirmation {
        if self.unconfirmed { Confirmation::Unconfirmed } else { Confirmation::Confirmed }
    }
}

/// Whether output waits for a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Confirmation {
    /// Output does not wait.
    Unconfirmed,
    /// Output waits until it is durable.
    Confirmed,
}

/// What a delete-all does to the alarm.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AlarmToo {
    /// Leaves it.
    Keep,
    /// Clears it, in the same atomic step.
    #[default]
    Clear,
}

/// Whether a delivered alarm's handler runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AlarmRun {
    /// It runs.
    Run,
    /// The object's alarm is another one, durably: it must not run.
    Cancelled,
}

/// How a run of the alarm's handler ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The alarm is deleted unless the handler set or deleted it.
    Succeeded,
    /// The alarm is as before the run, for a retry, unless the handler changed it.
    Failed,
    /// There will be no retry: deleted unless the handler changed it.
    Abandoned,
}

/// Refuses a key that is too large; does not repeat the key.
pub(crate) fn check_key(limits: &CacheLimits, key: &[u8]) -> Result<()> {
    let (bytes, max) = (key.len(), limits.key_bytes_max);
    refuse_if(bytes > max, code::KEY_TOO_LARGE, || {
        format!("key of {bytes} bytes, at most {max} are allowed")
    })
}

/// Refuses a value that is too large.
pub(crate) fn check_value(limits: &CacheLimits, value: &[u8]) -> Result<()> {
    let (bytes, max) = (value.len(), limits.value_bytes_max);
    refuse_if(bytes > max, code::VALUE_TOO_LARGE, || {
        format!("value of {bytes} bytes, at most {max} are allowed")
    })
}

/// Refuses too many keys in one call.
pub(crate) fn check_count(limits: &CacheLimits, keys: usize) -> Result<()> {
    let max = limits.keys_max;
    refuse_if(keys > max, code::TOO_MANY_KEYS, || {
        format!("{keys} keys in one call, at most {max} are allowed")
    })
}

/// Checks the count and every key.
pub(crate) fn check_keys(limits: &CacheLimits, keys: &[&[u8]]) -> Result<()> {
    check_count(limits, keys.len())?;
    keys.iter().try_for_each(|key| check_key(limits, key))
}

/// An error of [`Kind::Invalid`] with `code` if `refuse`.
pub(crate) fn refuse_if(
    refuse: bool,
    code: &'static str,
    message: impl FnOnce() -> String,
) -> Result<()> {
    match refuse {
        true => Err(Error::coded(Kind::Invalid, code, message())),
        false => Ok(()),
    }
}
