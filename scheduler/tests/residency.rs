//! Which objects stay in memory: idle ones leave after a while, or when room is wanted;
//! busy ones stay. And how many calls an object takes.

#![expect(clippy::disallowed_methods, reason = "time passes on the real clock")]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use dormouse_engine::call::wait;
use dormouse_scheduler::prelude::*;
use dormouse_scheduler::{Kind, OBJECT_BYTES, Received, StackLimits};

const NEVER: Duration = Duration::from_secs(100_000);

/// Counts in memory alone, and knows how many objects like it there are.
struct Tally<const TEST: usize> {
    state: State,
    calls: std::cell::Cell<u64>,
}

static LIVE: [AtomicUsize; 8] = [const { AtomicUsize::new(0) }; 8];

impl<const TEST: usize> DurableObject for Tally<TEST> {
    fn new(state: State) -> Self {
        LIVE[TEST].fetch_add(1, Ordering::SeqCst);
        Self { state, calls: std::cell::Cell::new(0) }
    }

    async fn fetch(&self, request: Request) -> Result<Response> {
        let socket = request.web_socket_upgrade()?.expect("a socket is asked for");
        self.state.accept_web_socket(&socket, [] as [&str; 0])?;
        Ok(socket.into_response())
    }

    async fn web_socket_message(&self, socket: &WebSocket, message: Message) -> Result<()> {
        socket.send(message)
    }
}

impl<const TEST: usize> Drop for Tally<TEST> {
    fn drop(&mut self) {
        LIVE[TEST].fetch_sub(1, Ordering::SeqCst);
    }
}

enum Ask {
    /// How many calls this instance has had.
    Calls,
    Put(Vec<u8>),
    Get,
    /// Writes so many values of so many bytes.
    Fill(usize, usize),
    /// How many bytes a list gives, after so long.
    List(Duration),
    /// Takes so long.
    Work(Duration),
    /// Goes on for so long beside its event.
    WorkBeside(Duration),
}

impl<const TEST: usize> Handler<Ask> for Tally<TEST> {
    type Reply = u64;

    async fn handle(&self, ask: Ask) -> Result<u64> {
        self.calls.set(self.calls.get() + 1);
        match ask {
            Ask::Calls => {}
            Ask::Put(bytes) => self.state.storage().put_bytes("data", bytes).await?,
            Ask::Get => {
                let bytes = self.state.storage().get_bytes("data").await?;
                return Ok(bytes.map_or(0, |bytes| bytes.len() as u64));
            }
            Ask::Fill(values, bytes) => {
                for number in 0..values {
                    let key = format!("{number:03}");
                    self.state.storage().put_bytes(&key, vec![7; bytes]).await?;
                }
            }
            Ask::List(time) => {
                let all = self.state.storage().list_bytes(&List::all()).await?;
                self.state.sleep(time).await;
                return Ok(all.iter().map(|(_, value)| value.len() as u64).sum());
            }
            Ask::Work(time) => self.state.sleep(time).await,
            Ask::WorkBeside(time) => self.state.wait_until(self.state.sleep(time)),
        }
        Ok(self.calls.get())
    }
}

fn start<const TEST: usize>(dir: &tempfile::TempDir, limits: StackLimits) -> Runtime {
    let builder = Runtime::builder(dir).cores(1).limits(limits);
    builder.namespace::<Tally<TEST>>("tallies").start().unwrap()
}

fn stub<const TEST: usize>(runtime: &Runtime, name: &str) -> Stub<Tally<TEST>> {
    runtime.namespace().get_by_name(name)
}

fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < Duration::from_secs(20), "not in time: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn an_object_that_is_idle_for_long_leaves_and_is_built_anew() {
    let dir = tempfile::tempdir().unwrap();
    let idle = Duration::from_millis(300);
    let runtime = start::<0>(&dir, StackLimits { idle, ..StackLimits::PRODUCTION });
    let stub = stub::<0>(&runtime, "mice");
    let began = Instant::now();
    // Used again and again, it stays, for longer than it would stay idle.
    let mut calls = 0;
    while began.elapsed() < 3 * idle {
        calls += 1;
        let got = stub.call(Ask::Calls).wait().unwrap();
        // On a machine that stood still for so long it may have left: then nothing is shown.
        assert!(got == calls || began.elapsed() > idle, "{got}, not {calls}");
        calls = got;
        std::thread::sleep(Duration::from_millis(5));
    }
    until("it leaves", || LIVE[0].load(Ordering::SeqCst) == 0);
    assert_eq!(stub.call(Ask::Calls).wait().unwrap(), 1, "a new instance");
    runtime.close().unwrap();
}

