//! What a step of a round works with: where, on what, for how long; and where its figures go.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;

use crate::data::Rng;
use crate::engines::{Engine, Peer};
use crate::machine::{self, Device};
use crate::metrics::{self, Metric};
use crate::stats::Timing;

/// How much is done.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// Objects of [`KEYS`](crate::data::KEYS) keys.
    pub objects: u64,
    /// The same for engines with a file for each object, which take so much longer.
    pub file_objects: u64,
    /// How long each loop is measured.
    pub measure: Duration,
    /// Cold activations, each after its caches were dropped and the store reopened.
    pub reopenings: u64,
    pub rounds: usize,
}

impl Settings {
    pub(crate) fn full() -> Self {
        let measure = Duration::from_secs(1);
        Self { objects: 100_000, file_objects: 2_000, measure, reopenings: 8, rounds: 3 }
    }

    pub(crate) fn quick() -> Self {
        let measure = Duration::from_millis(150);
        Self { objects: 8_000, file_objects: 100, measure, reopenings: 3, rounds: 3 }
    }

    pub(crate) fn objects_of(&self, engine: Engine) -> u64 {
        match engine.has_file_per_object() {
            true => self.file_objects.min(self.objects),
            false => self.objects,
        }
    }
}

/// One figure of one round.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    pub engine: Engine,
    pub metric: Metric,
    pub value: f64,
}

/// One engine's turn at one step.
pub(crate) struct Context {
    pub engine: Engine,
    pub settings: Settings,
    pub device: Device,
    /// The round's directory.
    pub root: PathBuf,
    /// Differs in every round, step and engine.
    pub seed: u64,
    pub samples: Vec<Sample>,
}

impl Context {
    /// Where the engine's loaded data are.
    pub(crate) fn dir(&self) -> PathBuf {
        self.root.join(self.engine.name())
    }

    /// Dormouse's second store, which was made by `Store` with default options: as many shards as
    /// cores. The first has one shard, for the rows on the shard's core.
    pub(crate) fn handle_dir(&self) -> PathBuf {
        self.root.join("dormouse-handle")
    }

    /// A directory of the engine's own that is not there yet.
    pub(crate) fn fresh_dir(&self, name: &str) -> PathBuf {
        self.root.join(format!("{}-{name}", self.engine.name()))
    }

    pub(crate) fn objects(&self) -> u64 {
        self.settings.objects_of(self.engine)
    }

    pub(crate) fn rng(&self) -> Rng {
        Rng::new(self.seed)
    }

    pub(crate) fn open(&self) -> Result<Box<dyn Peer>> {
        self.engine.open(&self.dir())
    }

    /// Opens the peer and calls `work` with it, alone on the disk's core, where the peer's own
    /// threads, started before, are not; then closes it.
    pub(crate) fn with_peer<T: Send>(
        &self,
        work: impl FnOnce(&dyn Peer) -> Result<T> + Send,
    ) -> Result<T> {
        let peer = self.open()?;
        let cpu = self.device.cpu;
        let result = std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                machine::pin(cpu);
                work(&*peer)
            });
            thread.join().unwrap_or_else(|_| anyhow::bail!("the client's thread panicked"))
        });
        let closed = peer.close();
        let result = result?;
        closed?;
        Ok(result)
    }

    /// # Panics
    /// If there is no such metric.
    pub(crate) fn record(&mut self, workload: &str, name: &str, value: f64) {
        let metric = metrics::find(workload, name);
        let metric = metric.unwrap_or_else(|| panic!("no metric {workload} {name}"));
        self.samples.push(Sample { engine: self.engine, metric, value });
    }

    pub(crate) fn record_timing(&mut self, workload: &str, timing: &Timing) {
        self.record(workload, "rate", timing.rate());
        self.record(workload, "time", timing.mean_us());
        self.record(workload, "p50", timing.quantile_us(0.5));
        self.record(workload, "p99", timing.quantile_us(0.99));
    }
}
