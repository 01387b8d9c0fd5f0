//! A core's side of a [`Store`](super::Store): takes requests and answers them.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use futures_channel::oneshot;

use super::memory::{Held, Memory};
use super::{Filter, Page};
use crate::batch::Batch;
use crate::contents::Contents;
use crate::directory::IdMap;
use crate::env::Env;
use crate::error::{Error, Result};
use crate::ids::{ObjectId, Version};
use crate::log::queue::Outcome;
use crate::mailbox::Receiver;
use crate::shard::{Shard, ShardStats};
use crate::signal::Signal;

/// Where an answer goes. Nobody may be waiting any more.
pub(super) type Reply<T> = oneshot::Sender<Result<T>>;

/// What a core is asked for.
pub(super) enum Request {
    Commit { id: ObjectId, batch: Batch, reply: Reply<Version> },
    Get { id: ObjectId, key: Bytes, reply: Reply<Option<Bytes>> },
    Contents { id: ObjectId, reply: Reply<Arc<Contents>> },
    Head { id: ObjectId, reply: Reply<(Version, Option<u64>)> },
    Objects { shard: u16, filter: Filter, after: Option<ObjectId>, reply: Reply<Page> },
    Stats { shard: u16, reply: Reply<ShardStats> },
}

impl Request {
    /// Answers with an error.
    pub(super) fn refuse(self, error: Error) {
        match self {
            Self::Commit { reply, .. } => drop(reply.send(Err(error))),
            Self::Get { reply, .. } => drop(reply.send(Err(error))),
            Self::Contents { reply, .. } => drop(reply.send(Err(error))),
            Self::Head { reply, .. } => drop(reply.send(Err(error))),
            Self::Objects { reply, .. } => drop(reply.send(Err(error))),
            Self::Stats { reply, .. } => drop(reply.send(Err(error))),
        }
    }
}

/// A commit that was made while its object is being read.
struct Meanwhile {
    batch: Batch,
    version: Version,
    outcome: Rc<Outcome>,
}

/// The shards of one core, and what it keeps in memory. Cheap to clone.
pub(super) struct Served<E: Env>(Rc<Inner<E>>);

impl<E: Env> Clone for Served<E> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

struct Inner<E: Env> {
    env: E,
    /// By number divided by the count of cores.
    shards: Vec<Shard<E>>,
    shard_count: u16,
    cores: usize,
    memory: RefCell<Memory>,
    /// Objects that are being read, each by one task.
    loading: RefCell<IdMap<Vec<Meanwhile>>>,
    /// Requests that are not answered yet.
    busy: Cell<usize>,
    /// An object was read, or a request answered.
    changed: Signal,
}

impl<E: Env> Served<E> {
    pub(super) fn new(
        env: E,
        shards: Vec<Shard<E>>,
        shard_count: u16,
        cores: usize,
        cache_bytes: usize,
    ) -> Self {
        Self(Rc::new(Inner {
            env,
            shards,
            shard_count,
            cores,
            memory: RefCell::new(Memory::new(cache_bytes)),
            loading: RefCell::default(),
            busy: Cell::new(0),
            changed: Signal::default(),
        }))
    }

    /// Serves until the mailbox is closed and everything in it is answered; then closes the
    /// shards.
    ///
    /// Errors: the first shard's that could not be closed.
    pub(super) async fn run(self, mail: Receiver<Request>) -> Result<()> {
        while let Some(request) = mail.recv().await {
            self.take(request);
        }
        let idle = || (self.0.busy.get() == 0).then_some(());
        self.0.changed.until(idle).await;
        let mut closed = Ok(());
        for shard in &self.0.shards {
            closed = closed.and(shard.close().await);
        }
        closed
    }

