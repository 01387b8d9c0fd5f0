//! Random programs of several tasks that share an object and give up at any await, before a store
//! that is slow and fails: what each sees, what becomes durable, and what may be said when.
//!
//! The model is a map for each open transaction, and the row of all states that the object has been
//! in. What is durable must be one of them, later and later; whoever was told that his writes are
//! durable must find them there.

mod model;
mod program;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use dormouse_cache::{
    AlarmRun, Answer, Budget, CacheLimits, EventId, Gated, InputGate, List, Outcome, Read, Section,
    Write, code,
};
use dormouse_engine::{Contents, Error, Host, Kind, Result};
use proptest::prelude::*;

use model::{Model, ModelTransaction, Standing};
use program::{Act, End, Step, Wait, act, steps};

use super::env::{TestEnv, yield_now};
use super::store::Store;
use super::{Cache, now, poll};

/// Ends well however it is left, as a transaction's section does.
struct OpenSection(Option<Section>);

impl Drop for OpenSection {
    fn drop(&mut self) {
        if let Some(section) = self.0.take() {
            drop(section.succeed());
        }
    }
}

fn key(number: u8) -> Bytes {
    Bytes::copy_from_slice(&[b'k', number])
}

type Transaction = dormouse_cache::Transaction<TestEnv, Store>;
type Tasks = Rc<RefCell<Vec<Rc<RefCell<Option<Gated<Result<()>>>>>>>>;

/// One task.
#[derive(Clone)]
struct Player {
    env: TestEnv,
    event: EventId,
    gate: InputGate,
    cache: Cache,
    store: Store,
    model: Rc<RefCell<Model>>,
    tasks: Tasks,
}

/// Where in its program a task is.
#[derive(Clone, Copy)]
struct Place<'a> {
    /// The transaction through whose handle it operates.
    handle: Option<&'a Transaction>,
    /// Nothing of the event goes on beside it.
    alone: bool,
}

/// The same operation through the handle, or through the object's storage.
macro_rules! on {
    ($player:expr, $place:expr, $method:ident($($arg:expr),*)) => {
        match $place.handle {
            Some(handle) => handle.$method($($arg),*),
            None => $player.cache.$method($($arg),*),
        }
    };
}

/// What is refused because of how transactions stand; the task goes on.
fn is_refusal(error: &Error) -> bool {
    let codes = [
        code::TRANSACTION_ROLLED_BACK,
        code::TRANSACTION_NESTED_OPEN,
        code::DELETE_ALL_IN_TRANSACTION,
    ];
    error.code().is_some_and(|code| codes.contains(&code))
}

/// Ends a handler's run, also one that is dropped.
struct Handler<'a>(&'a Player, Outcome);

impl Drop for Handler<'_> {
    fn drop(&mut self) {
        let Self(player, outcome) = self;
        let has_ended = player.has_ended();
        player.cache.alarm_end(*outcome);
        let mut model = player.model.borrow_mut();
        model.handler = false;
        if !has_ended {
            model.alarm_ends(*outcome);
        }
    }
}

type Playing<'a> = Pin<Box<dyn Future<Output = Result<()>> + 'a>>;

/// Both, until both are done or one fails.
async fn join(mut one: Playing<'_>, mut other: Playing<'_>) -> Result<()> {
    let mut done = [false; 2];
    poll_fn(|cx| {
        for (future, done) in [&mut one, &mut other].into_iter().zip(&mut done) {
            if !*done && let Poll::Ready(result) = future.as_mut().poll(cx) {
                result?;
                *done = true;
            }
        }
        if done == [true; 2] { Poll::Ready(Ok(())) } else { Poll::Pending }
    })
    .await
}

impl Player {
    /// As a core starts a task of an object.
    fn start(&self, steps: Vec<Step>) {
        let player = self.clone();
        let place = Place { handle: None, alone: true };
        let playing = Box::pin(async move { player.play(&steps, place).await });
        let task = Rc::new(RefCell::new(Some(self.gate.gated(self.event, playing))));
        self.tasks.borrow_mut().push(task.clone());
        self.env.spawn("task", Mortal(task));
    }

    fn has_ended(&self) -> bool {
        self.model.borrow().shut || self.cache.broken_reason().is_some()
    }

