//! [`State::connect`]: a WebSocket to the outside (RFC 6455 §4.1).
//!
//! Its frames go between the connection and the object as those of a client's socket do, by the same
//! bridge with the sides turned round; it runs on the object's core, and ends when the object hangs up.

use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;

use dormouse_engine as engine;
use dormouse_engine::Host;
use futures_util::FutureExt;
use http::header::{
    CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_EXTENSIONS, SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_PROTOCOL, UPGRADE,
};
use http::{HeaderMap, HeaderValue, StatusCode};
use hyper_util::rt::TokioIo;
use tungstenite::handshake::derive_accept_key;

use super::fetch::{Connection, Way, start, within_limits};
use super::lost;
use super::target::Target;
use crate::error::{Error, Result};
use crate::http::{Body, Request};
use crate::instance::{Instance, Work};
use crate::net::{Bounds, CarryLimits, Client, Rest, carry};
use crate::server::{ServerOptions, TokioNet};
use crate::socket::{LiveSocket, UpgradeRequest, names, wire};
use crate::state::State;
use crate::watch::Awake;

impl State {
    /// Opens a WebSocket to the outside: `Request::get("ws://host/…").body(())`, with headers of
    /// one's own, if need be. It is opened when all that was written before the call is durable
    /// other events run meanwhile. The object reads it itself, and stays in memory
    /// while it is open.
    ///
    /// Errors: as [`fetch`](Self::fetch); code `outside-refused`: the answer is no handshake.
    /// Cancel: as for [`fetch`](Self::fetch).
    pub fn connect(
        &self,
        request: Request<()>,
    ) -> impl Future<Output = Result<LiveSocket>> + 'static {
        start(self.instance(), move |instance, way| open(instance, way, request))
    }
}

async fn open(instance: Rc<Instance>, way: Way, mut request: Request<()>) -> Result<LiveSocket> {
    let Way { outside, open: counted } = way;
    let target = Target::take(&mut request, "ws")?;
    let mut key = [0; 16];
    key[..8].copy_from_slice(&instance.host.random().to_ne_bytes());
    key[8..].copy_from_slice(&instance.host.random().to_ne_bytes());
    let key = base64(&key);
    let accept = derive_accept_key(key.as_bytes());
    let mut request = request.with_web_socket_upgrade().map(|()| Body::default());
    let key = HeaderValue::try_from(key).expect("Base64");
    request.headers_mut().insert(SEC_WEBSOCKET_KEY, key);
    let asks_for_protocol = request.headers().contains_key(SEC_WEBSOCKET_PROTOCOL);
    let shake = async |connection: Connection| {
        let (mut response, connection) = connection.send(request).await?;
        check(response.status(), response.headers(), &accept, asks_for_protocol)?;
        let upgraded = hyper::upgrade::on(&mut response);
        connection.beside(upgraded).await.map_err(lost)
    };
    let upgraded = within_limits(&instance, &outside, &target, shake).await?;
    let (core_end, client) = wire();
    let sockets = instance.sockets_or_new()?;
    let (connection, over) = sockets.accept_live(core_end)?;
    instance.push(Work::Task(Awake::Socket, over.boxed_local()));
    let bounds = Arc::new(Bounds::new(CarryLimits {
        silence_time: outside.limits.silence_time,
        rest_time: outside.limits.silence_time,
        close_time: ServerOptions::PRODUCTION.close_time,
        message_bytes: sockets.limits().message_bytes,
        partial_bytes: ServerOptions::PRODUCTION.partial_bytes,
    }));
    let host = instance.host.clone();
    let random = host.clone();
    host.spawn("outside", async move {
        let side = Client(|| {
            let [a, b, c, d, ..] = random.random().to_ne_bytes();
            [a, b, c, d]
        });
        carry(TokioNet::new(), TokioIo::new(upgraded), client, bounds, side, Rest::Never, || false)
            .await;
        drop(counted);
    });
    Ok(LiveSocket::new(instance, connection))
}

/// Whether an answer completes the handshake.
fn check(
    status: StatusCode,
    headers: &HeaderMap,
    accept: &str,
    asks_for_protocol: bool,
) -> Result<()> {
    let why = if status != StatusCode::SWITCHING_PROTOCOLS {
        format!("its status is {status}")
    } else if !names(headers, &UPGRADE, "websocket") || !names(headers, &CONNECTION, "upgrade") {
        "it is no upgrade to a WebSocket".to_owned()
    } else if headers.get(SEC_WEBSOCKET_ACCEPT).is_none_or(|value| value != accept) {
        "it answers another request".to_owned()
    } else if headers.contains_key(SEC_WEBSOCKET_EXTENSIONS) {
        "it chose an extension, and none was offered".to_owned()
    } else if headers.contains_key(SEC_WEBSOCKET_PROTOCOL) && !asks_for_protocol {
        "it chose a protocol, and none was offered".to_owned()
    } else {
        return Ok(());
    };
    let text = format!("the outside did not accept the WebSocket: {why}");
    Err(Error::from(engine::Error::coded(engine::Kind::Invalid, "outside-refused", text)))
}

fn base64(bytes: &[u8; 16]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(24);
    for some in bytes.chunks(3) {
        let bits = some.iter().fold(0, |bits, byte| bits << 8 | usize::from(*byte));
        let bits = bits << (8 * (3 - some.len()));
        for digit in 0..4 {
            let is_there = digit <= some.len();
            let value = bits >> (18 - 6 * digit) & 63;
            text.push(if is_there { char::from(DIGITS[value]) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_base64() {
        // RFC 6455 §1.3.
        assert_eq!(base64(b"the sample nonce"), "dGhlIHNhbXBsZSBub25jZQ==");
        assert_eq!(base64(&[0xff; 16]), "/////////////////////w==");
    }

    #[test]
    fn only_an_answer_to_this_request_opens_the_socket() {
        let good = [
            ("upgrade", "WebSocket"),
            ("connection", "keep-alive, Upgrade"),
            ("sec-websocket-accept", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="),
        ];
        let ask = |status: u16, without: &str, more: Option<(&str, &str)>| {
            let headers = good.iter().filter(|(name, _)| *name != without).chain(&more);
            let mut answer = http::Response::builder().status(status);
            for (name, value) in headers {
                answer = answer.header(*name, *value);
            }
            let answer = answer.body(()).unwrap();
            check(answer.status(), answer.headers(), good[2].1, false)
        };
        assert!(ask(101, "", None).is_ok());
        for (status, without, more) in [
            (200, "", None),
            (302, "", None),
            (101, "upgrade", None),
            (101, "connection", None),
            (101, "sec-websocket-accept", None),
            (101, "sec-websocket-accept", Some(("sec-websocket-accept", "another"))),
            (101, "", Some(("sec-websocket-extensions", "permessage-deflate"))),
            (101, "", Some(("sec-websocket-protocol", "chat"))),
        ] {
            let error = ask(status, without, more).unwrap_err();
            assert_eq!(error.code(), Some("outside-refused"), "{status} {without} {more:?}");
        }
    }
}
