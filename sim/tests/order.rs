//! In which order an object's events go on: in that in which they became ready, also where a turn has no
//! time for all of them, and where a reply is there before anybody waits for it.

mod common;
#[path = "common/machine.rs"]
mod machine;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use dormouse_engine::signal::Signal;
use dormouse_scheduler::prelude::*;
use dormouse_scheduler::{Call, StackLimits, Topology};
use dormouse_sim::Step;

use machine::Machine;

/// Events of one object that are polled in one turn, as docs/design.md says.
const TURN_EVENTS: u32 = 64;

fn machine(seed: u64) -> Machine {
    let topology = Topology::builder().namespace::<Object>("objects");
    Machine::new(seed, topology.limits(StackLimits::PRODUCTION).build(|| 0))
}

impl Machine {
    fn stub(&self, name: &str) -> Stub<Object> {
        self.topology.namespace().get_by_name(name)
    }

    /// Goes on until there is such a log, and looks after each step.
    fn step_until(&self, enough: impl Fn(&[u32]) -> bool) {
        while !LOG.with_borrow(|log| enough(log)) {
            assert_ne!(self.world.step(), Step::Idle, "it goes on");
        }
    }
}

thread_local! {
    static DOORS: RefCell<BTreeMap<u32, Rc<Door>>> = const { RefCell::new(BTreeMap::new()) };
    static LOG: RefCell<Vec<u32>> = const { RefCell::new(Vec::new()) };
    static OTHER: RefCell<Option<Stub<Object>>> = const { RefCell::new(None) };
}

/// Something outside that an event waits for.
#[derive(Default)]
struct Door {
    is_open: Cell<bool>,
    opened: Signal,
}

fn door(number: u32) -> Rc<Door> {
    DOORS.with_borrow_mut(|doors| doors.entry(number).or_default().clone())
}

fn open(number: u32) {
    let door = door(number);
    door.is_open.set(true);
    door.opened.notify();
}

async fn pass(number: u32) {
    let door = door(number);
    door.opened.until(|| door.is_open.get().then_some(())).await;
}

fn note(number: u32) {
    LOG.with_borrow_mut(|log| log.push(number));
}

/// Doors of the second test.
const LOOK: u32 = 1;
const ANSWER: u32 = 2;

/// What it notes.
const WAITED: u32 = 10;
const LOOKED: u32 = 20;
const CALLED: u32 = 30;

enum Do {
    /// Waits for a door, and notes its number.
    Pass(u32),
    /// Has the other object answer once a door is open, waits for that, and notes it.
    CallAndWait,
    /// The same, but it looks for the answer only when another door is open.
    CallAndLook,
    /// Answers once the door is open.
    Answer,
    /// Lets one event look for its answer, answers another one, and only then lets the first have its own.
    OpenAndAnswer,
}

struct Object;

impl DurableObject for Object {
    fn new(_: State) -> Self {
        Self
    }
}

impl Handler<Do> for Object {
    type Reply = ();

    async fn handle(&self, what: Do) -> Result<()> {
        let other = || OTHER.with_borrow(|other| other.clone().expect("it was named"));
        match what {
            Do::Pass(number) => {
                pass(number).await;
                note(number);
            }
            Do::CallAndWait => {
                other().call(Do::OpenAndAnswer).await?;
                note(WAITED);
            }
            Do::CallAndLook => {
                let call = other().call(Do::Answer);
                note(CALLED);
                pass(LOOK).await;
                call.await?;
                note(LOOKED);
            }
            Do::Answer => pass(ANSWER).await,
            Do::OpenAndAnswer => {
                open(LOOK);
                open(ANSWER);
            }
        }
        Ok(())
    }
}

/// `scheduler/src/watch/budget.rs`. Three turns' events are ready at once; while each of these turns leaves some
/// over, another one becomes ready, as if another core had woken it, and must not overtake them.
#[test]
fn what_a_turn_leaves_over_goes_before_what_is_woken_later() {
    let machine = machine(1);
    let (at_once, all) = (3 * TURN_EVENTS, 3 * TURN_EVENTS + 10);
    let object = machine.stub("object");
    let calls: Vec<Call<()>> = (0..all).map(|number| object.call(Do::Pass(number))).collect();
    // They come in their order, so all of them wait once this one has ended.
    open(all);
    machine.run(object.call(Do::Pass(all))).unwrap();
    LOG.take();

    (0..at_once).for_each(open);
    for late in at_once..all {
        let before = LOG.with_borrow(Vec::len);
        machine.step_until(|log| log.len() > before);
        open(late);
    }
    calls.into_iter().for_each(|call| machine.run(call).unwrap());
    assert_eq!(LOG.take(), (0..all).collect::<Vec<_>>());
}

/// `Early` in `scheduler/src/stub.rs`. Of two events the second to be answered is the first to have its turn, and finds
/// its answer there.
#[test]
fn a_reply_that_is_there_at_the_first_look_goes_behind_those_before() {
    let machine = machine(2);
    OTHER.set(Some(machine.stub("other")));
    let looks = machine.stub("object").call(Do::CallAndLook);
    machine.step_until(|log| log == [CALLED]);
    let waits = machine.stub("object").call(Do::CallAndWait);
    machine.run(async move { waits.await.and(looks.await) }).unwrap();
    assert_eq!(LOG.take(), [CALLED, WAITED, LOOKED]);
}
