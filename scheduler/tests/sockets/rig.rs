//! One object with sockets, what it is told to do, and what it saw.

use std::cell::{Cell, RefCell};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dormouse_engine::call::wait;
use dormouse_scheduler::prelude::*;
use dormouse_scheduler::{
    AlarmTime, Call, ClientSocket, LiveSocket, ReadyState, SocketEvent, SocketLimits, StackLimits,
};
use futures_util::FutureExt;

/// What outlives the instances.
#[derive(Default)]
struct Seen {
    log: Mutex<Vec<String>>,
    built: AtomicU64,
    slow_constructor: Mutex<bool>,
    constructor_panics: Mutex<bool>,
}

thread_local! {
    /// What an instance left behind on its core.
    static LEFT: Cell<Option<WebSocket>> = const { Cell::new(None) };
}

static SEEN: Mutex<Vec<(String, Arc<Seen>)>> = Mutex::new(Vec::new());

/// An alarm wakes an object without its name, so they are known by their ids.
fn seen(state: &State) -> Arc<Seen> {
    let id = state.id().to_string();
    let all = SEEN.lock().unwrap();
    all.iter().find(|(of, _)| *of == id).expect("a rig of this object").1.clone()
}

pub(crate) struct Room {
    state: State,
    seen: Arc<Seen>,
    listed_in_constructor: String,
    /// Sockets whose close event came, to be answered later.
    closing: RefCell<Vec<WebSocket>>,
    keep_closes: Cell<bool>,
}

fn shown(sockets: &[WebSocket]) -> String {
    let all: Vec<String> = sockets.iter().map(|socket| socket.tags().join("+")).collect();
    all.join(" ")
}

fn code_of<T>(result: Result<T>) -> String {
    match result {
        Ok(_) => "ok".to_owned(),
        Err(error) => error.code().map_or_else(|| error.to_string(), str::to_owned),
    }
}

impl Room {
    fn log(&self, text: impl Into<String>) {
        self.seen.log.lock().unwrap().push(text.into());
    }

    fn socket(&self, tag: &str) -> WebSocket {
        self.state.web_sockets(tag).remove(0)
    }

    /// The sockets as the handler lists them.
    fn listed(&self) -> String {
        shown(&self.state.web_sockets(None))
    }
}

impl DurableObject for Room {
    fn new(state: State) -> Self {
        let seen = seen(&state);
        seen.built.fetch_add(1, Ordering::SeqCst);
        let listed_in_constructor = shown(&state.web_sockets(None));
        if *seen.slow_constructor.lock().unwrap() {
            let slow = state.clone();
            drop(state.block_concurrency_while(async move || {
                slow.sleep(Duration::from_millis(50)).await;
                Ok(())
            }));
        }
        if std::mem::take(&mut *seen.constructor_panics.lock().unwrap()) {
            for socket in state.web_sockets(None) {
                socket.send("from a constructor that fails").unwrap();
            }
            panic!("as asked");
        }
        let keep_closes = Cell::new(true);
        Self { state, seen, listed_in_constructor, closing: RefCell::default(), keep_closes }
    }

    async fn fetch(&self, request: Request) -> Result<Response> {
        let socket = request.web_socket_upgrade()?.expect("a socket is asked for");
        let query = request.into_body().text().await?;
        let words: Vec<&str> = query.split('&').collect();
        let tags = words.iter().filter_map(|word| word.strip_prefix("tag="));
        if words.contains(&"live") {
            let live = self.state.accept(&socket)?;
            let seen = self.seen.clone();
            self.state.wait_until(async move { read_live(&live, &seen).await });
        } else if !words.contains(&"unaccepted") {
            self.state.accept_web_socket(&socket, tags)?;
        }
        if words.contains(&"also-live") {
            self.state.accept(&socket)?;
        }
        if words.contains(&"twice") {
            self.state.accept_web_socket(&socket, [""; 0])?;
        }
        if words.contains(&"fail") {
            return Err(Error::user("after it was accepted"));
        }
        Ok(socket.into_response())
    }

    async fn alarm(&self, _info: AlarmInfo) -> Result<()> {
        self.state.web_sockets(None).iter().try_for_each(|socket| socket.send("the alarm"))
    }

    async fn web_socket_message(&self, socket: &WebSocket, message: Message) -> Result<()> {
        let Some(text) = message.as_text() else {
            self.log(format!("binary {}", message.as_bytes().len()));
            return Ok(());
        };
        self.log(format!("text {text}"));
        if text == "fail" {
            return Err(Error::user("as asked"));
        }
        if let Some(ms) = text.strip_prefix("slow:") {
            self.state.sleep(Duration::from_millis(ms.parse().unwrap())).await;
            socket.send(text)?;
        }
        if let Some(echo) = text.strip_prefix("echo:") {
            socket.send(echo)?;
        }
        Ok(())
    }

