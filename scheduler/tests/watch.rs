//! What a runtime tells of itself: how full its queues were, why its objects are awake, how they share a core.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use dormouse_cache::Write;
use dormouse_engine::call::wait;
use dormouse_scheduler::prelude::*;
use dormouse_scheduler::{Awake, Resident, StackLimits};

/// Does what it is told to.
struct Worker {
    state: State,
}

impl DurableObject for Worker {
    fn new(state: State) -> Self {
        Self { state }
    }

    async fn fetch(&self, request: Request) -> Result<Response> {
        if let Some(socket) = request.web_socket_upgrade()? {
            let live = self.state.accept(&socket)?;
            self.state.wait_until(async move { while live.recv().await.is_some() {} });
            return Ok(socket.into_response());
        }
        self.state.sleep(LONG).await;
        Response::json(&())
    }

    async fn alarm(&self, _: AlarmInfo) -> Result<()> {
        self.state.sleep(LONG).await;
        Ok(())
    }
}

/// Longer than a test takes.
const LONG: Duration = Duration::from_secs(600);

enum Do {
    Nothing,
    /// Blocks the core.
    Block(Duration),
    /// Waits, and lets others in.
    Sleep(Duration),
    /// Calls another one, which takes long.
    CallOther(Stub<Worker>),
    Section,
    WaitUntil,
    SetAlarm,
    /// Works beside the core until the other end is dropped.
    Blocking(Receiver<()>),
    /// Sends a body that never ends.
    Body,
}

impl Handler<Do> for Worker {
    type Reply = ();

    async fn handle(&self, what: Do) -> Result<()> {
        match what {
            Do::Nothing => {}
            Do::Block(time) => block(time),
            Do::Sleep(time) => self.state.sleep(time).await,
            Do::CallOther(other) => other.call(Do::Sleep(LONG)).await?,
            Do::Section => {
                let state = self.state.clone();
                let section = async move || {
                    state.sleep(LONG / 30).await;
                    Ok(())
                };
                self.state.block_concurrency_while(section).await?;
            }
            Do::WaitUntil => self.state.wait_until(std::future::pending()),
            Do::SetAlarm => self.state.storage().set_alarm(In(Duration::ZERO)).await?,
            Do::Blocking(until) => {
                self.state.spawn_blocking(move || until.recv().is_ok()).await?;
            }
            Do::Body => {
                let (_sender, _body) = Body::stream();
                std::future::pending::<()>().await;
            }
        }
        Ok(())
    }
}

/// Writes, and says what it has to do while that is on its way to the disk.
struct Dirty(Stub<Worker>);

impl Handler<Dirty> for Worker {
    type Reply = Vec<Resident>;

    async fn handle(&self, Dirty(own): Dirty) -> Result<Vec<Resident>> {
        drop(self.state.storage().put_with("k", &"x".repeat(100), Write::allow_unconfirmed()));
        Ok(own.resident().await?.into_iter().collect())
    }
}

#[expect(clippy::disallowed_methods, reason = "an object that blocks its core")]
fn block(time: Duration) {
    std::thread::sleep(time);
}

#[expect(clippy::disallowed_methods, reason = "a test of time")]
fn now() -> Instant {
    Instant::now()
}

fn start(dir: &tempfile::TempDir, limits: StackLimits) -> Runtime {
    let runtime = Runtime::builder(dir.path()).cores(1).limits(limits);
    runtime.namespace::<Worker>("workers").start().expect("a runtime")
}

fn worker(runtime: &Runtime, name: &str) -> Stub<Worker> {
    runtime.namespace::<Worker>().get_by_name(name)
}

/// What the object says of itself once `is` holds of it.
fn resident(stub: &Stub<Worker>, is: impl Fn(&Resident) -> bool) -> Resident {
    let began = now();
    loop {
        let resident = wait(stub.resident()).expect("it is said");
        match resident {
            Some(resident) if is(&resident) => return resident,
            other => assert!(began.elapsed() < Duration::from_secs(5), "{other:?}"),
        }
        block(Duration::from_millis(1));
    }
}

fn reasons(resident: &Resident) -> Vec<(Awake, usize)> {
    resident.awake.iter().map(|reason| (reason.why, reason.count)).collect()
}

#[test]
fn a_full_mailbox_says_how_full_and_since_when() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = start(&dir, StackLimits { mailbox: 2, ..StackLimits::PRODUCTION });
    let stub = worker(&runtime, "busy");
    stub.call(Do::Nothing).wait().unwrap();
    let blocked = stub.call(Do::Block(Duration::from_millis(400)));
    block(Duration::from_millis(100));
    let waiting: Vec<_> = (0..2).map(|_| stub.call(Do::Nothing)).collect();
    let error = stub.call(Do::Nothing).wait().unwrap_err();
    assert_eq!(error.code(), Some("mailbox-full"));
    let overload = error.overload().unwrap();
    let oldest = overload.oldest.unwrap();
    assert_eq!(overload.depth, 2);
    assert!(oldest >= Duration::from_millis(90) && oldest < LONG, "{oldest:?}");
    assert!(error.to_string().contains("the mailbox of core 0 is overloaded: 2 wait"), "{error}");
    blocked.wait().unwrap();
    waiting.into_iter().for_each(|call| call.wait().unwrap());
    runtime.close().unwrap();
}

