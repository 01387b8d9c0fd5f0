//! The rounds: every engine makes each step in turn, in fresh directories, which are removed.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};

use crate::context::{Context, Settings};
use crate::data::PUT_BYTES;
use crate::engines::Engine;
use crate::machine::{self, Device};
use crate::progress::Progress;
use crate::results::Results;
use crate::workloads::{STEPS, Step, selected};

/// A run never uses more of the disk.
const DISK_BYTES_MAX: u64 = 5_000_000_000;

pub(crate) struct Run {
    pub settings: Settings,
    pub only: Vec<String>,
    pub engines: Vec<Engine>,
    pub dir: PathBuf,
}

/// The engines of these names, Dormouse and the floor; all without names.
pub(crate) fn chosen(names: &[String]) -> Result<Vec<Engine>> {
    for name in names {
        if Engine::parse(name).is_none() {
            let all = Engine::ALL.map(Engine::name).join(", ");
            bail!("no engine {name}; there are: {all}");
        }
    }
    let named = |engine: &Engine| {
        names.is_empty() || !engine.is_peer() || names.iter().any(|name| name == engine.name())
    };
    Ok(Engine::ALL.into_iter().filter(named).collect())
}

/// Removes what runs left whose process is gone: one that was killed could not.
fn remove_left(dir: &Path) -> Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let process = name.strip_prefix("run-").and_then(|rest| rest.split('-').next());
        if process.is_some_and(|process| !Path::new("/proc").join(process).exists()) {
            std::fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

impl Run {
    /// Describes the machine, and makes all rounds.
    pub(crate) fn run(mut self) -> Result<Results> {
        let steps: Vec<_> = STEPS.iter().filter(|step| step.wanted(&self.only)).collect();
        ensure!(!steps.is_empty(), "no workload begins with {}", self.only.join(" or "));
        machine::raise_file_limit();
        std::fs::create_dir_all(&self.dir).with_context(|| self.dir.display().to_string())?;
        remove_left(&self.dir)?;
        let device = Device::below(&self.dir)?;
        let mut results = Results::default();
        results.flushes_count = device.counts_flushes();
        self.describe(&device, &mut results)?;
        self.engines.retain(|engine| !results.absent.contains_key(engine));
        let turns =
            |step: &&Step| self.engines.iter().filter(|engine| (step.engines)(**engine)).count();
        let length = self.settings.rounds * steps.iter().map(turns).sum::<usize>();
        let mut progress = Progress::new(length);
        for round in 1..=self.settings.rounds {
            let prefix = format!("run-{}-", std::process::id());
            let root = tempfile::Builder::new().prefix(&prefix).tempdir_in(&self.dir)?;
            self.round(round, &steps, &device, root.path(), &mut results, &mut progress)?;
            root.close()?;
        }
        progress.end();
        Ok(results)
    }

    fn round(
        &self,
        round: usize,
        steps: &[&Step],
        device: &Device,
        root: &Path,
        results: &mut Results,
        progress: &mut Progress,
    ) -> Result<()> {
        for (number, step) in steps.iter().enumerate() {
            // Another one begins in each round, so that nobody always follows the same one.
            let mut engines = self.engines.clone();
            engines.rotate_left(round % self.engines.len());
            for engine in engines.into_iter().filter(|engine| (step.engines)(*engine)) {
                progress.step(round, step.name, engine.name());
                let seed = (round * 1_000 + number) as u64 * 1_000_003 + engine as u64;
                let mut context = Context {
                    engine,
                    settings: self.settings.clone(),
                    device: device.clone(),
                    root: root.to_owned(),
                    seed,
                    samples: Vec::new(),
                };
                if let Err(error) = (step.run)(&mut context) {
                    results.failures.push((engine, step.name, format!("{error:#}")));
                }
                let asked = context.samples.iter().filter(|sample| {
                    selected(&self.only, sample.metric.workload) || engine == Engine::Floor
                });
                asked.for_each(|sample| results.add(sample));
            }
            let bytes = machine::disk_bytes(root)?;
            ensure!(bytes <= DISK_BYTES_MAX, "{bytes} bytes on disk: try fewer --objects");
        }
        Ok(())
    }

    /// Prints what is compared, on what, and how.
    fn describe(&self, device: &Device, results: &mut Results) -> Result<()> {
        for line in machine::describe(&self.dir, device)? {
            println!("{line}");
        }
        let settings = &self.settings;
        println!(
            "{} rounds, loops of {} ms after a warm-up of a tenth; {} objects of 4 keys ({} where each has a \
             file), keys of 12 bytes in ids of 16 (Dormouse's 32), incompressible values of 100 bytes",
            settings.rounds,
            settings.measure.as_millis(),
            settings.objects,
            settings.objects_of(Engine::SqliteFiles)
        );
        println!(
            "amplifications count {PUT_BYTES} bytes a key; page caches are dropped by {}",
            machine::cache_dropping()
        );
        let flushes = match device.counts_flushes() {
            true => "the device's flushes are counted: who skips them is named",
            false => "this device does not count every flush: durability is not checked",
        };
        println!("{flushes}");
        for engine in &self.engines {
            match engine.version() {
                Ok(version) => {
                    println!("{} {version}: {}", engine.name(), engine.durability());
                }
                Err(why) => {
                    println!("{}: absent: {why}", engine.name());
                    results.absent.insert(*engine, why);
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chosen_engines_always_have_dormouse_and_the_floor_with_them() {
        let engines = chosen(&["fjall".to_owned()]).expect("an engine");
        assert_eq!(engines, [Engine::Floor, Engine::Dormouse, Engine::Fjall]);
        assert_eq!(chosen(&[]).expect("all"), Engine::ALL);
        assert!(chosen(&["oracle".to_owned()]).is_err());
    }

    #[test]
    fn only_what_dead_processes_left_is_removed() {
        let dir = tempfile::TempDir::new().expect("a directory");
        let own = format!("run-{}-x", std::process::id());
        for name in ["run-4194305-x", &own, "other"] {
            std::fs::create_dir(dir.path().join(name)).expect("made");
        }
        remove_left(dir.path()).expect("removed");
        let there = |name: &str| dir.path().join(name).exists();
        assert!(!there("run-4194305-x") && there(&own) && there("other"));
    }

    #[test]
    fn a_small_round_of_every_step_gives_every_figure() {
        let dir = tempfile::TempDir::new().expect("a directory");
        let settings = Settings {
            objects: 1_000,
            file_objects: 20,
            measure: std::time::Duration::from_millis(20),
            reopenings: 1,
            rounds: 1,
        };
        // Children are this program, which a test is not: without W8 and W9.
        let only = ["floor", "W1", "W2", "W3", "W4", "W5", "W6", "W7", "hog"].map(str::to_owned);
        let run = Run {
            settings,
            only: only.to_vec(),
            engines: vec![Engine::Floor, Engine::Dormouse, Engine::Sqlite],
            dir: dir.path().to_owned(),
        };
        let results = run.run().expect("a run");
        assert_eq!(results.failures, []);
        for metric in crate::metrics::all() {
            let measured = !results.engines(metric).is_empty();
            let flushes = metric.name == "flushes" && !results.flushes_count;
            let children = metric.workload.starts_with("W8") || metric.workload == "W9";
            assert!(measured || flushes || children, "{metric:?}");
        }
        let left = std::fs::read_dir(dir.path()).expect("a directory").count();
        assert_eq!(left, 0);
    }
}
