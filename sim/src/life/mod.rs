//! One life: a [`Plan`] lived on a simulated machine, and checked.
//!
//! A life is a row of *sessions*, each a process that opens the store, serves the clients of the
//! plan and ends as the plan says, in order or by a crash. In the last one the disk is well,
//! everything that was set off gets its time, and nothing may be left over.

mod body;
mod codec;
mod deletion;
mod engine;
mod ghost;
mod line;
mod lines;
mod object;
mod parts;
mod peer;
mod shared;
mod stack;
mod talk;
mod visit;
mod work;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use dormouse_engine::Host;

pub use self::shared::{Mark, Marks};

use self::shared::{LIFE, Shared};
use crate::disk::DiskFaults;
use crate::plan::{At, End, Level, Plan, Session};
use crate::world::{Process, SimEnv, World};

/// Steps of the machine after which what should end is stuck.
const STEPS_MAX: u64 = 1_000_000;
/// Time for every alarm that is set, and for each of its retries, to come to an end.
const QUIET: Duration = Duration::from_secs(3 * 3600);

/// What one life did.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Checked storage calls, events, commits and requests.
    pub operations: u64,
    /// Those of them that wrote.
    pub writes: u64,
    /// Crashes of either kind.
    pub crashes: u64,
    /// Crashes with a write in flight.
    pub crashes_in_flight: u64,
    /// Crashes before the store was open again.
    pub crashes_in_recovery: u64,
    /// How often it was in each state that a long run should see.
    pub marks: Marks,
    /// The hash of everything that happened.
    pub trace_hash: u128,
    /// What was wrong, if anything was.
    pub failure: Option<String>,
    /// What happened, a line a step, where asked for.
    pub log: Vec<String>,
}

/// Lives the life of one seed.
pub fn live(seed: u64, keep_log: bool) -> Report {
    play(&Plan::of(seed), keep_log)
}

/// Lives a plan.
pub fn play(plan: &Plan, keep_log: bool) -> Report {
    let world = World::new(plan.seed, plan.faults);
    let shared = Shared::new(world.clone(), plan, keep_log);
    LIFE.set(Some(shared.clone()));
    let mut life = Life { world, plan, shared, report: Report::default(), engine: None };
    if let Err(error) = life.run() {
        life.shared.fail(format!("{error:#}"));
    }
    let Life { world, shared, mut report, .. } = life;
    report.operations = shared.operations.get();
    report.writes = shared.writes.get();
    report.marks = *shared.marks.borrow();
    report.trace_hash = world.trace_hash();
    // Tasks and world refer to each other: end them here.
    world.power_cut();
    report.failure = shared.failure.borrow_mut().take();
    report.log = shared.take_log();
    LIFE.take();
    report
}

struct Life<'a> {
    world: World,
    plan: &'a Plan,
    shared: Rc<Shared>,
    report: Report,
    engine: Option<Rc<RefCell<crate::reference::Reference>>>,
}

/// A process on its way: what the driver waits for.
#[derive(Clone)]
struct Running {
    process: Process,
    env: SimEnv,
    opened: Rc<Cell<bool>>,
    /// It could not be opened.
    failed: Rc<Cell<bool>>,
    /// Clients that are not done.
    clients: Rc<Cell<usize>>,
    stack: Option<stack::Stack>,
    shards: Rc<RefCell<Option<engine::Shards>>>,
}

