//! Everything that is measured, in the order in which it is printed. A figure that is not in this
//! table can't be recorded, and a target that names none of it does not load.

/// One figure of a workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Metric {
    pub workload: &'static str,
    pub name: &'static str,
    pub unit: &'static str,
    /// Whether more is better; what is neither is only told.
    pub better: Better,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Better {
    More,
    Less,
    Told,
}

use Better::{Less, More, Told};

const fn metric(
    workload: &'static str,
    name: &'static str,
    unit: &'static str,
    better: Better,
) -> Metric {
    Metric { workload, name, unit, better }
}

/// What each workload is, for the reader of the table.
pub(crate) const WORKLOADS: &[(&str, &str)] = &[
    ("floor-write", "4 KiB direct synchronous pwrite into prewritten blocks, depth 1"),
    ("floor-uring", "the same through tokio-uring"),
    ("floor-write-16k", "the same pwrite with 16 KiB"),
    ("floor-read", "random 4 KiB direct read, depth 1"),
    ("floor-read-32", "random 4 KiB direct reads by 32 threads"),
    ("W1", "one client, one durable put, always the same object (Dormouse: on the shard's core)"),
    ("W1r", "the same, a random object each time"),
    ("W1r-handle", "the same through the Store handle from another thread"),
    (
        "W2a",
        "64 puts at a time on one thread: 64 tasks on the shard's core; peers: one thread folding 64",
    ),
    ("W2a-1024", "1,024 tasks on the shard's core"),
    ("W2b", "64 blocking client threads: through Store; peers: each thread commits by itself"),
    (
        "W2c",
        "64 clients, folded: async through Store from another core; peers: threads and one committer",
    ),
    ("W3", "one atomic durable turn of ten puts to one object (Dormouse: on the shard's core)"),
    (
        "W4a",
        "hot get, random of 10,000 keys of one object: through the cache; peers: in one read transaction",
    ),
    ("W4b", "hot get, 4 keys of 1,000 objects: through the caches; peers: in one read transaction"),
    ("W4b-single", "the same; Dormouse: through Object alone; peers: each get by itself"),
    ("W5-cold", "cold activation straight after load, reopened with dropped caches before each"),
    ("W5-cached", "the same in an open store whose index 1 in 20 objects was read through"),
    ("W5-cached-32", "the same, 32 at a time"),
    ("W5o-cold", "cold activation after W7's overwrites, settled; as W5-cold"),
    ("W5o-cached", "the same, as W5-cached"),
    ("W6", "list of the 1,000-key object, hot: through the cache"),
    ("W6-object", "the same through Object alone"),
    ("W7-load", "bulk load, durable, 10,000 objects at a time"),
    (
        "W7-overwrite",
        "every key overwritten three times in random order, 4,000 puts at a time; settled",
    ),
    ("W8-warm", "open and read one key after SIGKILL in the middle of W2"),
    ("W8-cold", "the same, page cache dropped"),
    ("W9", "idle cost: blocks on disk and anonymous memory, beyond an empty store's"),
    (
        "hog",
        "a core kept busy by one object (50 us turns, always ready): another object's durable commit",
    ),
];

const fn timed(workload: &'static str, unit: &'static str) -> [Metric; 4] {
    [
        metric(workload, "rate", unit, More),
        metric(workload, "time", "us", Less),
        metric(workload, "p50", "us", Less),
        metric(workload, "p99", "us", Less),
    ]
}

const OTHERS: &[Metric] = &[
    metric("floor-write", "p999", "us", Less),
    metric("floor-write-16k", "p999", "us", Less),
    metric("W1", "cpu", "us", Less),
    metric("W1", "flushes", "1/commit", Told),
    metric("W2a", "p999", "us", Less),
    metric("W4a", "time", "ns", Less),
    metric("W4a", "allocations", "1/get", Less),
    metric("W4b", "time", "ns", Less),
    metric("W4b", "allocations", "1/get", Less),
    metric("W4b-single", "time", "ns", Less),
    metric("W5-cold", "p50", "us", Less),
    metric("W5-cold", "p99", "us", Less),
    metric("W5-cold", "reads", "1/object", Less),
    metric("W5-cached", "p50", "us", Less),
    metric("W5-cached", "p99", "us", Less),
    metric("W5-cached", "reads", "1/object", Less),
    metric("W5-cached-32", "rate", "objects/s", More),
    metric("W5o-cold", "p50", "us", Less),
    metric("W5o-cold", "p99", "us", Less),
    metric("W5o-cold", "reads", "1/object", Less),
    metric("W5o-cached", "p50", "us", Less),
    metric("W5o-cached", "p99", "us", Less),
    metric("W5o-cached", "reads", "1/object", Less),
    metric("W6", "time", "us", Less),
    metric("W6-object", "time", "us", Less),
    metric("W7-load", "rate", "keys/s", More),
    metric("W7-load", "write-amp", "x", Less),
    metric("W7-load", "space-amp", "x", Less),
    metric("W7-overwrite", "rate", "keys/s", More),
    metric("W7-overwrite", "write-amp", "x", Less),
    metric("W7-overwrite", "space-amp", "x", Less),
    metric("W8-warm", "time", "ms", Less),
    metric("W8-cold", "time", "ms", Less),
    metric("W9", "disk", "B/object", Less),
    metric("W9", "heap-idle", "B/object", Less),
    metric("W9", "heap-touched", "B/object", Less),
    metric("W9", "empty-disk", "B", Less),
    metric("W9", "empty-memory", "B", Less),
    metric("W9", "descriptors", "more", Less),
    metric("W9", "threads", "more", Less),
    metric("hog", "p50", "us", Less),
    metric("hog", "p99", "us", Less),
];

/// All metrics, workload by workload.
pub(crate) fn all() -> Vec<Metric> {
    let timed = [
        timed("floor-write", "writes/s"),
        timed("floor-uring", "writes/s"),
        timed("floor-write-16k", "writes/s"),
        timed("floor-read", "reads/s"),
        timed("floor-read-32", "reads/s"),
        timed("W1", "commits/s"),
        timed("W1r", "commits/s"),
        timed("W1r-handle", "commits/s"),
        timed("W2a", "commits/s"),
        timed("W2a-1024", "commits/s"),
        timed("W2b", "commits/s"),
        timed("W2c", "commits/s"),
        timed("W3", "turns/s"),
    ];
    let mut all: Vec<_> = timed.into_iter().flatten().chain(OTHERS.iter().copied()).collect();
    let place = |metric: &Metric| WORKLOADS.iter().position(|(name, _)| *name == metric.workload);
    all.sort_by_key(place);
    all
}

pub(crate) fn find(workload: &str, name: &str) -> Option<Metric> {
    all().into_iter().find(|metric| metric.workload == workload && metric.name == name)
}

pub(crate) fn describe(workload: &str) -> &'static str {
    WORKLOADS.iter().find(|(name, _)| *name == workload).map_or("", |(_, text)| text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_workload_is_described_and_has_figures_that_differ() {
        let all = all();
        for (at, metric) in all.iter().enumerate() {
            assert_ne!(describe(metric.workload), "", "{}", metric.workload);
            let again = all[at + 1..].iter();
            let mut same = again
                .filter(|other| (other.workload, other.name) == (metric.workload, metric.name));
            assert!(same.next().is_none(), "{metric:?} is there twice");
        }
        for (workload, _) in WORKLOADS {
            assert!(all.iter().any(|metric| metric.workload == *workload), "{workload}");
        }
    }
}
