//! What is measured, and what docs/performance.md section 5 wants of it.

/// Requests of one kind by so many connections, each sending the next one when the last is answered.
#[derive(Clone, Copy)]
pub(crate) struct Load {
    pub(crate) id: &'static str,
    pub(crate) connections: usize,
    /// Below the namespace; a star stands for the number of an object that is drawn at random.
    pub(crate) path: &'static str,
}

const fn load(id: &'static str, connections: usize, path: &'static str) -> Load {
    Load { id, connections, path }
}

/// The loads of a round, in their order.
pub(crate) const LOADS: [Load; 8] = [
    load("get-1", 1, "hot/get"),
    load("get-64", 64, "hot/get"),
    load("increment-1", 1, "hot/increment"),
    load("increment-64", 64, "hot/increment"),
    load("increment-many", 64, "many-*/increment"),
    load("puts-1", 1, "hot/puts"),
    load("puts-64", 64, "hot/puts"),
    load("list", 1, "listed/list"),
];

/// The floors: an answer at once, and one after a durable write of 4 KiB.
pub(crate) const FLOORS: [Load; 3] =
    [load("floor-1", 1, ""), load("floor-64", 64, ""), load("floor-write", 1, "write")];

/// Which figures of a row are better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Better {
    Higher,
    Lower,
}

/// What is wanted of a figure of Dormouse.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Target {
    /// So many times as good as workerd.
    Times(f64),
    /// The same, or this part of the floor.
    TimesOrFloor(f64, f64),
    /// At most so much, whatever workerd does.
    AtMost(f64),
    /// Nothing: it is told.
    Told,
}

/// A figure: of what is measured under this id, one of what it gives.
#[derive(Clone, Copy)]
pub(crate) struct Row {
    pub(crate) id: &'static str,
    pub(crate) metric: &'static str,
    pub(crate) unit: &'static str,
    /// What the row is about; empty where the one above says it.
    pub(crate) what: &'static str,
    pub(crate) better: Better,
    pub(crate) target: Target,
    /// Whose floor is shown beside it.
    pub(crate) floor: Option<&'static str>,
}

const fn rate(id: &'static str, what: &'static str, floor: &'static str, target: Target) -> Row {
    let (metric, unit, better) = ("rate", "/s", Better::Higher);
    Row { id, metric, unit, what, better, target, floor: Some(floor) }
}

/// A time, of which less is better.
const fn time(
    id: &'static str,
    metric: &'static str,
    unit: &'static str,
    what: &'static str,
    target: Target,
) -> Row {
    Row { id, metric, unit, what, better: Better::Lower, target, floor: None }
}

const fn p50(id: &'static str) -> Row {
    time(id, "p50", "us", "", Target::Told)
}

const fn p99(id: &'static str, target: Target) -> Row {
    time(id, "p99", "us", "", target)
}

/// All figures in the order in which they are shown.
pub(crate) const ROWS: [Row; 31] = [
    rate("get-1", "get of a hot key, 1 connection", "floor-1", Target::TimesOrFloor(5.0, 0.6)),
    p50("get-1"),
    p99("get-1", Target::Told),
    rate("get-64", "get of a hot key, 64 connections", "floor-64", Target::TimesOrFloor(8.0, 0.6)),
    p50("get-64"),
    p99("get-64", Target::Told),
    rate(
        "increment-1",
        "durable increment, one object, 1 connection",
        "floor-write",
        Target::Times(4.0),
    ),
    p50("increment-1"),
    p99("increment-1", Target::Told),
    rate("increment-64", "the same, 64 connections", "floor-64", Target::Times(20.0)),
    p50("increment-64"),
    p99("increment-64", Target::Told),
    rate(
        "increment-many",
        "the same, 1,000 objects, 64 connections",
        "floor-64",
        Target::Times(30.0),
    ),
    p50("increment-many"),
    p99("increment-many", Target::AtMost(4_000.0)),
    rate("puts-1", "ten puts in one event, 1 connection", "floor-write", Target::Times(3.0)),
    p50("puts-1"),
    p99("puts-1", Target::Told),
    rate("puts-64", "the same, 64 connections", "floor-64", Target::Times(20.0)),
    p50("puts-64"),
    p99("puts-64", Target::Told),
    rate("list", "list of 1,000 keys of 100 B, 1 connection", "floor-1", Target::Times(5.0)),
    p50("list"),
    p99("list", Target::Told),
    time(
        "cold",
        "p50",
        "ms",
        "cold activation: first request less a warm one",
        Target::AtMost(0.2),
    ),
    time("create", "p50", "ms", "creating an object with one value", Target::AtMost(0.25)),
    time("cached-get", "each", "us", "cached get inside the object", Target::Times(50.0)),
    time("cached-put", "each", "us", "cached put inside the object", Target::Times(50.0)),
    time("echo", "p50", "us", "WebSocket echo, round trip", Target::Times(2.0)),
    time("live", "each", "B", "resident bytes for each live object", Target::AtMost(2_048.0)),
    time(
        "sleeping",
        "each",
        "B",
        "resident bytes for each sleeping socket",
        Target::AtMost(1_024.0),
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_load_has_rows_and_no_row_is_there_twice() {
        for load in LOADS {
            assert!(ROWS.iter().any(|row| row.id == load.id && row.metric == "rate"));
        }
        let mut names: Vec<_> = ROWS.iter().map(|row| (row.id, row.metric)).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ROWS.len());
    }
}
