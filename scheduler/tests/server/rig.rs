//! A server on loopback, objects that echo, and clients.

use std::cell::RefCell;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use dormouse_engine::call::wait;
use dormouse_scheduler::prelude::*;
use dormouse_scheduler::{ClientAddress, Router, ServerOptions};
use tungstenite::WebSocket as Client;
use tungstenite::protocol::CloseFrame;

/// A client that waits longer for something fails its test.
const CLIENT_TIME: Duration = Duration::from_secs(20);

/// Echoes, and logs what its sockets do.
pub(crate) struct Room {
    state: State,
    /// Lost with the instance.
    log: RefCell<Vec<String>>,
}

impl DurableObject for Room {
    fn new(state: State) -> Self {
        let count = state.clone();
        drop(state.block_concurrency_while(async move || {
            let built: u64 = count.storage().get("built").await?.unwrap_or(0);
            count.storage().put("built", &(built + 1)).await
        }));
        Self { state, log: RefCell::default() }
    }

    async fn fetch(&self, request: Request) -> Result<Response> {
        if let Some(socket) = request.web_socket_upgrade()? {
            self.state.accept_web_socket(&socket, ["client"])?;
            return Ok(socket.into_response());
        }
        let (method, uri) = (request.method().clone(), request.uri().clone());
        if uri.path() == "/fail" {
            return Err(Error::user("a secret"));
        }
        if let Some(ms) = uri.path().strip_prefix("/sleep/") {
            self.log.borrow_mut().push("sleeping".to_owned());
            self.state.sleep(Duration::from_millis(ms.parse().unwrap())).await;
            return Ok(Response::text("slept"));
        }
        let body = request.into_body().text().await?;
        let name = self.state.id().name().unwrap_or_default();
        Ok(Response::text(format!("{name} {method} {uri} {body}")))
    }

    async fn web_socket_message(&self, socket: &WebSocket, message: Message) -> Result<()> {
        let text = message.as_text().unwrap_or_default();
        self.log.borrow_mut().push(format!("text {}", &text[..text.len().min(40)]));
        if let Some(close) = text.strip_prefix("close:") {
            let (code, reason) = close.split_once(':').unwrap();
            return socket.close(code.parse().ok(), reason);
        }
        if let Some(ms) = text.strip_prefix("busy:") {
            // Nothing else of this object runs meanwhile.
            let (state, ms) = (self.state.clone(), ms.parse().unwrap());
            let busy = self.state.block_concurrency_while(async move || {
                state.sleep(Duration::from_millis(ms)).await;
                Ok(())
            });
            return busy.await;
        }
        if let Some((number, _)) = text.strip_prefix("number:").and_then(|n| n.split_once(' ')) {
            return socket.send(number);
        }
        match text {
            "abort" => match self.state.abort("as asked").await {},
            "talk" => {
                for _ in 0..60 {
                    socket.send("talk")?;
                    self.state.sleep(Duration::from_millis(20)).await;
                }
                Ok(())
            }
            "flood" => {
                let filler = "x".repeat(1000);
                for n in 0..100_000 {
                    if let Err(error) = socket.send(format!("{n} {filler}")) {
                        let code = error.code().unwrap_or("none");
                        self.log.borrow_mut().push(format!("refused {code} after {n}"));
                        return Ok(());
                    }
                }
                Err(Error::user("no bound"))
            }
            _ => socket.send(message),
        }
    }

    async fn web_socket_close(&self, socket: &WebSocket, closed: Closed) -> Result<()> {
        let Closed { code, reason, was_clean } = closed;
        let shown = if was_clean { format!("{reason} ") } else { String::new() };
        self.log.borrow_mut().push(format!("close {code} {shown}{was_clean}"));
        if reason == "back" { socket.close(code, &reason) } else { Ok(()) }
    }

    async fn web_socket_error(&self, _socket: &WebSocket, error: Error) -> Result<()> {
        self.log.borrow_mut().push(format!("error {}", error.code().unwrap_or("none")));
        Ok(())
    }
}

struct Log;
impl Handler<Log> for Room {
    type Reply = Vec<String>;
    async fn handle(&self, _log: Log) -> Result<Vec<String>> {
        Ok(self.log.borrow().clone())
    }
}

struct Built;
impl Handler<Built> for Room {
    type Reply = u64;
    async fn handle(&self, _built: Built) -> Result<u64> {
        Ok(self.state.storage().get("built").await?.unwrap_or(0))
    }
}

pub(crate) struct Rig {
    runtime: Option<Runtime>,
    pub(crate) address: SocketAddr,
    _dir: tempfile::TempDir,
}

impl Rig {
    pub(crate) fn new() -> Self {
        Self::with(ServerOptions::PRODUCTION)
    }

    /// With connections of either core that have to do with objects of both.
    pub(crate) fn with(options: ServerOptions) -> Self {
        Self::start(options, 2)
    }

    pub(crate) fn with_cores(cores: usize) -> Self {
        Self::start(ServerOptions::PRODUCTION, cores)
    }

