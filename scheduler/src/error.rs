//! Errors of calls to objects, and what the caller should do about them.
//!
//! An [`Error`] is opaque: a [`Kind`], a message, a short stable [code](Error::code), and whether
//! the object was [reset](Error::reset). Cheap to clone: one reset answers many calls.

use std::any::Any;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use dormouse_engine as engine;

use crate::id::Id;

/// `Result` with [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The code of [`Error::event_timeout`].
const EVENT_TIMEOUT: &str = "event-timeout";

/// What happened to the call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// The storage engine refused or failed.
    Engine(engine::Kind),
    /// The object's own code returned this error.
    User,
    /// The object's own code aborted the instance.
    ObjectAborted,
    /// The instance was dropped: a panic, or a failed commit.
    ObjectReset,
}

/// An error of a call, or of an object's own code.
#[derive(Clone)]
pub struct Error(Arc<Inner>);

struct Inner {
    kind: Kind,
    message: String,
    engine: Option<engine::Error>,
    overload: Option<Overload>,
    panicked: bool,
}

/// What stood before a call that was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overload {
    /// How many calls waited or ran in the object, or messages waited for its core.
    pub depth: usize,
    /// For how long the oldest of them was there; of a mailbox the most that it can be, and none where the caller has
    /// no clock (in a simulation).
    pub oldest: Option<Duration>,
}

impl Error {
    fn build(kind: Kind, message: String, engine: Option<engine::Error>) -> Self {
        Self(Arc::new(Inner { kind, message, engine, overload: None, panicked: false }))
    }

    /// The call was refused with this code, for so much was waiting; `what` is overloaded.
    pub(crate) fn overloaded(code: &'static str, what: &str, overload: Overload) -> Self {
        let Overload { depth, oldest } = overload;
        let age = oldest.map_or(String::new(), |oldest| format!(", the oldest for {oldest:.1?}"));
        let text =
            format!("{what} is overloaded: {depth} wait or run{age}; call it less often, or later");
        let error = engine::Error::coded(engine::Kind::Overloaded, code, text);
        Self(Arc::new(Inner {
            kind: Kind::Engine(error.kind()),
            message: error.to_string(),
            engine: Some(error),
            overload: Some(overload),
            panicked: false,
        }))
    }

    /// An error of the object's own code.
    pub fn user(message: impl Into<String>) -> Self {
        Self::build(Kind::User, message.into(), None)
    }

    /// The instance was aborted by its own code, for this reason.
    pub fn aborted(reason: impl Into<String>) -> Self {
        Self::build(Kind::ObjectAborted, reason.into(), None)
    }

    /// The instance was dropped, for this reason.
    pub fn object_reset(reason: impl Into<String>) -> Self {
        Self::build(Kind::ObjectReset, reason.into(), None)
    }

    /// The instance was dropped because its storage failed or a limit was passed.
    pub(crate) fn reset_by(cause: engine::Error) -> Self {
        Self::build(Kind::ObjectReset, format!("the object was reset: {cause}"), Some(cause))
    }

    /// The instance was dropped because its alarm's handler took longer than it may.
    pub(crate) fn alarm_timeout(limit: Duration) -> Self {
        let text = format!("the alarm's handler took longer than {} s", limit.as_secs());
        Self::reset_by(engine::Error::coded(engine::Kind::Overloaded, "alarm-timeout", text))
    }

    /// The object was deleted for good.
    pub(crate) fn deleted(id: &Id) -> Self {
        let text = format!("object {id} was deleted");
        let cause = engine::Error::coded(engine::Kind::Closed, "object-deleted", text.clone());
        Self::build(Kind::ObjectReset, text, Some(cause))
    }

    /// The instance was dropped because a handler of a socket took longer than it may.
    pub(crate) fn event_timeout(limit: Duration) -> Self {
        let text = format!("a WebSocket's handler took longer than {} ms", limit.as_millis());
        Self::reset_by(engine::Error::coded(engine::Kind::Retry, EVENT_TIMEOUT, text))
    }

    /// The instance was dropped because a critical section failed with `error`.
    pub(crate) fn section_failed(error: Self) -> Self {
        match error.reset() {
            true => error,
            false => Self::object_reset(error.0.message.clone()),
        }
    }

