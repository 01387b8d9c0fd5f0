//! [`Objects`]: a walk over all objects of a store, page by page.

use super::serve::Request;
use super::{ObjectInfo, Store};
use crate::error::{Kind, Result};
use crate::ids::ObjectId;

/// A walk over all objects of a store.
pub struct Objects {
    store: Store,
    shard: u16,
    page: std::vec::IntoIter<ObjectInfo>,
    /// The last one given of this shard.
    after: Option<ObjectId>,
}

impl Objects {
    pub(super) fn new(store: Store) -> Self {
        Self { store, shard: 0, page: Vec::new().into_iter(), after: None }
    }

    /// The next object.
    ///
    /// Errors: `Overloaded` (ask again, nothing is skipped), `Closed`.
    /// Cancel: nothing is lost; call it again.
    pub async fn next(&mut self) -> Result<Option<ObjectInfo>> {
        loop {
            if let Some(object) = self.page.next() {
                self.after = Some(object.id);
                return Ok(Some(object));
            }
            if self.shard == self.store.0.shards {
                return Ok(None);
            }
            let (shard, after) = (self.shard, self.after);
            let ask = |reply| Request::Objects { shard, after, reply };
            let page = self.store.send(shard, Kind::Closed, ask).await?;
            if page.is_empty() {
                self.shard += 1;
                self.after = None;
            }
            self.page = page.into_iter();
        }
    }

    /// The same walk without async: blocks where the other one waits. Ends after an error.
    pub fn blocking(mut self) -> impl Iterator<Item = Result<ObjectInfo>> {
        let mut failed = false;
        std::iter::from_fn(move || {
            if failed {
                return None;
            }
            let next = crate::call::wait(self.next()).transpose();
            failed = matches!(next, Some(Err(_)));
            next
        })
    }
}
