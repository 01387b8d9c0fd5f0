//! `torture`: kills a process that writes, again and again, and checks that nothing acknowledged is lost.
//!
//! Parent and child share one plan ([`plan`]): which object's which commit holds what. The child
//! ([`writer`]) says through a pipe what it has begun and what was acknowledged; the pipe outlives it.
//! The parent keeps for each object the span of commits that may be its last one ([`Span`]), and narrows
//! it with every look at the store.

mod child;
mod plan;
mod writer;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use clap::Args;
use dormouse_engine::{Contents, Error, Options, Store};
use indicatif::ProgressBar;

use crate::access::{self, Opened};
use crate::{Done, Verdict, print};
use child::{Ended, Running};
use plan::{Line, OBJECTS};
pub(crate) use writer::Writer;

/// Kills a process that writes, again and again, and checks that nothing acknowledged is lost.
///
/// Makes a store in DIR, which must be empty, absent, or of an earlier torture. A process commits to it
/// as fast as it can and is killed (SIGKILL) at random moments, some of them while it still opens the store;
/// now and then it may close. After most of these the store is opened and each object is checked: all
/// acknowledged commits are there, others are there as a whole or not at all, none without the earlier ones
/// of its object. Ends with `torture: K kills, A acknowledged, L lost`; exits with 1 unless L is 0.
#[derive(Args)]
#[command(
    verbatim_doc_comment,
    after_help = "\
Examples:
  cargo store torture /mnt/disk/torture --seconds 60
  cargo store torture /tmp/torture --seconds 5 --cores 1"
)]
pub(crate) struct Torture {
    /// A directory of its own, on the disk that is to be tried.
    dir: PathBuf,
    /// How long.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Cores that the writer uses, and shards of a new store. All, unless said.
    #[arg(long)]
    cores: Option<u16>,
}

/// How long a writer may write at most.
const WRITING: Duration = Duration::from_millis(250);
/// The file that says whose store it is.
const MARKER: &str = "torture";

/// An object's last commit is one of these.
#[derive(Clone, Copy, Debug)]
struct Span {
    /// Known to be durable.
    from: u64,
    /// Known to have been begun.
    to: u64,
}

/// What the parent knows.
struct Parent {
    dir: PathBuf,
    cores: u16,
    /// How long the last writer took to open the store.
    opening: Duration,
    spans: Vec<Span>,
    kills: u64,
    /// Of these, while the store was being opened.
    early: u64,
    closes: u64,
    looks: u64,
    acknowledged: u64,
    lost: u64,
}

impl Torture {
    pub(crate) fn run(self) -> Done {
        let available = || std::thread::available_parallelism().map_or(1, usize::from);
        let cores = self.cores.unwrap_or_else(|| u16::try_from(available()).unwrap_or(1)).max(1);
        make_dir(&self.dir)?;
        let mut parent = Parent::new(self.dir, cores);
        let bar = print::bar("torture", self.seconds);
        parent.torture(Duration::from_secs(self.seconds), &bar)?;
        bar.finish_and_clear();
        let Parent { kills, early, closes, looks, acknowledged, lost, .. } = parent;
        println!(
            "{early} kills within the opening, {closes} closes, {looks} looks at every object"
        );
        println!("torture: {kills} kills, {acknowledged} acknowledged, {lost} lost");
        Ok(Verdict::fine_if(lost == 0))
    }
}

#[expect(clippy::disallowed_methods, reason = "a directory for a store")]
fn make_dir(dir: &Path) -> Result<()> {
    let marker = dir.join(MARKER);
    if marker.exists() {
        return Ok(());
    }
    std::fs::create_dir_all(dir)?;
    let is_empty = std::fs::read_dir(dir)?.next().is_none();
    ensure!(is_empty, "{}: not empty, and not made by torture", dir.display());
    Ok(std::fs::write(marker, "This store is written and killed by `cargo store torture`.\n")?)
}

#[expect(clippy::disallowed_methods, reason = "a real process is killed after real time")]
fn sleep(time: Duration) {
    std::thread::sleep(time);
}

