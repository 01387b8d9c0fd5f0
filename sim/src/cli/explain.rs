//! What explains a failure: `replay`, `play`, `shrink` and `diff`.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};
use dormouse_sim::life::{Report, play};
use dormouse_sim::plan::Plan;
use dormouse_sim::plan::shrink::shrink;
use indicatif::ProgressBar;

/// Lines of the common past that `diff` prints.
const PAST: usize = 5;

/// Lives a plan, and prints what came of it.
pub(crate) fn show(plan: &Plan, log: bool) -> ExitCode {
    let report = play(plan, log);
    report.log.iter().for_each(|line| println!("{line}"));
    if let Some(failure) = &report.failure {
        println!("seed {}: {failure}", plan.seed);
    }
    println!("trace-hash: {:032x}", report.trace_hash);
    if report.failure.is_some() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// Reads a plan.
pub(crate) fn read(file: &Path) -> Result<Plan> {
    let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
    Plan::parse(&text).with_context(|| file.display().to_string())
}

/// Shrinks a plan that fails, and prints what is left or writes it to `out`.
pub(crate) fn shorten(plan: &Plan, tries: u64, out: Option<&Path>) -> Result<ExitCode> {
    let failure = play(plan, false).failure;
    let Some(failure) = failure else {
        println!("seed {} does not fail: nothing to shrink", plan.seed);
        return Ok(ExitCode::SUCCESS);
    };
    println!("// before: {failure}");
    let bar = match std::io::stderr().is_terminal() {
        true => ProgressBar::new(tries),
        false => ProgressBar::hidden(),
    };
    let failure_of = |plan: &Plan| -> Option<String> {
        // A life that panics outside of a task is a failure too.
        let lived = std::panic::catch_unwind(|| play(plan, false));
        lived.map_or(Some("a panic".to_owned()), |report: Report| report.failure)
    };
    let shortest = shrink(plan, tries, |plan| {
        bar.inc(1);
        failure_of(plan).is_some()
    });
    bar.finish_and_clear();
    let failure = failure_of(&shortest).context("the shortest plan no longer fails")?;
    println!("// after: {failure}");
    match out {
        None => print!("{}", shortest.print()),
        Some(file) => {
            #[expect(clippy::disallowed_methods, reason = "the file that was asked for")]
            std::fs::write(file, shortest.print()).with_context(|| file.display().to_string())?;
            println!("// written: cargo sim play {}", file.display());
        }
    }
    Ok(ExitCode::FAILURE)
}

/// Shows the first step where two builds of the simulator part.
pub(crate) fn diff(seed: u64, a: &Path, b: &Path) -> Result<ExitCode> {
    let logs = [log_of(seed, a)?, log_of(seed, b)?];
    let lines = logs.each_ref().map(|log| log.lines().collect::<Vec<_>>());
    let parted = (0..lines[0].len().max(lines[1].len()))
        .find(|index| lines[0].get(*index) != lines[1].get(*index));
    let Some(parted) = parted else {
        println!("{} steps, all the same", lines[0].len());
        return Ok(ExitCode::SUCCESS);
    };
    let past = parted.saturating_sub(PAST);
    lines[0][past..parted].iter().for_each(|line| println!("  {line}"));
    for (sign, lines) in ["A", "B"].iter().zip(&lines) {
        println!("{sign} {}", lines.get(parted).unwrap_or(&"(the end)"));
    }
    Ok(ExitCode::FAILURE)
}

fn log_of(seed: u64, build: &Path) -> Result<String> {
    let program: PathBuf = build.canonicalize().with_context(|| build.display().to_string())?;
    let output = Command::new(&program)
        .args(["replay", &seed.to_string(), "--log"])
        .output()
        .with_context(|| program.display().to_string())?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(text.contains("trace-hash: "), "{} is no build of the simulator", program.display());
    Ok(text)
}