    async fn web_socket_close(&self, socket: &WebSocket, closed: Closed) -> Result<()> {
        let Closed { code, reason, was_clean } = closed;
        let what = match was_clean {
            true => format!("{reason} true"),
            false => format!("false sent {}", code_of(socket.send("to nobody"))),
        };
        self.log(format!("close {code} {what} listed {}", self.listed()));
        assert_ne!(socket.ready_state(), ReadyState::Open);
        if was_clean && self.keep_closes.get() {
            self.closing.borrow_mut().push(socket.clone());
        }
        Ok(())
    }

    async fn web_socket_error(&self, socket: &WebSocket, error: Error) -> Result<()> {
        let (code, ready) = (error.code().unwrap_or("none"), socket.ready_state());
        self.log(format!("error {code} {ready:?} listed {}", self.listed()));
        socket.send("into nothing")
    }
}

/// Echoes what an ordinary socket receives.
async fn read_live(live: &LiveSocket, seen: &Seen) {
    while let Some(event) = live.recv().await {
        let entry = match event {
            SocketEvent::Message(message) => {
                if message.as_text() == Some("close") {
                    live.send("before the close").unwrap();
                    live.close(4003, "from the object").unwrap();
                    assert!(live.send("after it").is_err());
                } else if message.as_text() == Some("drop") {
                    live.send("before the drop").unwrap();
                    return;
                } else {
                    live.send(message).unwrap();
                }
                continue;
            }
            SocketEvent::Closed(closed) => {
                let Closed { code, was_clean, .. } = closed;
                format!("live closed {code} {was_clean} {:?}", live.ready_state())
            }
            SocketEvent::Error(error) => format!("live error {}", error.code().unwrap_or("none")),
        };
        seen.log.lock().unwrap().push(entry);
    }
}

