//! The object's side of traces of kind `ws`: how it accepts, what its handlers do and log, and the
//! operations on its sockets. A socket is known by the name in its attachment.

use std::cell::RefCell;
use std::time::Duration;

use bytes::Bytes;
use dormouse_scheduler::prelude::*;
use serde_json::{Value, json};

use super::args::{bytes, message_text, texts};
use super::compare::{shown, shown_text};
use super::interpreter::{kind, outcome};

/// What the recorder kept outside of the object.
#[derive(Default)]
struct Recorder {
    log: Vec<Value>,
    behaviour: Value,
}

thread_local! {
    static RECORDER: RefCell<Recorder> = RefCell::default();
}

/// Forgets what another trace left.
pub(crate) fn start_trace() {
    RECORDER.take();
}

/// What handlers logged since the last call.
pub(crate) fn take_log() -> Vec<Value> {
    RECORDER.with_borrow_mut(|recorder| std::mem::take(&mut recorder.log))
}

pub(crate) fn log_len() -> usize {
    RECORDER.with_borrow(|recorder| recorder.log.len())
}

fn log(entry: Value) {
    RECORDER.with_borrow_mut(|recorder| recorder.log.push(entry));
}

fn behaves(how: &str) -> bool {
    RECORDER.with_borrow(|recorder| recorder.behaviour[how] == true)
}

/// Accepts the socket that the request, a `ws_connect`, asks for.
pub(crate) async fn connect(state: &State, incarnation: u64, request: Request) -> Result<Response> {
    let upgrade = request.web_socket_upgrade()?;
    let upgrade = upgrade.ok_or_else(|| Error::user("not asked for a WebSocket"))?;
    let step: Value = serde_json::from_str(&request.into_body().text().await?)?;
    let conn = step["conn"].as_str().unwrap_or_default();
    let accepted = state.accept_web_socket(&upgrade, texts(&step["tags"])).and_then(|socket| {
        attach(&socket, conn, &step["attachment"])?;
        if let Some(greeting) = message_text(&step["greet"]) {
            socket.send(greeting)?;
        }
        Ok(())
    });
    if let Err(error) = accepted {
        let kind = kind(&error);
        let error = json!({ "kind": kind });
        log(json!({
            "incarnation": incarnation, "ev": "accept-error", "conn": conn, "error": error,
        }));
        let mut refusal = Response::text(kind);
        *refusal.status_mut() = http::StatusCode::BAD_REQUEST;
        return Ok(refusal);
    }
    Ok(upgrade.into_response())
}

fn attach(socket: &WebSocket, conn: &str, more: &Value) -> Result<()> {
    let mut attachment = json!({ "conn": conn });
    for (key, value) in more.as_object().into_iter().flatten() {
        attachment[key] = value.clone();
    }
    socket.set_attachment(&attachment)
}

fn conn_of(socket: &WebSocket) -> Value {
    let attachment: Option<Value> = socket.attachment().ok().flatten();
    attachment.map_or(Value::Null, |attachment| attachment["conn"].clone())
}

fn listed(state: &State, tag: Option<&str>) -> Value {
    state.web_sockets(tag).iter().map(conn_of).collect()
}

/// The message handler.
pub(crate) async fn message(
    state: &State,
    incarnation: u64,
    socket: &WebSocket,
    message: Message,
) -> Result<()> {
    let mut entry = json!({ "incarnation": incarnation, "ev": "message", "conn": conn_of(socket) });
    match &message {
        Message::Text(text) => entry["text"] = shown_text(text),
        Message::Binary(bytes) => entry["hex"] = shown(bytes),
    }
    log(entry);
    let text = message.as_text().unwrap_or_default();
    if let Some(thrown) = text.strip_prefix("throw:") {
        return Err(Error::user(thrown));
    }
    if let Some(close) = text.strip_prefix("close:") {
        let (code, reason) = close.split_once(':').unwrap_or((close, ""));
        return socket.close(code.parse().ok(), reason);
    }
    if text == "put-then-echo" {
        state.storage().put_bytes("ws", Bytes::from_static(&[1, 2, 3])).await?;
        return socket.send(message);
    }
    if behaves("echo") { socket.send(message) } else { Ok(()) }
}

