//! A server: accepts connections on every core, where they then live, and ends in order.
//!
//! The cores share one listening socket; who comes to it first has the connection. Its requests go to the cores of their
//! objects by mail, its own among them.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use dormouse_engine as engine;
use dormouse_engine::Host;
use futures_channel::oneshot;
use futures_util::FutureExt;
use futures_util::future::{Either, select};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tower_service::Service as _;

use super::fair::next_turn;
use super::patience::Patient;
use super::tokio_net::within;
use super::{ClientAddress, Router, ServerOptions};
use crate::error::{Error, Result};
use crate::guests::{Guest, Stay};
use crate::host::CoreHost;

/// How long is waited after an accept that failed, as when there are no more file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Connections that the system holds until they are accepted.
const BACKLOG: i32 = 1024;
/// Connections that are accepted before the core does something else.
const ROW_MAX: u64 = 16;

/// A server that runs.
pub(crate) struct Server {
    stop: watch::Sender<bool>,
    /// Resolves when no request is being answered any more.
    drained: oneshot::Receiver<()>,
}

impl Server {
    /// Accepts nothing more, and lets connections end when what was asked on them is answered.
    pub(crate) fn stop(&self) {
        self.stop.send_replace(true);
    }

    /// After [`stop`](Self::stop): blocks until what was asked is answered, or has had its time. Sockets stay open until
    /// their cores hang up.
    pub(crate) fn drain(self) {
        let _its_core_ended = engine::call::wait(self.drained);
    }
}

/// Starts a server; gives the address it listens on.
///
/// Errors: `Retry`: the address can't be had; `Overloaded`, `Closed`: a core takes no mail.
pub(crate) fn start(address: impl ToSocketAddrs, router: Router) -> Result<(Server, SocketAddr)> {
    let failed = |error| engine::Error::io(engine::Kind::Retry, "the server's address", error);
    let (listener, local) = listen(address).map_err(failed)?;
    let (stop, stopped) = watch::channel(false);
    let (drained_sender, drained) = oneshot::channel();
    let mut drained_sender = Some(drained_sender);
    let (topology, options) = (router.topology().clone(), router.options());
    let room = Arc::new(Semaphore::new(options.connections));
    let connections = Connections { router, options, stopped, room };
    for core in 0..topology.cores() {
        let listener = listener.try_clone().map_err(failed)?;
        let (connections, drained) = (connections.clone(), drained_sender.take());
        let accepting = async move |host: CoreHost, stay: Stay| {
            match TcpListener::from_std(listener) {
                Ok(listener) => connections.accept_all(listener, &host, &stay).await,
                Err(error) => {
                    tracing::error!(core, %error, "this core accepts no connections");
                    until_stopped(&mut connections.stopped.clone()).await;
                }
            }
            // One of the cores tells.
            if let Some(drained) = drained {
                connections.drain().await;
                let _nobody_waits = drained.send(());
            }
            drop(stay);
        };
        let start = |host: &CoreHost, stay| accepting(host.clone(), stay).boxed_local();
        topology.send_guest(core, Guest::new("accept", start))?;
    }
    Ok((Server { stop, drained }, local))
}

/// Listens on the first of these addresses that can be had.
#[expect(clippy::disallowed_types, reason = "the cores' runtimes have it then")]
fn listen(address: impl ToSocketAddrs) -> io::Result<(std::net::TcpListener, SocketAddr)> {
    let listener = std::net::TcpListener::bind(address)?;
    // With a longer queue than std's.
    rustix::net::listen(&listener, BACKLOG)?;
    listener.set_nonblocking(true)?;
    let local = listener.local_addr()?;
    Ok((listener, local))
}

#[derive(Clone)]
struct Connections {
    router: Router,
    options: ServerOptions,
    stopped: watch::Receiver<bool>,
    /// A permit for each connection of all cores.
    room: Arc<Semaphore>,
}

impl Connections {
    /// Until the server is stopped.
    async fn accept_all(&self, listener: TcpListener, host: &CoreHost, stay: &Stay) {
        let mut stopped = self.stopped.clone();
        for row in 1_u64.. {
            if row % ROW_MAX == 0 {
                next_turn().await;
            }
            let next = pin!(self.accept(&listener));
            let stop = pin!(until_stopped(&mut stopped));
            match select(stop, next).await {
                Either::Left(_) => return,
                Either::Right(((stream, from, permit), _)) => {
                    let (this, held) = (self.clone(), (permit, stay.clone()));
                    host.spawn("connection", async move {
                        this.connection(stream, from).await;
                        drop(held);
                    });
                }
            }
        }
    }

    /// Waits until nothing is being answered on any core; the sockets are left.
    async fn drain(&self) {
        let all = u32::try_from(self.options.connections).unwrap_or(u32::MAX);
        within(self.options.drain_time, self.room.acquire_many(all)).await;
        // If it is the end, and not a start that failed.
        if *self.stopped.borrow() {
            self.router.go_away();
        }
    }

    async fn accept(
        &self,
        listener: &TcpListener,
    ) -> (TcpStream, SocketAddr, OwnedSemaphorePermit) {
        let permit = self.room.clone().acquire_owned().await.expect("it is never closed");
        loop {
            match listener.accept().await {
                Ok((stream, from)) => return (stream, from, permit),
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    within(ACCEPT_PAUSE, std::future::pending::<()>()).await;
                }
            }
        }
    }

    async fn connection(mut self, stream: TcpStream, from: SocketAddr) {
        // Small frames are not held back for larger ones.
        let _as_it_was = stream.set_nodelay(true);
        let stream = Patient::new(stream, self.options.silence_time.saturating_mul(2));
        let router = self.router;
        let service = service_fn(move |mut request: http::Request<Incoming>| {
            request.extensions_mut().insert(ClientAddress(from));
            router.clone().call(request)
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.options.header_time)
            .max_header_size(self.options.header_bytes)
            .max_buf_size(self.options.header_bytes.max(8 << 10) * 2)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades();
        let mut connection = pin!(connection);
        let stop = pin!(until_stopped(&mut self.stopped));
        let ended = match select(connection.as_mut(), stop).await {
            Either::Left((ended, _)) => ended,
            Either::Right(_) => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "a connection ended");
        }
    }
}

/// Waits until the server is to stop.
async fn until_stopped(stopped: &mut watch::Receiver<bool>) {
    let _its_sender_is_gone = stopped.wait_for(|stopped| *stopped).await.is_err();
}

/// Blocks until the process is asked to end: SIGINT or SIGTERM.
///
/// Errors: the signals can't be waited for.
pub fn until_signal() -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let failed =
        |error| Error::from(engine::Error::io(engine::Kind::Retry, "waiting for a signal", error));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(failed)?.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
        let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
        select(pin!(interrupt.recv()), pin!(terminate.recv())).await;
        Ok(())
    })
}
