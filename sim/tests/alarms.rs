//! Alarms on the whole stack, by the virtual clock: many at once, and the times of retries.

mod common;

use std::cell::{Cell, RefCell};
use std::time::Duration;

use dormouse_engine::{Host, Limits};
use dormouse_scheduler::prelude::*;
use dormouse_scheduler::{AlarmTime, StackLimits, Topology};
use dormouse_sim::{DiskFaults, SimEnv, World};

const STEPS: u64 = 50_000_000;
/// Handlers that run at a time.
const RUNS_MAX: usize = StackLimits::PRODUCTION.alarms;
const FIRST_MS: u64 = 5000;

thread_local! {
    static RUNNING: Cell<usize> = const { Cell::new(0) };
    static MOST: Cell<usize> = const { Cell::new(0) };
    /// Each run: object, the wall clock when it began, its time, and which try it is.
    static RUNS: RefCell<Vec<(String, u64, u64, u32)>> = const { RefCell::new(Vec::new()) };
}

struct Sleeper(State);

impl DurableObject for Sleeper {
    fn new(state: State) -> Self {
        Self(state)
    }

    /// Takes a while, and fails where the object says so.
    async fn alarm(&self, info: AlarmInfo) -> Result<()> {
        let (now, object) = (self.0.now_ms(), self.0.id().to_string());
        RUNS.with_borrow_mut(|runs| {
            runs.push((object, now, info.scheduled_ms, info.retry_count));
        });
        RUNNING.set(RUNNING.get() + 1);
        MOST.set(MOST.get().max(RUNNING.get()));
        self.0.sleep(Duration::from_millis(20)).await;
        RUNNING.set(RUNNING.get() - 1);
        match self.0.storage().get("end").await? {
            Some(End::Fails) => Err(Error::user("as asked")),
            Some(End::Panics) => panic!("as asked"),
            Some(End::Aborts) => match self.0.abort("as asked").await {},
            Some(End::Never) => std::future::pending().await,
            Some(End::Well) | None => Ok(()),
        }
    }
}

/// How the handler ends.
#[derive(Clone, Copy, Debug, serde::Serialize, serde::Deserialize)]
enum End {
    Well,
    Fails,
    Panics,
    Aborts,
    Never,
}

struct Set {
    at: AlarmTime,
    end: End,
}

struct GetAlarm;

impl Handler<GetAlarm> for Sleeper {
    type Reply = Option<u64>;

    async fn handle(&self, _: GetAlarm) -> Result<Option<u64>> {
        self.0.storage().get_alarm().await
    }
}

impl Handler<Set> for Sleeper {
    type Reply = u64;

    async fn handle(&self, set: Set) -> Result<u64> {
        self.0.storage().put("end", &set.end).await?;
        self.0.storage().set_alarm(set.at).await?;
        Ok(self.0.now_ms())
    }
}

async fn start(env: &SimEnv) -> Topology {
    let topology = Topology::builder().namespace::<Sleeper>("sleepers").build(|| 7);
    common::serve(env, &topology, 1, Limits::TINY, |ended| ended.expect("closed in order")).await;
    topology
}

#[test]
fn of_alarms_that_are_overdue_at_once_some_run_at_a_time_and_each_runs_once() {
    const OBJECTS: usize = 1500;
    let world = World::new(1, DiskFaults::default());
    let first = world.process();
    let env = first.core();
    let made = world.block_on(&env.clone(), STEPS, async move {
        let topology = start(&env).await;
        let at = AlarmTime::At(env.wall_ms() + 3_600_000);
        let set = |number: usize| {
            let name = number.to_string();
            topology.namespace::<Sleeper>().get_by_name(&name).call(Set { at, end: End::Well })
        };
        for number in 0..OBJECTS {
            set(number).await.expect("set");
        }
    });
    made.expect("done");
    // The process dies, and comes back when all of them are overdue.
    first.kill();
    let env = world.process().core();
    let core = env.clone();
    let fired = world.block_on(&env, STEPS, async move {
        core.sleep(Duration::from_secs(7200)).await;
        let _topology = start(&core).await;
        core.sleep(Duration::from_secs(60)).await;
    });
    fired.expect("done");
    let mut objects = RUNS.take();
    assert_eq!(objects.len(), OBJECTS);
    assert!(objects.iter().all(|(_, now, at, tries)| now >= at && *tries == 0));
    objects.sort();
    objects.dedup_by(|one, other| one.0 == other.0);
    assert_eq!(objects.len(), OBJECTS, "each once");
    assert!((RUNS_MAX / 2..=RUNS_MAX).contains(&MOST.get()), "{} at a time", MOST.get());
}

/// after 2 s, 4 s, and so on, each up to a quarter later; six times, then never again. So
/// it is however it fails, by its object's end or after the 15 minutes that it has (R-630,
/// T-150), too.
#[test]
fn a_handler_that_fails_is_run_again_at_growing_distances_and_given_up_after_six_retries() {
    for (seed, end, takes_ms) in [
        (2, End::Fails, 0),
        (3, End::Panics, 0),
        (4, End::Aborts, 0),
        (5, End::Never, 15 * 60 * 1000),
    ] {
        let world = World::new(seed, DiskFaults::default());
        let env = world.process().core();
        let core = env.clone();
        let done = world.block_on(&env, STEPS, async move {
            let topology = start(&core).await;
            let at = AlarmTime::In(Duration::from_millis(FIRST_MS));
            let stub = topology.namespace::<Sleeper>().get_by_name("it");
            let now = stub.call(Set { at, end }).await.expect("set");
            core.sleep(Duration::from_secs(3 * 3600)).await;
            assert_eq!(stub.call(GetAlarm).await.expect("answered"), None, "{end:?}");
            now
        });
        let set = done.expect("done");
        let runs = RUNS.take();
        let tries: Vec<_> = runs.iter().map(|(_, _, _, tries)| *tries).collect();
        assert_eq!(tries, [0, 1, 2, 3, 4, 5, 6], "{end:?}");
        let times: Vec<u64> = runs.iter().map(|(_, now, ..)| *now).collect();
        assert!((set + FIRST_MS..set + FIRST_MS + 100).contains(&times[0]), "{end:?}: {times:?}");
        for (retry, pair) in times.windows(2).enumerate() {
            let (least, gap) = (2000 << retry, pair[1] - pair[0] - takes_ms);
            // Beside the jitter, the handler takes 20 ms and the disk some.
            let most = least * 5 / 4 + 100;
            assert!((least..=most).contains(&gap), "{end:?}: retry {retry} after {gap} ms");
        }
        RUNNING.set(0);
    }
}
