//! The engine without its type parameter, so that a user's types need none: what a core offers,
//! and a shard, behind one virtual call.

use std::cell::Cell;
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use dormouse_cache::{Backing, Stored};
use dormouse_engine::signal::Signal;
use dormouse_engine::{
    AlarmChange, Batch, Contents, Env, Error, Found, Host, Kind, ObjectId, Resident, Result, Shard,
    Ticket, Version, Work,
};
use futures_util::future::{FutureExt, LocalBoxFuture};

use crate::watch::{Count, Spread, Watch};

trait AnyHost {
    fn now(&self) -> Duration;
    fn wall_ms(&self) -> u64;
    fn sleep(&self, duration: Duration) -> LocalBoxFuture<'static, ()>;
    fn random(&self) -> u64;
    fn spawn(&self, name: &'static str, task: LocalBoxFuture<'static, ()>);
    fn turn_end(&self) -> LocalBoxFuture<'static, ()>;
    fn idle(&self) -> LocalBoxFuture<'static, ()>;
    fn spawn_blocking(&self, work: Work) -> Result<()>;
}

impl<H: Host> AnyHost for H {
    fn now(&self) -> Duration {
        Host::now(self)
    }

    fn wall_ms(&self) -> u64 {
        Host::wall_ms(self)
    }

    fn sleep(&self, duration: Duration) -> LocalBoxFuture<'static, ()> {
        Host::sleep(self, duration).boxed_local()
    }

    fn random(&self) -> u64 {
        Host::random(self)
    }

    fn spawn(&self, name: &'static str, task: LocalBoxFuture<'static, ()>) {
        Host::spawn_boxed(self, name, task);
    }

    fn turn_end(&self) -> LocalBoxFuture<'static, ()> {
        Host::turn_end(self).boxed_local()
    }

    fn idle(&self) -> LocalBoxFuture<'static, ()> {
        Host::idle(self).boxed_local()
    }

    fn spawn_blocking(&self, work: Work) -> Result<()> {
        Host::spawn_blocking(self, work)
    }
}

/// Some core's [`Host`].
#[derive(Clone)]
pub(crate) struct CoreHost(Rc<dyn AnyHost>);

impl CoreHost {
    pub(crate) fn new(host: &impl Host) -> Self {
        Self(Rc::new(host.clone()))
    }
}

impl Host for CoreHost {
    fn now(&self) -> Duration {
        self.0.now()
    }

    fn wall_ms(&self) -> u64 {
        self.0.wall_ms()
    }

    fn sleep(&self, duration: Duration) -> impl Future<Output = ()> + 'static {
        self.0.sleep(duration)
    }

    fn random(&self) -> u64 {
        self.0.random()
    }

    fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + 'static) {
        self.0.spawn(name, task.boxed_local());
    }

    fn spawn_boxed(&self, name: &'static str, task: LocalBoxFuture<'static, ()>) {
        self.0.spawn(name, task);
    }

    fn turn_end(&self) -> impl Future<Output = ()> + 'static {
        self.0.turn_end()
    }

    fn idle(&self) -> impl Future<Output = ()> + 'static {
        self.0.idle()
    }

    fn spawn_blocking(&self, work: Work) -> Result<()> {
        self.0.spawn_blocking(work)
    }
}

/// Whether an alarm is of no interest.
pub(crate) type Skip<'a> = dyn Fn(&(u64, ObjectId)) -> bool + 'a;

/// Some core's [`Shard`].
pub(crate) trait AnyShard {
    fn commit(
        &self,
        id: &ObjectId,
        batch: &Batch,
        resident: Option<&dyn Resident>,
    ) -> Result<Ticket>;
    /// The object, and whether all of it: of a large one there are no keys.
    fn find(&self, id: ObjectId) -> LocalBoxFuture<'static, Result<(Contents, bool)>>;
    fn snapshot(&self, id: ObjectId) -> LocalBoxFuture<'static, Result<Rc<dyn Stored>>>;
    /// The earliest alarms, at most `max`, by their times in milliseconds since 1970, without those that
    /// `skip` takes out.
    fn alarms(&self, max: usize, skip: &Skip<'_>) -> Vec<(u64, ObjectId)>;
    /// Why it refuses all work, if a write failed.
    fn poisoned(&self) -> Option<Error>;
    fn close(&self) -> LocalBoxFuture<'static, Result<()>>;
}

impl<E: Env> AnyShard for Shard<E> {
    fn commit(
        &self,
        id: &ObjectId,
        batch: &Batch,
        resident: Option<&dyn Resident>,
    ) -> Result<Ticket> {
        Shard::commit(self, id, batch, resident)
    }

