//! `cargo sim canary`: builds each deliberate bug of `sim/canaries` in a copy of the tree, and
//! counts the seeds that it takes to find it.
//!
//! From each of three starting points the default plans are lived until one fails; what counts is
//! the median. The copy and its build lie in `target/canary` and are used again.

use std::collections::BTreeSet;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use indicatif::ProgressBar;

/// The first seeds of the three searches.
const STARTS: [u64; 3] = [0, 1_000_000, 2_000_000];

/// Which canaries, and how far to look for each.
#[derive(Args, Debug)]
pub(crate) struct Canaries {
    /// Names of canaries, or of directories of them; all, if none is given.
    pub(crate) names: Vec<String>,
    /// Seeds within which each must be found, in the median of three searches.
    #[arg(long, default_value_t = 2000)]
    pub(crate) seeds: u64,
}

/// One deliberate bug.
struct Canary {
    patch: PathBuf,
    area: String,
    name: String,
}

pub(crate) fn run(args: &Canaries) -> Result<ExitCode> {
    let root = root()?;
    let all = canaries(&root)?;
    let named = |canary: &&Canary| {
        let wanted = |name: &String| *name == canary.name || *name == canary.area;
        args.names.is_empty() || args.names.iter().any(wanted)
    };
    let canaries: Vec<&Canary> = all.iter().filter(named).collect();
    ensure!(!canaries.is_empty(), "no canary is called {}", args.names.join(" or "));
    let copy = Copy::new(&root)?;
    let bar = match std::io::stderr().is_terminal() {
        true => ProgressBar::new(canaries.len() as u64),
        false => ProgressBar::hidden(),
    };
    let mut found = 0;
    for canary in &canaries {
        bar.set_message(canary.name.clone());
        // One that can't be built any more says nothing of the others.
        let said = match copy.seeds_needed(canary, args.seeds) {
            Err(error) => format!("{error:#}"),
            Ok(mut needed) => {
                let each = needed.map(say).join(", ");
                needed.sort_by_key(|seeds| seeds.unwrap_or(u64::MAX));
                found += usize::from(needed[1].is_some());
                format!("{} seeds ({each})", say(needed[1]))
            }
        };
        bar.suspend(|| println!("{}/{}: {said}", canary.area, canary.name));
        bar.inc(1);
    }
    bar.finish_and_clear();
    println!("canary: {found} of {} found", canaries.len());
    Ok(if found == canaries.len() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn say(seeds: Option<u64>) -> String {
    seeds.map_or("not found".to_owned(), |seeds| seeds.to_string())
}

/// Removes what an earlier copy left below `dir`, so that no file of another commit is built.
#[expect(clippy::disallowed_methods, reason = "makes a copy of the checkout")]
fn remove_others(dir: &Path, wanted: &BTreeSet<PathBuf>) -> Result<()> {
    if !dir.exists() {
        return Ok(());
    }
    for entry in std::fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            remove_others(&path, wanted)?;
        } else if !wanted.contains(&path) {
            std::fs::remove_file(&path).with_context(|| path.display().to_string())?;
        }
    }
    Ok(())
}

/// The checkout that this program was built from.
fn root() -> Result<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    root.canonicalize().context("the checkout that this was built from is gone")
}

/// All canaries, by area and name.
fn canaries(root: &Path) -> Result<Vec<Canary>> {
    let mut all = Vec::new();
    for file in git(root, &["ls-files", "sim/canaries"])?.lines() {
        if let Some((path, name)) =
            file.strip_suffix(".patch").and_then(|path| path.rsplit_once('/'))
        {
            let area = path.rsplit('/').next().unwrap_or_default().to_owned();
            all.push(Canary { patch: root.join(file), area, name: name.to_owned() });
        }
    }
    Ok(all)
}

