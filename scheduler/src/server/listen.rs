//! The thread of a server: accepts connections, and ends in order.

use std::net::{SocketAddr, ToSocketAddrs};
use std::pin::pin;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use dormouse_engine as engine;
use futures_channel::oneshot;
use futures_util::future::{Either, select};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tower_service::Service as _;

use super::patience::Patient;
use super::tokio_net::within;
use super::{ClientAddress, Router, ServerOptions};
use crate::error::{Error, Result};

/// How long is waited after an accept that failed, as when there are no more file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How long a shutdown waits for sockets whose objects have hung up.
const SOCKETS_TIME: Duration = Duration::from_secs(2);

/// A server that runs.
pub(crate) struct Server {
    stop: watch::Sender<bool>,
    /// Resolves when no request is being answered any more.
    drained: oneshot::Receiver<()>,
    /// Sent when the cores have ended.
    cores_ended: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

impl Server {
    /// Accepts nothing more; blocks until what was asked is answered, or has had its time. Sockets
    /// stay open.
    pub(crate) fn drain(self) -> Drained {
        self.stop.send_replace(true);
        let _it_ended = engine::call::wait(self.drained);
        Drained { cores_ended: self.cores_ended, thread: self.thread }
    }
}

/// A server that has only sockets left.
pub(crate) struct Drained {
    cores_ended: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

impl Drained {
    /// Ends it; call it when the cores have hung up all sockets.
    pub(crate) fn join(self) {
        let _it_ended = self.cores_ended.send(());
        if self.thread.join().is_err() {
            tracing::error!("the server's thread panicked");
        }
    }
}

/// Starts a server; the address it listens on comes by `listening`.
#[expect(clippy::disallowed_methods, reason = "the server has a thread of its own")]
pub(crate) fn start(
    address: impl ToSocketAddrs,
    router: Router,
    listening: oneshot::Sender<Result<SocketAddr>>,
) -> Option<Server> {
    let (stop, stopped) = watch::channel(false);
    let (drained_sender, drained) = oneshot::channel();
    let (cores_ended, ended) = oneshot::channel();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("dormouse-server")
        .enable_all()
        .build();
    let bound = address.to_socket_addrs().and_then(|addresses| {
        let addresses: Vec<_> = addresses.collect();
        let runtime = runtime?;
        let listener = runtime.block_on(TcpListener::bind(&*addresses))?;
        Ok((runtime, listener.local_addr()?, listener))
    });
    let (runtime, local, listener) = match bound {
        Ok(bound) => bound,
        Err(error) => {
            let error = engine::Error::io(engine::Kind::Retry, "the server's address", error);
            let _nobody_waits = listening.send(Err(error.into()));
            return None;
        }
    };
    let serving = async move {
        let options = router.options();
        let connections = Connections { router: router.clone(), options, stopped };
        connections.serve(listener).await;
        router.go_away();
        let _nobody_waits = drained_sender.send(());
        let _the_runtime_is_gone = ended.await;
        within(SOCKETS_TIME, router.sockets_closed()).await;
    };
    let thread = std::thread::spawn(move || {
        runtime.block_on(serving);
        runtime.shutdown_timeout(SOCKETS_TIME);
    });
    let _nobody_waits = listening.send(Ok(local));
    Some(Server { stop, drained, cores_ended, thread })
}

#[derive(Clone)]
struct Connections {
    router: Router,
    options: ServerOptions,
    stopped: watch::Receiver<bool>,
}

impl Connections {
    /// Until it is stopped, and then until nothing is being answered.
    async fn serve(&self, listener: TcpListener) {
        let room = Arc::new(Semaphore::new(self.options.connections));
        let mut stopped = self.stopped.clone();
        loop {
            let next = pin!(self.accept(&listener, &room));
            let stop = pin!(stop(&mut stopped));
            match select(stop, next).await {
                Either::Left(_) => break,
                Either::Right(((stream, from, permit), _)) => self.spawn(stream, from, permit),
            }
        }
        drop(listener);
        let all = u32::try_from(self.options.connections).unwrap_or(u32::MAX);
        within(self.options.drain_time, room.acquire_many(all)).await;
    }

    async fn accept(
        &self,
        listener: &TcpListener,
        room: &Arc<Semaphore>,
    ) -> (TcpStream, SocketAddr, OwnedSemaphorePermit) {
        let permit = room.clone().acquire_owned().await.expect("it is never closed");
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

    #[expect(clippy::disallowed_methods, reason = "the server's tasks live on tokio")]
    fn spawn(&self, stream: TcpStream, from: SocketAddr, permit: OwnedSemaphorePermit) {
        let this = self.clone();
        tokio::spawn(async move {
            this.connection(stream, from).await;
            drop(permit);
        });
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
        let stop = pin!(stop(&mut self.stopped));
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
async fn stop(stopped: &mut watch::Receiver<bool>) {
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
