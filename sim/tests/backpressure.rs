//! Many objects that write on a core whose disk is slow: what is not durable yet stays within its
//! bounds, and everybody is answered in the end (R-345, R-346, T-072).

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use dormouse_cache::{Budget, CacheLimits};
use dormouse_engine::{Host, Limits, StoreLock};
use dormouse_scheduler::prelude::*;
use dormouse_scheduler::{StackLimits, Topology};
use dormouse_sim::{DiskFaults, SimEnv, Step, World};
use futures_util::future::join_all;

const STEPS: u64 = 4_000_000;
const OBJECTS: usize = 30;
const VALUE_BYTES: usize = 512;
/// With key and what keeps them.
const DIRTY_VALUE_BYTES: usize = VALUE_BYTES + 64 + 3;
/// Each object's own bound lets all of its writes through at once.
const LIMITS: StackLimits = StackLimits {
    cache: CacheLimits { dirty_bytes_max: 1 << 20, ..CacheLimits::PRODUCTION },
    dirty_bytes: 8 * DIRTY_VALUE_BYTES,
    ..StackLimits::PRODUCTION
};

struct Writer {
    state: State,
}

impl DurableObject for Writer {
    fn new(state: State) -> Self {
        Self { state }
    }

    /// An alarm that writes.
    async fn alarm(&self, _info: AlarmInfo) -> Result<()> {
        self.put(900).await
    }
}

impl Writer {
    fn put(&self, number: usize) -> impl Future<Output = Result<()>> + use<> {
        self.state.storage().put_bytes(&format!("{number:03}"), vec![7; VALUE_BYTES])
    }
}

#[derive(Clone)]
enum Do {
    /// Writes so many values, each after the other.
    Write(usize),
    /// Writes so many, in turns of one each, and waits for none of them.
    WriteCarelessly(usize),
    /// Writes, calls an object that does so too, and calls back, so many times.
    CallBackAndForth { other: String, back: String, times: usize },
    /// Writes in a transaction inside a section, then sets an alarm.
    WriteInSections(usize),
    /// How many values there are.
    Count,
}

thread_local! {
    static TOPOLOGY: RefCell<Option<Topology>> = const { RefCell::new(None) };
}

fn stub(name: &str) -> Stub<Writer> {
    TOPOLOGY.with_borrow(|topology| {
        topology.as_ref().expect("there is one").namespace().get_by_name(name)
    })
}

impl Handler<Do> for Writer {
    type Reply = usize;

    async fn handle(&self, what: Do) -> Result<usize> {
        let storage = self.state.storage();
        match what {
            Do::Write(values) => {
                for number in 0..values {
                    self.put(number).await?;
                }
            }
            Do::WriteCarelessly(values) => {
                for number in 0..values {
                    drop(self.put(number));
                    self.state.sleep(Duration::from_micros(1)).await;
                }
            }
            Do::CallBackAndForth { other, back, times } => {
                self.put(times).await?;
                if let Some(times) = times.checked_sub(1) {
                    let call = Do::CallBackAndForth { other: back, back: other.clone(), times };
                    stub(&other).call(call).await?;
                    self.put(100 + times).await?;
                }
            }
            Do::WriteInSections(values) => {
                let state = self.state.clone();
                let section = async move || {
                    let write = async |txn: &Transaction| {
                        for number in 0..values {
                            txn.put_bytes(&format!("{number:03}"), vec![8; VALUE_BYTES]).await?;
                        }
                        Ok(())
                    };
                    state.storage().transaction(write).await?;
                    state.storage().set_alarm(In(Duration::from_millis(5))).await
                };
                self.state.block_concurrency_while(section).await?;
            }
            Do::Count => {}
        }
        Ok(storage.list_bytes(&List::all()).await?.len())
    }
}

struct Machine {
    world: World,
    core: SimEnv,
    budget: Budget,
}