fn git(root: &Path, arguments: &[&str]) -> Result<String> {
    let output = Command::new("git").arg("-C").arg(root).args(arguments).output();
    let output = output.context("git is needed")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "git {}: {}", arguments.join(" "), said.trim());
    Ok(String::from_utf8(output.stdout)?)
}

/// A copy of the tree, in which patches are built.
struct Copy {
    root: PathBuf,
    tree: PathBuf,
}

impl Copy {
    /// Copies the files that git knows; those that are there and equal keep their times, so that
    /// only what a patch changes is built again.
    #[expect(clippy::disallowed_methods, reason = "makes a copy of the checkout")]
    fn new(root: &Path) -> Result<Self> {
        let tree = root.join("target/canary/tree");
        let files = git(root, &["ls-files"])?;
        remove_others(&tree, &files.lines().map(|file| tree.join(file)).collect())?;
        for file in files.lines() {
            let (from, to) = (root.join(file), tree.join(file));
            let wanted = std::fs::read(&from).with_context(|| format!("reading {file}"))?;
            if std::fs::read(&to).ok().as_ref() != Some(&wanted) {
                let parent = to.parent().expect("below the tree");
                std::fs::create_dir_all(parent)?;
                std::fs::write(&to, wanted)?;
            }
        }
        Ok(Self { root: root.to_owned(), tree })
    }

    /// How many seeds each search needed.
    fn seeds_needed(&self, canary: &Canary, max: u64) -> Result<[Option<u64>; 3]> {
        self.apply(canary, &[])?;
        let built = self.build().with_context(|| format!("building {}", canary.name));
        let searched = built.and_then(|()| {
            let mut needed = [None; 3];
            for (needed, start) in needed.iter_mut().zip(STARTS) {
                *needed = self.search(start, max)?;
            }
            Ok(needed)
        });
        self.apply(canary, &["-R"])?;
        searched
    }

    fn apply(&self, canary: &Canary, more: &[&str]) -> Result<()> {
        let patch = canary.patch.to_string_lossy();
        let arguments = [&["apply", "--directory=target/canary/tree"], more, &[&*patch]].concat();
        git(&self.root, &arguments).map(drop)
    }

    fn target(&self) -> PathBuf {
        self.root.join("target/canary/build")
    }

    fn build(&self) -> Result<()> {
        let mut cargo = Command::new("cargo");
        cargo.args(["build", "--quiet", "--release", "-p", "dormouse-sim", "--manifest-path"]);
        cargo.arg(self.tree.join("Cargo.toml")).env("CARGO_TARGET_DIR", self.target());
        // A bug often leaves something unused; that is not what it is there for.
        cargo.env("RUSTFLAGS", "-Awarnings");
        // A patch changes a few functions: most of what is built is that of the canary before.
        cargo.env("CARGO_INCREMENTAL", "1").env("CARGO_PROFILE_RELEASE_DEBUG", "false");
        // Building takes longer than the few seeds that most need.
        cargo.env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1");
        ensure!(cargo.status().context("cargo is needed")?.success(), "it does not build");
        Ok(())
    }

    /// Seeds lived until one failed.
    fn search(&self, from: u64, max: u64) -> Result<Option<u64>> {
        let mut sim = Command::new(self.target().join("release/sim"));
        sim.args(["run", "--until-failure", "--jobs", "2"]);
        sim.args(["--from", &from.to_string(), "--seeds", &max.to_string()]);
        let output = sim.stderr(Stdio::null()).output().context("running the canary")?;
        let said = String::from_utf8_lossy(&output.stdout);
        let Some(line) = said.lines().last().filter(|line| line.starts_with("sim: ")) else {
            // It took the whole program down: found by the first seeds.
            return Ok(Some(1));
        };
        let seeds = line.split(' ').nth(1).and_then(|number| number.parse().ok());
        match (output.status.success(), seeds) {
            (true, _) => Ok(None),
            (false, Some(seeds)) => Ok(Some(seeds)),
            (false, None) => bail!("not a line of cargo sim: {line}"),
        }
    }
}
