//! What is in a store: every object, dormant or not, without reading any of them.

use std::sync::Arc;

use super::Store;
use super::serve::Request;
use crate::directory::Known;
use crate::error::{Kind, Result};
use crate::ids::{ObjectId, Version};

/// An object as the directory knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectInfo {
    /// Its id.
    pub id: ObjectId,
    /// Its namespace, where known.
    pub namespace: Option<Arc<str>>,
    /// The name that its id was made from, where known.
    pub name: Option<Arc<str>>,
    /// The version of its last commit.
    pub version: Version,
    /// When that was made by the wall clock, in milliseconds since 1970.
    pub written_ms: u64,
    /// Its alarm, in milliseconds since 1970.
    pub alarm: Option<u64>,
    /// Bytes of the frames that hold it.
    pub log_bytes: u64,
    /// Whether it can't be read any more (E6).
    pub damaged: bool,
}

impl ObjectInfo {
    /// `None` for an object that was deleted.
    pub(crate) fn new(id: ObjectId, known: Known) -> Option<Self> {
        let entry = known.entry?;
        Some(Self {
            id,
            namespace: known.origin.namespace,
            name: known.origin.name,
            version: entry.version,
            written_ms: entry.written_ms,
            alarm: entry.alarm,
            log_bytes: entry.log_bytes(),
            damaged: entry.damaged,
        })
    }
}

/// Which objects a walk gives: all, unless said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Only those of this namespace.
    pub namespace: Option<Arc<str>>,
    /// Only those whose name begins so.
    pub name_prefix: Option<Arc<str>>,
}

impl Filter {
    /// Whether the walk gives this object.
    pub fn takes(&self, object: &ObjectInfo) -> bool {
        let named =
            |wanted: &str| object.name.as_deref().is_some_and(|name| name.starts_with(wanted));
        self.namespace.as_deref().is_none_or(|wanted| object.namespace.as_deref() == Some(wanted))
            && self.name_prefix.as_deref().is_none_or(named)
    }
}

/// A stretch of a walk over a shard's objects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// Those that the filter takes.
    pub objects: Vec<ObjectInfo>,
    /// Behind which object the walk goes on; `None` at its end.
    pub next: Option<ObjectId>,
}

/// A walk over the objects of a store.
pub struct Objects {
    store: Store,
    filter: Filter,
    shard: u16,
    page: std::vec::IntoIter<ObjectInfo>,
    /// Behind which object of this shard the next page begins.
    after: Option<ObjectId>,
}

impl Objects {
    pub(super) fn new(store: Store) -> Self {
        let (filter, page) = (Filter::default(), Vec::new().into_iter());
        Self { store, filter, shard: 0, page, after: None }
    }

    /// Only those of this namespace. To be said before the first is asked for.
    pub fn namespace(mut self, namespace: &str) -> Self {
        self.filter.namespace = Some(namespace.into());
        self
    }

    /// Only those whose name begins so. To be said before the first is asked for.
    pub fn name_prefix(mut self, prefix: &str) -> Self {
        self.filter.name_prefix = Some(prefix.into());
        self
    }

    /// The next object.
    ///
    /// Errors: `Overloaded` (ask again, nothing is skipped), `Closed`.
    /// Cancel: nothing is lost; call it again.
    pub async fn next(&mut self) -> Result<Option<ObjectInfo>> {
        loop {
            if let Some(object) = self.page.next() {
                return Ok(Some(object));
            }
            if self.shard == self.store.0.shards {
                return Ok(None);
            }
            let (shard, after, filter) = (self.shard, self.after, self.filter.clone());
            let ask = |reply| Request::Objects { shard, filter, after, reply };
            let page = self.store.send(shard, Kind::Closed, ask).await?;
            if page.next.is_none() {
                self.shard += 1;
            }
            self.after = page.next;
            self.page = page.objects.into_iter();
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
