//! The object of a life: it does what a [`Turn`] says, and tells the ghost as it does it.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use anyhow::ensure;
use bytes::Bytes;
use dormouse_cache::AlarmToo;
use dormouse_scheduler::Kind;
use dormouse_scheduler::prelude::*;
use futures_util::FutureExt;
use futures_util::future::{Either, LocalBoxFuture, select};

use super::ghost::{Contents, Effect, Ghost};
use super::line::Told;
use super::shared::{Mark, Shared, shared};
use super::talk::Handle;
use crate::plan::{Change, Close, Fate, Op, Turn, Work, key};

/// Runs after which an alarm's handler does nothing more: one that sets itself again and again would
/// fill a life whose clients wait for minutes.
const ALARM_RUNS_MAX: usize = 400;

/// What an object is asked to do.
pub(super) struct Ask {
    /// Which request it is: a number for each, rising.
    pub(super) token: u64,
    /// The client, for whom order is kept.
    pub(super) client: Option<u64>,
    /// The object that asks, and how many of its groups must be durable when this arrives.
    pub(super) from: Option<(String, u64)>,
    pub(super) turn: Turn,
}

/// An object that lives by its plan.
pub(super) struct Actor(Rc<Inner>);

pub(super) struct Inner {
    pub(super) state: State,
    pub(super) shared: Rc<Shared>,
    pub(super) name: String,
    pub(super) instance: u64,
    /// Its plan had it end itself.
    ended: Cell<bool>,
    /// Events of sockets: whose they are.
    pub(super) events: RefCell<BTreeMap<u64, (u64, Handle)>>,
    /// What events said since they last could wait: event, line and number.
    pub(super) unsaid: RefCell<Vec<(u64, u64, u64)>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        let instance = self.instance;
        let evicted = self.shared.evicting.borrow().contains(&self.name);
        let deleted = self.shared.on(&self.name, |ghost| Ok(ghost.leaves(instance)));
        let closing = self.shared.closing.get() || self.shared.lenient.get();
        let excused = self.ended.get() || deleted || closing;
        if !evicted && !excused {
            self.shared.mark(Mark::LeftWhenIdle);
        }
        self.shared.works_left(&self.name, instance, excused);
    }
}

/// The retry after which an alarm is given up.
const LAST_RETRY: u32 = 6;

/// An error that the plan asks for.
pub(super) fn planned() -> Error {
    Error::user("as planned")
}

/// The name of the object of this number.
pub(super) fn name(object: u8) -> String {
    format!("object-{object}")
}

fn bytes(len: u16, fill: u8) -> Bytes {
    Bytes::from(vec![fill; usize::from(len)])
}

impl DurableObject for Actor {
    fn new(state: State) -> Self {
        let shared = shared();
        let (name, instance) = (state.id().to_string(), shared.number());
        shared.on(&name, |ghost| {
            let other = ghost.instance.replace(instance);
            ensure!(other.is_none(), "two live instances, {other:?} and {instance}");
            Ok(())
        });
        let inner = Rc::new(Inner {
            state,
            shared,
            name,
            instance,
            ended: Cell::new(false),
            events: RefCell::default(),
            unsaid: RefCell::default(),
        });
        inner.check_birth();
        let this = inner.clone();
        drop(inner.state.block_concurrency_while(async move || this.activate().await));
        Self(inner)
    }

    async fn fetch(&self, request: Request) -> Result<Response> {
        match super::body::token_of(&request) {
            Some(token) => self.0.exchange(token, request).await,
            None => self.0.open(request).await,
        }
    }

    async fn web_socket_message(&self, socket: &WebSocket, message: Message) -> Result<()> {
        self.0.socket_message(socket, message).await
    }

    async fn web_socket_close(&self, socket: &WebSocket, closed: Closed) -> Result<()> {
        self.0.socket_ends(socket, Told::Closed(closed)).await
    }

    async fn web_socket_error(&self, socket: &WebSocket, error: Error) -> Result<()> {
        self.0.socket_ends(socket, Told::Error(error)).await
    }