#[test]
fn an_object_that_works_is_not_idle() {
    let dir = tempfile::tempdir().unwrap();
    let idle = Duration::from_millis(20);
    let runtime = start::<1>(&dir, StackLimits { idle, ..StackLimits::PRODUCTION });
    let (one, other) = (stub::<1>(&runtime, "one"), stub::<1>(&runtime, "other"));
    let time = Duration::from_millis(400);
    let working = one.call(Ask::Work(time));
    assert_eq!(other.call(Ask::WorkBeside(time)).wait().unwrap(), 1);
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(LIVE[1].load(Ordering::SeqCst), 2, "both have something to do");
    assert_eq!(working.wait().unwrap(), 1);
    until("both leave", || LIVE[1].load(Ordering::SeqCst) == 0);
    runtime.close().unwrap();
}

#[test]
fn a_thousand_objects_fit_where_there_is_room_for_ten() {
    let dir = tempfile::tempdir().unwrap();
    let data = 16 << 10;
    let resident_bytes = 10 * (data + OBJECT_BYTES);
    let limits = StackLimits { idle: NEVER, resident_bytes, ..StackLimits::PRODUCTION };
    let runtime = start::<2>(&dir, limits);
    let names: Vec<String> = (0..1000).map(|number| format!("object {number}")).collect();
    let mut most = 0;
    for name in &names {
        stub::<2>(&runtime, name).call(Ask::Put(vec![7; data])).wait().unwrap();
        most = most.max(LIVE[2].load(Ordering::SeqCst));
    }
    assert!(most <= 20, "{most} objects were in memory at once");
    // The one that was used last is there, the one before it too; all of them have what they had.
    let newest = stub::<2>(&runtime, &names[999]);
    assert_eq!(newest.call(Ask::Calls).wait().unwrap(), 2);
    for name in names.iter().step_by(50) {
        assert_eq!(stub::<2>(&runtime, name).call(Ask::Get).wait().unwrap(), data as u64);
    }
    runtime.close().unwrap();
}

#[test]
fn where_all_are_busy_no_further_object_is_started() {
    let dir = tempfile::tempdir().unwrap();
    let limits =
        StackLimits { idle: NEVER, resident_bytes: 2 * OBJECT_BYTES, ..StackLimits::PRODUCTION };
    let runtime = start::<3>(&dir, limits);
    let time = Duration::from_millis(600);
    let busy: Vec<_> = (0..4)
        .map(|number| stub::<3>(&runtime, &number.to_string()).call(Ask::Work(time)))
        .collect();
    let further = stub::<3>(&runtime, "further");
    let error = further.call(Ask::Calls).wait().unwrap_err();
    assert!(error.is_overloaded() && !error.reset(), "{error:?}");
    assert_eq!(error.kind(), Kind::Engine(dormouse_engine::Kind::Overloaded));
    assert_eq!(error.code(), Some("memory-full"));
    assert_eq!(error.overload().map(|overload| overload.depth), Some(1));
    busy.into_iter().for_each(|call| assert_eq!(call.wait().unwrap(), 1));
    assert_eq!(further.call(Ask::Calls).wait().unwrap(), 1, "now there is room");
    runtime.close().unwrap();
}

#[test]
fn an_object_with_too_many_calls_refuses_further_ones_and_says_how_many_it_has() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = start::<4>(&dir, StackLimits { calls: 3, ..StackLimits::PRODUCTION });
    let stub = stub::<4>(&runtime, "busy");
    assert_eq!(stub.call(Ask::Calls).wait().unwrap(), 1);
    let time = Duration::from_millis(300);
    let working: Vec<_> = (0..3).map(|_| stub.call(Ask::Work(time))).collect();
    let error = stub.call(Ask::Calls).wait().unwrap_err();
    assert!(error.is_overloaded() && !error.reset(), "{error:?}");
    assert_eq!(error.code(), Some("object-overloaded"));
    assert!(error.to_string().contains("3 wait or run, the oldest for"), "{error}");
    assert_eq!(error.overload().map(|overload| overload.depth), Some(3));
    for call in working {
        call.wait().unwrap();
    }
    assert_eq!(stub.call(Ask::Calls).wait().unwrap(), 5, "now it takes calls again");
    runtime.close().unwrap();
}

