//! Threads that count in the same objects while another one evicts them: no count is lost, none is
//! given twice, and each thread is told ever higher ones.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use dormouse_engine::call::wait;
use dormouse_scheduler::Call;
use dormouse_scheduler::prelude::*;
use proptest::prelude::*;

use super::program::{
    Action, Answer, Ending, OBJECTS, Outcome, Program, Run, Said, Thing, outcome,
};
use super::{close, start, stubs};

/// Clients that count, and what they count in.
#[derive(Clone, Debug)]
pub(crate) struct Count {
    /// For each thread, how many calls it makes before it waits for them, for each round.
    threads: Vec<Vec<usize>>,
    objects: usize,
    cores: usize,
}

pub(crate) fn count() -> impl Strategy<Value = Count> {
    let rounds = prop::collection::vec(1..9_usize, 1..6);
    (prop::collection::vec(rounds, 2..5), 1..=OBJECTS, 1..4_usize)
        .prop_map(|(threads, objects, cores)| Count { threads, objects, cores })
}

fn increment(stubs: &Arc<[Stub<Thing>]>, object: usize) -> Call<Answer> {
    let program = Program { actions: vec![Action::Increment("n")], ending: Ending::Reply };
    stubs[object].call(Run { program, peers: stubs.clone() })
}

fn counted(call: Call<Answer>) -> u64 {
    let outcome = outcome(call.wait());
    match &outcome {
        Outcome::Said(said) => match said[..] {
            [Said::Value(Some(n))] => n,
            _ => panic!("{outcome:?} is no number"),
        },
        _ => panic!("{outcome:?} is no number"),
    }
}

/// What one thread was told by one object after the other, in order.
fn count_along(stubs: &Arc<[Stub<Thing>]>, objects: usize, rounds: &[usize]) -> Vec<Vec<u64>> {
    let mut told = vec![Vec::new(); objects];
    for calls in rounds {
        let calls = (0..*calls).flat_map(|_| 0..objects);
        let calls: Vec<_> = calls.map(|object| (object, increment(stubs, object))).collect();
        calls.into_iter().for_each(|(object, call)| told[object].push(counted(call)));
    }
    told
}

/// Evicts the objects in turn until told to end.
fn evict_along(runtime: &Runtime, stubs: &[Stub<Thing>], end: &AtomicBool) {
    for stub in stubs.iter().cycle() {
        if end.load(Ordering::Relaxed) {
            return;
        }
        wait(runtime.evict(stub.id()));
    }
}

pub(crate) fn count_together(dir: &Path, count: &Count) {
    let runtime = start(dir, count.cores);
    let stubs = stubs(&runtime);
    let end = AtomicBool::new(false);
    let told: Vec<Vec<Vec<u64>>> = std::thread::scope(|scope| {
        let threads = count.threads.iter().map(|rounds| {
            // Clones of the same stubs.
            let stubs: Arc<[Stub<Thing>]> = stubs.to_vec().into();
            scope.spawn(move || count_along(&stubs, count.objects, rounds))
        });
        let threads: Vec<_> = threads.collect();
        scope.spawn(|| evict_along(&runtime, &stubs[..count.objects], &end));
        let told: Vec<_> = threads.into_iter().map(|thread| thread.join()).collect();
        end.store(true, Ordering::Relaxed);
        told.into_iter().map(|told| told.expect("every call is answered")).collect()
    });
    for object in 0..count.objects {
        let each = || told.iter().map(|told| &told[object]);
        each().for_each(|told| assert!(told.is_sorted(), "out of order: {told:?}"));
        let mut all: Vec<_> = each().flatten().copied().collect();
        all.sort_unstable();
        let sum = u64::try_from(all.len()).expect("few");
        assert_eq!(all, (1..=sum).collect::<Vec<_>>(), "lost or counted twice");
        assert_eq!(counted(increment(&stubs, object)), sum + 1);
    }
    close(runtime);
}
