//! [`Storage`] and [`Transaction`]: an object's keys, values and alarm.
//!
//! Every operation takes effect at the call; the future only brings its result, and dropping it
//! undoes nothing. While it waits the object's input gate stays closed, unless the options say
//! otherwise.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::ops::Deref;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use dormouse_cache::{AlarmToo, Answer, EventId, List, Lock, Read, Section, Write};
use dormouse_engine::Host;
use futures_channel::oneshot;
use futures_util::future::{Either, FutureExt, select};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, Result};
use crate::host::{CoreHost, Home};
use crate::instance::{Instance, Work, outside};
use crate::state::{section_limit, took_too_long};
use crate::value::{decode, encode};
use crate::watch::Awake;

type Scope = dormouse_cache::Transaction<CoreHost, Home>;

/// An object's storage. Values are any serde types, kept as MessagePack with the names of their fields, or
/// bytes as they are. A `Vec<u8>` is to serde a list of numbers; `serde_bytes` and `put_bytes` keep bytes. Of
/// `Option<Option<T>>` and `Option<()>` serde's formats, this one too, keep only whether there is a `T`.
pub struct Storage {
    instance: Rc<Instance>,
    /// The transaction that these operations belong to.
    scope: Option<Rc<Scope>>,
}

/// When an alarm is to fire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AlarmTime {
    /// In milliseconds since 1970.
    At(u64),
    /// After this time from now.
    In(Duration),
}

/// The result of a storage operation.
#[must_use = "the operation is made, but whether it failed is not known"]
pub struct Op<T>(OpState<T>);

enum OpState<T> {
    Ready(Option<Result<T>>),
    /// Waits by itself.
    Waiting(Pin<Box<dyn Future<Output = Result<T>>>>),
    /// A task waits, maybe with the gate closed.
    Tended(oneshot::Receiver<Result<T>>, Held),
}