    /// Waits for an answer. The operation took effect at the call, whatever becomes of it.
    async fn wait<T>(&self, mut answer: Answer<T>, wait: Wait) -> Result<()> {
        match wait {
            _ if answer.is_ready() => answer.await.map(drop),
            Wait::Open => answer.await.map(drop),
            Wait::Held => {
                let lock = self.gate.hold(self.event);
                let result = answer.await;
                drop(lock);
                result.map(drop)
            }
            Wait::Dropped => {
                assert!(poll(&mut answer).is_pending());
                Ok(())
            }
        }
    }

    /// The answer, and what it does to the object unless it is refused.
    fn made<T>(&self, answer: Answer<T>, change: impl FnOnce(&mut Model)) -> Result<Answer<T>> {
        match answer.try_ready() {
            Ok(Err(error)) => Err(error),
            Ok(ready) => {
                change(&mut self.model.borrow_mut());
                Ok(Answer::ready(ready))
            }
            Err(waiting) => {
                change(&mut self.model.borrow_mut());
                Ok(waiting)
            }
        }
    }

    fn value(&self, bytes: usize) -> Bytes {
        let mut model = self.model.borrow_mut();
        model.values += 1;
        let mut value = model.values.to_be_bytes().to_vec();
        value.resize(bytes.max(8), 0);
        value.into()
    }

