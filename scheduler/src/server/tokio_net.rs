//! [`TokioNet`]: the network of a server, and of what objects open to the outside; and what is left of a connection
//! when HTTP has let it go.

use std::future::Future;
use std::io;
use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes};
use futures_util::FutureExt;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::Fair;
use crate::net::Net;

/// Connections of some type, and tokio's clock.
pub(crate) struct TokioNet<S>(PhantomData<fn() -> S>);

impl<S> TokioNet<S> {
    pub(crate) const fn new() -> Self {
        Self(PhantomData)
    }
}

impl<S: AsyncRead + AsyncWrite> Net for TokioNet<S> {
    type Stream = S;

    fn within<F: Future>(
        &self,
        limit: Duration,
        future: F,
    ) -> impl Future<Output = Option<F::Output>> {
        within(limit, future)
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the server's tasks live on tokio, and so do real cores"
)]
pub(super) fn within<F: Future>(
    limit: Duration,
    future: F,
) -> impl Future<Output = Option<F::Output>> {
    tokio::time::timeout(limit, future).map(Result::ok)
}

/// A connection of which some was read ahead.
pub(super) struct ReadAhead {
    ahead: Bytes,
    stream: Fair<TcpStream>,
}

impl ReadAhead {
    pub(super) fn new(ahead: Bytes, stream: TcpStream) -> Self {
        let mut this = Self { ahead, stream: Fair::new(stream) };
        this.let_go();
        this
    }

    /// The connection, of which what was read ahead is taken.
    pub(super) fn into_stream(self) -> TcpStream {
        assert!(self.ahead.is_empty(), "nothing that came is lost");
        self.stream.into_inner()
    }

    /// Empty bytes, too, keep the buffer that they are of.
    fn let_go(&mut self) {
        if self.ahead.is_empty() {
            self.ahead = Bytes::new();
        }
    }
}

impl AsyncRead for ReadAhead {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.ahead.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, buf);
        }
        let some = self.ahead.len().min(buf.remaining());
        buf.put_slice(&self.ahead[..some]);
        self.ahead.advance(some);
        self.let_go();
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ReadAhead {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
