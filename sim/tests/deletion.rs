//! Objects that are deleted for good, and work beside the core, on the simulated machine: with
//! crashes at any moment, alarms and their retries, sockets, and calls that come between.

mod common;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use dormouse_engine::{Filter, Host, Limits, Shard, StoreLock};
use dormouse_scheduler::prelude::*;
use dormouse_scheduler::{ClientSocket, Received, Topology};
use dormouse_sim::{DiskFaults, Process, SimEnv, World};

const STEPS: u64 = 4_000_000;
const LIMITS: Limits = Limits::TINY;

thread_local! {
    static BUILT: Cell<usize> = const { Cell::new(0) };
    static RAN: Cell<usize> = const { Cell::new(0) };
    /// Notes of the object, in order.
    static LOG: RefCell<String> = const { RefCell::new(String::new()) };
}

struct Object(State);

impl DurableObject for Object {
    fn new(state: State) -> Self {
        BUILT.set(BUILT.get() + 1);
        Self(state)
    }

    async fn fetch(&self, request: Request) -> Result<Response> {
        let socket = request.web_socket_upgrade()?.expect("a socket is asked for");
        if request.uri().path() == "/live" {
            let live = self.0.accept(&socket)?;
            self.0.wait_until(async move { while live.recv().await.is_some() {} });
        } else {
            self.0.accept_web_socket(&socket, [] as [&str; 0])?;
        }
        Ok(socket.into_response())
    }

    async fn alarm(&self, _info: AlarmInfo) -> Result<()> {
        RAN.set(RAN.get() + 1);
        Err(Error::user("so that it is tried again"))
    }
}

enum Do {
    /// Writes this, and sets an alarm after so long.
    Put(u32, Duration),
    /// What is there, and when the alarm is.
    Get,
    Sleep(Duration),
    /// Waits for work beside the core so many times, and notes each.
    Work(u32),
    /// Waits for a write that waits for its flush; notes before and after.
    WriteMuch,
    /// Writes, and has work begin at once.
    WriteAndWork,
}

static BEGUN: AtomicUsize = AtomicUsize::new(0);

fn note(what: char) {
    LOG.with_borrow_mut(|log| log.push(what));
}

impl Handler<Do> for Object {
    type Reply = (Option<u32>, Option<u64>);

    async fn handle(&self, what: Do) -> Result<Self::Reply> {
        let storage = self.0.storage();
        match what {
            Do::Put(value, after) => {
                storage.put("key", &value).await?;
                storage.set_alarm(In(after)).await?;
            }
            Do::Get => {}
            Do::Sleep(time) => self.0.sleep(time).await,
            Do::Work(times) => {
                for _ in 0..times {
                    self.0.spawn_blocking(|| ()).await?;
                    note('w');
                }
            }
            Do::WriteMuch => {
                note('[');
                let much = vec![0; LIMITS.value_bytes_max];
                let writes = ["0", "1", "2"].map(|key| storage.put_bytes(key, much.clone()));
                for write in writes {
                    write.await?;
                }
                note(']');
            }
            Do::WriteAndWork => {
                storage.put("key", &BEGUN.load(Ordering::SeqCst)).await?;
                self.0.spawn_blocking(|| BEGUN.fetch_add(1, Ordering::SeqCst)).await?;
            }
        }
        Ok((storage.get("key").await?, storage.get_alarm().await?))
    }
}

struct Machine {
    world: World,
    process: Process,
    env: SimEnv,
    topology: Topology,
}

impl Machine {
    fn new(seed: u64) -> Self {
        Self::on(World::new(seed, DiskFaults::default()))
    }

