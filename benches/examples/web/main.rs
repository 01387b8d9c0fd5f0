//! Dormouse's server beside the original one, workerd, in one run: `cargo web --help`. docs/performance.md section 5
//! has the figures and the targets.
//!
//! Each server is a child process on CPU 0, the load is this process on CPU 1. In a round each thing is done to
//! one server after the other before the next thing is done; each round starts with empty directories, and servers
//! take turns in who is first. What is printed are medians over the rounds with their spread.

#![expect(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "it measures the real thing: clock, files, processes, sockets"
)]

mod client;
mod generator;
mod objects;
mod report;
mod rows;
mod servers;
mod sockets;
mod steps;

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use tokio::runtime::Runtime;

use report::Figures;
use servers::{Kind, Server};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Compares Dormouse's server with workerd over HTTP and WebSockets, and both with a bare hyper server.
///
/// Each server has CPU 0, the load CPU 1. Without workerd only Dormouse's figures are shown, and what is wanted
/// in terms of workerd's is not judged. Absolute figures differ between machines: only ratios within one run
/// count.
#[derive(Parser)]
#[command(name = "web")]
pub(crate) struct Args {
    /// How often everything is measured; best an odd number
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=99))]
    rounds: u32,
    /// How long each load is measured, after a warm-up of a quarter of it
    #[arg(long, default_value_t = 2.0, value_name = "S")]
    seconds: f64,
    /// Only what begins with one of these words, such as get,increment-64,cold,create,cached,echo,live,sleeping
    #[arg(long, value_delimiter = ',', value_name = "WORDS")]
    only: Vec<String>,
    /// The workerd to compare with [default: the one that --install put below target/workerd]
    #[arg(long, value_name = "PATH")]
    workerd: Option<PathBuf>,
    /// Install workerd below target/workerd, with npm
    #[arg(long)]
    install: bool,
    /// Nice value of servers and load; below zero it takes a right. What the kernel does when a write has ended competes
    /// with the load, so that very low values make writes slow
    #[arg(long, default_value_t = 0, value_name = "N", allow_negative_numbers = true, value_parser = clap::value_parser!(i32).range(-20..=19))]
    nice: i32,
    /// Where the stores are made, in a directory that is removed in the end [default: target]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    #[command(subcommand)]
    serve: Option<Serve>,
}

/// What the program starts itself for.
#[derive(Subcommand)]
enum Serve {
    #[command(hide = true)]
    Dormouse {
        #[arg(long)]
        store: PathBuf,
        #[arg(long)]
        address: SocketAddr,
    },
    #[command(hide = true)]
    Floor {
        #[arg(long)]
        store: PathBuf,
        #[arg(long)]
        address: SocketAddr,
    },
}

impl Args {
    fn wanted(&self, id: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|word| id.starts_with(word.as_str()))
    }

    fn measure(&self) -> Duration {
        Duration::from_secs_f64(self.seconds.clamp(0.05, 60.0))
    }

    fn warm(&self) -> Duration {
        self.measure() / 4
    }

    /// The program to compare with, if there is one.
    fn find_workerd(&self) -> Result<Option<PathBuf>> {
        if self.install {
            servers::install_workerd()?;
        }
        match &self.workerd {
            Some(path) if !path.is_file() => Err(format!("{}: no file", path.display()).into()),
            Some(path) => Ok(Some(path.clone())),
            None => Ok(servers::installed_workerd()),
        }
    }
}

/// A bar on a terminal, a line for each step elsewhere.
struct Progress {
    bar: Option<ProgressBar>,
    began: Instant,
    said: String,
}

