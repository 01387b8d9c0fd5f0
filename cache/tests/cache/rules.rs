//! The tables of docs/semantics.md, section 14: nothing is left out, and what they name is there.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

/// Rules that are not kept, as the table says. A rule comes here, or leaves, only on purpose.
const NOT_KEPT: [&str; 0] = [];
/// Scenarios that nothing covers.
const NOT_COVERED: [&str; 1] = ["T-161"];
/// The scenarios of sections 10.2 to 10.7, and of 10.9.
const SCENARIOS: [RangeInclusive<u32>; 2] = [16..=130, 158..=183];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace's")
}

fn semantics() -> String {
    std::fs::read_to_string(root().join("docs/semantics.md")).expect("docs/semantics.md")
}

/// The cells of each row of the table under a heading, but for its head.
fn table(text: &str, heading: &str) -> Vec<Vec<String>> {
    let (_, section) = text.split_once(&format!("\n{heading}\n")).expect("the heading is there");
    let lines = section.lines().take_while(|line| !line.starts_with('#'));
    let rows = lines.filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |"));
    rows.skip(1).map(|row| row.split(" | ").map(str::to_owned).collect()).collect()
}

/// `R-201, R-203 to R-205`, each by itself.
fn names(cell: &str) -> Vec<String> {
    let number = |name: &str| name[2..].parse::<u32>().expect("a number");
    let each = |part: &str| match part.split_once(" to ") {
        None => vec![part.to_owned()],
        Some((first, last)) => (number(first)..=number(last))
            .map(|number| format!("{}{number:03}", &first[..2]))
            .collect(),
    };
    cell.split(", ").flat_map(each).collect()
}

/// What stands in backquotes.
fn quoted(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

/// A file as it is named in a cell.
fn file(name: &str, without_directory: &str) -> PathBuf {
    let near = root().join(without_directory).join(name);
    if near.exists() { near } else { root().join(name) }
}

/// Whether a file defines something of this name.
fn defines(path: &Path, name: &str) -> bool {
    let Ok(text) = std::fs::read_to_string(path) else { return false };
    ["fn", "struct", "enum", "const"].iter().any(|word| {
        let definition = format!("{word} {name}");
        text.match_indices(&definition).any(|(at, found)| {
            let next = text[at + found.len()..].chars().next();
            !next.is_some_and(|c| c.is_alphanumeric() || c == '_')
        })
    })
}

/// What is wrong with a place, such as `state.rs::write`.
fn missing_place(place: &str) -> Option<String> {
    let (name, item) = place.split_once("::").expect("a file and what is in it");
    (!defines(&file(name, "cache/src"), item)).then(|| format!("{place} is not there"))
}

/// What is wrong with a test, such as `flush.rs::a_turn`, or a canary; or a program of one test.
fn missing_test(test: &str) -> Option<String> {
    if let Some(canary) = test.strip_prefix("canary ") {
        let patch = root().join("sim/canaries").join(format!("{canary}.patch"));
        return (!patch.exists()).then(|| format!("{test} is not there"));
    }
    let Some((name, test_name)) = test.split_once("::") else {
        return (!file(test, "cache/tests/cache").exists()).then(|| format!("{test} is not there"));
    };
    let path = file(name, "cache/tests/cache");
    let text = std::fs::read_to_string(&path).unwrap_or_default();
    let head = text.split_once(&format!("fn {test_name}(")).map(|(head, _)| head);
    // The attribute stands above it, maybe with others between.
    let above = head.and_then(|head| head.rsplit("\n}\n").next());
    let is_test = above.is_some_and(|above| above.contains("#[test]"));
    (!is_test).then(|| format!("{test} is no test"))
}

#[test]
fn every_rule_has_a_place_and_a_test() {
    let text = semantics();
    let mut wrong = Vec::new();
    let mut said = BTreeMap::new();
    let mut not_kept = BTreeSet::new();
    for row in table(&text, "### 14.1 Rules") {
        let [rules, words, places, tests] = &row[..] else { panic!("four cells: {row:?}") };
        for rule in names(rules) {
            *said.entry(rule.clone()).or_insert(0) += 1;
            if words.starts_with("not kept: ") {
                not_kept.insert(rule);
            }
        }
        wrong.extend(quoted(places).filter_map(missing_place));
        wrong.extend(quoted(tests).filter_map(missing_test));
        if !words.starts_with("not kept: ") {
            let (places, tests) = (quoted(places).count(), quoted(tests).count());
            assert!(places > 0 && tests > 0, "kept nowhere, or noticed by nothing: {rules}");
        }
    }
    let marked = |mark: &str| -> BTreeSet<String> {
        let rule = |line: &str| {
            let (rule, rest) = line.strip_prefix("- **")?.split_once("** ")?;
            let ours = ["R-2", "R-3", "R-4", "R-5"].iter().any(|section| rule.starts_with(section));
            (ours && rest.starts_with(mark)).then(|| rule.to_owned())
        };
        text.lines().filter_map(rule).collect()
    };
    let (core, edge) = (marked("[core]"), marked("[edge]"));
    assert!(core.len() > 150, "found only {}", core.len());
    let rows: BTreeSet<String> = said.keys().cloned().collect();
    assert_eq!(core.difference(&rows).collect::<Vec<_>>(), [] as [&String; 0], "without a row");
    assert!(rows.iter().all(|rule| core.contains(rule) || edge.contains(rule)), "{rows:?}");
    assert!(said.values().all(|rows| *rows == 1), "a rule has two rows: {said:?}");
    assert_eq!(not_kept, NOT_KEPT.map(str::to_owned).into());
    assert_eq!(wrong, [] as [String; 0]);
}

#[test]
fn every_scenario_is_covered_somewhere() {
    let mut wrong = Vec::new();
    let mut said = BTreeSet::new();
    let mut not_covered = BTreeSet::new();
    for row in table(&semantics(), "### 14.2 Scenarios") {
        let [scenarios, wherever] = &row[..] else { panic!("two cells: {row:?}") };
        let missing = wherever.starts_with("not covered: ");
        for scenario in names(scenarios) {
            assert!(said.insert(scenario.clone()), "{scenario} has two rows");
            if missing {
                not_covered.insert(scenario);
            }
        }
        let named =
            quoted(wherever).filter(|name| name.starts_with("canary ") || name.contains(".rs"));
        let named: Vec<_> = named.collect();
        assert!(missing || !named.is_empty(), "covered by nothing: {scenarios}");
        wrong.extend(named.into_iter().filter_map(missing_test));
    }
    let all = SCENARIOS.into_iter().flatten();
    assert_eq!(said, all.map(|number| format!("T-{number:03}")).collect());
    assert_eq!(not_covered, NOT_COVERED.map(str::to_owned).into());
    assert_eq!(wrong, [] as [String; 0]);
}