/// The close handler.
pub(crate) fn closed(state: &State, incarnation: u64, socket: &WebSocket, closed: &Closed) {
    log(json!({
        "incarnation": incarnation,
        "ev": "close",
        "conn": conn_of(socket),
        "code": closed.code,
        "reason": closed.reason,
        "wasClean": closed.was_clean,
        "readyState": socket.ready_state() as u8,
        "listed": listed(state, None),
    }));
    if !behaves("closeBack") {
        return;
    }
    if let Err(error) = socket.close(closed.code, &closed.reason) {
        let error = json!({ "kind": kind(&error) });
        let conn = conn_of(socket);
        log(json!({
            "incarnation": incarnation, "ev": "close-back-error", "conn": conn, "error": error,
        }));
    }
}

/// The error handler.
pub(crate) fn failed(incarnation: u64, socket: &WebSocket) {
    log(json!({ "incarnation": incarnation, "ev": "error", "conn": conn_of(socket) }));
}

/// The outcome of an operation on sockets; `None` if it is none.
pub(crate) fn operate(state: &State, op: &Value) -> Option<Value> {
    let name = op["op"].as_str().filter(|name| name.starts_with("ws_"))?;
    let done = match op["conn"].as_str() {
        Some(conn) => {
            let sockets = state.web_sockets(None);
            match sockets.iter().find(|socket| conn_of(socket) == conn) {
                Some(socket) => on_socket(socket, conn, name, op)?,
                None => Err(Error::user(format!("no socket {conn}"))),
            }
        }
        None => on_state(state, name, op)?,
    };
    Some(outcome(done))
}

fn ok((): ()) -> Value {
    json!("ok")
}

fn on_socket(socket: &WebSocket, conn: &str, name: &str, op: &Value) -> Option<Result<Value>> {
    Some(match name {
        "ws_tags" => Ok(json!(socket.tags())),
        "ws_attachment" => socket.attachment().map(|attachment: Option<Value>| json!(attachment)),
        "ws_set_attachment" => match op["size"].as_u64() {
            Some(size) => {
                let text = "x".repeat(usize::try_from(size).ok()?);
                attach(socket, conn, &json!({ "s": text })).map(ok)
            }
            None => attach(socket, conn, &op["attachment"]).map(ok),
        },
        "ws_ready_state" => Ok(json!(socket.ready_state() as u8)),
        "ws_server_send" => match (message_text(&op["text"]), bytes(&op["hex"])) {
            (Some(text), _) => socket.send(text).map(ok),
            (None, Ok(Some(bytes))) => socket.send(bytes).map(ok),
            (None, _) => return None,
        },
        "ws_server_close" => {
            let code = op["code"].as_u64().map(|code| u16::try_from(code).unwrap_or(u16::MAX));
            let reason = message_text(&op["reason"]).unwrap_or_default();
            socket.close(code, &reason).map(ok)
        }
        "ws_auto_timestamp" => {
            Ok(socket.auto_response_timestamp_ms().map_or(Value::Null, |_| json!("set")))
        }
        _ => return None,
    })
}

fn on_state(state: &State, name: &str, op: &Value) -> Option<Result<Value>> {
    Some(match name {
        "ws_list" => Ok(listed(state, op["tag"].as_str())),
        "ws_broadcast" => {
            let text = message_text(&op["text"])?;
            let all = state.web_sockets(op["tag"].as_str());
            all.iter().try_for_each(|socket| socket.send(&*text)).map(ok)
        }
        "ws_set_auto" => {
            let text = |value: &Value, letter: &str| match value.as_u64() {
                Some(count) => Some(letter.repeat(usize::try_from(count).ok()?)),
                None => message_text(value),
            };
            let (request, response) = (text(&op["request"], "q"), text(&op["response"], "r"));
            let pair = request.as_deref().zip(response.as_deref());
            state.set_web_socket_auto_response(pair).map(ok)
        }
        "ws_get_auto" => Ok(match state.web_socket_auto_response() {
            Some((request, response)) => json!({
                "request": shown_text(&request), "response": shown_text(&response),
            }),
            None => Value::Null,
        }),
        "ws_set_event_timeout" => {
            let limit = op.as_object()?.values().find_map(Value::as_u64);
            state.set_web_socket_event_timeout(limit.map(Duration::from_millis)).map(ok)
        }
        "ws_get_event_timeout" => {
            let limit = state.web_socket_event_timeout();
            Ok(limit.map_or(Value::Null, |limit| json!(limit.as_millis())))
        }
        "ws_behaviour" => {
            RECORDER.with_borrow_mut(|recorder| recorder.behaviour = op["behaviour"].clone());
            Ok(json!("ok"))
        }
        _ => return None,
    })
}