impl Progress {
    fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{spinner} {elapsed} {msg}");
            let style = style.unwrap_or_else(|_| ProgressStyle::default_spinner());
            ProgressBar::new_spinner().with_style(style)
        });
        Self { bar, began: Instant::now(), said: String::new() }
    }

    fn step(&mut self, text: String) {
        match &self.bar {
            Some(bar) => {
                bar.set_message(text);
                bar.tick();
            }
            None if text != self.said => {
                eprintln!("{:>5.0} s: {text}", self.began.elapsed().as_secs_f64());
                self.said = text;
            }
            None => {}
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.iter().for_each(ProgressBar::finish_and_clear);
    }
}

/// How many tasks ran or waited in the last 1, 5 and 15 minutes.
fn machine_load() -> String {
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    load.split_whitespace().take(3).collect::<Vec<_>>().join(" ")
}

/// What is compared, with what, and beside what.
fn describe(args: &Args, workerd: Option<&Path>) -> Result<()> {
    let load = machine_load();
    println!(
        "{} rounds of {:?} after a warm-up of a quarter; servers on CPU 0, the load on CPU 1; load of the machine \
         at the start: {load}",
        args.rounds,
        args.measure()
    );
    match workerd {
        Some(path) => println!("{}: key-value class, local disk", servers::version(path)?),
        None => println!(
            "workerd: absent. `--install` installs workerd@{} below target/workerd with npm; `--workerd PATH` says \
             where it is",
            servers::WORKERD_VERSION
        ),
    }
    Ok(())
}

fn compare(args: &Args) -> Result<()> {
    if !rows::ROWS.iter().any(|row| args.wanted(row.id)) {
        return Err("nothing begins with one of these words: see --help".into());
    }
    let workerd = args.find_workerd()?;
    describe(args, workerd.as_deref())?;
    servers::pin_load(args.nice)?;
    let below = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target");
    let below = args.dir.clone().unwrap_or(below).canonicalize()?;
    let dir = tempfile::Builder::new().prefix("web-").tempdir_in(below)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut kinds = vec![Kind::Floor, Kind::Dormouse];
    kinds.extend(workerd.as_ref().map(|_| Kind::Workerd));
    let workerd = workerd.unwrap_or_default();
    let (mut figures, mut progress) = (Figures::default(), Progress::new());
    for round in 1..=args.rounds {
        let dir = dir.path().join(format!("round-{round}"));
        round_of(args, &runtime, &kinds, (&dir, &workerd), round, &mut figures, &mut progress)?;
        std::fs::remove_dir_all(&dir)?;
        kinds.rotate_left(1);
    }
    // Once, since it takes long and hardly varies.
    if args.wanted("sleeping") {
        progress.step("sleeping sockets".to_owned());
        kinds.retain(|kind| *kind != Kind::Floor);
        let servers = start(&runtime, &kinds, (&dir.path().join("sockets"), &workerd))?;
        steps::sleeping_sockets(&servers, &mut figures)?;
    }
    drop(progress);
    figures.print();
    println!("load of the machine at the end: {}", machine_load());
    Ok(())
}

/// Starts all servers, in a directory.
fn start(runtime: &Runtime, kinds: &[Kind], (dir, workerd): (&Path, &Path)) -> Result<Vec<Server>> {
    kinds.iter().map(|kind| Server::start(runtime, *kind, dir, workerd)).collect()
}

/// Starts all servers, measures each, and ends them.
fn round_of(
    args: &Args,
    runtime: &Runtime,
    kinds: &[Kind],
    places: (&Path, &Path),
    round: u32,
    figures: &mut Figures,
    progress: &mut Progress,
) -> Result<()> {
    let servers = start(runtime, kinds, places)?;
    let step = &mut |step: &str| progress.step(format!("round {round}: {step}"));
    steps::Round { runtime, args, servers: &servers, figures, step }.run()
}

fn main() -> ExitCode {
    let args = Args::parse();
    let done = match &args.serve {
        Some(Serve::Dormouse { store, address }) => objects::dormouse(store, *address),
        Some(Serve::Floor { store, address }) => objects::floor(store, *address),
        None => compare(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("web: {error}");
            ExitCode::FAILURE
        }
    }
}