/// A socket has no error to be told: its frames wait until there is room.
#[test]
fn a_frame_for_an_object_that_sleeps_waits_for_room() {
    let dir = tempfile::tempdir().unwrap();
    let limits =
        StackLimits { idle: NEVER, resident_bytes: 2 * OBJECT_BYTES, ..StackLimits::PRODUCTION };
    let runtime = start::<5>(&dir, limits);
    let sleeper = stub::<5>(&runtime, "sleeper");
    let request = Request::get("/").body(()).unwrap().with_web_socket_upgrade();
    let client = sleeper.fetch(request).wait().unwrap().take_web_socket().unwrap();
    wait(runtime.evict(sleeper.id()));
    let time = Duration::from_millis(600);
    let busy: Vec<_> = (0..4)
        .map(|number| stub::<5>(&runtime, &number.to_string()).call(Ask::Work(time)))
        .collect();
    wait(client.send("are you there?")).unwrap();
    let error = sleeper.call(Ask::Calls).wait().unwrap_err();
    assert_eq!(error.code(), Some("memory-full"));
    assert_eq!(wait(client.recv()), Some(Received::Message("are you there?".into())));
    busy.into_iter().for_each(|call| assert_eq!(call.wait().unwrap(), 1));
    runtime.close().unwrap();
}

/// T-073: also while more than all objects may take is in use.
#[test]
fn a_list_larger_than_the_budget_pushes_nobody_out() {
    let dir = tempfile::tempdir().unwrap();
    let (values, bytes) = (20, 64 << 10);
    let limits = StackLimits {
        idle: NEVER,
        resident_bytes: values * bytes * 9 / 10,
        ..StackLimits::PRODUCTION
    };
    let runtime = start::<6>(&dir, limits);
    let large = stub::<6>(&runtime, "large");
    large.call(Ask::Fill(values, bytes)).wait().unwrap();
    until("what is too large does not stay", || LIVE[6].load(Ordering::SeqCst) == 0);
    let small: Vec<_> =
        (0..10).map(|number| stub::<6>(&runtime, &format!("small {number}"))).collect();
    for stub in &small {
        stub.call(Ask::Put(vec![7; 16 << 10])).wait().unwrap();
    }
    for calls in 2..6 {
        let list = large.call(Ask::List(Duration::from_millis(50)));
        for stub in &small {
            assert_eq!(stub.call(Ask::Calls).wait().unwrap(), calls, "the same instance");
        }
        assert_eq!(list.wait().unwrap(), (values * bytes) as u64);
        until("it leaves, the others stay", || LIVE[6].load(Ordering::SeqCst) == small.len());
    }
    runtime.close().unwrap();
}

/// Two of them may stay where there is room for them, and the one that was idle for longest leaves.
#[test]
fn of_large_objects_the_one_that_was_idle_for_longest_leaves() {
    let dir = tempfile::tempdir().unwrap();
    let (values, bytes) = (10, 64 << 10);
    let limits = StackLimits {
        idle: NEVER,
        resident_bytes: values * bytes * 3 / 2,
        ..StackLimits::PRODUCTION
    };
    let runtime = start::<7>(&dir, limits);
    let [one, other] = ["one", "other"].map(|name| stub::<7>(&runtime, name));
    one.call(Ask::Fill(values, bytes)).wait().unwrap();
    assert_eq!(one.call(Ask::Calls).wait().unwrap(), 2, "there is room for it");
    other.call(Ask::Fill(values, bytes)).wait().unwrap();
    until("one leaves", || LIVE[7].load(Ordering::SeqCst) == 1);
    assert_eq!(other.call(Ask::Calls).wait().unwrap(), 2, "not the one that was used last");
    assert_eq!(one.call(Ask::List(Duration::ZERO)).wait().unwrap(), (values * bytes) as u64);
    runtime.close().unwrap();
}
