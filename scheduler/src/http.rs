//! The `http` crate's types with our body.

use bytes::Bytes;
use serde::Serialize;

use crate::error::{Error, Result};

/// A request to an object.
pub type Request<B = Body> = http::Request<B>;

/// An object's answer.
pub type Response<B = Body> = http::Response<B>;

/// The bytes of a request or response.
#[derive(Clone, Debug, Default)]
pub struct Body(Bytes);

impl Body {
    /// Its bytes; nothing is left.
    #[cfg(feature = "server")]
    pub(crate) fn take(&mut self) -> Bytes {
        std::mem::take(&mut self.0)
    }

    /// How many bytes it has.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All bytes.
    pub async fn bytes(self) -> Result<Bytes> {
        Ok(self.0)
    }

    /// All bytes as text.
    ///
    /// Errors: not UTF-8.
    pub async fn text(self) -> Result<String> {
        String::from_utf8(self.0.into()).map_err(|error| Error::user(error.to_string()))
    }
}

macro_rules! body_from {
    ($($from:ty),*) => {$(
        impl From<$from> for Body {
            fn from(bytes: $from) -> Self {
                Self(bytes.into())
            }
        }
    )*};
}
body_from!(Bytes, Vec<u8>, String, &'static str);

impl From<()> for Body {
    fn from((): ()) -> Self {
        Self::default()
    }
}

/// Short ways to make a [`Response`].
pub trait Respond: Sized {
    /// Status 200 with `value` as JSON.
    ///
    /// Errors: `value` has no JSON.
    fn json(value: &impl Serialize) -> Result<Self>;

    /// Status 200 with this text.
    fn text(text: impl Into<String>) -> Self;
}

impl Respond for Response {
    fn json(value: &impl Serialize) -> Result<Self> {
        let mut response = Self::new(serde_json::to_vec(value)?.into());
        let json = http::HeaderValue::from_static("application/json");
        response.headers_mut().insert(http::header::CONTENT_TYPE, json);
        Ok(response)
    }

    fn text(text: impl Into<String>) -> Self {
        Self::new(text.into().into())
    }
}
