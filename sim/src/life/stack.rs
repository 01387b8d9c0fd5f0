//! Lives of the whole stack: clients call objects through stubs, on several cores.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use dormouse_cache::CacheLimits;
use dormouse_engine::{Host, Limits, StoreLock};
use dormouse_scheduler::{Error, Id, Kind, Namespace, OBJECT_BYTES, StackLimits, Stub, Topology};
use futures_util::FutureExt;
use futures_util::future::select;

use super::object::{Actor, Ask, name};
use super::shared::{Mark, Shared, shared};
use super::{Life, Running};
use crate::net::SimNet;
use crate::plan::{Fate, Op, Step, Turn, Wait};
use crate::world::SimEnv;

/// How often an object is asked again that is refused for want of room.
const LOOKS_MAX: u32 = 100;
/// How long a client waits for an object to leave that may be held in memory.
const EVICTION_MAX: Duration = Duration::from_millis(50);

thread_local! {
    /// Through which objects call each other.
    static NAMESPACE: RefCell<Option<Namespace<Actor>>> = const { RefCell::new(None) };
}

/// The objects of the process that lives now.
pub(super) fn namespace() -> Namespace<Actor> {
    NAMESPACE.with_borrow(|namespace| namespace.clone().expect("a process lives"))
}

/// The stack of one process.
#[derive(Clone)]
pub(super) struct Stack {
    pub(super) topology: Topology,
    /// Cores that came to their end.
    ended: Rc<Cell<usize>>,
    pub(super) cores: Rc<[SimEnv]>,
}

impl Life<'_> {
    pub(super) fn open_stack(&mut self, mut running: Running) -> Running {
        let ids = AtomicU64::new(1);
        let topology = Topology::builder()
            .namespace::<Actor>("actors")
            .cores(self.plan.cores)
            .limits(self.stack_limits())
            .build(move || ids.fetch_add(1, Ordering::Relaxed));
        NAMESPACE.set(Some(topology.namespace::<Actor>()));
        let cores: Vec<_> = (0..self.plan.cores).map(|_| running.process.core()).collect();
        let stack = Stack { topology, ended: Rc::default(), cores: cores.clone().into() };
        if self.shared.sockets {
            let seed = self.plan.seed ^ self.shared.number();
            let net = SimNet::new(&self.world, seed, self.plan.net);
            self.shared.lines.borrow_mut().net = Some(net);
        }
        let (opened, failed) = (running.opened.clone(), running.failed.clone());
        let shared = self.shared.clone();
        let open = open(running.env.clone(), cores, stack.clone(), self.plan.shards, opened);
        running.stack = Some(stack);
        running.env.spawn("open", async move {
            if let Err(error) = open.await {
                shared.fail_if_strict(format!("opening: {error}"));
                failed.set(true);
            }
        });
        running
    }

    fn stack_limits(&self) -> StackLimits {
        let mut limits = StackLimits::PRODUCTION;
        if self.plan.tiny_caches {
            limits.cache = CacheLimits::TINY;
            // Room for one or two objects of each core, three if they are busy; and they don't stay.
            limits.resident_bytes = OBJECT_BYTES * 3 / 2;
            limits.idle = Duration::from_millis(2);
            // Two objects that wait for their own flush fill the core.
            limits.dirty_bytes = 2 * CacheLimits::TINY.dirty_bytes_max;
            limits.alarms = 1;
        }
        if self.plan.mailbox > 0 {
            limits.mailbox = self.plan.mailbox;
            limits.calls = self.plan.mailbox;
        }
        limits.sockets = self.shared.socket_limits;
        limits
    }

    pub(super) fn start_stack_client(&mut self, running: &Running, number: u64, steps: Vec<Step>) {
        let client = Client {
            number,
            shared: self.shared.clone(),
            env: running.env.clone(),
            topology: running.stack.clone().expect("opened").topology,
            stubs: BTreeMap::new(),
            sockets: BTreeMap::new(),
            live_sockets: self.plan.has_live_sockets(),
        };
        let clients = running.clients.clone();
        running.env.spawn("client", async move {
            client.run(steps).await;
            clients.set(clients.get() - 1);
        });
    }

    /// No alarm is left, every object answers and holds what it should.
    pub(super) fn check_stack(&mut self, running: &Running) -> Result<()> {
        let objects: Vec<u8> = (0..=u8::MAX)
            .filter(|object| {
                let id = namespace().id_from_name(&name(*object)).to_string();
                self.shared.ghosts.borrow().contains_key(&id)
            })
            .collect();
        self.check_sockets(running)?;
        let topology = running.stack.clone().expect("opened").topology;
        let (shared, env) = (self.shared.clone(), running.env.clone());
        let looked = self.spawn(running, async move {
            for object in objects {
                let stub = namespace().get_by_name(&name(object));
                // Brought to life anew, it holds what is durable; the ghost compares.
                topology.evict(stub.id()).await;
                if let Err(error) = look(&shared, &env, &stub).await {
                    shared.fail(format!("object {object} does not answer: {error:?}"));
                }
                let alarm = shared.on(&stub.id().to_string(), |ghost| ghost.alarm());
                if let Some(at) = alarm {
                    shared.fail(format!("the alarm of object {object}, {at}, never fired"));
                }
            }
        });
        self.until("looking at all objects", || looked.get())
    }

    pub(super) fn close_stack(&mut self, running: &Running) -> Result<()> {
        let stack = running.stack.clone().expect("opened");
        stack.topology.shutdown();
        let cores = self.plan.cores;
        self.until("closing", || stack.ended.get() == cores)?;
        let live = self.shared.ghosts.borrow().values().filter_map(|ghost| ghost.instance).count();
        ensure!(live == 0, "{live} objects outlive their runtime");
        self.close_sockets(running)?;
        // What is on its way may come to its end; nothing may wait forever.
        let world = self.world.clone();
        let tasks = || stack.cores.iter().flat_map(|core| world.tasks_of(core));
        let ended = self.until("the last tasks of the cores", || tasks().next().is_none());
        ended
            .with_context(|| format!("of cores that have ended: {:?}", tasks().collect::<Vec<_>>()))
    }
}

