//! Replays traces of kind `alarm`: cases in which alarms are set, and the runs of their handlers.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};
use dormouse_cache::AlarmToo;
use dormouse_scheduler::prelude::*;
use serde_json::{Value, json};

use super::Replay;
use super::compare::count;
use super::interpreter::{Interpreter, Notes, kind};
use super::object::start_trace;
use super::ops::{Line, Seen, alarm_too, compare, event};
use super::stack::Stack;

/// How long a run is waited for: longer than all retries of one alarm take.
const RUN_MAX: Duration = Duration::from_secs(600);
/// How long it is watched that nothing more runs, where something might.
const QUIET: Duration = Duration::from_millis(400);
/// The same, where even a retry would be wrong.
const QUIET_LONG: Duration = Duration::from_millis(3500);
/// What passes before the events between two runs.
const BETWEEN: Duration = Duration::from_millis(200);

thread_local! {
    /// By object: what each run of its handler does. And all runs, in the order of their starts.
    static CASE: RefCell<Case> = RefCell::default();
}

#[derive(Default)]
struct Case {
    alarm_too: AlarmToo,
    scripts: BTreeMap<String, Vec<Value>>,
    runs: Vec<Run>,
}

/// One run of a handler.
struct Run {
    object: String,
    info: AlarmInfo,
    incarnation: u64,
    notes: Notes,
    /// None until it ends: then how.
    end: Option<Result<(), Error>>,
}

/// The handler of an object in a case: what its script says for this run.
pub(super) async fn handler(state: &State, incarnation: u64, info: AlarmInfo) -> Result<(), Error> {
    let object = state.id().to_string();
    let (place, script, alarm_too, notes) = CASE.with_borrow_mut(|case| {
        let before = case.runs.iter().filter(|run| run.object == object).count();
        let script = case.scripts.get(&object).and_then(|script| script.get(before)).cloned();
        let notes = Notes::default();
        let (object, notes_too) = (object.clone(), notes.clone());
        case.runs.push(Run { object, info, incarnation, notes: notes_too, end: None });
        (case.runs.len() - 1, script.unwrap_or_default(), case.alarm_too, notes)
    });
    let interpreter = Interpreter { state: state.clone(), alarm_too, notes };
    let ops = script["ops"].as_array().cloned().unwrap_or_default();
    let mut end = interpreter.run(ops, None, String::new()).await;
    if let (Ok(()), Some(text)) = (&end, script["throw"].as_str()) {
        end = Err(Error::user(text));
    }
    CASE.with_borrow_mut(|case| {
        if let Some(run) = case.runs.get_mut(place) {
            run.end = Some(end.clone());
        }
    });
    end
}

fn runs() -> usize {
    CASE.with_borrow(|case| case.runs.len())
}

pub(crate) fn replay(replay: &mut Replay<'_>, lines: &[Line]) -> Result<()> {
    for (number, step) in lines {
        let what = step["op"].as_str().unwrap_or_default();
        anyhow::ensure!(what == "alarm_case", "line {number}: {what} is no case");
        case(replay, *number, step).with_context(|| format!("line {number}"))?;
        replay.outcome.operations += count(step);
    }
    Ok(())
}

fn case(replay: &mut Replay<'_>, number: usize, step: &Value) -> Result<()> {
    start_trace();
    let mut stack = Stack::new(replay.seed, alarm_too(&replay.header))?;
    let names = step["scripts"].as_object().into_iter().flatten();
    let scripts = names.map(|(name, script)| {
        (stack.stub(name).id().to_string(), script.as_array().cloned().unwrap_or_default())
    });
    let alarm_too = alarm_too(&replay.header);
    CASE.set(Case { alarm_too, scripts: scripts.collect(), runs: Vec::new() });
    events(replay, &stack, number, &step["trigger"])?;
    if step["restart"].is_string() {
        stack = stack.restart(step["restart"] == "kill")?;
        CASE.with_borrow_mut(|case| case.scripts.clear());
    }
    let between = &step["between"];
    if !between.is_null() {
        wait_for(&stack, usize::try_from(between["after_runs"].as_u64().unwrap_or(0))?)?;
        stack.pass(BETWEEN)?;
        events(replay, &stack, number, &between["events"])?;
    }
    let wanted = step["runs"].as_array().context("a case has runs")?;
    wait_for(&stack, wanted.len())?;
    let last = wanted.last();
    let sets = last.is_some_and(|run| run["ops"].to_string().contains("set_alarm"));
    let is_over = last.is_none_or(|run| run["outcome"] == "ok") && !sets;
    stack.pass(if is_over { QUIET_LONG } else { QUIET })?;
    same_runs(replay, &stack, number, wanted);
    events(replay, &stack, number, &step["after"])
}

/// Waits until so many runs have begun; what is missing then is a difference.
fn wait_for(stack: &Stack, count: usize) -> Result<()> {
    let step = Duration::from_millis(10);
    let mut waited = Duration::ZERO;
    while runs() < count && waited < RUN_MAX {
        stack.pass(step)?;
        waited += step;
    }
    Ok(())
}

fn events(replay: &mut Replay<'_>, stack: &Stack, number: usize, lines: &Value) -> Result<()> {
    let lines = lines.as_array().into_iter().flatten();
    let lines: Vec<Line> = lines.map(|line| (number, line.clone())).collect();
    let is_event = |(_, line): &Line| line["op"] == "event";
    for one in lines.chunk_by(|_, next| !is_event(next)) {
        let Some(((_, step), ops)) = one.split_first() else { continue };
        event(replay, stack, number, step, ops)?;
    }
    Ok(())
}

fn same_runs(replay: &mut Replay<'_>, stack: &Stack, number: usize, wanted: &[Value]) {
    let got = CASE.with_borrow_mut(|case| std::mem::take(&mut case.runs));
    if got.len() != wanted.len() {
        replay.differs(number, "handler runs", &json!(wanted.len()), &json!(got.len()));
    }
    for (place, (run, wanted)) in got.into_iter().zip(wanted).enumerate() {
        let name = wanted["object"].as_str().unwrap_or_default();
        let outcome = match &run.end {
            None => "aborted",
            Some(Ok(())) => "ok",
            Some(Err(_)) => "threw",
        };
        let ours = json!({
            "object": if stack.stub(name).id().to_string() == run.object { name } else { "another" },
            "retryCount": run.info.retry_count,
            "isRetry": run.info.is_retry,
            "incarnation": run.incarnation,
            "outcome": outcome,
        });
        for (field, got) in ours.as_object().into_iter().flatten() {
            if let Some(wanted) = wanted.get(field).filter(|wanted| *wanted != got) {
                replay.differs(number, &format!("run {place}, {field}"), wanted, got);
            }
        }
        let end = match &run.end {
            None => Some(json!({ "error": "object-aborted" })),
            Some(end) => end.as_ref().err().map(|error| json!({ "error": kind(error) })),
        };
        let notes = std::mem::take(&mut *run.notes.lock().expect("one thread"));
        let seen = Seen { notes, end };
        for (place, op) in wanted["ops"].as_array().into_iter().flatten().enumerate() {
            compare(replay, &seen, number, op, &place.to_string());
        }
    }
}
