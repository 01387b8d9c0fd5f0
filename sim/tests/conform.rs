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

/// Steps of the format that the recorded traces here don't have, with what semantics.md §7 says.
const MORE_SOCKETS: &str = r#"
{"format":"dormouse-trace/1","kind":"ws"}
{"op":"ws_connect","conn":"a","tags":["t"],"attachment":{"n":1},"greet":"hi","status":101}
{"op":"ws_recv","conn":"a","frame":{"frame":"text","text":"hi"}}
{"op":"ws_object","incarnation":1,"ops":[{"op":"ws_get_auto","result":null},{"op":"ws_auto_timestamp","conn":"a","result":null},{"op":"ws_set_auto","request":"q","response":"r","result":"ok"},{"op":"ws_get_auto","result":{"request":"q","response":"r"}},{"op":"ws_set_auto","request":2049,"response":"r","error":{"kind":"bad-argument"}},{"op":"ws_set_auto","request":"q","response":2049,"error":{"kind":"bad-argument"}},{"op":"ws_get_event_timeout","result":null},{"op":"ws_set_event_timeout","ms":604800001,"error":{"kind":"bad-argument"}},{"op":"ws_set_event_timeout","ms":5000,"result":"ok"},{"op":"ws_get_event_timeout","result":5000}]}
{"op":"hibernate","seconds":12}
{"op":"ws_send","conn":"a","text":"q"}
{"op":"ws_recv","conn":"a","frame":{"frame":"text","text":"r"}}
{"op":"ws_ping","conn":"a","hex":"00"}
{"op":"ws_recv","conn":"a","frame":{"frame":"pong","hex":"00"}}
{"op":"ws_handler_log","n":0,"log":[]}
{"op":"ws_object","incarnation":2,"ops":[{"op":"ws_auto_timestamp","conn":"a","result":"set"},{"op":"ws_get_auto","result":{"request":"q","response":"r"}},{"op":"ws_get_event_timeout","result":5000},{"op":"ws_set_event_timeout","result":"ok"},{"op":"ws_get_event_timeout","result":null},{"op":"ws_set_auto","request":2048,"response":2048,"result":"ok"}]}
{"op":"ws_send","conn":"a","text":{"repeat":"q","n":2048}}
{"op":"ws_recv","conn":"a","frame":{"frame":"text","text":{"len":2048}}}
{"op":"ws_object","incarnation":2,"ops":[{"op":"ws_set_auto","result":"ok"},{"op":"ws_get_auto","result":null},{"op":"ws_server_close","conn":"a","reason":"no code","error":{"kind":"bad-argument"}},{"op":"ws_behaviour","behaviour":{"closeBack":true},"result":"ok"},{"op":"ws_server_send","conn":"a","text":{"repeat":"x","n":129},"result":"ok"},{"op":"get","key":"none","result":null}]}
{"op":"ws_recv","conn":"a","frame":{"frame":"text","text":{"len":129}}}
{"op":"ws_client_close","conn":"a","code":4000,"reason":"bye"}
{"op":"ws_handler_log","n":1,"log":[{"incarnation":2,"ev":"close","conn":"a","code":4000,"reason":"bye","wasClean":true,"readyState":2,"listed":["a"]}]}
{"op":"ws_recv","conn":"a","frame":{"frame":"close","code":4000,"reason":"bye"}}
{"op":"ws_recv","conn":"a","frame":{"frame":"eof"}}
{"op":"ws_connect","conn":"b","status":101}
{"op":"ws_client_close","conn":"b"}
{"op":"ws_handler_log","n":2,"log":[{"incarnation":2,"ev":"close","conn":"b","code":1005,"reason":"","wasClean":true,"readyState":2,"listed":["b"]},{"incarnation":2,"ev":"close-back-error","conn":"b","error":{"kind":"bad-argument"}}]}
{"op":"ws_recv","conn":"b","frame":{"frame":"none"}}
{"op":"ws_connect","conn":"c","status":101}
{"op":"ws_object","incarnation":2,"ops":[{"op":"ws_server_close","conn":"c","code":4001,"reason":"","result":"ok"}]}
{"op":"ws_client_drop","conn":"c"}
{"op":"ws_handler_log","n":2,"log":[{"incarnation":2,"ev":"close","conn":"c","code":1006,"reason":"WebSocket disconnected without sending Close frame.","wasClean":false,"readyState":3,"listed":["c"]},{"incarnation":2,"ev":"close-back-error","conn":"c","error":{"kind":"bad-argument"}}]}
{"op":"ws_connect","conn":"d","status":101}
{"op":"ws_send_binary","conn":"d","hex":{"pattern":1,"len":1048577}}
{"op":"ws_handler_log","n":1,"log":[{"incarnation":2,"ev":"error","conn":"d"}]}
{"op":"ws_connect","conn":"e","status":101}
{"op":"ws_object","incarnation":2,"outcome":"error","error":{"kind":"object-aborted","reset":true},"ops":[{"op":"abort","message":"m","error":{"kind":"object-aborted"}}]}
{"op":"ws_recv","conn":"e","frame":{"frame":"eof"}}
{"op":"ws_object","incarnation":3,"ops":[{"op":"ws_list","result":[]}]}
{"op":"ws_handler_log","n":0,"log":[]}
"#;

#[test]
fn steps_that_no_trace_has_are_replayed_too() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("more.jsonl");
    std::fs::write(&path, MORE_SOCKETS.trim_start()).unwrap();
    let mut outcome = Outcome::default();
    conform(&path, 7, &mut outcome).unwrap();
    assert_eq!(outcome.differences, Vec::<String>::new());
    assert_eq!((outcome.skipped, outcome.inexpressible), (0, 0));
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
