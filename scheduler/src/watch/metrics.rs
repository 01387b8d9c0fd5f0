//! The metrics: what is counted, where, and how it reaches a recorder of the `metrics` facade.
//!
//! A core counts into memory that it alone writes ([`Scope`]): a load and a store each, whether anybody looks or
//! not. [`publish`] brings what has changed since the last time to the recorder that is installed; without
//! one that does nothing. The cores take no part in it. docs/metrics.md is the table below, for people.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use metrics::{SharedString, Unit};

use super::distribution::{BUCKETS, Distribution, middle};

/// Values of one distribution that one publication brings at most: of more, a part in proportion, for
/// recorders take them one by one.
const VALUES_MAX: u64 = 4096;

/// What a metric is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricKind {
    /// It only grows.
    Counter,
    /// It is what it is now.
    Gauge,
    /// A distribution of values.
    Histogram,
}

/// What a metric is told by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricLabel {
    /// `namespace`: the names that the runtime was built with.
    Namespace,
    /// `core`: their numbers.
    Core,
}

/// One metric.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    /// Its name.
    pub name: &'static str,
    /// What it is.
    pub kind: MetricKind,
    /// In what it is measured.
    pub unit: Unit,
    /// What it is told by.
    pub label: MetricLabel,
    /// What it says.
    pub text: &'static str,
}

macro_rules! metrics {
    ($(#[$doc:meta])* $name:ident: $($variant:ident = $metric:literal, $kind:ident, $unit:ident, $label:ident, $text:literal;)*) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug)]
        pub(crate) enum $name {
            $($variant,)*
        }

        impl $name {
            const TABLE: &[Metric] = &[$(Metric {
                name: $metric,
                kind: MetricKind::$kind,
                unit: Unit::$unit,
                label: MetricLabel::$label,
                text: $text,
            },)*];
        }
    };
}

metrics! {
    /// Numbers.
    Count:
    Calls = "dormouse_calls_total", Counter, Count, Namespace, "requests and typed calls that came to their object";
    CallsInProgress = "dormouse_calls_in_progress", Gauge, Count, Namespace, "requests and calls that wait or run in live objects";
    Overloads = "dormouse_overloads_total", Counter, Count, Namespace, "calls that were refused because their object had too many, or for want of memory";
    Activations = "dormouse_activations_total", Counter, Count, Namespace, "objects that were brought into memory";
    Residents = "dormouse_resident_objects", Gauge, Count, Namespace, "objects in memory";
    Evictions = "dormouse_evictions_total", Counter, Count, Namespace, "objects that left memory because nothing was happening, or were told to";
    Hibernations = "dormouse_hibernations_total", Counter, Count, Namespace, "those of them that have WebSockets that stay open";
    Resets = "dormouse_resets_total", Counter, Count, Namespace, "instances that were reset, for whatever reason";
    Panics = "dormouse_panics_total", Counter, Count, Namespace, "those of them whose code panicked";
    SocketEvents = "dormouse_socket_events_total", Counter, Count, Namespace, "messages, closes and errors of WebSockets that came to their object";
    AlarmRuns = "dormouse_alarm_runs_total", Counter, Count, Namespace, "runs of alarm handlers that were started";
    AlarmRetries = "dormouse_alarm_retries_total", Counter, Count, Namespace, "runs that failed, and after which the alarm is tried again";
    AlarmsAbandoned = "dormouse_alarms_abandoned_total", Counter, Count, Namespace, "alarms that were given up after their last try";
    Commits = "dormouse_commits_total", Counter, Count, Namespace, "commits that are durable";
    CommitFailures = "dormouse_commit_failures_total", Counter, Count, Namespace, "commits that failed";
    BlockedTurns = "dormouse_blocked_turns_total", Counter, Count, Namespace, "turns in which an object blocked its core for longer than it may";
    MailboxOverloads = "dormouse_mailbox_overloads_total", Counter, Count, Core, "messages that were refused because the core's mailbox was full";
    MailboxMessages = "dormouse_mailbox_messages", Gauge, Count, Core, "messages that wait in the core's mailbox";
    ResidentBytes = "dormouse_resident_bytes", Gauge, Bytes, Core, "memory of the core's objects, as residency counts it";
    BlockedSeconds = "dormouse_blocked_seconds", Gauge, Seconds, Core, "for how long one object has blocked the core, if it does";
    Batches = "dormouse_batches_total", Counter, Count, Core, "batches of commits that the core's shards have written";
    ShardsReopened = "dormouse_shards_reopened_total", Counter, Count, Core, "poisoned shards that were opened anew";
}

metrics! {
    /// Distributions.
    Spread:
    CallSeconds = "dormouse_call_seconds", Histogram, Seconds, Namespace, "from a call's arrival at its core to the end of the turn that replies";
    ActivationSeconds = "dormouse_activation_seconds", Histogram, Seconds, Namespace, "from the first call for an object to its being in memory";
    AlarmLateSeconds = "dormouse_alarm_late_seconds", Histogram, Seconds, Namespace, "from the time an alarm was set for to its first run";
    CommitSeconds = "dormouse_commit_seconds", Histogram, Seconds, Namespace, "from a commit to its being durable";
    TurnSeconds = "dormouse_turn_seconds", Histogram, Seconds, Namespace, "turns of objects";
    BatchCommits = "dormouse_batch_commits", Histogram, Count, Core, "frames in a batch";
    BatchBytes = "dormouse_batch_bytes", Histogram, Bytes, Core, "bytes of a batch";
}

const COUNTS: usize = Count::TABLE.len();
const SPREADS: usize = Spread::TABLE.len();

/// All metrics.
pub fn all() -> impl Iterator<Item = &'static Metric> {
    Count::TABLE.iter().chain(Spread::TABLE)
}

