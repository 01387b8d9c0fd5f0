//! Objects on a real directory, through stubs from other threads.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use dormouse_scheduler::Kind;
use dormouse_scheduler::prelude::*;

struct Counter {
    state: State,
    /// Calls of this instance: lost with it.
    calls: Cell<u64>,
    /// The constructor's section is over.
    constructed: Rc<Cell<bool>>,
}

impl DurableObject for Counter {
    fn new(state: State) -> Self {
        let storage = state.clone();
        let constructed = Rc::new(Cell::new(false));
        let done = constructed.clone();
        drop(state.block_concurrency_while(async move || {
            let lives: u64 = storage.storage().get("lives").await?.unwrap_or(0);
            storage.sleep(Duration::from_millis(2)).await;
            storage.storage().put("lives", &(lives + 1)).await?;
            done.set(true);
            Ok(())
        }));
        Self { state, calls: Cell::new(0), constructed }
    }

    async fn fetch(&self, request: Request) -> Result<Response> {
        assert!(self.constructed.get());
        let path = request.uri().path().to_owned();
        let body = request.into_body().text().await?;
        Response::json(&format!("{path} {body}"))
    }

    async fn alarm(&self, info: AlarmInfo) -> Result<()> {
        let runs: u64 = self.state.storage().get("alarms").await?.unwrap_or(0);
        self.state.storage().put("alarms", &(runs + 1)).await?;
        assert!(self.state.now_ms() >= info.scheduled_ms, "an alarm is early");
        assert_eq!(self.state.storage().get_alarm().await?, None);
        Ok(())
    }
}

struct Add(u64);
impl Handler<Add> for Counter {
    type Reply = u64;
    async fn handle(&self, Add(more): Add) -> Result<u64> {
        assert!(self.constructed.get(), "R-528");
        self.calls.set(self.calls.get() + 1);
        let n: u64 = self.state.storage().get("n").await?.unwrap_or(0) + more;
        self.state.storage().put("n", &n).await?;
        Ok(n)
    }
}

enum Do {
    Calls,
    Lives,
    Alarms,
    Panic,
    Abort,
    Fail,
    FailInTransaction,
    Commit,
    SetAlarm(Duration),
    FailSection,
    /// Has another task of the object wait until all is durable, and perhaps waits for that task.
    SyncBeside {
        and_wait: bool,
    },
    Sleep(Duration),
    AddLater(Duration),
}
impl Handler<Do> for Counter {
    type Reply = u64;
    async fn handle(&self, what: Do) -> Result<u64> {
        let storage = self.state.storage();
        match what {
            Do::Calls => return Ok(self.calls.get()),
            Do::Lives => return Ok(storage.get("lives").await?.unwrap_or(0)),
            Do::Alarms => return Ok(storage.get("alarms").await?.unwrap_or(0)),
            Do::Panic => panic!("as asked"),
            Do::Abort => {
                storage.put("n", &1000).await?;
                self.state.abort("enough").await;
            }
            Do::Fail => {
                storage.put("n", &7).await?;
                return Err(Error::user("no"));
            }
            Do::FailInTransaction => {
                storage
                    .transaction(async |txn| {
                        txn.put("n", &9).await?;
                        Err::<(), _>(Error::user("taken back"))
                    })
                    .await?;
            }
            Do::Commit => {
                storage
                    .transaction(async |txn| {
                        let n: u64 = txn.get("n").await?.unwrap_or(0);
                        storage.put("n", &(n + 1)).await?;
                        storage.transaction(async |inner| inner.rollback()).await?;
                        txn.set_alarm(In(Duration::from_secs(3600))).await
                    })
                    .await?;
            }
            Do::SetAlarm(delay) => storage.set_alarm(In(delay)).await?,
            Do::SyncBeside { and_wait } => {
                storage.put("beside", &and_wait).await?;
                let synced = storage.sync();
                let (done, ended) = futures_channel::oneshot::channel();
                self.state.wait_until(async move {
                    synced.await.expect("durable");
                    let _nobody_waits = done.send(());
                });
                if and_wait {
                    ended.await.expect("the task ends");
                }
            }
            Do::Sleep(time) => self.state.sleep(time).await,
            Do::AddLater(delay) => {
                let state = self.state.clone();
                self.state.wait_until(async move {
                    state.sleep(delay).await;
                    state.storage().put("n", &100).await.expect("the instance is alive");
                });
            }
            Do::FailSection => {
                let section = async || Err::<(), _>(Error::user("section"));
                self.state.block_concurrency_while(section).await?;
            }
        }
        Ok(storage.get("n").await?.unwrap_or(0))
    }
}

