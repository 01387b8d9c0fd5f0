//! What is served: Dormouse's objects, which do what those of worker.js do, and the floor, a hyper server that does
//! next to nothing. Each runs in a process of its own, which is this program again.

use std::cell::Cell;
use std::fs::File;
use std::net::SocketAddr;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::rc::Rc;

use bytes::Bytes;
use dormouse_scheduler::prelude::*;
use dormouse_scheduler::until_signal;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

use crate::steps::REPEATED;

/// Keys that are listed, how many of them are put at once, and puts in one event. worker.js has the same.
const LISTED: usize = 1000;
const BATCH: usize = 100;
const PUTS: usize = 10;

/// The namespace, which is the first part of each path.
pub(crate) const NAMESPACE: &str = "objects";

struct Subject {
    state: State,
    /// A put of what is there already may be no write at all: what is put again is never the same.
    values: [String; 2],
    turn: Cell<u64>,
}

impl DurableObject for Subject {
    fn new(state: State) -> Self {
        let values = ["x", "y"].map(|letter| letter.repeat(100));
        Self { state, values, turn: Cell::new(0) }
    }

    async fn fetch(&self, request: Request) -> Result<Response> {
        if let Some(socket) = request.web_socket_upgrade()? {
            self.state.accept_web_socket(&socket, [""; 0])?;
            return Ok(socket.into_response());
        }
        let storage = self.state.storage();
        match request.uri().path() {
            "/get" => {
                let value: Option<String> = storage.get("value").await?;
                return Ok(Response::text(value.unwrap_or_else(|| "none".to_owned())));
            }
            "/put" => storage.put("value", &self.values[0]).await?,
            "/increment" => {
                let count: u64 = storage.get("count").await?.unwrap_or(0) + 1;
                storage.put("count", &count).await?;
                return Ok(Response::text(count.to_string()));
            }
            "/puts" => {
                self.turn.set(self.turn.get() + 1);
                let value = format!("{:0100}", self.turn.get());
                for key in 0..PUTS {
                    storage.put(&format!("key-{key}"), &value).await?;
                }
            }
            "/fill" => self.fill().await?,
            "/list" => return self.list().await,
            "/cached-get" => return self.get_often().await,
            "/cached-put" => {
                for number in 0..REPEATED {
                    storage.put("value", &self.values[number % 2]).await?;
                }
            }
            _ => return Err(Error::user("no such operation")),
        }
        Ok(Response::text("put"))
    }

    async fn web_socket_message(&self, socket: &WebSocket, message: Message) -> Result<()> {
        socket.send(message)
    }

    async fn web_socket_close(&self, socket: &WebSocket, closed: Closed) -> Result<()> {
        socket.close((closed.code != 1005).then_some(closed.code), &closed.reason)
    }
}

impl Subject {
    async fn fill(&self) -> Result<()> {
        let keys: Vec<String> = (0..LISTED).map(|key| format!("listed-{key:04}")).collect();
        for keys in keys.chunks(BATCH) {
            let entries: Vec<_> = keys.iter().map(|key| (key.as_str(), &self.values[0])).collect();
            self.state.storage().put_many(&entries).await?;
        }
        Ok(())
    }

    async fn list(&self) -> Result<Response> {
        let found = self.state.storage().list::<String>(&List::prefix("listed-")).await?;
        let bytes: usize = found.iter().map(|(_, value)| value.len()).sum();
        Ok(Response::text(format!("{} {bytes}", found.len())))
    }

    async fn get_often(&self) -> Result<Response> {
        let mut bytes = 0;
        for _ in 0..REPEATED {
            let value: Option<String> = self.state.storage().get("value").await?;
            bytes += value.map_or(0, |value| value.len());
        }
        Ok(Response::text(bytes.to_string()))
    }
}

/// Serves Dormouse's objects with all options as they are, on one core, until the process is told to end.
pub(crate) fn dormouse(dir: &Path, address: SocketAddr) -> crate::Result<()> {
    let runtime = Runtime::builder(dir).cores(1).namespace::<Subject>(NAMESPACE).start()?;
    runtime.serve(address).wait()?;
    until_signal()?;
    Ok(runtime.close()?)
}

/// A file whose blocks are all written, to be written over.
struct Written {
    file: File,
    next: Cell<u64>,
}

impl Written {
    const BLOCK: [u8; 4096] = [1; 4096];
    const BLOCKS: u64 = 1024;

    fn new(dir: &Path) -> std::io::Result<Self> {
        let file = File::create(dir.join("written"))?;
        for block in 0..Self::BLOCKS {
            file.write_all_at(&Self::BLOCK, block * 4096)?;
        }
        file.sync_all()?;
        Ok(Self { file, next: Cell::new(0) })
    }

    /// Writes the next block; returns when it is durable.
    fn write(&self) -> std::io::Result<()> {
        let block = self.next.replace((self.next.get() + 1) % Self::BLOCKS);
        self.file.write_all_at(&Self::BLOCK, block * 4096)?;
        self.file.sync_data()
    }
}

/// Answers 100 bytes: for a path that ends in `write` after a durable write, else at once.
pub(crate) fn floor(dir: &Path, address: SocketAddr) -> crate::Result<()> {
    let written = Rc::new(Written::new(dir)?);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let tasks = tokio::task::LocalSet::new();
    tasks.block_on(&runtime, async {
        let listener = TcpListener::bind(address).await?;
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            let written = written.clone();
            let answer = move |request: http::Request<Incoming>| {
                let is_write = request.uri().path().ends_with("/write");
                let done = if is_write { written.write() } else { Ok(()) };
                let body = Full::new(Bytes::from_static(&[b'x'; 100]));
                async { done.map(|()| http::Response::new(body)) }
            };
            let connection =
                http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(answer));
            tokio::task::spawn_local(async move {
                // A client that has gone is no failure of the floor.
                let _it_ended = connection.await;
            });
        }
    })
}
