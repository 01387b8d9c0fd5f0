//! Power cuts on real disks, made of a record: the engine runs on real files through a disk that
//! writes down what it is asked to do ([`record`]); from that log come images of what a power cut
//! at a random moment may leave ([`model`]); and the engine opens each and must show every object
//! as it was promised to be ([`check`]).
//!
//! The simulator does the same to a disk of its own. Here the order of operations is that of the
//! real disks, with the kernel's delays, and recovery reads real files. The same record says what a
//! commit and an activation cost ([`counts`]).

#[path = "../common/mod.rs"]
mod common;

mod check;
mod counts;
mod model;
mod random;
mod record;
mod search;
mod workload;

use std::pin::pin;
use std::sync::LazyLock;

use common::{dir, disks};
use dormouse_engine::Env;
use dormouse_engine::io::{Create, Disk, Mode, Open};
use dormouse_engine::real::{DiskChoice, block_on};
use futures_util::future::{join_all, select};
use model::{LeftOut, Model};
use record::{Event, Life, Log, Op, Recorded};
use search::{keep, search};

const SEED: u64 = 1;
/// Images made of the records of all disks together.
const IMAGES: usize = 1000;
/// Images of each record within which a loss must show when something is left out.
const LEFT_OUT_IMAGES: usize = 600;

/// One run of the workload on each disk.
static RECORDS: LazyLock<Vec<(DiskChoice, Log)>> = LazyLock::new(|| {
    let record = |disk| (disk, workload::record(dir().path(), disk, SEED));
    disks().into_iter().map(record).collect()
});

/// E1, E2, E7, E9.
#[test]
fn what_was_acknowledged_is_in_every_image() {
    for (disk, log) in &*RECORDS {
        if let Some(failure) = search((*disk, log), SEED, IMAGES / RECORDS.len(), None) {
            let (image, why, kept) = (failure.image, &failure.why, keep(&failure.files));
            panic!("{disk:?}, seed {SEED}, image {image}, now in {}: {why}", kept.display());
        }
    }
}

/// The check can fail: each of the engine's ways to make something durable is needed.
#[test]
fn without_any_one_sync_something_is_lost() {
    for left_out in LeftOut::ALL {
        let mut searched = RECORDS
            .iter()
            .map(|(disk, log)| search((*disk, log), SEED, LEFT_OUT_IMAGES, Some(left_out)));
        let found = searched.find_map(|found| found);
        let found = found.unwrap_or_else(|| panic!("{left_out:?}: no loss, seed {SEED}"));
        println!("{left_out:?}: image {}, {}", found.image, found.why);
    }
}

/// A process that dies while it creates two files at a time has created the first one alone, and
/// what a later process creates is numbered as the model counts it.
#[test]
fn a_dead_process_creates_nothing() {
    let (dir, mut log) = (dir(), Log::default());
    let open = Open { create: Create::New, mode: Mode::Through, lock_wait: None };
    for (life, names) in [(Life::Events(0), ["one", "two"]), (Life::Whole, ["three", "four"])] {
        log = block_on(dir.path(), DiskChoice::Posix, async move |env| {
            let env = Recorded::new(env, log, life);
            let both = join_all(names.map(|name| env.disk().open(name, open)));
            select(both, pin!(env.recorder().killed())).await;
            env.recorder().finish()
        })
        .expect("a core");
    }
    let mut model = Model::new(None);
    log.events.iter().for_each(|event| model.apply(event));
    let create = |event: &Event| match event {
        Event::Begin(_, Op::Create { file, name, .. }) => Some((*file, name.clone())),
        _ => None,
    };
    let created: Vec<_> = log.events.iter().filter_map(create).collect();
    assert_eq!(created, [(0, "one".into()), (1, "three".into()), (2, "four".into())]);
}

/// The workload reaches what it is meant to reach.
#[test]
fn the_record_holds_what_can_go_wrong() {
    for (disk, log) in &*RECORDS {
        let count = |is: &dyn Fn(&Event) -> bool| log.events.iter().filter(|it| is(it)).count();
        let created = |what: &str| {
            count(
                &|it| matches!(it, Event::Begin(_, Op::Create { name, .. }) if name.contains(what)),
            )
        };
        let removed = |what: &str| {
            count(&|it| matches!(it, Event::Begin(_, Op::Remove { name }) if name.contains(what)))
        };
        let acknowledged = count(&|it| matches!(it, Event::Acknowledged(..)));
        let submitted = count(&|it| matches!(it, Event::Submitted(..)));
        let begun = count(&|it| matches!(it, Event::Begin(..)));
        let ended = count(&|it| matches!(it, Event::End(..)));
        println!(
            "{disk:?}: {begun} operations, {} unheard of; {acknowledged} of {submitted} commits \
             acknowledged; {} segments, {} removed; {} runs, {} removed",
            begun - ended,
            created("-preparing-"),
            removed("-segment-"),
            created("-run-"),
            removed("-run-"),
        );
        assert!(acknowledged > 200 && submitted > acknowledged);
        // Every process that dies has one at least.
        assert!(begun - ended >= 9);
        assert!(created("-preparing-") > 10 && removed("-segment-") > 0);
        assert!(created("-run-") > 10 && removed("-run-") > 3);
    }
}
