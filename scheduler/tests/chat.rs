//! The chat of `cargo chat`, through its server, with a real WebSocket client.

#![expect(clippy::disallowed_types, reason = "clients on a real network")]

#[path = "../examples/chat/room.rs"]
mod room;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use dormouse_engine::call::wait;
use dormouse_scheduler::prelude::Runtime;
use serde_json::{Value, json};
use tungstenite::{Message, WebSocket};

struct Chat {
    runtime: Runtime,
    address: SocketAddr,
}

impl Chat {
    fn start(dir: &tempfile::TempDir) -> Self {
        let builder = Runtime::builder(dir).cores(1);
        let runtime = builder.namespace::<room::Room>("rooms").start().unwrap();
        let address = runtime.serve_router("127.0.0.1:0", room::router(&runtime)).wait().unwrap();
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

    fn get(&self, path: &str) -> String {
        let mut stream = self.stream();
        write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    fn visit(&self, room: &str) -> Guest {
        let url = format!("ws://{}/rooms/{room}", self.address);
        let (socket, _response) = tungstenite::client(url, self.stream()).unwrap();
        Guest(socket)
    }

    /// Enters, and gives what was said before.
    fn enter(&self, room: &str, name: &str) -> (Guest, Vec<Value>) {
        let mut guest = self.visit(room);
        guest.send(&json!({ "name": name }));
        let mut heard = Vec::new();
        loop {
            let value = guest.hear();
            if value["ready"] == name {
                return (guest, heard);
            }
            heard.push(value);
        }
    }
}

struct Guest(WebSocket<TcpStream>);

impl Guest {
    fn send(&mut self, value: &Value) {
        self.0.send(Message::text(value.to_string())).unwrap();
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
    let (mut ben, heard) = chat.enter("lobby", " ben ".trim());
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
    assert_eq!(ann.hear(), json!({ "woke": true }));
    let (name, message, time) = ann.hear_said();
    assert_eq!((&*name, &*message), ("ben", "awake?"));
    times.push(time);
    assert!(times.is_sorted_by(|a, b| a < b), "{times:?}");
    drop(ben);
    assert_eq!(ann.hear(), json!({ "quit": "ben" }));
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
    ann.0.send(Message::text("ping")).unwrap();
    assert_eq!(ann.0.read().unwrap(), Message::text("pong"), "and not that it woke");
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
    // Ten at once, and no more.
    for n in 0..30 {
        ann.say(&n.to_string());
    }
    let heard: Vec<Value> = (0..30).map(|_| ann.hear()).collect();
    let said = heard.iter().filter(|value| value["message"].is_string()).count();
    assert!((9..20).contains(&said), "{said} of 30 were taken");
}

#[test]
fn the_page_is_there_for_the_root_and_for_each_room() {
    let dir = tempfile::tempdir().unwrap();
    let chat = Chat::start(&dir);
    for path in ["/", "/rooms/lobby", "/rooms/lobby/"] {
        let answer = chat.get(path);
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("text/html"), "{answer}");
        assert!(answer.contains("<title>Dormouse chat</title>"));
    }
    assert!(chat.get("/nothing").starts_with("HTTP/1.1 404"));
}
