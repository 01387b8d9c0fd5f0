//! The chat of `cargo chat`, through its server, with a real WebSocket client.

#![expect(clippy::disallowed_types, reason = "clients on a real network")]
#![expect(clippy::disallowed_methods, reason = "tests on the real clock")]

#[path = "../examples/chat/main.rs"]
#[expect(dead_code, reason = "its own main")]
mod chat;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use chat::{room, web};
use dormouse_engine::call::wait;
use dormouse_scheduler::prelude::Runtime;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};
use tungstenite::{Message, WebSocket};

struct Chat {
    runtime: Runtime,
    address: SocketAddr,
}

impl Chat {
    fn start(dir: &tempfile::TempDir) -> Self {
        let runtime = web::start(dir, Duration::from_secs(10), Some(2)).unwrap();
        let address = runtime.serve_router("127.0.0.1:0", web::router(&runtime)).wait().unwrap();
        Self { runtime, address }
    }

    fn sleep(&self, room: &str) {
        let rooms = self.runtime.namespace::<room::Room>();
        wait(self.runtime.evict(&rooms.id_from_name(room)));
    }

    fn stream(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    }

    /// The whole answer.
    fn ask(&self, method: &str, path: &str) -> String {
        let mut stream = self.stream();
        write!(stream, "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    fn try_visit(&self, room: &str) -> Result<Guest, String> {
        let room = utf8_percent_encode(room, NON_ALPHANUMERIC);
        let url = format!("ws://{}/rooms/{room}", self.address);
        match tungstenite::client(url, self.stream()) {
            Ok((socket, _response)) => Ok(Guest(socket)),
            Err(error) => Err(error.to_string()),
        }
    }

    fn visit(&self, room: &str) -> Guest {
        self.try_visit(room).unwrap()
    }

    /// Enters, and gives what was said before.
    fn enter(&self, room: &str, name: &str) -> (Guest, Vec<Value>) {
        let mut guest = self.visit(room);
        guest.send(&json!({ "name": name }));
        let mut heard = Vec::new();
        loop {
            let value = guest.hear();
            if value["ready"] == name {
                assert!(value["now"].is_u64() && value["idle"] == 10_000, "{value}");
                return (guest, heard);
            }
            heard.push(value);
        }
    }
}

#[derive(Debug)]
struct Guest(WebSocket<TcpStream>);

impl Guest {
    fn send_text(&mut self, text: &str) {
        self.0.send(Message::text(text)).unwrap();
    }

    fn send(&mut self, value: &Value) {
        self.send_text(&value.to_string());
    }

    fn say(&mut self, text: &str) {
        self.send(&json!({ "message": text }));
    }

    fn hear(&mut self) -> Value {
        let message = self.0.read().unwrap();
        serde_json::from_str(message.to_text().unwrap()).unwrap()
    }

