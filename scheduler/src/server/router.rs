//! [`Router`]: from a request's path to an object, and its answer back.

use std::convert::Infallible;
use std::error::Error as StdError;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use dormouse_engine as engine;
use futures_util::future::{FutureExt, LocalBoxFuture};
use http::header::{SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_VERSION};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderValue, StatusCode, Uri};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use percent_encoding::percent_decode_str;
use tokio::net::TcpStream;

use super::patience::Patient;
use super::tokio_net::{ReadAhead, TokioNet, within};
use super::upload::Progress;
use super::{ServerOptions, handshake, upload};
use crate::error::{Error, Kind};
use crate::guests::{Guest, Stay};
use crate::http::{Body, Request, Response};
use crate::id::Id;
use crate::net::{self, Bounds, CarryLimits, Rest, carry};
use crate::object::DurableObject;
use crate::socket::{ClientSocket, UpgradeResponse};
use crate::stub::{Call, Stub};
use crate::topology::Topology;

/// How long a connection waits that its object's core has no room for.
const ROOM_PAUSE: Duration = Duration::from_millis(20);

pub(super) type BoxError = Box<dyn StdError + Send + Sync>;
type Own = Arc<dyn Fn(&mut Parts) -> Option<Route> + Send + Sync>;

/// Where a function of one's own has a request go.
pub struct Route(To);

enum To {
    Answer(Response),
    Object(Target),
}

/// An object of any type.
struct Target {
    topology: Topology,
    class: usize,
    id: Id,
}

impl From<Response> for Route {
    /// No object sees the request: this is its answer.
    fn from(answer: Response) -> Self {
        Self(To::Answer(answer))
    }
}

impl<T: DurableObject> From<Stub<T>> for Route {
    /// This object answers, and sees the whole path.
    fn from(stub: Stub<T>) -> Self {
        let (topology, class, id) = stub.address();
        Self(To::Object(Target { topology, class, id }))
    }
}

/// Where a request's connection comes from: an extension of each that comes through
/// [`Runtime::serve`](crate::Runtime::serve), for functions of one's own and for objects. Behind a
/// proxy it is the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientAddress(pub SocketAddr);

/// Brings requests for `/<namespace>/<name>/…` to the object of that name, which sees the rest of
/// the path; WebSockets too. Cheap to clone; `Send + Sync`; a tower `Service`.
///
/// It runs on tokio, with its timers. Behind another server than
/// [`Runtime::serve`](crate::Runtime::serve) WebSockets need what hyper leaves in a request for its
/// upgrade, which axum passes on.
///
/// It answers by itself: 404 where nothing is, 413, 408 and 504 beyond its bounds, 400, 403 and 426
/// for a handshake that is none, 503 where the object's core has too much to do or is shut down
/// and 500 for an error of the object's, whose text is logged and not told.
#[derive(Clone)]
pub struct Router {
    topology: Topology,
    options: Arc<ServerOptions>,
    bounds: Arc<Bounds>,
    sockets: Arc<Bridges>,
    /// Asked before a path is held for an object's.
    own: Option<Own>,
}

/// The WebSockets that are open here. Those that begin at the same moment may go over the bound by
/// as many as there are requests.
#[derive(Default)]
struct Bridges {
    open: AtomicUsize,
    closing: AtomicBool,
}

impl Router {
    pub(crate) fn new(topology: Topology, options: ServerOptions) -> Self {
        let bounds = Bounds::new(CarryLimits {
            silence_time: options.silence_time,
            rest_time: options.rest_time,
            close_time: options.close_time,
            message_bytes: topology.limits().sockets.message_bytes,
            partial_bytes: options.partial_bytes,
        });
        let (options, bounds) = (Arc::new(options), Arc::new(bounds));
        Self { topology, options, bounds, sockets: Arc::default(), own: None }
    }

    /// Asks `own` first, with a request's method, path and headers, which it may change. It answers by
    /// itself (a page, say, or a refusal of who asks), or names the object that does (one without a
    /// name, say); with `None` the path decides. It runs on the core that has the connection, which stands still meanwhile.
    #[must_use]
    pub fn before(
        mut self,
        own: impl Fn(&mut Parts) -> Option<Route> + Send + Sync + 'static,
    ) -> Self {
        self.own = Some(Arc::new(own));
        self
    }

    pub(super) fn topology(&self) -> &Topology {
        &self.topology
    }

