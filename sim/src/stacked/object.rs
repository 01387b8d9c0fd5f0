//! The objects of a life: each turn of one follows a [`Plan`].

use std::time::Duration;

use dormouse_scheduler::prelude::*;

use super::plan::{Plan, TURN, shared};

/// An object that lives by plans.
pub(super) struct Planned {
    state: State,
}

/// How a turn ends, once it has written.
pub(super) enum Fate {
    Fine,
    /// Others run before it is answered.
    Slow,
    /// With an error, which takes nothing back.
    Error,
    /// Without a trace.
    Abort,
    Panic,
    /// It has another object make a turn first.
    Call(Stub<Planned>),
}

pub(super) struct Turn(pub(super) Fate);

/// Reads the whole object: the number of its turn, and its alarm if that is overdue.
pub(super) struct Look;

impl DurableObject for Planned {
    fn new(state: State) -> Self {
        Self { state }
    }

    async fn alarm(&self, info: AlarmInfo) -> Result<()> {
        if self.state.now_ms() < info.scheduled_ms {
            shared().fail(|| format!("an alarm of {} is early", info.scheduled_ms));
        }
        shared().count(1, 1);
        self.turn().await.map(drop)
    }
}

impl Planned {
    fn name(&self) -> String {
        self.state.id().to_string()
    }

    async fn turn(&self) -> Result<u64> {
        let (shared, storage, object) = (shared(), self.state.storage(), self.name());
        let plan = Plan::of(shared.seed, &object, self.number().await? + 1);
        let turn = match plan.in_transaction {
            true => storage.transaction(async |txn| self.apply(txn, plan.savepoint).await).await?,
            false => self.apply(storage, false).await?,
        };
        let pairs = storage.list_bytes(&List::all()).await?;
        shared.compare(&object, turn, &pairs);
        Ok(turn)
    }

    async fn number(&self) -> Result<u64> {
        Ok(self.state.storage().get(TURN).await?.unwrap_or(0))
    }

    /// Makes the next turn's changes; which it is may have changed while a transaction waited.
    async fn apply(&self, storage: &Storage, savepoint: bool) -> Result<u64> {
        let (shared, object) = (shared(), self.name());
        let turn = self.number().await? + 1;
        shared.begun(&object, turn);
        let plan = Plan::of(shared.seed, &object, turn);
        for (key, value) in plan.changes {
            match value {
                Some(value) => storage.put_bytes(&key, value).await?,
                None => drop(storage.delete(&key).await?),
            }
        }
        if savepoint {
            storage
                .transaction(async |inner| {
                    inner.put("key-0", &"never seen").await?;
                    inner.delete("key-1").await?;
                    inner.rollback()
                })
                .await?;
        }
        if let Some(delay) = plan.alarm_in_ms {
            storage.set_alarm(In(Duration::from_millis(delay))).await?;
        }
        storage.put(TURN, &turn).await?;
        Ok(turn)
    }
}

impl Handler<Turn> for Planned {
    type Reply = u64;

    async fn handle(&self, Turn(fate): Turn) -> Result<u64> {
        let turn = self.turn().await?;
        if matches!(fate, Fate::Abort | Fate::Panic) {
            shared().undone(&self.name(), turn);
        }
        match fate {
            Fate::Fine => {}
            Fate::Slow => self.state.sleep(Duration::from_micros(300)).await,
            Fate::Error => return Err(Error::user("as planned")),
            Fate::Abort => {
                self.state.abort("as planned").await;
            }
            // As a panic, but without its message on the screen.
            Fate::Panic => std::panic::resume_unwind(Box::new("as planned")),
            Fate::Call(other) => drop(other.call(Turn(Fate::Fine)).await),
        }
        Ok(turn)
    }
}

impl Handler<Look> for Planned {
    type Reply = (u64, Option<u64>);

    async fn handle(&self, _: Look) -> Result<(u64, Option<u64>)> {
        let pairs = self.state.storage().list_bytes(&List::all()).await?;
        let turn = self.number().await?;
        shared().compare(&self.name(), turn, &pairs);
        let now = self.state.now_ms();
        let alarm = self.state.storage().get_alarm().await?;
        Ok((turn, alarm.filter(|at_ms| *at_ms <= now).map(|at_ms| now - at_ms)))
    }
}
