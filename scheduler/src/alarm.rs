//! Alarms of one core: when each fires, and when it is tried again.
//!
//! Which alarms are set is known by the shards alone; here is only what runs and what waits for a
//! retry, so counters vanish with the process. However many are due at once,
//! [`StackLimits::alarms`](crate::StackLimits::alarms) of a core run at a time: the others are started as these end.
//!
//! Invariants:
//!
//! - One run of an object at a time; none before the wall clock shows its time.
//! - `retries` has the objects of `runs` that wait, and no other.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use dormouse_engine::{Host, ObjectId};
use futures_channel::oneshot;
use futures_util::FutureExt;
use futures_util::future::{Either, LocalBoxFuture, select};

use crate::core::Inner;
use crate::error::{Error, Result};
use crate::host::{AlarmBell, AnyShard};
use crate::id::Id;
use crate::instance::{AlarmCall, AlarmEnd, AlarmReply, Instance, Work};
use crate::object::AlarmInfo;
use crate::watch::{Count, Spread, nanos};

/// Counted retries before an alarm is abandoned.
const RETRIES_MAX: u32 = 6;
/// The first delay.
const DELAY_MS: u64 = 2000;
/// The highest exponent of the delay.
const EXPONENT_MAX: u32 = 9;
/// How long a handler may take.
const HANDLER_MAX: Duration = Duration::from_secs(15 * 60);
/// A jump of the wall clock is noticed within this time.
const LOOK_MS: u64 = 10_000;

/// An object whose handler runs or waits for a retry.
struct Run {
    /// The alarm that it is about; another one starts afresh.
    scheduled_ms: u64,
    /// None while the handler runs; else when it runs again, by the core's clock.
    again: Option<Duration>,
    counted: u32,
    exponent: u32,
}

pub(crate) struct Alarms {
    runs_max: usize,
    runs: RefCell<BTreeMap<ObjectId, Run>>,
    /// When each object that waits for a retry runs again, by the core's clock.
    retries: RefCell<BTreeSet<(Duration, ObjectId)>>,
    bell: Rc<AlarmBell>,
    stopped: Cell<bool>,
}

impl Alarms {
    /// None are known yet; at most so many handlers run at a time.
    pub(crate) fn new(runs_max: usize) -> Self {
        let (runs, retries, bell, stopped) = Default::default();
        Self { runs_max, runs, retries, bell, stopped }
    }

    pub(crate) fn bell(&self) -> Rc<AlarmBell> {
        self.bell.clone()
    }

    /// Nothing fires any more.
    pub(crate) fn stop(&self) {
        self.stopped.set(true);
        self.ring();
    }

    /// Tells `done` when no handler runs and none is due, by the clocks as they are.
    pub(crate) async fn settle(core: Rc<Inner>, done: oneshot::Sender<()>) {
        let alarms = &core.alarms;
        alarms.ring();
        let settled = || {
            let (now, now_ms) = (core.host.now(), core.host.wall_ms());
            let runs = alarms.runs.borrow().len() > alarms.retries.borrow().len();
            let again = alarms.first_retry().is_some_and(|(again, _)| again <= now);
            let is_due = |shard: &Rc<dyn AnyShard>| {
                let first = shard.alarms(1, &|alarm| alarms.knows(alarm));
                first.first().is_some_and(|(at_ms, _)| *at_ms <= now_ms)
            };
            let due = runs || again || core.shards.all_open().iter().any(is_due);
            (!due || alarms.stopped.get()).then_some(())
        };
        alarms.bell.signal.until(settled).await;
        let _nobody_waits = done.send(());
    }

    /// Has the task look again.
    pub(crate) fn ring(&self) {
        self.bell.until_ms.set(0);
        self.bell.signal.notify();
    }

    /// The core's alarm task.
    pub(crate) async fn run(core: Rc<Inner>) {
        let alarms = &core.alarms;
        while !alarms.stopped.get() {
            let now_ms = core.host.wall_ms();
            let next_ms = fire_due(&core, now_ms);
            alarms.bell.until_ms.set(next_ms);
            let wait = Duration::from_millis((next_ms - now_ms).min(LOOK_MS));
            let bell = alarms.bell.signal.until(|| (alarms.bell.until_ms.get() == 0).then_some(()));
            select(bell.boxed_local(), core.host.sleep(wait).boxed_local()).await;
        }
    }
}

/// Starts what is due; when to look again, in milliseconds since 1970.
fn fire_due(core: &Rc<Inner>, now_ms: u64) -> u64 {
    let (alarms, now) = (&core.alarms, core.host.now());
    let mut next_ms = now_ms.saturating_add(LOOK_MS);
    while let Some((again, id)) = alarms.first_retry() {
        if again > now {
            let wait = u64::try_from((again - now).as_millis()).unwrap_or(u64::MAX);
            next_ms = next_ms.min(now_ms.saturating_add(wait).saturating_add(1));
            break;
        }
        if alarms.free() == 0 {
            break;
        }
        let run = alarms.take(id).expect("it waits for its retry");
        fire(core, id, run);
    }
    for shard in core.shards.all_open() {
        // One more than can be started, so that the earliest of the others is seen.
        for (at_ms, id) in shard.alarms(alarms.free() + 1, &|alarm| alarms.knows(alarm)) {
            if at_ms > now_ms {
                next_ms = next_ms.min(at_ms);
                break;
            }
            if alarms.free() > 0 {
                // One that waited for a retry of another alarm starts afresh.
                alarms.take(id);
                fire(core, id, Run { scheduled_ms: at_ms, again: None, counted: 0, exponent: 0 });
            }
        }
    }
    next_ms.max(now_ms + 1)
}