    fn start(options: ServerOptions, cores: usize) -> Self {
        // Whatever they wait for, connections rest meanwhile.
        let options = ServerOptions { rest_time: Duration::from_millis(1), ..options };
        let dir = tempfile::tempdir().unwrap();
        let builder = Runtime::builder(&dir).cores(cores);
        let runtime = builder.namespace::<Room>("rooms").start().unwrap();
        let rooms = runtime.namespace::<Room>();
        let router = runtime.router(options).before(move |request| match request.uri.path() {
            "/own" => Some(Response::text("mine").into()),
            "/to/a" => Some(rooms.get_by_name("a").into()),
            "/from" => {
                let from = request.extensions.get::<ClientAddress>().expect("it is known");
                Some(Response::text(from.0.ip().to_string()).into())
            }
            _ => None,
        });
        let address = runtime.serve_router("127.0.0.1:0", router).wait().unwrap();
        Self { runtime: Some(runtime), address, _dir: dir }
    }

    fn runtime(&self) -> &Runtime {
        self.runtime.as_ref().expect("it is open")
    }

    pub(crate) fn router(&self) -> Router {
        self.runtime().router(ServerOptions::PRODUCTION)
    }

    pub(crate) fn close(&mut self) {
        self.runtime.take().expect("it is open").close().unwrap();
    }

    pub(crate) fn serve_again(&self) -> Result<SocketAddr> {
        self.serve_at(self.address).wait()
    }

    pub(crate) fn serve_at(&self, address: SocketAddr) -> dormouse_scheduler::Call<SocketAddr> {
        self.runtime().serve(address)
    }

    fn room(&self, name: &str) -> Stub<Room> {
        self.runtime().namespace().get_by_name(name)
    }

    pub(crate) fn evict(&self, name: &str) {
        wait(self.runtime().evict(self.room(name).id()));
    }

    /// How often the object was built.
    pub(crate) fn built(&self, name: &str) -> u64 {
        self.room(name).call(Built).wait().unwrap()
    }

    /// What it logged, once there is so much.
    pub(crate) fn log(&self, name: &str, entries: usize) -> Vec<String> {
        for _ in 0..1000 {
            let log = self.room(name).call(Log).wait().unwrap();
            if log.len() >= entries {
                return log;
            }
            sleep_ms(5);
        }
        let log = self.room(name).call(Log).wait().unwrap();
        panic!("{entries} entries were to come, not {log:?}");
    }

    pub(crate) fn try_stream(&self) -> std::io::Result<TcpStream> {
        let stream = TcpStream::connect(self.address)?;
        stream.set_read_timeout(Some(CLIENT_TIME))?;
        stream.set_write_timeout(Some(CLIENT_TIME))?;
        Ok(stream)
    }

    pub(crate) fn stream(&self) -> TcpStream {
        self.try_stream().expect("connected")
    }

    pub(crate) fn connect(&self, name: &str) -> Client<TcpStream> {
        let url = format!("ws://{}/rooms/{name}/socket", self.address);
        let (mut client, _response) = tungstenite::client(url, self.stream()).expect("accepted");
        client.set_config(|config| config.max_message_size = None);
        client
    }

    /// Status and body of the answer: to a GET, or to a POST where there is a body.
    pub(crate) fn http(&self, path: &str, body: &str) -> String {
        let mut stream = self.stream();
        let method = if body.is_empty() { "GET" } else { "POST" };
        let len = body.len();
        let head = format!("{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {len}\r\n\r\n");
        let _it_may_be_cut = stream.write_all((head + body).as_bytes());
        read_answer(&mut stream)
    }

    /// The status of a handshake with these headers.
    pub(crate) fn handshake(&self, headers: &[&str]) -> String {
        let mut stream = self.stream();
        let host = self.address.to_string();
        let headers = headers.join("\r\n").replace("HOST", &host);
        write!(
            stream,
            "GET /rooms/a/ HTTP/1.1\r\nhost: {host}\r\nconnection: upgrade\r\n\
             upgrade: websocket\r\n{headers}\r\n\r\n"
        )
        .unwrap();
        let mut head = [0; 12];
        stream.read_exact(&mut head).unwrap();
        String::from_utf8_lossy(&head[9..]).into_owned()
    }
}

/// Status and body of one answer.
pub(crate) fn read_answer(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("an answer");
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap();
    let len = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    let mut body = vec![0; len.map_or(0, |len| len.parse().unwrap())];
    stream.read_exact(&mut body).unwrap();
    format!("{} {}", &head[9..12], String::from_utf8(body).unwrap())
}

/// Sends a close frame.
pub(crate) fn close(client: &mut Client<TcpStream>, code: u16, reason: &str) {
    let frame = CloseFrame { code: code.into(), reason: reason.into() };
    client.close(Some(frame)).unwrap();
    client.flush().unwrap();
}

pub(crate) fn wait_at_most(client: &mut Client<TcpStream>, ms: u64) {
    client.get_mut().set_read_timeout(Some(Duration::from_millis(ms))).unwrap();
}

/// A client's frame with this first byte; its mask changes nothing.
pub(crate) fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first];
    match payload.len() {
        len @ ..126 => bytes.push(0x80 | u8::try_from(len).unwrap()),
        len => {
            bytes.push(0x80 | 127);
            bytes.extend((len as u64).to_be_bytes());
        }
    }
    bytes.extend([0; 4]);
    bytes.extend(payload);
    bytes
}

pub(crate) fn sleep_ms(ms: u64) {
    std::thread::sleep(Duration::from_millis(ms));
}
