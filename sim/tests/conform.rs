//! Recorded traces on the whole stack, and that a difference would be seen.

#![expect(clippy::disallowed_methods, reason = "reads the recorded traces")]

use std::path::{Path, PathBuf};

use dormouse_sim::conform::{Outcome, conform};

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
}

/// One recorded answer at a time is made wrong; each must be found, on its line.
#[test]
fn a_wrong_answer_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let wrong = [
        ("small-kv-1", "\"op\":\"delete\"", "\"result\":true", "\"result\":false"),
        ("small-kv-1", "\"op\":\"event\"", "\"incarnation\":1", "\"incarnation\":2"),
        ("txn-kv-1", "\"op\":\"transaction\"", "\"committed\"", "\"undone\""),
        ("mixed-kv-1", "\"op\":\"concurrent_increment\"", "\"result\":[", "\"result\":[0,"),
        ("ids-1", "\"op\":\"id_from_name\"", "\"id\":\"", "\"id\":\"0"),
        ("restart-kv-1", "\"op\":\"abort\"", "object-aborted", "object-reset"),
    ];
    for (trace, line_has, from, to) in wrong {
        let path = traces().into_iter().find(|path| path.file_stem().unwrap() == trace).unwrap();
        let text = std::fs::read_to_string(path).unwrap();
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        let place = lines.iter().position(|line| line.contains(line_has) && line.contains(from));
        let place = place.unwrap_or_else(|| panic!("{trace} has no {line_has} with {from}"));
        lines[place] = lines[place].replacen(from, to, 1);
        let changed = dir.path().join("changed.jsonl");
        std::fs::write(&changed, lines.join("\n")).unwrap();
        let mut outcome = Outcome::default();
        conform(&changed, 0, &mut outcome).unwrap();
        let here = format!(":{}:", place + 1);
        let found = outcome.differences.iter().any(|difference| difference.contains(&here));
        assert!(found, "{trace}{here} {line_has} is not found: {:?}", outcome.differences);
    }
}