    async fn alarm(&self, info: AlarmInfo) -> Result<()> {
        let this = &self.0;
        let event = this.shared.number();
        let now = this.state.now_ms().max(this.shared.wall_max_ms.get());
        let runs = this.shared.on(&this.name, |ghost| {
            ensure!(now >= info.scheduled_ms, "the alarm of {} fires at {now}", info.scheduled_ms);
            this.may_run(ghost, event)?;
            ghost.alarm_begins(event, info.scheduled_ms, info.retry_count)?;
            Ok(ghost.alarm_runs)
        });
        this.shared.note(|| format!("{} alarm {info:?}", this.name));
        this.shared.mark(if info.is_retry { Mark::AlarmRetried } else { Mark::AlarmFired });
        this.shared.count(true);
        let plans = &this.shared.alarms;
        let spent = runs > ALARM_RUNS_MAX || this.shared.quiet.get();
        let result = match spent || plans.is_empty() {
            true => Ok(()),
            // The last run never ends its instance: such an alarm is gone with the next delivery, of which
            // no code of the object is told (R-640; sim/tests/alarms.rs).
            false if info.retry_count == LAST_RETRY => match plans[runs % plans.len()].fate {
                Fate::Fine => Ok(()),
                _ => Err(planned()),
            },
            false => this.clone().turn(event, &plans[runs % plans.len()]).await,
        };
        // Whether its writes were durable decides whether a failure counts.
        let counts = !this.shared.lenient.get();
        let given_up = this.shared.on(&this.name, |ghost| {
            ghost.pause();
            ghost.alarm_ends(event, info.retry_count, result.is_ok(), counts)
        });
        if given_up {
            this.shared.mark(Mark::AlarmGivenUp);
        }
        result
    }
}

impl Handler<Ask> for Actor {
    type Reply = u64;

    async fn handle(&self, request: Ask) -> Result<u64> {
        let (this, token) = (&self.0, request.token);
        let shared = &this.shared;
        shared.check(&this.name, shared.arrives(&this.name, token, request.client));
        shared.called(&this.name, token);
        if let Some((caller, groups)) = &request.from {
            shared.mark(Mark::CalledFromAnObject);
            shared.on(caller, |ghost| {
                ghost.acknowledge(*groups);
                Ok(())
            });
        }
        let result = this.clone().turn(token, &request.turn).await;
        let groups = shared.on(&this.name, |ghost| {
            ghost.pause();
            Ok(ghost.confirmed())
        });
        shared.ended.borrow_mut().insert(token, (this.name.clone(), groups));
        result.map(|()| token)
    }
}

impl Inner {
    async fn activate(&self) -> Result<()> {
        let storage = self.state.storage();
        let pairs = storage.list_bytes(&List::all()).await?;
        let alarm = storage.get_alarm().await?;
        self.shared.note(|| format!("{} lives: {} keys, alarm {alarm:?}", self.name, pairs.len()));
        let found = Contents { pairs: pairs.into_iter().collect(), alarm };
        let lenient = self.shared.lenient.get();
        let lost = self.shared.on(&self.name, |ghost| {
            ghost.may_lose |= lenient;
            if ghost.may_lose && alarm.is_some() {
                self.shared.mark(Mark::AlarmFoundAfterAReset);
            }
            ghost.activated(self.instance, found)
        });
        if lost {
            self.shared.mark(Mark::LostUnacknowledged);
        }
        self.shared.count(false);
        Ok(())
    }

    /// No event of a dead instance runs, and none beside one that has the object to itself.
    fn may_run(&self, ghost: &Ghost, event: u64) -> anyhow::Result<()> {
        ensure!(ghost.instance == Some(self.instance), "event {event} of a dead instance runs");
        let holder = ghost.exclusive.filter(|holder| *holder != event);
        ensure!(holder.is_none(), "event {event} runs while {holder:?} has the object to itself");
        Ok(())
    }