/// Calls one object to wait for another's reply.
struct Caller(State);
impl DurableObject for Caller {
    fn new(state: State) -> Self {
        Self(state)
    }
}
/// Aborts itself, and calls another object in the same turn all the same.
struct AbortAndForward(Stub<Counter>);
impl Handler<AbortAndForward> for Caller {
    type Reply = ();
    async fn handle(&self, AbortAndForward(counter): AbortAndForward) -> Result<()> {
        let aborted = self.0.abort("enough");
        drop(counter.call(Add(1)));
        aborted.await;
        Ok(())
    }
}

struct Forward(Stub<Counter>);
impl Handler<Forward> for Caller {
    type Reply = u64;
    async fn handle(&self, Forward(counter): Forward) -> Result<u64> {
        self.0.storage().put("forwarded", &true).await?;
        let (one, two) = (counter.call(Add(1)), counter.call(Add(10)));
        Ok(one.await? * 100 + two.await?)
    }
}

fn start(dir: &tempfile::TempDir) -> Runtime {
    let builder = Runtime::builder(dir).cores(2);
    builder.namespace::<Counter>("counters").namespace::<Caller>("callers").start().unwrap()
}

fn counter(runtime: &Runtime) -> Stub<Counter> {
    runtime.namespace::<Counter>().get_by_name("mice")
}

#[test]
fn increments_of_many_threads_are_all_counted_and_kept() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = start(&dir);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let stub = counter(&runtime);
                let calls: Vec<_> = (0..50).map(|_| stub.call(Add(1))).collect();
                let replies: Vec<u64> = calls.into_iter().map(|c| c.wait().unwrap()).collect();
                assert!(replies.is_sorted(), "calls of a stub arrive in order");
            });
        }
    });
    assert_eq!(counter(&runtime).call(Add(0)).wait().unwrap(), 200);
    assert_eq!(counter(&runtime).call(Do::Lives).wait().unwrap(), 1);
    runtime.close().unwrap();
    let runtime = start(&dir);
    assert_eq!(counter(&runtime).call(Add(0)).wait().unwrap(), 200);
    assert_eq!(counter(&runtime).call(Do::Lives).wait().unwrap(), 2);
}

#[test]
fn a_fetch_is_answered() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = start(&dir);
    let request = Request::post("/a/b").body("hello").unwrap();
    let response = counter(&runtime).fetch(request).wait().unwrap();
    assert_eq!(response.headers()["content-type"], "application/json");
    let body = futures_text(response);
    assert_eq!(body, "\"/a/b hello\"");
}

fn futures_text(response: Response) -> String {
    use std::future::Future;
    let mut text = Box::pin(response.into_body().text());
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    match text.as_mut().poll(&mut context) {
        std::task::Poll::Ready(text) => text.unwrap(),
        std::task::Poll::Pending => panic!("the body is there"),
    }
}

