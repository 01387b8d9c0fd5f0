//! What the gates do with time, with failing writes and with events that come between: on the
//! simulated machine, where thirty seconds take no time.

mod common;

use std::cell::RefCell;
use std::time::Duration;

use dormouse_cache::CacheLimits;
use dormouse_engine::Limits;
use dormouse_scheduler::prelude::*;
use dormouse_scheduler::{Call, StackLimits, Topology};
use dormouse_sim::{DiskFaults, Process, SimEnv, World};
use futures_util::future::FutureExt;

const STEPS: u64 = 2_000_000;
const LIMITS: Limits = Limits::TINY;
/// How long a section or a transaction may take.
const SECTION_MAX: Duration = Duration::from_secs(30);

/// One core that serves objects of one type.
struct Machine {
    world: World,
    process: Process,
    env: SimEnv,
    topology: Topology,
}

impl Machine {
    fn new(seed: u64) -> Self {
        let world = World::new(seed, DiskFaults::default());
        let process = world.process();
        let limits = StackLimits { cache: CacheLimits::TINY, ..StackLimits::PRODUCTION };
        let topology = Topology::builder().namespace::<Object>("objects").limits(limits);
        let topology = topology.build(|| 0);
        let machine = Self { env: process.core(), world, process, topology };
        let (core, topology) = (machine.process.core(), machine.topology.clone());
        machine.run(async move {
            // A shard whose write failed can't be closed well.
            common::serve(&core, &topology, 1, LIMITS, drop).await;
        });
        machine
    }

    fn run<T: 'static>(&self, future: impl Future<Output = T> + 'static) -> T {
        let value = self.world.block_on(&self.env, STEPS, future);
        assert_eq!(self.world.take_panics(), [] as [String; 0]);
        value.expect("it ends")
    }

    fn stub(&self) -> Stub<Object> {
        self.topology.namespace().get_by_name("mice")
    }

    fn answer<T: 'static>(&self, call: Call<T>) -> Result<T> {
        self.run(call)
    }

    /// All that is written from now on fails.
    fn break_disk(&self) {
        self.world.set_faults(DiskFaults { write_error: 1, ..DiskFaults::default() });
    }
}

struct Object {
    state: State,
    /// Who did what, as far as a test wants to know.
    log: RefCell<String>,
}

impl DurableObject for Object {
    fn new(state: State) -> Self {
        Self { state, log: RefCell::default() }
    }

    /// Answers while a section that it started is still to run.
    async fn fetch(&self, _request: Request) -> Result<Response> {
        self.log.replace("f".into());
        let state = self.state.clone();
        drop(self.state.block_concurrency_while(async move || {
            state.sleep(Duration::from_secs(1)).await;
            state.storage().put("section", &true).await
        }));
        Response::json(&())
    }
}

impl Object {
    fn note(&self, what: char) {
        self.log.borrow_mut().push(what);
    }
}

enum Do {
    /// Waits for a section in which nothing happens.
    StuckSection,
    /// Waits for a section that takes two thirds of what it may.
    LongSection,
    /// The same as the stuck section with a transaction, which writes first.
    StuckTransaction,
    Write,
    WriteUnconfirmed,
    WriteAndFail,
    /// Writes more than may be dirty, and does not wait for it.
    Fill,
    /// Sleeps briefly that many times, and notes each.
    Blink(u32),
    /// Waits for a write that waits for its flush; notes before and after.
    WriteMuch(Write),
    /// Writes and waits until it is durable, likewise.
    WriteAndSync,
    /// Waits so long for something outside, likewise.
    Sleep(Duration),
    /// Reads what is in memory, likewise.
    Read,
    /// Waits for something outside in a transaction, likewise.
    TransactionThatSleeps,
    /// Writes much in a transaction, so that its commit waits for its flush, likewise.
    TransactionThatWritesMuch,
    /// Waits for a section that waits for something outside, likewise.
    SectionThatSleeps,
    /// Sets an alarm and keys that output need not wait for.
    Unconfirmed,
    /// Leaves its state where another object finds it.
    Lend,
    /// Starts a section of that other object.
    UseLent,
    /// Fetches from the object that was named, and calls it in a section, at once.
    FetchThenCallInSection,
}

