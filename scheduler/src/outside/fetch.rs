//! [`State::fetch`]: one request to the outside.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;

use dormouse_engine as engine;
use dormouse_engine::Host;
use futures_channel::oneshot;
use futures_util::FutureExt;
use futures_util::future::{Either, LocalBoxFuture, select};
use http::header::CONNECTION;
use http::{HeaderValue, Version};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;

use super::target::Target;
use super::{Open, Outside, lost, too_late, unreachable};
use crate::error::Result;
use crate::event::closed;
use crate::http::{Body, Request, Response};
use crate::instance::{Instance, Work};
use crate::socket::bad_argument;
use crate::state::State;
use crate::watch::Awake;

impl State {
    /// Sends a request to the outside: `http://host/…`. It leaves when all that was written before
    /// the call is durable; other events run meanwhile. An answer of any
    /// status is an answer; no redirect is followed.
    ///
    /// Errors: `bad-argument`: the URL, or TLS; code `outside-full` (`Overloaded`); code
    /// `outside-unreachable` (`Retry`): nothing happened; codes `outside-lost` and
    /// `outside-timeout` (`Unknown`): it may have been done; code `outside-too-large`.
    /// Cancel: the connection is cut, as when the object is reset.
    pub fn fetch(
        &self,
        request: Request<impl Into<Body>>,
    ) -> impl Future<Output = Result<Response>> + 'static {
        let request = request.map(Into::into);
        start(self.instance(), move |instance, way| answer(instance, way, request))
    }
}

/// The way to the outside for one connection, which is counted as long as this is there.
pub(super) struct Way {
    pub(super) outside: Outside,
    pub(super) open: Open,
}

/// Runs `work` as I/O of the object once the output gate, as it is now, and then the input gate let
/// it.
pub(super) fn start<T: 'static, W: Future<Output = Result<T>> + 'static>(
    instance: &Rc<Instance>,
    work: impl FnOnce(Rc<Instance>, Way) -> W + 'static,
) -> impl Future<Output = Result<T>> + 'static {
    let (mut sender, receiver) = oneshot::channel();
    let outside = instance.check_resident().and_then(|()| {
        instance.topology.outside().cloned().ok_or_else(|| bad_argument("there is no outside"))
    });
    let started = outside.and_then(|outside| {
        let open = Open::new(instance.sockets_or_new()?, outside.limits.per_object)?;
        let way = Way { open, outside };
        let durable = instance.cache.output_gate().wait();
        let event = instance.new_event();
        // In a section it passes the gate of that.
        if let Some(caller) = instance.current() {
            instance.gate.adopt(event, caller);
        }
        let let_in = instance.gated(event, async {}.boxed_local());
        let this = instance.clone();
        let task = async move {
            // Broken gates reset the instance.
            if durable.await.is_err() || let_in.await.is_err() {
                return;
            }
            // Looked at first: what nobody waits for any more does not leave.
            let done = match select(sender.cancellation(), pin!(work(this, way))).await {
                Either::Left(_) => return,
                Either::Right((done, _)) => done,
            };
            let _nobody_waits = sender.send(done);
        };
        instance.push(Work::Task(Awake::OutsideRequest, task.boxed_local()));
        Ok(())
    });
    async move {
        started?;
        receiver.await.unwrap_or_else(|_| Err(closed()))
    }
}

async fn answer(instance: Rc<Instance>, way: Way, mut request: Request) -> Result<Response> {
    let Way { outside, open: _counted } = way;
    let target = Target::take(&mut request, "http")?;
    // A connection for each request.
    request.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    let exchange = async |connection: Connection| {
        let (response, connection) = connection.send(request).await?;
        let (parts, body) = response.into_parts();
        let most = outside.limits.answer_bytes;
        let body = connection.beside(Limited::new(body, most).collect()).await;
        match body {
            Ok(body) => Ok(Response::from_parts(parts, body.to_bytes().into())),
            Err(error) if error.is::<LengthLimitError>() => {
                let text = format!("an answer from the outside has more than {most} bytes");
                let kind = engine::Kind::Unknown;
                Err(engine::Error::coded(kind, "outside-too-large", text).into())
            }
            Err(error) => Err(lost(error)),
        }
    };
    within_limits(&instance, &outside, &target, exchange).await
}

/// Connects, and has `exchange` do its part, each within its time.
pub(super) async fn within_limits<T>(
    instance: &Instance,
    outside: &Outside,
    target: &Target,
    exchange: impl AsyncFnOnce(Connection) -> Result<T>,
) -> Result<T> {
    let limits = &outside.limits;
    let opening = outside.network.connect(&target.host, target.port);
    let late = instance.host.sleep(limits.connect_time);
    let stream = match select(opening, pin!(late)).await {
        Either::Left((stream, _)) => stream.map_err(unreachable)?,
        Either::Right(_) => return Err(unreachable(format!("not in {:?}", limits.connect_time))),
    };
    let exchange = async move {
        let (sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(unreachable)?;
        let driver = Driver(Some(connection.with_upgrades().boxed_local()));
        exchange(Connection { sender, driver }).await
    };
    let late = instance.host.sleep(limits.answer_time);
    match select(pin!(exchange), pin!(late)).await {
        Either::Left((done, _)) => done,
        Either::Right(_) => Err(too_late(limits.answer_time)),
    }
}

/// One connection, which goes on only while something is awaited of it.
pub(super) struct Connection {
    sender: http1::SendRequest<Body>,
    driver: Driver,
}

/// What moves a connection's bytes; none once it is over.
struct Driver(Option<LocalBoxFuture<'static, hyper::Result<()>>>);

impl Connection {
    /// Sends the request; the answer's head, and what its body needs.
    pub(super) async fn send(
        mut self,
        mut request: Request,
    ) -> Result<(http::Response<Incoming>, Self)> {
        *request.version_mut() = Version::HTTP_11;
        let sent = self.sender.send_request(request);
        let response = self.driver.beside(sent).await.map_err(lost)?;
        Ok((response, self))
    }

    /// What comes of `future`, which needs the connection to go on.
    pub(super) async fn beside<T>(mut self, future: impl Future<Output = T>) -> T {
        self.driver.beside(future).await
    }
}

impl Driver {
    async fn beside<T>(&mut self, future: impl Future<Output = T>) -> T {
        let mut future = pin!(future);
        poll_fn(|cx| {
            // Its error is also what the future ends with.
            if self.0.as_mut().is_some_and(|driver| driver.poll_unpin(cx).is_ready()) {
                self.0 = None;
            }
            future.as_mut().poll(cx)
        })
        .await
    }
}
