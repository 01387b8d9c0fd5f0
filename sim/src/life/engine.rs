//! Lives of the engine alone: clients commit to shards, as an embedder does.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use dormouse_engine::snapshot::Snapshot;
use dormouse_engine::{
    Batch, Contents, Filter, Host, Kind, Limits, ObjectId, Shard, StoreLock, Ticket, Version,
};
use futures_util::future::{FutureExt, select};

use super::shared::{Mark, Shared};
use super::{Life, Running};
use crate::disk::Damage;
use crate::plan::{Change, Step, key};
use crate::random::Random;
use crate::reference::Reference;
use crate::world::{SimEnv, World};

/// Damages to one closed store, one at a time.
const DAMAGES: usize = 4;
/// Reads of an object until one succeeds; one in twenty fails at most.
const READS_MAX: u32 = 50;

pub(super) type Shards = Rc<Vec<Shard<SimEnv>>>;

impl Life<'_> {
    pub(super) fn open_engine(&mut self, running: Running) -> Running {
        let (env, slot, opened) =
            (running.env.clone(), running.shards.clone(), running.opened.clone());
        let (shared, shards, failed) =
            (self.shared.clone(), self.plan.shards, running.failed.clone());
        let checker = self.checker();
        let all = self.objects();
        running.env.spawn("open", async move {
            match open(&env, &shared, shards).await {
                Ok((shards, damaged)) => {
                    if !damaged.is_empty() {
                        shared.fail(format!("damage without a fault: {damaged:?}"));
                    }
                    if let Err(error) = checker.check_all(&shards, &all).await {
                        // A write that fails while the log is quiet poisons its shard at once.
                        match kind(&error) {
                            Some(Kind::Poisoned) if shared.lenient.get() => {
                                return failed.set(true);
                            }
                            _ => shared.fail(format!("opening: {error:#}")),
                        }
                    }
                    *slot.borrow_mut() = Some(shards);
                    opened.set(true);
                }
                Err(error) => {
                    shared.fail_if_strict(format!("opening: {error:#}"));
                    failed.set(true);
                }
            }
        });
        running
    }

    /// One sector of the closed store is damaged: every object answers as before, or that it is
    /// damaged; or the store says that it can't be opened (E5, E6). A damaged object can be made
    /// anew. The same store is damaged some times over.
    pub(super) fn damage(&mut self) -> Result<()> {
        if self.world.used_sectors().is_empty() {
            // Of a plan that was made short: there is no store.
            return Ok(());
        }
        let mut random = Random::new(self.plan.seed ^ 0xda3a);
        let image = self.world.disk_image();
        for _ in 0..DAMAGES {
            let world = World::of_image(random.bits(), self.well(), &image);
            let whole = std::mem::replace(&mut self.world, world);
            let damage = self.damage_one(&mut random);
            let looked = self.look_at_damage(&damage);
            let hash = self.world.trace_hash();
            self.world = whole;
            self.world.fold(&hash.to_le_bytes());
            looked?;
        }
        Ok(())
    }

    /// Damages a sector; says which and how.
    fn damage_one(&self, random: &mut Random) -> String {
        let sectors = self.world.used_sectors();
        let mut files: Vec<&str> = sectors.iter().map(|(file, _)| &**file).collect();
        files.dedup();
        // A small file as often as a large one; and the log's end, which is replayed, more often.
        let log = files.iter().rposition(|file| file.contains("segment")).unwrap_or(0);
        let mut pick = || {
            let file = match random.one_in(3) {
                true => files[log - random.index(3).min(log)],
                false => files[random.index(files.len())],
            };
            let of_file: Vec<_> = sectors.iter().filter(|(name, _)| name == file).collect();
            of_file[random.index(of_file.len())]
        };
        let (sector, other) = (pick(), pick());
        let damage = match random.below(5) {
            0 => Damage::Flip(random.index(4096)),
            1 => Damage::Zero,
            2 => Damage::Stale,
            3 if sector.0.contains("segment") => Damage::Unreadable,
            _ => Damage::Copy(other.clone()),
        };
        self.world.damage(sector, &damage);
        format!("{sector:?}: {damage:?}")
    }

    fn look_at_damage(&mut self, damage: &str) -> Result<()> {
        self.shared.note(|| damage.to_owned());
        let running = self.start_nothing();
        let (env, shared, shards) = (running.env.clone(), self.shared.clone(), self.plan.shards);
        let (checker, all, damage) = (self.checker(), self.objects(), damage.to_owned());
        let looked = self.spawn(&running, async move {
            let opened = match open(&env, &shared, shards).await {
                Ok(opened) => opened,
                // A read that fails while opening may succeed next time.
                Err(error) if matches!(kind(&error), Some(Kind::Corrupt | Kind::Retry)) => {
                    return shared.mark(Mark::DamageRefused);
                }
                Err(error) => return shared.fail(format!("{damage}: opening: {error:#}")),
            };
            let checked = checker.check_damaged(&opened.0, &all, &opened.1).await;
            shared.check(&damage, checked);
        });
        self.until("looking at all objects", || looked.get())?;
        running.process.kill();
        Ok(())
    }

    fn checker(&self) -> Checker {
        let reference = self.engine.clone().expect("a life of the engine");
        Checker { world: self.world.clone(), shared: self.shared.clone(), reference }
    }

    /// All objects that the plan names.
    fn objects(&self) -> Vec<u8> {
        let steps = self.plan.sessions.iter().flat_map(|session| session.clients.iter().flatten());
        let mut objects: Vec<u8> = steps
            .filter_map(|step| match step {
                Step::Commit(object, _)
                | Step::CommitResident(object, _)
                | Step::CommitStale(object, _)
                | Step::Load(object)
                | Step::Compact(object) => Some(*object),
                _ => None,
            })
            .collect();
        objects.sort_unstable();
        objects.dedup();
        objects
    }

    pub(super) fn start_engine_client(&mut self, running: &Running, steps: Vec<Step>) {
        let shards = running.shards.borrow().clone().expect("opened");
        // Other faults leave less than there is room for, and so do other shards, or blocks of which a segment
        // has three; and so does a disk of some ten segments, of which the reserve has four.
        let faults = &self.plan.faults;
        let frees = faults.is_only_small() && faults.capacity >= FREES_MIN && self.plan.shards == 1;
        let (env, checker) = (running.env.clone(), self.checker());
        let client = Client { env, checker, shards, frees, kept: RefCell::default() };
        let (clients, shared) = (running.clients.clone(), self.shared.clone());
        running.env.spawn("client", async move {
            for step in steps {
                shared.note(|| format!("{step:?}"));
                if let Err(error) = client.step(&step).await {
                    shared.fail_if_strict(format!("{step:?}: {error:#}"));
                }
            }
            clients.set(clients.get() - 1);
        });
    }

    /// Reads every object once more.
    pub(super) fn check_engine(&mut self, running: &Running) -> Result<()> {
        let shards = running.shards.borrow().clone().expect("opened");
        let (checker, all, shared) = (self.checker(), self.objects(), self.shared.clone());
        let large_blocks = self.plan.faults.large_blocks;
        let looked = self.spawn(running, async move {
            shared.check("at the end", checker.check_all(&shards, &all).await);
            shared.check("at the end", checker.scrub(&shards).await);
            shared.check("at rest", check_space(&shards, large_blocks));
        });
        self.until("looking at all objects", || looked.get())
    }

    /// What the cleaner has done, when a process ends.
    pub(super) fn mark_cleaning(&self, running: &Running, crashes: bool) {
        let shards = running.shards.borrow().clone();
        for shard in shards.iter().flat_map(|shards| shards.iter()) {
            let stats = shard.stats();
            let searched = stats.trees_searched;
            if searched > 0 && !self.shared.lenient.get() {
                let what = "large objects were read as a whole, for keys did not lead to all that was to be moved";
                self.shared.fail(format!("{searched} {what}"));
            }
            let marks = [
                (stats.segments_cleaned > 0, Mark::SegmentCleaned),
                (stats.trees_updated > 0, Mark::TreeUpdated),
                (stats.segments_recycled > 0, Mark::SegmentRecycled),
                (stats.moves_overtaken > 0, Mark::MoveOvertaken),
                (stats.cleaning && crashes, Mark::CrashWhileCleaning),
            ];
            marks.into_iter().filter(|(is, _)| *is).for_each(|(_, mark)| self.shared.mark(mark));
        }
    }

    pub(super) fn close_engine(&mut self, running: &Running) -> Result<()> {
        let shards = running.shards.borrow_mut().take().expect("opened");
        let shared = self.shared.clone();
        let closed = self.spawn(running, async move {
            for shard in shards.iter() {
                if let Err(error) = shard.close().await {
                    shared.fail_if_strict(format!("closing: {error}"));
                }
            }
        });
        self.until("closing", || closed.get())
    }
}

