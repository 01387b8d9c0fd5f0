//! A connection that lets others have their turn.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use dormouse_engine::executor::wake_next_turn;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Reads and writes in a row that don't wait. Eight reads of small frames are a millisecond's work.
const ROW_MAX: u8 = 8;

/// A stream that makes its task wait for the core's next turn after [`ROW_MAX`] reads and writes that did not wait. Who
/// sends faster than he is read would keep the core for himself: it runs without tokio's budget, which is one for a
/// whole turn, and which he would leave nothing of to the others.
pub(crate) struct Fair<S> {
    stream: S,
    row: u8,
}

/// Waits for the core's next turn.
pub(super) async fn next_turn() {
    let mut waited = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut waited, true) {
            return Poll::Ready(());
        }
        wake_next_turn(cx.waker());
        Poll::Pending
    })
    .await;
}

impl<S> Fair<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self { stream, row: 0 }
    }

    pub(super) fn into_inner(self) -> S {
        self.stream
    }
}

impl<S: Unpin> Fair<S> {
    fn poll<T>(
        &mut self,
        cx: &mut Context<'_>,
        poll: impl FnOnce(Pin<&mut S>, &mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        if self.row == ROW_MAX {
            self.row = 0;
            wake_next_turn(cx.waker());
            return Poll::Pending;
        }
        let polled = poll(Pin::new(&mut self.stream), cx);
        self.row = if polled.is_ready() { self.row + 1 } else { 0 };
        polled
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Fair<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.poll(cx, |stream, cx| stream.poll_read(cx, buf))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Fair<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll(cx, |stream, cx| stream.poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll(cx, |stream, cx| stream.poll_write_vectored(cx, slices))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
