//! The open files of a shard's log: the segment that is written stays open, a full one is opened when
//! something in it is read. Where more would be open than [`Limits::open_segments_max`], the one that
//! was not read for longest is closed: so neither opening a store nor its descriptors follow its size.
//!
//! Nobody else writes a batch to a full segment, dead or alive: its last one was durable before the
//! checkpoint that says that it is full; at most zeros are on their way behind that ([`super::ahead`]), which
//! whoever uses the file again waits for with its lock. So it is not locked to be read, and an old read that holds a closed file
//! is in nobody's way.

use std::rc::Rc;

use super::segments::{FileOf, Segment};
use crate::env::Env;
use crate::error::{Error, Kind, Result};
use crate::io::{Disk, File, Mode, Open};
use crate::limits::Limits;
use crate::shard::{Inner, State};

/// The file of a segment.
pub(crate) enum Handle<F> {
    /// Nobody reads it.
    Closed,
    /// A task opens it; whoever else wants it waits for `Inner::changed`.
    Opening,
    /// It is open.
    Open {
        /// The file.
        file: F,
        /// [`State::reads`] when it was last read.
        read: u64,
    },
}

impl<F> Handle<F> {
    /// A file that is open already.
    pub(crate) fn open(file: F) -> Self {
        Self::Open { file, read: 0 }
    }
}

/// What there is of a segment that is to be read.
enum Found<F> {
    Open(Segment<F>),
    /// By its name; this task is to open it.
    Closed(String),
    Nothing,
}

impl<F: File> State<F> {
    /// The open segment `number`, or the task to open it; `None` while another one does.
    fn find(&mut self, number: u32) -> Option<Found<F>> {
        self.reads += 1;
        let Some(segment) = self.segments.get_mut(&number) else { return Some(Found::Nothing) };
        match &mut segment.file {
            Handle::Opening => None,
            Handle::Open { file, read } => {
                *read = self.reads;
                let file = file.clone();
                Some(Found::Open(segment.with(file)))
            }
            closed @ Handle::Closed => {
                *closed = Handle::Opening;
                Some(Found::Closed(segment.name.clone()))
            }
        }
    }

    /// Closes what was not read for longest, while too many full segments are open.
    pub(crate) fn close_idle(&mut self, limits: &Limits) {
        let current = self.tail.segment.0;
        let mut open: Vec<_> = self
            .segments
            .iter_mut()
            .filter(|(number, _)| **number != current)
            .filter_map(|(_, segment)| match segment.file {
                Handle::Open { read, .. } => Some((read, &mut segment.file)),
                Handle::Closed | Handle::Opening => None,
            })
            .collect();
        let excess = open.len().saturating_sub(limits.open_segments_max);
        open.sort_by_key(|(read, _)| *read);
        open.into_iter().take(excess).for_each(|(_, handle)| *handle = Handle::Closed);
    }
}

/// Segment `number` with its open file; `None` if there is none of that number.
///
/// Errors: `Corrupt` (its file is gone), `Retry` (it can't be opened).
pub(crate) async fn opened<E: Env>(
    inner: &Rc<Inner<E>>,
    number: u32,
) -> Result<Option<Segment<FileOf<E>>>> {
    let name = match inner.changed.until(|| inner.state.borrow_mut().find(number)).await {
        Found::Nothing => return Ok(None),
        Found::Open(segment) => return Ok(Some(segment)),
        Found::Closed(name) => name,
    };
    let opening = OpeningGuard { inner, number };
    let open = Open { create: inner.create, mode: Mode::Through, lock_wait: None };
    let file = inner.env.disk().open(&name, open).await.map_err(|source| {
        let kind = match source.kind() {
            std::io::ErrorKind::NotFound => Kind::Corrupt,
            _ => Kind::Retry,
        };
        Error::io(kind, format!("opening {name}"), source)
    })?;
    Ok(opening.end(file))
}

/// A segment that this task opens; if it fails or is dropped, the next one tries.
struct OpeningGuard<'a, E: Env> {
    inner: &'a Rc<Inner<E>>,
    number: u32,
}

impl<E: Env> OpeningGuard<'_, E> {
    fn end(self, file: FileOf<E>) -> Option<Segment<FileOf<E>>> {
        let state = &mut *self.inner.state.borrow_mut();
        // It may have been removed meanwhile.
        let segment = state.segments.get_mut(&self.number)?;
        let opened = segment.with(file.clone());
        segment.file = Handle::Open { file, read: state.reads };
        state.close_idle(&self.inner.limits);
        Some(opened)
    }
}

impl<E: Env> Drop for OpeningGuard<'_, E> {
    fn drop(&mut self) {
        if let Some(segment) = self.inner.state.borrow_mut().segments.get_mut(&self.number)
            && matches!(segment.file, Handle::Opening)
        {
            segment.file = Handle::Closed;
        }
        self.inner.changed.notify();
    }
}
