//! Replays traces of kind `ops`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result};
use dormouse_cache::AlarmToo;
use serde_json::{Value, json};

use super::Replay;
use super::args::nested;
use super::compare::{count, expected, is_unlimited};
use super::interpreter::{Notes, kind};
use super::object::{Increment, Program, start_trace};
use super::stack::Stack;

/// How long an unconfirmed write has before the process is killed.
const UNCONFIRMED_TIME: Duration = Duration::from_millis(100);

pub(super) type Line = (usize, Value);

pub(crate) fn replay(replay: &mut Replay<'_>, lines: &[Line]) -> Result<()> {
    start_trace();
    let mut stack = Stack::new(replay.seed, alarm_too(&replay.header))?;
    let mut rest = lines;
    let mut unconfirmed = false;
    while let Some(((number, step), after)) = rest.split_first() {
        rest = after;
        match step["op"].as_str().unwrap_or_default() {
            "event" => {
                let is_op = |(_, line): &&Line| {
                    !["event", "restart", "concurrent_increment"]
                        .contains(&line["op"].as_str().unwrap_or_default())
                };
                let len = rest.iter().take_while(is_op).count();
                let (ops, after) = rest.split_at(len);
                rest = after;
                event(replay, &stack, *number, step, ops)?;
                unconfirmed |= ops.iter().any(|(_, op)| is_unconfirmed(op));
            }
            "restart" => {
                // A kill strikes at once, for what is confirmed must be there. What is not is
                // promised to nobody; when this was recorded it had some time.
                if std::mem::take(&mut unconfirmed) {
                    stack.pass(UNCONFIRMED_TIME)?;
                }
                stack = stack.restart(step["mode"] == "kill")?;
            }
            "concurrent_increment" => increment(replay, &stack, *number, step)?,
            other => anyhow::bail!("line {number}: {other} outside of an event"),
        }
        replay.outcome.operations += 1;
    }
    Ok(())
}

/// What a trace's delete-all does to the alarm.
pub(super) fn alarm_too(header: &Value) -> AlarmToo {
    if header["deleteAllDeletesAlarm"] == true { AlarmToo::Clear } else { AlarmToo::Keep }
}

/// Whether an operation, or one inside it, writes without waiting for durability.
fn is_unconfirmed(op: &Value) -> bool {
    op["opts"]["allowUnconfirmed"] == true || nested(op).iter().any(is_unconfirmed)
}

/// Runs one event, and compares it and all its operations.
pub(crate) fn event(
    replay: &mut Replay<'_>,
    stack: &Stack,
    number: usize,
    step: &Value,
    lines: &[Line],
) -> Result<()> {
    let notes = Notes::default();
    let program = Program {
        ops: lines.iter().map(|(_, op)| op.clone()).collect(),
        alarm_too: alarm_too(&replay.header),
        notes: notes.clone(),
    };
    let name = step["object"].as_str().context("an event has an object")?;
    let ended = stack
        .call(stack.stub(name).call(program))
        .with_context(|| format!("line {number}, after {:?}", notes.lock().expect("one thread")))?;
    let notes = std::mem::take(&mut *notes.lock().expect("one thread"));
    let end = ended.as_ref().err().map(|error| json!({ "error": kind(error) }));
    let got = match &ended {
        Ok(()) => json!({ "outcome": "ok" }),
        Err(error) => json!({ "outcome": "error", "error": kind(error), "reset": error.reset() }),
    };
    let mut wanted = json!({ "outcome": step["outcome"] });
    if let Some(error) = step.get("error") {
        wanted["error"] = error["kind"].clone();
        wanted["reset"] = json!(error["reset"] == true);
    }
    if wanted != got {
        replay.differs(number, "the event", &wanted, &got);
    }
    let incarnation = notes.get("incarnation").unwrap_or(&Value::Null);
    if *incarnation != step["incarnation"] {
        replay.differs(number, "incarnation", &step["incarnation"], incarnation);
    }
    let seen = Seen { notes, end };
    for (place, (number, op)) in lines.iter().enumerate() {
        replay.outcome.operations += count(op);
        compare(replay, &seen, *number, op, &place.to_string());
    }
    Ok(())
}

/// What an event observed, and the error that it ended with.
pub(super) struct Seen {
    pub(super) notes: BTreeMap<String, Value>,
    pub(super) end: Option<Value>,
}

pub(super) fn compare(
    replay: &mut Replay<'_>,
    seen: &Seen,
    number: usize,
    op: &Value,
    place: &str,
) {
    let skipped = json!({ "skipped": true });
    let wanted = expected(op);
    let got = match (seen.notes.get(place), &seen.end) {
        // A `throw` of the event itself is noted as what it is; it may be recorded as its effect.
        (Some(_), Some(end)) if op["op"] == "throw" && op.get("error").is_some() => end,
        (Some(note), _) => note,
        // It never ran, or it is what ended the event.
        (None, Some(end)) if wanted != skipped => end,
        (None, _) => &skipped,
    };
    if got.get("inexpressible").is_some() {
        replay.outcome.inexpressible += 1;
    } else if is_unlimited(op) && got.get("result").is_some() {
        // Compared as far as it can be.
    } else if wanted != *got {
        let what = op["op"].as_str().unwrap_or_default();
        replay.differs(number, what, &wanted, got);
    }
    for (inner, op) in op["ops"].as_array().into_iter().flatten().enumerate() {
        compare(replay, seen, number, op, &format!("{place}.{inner}"));
    }
}

fn increment(replay: &mut Replay<'_>, stack: &Stack, number: usize, step: &Value) -> Result<()> {
    let name = step["object"].as_str().context("an object")?;
    let key = step["key"].as_str().context("a key")?;
    let in_block = step["variant"] == "block";
    let stub = stack.stub(name);
    let calls = (0..step["n"].as_u64().context("a count")?)
        .map(|_| stub.call(Increment { key: key.to_owned(), in_block }));
    let calls: Vec<_> = calls.collect();
    let mut numbers = Vec::new();
    let mut incarnations = BTreeSet::new();
    for call in calls {
        let (new, incarnation) = stack.call(call)?.with_context(|| format!("line {number}"))?;
        numbers.push(new);
        incarnations.insert(incarnation);
    }
    numbers.sort_unstable();
    let got = json!({ "result": numbers, "incarnations": incarnations });
    let wanted = json!({ "result": step["result"], "incarnations": [step["incarnation"]] });
    if got != wanted {
        replay.differs(number, "concurrent_increment", &wanted, &got);
    }
    Ok(())
}
