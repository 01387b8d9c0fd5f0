//! One room: its members are sockets that stay open while it sleeps, their names attachments.
//!
//! A client says `{"name": …}` once and then `{"message": …}`; texts go to and fro as JSON. It is
//! told who is there, what was said, and then all that happens: `{"joined"}`, `{"quit"}`,
//! `{"woke"}`, and messages with their sender and time.
//!
//! Invariant: the times of a room's messages rise strictly, also if the clock goes back and over
//! restarts, and are the keys of its history.

use dormouse_scheduler::prelude::*;
use dormouse_scheduler::{Router, ServerOptions};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

const PAGE: &str = include_str!("chat.html");
/// Characters of a name, and of a message.
const NAME_MAX: usize = 32;
const MESSAGE_MAX: usize = 500;
/// Messages that one who comes is told.
const TOLD: usize = 100;
/// Messages that are kept, about.
const KEPT: usize = 1000;
/// About one message in so many looks through the history for old ones.
const PRUNE_EVERY: u64 = 50;
/// What a message costs its sender of the time that it may be ahead: ten at once, then one a second.
const COST_MS: u64 = 1000;
const AHEAD_MS: u64 = 10_000;

pub(crate) struct Room {
    state: State,
}

/// What a room keeps with a member's socket.
#[derive(Serialize, Deserialize)]
struct Member {
    name: String,
    /// How far ahead of the clock its messages are.
    paid_until_ms: u64,
}

#[derive(Serialize, Deserialize)]
struct Said {
    name: String,
    message: String,
    timestamp: u64,
}

/// What a client may say.
#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum FromClient {
    Name(String),
    Message(String),
}

/// The server's router, with the page in front.
pub(crate) fn router(runtime: &Runtime) -> Router {
    runtime
        .router(ServerOptions::PRODUCTION)
        .before(|request| (request.uri.path() == "/" && request.method == "GET").then(page))
}

fn page() -> Response {
    let mut page = Response::new(PAGE.into());
    let html = http::HeaderValue::from_static("text/html; charset=utf-8");
    page.headers_mut().insert(http::header::CONTENT_TYPE, html);
    page
}

impl DurableObject for Room {
    fn new(state: State) -> Self {
        // Clients ask this often, to see that they are still connected: it wakes nobody.
        state.set_web_socket_auto_response(Some(("ping", "pong"))).expect("short texts");
        let room = Self { state };
        // Only a room that slept finds members when it is built.
        room.tell_all(&json!({ "woke": true }));
        room
    }

    async fn fetch(&self, request: Request) -> Result<Response> {
        let Some(socket) = request.web_socket_upgrade()? else { return Ok(page()) };
        self.state.accept_web_socket(&socket, [""; 0])?;
        Ok(socket.into_response())
    }

    async fn web_socket_message(&self, socket: &WebSocket, message: Message) -> Result<()> {
        let text = message.as_text().unwrap_or_default();
        let Ok(from_client) = serde_json::from_str(text) else {
            return tell(socket, &json!({ "error": "this is no message of a chat" }));
        };
        let member: Option<Member> = socket.attachment()?;
        match (from_client, member) {
            (FromClient::Name(name), None) => self.join(socket, name.trim()).await,
            (FromClient::Message(text), Some(member)) => self.say(socket, member, &text).await,
            (FromClient::Name(_), Some(_)) => tell(socket, &json!({ "error": "you have a name" })),
            (FromClient::Message(_), None) => {
                tell(socket, &json!({ "error": "say your name first" }))
            }
        }
    }

    async fn web_socket_close(&self, socket: &WebSocket, closed: Closed) -> Result<()> {
        if closed.was_clean {
            let code = (closed.code != 1005).then_some(closed.code);
            socket.close(code, &closed.reason)?;
        }
        self.left(socket)
    }

    async fn web_socket_error(&self, socket: &WebSocket, _error: Error) -> Result<()> {
        self.left(socket)
    }
}

