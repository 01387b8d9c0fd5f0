//! What the object should be: the states that it is in and has been in.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use bytes::Bytes;
use dormouse_engine::Contents;

type Map = BTreeMap<Bytes, Bytes>;

/// A state of the object: its keys, its alarm.
pub(super) type State = (Map, Option<u64>);

/// What an open transaction, or the object itself, looks like.
#[derive(Default)]
pub(super) struct View {
    state: State,
    /// Keys, and `None` for the alarm, of which output must wait for a change.
    confirmed: BTreeSet<Option<Bytes>>,
}

/// What the object should be.
pub(super) struct Model {
    /// The object, then each open transaction, innermost last.
    pub(super) open: Vec<View>,
    /// All states that the object has been in.
    pub(super) history: Vec<State>,
    /// Where in it the last change is that output must wait for.
    pub(super) confirmed: usize,
    /// The earliest place in it that what is durable may be at.
    durable: usize,
    pub(super) values: u64,
}

/// The keys, and `None` for the alarm, in which two states differ.
fn differences(one: &State, other: &State) -> BTreeSet<Option<Bytes>> {
    let keys = one.0.keys().chain(other.0.keys());
    let differ = keys.filter(|key| one.0.get(*key) != other.0.get(*key));
    let alarm = (one.1 != other.1).then_some(None);
    differ.cloned().map(Some).chain(alarm).collect()
}

impl Model {
    pub(super) fn new() -> Self {
        let history = vec![State::default()];
        Self { open: vec![View::default()], history, confirmed: 0, durable: 0, values: 0 }
    }

    pub(super) fn seen(&self) -> &State {
        &self.open.last().expect("at least the object's").state
    }

    pub(super) fn begin(&mut self) {
        let state = self.seen().clone();
        self.open.push(View { state, ..View::default() });
    }

    /// An operation changes what the object sees.
    pub(super) fn change(&mut self, confirms: bool, change: impl FnOnce(&mut State)) {
        let view = self.open.last_mut().expect("at least the object's");
        let before = view.state.clone();
        change(&mut view.state);
        if confirms {
            view.confirmed.extend(differences(&before, &view.state));
        }
        self.made();
    }

    pub(super) fn commit(&mut self) {
        let View { state, confirmed } = self.open.pop().expect("a transaction's");
        let around = self.open.last_mut().expect("what is around it");
        around.state = state;
        around.confirmed.extend(confirmed);
        self.made();
    }

    /// A change of the object itself is part of its history.
    fn made(&mut self) {
        let [object] = &mut self.open[..] else { return };
        let changed = differences(self.history.last().expect("the first"), &object.state);
        let confirmed = std::mem::take(&mut object.confirmed);
        if changed.is_empty() {
            return;
        }
        self.history.push(object.state.clone());
        if !changed.is_disjoint(&confirmed) {
            self.confirmed = self.history.len() - 1;
        }
    }

    /// What is durable has been the object's state, no earlier than there.
    pub(super) fn check_durable(&mut self, durable: &Contents, since: usize) {
        let durable = (durable.map.clone(), durable.alarm);
        let place = (since.max(self.durable)..self.history.len())
            .find(|place| self.history[*place] == durable);
        assert!(place.is_some(), "{durable:?} is no state since {since}: {:?}", self.history);
        // The earliest one that it can be, so that nothing is asked of it too much.
        let earliest = self.history[self.durable..].iter().position(|state| *state == durable);
        self.durable += earliest.expect("found above");
    }
}

/// An open transaction of the model; goes with the transaction.
pub(super) struct ModelTransaction(pub(super) Rc<RefCell<Model>>, pub(super) usize);

impl Drop for ModelTransaction {
    fn drop(&mut self) {
        self.0.borrow_mut().open.truncate(self.1);
    }
}
