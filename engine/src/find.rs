//! Finding an object in a shard: as a whole, or, of a large one, in parts.

use crate::contents::Contents;
use crate::directory::Entry;
use crate::env::Env;
use crate::error::Result;
use crate::ids::ObjectId;
use crate::load;
use crate::shard::{Shard, damaged, named};
use crate::snapshot::Snapshot;

/// An object.
pub enum Found<E: Env> {
    /// All of it.
    Whole(Contents),
    /// One that is so large that it is better read in parts.
    Large(Snapshot<E>),
}

impl<E: Env> Shard<E> {
    /// Reads the whole object as it is durably, waiting for its commits in flight, but not for those
    /// made later. One that does not exist is empty, at version [`NONE`](crate::Version::NONE).
    ///
    /// Errors: `Corrupt`, with the object's id and the place; `Retry` (a file of the log can't be opened now);
    /// `Poisoned`.
    pub async fn load(&self, id: &ObjectId) -> Result<Contents> {
        match self.find(id).await? {
            Found::Whole(contents) => Ok(contents),
            Found::Large(snapshot) => snapshot.into_contents().await,
        }
    }

    /// As [`Shard::load`], but a large object is not read as a whole.
    ///
    /// Errors: as [`Shard::load`].
    pub async fn find(&self, id: &ObjectId) -> Result<Found<E>> {
        match self.newest(id).await? {
            Ok(Some(entry)) if !entry.is_tree() && !entry.damaged => {
                let _pins = load::pins(&self.0, &entry);
                let read = load::load_chain(&self.0, id, entry.chain(), entry.stamp()).await;
                read.map(|(over, _)| Found::Whole(over.contents))
            }
            newest => {
                let snapshot = self.read_newest(id, newest).await?;
                match snapshot.is_whole() {
                    true => snapshot.into_contents().await.map(Found::Whole),
                    false => Ok(Found::Large(snapshot)),
                }
            }
        }
    }

    /// The object as it is durably, waiting for its commits in flight, but not for those made later. Of a large
    /// one the root is read, and a page when a key in it is asked for.
    ///
    /// Errors: as [`Shard::load`].
    pub async fn snapshot(&self, id: &ObjectId) -> Result<Snapshot<E>> {
        let newest = self.newest(id).await?;
        self.read_newest(id, newest).await
    }

    async fn read_newest(
        &self,
        id: &ObjectId,
        newest: Result<Option<Entry>>,
    ) -> Result<Snapshot<E>> {
        match newest.map_err(|error| named(id, &error))? {
            None => Ok(Snapshot::empty(&self.0, id)),
            Some(entry) if entry.damaged => Err(damaged(id)),
            Some(entry) => Snapshot::read(&self.0, id, &entry).await,
        }
    }

    /// Whether the object is so large that it is better read in parts; as [`Shard::snapshot`] would find it.
    ///
    /// Errors: `Poisoned`.
    pub(crate) async fn is_large(&self, id: &ObjectId) -> Result<bool> {
        // What is wrong with it is for whoever reads it.
        Ok(matches!(self.newest(id).await?, Ok(Some(entry)) if entry.is_tree()))
    }

    /// The entry of the newest durable state, once the commits that are in flight now have ended.
    async fn newest(&self, id: &ObjectId) -> Result<Result<Option<Entry>>> {
        self.settled(id).await?;
        let warming = self.0.state.borrow().directory.warm(id);
        if let Some(warming) = warming {
            warming.await;
            // A commit that was made meanwhile is no part of it.
            self.check_healthy()?;
        }
        Ok(self.0.state.borrow().directory.get(id))
    }
}
