//! Reading an object in parts, as one does that is too large to be in memory: its keys one by one, and in
//! lists up and down, all of one state, be it that of a while ago.

use anyhow::{Result, ensure};
use dormouse_engine::snapshot::Snapshot;
use dormouse_engine::{Contents, Kind, List, ObjectId};

use super::engine::{Client, shard_of};
use super::shared::Mark;
use crate::world::SimEnv;

impl Client {
    /// Reads the object in parts, and once more the next time, when others have committed and the cleaner
    /// has moved what it saw: what is read is the object as it was.
    pub(super) async fn parts(&self, id: &ObjectId) -> Result<()> {
        match self.read_parts(id).await {
            // Reads that fail now and then are tried again by whoever needs them.
            Err(error) if self.checker.shared.lenient.get() => match error.downcast_ref() {
                Some(error) if is_lenient(error) => Ok(()),
                _ => Err(error),
            },
            read => read,
        }
    }

    async fn read_parts(&self, id: &ObjectId) -> Result<()> {
        let kept = self.kept.borrow_mut().take();
        if let Some((snapshot, contents)) = kept {
            // A while ago: there may have been commits, or other objects and the cleaner in its place.
            self.checker.shared.mark(Mark::ReadLater);
            self.compare(&snapshot, &contents).await?;
        }
        let shard = shard_of(&self.shards, id);
        let (one, other) = (shard.snapshot(id).await?, shard.snapshot(id).await?);
        if one.is_whole() || one.version() != other.version() {
            return Ok(());
        }
        self.checker.shared.mark(Mark::ReadInParts);
        let contents = one.into_contents().await?;
        self.checker.reference.borrow_mut().observed(id, &contents)?;
        self.compare(&other, &contents).await?;
        self.checker.shared.count(false);
        *self.kept.borrow_mut() = Some((other, contents));
        Ok(())
    }

    /// What is read of a snapshot is what `contents` holds.
    async fn compare(&self, snapshot: &Snapshot<SimEnv>, contents: &Contents) -> Result<()> {
        let keys: Vec<_> = contents.map.keys().collect();
        let some = [keys.first(), keys.get(keys.len() / 2), keys.last()];
        for key in some.into_iter().flatten() {
            let value = snapshot.get(key).await?;
            ensure!(value.as_ref() == contents.map.get(*key), "a key by itself is not what it is");
            let absent = [key, &b"~"[..]].concat();
            let value = snapshot.get(&absent).await?;
            ensure!(value.as_ref() == contents.map.get(&absent[..]), "a key that is not there is");
            self.checker.shared.count(false);
            self.checker.shared.count(false);
        }
        let middle = keys.get(keys.len() / 2).map_or(&b""[..], |key| key);
        let up = List::all().start(middle);
        let down = List::all().end(middle).reverse().limit(5);
        for list in [List::all(), List::all().reverse(), up, down] {
            let mut wanted = Vec::new();
            if let Some(range) = list.resolve()? {
                range.visit(&contents.map, |key, value| wanted.push((key.clone(), value.clone())));
            }
            let (mut scan, mut read) = (snapshot.scan(&list)?, Vec::new());
            while let Some(some) = scan.next().await? {
                read.extend(some);
            }
            ensure!(read == wanted, "{list:?} gives {} keys, not the {}", read.len(), wanted.len());
            self.checker.shared.count(false);
        }
        Ok(())
    }
}

fn is_lenient(error: &dormouse_engine::Error) -> bool {
    matches!(error.kind(), Kind::Corrupt | Kind::Retry | Kind::Poisoned)
}
