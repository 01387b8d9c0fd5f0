//! Random programs of several clients over [`Runtime`] on a real disk.
//!
//! The first property holds every reply, and in the end all that is stored, to plain maps
//! (`properties/model.rs`). One thread makes all the calls, so the order in which they are made is
//! known, and they arrive in it; replies are awaited at once, later, or never. Objects are evicted,
//! the runtime is closed and opened with another number of cores, and none of it may show.
//!
//! Some orders are not promised, so programs avoid them: a call that resets its object, or waits
//! for another object, is the only one on its way to the objects that it concerns.
//!
//! The second property (`properties/counting.rs`) has many threads count in the same objects while
//! another one evicts them.
//!
//! Failures are kept in `tests/properties.proptest-regressions`.

#![expect(clippy::disallowed_methods, reason = "closing is timed, on the real clock")]

#[path = "properties/counting.rs"]
mod counting;
#[path = "properties/generate.rs"]
mod generate;
#[path = "properties/model.rs"]
mod model;
#[path = "properties/program.rs"]
mod program;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dormouse_engine::call::wait;
use dormouse_engine::real::DiskChoice;
use dormouse_scheduler::Call;
use dormouse_scheduler::prelude::*;
use futures_util::FutureExt;
use proptest::prelude::*;

use model::Model;
use program::{Action, Answer, Ending, OBJECTS, Outcome, Program, Run, Thing, outcome};

/// Cases of each property.
const CASES: u32 = 64;
const CLIENTS: usize = 3;
/// A shutdown that takes longer waits for something that never comes.
const CLOSE_MAX: Duration = Duration::from_secs(5);

#[derive(Clone, Debug)]
enum Step {
    Call {
        client: usize,
        object: usize,
        program: Program,
        reply: Reply,
    },
    /// Waits for all replies that the client awaits later.
    Collect(usize),
    Evict {
        object: usize,
        awaited: bool,
    },
    /// Closes the runtime, and opens it with so many cores.
    Reopen(usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reply {
    Awaited,
    Later,
    Dropped,
}

fn step() -> impl Strategy<Value = Step> {
    let reply =
        prop_oneof![3 => Just(Reply::Awaited), 4 => Just(Reply::Later), 1 => Just(Reply::Dropped)];
    let call = (0..CLIENTS, 0..OBJECTS, generate::program(), reply)
        .prop_map(|(client, object, program, reply)| Step::Call { client, object, program, reply });
    prop_oneof![
        16 => call,
        1 => (0..CLIENTS).prop_map(Step::Collect),
        2 => (0..OBJECTS, any::<bool>())
            .prop_map(|(object, awaited)| Step::Evict { object, awaited }),
        1 => (1..4_usize).prop_map(Step::Reopen),
    ]
}

/// Which instance of its object answers a call, compared with the call before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Instance {
    Same,
    Newer,
    Either,
}

/// A call on its way, and what is to come of it.
struct Pending {
    client: usize,
    object: usize,
    /// None where the client dropped it.
    call: Option<Call<Answer>>,
    wanted: Outcome,
    /// Its place in the object's life.
    number: usize,
    /// The objects that are to be left alone until it is done.
    alone_on: Vec<usize>,
}

/// What is known of the instances of one object.
struct Life {
    /// For each call, in the order made: what was to answer it, and what did, if that is said.
    calls: Vec<(Instance, Option<u64>)>,
    next: Instance,
    /// An eviction that nobody waited for happens at some time.
    evict_on_its_way: bool,
}

struct World<'a> {
    dir: &'a Path,
    /// None while it is closed.
    runtime: Option<Runtime>,
    stubs: Vec<Arc<[Stub<Thing>]>>,
    model: Model,
    lives: Vec<Life>,
    /// In the order made.
    pending: Vec<Pending>,
}

fn start(dir: &Path, cores: usize) -> Runtime {
    let builder = Runtime::builder(dir).cores(cores).disk(DiskChoice::Auto);
    builder.namespace::<Thing>("things").start().expect("a store that was closed is opened")
}

