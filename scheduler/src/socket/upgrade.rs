//! [`Upgrade`]: a request to become a WebSocket, and the response that takes the client's end
//! along.

use std::cell::RefCell;
use std::sync::{Arc, Mutex};

use http::header::{CONNECTION, SEC_WEBSOCKET_VERSION, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};

use super::bad_argument;
use super::wire::{ClientSocket, Wire, wire};
use crate::error::Result;
use crate::http::{Request, Response};

/// The version of the protocol that there is (RFC 6455).
const VERSION: &str = "13";

/// A socket that was asked for and is not accepted yet. Dropped, or answered without having been
/// accepted, its client is disconnected.
pub struct Upgrade {
    /// None once it was accepted.
    core_end: RefCell<Option<Wire>>,
    client: ClientSocket,
}

impl std::fmt::Debug for Upgrade {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let accepted = self.core_end.borrow().is_none();
        f.debug_struct("Upgrade").field("accepted", &accepted).finish_non_exhaustive()
    }
}

impl Upgrade {
    /// Whether [`accept`](Self::accept) would succeed.
    ///
    /// Errors: `bad-argument` if it was accepted already.
    pub(crate) fn check(&self) -> Result<()> {
        match self.core_end.borrow().is_some() {
            true => Ok(()),
            false => Err(bad_argument("the WebSocket was accepted already")),
        }
    }

    /// The core's end, once.
    pub(crate) fn accept(&self) -> Option<Wire> {
        self.core_end.borrow_mut().take()
    }

    /// The response that completes it: status 101. Accept it before; who has the response has the
    /// client's end.
    pub fn into_response(self) -> Response {
        let mut response = Response::default();
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        let client = Arc::new(Mutex::new(Some(self.client)));
        response.extensions_mut().insert(ClientEnd(client));
        response
    }
}

/// Extensions are cloned; the client's end is taken once.
#[derive(Clone)]
struct ClientEnd(Arc<Mutex<Option<ClientSocket>>>);

/// What a request says of WebSockets.
pub trait UpgradeRequest: Sized {
    /// The socket that this request asks for; `None` if it asks for none.
    ///
    /// Errors: `bad-argument` if it asks for another version of the protocol, or not by GET.
    fn web_socket_upgrade(&self) -> Result<Option<Upgrade>>;

    /// This request, asking for a WebSocket.
    #[must_use]
    fn with_web_socket_upgrade(self) -> Self;
}

impl<B> UpgradeRequest for Request<B> {
    fn web_socket_upgrade(&self) -> Result<Option<Upgrade>> {
        let headers = self.headers();
        if !(names(headers, &UPGRADE, "websocket") && names(headers, &CONNECTION, "upgrade")) {
            return Ok(None);
        }
        if self.method() != Method::GET {
            return Err(bad_argument("a WebSocket is asked for by GET"));
        }
        let version = headers.get(SEC_WEBSOCKET_VERSION);
        if version.is_some_and(|version| version != VERSION) {
            return Err(bad_argument("the version of the WebSocket protocol is 13"));
        }
        let (core_end, client) = wire();
        Ok(Some(Upgrade { core_end: RefCell::new(Some(core_end)), client }))
    }

    fn with_web_socket_upgrade(mut self) -> Self {
        let headers = self.headers_mut();
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static(VERSION));
        self
    }
}

/// Whether the header, a list, has this word, in any case.
pub(crate) fn names(headers: &HeaderMap, header: &HeaderName, word: &str) -> bool {
    let values = headers.get_all(header).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|one| one.trim().eq_ignore_ascii_case(word))
}

/// What a response brings of a WebSocket.
pub trait UpgradeResponse {
    /// The client's end of the socket that the object accepted; `None` if there is none, or it was
    /// taken before.
    fn take_web_socket(&self) -> Option<ClientSocket>;
}

impl<B> UpgradeResponse for Response<B> {
    fn take_web_socket(&self) -> Option<ClientSocket> {
        let ClientEnd(client) = self.extensions().get()?;
        client.lock().expect("no code panics under it").take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get() -> Request<()> {
        Request::get("/").body(()).unwrap()
    }

    #[test]
    fn a_request_asks_for_a_socket_by_both_headers_in_any_case() {
        assert!(get().web_socket_upgrade().unwrap().is_none());
        assert!(get().with_web_socket_upgrade().web_socket_upgrade().unwrap().is_some());
        let request = Request::get("/")
            .header("upgrade", "WebSocket")
            .header("connection", "keep-alive, Upgrade")
            .body(())
            .unwrap();
        assert!(request.web_socket_upgrade().unwrap().is_some());
        let request = Request::get("/").header("upgrade", "websocket").body(()).unwrap();
        assert!(request.web_socket_upgrade().unwrap().is_none(), "no connection header");
    }

    #[test]
    fn what_asks_wrongly_is_refused() {
        let mut request = get().with_web_socket_upgrade();
        *request.method_mut() = Method::POST;
        assert!(request.web_socket_upgrade().is_err());
        let mut request = get().with_web_socket_upgrade();
        request.headers_mut().insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("8"));
        assert!(request.web_socket_upgrade().is_err());
    }

    #[test]
    fn the_clients_end_is_taken_once() {
        let upgrade = get().with_web_socket_upgrade().web_socket_upgrade().unwrap().unwrap();
        let response = upgrade.into_response();
        assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
        assert!(response.take_web_socket().is_some() && response.take_web_socket().is_none());
    }
}
