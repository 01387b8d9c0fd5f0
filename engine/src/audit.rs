//! Live bytes counted anew: from every entry of the directory, and from the frames themselves. What was kept
//! up to date commit by commit must agree (docs/design.md, 3.5).

use std::collections::{BTreeMap, BTreeSet};

use crate::directory::merged;
use crate::env::Env;
use crate::error::{Kind, Result};
use crate::format::frame::Share;
use crate::ids::ObjectId;
use crate::live::Live;
use crate::load;
use crate::shard::Shard;

impl<E: Env> Shard<E> {
    /// Compares the live bytes of each segment with what the directory says that all objects need, and
    /// that with the frames that reading them reads. Says what differs; nothing, if blocks of the
    /// directory can't be read.
    ///
    /// Errors: `Poisoned`, `Retry`.
    pub async fn audit(&self) -> Result<Vec<String>> {
        let (mut wrong, ids) = match self.recount() {
            Some(recounted) => recounted,
            None => return Ok(Vec::new()),
        };
        for id in ids {
            wrong.extend(self.audit_object(&id).await?);
        }
        Ok(wrong)
    }

    /// What differs from the entries of the directory, and the objects that can be read; `None` where
    /// blocks of it can't be.
    fn recount(&self) -> Option<(Vec<String>, Vec<ObjectId>)> {
        let state = self.0.state.borrow();
        let mut ids = Vec::new();
        let mut entries = Vec::new();
        for entry in state.directory.entries(None) {
            let (key, known) = entry.ok()?;
            let Some(entry) = known.entry else { continue };
            ids.extend((!entry.damaged).then_some(key.id));
            entries.push(entry);
        }
        let mut counted = Live::default();
        counted.recount(&entries);
        let (mut wrong, live) = (Vec::new(), &state.live);
        let all: BTreeMap<u32, u64> = live.segments().chain(counted.segments()).collect();
        for number in all.into_keys() {
            let (kept, needed) = (live.bytes(number), counted.bytes(number));
            if kept < needed || (kept > needed && !live.is_inexact()) {
                let shard = self.0.number;
                wrong.push(format!(
                    "shard {shard}, segment {number}: {kept} live bytes are counted, {needed} needed"
                ));
            }
        }
        let sums = live.namespaces.sums().chain(counted.namespaces.sums());
        for tag in sums.map(|(tag, _)| tag).collect::<BTreeSet<_>>() {
            let (kept, needed) = (live.namespaces.bytes(tag), counted.namespaces.bytes(tag));
            if kept < needed || (kept > needed && !live.is_inexact()) {
                let (shard, tag) = (self.0.number, tag.0);
                wrong.push(format!(
                    "shard {shard}, namespace {tag:016x}: {kept} bytes are counted, its objects need {needed}"
                ));
            }
        }
        if live.missing() > 0 {
            wrong.push(format!("{} bytes died that were not live", live.missing()));
        }
        Some((wrong, ids))
    }

    /// What the object's entry says that it needs must be what reading it reads.
    async fn audit_object(&self, id: &ObjectId) -> Result<Option<String>> {
        let entry = || self.0.state.borrow().directory.get(id);
        let Ok(Some(before)) = entry() else { return Ok(None) };
        let frames = match load::frames(&self.0, id, &before).await {
            Ok(frames) => frames,
            // Whoever reads the object says so.
            Err(error) if error.kind() == Kind::Corrupt => return Ok(None),
            Err(error) => return Err(error),
        };
        let changed = entry().ok().flatten().as_ref() != Some(&before);
        if changed || before.is_scattered() {
            return Ok(None);
        }
        let read = merged(frames.into_iter().map(Share::from));
        let said = merged(before.needs());
        let differ = || format!("object {id} is said to need {said:?}, and {read:?} is read");
        Ok((read != said).then(differ))
    }
}