/// what ends an instance, what does not, and what is left.
#[test]
fn panics_and_aborts_reset_the_object_alone_and_errors_do_not() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = start(&dir);
    let stub = counter(&runtime);
    let other = runtime.namespace::<Counter>().get_by_name("other");
    assert_eq!(other.call(Add(1)).wait().unwrap(), 1);
    assert_eq!(stub.call(Add(5)).wait().unwrap(), 5);

    let error = stub.call(Do::Fail).wait().unwrap_err();
    assert_eq!((error.kind(), error.reset()), (Kind::User, false));
    assert_eq!(stub.call(Do::Calls).wait().unwrap(), 1, "the instance lives on");
    assert_eq!(stub.call(Add(0)).wait().unwrap(), 7, "what was written before an error stays");

    let error = stub.call(Do::Panic).wait().unwrap_err();
    assert_eq!((error.kind(), error.reset()), (Kind::ObjectReset, true));
    assert!(error.to_string().contains("as asked"), "{error}");
    assert_eq!(stub.call(Do::Calls).wait().unwrap(), 0, "a new instance");

    let error = stub.call(Do::Abort).wait().unwrap_err();
    assert_eq!((error.kind(), error.to_string().as_str()), (Kind::ObjectAborted, "enough"));
    assert_eq!(stub.call(Add(0)).wait().unwrap(), 7, "an aborted turn writes nothing");

    let error = stub.call(Do::FailSection).wait().unwrap_err();
    assert!(error.reset(), "{error:?}");
    assert_eq!(stub.call(Do::Lives).wait().unwrap(), 4);
    assert_eq!(other.call(Do::Calls).wait().unwrap(), 1, "the other object did not notice");
}

#[test]
fn transactions_are_made_whole_or_taken_back() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = start(&dir);
    let stub = counter(&runtime);
    stub.call(Add(1)).wait().unwrap();
    let error = stub.call(Do::FailInTransaction).wait().unwrap_err();
    assert_eq!((error.kind(), error.reset()), (Kind::User, false));
    assert_eq!(stub.call(Add(0)).wait().unwrap(), 1);
    assert_eq!(stub.call(Do::Commit).wait().unwrap(), 2);
}

#[test]
fn an_evicted_object_is_built_anew_from_what_is_durable() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = start(&dir);
    let stub = counter(&runtime);
    stub.call(Add(3)).wait().unwrap();
    block_on(runtime.evict(stub.id()));
    assert_eq!(stub.call(Do::Calls).wait().unwrap(), 0);
    assert_eq!(stub.call(Add(0)).wait().unwrap(), 3);
}

#[test]
fn an_aborted_object_is_built_anew_and_whoever_waits_is_told_why() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = start(&dir);
    let stub = counter(&runtime);
    stub.call(Add(3)).wait().unwrap();
    let waiting = stub.call(Do::Sleep(Duration::from_secs(3600)));
    stub.call(Do::Calls).wait().unwrap();
    block_on(runtime.abort(stub.id(), "an operator said so"));
    let error = waiting.wait().unwrap_err();
    assert_eq!((error.kind(), error.reset()), (Kind::ObjectAborted, true));
    assert_eq!(error.to_string(), "an operator said so");
    assert_eq!(stub.call(Do::Calls).wait().unwrap(), 0, "a new instance");
    assert_eq!(stub.call(Add(0)).wait().unwrap(), 3, "with what was durable");
}

/// Whoever awaits an operation, in whichever task: the operation is over when storage says so, and the
/// gate is open then.
#[expect(clippy::disallowed_methods, reason = "a test on the real clock")]
#[test]
fn an_operation_may_be_awaited_by_another_task_than_the_one_that_made_it() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = start(&dir);
    let stub = counter(&runtime);
    let began = std::time::Instant::now();
    for round in 1..=3 {
        stub.call(Do::SyncBeside { and_wait: round == 2 }).wait().unwrap();
        assert_eq!(stub.call(Add(1)).wait().unwrap(), round);
    }
    assert!(began.elapsed() < Duration::from_secs(20), "something was stuck until its limit");
}

/// It is there already: it leaves when it has answered.
#[test]
fn an_object_that_is_being_started_is_evicted_too() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = start(&dir);
    let stub = counter(&runtime);
    stub.call(Add(1)).wait().unwrap();
    block_on(runtime.evict(stub.id()));
    // Now it is read from the disk.
    let added = stub.call(Add(2));
    block_on(runtime.evict(stub.id()));
    assert_eq!(added.wait().unwrap(), 3);
    assert_eq!(stub.call(Do::Calls).wait().unwrap(), 0, "a new instance");
}

