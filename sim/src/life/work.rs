//! Work beside the core: each begins once, when what was written before is durable and while its
//! instance lives, and its result comes to the event that waits for it.

use std::collections::BTreeMap;
use std::panic::resume_unwind;

use dormouse_scheduler::Kind;
use dormouse_scheduler::prelude::*;

use super::object::Inner;
use super::shared::{Mark, Shared, shared};
use crate::plan::Work;

/// By instance and number: its object, and how many of its groups must be durable when it begins.
pub(super) type Works = BTreeMap<(u64, u64), (String, u64)>;

impl Inner {
    pub(super) async fn work(&self, event: u64, how: Work) -> Result<()> {
        let shared = &self.shared;
        let (instance, token) = (self.instance, shared.number());
        let groups = self.on(event, |ghost| Ok(ghost.confirmed()));
        shared.works.borrow_mut().insert((instance, token), (self.name.clone(), groups));
        let before = shared.operations.get();
        let done = self.state.spawn_blocking(move || {
            self::shared().work_begins(instance, token);
            if how == Work::Panics {
                // As a panic, but without its message on the screen.
                resume_unwind(Box::new("as planned"));
            }
            token
        });
        if how == Work::Dropped {
            shared.mark(Mark::WorkLeftAlone);
            return Ok(());
        }
        let result = done.await;
        self.on(event, |_| Ok(()));
        shared.note(|| format!("{} {event} work {token}: {result:?}", self.name));
        // Its beginning counts as one.
        if shared.operations.get() > before + 1 {
            shared.mark(Mark::WorkBesideOthers);
        }
        match (how, result) {
            (Work::Awaited, Ok(got)) if got == token => shared.mark(Mark::WorkAwaited),
            (Work::Panics, Err(error)) if error.kind() == Kind::User => {
                shared.mark(Mark::WorkPanicked);
            }
            (_, Err(error)) if error.kind() != Kind::User => return Err(error),
            (_, result) => shared.fail(format!("work {token} gave {result:?}")),
        }
        if shared.works.borrow().contains_key(&(instance, token)) {
            shared.fail(format!("work {token} has a result, and never began"));
        }
        Ok(())
    }
}

impl Shared {
    fn work_begins(&self, instance: u64, token: u64) {
        let known = self.works.borrow_mut().remove(&(instance, token));
        let Some((object, groups)) = known else {
            let text = "begins again, or though its instance has ended";
            return self.fail(format!("work {token} of instance {instance} {text}"));
        };
        self.count(false);
        self.world.fold(&token.to_le_bytes());
        self.on(&object, |ghost| {
            ghost.acknowledge(groups);
            Ok(())
        });
    }

    /// An instance leaves memory: none of its work that has not begun ever does. Unless it was
    /// reset, there is none.
    pub(super) fn works_left(&self, object: &str, instance: u64, reset: bool) {
        let mut works = self.works.borrow_mut();
        let left: Vec<_> =
            works.range((instance, 0)..=(instance, u64::MAX)).map(|(key, _)| *key).collect();
        left.iter().for_each(|key| drop(works.remove(key)));
        drop(works);
        if left.is_empty() {
            return;
        }
        self.mark(Mark::WorkOfAResetObject);
        if !reset {
            self.fail(format!("{object} left memory before its work began: {left:?}"));
        }
    }

    /// The process dies, with all work that waits.
    pub(super) fn works_crashed(&self) {
        self.works.borrow_mut().clear();
    }
}