impl Life<'_> {
    fn run(&mut self) -> Result<()> {
        if self.plan.level == Level::Engine {
            self.engine = Some(Rc::new(RefCell::new(crate::reference::Reference::new()?)));
        }
        self.world.set_stalls(self.plan.stalls);
        self.world.set_late_wakes(self.plan.late_wakes);
        if self.plan.damage {
            self.world.keep_history();
        }
        for (number, session) in self.plan.sessions.iter().enumerate() {
            let last = number + 1 == self.plan.sessions.len();
            if last {
                self.world.set_faults(self.well());
                self.shared.lenient.set(false);
            }
            self.session(session, last).with_context(|| format!("session {number}"))?;
        }
        match self.plan.damage {
            true => self.damage().context("after damage"),
            false => Ok(()),
        }
    }

    /// A disk on which nothing fails.
    fn well(&self) -> DiskFaults {
        let DiskFaults { buffered, large_blocks, .. } = self.plan.faults;
        DiskFaults { buffered, large_blocks, ..DiskFaults::default() }
    }

    fn session(&mut self, session: &Session, last: bool) -> Result<()> {
        let running = self.start();
        self.shared.closing.set(false);
        let started = Rc::new(Cell::new(false));
        let (mut steps, mut in_flight) = (0, 0);
        loop {
            if running.opened.get() && !started.replace(true) {
                self.shared.note(|| "opened".to_owned());
                self.start_clients(&running, session);
            }
            let due = match session.at {
                At::Done => false,
                At::Steps(at) => steps >= at,
                At::InFlight(at) => in_flight >= at,
            };
            if due && session.end != End::Close {
                return self.crash(session.end, &running);
            }
            if started.get() && running.clients.get() == 0 {
                break;
            }
            if running.failed.get() {
                self.shared.mark(Mark::OpeningFailed);
                self.end(&running);
                return Ok(());
            }
            ensure!(steps < STEPS_MAX, "not done after {steps} steps");
            let opened = started.get();
            let more = self.step()?;
            let changed = running.opened.get() != opened
                || running.failed.get()
                || started.get() && running.clients.get() == 0;
            ensure!(
                more || changed,
                "nothing will ever happen; open: {opened}, and {} clients wait",
                running.clients.get()
            );
            steps += 1;
            in_flight += u64::from(self.world.writes_in_flight() > 0);
        }
        if last {
            self.rest(&running)?;
        }
        match session.end {
            End::Close => self.close(&running),
            end => self.crash(end, &running),
        }
    }

    /// Everything that was set off comes to its end, and the whole is as it must be.
    fn rest(&mut self, running: &Running) -> Result<()> {
        self.shared.quiet.set(true);
        self.shared.read_all();
        let rested = self.spawn(running, running.env.sleep(QUIET));
        self.until("a quiet time", || rested.get())?;
        match &self.engine {
            Some(_) => self.check_engine(running),
            None => self.check_stack(running),
        }
    }

    fn start(&mut self) -> Running {
        let running = self.start_nothing();
        match self.plan.level {
            Level::Engine => self.open_engine(running),
            Level::Stack => self.open_stack(running),
        }
    }

    /// A process that does nothing yet.
    fn start_nothing(&self) -> Running {
        let process = self.world.process();
        let env = process.core();
        Running {
            env,
            process,
            opened: Rc::default(),
            failed: Rc::default(),
            clients: Rc::default(),
            stack: None,
            shards: Rc::default(),
        }
    }

    fn start_clients(&mut self, running: &Running, session: &Session) {
        for (number, steps) in session.clients.iter().enumerate() {
            running.clients.set(running.clients.get() + 1);
            match self.plan.level {
                Level::Engine => self.start_engine_client(running, steps.clone()),
                Level::Stack => self.start_stack_client(running, number as u64, steps.clone()),
            }
        }
    }

    fn close(&mut self, running: &Running) -> Result<()> {
        self.mark_cleaning(running, false);
        self.shared.closing.set(true);
        match self.plan.level {
            Level::Engine => self.close_engine(running)?,
            Level::Stack => self.close_stack(running)?,
        }
        self.shared.note(|| "closed".to_owned());
        let lenient = self.shared.lenient.get();
        self.end(running);
        if lenient {
            // What it had in flight when it failed may still hold files for a while.
            return Ok(());
        }
        let open = self.world.open_files();
        ensure!(open == 0, "{open} files are open when all is closed");
        Ok(())
    }

    /// The process is gone, in order if the disk let it.
    fn end(&self, running: &Running) {
        running.process.kill();
        self.shared.lines_crashed();
        let ended = match self.shared.lenient.get() {
            true => ghost::Ghost::crashed,
            false => ghost::Ghost::closed,
        };
        self.shared.ghosts.borrow_mut().values_mut().for_each(ended);
    }

    fn crash(&mut self, end: End, running: &Running) -> Result<()> {
        self.report.crashes += 1;
        self.mark_cleaning(running, true);
        if self.world.writes_in_flight() > 0 {
            self.report.crashes_in_flight += 1;
            self.shared.mark(Mark::CrashInFlight);
        }
        if !running.opened.get() {
            self.report.crashes_in_recovery += 1;
            self.shared.mark(Mark::CrashWhileOpening);
        }
        self.shared.note(|| format!("{end:?}"));
        self.shared.works_crashed();
        self.shared.exchanges_crashed();
        self.shared.deletions_crashed();
        if end != End::PowerCut {
            running.process.kill();
        }
        self.shared.lines_crashed();
        if let End::KillThenPowerCut(steps) = end {
            for _ in 0..steps {
                self.step()?;
            }
            self.report.crashes += 1;
        }
        if end != End::Kill {
            self.world.power_cut();
        }
        self.shared.ghosts.borrow_mut().values_mut().for_each(ghost::Ghost::crashed);
        Ok(())
    }

    /// Whether anything happened.
    fn step(&mut self) -> Result<bool> {
        let step = self.world.step();
        if let Some(panic) = self.world.take_panics().pop() {
            return Err(anyhow!("a task panicked: {panic}"));
        }
        match self.shared.failure.borrow().as_ref() {
            Some(failure) => Err(anyhow!("{failure}")),
            None => Ok(step != crate::world::Step::Idle),
        }
    }

    fn until(&mut self, what: &str, mut done: impl FnMut() -> bool) -> Result<()> {
        for _ in 0..STEPS_MAX {
            if done() {
                return Ok(());
            }
            ensure!(self.step()? || done(), "{what}: nothing will ever happen");
        }
        Err(anyhow!("{what}: not done after {STEPS_MAX} steps"))
    }

    fn spawn(&self, running: &Running, task: impl Future<Output = ()> + 'static) -> Rc<Cell<bool>> {
        let done = Rc::new(Cell::new(false));
        let set = done.clone();
        running.env.spawn("driver", async move {
            task.await;
            set.set(true);
        });
        done
    }
}
