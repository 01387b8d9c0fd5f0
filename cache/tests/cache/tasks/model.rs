//! What the object should be: the states that it is in and has been in.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use bytes::Bytes;
use dormouse_cache::{AlarmToo, Outcome};
use dormouse_engine::Contents;

type Map = BTreeMap<Bytes, Bytes>;

/// A state of the object: its keys, its alarm.
pub(super) type State = (Map, Option<u64>);

/// What an open transaction, or the object itself, looks like.
#[derive(Default)]
pub(super) struct View {
    number: u64,
    state: State,
    /// The transaction has set the alarm, to what the state says.
    sets_alarm: bool,
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
    /// The handler of the alarm that is set runs, and the object sees none.
    deferred: bool,
    /// A handler runs.
    pub(super) handler: bool,
    pub(super) shut: bool,
    /// The last transaction, and the last event.
    begun: u64,
    pub(super) events: u64,
}

/// How a transaction stands among those that are open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    Innermost,
    /// Another one is open inside it.
    Around,
    Lost,
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
        Self {
            open: vec![View::default()],
            history,
            confirmed: 0,
            durable: 0,
            values: 0,
            deferred: false,
            handler: false,
            shut: false,
            begun: 0,
            events: 0,
        }
    }

    fn innermost(&mut self) -> &mut View {
        self.open.last_mut().expect("at least the object's")
    }

    /// The keys that the object sees.
    pub(super) fn map(&self) -> &Map {
        &self.open.last().expect("at least the object's").state.0
    }

    /// The alarm that it sees.
    pub(super) fn alarm(&self) -> Option<u64> {
        let is_set = self.open.iter().any(|view| view.sets_alarm);
        let innermost = self.open.last().expect("at least the object's");
        innermost.state.1.filter(|_| is_set || !self.deferred)
    }

    fn begin(&mut self) -> u64 {
        let state = self.innermost().state.clone();
        self.begun += 1;
        self.open.push(View { number: self.begun, state, ..View::default() });
        self.begun
    }

    fn place(&self, number: u64) -> Option<usize> {
        self.open.iter().position(|view| view.number == number)
    }

    pub(super) fn set_alarm(&mut self, at_ms: Option<u64>, confirms: bool) {
        match self.open.len() {
            1 => self.deferred = false,
            _ => self.innermost().sets_alarm = true,
        }
        self.change(confirms, |(_, alarm)| *alarm = at_ms);
    }

    pub(super) fn delete_all(&mut self, too: AlarmToo) {
        assert_eq!(self.open.len(), 1, "refused inside a transaction");
        self.deferred &= too == AlarmToo::Keep;
        self.change(true, |(map, alarm)| {
            map.clear();
            *alarm = alarm.filter(|_| too == AlarmToo::Keep);
        });
    }

    /// The handler of an alarm of this time is to run: whether it must.
    pub(super) fn alarm_begins(&mut self, at_ms: u64) -> bool {
        assert_eq!(self.open.len(), 1);
        self.deferred = self.open[0].state.1 == Some(at_ms);
        self.deferred
    }

    /// Whether it may: the alarm was set to that once, and that it is not may not be durable yet.
    pub(super) fn may_run(&self, at_ms: u64) -> bool {
        self.history[self.durable..].iter().any(|(_, alarm)| *alarm == Some(at_ms))
    }

    pub(super) fn alarm_ends(&mut self, outcome: Outcome) {
        if std::mem::take(&mut self.deferred) && outcome != Outcome::Failed {
            self.set_alarm(None, true);
        }
    }

    /// An operation changes what the object sees.
    pub(super) fn change(&mut self, confirms: bool, change: impl FnOnce(&mut State)) {
        let view = self.innermost();
        let before = view.state.clone();
        change(&mut view.state);
        if confirms {
            view.confirmed.extend(differences(&before, &view.state));
        }
        self.made();
    }

    fn commit(&mut self) {
        let View { state, sets_alarm, confirmed, .. } = self.open.pop().expect("a transaction's");
        let is_outermost = self.open.len() == 1;
        let around = self.innermost();
        around.state = state;
        around.confirmed.extend(confirmed);
        around.sets_alarm |= sets_alarm && !is_outermost;
        self.deferred &= !(sets_alarm && is_outermost);
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

/// An open transaction of the model; goes with the transaction, and those inside it with it.
pub(super) struct ModelTransaction(Rc<RefCell<Model>>, u64);

impl ModelTransaction {
    pub(super) fn begin(model: &Rc<RefCell<Model>>) -> Self {
        let number = model.borrow_mut().begin();
        Self(model.clone(), number)
    }

    pub(super) fn standing(&self) -> Standing {
        let model = self.0.borrow();
        match model.place(self.1) {
            None => Standing::Lost,
            Some(place) if place == model.open.len() - 1 => Standing::Innermost,
            Some(_) => Standing::Around,
        }
    }

    pub(super) fn commit(&self) {
        assert_eq!(self.standing(), Standing::Innermost);
        self.0.borrow_mut().commit();
    }
}

impl Drop for ModelTransaction {
    fn drop(&mut self) {
        let mut model = self.0.borrow_mut();
        if let Some(place) = model.place(self.1) {
            model.open.truncate(place);
        }
    }
}