/// Bytes of a disk on which what only frees is never refused: twelve segments, and some.
const FREES_MIN: u64 = 160_000;

/// Nothing is left behind of what nobody needs: full segments have a bounded size. Where commits are tiny,
/// most of a batch is padding, and most of a segment may be left over; and what is moved of a large object has its
/// root written anew, be it all of the object but a page.
fn check_space(shards: &Shards, large_blocks: bool) -> Result<()> {
    let limits = Limits::TINY;
    let waste = limits.space_slack_bytes + 2 * u64::from(limits.segment_bytes_max);
    // Of three large blocks in a segment each may be a batch of one small frame.
    let times = if large_blocks { 8 } else { 4 };
    for shard in shards.iter() {
        let stats = shard.stats();
        let (full, live) = (stats.full_segment_bytes, stats.live_bytes);
        ensure!(full <= times * live + waste, "{full} bytes of segments for {live} live ones");
    }
    Ok(())
}

/// The shards, and the objects that can't be read.
async fn open(env: &SimEnv, shared: &Shared, shards: u16) -> Result<(Shards, Vec<ObjectId>)> {
    let limits = Limits::TINY;
    let lock =
        StoreLock::open_or_create(env, &limits, shards).await.context("opening the store")?;
    let superblock = lock.superblock();
    let (mut opened, mut damaged) = (Vec::new(), Vec::new());
    for number in 0..superblock.shards {
        let (shard, recovery) = Shard::open(env, superblock, number, limits)
            .await
            .with_context(|| format!("opening shard {number}"))?;
        if recovery.dropped.is_some() {
            shared.mark(Mark::TailDropped);
        }
        damaged.extend(recovery.damaged);
        opened.push(shard);
    }
    // The lock lives as long as the process.
    let keeper = env.clone();
    env.spawn("lock", async move {
        let _lock = lock;
        let _env = keeper;
        std::future::pending::<()>().await;
    });
    Ok((Rc::new(opened), damaged))
}

