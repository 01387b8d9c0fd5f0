//! [`WatchThread`]: looks at the cores from outside, for what a core that is blocked can't tell, and brings
//! metrics to the recorder.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use dormouse_engine::clock::Clock;
use dormouse_engine::heartbeat::Beat;

use super::{Count, describe, micros};
use crate::topology::Topology;

/// How often metrics are published, and the longest pause between two looks.
const PAUSE_MAX: Duration = Duration::from_secs(1);
const PAUSE_MIN: Duration = Duration::from_millis(10);

/// The thread that watches the cores of a runtime.
pub(crate) struct WatchThread {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl WatchThread {
    /// Watches the cores of `topology`; by the system's clock, whatever theirs is.
    ///
    /// Errors: the thread can't be started.
    pub(crate) fn start(topology: Topology) -> io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let run = move || {
            let mut looks = Looks::new(topology);
            let mut pause = PAUSE_MIN;
            while !stopped.load(Ordering::Acquire) {
                std::thread::park_timeout(pause);
                pause = looks.look(Clock::System.now());
            }
            looks.topology.publish_metrics();
        };
        let thread = std::thread::Builder::new().name("dormouse-watch".to_owned()).spawn(run)?;
        Ok(Self { stop, thread })
    }

    /// Ends it, after a last publication.
    pub(crate) fn join(self) {
        self.stop.store(true, Ordering::Release);
        self.thread.thread().unpark();
        if self.thread.join().is_err() {
            tracing::error!("the thread that watches the cores panicked");
        }
    }
}

/// What was seen of the cores.
struct Looks {
    topology: Topology,
    /// What each core was at when that was first seen, and whether it was told.
    seen: Vec<Option<(Beat, Duration, bool)>>,
    published: Duration,
}

impl Looks {
    fn new(topology: Topology) -> Self {
        let seen = vec![None; topology.cores()];
        Self { topology, seen, published: Duration::ZERO }
    }

    /// Looks once; how long until the next look.
    fn look(&mut self, now: Duration) -> Duration {
        let blocked = self.topology.limits().blocked;
        let mut all_idle = true;
        for core in 0..self.seen.len() {
            let shared = self.topology.watched(core);
            let beat = shared.heartbeat.look();
            all_idle &= beat.is_none();
            self.seen[core] = match (beat, self.seen[core]) {
                (Some(beat), Some((before, since, told))) if beat.count == before.count => {
                    let took = now.saturating_sub(since);
                    if took >= blocked && !told {
                        self.tell(core, beat, took);
                    }
                    Some((beat, since, told || took >= blocked))
                }
                (beat, _) => beat.map(|beat| (beat, now, false)),
            };
            let for_us = match self.seen[core] {
                Some((_, since, true)) => micros(now.saturating_sub(since)),
                _ => 0,
            };
            shared.own().set(Count::BlockedSeconds, for_us);
        }
        if now.saturating_sub(self.published) >= PAUSE_MAX {
            self.published = now;
            self.topology.publish_metrics();
        }
        // Where nobody has a turn, one that blocks its core is seen a little later.
        match all_idle {
            true => PAUSE_MAX,
            false => blocked.clamp(PAUSE_MIN, PAUSE_MAX),
        }
    }

    fn tell(&self, core: usize, beat: Beat, took: Duration) {
        let (id, namespace) = describe(&self.topology, beat.object, beat.tag);
        let (namespace, ms) = (&*namespace, took.as_millis());
        tracing::warn!(core, object = %id, namespace, ms, "an object blocks its core");
    }
}
