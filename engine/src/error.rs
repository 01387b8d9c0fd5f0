//! Errors that say what the caller should do.
//!
//! An [`Error`] is opaque: a [`Kind`], a message that names the place, and the cause. The kind is
//! the contract, the message is for people. Kinds are those of docs/design.md, section 3.6.

use std::fmt;
use std::sync::Arc;

/// `Result` with [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What happened to the request, and so what the caller should do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Kind {
    /// Nothing happened; the same call may succeed later.
    Retry,
    /// The commit may or may not have happened: read again before deciding.
    Unknown,
    /// The object is not at the version that the batch was made for; nothing happened.
    Conflict,
    /// The request breaks a documented limit or rule; a bug of the caller.
    Invalid,
    /// The disk is full; nothing happened. What only frees is still taken ([`crate::Batch::only_frees`]); with room, be it
    /// freed so or by somebody else, new data is taken again on the same handle.
    NoSpace,
    /// A bounded queue is full; nothing happened. Slow down.
    Overloaded,
    /// Bytes of this object or range are damaged: repair or restore it.
    Corrupt,
    /// An earlier write failed, so the shard refuses all work: reopen the store.
    Poisoned,
    /// The store was closed.
    Closed,
}

impl Kind {
    /// The kind's name, as it appears in messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Retry => "retry",
            Self::Unknown => "unknown outcome",
            Self::Conflict => "conflict",
            Self::Invalid => "invalid",
            Self::NoSpace => "no space",
            Self::Overloaded => "overloaded",
            Self::Corrupt => "corrupt",
            Self::Poisoned => "poisoned",
            Self::Closed => "closed",
        }
    }
}

/// An error of the engine. Cheap to clone: one failed write answers many commits.
#[derive(Clone)]
pub struct Error(Arc<Inner>);

struct Inner {
    kind: Kind,
    code: Option<&'static str>,
    message: String,
    source: Option<Arc<std::io::Error>>,
    cause: Option<Error>,
}

impl Error {
    /// An error of this kind; `message` says what was tried, on which object or file.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self::build(kind, None, message.into(), None, None)
    }

    /// An error of this kind with a [code](Error::code).
    pub fn coded(kind: Kind, code: &'static str, message: impl Into<String>) -> Self {
        Self::build(kind, Some(code), message.into(), None, None)
    }

    fn build(
        kind: Kind,
        code: Option<&'static str>,
        message: String,
        source: Option<Arc<std::io::Error>>,
        cause: Option<Error>,
    ) -> Self {
        Self(Arc::new(Inner { kind, code, message, source, cause }))
    }

    /// An error of this kind, caused by an I/O error.
    pub fn io(kind: Kind, message: impl Into<String>, source: std::io::Error) -> Self {
        Self::build(kind, None, message.into(), Some(Arc::new(source)), None)
    }

    /// A file on which nothing depends yet could not be made: `NoSpace` if the disk is full, else
    /// `Retry`.
    pub(crate) fn making(message: impl Into<String>, source: std::io::Error) -> Self {
        let kind = match source.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => Kind::NoSpace,
            _ => Kind::Retry,
        };
        Self::io(kind, message, source)
    }

    /// An error of this kind, caused by `cause` (as every call after a poisoning write).
    pub fn caused(kind: Kind, message: impl Into<String>, cause: Error) -> Self {
        Self::build(kind, None, message.into(), None, Some(cause))
    }

    /// [`Kind::Invalid`]: the caller's bug.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Kind::Invalid, message)
    }

    /// [`Kind::Invalid`]: `what` was written by newer code (E8).
    pub(crate) fn newer_format(what: &str, version: u16) -> Self {
        let message = format!("{what} has format version {version}, newer than this code");
        Self::coded(Kind::Invalid, "newer-format", message)
    }

    /// [`Kind::Corrupt`]: damaged bytes.
    pub fn corrupt(message: impl Into<String>) -> Self {
        Self::new(Kind::Corrupt, message)
    }

    /// What the caller should do.
    pub fn kind(&self) -> Kind {
        self.0.kind
    }

    /// A short stable name of the rule that was broken, such as `key-too-large`, where the kind
    /// alone does not tell.
    pub fn code(&self) -> Option<&'static str> {
        self.0.code
    }

    /// The message without the kind and the causes.
    pub fn message(&self) -> &str {
        &self.0.message
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.0.kind.name(), self.0.message)?;
        if let Some(source) = &self.0.source {
            write!(f, ": {source}")?;
        }
        if let Some(cause) = &self.0.cause {
            write!(f, " (first cause: {cause})")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Error({self})")
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match (&self.0.source, &self.0.cause) {
            (Some(source), _) => Some(&**source),
            (None, Some(cause)) => Some(cause),
            (None, None) => None,
        }
    }
}
