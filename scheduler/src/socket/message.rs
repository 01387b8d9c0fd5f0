//! What goes over a socket: messages, control frames, and which closes are well formed.

use std::sync::Arc;

use bytes::Bytes;

use super::bad_argument;
use crate::error::Result;

/// Bytes of a close frame's reason: a control frame's 125 without the code (R-732).
const REASON_BYTES_MAX: usize = 123;
/// What a frame costs beside its bytes, so that empty ones are bounded too.
const FRAME_BYTES: usize = 64;

/// A message of either side. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Text.
    Text(Arc<str>),
    /// Bytes.
    Binary(Bytes),
}

impl Message {
    /// Its text, if it is one.
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            Self::Binary(_) => None,
        }
    }

    /// Its bytes, of either kind.
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Text(text) => text.as_bytes(),
            Self::Binary(bytes) => bytes,
        }
    }
}

impl From<&str> for Message {
    fn from(text: &str) -> Self {
        Self::Text(text.into())
    }
}

impl From<String> for Message {
    fn from(text: String) -> Self {
        Self::Text(text.into())
    }
}

impl From<Bytes> for Message {
    fn from(bytes: Bytes) -> Self {
        Self::Binary(bytes)
    }
}

impl From<Vec<u8>> for Message {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Binary(bytes.into())
    }
}

/// A close frame.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CloseFrame {
    /// None in an empty frame, which means 1005 (R-732).
    pub code: Option<u16>,
    /// At most 123 bytes.
    pub reason: String,
}

impl CloseFrame {
    /// The frame of `close(code, reason)` (R-732).
    ///
    /// Errors: `bad-argument` unless the code is in 1000–4999 and not one that no frame may carry;
    /// for a reason without a code, or over 123 bytes.
    pub fn new(code: Option<u16>, reason: &str) -> Result<Self> {
        match code {
            Some(1004 | 1005 | 1006 | 1015 | ..1000 | 5000..) => {
                let code = code.unwrap_or_default();
                return Err(bad_argument(format!("{code} is no code of a WebSocket's close")));
            }
            None if !reason.is_empty() => {
                return Err(bad_argument("the reason of a WebSocket's close needs a code"));
            }
            _ => {}
        }
        if reason.len() > REASON_BYTES_MAX {
            let text = format!("a close reason of {} bytes; at most 123 are sent", reason.len());
            return Err(bad_argument(text));
        }
        Ok(Self { code, reason: reason.to_owned() })
    }
}

/// How far a socket is; the numbers are those of the standard's `readyState`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadyState {
    /// Both sides may send.
    Open = 1,
    /// One side has closed.
    Closing = 2,
    /// Both sides have closed, or the connection broke.
    Closed = 3,
}

/// One frame on the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Frame {
    Message(Message),
    Ping(Bytes),
    Pong(Bytes),
    Close(CloseFrame),
}

impl Frame {
    /// What it counts in a bounded queue, in bytes.
    pub(crate) fn cost(&self) -> usize {
        FRAME_BYTES
            + match self {
                Self::Message(message) => message.as_bytes().len(),
                Self::Ping(bytes) | Self::Pong(bytes) => bytes.len(),
                Self::Close(close) => close.reason.len(),
            }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// R-732, with the edges of each range.
    #[test]
    fn only_codes_that_a_frame_may_carry_are_taken() {
        for code in [0, 999, 1004, 1005, 1006, 1015, 5000, u16::MAX] {
            let error = CloseFrame::new(Some(code), "").unwrap_err();
            assert_eq!(error.code(), Some("bad-argument"), "{code}");
        }
        for code in [1000, 1001, 1003, 1007, 1014, 1016, 2999, 3000, 4999] {
            assert_eq!(CloseFrame::new(Some(code), "").unwrap().code, Some(code));
        }
        assert_eq!(CloseFrame::new(None, "").unwrap(), CloseFrame::default());
    }

    #[test]
    fn a_reason_needs_a_code_and_has_a_bound_in_bytes() {
        assert!(CloseFrame::new(None, "why").is_err());
        assert!(CloseFrame::new(Some(3000), &"r".repeat(123)).is_ok());
        assert!(CloseFrame::new(Some(3000), &"r".repeat(124)).is_err());
        assert!(CloseFrame::new(Some(3000), &"é".repeat(62)).is_err());
    }
}