impl Room {
    async fn join(&self, socket: &WebSocket, name: &str) -> Result<()> {
        let len = name.chars().count();
        if len == 0 || len > NAME_MAX {
            let text = format!("a name has 1 to {NAME_MAX} characters");
            return tell(socket, &json!({ "error": text }));
        }
        let newest = List::prefix("said:").reverse().limit(TOLD as i64);
        let history: Vec<(String, Said)> = self.state.storage().list(&newest).await?;
        socket.set_attachment(&Member { name: name.to_owned(), paid_until_ms: 0 })?;
        let mut members: Vec<String> = self.members().map(|(_, member)| member.name).collect();
        members.sort();
        tell(socket, &json!({ "members": members }))?;
        for (_, said) in history.iter().rev() {
            tell(socket, &json!(said))?;
        }
        tell(socket, &json!({ "ready": name }))?;
        self.tell_others(socket, &json!({ "joined": name }));
        Ok(())
    }

    async fn say(&self, socket: &WebSocket, mut member: Member, text: &str) -> Result<()> {
        let len = text.chars().count();
        if text.trim().is_empty() || len > MESSAGE_MAX {
            let text = format!("a message has 1 to {MESSAGE_MAX} characters");
            return tell(socket, &json!({ "error": text }));
        }
        let now_ms = self.state.now_ms();
        member.paid_until_ms = member.paid_until_ms.max(now_ms) + COST_MS;
        if member.paid_until_ms > now_ms + AHEAD_MS {
            return tell(socket, &json!({ "error": "not so fast" }));
        }
        socket.set_attachment(&member)?;
        let storage = self.state.storage();
        // No other message comes in between: storage keeps the object's input gate.
        let newest = List::prefix("said:").reverse().limit(1);
        let newest: Vec<(String, Said)> = storage.list(&newest).await?;
        let after_newest = newest.first().map_or(0, |(_, said)| said.timestamp + 1);
        let timestamp = now_ms.max(after_newest);
        let said = Said { name: member.name, message: text.to_owned(), timestamp };
        // Told when it is kept: the output gate holds what is sent until then.
        storage.put(&format!("said:{timestamp:016}"), &said).await?;
        self.tell_all(&json!(said));
        // Not a count, which would begin anew whenever the room wakes.
        if timestamp.is_multiple_of(PRUNE_EVERY) { self.prune().await } else { Ok(()) }
    }

    /// Forgets what is older than the newest [`KEPT`].
    async fn prune(&self) -> Result<()> {
        let all = self.state.storage().list_bytes(&List::prefix("said:")).await?;
        let old = all.len().saturating_sub(KEPT);
        let old: Vec<&str> = all.iter().take(old).map(|(key, _)| key.as_str()).collect();
        for some in old.chunks(100) {
            self.state.storage().delete_many(some).await?;
        }
        Ok(())
    }

    fn left(&self, socket: &WebSocket) -> Result<()> {
        if let Some(member) = socket.attachment::<Member>()? {
            self.tell_others(socket, &json!({ "quit": member.name }));
        }
        Ok(())
    }

    /// Those who have said their name.
    fn members(&self) -> impl Iterator<Item = (WebSocket, Member)> {
        let sockets = self.state.web_sockets(None).into_iter();
        sockets.filter_map(|socket| {
            let member = socket.attachment().ok().flatten()?;
            Some((socket, member))
        })
    }

    fn tell_all(&self, what: &Value) {
        let text = Message::from(what.to_string());
        self.members().for_each(|(socket, _)| tell_member(&socket, &text));
    }

    fn tell_others(&self, but: &WebSocket, what: &Value) {
        let text = Message::from(what.to_string());
        let others = self.members().filter(|(socket, _)| socket != but);
        others.for_each(|(socket, _)| tell_member(&socket, &text));
    }
}

fn tell(socket: &WebSocket, what: &Value) -> Result<()> {
    socket.send(what.to_string())
}

/// A member who takes nothing has to come again; one who is leaving is left alone.
fn tell_member(socket: &WebSocket, text: &Message) {
    if socket.send(text.clone()).is_err_and(|error| error.is_overloaded()) {
        socket.close(1008, "too slow").expect("a code that there is");
    }
}