#[test]
fn a_refused_call_says_how_old_the_oldest_is() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = start(&dir, StackLimits { calls: 2, ..StackLimits::PRODUCTION });
    let stub = worker(&runtime, "busy");
    let began = now();
    let first = stub.call(Do::Sleep(Duration::from_millis(300)));
    let second = stub.call(Do::Sleep(Duration::from_millis(900)));
    first.wait().unwrap();
    let between = began.elapsed();
    // The first is over: the second is the oldest, and no older than it.
    let _third = stub.call(Do::Sleep(Duration::from_millis(900)));
    block(Duration::from_millis(50));
    let overload = stub.call(Do::Nothing).wait().unwrap_err().overload().unwrap();
    let oldest = overload.oldest.unwrap();
    assert_eq!(overload.depth, 2);
    assert!(oldest >= between && oldest <= began.elapsed(), "{oldest:?} {between:?}");
    second.wait().unwrap();
    runtime.close().unwrap();
}

/// Each reason by itself, on an object of its own.
#[test]
fn objects_say_why_they_are_awake() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = start(&dir, StackLimits::PRODUCTION);
    let awake = |name: &str, what: Do, expected: &[(Awake, usize)]| {
        let stub = worker(&runtime, name);
        let call = stub.call(what);
        let seen = resident(&stub, |resident| reasons(resident) == expected);
        wait(runtime.abort(stub.id(), "enough"));
        let _over = call.wait();
        seen
    };
    let timer = awake("timer", Do::Sleep(LONG), &[(Awake::Call, 1), (Awake::Timer, 1)]);
    assert_eq!((timer.woken_by, timer.calls), (Awake::Call, 1));
    assert_eq!((&*timer.namespace, timer.id.name()), ("workers", Some("timer")));
    let other = worker(&runtime, "called");
    let outside = &[(Awake::Call, 1), (Awake::OutsideCall, 1)];
    awake("calling", Do::CallOther(other.clone()), outside);
    // That its caller is gone does not end the call.
    resident(&other, |resident| reasons(resident) == [(Awake::Call, 1), (Awake::Timer, 1)]);
    wait(runtime.abort(other.id(), "enough"));
    let section = &[(Awake::Call, 1), (Awake::Section, 1), (Awake::Timer, 1)];
    awake("section", Do::Section, section);
    let task = awake("task", Do::WaitUntil, &[(Awake::WaitUntil, 1)]);
    assert_eq!(task.calls, 0);
    let (until, ended) = mpsc::channel();
    awake("blocking", Do::Blocking(ended), &[(Awake::Call, 1), (Awake::Blocking, 1)]);
    awake("body", Do::Body, &[(Awake::Call, 1), (Awake::Body, 1)]);
    let alarm = awake("alarm", Do::SetAlarm, &[(Awake::Alarm, 1), (Awake::Timer, 1)]);
    assert_eq!(alarm.woken_by, Awake::Alarm);

    let own = worker(&runtime, "dirty");
    let dirty = own.call(Dirty(own.clone())).wait().unwrap().remove(0);
    assert!(
        dirty.awake.iter().any(|reason| reason.why == Awake::DirtyBytes && reason.count >= 100)
    );
    resident(&own, Resident::is_idle);

    let socket = worker(&runtime, "socket");
    let request = || Request::get("/").body(()).unwrap();
    let upgraded = socket.fetch(request().with_web_socket_upgrade()).wait();
    let client = upgraded.unwrap().take_web_socket().expect("accepted");
    let kept = [(Awake::WaitUntil, 1), (Awake::Socket, 1)];
    resident(&socket, |resident| reasons(resident) == kept);
    drop(client);
    resident(&socket, Resident::is_idle);

    let _call = socket.fetch(request());
    let asked = [(Awake::Request, 1), (Awake::Timer, 1)];
    let text = resident(&socket, |resident| reasons(resident) == asked).to_string();
    assert!(text.contains("(\"socket\"): awake for 1 request (for "), "{text}");
    assert!(text.contains("; last woken by a request, "), "{text}");
    wait(runtime.abort(socket.id(), "enough"));
    drop(until);
    runtime.close().unwrap();
}

#[test]
fn what_woke_an_object_last_may_be_a_timer_or_a_reply() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = start(&dir, StackLimits::PRODUCTION);
    let stub = worker(&runtime, "sleeper");
    assert!(wait(stub.resident()).unwrap().is_none(), "asking does not bring it to memory");
    stub.call(Do::Sleep(Duration::from_millis(1))).wait().unwrap();
    assert_eq!(resident(&stub, Resident::is_idle).woken_by, Awake::Timer);
    let (caller, other) = (worker(&runtime, "caller"), worker(&runtime, "other"));
    let call = caller.call(Do::CallOther(other.clone()));
    resident(&other, |resident| !resident.is_idle());
    wait(runtime.abort(other.id(), "enough"));
    call.wait().unwrap_err();
    assert_eq!(resident(&caller, Resident::is_idle).woken_by, Awake::OutsideCall);
    runtime.close().unwrap();
}