fn object(index: u8) -> ObjectId {
    let mut bytes = [0x5a; 32];
    bytes[..8]
        .copy_from_slice(&(u64::from(index)).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
    ObjectId::from_bytes(bytes)
}

pub(super) fn shard_of<'a>(shards: &'a Shards, id: &ObjectId) -> &'a Shard<SimEnv> {
    let count = u16::try_from(shards.len()).expect("few shards");
    &shards[usize::from(id.shard(count))]
}

/// The name of an object that has one.
fn name(number: u8) -> Option<String> {
    number.is_multiple_of(2).then(|| format!("object-{number}"))
}

/// What shards list: id, version, alarm, name; sorted.
fn listed(
    shards: &Shards,
    filter: &Filter,
) -> Vec<(ObjectId, Version, Option<u64>, Option<String>)> {
    let mut all = Vec::new();
    for shard in shards.iter() {
        let mut after = None;
        loop {
            let page = shard.page(filter, after);
            let objects = page.objects.into_iter();
            all.extend(
                objects
                    .map(|it| (it.id, it.version, it.alarm, it.name.map(|name| name.to_string()))),
            );
            match page.next {
                Some(next) => after = Some(next),
                None => break,
            }
        }
    }
    all.sort_unstable();
    all
}

fn fold(world: &World, contents: &Contents) {
    world.fold(&contents.version.0.to_le_bytes());
    contents.map.iter().for_each(|(key, value)| {
        world.fold(key);
        world.fold(value);
    });
}