    /// Does its steps; the error is that of a cache that has ended.
    fn play<'a>(&'a self, steps: &'a [Step], place: Place<'a>) -> Playing<'a> {
        Box::pin(async move {
            for step in steps {
                let done = match step {
                    Step::Transaction { steps, own, end } => {
                        self.transaction(steps, *own, *end, place).await
                    }
                    Step::Join(one, other) => {
                        let place = Place { alone: false, ..place };
                        join(self.play(one, place), self.play(other, place)).await
                    }
                    Step::Beside(steps) => {
                        self.beside(steps.clone());
                        Ok(())
                    }
                    Step::Alarm { at_ms, steps, outcome } => {
                        self.alarm(*at_ms, steps, *outcome, place).await
                    }
                    _ => self.step(step, place).await,
                };
                done.or_else(|error| if is_refusal(&error) { Ok(()) } else { Err(error) })?;
            }
            Ok(())
        })
    }

    async fn step(&self, step: &Step, place: Place<'_>) -> Result<()> {
        match step {
            Step::Put(number, bytes, options, wait) => {
                let (key, value) = (key(*number), self.value(*bytes));
                let answer = on!(self, place, put(&key, value.clone(), *options));
                let confirms = !options.allows_unconfirmed();
                let answer = self.made(answer, |model| {
                    model.change(confirms, |(map, _)| drop(map.insert(key, value)));
                })?;
                self.wait(answer, *wait).await
            }
            Step::PutMany(numbers, wait) => {
                let entry = |number: &u8| (key(*number), self.value(8));
                let entries: Vec<_> = numbers.iter().map(entry).collect();
                let answer = on!(self, place, put_many(&entries, Write::default()));
                let change = |model: &mut Model| model.change(true, |(map, _)| map.extend(entries));
                let answer = self.made(answer, change)?;
                self.wait(answer, *wait).await
            }
            Step::Delete(numbers, options, wait) => {
                let keys: Vec<_> = numbers.iter().map(|number| key(*number)).collect();
                let slices: Vec<&[u8]> = keys.iter().map(|key| &key[..]).collect();
                let answer = on!(self, place, delete_many(&slices, *options));
                let mut there = 0;
                let confirms = !options.allows_unconfirmed();
                let answer = self.made(answer, |model| {
                    model.change(confirms, |(map, _)| {
                        there = keys.iter().filter(|key| map.remove(*key).is_some()).count();
                    });
                })?;
                self.wait(answer.map(move |count| assert_eq!(count, there)), *wait).await
            }
            Step::DeleteAll(too, wait) => {
                let answer = on!(self, place, delete_all(*too, Write::default()));
                let answer = self.made(answer, |model| model.delete_all(*too))?;
                self.wait(answer, *wait).await
            }
            Step::SetAlarm(at_ms, wait) => {
                let answer = on!(self, place, set_alarm(*at_ms, Write::default()));
                let answer = self.made(answer, |model| model.set_alarm(*at_ms, true))?;
                self.wait(answer, *wait).await
            }
            Step::Get(number, options) => {
                let found = now(on!(self, place, get(&key(*number), *options)))?;
                assert_eq!(found, self.model.borrow().map().get(&key(*number)).cloned());
                Ok(())
            }
            Step::List(options) => {
                let found: BTreeMap<_, _> =
                    now(on!(self, place, list(&List::all(), *options)))?.into_iter().collect();
                let alarm = now(on!(self, place, get_alarm(*options)))?;
                let model = self.model.borrow();
                assert_eq!((&found, alarm), (model.map(), model.alarm()));
                Ok(())
            }
            Step::Say => {
                let since = self.model.borrow().confirmed;
                self.cache.output_gate().wait().await?;
                self.model.borrow_mut().check_durable(&self.store.durable(), since);
                Ok(())
            }
            Step::Sync => {
                let since = self.model.borrow().history.len() - 1;
                self.cache.sync().await?;
                self.model.borrow_mut().check_durable(&self.store.durable(), since);
                Ok(())
            }
            Step::Rest => {
                yield_now().await;
                Ok(())
            }
            _ => unreachable!("handled elsewhere"),
        }
    }

    async fn transaction(
        &self,
        steps: &[Step],
        own: bool,
        end: End,
        place: Place<'_>,
    ) -> Result<()> {
        let section = self.gate.section(self.event, self.event)?.await?;
        let section = OpenSection(Some(section));
        let transaction = self.cache.begin();
        let open = ModelTransaction::begin(&self.model);
        if let Some(around) = place.handle.filter(|around| !around.is_rolled_back()) {
            let refused = now(around.commit()).unwrap_err();
            assert_eq!(refused.code(), Some(code::TRANSACTION_NESTED_OPEN));
            let refused = around.rollback().unwrap_err();
            assert_eq!(refused.code(), Some(code::TRANSACTION_NESTED_OPEN));
        }
        let handle = Some(&transaction).filter(|_| !own);
        self.play(steps, Place { handle, ..place }).await?;
        let refusal = match open.standing() {
            Standing::Innermost => None,
            Standing::Around => Some(code::TRANSACTION_NESTED_OPEN),
            Standing::Lost => Some(code::TRANSACTION_ROLLED_BACK),
        };
        match end {
            End::Commit(wait) => {
                let answer = match transaction.commit().try_ready() {
                    Ok(Err(error)) => {
                        let says = error.code().filter(|_| is_refusal(&error));
                        assert!(says == refusal || self.has_ended(), "{error}");
                        return Err(error);
                    }
                    Ok(ready) => Answer::ready(ready),
                    Err(waiting) => waiting,
                };
                assert_eq!(refusal, None, "it ended well");
                open.commit();
                drop(section);
                self.wait(answer, wait).await?;
            }
            End::Rollback => {
                let result = transaction.rollback();
                let refused = refusal == Some(code::TRANSACTION_NESTED_OPEN);
                assert_eq!(result.is_err(), refused);
                now(transaction.commit()).err().map_or(Ok(()), |error| match refused {
                    true => Err(error),
                    false => unreachable!("rolled back: {error}"),
                })?;
            }
            End::Drop => drop(transaction),
        }
        Ok(())
    }

    fn beside(&self, steps: Vec<Step>) {
        let event = {
            let mut model = self.model.borrow_mut();
            model.events += 1;
            EventId(1000 + model.events)
        };
        self.gate.adopt(event, self.event);
        Self { event, ..self.clone() }.start(steps);
    }

    /// Whether the handler of an alarm runs.
    fn alarm_begins(&self, at_ms: u64) -> bool {
        let has_ended = self.has_ended();
        let runs = self.cache.alarm_begin(at_ms) == AlarmRun::Run;
        let mut model = self.model.borrow_mut();
        match has_ended {
            true => assert!(!runs),
            false if model.alarm_begins(at_ms) => assert!(runs),
            false => assert!(!runs || model.may_run(at_ms)),
        }
        model.handler = runs;
        runs
    }

    /// The handler of an alarm; only one runs at a time, as an event of its own.
    async fn alarm(
        &self,
        at_ms: u64,
        steps: &[Step],
        outcome: Outcome,
        place: Place<'_>,
    ) -> Result<()> {
        let is_free = {
            let model = self.model.borrow();
            place.alone && !model.handler && model.open.len() == 1
        };
        if !is_free {
            return Ok(());
        }
        if !self.alarm_begins(at_ms) {
            return Ok(());
        }
        let mut handler = Handler(self, Outcome::Failed);
        self.play(steps, place).await?;
        if self.model.borrow().open.len() == 1 {
            handler.1 = outcome;
        }
        drop(handler);
        Ok(())
    }
}

