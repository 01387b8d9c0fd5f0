//! [`Activities`]: what an object has to do, oldest first: calls, alarms, tasks of its own, timers.
//!
//! One slab for all objects of a core, through which each object's list is threaded by numbers: an object
//! with nothing to do pays eight bytes, and nothing is allocated once the slab has grown to what the core
//! does at once.
//!
//! Invariant: a slot is in one list, an object's or that of the free ones.

use std::cell::{Cell, RefCell};
use std::time::Duration;

use super::resident::Awake;

/// No slot.
const NONE: u32 = u32::MAX;

#[derive(Clone, Copy)]
struct Slot {
    why: Awake,
    since: Duration,
    before: u32,
    after: u32,
}

/// Something that an object has to do; [`Activities::end`] takes it back.
#[derive(Debug)]
pub(crate) struct Activity(u32);

/// The activities of one object.
#[derive(Debug)]
pub(crate) struct List {
    first: Cell<u32>,
    last: Cell<u32>,
}

impl Default for List {
    fn default() -> Self {
        Self { first: Cell::new(NONE), last: Cell::new(NONE) }
    }
}

/// The activities of all objects of one core.
#[derive(Default)]
pub(crate) struct Activities {
    slots: RefCell<Vec<Slot>>,
    free: RefCell<Vec<u32>>,
}

impl Activities {
    /// Adds one at the end of an object's list; `since` by the core's clock.
    pub(crate) fn begin(&self, list: &List, why: Awake, since: Duration) -> Activity {
        let mut slots = self.slots.borrow_mut();
        let before = list.last.get();
        let slot = Slot { why, since, before, after: NONE };
        let number = match self.free.borrow_mut().pop() {
            Some(number) => {
                slots[number as usize] = slot;
                number
            }
            None => {
                let number = u32::try_from(slots.len()).expect("memory ends before");
                slots.push(slot);
                number
            }
        };
        match before {
            NONE => list.first.set(number),
            before => slots[before as usize].after = number,
        }
        list.last.set(number);
        Activity(number)
    }

    /// Takes one off its object's list, once; why and since when it was there.
    pub(crate) fn end(&self, list: &List, activity: &Activity) -> (Awake, Duration) {
        let number = activity.0;
        let mut slots = self.slots.borrow_mut();
        let Slot { why, since, before, after } = slots[number as usize];
        match before {
            NONE => list.first.set(after),
            before => slots[before as usize].after = after,
        }
        match after {
            NONE => list.last.set(before),
            after => slots[after as usize].before = before,
        }
        self.free.borrow_mut().push(number);
        (why, since)
    }

    /// Why it was begun.
    pub(crate) fn why(&self, Activity(number): &Activity) -> Awake {
        self.slots.borrow()[*number as usize].why
    }

    /// Why an object is awake and since when, oldest first.
    pub(crate) fn each(&self, list: &List, mut visit: impl FnMut(Awake, Duration)) {
        let slots = self.slots.borrow();
        let mut next = list.first.get();
        while next != NONE {
            let slot = slots[next as usize];
            visit(slot.why, slot.since);
            next = slot.after;
        }
    }

    /// Since when its oldest call is there.
    pub(crate) fn oldest_call(&self, list: &List) -> Option<Duration> {
        let slots = self.slots.borrow();
        let mut next = list.first.get();
        while next != NONE {
            let slot = slots[next as usize];
            if slot.why.is_call() {
                return Some(slot.since);
            }
            next = slot.after;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn since(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    proptest! {
        /// Three objects begin and end in any order; each list is what a plain list would be.
        #[test]
        fn lists_are_in_the_order_of_arrival(steps in prop::collection::vec((0..3_usize, 0..4_usize), 0..80)) {
            let activities = Activities::default();
            let lists: [List; 3] = Default::default();
            let mut model: [Vec<(Activity, u64)>; 3] = Default::default();
            for (n, (object, which)) in (0..).zip(steps) {
                let known = &mut model[object];
                if which < known.len() {
                    let (activity, began) = known.remove(which);
                    let ended = activities.end(&lists[object], &activity);
                    prop_assert_eq!(ended, (Awake::Timer, since(began)));
                } else {
                    known.push((activities.begin(&lists[object], Awake::Timer, since(n)), n));
                }
                for (list, known) in lists.iter().zip(&model) {
                    let mut seen = Vec::new();
                    activities.each(list, |_, since| seen.push(since));
                    let known: Vec<_> = known.iter().map(|(_, n)| since(*n)).collect();
                    prop_assert_eq!(seen, known);
                }
            }
            let live: usize = model.iter().map(Vec::len).sum();
            let slots = activities.slots.borrow().len();
            prop_assert_eq!(activities.free.borrow().len(), slots - live);
        }
    }

    #[test]
    fn the_oldest_call_is_found_behind_other_work() {
        let (activities, list) = (Activities::default(), List::default());
        let task = activities.begin(&list, Awake::WaitUntil, since(1));
        assert_eq!(activities.oldest_call(&list), None);
        let first = activities.begin(&list, Awake::Call, since(2));
        let _second = activities.begin(&list, Awake::Request, since(3));
        assert_eq!(activities.oldest_call(&list), Some(since(2)));
        activities.end(&list, &first);
        activities.end(&list, &task);
        assert_eq!(activities.oldest_call(&list), Some(since(3)));
    }
}
