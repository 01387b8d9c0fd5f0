//! The verbs of test mode: time that stands still and is moved, a process that dies.

use std::time::Duration;

use dormouse_engine::call::wait;
use dormouse_engine::real::DiskChoice;
use dormouse_scheduler::prelude::*;

const HOUR: Duration = Duration::from_secs(3600);

struct Clocked {
    state: State,
    /// Of this instance.
    calls: std::cell::Cell<u64>,
}

impl DurableObject for Clocked {
    fn new(state: State) -> Self {
        Self { state, calls: std::cell::Cell::new(0) }
    }

    async fn alarm(&self, info: AlarmInfo) -> Result<()> {
        let storage = self.state.storage();
        let mut runs: Vec<(u64, u32)> = storage.get("runs").await?.unwrap_or_default();
        runs.push((self.state.now_ms() - info.scheduled_ms, info.retry_count));
        storage.put("runs", &runs).await?;
        match storage.get("fails").await? {
            Some(true) => Err(Error::user("as asked")),
            _ => Ok(()),
        }
    }
}

enum Do {
    Alarm(Duration, bool),
    Sleep(Duration),
    /// How often it was called, and by which clock.
    Calls,
    /// Writes this; waits for the disk, or not.
    Write(u64, bool),
    Read,
    Runs,
}

impl Handler<Do> for Clocked {
    type Reply = Vec<(u64, u32)>;

    async fn handle(&self, what: Do) -> Result<Self::Reply> {
        self.calls.set(self.calls.get() + 1);
        let storage = self.state.storage();
        Ok(match what {
            Do::Alarm(after, fails) => {
                storage.put("fails", &fails).await?;
                storage.set_alarm(In(after)).await?;
                vec![]
            }
            Do::Sleep(time) => {
                let began = self.state.now_ms();
                self.state.sleep(time).await;
                vec![(self.state.now_ms() - began, 0)]
            }
            Do::Calls => vec![(self.calls.get(), 0)],
            Do::Write(value, wait) => {
                let options = if wait { Write::default() } else { Write::allow_unconfirmed() };
                storage.put_with("value", &value, options).await?;
                vec![]
            }
            Do::Read => storage.get("value").await?.map(|value| (value, 0)).into_iter().collect(),
            Do::Runs => storage.get("runs").await?.unwrap_or_default(),
        })
    }
}

fn start(dir: &tempfile::TempDir, disk: DiskChoice) -> TestRuntime {
    let builder = Runtime::builder(dir).cores(2).disk(disk);
    builder.namespace::<Clocked>("clocked").start_test().unwrap()
}

fn call(runtime: &Runtime, name: &str, what: Do) -> Vec<(u64, u32)> {
    runtime.namespace::<Clocked>().get_by_name(name).call(what).wait().unwrap()
}

#[test]
fn alarms_run_when_time_is_moved_and_all_of_them_before_that_returns() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = start(&dir, DiskChoice::Auto);
    let names: Vec<_> = (0..40).map(|number| number.to_string()).collect();
    for name in &names {
        call(&runtime, name, Do::Alarm(HOUR, false));
    }
    wait(runtime.advance(HOUR - Duration::from_millis(1)));
    assert!(names.iter().all(|name| call(&runtime, name, Do::Runs).is_empty()), "too early");
    wait(runtime.advance(Duration::from_millis(1)));
    for name in &names {
        assert_eq!(call(&runtime, name, Do::Runs), [(0, 0)], "on time, and it has run");
    }
    runtime.close().unwrap();
}

#[test]
fn retries_run_when_time_is_moved() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = start(&dir, DiskChoice::Auto);
    call(&runtime, "it", Do::Alarm(HOUR, true));
    wait(runtime.advance(HOUR));
    // Not a second before the two that a retry takes, and within a quarter of it.
    wait(runtime.advance(Duration::from_millis(1999)));
    assert_eq!(call(&runtime, "it", Do::Runs).len(), 1);
    for retry in 1..=10 {
        wait(runtime.advance(Duration::from_secs(2000)));
        assert_eq!(call(&runtime, "it", Do::Runs).len(), 1 + retry.min(6), "retry {retry}");
    }
    runtime.close().unwrap();
}

#[test]
fn sleeps_idle_times_and_limits_go_by_the_clock() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = start(&dir, DiskChoice::Auto);
    let sleeper = runtime.namespace::<Clocked>().get_by_name("sleeper");
    let sleep = sleeper.call(Do::Sleep(HOUR));
    // It has begun.
    assert_eq!(call(&runtime, "sleeper", Do::Calls), [(2, 0)]);
    assert_eq!(call(&runtime, "idle", Do::Calls), [(1, 0)]);
    wait(runtime.advance(2 * HOUR));
    assert_eq!(sleep.wait().unwrap(), [(2 * 3_600_000, 0)], "it jumps");
    // It leaves by itself, and comes back with its next call; how soon is not said.
    let left = (0..10_000).any(|_| {
        let left = call(&runtime, "idle", Do::Calls) == [(1, 0)];
        wait(runtime.advance(HOUR));
        left
    });
    assert!(left, "it stays");
    runtime.close().unwrap();
}

#[test]
fn what_was_said_survives_the_end_of_a_process_and_its_clock_goes_on() {
    for disk in [DiskChoice::Auto, DiskChoice::Posix] {
        let dir = tempfile::tempdir().unwrap();
        let mut runtime = start(&dir, disk);
        call(&runtime, "alarm", Do::Alarm(2 * HOUR, false));
        wait(runtime.advance(HOUR));
        let (mut written, mut kept) = (0, 0);
        for round in 1..=10 {
            call(&runtime, "mice", Do::Write(2 * round, true));
            let stub = runtime.namespace::<Clocked>().get_by_name("mice");
            let waits = stub.call(Do::Sleep(HOUR));
            // Whether it lands nobody knows.
            call(&runtime, "mice", Do::Write(2 * round + 1, false));
            runtime.crash().unwrap();
            assert!(waits.wait().is_err(), "nobody is left to answer");
            assert!(stub.call(Do::Read).wait().is_err(), "its core is gone");
            match call(&runtime, "mice", Do::Read)[..] {
                [(found, 0)] if found == 2 * round => kept += 1,
                [(found, 0)] if found == 2 * round + 1 => written += 1,
                ref other => panic!("round {round}: {other:?}"),
            }
            assert_eq!(call(&runtime, "mice", Do::Calls), [(2, 0)], "a new instance");
        }
        eprintln!("{disk:?}: of ten writes in flight {written} landed, {kept} did not");
        assert!(call(&runtime, "alarm", Do::Runs).is_empty(), "the clock did not jump");
        wait(runtime.advance(HOUR));
        assert_eq!(call(&runtime, "alarm", Do::Runs), [(0, 0)]);
        runtime.close().unwrap();
    }
}

#[test]
fn a_runtime_in_test_mode_is_closed_while_objects_wait_for_time() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = start(&dir, DiskChoice::Auto);
    let sleep = Duration::from_millis(200);
    let waits = runtime.namespace::<Clocked>().get_by_name("mice").call(Do::Sleep(sleep));
    assert_eq!(call(&runtime, "mice", Do::Calls), [(2, 0)]);
    runtime.close().unwrap();
    assert!(waits.wait().unwrap()[0].0 >= 200, "time went on by itself");
}
