//! What the object should be: the states that it is in and has been in.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use bytes::Bytes;
use dormouse_engine::Contents;

type Map = BTreeMap<Bytes, Bytes>;

/// A state of the object: its keys, its alarm.
pub(super) type State = (Map, Option<u64>);

/// What the object should be.
pub(super) struct Model {
    /// The object's state, then that of each open transaction, innermost last; and whether output
    /// must wait for one of its changes.
    pub(super) open: Vec<(State, bool)>,
    /// All states that the object has been in.
    pub(super) history: Vec<State>,
    /// Where in it the last change is that output must wait for.
    pub(super) confirmed: usize,
    /// The earliest place in it that what is durable may be at.
    pub(super) durable: usize,
    pub(super) values: u64,
}

impl Model {
    pub(super) fn new() -> Self {
        let open = vec![(State::default(), false)];
        let history = vec![State::default()];
        Self { open, history, confirmed: 0, durable: 0, values: 0 }
    }

    pub(super) fn seen(&self) -> &State {
        &self.open.last().expect("at least the object's").0
    }

    /// An operation changes what the object sees.
    pub(super) fn change(&mut self, confirms: bool, change: impl FnOnce(&mut State)) {
        let (state, confirmed) = self.open.last_mut().expect("at least the object's");
        let before = state.clone();
        change(state);
        if *state != before {
            *confirmed |= confirms;
            self.made();
        }
    }

    /// A change of the object itself is part of its history.
    pub(super) fn made(&mut self) {
        if let [(state, confirmed)] = &mut self.open[..] {
            self.history.push(state.clone());
            if std::mem::take(confirmed) {
                self.confirmed = self.history.len() - 1;
            }
        }
    }

    pub(super) fn commit(&mut self) {
        let (state, confirmed) = self.open.pop().expect("a transaction's");
        let (around, around_confirmed) = self.open.last_mut().expect("what is around it");
        *around_confirmed |= confirmed;
        if *around != state {
            *around = state;
            self.made();
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
