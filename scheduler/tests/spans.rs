//! What a subscriber of `tracing` sees: a span for each event of an object, and warnings of an object that blocks
//! its core.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dormouse_engine::call::wait;
use dormouse_scheduler::StackLimits;
use dormouse_scheduler::prelude::*;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_core::span::Current;

/// A span's name and fields, or an event's message and fields and the span that it was in.
#[derive(Clone, Debug, Default)]
struct Line {
    name: String,
    fields: BTreeMap<String, String>,
    within: Option<u64>,
    metadata: Option<&'static Metadata<'static>>,
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        match field.name() {
            "message" => self.name = format!("{value:?}"),
            name => drop(self.fields.insert(name.to_owned(), format!("{value:?}"))),
        }
    }
}

/// Keeps all spans, by their numbers, and all warnings and the objects' own lines.
#[derive(Clone, Default)]
struct Kept(Arc<Inner>);

#[derive(Default)]
struct Inner {
    next: AtomicU64,
    spans: Mutex<BTreeMap<u64, Line>>,
    events: Mutex<Vec<Line>>,
}

thread_local! {
    /// The spans that this thread is in.
    static WITHIN: RefCell<Vec<u64>> = const { RefCell::new(Vec::new()) };
}

impl Subscriber for Kept {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::INFO
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        let number = self.0.next.fetch_add(1, Ordering::Relaxed) + 1;
        let name = span.metadata().name().to_owned();
        let mut line = Line { name, metadata: Some(span.metadata()), ..Line::default() };
        span.record(&mut line);
        self.0.spans.lock().unwrap().insert(number, line);
        Id::from_u64(number)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let within = WITHIN.with_borrow(|within| within.last().copied());
        let mut line = Line { within, ..Line::default() };
        event.record(&mut line);
        self.0.events.lock().unwrap().push(line);
    }

    fn enter(&self, span: &Id) {
        WITHIN.with_borrow_mut(|within| within.push(span.into_u64()));
    }

    fn current_span(&self) -> Current {
        let within = WITHIN.with_borrow(|within| within.last().copied());
        let Some(number) = within else { return Current::none() };
        let metadata = self.0.spans.lock().unwrap()[&number].metadata.expect("a span has some");
        Current::new(Id::from_u64(number), metadata)
    }

    fn exit(&self, span: &Id) {
        let left = WITHIN.with_borrow_mut(Vec::pop);
        assert_eq!(left, Some(span.into_u64()), "spans are left in order");
    }
}

impl Kept {
    /// The span that an object's line was in.
    fn span_of(&self, message: &str) -> Line {
        let events = self.0.events.lock().unwrap();
        let event = events.iter().find(|event| event.name == message);
        let within = event.unwrap_or_else(|| panic!("no {message}")).within;
        self.0.spans.lock().unwrap()[&within.expect("in a span")].clone()
    }

    fn warnings(&self, message: &str) -> Vec<Line> {
        let events = self.0.events.lock().unwrap();
        events.iter().filter(|event| event.name == message).cloned().collect()
    }
}

struct Talker(State);

impl DurableObject for Talker {
    fn new(state: State) -> Self {
        tracing::info!("constructs");
        Self(state)
    }

    async fn fetch(&self, request: Request) -> Result<Response> {
        tracing::info!("fetches");
        let socket = request.web_socket_upgrade()?.expect("one that asks");
        self.0.accept_web_socket(&socket, ["tag"])?;
        Ok(socket.into_response())
    }

    async fn web_socket_message(&self, socket: &WebSocket, message: Message) -> Result<()> {
        tracing::info!("hears");
        socket.send(message)
    }

    async fn alarm(&self, _: AlarmInfo) -> Result<()> {
        tracing::info!("rings");
        Ok(())
    }
}

struct Talk;
impl Handler<Talk> for Talker {
    type Reply = ();
    async fn handle(&self, _: Talk) -> Result<()> {
        tracing::info!("called");
        let state = self.0.clone();
        self.0.wait_until(async move {
            state.sleep(Duration::from_millis(1)).await;
            tracing::info!("goes on");
        });
        self.0.sleep(Duration::from_millis(5)).await;
        tracing::info!("called, later");
        self.0.storage().set_alarm(In(Duration::ZERO)).await
    }
}

struct Block(Duration);
impl Handler<Block> for Talker {
    type Reply = ();
    async fn handle(&self, Block(time): Block) -> Result<()> {
        block(time);
        Ok(())
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "an object that blocks its core, and a test that waits"
)]
fn block(time: Duration) {
    std::thread::sleep(time);
}

/// One test, for there is one subscriber.
#[test]
fn events_have_spans_and_whoever_blocks_its_core_is_named() {
    let kept = Kept::default();
    tracing::subscriber::set_global_default(kept.clone()).expect("the first one");
    let dir = tempfile::tempdir().unwrap();
    let limits = StackLimits { blocked: Duration::from_millis(100), ..StackLimits::PRODUCTION };
    let runtime = Runtime::builder(dir.path()).cores(1).limits(limits);
    let runtime = runtime.namespace::<Talker>("talkers").start().expect("a runtime");
    let talker = runtime.namespace::<Talker>().get_by_name("one");
    let request = Request::get("/").body(()).unwrap().with_web_socket_upgrade();
    let client = talker.fetch(request).wait().unwrap().take_web_socket().expect("accepted");
    wait(client.send("hello")).unwrap();
    wait(client.recv()).expect("an answer");
    talker.call(Talk).wait().unwrap();

    // While it still blocks the core, the thread that watches sees it.
    let blocker = runtime.namespace::<Talker>().get_by_name("other");
    let blocking = blocker.call(Block(Duration::from_secs(4)));
    let mut tries = 0;
    while kept.warnings("an object blocks its core").is_empty() && tries < 390 {
        block(Duration::from_millis(10));
        tries += 1;
    }
    let before = kept.warnings("an object has blocked its core");
    assert!(before.iter().all(|line| line.fields["object"] != blocker.id().to_string()));
    blocking.wait().unwrap();
    runtime.close().unwrap();

    for (message, name) in [
        ("constructs", "construct"),
        ("fetches", "fetch"),
        ("hears", "socket"),
        ("called", "call"),
        ("called, later", "call"),
        ("goes on", "call"),
        ("rings", "alarm"),
    ] {
        let span = kept.span_of(message);
        assert_eq!(span.name, name, "{message}");
        assert_eq!(span.fields["object"], talker.id().to_string(), "{message}");
        assert_eq!(span.fields["namespace"], "\"talkers\"", "{message}");
    }
    for message in ["an object blocks its core", "an object has blocked its core"] {
        let warnings = kept.warnings(message);
        let of_it = |line: &&Line| line.fields["object"] == blocker.id().to_string();
        let line = warnings.iter().find(of_it).unwrap_or_else(|| panic!("no {message}"));
        assert_eq!(line.fields["namespace"], "\"talkers\"");
        let ms: u64 = line.fields["ms"].parse().expect("a number");
        assert!(ms >= 100 && (message == "an object blocks its core" || ms >= 4000), "{ms}");
    }
}
