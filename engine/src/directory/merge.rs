//! Entries of several sources as one sequence: for each object, the youngest source that knows it.

use std::iter::Peekable;
use std::rc::Rc;
use std::vec::IntoIter;

use super::run::{Entries, Run};
use super::{Keyed, Known};
use crate::error::Result;
use crate::format::run::Key;
use crate::io::File;

/// A walk over entries in memory and in runs, in order of their keys, deleted ones included. Errors
/// are damaged blocks: what they hold is left out.
pub(crate) struct Merge<'a, F: File> {
    /// Youngest first.
    recent: Vec<Peekable<IntoIter<Keyed>>>,
    runs: Vec<Peekable<Entries<'a, F>>>,
}

impl<'a, F: File> Merge<'a, F> {
    /// All sources, each youngest first; those in memory are younger than all runs.
    pub(crate) fn new(
        recent: Vec<Vec<Keyed>>,
        runs: &'a [Rc<Run<F>>],
        after: Option<&Key>,
    ) -> Self {
        Self {
            recent: recent.into_iter().map(|entries| entries.into_iter().peekable()).collect(),
            runs: runs.iter().map(|run| run.entries(after).peekable()).collect(),
        }
    }
}

impl<F: File> Iterator for Merge<'_, F> {
    type Item = Result<Keyed>;

    fn next(&mut self) -> Option<Self::Item> {
        for run in &mut self.runs {
            if matches!(run.peek(), Some(Err(_))) {
                return run.next();
            }
        }
        let recent = self.recent.iter_mut().filter_map(|entries| Some(entries.peek()?.0));
        let runs = self.runs.iter_mut().filter_map(|run| Some(run.peek()?.as_ref().ok()?.0));
        let least = recent.chain(runs).min()?;
        let is_least = |key: &Key| *key == least;
        let mut youngest: Option<Known> = None;
        let mut take = |older: Known| match &mut youngest {
            Some(youngest) => youngest.origin.learn(&older.origin),
            None => youngest = Some(older),
        };
        for entries in &mut self.recent {
            let taken = entries.next_if(|(key, _)| is_least(key));
            taken.into_iter().for_each(|(_, known)| take(known));
        }
        for run in &mut self.runs {
            let taken = run.next_if(|entry| entry.as_ref().is_ok_and(|(key, _)| is_least(key)));
            taken.into_iter().flatten().for_each(|(_, known)| take(known));
        }
        youngest.map(|known| Ok((least, known)))
    }
}
