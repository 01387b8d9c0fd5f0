//! The servers, each a child process on the same CPU, in a fresh directory: started on a free port, waited for
//! until it answers, and killed when it is dropped, or when this process dies, whatever it dies of.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;

use crate::Result;
use crate::client::Connection;
use crate::steps::HOT;

/// The CPU of whichever server is measured, and that of the load.
const SERVER_CPU: &str = "0";
const LOAD_CPU: &str = "1";
/// How long a server may take until it answers.
const START_TIME: Duration = Duration::from_secs(20);
/// The version that docs/performance.md section 5 was measured with.
pub(crate) const WORKERD_VERSION: &str = "1.20261117.1";

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Floor,
    Dormouse,
    Workerd,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Floor => "bare hyper",
            Self::Dormouse => "Dormouse",
            Self::Workerd => "workerd",
        }
    }
}

/// A server that runs.
pub(crate) struct Server {
    pub(crate) kind: Kind,
    pub(crate) address: SocketAddr,
    child: Child,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _it_may_have_ended = self.child.kill();
        let _it_may_have_ended = self.child.wait();
    }
}

/// A port that nobody has at the moment.
fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

/// The command that runs a server, on its CPU, and not longer than this process.
fn command(kind: Kind, dir: &Path, address: SocketAddr, workerd: &Path) -> Result<Command> {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "taskset", "-c", SERVER_CPU]);
    match kind {
        Kind::Floor => {
            command.arg(std::env::current_exe()?).arg("floor").arg("--store").arg(dir);
        }
        Kind::Dormouse => {
            command.arg(std::env::current_exe()?).arg("dormouse").arg("--store").arg(dir);
        }
        Kind::Workerd => {
            let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/web/config.capnp");
            command.arg(workerd).arg("serve").arg(config);
            command.args(["-s", &format!("http={address}")]);
            command.args(["-d", &format!("data={}", dir.display())]);
            return Ok(command);
        }
    }
    command.args(["--address", &address.to_string()]);
    Ok(command)
}

impl Server {
    /// Starts a server whose data and log are below `dir`, and waits until it answers.
    pub(crate) fn start(runtime: &Runtime, kind: Kind, dir: &Path, workerd: &Path) -> Result<Self> {
        let (data, log) = (dir.join(format!("{kind:?}")), dir.join(format!("{kind:?}.log")));
        std::fs::create_dir_all(&data)?;
        let address = free_address()?;
        let child = command(kind, &data, address, workerd)?
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log)?)
            .spawn()?;
        let mut server = Self { kind, address, child };
        let began = Instant::now();
        while let Err(error) = runtime.block_on(answers(address)) {
            let ended = server.child.try_wait()?;
            if ended.is_some() || began.elapsed() > START_TIME {
                let said = std::fs::read_to_string(&log).unwrap_or_default();
                return Err(format!("{} does not answer: {error}\n{said}", kind.name()).into());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(server)
    }

    /// Bytes of its memory that are in use now.
    pub(crate) fn resident_bytes(&self) -> Result<u64> {
        let path = format!("/proc/{}/smaps_rollup", self.child.id());
        resident(&std::fs::read_to_string(path)?).ok_or_else(|| "smaps_rollup has no Rss".into())
    }
}

async fn answers(address: SocketAddr) -> Result<()> {
    Connection::open(address).await?.get(&format!("{HOT}/get")).await
}

/// The bytes of the line `Rss:`.
fn resident(smaps: &str) -> Option<u64> {
    let line = smaps.lines().find_map(|line| line.strip_prefix("Rss:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib * 1024)
}

/// Where npm is told to install, and where it is looked for.
pub(crate) fn npm_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/workerd")
}

/// The program that npm installed: of the package for this machine, since the other one is a script until its own
/// installation has run.
pub(crate) fn installed_workerd() -> Option<PathBuf> {
    let packages = std::fs::read_dir(npm_dir().join("node_modules/@cloudflare")).ok()?;
    let programs = packages.flatten().map(|package| package.path().join("bin/workerd"));
    programs.into_iter().find(|program| program.is_file())
}

/// Installs the pinned version with npm.
pub(crate) fn install_workerd() -> Result<()> {
    std::fs::create_dir_all(npm_dir())?;
    let mut npm = Command::new("npm");
    npm.args(["install", "--no-audit", "--no-fund", "--prefix"]).arg(npm_dir());
    let status = npm.arg(format!("workerd@{WORKERD_VERSION}")).status()?;
    if status.success() { Ok(()) } else { Err(format!("npm failed: {status}").into()) }
}

/// What a program says of its version.
pub(crate) fn version(program: &Path) -> Result<String> {
    let output = Command::new(program).arg("--version").output()?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Puts this process, which makes the load, on its CPU, with this priority, which the servers inherit.
/// To be called while there is one thread only.
pub(crate) fn pin_load(nice: i32) -> Result<()> {
    let own = std::process::id().to_string();
    let run = |program: &str, args: &[&str]| -> Result<bool> {
        let mut command = Command::new(program);
        let output = command.args(args).output().map_err(|error| format!("{program}: {error}"))?;
        Ok(output.status.success())
    };
    if !run("taskset", &["-cp", LOAD_CPU, &own])? {
        return Err("it takes two CPUs: one for the server, one for the load".into());
    }
    let done = nice == 0 || run("renice", &["-n", &nice.to_string(), "-p", &own])?;
    if done { Ok(()) } else { Err("this priority may not be had: try --nice 0".into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_resident_bytes_are_those_of_the_line_rss() {
        let text = "00400000-7fff ---p 00000000 00:00 0 [rollup]\nRss:      12 kB\nPss:  7 kB\n";
        assert_eq!(resident(text), Some(12 << 10));
        assert_eq!(resident("Pss: 7 kB"), None);
    }
}
