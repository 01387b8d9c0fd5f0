//! What an object takes in memory that nobody uses now, counted by the allocator, beside what the core
//! counts for it: its bound on memory (`StackLimits::resident_bytes`) is worth what that is worth.
//! Prints both: `cargo test --release -p dormouse-benches --test residency -- --nocapture`.

use std::alloc::System;
use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use dormouse_benches::scratch;
use dormouse_engine::Contents;
use dormouse_scheduler::prelude::*;
use dormouse_scheduler::{OBJECT_BYTES, StackLimits};
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

#[global_allocator]
static GLOBAL: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const OBJECTS: usize = 2000;
fn heap() -> usize {
    let stats = GLOBAL.stats();
    stats.bytes_allocated - stats.bytes_deallocated
}

struct Idle(State);

impl DurableObject for Idle {
    fn new(state: State) -> Self {
        Self(state)
    }
}

/// Puts so many values of so many bytes.
#[derive(Clone, Copy)]
struct Fill(usize, usize);

impl Handler<Fill> for Idle {
    type Reply = ();

    async fn handle(&self, Fill(values, bytes): Fill) -> Result<()> {
        for number in 0..values {
            let value = vec![7; bytes];
            self.0.storage().put_bytes(&format!("key {number:04}"), value).await?;
        }
        Ok(())
    }
}

/// Heap of each of many objects that were just filled, or, if `anew`, that were read from the disk since.
fn each(values: usize, bytes: usize, anew: bool) -> usize {
    let dir = scratch();
    let forever = Duration::from_secs(1_000_000);
    let limits = StackLimits { idle: forever, resident_bytes: 1 << 40, ..StackLimits::PRODUCTION };
    let start = || {
        let builder = Runtime::builder(dir.path()).cores(1).limits(limits);
        builder.namespace::<Idle>("idle").start().expect("a runtime")
    };
    let fill = |runtime: &Runtime, fill: Fill| {
        let objects = runtime.namespace::<Idle>();
        let call = |object: usize| objects.get_by_name(&object.to_string()).call(fill);
        for some in (0..OBJECTS).collect::<Vec<_>>().chunks(100) {
            let calls: Vec<_> = some.iter().map(|object| call(*object)).collect();
            calls.into_iter().for_each(|call| call.wait().expect("filled"));
        }
    };
    let mut runtime = start();
    let mut before = heap();
    fill(&runtime, Fill(values, bytes));
    if anew {
        runtime.close().expect("closed");
        runtime = start();
        before = heap();
        fill(&runtime, Fill(0, 0));
    }
    let each = heap().saturating_sub(before) / OBJECTS;
    runtime.close().expect("closed");
    each
}

/// What is counted for one: as an object's cache has it, and the rest.
fn counted(values: usize, bytes: usize) -> usize {
    let map: BTreeMap<_, _> = (0..values)
        .map(|number| (Bytes::from(format!("key {number:04}")), Bytes::from(vec![0; bytes])))
        .collect();
    let contents = Contents { map, ..Contents::default() };
    OBJECT_BYTES + dormouse_cache::memory_bytes(&contents)
}

#[test]
fn what_is_counted_for_an_idle_object_is_near_what_it_takes() {
    for (values, bytes) in [(0, 0), (1, 10), (4, 100), (50, 20)] {
        let counted = counted(values, bytes);
        for anew in [false, true] {
            let takes = each(values, bytes, anew);
            let how = if anew { "read" } else { "written" };
            println!("{values} values of {bytes} B, {how}: takes {takes} B, counted {counted} B");
            assert!(takes * 4 <= counted * 5, "an idle object takes {takes} B, counted {counted}");
            assert!(takes * 3 >= counted * 2, "an idle object takes {takes} B, counted {counted}");
        }
    }
}
