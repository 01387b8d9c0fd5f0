//! The input gate: while an object waits for its storage, or runs a critical section, no other
//! event of it is let in.
//!
//! An *event* is one task of the object. Gates form a tree of *nodes*: the root, and one for each
//! active critical section. Every event is located at one node, the root unless it runs in a
//! section. An event *holds* its node while it is being polled (between [`InputGate::poll_enter`]
//! and [`InputGate::leave`]), while a [`Lock`] of it exists, and from the moment it is granted
//! entry until it uses it. A node is *free* if nobody holds it and no section is active under it.
//!
//! Invariants:
//!
//! - An event is polled only while its node is free or held by itself, and has no active section.
//! - A node that becomes free is given at once to its oldest waiting section, else to its oldest
//!   waiting event: a free node has no waiters.
//! - All locks of an event are on the node where it is located.
//! - Once broken, nothing is let in.

use std::cell::RefCell;
use std::fmt;
use std::future::Future;
use std::num::NonZeroU64;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use dormouse_engine::{Error, Kind, Result};

use super::few::Few;
use super::{Ticket, Waiters, wake_all};
use crate::ops::{code, refuse_if};

/// Sections inside one another at most.
const DEPTH_MAX: u32 = 64;

const ENDLESS: &str = "events end before numbers do";

/// Names one event of an object; never used twice by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct EventId(pub u64);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct NodeId(NonZeroU64);

/// Sections have higher ones.
const ROOT: NodeId = NodeId(NonZeroU64::MIN);

/// A handle on an object's input gate. Cheap to clone.
#[derive(Clone)]
pub struct InputGate(Rc<RefCell<Tree>>);

struct Tree {
    nodes: Few<NodeId, Node>,
    events: Few<EventId, Event>,
    /// Numbers nodes and places in queues, all from one sequence: queues that are merged stay in
    /// order of arrival.
    sequence: NonZeroU64,
    broken: Option<Error>,
    broken_waiters: Waiters,
}

#[derive(Default)]
struct Node {
    parent: Option<NodeId>,
    depth: u32,
    /// Holds of all events located here.
    held: u32,
    active: Option<NodeId>,
    /// Mostly none, and then a word.
    sections: Option<Box<Few<NonZeroU64, PendingSection>>>,
    waiters: Few<NonZeroU64, EventId>,
}

struct PendingSection {
    body: EventId,
    waker: Option<Waker>,
}

#[derive(Default)]
struct Event {
    node: Option<NodeId>,
    locks: u32,
    turn: Turn,
}

/// Where an event is on its way through the gate.
#[derive(Default)]
enum Turn {
    /// Neither in nor waiting; next: entered, queued.
    #[default]
    Out,
    /// In the queue of its node at this place; next: granted, entered, out.
    Queued(NonZeroU64, Option<Waker>),
    /// Chosen, holds its node; next: entered, out.
    Granted,
    /// Being polled, holds its node; next: out.
    Entered,
}

impl Default for InputGate {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for InputGate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tree = self.0.borrow();
        f.debug_struct("InputGate")
            .field("nodes", &tree.nodes.len())
            .field("events", &tree.events.len())
            .field("broken", &tree.broken)
            .finish()
    }
}

impl InputGate {
    /// A gate that is free.
    pub fn new() -> Self {
        let mut nodes = Few::default();
        nodes.insert(ROOT, Node::default());
        Self(Rc::new(RefCell::new(Tree {
            nodes,
            events: Few::default(),
            sequence: ROOT.0,
            broken: None,
            broken_waiters: Waiters::default(),
        })))
    }

    /// Lets `event` in if its gate is free or held by itself; does not queue it. Never succeeds
    /// on a broken gate.
    pub fn try_enter(&self, event: EventId) -> bool {
        self.change(|tree, _| tree.enter(event))
    }

    /// Lets `event` in, or queues it, FIFO, and wakes it when it is its turn. After
    /// success the event may be polled; then call [`leave`](Self::leave).
    ///
    /// Errors: the reason, if the gate is broken.
    pub fn poll_enter(&self, event: EventId, cx: &mut Context<'_>) -> Poll<Result<()>> {
        self.change(|tree, _| {
            if let Some(reason) = &tree.broken {
                return Poll::Ready(Err(reason.clone()));
            }
            if tree.enter(event) {
                return Poll::Ready(Ok(()));
            }
            tree.queue(event, cx.waker());
            Poll::Pending
        })
    }