fn random_below(time: Duration) -> Duration {
    Duration::from_micros(random(u64::try_from(time.as_micros()).unwrap_or(u64::MAX).max(1)))
}

#[expect(clippy::disallowed_methods, reason = "no two tortures are alike")]
fn random(below: u64) -> u64 {
    getrandom::u64().expect("the system gives entropy") % below
}

impl Parent {
    fn new(dir: PathBuf, cores: u16) -> Self {
        let spans = vec![Span { from: 0, to: u64::MAX }; OBJECTS];
        let (kills, early, closes, looks, acknowledged, lost) = Default::default();
        let opening = Duration::from_millis(20);
        Self { dir, cores, opening, spans, kills, early, closes, looks, acknowledged, lost }
    }

    #[expect(clippy::disallowed_methods, reason = "real time, of a real process")]
    fn torture(&mut self, time: Duration, bar: &ProgressBar) -> Result<()> {
        let began = Instant::now();
        if access::is_store(&self.dir) {
            self.look(false)?;
        }
        // What is lost is to be looked at, not written over.
        while began.elapsed() < time && self.lost == 0 {
            match random(8) {
                0 => self.close()?,
                1 | 2 => self.kill_early()?,
                _ => self.kill()?,
            }
            // Otherwise the next writer meets what this one left.
            match random(4) {
                0 => {}
                1 => self.look(true)?,
                _ => self.look(false)?,
            }
            bar.set_position(began.elapsed().as_secs());
            let (kills, acknowledged) = (self.kills, self.acknowledged);
            bar.set_message(format!("torture: {kills} kills, {acknowledged} acknowledged"));
        }
        self.look(false)
    }

    /// Kills a writer while it opens the store, or just after that.
    fn kill_early(&mut self) -> Result<()> {
        let child = Running::start(&self.dir, self.cores)?;
        sleep(random_below(self.opening));
        self.killed(child.kill()?)
    }

    /// Kills a writer that writes.
    fn kill(&mut self) -> Result<()> {
        let mut child = Running::start(&self.dir, self.cores)?;
        self.opening = child.until_opened()?;
        sleep(random_below(WRITING));
        self.killed(child.kill()?)
    }

    fn killed(&mut self, child: Ended) -> Result<()> {
        self.kills += 1;
        self.early += u64::from(!child.opened);
        self.take(&child.lines);
        match child.status.code() {
            Some(code) => bail!("a writer ended by itself, with {code}"),
            None => Ok(()),
        }
    }

    /// Lets a writer write and close the store.
    fn close(&mut self) -> Result<()> {
        let mut child = Running::start(&self.dir, self.cores)?;
        self.opening = child.until_opened()?;
        sleep(random_below(WRITING));
        let Ended { status, lines, .. } = child.close()?;
        self.take(&lines);
        ensure!(status.success(), "a writer failed: {status}");
        self.closes += 1;
        let all = self.spans.iter().all(|span| span.from == span.to);
        ensure!(all, "a writer closed the store before all was acknowledged");
        Ok(())
    }

    fn take(&mut self, lines: &[Line]) {
        for line in lines {
            match *line {
                Line::Found { object, commit } => self.found(object, commit),
                Line::Begun { object, commit } => self.spans[object].to = commit,
                Line::Acknowledged { object, commit } => {
                    self.acknowledged += 1;
                    self.spans[object].from = commit;
                }
            }
        }
    }

    /// What is found is durable (E9), and what is not found never comes back.
    fn found(&mut self, object: usize, commit: u64) {
        let Span { from, to } = self.spans[object];
        if commit < from {
            eprintln!("object {object}: commit {from} was acknowledged, {commit} is the last");
            self.lost += from - commit;
        } else if commit > to {
            eprintln!("object {object}: commit {to} was the last one begun, {commit} is there");
            self.lost += 1;
        }
        self.spans[object] = Span { from: commit, to: commit };
    }