#[test]
fn an_evicted_object_leaves_when_what_it_wrote_since_is_durable() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = start(&dir);
    let stub = counter(&runtime);
    stub.call(Do::AddLater(Duration::from_millis(50))).wait().unwrap();
    block_on(runtime.evict(stub.id()));
    assert_eq!(stub.call(Add(0)).wait().unwrap(), 100);
}

#[test]
#[expect(clippy::disallowed_methods, reason = "a test on the real clock")]
fn closing_answers_an_object_that_is_being_started_and_does_not_wait_longer() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = start(&dir);
    let added = counter(&runtime).call(Add(3));
    let begun = std::time::Instant::now();
    runtime.close().unwrap();
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert_eq!(added.wait().unwrap(), 3);
}

fn block_on(future: impl Future<Output = ()>) {
    let (sender, receiver) = std::sync::mpsc::channel();
    struct Wakes(std::sync::Mutex<std::sync::mpsc::Sender<()>>);
    impl std::task::Wake for Wakes {
        fn wake(self: std::sync::Arc<Self>) {
            self.0.lock().unwrap().send(()).ok();
        }
    }
    let waker = std::sync::Arc::new(Wakes(std::sync::Mutex::new(sender))).into();
    let mut context = std::task::Context::from_waker(&waker);
    let mut future = std::pin::pin!(future);
    while future.as_mut().poll(&mut context).is_pending() {
        receiver.recv_timeout(Duration::from_secs(30)).expect("woken");
    }
}

/// a call to another object leaves after what was written before it; R-503: in order.
#[test]
fn objects_call_objects_on_other_cores() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = start(&dir);
    let callers = runtime.namespace::<Caller>();
    for n in 0..20 {
        let counter = runtime.namespace::<Counter>().get_by_name(&format!("counter {n}"));
        let caller = callers.get_by_name(&format!("caller {n}"));
        assert_eq!(caller.call(Forward(counter)).wait().unwrap(), 111);
    }
}

/// an alarm of a past life fires after the next start.
#[test]
fn an_object_that_aborted_itself_says_nothing_more() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = start(&dir);
    let caller = runtime.namespace::<Caller>().get_by_name("caller");
    let error = caller.call(AbortAndForward(counter(&runtime))).wait().unwrap_err();
    assert_eq!(error.kind(), Kind::ObjectAborted);
    assert_eq!(counter(&runtime).call(Add(0)).wait().unwrap(), 0);
}

#[test]
fn an_alarm_fires_once_also_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = start(&dir);
    let stub = counter(&runtime);
    stub.call(Do::SetAlarm(Duration::from_millis(30))).wait().unwrap();
    wait_for_alarms(&stub, 1);
    stub.call(Do::SetAlarm(Duration::from_millis(400))).wait().unwrap();
    runtime.close().unwrap();
    let runtime = start(&dir);
    wait_for_alarms(&counter(&runtime), 2);
    sleep(200);
    assert_eq!(counter(&runtime).call(Do::Alarms).wait().unwrap(), 2, "no second time");
}

fn wait_for_alarms(stub: &Stub<Counter>, count: u64) {
    for _ in 0..500 {
        if stub.call(Do::Alarms).wait().unwrap() == count {
            return;
        }
        sleep(10);
    }
    panic!("alarm {count} does not fire");
}

#[expect(clippy::disallowed_methods, reason = "a test on the real clock")]
fn sleep(ms: u64) {
    std::thread::sleep(Duration::from_millis(ms));
}

#[test]
fn a_store_that_is_open_is_refused_and_a_closed_runtime_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = start(&dir);
    let stub = counter(&runtime);
    runtime.close().unwrap();
    let error = stub.call(Add(1)).wait().unwrap_err();
    assert_eq!(error.kind(), Kind::Engine(dormouse_engine::Kind::Closed), "{error}");
}
