//! Runs the operations of one event against its object's storage, and notes what each observed.
//!
//! Invariant: an operation takes effect when it is started, in the order of the program; operations
//! that are not awaited go on beside those that are, as promises do.

use std::collections::{BTreeMap, BTreeSet};
use std::future::{Future, poll_fn, ready};
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use dormouse_cache::{AlarmToo, List};
use dormouse_scheduler::prelude::*;
use dormouse_scheduler::{AlarmTime, Kind, Op};
use futures_util::StreamExt;
use futures_util::future::{FutureExt, LocalBoxFuture};
use futures_util::stream::FuturesUnordered;
use serde_json::{Value, json};

use super::args::{bytes, entries, list, nested, options, texts};
use super::compare::{shown, shown_map};
use super::ws_object;

/// Far enough ahead to be told from an alarm near now, in milliseconds since 1970.
const FAR_MS: u64 = 3_800_000_000_000;
/// How near is near, in milliseconds.
const NEAR_MS: u64 = 60_000;

/// What was observed, by the place of the operation: `2` is the third of its event, `2.0` the
/// first inside it.
pub(crate) type Notes = Arc<Mutex<BTreeMap<String, Value>>>;

/// Notes what was observed at a place.
pub(crate) fn note(notes: &Notes, place: &str, outcome: Value) {
    notes.lock().expect("one thread").insert(place.to_owned(), outcome);
}

/// Runs programs of one object.
#[derive(Clone)]
pub(crate) struct Interpreter {
    pub(crate) state: State,
    pub(crate) alarm_too: AlarmToo,
    pub(crate) notes: Notes,
}

impl Interpreter {
    /// Runs the operations of one scope, one after the other; the error is a `throw`.
    pub(crate) fn run<'a>(
        &'a self,
        ops: Vec<Value>,
        transaction: Option<&'a Transaction>,
        prefix: String,
    ) -> LocalBoxFuture<'a, Result<()>> {
        async move {
            let mut unawaited = Unawaited::default();
            let mut thrown = Ok(());
            for (number, op) in ops.iter().enumerate() {
                let place = format!("{prefix}{number}");
                if thrown.is_err() {
                    note(&self.notes, &place, json!({ "skipped": true }));
                    continue;
                }
                match op["op"].as_str().unwrap_or_default() {
                    "throw" => {
                        note(&self.notes, &place, json!({ "result": "thrown" }));
                        thrown = Err(Error::user(op["message"].as_str().unwrap_or_default()));
                    }
                    "abort" => {
                        let message = op["message"].as_str().unwrap_or("abort() was called");
                        self.state.abort(message).await;
                    }
                    _ => {
                        let noted = self.start_noted(op, transaction, place);
                        match op["await"] == false {
                            true => unawaited.push(noted).await,
                            false => unawaited.beside(noted).await,
                        }
                    }
                }
            }
            unawaited.finish().await;
            thrown
        }
        .boxed_local()
    }

    /// Starts an operation; the future waits for its outcome and notes it.
    fn start_noted<'a>(
        &'a self,
        op: &Value,
        transaction: Option<&'a Transaction>,
        place: String,
    ) -> LocalBoxFuture<'a, ()> {
        let storage: &Storage = match transaction {
            Some(transaction) if op["via"] != "storage" => transaction,
            _ => self.state.storage(),
        };
        let inside = format!("{place}.");
        let done = match op["op"].as_str().unwrap_or_default() {
            "transaction" => self.transaction(nested(op), inside).boxed_local(),
            "block" => self.block(nested(op), inside),
            "rollback" => {
                let outside = || Err(Error::user("rollback outside of a transaction"));
                let result = transaction.map_or_else(outside, Transaction::rollback);
                ready(outcome(result.map(ok))).boxed_local()
            }
            _ if op["beyond"].is_string() => self.start_beyond(op, storage),
            _ => self.start(op, storage),
        };
        async move { note(&self.notes, &place, done.await) }.boxed_local()
    }

    /// A transaction, opened through the object's storage: inside another it is a savepoint.
    async fn transaction(&self, ops: Vec<Value>, inside: String) -> Value {
        let storage = self.state.storage();
        let result = storage
            .transaction(async |transaction| self.run(ops, Some(transaction), inside).await)
            .await;
        outcome(result.map(|()| json!("committed")))
    }

    fn block(&self, ops: Vec<Value>, inside: String) -> LocalBoxFuture<'static, Value> {
        let this = self.clone();
        let section = async move || this.run(ops, None, inside).await;
        let result = self.state.block_concurrency_while(section);
        async move { outcome(result.await.map(|()| json!("done"))) }.boxed_local()
    }

    /// Starts an operation past a documented limit, and looks at what it does: nothing, if it is
    /// refused; a `delete_many` that is not refused must count right.
    fn start_beyond(&self, op: &Value, storage: &Storage) -> LocalBoxFuture<'static, Value> {
        let all = self.state.storage();
        let look = || (all.list_bytes(&List::all()), all.get_alarm());
        // All of these take effect here, in this order.
        let (before, done, after) = (look(), self.start(op, storage), look());
        let named: BTreeSet<String> = texts(&op["keys"]).into_iter().map(str::to_owned).collect();
        let is_delete = op["op"] == "delete_many";
        async move {
            let outcome = done.await;
            let (before, alarm_before) = (before.0.await, before.1.await);
            let (after, alarm_after) = (after.0.await, after.1.await);
            let (Ok(before), Ok(after)) = (before, after) else {
                return json!({ "error": "the keys can't be listed" });
            };
            let unchanged = before == after && alarm_before.ok() == alarm_after.ok();
            let found = before.iter().filter(|(key, _)| named.contains(key)).count();
            match outcome.get("error") {
                Some(error) if !unchanged => json!({ "error": error, "effect": true }),
                None if is_delete && outcome["result"] != json!(found) => {
                    json!({ "error": format!("{outcome}, but {found} keys were there") })
                }
                _ => outcome,
            }
        }
        .boxed_local()
    }

    /// Starts a plain operation at once; the future gives its outcome.
    fn start(&self, op: &Value, storage: &Storage) -> LocalBoxFuture<'static, Value> {
        let key = op["key"].as_str().unwrap_or_default();
        let keys: Vec<&str> = texts(&op["keys"]);
        let (read, write) = options(&op["opts"]);
        match op["op"].as_str().unwrap_or_default() {
            "get" => done(storage.get_bytes_with(key, read), |value| {
                value.map_or(Value::Null, |value| shown(&value))
            }),
            "get_many" => done(storage.get_many_bytes(&keys), |pairs| shown_map(&pairs)),
            "list" => done(storage.list_bytes(&list(&op["opts"])), |pairs| shown_map(&pairs)),
            "put" => match bytes(&op["value"]) {
                Ok(Some(value)) => done(storage.put_bytes_with(key, value, write), ok),
                other => unheard(other.err()),
            },
            "put_many" => match entries(&op["entries"]) {
                Ok(Some(entries)) => done(storage.put_many_bytes(&entries), ok),
                other => unheard(other.err()),
            },
            "delete" => done(storage.delete_with(key, write), |existed| json!(existed)),
            "delete_many" => done(storage.delete_many(&keys), |count| json!(count)),
            "delete_all" if write == Write::default() => done(storage.delete_all(), ok),
            "delete_all" => done(storage.delete_all_with(self.alarm_too, write), ok),
            "sync" => done(storage.sync(), ok),
            "yield" => {
                let sleep = self.state.sleep(Duration::from_millis(1));
                sleep.map(|()| json!({ "result": "ok" })).boxed_local()
            }
            "set_alarm" => done(storage.set_alarm(alarm_time(op)), ok),
            "get_alarm" => {
                let now_ms = self.state.now_ms();
                done(storage.get_alarm(), move |alarm| shown_alarm(alarm, now_ms))
            }
            "delete_alarm" => done(storage.delete_alarm(), ok),
            name if name.starts_with("ws_") => match ws_object::operate(&self.state, op) {
                Some(outcome) => ready(outcome).boxed_local(),
                None => unheard(Some(anyhow::anyhow!("unknown or malformed operation {name}"))),
            },
            other => unheard(Some(anyhow::anyhow!("unknown operation {other}"))),
        }
    }
}