thread_local! {
    static LENT: RefCell<Option<State>> = const { RefCell::new(None) };
    static NAMED: RefCell<Option<Stub<Object>>> = const { RefCell::new(None) };
}

impl Handler<Do> for Object {
    /// Whether all was durable when the handler was entered; and the log.
    type Reply = (bool, String);

    async fn handle(&self, what: Do) -> Result<Self::Reply> {
        let storage = self.state.storage();
        let durable = storage.sync().now_or_never().is_some();
        let much = vec![0; LIMITS.value_bytes_max];
        match what {
            Do::StuckSection => {
                let stuck = async || -> Result<()> { std::future::pending().await };
                self.state.block_concurrency_while(stuck).await?;
            }
            Do::LongSection => {
                let state = self.state.clone();
                let long = async move || {
                    state.sleep(SECTION_MAX * 2 / 3).await;
                    Ok(())
                };
                self.state.block_concurrency_while(long).await?;
            }
            Do::StuckTransaction => {
                storage
                    .transaction(async |txn| -> Result<()> {
                        txn.put("stuck", &true).await?;
                        std::future::pending().await
                    })
                    .await?;
            }
            Do::Write => storage.put("key", &1).await?,
            Do::WriteUnconfirmed => {
                storage.put_with("key", &2, Write::allow_unconfirmed()).await?;
            }
            Do::WriteAndFail => {
                storage.put("key", &3).await?;
                return Err(Error::user("what the handler says"));
            }
            Do::Fill => (0..3).for_each(|n| drop(storage.put_bytes(&n.to_string(), much.clone()))),
            Do::Blink(times) => {
                for _ in 0..times {
                    self.state.sleep(Duration::from_micros(1)).await;
                    self.note('b');
                }
            }
            Do::WriteMuch(options) => {
                self.note('[');
                let keys = ["0", "1", "2"];
                let writes = keys.map(|key| storage.put_bytes_with(key, much.clone(), options));
                for write in writes {
                    write.await?;
                }
                self.note(']');
            }
            Do::WriteAndSync => {
                self.note('[');
                storage.put("key", &4).await?;
                storage.sync().await?;
                self.note(']');
            }
            Do::Sleep(time) => {
                self.note('[');
                self.state.sleep(time).await;
                self.note(']');
            }
            Do::Read => {
                self.note('[');
                for _ in 0..100 {
                    storage.get_bytes("absent").await?;
                }
                self.note(']');
            }
            Do::TransactionThatSleeps => {
                self.note('[');
                let work = async |_: &Transaction| {
                    self.state.sleep(Duration::from_millis(1)).await;
                    Ok(())
                };
                storage.transaction(work).await?;
                self.note(']');
            }
            Do::TransactionThatWritesMuch => {
                self.note('[');
                let keys = ["0", "1", "2"];
                let work = async |txn: &Transaction| {
                    keys.iter().for_each(|key| drop(txn.put_bytes(key, much.clone())));
                    Ok(())
                };
                storage.transaction(work).await?;
                assert!(storage.sync().now_or_never().is_some(), "its flush was waited for");
                self.note(']');
            }
            Do::SectionThatSleeps => {
                let state = self.state.clone();
                let section = self.state.block_concurrency_while(async move || {
                    state.storage().put("begun", &true).await?;
                    state.sleep(Duration::from_millis(1)).await;
                    Ok(())
                });
                assert!(storage.get_bytes("begun").await?.is_none(), "not at the call (R-525)");
                self.note('[');
                section.await?;
                self.note(']');
            }
            Do::Unconfirmed => {
                let options = Write::allow_unconfirmed();
                storage.set_alarm_with(In(Duration::from_secs(60)), options).await?;
                storage.put_many_bytes_with(&[("a", b"1"[..].into())], options).await?;
                storage.delete_many_with(&["a"], options).await?;
                storage.delete_alarm_with(options).await?;
                storage.set_alarm_with(In(Duration::from_secs(90)), options).await?;
            }
            Do::Lend => LENT.set(Some(self.state.clone())),
            Do::UseLent => {
                let lent = LENT.take().expect("lent before");
                lent.block_concurrency_while(async || Ok(())).await?;
            }
            Do::FetchThenCallInSection => {
                let other = NAMED.take().expect("named before");
                let fetch = other.fetch(Request::get("/").body(()).expect("a request"));
                let section = async move || Ok(other.call(Do::Read).await?.1);
                let log = self.state.block_concurrency_while(section).await?;
                fetch.await?;
                return Ok((durable, log));
            }
        }
        Ok((durable, self.log.borrow().clone()))
    }
}