    fn take(&self, request: Request) {
        match request {
            Request::Commit { id, batch, reply } => match self.commit(&id, &batch) {
                Ok(ticket) => self.answer("commit", reply, ticket),
                Err(error) => drop(reply.send(Err(error))),
            },
            Request::Get { id, key, reply } => {
                let this = self.clone();
                let get = async move { Ok(this.contents(&id).await?.map.get(&key).cloned()) };
                self.answer("get", reply, get);
            }
            Request::Contents { id, reply } => {
                let this = self.clone();
                self.answer("read", reply, async move { this.contents(&id).await });
            }
            Request::Head { id, reply } => {
                let shard = self.shard(&id).clone();
                let head = async move {
                    shard.settled(&id).await?;
                    Ok(shard.head(&id)?.unwrap_or_default())
                };
                self.answer("head", reply, head);
            }
            Request::Objects { shard, filter, after, reply } => {
                drop(reply.send(Ok(self.numbered(shard).page(&filter, after))));
            }
            Request::Stats { shard, reply } => drop(reply.send(Ok(self.numbered(shard).stats()))),
        }
    }

    fn shard(&self, id: &ObjectId) -> &Shard<E> {
        self.numbered(id.shard(self.0.shard_count))
    }

    fn numbered(&self, shard: u16) -> &Shard<E> {
        &self.0.shards[usize::from(shard) / self.0.cores]
    }

    /// Answers when `answer` is known.
    fn answer<T: 'static>(
        &self,
        name: &'static str,
        reply: Reply<T>,
        answer: impl Future<Output = Result<T>> + 'static,
    ) {
        let inner = self.0.clone();
        inner.busy.set(inner.busy.get() + 1);
        self.0.env.spawn(name, async move {
            let _busy = Busy(inner);
            drop(reply.send(answer.await));
        });
    }

    fn commit(&self, id: &ObjectId, batch: &Batch) -> Result<crate::shard::Ticket> {
        let shard = self.shard(id);
        let commit = |resident: Option<&dyn crate::Resident>| shard.commit(id, batch, resident);
        let version = || shard.appended_version(id);
        let ticket = self.0.memory.borrow_mut().commit(id, batch, commit, version)?;
        if let Some(commits) = self.0.loading.borrow_mut().get_mut(id) {
            let (version, outcome) = (ticket.version, ticket.outcome.clone());
            commits.push(Meanwhile { batch: batch.clone(), version, outcome });
        }
        Ok(ticket)
    }

    /// The object as it is now, once all of that is durable.
    async fn contents(&self, id: &ObjectId) -> Result<Arc<Contents>> {
        loop {
            let held = {
                let mut memory = self.0.memory.borrow_mut();
                memory.get(id).map(|held| (held.contents.clone(), held.unsettled()))
            };
            let (contents, unsettled) = match held {
                Some(held) => held,
                None if self.0.loading.borrow().contains_key(id) => {
                    let read = || (!self.0.loading.borrow().contains_key(id)).then_some(());
                    self.0.changed.until(read).await;
                    continue;
                }
                None => match self.load(id).await? {
                    Some(loaded) => loaded,
                    None => continue,
                },
            };
            match unsettled {
                None => return Ok(contents),
                Some(outcome) => match outcome.settled().await {
                    Ok(()) => return Ok(contents),
                    // It did not happen, or nobody knows: what was read is not the object.
                    Err(_) => continue,
                },
            }
        }
    }

    /// Reads an object; `None` if a commit that was made meanwhile failed.
    async fn load(&self, id: &ObjectId) -> Result<Option<(Arc<Contents>, Option<Rc<Outcome>>)>> {
        self.0.loading.borrow_mut().insert(*id, Vec::new());
        let loaded = self.shard(id).load(id).await;
        let meanwhile = self.0.loading.borrow_mut().remove(id).expect("inserted above");
        self.0.changed.notify();
        let mut held = Held::new(loaded?);
        for commit in meanwhile {
            if let Some(Err(_)) = commit.outcome.result() {
                return Ok(None);
            }
            // Those before its version are in it. Where it does not exist, all are said again, in
            // order, which ends where they ended.
            if commit.version > held.contents.version {
                held.apply(&commit.batch, commit.version, &commit.outcome);
            }
        }
        if held.unsettled().is_some() {
            held.set_version(self.shard(id).appended_version(id));
        }
        let loaded = (held.contents.clone(), held.unsettled());
        self.0.memory.borrow_mut().insert(*id, held);
        Ok(Some(loaded))
    }
}

/// A request that is being answered.
struct Busy<E: Env>(Rc<Inner<E>>);

impl<E: Env> Drop for Busy<E> {
    fn drop(&mut self) {
        self.0.busy.set(self.0.busy.get() - 1);
        self.0.changed.notify();
    }
}
