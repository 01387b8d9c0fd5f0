//! All figures of a run, and what failed.

use std::collections::BTreeMap;

use crate::context::Sample;
use crate::engines::Engine;
use crate::metrics::{Better, Metric};
use crate::stats::{Summary, summarize};

/// Flushes for each durable commit below which a commit can't have been durable.
const FLUSHES_MIN: f64 = 0.5;

type Place = (Engine, &'static str, &'static str);

#[derive(Default)]
pub(crate) struct Results {
    values: BTreeMap<Place, Vec<f64>>,
    /// Steps that ended with an error.
    pub failures: Vec<(Engine, &'static str, String)>,
    /// Engines that are not on this machine, and why.
    pub absent: BTreeMap<Engine, String>,
    /// Whether the device counts every flush, so that who skips one is seen.
    pub flushes_count: bool,
}

impl Results {
    pub(crate) fn add(&mut self, sample: &Sample) {
        let place = (sample.engine, sample.metric.workload, sample.metric.name);
        self.values.entry(place).or_default().push(sample.value);
    }

    pub(crate) fn summary(&self, engine: Engine, workload: &str, name: &str) -> Option<Summary> {
        let metric = crate::metrics::find(workload, name)?;
        summarize(self.values.get(&(engine, metric.workload, metric.name))?)
    }

    pub(crate) fn median(&self, engine: Engine, workload: &str, name: &str) -> Option<f64> {
        self.summary(engine, workload, name).map(|summary| summary.median)
    }

    /// Engines with a figure for it.
    pub(crate) fn engines(&self, metric: Metric) -> Vec<Engine> {
        let has =
            |engine: &Engine| self.values.contains_key(&(*engine, metric.workload, metric.name));
        Engine::ALL.into_iter().filter(has).collect()
    }

    /// Whether the engine answered commits of W1 that no flush of the device made durable.
    pub(crate) fn skips_flushes(&self, engine: Engine) -> bool {
        let flushes = self.median(engine, "W1", "flushes");
        self.flushes_count && flushes.is_some_and(|flushes| flushes < FLUSHES_MIN)
    }

    /// The best durable peer and its figure.
    pub(crate) fn best_peer(&self, metric: Metric) -> Option<(Engine, f64)> {
        let peers = self.engines(metric).into_iter().filter(|engine| engine.is_peer());
        let durable = peers.filter(|engine| !self.skips_flushes(*engine));
        let figures = durable.filter_map(|engine| {
            Some((engine, self.median(engine, metric.workload, metric.name)?))
        });
        match metric.better {
            Better::More => figures.max_by(|one, other| one.1.total_cmp(&other.1)),
            Better::Less | Better::Told => figures.min_by(|one, other| one.1.total_cmp(&other.1)),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::metrics;

    pub(crate) fn results(values: &[(Engine, &str, &str, f64)]) -> Results {
        let mut results = Results { flushes_count: true, ..Results::default() };
        for (engine, workload, name, value) in values {
            let metric = metrics::find(workload, name).expect("a metric");
            results.add(&Sample { engine: *engine, metric, value: *value });
        }
        results
    }

    #[test]
    fn a_peer_without_flushes_is_no_peer() {
        let figures = [
            (Engine::Redb, "W1", "rate", 90_000.0),
            (Engine::Redb, "W1", "flushes", 0.01),
            (Engine::Fjall, "W1", "rate", 5_000.0),
            (Engine::Fjall, "W1", "flushes", 1.1),
            (Engine::Dormouse, "W1", "rate", 8_000.0),
        ];
        let mut results = results(&figures);
        let metric = metrics::find("W1", "rate").expect("a metric");
        assert!(results.skips_flushes(Engine::Redb));
        assert_eq!(results.best_peer(metric), Some((Engine::Fjall, 5_000.0)));
        results.flushes_count = false;
        assert_eq!(results.best_peer(metric), Some((Engine::Redb, 90_000.0)));
    }

    #[test]
    fn the_best_of_times_is_the_least() {
        let figures = [(Engine::Redb, "W6", "time", 60.0), (Engine::Lmdb, "W6", "time", 17.5)];
        let metric = metrics::find("W6", "time").expect("a metric");
        assert_eq!(results(&figures).best_peer(metric), Some((Engine::Lmdb, 17.5)));
    }
}