    /// The event's poll is over. The gate stays with it while it has a [`Lock`]; else the next
    /// one is let in.
    pub fn leave(&self, event: EventId) {
        self.change(|tree, woken| {
            let state = tree.events.get_mut(event).expect("entered before");
            assert!(matches!(state.turn, Turn::Entered));
            state.turn = Turn::Out;
            tree.release(event, 1, woken);
        });
    }

    /// The event is over or dropped: it leaves the queue, or gives back what it was
    /// granted. Locks that still exist go on to count until they are dropped.
    pub fn end(&self, event: EventId) {
        self.change(|tree, woken| {
            let Some(state) = tree.events.get_mut(event) else { return };
            let node = state.node.unwrap_or(ROOT);
            match std::mem::take(&mut state.turn) {
                Turn::Out => tree.tidy(event),
                Turn::Queued(place, _) => {
                    tree.node(node).waiters.remove(place);
                    tree.tidy(event);
                }
                Turn::Granted | Turn::Entered => tree.release(event, 1, woken),
            }
        });
    }

    /// Locates `event` where `parent` is, as for a task that a section starts.
    ///
    /// # Panics
    /// If the event has entered or waits already.
    pub fn adopt(&self, event: EventId, parent: EventId) {
        self.change(|tree, _| {
            let node = tree.location(parent);
            tree.locate(event, node);
        });
    }

    /// Keeps the gate with `event` until the lock is dropped, as for a storage wait (R-239,
    /// The event itself goes on being let in.
    ///
    /// # Panics
    /// If the event does not hold its gate.
    pub fn hold(&self, event: EventId) -> Lock {
        self.change(|tree, _| {
            let broken = tree.broken.is_some();
            let holds = tree.events.get(event).is_some_and(Event::holds);
            assert!(holds || broken, "an event holds its gate only from within");
            tree.lock(event);
        });
        Lock { gate: self.clone(), event }
    }

    /// Starts a critical section from where `starter` is. It is granted when that gate is
    /// free, before any waiting event and after the sections started earlier. From
    /// then on `body`, which may be `starter` itself, is located in the section, and nothing
    /// outside of it is let in.
    ///
    /// Errors: code `nested-too-deeply`; the reason, if the gate is broken.
    ///
    /// # Panics
    /// If `body` is another event than `starter` and has entered or waits already.
    pub fn section(&self, starter: EventId, body: EventId) -> Result<SectionWait> {
        self.change(|tree, woken| {
            if let Some(reason) = &tree.broken {
                return Err(reason.clone());
            }
            let parent = tree.location(starter);
            refuse_if(tree.node(parent).depth >= DEPTH_MAX, code::NESTED_TOO_DEEPLY, || {
                format!("critical sections nested more than {DEPTH_MAX} deep")
            })?;
            if body != starter {
                tree.locate(body, parent);
            }
            let place = tree.next();
            let sections = tree.node(parent).sections.get_or_insert_default();
            sections.insert(place, PendingSection { body, waker: None });
            tree.settle(parent, woken);
            Ok(SectionWait { gate: self.clone(), node: NodeId(place), starter, taken: false })
        })
    }

    /// Breaks the gate for good: all that wait and all that come later fail with the first
    /// reason.
    pub fn fail(&self, reason: Error) {
        self.change(|tree, woken| tree.fail(reason, woken));
    }

    /// Why the gate is broken, if it is.
    pub fn broken_reason(&self) -> Option<Error> {
        self.0.borrow().broken.clone()
    }

    /// Returns the reason once the gate is broken.
    pub fn broken(&self) -> impl Future<Output = Error> + Unpin + use<> {
        BrokenWait { gate: self.clone(), ticket: None }
    }

    /// Whether nothing holds the gate, waits at it or runs in a section.
    pub fn is_idle(&self) -> bool {
        let tree = self.0.borrow();
        tree.nodes.len() == 1 && tree.nodes.get(ROOT).is_some_and(Node::is_idle)
    }

    /// `task` as an event that passes the gate for each of its polls; ends the event when dropped.
    /// Its output is the gate's reason once the gate is broken.
    pub fn gated<T>(&self, event: EventId, task: Pin<Box<dyn Future<Output = T>>>) -> Gated<T> {
        Gated { gate: self.clone(), event, task: Some(task) }
    }

    /// Changes the tree, and wakes whom this concerns once nothing is borrowed.
    fn change<T>(&self, change: impl FnOnce(&mut Tree, &mut Vec<Waker>) -> T) -> T {
        let mut woken = Vec::new();
        let result = change(&mut self.0.borrow_mut(), &mut woken);
        wake_all(woken);
        result
    }
}