    /// The instance was dropped because its code panicked.
    pub(crate) fn panicked(panic: &(dyn Any + Send)) -> Self {
        Self(Arc::new(Inner {
            kind: Kind::ObjectReset,
            message: format!("the object panicked: {}", text_of(panic)),
            engine: None,
            overload: None,
            panicked: true,
        }))
    }

    /// Work beside the core panicked.
    pub(crate) fn work_panicked(panic: &(dyn Any + Send)) -> Self {
        Self::user(format!("blocking work panicked: {}", text_of(panic)))
    }

    /// What happened.
    pub fn kind(&self) -> Kind {
        self.0.kind
    }

    /// The engine's name of the broken rule, such as `key-too-large` or `id-foreign`.
    pub fn code(&self) -> Option<&'static str> {
        self.0.engine.as_ref().and_then(engine::Error::code)
    }

    /// Whether the same call may be made again: nothing happened, or (code `event-timeout`) the
    /// object was shut down in the midst of it through no fault of this call.
    pub fn is_retryable(&self) -> bool {
        let is_retry = self.engine_kind() == Some(engine::Kind::Retry);
        is_retry && (!self.reset() || self.is_event_timeout())
    }

    fn is_event_timeout(&self) -> bool {
        self.code() == Some(EVENT_TIMEOUT)
    }

    /// Whether a bounded queue was full, and nothing happened, or a time limit was passed: slow
    /// down.
    pub fn is_overloaded(&self) -> bool {
        self.engine_kind() == Some(engine::Kind::Overloaded)
    }

    /// What stood before the call, if it was refused because a queue was full: of an object (code
    /// `object-overloaded`), of a core (`mailbox-full`), or of an object for which there is no memory
    /// (`memory-full`).
    pub fn overload(&self) -> Option<Overload> {
        self.0.overload
    }

    /// Whether the object's code panicked.
    pub(crate) fn is_panic(&self) -> bool {
        self.0.panicked
    }

    /// Whether storage failed, through no fault of the object's: neither its code nor a limit
    ///
    pub(crate) fn is_storage_failure(&self) -> bool {
        self.reset()
            && !self.is_event_timeout()
            && self.engine_kind().is_some_and(|kind| kind != engine::Kind::Overloaded)
    }

    fn engine_kind(&self) -> Option<engine::Kind> {
        self.0.engine.as_ref().map(engine::Error::kind)
    }

    /// Whether the instance is gone; the next call makes a new one.
    pub fn reset(&self) -> bool {
        matches!(self.0.kind, Kind::ObjectAborted | Kind::ObjectReset)
    }
}

/// What a panic says.
fn text_of(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("no message")
}

impl From<engine::Error> for Error {
    fn from(error: engine::Error) -> Self {
        Self::build(Kind::Engine(error.kind()), error.to_string(), Some(error))
    }
}

impl From<http::Error> for Error {
    fn from(error: http::Error) -> Self {
        Self::user(error.to_string())
    }
}

impl From<serde_json::Error> for Error {
    fn from(error: serde_json::Error) -> Self {
        Self::user(format!("a value can't be read or written as its type: {error}"))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Error({:?}: {self})", self.0.kind)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.engine.as_ref().map(|error| error as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engine_errors_keep_their_meaning() {
        let full = Error::from(engine::Error::new(engine::Kind::Overloaded, "mailbox"));
        assert!(full.is_overloaded() && !full.is_retryable() && !full.reset());
        let large = engine::Error::coded(engine::Kind::Invalid, "key-too-large", "key");
        assert_eq!(Error::from(large).code(), Some("key-too-large"));
    }

    #[test]
    fn storage_failures_are_told_from_what_objects_do() {
        let failed = |kind| Error::reset_by(engine::Error::new(kind, "a commit"));
        assert!(failed(engine::Kind::Unknown).is_storage_failure());
        assert!(!failed(engine::Kind::Overloaded).is_storage_failure());
        let late = Error::event_timeout(Duration::from_millis(100));
        assert!(late.reset() && late.is_retryable() && !late.is_storage_failure());
        assert!(!Error::aborted("why").is_storage_failure());
        assert!(!Error::object_reset("a panic").is_storage_failure());
    }

    #[test]
    fn resets_are_told_from_user_errors() {
        assert!(Error::aborted("why").reset() && Error::object_reset("why").reset());
        assert!(!Error::user("why").reset());
    }
}
