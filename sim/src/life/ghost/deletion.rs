//! What a deletion does to what is known of an object.
//!
//! When a core takes a deletion is not seen from here; seen is when it is asked for, and when that is
//! answered. In between an instance that finds nothing may be the one after it. Numbers of instances
//! and of deletions rise together, so that they show which of the two came first.

use anyhow::{Result, ensure};

use super::{Contents, Ghost};

impl Ghost {
    /// A deletion is asked for; whether another one is on its way.
    pub(in super::super) fn delete_begins(&mut self, token: u64) -> bool {
        let another = self.is_being_deleted();
        self.deletions.insert(token);
        another
    }

    pub(in super::super) fn is_being_deleted(&self) -> bool {
        !self.deletions.is_empty()
    }

    /// Whether who comes to life next may find nothing, whatever was written.
    pub(in super::super) fn may_be_deleted(&self) -> bool {
        self.in_doubt || self.is_being_deleted()
    }

    /// The deletion never happens.
    pub(in super::super) fn delete_refused(&mut self, token: u64) {
        self.deletions.remove(&token);
    }

    /// The deletion has ended, and nobody can say how.
    pub(in super::super) fn delete_failed(&mut self, token: u64) {
        self.deletions.remove(&token);
        self.in_doubt = true;
        self.may_lose = true;
    }

    /// The deletion is durable; whether all that is known is of before.
    pub(in super::super) fn deleted(&mut self, token: u64) -> Result<bool> {
        self.deletions.remove(&token);
        let is_over = self.found_nothing <= token;
        if let Some(live) = self.instance {
            let is_older = live < token || is_over && live == self.awoke;
            ensure!(!is_older, "instance {live} outlives deletion {token}");
        }
        if is_over {
            self.wipe()?;
            self.had_alarm = false;
            self.in_doubt = false;
        } else {
            // An instance that has come to life and still lives came after it.
            self.in_doubt = self.instance != Some(self.awoke);
        }
        Ok(is_over)
    }

    /// Whether it must be brought to life to know what it holds.
    pub(in super::super) fn is_in_doubt(&self) -> bool {
        self.in_doubt
    }

    /// The object is as one that never was.
    pub(super) fn wipe(&mut self) -> Result<()> {
        self.pause();
        self.first = self.end();
        self.acknowledged = self.first;
        self.groups.clear();
        self.settled = Contents::default();
        self.make_live(&Contents::default())?;
        self.may_lose = false;
        self.exclusive = None;
        self.run = None;
        self.failed = None;
        Ok(())
    }

    /// An instance leaves memory; whether a deletion may be why.
    pub(in super::super) fn leaves(&mut self, instance: u64) -> bool {
        let deleted = self.is_being_deleted();
        if self.instance.take_if(|live| *live == instance).is_some() && deleted {
            self.reset();
        }
        deleted
    }
}