impl Node {
    fn is_free(&self) -> bool {
        self.held == 0 && self.active.is_none()
    }

    fn is_idle(&self) -> bool {
        self.is_free() && self.sections.is_none() && self.waiters.is_empty()
    }

    fn remove_section(&mut self, place: NonZeroU64) {
        if let Some(sections) = &mut self.sections {
            sections.remove(place);
        }
        self.sections.take_if(|sections| sections.is_empty());
    }

    /// The section that waits for longest, with its place.
    fn pop_section(&mut self) -> Option<(NonZeroU64, PendingSection)> {
        let first = self.sections.as_mut()?.pop_first();
        self.sections.take_if(|sections| sections.is_empty());
        first
    }
}

impl Event {
    fn holds(&self) -> bool {
        self.locks > 0 || matches!(self.turn, Turn::Granted | Turn::Entered)
    }

    /// How often it is counted in its node.
    fn holds_count(&self) -> u32 {
        self.locks + u32::from(matches!(self.turn, Turn::Granted | Turn::Entered))
    }
}

impl Tree {
    fn next(&mut self) -> NonZeroU64 {
        self.sequence = self.sequence.checked_add(1).expect(ENDLESS);
        self.sequence
    }

    fn node(&mut self, id: NodeId) -> &mut Node {
        self.nodes.get_mut(id).expect("events and sections are moved off a node that closes")
    }

    fn location(&self, event: EventId) -> NodeId {
        self.events.get(event).and_then(|state| state.node).unwrap_or(ROOT)
    }

    fn locate(&mut self, event: EventId, node: NodeId) {
        let state = self.events.or_default(event);
        assert!(!state.holds() && matches!(state.turn, Turn::Out));
        state.node = Some(node);
    }

    fn enter(&mut self, event: EventId) -> bool {
        if self.broken.is_some() {
            return false;
        }
        let id = self.location(event);
        let state = self.events.or_default(event);
        assert!(!matches!(state.turn, Turn::Entered), "an event is polled once at a time");
        let (holds, node) = (state.holds(), self.nodes.get_mut(id).expect("located there"));
        if node.active.is_some() || !(holds || node.is_free()) {
            return false;
        }
        match std::mem::replace(&mut state.turn, Turn::Entered) {
            Turn::Granted => {}
            Turn::Queued(place, _) => {
                node.waiters.remove(place);
                node.held += 1;
            }
            _ => node.held += 1,
        }
        true
    }

    fn queue(&mut self, event: EventId, waker: &Waker) {
        let id = self.location(event);
        let next = self.sequence.checked_add(1).expect(ENDLESS);
        let state = self.events.or_default(event);
        match &mut state.turn {
            Turn::Queued(_, kept) => *kept = Some(waker.clone()),
            Turn::Granted => unreachable!("a section is granted only while nobody holds the gate"),
            _ => {
                state.turn = Turn::Queued(next, Some(waker.clone()));
                self.sequence = next;
                self.node(id).waiters.insert(next, event);
            }
        }
    }

    fn lock(&mut self, event: EventId) {
        if self.broken.is_some() {
            return;
        }
        let id = self.location(event);
        self.events.or_default(event).locks += 1;
        self.node(id).held += 1;
    }

    fn unlock(&mut self, event: EventId, woken: &mut Vec<Waker>) {
        if self.broken.is_some() {
            return;
        }
        let state = self.events.get_mut(event).expect("a lock keeps its event");
        assert!(state.locks > 0);
        state.locks -= 1;
        self.release(event, 1, woken);
    }

    /// Takes `holds` of the event off its node and lets the next in.
    fn release(&mut self, event: EventId, holds: u32, woken: &mut Vec<Waker>) {
        let id = self.location(event);
        self.tidy(event);
        let node = self.node(id);
        assert!(node.held >= holds);
        node.held -= holds;
        self.settle(id, woken);
    }

    /// Forgets an event of which there is nothing to know.
    fn tidy(&mut self, event: EventId) {
        let Some(state) = self.events.get(event) else { return };
        let out = !state.holds() && matches!(state.turn, Turn::Out);
        if out && state.node.unwrap_or(ROOT) == ROOT {
            self.events.remove(event);
        }
    }

