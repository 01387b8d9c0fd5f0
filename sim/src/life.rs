//! One seed: the life of one store through crashes, checked against the [`Reference`].
//!
//! A life is a row of *sessions*. In each, a process opens the store, every object is compared
//! with the reference, and clients commit and read until the process is killed, the power is cut
//! or the store is closed. Crashes prefer moments with a write in flight; some strike in recovery.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use anyhow::{Context, Result, anyhow, ensure};
use dormouse_engine::{Batch, Contents, Kind, Limits, ObjectId, Shard, StoreLock, Ticket, Version};

use crate::cached;
use crate::disk::DiskFaults;
use crate::random::Random;
use crate::reference::Reference;
use crate::world::{Process, SimEnv, Step, World};

/// Operations that a life has at least.
const OPERATIONS_MIN: u64 = 300;
/// Steps after which a session that should get on is stuck.
const STEPS_MAX: u64 = 200_000;

/// What one life did.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Checked commits, reads and refusals.
    pub operations: u64,
    /// Those of them that wrote.
    pub writes: u64,
    /// Crashes of either kind.
    pub crashes: u64,
    /// Crashes with a write in flight.
    pub crashes_in_flight: u64,
    /// Crashes before the store was open again.
    pub crashes_in_recovery: u64,
    /// The hash of everything that happened.
    pub trace_hash: u128,
    /// What was wrong, if anything was.
    pub failure: Option<String>,
    /// What happened, a line a step, where asked for.
    pub log: Vec<String>,
}

/// What a seed decides once for its whole life.
struct Swarm {
    limits: Limits,
    shards: u16,
    objects: u64,
    clients: u64,
    key_count: u64,
    value_bytes_max: u64,
    large_commits: bool,
    delete_all: bool,
    alarms: bool,
    residents: bool,
    cached: bool,
    pipelined: bool,
    faults: DiskFaults,
}

impl Swarm {
    fn draw(random: &mut Random) -> Self {
        let mut flag = |odds| random.one_in(odds);
        let (large_commits, delete_all, alarms) = (flag(3), flag(2), flag(2));
        let (cached, residents, pipelined) = (flag(2), flag(2), flag(2));
        let (short_io, buffered) = (flag(3), flag(6));
        Self {
            limits: Limits::TINY,
            shards: u16::try_from(random.between(1, 2)).expect("small"),
            objects: random.between(1, 10),
            clients: random.between(1, 6),
            key_count: random.between(1, 24),
            value_bytes_max: [8, 100, 512][random.index(3)],
            large_commits,
            delete_all,
            alarms,
            residents,
            cached,
            pipelined,
            faults: DiskFaults {
                short_io: if short_io { 10 } else { 0 },
                buffered,
                ..DiskFaults::default()
            },
        }
    }
}

/// How a session ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Kill,
    PowerCut,
    /// A kill, and the power cut soon after.
    Both,
    Close,
}

struct Life {
    world: World,
    random: Random,
    swarm: Swarm,
    shared: Rc<Shared>,
    report: Report,
    keep_log: bool,
}

/// What clients and driver share; it outlives processes.
pub(crate) struct Shared {
    reference: RefCell<Reference>,
    operations: Cell<u64>,
    writes: Cell<u64>,
    failure: RefCell<Option<String>>,
}

impl Shared {
    fn fail(&self, error: &anyhow::Error) {
        self.failure.borrow_mut().get_or_insert_with(|| format!("{error:#}"));
    }

    pub(crate) fn submitted(&self, id: ObjectId, batch: Batch, version: Version) {
        self.reference.borrow_mut().submitted(id, batch, version);
    }

    pub(crate) fn acknowledged(&self, id: &ObjectId, version: Version) {
        self.reference.borrow_mut().acknowledged(id, version);
    }

    pub(crate) fn observed(&self, id: &ObjectId, contents: &Contents) -> Result<()> {
        self.reference.borrow_mut().observed(id, contents)
    }

    pub(crate) fn count(&self, wrote: bool) {
        self.operations.set(self.operations.get() + 1);
        self.writes.set(self.writes.get() + u64::from(wrote));
    }
}

type Shards = Rc<Vec<Shard<SimEnv>>>;

