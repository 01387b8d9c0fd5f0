//! Objects that call the outside, and an outside that answers as a test says.

use std::cell::Cell;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use dormouse_scheduler::prelude::*;
use dormouse_scheduler::{Call, OutsideLimits, SocketEvent};
use futures_util::FutureExt;
use futures_util::future::{Either, select};

/// What an object is told to do. Its reply is what came of it, in words.
pub(crate) enum Act {
    /// Answers how often it was told so by this instance.
    Count,
    Abort,
    Fetch(String, &'static str),
    /// In a critical section; and what the count was in the end.
    FetchInSection(String),
    /// And give up after so many milliseconds.
    FetchAtMost(String, u64),
    /// Opens a socket, sends each and waits for something after each, and closes it.
    Talk(String, &'static [&'static str]),
    /// Writes the next number, with much else, and tells the outside of it, both at once.
    WriteAndTell(String),
    Read,
}

pub(crate) struct Caller {
    state: State,
    count: Cell<u64>,
}

impl DurableObject for Caller {
    fn new(state: State) -> Self {
        Self { state, count: Cell::new(0) }
    }
}

fn shown(error: &Error) -> String {
    let code = error.code().unwrap_or("none");
    let retryable = if error.is_retryable() { " retryable" } else { "" };
    let overloaded = if error.is_overloaded() { " overloaded" } else { "" };
    format!("{code}{retryable}{overloaded}")
}

async fn fetch(state: &State, url: &str, body: &'static str) -> Result<String> {
    let method = if body.is_empty() { "GET" } else { "POST" };
    let request = Request::builder().method(method).uri(url).body(body)?;
    let response = state.fetch(request).await?;
    let mine = response.headers().get("x-mine").map(|mine| mine.to_str().unwrap().to_owned());
    let mine = mine.map_or(String::new(), |mine| mine + " ");
    let status = response.status().as_u16();
    Ok(format!("{status} {mine}{}", response.into_body().text().await?))
}

impl Caller {
    async fn talk(&self, url: &str, texts: &[&str]) -> Result<String> {
        let socket = self.state.connect(Request::get(url).body(())?).await?;
        let mut heard = Vec::new();
        for text in texts {
            socket.send(*text)?;
            match socket.recv().await {
                Some(SocketEvent::Message(message)) => {
                    heard.push(message.as_text().unwrap_or_default().to_owned());
                }
                Some(end) => return Ok(ended(&end)),
                None => return Ok("nothing".to_owned()),
            }
        }
        socket.close(4000, "done")?;
        while let Some(event) = socket.recv().await {
            heard.push(ended(&event));
        }
        Ok(heard.join("|"))
    }
}

fn ended(event: &SocketEvent) -> String {
    match event {
        SocketEvent::Message(message) => format!("message {message:?}"),
        SocketEvent::Closed(Closed { code, reason, was_clean }) => {
            format!("closed {code} {reason} {was_clean}")
        }
        SocketEvent::Error(error) => format!("error {}", error.code().unwrap_or("none")),
    }
}

impl Handler<Act> for Caller {
    type Reply = String;

    async fn handle(&self, act: Act) -> Result<String> {
        let result =
            match act {
                Act::Count => {
                    self.count.set(self.count.get() + 1);
                    Ok(self.count.get().to_string())
                }
                Act::Abort => match self.state.abort("as told").await {},
                Act::Fetch(url, body) => fetch(&self.state, &url, body).await,
                Act::FetchInSection(url) => {
                    let state = self.state.clone();
                    let section = async move || fetch(&state, &url, "").await;
                    let fetched = self.state.block_concurrency_while(section).await;
                    fetched.map(|fetched| format!("{fetched}, counted {}", self.count.get()))
                }
                Act::FetchAtMost(url, ms) => {
                    let mut fetching = fetch(&self.state, &url, "").boxed_local();
                    if ms == 0 {
                        // It has begun, and is dropped in the same turn.
                        assert!((&mut fetching).now_or_never().is_none());
                        return Ok("gave up".to_owned());
                    }
                    let limit = self.state.sleep(Duration::from_millis(ms)).boxed_local();
                    match select(fetching, limit).await {
                        Either::Left((fetched, _)) => fetched,
                        Either::Right(_) => Ok("gave up".to_owned()),
                    }
                }
                Act::WriteAndTell(url) => {
                    let storage = self.state.storage();
                    let number = storage.get::<u64>("number").await?.unwrap_or(0) + 1;
                    for n in 0..30 {
                        drop(storage.put_bytes(
                            &format!("filler {n}"),
                            vec![number.to_le_bytes()[0]; 100_000],
                        ));
                    }
                    drop(storage.put("number", &number));
                    let told = fetch(&self.state, &format!("{url}/{number}"), "").await;
                    Ok(told.unwrap_or_else(|error| shown(&error)))
                }
                Act::Read => {
                    let number = self.state.storage().get::<u64>("number").await;
                    number.map(|number| number.unwrap_or(0).to_string())
                }
                Act::Talk(url, texts) => self.talk(&url, texts).await,
            };
        Ok(result.unwrap_or_else(|error| shown(&error)))
    }
}

