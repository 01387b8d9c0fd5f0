//! A life of the whole stack: clients call objects through stubs, on several cores, and the
//! process is killed, cut off or closed again and again.
//!
//! What an object does in its n-th turn follows from the seed, its name and n alone, and each turn
//! writes n with the rest. So whatever is found after a crash must be, as a whole, the state after
//! some turn: none that was answered is lost, none is half there, none was never begun. SQLite says
//! what that state is.

mod object;
mod plan;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use dormouse_engine::{Host, Limits, StoreLock};
use dormouse_scheduler::{Kind, Topology};

use self::object::{Fate, Look, Planned, Turn};
use self::plan::{LIFE, Reference, Shared, shared};
use crate::disk::DiskFaults;
use crate::life::Report;
use crate::random::Random;
use crate::world::{Process, SimEnv, Step, World};

/// Checked operations of one life at least.
const OPERATIONS_MIN: u64 = 300;
/// Steps after which something that should end is stuck.
const STEPS_MAX: u64 = 400_000;

/// One process and the stack in it.
struct Session {
    process: Process,
    env: SimEnv,
    topology: Topology,
    opened: Rc<Cell<bool>>,
    ended: Rc<Cell<usize>>,
    /// It was told to close: calls may be refused.
    closing: Rc<Cell<bool>>,
}

struct Life {
    world: World,
    random: Random,
    shared: Rc<Shared>,
    report: Report,
    keep_log: bool,
    cores: usize,
    shards: u16,
    objects: u64,
    clients: u64,
}

/// Lives one life of the whole stack.
pub(crate) fn live(seed: u64, keep_log: bool) -> Report {
    let mut random = Random::new(seed ^ 0x57ac_cced);
    let faults = DiskFaults {
        short_io: if random.one_in(3) { 10 } else { 0 },
        buffered: random.one_in(6),
        ..DiskFaults::default()
    };
    let world = World::new(seed, faults);
    let reference = match Reference::new() {
        Ok(reference) => RefCell::new(reference),
        Err(error) => return Report { failure: Some(format!("{error:#}")), ..Report::default() },
    };
    let shared = Rc::new(Shared {
        seed,
        reference,
        turns: RefCell::default(),
        operations: Cell::new(0),
        writes: Cell::new(0),
        failure: RefCell::new(None),
    });
    LIFE.set(Some(shared.clone()));
    let cores = random.index(3) + 1;
    let shards = u16::try_from(random.between(1, 4)).expect("small");
    let (objects, clients) = (random.between(1, 6), random.between(1, 6));
    let report = Report::default();
    let mut life =
        Life { world, random, shared, report, keep_log, cores, shards, objects, clients };
    if let Err(error) = life.run() {
        life.shared.fail(|| format!("{error:#}"));
    }
    let Life { world, shared, mut report, .. } = life;
    report.operations = shared.operations.get();
    report.writes = shared.writes.get();
    report.failure = shared.failure.borrow_mut().take();
    report.trace_hash = world.trace_hash();
    // Tasks and world refer to each other: end them here.
    world.power_cut();
    LIFE.take();
    report
}

impl Life {
    fn run(&mut self) -> Result<()> {
        while self.shared.operations.get() < OPERATIONS_MIN {
            self.session()?;
        }
        let session = self.start();
        self.until("opening", |_| session.opened.get())?;
        // Time for every alarm that is set; each may set another one, but not for ever.
        let slept = self.spawn(&session, session.env.sleep(Duration::from_secs(60)));
        self.until("a quiet minute", |_| slept.get())?;
        self.look_at_all(&session, Duration::from_secs(1))?;
        session.process.kill();
        Ok(())
    }

    fn note(&mut self, line: &str) {
        if self.keep_log {
            let at = self.world.now().as_micros();
            self.report.log.push(format!("{at:>12} us  {line}"));
        }
    }

    fn start(&mut self) -> Session {
        let process = self.world.process();
        let env = process.core();
        let ids = AtomicU64::new(1);
        let topology = Topology::builder()
            .namespace::<Planned>("planned")
            .cores(self.cores)
            .build(move || ids.fetch_add(1, Ordering::Relaxed));
        let (opened, ended) = (Rc::new(Cell::new(false)), Rc::new(Cell::new(0)));
        let envs: Vec<SimEnv> = (0..self.cores).map(|_| process.core()).collect();
        let open =
            open(env.clone(), envs, topology.clone(), self.shards, opened.clone(), ended.clone());
        let shared = self.shared.clone();
        env.spawn("open", async move {
            if let Err(error) = open.await {
                shared.fail(|| format!("opening: {error}"));
            }
        });
        Session { process, env, topology, opened, ended, closing: Rc::default() }
    }

    fn session(&mut self) -> Result<()> {
        let session = self.start();
        let closes = self.random.one_in(4);
        if self.random.one_in(3) && !closes {
            for _ in 0..self.random.between(1, 100) {
                self.step()?;
            }
            self.until_in_flight()?;
            self.report.crashes_in_recovery += u64::from(!session.opened.get());
            return self.crash(&session);
        }
        self.until("opening", |_| session.opened.get())?;
        self.note("opened");
        self.look_at_all(&session, Duration::MAX)?;
        for _ in 0..self.clients {
            self.start_client(&session);
        }
        for _ in 0..self.random.between(10, 3000) {
            self.step()?;
        }
        if !closes {
            if !self.random.one_in(10) {
                self.until_in_flight()?;
            }
            return self.crash(&session);
        }
        session.closing.set(true);
        session.topology.shutdown();
        let cores = self.cores;
        self.until("closing", |_| session.ended.get() == cores)?;
        self.note("closed");
        session.process.kill();
        Ok(())
    }