    fn on(world: World) -> Self {
        let process = world.process();
        let limits = dormouse_scheduler::StackLimits {
            cache: dormouse_cache::CacheLimits::TINY,
            ..dormouse_scheduler::StackLimits::PRODUCTION
        };
        let topology = Topology::builder().namespace::<Object>("objects").limits(limits);
        let topology = topology.build(|| 0);
        let machine = Self { env: process.core(), world, process, topology };
        let (core, topology) = (machine.process.core(), machine.topology.clone());
        machine.run(async move {
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

    fn get(&self) -> (Option<u32>, Option<u64>) {
        self.run(self.stub().call(Do::Get)).unwrap()
    }

    /// Ends the process at once, and starts another one.
    fn crash(self) -> Self {
        self.process.kill();
        Self::on(self.world)
    }
}

/// What a listing of the closed store shows.
fn listed(world: &World) -> usize {
    let env = world.process().core();
    let core = env.clone();
    let listed = world.block_on(&env, STEPS, async move {
        let lock = StoreLock::open_or_create(&core, &LIMITS, 1).await.expect("a store");
        let (shard, _) = Shard::open(&core, lock.superblock(), 0, LIMITS).await.expect("a shard");
        let listed = shard.page(&Filter::default(), None).objects.len();
        assert!(shard.next_alarm().is_none());
        shard.close().await.expect("closed");
        listed
    });
    listed.expect("it ends")
}

const LATER: Duration = Duration::from_secs(3600);

#[test]
fn a_deleted_object_is_gone_with_its_keys_its_alarm_and_its_name() {
    let machine = Machine::new(1);
    let stub = machine.stub();
    machine.run(stub.call(Do::Put(7, LATER))).unwrap();
    let waits = stub.call(Do::Sleep(LATER));
    let deleted = stub.delete();
    let behind = stub.call(Do::Get);
    machine.run(deleted).unwrap();
    let error = machine.run(waits).unwrap_err();
    assert_eq!((error.code(), error.reset()), (Some("object-deleted"), true), "{error}");
    assert!(error.to_string().contains(&stub.id().to_string()), "{error}");
    assert_eq!(machine.run(behind).unwrap(), (None, None), "it meets one that never was");
    // One that does not exist, and one that is not in memory, are deleted as well.
    machine.run(stub.delete()).unwrap();
    machine.run(stub.call(Do::Put(8, LATER))).unwrap();
    let (topology, id) = (machine.topology.clone(), stub.id().clone());
    machine.run(async move { topology.evict(&id).await });
    let built = BUILT.get();
    machine.run(stub.delete()).unwrap();
    assert_eq!(BUILT.get(), built, "nobody is built to be deleted");
    machine.topology.shutdown();
    machine.run(machine.env.sleep(Duration::from_secs(1)));
    machine.process.kill();
    assert_eq!(listed(&machine.world), 0);
}

/// Neither an alarm that is due nor a retry wakes it.
#[test]
fn a_deleted_object_is_woken_by_no_alarm() {
    for seed in 0..20 {
        let machine = Machine::new(seed);
        let stub = machine.stub();
        machine.run(stub.call(Do::Put(7, Duration::from_millis(seed)))).unwrap();
        // At the alarm, in its handler, or between two tries.
        machine.run(machine.env.sleep(Duration::from_millis(seed * seed)));
        machine.run(stub.delete()).unwrap();
        let (ran, built) = (RAN.get(), BUILT.get());
        machine.run(machine.env.sleep(LATER));
        assert_eq!((RAN.get(), BUILT.get()), (ran, built), "seed {seed}");
    }
}

fn connect(machine: &Machine, path: &str) -> ClientSocket {
    let request = Request::get(path).body(()).unwrap().with_web_socket_upgrade();
    let response = machine.run(machine.stub().fetch(request)).unwrap();
    response.take_web_socket().expect("a socket")
}

/// What a client sent is dropped by a deletion, and the end that follows from it by the next one.
#[test]
fn deletions_one_upon_the_other_close_its_sockets_all_the_same() {
    let steps = |machine: &Machine, count| {
        for _ in 0..count {
            machine.world.step();
        }
    };
    for (before, between) in (0..12).flat_map(|before| (0..12).map(move |steps| (before, steps))) {
        let machine = Machine::new(before);
        let client = Rc::new(connect(&machine, "/"));
        machine.run(machine.stub().call(Do::Put(7, LATER))).unwrap();
        let (topology, id) = (machine.topology.clone(), machine.stub().id().clone());
        machine.run(async move { topology.evict(&id).await });
        let sender = client.clone();
        machine.env.spawn("client", async move { drop(sender.send("late").await) });
        steps(&machine, before);
        let first = machine.stub().delete();
        steps(&machine, between);
        let second = machine.stub().delete();
        machine.run(first).unwrap();
        machine.run(second).unwrap();
        let received = machine.run(async move { client.recv().await });
        let Some(Received::Close(close)) = received else {
            panic!("{before} and {between} steps: {received:?}")
        };
        assert_eq!(close.code, Some(1001), "{before} and {between} steps");
    }
}

#[test]
fn its_sockets_are_closed_when_the_deletion_is_durable() {
    let machine = Machine::new(3);
    let client = Rc::new(connect(&machine, "/"));
    let live = connect(&machine, "/live");
    // What it sends meanwhile goes nowhere.
    let deleted = machine.stub().delete();
    let sender = client.clone();
    machine.run(async move { sender.send("late").await }).unwrap();
    machine.run(deleted).unwrap();
    let (reader, again) = (client.clone(), client.clone());
    let received = machine.run(async move { reader.recv().await });
    let Some(Received::Close(close)) = received else { panic!("no close frame: {received:?}") };
    assert_eq!((close.code, &*close.reason), (Some(1001), "the object was deleted"));
    assert_eq!(machine.run(async move { again.recv().await }), None);
    // So is one that the object read itself.
    let (received, end) = machine.run(async move { (live.recv().await, live.recv().await) });
    assert_eq!((received, end), (Some(Received::Close(close)), None));

    // One that failed says no such thing; what became of the object its next call shows.
    let (client, live) = (connect(&machine, "/"), connect(&machine, "/live"));
    machine.run(machine.stub().call(Do::Put(9, LATER))).unwrap();
    machine.world.set_faults(DiskFaults { write_error: 1, ..DiskFaults::default() });
    let error = machine.run(machine.stub().delete()).unwrap_err();
    assert!(error.to_string().contains("simulated write error"), "{error}");
    assert_eq!(machine.run(async move { client.recv().await }), None);
    assert_eq!(machine.run(async move { live.recv().await }), None);
    machine.world.set_faults(DiskFaults::default());
    let found = machine.get().0;
    assert!(found.is_none_or(|value| value == 9), "{found:?}");
}

/// The process dies at any moment of a deletion: the object is as it was, or gone; gone for good
/// once that was said.
#[test]
fn a_crash_shows_the_object_as_it_was_or_nothing() {
    let (mut kept, mut gone) = (0, 0);
    for seed in 0..60 {
        let machine = Machine::new(seed);
        let stub = machine.stub();
        machine.run(stub.call(Do::Put(7, LATER))).unwrap();
        // Unsettled writes of the instance are in flight.
        drop(stub.call(Do::Put(8, LATER)));
        let said = Rc::new(Cell::new(false));
        let (tell, deleted) = (said.clone(), stub.delete());
        machine.env.spawn("client", async move { tell.set(deleted.await.is_ok()) });
        for _ in 0..seed * 2 {
            machine.world.step();
        }
        let said = said.get();
        let machine = match seed % 2 {
            0 => machine.crash(),
            _ => {
                machine.world.power_cut();
                Machine::on(machine.world)
            }
        };
        match machine.get() {
            (None, None) => gone += 1,
            (Some(7 | 8), Some(_)) if !said => kept += 1,
            found => panic!("seed {seed}, said {said}: {found:?}"),
        }
    }
    assert!(kept > 0 && gone > 0, "{kept} were kept, {gone} gone");
}

/// Calls and deletions in any number and order, on an object that comes and goes.
#[test]
fn deletions_and_calls_keep_their_order() {
    for seed in 0..60_u64 {
        let machine = Machine::new(seed);
        let stub = machine.stub();
        let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut draw = |of: u64| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random % of
        };
        let mut expected = None;
        let (mut calls, mut deletions) = (Vec::new(), Vec::new());
        for number in 0..30 {
            match draw(6) {
                0 => {
                    deletions.push(stub.delete());
                    expected = None;
                    // Those before it may fail, those behind it not.
                    calls.iter_mut().for_each(|(_, _, may_fail)| *may_fail = true);
                }
                1 => {
                    let (topology, id) = (machine.topology.clone(), stub.id().clone());
                    machine.env.spawn("evict", async move { topology.evict(&id).await });
                }
                2 => machine.run(machine.env.sleep(Duration::from_micros(draw(300)))),
                3 => {
                    expected = Some(number);
                    calls.push((stub.call(Do::Put(number, LATER)), expected, false));
                }
                _ => calls.push((stub.call(Do::Get), expected, false)),
            }
        }
        for deleted in deletions {
            machine.run(deleted).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        }
        for (call, expected, may_fail) in calls {
            match machine.run(call) {
                Ok((found, _)) => assert_eq!(found, expected, "seed {seed}"),
                Err(error) => assert!(
                    may_fail && error.code() == Some("object-deleted"),
                    "seed {seed}: {error}"
                ),
            }
        }
        assert_eq!(machine.get().0, expected, "seed {seed}");
    }
}

/// what comes from a thread is an event like any other.
#[test]
fn the_result_of_blocking_work_comes_while_no_storage_operation_waits() {
    let mut beside = 0;
    for seed in 0..10 {
        let machine = Machine::new(seed);
        LOG.take();
        let works: Vec<_> = (0..200).map(|_| machine.stub().call(Do::Work(2))).collect();
        // All of it is under way, and ends within 50 ms.
        machine.run(machine.env.sleep(Duration::from_millis(20)));
        machine.run(machine.stub().call(Do::WriteMuch)).unwrap();
        for work in works {
            machine.run(work).unwrap();
        }
        let log = LOG.take();
        let inside = log.split(['[', ']']).nth(1).expect("noted");
        assert_eq!(inside, "", "seed {seed}: between a write and its end");
        beside += log.split('[').next().map_or(0, str::len);
    }
    assert!(beside > 0, "no result came before the write");
}

/// it has effects outside of the object, so it begins when what was written is durable.
#[test]
fn blocking_work_behind_a_failed_write_does_not_begin() {
    let machine = Machine::new(9);
    machine.run(machine.stub().call(Do::WriteAndWork)).unwrap();
    let begun = BEGUN.load(Ordering::SeqCst);
    assert_eq!(begun, 1);
    machine.world.set_faults(DiskFaults { write_error: 1, ..DiskFaults::default() });
    let error = machine.run(machine.stub().call(Do::WriteAndWork)).unwrap_err();
    assert!(error.reset(), "{error:?}");
    machine.run(machine.env.sleep(Duration::from_secs(1)));
    assert_eq!(BEGUN.load(Ordering::SeqCst), begun);
}