/// Lives the life of one seed.
pub fn live(seed: u64, keep_log: bool) -> Report {
    // One life in four goes through the whole stack, the others straight to cache and engine.
    if seed % 4 == 3 {
        return crate::stacked::live(seed, keep_log);
    }
    let mut random = Random::new(seed);
    let swarm = Swarm::draw(&mut random);
    let world = World::new(random.bits(), swarm.faults);
    let shared = match Reference::new() {
        Ok(reference) => Rc::new(Shared {
            reference: RefCell::new(reference),
            operations: Cell::new(0),
            writes: Cell::new(0),
            failure: RefCell::new(None),
        }),
        Err(error) => return Report { failure: Some(format!("{error:#}")), ..Report::default() },
    };
    let mut life = Life { world, random, swarm, shared, report: Report::default(), keep_log };
    if let Err(error) = life.run() {
        life.shared.fail(&error);
    }
    let Life { world, shared, mut report, .. } = life;
    report.operations = shared.operations.get();
    report.writes = shared.writes.get();
    report.failure = shared.failure.borrow_mut().take();
    report.trace_hash = world.trace_hash();
    // Tasks and world refer to each other: end them here.
    world.power_cut();
    report
}

impl Life {
    fn run(&mut self) -> Result<()> {
        while self.shared.operations.get() < OPERATIONS_MIN && !self.failed() {
            self.session()?;
        }
        Ok(())
    }

    fn failed(&self) -> bool {
        self.shared.failure.borrow().is_some()
    }

    fn note(&mut self, line: impl FnOnce() -> String) {
        if self.keep_log {
            let at = self.world.now().as_micros();
            self.report.log.push(format!("{at:>12} us  {}", line()));
        }
    }

    fn session(&mut self) -> Result<()> {
        let end = [End::Kill, End::PowerCut, End::Both, End::Close][self.random.index(4)];
        let process = self.world.process();
        let env = process.core();
        if self.random.one_in(3) && end != End::Close {
            let opening = self.start_opening(&env);
            for _ in 0..self.random.between(1, 100) {
                self.step()?;
            }
            if self.random.one_in(2) {
                self.until_in_flight()?;
            }
            if opening.borrow().is_none() {
                self.report.crashes_in_recovery += 1;
            }
            drop(opening);
            return self.crash(&process, end);
        }
        let opening = self.start_opening(&env);
        self.until("opening", || opening.borrow().is_some())?;
        let shards = opening.borrow_mut().take().expect("waited for")?;
        self.note(|| "opened".to_owned());
        self.check_all(&env, &shards)?;
        for client in 0..self.swarm.clients {
            self.start_client(&env, &shards, client);
        }
        for _ in 0..self.random.between(10, 3000) {
            self.step()?;
        }
        if end != End::Close {
            if !self.random.one_in(10) {
                self.until_in_flight()?;
            }
            return self.crash(&process, end);
        }
        let closed = Rc::new(Cell::new(None));
        let (slot, task_shards) = (closed.clone(), shards.clone());
        dormouse_engine::Host::spawn(&env, "close", async move {
            for shard in task_shards.iter() {
                if let Err(error) = shard.close().await {
                    slot.set(Some(Err(error)));
                    return;
                }
            }
            slot.set(Some(Ok(())));
        });
        let mut result = None;
        self.until("closing", || {
            result = result.take().or_else(|| closed.take());
            result.is_some()
        })?;
        result.expect("waited for").context("closing")?;
        self.note(|| "closed".to_owned());
        process.kill();
        Ok(())
    }

    fn step(&mut self) -> Result<Step> {
        let step = self.world.step();
        if let Some(panic) = self.world.take_panics().pop() {
            return Err(anyhow!("a task panicked: {panic}"));
        }
        Ok(step)
    }

    fn until(&mut self, what: &str, mut done: impl FnMut() -> bool) -> Result<()> {
        for _ in 0..STEPS_MAX {
            if done() {
                return Ok(());
            }
            ensure!(!self.failed(), "a client failed");
            ensure!(self.step()? != Step::Idle || done(), "{what}: nothing will ever happen");
        }
        Err(anyhow!("{what}: not done after {STEPS_MAX} steps"))
    }

    fn until_in_flight(&mut self) -> Result<()> {
        for _ in 0..2000 {
            if self.world.writes_in_flight() > 0 || self.step()? == Step::Idle {
                break;
            }
        }
        Ok(())
    }

    fn crash(&mut self, process: &Process, end: End) -> Result<()> {
        self.report.crashes += 1;
        self.report.crashes_in_flight += u64::from(self.world.writes_in_flight() > 0);
        self.note(|| format!("{end:?}"));
        if end == End::PowerCut {
            self.world.power_cut();
            return Ok(());
        }
        process.kill();
        if end == End::Both {
            for _ in 0..self.random.below(20) {
                self.step()?;
            }
            self.report.crashes += 1;
            self.world.power_cut();
        }
        Ok(())
    }

