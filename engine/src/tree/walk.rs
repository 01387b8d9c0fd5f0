//! Keys of a tree in order: a leaf at a time, some of which are read ahead, and one inner page a level.

use std::collections::VecDeque;
use std::rc::Rc;

use bytes::Bytes;

use super::Root;
use super::read::{child_of, pages};
use crate::env::Env;
use crate::error::Result;
use crate::format::frame::Address;
use crate::format::page::{Page, Value};
use crate::ids::ObjectId;
use crate::list::{Direction, Range};
use crate::shard::Inner;

/// Leaves that are read at once, at most. It begins with one: most lists are short.
const AHEAD_MAX: usize = 16;

/// A leaf, and up to which key it says all.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    /// By rising keys; also such as lie outside of the range.
    pub(crate) entries: Vec<(Bytes, Value)>,
    /// All keys below it were given by now, or, descending, from it on; `None`: all.
    pub(crate) bound: Option<Bytes>,
}

/// The children of an inner page that are still to be visited.
struct Level {
    level: u8,
    children: Vec<(Bytes, Address)>,
    /// From and to which one.
    from: usize,
    to: usize,
    /// What is known of all keys below it.
    lower: Option<Bytes>,
    upper: Option<Bytes>,
}

/// A walk over the keys in a range.
pub(crate) struct Walk {
    start: Bytes,
    end: Option<Bytes>,
    direction: Direction,
    /// From the root down.
    stack: Vec<Level>,
    ready: VecDeque<Batch>,
    ahead: usize,
}

impl Walk {
    pub(crate) fn new(root: &Root, range: &Range) -> Self {
        let mut walk = Self {
            start: range.start().clone(),
            end: range.end().cloned(),
            direction: range.direction(),
            stack: Vec::new(),
            ready: VecDeque::new(),
            ahead: 1,
        };
        walk.enter(root.page.clone(), None, None);
        walk
    }

    fn enter(&mut self, page: Page, lower: Option<Bytes>, upper: Option<Bytes>) {
        match page {
            Page::Leaf(entries) => {
                let bound = if self.ascends() { upper } else { lower };
                self.ready.push_back(Batch { entries, bound });
            }
            Page::Inner(level, children) => {
                let from = child_of(&children, &self.start);
                let to = match &self.end {
                    Some(end) => child_of(&children, end) + 1,
                    None => children.len(),
                };
                let to = to.max(from);
                self.stack.push(Level { level, children, from, to, lower, upper });
            }
        }
    }

    fn ascends(&self) -> bool {
        self.direction == Direction::Ascending
    }

    /// The next leaf; `None` at the end.
    ///
    /// Errors: `Corrupt`, with the place; `Retry`. Cancel: nothing is lost; call it again.
    pub(crate) async fn next<E: Env>(
        &mut self,
        inner: &Rc<Inner<E>>,
        id: &ObjectId,
    ) -> Result<Option<Batch>> {
        loop {
            if let Some(batch) = self.ready.pop_front() {
                return Ok(Some(batch));
            }
            let Some(top) = self.stack.last() else { return Ok(None) };
            if top.from == top.to {
                self.stack.pop();
                continue;
            }
            let at_once = if top.level == 1 { self.ahead.min(top.to - top.from) } else { 1 };
            let (from, to) = match self.direction {
                Direction::Ascending => (top.from, top.from + at_once),
                Direction::Descending => (top.to - at_once, top.to),
            };
            let wanted: Vec<_> = top.children[from..to].iter().map(|(_, child)| *child).collect();
            let read = pages(inner, id, &wanted, top.level - 1).await?;
            self.visited(from, to, read);
        }
    }

    /// Takes in children that were read.
    fn visited(&mut self, from: usize, to: usize, read: Vec<Page>) {
        let ascends = self.ascends();
        let top = self.stack.last_mut().expect("what was read is its children");
        match ascends {
            true => top.from = to,
            false => top.to = from,
        }
        let bounds = |index: usize| {
            let separator = |index: usize| top.children.get(index).map(|(key, _)| key.clone());
            let lower = if index == 0 { top.lower.clone() } else { separator(index) };
            (lower, separator(index + 1).or_else(|| top.upper.clone()))
        };
        let mut entered: Vec<_> =
            (from..to).zip(read).map(|(index, page)| (page, bounds(index))).collect();
        if top.level == 1 {
            self.ahead = (self.ahead * 2).min(AHEAD_MAX);
        }
        if !ascends {
            entered.reverse();
        }
        for (page, (lower, upper)) in entered {
            self.enter(page, lower, upper);
        }
    }
}
