//! What the objects of one core may have dirty together.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;

use dormouse_cache::{ActorCache, Answer, Budget, CacheLimits, EventId, Read, Write};
use dormouse_engine::{Contents, Error, Host, Kind};
use proptest::prelude::*;

use super::env::TestEnv;
use super::store::Store;
use super::{Cache, now, poll};

/// What an entry counts beside its key and its value.
const ENTRY_BYTES: usize = 64;
/// What [`Core::put`] makes dirty.
const PUT_BYTES: usize = ENTRY_BYTES + 1 + 35;

/// Some objects of one core.
struct Core {
    env: TestEnv,
    budget: Budget,
    objects: Vec<(Store, Cache)>,
}

impl Core {
    /// Together they may have so many puts dirty.
    fn new(env: TestEnv, objects: usize, puts_max: usize) -> Self {
        let budget = Budget::new(puts_max * PUT_BYTES);
        let object = |_| {
            let store = Store::new(&Contents::default());
            let limits = CacheLimits { dirty_bytes_max: 3 * PUT_BYTES, ..CacheLimits::TINY };
            let contents = Contents::default();
            (store.clone(), ActorCache::new(&env, store, contents, limits, &budget))
        };
        let objects = (0..objects).map(object).collect();
        Self { env, budget, objects }
    }

    fn put(&self, object: usize, key: u8) -> Answer<()> {
        let value = vec![key; 35].into();
        self.objects[object].1.put(&[key], value, Write::default())
    }

    fn durable(&self, object: usize) {
        self.env.run();
        self.objects[object].0.next().succeed();
        self.env.run();
    }

    fn check_sum(&self) {
        let sum: usize = self.objects.iter().map(|(_, cache)| cache.dirty_bytes()).sum();
        assert_eq!(self.budget.dirty_bytes(), sum);
    }
}

#[test]
fn writes_wait_while_all_objects_together_have_too_much_dirty() {
    let core = Core::new(TestEnv::default(), 3, 2);
    now(core.put(0, 1)).unwrap();
    now(core.put(1, 1)).unwrap();
    let mut third = core.put(2, 1);
    assert!(poll(&mut third).is_pending());
    assert_eq!(core.budget.dirty_bytes(), 3 * PUT_BYTES);
    let (_, idle) = &core.objects[1];
    assert!(now(idle.get(&[1], Read::default())).unwrap().is_some(), "reads never wait (R-347)");
    assert!(!idle.backpressure().is_ready(), "turns do, of each object (R-346)");
    core.durable(1);
    assert!(poll(&mut third).is_ready());
    assert!(core.objects[2].1.backpressure().is_ready());
    core.durable(0);
    core.durable(2);
    assert_eq!(core.budget.dirty_bytes(), 0);
}

#[test]
fn who_waits_is_woken_in_the_order_of_arrival() {
    let core = Core::new(TestEnv::default(), 4, 1);
    now(core.put(0, 1)).unwrap();
    let order = Rc::new(Cell::new(0));
    for object in 1..4 {
        let (answer, order) = (core.put(object, 1), order.clone());
        core.env.spawn("writer", async move {
            answer.await.unwrap();
            order.set(order.get() * 10 + object);
        });
    }
    core.env.run();
    // Room is only once all but one are durable.
    for (object, so_far) in [(3, 0), (0, 0), (2, 123)] {
        core.durable(object);
        assert_eq!(order.get(), so_far);
    }
}

/// One that does not go in, because it is kept and not polled, keeps nobody out.
#[test]
fn nobody_waits_for_another_to_go_in() {
    let core = Core::new(TestEnv::default(), 3, 1);
    now(core.put(0, 1)).unwrap();
    let (mut second, mut third) = (core.put(1, 1), core.put(2, 1));
    assert!(poll(&mut second).is_pending() && poll(&mut third).is_pending());
    core.durable(0);
    core.durable(1);
    assert!(poll(&mut third).is_ready());
    now(core.put(2, 1)).unwrap();
    assert!(poll(&mut second).is_ready());
}

/// What a task with the gate open waits for must not wait for it.
#[test]
fn a_wait_with_the_gate_held_ends_though_an_older_one_is_kept_out() {
    let core = Core::new(TestEnv::default(), 2, 1);
    now(core.put(1, 1)).unwrap();
    let (cache, gate) = (&core.objects[0].1, core.objects[0].1.input_gate());
    let (open, held) = (core.put(0, 1), core.put(0, 2));
    let done = Rc::new(Cell::new(0));
    let ends = |done: &Rc<Cell<i32>>| done.set(done.get() + 1);
    let (task, gate_of_held) = (done.clone(), gate.clone());
    let playing = gate.gated(
        EventId(1),
        Box::pin(async move {
            open.await.unwrap();
            ends(&task);
        }),
    );
    core.env.spawn("open", async { playing.await.unwrap() });
    core.env.run();
    let task = done.clone();
    let playing = gate.gated(
        EventId(2),
        Box::pin(async move {
            let lock = gate_of_held.hold(EventId(2));
            held.await.unwrap();
            drop(lock);
            ends(&task);
        }),
    );
    core.env.spawn("held", async { playing.await.unwrap() });
    core.env.run();
    core.durable(1);
    core.durable(0);
    assert_eq!((done.get(), cache.dirty_bytes()), (2, 0));
}