/// Holds what shards show to the reference.
#[derive(Clone)]
pub(super) struct Checker {
    world: World,
    pub(super) shared: Rc<Shared>,
    pub(super) reference: Rc<RefCell<Reference>>,
}

impl Checker {
    /// Compares every object with the reference, after a recovery.
    async fn check_all(&self, shards: &Shards, all: &[u8]) -> Result<()> {
        let (mut there, mut empty) = (Vec::new(), Vec::new());
        for number in all {
            let id = object(*number);
            let contents = self.load(shards, &id).await.context("after recovery")?;
            fold(&self.world, &contents);
            self.reference.borrow_mut().recovered(&id, &contents).context("after recovery")?;
            self.shared.count(false);
            if contents.map.is_empty() && contents.alarm.is_none() {
                // There, or not any more: the cleaner leaves nothing of it.
                empty.push(id);
            } else {
                there.push((id, contents.version, contents.alarm, name(*number)));
            }
        }
        self.audit(shards).await.context("after recovery")?;
        there.sort_unstable();
        // Where reads fail, a map may be read wrong too.
        let mut listed = listed(shards, &Filter::default());
        listed.retain(|(id, ..)| !empty.contains(id));
        ensure!(listed == there || self.shared.lenient.get(), "listed {listed:?}, not {there:?}");
        let even = Filter { namespace: Some("even".into()), name_prefix: Some("object-1".into()) };
        there.retain(|(.., name)| name.as_ref().is_some_and(|name| name.starts_with("object-1")));
        let mut listed = self::listed(shards, &even);
        listed.retain(|(id, ..)| !empty.contains(id));
        ensure!(listed == there || self.shared.lenient.get(), "listed {listed:?}, not {there:?}");
        Ok(())
    }

    /// Live bytes were counted right.
    async fn audit(&self, shards: &Shards) -> Result<()> {
        for shard in shards.iter() {
            let wrong = shard.audit().await?;
            ensure!(wrong.is_empty(), "live bytes: {wrong:?}");
        }
        Ok(())
    }

    /// A store that was not damaged is whole, to the last block of its directory.
    async fn scrub(&self, shards: &Shards) -> Result<()> {
        for shard in shards.iter() {
            let scrub = shard.scrub(|_| {}).await?;
            ensure!(scrub.is_clean(), "a scrub finds {scrub:?}");
            let counted = shard.stats().objects;
            ensure!(scrub.objects == counted, "{counted} objects are counted, {}", scrub.objects);
        }
        Ok(())
    }

    /// Reads an object; where reads fail now and then, some times if need be.
    async fn load(&self, shards: &Shards, id: &ObjectId) -> dormouse_engine::Result<Contents> {
        let mut tries = if self.shared.lenient.get() { READS_MAX } else { 1 };
        loop {
            tries -= 1;
            match shard_of(shards, id).load(id).await {
                Err(error) if error.kind() == Kind::Corrupt && tries > 0 => {}
                loaded => return loaded,
            }
        }
    }

