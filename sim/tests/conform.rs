//! Recorded traces on the whole stack, and that a difference would be seen.

#![expect(clippy::disallowed_methods, reason = "reads the recorded traces")]

use std::path::{Path, PathBuf};

use dormouse_sim::conform::{Outcome, conform};
use serde_json::{Value, json};

fn traces() -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("traces");
    let files = std::fs::read_dir(dir).expect("sim/traces").map(|entry| entry.unwrap().path());
    let mut files: Vec<_> =
        files.filter(|path| path.extension().is_some_and(|e| e == "jsonl")).collect();
    files.sort();
    files
}

#[test]
fn recorded_traces_show_no_difference() {
    let mut outcome = Outcome::default();
    for file in traces() {
        conform(&file, 0, &mut outcome).unwrap();
    }
    assert_eq!(outcome.differences, Vec::<String>::new());
    assert!(outcome.traces >= 17 && outcome.operations > 5000, "{outcome:?}");
    assert!(outcome.skipped < 100, "only traces of alarms: {outcome:?}");
}

#[test]
fn what_is_observed_does_not_depend_on_the_seed() {
    let mut outcome = Outcome::default();
    for (seed, file) in (1..4).flat_map(|seed| traces().into_iter().map(move |file| (seed, file))) {
        conform(&file, seed, &mut outcome).unwrap();
    }
    assert_eq!(outcome.differences, Vec::<String>::new());
}

/// Makes every outcome in a step wrong; how many there are.
fn spoil(step: &mut Value) -> usize {
    let mut spoiled = 0;
    let op = step["op"].as_str().unwrap_or_default().to_owned();
    for field in ["outcome", "incarnation", "beyond", "result", "hex_len", "status", "frame", "log"]
    {
        if step.get(field).is_none() {
            continue;
        }
        // A refusal is expected whatever was recorded beside it; and where only success can be
        // asked (docs/decisions/0003), nothing is compared with the recording.
        let past_limit = step["beyond"].is_string();
        let unlimited = op == "delete_many" && step["beyond"] == "too-many-keys";
        if unlimited || (past_limit && field == "result") {
            continue;
        }
        // An incarnation of concurrent increments is compared together with their result.
        if op != "concurrent_increment" || field != "incarnation" {
            spoiled += 1;
        }
        step[field] = json!("spoiled");
    }
    // What Rust's types rule out is not run.
    let ruled_out = op == "new_unique_id" || (op == "put" && step["value"].is_null());
    if step.get("error").is_some() && op != "event" && !ruled_out {
        step["error"]["kind"] = json!("spoiled");
        // A refused connection is compared as a whole.
        spoiled += usize::from(op != "ws_connect");
    }
    if step["skipped"] == true {
        step["result"] = json!("spoiled");
        spoiled += 1;
    }
    let inside = step["ops"].as_array_mut().into_iter().flatten();
    spoiled + inside.map(spoil).sum::<usize>()
}

/// Every recorded outcome is made wrong; each must be found.
#[test]
fn every_wrong_outcome_is_found() {
    let dir = tempfile::tempdir().unwrap();
    for path in traces() {
        let text = std::fs::read_to_string(&path).unwrap();
        let mut steps: Vec<Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        if !["ops", "ids", "ws"].map(Value::from).contains(&steps[0]["kind"]) {
            continue;
        }
        let spoiled: usize = steps[1..].iter_mut().map(spoil).sum();
        let lines: Vec<String> = steps.iter().map(Value::to_string).collect();
        let wrong = dir.path().join("wrong.jsonl");
        std::fs::write(&wrong, lines.join("\n")).unwrap();
        let mut outcome = Outcome::default();
        conform(&wrong, 0, &mut outcome).unwrap();
        assert_eq!(outcome.differences.len(), spoiled, "{}", path.display());
        assert!(spoiled > 50, "{}: {spoiled} outcomes", path.display());
    }
}
