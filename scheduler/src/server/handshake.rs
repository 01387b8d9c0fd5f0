//! The opening handshake of a WebSocket (RFC 6455 §4.2).

use http::header::{HOST, ORIGIN, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION};
use http::{HeaderMap, HeaderValue, Request, StatusCode};
use tungstenite::handshake::derive_accept_key;

use super::Origins;
use crate::socket::UpgradeRequest;

/// Characters of a key: 16 bytes in Base64.
const KEY_LEN: usize = 24;

/// The value of `Sec-WebSocket-Accept`, if the request asks for a WebSocket.
///
/// Errors: the status to refuse it with.
pub(super) fn accept_key<B>(
    request: &Request<B>,
    origins: Origins,
) -> Result<Option<HeaderValue>, StatusCode> {
    match request.web_socket_upgrade() {
        Ok(None) => return Ok(None),
        Ok(Some(_)) => {}
        Err(_) => return Err(StatusCode::BAD_REQUEST),
    }
    let headers = request.headers();
    if headers.get(SEC_WEBSOCKET_VERSION).is_none() {
        return Err(StatusCode::UPGRADE_REQUIRED);
    }
    let key = headers.get(SEC_WEBSOCKET_KEY).filter(|key| key.len() == KEY_LEN);
    let key = key.ok_or(StatusCode::BAD_REQUEST)?;
    if origins == Origins::Same && !is_same_origin(headers) {
        return Err(StatusCode::FORBIDDEN);
    }
    let accept = HeaderValue::try_from(derive_accept_key(key.as_bytes()));
    Ok(Some(accept.map_err(|_| StatusCode::BAD_REQUEST)?))
}

/// Whether the page that asks, if it is one, is of the host that it asks.
fn is_same_origin(headers: &HeaderMap) -> bool {
    let Some(origin) = headers.get(ORIGIN) else { return true };
    let host = headers.get(HOST).and_then(|host| host.to_str().ok());
    let origin = origin.to_str().ok().and_then(|origin| origin.split_once("://"));
    origin.is_some_and(|(_, of)| host.is_some_and(|host| host.eq_ignore_ascii_case(of)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(headers: &[(&str, &str)]) -> Request<()> {
        let get = Request::get("/").header("connection", "Upgrade").header("upgrade", "websocket");
        let with = headers.iter().fold(get, |get, (name, value)| get.header(*name, *value));
        with.body(()).unwrap()
    }

    const KEY: (&str, &str) = ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");
    const VERSION: (&str, &str) = ("sec-websocket-version", "13");

    /// The example of RFC 6455 §1.3.
    #[test]
    fn the_key_is_answered_as_the_standard_says() {
        let accept = accept_key(&request(&[KEY, VERSION]), Origins::Same).unwrap().unwrap();
        assert_eq!(accept, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        let plain = Request::get("/").body(()).unwrap();
        assert_eq!(accept_key(&plain, Origins::Same), Ok(None));
    }

    #[test]
    fn what_is_missing_or_wrong_is_refused() {
        for (headers, status) in [
            (&[KEY][..], 426),
            (&[KEY, ("sec-websocket-version", "8")], 400),
            (&[VERSION], 400),
            (&[VERSION, ("sec-websocket-key", "short")], 400),
        ] {
            let refused = accept_key(&request(headers), Origins::Same).unwrap_err();
            assert_eq!(refused, status, "{headers:?}");
        }
    }

    #[test]
    fn a_page_of_another_host_is_refused_unless_all_are_let_in() {
        let host = ("host", "chat.example:8787");
        for (origin, same) in [
            ("https://chat.example:8787", true),
            ("http://Chat.Example:8787", true),
            ("http://chat.example", false),
            ("http://evil.example", false),
            ("null", false),
        ] {
            let request = request(&[KEY, VERSION, host, ("origin", origin)]);
            assert_eq!(accept_key(&request, Origins::Same).is_ok(), same, "{origin}");
            assert!(accept_key(&request, Origins::Any).is_ok());
        }
    }
}