/// What the object does when it is called. Sockets are named by one of their tags.
pub(crate) enum Do {
    Attach(&'static str, String),
    Attachment(&'static str),
    Tags(&'static str),
    List(Option<&'static str>),
    ListedInConstructor,
    Send(&'static str, &'static str),
    SendAndAbort(&'static str),
    Close(&'static str, u16),
    CloseWithoutCode(&'static str, &'static str),
    Ready(&'static str),
    AnswerClose,
    ForgetCloses,
    Auto(String, String),
    NoAuto,
    AutoTime(&'static str),
    Timeout(u64),
    TimeoutIs,
    SlowConstructor(bool),
    ConstructorSendsAndPanics,
    Sleep(u64),
    LeaveHandle(&'static str),
    UseLeftHandle,
    SetAlarm(u64),
    Abort,
}

impl Handler<Do> for Room {
    type Reply = String;

    async fn handle(&self, what: Do) -> Result<String> {
        Ok(match what {
            Do::Attach(tag, text) => code_of(self.socket(tag).set_attachment(&text)),
            Do::Attachment(tag) => {
                self.socket(tag).attachment::<String>()?.unwrap_or_else(|| "none".to_owned())
            }
            Do::Tags(tag) => self.socket(tag).tags().join(","),
            Do::List(tag) => shown(&self.state.web_sockets(tag)),
            Do::ListedInConstructor => self.listed_in_constructor.clone(),
            Do::Send(tag, text) => code_of(self.socket(tag).send(text)),
            Do::SendAndAbort(tag) => {
                self.socket(tag).send("from a turn that aborts")?;
                self.state.abort("as asked").await;
                unreachable!("the turn has ended")
            }
            Do::Close(tag, number) => code_of(self.socket(tag).close(number, "")),
            Do::CloseWithoutCode(tag, why) => code_of(self.socket(tag).close(None, why)),
            Do::Ready(tag) => format!("{:?}", self.socket(tag).ready_state()),
            Do::AnswerClose => {
                let socket = self.closing.borrow_mut().remove(0);
                socket.send("last words")?;
                code_of(socket.close(4002, "you too"))
            }
            Do::ForgetCloses => {
                self.keep_closes.set(false);
                "ok".to_owned()
            }
            Do::Auto(request, response) => {
                code_of(self.state.set_web_socket_auto_response(Some((&request, &response))))
            }
            Do::NoAuto => code_of(self.state.set_web_socket_auto_response(None)),
            Do::AutoTime(tag) => {
                let time_ms = self.socket(tag).auto_response_timestamp_ms();
                if let Some(time_ms) = time_ms {
                    assert!(time_ms.abs_diff(self.state.now_ms()) < 60_000, "{time_ms}");
                }
                time_ms.map_or("none", |_| "set").to_owned()
            }
            Do::Timeout(ms) => {
                let limit = Duration::from_millis(ms);
                code_of(self.state.set_web_socket_event_timeout(Some(limit)))
            }
            Do::TimeoutIs => {
                let limit = self.state.web_socket_event_timeout();
                limit.map_or_else(|| "none".to_owned(), |limit| limit.as_millis().to_string())
            }
            Do::SlowConstructor(slow) => {
                *self.seen.slow_constructor.lock().unwrap() = slow;
                "ok".to_owned()
            }
            Do::ConstructorSendsAndPanics => {
                *self.seen.constructor_panics.lock().unwrap() = true;
                "ok".to_owned()
            }
            Do::Sleep(ms) => {
                self.state.sleep(Duration::from_millis(ms)).await;
                "ok".to_owned()
            }
            Do::LeaveHandle(tag) => {
                LEFT.set(Some(self.socket(tag)));
                "ok".to_owned()
            }
            Do::UseLeftHandle => {
                let left = LEFT.take().expect("a handle was left");
                let sent = code_of(left.send("by an old handle"));
                LEFT.set(Some(left));
                sent
            }
            Do::SetAlarm(ms) => {
                let delay = Duration::from_millis(ms);
                code_of(self.state.storage().set_alarm(AlarmTime::In(delay)).await)
            }
            Do::Abort => {
                self.state.abort("as asked").await;
                unreachable!("the turn has ended")
            }
        })
    }
}

/// A runtime with one object.
pub(crate) struct Rig {
    runtime: Option<Runtime>,
    room: Stub<Room>,
    seen: Arc<Seen>,
    _dir: tempfile::TempDir,
}

impl Rig {
    pub(crate) fn new() -> Self {
        Self::with(SocketLimits::PRODUCTION)
    }

    pub(crate) fn with(sockets: SocketLimits) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let seen = Arc::new(Seen::default());
        let limits = StackLimits { sockets, ..StackLimits::PRODUCTION };
        let builder = Runtime::builder(&dir).cores(1).limits(limits);
        let runtime = builder.namespace::<Room>("rooms").start().unwrap();
        let mut all = SEEN.lock().unwrap();
        let room = runtime.namespace::<Room>().get_by_name(&all.len().to_string());
        all.push((room.id().to_string(), seen.clone()));
        drop(all);
        Self { runtime: Some(runtime), room, seen, _dir: dir }
    }

    pub(crate) fn fetch(&self, query: &str) -> Result<Response> {
        let request = Request::get("/").body(query.to_owned()).unwrap();
        self.room.fetch(request.with_web_socket_upgrade()).wait()
    }

    pub(crate) fn connect(&self, query: &str) -> ClientSocket {
        let response = self.fetch(query).unwrap();
        assert_eq!(response.status(), 101);
        response.take_web_socket().expect("the client's end")
    }

    pub(crate) fn refused(&self, query: &str) -> String {
        code_of(self.fetch(query))
    }

    pub(crate) fn start(&self, what: Do) -> Call<String> {
        self.room.call(what)
    }

    pub(crate) fn do_it(&self, what: Do) -> String {
        self.start(what).wait().unwrap()
    }

    pub(crate) fn evict(&self) {
        let runtime = self.runtime.as_ref().expect("it is open");
        wait(runtime.evict(self.room.id()));
    }

    /// Asks for an eviction, and waits for it only as long as this.
    pub(crate) fn evict_within_ms(&self, ms: u64) -> bool {
        let runtime = self.runtime.as_ref().expect("it is open");
        let mut eviction = Box::pin(runtime.evict(self.room.id()));
        assert!(eviction.as_mut().now_or_never().is_none(), "it is another thread's");
        sleep_ms(ms);
        eviction.now_or_never().is_some()
    }

    pub(crate) fn close(&mut self) {
        self.runtime.take().expect("it is open").close().unwrap();
    }

    /// How often the object was built.
    pub(crate) fn built(&self) -> u64 {
        self.seen.built.load(Ordering::SeqCst)
    }

    /// The same, of an object that is in memory.
    pub(crate) fn lives(&self) -> u64 {
        self.do_it(Do::List(None));
        self.built()
    }

    /// What was logged since the last call.
    pub(crate) fn log(&self) -> Vec<String> {
        std::mem::take(&mut *self.seen.log.lock().unwrap())
    }

    pub(crate) fn wait_for_log(&self, entries: usize) {
        for _ in 0..1000 {
            if self.seen.log.lock().unwrap().len() >= entries {
                return;
            }
            sleep_ms(5);
        }
        panic!("{entries} entries were to be logged, not {:?}", self.log());
    }

    pub(crate) fn nothing_comes(&self, client: &ClientSocket) {
        sleep_ms(50);
        self.nothing_comes_at_once(client);
    }

    pub(crate) fn nothing_comes_at_once(&self, client: &ClientSocket) {
        let came = client.recv().now_or_never();
        assert!(came.is_none(), "{came:?}");
    }
}

#[expect(clippy::disallowed_methods, reason = "a test on the real clock")]
pub(crate) fn sleep_ms(ms: u64) {
    std::thread::sleep(Duration::from_millis(ms));
}