#[test]
fn what_is_lost_with_its_object_takes_no_room() {
    // A commit that fails, an object that ends before its flush, one that is dropped.
    let ends: [fn(&mut Core); 3] = [
        |core| core.objects[0].0.next().fail(Kind::Unknown),
        |core| {
            now(core.put(0, 2)).unwrap_err();
        },
        |core| {
            core.env.drop_tasks();
            core.objects.remove(0);
        },
    ];
    for (number, end) in ends.into_iter().enumerate() {
        let mut core = Core::new(TestEnv::default(), 2, 1);
        now(core.put(0, 1)).unwrap();
        if number == 1 {
            core.objects[0].1.shutdown(Error::new(Kind::Closed, "over"));
        } else {
            core.env.run();
        }
        let mut other = core.put(1, 1);
        assert!(poll(&mut other).is_pending());
        end(&mut core);
        core.env.run();
        assert!(poll(&mut other).is_ready(), "end {number}");
        core.check_sum();
    }
}

#[test]
fn a_write_that_waits_for_others_fails_with_its_own_object() {
    let core = Core::new(TestEnv::default(), 2, 1);
    now(core.put(0, 1)).unwrap();
    let mut other = core.put(1, 1);
    assert!(poll(&mut other).is_pending());
    core.env.run();
    core.objects[1].0.next().fail(Kind::Unknown);
    core.env.run();
    let Poll::Ready(result) = poll(&mut other) else { panic!("there is room") };
    assert_eq!(result.unwrap_err().kind(), Kind::Unknown);
}

#[derive(Clone, Debug)]
enum Act {
    /// An object writes a key, and a task waits for the answer.
    Put(usize, u8),
    DeleteAll(usize),
    Run,
    Durable(usize),
    Retry(usize),
    Fatal(usize),
    /// Every other one of those who wait gives up.
    GiveUp,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        8 => (0..4_usize, 0..4_u8).prop_map(|(object, key)| Act::Put(object, key)),
        1 => (0..4_usize).prop_map(Act::DeleteAll),
        3 => Just(Act::Run),
        5 => (0..4_usize).prop_map(Act::Durable),
        1 => (0..4_usize).prop_map(Act::Retry),
        1 => (0..4_usize).prop_map(Act::Fatal),
        1 => Just(Act::GiveUp),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..Default::default() })]

    #[test]
    fn every_wait_ends_and_the_sum_is_right(
        seed: u64,
        puts_max in 0..5_usize,
        acts in prop::collection::vec(act(), 0..80),
    ) {
        let core = Core::new(TestEnv::seeded(seed), 4, puts_max);
        let mut waiting: Vec<Rc<Cell<Option<Answer<()>>>>> = Vec::new();
        let wait = |waiting: &mut Vec<_>, answer: Answer<()>| {
            if answer.is_ready() {
                return;
            }
            let kept = Rc::new(Cell::new(Some(answer)));
            waiting.push(kept.clone());
            core.env.spawn("writer", poll_fn(move |cx| {
                let Some(mut answer) = kept.take() else { return Poll::Ready(()) };
                let polled = Pin::new(&mut answer).poll(cx);
                if polled.is_pending() {
                    kept.set(Some(answer));
                }
                polled.map(drop)
            }));
        };
        for act in acts {
            let has_commit = |object: usize| core.objects[object].0.has_commit();
            match act {
                Act::Put(object, key) => wait(&mut waiting, core.put(object, key)),
                Act::DeleteAll(object) => {
                    let all = core.objects[object].1.delete_all(Default::default(), Write::default());
                    wait(&mut waiting, all);
                }
                Act::Run => core.env.run(),
                Act::Durable(object) if has_commit(object) => core.objects[object].0.next().succeed(),
                Act::Retry(object) if has_commit(object) => {
                    core.objects[object].0.next().fail(Kind::Retry);
                }
                Act::Fatal(object) if has_commit(object) => {
                    core.objects[object].0.next().fail(Kind::Unknown);
                }
                Act::GiveUp => {
                    let mut place = 0;
                    waiting.retain(|answer| {
                        place += 1;
                        // Its task finds nothing to wait for.
                        (place % 2 == 0).then(|| answer.take()).is_none()
                    });
                }
                _ => {}
            }
            core.check_sum();
        }
        core.env.run();
        while core.objects.iter().any(|(store, _)| store.has_commit()) {
            for (store, _) in &core.objects {
                if store.has_commit() {
                    store.next().succeed();
                }
            }
            core.env.run();
            core.check_sum();
        }
        assert_eq!(core.budget.dirty_bytes(), 0);
        let all_answered = waiting.iter().all(|answer| answer.take().is_none());
        assert!(all_answered, "somebody waits forever");
    }
}
