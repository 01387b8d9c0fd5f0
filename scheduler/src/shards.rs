//! The shards of one core, and how one that was poisoned comes back.
//!
//! After a write that failed a shard refuses all work (design, E4): what was on its way is unknown.
//! Its objects are then reset, for what they have in memory may be what the disk has not; when the
//! last one is gone the shard is closed and opened anew, which recovers it from its log as a restart would.
//!
//! | a call that needs the shard | gets |
//! |---|---|
//! | while it is closed and opened for the first time | its answer, after that |
//! | after an attempt failed, until one succeeds | `Retry`, with the reason, at once |

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use dormouse_engine as engine;
use dormouse_engine::shard::Opening;
use dormouse_engine::signal::Signal;
use dormouse_engine::{Env, Host, Limits, ObjectId, Quotas, Shard, Superblock, Written};
use futures_util::FutureExt;
use futures_util::future::{LocalBoxFuture, select};

use crate::core::Inner;
use crate::error::Result;
use crate::host::AnyShard;
use crate::watch::{Count, Spread, Watch};

/// The first pause after an attempt to open a shard failed; then twice of it, and so on.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(10);

type Opener = Box<dyn Fn(u16) -> LocalBoxFuture<'static, engine::Result<Rc<dyn AnyShard>>>>;

/// A core's shards: those whose number, modulo the count of cores, is the core's.
pub(crate) struct Shards {
    slots: RefCell<Vec<Slot>>,
    /// The core's number, and how many cores there are.
    core: usize,
    cores: usize,
    count: u16,
    open: Opener,
    /// A slot changed, or a shard may have been poisoned.
    changed: Rc<Signal>,
    /// How many shards are being closed and opened anew: closing waits for them.
    attempts: Cell<usize>,
    stopped: Cell<bool>,
}

enum Slot {
    /// Next: opening.
    Open(Rc<dyn AnyShard>),
    /// Being closed and opened anew; with the reason, once an attempt failed. Next: open.
    Opening(Option<engine::Error>),
}

impl Shards {
    /// Opens the shards of core `core` of `cores`.
    ///
    /// Errors: of [`Shard::open`].
    pub(crate) async fn open<E: Env>(
        env: &E,
        core: usize,
        cores: usize,
        superblock: Superblock,
        limits: Limits,
        quotas: &Quotas,
        watch: &Rc<Watch>,
    ) -> Result<Self> {
        let (env, quotas, watch) = (env.clone(), quotas.clone(), watch.clone());
        let open: Opener = Box::new(move |number| {
            let (env, quotas, watch) = (env.clone(), quotas.clone(), watch.clone());
            async move {
                let opening = Opening::default();
                let opened =
                    Shard::open_bounded(&env, superblock, number, limits, opening, &quotas);
                let (shard, _recovery) = opened.await?;
                shard.observe(move |Written { commits, bytes }| {
                    watch.of_core().add(Count::Batches, 1);
                    watch.of_core().see(Spread::BatchCommits, commits as u64);
                    watch.of_core().see(Spread::BatchBytes, bytes as u64);
                });
                Ok(Rc::new(shard) as Rc<dyn AnyShard>)
            }
            .boxed_local()
        });
        let count = superblock.shards;
        let mut slots = Vec::new();
        for number in (0..count).skip(core).step_by(cores) {
            slots.push(Slot::Open(open(number).await?));
        }
        let (slots, changed) = (RefCell::new(slots), Rc::default());
        let (attempts, stopped) = Default::default();
        Ok(Self { slots, core, cores, count, open, changed, attempts, stopped })
    }

    /// The place of an object's shard among those of its core.
    pub(crate) fn place(&self, id: ObjectId) -> usize {
        usize::from(id.shard(self.count)) / self.cores
    }

    /// Those that are open.
    pub(crate) fn all_open(&self) -> Vec<Rc<dyn AnyShard>> {
        let open = |slot: &Slot| match slot {
            Slot::Open(shard) => Some(shard.clone()),
            Slot::Opening(_) => None,
        };
        self.slots.borrow().iter().filter_map(open).collect()
    }

