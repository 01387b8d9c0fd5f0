//! What becomes of the commits that wait where some of them find no room: those that bring something are
//! refused, and what only frees goes on without them, though they shared batches.
//!
//! Nothing that stays builds on anything that goes: frames name frames of their own object alone, and a commit
//! never has a claim on more than one that waits before it ([`Claim`]).

use std::collections::BTreeMap;

use super::queue::{OPEN, OpenBatch, Queue, Start, Update};
use super::reserve::Claim;
use crate::directory::IdMap;
use crate::error::Error;
use crate::format::frame::{ADDRESS_BYTES, Address};
use crate::format::{get, len_u32, put};
use crate::ids::NamespaceTag;
use crate::shard::Pending;

/// Where the frames of a batch began, and where those that are left begin now.
type Moved = Vec<(u32, u32)>;

impl Queue {
    /// Refuses all that waits and has a claim on no more than `claim`.
    pub(crate) fn refuse(&mut self, claim: Claim, error: &Error) {
        let mut moved = BTreeMap::new();
        for batch in &mut self.batches {
            let left = batch.keep_beyond(claim);
            moved.insert(OPEN | batch.ordinal, left);
            for refused in Claim::ALL.into_iter().filter(|refused| *refused <= claim) {
                let outcome = batch.outcomes.take(refused);
                outcome.into_iter().for_each(|outcome| outcome.resolve(Err(error.clone())));
            }
        }
        self.batches.retain(|batch| !batch.starts.is_empty());
        self.bytes = self.batches.iter().map(|batch| batch.frames.len()).sum();
        self.batches.iter_mut().for_each(|batch| batch.relocate(&moved));
    }

    /// Bytes that wait, with the namespaces for which they count.
    pub(crate) fn waiting(&self) -> impl Iterator<Item = (NamespaceTag, u64)> + '_ {
        let updates = self.batches.iter().flat_map(|batch| &batch.updates);
        updates.map(|update| (update.namespace(), update.waits.into()))
    }

    /// The newest state of each object of which something waits.
    pub(crate) fn pending(&mut self) -> IdMap<Pending> {
        let mut pending = IdMap::default();
        for batch in &mut self.batches {
            let updates = std::mem::take(&mut batch.updates);
            for Update { id, entry, claim, .. } in &updates {
                let (ordinal, outcome) = (batch.ordinal, batch.outcome(*claim));
                let entry = entry.clone();
                pending.insert(*id, Pending { entry, ordinal, claim: *claim, outcome });
            }
            batch.updates = updates;
        }
        pending
    }
}

impl OpenBatch {
    /// Takes out the frames and updates that have a claim on no more than `claim`.
    fn keep_beyond(&mut self, claim: Claim) -> Moved {
        let (frames, ids) = (std::mem::take(&mut self.frames), std::mem::take(&mut self.ids));
        let (fixups, shares) = (std::mem::take(&mut self.fixups), std::mem::take(&mut self.shares));
        let starts = std::mem::take(&mut self.starts);
        self.claim = Claim::Free;
        let mut moved = Moved::new();
        for (index, start) in starts.iter().enumerate() {
            if start.claim <= claim {
                continue;
            }
            self.claim = self.claim.min(start.claim);
            let end = starts.get(index + 1).map_or(len_u32(frames.len()), |next| next.at);
            let at = len_u32(self.frames.len());
            self.frames.extend_from_slice(&frames[start.at as usize..end as usize]);
            let within = |offset: &&u32| (start.at..end).contains(*offset);
            let place = |offset: &u32| offset - start.at + at;
            self.fixups.extend(fixups.iter().filter(within).map(place));
            self.shares.extend(shares.iter().filter(within).map(place));
            let id = ids[start.id as usize];
            if self.ids.last() != Some(&id) {
                self.ids.push(id);
            }
            self.starts.push(Start { at, id: len_u32(self.ids.len() - 1), ..*start });
            moved.push((start.at, at));
        }
        self.updates.retain(|update| update.claim > claim);
        moved
    }

    /// Corrects the addresses of frames that are elsewhere now.
    fn relocate(&mut self, moved: &BTreeMap<u32, Moved>) {
        let place = |address: Address| {
            let Some(starts) = moved.get(&address.segment) else { return address };
            let found = starts.binary_search_by_key(&address.offset, |(before, _)| *before);
            let (_, offset) = starts[found.expect("nothing that stays builds on what goes")];
            Address { offset, ..address }
        };
        for at in &self.fixups {
            let at = *at as usize;
            if let Some(address) = Address::decode(&get(&self.frames, at)) {
                put(&mut self.frames[at..at + ADDRESS_BYTES], 0, &place(address).encode());
            }
        }
        for update in &mut self.updates {
            for entry in [&mut update.entry, &mut update.dead].into_iter().flatten() {
                entry.relocate(place);
            }
            update.parts.iter_mut().for_each(|part| *part = place(*part));
        }
    }
}