    /// Gives a free node to whoever is next; goes down into a section that it starts.
    fn settle(&mut self, mut id: NodeId, woken: &mut Vec<Waker>) {
        while self.broken.is_none() && self.node(id).is_free() {
            let Some((place, section)) = self.node(id).pop_section() else {
                if let Some((_, event)) = self.node(id).waiters.pop_first() {
                    self.grant(event, woken);
                }
                return;
            };
            let child = NodeId(place);
            self.activate(id, child, section.body);
            woken.extend(section.waker);
            id = child;
        }
    }

    fn grant(&mut self, event: EventId, woken: &mut Vec<Waker>) {
        let id = self.location(event);
        self.node(id).held += 1;
        let state = self.events.get_mut(event).expect("queued");
        match std::mem::replace(&mut state.turn, Turn::Granted) {
            Turn::Queued(_, waker) => woken.extend(waker),
            _ => unreachable!("only queued events are in queues"),
        }
    }

    /// Makes a section active and moves its body, with its place in the queue, into it.
    fn activate(&mut self, parent: NodeId, child: NodeId, body: EventId) {
        let depth = self.node(parent).depth + 1;
        let mut node = Node { parent: Some(parent), depth, ..Node::default() };
        let state = self.events.or_default(body);
        assert!(state.node.unwrap_or(ROOT) == parent && !state.holds());
        state.node = Some(child);
        if let Turn::Queued(place, _) = state.turn {
            node.waiters.insert(place, body);
            self.node(parent).waiters.remove(place);
        }
        self.nodes.insert(child, node);
        self.node(parent).active = Some(child);
    }

    /// Ends an active section: what is left in it goes over to the parent.
    fn close(&mut self, id: NodeId, woken: &mut Vec<Waker>) -> NodeId {
        let closed = self.nodes.remove(id).expect("closed once");
        let parent_id = closed.parent.expect("the root does not close");
        for state in self.events.values_mut().filter(|state| state.node == Some(id)) {
            state.node = Some(parent_id);
        }
        if let Some(inner) = closed.active {
            self.node(inner).parent = Some(parent_id);
        }
        let parent = self.node(parent_id);
        assert!(parent.active == Some(id));
        parent.active = closed.active;
        parent.held += closed.held;
        parent.waiters.append(closed.waiters);
        if let Some(sections) = closed.sections {
            parent.sections.get_or_insert_default().append(*sections);
        }
        self.events.retain(|state| {
            let out = !state.holds() && matches!(state.turn, Turn::Out);
            !(out && state.node.unwrap_or(ROOT) == ROOT)
        });
        self.check_holds(parent_id);
        self.wake_holders(parent_id, woken);
        parent_id
    }

    /// Wakes the events that hold this node and still wait to be let in: they had to wait for a
    /// section that was active, and nobody else can be let in before them.
    fn wake_holders(&mut self, id: NodeId, woken: &mut Vec<Waker>) {
        if self.node(id).active.is_some() {
            return;
        }
        for state in self.events.values_mut() {
            if state.locks > 0
                && state.node.unwrap_or(ROOT) == id
                && let Turn::Queued(_, waker) = &mut state.turn
            {
                woken.extend(waker.take());
            }
        }
    }

    fn check_holds(&self, id: NodeId) {
        let located = |state: &&Event| state.node.unwrap_or(ROOT) == id;
        let holds: u32 = self.events.values().filter(located).map(Event::holds_count).sum();
        assert!(self.nodes.get(id).is_some_and(|node| node.held == holds));
    }

    fn fail(&mut self, reason: Error, woken: &mut Vec<Waker>) {
        if self.broken.is_some() {
            return;
        }
        self.broken = Some(reason);
        woken.extend(self.broken_waiters.take());
        for node in self.nodes.values_mut() {
            let sections = std::mem::take(&mut node.sections);
            let sections = sections.into_iter().flat_map(|sections| sections.into_values());
            woken.extend(sections.filter_map(|section| section.waker));
        }
        for state in self.events.values_mut() {
            if let Turn::Queued(_, waker) = &mut state.turn {
                woken.extend(waker.take());
            }
        }
    }
}

/// Waits until the gate is broken.
struct BrokenWait {
    gate: InputGate,
    ticket: Option<Ticket>,
}

impl Future for BrokenWait {
    type Output = Error;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Error> {
        let this = &mut *self;
        let mut tree = this.gate.0.borrow_mut();
        if let Some(reason) = &tree.broken {
            return Poll::Ready(reason.clone());
        }
        tree.broken_waiters.register(&mut this.ticket, cx.waker());
        Poll::Pending
    }
}