impl Machine {
    fn new(seed: u64) -> Self {
        let world = World::new(seed, DiskFaults::default());
        let core = world.process().core();
        let topology =
            Topology::builder().namespace::<Writer>("writers").limits(LIMITS).build(|| 0);
        TOPOLOGY.set(Some(topology.clone()));
        let env = core.clone();
        let budget = world.block_on(&core, STEPS, async move {
            let lock = StoreLock::open_or_create(&env, &Limits::TINY, 1).await.expect("a store");
            let core = topology.open(&env, 0, lock.superblock(), Limits::TINY).await;
            let core = core.expect("a core");
            let budget = core.budget();
            env.spawn("core", async move {
                core.serve().await.expect("it ends well");
                drop(lock);
            });
            budget
        });
        Self { world, core, budget: budget.expect("it opens") }
    }

    /// Makes all calls at once; gives their answers, and the most that was dirty meanwhile.
    fn call(&self, calls: Vec<(String, Do)>) -> (Vec<usize>, usize) {
        let (answers, most) = (Rc::new(Cell::new(None)), self.budget.dirty_bytes());
        let (kept, mut most) = (answers.clone(), most);
        self.core.spawn("calls", async move {
            let calls = calls.into_iter().map(|(name, call)| stub(&name).call(call));
            kept.set(Some(join_all(calls).await));
        });
        for _ in 0..STEPS {
            assert_ne!(self.world.step(), Step::Idle, "somebody waits forever");
            most = most.max(self.budget.dirty_bytes());
            if let Some(answers) = answers.take() {
                assert_eq!(self.world.take_panics(), [] as [String; 0]);
                return (answers.into_iter().map(|answer| answer.expect("done")).collect(), most);
            }
        }
        panic!("not done after {STEPS} steps");
    }

    /// The same while each operation of the disk takes milliseconds to seconds.
    fn call_slowly(&self, calls: Vec<(String, Do)>) -> (Vec<usize>, usize) {
        self.world.set_faults(DiskFaults { slow_io: 1, ..DiskFaults::default() });
        let answered = self.call(calls);
        self.world.set_faults(DiskFaults::default());
        answered
    }
}

fn name(number: usize) -> String {
    format!("object {number}")
}

fn to_all(call: &Do) -> Vec<(String, Do)> {
    (0..OBJECTS).map(|number| (name(number), call.clone())).collect()
}

#[test]
fn what_many_objects_have_dirty_stays_within_the_bound_of_their_core() {
    for (seed, call) in [(1, Do::Write(12)), (2, Do::WriteCarelessly(12)), (3, Do::Write(12))] {
        let machine = Machine::new(seed);
        let (answers, most) = machine.call_slowly(to_all(&call));
        assert_eq!(answers, [12; OBJECTS]);
        // Full, and one write more: behind it no turn starts.
        let bound = LIMITS.dirty_bytes + DIRTY_VALUE_BYTES;
        assert!((LIMITS.dirty_bytes..=bound).contains(&most), "{most} bytes, not at most {bound}");
    }
}

#[test]
fn objects_that_call_each_other_all_come_to_their_end() {
    for seed in 0..4 {
        let machine = Machine::new(seed);
        let pair = |number: usize| {
            let (other, back) = (name(number ^ 1), name(number));
            (name(number), Do::CallBackAndForth { other, back, times: 6 })
        };
        let (answers, most) = machine.call_slowly((0..OBJECTS).map(pair).collect());
        assert_eq!(answers.len(), OBJECTS);
        let bound = LIMITS.dirty_bytes + DIRTY_VALUE_BYTES;
        assert!(most <= bound, "{most} bytes, not at most {bound}");
        let (counts, _) = machine.call(to_all(&Do::Count));
        // Both of a pair made 7 calls in all, of which each wrote half of the values.
        assert!(counts.iter().all(|count| *count >= 7), "{counts:?}");
    }
}

#[test]
fn sections_transactions_and_alarms_come_to_their_end() {
    for seed in 0..4 {
        let machine = Machine::new(seed);
        let (answers, most) = machine.call_slowly(to_all(&Do::WriteInSections(5)));
        assert_eq!(answers, [5; OBJECTS]);
        let bound = LIMITS.dirty_bytes + 5 * DIRTY_VALUE_BYTES;
        assert!(
            most <= bound,
            "{most} bytes, not at most {bound}: a transaction's writes come at once"
        );
        machine.world.block_on(&machine.core, STEPS, machine.core.sleep(Duration::from_secs(20)));
        let (counts, _) = machine.call(to_all(&Do::Count));
        assert_eq!(counts, [6; OBJECTS], "each alarm wrote");
    }
}