/// What one core counts for one namespace, or for itself. Only that core writes, but where said.
#[derive(Debug)]
pub(crate) struct Scope {
    counts: [AtomicU64; COUNTS],
    spreads: [OnceLock<Box<Distribution>>; SPREADS],
}

impl Default for Scope {
    fn default() -> Self {
        let counts = std::array::from_fn(|_| AtomicU64::new(0));
        Self { counts, spreads: std::array::from_fn(|_| OnceLock::new()) }
    }
}

impl Scope {
    fn count(&self, which: Count) -> &AtomicU64 {
        &self.counts[which as usize]
    }

    pub(crate) fn add(&self, which: Count, more: u64) {
        self.set(which, self.count(which).load(Ordering::Relaxed) + more);
    }

    pub(crate) fn subtract(&self, which: Count, less: u64) {
        self.set(which, self.count(which).load(Ordering::Relaxed) - less);
    }

    pub(crate) fn set(&self, which: Count, value: u64) {
        self.count(which).store(value, Ordering::Relaxed);
    }

    /// As [`add`](Self::add), from any thread, of what is counted in no other way.
    pub(crate) fn add_from_outside(&self, which: Count) {
        self.count(which).fetch_add(1, Ordering::Relaxed);
    }

    /// Sees a value: nanoseconds, or what the unit says.
    pub(crate) fn see(&self, which: Spread, value: u64) {
        self.spreads[which as usize].get_or_init(Box::default).record(value);
    }
}

/// What a recorder was told of one label.
#[derive(Debug)]
struct Told {
    counts: [u64; COUNTS],
    /// Values that were seen and are told; a recorder got [`VALUES_MAX`] of them at most each time.
    spreads: [[u64; BUCKETS]; SPREADS],
}

/// What recorders were told so far.
#[derive(Debug, Default)]
pub(crate) struct Published {
    /// In the order in which they are published.
    told: Vec<Box<Told>>,
}

/// One value of the label `namespace` or `core`, and the scopes that count for it.
pub(crate) struct Labelled<'a> {
    pub(crate) label: MetricLabel,
    pub(crate) value: Arc<str>,
    pub(crate) scopes: Vec<&'a Scope>,
}