    pub(super) fn options(&self) -> ServerOptions {
        *self.options
    }

    /// From now on a client whose object hangs up is told that the server goes away.
    pub(super) fn go_away(&self) {
        self.sockets.closing.store(true, Ordering::Release);
    }

    async fn answer<B>(self, request: http::Request<B>) -> Result<Response, StatusCode>
    where
        B: http_body::Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
    {
        let (mut parts, body) = request.into_parts();
        let target = match self.own.as_ref().and_then(|own| own(&mut parts)) {
            Some(Route(To::Answer(response))) => return Ok(response),
            Some(Route(To::Object(target))) => target,
            None => {
                let (target, rest) = self.by_path(&parts.uri)?;
                parts.uri = rest;
                target
            }
        };
        let mut request = http::Request::from_parts(parts, body);
        let accept = handshake::accept_key(&request, self.options.origins)?;
        if accept.is_some() && self.sockets.open.load(Ordering::Acquire) >= self.options.sockets {
            return Err(StatusCode::SERVICE_UNAVAILABLE);
        }
        let upgrade = accept.map(|accept| (accept, hyper::upgrade::on(&mut request)));
        let (parts, body) = request.into_parts();
        let progress = Arc::default();
        let body = upload::receive(body, &self.options, &progress).await?;
        let Target { topology, class, id } = target;
        let call = topology.fetch(class, id.clone(), Request::from_parts(parts, body));
        let answer = self.in_time(call, &progress).await.ok_or(StatusCode::GATEWAY_TIMEOUT)?;
        // What the client did wrong comes before what its object made of it.
        let mut response =
            answer.map_err(|error| progress.refused().unwrap_or_else(|| status(&error)))?;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            let client = response.take_web_socket();
            let (accept, upgrade) = upgrade.ok_or(StatusCode::INTERNAL_SERVER_ERROR)?;
            let client = client.ok_or(StatusCode::INTERNAL_SERVER_ERROR)?;
            response.headers_mut().insert(SEC_WEBSOCKET_ACCEPT, accept);
            self.bridge(upgrade, client, id);
        }
        Ok(response)
    }

    /// The object that a path names, and the rest of the path.
    fn by_path(&self, uri: &Uri) -> Result<(Target, Uri), StatusCode> {
        let path = uri.path().strip_prefix('/').ok_or(StatusCode::NOT_FOUND)?;
        let (namespace, path) = path.split_once('/').ok_or(StatusCode::NOT_FOUND)?;
        let (name, rest) = path.split_at(path.find('/').unwrap_or(path.len()));
        let decoded = |text| percent_decode_str(text).decode_utf8();
        let (Ok(namespace), Ok(name)) = (decoded(namespace), decoded(name)) else {
            return Err(StatusCode::BAD_REQUEST);
        };
        let class = self.topology.class_named(&namespace).ok_or(StatusCode::NOT_FOUND)?;
        if name.is_empty() {
            return Err(StatusCode::NOT_FOUND);
        }
        let id = self.topology.class(class).key.id_from_name(&name);
        let rest = if rest.is_empty() { "/" } else { rest };
        let rest = match uri.query() {
            Some(query) => PathAndQuery::try_from(format!("{rest}?{query}")),
            None => PathAndQuery::try_from(rest),
        };
        let target = Target { topology: self.topology.clone(), class, id };
        Ok((target, Uri::from(rest.map_err(|_| StatusCode::BAD_REQUEST)?)))
    }

    /// What the object gives, unless it takes too long, counted from the last piece of the body that it
    /// took.
    async fn in_time(
        &self,
        mut call: Call<Response>,
        progress: &Progress,
    ) -> Option<crate::error::Result<Response>> {
        loop {
            let chunks = progress.chunks();
            let answer = within(self.options.answer_time, &mut call).await;
            if answer.is_some() || progress.chunks() == chunks {
                return answer;
            }
        }
    }

    /// Carries the socket's frames once hyper has sent the response: on the object's core, if the connection can go there.
    #[expect(clippy::disallowed_methods, reason = "on tokio, beside the request's own task")]
    fn bridge(&self, upgrade: hyper::upgrade::OnUpgrade, client: ClientSocket, id: Id) {
        let (topology, bounds) = (self.topology.clone(), self.bounds.clone());
        let open = Open::new(self.sockets.clone());
        tokio::spawn(async move {
            // Else the client has gone, and its end is dropped here.
            let Ok(upgraded) = upgrade.await else { return };
            let carried = Carried { client, bounds, open };
            match Patient::of(upgraded) {
                Ok(connection) => bring(&topology, &id, connection, carried).await,
                Err(upgraded) => carry_here(TokioIo::new(upgraded), carried).await,
            }
        });
    }
}