fn stubs(runtime: &Runtime) -> Arc<[Stub<Thing>]> {
    let things = runtime.namespace::<Thing>();
    (0..OBJECTS).map(|object| things.get_by_name(&format!("thing {object}"))).collect()
}

fn close(runtime: Runtime) {
    let begun = Instant::now();
    runtime.close().expect("all is well");
    assert!(begun.elapsed() < CLOSE_MAX, "closing took {:?}", begun.elapsed());
}

/// The objects that the call resets or waits for, and itself, if there are such.
fn alone_on(object: usize, program: &Program) -> Vec<usize> {
    let called = program.actions.iter().filter_map(|action| match action {
        Action::Call(behind, _) => Some((object + behind) % OBJECTS),
        _ => None,
    });
    let mut objects: Vec<_> = called.collect();
    // Others are let in while it waits for a call, or until it is durable.
    let lets_in =
        !objects.is_empty() || program.actions.iter().any(|action| matches!(action, Action::Sync));
    if lets_in || matches!(program.ending, Ending::Reset { .. }) {
        objects.push(object);
    }
    objects
}

impl<'a> World<'a> {
    fn new(dir: &'a Path, cores: usize) -> Self {
        let life = || Life { calls: Vec::new(), next: Instance::Newer, evict_on_its_way: false };
        let mut world = Self {
            dir,
            runtime: None,
            stubs: Vec::new(),
            model: Model::default(),
            lives: (0..OBJECTS).map(|_| life()).collect(),
            pending: Vec::new(),
        };
        world.open(cores);
        world
    }

    fn open(&mut self, cores: usize) {
        let runtime = start(self.dir, cores);
        self.stubs = (0..CLIENTS).map(|_| stubs(&runtime)).collect();
        self.runtime = Some(runtime);
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Call { client, object, program, reply } => {
                self.call(client, object, program, reply);
            }
            Step::Collect(client) => self.collect(|pending| pending.client == client),
            Step::Evict { object, awaited } => self.evict(object, awaited),
            Step::Reopen(cores) => self.reopen(cores),
        }
    }

    fn call(&mut self, client: usize, object: usize, program: Program, reply: Reply) {
        let alone_on = alone_on(object, &program);
        // The calls that must not meet this one.
        self.collect(|pending| pending.alone_on.contains(&object));
        for object in &alone_on {
            self.settle(*object);
        }
        let (wanted, reset) = self.model.run(object, &program);
        // Its end must be known, also if nobody cared for what it says.
        let dropped = reply == Reply::Dropped && alone_on.is_empty();
        let says = !dropped && matches!(wanted, Outcome::Said(_));
        let number = self.lives[object].called(says);
        for object in reset {
            self.lives[object].next = Instance::Newer;
        }
        let mut peers = self.stubs[client].to_vec();
        peers.rotate_left(object);
        let call = self.stubs[client][object].call(Run { program, peers: peers.into() });
        let call = Some(call).filter(|_| !dropped);
        self.pending.push(Pending { client, object, call, wanted, number, alone_on });
        if reply == Reply::Awaited {
            let last = self.pending.len() - 1;
            self.check(last);
        }
    }

    /// Waits for the reply of one pending call.
    fn check(&mut self, position: usize) {
        let Pending { object, call, wanted, number, .. } = self.pending.remove(position);
        let Some(call) = call else { return };
        let reply = call.wait();
        self.lives[object].calls[number].1 = reply.as_ref().ok().map(|answer| answer.instance);
        assert_eq!(outcome(reply), wanted, "of object {object}");
    }

    /// Waits for the replies of some calls. Those that nobody waits for stay.
    fn collect(&mut self, which: impl Fn(&Pending) -> bool) {
        let some = |pending: &Pending| pending.call.is_some() && which(pending);
        while let Some(position) = self.pending.iter().position(some) {
            self.check(position);
        }
    }

    /// Waits until nothing is on its way to the object.
    fn settle(&mut self, object: usize) {
        self.collect(|pending| pending.object == object || pending.alone_on.contains(&object));
        let before = self.pending.len();
        self.pending.retain(|pending| pending.object != object);
        if self.pending.len() < before {
            // A reply comes after everything before it is done and durable, so this call ends those
            // whose replies were dropped.
            let nothing = Program { actions: Vec::new(), ending: Ending::Reply };
            self.call(0, object, nothing, Reply::Awaited);
        }
    }

    fn evict(&mut self, object: usize, awaited: bool) {
        let runtime = self.runtime.as_ref().expect("open between steps");
        let eviction = runtime.evict(self.stubs[0][object].id());
        let life = &mut self.lives[object];
        if !awaited {
            // Polled once it is under way.
            let _done_already = eviction.now_or_never();
            life.evict_on_its_way = true;
            if life.next == Instance::Same {
                life.next = Instance::Either;
            }
        } else {
            // It answered all that came before, and is gone.
            wait(eviction);
            life.next = Instance::Newer;
        }
    }

    fn reopen(&mut self, cores: usize) {
        // While it closes no object can call another. All others are answered.
        self.collect(|pending| !pending.alone_on.is_empty());
        close(self.runtime.take().expect("open between steps"));
        self.open(cores);
        for life in &mut self.lives {
            life.next = Instance::Newer;
            life.evict_on_its_way = false;
        }
    }

    /// Holds all contents to the model.
    fn check_contents(&mut self) {
        let list =
            program::Span { start: None, end: None, prefix: None, limit: None, reverse: false };
        let actions = vec![Action::List(list), Action::GetAlarm];
        let program = Program { actions, ending: Ending::Reply };
        for object in 0..OBJECTS {
            self.call(0, object, program.clone(), Reply::Awaited);
        }
    }

    /// After every reply all is durable: the same is found by new instances and a new runtime.
    fn finish(mut self, cores: usize) {
        (0..OBJECTS).for_each(|object| self.settle(object));
        (0..OBJECTS).for_each(|object| self.evict(object, true));
        self.check_contents();
        self.reopen(cores);
        self.check_contents();
        close(self.runtime.take().expect("open between steps"));
        self.lives.iter().for_each(Life::check);
    }
}

