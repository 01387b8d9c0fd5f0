//! The simulator itself: its disk does what the real ones do, a seed is a life, lives are clean.

use dormouse_engine::io::conformance;
use dormouse_engine::io::{Create, Disk, File, Mode, Open, PageBuf};
use dormouse_sim::life::{live, play};
use dormouse_sim::plan::{At, Change, End, Fate, Level, Op, Plan, Session, Step, Turn, Wait};
use dormouse_sim::{DiskFaults, NetFaults, World};
use proptest::prelude::*;

const STEPS: u64 = 1_000_000;

#[test]
fn the_simulated_disk_conforms() {
    let plain = DiskFaults::default();
    let large = DiskFaults { large_blocks: true, slow_io: 10, ..plain };
    for faults in [plain, DiskFaults { short_io: 3, ..plain }, large] {
        let world = World::new(1, faults);
        let env = world.process().core();
        let disk = dormouse_engine::Env::disk(&env).clone();
        let done = world.block_on(&env, STEPS, async move {
            // Reads beyond the end are the one thing that a short transfer must not be taken for.
            conformance::run(&disk).await;
        });
        assert_eq!(world.take_panics(), [] as [String; 0]);
        assert!(done.is_some());
    }
}

#[test]
fn the_same_seed_is_the_same_life() {
    let hashes: Vec<_> = (0..4).map(|seed| live(seed, false).trace_hash).collect();
    let again: Vec<_> = (0..4).map(|seed| live(seed, false).trace_hash).collect();
    assert_eq!(hashes, again);
    assert!(hashes.windows(2).all(|pair| pair[0] != pair[1]), "seeds differ");
}

#[test]
fn some_lives_are_clean() {
    for seed in 1_000_000..1_000_060 {
        let report = live(seed, false);
        assert_eq!(report.failure, None, "replay: cargo sim replay {seed}");
        // Crashes come after a number of steps, some of which are the cleaner's.
        assert!(report.operations >= 150, "seed {seed} did {} operations", report.operations);
    }
}

/// Each kept failure is a plan with its story; it must not fail again.
#[test]
fn the_corpus_is_clean() {
    let corpus = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let mut plans = 0;
    #[expect(clippy::disallowed_methods, reason = "reads the corpus")]
    for entry in std::fs::read_dir(corpus).expect("the corpus") {
        let path = entry.expect("an entry").path();
        let text = std::fs::read_to_string(&path).expect("a plan");
        let plan = Plan::parse(&text).unwrap_or_else(|error| panic!("{path:?}: {error:#}"));
        for seed in plan.seed..plan.seed + 20 {
            let report = play(&Plan { seed, ..plan.clone() }, false);
            assert_eq!(report.failure, None, "{path:?} with seed {seed}");
        }
        plans += 1;
    }
    assert!(plans > 0);
}

/// A byte of a value that differs is another life.
#[test]
fn one_changed_byte_changes_the_hash() {
    let turn = |fill| Turn { ops: vec![Op::Write(Change::Put(1, 40, fill))], fate: Fate::Fine };
    let call = |fill| Step::Call(0, turn(fill), Wait::Now);
    let session = |fill| Session { clients: vec![vec![call(fill)]], end: End::Close, at: At::Done };
    let plan = |fill| Plan {
        seed: 1,
        level: Level::Stack,
        cores: 1,
        shards: 1,
        faults: DiskFaults::default(),
        stalls: 0,
        late_wakes: 0,
        mailbox: 0,
        net: NetFaults::default(),
        tiny_sockets: false,
        tiny_caches: false,
        damage: false,
        alarms: Vec::new(),
        sessions: vec![session(fill)],
    };
    let hash = |fill| {
        let report = play(&plan(fill), false);
        assert_eq!(report.failure, None);
        report.trace_hash
    };
    assert_eq!(hash(7), hash(7));
    assert_ne!(hash(7), hash(8));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

    /// A printed plan parses back to itself.
    #[test]
    fn plans_and_their_texts_are_the_same(seed in any::<u64>()) {
        let plan = Plan::of(seed);
        prop_assert_eq!(Plan::parse(&plan.print()).expect("a plan"), plan);
    }
}

/// What is written through is durable when the write returns, what is cached is not.
#[test]
fn a_power_cut_takes_what_was_not_durable() {
    let mut lost = 0;
    for seed in 0..40 {
        let world = World::new(seed, DiskFaults::default());
        let env = world.process().core();
        let disk = dormouse_engine::Env::disk(&env).clone();
        let write = async move {
            for (name, mode) in [("through", Mode::Through), ("cached", Mode::Cached)] {
                let open =
                    Open { create: Create::New, mode, lock_wait: Some(std::time::Duration::ZERO) };
                let file = disk.open(name, open).await.expect("create");
                file.allocate(512).await.expect("allocate");
                file.sync().await.expect("sync");
                disk.sync_dir().await.expect("sync_dir");
                let mut buf = PageBuf::zeroed(512);
                buf.fill(1);
                file.write_at(buf, 0).await.0.expect("write");
            }
        };
        world.block_on(&env, STEPS, write).expect("done");
        world.power_cut();
        let env = world.process().core();
        let disk = dormouse_engine::Env::disk(&env).clone();
        let read = async move {
            let mut found = Vec::new();
            for (name, mode) in [("through", Mode::Through), ("cached", Mode::Cached)] {
                let open = Open {
                    create: Create::Never,
                    mode,
                    lock_wait: Some(std::time::Duration::ZERO),
                };
                let file = disk.open(name, open).await.expect("the names are durable");
                found.push(file.read_at(PageBuf::zeroed(512), 0).await.1);
            }
            found
        };
        let found = world.block_on(&env, STEPS, read).expect("done");
        assert!(found[0].iter().all(|byte| *byte == 1), "seed {seed}: a durable write is gone");
        lost += usize::from(found[1].contains(&0));
    }
    assert!(lost > 5, "an unsynced write is lost sometimes: {lost} of 40");
}

/// A canary that no longer applies tests nothing; and each layer must have its share of them.
#[test]
fn every_canary_still_applies() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let root = root.canonicalize().expect("the checkout");
    #[expect(clippy::disallowed_methods, reason = "reads the canaries")]
    let entries = |path: &std::path::Path| -> Vec<std::path::PathBuf> {
        let entries = std::fs::read_dir(path).expect("canaries");
        entries.map(|entry| entry.expect("an entry").path()).collect()
    };
    for area in ["log", "recovery", "cache", "gates", "scheduling", "alarms", "sockets"] {
        let patches = entries(&root.join("sim/canaries").join(area));
        assert!(patches.len() >= 5, "{area}");
        for path in patches {
            let mut command = std::process::Command::new("git");
            command.args(["apply", "--check"]).arg(&path).current_dir(&root);
            assert!(command.status().expect("git runs").success(), "{}", path.display());
        }
    }
}
