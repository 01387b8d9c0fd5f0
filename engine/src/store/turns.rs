//! What changes an object takes effect in the order in which it was asked for, also while a request
//! has to read the object before it can commit: all that come after it wait for their turn.
//!
//! Objects for which nothing waits are not in here, so that commits pay a look at an empty map.

use std::cell::RefCell;
use std::rc::Rc;

use crate::directory::IdMap;
use crate::ids::ObjectId;
use crate::signal::Signal;

#[derive(Clone, Copy, Default)]
struct Line {
    /// The turn that is given out next.
    next: u64,
    /// The turn that is on.
    now: u64,
}

/// The objects of one core for which requests stand in line. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Turns(Rc<Inner>);

#[derive(Default)]
struct Inner {
    lines: RefCell<IdMap<Line>>,
    changed: Signal,
}

impl Turns {
    /// A place at the end of the object's line.
    pub(super) fn take(&self, id: &ObjectId) -> Turn {
        let mut lines = self.0.lines.borrow_mut();
        let line = lines.entry(*id).or_default();
        let number = line.next;
        line.next += 1;
        Turn { turns: self.clone(), id: *id, number }
    }

    /// A place at the end of the object's line, if there is one.
    pub(super) fn behind(&self, id: &ObjectId) -> Option<Turn> {
        let lines = self.0.lines.borrow();
        let waits = !lines.is_empty() && lines.contains_key(id);
        drop(lines);
        waits.then(|| self.take(id))
    }
}

/// A place in an object's line. It is its holder's turn until it is dropped, which it must not be
/// before that, except at the end of the core.
pub(super) struct Turn {
    turns: Turns,
    id: ObjectId,
    number: u64,
}

impl Turn {
    /// Waits until it is this one's turn.
    pub(super) async fn comes(&self) {
        let lines = &self.turns.0.lines;
        let on = || lines.borrow().get(&self.id).is_none_or(|line| line.now == self.number);
        self.turns.0.changed.until(|| on().then_some(())).await;
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut lines = self.turns.0.lines.borrow_mut();
        if let Some(line) = lines.get_mut(&self.id) {
            line.now = self.number + 1;
            if line.now == line.next {
                lines.remove(&self.id);
            }
        }
        drop(lines);
        self.turns.0.changed.notify();
    }
}