    /// Opens the store, for reading or as a writer does, and checks every object.
    fn look(&mut self, read_only: bool) -> Result<()> {
        self.looks += 1;
        // Before that its creation may have been killed, and is to be done anew.
        let exists = self.spans.iter().any(|span| span.from > 0);
        let seen = match read_only && exists {
            true => access::read(&self.dir, read),
            false => open(&self.dir, self.cores).map_err(anyhow::Error::from),
        };
        let seen = match seen {
            Ok(seen) => seen,
            Err(error) => {
                eprintln!("the store can't be opened: {}", crate::told(&error));
                self.lost += self.spans.iter().map(|span| span.from).sum::<u64>().max(1);
                return Ok(());
            }
        };
        for (object, contents) in seen.into_iter().enumerate() {
            match contents {
                Ok(contents) => self.check(object, &contents),
                Err(error) => {
                    eprintln!("object {object}: {error}");
                    self.lost += 1;
                }
            }
        }
        Ok(())
    }

    fn check(&mut self, object: usize, contents: &Contents) {
        let commit = plan::last_commit(contents);
        self.found(object, commit);
        let expected = plan::expected(object, commit);
        if (&expected.map, expected.alarm) != (&contents.map, contents.alarm) {
            eprintln!("object {object}: not what commit {commit} left");
            self.lost += 1;
        }
    }
}

/// What every object holds.
type Seen = Vec<Result<Contents, Error>>;

fn open(dir: &Path, cores: u16) -> Result<Seen, Error> {
    let store = Store::open(dir, options(cores))?;
    let objects = (0..OBJECTS).map(|object| store.object(plan::id(object)).contents());
    let seen = objects.map(|call| call.wait().map(|contents| (*contents).clone())).collect();
    store.close().wait()?;
    Ok(seen)
}

async fn read(opened: Opened) -> Result<Seen> {
    let shards = opened.shards().await?;
    let mut seen = Vec::new();
    for id in (0..OBJECTS).map(plan::id) {
        seen.push(shards[usize::from(id.shard(opened.superblock.shards))].load(&id).await);
    }
    for shard in shards {
        shard.close().await?;
    }
    Ok(seen)
}

fn options(cores: u16) -> Options {
    Options { cores: Some(cores.into()), shards: Some(cores), ..Options::default() }
}

#[cfg(test)]
mod tests {
    use super::Line::{Acknowledged, Begun, Found};
    use super::*;

    /// What is lost if a writer says this, and then an object holds what so many commits left.
    fn lost(lines: &[Line], commits: u64, change: impl FnOnce(&mut Contents)) -> u64 {
        let mut parent = Parent::new(PathBuf::new(), 1);
        parent.take(lines);
        let mut contents = plan::expected(2, commits);
        change(&mut contents);
        parent.check(2, &contents);
        parent.lost
    }

    #[test]
    fn every_kind_of_loss_is_found() {
        let (object, same) = (2, |_: &mut Contents| {});
        let begun = [1, 2, 3].map(|commit| Begun { object, commit });
        let acknowledged = [1, 2].map(|commit| Acknowledged { object, commit });
        let lines = [&[Found { object, commit: 0 }], &begun[..], &acknowledged].concat();
        assert_eq!((lost(&lines, 2, same), lost(&lines, 3, same)), (0, 0));
        assert_eq!(lost(&lines, 0, same), 2, "two acknowledged commits (E2)");
        assert_eq!(lost(&lines, 4, same), 1, "a commit that nobody made");
        let gone = [&lines[..], &[Found { object, commit: 2 }]].concat();
        assert_eq!(lost(&gone, 3, same), 1, "one that was gone came back");
        let back = [&lines[..], &[Found { object, commit: 1 }]].concat();
        assert_eq!(lost(&back, 1, same), 1, "a writer found less than was acknowledged");
        assert_eq!(lost(&lines, 3, |it| drop(it.map.pop_first())), 1, "half a commit (E1)");
        assert_eq!(lost(&lines, 3, |it| it.alarm = Some(1)), 1, "another alarm");
    }
}