    /// A shard, once it is open.
    ///
    /// Errors: `Retry`, while it can't be opened; `Closed`.
    pub(crate) async fn wait(&self, place: usize) -> engine::Result<Rc<dyn AnyShard>> {
        let poisoned =
            |slot: &Slot| matches!(slot, Slot::Open(shard) if shard.poisoned().is_some());
        if self.slots.borrow().get(place).is_some_and(poisoned) {
            // Nobody may have noticed: it can happen to a write that no object waits for.
            self.changed.notify();
        }
        let open = self.changed.until(|| match self.slots.borrow().get(place) {
            Some(Slot::Open(shard)) if shard.poisoned().is_none() => Some(Ok(shard.clone())),
            Some(Slot::Open(_) | Slot::Opening(None)) => None,
            None => Some(Err(engine::Error::new(engine::Kind::Closed, "the runtime is shut down"))),
            Some(Slot::Opening(Some(cause))) => {
                let number = self.number(place);
                let what = format!("shard {number} can't be opened again yet");
                Some(Err(engine::Error::caused(engine::Kind::Retry, what, cause.clone())))
            }
        });
        open.await
    }

    fn number(&self, place: usize) -> u16 {
        u16::try_from(self.core + place * self.cores).expect("it is one of `count`")
    }

    /// To be notified when a shard may have been poisoned.
    pub(crate) fn bell(&self) -> Rc<Signal> {
        self.changed.clone()
    }

    /// The core's task that opens poisoned shards anew.
    pub(crate) async fn run(core: Rc<Inner>) {
        let shards = &core.shards;
        loop {
            let poisoned = shards.changed.until(|| match shards.stopped.get() {
                true => Some(None),
                false => shards.poisoned().map(Some),
            });
            let Some((place, shard, cause)) = poisoned.await else { return };
            let number = shards.number(place);
            tracing::warn!(shard = number, %cause, "a poisoned shard is opened anew");
            shards.attempts.set(shards.attempts.get() + 1);
            shards.set(place, Slot::Opening(None));
            core.reset_shard(place, &cause).await;
            // That it was poisoned is known.
            let _poisoned = shard.close().await;
            drop(shard);
            core.host.spawn("shard", Self::reopen(core.clone(), place));
        }
    }

    fn poisoned(&self) -> Option<(usize, Rc<dyn AnyShard>, engine::Error)> {
        self.slots.borrow().iter().enumerate().find_map(|(place, slot)| match slot {
            Slot::Open(shard) => Some((place, shard.clone(), shard.poisoned()?)),
            Slot::Opening(_) => None,
        })
    }

    async fn reopen(core: Rc<Inner>, place: usize) {
        let shards = &core.shards;
        let mut pause = PAUSE_MIN;
        while !shards.stopped.get() {
            match (shards.open)(shards.number(place)).await {
                Ok(shard) => {
                    core.watch.of_core().add(Count::ShardsReopened, 1);
                    shards.set(place, Slot::Open(shard));
                    core.alarms.ring();
                    break;
                }
                Err(error) => {
                    tracing::warn!(shard = shards.number(place), %error, "it can't be opened yet");
                    shards.set(place, Slot::Opening(Some(error)));
                    let stopped = shards.changed.until(|| shards.stopped.get().then_some(()));
                    let sleep = core.host.sleep(pause).boxed_local();
                    select(stopped.boxed_local(), sleep).await;
                    pause = (2 * pause).min(PAUSE_MAX);
                }
            }
        }
        shards.attempts.set(shards.attempts.get() - 1);
        shards.changed.notify();
    }

    fn set(&self, place: usize, slot: Slot) {
        self.slots.borrow_mut()[place] = slot;
        self.changed.notify();
    }

    /// Opens nothing any more, and closes what is open.
    ///
    /// Errors: a shard could not be closed, or is not open.
    pub(crate) async fn close(&self) -> Result<()> {
        self.stopped.set(true);
        self.changed.notify();
        self.changed.until(|| (self.attempts.get() == 0).then_some(())).await;
        let slots = std::mem::take(&mut *self.slots.borrow_mut());
        let mut closed = Ok(());
        for slot in slots {
            closed = closed.and(match slot {
                Slot::Open(shard) => shard.close().await,
                Slot::Opening(Some(cause)) => Err(cause),
                Slot::Opening(None) => {
                    let text = "the runtime was shut down before a poisoned shard was opened anew";
                    Err(engine::Error::new(engine::Kind::Poisoned, text))
                }
            });
        }
        Ok(closed?)
    }
}