/// Echoes.
pub(crate) struct Echo {
    state: State,
}

impl DurableObject for Echo {
    fn new(state: State) -> Self {
        Self { state }
    }

    async fn fetch(&self, request: Request) -> Result<Response> {
        if let Some(socket) = request.web_socket_upgrade()? {
            self.state.accept_web_socket(&socket, [""; 0])?;
            return Ok(socket.into_response());
        }
        Ok(Response::text(format!("echo of {}", request.into_body().text().await?)))
    }

    async fn web_socket_message(&self, socket: &WebSocket, message: Message) -> Result<()> {
        socket.send(message)
    }

    async fn web_socket_close(&self, socket: &WebSocket, closed: Closed) -> Result<()> {
        socket.close(closed.code, &closed.reason)
    }
}

fn start(dir: &Path, limits: OutsideLimits) -> Runtime {
    let builder = Runtime::builder(dir).cores(1).outside(limits);
    let builder = builder.namespace::<Caller>("callers").namespace::<Echo>("echoes");
    builder.start().unwrap()
}

pub(crate) struct Rig {
    runtime: Option<Runtime>,
    _dir: Option<tempfile::TempDir>,
}

impl Rig {
    pub(crate) fn new() -> Self {
        Self::with(OutsideLimits::PRODUCTION)
    }

    pub(crate) fn with(limits: OutsideLimits) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let runtime = Some(start(dir.path(), limits));
        Self { runtime, _dir: Some(dir) }
    }

    /// On a directory of the test's.
    pub(crate) fn on(dir: impl AsRef<Path>) -> Self {
        Self { runtime: Some(start(dir.as_ref(), OutsideLimits::PRODUCTION)), _dir: None }
    }

    fn runtime(&self) -> &Runtime {
        self.runtime.as_ref().expect("it is open")
    }

    pub(crate) fn close(&mut self) {
        self.runtime.take().expect("it is open").close().unwrap();
    }

    pub(crate) fn serve(&self) -> SocketAddr {
        self.runtime().serve("127.0.0.1:0").wait().unwrap()
    }

    pub(crate) fn start(&self, name: &str, act: Act) -> Call<String> {
        self.runtime().namespace::<Caller>().get_by_name(name).call(act)
    }

    #[track_caller]
    pub(crate) fn call(&self, name: &str, act: Act) -> String {
        self.start(name, act).wait().unwrap()
    }
}

/// A server of the outside: a thread for each connection. It ends with the process.
pub(crate) struct Outside(SocketAddr);

impl Outside {
    fn start(serve: impl Fn(TcpStream) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let serve = Arc::new(serve);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                stream.set_read_timeout(Some(super::WAIT)).unwrap();
                let serve = serve.clone();
                std::thread::spawn(move || serve(stream));
            }
        });
        Self(address)
    }

    /// Reads one request, and has `serve` answer to its head and body.
    pub(crate) fn http(serve: impl Fn(&str, &str, &mut TcpStream) + Send + Sync + 'static) -> Self {
        Self::start(move |mut stream| {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                if stream.read(&mut byte).unwrap_or(0) == 0 {
                    return;
                }
                head.push(byte[0]);
            }
            let head = String::from_utf8(head).unwrap();
            let len = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            let mut body = vec![0; len.map_or(0, |len| len.parse().unwrap())];
            stream.read_exact(&mut body).unwrap();
            serve(&head, &String::from_utf8(body).unwrap(), &mut stream);
            let _it_may_be_gone = stream.flush();
        })
    }

    pub(crate) fn sockets(
        serve: impl Fn(tungstenite::WebSocket<TcpStream>) + Send + Sync + 'static,
    ) -> Self {
        Self::start(move |stream| {
            if let Ok(socket) = tungstenite::accept(stream) {
                serve(socket);
            }
        })
    }

    pub(crate) fn url(&self, scheme: &str, path: &str) -> String {
        format!("{scheme}://{}{path}", self.0)
    }
}

pub(crate) fn local_of(stream: &TcpStream) -> String {
    stream.local_addr().unwrap().to_string()
}