    fn start_opening(&mut self, env: &SimEnv) -> Rc<RefCell<Option<Result<Shards>>>> {
        let slot: Rc<RefCell<Option<Result<Shards>>>> = Rc::default();
        let (result, task_env) = (slot.clone(), env.clone());
        let (limits, shards) = (self.swarm.limits, self.swarm.shards);
        dormouse_engine::Host::spawn(env, "open", async move {
            let opened = open(&task_env, limits, shards).await;
            *result.borrow_mut() = Some(opened);
        });
        slot
    }

    fn ids(&self) -> impl Iterator<Item = ObjectId> + use<> {
        (0..self.swarm.objects).map(object)
    }

    /// Compares every object with the reference, after a recovery.
    fn check_all(&mut self, env: &SimEnv, shards: &Shards) -> Result<()> {
        let done = Rc::new(Cell::new(false));
        let ids: Vec<_> = self.ids().collect();
        let (shards, shared, finished) = (shards.clone(), self.shared.clone(), done.clone());
        let world = self.world.clone();
        dormouse_engine::Host::spawn(env, "check", async move {
            for id in ids {
                let checked = match shard_of(&shards, &id).load(&id).await {
                    Ok(contents) => {
                        fold(&world, &contents);
                        shared.reference.borrow_mut().recovered(&id, &contents)
                    }
                    Err(error) => Err(anyhow!(error).context("reading after recovery")),
                };
                shared.count(false);
                if let Err(error) = checked {
                    shared.fail(&error.context("after recovery"));
                }
            }
            finished.set(true);
        });
        self.until("checking", || done.get())
    }

    fn start_client(&mut self, env: &SimEnv, shards: &Shards, client: u64) {
        let mine: Vec<_> =
            (0..self.swarm.objects).filter(|index| index % self.swarm.clients == client).collect();
        if mine.is_empty() {
            return;
        }
        let client = Client {
            world: self.world.clone(),
            shards: shards.clone(),
            shared: self.shared.clone(),
            random: self.random.fork(),
            objects: mine.into_iter().map(object).collect(),
            key_count: self.swarm.key_count,
            value_bytes_max: self.swarm.value_bytes_max,
            large_commits: self.swarm.large_commits,
            delete_all: self.swarm.delete_all,
            alarms: self.swarm.alarms,
            residents: self.swarm.residents,
            cached: self.swarm.cached,
            env: env.clone(),
            pipelined: self.swarm.pipelined,
        };
        dormouse_engine::Host::spawn(env, "client", client.run());
    }
}

async fn open(env: &SimEnv, limits: Limits, shards: u16) -> Result<Shards> {
    let lock =
        StoreLock::open_or_create(env, &limits, shards).await.context("opening the store")?;
    let superblock = lock.superblock();
    let mut opened = Vec::new();
    for number in 0..superblock.shards {
        let (shard, recovery) = Shard::open(env, superblock, number, limits)
            .await
            .with_context(|| format!("opening shard {number}"))?;
        ensure!(recovery.damaged.is_empty(), "damage without a fault: {recovery:?}");
        opened.push(shard);
    }
    // The lock lives as long as the process.
    let keeper = env.clone();
    dormouse_engine::Host::spawn(env, "lock", async move {
        let _lock = lock;
        let _env = keeper;
        std::future::pending::<()>().await;
    });
    Ok(Rc::new(opened))
}

/// Whether a client met the store's orderly end.
fn is_closed(error: &anyhow::Error) -> bool {
    let kind = error.downcast_ref::<dormouse_engine::Error>().map(dormouse_engine::Error::kind);
    kind == Some(Kind::Closed)
}

fn object(index: u64) -> ObjectId {
    let mut bytes = [0x5a; 32];
    bytes[..8].copy_from_slice(&index.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
    ObjectId::from_bytes(bytes)
}

fn shard_of<'a>(shards: &'a Shards, id: &ObjectId) -> &'a Shard<SimEnv> {
    let count = u16::try_from(shards.len()).expect("few shards");
    &shards[usize::from(id.shard(count))]
}

fn fold(world: &World, contents: &Contents) {
    world.fold(&contents.version.0.to_le_bytes());
    contents.map.iter().for_each(|(key, value)| {
        world.fold(key);
        world.fold(value);
    });
}

/// A client that owns some objects, as an actor cache would.
struct Client {
    world: World,
    env: SimEnv,
    shards: Shards,
    shared: Rc<Shared>,
    random: Random,
    objects: Vec<ObjectId>,
    key_count: u64,
    value_bytes_max: u64,
    large_commits: bool,
    delete_all: bool,
    alarms: bool,
    residents: bool,
    cached: bool,
    pipelined: bool,
}

