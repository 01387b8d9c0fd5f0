//! What may differ from one namespace to another, beside one of which nothing is said.

#![expect(clippy::disallowed_methods, reason = "time passes on the real clock")]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use dormouse_cache::CacheLimits;
use dormouse_scheduler::prelude::*;
use dormouse_scheduler::{Kind, NamespaceOptions, OBJECT_BYTES};
use futures_util::FutureExt;

/// `WITH` is 1 in the namespace that has options.
struct Object<const WITH: usize>(State);

impl<const WITH: usize> DurableObject for Object<WITH> {
    fn new(state: State) -> Self {
        Self(state)
    }
}

static LEFT: [AtomicUsize; 2] = [const { AtomicUsize::new(0) }; 2];

/// Counts those that left memory, and does nothing else.
struct Counted<const WITH: usize>;

impl<const WITH: usize> DurableObject for Counted<WITH> {
    fn new(_: State) -> Self {
        Self
    }

    async fn fetch(&self, _: Request) -> Result<Response> {
        Response::json(&())
    }
}

impl<const WITH: usize> Drop for Counted<WITH> {
    fn drop(&mut self) {
        LEFT[WITH].fetch_add(1, Ordering::SeqCst);
    }
}

enum Do {
    Nothing,
    Work(Duration),
    /// Sets an alarm, deletes all, and says whether the alarm is still there.
    DeleteAll,
    /// Fills the cache, and says how long room for more was waited for.
    Fill,
    /// Keeps 2,000 bytes.
    Keep,
}

impl<const WITH: usize> Handler<Do> for Object<WITH> {
    type Reply = bool;

    async fn handle(&self, what: Do) -> Result<bool> {
        let storage = self.0.storage();
        match what {
            Do::Nothing => {}
            Do::Work(time) => self.0.sleep(time).await,
            Do::DeleteAll => {
                storage.put("key", &1).await?;
                storage.set_alarm(In(Duration::from_secs(3600))).await?;
                storage.delete_all().await?;
                assert_eq!(storage.get::<u32>("key").await?, None);
                return Ok(storage.get_alarm().await?.is_some());
            }
            Do::Fill => {
                let value = vec![7; 200];
                let mut fill = (0..8).map(|n| storage.put_bytes(&n.to_string(), value.clone()));
                return Ok(fill.any(|put| put.now_or_never().is_none()));
            }
            Do::Keep => storage.put("kept", &vec![7; 2000]).await?,
        }
        Ok(true)
    }
}

fn start(options: NamespaceOptions) -> (tempfile::TempDir, Runtime) {
    let dir = tempfile::tempdir().unwrap();
    let builder = Runtime::builder(&dir).cores(1).namespace::<Object<0>>("without");
    let runtime = builder.namespace_with::<Object<1>>("with", options).start().unwrap();
    (dir, runtime)
}

fn stub<const WITH: usize>(runtime: &Runtime, name: &str) -> Stub<Object<WITH>> {
    runtime.namespace().get_by_name(name)
}

