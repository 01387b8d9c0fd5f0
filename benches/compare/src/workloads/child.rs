//! Processes of their own: one that commits until it is killed, and one that tells what an idle
//! store costs. The program starts itself for them.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};

use super::commits::CLIENTS;
use crate::data::{self, Rng};
use crate::engines::{Engine, dormouse};
use crate::machine;

/// What a child is to do.
#[derive(clap::Subcommand, Debug)]
pub(crate) enum Task {
    /// Commit to random objects, 64 at a time, until killed.
    Commit { engine: String, dir: PathBuf, objects: u64, seed: u64 },
    /// Open a store, tell what it costs, touch objects, and tell again.
    Idle { engine: String, dir: PathBuf, objects: u64, touch: u64 },
}

/// What an idle store costs a process.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Idle {
    /// Anonymous bytes after opening, less those before.
    pub opened: u64,
    /// The same after objects were touched.
    pub touched: u64,
    pub descriptors: u64,
    pub threads: u64,
}

fn engine(name: &str) -> Result<Engine> {
    Engine::parse(name).with_context(|| format!("no engine {name}"))
}

/// The child's side.
pub(crate) fn run(task: &Task) -> Result<()> {
    machine::raise_file_limit();
    match task {
        Task::Commit { engine: name, dir, objects, seed } => {
            commit(engine(name)?, dir, *objects, *seed)
        }
        Task::Idle { engine: name, dir, objects, touch } => {
            let idle = idle(engine(name)?, dir, *objects, *touch)?;
            println!("{}", serde_json::to_string(&idle)?);
            Ok(())
        }
    }
}

fn ready() -> Result<()> {
    println!("ready");
    Ok(std::io::stdout().flush()?)
}

fn commit(engine: Engine, dir: &Path, objects: u64, seed: u64) -> Result<()> {
    let mut rng = Rng::new(seed);
    if engine == Engine::Dormouse {
        let store = dormouse::store(dir)?;
        ready()?;
        loop {
            let calls: Vec<_> = (0..CLIENTS)
                .map(|_| {
                    let put = data::random_put(&mut rng, objects);
                    let object = store.object(dormouse::object_id(&put.object));
                    object.commit(dormouse::batch(&[put]))
                })
                .collect();
            calls.into_iter().try_for_each(|call| call.wait().map(drop))?;
        }
    }
    let peer = engine.open(dir)?;
    ready()?;
    loop {
        let puts: Vec<_> = (0..CLIENTS).map(|_| data::random_put(&mut rng, objects)).collect();
        peer.commit(&puts)?;
    }
}

fn idle(engine: Engine, dir: &Path, objects: u64, touch: u64) -> Result<Idle> {
    let before = machine::anonymous_bytes()?;
    let (descriptors, threads) = (count_descriptors()?, machine::entries("/proc/self/task")?);
    let look = || Ok::<_, anyhow::Error>(machine::anonymous_bytes()?.saturating_sub(before));
    let mut idle = Idle::default();
    let costs = |idle: &mut Idle| -> Result<()> {
        idle.opened = look()?;
        idle.descriptors = count_descriptors()?.saturating_sub(descriptors);
        idle.threads = machine::entries("/proc/self/task")?.saturating_sub(threads);
        Ok(())
    };
    let numbers = (0..touch).map(|n| n * 7_919 % objects.max(1));
    if engine == Engine::Dormouse {
        let store = dormouse::store(dir)?;
        costs(&mut idle)?;
        for number in numbers {
            ensure!(store.object(dormouse::object(number)).get(data::key(0)).wait()?.is_some());
        }
        idle.touched = look()?;
        store.close().wait()?;
        return Ok(idle);
    }
    let peer = engine.open(dir)?;
    costs(&mut idle)?;
    for number in numbers {
        ensure!(peer.get(&data::id(number), &data::key(0))? == 100, "object {number}");
    }
    idle.touched = look()?;
    peer.close()?;
    Ok(idle)
}

fn count_descriptors() -> Result<u64> {
    machine::entries("/proc/self/fd")
}

/// The parent's side: this program again, with `arguments`.
fn start(arguments: &[&str], dir: &Path) -> Result<Child> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("child").args(&arguments[..2]).arg(dir).args(&arguments[2..]);
    Ok(command.stdout(Stdio::piped()).stdin(Stdio::null()).spawn()?)
}

fn first_line(child: &mut Child) -> Result<String> {
    let mut line = String::new();
    BufReader::new(child.stdout.take().context("a pipe")?).read_line(&mut line)?;
    Ok(line.trim().to_owned())
}

/// Starts a child that commits; it does when this returns.
pub(crate) fn start_commits(engine: Engine, dir: &Path, objects: u64, seed: u64) -> Result<Child> {
    let (objects, seed) = (objects.to_string(), seed.to_string());
    let mut child = start(&["commit", engine.name(), &objects, &seed], dir)?;
    let said = first_line(&mut child)?;
    if said != "ready" {
        child.kill()?;
        child.wait()?;
        anyhow::bail!("a child of {} ended early", engine.name());
    }
    Ok(child)
}

/// What an idle store costs, as a child of its own sees it.
pub(crate) fn ask_idle(engine: Engine, dir: &Path, objects: u64, touch: u64) -> Result<Idle> {
    let (objects, touch) = (objects.to_string(), touch.to_string());
    let mut child = start(&["idle", engine.name(), &objects, &touch], dir)?;
    let said = first_line(&mut child)?;
    ensure!(child.wait()?.success(), "a child of {} failed", engine.name());
    Ok(serde_json::from_str(&said)?)
}