impl Client {
    async fn run(mut self) {
        loop {
            match self.turn().await {
                Ok(()) => {}
                Err(error) if is_closed(&error) => return,
                Err(error) => return self.shared.fail(&error),
            }
        }
    }

    async fn turn(&mut self) -> Result<()> {
        let id = self.objects[self.random.index(self.objects.len())];
        match self.random.below(10) {
            0..3 => self.read(&id).await.map(|_| ()),
            3 => self.refused(&id).await,
            _ if self.cached => {
                let shard = shard_of(&self.shards, &id).clone();
                let env = self.env.clone();
                cached::turns(&env, &shard, id, &self.shared, &mut self.random, self.key_count)
                    .await
            }
            _ if self.residents => self.write_resident(&id).await,
            _ => {
                let count = if self.pipelined { self.random.between(1, 5) } else { 1 };
                let mut tickets = Vec::new();
                for _ in 0..count {
                    let batch = self.batch();
                    tickets.push(self.submit(&id, batch, None)?);
                }
                self.acknowledge(&id, tickets).await
            }
        }
    }

    async fn read(&mut self, id: &ObjectId) -> Result<Contents> {
        let contents = shard_of(&self.shards, id).load(id).await.context("reading")?;
        fold(&self.world, &contents);
        self.shared.count(false);
        self.shared.reference.borrow_mut().observed(id, &contents).context("reading")?;
        Ok(contents)
    }

    /// A commit for a version that the object is not at changes nothing.
    async fn refused(&mut self, id: &ObjectId) -> Result<()> {
        let batch = self.batch().only_if(Version(u64::MAX));
        let error = shard_of(&self.shards, id).commit(id, &batch, None).err();
        self.shared.count(false);
        let kind = error.map(|error| error.kind()).filter(|kind| *kind != Kind::Closed);
        if shard_of(&self.shards, id).is_closed() {
            return Ok(());
        }
        ensure!(kind == Some(Kind::Conflict), "a conflict was answered by {kind:?}");
        Ok(())
    }

    async fn write_resident(&mut self, id: &ObjectId) -> Result<()> {
        let mut contents = self.read(id).await?;
        for _ in 0..self.random.between(1, 6) {
            let batch = self.batch().only_if(contents.version);
            let before = contents.version;
            contents.apply(&batch, Version(before.0 + 1));
            let ticket = self.submit(id, batch, Some(&contents))?;
            let exists = !contents.map.is_empty() || contents.alarm.is_some();
            contents.version = if exists { ticket.version() } else { Version::NONE };
            self.acknowledge(id, vec![ticket]).await?;
        }
        Ok(())
    }

    fn submit(
        &mut self,
        id: &ObjectId,
        batch: Batch,
        resident: Option<&Contents>,
    ) -> Result<Ticket> {
        let resident = resident.map(|contents| contents as &dyn dormouse_engine::Resident);
        let ticket =
            shard_of(&self.shards, id).commit(id, &batch, resident).context("committing")?;
        self.shared.reference.borrow_mut().submitted(*id, batch, ticket.version());
        Ok(ticket)
    }

    async fn acknowledge(&mut self, id: &ObjectId, tickets: Vec<Ticket>) -> Result<()> {
        for ticket in tickets {
            let version = ticket.await.context("waiting for a commit")?;
            self.world.fold(&version.0.to_le_bytes());
            self.shared.count(true);
            self.shared.reference.borrow_mut().acknowledged(id, version);
        }
        Ok(())
    }

    fn batch(&mut self) -> Batch {
        let mut batch = Batch::new();
        if self.delete_all && self.random.one_in(12) {
            batch = batch.delete_all();
        }
        let large = self.large_commits && self.random.one_in(8);
        let ops = if large { self.random.between(16, 60) } else { self.random.below(5) };
        for _ in 0..ops {
            let key = format!("key-{}", self.random.below(self.key_count));
            batch = match self.random.one_in(4) {
                true => batch.delete(key),
                false => {
                    let bytes = self.random.between(0, self.value_bytes_max);
                    let fill = u8::try_from(self.random.below(256)).expect("below 256");
                    batch.put(key, vec![fill; usize::try_from(bytes).expect("small")])
                }
            };
        }
        match self.random.below(6) {
            0 if self.alarms => batch.set_alarm(self.random.between(1, 1 << 40)),
            1 if self.alarms => batch.delete_alarm(),
            _ => batch,
        }
    }
}
