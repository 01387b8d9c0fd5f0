//! The object that runs recorded programs: it interprets each operation against its storage and
//! notes what it observed.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use dormouse_cache::{AlarmToo, List, Read, Write};
use dormouse_scheduler::prelude::*;
use dormouse_scheduler::{Kind, Op};
use futures_util::future::{FutureExt, LocalBoxFuture, join_all};
use serde_json::{Value, json};

use super::compare::{argument, shown, shown_map};

/// Far enough ahead to be told from an alarm near now, in milliseconds since 1970.
const FAR_MS: u64 = 3_800_000_000_000;

thread_local! {
    /// How often each object was built in the trace that this thread replays.
    static BUILT: RefCell<BTreeMap<String, u64>> = const { RefCell::new(BTreeMap::new()) };
}

/// Forgets which objects were built.
pub(crate) fn start_trace() {
    BUILT.take();
}

/// What was observed, by the place of the operation: `2` is the third of its event, `2.0` the
/// first inside it.
pub(crate) type Notes = Arc<Mutex<BTreeMap<String, Value>>>;

/// The operations of one event.
pub(crate) struct Program {
    pub(crate) ops: Vec<Value>,
    pub(crate) alarm_too: AlarmToo,
    pub(crate) notes: Notes,
}

/// One of many concurrent increments.
pub(crate) struct Increment {
    pub(crate) key: String,
    pub(crate) in_block: bool,
}

/// Runs recorded programs.
pub(crate) struct Recorded {
    state: State,
    incarnation: u64,
}

impl DurableObject for Recorded {
    fn new(state: State) -> Self {
        let incarnation = BUILT.with_borrow_mut(|built| {
            let count = built.entry(state.id().to_string()).or_default();
            *count += 1;
            *count
        });
        Self { state, incarnation }
    }
}

impl Handler<Program> for Recorded {
    type Reply = ();

    async fn handle(&self, program: Program) -> Result<()> {
        let Program { ops, alarm_too, notes } = program;
        note(&notes, "incarnation", json!(self.incarnation));
        let interpreter = Interpreter { state: self.state.clone(), alarm_too, notes };
        interpreter.run(ops, None, String::new()).await
    }
}

impl Handler<Increment> for Recorded {
    type Reply = (u32, u64);

    async fn handle(&self, Increment { key, in_block }: Increment) -> Result<(u32, u64)> {
        let state = self.state.clone();
        let increment = async move || {
            let old = state.storage().get_bytes(&key).await?;
            let old = old.map_or(Ok([0; 4]), |old| (&*old).try_into());
            let old = old.map_err(|_| Error::user("not four bytes"))?;
            if in_block {
                state.sleep(Duration::from_millis(1)).await;
            }
            let new = u32::from_be_bytes(old) + 1;
            let bytes = Bytes::copy_from_slice(&new.to_be_bytes());
            state.storage().put_bytes(&key, bytes).await?;
            Ok(new)
        };
        let new = match in_block {
            true => self.state.block_concurrency_while(increment).await?,
            false => increment().await?,
        };
        Ok((new, self.incarnation))
    }
}

fn note(notes: &Notes, place: &str, outcome: Value) {
    notes.lock().expect("one thread").insert(place.to_owned(), outcome);
}

#[derive(Clone)]
struct Interpreter {
    state: State,
    alarm_too: AlarmToo,
    notes: Notes,
}