    /// The next thing said, with its sender.
    fn hear_said(&mut self) -> (String, String, u64) {
        let said = self.hear();
        let text = |field: &str| said[field].as_str().expect("something said").to_owned();
        (text("name"), text("message"), said["timestamp"].as_u64().unwrap())
    }
}

#[test]
fn people_talk_and_who_comes_later_is_told_what_was_said() {
    let dir = tempfile::tempdir().unwrap();
    let chat = Chat::start(&dir);
    let (mut ann, heard) = chat.enter("lobby", "ann");
    assert_eq!(heard, [json!({ "members": ["ann"] })]);
    let (mut ben, heard) = chat.enter("lobby", "ben");
    assert_eq!(heard, [json!({ "members": ["ann", "ben"] })]);
    assert_eq!(ann.hear(), json!({ "joined": "ben" }));
    let mut times = Vec::new();
    for n in 0..5 {
        ann.say(&format!("hello {n}"));
        let heard = ben.hear_said();
        assert_eq!((&*heard.0, &*heard.1), ("ann", &*format!("hello {n}")));
        assert_eq!(ann.hear_said(), heard, "one hears oneself");
        times.push(heard.2);
    }
    // Another room is another object.
    let (mut eve, heard) = chat.enter("other", "eve");
    assert_eq!(heard, [json!({ "members": ["eve"] })]);
    eve.say("anybody?");
    eve.hear_said();

    // It sleeps: sockets stay, names too, and times go on to rise.
    chat.sleep("lobby");
    ben.say("awake?");
    assert_eq!(ann.hear(), json!({ "woke": 0 }), "it was put to sleep before its time");
    let (name, message, time) = ann.hear_said();
    assert_eq!((&*name, &*message), ("ben", "awake?"));
    times.push(time);
    assert!(times.is_sorted_by(|a, b| a < b), "{times:?}");
    drop(ben);
    assert_eq!(ann.hear(), json!({ "quit": "ben" }));
    let (cat, _) = chat.enter("lobby", "cat");
    assert_eq!(ann.hear(), json!({ "joined": "cat" }));
    let Guest(mut cat) = cat;
    cat.close(None).unwrap();
    assert_eq!(ann.hear(), json!({ "left": "cat" }));
    let closing = tungstenite::protocol::CloseFrame { code: 4000.into(), reason: "bye".into() };
    ann.0.close(Some(closing)).unwrap();
    assert!(
        matches!(ann.0.read().unwrap(), Message::Close(Some(close)) if u16::from(close.code) == 4000)
    );

    // After a restart it is all there, in order.
    chat.runtime.close().unwrap();
    let chat = Chat::start(&dir);
    let (mut cat, heard) = chat.enter("lobby", "cat");
    assert_eq!(heard[0], json!({ "members": ["cat"] }));
    let told: Vec<u64> =
        heard[1..].iter().map(|said| said["timestamp"].as_u64().unwrap()).collect();
    assert_eq!(told, times);
    cat.say("here");
    assert!(cat.hear_said().2 > times[5]);
}

#[test]
fn a_ping_is_answered_without_waking_the_room() {
    let dir = tempfile::tempdir().unwrap();
    let chat = Chat::start(&dir);
    let (mut ann, _) = chat.enter("lobby", "ann");
    chat.sleep("lobby");
    ann.send_text("ping");
    let pong = ann.hear();
    assert!(pong["pong"].as_u64().is_some(), "{pong} is not that it woke");
    ann.send_text("ping");
    assert_eq!(ann.hear(), pong, "nothing happened meanwhile");
    // Another kind of object, and one more second, before it is asked again.
    std::thread::sleep(Duration::from_millis(20));
    ann.say("hello");
    assert!(ann.hear()["woke"].is_u64());
    ann.hear_said();
    ann.send_text("ping");
    assert!(ann.hear()["pong"].as_u64() > pong["pong"].as_u64());
}

#[test]
fn a_private_room_is_found_by_its_id_alone() {
    let dir = tempfile::tempdir().unwrap();
    let chat = Chat::start(&dir);
    let answer = chat.ask("POST", "/rooms");
    assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
    let id = answer.lines().last().unwrap();
    assert_eq!(id.len(), 64, "{answer}");
    assert_ne!(chat.ask("POST", "/rooms").lines().last().unwrap(), id);
    let (mut ann, _) = chat.enter(id, "ann");
    let (mut ben, heard) = chat.enter(&id.to_uppercase(), "ben");
    assert_eq!(heard, [json!({ "members": ["ann", "ben"] })]);
    ann.hear();
    ben.say("just us");
    assert_eq!(ann.hear_said().1, "just us");
    // Nobody else's id, nor a made-up one.
    let other = if id.ends_with('0') { '1' } else { '0' };
    let foreign = format!("{}{other}", &id[..63]);
    assert!(chat.try_visit(&foreign).unwrap_err().contains("404"));
    assert!(chat.ask("GET", &format!("/rooms/{foreign}")).contains("no such private room"));
    // After a restart it is there for whoever has the id.
    chat.runtime.close().unwrap();
    let chat = Chat::start(&dir);
    let (_cat, heard) = chat.enter(id, "cat");
    assert_eq!(heard[1]["message"], "just us");
}

/// The limiter is one object for all that an address does, in whatever room, and outlives a restart.
#[test]
fn who_says_too_much_is_told_to_wait() {
    let dir = tempfile::tempdir().unwrap();
    let chat = Chat::start(&dir);
    let (mut ann, _) = chat.enter("lobby", "ann");
    let (mut ben, _) = chat.enter("other", "ben");
    for n in 0..30 {
        ann.say(&n.to_string());
    }
    let heard: Vec<Value> = (0..30).map(|_| ann.hear()).collect();
    let said: Vec<&str> = heard.iter().filter_map(|heard| heard["message"].as_str()).collect();
    assert!((18..28).contains(&said.len()), "{} of 30 were taken", said.len());
    let numbers: Vec<u32> = said.iter().map(|text| text.parse().unwrap()).collect();
    assert!(numbers.is_sorted(), "{numbers:?} in another order than said");
    let refused = heard.iter().find(|heard| heard["error"].is_string()).expect("one too many");
    assert_eq!(refused["error"], "not so fast");
    assert_eq!(refused["refused"], said.len().to_string());
    assert!((1..=1000).contains(&refused["wait"].as_u64().unwrap()), "{refused}");
    // From the same address.
    ben.say("me?");
    assert_eq!(ben.hear()["error"], "not so fast");
    let mut cat = chat.visit("lobby");
    cat.send(&json!({ "name": "cat" }));
    assert_eq!(cat.hear()["error"], "not so fast");
    chat.runtime.close().unwrap();
    let chat = Chat::start(&dir);
    let mut cat = chat.visit("lobby");
    cat.send(&json!({ "name": "cat" }));
    assert_eq!(cat.hear()["error"], "not so fast");
}

#[test]
fn names_and_messages_have_bounds() {
    let dir = tempfile::tempdir().unwrap();
    let chat = Chat::start(&dir);
    let mut ann = chat.visit("lobby");
    let refused = |guest: &mut Guest, value: Value, why: &str| {
        guest.send(&value);
        let heard = guest.hear();
        assert!(heard["error"].as_str().is_some_and(|error| error.contains(why)), "{heard}");
    };
    refused(&mut ann, json!({ "message": "x" }), "name first");
    refused(&mut ann, json!({ "name": "  " }), "1 to 32");
    refused(&mut ann, json!({ "name": "é".repeat(33) }), "1 to 32");
    refused(&mut ann, json!({ "name": "two\nlines" }), "1 to 32");
    refused(&mut ann, json!({ "other": 1 }), "no message");
    refused(&mut ann, json!("text"), "no message");
    ann.send(&json!({ "name": "é".repeat(32) }));
    assert!(ann.hear()["members"].is_array());
    assert!(ann.hear()["ready"].is_string());
    refused(&mut ann, json!({ "name": "again" }), "have a name");
    refused(&mut ann, json!({ "message": " " }), "1 to 500");
    refused(&mut ann, json!({ "message": "x".repeat(501) }), "1 to 500");
    ann.say(&"é".repeat(500));
    assert_eq!(ann.hear_said().1.chars().count(), 500);
}

#[test]
fn each_path_is_one_thing_and_looking_at_a_page_wakes_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let chat = Chat::start(&dir);
    for path in ["/", "/rooms/lobby", "/rooms/lobby/", "/rooms/caf%C3%A9"] {
        let answer = chat.ask("GET", path);
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("text/html"), "{answer}");
        assert!(answer.contains("<title>Dormouse chat</title>"));
    }
    let long = format!("/rooms/{}", "x".repeat(33));
    for (path, why) in [
        ("/nothing", "nothing here"),
        ("/rooms", "nothing here"),
        // No way to objects but rooms.
        ("/limiters/127.0.0.1", "nothing here"),
        (&long, "1 to 32 characters"),
        ("/rooms/a%2Fb", "1 to 32 characters"),
        ("/rooms/a/b", "1 to 32 characters"),
        ("/rooms/%0a", "1 to 32 characters"),
        ("/rooms/%ff", "UTF-8"),
    ] {
        let answer = chat.ask("GET", path);
        assert!(answer.starts_with("HTTP/1.1 404") && answer.contains(why), "{path}: {answer}");
    }
    assert!(chat.try_visit(&"x".repeat(33)).unwrap_err().contains("404"));
    assert!(chat.try_visit(&"é".repeat(32)).is_ok());
}