/// An object that leaves after a longer time does not hold up one that leaves sooner.
#[test]
fn a_namespace_has_its_own_idle_time_and_others_keep_theirs() {
    let dir = tempfile::tempdir().unwrap();
    let idle = Some(Duration::from_millis(50));
    let options = NamespaceOptions { idle, ..NamespaceOptions::DEFAULT };
    let builder = Runtime::builder(&dir).cores(1).namespace::<Counted<0>>("without");
    let runtime = builder.namespace_with::<Counted<1>>("with", options).start().unwrap();
    let get = || Request::get("/").body(()).unwrap();
    runtime.namespace::<Counted<0>>().get_by_name("mice").fetch(get()).wait().unwrap();
    runtime.namespace::<Counted<1>>().get_by_name("mice").fetch(get()).wait().unwrap();
    let began = Instant::now();
    while LEFT[1].load(Ordering::SeqCst) == 0 {
        assert!(began.elapsed() < Duration::from_secs(9), "it stays");
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(LEFT[0].load(Ordering::SeqCst), 0, "ten seconds are not over");
    runtime.close().unwrap();
}

///
#[test]
fn a_namespace_says_whether_delete_all_takes_the_alarm_along() {
    for (delete_all, stays) in [(AlarmToo::Keep, true), (AlarmToo::Clear, false)] {
        let (_dir, runtime) = start(NamespaceOptions { delete_all, ..NamespaceOptions::DEFAULT });
        assert_eq!(stub::<1>(&runtime, "mice").call(Do::DeleteAll).wait().unwrap(), stays);
        assert!(!stub::<0>(&runtime, "mice").call(Do::DeleteAll).wait().unwrap(), "the default");
        runtime.close().unwrap();
    }
}

#[test]
fn a_namespace_has_its_own_bound_on_calls() {
    let (_dir, runtime) = start(NamespaceOptions { calls: Some(2), ..NamespaceOptions::DEFAULT });
    let time = Duration::from_millis(300);
    fn refused<const WITH: usize>(runtime: &Runtime, time: Duration) -> usize {
        let stub = stub::<WITH>(runtime, "mice");
        let calls: Vec<_> = (0..5).map(|_| stub.call(Do::Work(time))).collect();
        let errors = calls.into_iter().filter_map(|call| call.wait().err());
        errors.filter(|error| error.code() == Some("object-overloaded")).count()
    }
    assert_eq!(refused::<1>(&runtime, time), 3);
    assert_eq!(refused::<0>(&runtime, time), 0);
    runtime.close().unwrap();
}

#[test]
fn a_namespace_has_its_own_memory() {
    let resident_bytes = Some(2 * OBJECT_BYTES);
    let (_dir, runtime) = start(NamespaceOptions { resident_bytes, ..NamespaceOptions::DEFAULT });
    let time = Duration::from_millis(600);
    let busy: Vec<_> = (0..4)
        .map(|number| stub::<1>(&runtime, &number.to_string()).call(Do::Work(time)))
        .collect();
    let error = stub::<1>(&runtime, "further").call(Do::Nothing).wait().unwrap_err();
    assert_eq!(error.code(), Some("memory-full"));
    for number in 0..20 {
        let other = stub::<0>(&runtime, &number.to_string());
        other.call(Do::Nothing).wait().expect("there is room for others");
    }
    for call in busy {
        call.wait().unwrap();
    }
    stub::<1>(&runtime, "further").call(Do::Nothing).wait().unwrap();
    runtime.close().unwrap();
}

#[test]
fn a_namespace_has_its_own_bounds_of_a_cache() {
    let cache = Some(CacheLimits::TINY);
    let (_dir, runtime) = start(NamespaceOptions { cache, ..NamespaceOptions::DEFAULT });
    assert!(stub::<1>(&runtime, "mice").call(Do::Fill).wait().unwrap(), "it waits for room");
    assert!(!stub::<0>(&runtime, "mice").call(Do::Fill).wait().unwrap());
    runtime.close().unwrap();
}

/// What one namespace may hold on disk it holds, over both cores and after a restart; what only frees is taken, and
/// another namespace goes on.
#[test]
fn a_namespace_holds_so_much_on_disk_and_others_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let options = NamespaceOptions { disk_bytes: Some(50_000), ..NamespaceOptions::DEFAULT };
    let start = || {
        let builder = Runtime::builder(&dir).cores(2).namespace::<Object<0>>("without");
        builder.namespace_with::<Object<1>>("with", options).start().unwrap()
    };
    let runtime = start();
    let keep =
        |runtime: &Runtime, n: usize| stub::<1>(runtime, &n.to_string()).call(Do::Keep).wait();
    let kept = (0..100).take_while(|n| keep(&runtime, *n).is_ok()).count();
    assert!((5..=25).contains(&kept), "{kept}");
    let full = keep(&runtime, 100).unwrap_err();
    assert_eq!(full.kind(), Kind::ObjectReset, "{full}");
    assert!(full.to_string().contains("namespace with holds"), "{full}");
    for n in 0..100 {
        stub::<0>(&runtime, &n.to_string()).call(Do::Keep).wait().unwrap();
    }
    runtime.close().unwrap();

    let runtime = start();
    assert!(keep(&runtime, 100).unwrap_err().to_string().contains("namespace with holds"));
    runtime.namespace::<Object<1>>().get_by_name("0").delete().wait().unwrap();
    keep(&runtime, 100).unwrap();
    runtime.close().unwrap();
}
