//! The process that is killed: commits to all objects as fast as it can.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::Args;
use dormouse_engine::{Call, Error, Store, Version};

use super::plan::{self, Line, OBJECTS};
use crate::{Done, Verdict};

/// Threads that write.
const THREADS: usize = 4;
/// Commits of one thread that wait to be acknowledged, several of them of the same object.
const IN_FLIGHT: usize = 12;

/// The process that torture kills. Ends when its standard input does.
#[derive(Args)]
pub(crate) struct Writer {
    /// The store's directory.
    dir: PathBuf,
    /// Cores and shards.
    #[arg(long)]
    cores: u16,
}

impl Writer {
    pub(crate) fn run(self) -> Done {
        let store = Store::open(&self.dir, super::options(self.cores))?;
        let mut last = Vec::new();
        for object in 0..OBJECTS {
            let contents = store.object(plan::id(object)).contents().wait()?;
            let commit = plan::last_commit(&contents);
            say(Line::Found { object, commit });
            last.push(commit);
        }
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..THREADS)
                .map(|thread| {
                    let (store, last, stop) = (&store, last.clone(), &stop);
                    scope.spawn(move || write(store, thread, last, stop))
                })
                .collect();
            // Nothing is ever said on it.
            let _ended = std::io::stdin().read(&mut [0]);
            stop.store(true, Ordering::Relaxed);
            threads.into_iter().try_for_each(|thread| thread.join().expect("no panic"))
        })?;
        store.close().wait()?;
        Ok(Verdict::Fine)
    }
}

/// A line goes into the pipe as a whole, or not at all.
fn say(line: Line) {
    let mut out = std::io::stdout().lock();
    // A parent that is gone has no more questions.
    let _said = out.write_all(format!("{line}\n").as_bytes());
}

/// Commits to the objects of one thread in turn until it is told to stop.
fn write(store: &Store, thread: usize, mut last: Vec<u64>, stop: &AtomicBool) -> Result<(), Error> {
    let mut in_flight: VecDeque<(usize, u64, Call<Version>)> = VecDeque::new();
    let acknowledged = |(object, commit, call): (usize, u64, Call<Version>)| {
        call.wait().map(|_| say(Line::Acknowledged { object, commit }))
    };
    while !stop.load(Ordering::Relaxed) {
        for object in (thread..OBJECTS).step_by(THREADS) {
            last[object] += 1;
            let commit = last[object];
            say(Line::Begun { object, commit });
            let call = store.object(plan::id(object)).commit(plan::batch(object, commit));
            in_flight.push_back((object, commit, call));
            if in_flight.len() == IN_FLIGHT {
                in_flight.pop_front().into_iter().try_for_each(acknowledged)?;
            }
        }
    }
    in_flight.into_iter().try_for_each(acknowledged)
}
