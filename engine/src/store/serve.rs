//! A core's side of a [`Store`](super::Store): takes requests and answers them.

use std::cell::{Cell, RefCell};
use std::ops::Bound;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use futures_channel::oneshot;

use super::durability::{Answered, Durability, Failure, Told};
use super::memory::{Held, Memory};
use super::published::{Published, UnderWay};
use super::scan::{Listed, scan};
use super::stats::CoreStats;
use super::turns::Turns;
use super::{Filter, Options, Page};
use crate::batch::Batch;
use crate::contents::Contents;
use crate::directory::IdMap;
use crate::env::Env;
use crate::error::{Error, Result};
use crate::ids::{ObjectId, Version};
use crate::list::List;
use crate::log::queue::Outcome;
use crate::mailbox::Receiver;
use crate::shard::{Shard, Ticket};
use crate::signal::Signal;
use crate::snapshot::Snapshot;

/// Where an answer goes. Nobody may be waiting any more.
pub(super) type Reply<T> = oneshot::Sender<Result<T>>;

/// What a core is asked for.
pub(super) enum Request {
    Commit { id: ObjectId, batch: Batch, under_way: UnderWay, reply: Reply<Version> },
    Get { id: ObjectId, key: Bytes, reply: Reply<Option<Bytes>> },
    Contents { id: ObjectId, reply: Reply<Arc<Contents>> },
    List { id: ObjectId, list: List, reply: Reply<Walked> },
    Head { id: ObjectId, reply: Reply<(Version, Option<u64>)> },
    Objects { shard: u16, filter: Filter, after: Option<ObjectId>, reply: Reply<Page> },
    DeletePrefix { id: ObjectId, prefix: Bytes, under_way: UnderWay, reply: Reply<u64> },
    Flush { reply: Reply<Vec<Failure>> },
    Compact { reply: Reply<()> },
    Stats { reply: Reply<CoreStats> },
    NamespaceBytes { namespace: Arc<str>, reply: Reply<u64> },
}

impl Request {
    /// Answers with an error.
    pub(super) fn refuse(self, error: Error) {
        match self {
            Self::Commit { reply, .. } => drop(reply.send(Err(error))),
            Self::Get { reply, .. } => drop(reply.send(Err(error))),
            Self::Contents { reply, .. } => drop(reply.send(Err(error))),
            Self::List { reply, .. } => drop(reply.send(Err(error))),
            Self::Head { reply, .. } => drop(reply.send(Err(error))),
            Self::Objects { reply, .. } => drop(reply.send(Err(error))),
            Self::DeletePrefix { reply, .. } => drop(reply.send(Err(error))),
            Self::Flush { reply } => drop(reply.send(Err(error))),
            Self::Compact { reply } => drop(reply.send(Err(error))),
            Self::Stats { reply } => drop(reply.send(Err(error))),
            Self::NamespaceBytes { reply, .. } => drop(reply.send(Err(error))),
        }
    }
}

/// What an object's keys are read from: all of them in memory, or page by page.
pub(super) enum Walked {
    Whole(Arc<Contents>),
    Paged(Listed),
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
    durability: Durability,
    /// What each of `shards` answered.
    answered: RefCell<Vec<Answered>>,
    turns: Turns,
    memory: RefCell<Memory>,
    /// Objects that are being read, each by one task.
    loading: RefCell<IdMap<Vec<Meanwhile>>>,
    /// Requests that are not answered yet.
    busy: Cell<usize>,
    /// An object was read, or a request answered.
    changed: Signal,
}

impl<E: Env> Served<E> {
    /// Serves `shards`, which are core `core` of `cores`' part of a store of `shard_count`.
    pub(super) fn new(
        env: E,
        shards: Vec<Shard<E>>,
        (core, cores): (usize, usize),
        shard_count: u16,
        options: &Options,
        (told, published): (&Told, &Arc<Published>),
    ) -> Self {
        let numbers = (0..shard_count).skip(core).step_by(cores);
        for (number, shard) in numbers.clone().zip(&shards) {
            let published = published.clone();
            shard.on_poison(move || published.end(number));
        }
        let durability = options.durability;
        let answered = numbers.map(|shard| Answered::new(shard, durability, told.clone()));
        Self(Rc::new(Inner {
            env,
            shards,
            shard_count,
            cores,
            durability,
            answered: RefCell::new(answered.collect()),
            turns: Turns::default(),
            memory: RefCell::new(Memory::new(options.cache_bytes / cores, published.clone())),
            loading: RefCell::default(),
            busy: Cell::new(0),
            changed: Signal::default(),
        }))
    }