impl Alarms {
    /// How many more handlers may run.
    fn free(&self) -> usize {
        self.runs_max.saturating_sub(self.runs.borrow().len() - self.retries.borrow().len())
    }

    fn first_retry(&self) -> Option<(Duration, ObjectId)> {
        self.retries.borrow().first().copied()
    }

    /// Whether this alarm waits for a retry, or its object's handler runs.
    fn knows(&self, (at_ms, id): &(u64, ObjectId)) -> bool {
        let runs = self.runs.borrow();
        runs.get(id).is_some_and(|run| run.again.is_none() || run.scheduled_ms == *at_ms)
    }

    /// Takes out what is known of an object.
    fn take(&self, id: ObjectId) -> Option<Run> {
        let run = self.runs.borrow_mut().remove(&id)?;
        if let Some(again) = run.again {
            assert!(self.retries.borrow_mut().remove(&(again, id)));
        }
        Some(run)
    }

    /// Forgets the alarm of an object that has no instance, and gets none before this returns.
    pub(crate) async fn forget(&self, host: &impl Host, id: ObjectId) {
        // Its run has ended with its instance, and will be told of that.
        while self.runs.borrow().get(&id).is_some_and(|run| run.again.is_none()) {
            host.turn_end().await;
        }
        self.take(id);
    }

    fn keep(&self, id: ObjectId, run: Run) {
        if let Some(again) = run.again {
            self.retries.borrow_mut().insert((again, id));
        }
        assert!(self.runs.borrow_mut().insert(id, run).is_none());
    }
}

fn fire(core: &Rc<Inner>, id: ObjectId, mut run: Run) {
    let Some(class) = core.topology.class_of(id) else {
        // Kept, for a build that knows the namespace; not looked at again by this one.
        run.again = Some(Duration::MAX);
        tracing::error!(%id, "an alarm is due of an object that belongs to no namespace here");
        core.alarms.keep(id, run);
        return;
    };
    let retry_count = run.counted;
    let is_retry = retry_count > 0;
    let info = AlarmInfo { scheduled_ms: run.scheduled_ms, retry_count, is_retry };
    let last = retry_count >= RETRIES_MAX;
    let abandoned = retry_count > RETRIES_MAX;
    let (done, ended) = AlarmReply::new();
    let counts = core.watch.of(class);
    counts.add(Count::AlarmRuns, 1);
    if run.exponent == 0 {
        let late_ms = core.host.wall_ms().saturating_sub(run.scheduled_ms);
        counts.see(Spread::AlarmLateSeconds, nanos(Duration::from_millis(late_ms)));
    }
    run.again = None;
    core.alarms.keep(id, run);
    core.deliver(Id::unnamed(id), class, Work::Alarm(AlarmCall { info, last, abandoned, done }));
    let core = core.clone();
    core.host.clone().spawn("alarm", async move {
        let end = ended.await.unwrap_or(AlarmEnd::Failed { counted: false });
        ended_with(&core, id, class, end);
        core.alarms.ring();
    });
}

fn ended_with(core: &Rc<Inner>, id: ObjectId, class: usize, end: AlarmEnd) {
    let mut run = core.alarms.take(id).expect("it ran");
    let AlarmEnd::Failed { counted } = end else { return };
    core.watch.of(class).add(Count::AlarmRetries, 1);
    // The first counted failure after uncounted ones starts with the short delay.
    if counted && run.counted == 0 {
        run.exponent = 0;
    }
    run.counted += u32::from(counted);
    let delay = match counted && run.counted > RETRIES_MAX {
        // The last try reset its object, which is yet to clear the alarm.
        true => 0,
        false => DELAY_MS << run.exponent.min(EXPONENT_MAX),
    };
    let jitter = core.host.random() % (delay / 4 + 1);
    run.again = Some(core.host.now() + Duration::from_millis(delay + jitter));
    run.exponent += 1;
    core.alarms.keep(id, run);
}

impl Instance {
    /// What an alarm's handler gives; one that takes too long resets its object, which is a failure
    /// that counts.
    pub(crate) async fn in_time(&self, handler: LocalBoxFuture<'_, Result<()>>) -> Result<()> {
        match select(handler, self.host.sleep(HANDLER_MAX).boxed_local()).await {
            Either::Left((result, _)) => result,
            Either::Right(_) => {
                self.reset(Error::alarm_timeout(HANDLER_MAX));
                std::future::pending().await
            }
        }
    }
}
