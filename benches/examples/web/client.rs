//! A client that keeps its connection, for what a load generator does not do: requests in an order, each timed.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderValue, Uri};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::Result;

/// A request that is not answered within this time fails the run.
pub(crate) const ANSWER_TIME: Duration = Duration::from_secs(30);

/// A connection with one request on its way at most.
pub(crate) struct Connection {
    sender: SendRequest<Empty<Bytes>>,
    host: HeaderValue,
}

impl Connection {
    pub(crate) async fn open(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        // Its errors are those of the request that was on its way.
        tokio::spawn(async move { drop(connection.await) });
        let host = HeaderValue::from_maybe_shared(Bytes::from(address.to_string()))?;
        Ok(Self { sender, host })
    }

    /// Waits for as long as it takes.
    ///
    /// Errors: answered otherwise than by 200.
    pub(crate) async fn request(&mut self, path: &Uri) -> Result<()> {
        let mut request = http::Request::new(Empty::new());
        *request.uri_mut() = path.clone();
        request.headers_mut().insert(http::header::HOST, self.host.clone());
        let response = self.sender.send_request(request).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        match status {
            http::StatusCode::OK => Ok(()),
            _ => Err(format!("{path}: {status} {}", String::from_utf8_lossy(&body)).into()),
        }
    }

    /// Errors: not answered in time, or otherwise than by 200.
    pub(crate) async fn get(&mut self, path: &str) -> Result<()> {
        tokio::time::timeout(ANSWER_TIME, self.request(&path.parse()?)).await?
    }

    /// How long it takes until the answer is there.
    pub(crate) async fn timed(&mut self, path: &str) -> Result<Duration> {
        let began = Instant::now();
        self.get(path).await?;
        Ok(began.elapsed())
    }
}

/// Requests all paths once, over so many connections.
pub(crate) async fn get_all(
    address: SocketAddr,
    paths: Vec<String>,
    connections: usize,
) -> Result<()> {
    let paths = std::sync::Arc::new(paths);
    let mut tasks = Vec::new();
    for first in 0..connections {
        let paths = paths.clone();
        tasks.push(tokio::spawn(async move {
            let mut connection = Connection::open(address).await?;
            for path in paths.iter().skip(first).step_by(connections) {
                connection.get(path).await?;
            }
            Result::Ok(())
        }));
    }
    for task in tasks {
        task.await??;
    }
    Ok(())
}
