//! Alarms of one core: when each fires, and when it is tried again.
//!
//! Which alarms are set is known by the shards alone; here is only what runs and what waits for a
//! retry, so counters vanish with the process. Invariants: one run of an object at a time
//! none before the wall clock shows its time.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use dormouse_engine::{Host, ObjectId};
use futures_util::FutureExt;
use futures_util::future::select;

use crate::core::Inner;
use crate::host::AlarmBell;
use crate::id::Id;
use crate::instance::{AlarmCall, AlarmEnd, AlarmReply, Work};
use crate::object::AlarmInfo;

/// Counted retries before an alarm is abandoned.
const RETRIES_MAX: u32 = 6;
/// The first delay.
const DELAY_MS: u64 = 2000;
/// The highest exponent of the delay.
const EXPONENT_MAX: u32 = 9;
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

#[derive(Default)]
pub(crate) struct Alarms {
    runs: RefCell<BTreeMap<ObjectId, Run>>,
    bell: Rc<AlarmBell>,
    stopped: Cell<bool>,
}

impl Alarms {
    pub(crate) fn bell(&self) -> Rc<AlarmBell> {
        self.bell.clone()
    }

    /// Nothing fires any more.
    pub(crate) fn stop(&self) {
        self.stopped.set(true);
        self.ring();
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
    let now = core.host.now();
    let mut next_ms = now_ms.saturating_add(LOOK_MS);
    // One more than are known about, so that the earliest unknown one is seen.
    let count = core.alarms.runs.borrow().len() + 64;
    for shard in core.shards.all_open() {
        for (at_ms, id) in shard.alarms(count) {
            if at_ms > now_ms {
                next_ms = next_ms.min(at_ms);
                break;
            }
            let known = core.alarms.runs.borrow_mut().remove(&id);
            let run = match known {
                Some(run) if run.again.is_none() => {
                    core.alarms.runs.borrow_mut().insert(id, run);
                    continue;
                }
                Some(run) if run.scheduled_ms == at_ms => run,
                _ => Run { scheduled_ms: at_ms, again: None, counted: 0, exponent: 0 },
            };
            match run.again.filter(|again| *again > now) {
                Some(again) => {
                    let wait = u64::try_from((again - now).as_millis()).unwrap_or(u64::MAX);
                    next_ms = next_ms.min(now_ms.saturating_add(wait).saturating_add(1));
                    core.alarms.runs.borrow_mut().insert(id, run);
                }
                None => fire(core, id, run),
            }
        }
    }
    next_ms.max(now_ms + 1)
}

fn fire(core: &Rc<Inner>, id: ObjectId, mut run: Run) {
    let Some(class) = core.topology.class_of(id) else {
        // Kept, for a build that knows the namespace; not looked at again by this one.
        run.again = Some(Duration::MAX);
        tracing::error!(%id, "an alarm is due of an object that belongs to no namespace here");
        core.alarms.runs.borrow_mut().insert(id, run);
        return;
    };
    let retry_count = run.counted;
    let is_retry = retry_count > 0;
    let info = AlarmInfo { scheduled_ms: run.scheduled_ms, retry_count, is_retry };
    let last = retry_count >= RETRIES_MAX;
    let (done, ended) = AlarmReply::new();
    run.again = None;
    core.alarms.runs.borrow_mut().insert(id, run);
    core.deliver(Id::unnamed(id), class, Work::Alarm(AlarmCall { info, last, done }));
    let core = core.clone();
    core.host.clone().spawn("alarm", async move {
        let end = ended.await.unwrap_or(AlarmEnd::Failed { counted: false });
        ended_with(&core, id, end);
        core.alarms.ring();
    });
}

fn ended_with(core: &Rc<Inner>, id: ObjectId, end: AlarmEnd) {
    let mut runs = core.alarms.runs.borrow_mut();
    let AlarmEnd::Failed { counted } = end else {
        runs.remove(&id);
        return;
    };
    let run = runs.get_mut(&id).expect("it ran");
    // The first counted failure after uncounted ones starts with the short delay.
    if counted && run.counted == 0 {
        run.exponent = 0;
    }
    let delay = DELAY_MS << run.exponent.min(EXPONENT_MAX);
    let jitter = core.host.random() % (delay / 4 + 1);
    run.again = Some(core.host.now() + Duration::from_millis(delay + jitter));
    run.exponent += 1;
    run.counted += u32::from(counted);
}
