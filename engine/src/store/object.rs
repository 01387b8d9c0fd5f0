//! [`Object`]: one object of a store, and [`Keys`], a walk over its keys.

use std::sync::Arc;

use bytes::Bytes;

use super::Store;
use super::serve::Request;
use crate::batch::Batch;
use crate::call::Call;
use crate::contents::Contents;
use crate::error::{Kind, Result};
use crate::ids::{ObjectId, Version};
use crate::list::{List, Range};

/// One object of a [`Store`]. Cheap to clone; `Send + Sync`. Everything is asked for when the
/// method returns, and in that order.
#[derive(Clone)]
pub struct Object {
    store: Store,
    id: ObjectId,
}

impl Object {
    pub(super) fn new(store: Store, id: ObjectId) -> Self {
        Self { store, id }
    }

    /// Its id.
    pub fn id(&self) -> ObjectId {
        self.id
    }

    fn send<T>(
        &self,
        lost: Kind,
        request: impl FnOnce(super::serve::Reply<T>) -> Request,
    ) -> Call<T> {
        self.store.send(self.id.shard(self.store.0.shards), lost, request)
    }

    /// Commits a batch; its version, once it is durable as a whole (E1, E2).
    ///
    /// Errors: those of [`Shard::commit`](crate::Shard::commit). After `Unknown` read again: it
    /// may have happened.
    pub fn commit(&self, batch: Batch) -> Call<Version> {
        let id = self.id;
        self.send(Kind::Unknown, |reply| Request::Commit { id, batch, reply })
    }

    /// The value of a key.
    ///
    /// Everything that is read is durable, and holds what was committed before this call.
    /// Errors: `Corrupt`, with the object's id and the place; `Overloaded`, `Poisoned`, `Closed`.
    pub fn get(&self, key: impl AsRef<[u8]>) -> Call<Option<Bytes>> {
        let (id, key) = (self.id, Bytes::copy_from_slice(key.as_ref()));
        self.send(Kind::Closed, |reply| Request::Get { id, key, reply })
    }

    /// All that it stores, at one version; empty at [`Version::NONE`] if it does not exist.
    ///
    /// Errors: as [`Object::get`].
    pub fn contents(&self) -> Call<Arc<Contents>> {
        let id = self.id;
        self.send(Kind::Closed, |reply| Request::Contents { id, reply })
    }

    /// The version of its last commit and its alarm in milliseconds since 1970, without reading it.
    /// An object that lost its last key without being read may still have a version.
    ///
    /// Errors: `Overloaded`, `Poisoned`, `Closed`.
    pub fn head(&self) -> Call<(Version, Option<u64>)> {
        let id = self.id;
        self.send(Kind::Closed, |reply| Request::Head { id, reply })
    }

    /// Walks over keys and values as they are now, whatever is committed meanwhile.
    pub fn list(&self, list: List) -> Keys {
        Keys { state: Walk::Asked(self.contents(), list) }
    }
}

/// A walk over the keys of an object at one version.
pub struct Keys {
    state: Walk,
}

enum Walk {
    Asked(Call<Arc<Contents>>, List),
    Going(Arc<Contents>, Range),
    Done,
}

impl Keys {
    /// The next key and its value.
    ///
    /// Errors: as [`Object::get`]; `Invalid` for a list that makes no sense. After an error the
    /// walk is over.
    /// Cancel: nothing is lost; call it again.
    pub async fn next(&mut self) -> Result<Option<(Bytes, Bytes)>> {
        if let Walk::Asked(call, list) = &mut self.state {
            let range = list.resolve();
            let contents = call.await;
            self.state = Walk::Done;
            let Some(range) = range? else { return Ok(None) };
            self.state = Walk::Going(contents?, range);
        }
        let Walk::Going(contents, range) = &mut self.state else { return Ok(None) };
        let next = range.next(&contents.map);
        if next.is_none() {
            self.state = Walk::Done;
        }
        Ok(next)
    }

    /// The same walk without async: blocks where the other one waits.
    pub fn blocking(mut self) -> impl Iterator<Item = Result<(Bytes, Bytes)>> {
        std::iter::from_fn(move || crate::call::wait(self.next()).transpose())
    }
}
