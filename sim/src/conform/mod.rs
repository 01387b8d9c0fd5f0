//! `cargo sim conform`: recorded programs of the original system, run on the whole stack.
//!
//! A trace (sim/traces/FORMAT.md) says what was asked of objects and what they observed. Each is
//! replayed through stubs on a simulated machine of its own: scheduler, cache, engine, disk.
//! What Dormouse observes is compared with the recording. Nothing here knows an answer: every one
//! comes from the stack.

mod alarm;
mod args;
mod compare;
mod ids;
mod interpreter;
mod object;
mod ops;
mod stack;
mod ws;
mod ws_object;

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// What replaying some traces gave.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Traces replayed.
    pub traces: u64,
    /// Operations in them, nested ones and events too.
    pub operations: u64,
    /// One line each: file, line, what was expected and what came.
    pub differences: Vec<String>,
    /// Operations of traces that were not replayed.
    pub skipped: u64,
    /// Operations with an argument that Rust's types rule out, such as an undefined value.
    pub inexpressible: u64,
}

/// Where in which file a replay is, and what it found.
pub(crate) struct Replay<'a> {
    file: String,
    header: Value,
    seed: u64,
    pub(crate) outcome: &'a mut Outcome,
}

impl Replay<'_> {
    pub(crate) fn differs(&mut self, line: usize, what: &str, expected: &Value, got: &Value) {
        let file = &self.file;
        let text = format!("{file}:{line}: {what}: expected {expected}, got {got}");
        self.outcome.differences.push(text);
    }
}

/// Replays one trace on a simulated machine of this seed: what is observed must not depend on it.
///
/// Errors: the file can't be read or is no trace.
pub fn conform(path: &Path, seed: u64, outcome: &mut Outcome) -> Result<()> {
    let text = read(path).with_context(|| path.display().to_string())?;
    let mut lines = Vec::new();
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.is_empty()) {
        let step: Value = serde_json::from_str(line)
            .with_context(|| format!("{}:{}", path.display(), number + 1))?;
        lines.push((number + 1, step));
    }
    ensure!(!lines.is_empty(), "{}: empty", path.display());
    let (_, header) = lines.remove(0);
    let format = header["format"].as_str().unwrap_or_default();
    ensure!(format == "dormouse-trace/1", "{}: format {format:?}", path.display());
    let file = path.display().to_string();
    let mut replay = Replay { file, header: header.clone(), seed, outcome };
    replay.outcome.traces += 1;
    match header["kind"].as_str() {
        Some("ops") => ops::replay(&mut replay, &lines)?,
        Some("alarm") => alarm::replay(&mut replay, &lines)?,
        Some("ids") => ids::replay(&mut replay, &lines)?,
        Some("ws") => ws::replay(&mut replay, &lines)?,
        _ => {
            replay.outcome.skipped +=
                lines.iter().map(|(_, line)| compare::count(line)).sum::<u64>()
        }
    }
    Ok(())
}

#[expect(clippy::disallowed_methods, reason = "traces are files of the person who runs this")]
fn read(path: &Path) -> Result<String> {
    Ok(String::from_utf8(std::fs::read(path)?)?)
}
