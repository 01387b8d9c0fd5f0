//! E1, E2, E7 and E9 at every crash point of one small life, and at every crash point of the
//! recoveries that follow.
//!
//! A crash point lies before each change that the disk carries out (a write, a sync, an allocation, a
//! creation, a removal, a sync of names), with whatever is on its way then, and behind the last one.
//!
//! | | exhaustive | drawn from seeds |
//! |---|---|---|
//! | the life | its crash points; there: names all old or new with bytes all old or new; each unsynced sector torn, all others new; each set of writes in flight that may land after SIGKILL | [`MIXES`] outcomes of a power cut; the byte at which a sector is torn |
//! | a recovery | its crash points, after five outcomes of each crash of the life: all old, all new, a mix, SIGKILL with all writes landed and with none; there: all old, all new, SIGKILL with all landed and with none | [`SECOND_MIXES`] outcomes of a power cut; one torn sector |
//!
//! One life, one schedule of its tasks and of each recovery. After each crash the store opens; each
//! object is in the state after a whole number of its commits, the acknowledged ones among them, and
//! alarms and counts agree (E1, E2). A power cut that takes all it can changes nothing that was read
//! (E9). A crash in recovery changes nothing either (E7), unless the power takes what SIGKILL left
//! visible and not durable: then the state is one that the life admits. A commit is taken, read
//! back, and there after one more power cut. What leaves the same disk as a crash before it, with the
//! same commits made and acknowledged, is not tried again.

mod ledger;
mod workload;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;

use dormouse_engine::{Batch, Version};
use dormouse_sim::random::Random;
use dormouse_sim::trace::Trace;
use dormouse_sim::{DiskFaults, DiskImage, Fate, Plain, SimEnv, World};

use ledger::{Ledger, Shown, assert_same};
use workload::{STEPS, object, open};

/// Seeds of the life, of what chance a crash has, and of the machines that recover.
const LIFE: u64 = 11;
const FIRST: u64 = 12;
const SECOND: u64 = 13;
const RECOVERY: u64 = 14;
/// Mixes of what a power cut leaves, drawn for each crash of the life and of a recovery.
const MIXES: u64 = 16;
const SECOND_MIXES: u64 = 2;

fn random(stream: u64, index: u64) -> Random {
    Random::new(stream << 32 | index)
}

/// A disk that stands still: the life, or a recovery, at one of its changes.
struct Stopped {
    disk: DiskImage,
    ledger: Ledger,
}

/// What is left of it after a crash.
struct Crashed {
    disk: DiskImage,
    /// By the power: then nothing is left that another power cut could take.
    power: bool,
    what: String,
}

impl Stopped {
    fn power_cut(&self, fate: &mut dyn Fate, what: String) -> Crashed {
        let world = World::of_image(RECOVERY, DiskFaults::default(), &self.disk);
        world.power_cut_with(fate);
        Crashed { disk: world.disk_image(), power: true, what }
    }

    fn killed(&self, lands: u64, what: &str) -> Crashed {
        let disk = self.disk.clone().landed(|write| lands >> write & 1 == 1);
        Crashed { disk, power: false, what: format!("{what}: killed, writes {lands:b} land") }
    }

    /// Names and bytes, each all old or all new.
    fn plain_cuts(&self, what: &str) -> Vec<Crashed> {
        let all = [(false, false), (true, true), (false, true), (true, false)];
        let cut = |(names, bytes)| {
            let what = format!("{what}: power, names {names}, bytes {bytes}");
            self.power_cut(&mut Plain::new(names, bytes), what)
        };
        all.into_iter().map(cut).collect()
    }

    fn torn(&self, sector: usize, random: &mut Random, what: &str) -> Crashed {
        let at = 1 + random.index(511);
        let what = format!("{what}: power, sector {sector} torn at {at}");
        let mut fate = Plain::torn(sector, at);
        let crashed = self.power_cut(&mut fate, what);
        assert_eq!(fate.torn, None, "{}: there is no such sector", crashed.what);
        crashed
    }

    fn mix(&self, random: &mut Random, number: u64, what: &str) -> Crashed {
        self.power_cut(&mut random.fork(), format!("{what}: power, mix {number}"))
    }

    /// Every outcome of a crash of the life, and how many of the first of them are crashed again
    /// while they recover.
    fn outcomes(&self, index: u64) -> (Vec<Crashed>, Vec<Crashed>) {
        let (what, mut random) = (format!("crash {index}"), random(FIRST, index));
        let mut deep = self.plain_cuts(&what);
        let mut shallow = deep.split_off(2);
        deep.push(self.mix(&mut random, 0, &what));
        shallow.extend((1..MIXES).map(|number| self.mix(&mut random, number, &what)));
        let sectors = 0..self.disk.unsynced_sectors();
        shallow.extend(sectors.map(|sector| self.torn(sector, &mut random, &what)));
        let all = (1_u64 << self.disk.writes_in_flight()) - 1;
        deep.push(self.killed(all, &what));
        deep.push(self.killed(0, &what));
        shallow.extend((1..all).map(|lands| self.killed(lands, &what)));
        (deep, shallow)
    }

