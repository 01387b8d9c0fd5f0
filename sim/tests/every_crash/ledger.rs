//! What a crashed store may show of each object: the states that its commits made, from the last
//! one that was acknowledged on.

use std::collections::BTreeMap;

use dormouse_engine::{Batch, Contents, ObjectId, Version};

/// All objects of a store.
pub(crate) type Shown = BTreeMap<ObjectId, Contents>;

/// Two looks at a store show the same: versions, keys, values, alarms.
pub(crate) fn assert_same(found: &Shown, wanted: &Shown, what: &str) {
    for (id, wanted) in wanted {
        let (found, keys) = (&found[id], wanted.map.len());
        assert!(
            found == wanted,
            "{what}: object {id} is at {} with {} keys, alarm {:?}, and was at {} with {keys}, {:?}",
            found.version,
            found.map.len(),
            found.alarm,
            wanted.version,
            wanted.alarm,
        );
    }
}

#[derive(Clone)]
struct History {
    /// What the object holds, with the version also where it does not exist.
    now: Contents,
    /// As the store shows it: before its first commit, after its first, after its second.
    states: Vec<Contents>,
    /// Commits that were acknowledged.
    acknowledged: usize,
}

/// The commits of every object.
#[derive(Clone)]
pub(crate) struct Ledger(BTreeMap<ObjectId, History>);

impl Ledger {
    /// Of objects that do not exist yet.
    pub(crate) fn new(objects: impl IntoIterator<Item = ObjectId>) -> Self {
        let now = Contents::default();
        let history = History { states: vec![now.clone()], now, acknowledged: 0 };
        Self(objects.into_iter().map(|id| (id, history.clone())).collect())
    }

    pub(crate) fn objects(&self) -> Vec<ObjectId> {
        self.0.keys().copied().collect()
    }

    /// What the object will hold after this batch too.
    pub(crate) fn after(&self, id: &ObjectId, batch: &Batch) -> Contents {
        let mut after = self.0[id].now.clone();
        after.apply(batch, Version(after.version.0 + 1));
        after
    }

    pub(crate) fn submitted(&mut self, id: &ObjectId, batch: &Batch, version: Version) {
        let history = self.0.get_mut(id).expect("an object of the workload");
        history.now.apply(batch, version);
        let exists = !history.now.map.is_empty() || history.now.alarm.is_some();
        history.states.push(if exists { history.now.clone() } else { Contents::default() });
    }

    pub(crate) fn acknowledged(&mut self, id: &ObjectId) {
        let history = self.0.get_mut(id).expect("an object of the workload");
        history.acknowledged += 1;
        assert!(history.acknowledged < history.states.len());
    }

    /// How many commits were made and acknowledged: what a fixed workload may show follows from it.
    pub(crate) fn progress(&self) -> Vec<(usize, usize)> {
        self.0.values().map(|history| (history.states.len(), history.acknowledged)).collect()
    }

    /// E1 and E2: each object is in the state after a whole number of its commits, all those that
    /// were acknowledged among them.
    pub(crate) fn check(&self, shown: &Shown, what: &str) {
        for (id, history) in &self.0 {
            let (found, from) = (&shown[id], history.acknowledged);
            assert!(
                history.states[from..].contains(found),
                "{what}: object {id} is at {} with {} keys; of its {} commits {from} were \
                 acknowledged, and no state since then is this one",
                found.version,
                found.map.len(),
                history.states.len() - 1,
            );
        }
    }
}