/// Operations that were started and are not awaited yet.
#[derive(Default)]
struct Unawaited<'a>(FuturesUnordered<LocalBoxFuture<'a, ()>>);

impl<'a> Unawaited<'a> {
    /// Lets one go on by itself; what is there at once is noted at once.
    async fn push(&mut self, operation: LocalBoxFuture<'a, ()>) {
        self.0.push(operation);
        self.beside(ready(())).await;
    }

    /// Awaits `operation` while these go on.
    async fn beside(&mut self, operation: impl Future<Output = ()>) {
        let mut operation = pin!(operation);
        poll_fn(|cx| {
            while let Poll::Ready(Some(())) = self.0.poll_next_unpin(cx) {}
            operation.as_mut().poll(cx)
        })
        .await;
    }

    async fn finish(mut self) {
        while self.0.next().await.is_some() {}
    }
}

fn alarm_time(op: &Value) -> AlarmTime {
    // Times before 1970 have no form; 1970 itself is as wrong.
    let millis = |value: &Value| u64::try_from(value.as_i64()?.max(0)).ok();
    match millis(&op["in_ms"]) {
        Some(delay_ms) => In(Duration::from_millis(delay_ms)),
        None => At(millis(&op["at"]).unwrap_or(0)),
    }
}

fn shown_alarm(alarm_ms: Option<u64>, now_ms: u64) -> Value {
    match alarm_ms {
        None => Value::Null,
        Some(at_ms) if at_ms >= FAR_MS => json!(at_ms),
        Some(at_ms) if at_ms.abs_diff(now_ms) <= NEAR_MS => json!("near-now"),
        Some(_) => json!("other"),
    }
}

fn ok((): ()) -> Value {
    json!("ok")
}

fn done<T: 'static>(
    op: Op<T>,
    show: impl FnOnce(T) -> Value + 'static,
) -> LocalBoxFuture<'static, Value> {
    async move { outcome(op.await.map(show)) }.boxed_local()
}

/// The outcome of an operation that has no form in Rust's types, or none at all.
fn unheard(malformed: Option<anyhow::Error>) -> LocalBoxFuture<'static, Value> {
    let outcome = match malformed {
        None => json!({ "inexpressible": true }),
        Some(error) => json!({ "error": format!("malformed: {error:#}") }),
    };
    ready(outcome).boxed_local()
}

/// How the format shows what an operation gave.
pub(crate) fn outcome(result: Result<Value>) -> Value {
    match result {
        Ok(value) => json!({ "result": value }),
        Err(error) => json!({ "error": kind(&error) }),
    }
}

/// The trace format's name of an error.
pub(crate) fn kind(error: &Error) -> String {
    match error.kind() {
        Kind::User => "user".to_owned(),
        Kind::ObjectAborted => "object-aborted".to_owned(),
        Kind::ObjectReset => "object-reset".to_owned(),
        _ => error.code().map_or_else(|| error.to_string(), str::to_owned),
    }
}