    /// Outcomes of a crash of a recovery.
    fn fewer_outcomes(&self, index: u64, what: &str) -> Vec<Crashed> {
        let mut random = random(SECOND, index);
        let mut outcomes = self.plain_cuts(what);
        outcomes.truncate(2);
        outcomes.extend((0..SECOND_MIXES).map(|number| self.mix(&mut random, number, what)));
        let sectors = self.disk.unsynced_sectors();
        if sectors > 0 {
            let sector = random.index(sectors);
            outcomes.push(self.torn(sector, &mut random, what));
        }
        let all = (1_u64 << self.disk.writes_in_flight()) - 1;
        outcomes.push(self.killed(all, what));
        outcomes.push(self.killed(0, what));
        outcomes
    }
}

/// Runs the life up to this change; the whole of it, if it has fewer.
fn live_until(change: u64) -> (World, Stopped) {
    let world = World::new(LIFE, DiskFaults::default());
    world.stop_at_disk_change(change);
    let ledger = Rc::new(RefCell::new(workload::ledger()));
    let passed = workload::live(&world, &ledger);
    assert_eq!(world.take_panics(), [] as [String; 0], "change {change}");
    assert_eq!(passed.is_none(), world.stands_still(), "change {change}");
    let stopped = Stopped { disk: world.disk_image(), ledger: ledger.borrow().clone() };
    (world, stopped)
}

/// Opens the store, which must do, and reads all that is in it.
async fn look(env: SimEnv, ledger: Ledger, what: String) -> (workload::Opened, Shown) {
    let opened = open(&env).await.unwrap_or_else(|error| panic!("{what}: {error}"));
    let (_, shard, recovery) = &opened;
    assert_eq!(recovery.damaged, [], "{what}: damage without any");
    let mut shown = Shown::new();
    for id in ledger.objects() {
        let contents = shard.load(&id).await;
        shown.insert(id, contents.unwrap_or_else(|error| panic!("{what}: {error}")));
    }
    let existing = shown.values().filter(|contents| contents.version != Version::NONE).count();
    assert_eq!(shard.stats().objects, existing as u64, "{what}: objects counted");
    let alarms: BTreeSet<_> =
        shown.iter().filter_map(|(id, contents)| Some((contents.alarm?, *id))).collect();
    let due = shard.alarms_due(u64::MAX, 100);
    assert!(due.iter().eq(&alarms), "{what}: alarms {due:?}, in the objects {alarms:?}");
    (opened, shown)
}

/// [`look`], and then a commit that is read back; what the store shows before and after it.
async fn look_and_commit(env: SimEnv, ledger: Ledger, what: String) -> (Shown, Shown) {
    let ((_lock, shard, _), shown) = look(env, ledger, what.clone()).await;
    let (id, batch) = (object(1), Batch::new().put("after", "the crash"));
    let ticket = shard.commit(&id, &batch, None).expect("accepted");
    let mut wanted = shown.clone();
    let contents = wanted.get_mut(&id).expect("looked at");
    contents.apply(&batch, ticket.version());
    ticket.await.expect("durable");
    let found = shard.load(&id).await.unwrap_or_else(|error| panic!("{what}: {error}"));
    assert_eq!(&found, &*contents, "{what}: a commit is not read back");
    (shown, wanted)
}

fn run<T: 'static>(
    world: &World,
    what: &str,
    task: impl AsyncFnOnce(SimEnv, Ledger, String) -> T + 'static,
    ledger: &Ledger,
) -> T {
    let env = world.process().core();
    let (ledger, text) = (ledger.clone(), what.to_owned());
    let done = world.block_on(&env.clone(), STEPS, async move { task(env, ledger, text).await });
    assert_eq!(world.take_panics(), [] as [String; 0], "{what}");
    done.unwrap_or_else(|| panic!("{what}: not done"))
}

#[derive(Debug, Default)]
struct Counted {
    changes: u64,
    crashes: u64,
    recovery_changes: u64,
    recovery_crashes: u64,
    /// Recovered disks; the others were the same as one before them.
    recovered: u64,
    lost: u64,
}

/// How a crash is tried.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Trial {
    /// Of the life: it is recovered from.
    Flat,
    /// Of the life: its recovery is crashed too.
    Deep,
    /// Of a recovery.
    OfRecovery,
}

#[derive(Default)]
struct Checker {
    /// Disks with what they may show that were seen to recover: a machine of the same seed would do
    /// the very same again.
    seen: BTreeSet<(u128, u128)>,
    counted: Counted,
}

impl Checker {
    /// Whether this is to be tried in this way, with this state wanted.
    fn is_new(
        &mut self,
        crashed: &Crashed,
        ledger: &Ledger,
        trial: Trial,
        wanted: Option<&Shown>,
    ) -> bool {
        let mut trace = Trace::default();
        for (made, acknowledged) in ledger.progress() {
            trace.number(made as u64);
            trace.number(acknowledged as u64);
        }
        trace.number(trial as u64);
        trace.number(u64::from(crashed.power) << 1 | u64::from(wanted.is_some()));
        for contents in wanted.into_iter().flat_map(|shown| shown.values()) {
            trace.number(contents.version.0);
        }
        let new = self.seen.insert((crashed.disk.hash(), trace.value()));
        self.counted.recovered += u64::from(new);
        new
    }

