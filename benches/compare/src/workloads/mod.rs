//! The workloads of docs/performance.md section 2, as steps of a round: every engine makes one step
//! before the next step begins.

pub(crate) mod bulk;
pub(crate) mod child;
pub(crate) mod cold;
pub(crate) mod commits;
pub(crate) mod crash;
pub(crate) mod folded;
pub(crate) mod handle;
pub(crate) mod hog;
pub(crate) mod idle;
pub(crate) mod reads;

use anyhow::Result;

use crate::context::Context;
use crate::engines::Engine;
use crate::floor;

/// One step: what it gives figures for, and which later workloads need what it leaves behind.
pub(crate) struct Step {
    pub name: &'static str,
    pub workloads: &'static [&'static str],
    pub needed_by: &'static [&'static str],
    pub engines: fn(Engine) -> bool,
    pub run: fn(&mut Context) -> Result<()>,
}

fn all(engine: Engine) -> bool {
    engine != Engine::Floor
}

fn floor_too(_: Engine) -> bool {
    true
}

fn only_floor(engine: Engine) -> bool {
    engine == Engine::Floor
}

fn only_dormouse(engine: Engine) -> bool {
    engine == Engine::Dormouse
}

fn folding(engine: Engine) -> bool {
    all(engine) && !engine.has_file_per_object()
}

const FLOORS: &[&str] =
    &["floor-write", "floor-uring", "floor-write-16k", "floor-read", "floor-read-32"];

const fn step(
    name: &'static str,
    workloads: &'static [&'static str],
    engines: fn(Engine) -> bool,
    run: fn(&mut Context) -> Result<()>,
) -> Step {
    Step { name, workloads, needed_by: &[], engines, run }
}

/// All steps, in the order of a round.
pub(crate) const STEPS: &[Step] = &[
    Step { needed_by: &["W", "hog"], ..step("floors", FLOORS, only_floor, floor::measure) },
    Step { needed_by: &["W", "hog"], ..step("W7 load", &["W7-load"], all, bulk::load) },
    step("W5 after load", &["W5-cold", "W5-cached", "W5-cached-32"], all, cold::after_load),
    step("W1", &["W1"], all, commits::one_object),
    step("W1r", &["W1r"], all, commits::random_objects),
    step("W3", &["W3"], all, commits::turns),
    step("W2a", &["W2a"], folding, commits::sixty_four),
    step("W2a, 1,024 tasks", &["W2a-1024"], only_dormouse, commits::thousand),
    step("W1r through the handle", &["W1r-handle"], only_dormouse, handle::one_client),
    step("W2b", &["W2b"], all, folded::natural),
    step("W2c", &["W2c"], folding, folded::folded),
    step("W4", &["W4a", "W4b"], floor_too, reads::gets),
    step("W4, single", &["W4b-single"], all, reads::single_gets),
    step("W6", &["W6", "W6-object"], all, reads::lists),
    Step { needed_by: &["W5o"], ..step("W7 overwrite", &["W7-overwrite"], all, bulk::overwrite) },
    step("W5 after overwrites", &["W5o-cold", "W5o-cached"], all, cold::after_overwrites),
    step("busy core", &["hog"], only_dormouse, hog::measure),
    step("W9", &["W9"], all, idle::measure),
    step("W8", &["W8-warm", "W8-cold"], all, crash::measure),
];

/// Whether the workload was asked for: by a word that its name begins with.
pub(crate) fn selected(only: &[String], workload: &str) -> bool {
    let workload = workload.to_lowercase();
    only.is_empty() || only.iter().any(|word| workload.starts_with(&word.to_lowercase()))
}

impl Step {
    /// Whether it has to run for what was asked for.
    pub(crate) fn wanted(&self, only: &[String]) -> bool {
        let asked = |name: &&str| selected(only, name);
        let needed = |begin: &&str| {
            let all = crate::metrics::WORKLOADS.iter().map(|(name, _)| name);
            all.filter(|name| name.starts_with(begin)).any(asked)
        };
        self.workloads.iter().any(asked) || self.needed_by.iter().any(needed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_workload_belongs_to_one_step() {
        for (name, _) in crate::metrics::WORKLOADS {
            let steps = STEPS.iter().filter(|step| step.workloads.contains(name));
            assert_eq!(steps.count(), 1, "{name}");
        }
    }

    #[test]
    fn what_a_workload_needs_runs_with_it() {
        let runs = |only: &str| -> Vec<_> {
            let only: Vec<_> = only.split(',').map(str::to_owned).collect();
            STEPS.iter().filter(|step| step.wanted(&only)).map(|step| step.name).collect()
        };
        assert_eq!(runs("W2a"), ["floors", "W7 load", "W2a", "W2a, 1,024 tasks"]);
        let overwritten = ["floors", "W7 load", "W7 overwrite", "W5 after overwrites"];
        assert_eq!(runs("w5o"), overwritten);
        assert_eq!(runs("floor"), ["floors"]);
    }
}
