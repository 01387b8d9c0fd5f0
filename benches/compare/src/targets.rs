//! The targets of benches/targets.toml, and whether a run meets them.

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;

use crate::engines::Engine;
use crate::metrics::{self, Metric};
use crate::report::number;
use crate::results::Results;

/// What comes with the program.
pub(crate) const TARGETS: &str = include_str!("../../targets.toml");

#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub(crate) struct Targets {
    #[serde(rename = "row")]
    pub rows: Vec<Row>,
}

/// One line of the verdict.
#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub(crate) struct Row {
    pub name: String,
    /// Peers without which it is not judged.
    #[serde(default)]
    pub needs: Vec<String>,
    #[serde(rename = "part", default)]
    pub parts: Vec<Part>,
    /// Why it can't be judged, whatever was measured.
    pub not_judged: Option<String>,
}

/// One comparison: a figure of Dormouse over a reference, or the figure itself.
#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub(crate) struct Part {
    pub workload: String,
    pub metric: String,
    pub against: Option<Against>,
    pub at_most: Option<f64>,
    pub at_least: Option<f64>,
    pub stretch: Option<f64>,
    pub note: Option<String>,
    pub not_judged: Option<String>,
}

/// The reference: `peers` (the best of them), `floor`, `dormouse` or a peer's name.
#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub(crate) struct Against {
    pub engine: String,
    pub workload: Option<String>,
    pub metric: Option<String>,
    /// The reference is so many times the figure.
    #[serde(default = "once")]
    pub times: f64,
}