    /// A crash of the life: what it left is recovered, read, taken by the power again, recovered
    /// and written to, taken by the power again, and recovered once more.
    fn first(&mut self, crashed: &Crashed, ledger: &Ledger, trial: Trial) {
        self.counted.crashes += 1;
        if !self.is_new(crashed, ledger, trial, None) {
            return;
        }
        let what = crashed.what.as_str();
        let world = World::of_image(RECOVERY, DiskFaults::default(), &crashed.disk);
        let (opened, shown) = run(&world, what, look, ledger);
        drop(opened);
        ledger.check(&shown, what);
        world.power_cut_with(&mut Plain::new(false, false));
        let (again, with_commit) = run(&world, what, look_and_commit, ledger);
        assert_same(&again, &shown, &format!("{what}; after another power cut (E7, E9)"));
        world.power_cut_with(&mut Plain::new(false, false));
        let (opened, again) = run(&world, what, look, ledger);
        drop(opened);
        assert_same(&again, &with_commit, &format!("{what}; with a commit after it (E2)"));
        if trial == Trial::Deep {
            self.recovery(crashed, ledger, &shown);
        }
    }

    /// The recovery is crashed at each of its changes.
    fn recovery(&mut self, crashed: &Crashed, ledger: &Ledger, shown: &Shown) {
        let changes = recover_until(u64::MAX, crashed).1;
        for change in 0..=changes {
            let (disk, counted) = recover_until(change, crashed);
            assert_eq!(counted, change, "{}", crashed.what);
            let stopped = Stopped { disk, ledger: ledger.clone() };
            let what = format!("{}; then at change {change} of recovery", crashed.what);
            for again in stopped.fewer_outcomes(change, &what) {
                self.second(&again, ledger, crashed, shown);
            }
        }
        self.counted.recovery_changes += changes;
    }

    /// A crash of a recovery: it changes nothing, unless it is the power that takes what SIGKILL had
    /// left visible and not durable.
    fn second(&mut self, again: &Crashed, ledger: &Ledger, crashed: &Crashed, shown: &Shown) {
        self.counted.recovery_crashes += 1;
        let wanted = (crashed.power || !again.power).then_some(shown);
        if !self.is_new(again, ledger, Trial::OfRecovery, wanted) {
            return;
        }
        let what = again.what.as_str();
        let world = World::of_image(RECOVERY + 1, DiskFaults::default(), &again.disk);
        let (found, with_commit) = run(&world, what, look_and_commit, ledger);
        match wanted {
            Some(wanted) => assert_same(&found, wanted, &format!("{what} (E7)")),
            None => {
                self.counted.lost += u64::from(&found != shown);
                ledger.check(&found, what);
            }
        }
        world.power_cut_with(&mut Plain::new(false, false));
        let (opened, found) = run(&world, what, look, ledger);
        drop(opened);
        assert_same(&found, &with_commit, &format!("{what}; with a commit after it (E2)"));
    }
}

/// Recovers up to this change, or wholly; the disk then, and how many changes were made.
fn recover_until(change: u64, crashed: &Crashed) -> (DiskImage, u64) {
    let world = World::of_image(RECOVERY, DiskFaults::default(), &crashed.disk);
    world.stop_at_disk_change(change);
    let env = world.process().core();
    let task_env = env.clone();
    let opened = world.block_on(&env, STEPS, async move { open(&task_env).await.map(drop) });
    assert_eq!(opened.is_none(), world.stands_still(), "{}", crashed.what);
    assert!(opened.is_none_or(|opened| opened.is_ok()), "{}", crashed.what);
    (world.disk_image(), world.disk_changes())
}

#[test]
fn every_crash_leaves_what_was_acknowledged() {
    let whole = World::new(LIFE, DiskFaults::default());
    let ledger = Rc::new(RefCell::new(workload::ledger()));
    let passed = workload::live(&whole, &ledger).expect("lived to its end");
    passed.check();
    let changes = whole.disk_changes();
    let mut checker = Checker::default();
    for change in 0..=changes {
        let (world, stopped) = live_until(change);
        assert_eq!((world.disk_changes(), world.stands_still()), (change, change < changes));
        if change == changes {
            assert_eq!(world.trace_hash(), whole.trace_hash(), "the same life");
        }
        let (deep, shallow) = stopped.outcomes(change);
        deep.iter().for_each(|crashed| checker.first(crashed, &stopped.ledger, Trial::Deep));
        shallow.iter().for_each(|crashed| checker.first(crashed, &stopped.ledger, Trial::Flat));
        checker.counted.changes = change;
    }
    let counted = checker.counted;
    println!("{passed:?}\n{counted:?}");
    assert_eq!(counted.changes, changes, "a crash at each of them");
    assert!(counted.recovery_changes > 0 && counted.crashes > 10 * changes, "{counted:?}");
    assert!(counted.lost > 0, "the power took nothing that SIGKILL had left: {counted:?}");
}
