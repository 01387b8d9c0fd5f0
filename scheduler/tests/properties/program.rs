//! Programs: what one call does in its object, and the object that does it.

use std::convert::Infallible;
use std::fmt;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dormouse_scheduler::Kind;
use dormouse_scheduler::prelude::*;
use futures_util::future::{FutureExt, LocalBoxFuture};

/// How many objects a program knows; each may call the others.
pub(crate) const OBJECTS: usize = 3;

pub(crate) type Key = &'static str;
pub(crate) type Pairs = Vec<(String, u64)>;

#[derive(Clone, Debug)]
pub(crate) enum Action {
    Get(Key),
    GetMany(Vec<Key>),
    List(Span),
    Put(Key, u64),
    /// Its future is dropped, which takes nothing back.
    PutUnawaited(Key, u64),
    PutMany(Vec<(Key, u64)>),
    /// Read, modify, write.
    Increment(Key),
    Delete(Key),
    DeleteMany(Vec<Key>),
    DeleteAll {
        keep_alarm: bool,
    },
    SetAlarm(u64),
    GetAlarm,
    DeleteAlarm,
    Sync,
    Transaction(Txn),
    /// Has the object that is so many behind this one run a program, and waits for it.
    Call(usize, Program),
}

/// The bounds of a listing.
#[derive(Clone, Debug)]
pub(crate) struct Span {
    pub(crate) start: Option<Key>,
    pub(crate) end: Option<Key>,
    pub(crate) prefix: Option<Key>,
    pub(crate) limit: Option<u8>,
    pub(crate) reverse: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct Txn {
    pub(crate) actions: Vec<Action>,
    /// Through the object's own storage, not through the transaction's handle.
    pub(crate) by_own_storage: bool,
    pub(crate) end: TxnEnd,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum TxnEnd {
    Commit,
    Rollback,
    Fail,
}

#[derive(Clone)]
pub(crate) struct Program {
    pub(crate) actions: Vec<Action>,
    pub(crate) ending: Ending,
}

/// On one line, also where all around it is spread out: failures are for reading.
impl fmt::Debug for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}, {:?}", self.actions, self.ending)
    }
}

#[derive(Clone, Debug)]
pub(crate) enum Ending {
    Reply,
    /// An error of the handler.
    Fail,
    /// Waits until all is durable, does what will be lost, and ends the instance in the same turn.
    Reset {
        by: By,
        lost: Vec<Action>,
        in_transaction: bool,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum By {
    Panic,
    Abort,
}

/// What one action answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Said {
    Done,
    Value(Option<u64>),
    Pairs(Pairs),
    Existed(bool),
    Count(usize),
    Alarm(Option<u64>),
    /// Not in a transaction.
    Refused,
    Committed(Vec<Said>),
    RolledBack(Vec<Said>),
    /// The transaction's error.
    Failed(String),
    Other(Outcome),
}

/// How a call ended. Errors carry as their text what was said before them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Said(Vec<Said>),
    Failed(String),
    Reset(By, String),
    /// An error that no program makes.
    Unexpected(String),
}

/// What is said, as the text of an error.
pub(crate) fn text(said: &[Said]) -> String {
    format!("{said:?}")
}

/// The reply of an instance, with a number that it alone has, and later ones have higher.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) instance: u64,
    said: Vec<Said>,
}

pub(crate) fn outcome(result: Result<Answer>) -> Outcome {
    let error = match result {
        Ok(answer) => return Outcome::Said(answer.said),
        Err(error) => error,
    };
    let text = error.to_string();
    match error.kind() {
        Kind::User if !error.reset() => Outcome::Failed(text),
        Kind::ObjectAborted if error.reset() => Outcome::Reset(By::Abort, text),
        Kind::ObjectReset if error.reset() => match text.strip_prefix("the object panicked: ") {
            Some(panic) => Outcome::Reset(By::Panic, panic.to_owned()),
            None => Outcome::Unexpected(text),
        },
        kind => Outcome::Unexpected(format!("{kind:?}: {text}")),
    }
}

/// An object that runs programs.
pub(crate) struct Thing {
    state: State,
    instance: u64,
}

impl DurableObject for Thing {
    fn new(state: State) -> Self {
        static BUILT: AtomicU64 = AtomicU64::new(0);
        Self { state, instance: BUILT.fetch_add(1, Ordering::Relaxed) }
    }

    async fn alarm(&self, info: AlarmInfo) -> Result<()> {
        // The model has nobody who takes an alarm away.
        Err(Error::user(format!("an alarm in the far future fires: {info:?}")))
    }
}

/// A program, and all objects, the one that runs it first.
pub(crate) struct Run {
    pub(crate) program: Program,
    pub(crate) peers: Arc<[Stub<Thing>]>,
}

