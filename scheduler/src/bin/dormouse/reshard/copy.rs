//! Copies every object of a store into a new one, and compares the two.

use std::collections::VecDeque;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use dormouse_engine::contents::Origin;
use dormouse_engine::{
    Batch, Call, Contents, Filter, Limits, ObjectId, ObjectInfo, Options, Store, Version,
};

use crate::access::{Opened, RealShard};
use crate::{dump, print};

/// Bytes of keys and values in one commit, but for the last value: an object with more is copied in several.
const COMMIT_BYTES: usize = 16 << 20;
/// Bytes that wait to be durable.
const IN_FLIGHT_BYTES: usize = 48 << 20;

const _: () = assert!(COMMIT_BYTES + (1 << 20) < Limits::PRODUCTION.commit_bytes_max);
const _: () = assert!(IN_FLIGHT_BYTES + COMMIT_BYTES < Limits::PRODUCTION.queue_bytes_max);

/// Copies the store into a new one in `dir`, which it closes; how many objects there are.
///
/// Errors: anything that can't be read, written or is not the same afterwards.
pub(super) async fn copy(opened: &Opened, dir: &Path, shards: u16) -> Result<u64> {
    let available = std::thread::available_parallelism().map_or(1, usize::from);
    let options = Options { cores: Some(available), shards: Some(shards), ..Options::default() };
    let old = Old::open(opened).await?;
    let open = || Store::open(dir, options.clone()).with_context(|| dir.display().to_string());
    let new = open()?;
    old.copy(&new).await?;
    new.close().await?;
    // Opened anew, so that what is compared is what is on the disk.
    let new = open()?;
    let objects = old.compare(&new).await?;
    new.close().await?;
    for shard in old.shards {
        shard.close().await?;
    }
    Ok(objects)
}

/// The store that is copied, open for reading.
struct Old {
    shards: Vec<RealShard>,
    ids: Vec<ObjectId>,
}

impl Old {
    async fn open(opened: &Opened) -> Result<Self> {
        let shards = opened.shards().await?;
        if let Some(error) = shards.iter().flat_map(|shard| shard.damaged_blocks()).next() {
            return Err(error.into());
        }
        let ids = dump::sorted_ids(&shards, &Filter::default());
        Ok(Self { shards, ids })
    }

    /// Reads the next few objects. All that is known of where an id comes from is in the contents.
    async fn read(&self, ids: &mut &[ObjectId]) -> Result<Vec<(ObjectId, Contents)>> {
        let mut objects = Vec::new();
        for (id, read) in dump::read_some(&self.shards, ids).await {
            let Some((info, mut contents)) = read? else { continue };
            let ObjectInfo { namespace, name, .. } = info;
            contents.origin.learn(&Origin { namespace, name });
            objects.push((id, contents));
        }
        Ok(objects)
    }

    async fn copy(&self, new: &Store) -> Result<()> {
        let bar = print::bar("copying objects", self.ids.len() as u64);
        let (mut in_flight, mut bytes) = (VecDeque::<(usize, Call<Version>)>::new(), 0);
        let mut rest = &self.ids[..];
        while !rest.is_empty() {
            for (id, contents) in self.read(&mut rest).await? {
                let object = new.object(id);
                for batch in batches(&contents) {
                    let size = batch.ops().map(|op| op_bytes(&op)).sum();
                    // Bounded in number too, as the mailboxes are.
                    while bytes + size > IN_FLIGHT_BYTES || in_flight.len() >= 1024 {
                        let Some((size, call)) = in_flight.pop_front() else { break };
                        call.await?;
                        bytes -= size;
                    }
                    bytes += size;
                    in_flight.push_back((size, object.commit(batch)));
                }
            }
            bar.set_position((self.ids.len() - rest.len()) as u64);
        }
        for (_, call) in in_flight {
            call.await?;
        }
        bar.finish_and_clear();
        Ok(())
    }

    /// How many objects the two have, which are the same.
    async fn compare(&self, new: &Store) -> Result<u64> {
        let bar = print::bar("comparing objects", self.ids.len() as u64);
        let mut objects = 0;
        let mut rest = &self.ids[..];
        while !rest.is_empty() {
            let read = self.read(&mut rest).await?;
            let calls: Vec<_> = read.iter().map(|(id, _)| new.object(*id).contents()).collect();
            for ((id, old), call) in read.iter().zip(calls) {
                let new = call.await?;
                if (&old.map, old.alarm, &old.origin) != (&new.map, new.alarm, &new.origin) {
                    bail!("object {id} is not the same in the new store");
                }
                objects += 1;
            }
            bar.set_position((self.ids.len() - rest.len()) as u64);
        }
        let there = new.stats().await?.total.objects;
        ensure!(there == objects, "the new store has {there} objects instead of {objects}");
        bar.finish_and_clear();
        Ok(objects)
    }
}

fn op_bytes(op: &dormouse_engine::Op<'_>) -> usize {
    match op {
        dormouse_engine::Op::Put(key, value) => key.len() + value.len(),
        dormouse_engine::Op::Delete(key) => key.len(),
    }
}

/// The commits that make an object what it is.
fn batches(contents: &Contents) -> Vec<Batch> {
    let first = Batch::new().with_origin(contents.origin.clone());
    let mut batch = contents.alarm.into_iter().fold(first, Batch::set_alarm);
    let (mut batches, mut bytes) = (Vec::new(), 0);
    for (key, value) in &contents.map {
        if bytes >= COMMIT_BYTES {
            batches.push(std::mem::take(&mut batch));
            bytes = 0;
        }
        batch = batch.put(key, value);
        // As in the log, with what stands before the key.
        bytes += key.len() + value.len() + 7;
    }
    batches.push(batch);
    batches
}
