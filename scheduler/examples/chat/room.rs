//! One room: its members are sockets that stay open while it sleeps, their names attachments.
//!
//! A client says `{"name": …}` once and then `{"message": …}`; texts go to and fro as JSON. It is
//! told `{"members": […]}`, what was said, and `{"ready": name, "now": ms, "idle": ms}`; then all that
//! happens:
//!
//! | told | when |
//! |---|---|
//! | `{"name", "message", "timestamp"}` | somebody said something |
//! | `{"joined"}` · `{"left"}` · `{"quit"}` | somebody came · closed the socket · was lost |
//! | `{"woke": ms}` | the room slept for so long |
//! | `{"error"}`, with `"refused"` and `"wait"` | what the client said was refused; how many milliseconds to wait |
//!
//! The text `ping` is answered `{"pong": ms}` without waking the room: the time until which it is
//! awake, or was.
//!
//! Invariant: the times of a room's messages rise strictly, also if the clock goes back and over
//! restarts, and are the keys of its history.

use std::net::IpAddr;
use std::sync::OnceLock;
use std::time::Duration;

use dormouse_scheduler::prelude::*;
use dormouse_scheduler::{ClientAddress, ReadyState};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::limiter::{Act, RateLimiter};

/// Characters of a name, and of a message.
const NAME_MAX: usize = 32;
const MESSAGE_MAX: usize = 500;
/// Members of a room.
const MEMBERS_MAX: usize = 1000;
/// Messages that one who comes is told.
const TOLD: usize = 100;
/// Messages that are kept, about.
const KEPT: usize = 1000;
/// About one message in so many looks through the history for old ones.
const PRUNE_EVERY: u64 = 50;

/// How long a room is awake with nothing to do, so that people can be told.
static IDLE: OnceLock<Duration> = OnceLock::new();

/// To be told before the first room is built; the first one counts.
pub(crate) fn set_idle(idle: Duration) {
    IDLE.get_or_init(|| idle);
}

pub(crate) struct Room {
    state: State,
}

/// What a room keeps with a socket.
#[derive(Serialize, Deserialize)]
struct Visitor {
    /// The name of its limiter.
    address: String,
    /// Who has said it is a member.
    name: Option<String>,
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

impl DurableObject for Room {
    fn new(state: State) -> Self {
        let room = Self { state };
        // Only a room that slept finds members when it is built, and what it promised them.
        let slept_ms = room.state.now_ms().saturating_sub(room.awake_until_ms());
        room.tell_all(&json!({ "woke": slept_ms }));
        room.is_awake();
        room
    }

    async fn fetch(&self, request: Request) -> Result<Response> {
        self.is_awake();
        let Some(socket) = request.web_socket_upgrade()? else {
            return Err(Error::user("a room is visited by WebSocket"));
        };
        let from = request.extensions().get::<ClientAddress>();
        let address = from.map_or_else(|| "unknown".to_owned(), |from| limited_as(from.0.ip()));
        let accepted = self.state.accept_web_socket(&socket, [""; 0])?;
        accepted.set_attachment(&Visitor { address, name: None })?;
        Ok(socket.into_response())
    }

    async fn web_socket_message(&self, socket: &WebSocket, message: Message) -> Result<()> {
        self.is_awake();
        let text = message.as_text().unwrap_or_default();
        let Ok(from_client) = serde_json::from_str(text) else {
            return refuse(socket, "this is no message of a chat", None);
        };
        let visitor: Visitor = socket.attachment()?.expect("each has one from the beginning");
        match (from_client, visitor.name) {
            (FromClient::Name(name), None) => {
                self.join(socket, &visitor.address, name.trim()).await
            }
            (FromClient::Message(text), Some(name)) => {
                self.say(socket, &visitor.address, name, text).await
            }
            (FromClient::Name(_), Some(_)) => refuse(socket, "you have a name", None),
            (FromClient::Message(_), None) => refuse(socket, "say your name first", None),
        }
    }

    async fn web_socket_close(&self, socket: &WebSocket, closed: Closed) -> Result<()> {
        self.is_awake();
        if closed.was_clean {
            let code = (closed.code != 1005).then_some(closed.code);
            socket.close(code, &closed.reason)?;
        }
        self.gone(socket, if closed.was_clean { "left" } else { "quit" })
    }

    async fn web_socket_error(&self, socket: &WebSocket, _error: Error) -> Result<()> {
        self.is_awake();
        self.gone(socket, "quit")
    }
}

impl Room {
    async fn join(&self, socket: &WebSocket, address: &str, name: &str) -> Result<()> {
        let len = name.chars().count();
        if len == 0 || len > NAME_MAX || name.chars().any(char::is_control) {
            return refuse(socket, &format!("a name has 1 to {NAME_MAX} characters"), None);
        }
        if let Err(refused) = self.limit(address).await {
            return refused.tell(socket, None);
        }
        let newest = List::prefix("said:").reverse().limit(TOLD as i64);
        let history: Vec<(String, Said)> = self.state.storage().list(&newest).await?;
        // From here on nothing comes in between. While the limiter was asked something may have: the
        // client left, or said another name.
        let mut visitor: Visitor = socket.attachment()?.expect("each has one");
        if visitor.name.is_some() || socket.ready_state() != ReadyState::Open {
            return Ok(());
        }
        if self.members().count() >= MEMBERS_MAX {
            return refuse(socket, &format!("there are {MEMBERS_MAX} in this room already"), None);
        }
        visitor.name = Some(name.to_owned());
        socket.set_attachment(&visitor)?;
        let mut members: Vec<String> = self.members().map(|(_, name)| name).collect();
        members.sort();
        tell(socket, &json!({ "members": members }))?;
        for (_, said) in history.iter().rev() {
            tell(socket, &json!(said))?;
        }
        let idle_ms = idle_ms();
        tell(socket, &json!({ "ready": name, "now": self.state.now_ms(), "idle": idle_ms }))?;
        self.tell_others(socket, &json!({ "joined": name }));
        Ok(())
    }