    pub(super) fn on<T: Default>(
        &self,
        event: u64,
        use_it: impl FnOnce(&mut Ghost) -> anyhow::Result<T>,
    ) -> T {
        self.shared.on(&self.name, |ghost| {
            self.may_run(ghost, event)?;
            use_it(ghost)
        })
    }

    pub(super) async fn turn(self: Rc<Self>, event: u64, turn: &Turn) -> Result<()> {
        let storage = self.state.storage();
        let mut made = Vec::new();
        self.run(event, storage, &turn.ops, &mut made).await?;
        // Writes that nobody waits for are made all the same.
        drop(made);
        if matches!(turn.fate, Fate::Fine | Fate::Error) {
            self.unsaid.borrow_mut().retain(|(of, ..)| *of != event);
        }
        match turn.fate {
            Fate::Fine => Ok(()),
            Fate::Error => {
                self.shared.mark(Mark::ErrorWasAnswered);
                Err(planned())
            }
            Fate::Abort | Fate::Panic => {
                self.is_reset(event);
                let abort = turn.fate == Fate::Abort;
                self.shared.mark(if abort { Mark::Aborted } else { Mark::Panicked });
                self.shared.note(|| format!("{} {:?}", self.name, turn.fate));
                if !abort {
                    // As a panic, but without its message on the screen.
                    std::panic::resume_unwind(Box::new("as planned"));
                }
                self.state.abort("as planned").await;
                Ok(())
            }
        }
    }

    /// What an event does next resets the object.
    fn is_reset(&self, event: u64) {
        self.on(event, |ghost| {
            ghost.reset();
            Ok(())
        });
        self.unsay(event);
        self.shared.lines_reset(&self.name);
        self.ended.set(true);
    }

