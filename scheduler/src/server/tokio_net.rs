//! [`TokioNet`]: the network of a server, and of what objects open to the outside.

use std::future::Future;
use std::time::Duration;

use futures_util::FutureExt;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;

use crate::net::Net;

/// Connections that hyper has let go, and tokio's clock.
#[derive(Clone, Copy)]
pub(crate) struct TokioNet;

impl Net for TokioNet {
    type Stream = TokioIo<Upgraded>;

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