    /// Compares every object with the reference after damage; those that answer `Corrupt` are
    /// made anew.
    async fn check_damaged(&self, shards: &Shards, all: &[u8], named: &[ObjectId]) -> Result<()> {
        let mut damaged = 0;
        for number in all {
            let id = object(*number);
            let shard = shard_of(shards, &id);
            match shard.load(&id).await {
                Ok(contents) => {
                    ensure!(!named.contains(&id), "{id} is named as damaged and can be read");
                    self.reference.borrow_mut().recovered(&id, &contents)?;
                }
                Err(error) if error.kind() == Kind::Corrupt => {
                    ensure!(error.message().contains(&id.to_string()), "which object? {error}");
                    damaged += 1;
                    let anew = Batch::new().delete_all().delete_alarm().put("anew", "1");
                    shard.commit(&id, &anew, None)?.await.context("making it anew")?;
                    let contents = shard.load(&id).await.context("made anew")?;
                    ensure!(contents.map.len() == 1 && contents.alarm.is_none(), "{contents:?}");
                }
                Err(error) => return Err(error.into()),
            }
            self.shared.count(false);
        }
        let mark = if damaged > 0 { Mark::DamageContained } else { Mark::DamageHarmless };
        self.shared.mark(mark);
        Ok(())
    }
}

pub(super) struct Client {
    pub(super) env: SimEnv,
    pub(super) checker: Checker,
    pub(super) shards: Shards,
    /// Whether what only frees is never refused.
    frees: bool,
    /// A look at an object of a while ago, and what it held.
    pub(super) kept: RefCell<Option<(Snapshot<SimEnv>, Contents)>>,
}

/// A commit that is on its way.
struct Submitted {
    ticket: Ticket,
    only_frees: bool,
}

impl Client {
    async fn step(&self, step: &Step) -> Result<()> {
        match step {
            Step::Load(number) => {
                let id = object(*number);
                self.parts(&id).await?;
                self.load(&id).await.map(drop)
            }
            Step::Compact(number) => {
                let compact = shard_of(&self.shards, &object(*number)).compact().boxed_local();
                // Some do not wait for its end.
                if number % 3 == 0 {
                    let patience = self.env.sleep(Duration::from_micros(300)).boxed_local();
                    drop(select(compact, patience).await);
                } else {
                    compact.await.context("making it compact")?;
                    self.checker.shared.mark(Mark::Compacted);
                }
                self.checker.shared.count(false);
                Ok(())
            }
            Step::CommitStale(number, changes) => self.stale(*number, changes),
            Step::Commit(number, batches) => {
                let id = object(*number);
                let batches = batches.iter().map(|changes| batch(*number, changes));
                let tickets: Result<Vec<_>> =
                    batches.map(|batch| self.submit(&id, batch, None)).collect();
                self.acknowledge(&id, tickets?).await
            }
            Step::CommitResident(number, batches) => self.resident(*number, batches).await,
            other => anyhow::bail!("{other:?} is a step of the whole stack"),
        }
    }

    async fn load(&self, id: &ObjectId) -> Result<Contents> {
        let checker = &self.checker;
        let contents = checker.load(&self.shards, id).await.context("reading")?;
        fold(&checker.world, &contents);
        checker.shared.count(false);
        checker.reference.borrow_mut().observed(id, &contents).context("reading")?;
        Ok(contents)
    }

    /// A commit for a version that the object is not at changes nothing.
    fn stale(&self, number: u8, changes: &[Change]) -> Result<()> {
        let (id, batch) = (object(number), batch(number, changes).only_if(Version(u64::MAX)));
        let error = shard_of(&self.shards, &id).commit(&id, &batch, None).err();
        self.checker.shared.count(false);
        self.checker.shared.mark(Mark::Conflict);
        let kind = error.map(|error| error.kind());
        ensure!(kind == Some(Kind::Conflict), "a conflict was answered by {kind:?}");
        Ok(())
    }