    async fn say(
        &self,
        socket: &WebSocket,
        address: &str,
        name: String,
        message: String,
    ) -> Result<()> {
        let len = message.chars().count();
        if message.trim().is_empty() || len > MESSAGE_MAX {
            let why = format!("a message has 1 to {MESSAGE_MAX} characters");
            return refuse(socket, &why, Some(&message));
        }
        if let Err(refused) = self.limit(address).await {
            return refused.tell(socket, Some(&message));
        }
        let storage = self.state.storage();
        // No other message comes in between: storage keeps the object's input gate.
        let newest = List::prefix("said:").reverse().limit(1);
        let newest: Vec<(String, Said)> = storage.list(&newest).await?;
        let after_newest = newest.first().map_or(0, |(_, said)| said.timestamp + 1);
        let timestamp = self.state.now_ms().max(after_newest);
        let said = Said { name, message, timestamp };
        // Told when it is kept: the output gate holds what is sent until then.
        storage.put(&format!("said:{timestamp:016}"), &said).await?;
        self.tell_all(&json!(said));
        // Not a count, which would begin anew whenever the room wakes.
        if timestamp.is_multiple_of(PRUNE_EVERY) { self.prune().await } else { Ok(()) }
    }

    /// Whether a client from this address may do one more thing. Other events come in meanwhile, but
    /// what clients said keeps its order: answers come in the order of the questions.
    async fn limit(&self, address: &str) -> Result<(), Refused> {
        let limiter = self.state.namespace::<RateLimiter>().get_by_name(address);
        match limiter.call(Act).await {
            Ok(None) => Ok(()),
            Ok(Some(wait)) => Err(Refused { why: "not so fast", wait }),
            Err(error) => {
                tracing::warn!(%error, address, "a limiter did not answer");
                Err(Refused { why: "too much is going on", wait: Duration::from_secs(1) })
            }
        }
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

    fn gone(&self, socket: &WebSocket, how: &str) -> Result<()> {
        let visitor: Option<Visitor> = socket.attachment()?;
        if let Some(name) = visitor.and_then(|visitor| visitor.name) {
            self.tell_others(socket, &json!({ how: name }));
        }
        Ok(())
    }

    /// Something happens: those who ask are told how long it is awake. Kept while it sleeps.
    fn is_awake(&self) {
        let pong = json!({ "pong": self.state.now_ms() + idle_ms() }).to_string();
        let short = self.state.set_web_socket_auto_response(Some(("ping", &pong)));
        short.expect("short texts");
    }

    /// Until when it was awake, if nothing has happened since.
    fn awake_until_ms(&self) -> u64 {
        let pong = self.state.web_socket_auto_response();
        let pong = pong.and_then(|(_, pong)| serde_json::from_str::<Value>(&pong).ok());
        pong.and_then(|pong| pong["pong"].as_u64()).unwrap_or(u64::MAX)
    }

    /// Those who have said their name.
    fn members(&self) -> impl Iterator<Item = (WebSocket, String)> {
        let sockets = self.state.web_sockets(None).into_iter();
        sockets.filter_map(|socket| {
            let visitor: Visitor = socket.attachment().ok().flatten()?;
            Some((socket, visitor.name?))
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

/// What the limiter says.
struct Refused {
    why: &'static str,
    wait: Duration,
}

impl Refused {
    fn tell(&self, socket: &WebSocket, message: Option<&str>) -> Result<()> {
        let wait_ms = u64::try_from(self.wait.as_millis()).unwrap_or(u64::MAX);
        unless_closed(socket, &json!({ "error": self.why, "refused": message, "wait": wait_ms }))
    }
}

fn refuse(socket: &WebSocket, why: &str, message: Option<&str>) -> Result<()> {
    unless_closed(socket, &json!({ "error": why, "refused": message }))
}

/// It may have been closed while its limiter was asked.
fn unless_closed(socket: &WebSocket, what: &Value) -> Result<()> {
    if socket.ready_state() == ReadyState::Open { tell(socket, what) } else { Ok(()) }
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

/// The part of an address that is one household's: of IPv6 the first half.
fn limited_as(address: IpAddr) -> String {
    match address.to_canonical() {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            format!("{a:x}:{b:x}:{c:x}:{d:x}::/64")
        }
    }
}

fn idle_ms() -> u64 {
    let idle = IDLE.get().copied().unwrap_or_default();
    u64::try_from(idle.as_millis()).unwrap_or(u64::MAX)
}