/// T-120: and the next call meets a new instance.
#[test]
fn a_section_that_takes_too_long_resets_the_object() {
    let machine = Machine::new(1);
    let begun = machine.world.now();
    let (stuck, behind) = (machine.stub().call(Do::StuckSection), machine.stub().call(Do::Write));
    for call in [stuck, behind] {
        let error = machine.answer(call).unwrap_err();
        assert!(error.reset() && error.is_overloaded(), "{error:?}");
        let took = machine.world.now() - begun;
        assert!(took >= SECTION_MAX && took < SECTION_MAX + Duration::from_secs(1), "{took:?}");
    }
    machine.answer(machine.stub().call(Do::Write)).unwrap();
}

/// three of them take twice as long together.
#[test]
fn the_limit_of_a_section_begins_when_it_is_granted() {
    let machine = Machine::new(8);
    let begun = machine.world.now();
    let calls = [0; 3].map(|_| machine.stub().call(Do::LongSection));
    calls.into_iter().for_each(|call| drop(machine.answer(call).unwrap()));
    assert!(machine.world.now() - begun >= SECTION_MAX * 2);
}

/// T-104.
#[test]
fn a_transaction_that_takes_too_long_resets_the_object() {
    let machine = Machine::new(2);
    let begun = machine.world.now();
    let error = machine.answer(machine.stub().call(Do::StuckTransaction)).unwrap_err();
    assert!(error.reset() && error.is_overloaded(), "{error:?}");
    assert!(machine.world.now() - begun >= SECTION_MAX);
    machine.answer(machine.stub().call(Do::Write)).unwrap();
}

/// T-125: neither the handler's success nor its error is said.
#[test]
fn a_failed_flush_takes_the_place_of_what_the_handler_said() {
    for write in [Do::Write, Do::WriteAndFail] {
        let machine = Machine::new(3);
        machine.answer(machine.stub().call(Do::Read)).unwrap();
        machine.break_disk();
        let error = machine.answer(machine.stub().call(write)).unwrap_err();
        assert!(error.reset(), "{error:?}");
        assert!(error.to_string().contains("simulated write error"), "{error}");
    }
}

/// T-123: the answer does not wait, the object is reset all the same.
#[test]
fn an_unconfirmed_write_that_fails_resets_the_object() {
    let machine = Machine::new(4);
    machine.answer(machine.stub().call(Do::Read)).unwrap();
    machine.break_disk();
    let begun = machine.world.now();
    let write = machine.stub().call(Do::WriteUnconfirmed);
    let sleep = machine.stub().call(Do::Sleep(Duration::from_secs(10)));
    machine.answer(write).unwrap();
    let error = machine.answer(sleep).unwrap_err();
    assert!(error.reset() && error.to_string().contains("simulated write error"), "{error}");
    assert!(machine.world.now() - begun < Duration::from_secs(1), "not when its event says so");
}

/// T-072.
#[test]
fn no_event_starts_while_too_much_is_dirty() {
    for seed in 0..20 {
        let machine = Machine::new(seed);
        let fill = machine.stub().call(Do::Fill);
        let next = machine.stub().call(Do::Read);
        assert!(machine.answer(next).unwrap().0, "seed {seed}: begun beside a flush");
        machine.answer(fill).unwrap();
    }
}

