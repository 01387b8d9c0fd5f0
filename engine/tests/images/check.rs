//! What an image must show: each object in a state that it may be in (E1, E2).

use std::path::Path;

use dormouse_engine::real::{DiskChoice, RealEnv, block_on};
use dormouse_engine::{Contents, Kind, Shard, StoreLock, Version};

use crate::record::Event;
use crate::workload::{LIMITS, OBJECTS, object};

/// The states that one object has gone through, and the oldest that it may be in.
#[derive(Clone)]
struct History {
    states: Vec<Contents>,
    settled: usize,
}

/// All objects, as far as the log tells.
#[derive(Clone)]
pub(crate) struct Admissible(Vec<History>);

impl Admissible {
    /// An empty store.
    pub(crate) fn new() -> Self {
        let history = History { states: vec![Contents::default()], settled: 0 };
        Self(vec![history; OBJECTS])
    }

    /// Goes on by one event of the log.
    ///
    /// # Panics
    /// If the recorded store itself has shown what it may not.
    pub(crate) fn apply(&mut self, event: &Event) {
        match event {
            Event::Submitted(number, contents) => self.0[*number].states.push(contents.clone()),
            Event::Acknowledged(number, version) => self.0[*number].acknowledged(*version),
            Event::Found(number, contents) => {
                let history = &mut self.0[*number];
                let at = history.admits(contents).expect("a state of the recorded store");
                // Answered, and so promised; what it lacks is gone for good.
                history.states.truncate(at + 1);
                history.settled = at;
            }
            Event::Process | Event::Ended | Event::Begin(..) | Event::End(..) => {}
        }
    }

    /// The states that objects may be in now.
    pub(crate) fn now(&self) -> Self {
        let now = |it: &History| History { states: it.states[it.settled..].to_vec(), settled: 0 };
        Self(self.0.iter().map(now).collect())
    }

    /// Opens the store in `dir` and reads every object; with `twice`, once more.
    ///
    /// Errors: what is not as it must be.
    pub(crate) fn check(&self, dir: &Path, disk: DiskChoice, twice: bool) -> Result<(), String> {
        let first = read_all(dir, disk)?;
        for (number, contents) in first.iter().enumerate() {
            self.0[number].admits(contents).map_err(|why| format!("object {number}: {why}"))?;
        }
        if !twice {
            return Ok(());
        }
        // The first process has died without closing the store (E7).
        let second = read_all(dir, disk)?;
        match first == second {
            true => Ok(()),
            false => Err("a second recovery has shown something else".into()),
        }
    }
}

impl History {
    fn acknowledged(&mut self, version: Version) {
        let at = self.states.iter().position(|state| state.version == version);
        self.settled = self.settled.max(at.expect("it was submitted"));
    }

    /// Which state these contents are.
    fn admits(&self, found: &Contents) -> Result<usize, String> {
        let is_found = |state: &Contents| match state.map.is_empty() && state.alarm.is_none() {
            // It does not exist, and has no version.
            true => *found == Contents::default(),
            false => found == state,
        };
        let at = self.states[self.settled..].iter().position(is_found);
        at.map(|at| self.settled + at).ok_or_else(|| {
            let (keys, version) = (found.map.len(), found.version);
            let versions: Vec<u64> =
                self.states[self.settled..].iter().map(|state| state.version.0).collect();
            format!("{keys} keys at version {version}; may be at one of {versions:?}")
        })
    }
}

fn read_all(dir: &Path, disk: DiskChoice) -> Result<Vec<Contents>, String> {
    block_on(dir, disk, async move |env: RealEnv| {
        let opening = |error| format!("opening: {error}");
        let lock = StoreLock::open_or_create(&env, &LIMITS, 1).await.map_err(opening)?;
        let open = || Shard::open(&env, lock.superblock(), 0, LIMITS);
        let opened = match open().await {
            // A thread of the core before this one may have made its last file just now, after the look at
            // what there is: threads of a process that is dead can't.
            Err(error) if error.kind() == Kind::Retry => open().await,
            opened => opened,
        };
        let (shard, recovery) = opened.map_err(opening)?;
        if !recovery.damaged.is_empty() {
            return Err(format!("opening: damaged: {:?}", recovery.damaged));
        }
        let mut objects = Vec::new();
        for number in 0..OBJECTS {
            let loaded = shard.load(&object(number)).await;
            objects.push(loaded.map_err(|error| error.to_string())?);
        }
        Ok(objects)
    })
    .expect("a core")
}