impl Handler<Run> for Thing {
    type Reply = Answer;

    async fn handle(&self, Run { program, peers }: Run) -> Result<Answer> {
        let said = self.act_all(self.state.storage(), &program.actions, &peers).await?;
        match &program.ending {
            Ending::Reply => Ok(Answer { instance: self.instance, said }),
            Ending::Fail => Err(Error::user(text(&said))),
            Ending::Reset { by, lost, in_transaction } => {
                let storage = self.state.storage();
                storage.sync().await?;
                let end = async |storage: &Storage| -> Result<Infallible> {
                    self.act_all(storage, lost, &peers).await?;
                    Ok(self.end(*by, text(&said)).await)
                };
                match in_transaction {
                    true => match storage.transaction(async |txn| end(txn).await).await? {},
                    false => match end(storage).await? {},
                }
            }
        }
    }
}

impl Thing {
    async fn act_all(
        &self,
        storage: &Storage,
        actions: &[Action],
        peers: &Arc<[Stub<Self>]>,
    ) -> Result<Vec<Said>> {
        let mut said = Vec::new();
        for action in actions {
            said.push(self.act(storage, action, peers).await?);
        }
        Ok(said)
    }

    /// Boxed, since transactions nest.
    fn act<'a>(
        &'a self,
        storage: &'a Storage,
        action: &'a Action,
        peers: &'a Arc<[Stub<Self>]>,
    ) -> LocalBoxFuture<'a, Result<Said>> {
        let done = |()| Said::Done;
        async move {
            Ok(match action {
                Action::Get(key) => Said::Value(storage.get(key).await?),
                Action::GetMany(keys) => Said::Pairs(storage.get_many(keys).await?),
                Action::List(span) => Said::Pairs(storage.list(&span.list()).await?),
                Action::Put(key, value) => storage.put(key, value).await.map(done)?,
                Action::PutUnawaited(key, value) => {
                    drop(storage.put(key, value));
                    Said::Done
                }
                Action::PutMany(entries) => storage.put_many(entries).await.map(done)?,
                Action::Increment(key) => {
                    let n = storage.get::<u64>(key).await?.unwrap_or(0) + 1;
                    storage.put(key, &n).await?;
                    Said::Value(Some(n))
                }
                Action::Delete(key) => Said::Existed(storage.delete(key).await?),
                Action::DeleteMany(keys) => Said::Count(storage.delete_many(keys).await?),
                Action::DeleteAll { keep_alarm } => {
                    let alarm = if *keep_alarm { AlarmToo::Keep } else { AlarmToo::Clear };
                    let deleted = storage.delete_all_with(alarm, Write::default()).await;
                    deleted.map_or(Said::Refused, done)
                }
                Action::SetAlarm(at_ms) => storage.set_alarm(At(*at_ms)).await.map(done)?,
                Action::GetAlarm => Said::Alarm(storage.get_alarm().await?),
                Action::DeleteAlarm => storage.delete_alarm().await.map(done)?,
                Action::Sync => storage.sync().await.map(done)?,
                Action::Transaction(txn) => self.transact(storage, txn, peers).await,
                Action::Call(behind, program) => {
                    let mut peers: Vec<_> = peers.iter().cloned().collect();
                    peers.rotate_left(*behind);
                    let stub = peers[0].clone();
                    let run = Run { program: program.clone(), peers: peers.into() };
                    Said::Other(outcome(stub.call(run).await))
                }
            })
        }
        .boxed_local()
    }

    async fn transact(&self, storage: &Storage, txn: &Txn, peers: &Arc<[Stub<Self>]>) -> Said {
        let work = async |handle: &Transaction| {
            let inner = if txn.by_own_storage { self.state.storage() } else { handle };
            let said = self.act_all(inner, &txn.actions, peers).await?;
            match txn.end {
                TxnEnd::Commit => Ok(Said::Committed(said)),
                TxnEnd::Rollback => handle.rollback().map(|()| Said::RolledBack(said)),
                TxnEnd::Fail => Err(Error::user(text(&said))),
            }
        };
        storage.transaction(work).await.unwrap_or_else(|error| Said::Failed(error.to_string()))
    }

    /// Ends the instance. It panics without the hook, which would print each one.
    async fn end(&self, by: By, text: String) -> Infallible {
        match by {
            By::Panic => resume_unwind(Box::new(text)),
            By::Abort => self.state.abort(text).await,
        }
    }
}

impl Span {
    fn list(&self) -> List {
        let mut list = List::all();
        list.start = self.start.map(Into::into);
        list.end = self.end.map(Into::into);
        list.prefix = self.prefix.map(Into::into);
        list.limit = self.limit.map(i64::from);
        if self.reverse { list.reverse() } else { list }
    }
}