/// T-099, T-109 to T-111, T-113 (R-230, R-233, R-239, R-310, R-401, R-507, R-509, R-510, R-525, R-526,
/// who may come between.
#[test]
fn other_events_come_between_only_where_the_object_waits_for_others() {
    let between = |what: fn() -> Do| {
        let count = |seed| {
            let machine = Machine::new(seed);
            let blink = machine.stub().call(Do::Blink(2000));
            let (_, log) = machine.answer(machine.stub().call(what())).unwrap();
            drop(blink);
            let inside = log.split(['[', ']']).nth(1).expect("noted");
            inside.matches('b').count()
        };
        (0..10).map(count).sum::<usize>()
    };
    assert_eq!(between(|| Do::WriteMuch(Write::default())), 0, "a storage wait");
    assert_eq!(between(|| Do::WriteMuch(Write::allow_unconfirmed())), 0, "of the other gate");
    assert_eq!(between(|| Do::Read), 0, "no wait at all");
    assert_eq!(between(|| Do::TransactionThatSleeps), 0, "a transaction");
    assert_eq!(between(|| Do::TransactionThatWritesMuch), 0, "its commit");
    assert_eq!(between(|| Do::SectionThatSleeps), 0, "a section, and its result");
    assert!(between(|| Do::WriteMuch(Write::allow_concurrency())) > 0);
    assert!(between(|| Do::WriteAndSync) > 0, "a sync");
    assert!(between(|| Do::Sleep(Duration::from_millis(1))) > 0, "something outside");
}

/// of alarms and of many keys too. The disk can't write any more, and that does not matter.
#[test]
fn output_waits_for_no_unconfirmed_operation() {
    let machine = Machine::new(5);
    machine.answer(machine.stub().call(Do::Read)).unwrap();
    machine.break_disk();
    machine.answer(machine.stub().call(Do::Unconfirmed)).unwrap();
}

///
#[test]
fn a_section_is_started_only_from_within_an_event_of_its_object() {
    let machine = Machine::new(6);
    machine.answer(machine.stub().call(Do::Lend)).unwrap();
    let other = machine.topology.namespace::<Object>().get_by_name("other");
    let error = machine.answer(other.call(Do::UseLent)).unwrap_err();
    assert!(error.to_string().contains("outside of an event") && !error.reset(), "{error}");
}

/// R-552, section 0: a fetch does not wait for the section that is started behind it, for the calls made
/// in that one wait for the fetch.
#[test]
fn a_call_in_a_section_follows_the_fetch_made_before_it() {
    for seed in 0..10 {
        let machine = Machine::new(seed);
        let begun = machine.world.now();
        NAMED.set(Some(machine.topology.namespace().get_by_name("other")));
        let call = machine.stub().call(Do::FetchThenCallInSection);
        assert_eq!(machine.answer(call).unwrap().1, "f[]", "the fetch came first");
        assert!(machine.world.now() - begun < SECTION_MAX);
    }
}

/// R-332, section 0: an object that can't be read fails its callers, and nothing else.
#[test]
fn an_object_that_could_not_be_read_is_read_by_the_next_call() {
    let machine = Machine::new(7);
    machine.answer(machine.stub().call(Do::Write)).unwrap();
    let (topology, id) = (machine.topology.clone(), machine.stub().id().clone());
    machine.run(async move { topology.evict(&id).await });
    machine.world.set_faults(DiskFaults { read_error: 1, ..DiskFaults::default() });
    let error = machine.answer(machine.stub().call(Do::Read)).unwrap_err();
    assert!(!error.reset(), "{error:?}");
    machine.world.set_faults(DiskFaults::default());
    machine.answer(machine.stub().call(Do::Write)).unwrap();
}

/// T-129: a response passes the input gate once more.
#[test]
fn a_response_leaves_after_the_section_that_runs() {
    let machine = Machine::new(6);
    let begun = machine.world.now();
    let request = Request::get("/").body(()).unwrap();
    let fetch = machine.stub().fetch(request);
    machine.run(async move { fetch.await.map(drop) }).unwrap();
    assert!(machine.world.now() - begun >= Duration::from_secs(1));
}