/// Asks an object for its alarm. While others are busy, there may be no room for it.
pub(super) async fn look(shared: &Shared, env: &SimEnv, stub: &Stub<Actor>) -> Result<(), Error> {
    for tries in 0.. {
        let turn = Turn { ops: vec![Op::GetAlarm], fate: Fate::Fine };
        let token = shared.number();
        shared.calls(&stub.id().to_string(), token);
        match stub.call(Ask { token, client: None, from: None, turn }).await {
            Ok(got) => {
                shared.answered(token, Some(got));
                break;
            }
            Err(error) if error.is_overloaded() && tries < LOOKS_MAX => {
                env.sleep(Duration::from_millis(20)).await;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

async fn open(
    env: SimEnv,
    envs: Vec<SimEnv>,
    stack: Stack,
    shards: u16,
    opened: Rc<Cell<bool>>,
) -> dormouse_scheduler::Result<()> {
    let limits = Limits::TINY;
    let lock = StoreLock::open_or_create(&env, &limits, shards).await?;
    let superblock = lock.superblock();
    for (number, env) in envs.iter().enumerate() {
        let core = stack.topology.open(env, number, superblock, limits).await?;
        let ended = stack.ended.clone();
        env.spawn("core", async move {
            if let Err(error) = core.serve().await
                && !shared().lenient.get()
            {
                shared().fail(format!("closing: {error}"));
            }
            ended.set(ended.get() + 1);
        });
    }
    opened.set(true);
    // The lock lives as long as the process.
    let _lock = lock;
    std::future::pending().await
}

pub(super) struct Client {
    pub(super) number: u64,
    pub(super) shared: Rc<Shared>,
    pub(super) env: SimEnv,
    topology: Topology,
    stubs: BTreeMap<u8, Stub<Actor>>,
    /// Its sockets: their lines, by its own numbers.
    pub(super) sockets: BTreeMap<u8, u64>,
    live_sockets: bool,
}

impl Client {
    async fn run(mut self, steps: Vec<Step>) {
        let mut later = Vec::new();
        for step in steps {
            self.shared.note(|| format!("client {} {step:?}", self.number));
            match step {
                Step::Call(object, turn, wait) => {
                    let token = self.shared.number();
                    let request = Ask { token, client: Some(self.number), from: None, turn };
                    let id = self.stub(object).id().to_string();
                    self.shared.calls(&id, token);
                    let call = self.stub(object).call(request);
                    match wait {
                        Wait::Now => {
                            let reply = call.await;
                            self.shared.called(&id, token);
                            ended(&self.shared, token, reply);
                        }
                        Wait::Last => later.push(call.map(move |reply| (token, reply))),
                        Wait::Never => {
                            self.shared.mark(Mark::CallWasDropped);
                            drop(call);
                        }
                    }
                }
                Step::Evict(object) => {
                    let id = self.stub(object).id().clone();
                    let dirty = self.shared.on(&id.to_string(), |ghost| Ok(ghost.is_dirty()));
                    if dirty {
                        self.shared.mark(Mark::EvictedWhileDirty);
                    }
                    self.shared.evicting.borrow_mut().insert(id.to_string());
                    self.evict(&id).await;
                    self.shared.evicting.borrow_mut().remove(&id.to_string());
                    self.shared.count(false);
                }
                Step::Pause(us) => self.env.sleep(Duration::from_micros(u64::from(us))).await,
                Step::Socket(socket, talk) => self.talk(socket, talk).await,
                Step::Delete(object, wait) => self.delete(object, wait).await,
                Step::Fetch(object, exchange) => self.exchange(object, exchange).await,
                Step::Clock(ms) => {
                    self.shared.jumped.set(true);
                    let now = self.env.wall_ms().max(self.shared.wall_max_ms.get());
                    self.shared.wall_max_ms.set(now);
                    self.env.world().jump_wall_clock(i64::from(ms));
                }
                _ => self.shared.fail(format!("{step:?} is a step at the level of the engine")),
            }
        }
        for call in later {
            let (token, reply) = call.await;
            ended(&self.shared, token, reply);
        }
    }

    /// Has an object leave memory. A socket that it reads itself may keep it there for long.
    async fn evict(&self, id: &Id) {
        let gone = self.topology.evict(id).boxed_local();
        if self.live_sockets {
            select(gone, self.env.sleep(EVICTION_MAX).boxed_local()).await;
        } else {
            gone.await;
        }
    }

    pub(super) fn stub(&mut self, object: u8) -> &Stub<Actor> {
        self.stubs.entry(object).or_insert_with(|| namespace().get_by_name(&name(object)))
    }
}

pub(super) fn ended(shared: &Shared, token: u64, reply: Result<u64, Error>) {
    shared.note(|| format!("request {token}: {reply:?}"));
    match reply {
        Ok(got) => shared.answered(token, Some(got)),
        Err(error) if error.kind() == Kind::User => shared.answered(token, None),
        Err(error) if error.is_overloaded() => shared.refused(&error),
        Err(error) if error.reset() || shared.lenient.get() => shared.count(false),
        Err(error) => shared.fail(format!("request {token}: {error:?}")),
    }
}
