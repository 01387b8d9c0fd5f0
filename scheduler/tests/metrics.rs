//! Metrics: what a recorder of the facade is told, and that docs/metrics.md says the same.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dormouse_engine::call::wait;
use dormouse_scheduler::prelude::*;
use dormouse_scheduler::{MetricKind, MetricLabel, StackLimits, all_metrics};
use metrics::{
    Counter, CounterFn, Gauge, GaugeFn, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder,
    SharedString, Unit,
};

/// Keeps what it is told.
#[derive(Clone, Default)]
struct Kept(Arc<Mutex<Told>>);

#[derive(Default)]
struct Told {
    values: BTreeMap<(String, String), f64>,
    histograms: BTreeMap<(String, String), Vec<f64>>,
    described: BTreeMap<String, Option<Unit>>,
}

impl Kept {
    fn value(&self, name: &str, label: &str) -> f64 {
        let key = (name.to_owned(), label.to_owned());
        self.0.lock().unwrap().values.get(&key).copied().unwrap_or(0.0)
    }

    fn histogram(&self, name: &str, label: &str) -> Vec<f64> {
        let key = (name.to_owned(), label.to_owned());
        self.0.lock().unwrap().histograms.get(&key).cloned().unwrap_or_default()
    }

    fn describe(&self, name: &KeyName, unit: Option<Unit>) {
        self.0.lock().unwrap().described.insert(name.as_str().to_owned(), unit);
    }

    fn handle(&self, key: &Key) -> Arc<Handle> {
        let label = key.labels().next().expect("a label");
        let key = (key.name().to_owned(), format!("{}={}", label.key(), label.value()));
        Arc::new(Handle { kept: self.clone(), key })
    }
}

struct Handle {
    kept: Kept,
    key: (String, String),
}

impl Handle {
    fn change(&self, change: impl FnOnce(&mut f64)) {
        let mut told = self.kept.0.lock().unwrap();
        change(told.values.entry(self.key.clone()).or_default());
    }
}

impl CounterFn for Handle {
    fn increment(&self, more: u64) {
        self.change(|value| *value += more as f64);
    }

    fn absolute(&self, now: u64) {
        self.change(|value| *value = now as f64);
    }
}

impl GaugeFn for Handle {
    fn increment(&self, more: f64) {
        self.change(|value| *value += more);
    }

    fn decrement(&self, less: f64) {
        self.change(|value| *value -= less);
    }

    fn set(&self, now: f64) {
        self.change(|value| *value = now);
    }
}

impl HistogramFn for Handle {
    fn record(&self, value: f64) {
        let mut told = self.kept.0.lock().unwrap();
        told.histograms.entry(self.key.clone()).or_default().push(value);
    }
}

impl Recorder for Kept {
    fn describe_counter(&self, key: KeyName, unit: Option<Unit>, _: SharedString) {
        self.describe(&key, unit);
    }

    fn describe_gauge(&self, key: KeyName, unit: Option<Unit>, _: SharedString) {
        self.describe(&key, unit);
    }

    fn describe_histogram(&self, key: KeyName, unit: Option<Unit>, _: SharedString) {
        self.describe(&key, unit);
    }

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(self.handle(key))
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(self.handle(key))
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::from_arc(self.handle(key))
    }
}

struct Thing(State);

impl DurableObject for Thing {
    fn new(state: State) -> Self {
        Self(state)
    }

    async fn fetch(&self, request: Request) -> Result<Response> {
        let socket = request.web_socket_upgrade()?.expect("one that asks");
        self.0.accept_web_socket(&socket, ["tag"])?;
        Ok(socket.into_response())
    }

    async fn alarm(&self, info: AlarmInfo) -> Result<()> {
        match info.retry_count {
            0 => Err(Error::user("once more")),
            _ => Ok(()),
        }
    }
}

enum Do {
    Put,
    Panic,
    Block,
    Sleep,
    SetAlarm,
}

impl Handler<Do> for Thing {
    type Reply = ();

    async fn handle(&self, what: Do) -> Result<()> {
        match what {
            Do::Put => {
                let n: u64 = self.0.storage().get("n").await?.unwrap_or(0);
                self.0.storage().put("n", &(n + 1)).await?;
            }
            Do::Panic => panic!("as asked"),
            Do::Block => block(Duration::from_millis(120)),
            Do::Sleep => self.0.sleep(Duration::from_millis(300)).await,
            Do::SetAlarm => self.0.storage().set_alarm(In(Duration::ZERO)).await?,
        }
        Ok(())
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "an object that blocks its core, and a test that waits"
)]
fn block(time: Duration) {
    std::thread::sleep(time);
}

