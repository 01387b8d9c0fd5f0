//! Random programs of several tasks that share an object and give up at any await, before a store
//! that is slow and fails: what each sees, what becomes durable, and what may be said when.
//!
//! The model is a map for each open transaction, and the row of all states that the object has been
//! in. What is durable must be one of them, later and later; whoever was told that his writes are
//! durable must find them there.

mod model;
mod program;

use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use dormouse_cache::{
    AlarmToo, Answer, Budget, CacheLimits, EventId, Gated, InputGate, List, Read, Section, Write,
};
use dormouse_engine::{Contents, Host, Kind, Result};
use proptest::prelude::*;

use model::{Model, ModelTransaction, State};
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

/// One task.
#[derive(Clone)]
struct Player {
    event: EventId,
    gate: InputGate,
    cache: Cache,
    store: Store,
    model: Rc<RefCell<Model>>,
}

impl Player {
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
    fn made<T>(
        &self,
        answer: Answer<T>,
        confirms: bool,
        change: impl FnOnce(&mut State),
    ) -> Result<Answer<T>> {
        match answer.try_ready() {
            Ok(Err(error)) => Err(error),
            Ok(ready) => {
                self.model.borrow_mut().change(confirms, change);
                Ok(Answer::ready(ready))
            }
            Err(waiting) => {
                self.model.borrow_mut().change(confirms, change);
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
    fn play<'a>(
        &'a self,
        steps: &'a [Step],
        depth: usize,
    ) -> Pin<Box<dyn Future<Output = Result<()>> + 'a>> {
        Box::pin(async move {
            for step in steps {
                match step {
                    Step::Transaction(steps, end) => self.transaction(steps, *end, depth).await?,
                    _ => self.step(step, depth).await?,
                }
            }
            Ok(())
        })
    }

    async fn step(&self, step: &Step, depth: usize) -> Result<()> {
        let cache = &self.cache;
        match step {
            Step::Put(number, bytes, options, wait) => {
                let (key, value) = (key(*number), self.value(*bytes));
                let answer = cache.put(&key, value.clone(), *options);
                let confirms = !options.allows_unconfirmed();
                let answer = self.made(answer, confirms, |(map, _)| {
                    map.insert(key, value);
                })?;
                self.wait(answer, *wait).await
            }
            Step::PutMany(numbers, wait) => {
                let entry = |number: &u8| (key(*number), self.value(8));
                let entries: Vec<_> = numbers.iter().map(entry).collect();
                let answer = cache.put_many(&entries, Write::default());
                let answer = self.made(answer, true, |(map, _)| map.extend(entries))?;
                self.wait(answer, *wait).await
            }
            Step::Delete(numbers, options, wait) => {
                let keys: Vec<_> = numbers.iter().map(|number| key(*number)).collect();
                let slices: Vec<&[u8]> = keys.iter().map(|key| &key[..]).collect();
                let answer = cache.delete_many(&slices, *options);
                let mut there = 0;
                let confirms = !options.allows_unconfirmed();
                let answer = self.made(answer, confirms, |(map, _)| {
                    there = keys.iter().filter(|key| map.remove(*key).is_some()).count();
                })?;
                self.wait(answer.map(move |count| assert_eq!(count, there)), *wait).await
            }
            Step::DeleteAll(too, wait) => {
                let answer = cache.delete_all(*too, Write::default());
                if depth > 0 {
                    let code = now(answer).unwrap_err().code();
                    return match code {
                        Some("delete-all-in-transaction") => Ok(()),
                        // The cache has ended.
                        _ => now(cache.get_alarm(Read::default())).map(drop),
                    };
                }
                let answer = self.made(answer, true, |(map, alarm)| {
                    map.clear();
                    *alarm = alarm.filter(|_| *too == AlarmToo::Keep);
                })?;
                self.wait(answer, *wait).await
            }
            Step::SetAlarm(at_ms, wait) => {
                let answer = cache.set_alarm(*at_ms, Write::default());
                let answer = self.made(answer, true, |(_, alarm)| *alarm = *at_ms)?;
                self.wait(answer, *wait).await
            }
            Step::Get(number, options) => {
                let found = now(cache.get(&key(*number), *options))?;
                assert_eq!(found, self.model.borrow().seen().0.get(&key(*number)).cloned());
                Ok(())
            }
            Step::List(options) => {
                let found = now(cache.list(&List::all(), *options))?.into_iter().collect();
                let alarm = now(cache.get_alarm(*options))?;
                assert_eq!((found, alarm), *self.model.borrow().seen());
                Ok(())
            }
            Step::Say => {
                let since = self.model.borrow().confirmed;
                cache.output_gate().wait().await?;
                self.model.borrow_mut().check_durable(&self.store.durable(), since);
                Ok(())
            }
            Step::Sync => {
                let since = self.model.borrow().history.len() - 1;
                cache.sync().await?;
                self.model.borrow_mut().check_durable(&self.store.durable(), since);
                Ok(())
            }
            Step::Rest => {
                yield_now().await;
                Ok(())
            }
            Step::Transaction(..) => unreachable!("handled elsewhere"),
        }
    }

    async fn transaction(&self, steps: &[Step], end: End, depth: usize) -> Result<()> {
        let section = self.gate.section(self.event, self.event)?.await?;
        let section = OpenSection(Some(section));
        let transaction = self.cache.begin();
        let open = {
            let mut model = self.model.borrow_mut();
            model.begin();
            ModelTransaction(self.model.clone(), model.open.len() - 1)
        };
        self.play(steps, depth + 1).await?;
        match end {
            End::Commit(wait) => {
                let answer = transaction.commit();
                let answer = match answer.try_ready() {
                    Ok(Err(error)) => return Err(error),
                    Ok(ready) => Answer::ready(ready),
                    Err(waiting) => waiting,
                };
                self.model.borrow_mut().commit();
                drop(open);
                self.wait(answer, wait).await?;
            }
            End::Rollback => transaction.rollback()?,
            End::Drop => drop(transaction),
        }
        drop(section);
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

fn play(seed: u64, programs: Vec<Vec<Step>>, acts: Vec<Act>) {
    let (env, store) = (TestEnv::seeded(seed), Store::new(&Contents::default()));
    let limits = CacheLimits { dirty_bytes_max: 300, flush_attempts_max: 4, ..CacheLimits::TINY };
    let budget = Budget::new(usize::MAX);
    let cache = Cache::new(&env, store.clone(), Contents::default(), limits, &budget);
    let (gate, model) = (cache.input_gate(), Rc::new(RefCell::new(Model::new())));
    let mut tasks = Vec::new();
    for (number, steps) in (1..).zip(programs) {
        let (cache, store, model) = (cache.clone(), store.clone(), model.clone());
        let event = EventId(number);
        let player = Player { event, gate: gate.clone(), cache, store, model };
        let task = gate.gated(event, Box::pin(async move { player.play(&steps, 0).await }));
        let task = Rc::new(RefCell::new(Some(task)));
        tasks.push(task.clone());
        env.spawn("task", Mortal(task));
    }
    for act in acts {
        match act {
            Act::Run => env.run(),
            Act::Kill(number) => {
                let task = tasks.get(number).and_then(|task| task.borrow_mut().take());
                drop(task);
            }
            _ if !store.has_commit() => {}
            Act::Durable => {
                store.next().succeed();
                model.borrow_mut().check_durable(&store.durable(), 0);
            }
            Act::Retry => store.next().fail(Kind::Retry),
            Act::Fatal => store.next().fail(Kind::Unknown),
        }
    }
    env.run();
    while store.has_commit() {
        store.next().succeed();
        model.borrow_mut().check_durable(&store.durable(), 0);
        env.run();
    }
    let mut model = model.borrow_mut();
    model.check_durable(&store.durable(), 0);
    assert!(tasks.iter().all(|task| task.borrow().is_none()), "somebody waits forever");
    assert!(gate.is_idle() && cache.is_idle());
    assert_eq!(model.open.len(), 1, "no transaction is left open");
    if cache.broken_reason().is_none() {
        let last = model.history.len() - 1;
        model.check_durable(&store.durable(), last);
        assert!(cache.output_gate().is_open());
        assert_eq!(cache.dirty_bytes(), 0);
    } else {
        assert!(now(cache.get(b"k", Read::default())).is_err());
        assert!(poll(&mut cache.output_gate().wait()).is_ready());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..Default::default() })]

    #[test]
    fn tasks_that_give_up_anywhere_leave_what_the_object_saw(
        seed: u64,
        programs in prop::collection::vec(steps(), 1..5),
        acts in prop::collection::vec(act(), 0..60),
    ) {
        play(seed, programs, acts);
    }
}