    fn spawn(&self, session: &Session, task: impl Future<Output = ()> + 'static) -> Rc<Cell<bool>> {
        let done = Rc::new(Cell::new(false));
        let set = done.clone();
        session.env.spawn("driver", async move {
            task.await;
            set.set(true);
        });
        done
    }

    fn step(&mut self) -> Result<Step> {
        let step = self.world.step();
        if let Some(panic) = self.world.take_panics().pop() {
            return Err(anyhow!("a task panicked: {panic}"));
        }
        match self.shared.failure.borrow().as_ref() {
            Some(failure) => Err(anyhow!("{failure}")),
            None => Ok(step),
        }
    }

    fn until(&mut self, what: &str, mut done: impl FnMut(&Self) -> bool) -> Result<()> {
        for _ in 0..STEPS_MAX {
            if done(self) {
                return Ok(());
            }
            ensure!(self.step()? != Step::Idle || done(self), "{what}: nothing will ever happen");
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

    fn crash(&mut self, session: &Session) -> Result<()> {
        self.report.crashes += 1;
        self.report.crashes_in_flight += u64::from(self.world.writes_in_flight() > 0);
        let (kills, cuts) = [(true, false), (false, true), (true, true)][self.random.index(3)];
        if kills {
            self.note("kill");
            session.process.kill();
        }
        if kills && cuts {
            self.report.crashes += 1;
            for _ in 0..self.random.below(20) {
                self.step()?;
            }
        }
        if cuts {
            self.note("power cut");
            self.world.power_cut();
        }
        Ok(())
    }

    /// Every object is as some turn left it, none that was answered lost; no alarm is late.
    fn look_at_all(&mut self, session: &Session, late: Duration) -> Result<()> {
        let objects = session.topology.namespace::<Planned>();
        for number in 0..self.objects {
            let stub = objects.get_by_name(&number.to_string());
            let (shared, object) = (self.shared.clone(), stub.id().to_string());
            let looked = self.spawn(session, async move {
                let answered =
                    |shared: &Shared| shared.turns.borrow().get(&object).map_or(0, |t| t.0);
                let before = answered(&shared);
                match stub.call(Look).await {
                    Ok((turn, _)) if turn < before => {
                        shared
                            .fail(|| format!("{object}: turn {before} was answered, {turn} found"));
                    }
                    Ok((_, Some(ms))) if Duration::from_millis(ms) > late => {
                        shared.fail(|| format!("{object}: its alarm is {ms} ms late"));
                    }
                    Ok((turn, _)) => shared.answered(&object, turn),
                    Err(error) => shared.fail(|| format!("{object}: looking: {error}")),
                }
                shared.count(1, 0);
            });
            self.until("looking", |_| looked.get()).context("an object does not answer")?;
        }
        Ok(())
    }

    fn start_client(&mut self, session: &Session) {
        let mut random = self.random.fork();
        let (shared, objects) = (self.shared.clone(), self.objects);
        let (topology, env) = (session.topology.clone(), session.env.clone());
        let closing = session.closing.clone();
        session.env.spawn("client", async move {
            let namespace = topology.namespace::<Planned>();
            loop {
                let mut any = || namespace.get_by_name(&random.below(objects).to_string());
                let (stub, other) = (any(), any());
                let fate = match random.below(20) {
                    0 => Fate::Error,
                    1 => Fate::Abort,
                    2 => Fate::Panic,
                    3..6 => Fate::Call(other),
                    6..9 => Fate::Slow,
                    _ => Fate::Fine,
                };
                if random.one_in(20) {
                    topology.evict(stub.id()).await;
                }
                if random.one_in(4) {
                    env.sleep(Duration::from_micros(random.below(2000))).await;
                }
                match stub.call(Turn(fate)).await {
                    Ok(turn) => shared.answered(&stub.id().to_string(), turn),
                    Err(_) if closing.get() => return,
                    Err(error) if error.reset() || error.kind() == Kind::User => {}
                    Err(error) => shared.fail(|| format!("a call failed: {error:?}")),
                }
                shared.count(1, 1);
            }
        });
    }
}

async fn open(
    env: SimEnv,
    envs: Vec<SimEnv>,
    topology: Topology,
    shards: u16,
    opened: Rc<Cell<bool>>,
    ended: Rc<Cell<usize>>,
) -> dormouse_scheduler::Result<()> {
    let limits = Limits::TINY;
    let lock = StoreLock::open_or_create(&env, &limits, shards).await?;
    let superblock = lock.superblock();
    for (number, env) in envs.iter().enumerate() {
        let core = topology.open(env, number, superblock, limits).await?;
        let ended = ended.clone();
        env.spawn("core", async move {
            if let Err(error) = core.serve().await {
                shared().fail(|| format!("closing: {error}"));
            }
            ended.set(ended.get() + 1);
        });
    }
    opened.set(true);
    // The lock lives as long as the process.
    let _lock = lock;
    std::future::pending().await
}