/// One test, for there is one recorder.
#[test]
fn a_recorder_is_told_what_happened() {
    let kept = Kept::default();
    assert!(metrics::set_global_recorder(kept.clone()).is_ok());
    let dir = tempfile::tempdir().unwrap();
    let limits = StackLimits { calls: 2, ..StackLimits::PRODUCTION };
    let runtime = Runtime::builder(dir.path()).cores(1).limits(limits);
    let runtime = runtime.namespace::<Thing>("things").start().expect("a runtime");
    let thing = |name: &str| runtime.namespace::<Thing>().get_by_name(name);
    let (one, other) = (thing("one"), thing("other"));
    (0..10).for_each(|_| one.call(Do::Put).wait().unwrap());
    one.call(Do::Panic).wait().unwrap_err();
    one.call(Do::Put).wait().unwrap();
    one.call(Do::Block).wait().unwrap();
    let sleeping = [other.call(Do::Sleep), other.call(Do::Sleep)];
    other.call(Do::Put).wait().unwrap_err();
    let request = Request::get("/").body(()).unwrap().with_web_socket_upgrade();
    let client = thing("socket").fetch(request).wait().unwrap().take_web_socket();
    wait(client.as_ref().expect("accepted").send("hello")).unwrap();
    other.call(Do::SetAlarm).wait().unwrap_err();
    runtime.publish_metrics();
    let of = |name: &str| kept.value(&format!("dormouse_{name}"), "namespace=things");
    assert_eq!((of("calls_in_progress"), of("resident_objects")), (2.0, 3.0));
    sleeping.into_iter().for_each(|call| call.wait().unwrap());
    other.call(Do::SetAlarm).wait().unwrap();
    // The first run fails, the second is two seconds and a bit later.
    while of("alarm_runs_total") < 2.0 {
        block(Duration::from_millis(50));
        runtime.publish_metrics();
    }
    wait(runtime.evict(thing("socket").id()));
    runtime.close().expect("closed");

    assert_eq!(of("calls_total"), 10.0 + 3.0 + 2.0 + 1.0 + 1.0);
    assert_eq!(of("overloads_total"), 2.0);
    assert_eq!((of("activations_total"), of("resident_objects")), (4.0, 0.0));
    assert_eq!((of("resets_total"), of("panics_total")), (1.0, 1.0));
    assert_eq!((of("evictions_total"), of("hibernations_total")), (3.0, 1.0));
    assert_eq!(of("socket_events_total"), 1.0);
    assert_eq!((of("alarm_retries_total"), of("alarms_abandoned_total")), (1.0, 0.0));
    assert!(of("commits_total") >= 12.0 && of("commit_failures_total") == 0.0);
    assert!(of("blocked_turns_total") >= 1.0);
    let core = |name: &str| kept.value(&format!("dormouse_{name}"), "core=0");
    assert!(core("batches_total") >= 12.0 && core("batches_total") <= of("commits_total"));

    let seen = |name: &str| kept.histogram(&format!("dormouse_{name}"), "namespace=things");
    assert_eq!(seen("call_seconds").len() as f64, of("calls_total"));
    assert!(seen("call_seconds").iter().filter(|time| **time > 0.1).count() >= 3);
    assert_eq!(seen("activation_seconds").len(), 4);
    assert_eq!(seen("commit_seconds").len() as f64, of("commits_total"));
    let late = seen("alarm_late_seconds");
    assert!(late.len() == 1 && late[0] < 2.0, "of the first run: {late:?}");
    assert!(seen("turn_seconds").iter().any(|time| *time >= 0.1));
    let bytes = kept.histogram("dormouse_batch_bytes", "core=0");
    assert!(
        bytes.len() as f64 == core("batches_total") && bytes.iter().all(|bytes| *bytes > 500.0)
    );

    let described = kept.0.lock().unwrap().described.clone();
    let expected = all_metrics().map(|metric| (metric.name.to_owned(), Some(metric.unit)));
    assert_eq!(described, expected.collect());
}

#[test]
fn the_documentation_has_all_metrics() {
    let text = include_str!("../../docs/metrics.md");
    let rows = text.lines().filter(|line| line.starts_with("| `"));
    let expected = all_metrics().map(|metric| {
        let kind = match metric.kind {
            MetricKind::Counter => "counter",
            MetricKind::Gauge => "gauge",
            MetricKind::Histogram => "histogram",
        };
        let label = match metric.label {
            MetricLabel::Namespace => "namespace",
            MetricLabel::Core => "core",
        };
        let unit = metric.unit.as_str();
        format!("| `{}` | {kind} | {unit} | {label} | {} |", metric.name, metric.text)
    });
    assert_eq!(rows.collect::<Vec<_>>(), expected.collect::<Vec<_>>());
    let of = |label| all_metrics().filter(|metric| metric.label == label).count();
    let (by_namespace, by_core) = (of(MetricLabel::Namespace), of(MetricLabel::Core));
    let series = format!("(namespaces × {by_namespace}) + (cores × {by_core}) series");
    assert!(text.contains(&series), "{series}");
}
