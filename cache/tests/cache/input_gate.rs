//! Who is let in, and in which order.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use dormouse_cache::{EventId, InputGate, Lock};
use dormouse_engine::{Error, Host, Kind};
use proptest::prelude::*;

use super::env::{TestEnv, yield_now};
use super::poll;

const A: EventId = EventId(1);
const B: EventId = EventId(2);
const C: EventId = EventId(3);
const D: EventId = EventId(4);

fn enter(gate: &InputGate, event: EventId) -> bool {
    match gate.poll_enter(event, &mut Context::from_waker(Waker::noop())) {
        Poll::Ready(entered) => entered.is_ok(),
        Poll::Pending => false,
    }
}

/// Counts how often it was woken.
#[derive(Default)]
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl Woken {
    /// Waits at the gate with this waker.
    fn wait(self: &Arc<Self>, gate: &InputGate, event: EventId) {
        let waker = Waker::from(self.clone());
        assert!(gate.poll_enter(event, &mut Context::from_waker(&waker)).is_pending());
    }

    fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

fn reason() -> Error {
    Error::new(Kind::Closed, "broken by the test")
}

/// one at a time, first come first served.
#[test]
fn events_are_let_in_one_at_a_time_in_order() {
    let gate = InputGate::new();
    assert!(enter(&gate, A) && !enter(&gate, B) && !enter(&gate, C) && !gate.try_enter(D));
    gate.leave(A);
    assert!(!enter(&gate, C) && !gate.try_enter(A), "it is B's turn");
    assert!(enter(&gate, B));
    gate.leave(B);
    assert!(enter(&gate, C));
    gate.leave(C);
    assert!(gate.is_idle() && gate.try_enter(D));
}

/// T-109, T-114.
#[test]
fn the_gate_stays_with_an_event_until_its_last_lock_is_gone() {
    let gate = InputGate::new();
    assert!(enter(&gate, A));
    let first = gate.hold(A);
    let second = first.clone();
    gate.leave(A);
    assert!(!enter(&gate, B));
    drop(first);
    assert!(!enter(&gate, B));
    assert!(enter(&gate, A), "its own continuation runs");
    drop(second);
    assert!(!enter(&gate, B), "until its turn is over");
    gate.leave(A);
    assert!(enter(&gate, B));
}

/// waiting or already chosen, an event that is gone holds nobody up.
#[test]
fn an_event_that_ends_leaves_the_queue() {
    let gate = InputGate::new();
    assert!(enter(&gate, A) && !enter(&gate, B) && !enter(&gate, C) && !enter(&gate, D));
    gate.end(B);
    gate.leave(A);
    gate.end(C);
    assert!(enter(&gate, D));
    gate.end(D);
    assert!(gate.is_idle());
}

/// T-115.
#[test]
fn a_section_goes_before_events_that_wait() {
    let gate = InputGate::new();
    assert!(enter(&gate, A) && !enter(&gate, B));
    let mut wait = gate.section(A, C).unwrap();
    assert!(poll(&mut wait).is_pending());
    gate.leave(A);
    let Poll::Ready(Ok(section)) = poll(&mut wait) else { panic!("granted before B") };
    assert!(!enter(&gate, B) && !enter(&gate, A) && enter(&gate, C));
    let result: Lock = section.succeed();
    gate.leave(C);
    assert!(!enter(&gate, B) && enter(&gate, A), "the result reaches its starter first");
    drop(result);
    gate.leave(A);
    assert!(enter(&gate, B));
}

/// T-106: an event that is itself the body of the sections it starts.
#[test]
fn sections_of_a_turn_run_one_after_another() {
    let gate = InputGate::new();
    assert!(enter(&gate, A) && !enter(&gate, B));
    let mut first = gate.section(A, A).unwrap();
    let mut second = gate.section(A, A).unwrap();
    gate.leave(A);
    assert!(enter(&gate, A));
    assert!(poll(&mut second).is_pending());
    let Poll::Ready(Ok(section)) = poll(&mut first) else { panic!("first in order") };
    let lock = section.succeed();
    gate.leave(A);
    drop(lock);
    assert!(enter(&gate, A) && !enter(&gate, B));
    let Poll::Ready(Ok(section)) = poll(&mut second) else { panic!("then the second") };
    drop(section.succeed());
    gate.leave(A);
    assert!(enter(&gate, B));
}

/// T-117.
#[test]
fn sections_nest_64_deep() {
    let gate = InputGate::new();
    let mut sections = Vec::new();
    for _ in 0..64 {
        let mut wait = gate.section(A, A).unwrap();
        let Poll::Ready(Ok(section)) = poll(&mut wait) else { panic!("nobody else is there") };
        sections.push(section);
    }
    assert_eq!(gate.section(A, A).unwrap_err().code(), Some("nested-too-deeply"));
    assert!(!enter(&gate, B));
    while let Some(section) = sections.pop() {
        drop(section.succeed());
    }
    assert!(enter(&gate, B));
}

/// T-116: what outlives its section is the parent's.
#[test]
fn an_event_that_outlives_its_section_moves_up() {
    let gate = InputGate::new();
    assert!(enter(&gate, A));
    let mut first = gate.section(A, B).unwrap();
    let mut second = gate.section(A, C).unwrap();
    gate.leave(A);
    let Poll::Ready(Ok(section)) = poll(&mut first) else { panic!("granted") };
    assert!(enter(&gate, B));
    gate.adopt(D, B);
    gate.leave(B);
    assert!(enter(&gate, D), "inside, while the section runs");
    gate.leave(D);
    drop(section.succeed());
    let Poll::Ready(Ok(section)) = poll(&mut second) else { panic!("granted") };
    assert!(!enter(&gate, D), "outside of the second");
    assert!(!enter(&gate, A));
    drop(section.succeed());
    assert!(enter(&gate, D));
}

/// what waits inside, and what is held there, goes over to the parent.
#[test]
fn an_event_that_waits_in_a_section_waits_at_its_parent_afterwards() {
    let gate = InputGate::new();
    let mut wait = gate.section(A, B).unwrap();
    let Poll::Ready(Ok(section)) = poll(&mut wait) else { panic!("granted") };
    assert!(!enter(&gate, A));
    assert!(enter(&gate, B));
    gate.adopt(C, B);
    let inside = Arc::new(Woken::default());
    inside.wait(&gate, C);
    let lock = gate.hold(B);
    drop(section.succeed());
    gate.leave(B);
    assert!(!enter(&gate, A) && !enter(&gate, C), "the lock counts outside too");
    drop(lock);
    assert!(enter(&gate, A), "it came before C");
    inside.wait(&gate, C);
    gate.leave(A);
    assert_eq!(inside.count(), 1);
    assert!(enter(&gate, C));
}

/// the outer section may end first.
#[test]
fn a_nested_section_outlives_the_outer_one() {
    let gate = InputGate::new();
    let mut outer = gate.section(A, B).unwrap();
    let Poll::Ready(Ok(outer)) = poll(&mut outer) else { panic!("granted") };
    let mut inner = gate.section(B, C).unwrap();
    let Poll::Ready(Ok(inner)) = poll(&mut inner) else { panic!("granted") };
    let result = outer.succeed();
    let starter = Arc::new(Woken::default());
    starter.wait(&gate, A);
    assert!(!enter(&gate, D) && enter(&gate, C));
    gate.leave(C);
    assert_eq!(starter.count(), 0);
    drop(inner.succeed());
    assert_eq!(starter.count(), 1, "it holds the gate, so nobody else's leaving would wake it");
    assert!(!enter(&gate, D) && enter(&gate, A), "it still has its result to take");
    gate.leave(A);
    drop(result);
    assert!(enter(&gate, D));
}

/// the same if the nested section is taken back instead.
#[test]
fn a_section_taken_back_wakes_who_holds_the_gate() {
    let gate = InputGate::new();
    let mut outer = gate.section(A, B).unwrap();
    let Poll::Ready(Ok(outer)) = poll(&mut outer) else { panic!("granted") };
    let granted = gate.section(B, C).unwrap();
    let _result = outer.succeed();
    let starter = Arc::new(Woken::default());
    starter.wait(&gate, A);
    drop(granted);
    assert_eq!(starter.count(), 1);
    assert!(enter(&gate, A));
}

/// T-119.
#[test]
fn a_failed_section_breaks_everything() {
    let gate = InputGate::new();
    assert!(enter(&gate, A) && !enter(&gate, B));
    let lock = gate.hold(A);
    let mut granted = gate.section(A, C).unwrap();
    let mut waiting = gate.section(A, D).unwrap();
    let mut broken = Box::pin(gate.broken());
    assert!(poll(&mut broken).is_pending() && poll(&mut waiting).is_pending());
    drop(lock);
    gate.leave(A);
    let Poll::Ready(Ok(section)) = poll(&mut granted) else { panic!("granted") };
    section.fail(reason());
    gate.fail(Error::new(Kind::Retry, "too late"));
    assert_eq!(gate.broken_reason().unwrap().kind(), Kind::Closed);
    assert!(poll(&mut broken).is_ready());
    assert!(matches!(poll(&mut waiting), Poll::Ready(Err(_))));
    for event in [A, B, C, D] {
        let entered = gate.poll_enter(event, &mut Context::from_waker(Waker::noop()));
        assert!(matches!(entered, Poll::Ready(Err(_))));
        assert!(!gate.try_enter(event));
        gate.end(event);
    }
    assert!(gate.section(A, A).is_err());
}

/// T-121; but a section in which nothing ran yet just goes.
#[test]
fn a_dropped_section_is_a_failure_only_once_it_ran() {
    let gate = InputGate::new();
    assert!(enter(&gate, A));
    let waiting = gate.section(A, B).unwrap();
    let granted = gate.section(A, C).unwrap();
    drop(waiting);
    gate.leave(A);
    assert!(!enter(&gate, A));
    drop(granted);
    assert!(enter(&gate, A));
    gate.leave(A);
    let mut wait = gate.section(A, B).unwrap();
    let Poll::Ready(Ok(section)) = poll(&mut wait) else { panic!("granted") };
    drop(section);
    assert!(gate.broken_reason().unwrap().message().contains("can never complete"));
}

/// T-118.
#[test]
fn many_chained_sections_are_torn_down() {
    let gate = InputGate::new();
    assert!(enter(&gate, A));
    let waits: Vec<_> = (0..100_000).map(|_| gate.section(A, A).unwrap()).collect();
    gate.leave(A);
    drop(waits);
    assert!(enter(&gate, A));
    gate.leave(A);
    assert!(gate.is_idle());
}

#[derive(Clone, Debug)]
enum Step {
    /// Waits for something outside.
    Outside,
    /// Waits for storage that many times in a row, under one lock.
    Storage(u8),
    /// Runs steps in a section, in this event.
    Inside(Vec<Step>),
    /// Runs steps in a section, in an event of its own, and waits for it if so said.
    Spawned(Vec<Step>, bool),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let leaf = prop_oneof![Just(Step::Outside), (1..3_u8).prop_map(Step::Storage)];
    let step = leaf.prop_recursive(3, 12, 4, |inner| {
        let nested = || prop::collection::vec(inner.clone(), 0..4);
        prop_oneof![
            2 => inner.clone(),
            1 => nested().prop_map(Step::Inside),
            1 => (nested(), any::<bool>()).prop_map(|(steps, wait)| Step::Spawned(steps, wait)),
        ]
    });
    prop::collection::vec(step, 0..5)
}

/// A section or storage wait of an event, each with a number of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Region(EventId, u64);

/// Events that run programs, and who of them has the gate to itself.
#[derive(Clone)]
struct Stage {
    env: TestEnv,
    gate: InputGate,
    next: Rc<Cell<u64>>,
    /// The regions that nobody may come between, innermost last.
    alone: Rc<RefCell<Vec<Region>>>,
    regions_begun: Rc<Cell<u64>>,
    ended: Rc<Cell<u64>>,
}

impl Stage {
    fn event(&self) -> EventId {
        self.next.set(self.next.get() + 1);
        EventId(self.next.get())
    }

    fn start(&self, event: EventId, steps: Vec<Step>) {
        let stage = self.clone();
        let task = Box::pin(async move { stage.program(event, steps).await });
        self.spawn(event, task);
    }

    fn spawn(&self, event: EventId, task: std::pin::Pin<Box<dyn Future<Output = ()>>>) {
        let (gated, ended) = (self.gate.gated(event, task), self.ended.clone());
        self.env.spawn("event", async move {
            gated.await.expect("the gate does not break");
            ended.set(ended.get() + 1);
        });
    }

    /// The event does something: nobody else may have the gate to itself.
    fn act(&self, event: EventId) {
        let alone = self.alone.borrow();
        assert!(alone.last().is_none_or(|region| region.0 == event), "{event:?} came between");
    }

    /// The regions that the event is in.
    fn regions(&self) -> Vec<Region> {
        self.alone.borrow().clone()
    }

    /// A region of the event begins; it was asked for when `outer` were open. Some of them may be
    /// over since, but no other may be open.
    fn enter(&self, event: EventId, outer: &[Region]) {
        let mut alone = self.alone.borrow_mut();
        assert!(outer.starts_with(&alone), "{event:?} came between");
        self.regions_begun.set(self.regions_begun.get() + 1);
        alone.push(Region(event, self.regions_begun.get()));
    }

    fn exit(&self, event: EventId) {
        let ended = self.alone.borrow_mut().pop();
        assert_eq!(ended.map(|region| region.0), Some(event));
    }

    fn program(
        &self,
        event: EventId,
        steps: Vec<Step>,
    ) -> std::pin::Pin<Box<dyn Future<Output = ()> + '_>> {
        Box::pin(async move {
            for step in steps {
                self.act(event);
                match step {
                    Step::Outside => yield_now().await,
                    Step::Storage(times) => {
                        let lock = self.gate.hold(event);
                        self.enter(event, &self.regions());
                        for _ in 0..times {
                            yield_now().await;
                            self.act(event);
                        }
                        self.exit(event);
                        drop(lock);
                    }
                    Step::Inside(steps) => {
                        let outer = self.regions();
                        let section = self.gate.section(event, event).unwrap().await.unwrap();
                        self.enter(event, &outer);
                        self.program(event, steps).await;
                        self.exit(event);
                        drop(section.succeed());
                    }
                    Step::Spawned(steps, wait) => self.spawned(event, steps, wait).await,
                }
                self.act(event);
            }
        })
    }

    async fn spawned(&self, event: EventId, steps: Vec<Step>, wait: bool) {
        let (body, stage) = (self.event(), self.clone());
        let (section, outer) = (self.gate.section(event, body).unwrap(), self.regions());
        let result: Rc<RefCell<(Option<Lock>, Option<Waker>)>> = Rc::default();
        let slot = Rc::downgrade(&result);
        self.spawn(
            body,
            Box::pin(async move {
                let section = section.await.unwrap();
                stage.enter(body, &outer);
                stage.program(body, steps).await;
                stage.exit(body);
                let lock = section.succeed();
                if let Some(slot) = slot.upgrade() {
                    let mut slot = slot.borrow_mut();
                    slot.0 = Some(lock);
                    slot.1.take().into_iter().for_each(Waker::wake);
                }
            }),
        );
        if wait {
            let lock = poll_fn(|cx| {
                let mut slot = result.borrow_mut();
                slot.1 = Some(cx.waker().clone());
                slot.0.take().map_or(Poll::Pending, Poll::Ready)
            });
            drop(lock.await);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..Default::default() })]

    /// Nobody comes between, and nobody is forgotten, whatever task the core picks.
    #[test]
    fn any_programs_exclude_each_other_and_end(
        seed: u64,
        programs in prop::collection::vec(steps(), 1..5),
    ) {
        let stage = Stage {
            env: TestEnv::seeded(seed),
            gate: InputGate::new(),
            next: Rc::default(),
            alone: Rc::default(),
            regions_begun: Rc::default(),
            ended: Rc::default(),
        };
        for steps in programs {
            stage.start(stage.event(), steps);
        }
        stage.env.run();
        prop_assert_eq!(stage.ended.get(), stage.next.get(), "somebody was never let in");
        prop_assert_eq!(stage.env.tasks(), 0);
        prop_assert!(stage.gate.is_idle());
    }
}
