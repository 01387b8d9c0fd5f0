//! The body of a request, from its client to its object.
//!
//! A small one is read before the object is called, so that it is there as a whole; a larger one, and one
//! whose length is not said, comes while the object reads it. What is not read stays with the client: TCP
//! holds it back. However it ends before its end, the object's [`Body`] ends with an error.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Buf, Bytes};
use dormouse_engine as engine;
use futures_util::future::{Either, select};
use http::StatusCode;
use http_body_util::BodyExt;

use super::ServerOptions;
use super::router::BoxError;
use super::tokio_net::within;
use crate::error::Error;
use crate::http::Body;
use crate::stream::{BUFFER_BYTES, BodySender};

/// How far a body is.
#[derive(Default)]
pub(super) struct Progress {
    chunks: AtomicU64,
    /// The status of what went wrong with it, if something did.
    refused: std::sync::OnceLock<StatusCode>,
}

impl Progress {
    /// Chunks that its object took so far.
    pub(super) fn chunks(&self) -> u64 {
        self.chunks.load(Ordering::Acquire)
    }

    /// What the client did wrong.
    pub(super) fn refused(&self) -> Option<StatusCode> {
        self.refused.get().copied()
    }

    fn refuse(&self, status: StatusCode) -> Error {
        let (code, text) = match *self.refused.get_or_init(|| status) {
            StatusCode::PAYLOAD_TOO_LARGE => {
                ("body-too-large", "the body has more bytes than it may")
            }
            StatusCode::REQUEST_TIMEOUT => {
                ("body-timeout", "the client did not go on with the body")
            }
            _ => ("body-cut", "the client ended before the body"),
        };
        engine::Error::coded(engine::Kind::Closed, code, text).into()
    }
}

/// The body as its object is to get it.
///
/// Errors: the status to refuse it with, if that is known before the object is called.
pub(super) async fn receive<B>(
    body: B,
    options: &ServerOptions,
    progress: &Arc<Progress>,
) -> Result<Body, StatusCode>
where
    B: http_body::Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
{
    let hint = body.size_hint();
    // Refused before it comes, where its length is said.
    if hint.lower() > options.body_bytes as u64 {
        return Err(StatusCode::PAYLOAD_TOO_LARGE);
    }
    let mut incoming = Incoming {
        body: Box::pin(body),
        left: options.body_bytes,
        options: *options,
        progress: progress.clone(),
    };
    if hint.upper().is_some_and(|bytes| bytes <= BUFFER_BYTES as u64) {
        return incoming
            .whole()
            .await
            .map_err(|_| progress.refused().expect("it is set with each error"));
    }
    let (sender, body) = Body::stream();
    spawn(incoming.pump(sender));
    Ok(body)
}

#[expect(clippy::disallowed_methods, reason = "on tokio, beside the request's own task")]
fn spawn(pump: impl Future<Output = ()> + Send + 'static) {
    tokio::spawn(pump);
}

struct Incoming<B> {
    body: Pin<Box<B>>,
    /// Bytes that may still come.
    left: usize,
    options: ServerOptions,
    progress: Arc<Progress>,
}

impl<B> Incoming<B>
where
    B: http_body::Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
{
    /// The next bytes; none at the end.
    async fn chunk(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            let frame = within(self.options.body_time, self.body.frame()).await;
            let frame = frame.ok_or_else(|| self.progress.refuse(StatusCode::REQUEST_TIMEOUT))?;
            let Some(frame) = frame else { return Ok(None) };
            let frame = frame.map_err(|_| self.progress.refuse(StatusCode::BAD_REQUEST))?;
            // Trailers are not kept.
            let Ok(mut data) = frame.into_data() else { continue };
            let bytes = data.remaining();
            let left = self.left.checked_sub(bytes);
            self.left = left.ok_or_else(|| self.progress.refuse(StatusCode::PAYLOAD_TOO_LARGE))?;
            // Hyper's own are not copied.
            return Ok(Some(data.copy_to_bytes(bytes)));
        }
    }

    async fn whole(&mut self) -> Result<Body, Error> {
        let first = self.chunk().await?.unwrap_or_default();
        let Some(second) = self.chunk().await? else { return Ok(first.into()) };
        let mut all = [first, second].concat();
        while let Some(chunk) = self.chunk().await? {
            all.extend_from_slice(&chunk);
        }
        Ok(all.into())
    }

    /// Until the body's end, or until nobody reads it.
    async fn pump(mut self, mut sender: BodySender) {
        loop {
            let next = {
                let gone = std::pin::pin!(sender.closed());
                let next = std::pin::pin!(self.chunk());
                match select(gone, next).await {
                    Either::Left(_) => return,
                    Either::Right((next, _)) => next,
                }
            };
            match next {
                Ok(Some(chunk)) => {
                    if sender.send(chunk).await.is_err() {
                        return;
                    }
                    self.progress.chunks.fetch_add(1, Ordering::AcqRel);
                }
                Ok(None) => return sender.finish(),
                Err(error) => return sender.fail(error),
            }
        }
    }
}