impl Drop for BrokenWait {
    fn drop(&mut self) {
        self.gate.0.borrow_mut().broken_waiters.forget(self.ticket);
    }
}

/// Keeps an object's input gate with one event. Dropping it may let the next event in.
#[derive(Debug)]
pub struct Lock {
    gate: InputGate,
    event: EventId,
}

impl Clone for Lock {
    fn clone(&self) -> Self {
        self.gate.hold(self.event)
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        self.gate.change(|tree, woken| tree.unlock(self.event, woken));
    }
}

/// A critical section that waits to be granted. Dropping it takes it back.
#[derive(Debug)]
pub struct SectionWait {
    gate: InputGate,
    node: NodeId,
    starter: EventId,
    taken: bool,
}

impl Future for SectionWait {
    type Output = Result<Section>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<Section>> {
        let id = self.node;
        let granted = self.gate.change(|tree, _| {
            if let Some(reason) = &tree.broken {
                return Poll::Ready(Err(reason.clone()));
            }
            if tree.nodes.contains_key(id) {
                return Poll::Ready(Ok(()));
            }
            let mut nodes = tree.nodes.values_mut();
            let pending = nodes.find_map(|node| node.sections.as_mut()?.get_mut(id.0));
            pending.expect("granted or waiting").waker = Some(cx.waker().clone());
            Poll::Pending
        });
        granted.map(|granted| {
            self.taken = true;
            granted?;
            Ok(Section { gate: self.gate.clone(), node: id, starter: self.starter, over: false })
        })
    }
}

impl Drop for SectionWait {
    fn drop(&mut self) {
        if self.taken {
            return;
        }
        let id = self.node;
        self.gate.change(|tree, woken| {
            if tree.broken.is_some() {
                return;
            }
            if tree.nodes.contains_key(id) {
                // Granted, but nothing ran in it: it just goes.
                let parent = tree.close(id, woken);
                tree.settle(parent, woken);
                return;
            }
            for node in tree.nodes.values_mut() {
                node.remove_section(id.0);
            }
        });
    }
}

/// An active critical section. Dropped without an end it is a failure.
#[derive(Debug)]
pub struct Section {
    gate: InputGate,
    node: NodeId,
    starter: EventId,
    over: bool,
}

impl Section {
    /// Ends the section well. The lock keeps the gate outside of it with the starter, so that the
    /// result reaches it before any outside event: drop it once it is delivered.
    pub fn succeed(mut self) -> Lock {
        self.over = true;
        let (id, starter) = (self.node, self.starter);
        self.gate.change(|tree, woken| {
            if tree.broken.is_none() {
                // The section's own lock on its parent goes over to the starter, wherever the
                // starter is now.
                let parent = tree.close(id, woken);
                tree.lock(starter);
                tree.wake_holders(tree.location(starter), woken);
                // Not the starter's place any more: whoever waits there is next.
                tree.settle(parent, woken);
            }
        });
        Lock { gate: self.gate.clone(), event: starter }
    }

    /// Ends the section badly: everything breaks.
    pub fn fail(mut self, reason: Error) {
        self.over = true;
        self.gate.fail(reason);
    }
}

impl Drop for Section {
    fn drop(&mut self) {
        if !self.over {
            self.gate.fail(Error::new(
                Kind::Invalid,
                "a critical section was dropped before its end: it awaited something that can \
                 never complete, such as a task started outside of the section",
            ));
        }
    }
}

/// An event's task that passes the gate for each of its polls; see [`InputGate::gated`].
pub struct Gated<T> {
    gate: InputGate,
    event: EventId,
    task: Option<Pin<Box<dyn Future<Output = T>>>>,
}

impl<T> Future for Gated<T> {
    type Output = Result<T>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<T>> {
        match self.gate.poll_enter(self.event, cx) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Err(reason)) => return Poll::Ready(Err(reason)),
            Poll::Ready(Ok(())) => {}
        }
        let task = self.task.as_mut().expect("polled after it was ready");
        let result = task.as_mut().poll(cx);
        if result.is_ready() {
            // Locks in the task go before the gate is left.
            self.task = None;
        }
        self.gate.leave(self.event);
        result.map(Ok)
    }
}

impl<T> Drop for Gated<T> {
    fn drop(&mut self) {
        self.task = None;
        self.gate.end(self.event);
    }
}

impl<T> fmt::Debug for Gated<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gated").field("event", &self.event).finish_non_exhaustive()
    }
}