    /// Serves until the mailbox is closed and everything in it is answered; then closes the
    /// shards.
    ///
    /// Errors: the first failure of a commit that was answered, if nobody was told yet; the first
    /// shard's that could not be closed.
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
        let untold = self.0.answered.borrow_mut().iter_mut().find_map(Answered::failure);
        untold.map_or(closed, |failure| Err(failure.error))
    }

    fn take(&self, request: Request) {
        let this = self.clone();
        match request {
            Request::Commit { id, batch, under_way, reply } => match self.0.turns.behind(&id) {
                None => {
                    self.commit_and_answer(&id, &batch, reply);
                    drop(under_way);
                }
                Some(turn) => self.task("commit in turn", async move {
                    turn.comes().await;
                    this.commit_and_answer(&id, &batch, reply);
                    drop(under_way);
                }),
            },
            Request::DeletePrefix { id, prefix, under_way, reply } => {
                let turn = self.0.turns.take(&id);
                self.answer("delete prefix", reply, async move {
                    turn.comes().await;
                    let (keys, unsettled) = this.delete_prefix(&id, &prefix).await?;
                    drop((turn, under_way));
                    this.answerable(unsettled).await?;
                    Ok(keys)
                });
            }
            Request::Get { id, key, reply } => {
                let get = async move { this.get(&id, &key).await };
                self.answer_in_turn("get", &id, reply, get);
            }
            Request::Contents { id, reply } => {
                let contents = async move { this.contents(&id).await };
                self.answer_in_turn("read", &id, reply, contents);
            }
            Request::List { id, list, reply } => {
                let list = async move { this.list(&id, list).await };
                self.answer_in_turn("list", &id, reply, list);
            }
            Request::Head { id, reply } => {
                let head = async move { this.head(&id).await };
                self.answer_in_turn("head", &id, reply, head);
            }
            Request::Objects { shard, filter, after, reply } => {
                drop(reply.send(Ok(self.numbered(shard).page(&filter, after))));
            }
            Request::Flush { reply } => self.answer("flush", reply, self.flush()),
            Request::Compact { reply } => {
                // The store's end does not wait for it.
                let env = self.0.env.clone();
                env.spawn("compact", async move { drop(reply.send(this.compact().await)) });
            }
            Request::Stats { reply } => drop(reply.send(Ok(self.stats()))),
            Request::NamespaceBytes { namespace, reply } => {
                let held = self.0.shards.iter().map(|shard| shard.namespace_bytes(&namespace));
                drop(reply.send(Ok(held.sum())));
            }
        }
    }

    async fn compact(&self) -> Result<()> {
        let mut done = Ok(());
        for shard in &self.0.shards {
            done = done.and(shard.compact().await);
        }
        done
    }

    fn stats(&self) -> CoreStats {
        let shards = self.0.shards.iter().map(Shard::stats).collect();
        let (cached_objects, cached_bytes) = self.0.memory.borrow().size();
        CoreStats { shards, cached_objects, cached_bytes }
    }

    /// Waits until everything that was taken before now is durable.
    ///
    /// Errors: `Poisoned`, where no answered commit failed.
    fn flush(&self) -> impl Future<Output = Result<Vec<Failure>>> + 'static {
        let begun: Vec<_> = self.0.answered.borrow_mut().iter_mut().map(Answered::begin).collect();
        let this = self.clone();
        async move {
            let mut failures = Vec::new();
            for flush in begun {
                failures.extend(flush.done().await);
            }
            if failures.is_empty() {
                this.0.shards.iter().try_for_each(Shard::check_healthy)?;
            }
            Ok(failures)
        }
    }

    fn shard(&self, id: &ObjectId) -> &Shard<E> {
        self.numbered(id.shard(self.0.shard_count))
    }

    fn numbered(&self, shard: u16) -> &Shard<E> {
        &self.0.shards[usize::from(shard) / self.0.cores]
    }

    /// Runs a task; the core does not end before it has.
    fn task(&self, name: &'static str, task: impl Future<Output = ()> + 'static) {
        let inner = self.0.clone();
        inner.busy.set(inner.busy.get() + 1);
        self.0.env.spawn(name, async move {
            let _busy = Busy(inner);
            task.await;
        });
    }

    /// Answers when `answer` is known.
    fn answer<T: 'static>(
        &self,
        name: &'static str,
        reply: Reply<T>,
        answer: impl Future<Output = Result<T>> + 'static,
    ) {
        self.task(name, async move { drop(reply.send(answer.await)) });
    }

    /// Answers when `answer` is known, which is asked for once all requests for the object that came
    /// before have taken effect.
    fn answer_in_turn<T: 'static>(
        &self,
        name: &'static str,
        id: &ObjectId,
        reply: Reply<T>,
        answer: impl Future<Output = Result<T>> + 'static,
    ) {
        match self.0.turns.behind(id) {
            None => self.answer(name, reply, answer),
            Some(turn) => self.answer(name, reply, async move {
                turn.comes().await;
                drop(turn);
                answer.await
            }),
        }
    }

    fn commit_and_answer(&self, id: &ObjectId, batch: &Batch, reply: Reply<Version>) {
        match self.commit(id, batch) {
            Ok(ticket) if self.0.durability == Durability::OnFlush => {
                drop(reply.send(Ok(ticket.version)));
            }
            Ok(ticket) => self.answer("commit", reply, ticket),
            Err(error) => drop(reply.send(Err(error))),
        }
    }

    fn commit(&self, id: &ObjectId, batch: &Batch) -> Result<Ticket> {
        let shard = self.shard(id);
        let answered = usize::from(id.shard(self.0.shard_count)) / self.0.cores;
        self.0.answered.borrow_mut()[answered].check()?;
        let commit = |resident: Option<&dyn crate::Resident>| shard.commit(id, batch, resident);
        let version = || shard.appended_version(id);
        let ticket = self.0.memory.borrow_mut().commit(id, batch, commit, version)?;
        self.0.answered.borrow_mut()[answered].note(&ticket);
        if let Some(commits) = self.0.loading.borrow_mut().get_mut(id) {
            let (version, outcome) = (ticket.version, ticket.outcome.clone());
            commits.push(Meanwhile { batch: batch.clone(), version, outcome });
        }
        Ok(ticket)
    }

    /// Removes the keys that begin with `prefix`, as one commit. Returns how many, and how that
    /// commit, or the one that left nothing to remove, will end.
    async fn delete_prefix(
        &self,
        id: &ObjectId,
        prefix: &[u8],
    ) -> Result<(u64, Option<Rc<Outcome>>)> {
        if let Some(snapshot) = self.large(id).await? {
            let (batch, keys) = without_prefix_of_tree(&snapshot, prefix).await?;
            let unsettled = match keys {
                0 => None,
                // It has its turn: nobody else commits.
                _ => Some(self.commit(id, &batch.only_if(snapshot.version()))?.outcome),
            };
            return Ok((keys, unsettled));
        }
        let (contents, unsettled) = self.appended(id).await?;
        // Nothing is waited for from here on: the commit is made for the very state that was counted.
        match without_prefix(&contents, prefix) {
            (_, 0) => Ok((0, unsettled)),
            (batch, keys) => {
                let ticket = self.commit(id, &batch.only_if(contents.version))?;
                Ok((keys, Some(ticket.outcome)))
            }
        }
    }

    /// Waits until what rests on a commit with this outcome can be answered.
    async fn answerable(&self, unsettled: Option<Rc<Outcome>>) -> Result<()> {
        match (self.0.durability, unsettled) {
            (Durability::Always, Some(outcome)) => outcome.settled().await,
            (Durability::Always, None) | (Durability::OnFlush, _) => Ok(()),
        }
    }

    async fn head(&self, id: &ObjectId) -> Result<(Version, Option<u64>)> {
        let shard = self.shard(id);
        let head = match self.0.durability {
            Durability::Always => {
                shard.settled(id).await?;
                shard.head(id)?
            }
            Durability::OnFlush => shard.appended_head(id)?,
        };
        Ok(head.unwrap_or_default())
    }

    async fn get(&self, id: &ObjectId, key: &[u8]) -> Result<Option<Bytes>> {
        match self.large(id).await? {
            Some(snapshot) => snapshot.get(key).await,
            None => Ok(self.contents(id).await?.map.get(key).cloned()),
        }
    }

    async fn list(&self, id: &ObjectId, list: List) -> Result<Walked> {
        match self.large(id).await? {
            Some(snapshot) => {
                let (task, listed) = scan(self.0.env.clone(), snapshot, list);
                // The store's end does not wait for it.
                self.0.env.spawn("list", task);
                Ok(Walked::Paged(listed))
            }
            None => Ok(Walked::Whole(self.contents(id).await?)),
        }
    }

    /// The object, with all that was appended by now, if it is a large one that is better read in parts.
    async fn large(&self, id: &ObjectId) -> Result<Option<Snapshot<E>>> {
        let shard = self.shard(id);
        shard.check_healthy()?;
        if self.0.memory.borrow_mut().get(id).is_some() {
            return Ok(None);
        }
        match shard.is_large(id).await? {
            true => shard.snapshot(id).await.map(Some),
            false => Ok(None),
        }
    }

    /// The object as it is now, once that can be answered.
    async fn contents(&self, id: &ObjectId) -> Result<Arc<Contents>> {
        loop {
            let (contents, unsettled) = self.appended(id).await?;
            // If it failed: it did not happen, or nobody knows; what was read is not the object.
            if self.answerable(unsettled).await.is_ok() {
                self.0.memory.borrow_mut().was_read(id, &contents);
                return Ok(contents);
            }
        }
    }

    /// The object with all that was appended, durable or not, at the moment at which this returns;
    /// and how the newest commit in it will end.
    async fn appended(&self, id: &ObjectId) -> Result<(Arc<Contents>, Option<Rc<Outcome>>)> {
        loop {
            // What is in memory is no answer either once the shard has failed (E4).
            self.shard(id).check_healthy()?;
            let held = {
                let mut memory = self.0.memory.borrow_mut();
                memory.get(id).map(|held| (held.contents.clone(), held.unsettled()))
            };
            match held {
                Some(held) => return Ok(held),
                None if self.0.loading.borrow().contains_key(id) => {
                    let read = || (!self.0.loading.borrow().contains_key(id)).then_some(());
                    self.0.changed.until(read).await;
                }
                None => {
                    if let Some(loaded) = self.load(id).await? {
                        return Ok(loaded);
                    }
                }
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

/// A batch that removes the keys that begin with `prefix`, and their number.
async fn without_prefix_of_tree<E: Env>(
    snapshot: &Snapshot<E>,
    prefix: &[u8],
) -> Result<(Batch, u64)> {
    // Keys are sorted: if the first and the last one go, all do.
    let mut ends = Vec::new();
    for list in [List::all().limit(1), List::all().reverse().limit(1)] {
        ends.extend(snapshot.scan(&list)?.next_keys().await?.into_iter().flatten());
    }
    let all = ends.iter().all(|(key, _)| key.starts_with(prefix));
    let (mut scan, mut batch, mut keys) = (snapshot.scan(&List::prefix(prefix))?, Batch::new(), 0);
    while let Some(some) = scan.next_keys().await? {
        keys += some.len() as u64;
        if !all {
            batch = some.iter().fold(batch, |batch, (key, _)| batch.delete(key));
        }
    }
    // The shortest way to say so, and the one that no limit refuses.
    Ok((if all { Batch::new().delete_all() } else { batch }, keys))
}

/// Likewise, of an object that is in memory.
fn without_prefix(contents: &Contents, prefix: &[u8]) -> (Batch, u64) {
    let range = contents.map.range::<[u8], _>((Bound::Included(prefix), Bound::Unbounded));
    let keys = range.map(|(key, _)| key).take_while(|key| key.starts_with(prefix));
    let batch = keys.fold(Batch::new(), Batch::delete);
    let count = batch.len();
    let all = count == contents.map.len();
    // The shortest way to say so, and the one that no limit refuses.
    (if all { Batch::new().delete_all() } else { batch }, count as u64)
}
