//! What a run prints: the table of all figures, the verdicts, and JSON.

use std::io::Write;

use anyhow::Result;

use crate::engines::Engine;
use crate::metrics::{self, Better, Metric};
use crate::results::Results;
use crate::targets::Targets;

/// Above this share of the machine for others its figures are doubtful.
const OTHERS_MAX: f64 = 0.25;

/// Three digits that matter.
pub(crate) fn number(value: f64) -> String {
    let (scaled, unit) = match value.abs() {
        size if size >= 999_500_000.0 => (value / 1e9, "G"),
        size if size >= 999_500.0 => (value / 1e6, "M"),
        size if size >= 9_995.0 => (value / 1e3, "k"),
        _ => (value, ""),
    };
    let digits = match scaled.abs() {
        size if size >= 99.95 || size == 0.0 => 0,
        size if size >= 9.995 => 1,
        _ => 2,
    };
    format!("{scaled:.digits$}{unit}")
}

/// A figure over Dormouse's, for the reader's eye.
fn ratio(results: &Results, engine: Engine, metric: Metric) -> Option<f64> {
    if metric.better == Better::Told || engine == Engine::Dormouse {
        return None;
    }
    let own = results.median(Engine::Dormouse, metric.workload, metric.name)?;
    let other = results.median(engine, metric.workload, metric.name)?;
    (own != 0.0).then_some(other / own)
}

fn cells(results: &Results, engine: Engine, metric: Metric) -> [String; 2] {
    let Some(summary) = results.summary(engine, metric.workload, metric.name) else {
        return ["-".into(), String::new()];
    };
    let ratio = ratio(results, engine, metric).map(|ratio| format!(" {}x", number(ratio)));
    let spread = format!("{}..{}", number(summary.min), number(summary.max));
    [number(summary.median) + &ratio.unwrap_or_default(), spread]
}

/// Engines as columns; each figure with its ratio to Dormouse's, and its spread below.
pub(crate) fn table(results: &Results, out: &mut impl Write) -> Result<()> {
    let metrics: Vec<_> =
        metrics::all().into_iter().filter(|metric| !results.engines(*metric).is_empty()).collect();
    let shown =
        |engine: &Engine| metrics.iter().any(|metric| results.engines(*metric).contains(engine));
    let engines: Vec<_> = Engine::ALL.into_iter().filter(shown).collect();
    let mut workload = "";
    for metric in metrics {
        if metric.workload != workload {
            workload = metric.workload;
            writeln!(out, "\n{workload}: {}", metrics::describe(workload))?;
            let names: String =
                engines.iter().map(|engine| format!("{:>20}", engine.name())).collect();
            writeln!(out, "{:<22}{names}", "")?;
        }
        let cells: Vec<_> = engines.iter().map(|engine| cells(results, *engine, metric)).collect();
        let row = |line: usize| -> String {
            cells.iter().map(|cell| format!("{:>20}", cell[line])).collect()
        };
        let label = format!("  {}, {}", metric.name, metric.unit);
        writeln!(out, "{label:<22}{}", row(0))?;
        writeln!(out, "{:<22}{}", "", row(1))?;
    }
    Ok(())
}

/// One line for each target, and how many were met.
pub(crate) fn verdicts(results: &Results, targets: &Targets, out: &mut impl Write) -> Result<()> {
    writeln!(out, "\ntargets:")?;
    let (mut met, mut missed, mut unjudged) = (0, 0, 0);
    for row in &targets.rows {
        let line = row.line(results)?;
        match &line {
            line if line.ends_with("MISS") => missed += 1,
            line if line.contains("not judged: ") => unjudged += 1,
            _ => met += 1,
        }
        writeln!(out, "{line}")?;
    }
    writeln!(out, "\n{met} met, {missed} missed, {unjudged} not judged")?;
    for engine in Engine::ALL {
        if results.skips_flushes(engine) {
            writeln!(out, "{}: not durable: its commits show no flush", engine.name())?;
        }
    }
    for (engine, step, error) in &results.failures {
        writeln!(out, "FAILED: {} in {step}: {error}", engine.name())?;
    }
    Ok(())
}

/// How much of the machine others used meanwhile, and what that means.
pub(crate) fn others(share: Option<f64>, out: &mut impl Write) -> Result<()> {
    let Some(share) = share else { return Ok(()) };
    let percent = share * 100.0;
    writeln!(out, "other processes and the kernel took {percent:.0} % of the machine meanwhile")?;
    if share > OTHERS_MAX {
        writeln!(
            out,
            "busy: writes that end on a busy core wait for its next tick, so that figures of single \
             commits may be those of the tick; repeat this on a quiet machine"
        )?;
    }
    Ok(())
}

/// One object a line.
pub(crate) fn json(results: &Results, out: &mut impl Write) -> Result<()> {
    for metric in metrics::all() {
        for engine in results.engines(metric) {
            let Some(summary) = results.summary(engine, metric.workload, metric.name) else {
                continue;
            };
            let line = serde_json::json!({
                "workload": metric.workload,
                "engine": engine.name(),
                "metric": metric.name,
                "unit": metric.unit,
                "median": summary.median,
                "min": summary.min,
                "max": summary.max,
                "rounds": summary.rounds,
            });
            writeln!(out, "{line}")?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::tests::results;

    #[test]
    fn numbers_keep_three_digits() {
        let shown = [0.0, 0.333, 9.99, 17.51, 105.4, 6_900.0, 111_234.0, 1_234_567.0].map(number);
        assert_eq!(shown, ["0", "0.33", "9.99", "17.5", "105", "6900", "111k", "1.23M"]);
    }

    #[test]
    fn json_is_one_object_a_line() {
        let figures = [
            (Engine::Dormouse, "W1", "rate", 9_000.0),
            (Engine::Dormouse, "W1", "rate", 8_000.0),
            (Engine::Lmdb, "W1", "rate", 2_500.0),
        ];
        let mut out = Vec::new();
        json(&results(&figures), &mut out).expect("written");
        let text = String::from_utf8(out).expect("text");
        let lines: Vec<serde_json::Value> =
            text.lines().map(|line| serde_json::from_str(line).expect("an object")).collect();
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0]["median"], 8_500.0);
        assert_eq!(lines[0]["min"], 8_000.0);
        assert_eq!(lines[0]["rounds"], 2);
        assert_eq!(lines[1]["engine"], "lmdb");
    }

    #[test]
    fn the_table_shows_each_figure_and_its_ratio() {
        let figures = [(Engine::Dormouse, "W6", "time", 10.0), (Engine::Lmdb, "W6", "time", 25.0)];
        let mut out = Vec::new();
        table(&results(&figures), &mut out).expect("written");
        let text = String::from_utf8(out).expect("text");
        assert!(text.contains("25.0 2.50x"), "{text}");
        assert!(!text.contains("redb"), "{text}");
    }
}
