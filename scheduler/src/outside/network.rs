//! [`Network`]: how a core reaches the outside.

use std::io;

use futures_util::future::{FutureExt, LocalBoxFuture};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::server::Fair;

/// Opens connections, from any core.
pub trait Network: Send + Sync + 'static {
    /// A connection to `host`, a name or an address, on `port`. Dropped before, it is given up.
    fn connect(
        &self,
        host: &str,
        port: u16,
    ) -> LocalBoxFuture<'static, io::Result<Box<dyn Stream>>>;
}

/// A connection's bytes, both ways.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Stream for T {}

/// The machine's own, through the tokio that a real core runs on.
pub(crate) struct TokioNetwork;

impl Network for TokioNetwork {
    fn connect(
        &self,
        host: &str,
        port: u16,
    ) -> LocalBoxFuture<'static, io::Result<Box<dyn Stream>>> {
        let host = host.to_owned();
        async move {
            let stream = tokio::net::TcpStream::connect((&*host, port)).await?;
            // Small frames are not held back for larger ones.
            stream.set_nodelay(true)?;
            Ok(Box::new(Fair::new(stream)) as Box<dyn Stream>)
        }
        .boxed_local()
    }
}
