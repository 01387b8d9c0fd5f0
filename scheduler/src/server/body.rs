//! [`Body`] as hyper and tower take it.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Frame, SizeHint};

use crate::error::{Error, Result};
use crate::http::Body;

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>>>> {
        let chunk = self.get_mut().poll_chunk(cx);
        chunk.map(|chunk| chunk.map(|bytes| bytes.map(Frame::data)).transpose())
    }

    fn is_end_stream(&self) -> bool {
        self.whole_len() == Some(0)
    }

    fn size_hint(&self) -> SizeHint {
        let exact = |bytes| SizeHint::with_exact(bytes as u64);
        self.whole_len().map_or_else(SizeHint::default, exact)
    }
}