/// Returns when all of the object's tasks that are woken by now had their turn. Twice, since something else may
/// have woken this one before them.
async fn behind_the_woken() {
    let mut turns = 0;
    poll_fn(|cx| {
        if turns == 2 {
            return Poll::Ready(());
        }
        turns += 1;
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// The lock of an operation: it goes when whoever awaits it has the result, or gives up, and soon after
/// the operation is over in any case, for whoever awaits it may be a task that the lock keeps out.
struct Held(Rc<Cell<Option<Lock>>>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.take();
    }
}

impl<T> Unpin for Op<T> {}

impl<T> Future for Op<T> {
    type Output = Result<T>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<T>> {
        match &mut self.get_mut().0 {
            OpState::Ready(result) => {
                Poll::Ready(result.take().expect("polled after it was ready"))
            }
            OpState::Waiting(answer) => answer.as_mut().poll(cx),
            OpState::Tended(answer, held) => answer.poll_unpin(cx).map(|result| {
                held.0.take();
                // Of an instance that has ended nothing is polled any more.
                result.unwrap_or_else(|_| Err(outside()))
            }),
        }
    }
}

/// The same operation on the object's cache, or in the transaction.
macro_rules! on {
    ($storage:expr, $method:ident($($arg:expr),*)) => {
        match &$storage.scope {
            None => $storage.instance.cache.$method($($arg),*),
            Some(scope) => scope.$method($($arg),*),
        }
    };
}

fn keys_of<'a>(keys: &'a [&'a str]) -> Vec<&'a [u8]> {
    keys.iter().map(|key| key.as_bytes()).collect()
}

/// Keys came in as text; one that a tool wrote otherwise is shown as near as can be.
fn text(key: &[u8]) -> String {
    match str::from_utf8(key) {
        Ok(text) => text.to_owned(),
        Err(_) => String::from_utf8_lossy(key).into_owned(),
    }
}

fn texts(pairs: Vec<(Bytes, Bytes)>) -> Result<Vec<(String, Bytes)>> {
    Ok(pairs.into_iter().map(|(key, value)| (text(&key), value)).collect())
}

fn decoded<T: DeserializeOwned>(
    pairs: impl ExactSizeIterator<Item = (impl AsRef<[u8]>, impl AsRef<[u8]>)>,
) -> Result<Vec<(String, T)>> {
    // With room for all of them at once: what is collected to a result may end early, and grows as it goes.
    let mut all = Vec::with_capacity(pairs.len());
    for (key, value) in pairs {
        all.push((text(key.as_ref()), decode(value.as_ref())?));
    }
    Ok(all)
}

impl Storage {
    pub(crate) fn new(instance: Rc<Instance>) -> Self {
        Self { instance, scope: None }
    }

    pub(crate) fn instance(&self) -> &Rc<Instance> {
        &self.instance
    }

    fn op<A: 'static, T: 'static>(
        &self,
        answer: Answer<A>,
        concurrency: bool,
        convert: impl FnOnce(A) -> Result<T> + 'static,
    ) -> Op<T> {
        match answer.try_ready() {
            Ok(result) => Op(OpState::Ready(Some(result.map_err(Error::from).and_then(convert)))),
            Err(answer) => {
                let answer = async move { convert(answer.await?) };
                match self.instance.current() {
                    None => Op(OpState::Waiting(answer.boxed_local())),
                    Some(event) => self.tended((!concurrency).then_some(event), answer),
                }
            }
        }
    }

    /// Waits in a task that no gate keeps out, with the gate closed if it is held for an event: what was read for an answer
    /// that nobody takes holds nothing of the log.
    fn tended<T: 'static>(
        &self,
        holds: Option<EventId>,
        answer: impl Future<Output = Result<T>> + 'static,
    ) -> Op<T> {
        let lock = Rc::new(Cell::new(holds.map(|event| self.instance.gate.hold(event))));
        let held = Held(lock.clone());
        let (sender, receiver) = oneshot::channel();
        let host = self.instance.host.clone();
        let task = async move {
            let _nobody_waits = sender.send(answer.await);
            if holds.is_some() {
                // The event that made it goes on first, if it is that which waits: the object's tasks go on in the
                // order in which they are woken.
                behind_the_woken().await;
                host.turn_end().await;
                lock.take();
            }
        };
        self.instance.push(Work::Task(Awake::Storage, task.boxed_local()));
        Op(OpState::Tended(receiver, held))
    }

    fn failed<T>(error: Error) -> Op<T> {
        Op(OpState::Ready(Some(Err(error))))
    }

    /// The value of a key.
    pub fn get<T: DeserializeOwned + 'static>(&self, key: &str) -> Op<Option<T>> {
        self.get_with(key, Read::default())
    }

    /// See [`Storage::get`].
    pub fn get_with<T: DeserializeOwned + 'static>(
        &self,
        key: &str,
        options: Read,
    ) -> Op<Option<T>> {
        let answer = on!(self, get(key.as_bytes(), options));
        self.op(answer, options.allows_concurrency(), |value| {
            value.map(|bytes| decode(&bytes)).transpose()
        })
    }

    /// The bytes of a key.
    pub fn get_bytes(&self, key: &str) -> Op<Option<Bytes>> {
        self.get_bytes_with(key, Read::default())
    }

    /// See [`Storage::get_bytes`].
    pub fn get_bytes_with(&self, key: &str, options: Read) -> Op<Option<Bytes>> {
        self.op(on!(self, get(key.as_bytes(), options)), options.allows_concurrency(), Ok)
    }

    /// The keys that exist, ascending, each once; at most 128.
    pub fn get_many<T: DeserializeOwned + 'static>(&self, keys: &[&str]) -> Op<Vec<(String, T)>> {
        let answer = on!(self, get_many(&keys_of(keys), Read::default()));
        self.op(answer, false, |pairs| decoded(pairs.into_iter()))
    }

    /// See [`Storage::get_many`].
    pub fn get_many_bytes(&self, keys: &[&str]) -> Op<Vec<(String, Bytes)>> {
        self.op(on!(self, get_many(&keys_of(keys), Read::default())), false, texts)
    }

    /// The keys of a range and their values, as of this call.
    pub fn list<T: DeserializeOwned + 'static>(&self, list: &List) -> Op<Vec<(String, T)>> {
        self.op(on!(self, list(list, Read::default())), false, |entries| decoded(entries.iter()))
    }

    /// See [`Storage::list`]. Small values are slices of one buffer: one that is kept keeps it.
    pub fn list_bytes(&self, list: &List) -> Op<Vec<(String, Bytes)>> {
        self.op(on!(self, list(list, Read::default())), false, |entries| {
            Ok(entries.into_iter().map(|(key, value)| (text(&key), value)).collect())
        })
    }

    /// Sets a key. In effect at once; what the object says afterwards waits until it is durable
    ///
    pub fn put<T: Serialize + ?Sized>(&self, key: &str, value: &T) -> Op<()> {
        self.put_with(key, value, Write::default())
    }

    /// See [`Storage::put`].
    pub fn put_with<T: Serialize + ?Sized>(&self, key: &str, value: &T, options: Write) -> Op<()> {
        match encode(value) {
            Ok(bytes) => self.put_bytes_with(key, bytes, options),
            Err(error) => Self::failed(error),
        }
    }

    /// Sets a key to these bytes.
    pub fn put_bytes(&self, key: &str, value: impl Into<Bytes>) -> Op<()> {
        self.put_bytes_with(key, value, Write::default())
    }

    /// See [`Storage::put_bytes`].
    pub fn put_bytes_with(&self, key: &str, value: impl Into<Bytes>, options: Write) -> Op<()> {
        let answer = on!(self, put(key.as_bytes(), value.into(), options));
        self.op(answer, options.allows_concurrency(), Ok)
    }

    /// Sets keys, all or none; at most 128.
    pub fn put_many<T: Serialize>(&self, entries: &[(&str, T)]) -> Op<()> {
        let mut encoded = Vec::with_capacity(entries.len());
        for (key, value) in entries {
            match encode(value) {
                Ok(bytes) => encoded.push((*key, bytes)),
                Err(error) => return Self::failed(error),
            }
        }
        self.put_many_bytes(&encoded)
    }

    /// See [`Storage::put_many`].
    pub fn put_many_bytes(&self, entries: &[(&str, Bytes)]) -> Op<()> {
        self.put_many_bytes_with(entries, Write::default())
    }

    /// See [`Storage::put_many`].
    pub fn put_many_bytes_with(&self, entries: &[(&str, Bytes)], options: Write) -> Op<()> {
        let entries = entries.iter();
        let entries: Vec<_> = entries
            .map(|(key, value)| (Bytes::copy_from_slice(key.as_bytes()), value.clone()))
            .collect();
        self.op(on!(self, put_many(&entries, options)), options.allows_concurrency(), Ok)
    }

    /// Removes a key; whether it was there.
    pub fn delete(&self, key: &str) -> Op<bool> {
        self.delete_with(key, Write::default())
    }

    /// See [`Storage::delete`].
    pub fn delete_with(&self, key: &str, options: Write) -> Op<bool> {
        self.op(on!(self, delete(key.as_bytes(), options)), options.allows_concurrency(), Ok)
    }

    /// Removes keys, any number of them; how many were there.
    pub fn delete_many(&self, keys: &[&str]) -> Op<usize> {
        self.delete_many_with(keys, Write::default())
    }

    /// See [`Storage::delete_many`].
    pub fn delete_many_with(&self, keys: &[&str], options: Write) -> Op<usize> {
        let answer = on!(self, delete_many(&keys_of(keys), options));
        self.op(answer, options.allows_concurrency(), Ok)
    }

    /// Removes all keys and the alarm, in one atomic step; the alarm stays if the
    /// [namespace's options](crate::NamespaceOptions::delete_all) say so. Not in a transaction.
    pub fn delete_all(&self) -> Op<()> {
        self.delete_all_with(self.instance.delete_all, Write::default())
    }

    /// See [`Storage::delete_all`].
    pub fn delete_all_with(&self, alarm: AlarmToo, options: Write) -> Op<()> {
        self.op(on!(self, delete_all(alarm, options)), options.allows_concurrency(), Ok)
    }

    /// The alarm in milliseconds since 1970; none while its handler runs, unless that set one
    ///
    pub fn get_alarm(&self) -> Op<Option<u64>> {
        self.op(on!(self, get_alarm(Read::default())), false, Ok)
    }

    /// Sets the alarm; one in the past fires now.
    ///
    /// Errors: code `bad-argument` for 1970.
    pub fn set_alarm(&self, time: AlarmTime) -> Op<()> {
        self.set_alarm_with(time, Write::default())
    }

    /// See [`Storage::set_alarm`]; of the options `no_cache` says nothing here.
    pub fn set_alarm_with(&self, time: AlarmTime, options: Write) -> Op<()> {
        let now = self.instance.host.wall_ms();
        let at_ms = match time {
            AlarmTime::At(0) => 0,
            AlarmTime::At(at_ms) => at_ms.max(now),
            AlarmTime::In(delay) => {
                now.saturating_add(u64::try_from(delay.as_millis()).unwrap_or(u64::MAX))
            }
        };
        self.op(on!(self, set_alarm(Some(at_ms), options)), options.allows_concurrency(), Ok)
    }

    /// Clears the alarm.
    pub fn delete_alarm(&self) -> Op<()> {
        self.delete_alarm_with(Write::default())
    }

    /// See [`Storage::delete_alarm`].
    pub fn delete_alarm_with(&self, options: Write) -> Op<()> {
        self.op(on!(self, set_alarm(None, options)), options.allows_concurrency(), Ok)
    }

    /// Waits until all that was written is durable. Other events are let in meanwhile, unlike
    /// while a read or a write is waited for.
    pub fn sync(&self) -> Op<()> {
        match self.instance.cache.sync().try_ready() {
            Ok(result) => Op(OpState::Ready(Some(result.map_err(Error::from)))),
            Err(synced) => Op(OpState::Waiting(async move { Ok(synced.await?) }.boxed_local())),
        }
    }

    /// Runs `work` with no other event let in, and makes its changes together, or, if it fails or
    /// is dropped, not at all. Inside another transaction it is a savepoint. The
    /// object's own storage takes part while it runs.
    ///
    /// A transaction of more than 30 s resets the object.
    pub async fn transaction<T>(
        &self,
        work: impl AsyncFnOnce(&Transaction) -> Result<T>,
    ) -> Result<T> {
        let instance = &self.instance;
        let event = instance.current().ok_or_else(outside)?;
        let section = OpenSection(Some(instance.gate.section(event, event)?.await?));
        let scope = Rc::new(instance.cache.begin());
        let storage = Self { instance: instance.clone(), scope: Some(scope.clone()) };
        let transaction = Transaction(storage);
        let limit = section_limit(instance.host.clone()).boxed_local();
        let result = match select(std::pin::pin!(work(&transaction)), limit).await {
            Either::Left((result, _)) => result,
            Either::Right(_) => {
                instance.reset(took_too_long("a transaction"));
                std::future::pending().await
            }
        };
        let value = match result {
            Ok(value) => value,
            Err(error) => {
                undo(&scope);
                drop(section);
                return Err(error);
            }
        };
        let committed = self.op(scope.commit(), false, Ok);
        drop(section);
        committed.await?;
        Ok(value)
    }
}

/// Takes a failed transaction back. One that was ended already, or lost with the one around it,
/// has nothing left to undo.
fn undo(scope: &Scope) {
    if let Err(error) = scope.rollback() {
        tracing::debug!(%error, "a failed transaction could not be rolled back by itself");
    }
}

/// A transaction's critical section: it ends well however the transaction does.
struct OpenSection(Option<Section>);

impl Drop for OpenSection {
    fn drop(&mut self) {
        if let Some(section) = self.0.take() {
            drop(section.succeed());
        }
    }
}

/// An open transaction, with the operations of [`Storage`].
pub struct Transaction(Storage);

impl Deref for Transaction {
    type Target = Storage;

    fn deref(&self) -> &Storage {
        &self.0
    }
}

impl Transaction {
    /// Undoes all changes; operations on this handle fail from now on.
    ///
    /// Errors: a transaction inside this one is open.
    pub fn rollback(&self) -> Result<()> {
        let scope = self.0.scope.as_ref().expect("a transaction has a scope");
        Ok(scope.rollback()?)
    }
}