    async fn resident(&self, number: u8, batches: &[Vec<Change>]) -> Result<()> {
        let id = &object(number);
        let mut contents = self.load(id).await?;
        for changes in batches {
            let batch = batch(number, changes).only_if(contents.version);
            let before = contents.version;
            contents.apply(&batch, Version(before.0 + 1));
            let ticket = match self.submit(id, batch, Some(&contents)) {
                Ok(ticket) => ticket,
                // Another client was first.
                Err(error) if kind(&error) == Some(Kind::Conflict) => return Ok(()),
                Err(error) => return Err(error),
            };
            let exists = !contents.map.is_empty() || contents.alarm.is_some();
            contents.version = if exists { ticket.ticket.version() } else { Version::NONE };
            self.acknowledge(id, vec![ticket]).await?;
        }
        Ok(())
    }

    fn submit(
        &self,
        id: &ObjectId,
        batch: Batch,
        resident: Option<&Contents>,
    ) -> Result<Submitted> {
        let resident = resident.map(|contents| contents as &dyn dormouse_engine::Resident);
        let ticket =
            shard_of(&self.shards, id).commit(id, &batch, resident).context("committing")?;
        let only_frees = batch.only_frees();
        self.checker.reference.borrow_mut().submitted(*id, batch, ticket.version());
        Ok(Submitted { ticket, only_frees })
    }

    async fn acknowledge(&self, id: &ObjectId, commits: Vec<Submitted>) -> Result<()> {
        let mut failed = Ok(());
        for Submitted { ticket, only_frees } in commits {
            let version = ticket.version();
            let shard = shard_of(&self.shards, id);
            if let Err(error) = ticket.await {
                let alone = error.code() != Some("behind-refused");
                if error.kind() == Kind::NoSpace && only_frees && self.frees && alone {
                    let stats = shard.stats();
                    let what = format!("what only frees is refused: {error}; {stats:?}");
                    self.checker.shared.fail(what);
                }
                self.refused(id, version, &error);
                failed = Err(error);
                continue;
            }
            ensure!(failed.is_ok(), "a commit after one that failed is acknowledged");
            if only_frees && shard.stats().full {
                self.checker.shared.mark(Mark::FreedOnAFullDisk);
            }
            self.checker.world.fold(&version.0.to_le_bytes());
            self.checker.shared.count(true);
            self.checker.reference.borrow_mut().acknowledged(id, version);
        }
        failed.context("waiting for a commit")
    }

    /// A commit failed: after `Unknown` it may be there, otherwise it must never be.
    fn refused(&self, id: &ObjectId, version: Version, error: &dormouse_engine::Error) {
        let checker = &self.checker;
        match error.kind() {
            Kind::Unknown => checker.shared.mark(Mark::ShardPoisoned),
            Kind::NoSpace | Kind::Retry => {
                checker.shared.mark(Mark::RefusedForSpace);
                checker.reference.borrow_mut().refused(id, version);
            }
            other => checker.shared.fail(format!("a commit failed by {other:?}: {error}")),
        }
    }
}

fn kind(error: &anyhow::Error) -> Option<Kind> {
    error.downcast_ref::<dormouse_engine::Error>().map(dormouse_engine::Error::kind)
}

fn batch(object: u8, changes: &[Change]) -> Batch {
    let empty = Batch::new();
    let empty = match name(object) {
        Some(name) => empty.named("even", &name),
        None => empty,
    };
    changes.iter().fold(empty, |batch, change| match change {
        Change::Put(number, len, fill) => batch.put(key(*number), vec![*fill; usize::from(*len)]),
        Change::Delete(number) => batch.delete(key(*number)),
        Change::DeleteAll(alarm_too) => {
            let batch = batch.delete_all();
            if *alarm_too { batch.delete_alarm() } else { batch }
        }
        Change::Alarm(at) => batch.set_alarm(u64::from(*at) + 1),
        Change::NoAlarm => batch.delete_alarm(),
    })
}