impl Life {
    /// A call is made; gives its number.
    fn called(&mut self, says_instance: bool) -> usize {
        let number = self.calls.len();
        self.calls.push((self.next, None));
        // What has not answered is not compared with.
        if says_instance {
            self.next = if self.evict_on_its_way { Instance::Either } else { Instance::Same };
        }
        number
    }

    /// One instance lives at a time, for as long as nothing ends it.
    fn check(&self) {
        let mut last = None;
        for (wanted, instance) in &self.calls {
            let Some(instance) = *instance else { continue };
            let fits = last.is_none_or(|last| match wanted {
                Instance::Same => instance == last,
                Instance::Newer => instance > last,
                Instance::Either => instance >= last,
            });
            assert!(fits, "{instance} answers after {last:?}, not {wanted:?}: {:?}", self.calls);
            last = Some(instance);
        }
    }
}

fn directory() -> tempfile::TempDir {
    tempfile::TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory")
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: CASES,
        max_shrink_iters: 2000,
        // A hang found takes its time to shrink.
        max_shrink_time: 60_000,
        failure_persistence: Some(Box::new(
            proptest::test_runner::FileFailurePersistence::Direct(concat!(
                env!("CARGO_MANIFEST_DIR"),
                "/tests/properties.proptest-regressions"
            )),
        )),
        ..ProptestConfig::default()
    })]

    #[test]
    fn objects_answer_as_maps_do_and_keep_what_they_said(
        steps in prop::collection::vec(step(), 1..40),
        cores in 1..4_usize,
        cores_at_the_end in 1..4_usize,
    ) {
        let dir = directory();
        let mut world = World::new(dir.path(), cores);
        for step in steps {
            world.step(step);
        }
        world.finish(cores_at_the_end);
    }

    #[test]
    fn threads_that_count_together_lose_no_count_to_evictions(count in counting::count()) {
        counting::count_together(directory().path(), &count);
    }
}