/// Tells the recorder what has changed; always the same labels, in the same order.
pub(crate) fn publish(published: &mut Published, all_labels: &[Labelled<'_>]) {
    describe();
    for (place, labelled) in all_labels.iter().enumerate() {
        if published.told.len() <= place {
            let (counts, spreads) = ([0; COUNTS], [[0; BUCKETS]; SPREADS]);
            published.told.push(Box::new(Told { counts, spreads }));
        }
        labelled.tell(&mut published.told[place]);
    }
}

fn describe() {
    for Metric { name, kind, unit, text, .. } in all() {
        match kind {
            MetricKind::Counter => metrics::describe_counter!(*name, *unit, *text),
            MetricKind::Gauge => metrics::describe_gauge!(*name, *unit, *text),
            MetricKind::Histogram => metrics::describe_histogram!(*name, *unit, *text),
        }
    }
}

impl Labelled<'_> {
    fn tell(&self, told: &mut Told) {
        let name = match self.label {
            MetricLabel::Namespace => "namespace",
            MetricLabel::Core => "core",
        };
        let label = || [(name, SharedString::from(self.value.clone()))];
        let is_mine = |(_, metric): &(usize, &Metric)| metric.label == self.label;
        for (place, metric) in Count::TABLE.iter().enumerate().filter(is_mine) {
            let count = |scope: &&Scope| scope.counts[place].load(Ordering::Relaxed);
            let now: u64 = self.scopes.iter().map(count).sum();
            let before = std::mem::replace(&mut told.counts[place], now);
            match metric.kind {
                MetricKind::Counter => {
                    metrics::counter!(metric.name, &label()).increment(now.saturating_sub(before));
                }
                _ => metrics::gauge!(metric.name, &label()).set(gauge(metric, now)),
            }
        }
        for (place, metric) in Spread::TABLE.iter().enumerate().filter(is_mine) {
            let mut now = [0; BUCKETS];
            let seen = self.scopes.iter().filter_map(|scope| scope.spreads[place].get());
            seen.for_each(|spread| spread.add_to(&mut now));
            let before = std::mem::replace(&mut told.spreads[place], now);
            let histogram = metrics::histogram!(metric.name, &label());
            for (bucket, count) in news(&before, &now) {
                histogram.record_many(scaled(metric, middle(bucket)), count);
            }
        }
    }
}

/// How many more there are in each bucket, scaled to [`VALUES_MAX`] in all.
fn news<'a>(
    before: &'a [u64; BUCKETS],
    now: &'a [u64; BUCKETS],
) -> impl Iterator<Item = (usize, usize)> + 'a {
    let more = |bucket: usize| now[bucket].saturating_sub(before[bucket]);
    let total: u64 = (0..BUCKETS).map(more).sum();
    let mut passed = 0;
    // So many of the first `passed` values are told.
    let share = move |passed: u64| match total <= VALUES_MAX {
        true => passed,
        false => u64::try_from(u128::from(passed) * u128::from(VALUES_MAX) / u128::from(total))
            .expect("at most the bound"),
    };
    (0..BUCKETS).filter_map(move |bucket| {
        let from = share(passed);
        passed += more(bucket);
        let count = share(passed) - from;
        (count > 0).then(|| (bucket, usize::try_from(count).expect("at most the bound")))
    })
}

/// A gauge's number in its unit; of times it is in microseconds.
fn gauge(metric: &Metric, value: u64) -> f64 {
    match metric.unit {
        Unit::Seconds => value as f64 / 1e6,
        _ => value as f64,
    }
}

/// A value in its metric's unit; times are seen in nanoseconds.
fn scaled(metric: &Metric, value: f64) -> f64 {
    match metric.unit {
        Unit::Seconds => value / 1e9,
        _ => value,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn news_are_all_that_is_new_or_a_part_in_proportion() {
        let (before, mut now) = ([1; BUCKETS], [1; BUCKETS]);
        now[3] += 5;
        now[7] += 1;
        assert_eq!(news(&before, &now).collect::<Vec<_>>(), [(3, 5), (7, 1)]);
        now[3] += 3 * VALUES_MAX;
        now[9] += VALUES_MAX;
        let told: Vec<_> = news(&before, &now).collect();
        let (most, last) = (told[0].1, told.last().expect("some").1);
        assert_eq!(told.iter().map(|(_, count)| *count as u64).sum::<u64>(), VALUES_MAX);
        assert!((2.9..3.1).contains(&(most as f64 / last as f64)), "{told:?}");
    }

    #[test]
    fn names_say_what_they_are() {
        for Metric { name, kind, unit, .. } in all() {
            assert!(name.starts_with("dormouse_"), "{name}");
            assert_eq!(name.ends_with("_total"), *kind == MetricKind::Counter, "{name}");
            assert_eq!(name.ends_with("_seconds"), *unit == Unit::Seconds, "{name}");
            assert_eq!(name.ends_with("_bytes"), *unit == Unit::Bytes, "{name}");
            assert_eq!(all().filter(|metric| metric.name == *name).count(), 1, "{name}");
        }
    }
}