    /// Does operations; writes at their end that were not waited for stay in `made`, and reads ahead of them.
    pub(super) fn run<'a>(
        self: &'a Rc<Self>,
        event: u64,
        storage: &'a Storage,
        ops: &'a [Op],
        made: &'a mut Vec<LocalBoxFuture<'static, Result<()>>>,
    ) -> LocalBoxFuture<'a, Result<()>> {
        async move {
            for op in ops {
                let begun = self.begin(event, storage, op, made);
                self.shared.count(begun && !matches!(op, Op::Ahead(_)));
                if !matches!(op, Op::Say(..) | Op::Shut(..) | Op::Work(Work::Dropped)) {
                    self.unsaid.borrow_mut().retain(|(of, ..)| *of != event);
                }
                if !begun {
                    self.finish(event, made).await?;
                    self.other(event, storage, op).await?;
                }
            }
            Ok(())
        }
        .boxed_local()
    }

    /// Waits for the writes that were made, and reads ahead of them: until then no other event runs.
    pub(super) async fn finish(
        &self,
        event: u64,
        made: &mut Vec<LocalBoxFuture<'static, Result<()>>>,
    ) -> Result<()> {
        if made.is_empty() {
            return Ok(());
        }
        self.on(event, |ghost| {
            ghost.pause();
            Ok(())
        });
        for write in std::mem::take(made) {
            self.alone(event, write).await?;
        }
        Ok(())
    }

    /// Waits for storage; no other event may run meanwhile.
    async fn alone<T>(&self, event: u64, wait: impl Future<Output = T>) -> T {
        let mut wait = std::pin::pin!(wait);
        if let Some(ready) = wait.as_mut().now_or_never() {
            return ready;
        }
        self.shared.mark(Mark::WaitedForStorage);
        let had = self.on(event, |ghost| Ok(ghost.exclusive.replace(event)));
        let result = wait.await;
        self.on(event, |ghost| {
            ghost.exclusive = had;
            Ok(())
        });
        result
    }

    /// Begins the operation if it is a write, or a read that is waited for together with what comes next.
    fn begin(
        self: &Rc<Self>,
        event: u64,
        storage: &Storage,
        op: &Op,
        made: &mut Vec<LocalBoxFuture<'static, Result<()>>>,
    ) -> bool {
        let removed = |effect| self.on(event, |ghost| ghost.write(effect, true));
        let put = |number: u8, len, fill, confirmed| {
            let (key, value) = (key(number), bytes(len, fill));
            self.on(event, |ghost| ghost.write(Effect::Put(key.clone(), value.clone()), confirmed));
            (key, value)
        };
        let shared = self.shared.clone();
        let counted = move |what: &'static str, wanted: usize, got: usize| {
            if wanted != got {
                shared.fail(format!("{what} removed {got} keys, not {wanted}"));
            }
        };
        self.shared.note(|| format!("{} {event} {op:?}", self.name));
        let made_now = match op {
            Op::Write(Change::Put(number, len, fill)) => {
                let (key, value) = put(*number, *len, *fill, true);
                storage.put_bytes(&key, value).boxed_local()
            }
            Op::Unconfirmed(number, len, fill) => {
                let (key, value) = put(*number, *len, *fill, false);
                storage.put_bytes_with(&key, value, Write::allow_unconfirmed()).boxed_local()
            }
            Op::PutMany(puts) => {
                let pairs: Vec<_> = puts
                    .iter()
                    .map(|(number, len, fill)| put(*number, *len, *fill, true))
                    .collect();
                let pairs: Vec<_> =
                    pairs.iter().map(|(key, value)| (&**key, value.clone())).collect();
                storage.put_many_bytes(&pairs).boxed_local()
            }
            Op::Write(Change::Delete(number)) => {
                let key = key(*number);
                let wanted = removed(Effect::Delete(key.clone()));
                let deleted = storage.delete(&key);
                async move {
                    counted("a delete", wanted, usize::from(deleted.await?));
                    Ok(())
                }
                .boxed_local()
            }
            Op::DeleteMany(numbers) => {
                let keys: Vec<_> = numbers.iter().map(|number| key(*number)).collect();
                let wanted = keys.iter().map(|key| removed(Effect::Delete(key.clone()))).sum();
                let keys: Vec<&str> = keys.iter().map(|key| &**key).collect();
                let deleted = storage.delete_many(&keys);
                async move {
                    counted("a delete of many", wanted, deleted.await?);
                    Ok(())
                }
                .boxed_local()
            }
            Op::Write(Change::DeleteAll(alarm_too)) => {
                removed(Effect::DeleteAll { alarm_too: *alarm_too });
                let alarm = if *alarm_too { AlarmToo::Clear } else { AlarmToo::Keep };
                storage.delete_all_with(alarm, Write::default()).boxed_local()
            }
            Op::Write(Change::Alarm(ms)) => {
                if self.on(event, |ghost| Ok(ghost.alarm_runs_now())) {
                    self.shared.mark(Mark::AlarmSetWhileItsHandlerRuns);
                }
                removed(Effect::Alarm(Some(self.state.now_ms() + u64::from(*ms))));
                storage.set_alarm(In(Duration::from_millis(u64::from(*ms)))).boxed_local()
            }
            Op::Write(Change::NoAlarm) => {
                removed(Effect::Alarm(None));
                storage.delete_alarm().boxed_local()
            }
            Op::Ahead(read) => match self.read_begun(event, storage, read) {
                Some(read) => read,
                None => return false,
            },
            _ => return false,
        };
        made.push(made_now);
        true
    }

    async fn other(self: &Rc<Self>, event: u64, storage: &Storage, op: &Op) -> Result<()> {
        match op {
            Op::Pause(us) => {
                self.state.sleep(Duration::from_micros(u64::from(*us))).await;
                self.on(event, |_| Ok(()));
            }
            Op::Transaction(ops, close) => self.transaction(event, storage, ops, *close).await?,
            Op::Section(ops) => self.section(event, ops.clone()).await?,
            Op::Beside(ops) => {
                let (this, ops, event) = (self.clone(), ops.clone(), self.shared.number());
                self.state.wait_until(async move {
                    let mut made = Vec::new();
                    let storage = this.state.storage();
                    let result = this.run(event, storage, &ops, &mut made).await;
                    this.tolerate(result);
                    this.on(event, |ghost| {
                        ghost.pause();
                        Ok(())
                    });
                });
            }
            Op::Call(object, turn) => self.call(event, *object, turn).await,
            Op::Work(how) => self.work(event, *how).await?,
            Op::Say(..) | Op::Shut(..) | Op::Attach(..) | Op::AutoResponse(_) => {
                self.socket_op(event, op);
            }
            _ => self.read(event, storage, op).await?,
        }
        Ok(())
    }

    pub(super) fn tolerate(&self, result: Result<()>) {
        if let Err(error) = result
            && !self.shared.lenient.get()
            && !self.shared.closing.get()
        {
            self.shared.fail(format!("{}: {error:?}", self.name));
        }
    }

    async fn call(self: &Rc<Self>, event: u64, object: u8, turn: &Turn) {
        let from = self.on(event, |ghost| Ok(ghost.confirmed()));
        let token = self.shared.number();
        let from = Some((self.name.clone(), from));
        let request = Ask { token, client: None, from, turn: turn.clone() };
        let others = super::stack::namespace();
        let other = others.get_by_name(&name(object));
        let callee = other.id().to_string();
        self.shared.calls(&callee, token);
        let reply = other.call(request).await;
        self.shared.called(&callee, token);
        self.on(event, |_| Ok(()));
        match reply {
            Ok(got) => self.shared.answered(token, Some(got)),
            Err(error) if error.kind() == Kind::User => self.shared.answered(token, None),
            Err(error) if error.reset() => {}
            Err(error) if error.is_overloaded() => self.shared.refused(&error),
            Err(error) => self.tolerate(Err(error)),
        }
    }

    /// Asks for keys; what comes must be what they are now, whatever is written before it comes.
    fn read_begun(
        self: &Rc<Self>,
        event: u64,
        storage: &Storage,
        op: &Op,
    ) -> Option<LocalBoxFuture<'static, Result<()>>> {
        let this = self.clone();
        Some(match op {
            Op::Get(number) => {
                let key = key(*number);
                let read = storage.get_bytes(&key);
                let wanted = self.on(event, |ghost| ghost.get(&key));
                async move {
                    this.same(&key, &read.await?, &wanted);
                    Ok(())
                }
                .boxed_local()
            }
            Op::GetMany(numbers) => {
                let mut keys: Vec<_> = numbers.iter().map(|number| key(*number)).collect();
                let names: Vec<&str> = keys.iter().map(|key| &**key).collect();
                let read = storage.get_many_bytes(&names);
                keys.sort();
                keys.dedup();
                let wanted: Vec<_> = keys
                    .iter()
                    .filter_map(|key| Some((key.clone(), self.on(event, |ghost| ghost.get(key))?)))
                    .collect();
                async move {
                    this.same("several keys", &read.await?, &wanted);
                    Ok(())
                }
                .boxed_local()
            }
            Op::List(from, to, limit, descending) => {
                let (from, to) = (key(*from), key(*to));
                let mut list = List::all().start(&from).end(&to);
                if *limit > 0 {
                    list = list.limit(i64::from(*limit));
                }
                if *descending {
                    list = list.reverse();
                }
                let read = storage.list_bytes(&list);
                let wanted = self.on(event, |ghost| ghost.list(&from, &to, *limit, *descending));
                async move {
                    this.same("a list", &read.await?, &wanted);
                    Ok(())
                }
                .boxed_local()
            }
            _ => return None,
        })
    }

    async fn read(self: &Rc<Self>, event: u64, storage: &Storage, op: &Op) -> Result<()> {
        if let Some(read) = self.read_begun(event, storage, op) {
            return self.alone(event, read).await;
        }
        match op {
            Op::GetAlarm => {
                let read = storage.get_alarm();
                let wanted = self.on(event, |ghost| ghost.alarm());
                self.same("the alarm", &self.alone(event, read).await?, &wanted);
            }
            Op::Sync => {
                let upto = self.on(event, |ghost| Ok(ghost.end()));
                // Others may come between.
                storage.sync().await?;
                self.on(event, |ghost| {
                    ghost.acknowledge(upto);
                    Ok(())
                });
            }
            Op::Increment(number) => {
                let key = key(*number);
                let read = self.alone(event, storage.get_bytes(&key)).await?.unwrap_or_default();
                let wanted = self.on(event, |ghost| ghost.get(&key)).unwrap_or_default();
                self.same(&key, &read, &wanted);
                let next = read.first().map_or(1, |count| count.wrapping_add(1));
                let value = Bytes::from(vec![next; read.len().max(1)]);
                self.on(event, |ghost| ghost.write(Effect::Put(key.clone(), value.clone()), true));
                let put = storage.put_bytes(&key, value);
                self.on(event, |ghost| {
                    ghost.pause();
                    Ok(())
                });
                self.alone(event, put).await?;
            }
            _ => unreachable!("handled elsewhere"),
        }
        Ok(())
    }

    fn same<T: PartialEq + std::fmt::Debug>(&self, what: &str, got: &T, wanted: &T) {
        if got != wanted {
            self.shared.fail(format!("{}: {what}: {got:?}, not {wanted:?}", self.name));
        }
    }

    async fn section(self: &Rc<Self>, event: u64, ops: Vec<Op>) -> Result<()> {
        let this = self.clone();
        self.state
            .block_concurrency_while(async move || {
                this.shared.mark(Mark::SectionRan);
                let had = this.on(event, |ghost| Ok(ghost.exclusive.replace(event)));
                let mut made = Vec::new();
                let storage = this.state.storage();
                let ran = this.run(event, storage, &ops, &mut made).await;
                let ran = match ran {
                    Ok(()) => this.finish(event, &mut made).await,
                    failed => failed,
                };
                match ran {
                    Ok(()) => this.on(event, |ghost| {
                        ghost.exclusive = had;
                        Ok(())
                    }),
                    // It read what could not be read.
                    Err(_) => this.is_reset(event),
                }
                ran
            })
            .await
    }

    async fn transaction(
        self: &Rc<Self>,
        event: u64,
        storage: &Storage,
        ops: &[Op],
        close: Close,
    ) -> Result<()> {
        let (had, given_up) = (Cell::new(None), Cell::new(false));
        let work = async |txn: &Transaction| {
            self.on(event, |ghost| {
                had.set(ghost.exclusive.replace(event));
                ghost.begin()
            });
            let mut made = Vec::new();
            let ran = match self.run(event, txn, ops, &mut made).await {
                Ok(()) => self.finish(event, &mut made).await,
                failed => failed,
            };
            if ran.is_err() {
                // It read what could not be read.
                self.on(event, Ghost::rollback);
                return ran;
            }
            match close {
                Close::Commit => self.on(event, Ghost::commit),
                Close::Rollback => {
                    self.on(event, Ghost::rollback);
                    txn.rollback()?;
                }
                Close::Fail => {
                    self.on(event, Ghost::rollback);
                    return Err(planned());
                }
                Close::Drop => {
                    given_up.set(true);
                    std::future::pending::<()>().await;
                }
            }
            Ok(())
        };
        let done = Box::pin(storage.transaction(work));
        let dropped = poll_fn(|_| match given_up.get() {
            true => Poll::Ready(()),
            false => Poll::Pending,
        });
        let result = match select(done, dropped).await {
            Either::Left((result, _)) => result,
            Either::Right(((), transaction)) => {
                // As whoever waits no longer does, in the middle of it.
                drop(transaction);
                self.on(event, Ghost::rollback);
                self.shared.mark(Mark::TransactionDropped);
                Ok(())
            }
        };
        self.on(event, |ghost| {
            ghost.exclusive = had.get();
            Ok(())
        });
        self.shared.mark(match (close, had.get()) {
            (Close::Commit, _) => Mark::TransactionCommitted,
            (_, Some(_)) => Mark::SavepointRolledBack,
            (_, None) => Mark::TransactionRolledBack,
        });
        match result {
            Err(error) if close == Close::Fail && error.kind() == Kind::User => Ok(()),
            result => result,
        }
    }
}
