//! Figures of all rounds, and the table with its verdicts.

use std::collections::BTreeMap;

use crate::rows::{Better, ROWS, Row, Target};
use crate::servers::Kind;

/// What each round found.
#[derive(Default)]
pub(crate) struct Figures(BTreeMap<(&'static str, &'static str, Kind), Vec<f64>>);

/// The middle one of several figures, and how far they lie apart.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Summary {
    pub(crate) median: f64,
    min: f64,
    max: f64,
}

pub(crate) fn summarize(values: &[f64]) -> Option<Summary> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (min, max) = (*sorted.first()?, *sorted.last()?);
    let middle = sorted.len() / 2;
    let median = match sorted.len() % 2 {
        1 => sorted[middle],
        _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
    };
    Some(Summary { median, min, max })
}

impl Figures {
    pub(crate) fn add(&mut self, id: &'static str, metric: &'static str, of: Kind, value: f64) {
        self.0.entry((id, metric, of)).or_default().push(value);
    }

    fn of(&self, id: &'static str, metric: &'static str, kind: Kind) -> Option<Summary> {
        summarize(self.0.get(&(id, metric, kind))?)
    }

    /// The table, a row a line, and how many targets were met.
    pub(crate) fn print(&self) {
        println!(
            "\n{:<48}{:>26}{:>26}{:>8}{:>9}  target",
            "", "Dormouse (min-max)", "workerd (min-max)", "ratio", "floor"
        );
        let (mut met, mut missed, mut unjudged) = (0, 0, 0);
        for row in &ROWS {
            let Some(own) = self.of(row.id, row.metric, Kind::Dormouse) else { continue };
            let other = self.of(row.id, row.metric, Kind::Workerd);
            let floor = row.floor.and_then(|floor| self.of(floor, row.metric, Kind::Floor));
            let verdict = judge(row, own, other, floor);
            match verdict {
                Verdict::Ok => met += 1,
                Verdict::Miss => missed += 1,
                Verdict::NotJudged => unjudged += 1,
                Verdict::None => {}
            }
            println!("{}", line(row, own, other, floor, verdict));
        }
        println!("\n{met} met, {missed} missed, {unjudged} not judged");
        println!("ratio: how many times as good as workerd (of times, the inverse)");
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Verdict {
    Ok,
    Miss,
    NotJudged,
    /// Nothing is wanted.
    None,
}

/// How many times as good as workerd, whichever direction is better.
fn ratio(row: &Row, own: Summary, other: Summary) -> f64 {
    match row.better {
        Better::Higher => own.median / other.median,
        Better::Lower => other.median / own.median,
    }
}

fn judge(row: &Row, own: Summary, other: Option<Summary>, floor: Option<Summary>) -> Verdict {
    let times = |wanted: f64| other.map(|other| ratio(row, own, other) >= wanted);
    let met = match row.target {
        Target::Told => return Verdict::None,
        Target::AtMost(most) => Some(own.median <= most),
        Target::Times(wanted) => times(wanted),
        Target::TimesOrFloor(wanted, part) => {
            let of_floor = floor.is_some_and(|floor| own.median >= part * floor.median);
            if of_floor { Some(true) } else { times(wanted) }
        }
    };
    match met {
        Some(true) => Verdict::Ok,
        Some(false) => Verdict::Miss,
        None => Verdict::NotJudged,
    }
}

fn line(
    row: &Row,
    own: Summary,
    other: Option<Summary>,
    floor: Option<Summary>,
    verdict: Verdict,
) -> String {
    let unit = match row.metric {
        "p50" | "p99" => format!("{} {}", row.metric, row.unit),
        _ => row.unit.to_owned(),
    };
    let name = match row.what {
        "" => format!("  {unit}"),
        what => format!("{what}, {unit}"),
    };
    let cell = |summary: Option<Summary>| summary.map_or_else(|| "-".to_owned(), spread);
    let shown =
        other.map_or_else(String::new, |other| format!("{}x", number(ratio(row, own, other))));
    let floor = floor.map_or_else(String::new, |floor| number(floor.median));
    let target = match row.target {
        Target::Told => String::new(),
        Target::AtMost(most) => format!("<= {}", number(most)),
        Target::Times(wanted) => format!(">= {}x", number(wanted)),
        Target::TimesOrFloor(wanted, part) => {
            format!(">= {}x, or {} of the floor", number(wanted), number(part))
        }
    };
    let verdict = match verdict {
        Verdict::Ok => ": ok",
        Verdict::Miss => ": MISS",
        Verdict::NotJudged => ": not judged, there is no workerd",
        Verdict::None => "",
    };
    let (own, other) = (spread(own), cell(other));
    format!("{name:<48}{own:>26}{other:>26}{shown:>8}{floor:>9}  {target}{verdict}")
        .trim_end()
        .to_owned()
}

fn spread(summary: Summary) -> String {
    let Summary { median, min, max } = summary;
    format!("{} ({}-{})", number(median), number(min), number(max))
}

/// Three digits that matter.
fn number(value: f64) -> String {
    let (scaled, unit) = match value.abs() {
        size if size >= 999_500.0 => (value / 1e6, "M"),
        size if size >= 9_995.0 => (value / 1e3, "k"),
        _ => (value, ""),
    };
    match scaled.abs() {
        size if size >= 99.95 || size.fract() == 0.0 => format!("{scaled:.0}{unit}"),
        size if size >= 9.995 => format!("{scaled:.1}{unit}"),
        size if size >= 0.0995 => format!("{scaled:.2}{unit}"),
        _ => format!("{scaled:.3}{unit}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(median: f64) -> Option<Summary> {
        summarize(&[median])
    }

    fn row(id: &str, metric: &str) -> &'static Row {
        ROWS.iter().find(|row| row.id == id && row.metric == metric).expect("a row")
    }

    fn judged(row: &Row, own: f64, other: Option<f64>, floor: Option<f64>) -> Verdict {
        let own = at(own).expect("a figure");
        judge(row, own, other.and_then(at), floor.and_then(at))
    }

    #[test]
    fn the_median_is_the_middle_one() {
        let summary = summarize(&[3.0, 1.0, 2.0]).expect("figures");
        assert_eq!(summary, Summary { median: 2.0, min: 1.0, max: 3.0 });
        assert_eq!(summarize(&[4.0, 1.0]).map(|summary| summary.median), Some(2.5));
        assert_eq!(summarize(&[]), None);
    }

    #[test]
    fn numbers_keep_three_digits() {
        let shown = [0.0, 0.034, 0.333, 9.99, 17.51, 105.4, 6_900.0, 111_234.0, 1_234_567.0];
        let wanted = ["0", "0.034", "0.33", "9.99", "17.5", "105", "6900", "111k", "1.23M"];
        assert_eq!(shown.map(number), wanted);
    }

    #[test]
    fn a_rate_is_judged_by_workerd_or_by_the_floor() {
        let get = row("get-1", "rate");
        assert_eq!(judged(get, 50.0, Some(10.0), Some(100.0)), Verdict::Ok);
        assert_eq!(judged(get, 49.0, Some(10.0), Some(100.0)), Verdict::Miss);
        assert_eq!(judged(get, 60.0, Some(50.0), Some(100.0)), Verdict::Ok);
        assert_eq!(judged(get, 59.0, None, Some(100.0)), Verdict::NotJudged);
        assert_eq!(judged(row("puts-1", "rate"), 30.0, Some(10.0), None), Verdict::Ok);
    }

    #[test]
    fn of_times_less_is_better() {
        assert_eq!(judged(row("echo", "p50"), 50.0, Some(100.0), None), Verdict::Ok);
        assert_eq!(judged(row("echo", "p50"), 51.0, Some(100.0), None), Verdict::Miss);
        assert_eq!(judged(row("create", "p50"), 0.25, None, None), Verdict::Ok);
        assert_eq!(judged(row("create", "p50"), 0.26, Some(9.0), None), Verdict::Miss);
        assert_eq!(judged(row("get-1", "p50"), 1.0, None, None), Verdict::None);
    }
}