#[test]
fn residents_come_in_pages() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = Runtime::builder(dir.path()).cores(3).namespace::<Worker>("workers");
    let runtime = runtime.start().expect("a runtime");
    let stubs: Vec<_> = (0..23).map(|n: u32| worker(&runtime, &n.to_string())).collect();
    stubs.iter().for_each(|stub| stub.call(Do::Nothing).wait().unwrap());
    let mut expected: Vec<_> = stubs.iter().map(|stub| stub.id().object()).collect();
    expected.sort_unstable();
    let (mut seen, mut last) = (Vec::new(), None);
    loop {
        let page = wait(runtime.residents(last.as_ref(), 5)).unwrap();
        seen.extend(page.iter().map(|resident| resident.id.object()));
        match page.last() {
            Some(resident) => last = Some(resident.id.clone()),
            None => break,
        }
    }
    assert_eq!(seen, expected);
    runtime.close().unwrap();
}

/// Counts what it is asked for, in their order.
struct Busy {
    state: State,
    asked: RefCell<Vec<u64>>,
}

impl DurableObject for Busy {
    fn new(state: State) -> Self {
        Self { state, asked: RefCell::default() }
    }
}

/// The `n`th of many: takes a while, and some of them wait.
struct Nth(u64, Arc<AtomicU64>);

impl Handler<Nth> for Busy {
    type Reply = ();

    async fn handle(&self, Nth(number, done): Nth) -> Result<()> {
        self.asked.borrow_mut().push(number);
        block(Duration::from_micros(20));
        done.fetch_add(1, Ordering::Relaxed);
        if number.is_multiple_of(7) {
            self.state.sleep(Duration::from_millis(1)).await;
        }
        Ok(())
    }
}

/// In which order they came.
struct Asked;

impl Handler<Asked> for Busy {
    type Reply = Vec<u64>;

    async fn handle(&self, _: Asked) -> Result<Vec<u64>> {
        Ok(self.asked.borrow().clone())
    }
}

/// How much was done when its turn came.
struct Look(Arc<AtomicU64>);

impl Handler<Look> for Worker {
    type Reply = u64;

    async fn handle(&self, Look(done): Look) -> Result<u64> {
        Ok(done.load(Ordering::Relaxed))
    }
}

/// Starts tasks that start tasks, each ready at once.
struct Hog(Arc<AtomicU64>);

impl Handler<Hog> for Busy {
    type Reply = ();

    async fn handle(&self, Hog(count): Hog) -> Result<()> {
        hog(self.state.clone(), count);
        Ok(())
    }
}

fn hog(state: State, count: Arc<AtomicU64>) {
    count.fetch_add(1, Ordering::Relaxed);
    state.clone().wait_until(async move { hog(state, count) });
}

fn busy_runtime(dir: &tempfile::TempDir) -> Runtime {
    let runtime = Runtime::builder(dir.path()).cores(1);
    let runtime = runtime.namespace::<Busy>("busy").namespace::<Worker>("workers");
    runtime.start().expect("a runtime")
}

/// What is left over of a turn goes on in the next, in its order, and others have a turn between.
#[test]
fn calls_of_one_object_leave_turns_to_others_and_stay_in_order() {
    const CALLS: u64 = 2000;
    let dir = tempfile::tempdir().unwrap();
    let runtime = busy_runtime(&dir);
    let (hot, other) = (runtime.namespace::<Busy>().get_by_name("hot"), worker(&runtime, "other"));
    other.call(Do::Nothing).wait().unwrap();
    let done = Arc::new(AtomicU64::new(0));
    // They wait together until the core goes on.
    let blocked = other.call(Do::Block(Duration::from_millis(300)));
    let calls: Vec<_> = (0..CALLS).map(|number| hot.call(Nth(number, done.clone()))).collect();
    let seen = other.call(Look(done));
    blocked.wait().unwrap();
    // Eight batches of mail and the turns between them, 64 polls at most each; all calls without a bound.
    let seen = seen.wait().unwrap();
    assert!(seen <= 10 * 64, "{seen} calls of the hot one came before one of the other");
    calls.into_iter().for_each(|call| call.wait().unwrap());
    let asked = hot.call(Asked).wait().unwrap();
    assert_eq!(asked, (0..CALLS).collect::<Vec<_>>(), "calls through one stub come in their order");
    runtime.close().unwrap();
}

/// Between two calls of another object the hog has some turns, and no more.
#[test]
fn an_object_whose_tasks_never_end_leaves_turns_to_others() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = busy_runtime(&dir);
    let (hot, other) = (runtime.namespace::<Busy>().get_by_name("hot"), worker(&runtime, "other"));
    let count = Arc::new(AtomicU64::new(0));
    hot.call(Hog(count.clone())).wait().unwrap();
    (0..20).for_each(|_| other.call(Do::Nothing).wait().unwrap());
    assert!(count.load(Ordering::Relaxed) > 1000, "it goes on meanwhile");
    wait(runtime.abort(hot.id(), "enough"));
    runtime.close().unwrap();
}