    fn find(&self, id: ObjectId) -> LocalBoxFuture<'static, Result<(Contents, bool)>> {
        let shard = self.clone();
        async move {
            match Shard::find(&shard, &id).await? {
                Found::Whole(contents) => Ok((contents, true)),
                Found::Large(snapshot) => Ok((snapshot.head(), false)),
            }
        }
        .boxed_local()
    }

    fn snapshot(&self, id: ObjectId) -> LocalBoxFuture<'static, Result<Rc<dyn Stored>>> {
        let shard = self.clone();
        async move { Ok(Rc::new(Shard::snapshot(&shard, &id).await?) as Rc<dyn Stored>) }
            .boxed_local()
    }

    fn alarms(&self, max: usize, skip: &Skip<'_>) -> Vec<(u64, ObjectId)> {
        Shard::alarms(self, u64::MAX, max, skip)
    }

    fn poisoned(&self) -> Option<Error> {
        Shard::poisoned(self)
    }

    fn close(&self) -> LocalBoxFuture<'static, Result<()>> {
        let shard = self.clone();
        async move { Shard::close(&shard).await }.boxed_local()
    }
}

/// Tells a core's alarm task that there is an alarm that it does not wait for.
#[derive(Default)]
pub(crate) struct AlarmBell {
    /// The time that the task sleeps for; 0 to have it look at once.
    pub(crate) until_ms: Cell<u64>,
    pub(crate) signal: Signal,
}

impl AlarmBell {
    /// An alarm was set, and is durable.
    fn set(&self, at_ms: u64) {
        if at_ms < self.until_ms.get() {
            self.until_ms.set(0);
            self.signal.notify();
        }
    }
}

/// Where one object's commits go.
pub(crate) struct Home {
    pub(crate) shard: Rc<dyn AnyShard>,
    pub(crate) id: ObjectId,
    pub(crate) class: usize,
    pub(crate) bell: Rc<AlarmBell>,
    /// Notified when the shard may have been poisoned.
    pub(crate) poisoned: Rc<Signal>,
    pub(crate) watch: Rc<Watch>,
}

/// Tells whoever opens shards anew if this error may mean that one is poisoned.
fn look_at(error: Error, poisoned: &Signal) -> Error {
    if matches!(error.kind(), Kind::Poisoned | Kind::Unknown) {
        poisoned.notify();
    }
    error
}

impl Backing for Home {
    type Ticket = LocalBoxFuture<'static, Result<Version>>;

    fn snapshot(&self) -> LocalBoxFuture<'static, Result<Rc<dyn Stored>>> {
        let (snapshot, poisoned) = (self.shard.snapshot(self.id), self.poisoned.clone());
        async move { snapshot.await.map_err(|error| look_at(error, &poisoned)) }.boxed_local()
    }

    fn commit(&self, batch: &Batch, resident: Option<&dyn Resident>) -> Result<Self::Ticket> {
        let ticket = self.shard.commit(&self.id, batch, resident);
        let (class, watch, began) = (self.class, self.watch.clone(), self.watch.now());
        let failed = move |error, watch: &Watch, poisoned: &Signal| {
            watch.of(class).add(Count::CommitFailures, 1);
            look_at(error, poisoned)
        };
        let ticket = ticket.map_err(|error| failed(error, &watch, &self.poisoned))?;
        let (bell, poisoned, alarm) = (self.bell.clone(), self.poisoned.clone(), batch.alarm());
        Ok(async move {
            let version = ticket.await.map_err(|error| failed(error, &watch, &poisoned))?;
            watch.of(class).add(Count::Commits, 1);
            watch.took(class, Spread::CommitSeconds, began);
            if let AlarmChange::Set(at_ms) = alarm {
                bell.set(at_ms);
            }
            Ok(version)
        }
        .boxed_local())
    }
}