/// The object's end of a WebSocket, and what its server knows of it.
pub(super) struct Carried {
    pub(super) client: ClientSocket,
    pub(super) bounds: Arc<Bounds>,
    open: Open,
}

/// The task of a connection that stays where it is.
async fn carry_here(io: TokioIo<Upgraded>, carried: Carried) {
    let Carried { client, bounds, open } = carried;
    let going_away = move || open.0.closing.load(Ordering::Acquire);
    carry(TokioNet::new(), io, client, bounds, net::Server, Rest::Never, going_away).await;
}

/// The task of a connection that is on its object's core: until its end, or until it rests.
pub(super) fn carry_on(
    io: ReadAhead,
    carried: Carried,
    stay: Stay,
    rest: Rest,
) -> LocalBoxFuture<'static, ()> {
    let Carried { client, bounds, open } = carried;
    let may_rest = if stay.resting().is_some() { rest } else { Rest::Never };
    let server = open.0.clone();
    let going_away = move || server.closing.load(Ordering::Acquire);
    let carrying =
        carry(TokioNet::new(), io, client, bounds.clone(), net::Server, may_rest, going_away);
    // Not an `async` block, which would keep room for the task twice.
    let rested = move |rested: Option<net::Resting<ReadAhead>>| {
        let Some(net::Resting { io, client, silent }) = rested else { return };
        let (resting, stream) = (stay.resting(), io.into_stream().into_std());
        if let (Some(resting), Ok(stream)) = (resting, stream) {
            resting.rest(stream.into(), Carried { client, bounds, open }, stay, silent);
        }
    };
    carrying.map(rested).boxed_local()
}

/// Brings a connection, and what was read of it ahead, to the core of an object, which carries its frames from then on.
async fn bring(
    topology: &Topology,
    id: &Id,
    (stream, ahead): (TcpStream, Bytes),
    carried: Carried,
) {
    let rest = Rest::May { silent: Duration::ZERO };
    // It leaves the poll of the runtime that it is on.
    let Ok(stream) = stream.into_std() else { return };
    let mut guest = Guest::new("socket", move |_, stay| match TcpStream::from_std(stream) {
        Ok(stream) => carry_on(ReadAhead::new(ahead, stream), carried, stay, rest),
        Err(error) => {
            tracing::warn!(%error, "a connection could not be moved to its object's core");
            std::future::ready(()).boxed_local()
        }
    });
    while let Err((refused, error)) = topology.send_guest_to(id, guest) {
        if !error.is_overloaded() {
            return;
        }
        guest = refused;
        within(ROOM_PAUSE, std::future::pending::<()>()).await;
    }
}

/// Counts one open socket.
struct Open(Arc<Bridges>);

impl Open {
    fn new(bridges: Arc<Bridges>) -> Self {
        bridges.open.fetch_add(1, Ordering::AcqRel);
        Self(bridges)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::AcqRel);
    }
}

/// What a client is told of an error.
fn status(error: &Error) -> StatusCode {
    let is_closed = error.kind() == Kind::Engine(engine::Kind::Closed);
    match error.is_overloaded() || is_closed || error.is_retryable() {
        true => StatusCode::SERVICE_UNAVAILABLE,
        false => {
            tracing::warn!(%error, "an object's error became a 500");
            StatusCode::INTERNAL_SERVER_ERROR
        }
    }
}

fn refusal(status: StatusCode) -> Response {
    let reason = status.canonical_reason().unwrap_or_default();
    let mut response = Response::new(format!("{reason}\n").into());
    *response.status_mut() = status;
    if status == StatusCode::UPGRADE_REQUIRED {
        let version = HeaderValue::from_static("13");
        response.headers_mut().insert(SEC_WEBSOCKET_VERSION, version);
    }
    response
}

impl<B> tower_service::Service<http::Request<B>> for Router
where
    B: http_body::Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let answer = self.clone().answer(request);
        Box::pin(async { Ok(answer.await.unwrap_or_else(refusal)) })
    }
}
