//! The writer's process, as the parent sees it.

#![expect(clippy::disallowed_methods, reason = "a real process, in real time")]

use std::io::BufRead;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::plan::{Line, OBJECTS};

/// How long opening may take at most.
const OPENING_MAX: Duration = Duration::from_secs(60);

/// A writer that was started.
pub(super) struct Running {
    child: Child,
    began: Instant,
    heard: Receiver<Line>,
    lines: Vec<Line>,
}

/// A writer's end.
pub(super) struct Ended {
    pub(super) status: ExitStatus,
    /// All that it said.
    pub(super) lines: Vec<Line>,
    /// Whether it had opened the store.
    pub(super) opened: bool,
}

impl Running {
    pub(super) fn start(dir: &Path, cores: u16) -> Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg("torture-writer")
            .arg(dir)
            .args(["--cores", &cores.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting a writer")?;
        let out = std::io::BufReader::new(child.stdout.take().expect("piped"));
        let (sender, heard) = channel();
        // Read as it comes, for a full pipe would hold the writer up; to the end, which outlives it.
        std::thread::spawn(move || {
            let lines = out.split(b'\n').map_while(Result::ok);
            let mut lines = lines.filter_map(|line| Line::parse(std::str::from_utf8(&line).ok()?));
            let _nobody_listens = lines.try_for_each(|line| sender.send(line));
        });
        Ok(Self { child, began: Instant::now(), heard, lines: Vec::new() })
    }

    fn has_opened(&self) -> bool {
        let found = self.lines.iter().filter(|line| matches!(line, Line::Found { .. }));
        found.count() == OBJECTS
    }

    /// Waits until the writer has opened the store, or is dead; how long that took.
    pub(super) fn until_opened(&mut self) -> Result<Duration> {
        while !self.has_opened() {
            let left = OPENING_MAX.saturating_sub(self.began.elapsed());
            match self.heard.recv_timeout(left) {
                Ok(line) => self.lines.push(line),
                Err(_) if left.is_zero() => {
                    self.child.kill()?;
                    self.child.wait()?;
                    bail!("a writer did not open the store within {OPENING_MAX:?}");
                }
                // It is dead, or the time is up.
                Err(_) if self.child.try_wait()?.is_some() => break,
                Err(_) => {}
            }
        }
        Ok(self.began.elapsed())
    }

    /// Kills it.
    pub(super) fn kill(mut self) -> Result<Ended> {
        self.child.kill()?;
        self.end()
    }

    /// Tells it to close the store, and waits until it has.
    pub(super) fn close(mut self) -> Result<Ended> {
        drop(self.child.stdin.take());
        self.end()
    }

    fn end(mut self) -> Result<Ended> {
        let status = self.child.wait()?;
        self.lines.extend(self.heard.iter());
        let opened = self.has_opened();
        Ok(Ended { status, lines: self.lines, opened })
    }
}
