//! Entries of several sources as one sequence: for each object, the youngest source that knows it.

use std::iter::Peekable;
use std::rc::Rc;

use super::Keyed;
use super::run::{Entries, Run};
use crate::error::Result;
use crate::format::entry::RawEntry;
use crate::format::run::Key;
use crate::io::File;

/// A walk over entries in memory and in runs, in order of their keys, deleted ones included. Errors
/// are damaged blocks: what they hold is left out.
pub(crate) struct Merge<'a, F: File> {
    /// Youngest first.
    recent: Vec<Peekable<Recent<'a>>>,
    runs: Vec<Source<'a, F>>,
}

/// Entries in memory, in order of their keys.
pub(crate) type Recent<'a> = Box<dyn Iterator<Item = Keyed> + 'a>;

/// A run that is walked over.
struct Source<'a, F: File> {
    entries: Peekable<Entries<'a, F>>,
    /// Whether a damaged block lies between the entry that was taken last and the next one: of what
    /// lies between these, only younger sources know the truth.
    gap: bool,
}

impl<'a, F: File> Merge<'a, F> {
    /// All sources, each youngest first; those in memory are younger than all runs.
    pub(crate) fn new(
        recent: Vec<Recent<'a>>,
        runs: &'a [Rc<Run<F>>],
        after: Option<&Key>,
    ) -> Self {
        Self {
            recent: recent.into_iter().map(Iterator::peekable).collect(),
            runs: runs
                .iter()
                .map(|run| Source { entries: run.entries(after).peekable(), gap: false })
                .collect(),
        }
    }
}

impl<F: File> Iterator for Merge<'_, F> {
    type Item = Result<Keyed>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            for run in &mut self.runs {
                if matches!(run.entries.peek(), Some(Err(_))) {
                    run.gap = true;
                    return run.entries.next();
                }
            }
            let (key, youngest) = self.least()?;
            if let Some(entry) = youngest {
                return Some(Ok((key, entry)));
            }
        }
    }
}

impl<F: File> Merge<'_, F> {
    /// The next key and its entry; `None` if that lay in a damaged block.
    fn least(&mut self) -> Option<(Key, Option<RawEntry>)> {
        let recent = self.recent.iter_mut().filter_map(|entries| Some(entries.peek()?.0));
        let runs =
            self.runs.iter_mut().filter_map(|run| Some(run.entries.peek()?.as_ref().ok()?.0));
        let least = recent.chain(runs).min()?;
        let is_least = |key: &Key| *key == least;
        let mut youngest: Option<RawEntry> = None;
        for entries in &mut self.recent {
            match (&mut youngest, entries.next_if(|(key, _)| is_least(key))) {
                (Some(youngest), Some((_, older))) => youngest.learn(&older),
                (None, Some((_, entry))) => youngest = Some(entry),
                (_, None) => {}
            }
        }
        let mut hidden = false;
        for Source { entries, gap } in &mut self.runs {
            let is_least = |(key, _): &Keyed| is_least(key);
            match entries.next_if(|entry| entry.as_ref().is_ok_and(is_least)) {
                Some(entry) => {
                    *gap = false;
                    let entry = entry.ok().filter(|_| !hidden || youngest.is_some());
                    match (&mut youngest, entry) {
                        (Some(youngest), Some((_, older))) => youngest.learn(&older),
                        (None, Some((_, entry))) => youngest = Some(entry),
                        (_, None) => {}
                    }
                }
                None => hidden |= *gap,
            }
        }
        Some((least, youngest))
    }
}