/// A task that can be dropped wherever it waits.
struct Mortal(Rc<RefCell<Option<Gated<Result<()>>>>>);

impl Future for Mortal {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut task = self.0.borrow_mut();
        let Some(alive) = &mut *task else { return Poll::Ready(()) };
        match Pin::new(alive).poll(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(played) => {
                let _ended_cache = played.expect("the input gate does not break");
                *task = None;
                Poll::Ready(())
            }
        }
    }
}

fn play(seed: u64, budget: usize, programs: Vec<Vec<Step>>, acts: Vec<Act>) {
    let (env, store) = (TestEnv::seeded(seed), Store::new(&Contents::default()));
    let limits = CacheLimits {
        dirty_bytes_max: 300,
        flush_attempts_max: 4,
        kept_bytes_max: usize::MAX,
        ..CacheLimits::TINY
    };
    let budget = Budget::new(budget);
    let cache = Cache::new(&env, store.clone(), Contents::default(), limits, &budget);
    let (gate, model) = (cache.input_gate(), Rc::new(RefCell::new(Model::new())));
    let tasks = Tasks::default();
    for (number, steps) in (1..).zip(programs) {
        let (env, gate, cache) = (env.clone(), gate.clone(), cache.clone());
        let (store, model, tasks) = (store.clone(), model.clone(), tasks.clone());
        Player { env, event: EventId(number), gate, cache, store, model, tasks }.start(steps);
    }
    for act in acts {
        match act {
            Act::Run => env.run(),
            Act::Kill(number) => {
                let task = tasks.borrow().get(number).cloned();
                drop(task.and_then(|task| task.borrow_mut().take()));
            }
            Act::Timeout => env.pass(limits.flush_max + Duration::from_secs(1)),
            Act::Shutdown => {
                cache.shutdown(Error::new(Kind::Closed, "reset"));
                model.borrow_mut().shut = true;
            }
            _ if !store.has_commit() => {}
            Act::Durable => {
                store.next().succeed();
                model.borrow_mut().check_durable(&store.durable(), 0);
            }
            Act::Retry => store.next().fail(Kind::Retry),
            Act::Fatal => store.next().fail(Kind::Unknown),
        }
        assert_eq!(budget.dirty_bytes(), cache.dirty_bytes());
    }
    env.run();
    while store.has_commit() {
        store.next().succeed();
        model.borrow_mut().check_durable(&store.durable(), 0);
        env.run();
    }
    let mut model = model.borrow_mut();
    model.check_durable(&store.durable(), 0);
    let all_ended = tasks.borrow().iter().all(|task| task.borrow().is_none());
    assert!(all_ended, "somebody waits forever");
    assert!(gate.is_idle() && cache.is_idle());
    assert_eq!((model.open.len(), model.handler), (1, false), "nothing is left open");
    assert_eq!(budget.dirty_bytes(), 0);
    if cache.broken_reason().is_none() && !model.shut {
        let last = model.history.len() - 1;
        model.check_durable(&store.durable(), last);
        assert!(cache.output_gate().is_open());
    } else {
        assert!(now(cache.get(b"k", Read::default())).is_err());
        env.run();
        assert!(poll(&mut cache.output_gate().wait()).is_ready());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..Default::default() })]

    #[test]
    fn tasks_that_give_up_anywhere_leave_what_the_object_saw(
        seed: u64,
        budget in prop::sample::select(vec![100, 300, usize::MAX]),
        programs in prop::collection::vec(steps(), 1..5),
        acts in prop::collection::vec(act(), 0..60),
    ) {
        play(seed, budget, programs, acts);
    }
}