impl Interpreter {
    /// Runs the operations of one scope, one after the other; the error is a `throw`.
    fn run<'a>(
        &'a self,
        ops: Vec<Value>,
        transaction: Option<&'a Transaction>,
        prefix: String,
    ) -> LocalBoxFuture<'a, Result<()>> {
        async move {
            let mut unawaited = Vec::new();
            let mut thrown = Ok(());
            for (number, op) in ops.iter().enumerate() {
                let place = format!("{prefix}{number}");
                if thrown.is_err() {
                    note(&self.notes, &place, json!({ "skipped": true }));
                    continue;
                }
                let storage: &Storage = match transaction {
                    Some(transaction) if op["via"] != "storage" => transaction,
                    _ => self.state.storage(),
                };
                match op["op"].as_str().unwrap_or_default() {
                    "throw" => {
                        note(&self.notes, &place, json!({ "result": "thrown" }));
                        thrown = Err(Error::user(op["message"].as_str().unwrap_or_default()));
                    }
                    "abort" => {
                        let message = op["message"].as_str().unwrap_or("abort() was called");
                        self.state.abort(message).await;
                    }
                    "transaction" => self.transaction(op, storage, place).await,
                    "block" => self.block(op, place).await,
                    "rollback" => {
                        let result = transaction.expect("only in a transaction").rollback();
                        note(&self.notes, &place, outcome(result.map(|()| json!("ok"))));
                    }
                    _ => {
                        let done = self.start(op, storage);
                        let notes = self.notes.clone();
                        let noted = async move { note(&notes, &place, done.await) };
                        match op["await"] == false {
                            true => unawaited.push(noted),
                            false => noted.await,
                        }
                    }
                }
            }
            join_all(unawaited).await;
            thrown
        }
        .boxed_local()
    }

    async fn transaction(&self, op: &Value, storage: &Storage, place: String) {
        let inside = format!("{place}.");
        let ops = nested(op);
        let result = storage
            .transaction(async |transaction| self.run(ops, Some(transaction), inside).await)
            .await;
        note(&self.notes, &place, outcome(result.map(|()| json!("committed"))));
    }

    async fn block(&self, op: &Value, place: String) {
        let (this, ops, inside) = (self.clone(), nested(op), format!("{place}."));
        let section = async move || this.run(ops, None, inside).await;
        let result = self.state.block_concurrency_while(section).await;
        note(&self.notes, &place, outcome(result.map(|()| json!("done"))));
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
            "put" => match argument(&op["value"]) {
                Ok(Some(value)) => done(storage.put_bytes_with(key, value, write), ok),
                _ => inexpressible(),
            },
            "put_many" => match entries(&op["entries"]) {
                Some(entries) => done(storage.put_many_bytes(&entries), ok),
                None => inexpressible(),
            },
            "delete" => done(storage.delete_with(key, write), |existed| json!(existed)),
            "delete_many" => done(storage.delete_many(&keys), |count| json!(count)),
            "delete_all" => done(storage.delete_all_with(self.alarm_too, write), ok),
            "sync" => done(storage.sync(), ok),
            "yield" => {
                let sleep = self.state.sleep(Duration::from_millis(1));
                async move {
                    sleep.await;
                    json!({ "result": "ok" })
                }
                .boxed_local()
            }
            "set_alarm" => {
                // Times before 1970 have no form; 1970 itself is as wrong.
                let millis = |value: &Value| u64::try_from(value.as_i64()?.max(0)).ok();
                let time = match millis(&op["in_ms"]) {
                    Some(delay) => In(Duration::from_millis(delay)),
                    None => At(millis(&op["at"]).unwrap_or(0)),
                };
                done(storage.set_alarm(time), ok)
            }
            "get_alarm" => {
                let now = self.state.now_ms();
                done(storage.get_alarm(), move |alarm| match alarm {
                    None => Value::Null,
                    Some(at_ms) if at_ms >= FAR_MS => json!(at_ms),
                    Some(at_ms) if at_ms.abs_diff(now) <= 60_000 => json!("near-now"),
                    Some(_) => json!("other"),
                })
            }
            "delete_alarm" => done(storage.delete_alarm(), ok),
            other => {
                let unknown = json!({ "error": format!("unknown operation {other}") });
                std::future::ready(unknown).boxed_local()
            }
        }
    }
}

fn ok((): ()) -> Value {
    json!("ok")
}

fn nested(op: &Value) -> Vec<Value> {
    op["ops"].as_array().cloned().unwrap_or_default()
}

fn texts(keys: &Value) -> Vec<&str> {
    keys.as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

fn entries(entries: &Value) -> Option<Vec<(&str, Bytes)>> {
    let list = entries.as_array()?;
    let mut all = Vec::with_capacity(list.len());
    for entry in list {
        all.push((entry[0].as_str()?, argument(&entry[1]).ok()??));
    }
    Some(all)
}

fn options(opts: &Value) -> (Read, Write) {
    let (mut read, mut write) = (Read::default(), Write::default());
    if opts["allowConcurrency"] == true {
        (read, write) =
            (read.and(Read::allow_concurrency()), write.and(Write::allow_concurrency()));
    }
    if opts["noCache"] == true {
        (read, write) = (read.and(Read::no_cache()), write.and(Write::no_cache()));
    }
    if opts["allowUnconfirmed"] == true {
        write = write.and(Write::allow_unconfirmed());
    }
    (read, write)
}

fn list(opts: &Value) -> List {
    let mut list = List::all();
    if let Some(prefix) = opts["prefix"].as_str() {
        list = List::prefix(prefix);
    }
    if let Some(start) = opts["start"].as_str() {
        list = list.start(start);
    }
    if let Some(start) = opts["startAfter"].as_str() {
        list = list.start_after(start);
    }
    if let Some(end) = opts["end"].as_str() {
        list = list.end(end);
    }
    if opts["reverse"] == true {
        list = list.reverse();
    }
    if let Some(limit) = opts["limit"].as_i64() {
        list = list.limit(limit);
    }
    list
}

fn done<T: 'static>(
    op: Op<T>,
    show: impl FnOnce(T) -> Value + 'static,
) -> LocalBoxFuture<'static, Value> {
    async move { outcome(op.await.map(show)) }.boxed_local()
}

fn inexpressible() -> LocalBoxFuture<'static, Value> {
    std::future::ready(json!({ "inexpressible": true })).boxed_local()
}

fn outcome(result: Result<Value>) -> Value {
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