fn once() -> f64 {
    1.0
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Verdict {
    /// Whether the stretch is reached too.
    Ok {
        stretch: bool,
    },
    Miss,
    NotJudged(String),
}

/// Reads targets and checks that every figure that they name exists.
pub(crate) fn parse(text: &str) -> Result<Targets> {
    let targets: Targets = toml::from_str(text)?;
    for row in &targets.rows {
        let named = || format!("the row {:?}", row.name);
        ensure!(!row.parts.is_empty() || row.not_judged.is_some(), "{}: nothing to judge", named());
        for name in &row.needs {
            Engine::parse(name).with_context(|| format!("{}: no engine {name}", named()))?;
        }
        for part in &row.parts {
            part.check().with_context(named)?;
        }
    }
    Ok(targets)
}

impl Part {
    fn check(&self) -> Result<()> {
        self.own()?;
        if let Some(against) = &self.against {
            self.reference(against)?;
            let known = against.engine == "peers" || Engine::parse(&against.engine).is_some();
            ensure!(known, "no engine {}", against.engine);
        }
        ensure!(self.at_most.is_some() != self.at_least.is_some(), "it takes one bound");
        Ok(())
    }

    fn own(&self) -> Result<Metric> {
        let metric = metrics::find(&self.workload, &self.metric);
        metric.with_context(|| format!("no figure {} {}", self.workload, self.metric))
    }

    fn reference(&self, against: &Against) -> Result<Metric> {
        let workload = against.workload.as_ref().unwrap_or(&self.workload);
        let name = against.metric.as_ref().unwrap_or(&self.metric);
        metrics::find(workload, name).with_context(|| format!("no figure {workload} {name}"))
    }

    fn meets(&self, value: f64, bound: f64) -> bool {
        match self.at_least {
            Some(_) => value >= bound,
            None => value <= bound,
        }
    }

    fn judge(&self, results: &Results) -> Result<(String, Verdict)> {
        let own = self.own()?;
        let note = self.note.as_ref().map_or(String::new(), |note| format!(" {note}"));
        let unmeasured = |what: String| Ok((String::new(), Verdict::NotJudged(what)));
        let Some(value) = results.median(Engine::Dormouse, own.workload, own.name) else {
            return unmeasured(format!("{} {} not measured", own.workload, own.name));
        };
        let (value, text) = match &self.against {
            None => (value, format!("{} {} {}{note}", number(value), own.unit, own.name)),
            Some(against) => {
                let metric = self.reference(against)?;
                let Some((who, reference)) = find(results, &against.engine, metric) else {
                    return unmeasured(format!(
                        "no figure {} of {}",
                        metric.workload, against.engine
                    ));
                };
                let ratio = value / (reference * against.times);
                let who = match (against.engine.as_str(), &self.note) {
                    ("peers", Some(note)) => format!("best peer ({}, {note})", who.name()),
                    ("peers", None) => format!("best peer ({})", who.name()),
                    ("floor" | "dormouse", _) => metric.workload.to_owned() + &note,
                    (peer, _) => peer.to_owned() + &note,
                };
                (ratio, format!("{ratio:.2}x {who}"))
            }
        };
        if let Some(why) = &self.not_judged {
            return Ok((text, Verdict::NotJudged(why.clone())));
        }
        let bound = self.at_least.or(self.at_most).context("checked when it was read")?;
        let stretch = self.stretch.is_none_or(|stretch| self.meets(value, stretch));
        let verdict = match self.meets(value, bound) {
            true => Verdict::Ok { stretch },
            false => Verdict::Miss,
        };
        let missed = match (&verdict, self.at_least) {
            (Verdict::Miss, Some(_)) => format!(" (at least {bound})"),
            (Verdict::Miss, None) => format!(" (at most {bound})"),
            _ => String::new(),
        };
        Ok((text + &missed, verdict))
    }
}

fn find(results: &Results, engine: &str, metric: Metric) -> Option<(Engine, f64)> {
    if engine == "peers" {
        return results.best_peer(metric);
    }
    let engine = Engine::parse(engine)?;
    Some((engine, results.median(engine, metric.workload, metric.name)?))
}

impl Row {
    /// The row's parts as text, and the verdict over all of them.
    pub(crate) fn judge(&self, results: &Results) -> Result<(Vec<String>, Verdict)> {
        let mut texts = Vec::new();
        let (mut missed, mut stretch, mut unjudged) = (false, true, self.not_judged.clone());
        for part in &self.parts {
            let (text, verdict) = part.judge(results)?;
            match verdict {
                Verdict::Ok { stretch: reached } => stretch &= reached,
                Verdict::Miss => missed = true,
                Verdict::NotJudged(why) => {
                    unjudged.get_or_insert(why);
                }
            }
            // Empty for what was not measured.
            texts.extend(Some(text).filter(|text| !text.is_empty()));
        }
        for name in &self.needs {
            let Some(engine) = Engine::parse(name) else { bail!("no engine {name}") };
            if let Some(why) = results.absent.get(&engine) {
                unjudged.get_or_insert_with(|| format!("{name} is missing ({why})"));
            }
        }
        if results.skips_flushes(Engine::Dormouse) {
            return Ok((
                texts,
                Verdict::NotJudged("its commits show no flush: not durable".into()),
            ));
        }
        let verdict = match (missed, unjudged) {
            (true, _) => Verdict::Miss,
            (false, Some(why)) => Verdict::NotJudged(why),
            (false, None) => Verdict::Ok { stretch },
        };
        Ok((texts, verdict))
    }

    /// The row's line.
    pub(crate) fn line(&self, results: &Results) -> Result<String> {
        let (mut texts, verdict) = self.judge(results)?;
        let verdict = match verdict {
            Verdict::Ok { stretch: true } => "ok, stretch too".to_owned(),
            Verdict::Ok { stretch: false } => "ok".to_owned(),
            Verdict::Miss => "MISS".to_owned(),
            Verdict::NotJudged(why) => {
                format!("not judged: {why}")
            }
        };
        texts.push(verdict);
        Ok(format!("{}: {}", self.name, texts.join(", ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::tests::results;

    const ROW: &str = r#"
        [[row]]
        name = "W2a"
        [[row.part]]
        workload = "W2a"
        metric = "rate"
        against = { engine = "peers" }
        at_least = 3
        stretch = 4
        [[row.part]]
        workload = "W2a"
        metric = "rate"
        against = { engine = "floor", workload = "floor-write-16k", times = 64 }
        at_least = 0.5
    "#;

    fn line(text: &str, results: &Results) -> String {
        parse(text).expect("targets").rows[0].line(results).expect("a line")
    }

    fn figures(dormouse: f64) -> Results {
        results(&[
            (Engine::Dormouse, "W2a", "rate", dormouse),
            (Engine::Fjall, "W2a", "rate", 100.0),
            (Engine::Redb, "W2a", "rate", 20.0),
            (Engine::Floor, "floor-write-16k", "rate", 8.0),
        ])
    }

    #[test]
    fn a_row_is_met_reaches_its_stretch_or_misses() {
        let met = "W2a: 3.10x best peer (fjall), 0.61x floor-write-16k, ok";
        assert_eq!(line(ROW, &figures(310.0)), met);
        assert!(line(ROW, &figures(400.0)).ends_with(", ok, stretch too"));
        let missed = "W2a: 2.90x best peer (fjall) (at least 3), 0.57x floor-write-16k, MISS";
        assert_eq!(line(ROW, &figures(290.0)), missed);
        assert!(line(ROW, &figures(200.0)).contains("(at least 0.5), MISS"));
    }

    #[test]
    fn a_bound_from_above_turns_round() {
        let row = "[[row]]\nname = \"W6\"\n[[row.part]]\nworkload = \"W6\"\nmetric = \"time\"\n\
                   against = { engine = \"lmdb\" }\nat_most = 1.0\n";
        let with = |time| {
            results(&[(Engine::Dormouse, "W6", "time", time), (Engine::Lmdb, "W6", "time", 20.0)])
        };
        assert_eq!(line(row, &with(19.0)), "W6: 0.95x lmdb, ok, stretch too");
        assert_eq!(line(row, &with(21.0)), "W6: 1.05x lmdb (at most 1), MISS");
    }

    #[test]
    fn what_is_missing_is_not_judged_but_a_miss_stays_one() {
        let none = results(&[]);
        assert_eq!(line(ROW, &none), "W2a: not judged: W2a rate not measured");
        let needs = ROW.replacen("name =", "needs = [\"rocksdb\"]\nname =", 1);
        let mut absent = figures(310.0);
        absent.absent.insert(Engine::RocksDb, "not here".into());
        assert!(line(&needs, &absent).ends_with("not judged: rocksdb is missing (not here)"));
        let mut absent = figures(1.0);
        absent.absent.insert(Engine::RocksDb, "not here".into());
        assert!(line(&needs, &absent).ends_with("MISS"));
        let why = "[[row]]\nname = \"tail\"\nnot_judged = \"nothing is cleaned\"\n";
        assert_eq!(line(why, &none), "tail: not judged: nothing is cleaned");
    }

    #[test]
    fn without_flushes_nothing_is_met() {
        let mut skipping = figures(400.0);
        let metric = metrics::find("W1", "flushes").expect("a metric");
        let sample = crate::context::Sample { engine: Engine::Dormouse, metric, value: 0.0 };
        skipping.add(&sample);
        assert!(line(ROW, &skipping).ends_with("not durable"));
    }

    #[test]
    fn a_target_that_names_nothing_is_refused() {
        for (from, to) in [
            ("metric = \"rate\"", "metric = \"speed\""),
            ("\"floor-write-16k\"", "\"floor-write-17k\""),
            ("\"peers\"", "\"everybody\""),
            ("at_least = 3", "at_last = 3"),
            ("at_least = 3", ""),
        ] {
            assert!(parse(&ROW.replacen(from, to, 1)).is_err(), "{to}");
        }
    }

    #[test]
    fn the_targets_that_come_with_it_name_what_exists() {
        let targets = parse(TARGETS).expect("targets");
        assert!(targets.rows.len() > 20);
        for row in &targets.rows {
            let line = row.line(&results(&[])).expect("a line");
            assert!(line.contains("not judged: "), "{line}");
        }
    }
}
