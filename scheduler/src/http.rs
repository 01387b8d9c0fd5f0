//! The `http` crate's types with our body.

use std::future::poll_fn;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use serde::Serialize;

use crate::error::{Error, Result};
use crate::stream::{BodyReader, BodySender, stream};

/// A request to an object.
pub type Request<B = Body> = http::Request<B>;

/// An object's answer.
pub type Response<B = Body> = http::Response<B>;

/// The bytes of a request or response: there as a whole, or coming piece by piece.
#[derive(Debug)]
pub struct Body(Source);

#[derive(Debug)]
enum Source {
    Whole(Bytes),
    Coming(BodyReader),
}

impl Default for Body {
    fn default() -> Self {
        Self(Source::Whole(Bytes::new()))
    }
}

impl Body {
    /// A body whose bytes are sent while it is read, from whichever thread; see [`BodySender`].
    pub fn stream() -> (BodySender, Self) {
        let (sender, reader) = stream();
        (sender, Self(Source::Coming(reader)))
    }

    /// How many bytes there are, if they are there as a whole.
    pub fn whole_len(&self) -> Option<usize> {
        match &self.0 {
            Source::Whole(bytes) => Some(bytes.len()),
            Source::Coming(_) => None,
        }
    }

    /// The next bytes; none at the end.
    ///
    /// Errors: the body was cut off (code `body-cut`, or what its sender says).
    /// Cancel: nothing is lost.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>> {
        poll_fn(|cx| self.poll_chunk(cx)).await
    }

    /// See [`chunk`](Self::chunk).
    pub fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>>> {
        match &mut self.0 {
            Source::Whole(bytes) => {
                let bytes = std::mem::take(bytes);
                Poll::Ready(Ok((!bytes.is_empty()).then_some(bytes)))
            }
            Source::Coming(reader) => reader.poll_chunk(cx),
        }
    }

    /// All bytes, however many come.
    ///
    /// Errors: as [`chunk`](Self::chunk).
    pub async fn bytes(mut self) -> Result<Bytes> {
        let first = self.chunk().await?.unwrap_or_default();
        // One chunk is not copied.
        let Some(second) = self.chunk().await? else { return Ok(first) };
        let mut all = BytesMut::from(&*first);
        all.extend_from_slice(&second);
        while let Some(chunk) = self.chunk().await? {
            all.extend_from_slice(&chunk);
        }
        Ok(all.freeze())
    }

    /// All bytes as text.
    ///
    /// Errors: not UTF-8; as [`chunk`](Self::chunk).
    pub async fn text(self) -> Result<String> {
        let bytes = self.bytes().await?;
        String::from_utf8(bytes.into()).map_err(|error| Error::user(error.to_string()))
    }
}

macro_rules! body_from {
    ($($from:ty),*) => {$(
        impl From<$from> for Body {
            fn from(bytes: $from) -> Self {
                Self(Source::Whole(bytes.into()))
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
