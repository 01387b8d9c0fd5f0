//! Reads of what is not in memory: a snapshot of the object is opened, and what is read of it is learned.
//!
//! A read gives what was there at its call. What was written before is in memory until it is durable, and a
//! read asks only for what is not in memory at its call; so it needs a snapshot with none of what is
//! written later to those keys. Therefore:
//!
//! - A flush waits for a snapshot that is being opened, and for no more: what is read of it afterwards is not
//!   changed by any commit.
//! - Until a flush begins, reads share the snapshot that the first of them opens, as long as one of them is
//!   under way. A flush that waits keeps it, so that it waits for one opening alone.
//! - Reads of one key share one read, if nothing was forgotten in between: what was written, made
//!   durable and forgotten meanwhile is not what the first of them reads. For the same reason such a read
//!   learns nothing.
//!
//! Whoever waits drives the read; dropped by all, it ends, and nothing was changed.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use bytes::Bytes;
use dormouse_engine::{Error, Host, Kind, Result};
use futures_util::FutureExt;
use futures_util::future::{LocalBoxFuture, Shared, WeakShared, try_join_all};

use crate::cache::Inner;
use crate::entries::Entries;
use crate::flush::{Backing, Stored};
use crate::keys::Missing;
use crate::ranges::{Span, only};

/// A snapshot that is being opened, or is open.
pub(crate) type Opening = Shared<LocalBoxFuture<'static, Result<Rc<dyn Stored>>>>;
type OneKey = Shared<LocalBoxFuture<'static, Result<Option<Bytes>>>>;
type WeakOpening = WeakShared<LocalBoxFuture<'static, Result<Rc<dyn Stored>>>>;
type WeakOneKey = WeakShared<LocalBoxFuture<'static, Result<Option<Bytes>>>>;

/// Reads under way that others may share.
#[derive(Default)]
pub(crate) struct Reads(RefCell<Option<Box<Table>>>);

#[derive(Default)]
struct Table {
    opening: Option<WeakOpening>,
    /// By key, with the epoch that they learn in.
    keys: BTreeMap<Bytes, (u64, WeakOneKey)>,
}

impl Reads {
    /// The snapshot that is being opened or read, if no flush began since.
    fn opening(&self) -> Option<Opening> {
        let opening = self.0.borrow().as_ref()?.opening.as_ref()?.upgrade()?;
        // If it failed the next one may succeed.
        (!matches!(opening.peek(), Some(Err(_)))).then_some(opening)
    }

    /// The one that is not open yet.
    pub(crate) fn being_opened(&self) -> Option<Opening> {
        self.opening().filter(|opening| opening.peek().is_none())
    }

    /// A flush begins.
    pub(crate) fn flush_begins(&self) {
        let mut table = self.0.borrow_mut();
        let Some(reads) = table.as_mut() else { return };
        reads.opening = None;
        reads.keys.retain(|_, (_, read)| read.upgrade().is_some());
        if reads.keys.is_empty() {
            *table = None;
        }
    }
}

impl<E: Host, B: Backing> Inner<E, B> {
    fn open(self: &Rc<Self>) -> Opening {
        if let Some(opening) = self.reads.opening() {
            return opening;
        }
        let (inner, attempts) = (self.clone(), self.limits.flush_attempts_max);
        let opening =
            async move { retried(attempts, async || inner.backing.snapshot().await).await };
        let opening = opening.boxed_local().shared();
        self.reads.0.borrow_mut().get_or_insert_default().opening = opening.downgrade();
        opening
    }

    /// Reads a key that is not in memory, as it is now; `keeps` it if others are to find it there.
    pub(crate) fn fetch(self: &Rc<Self>, key: &[u8], keeps: bool) -> OneKey {
        let epoch = self.state.borrow().epoch();
        let opening = self.open();
        let mut table = self.reads.0.borrow_mut();
        let keys = &mut table.get_or_insert_default().keys;
        let under_way = keys.get(key).filter(|(its_epoch, _)| *its_epoch == epoch);
        if let Some(read) = under_way.and_then(|(_, read)| read.upgrade()) {
            return read;
        }
        let (inner, owned) = (self.clone(), Bytes::copy_from_slice(key));
        let key = owned.clone();
        let read = async move {
            let stored = opening.await?;
            let attempts = inner.limits.flush_attempts_max;
            let value = retried(attempts, async || stored.get(&key).await).await?;
            if keeps {
                let found = value.iter().map(|value| (key.clone(), value.clone()));
                inner.learn(epoch, only(&key), &found.collect::<Vec<_>>());
            }
            Ok(value)
        };
        let read = read.boxed_local().shared();
        // Those that ended go when there are twice as many.
        if keys.len().is_power_of_two() {
            keys.retain(|_, (_, read)| read.upgrade().is_some());
        }
        keys.extend(read.downgrade().map(|weak| (owned, (epoch, weak))));
        read
    }

    /// Reads keys at once: those that are there.
    pub(crate) fn fetch_all(
        self: &Rc<Self>,
        keys: &[Bytes],
        keeps: bool,
    ) -> impl Future<Output = Result<Vec<(Bytes, Bytes)>>> + use<E, B> {
        let read = |key: &Bytes| {
            let (key, read) = (key.clone(), self.fetch(key, keeps));
            async move { Ok::<_, Error>(read.await?.map(|value| (key, value))) }
        };
        let reads = try_join_all(keys.iter().map(read).collect::<Vec<_>>());
        async move { Ok(reads.await?.into_iter().flatten().collect()) }
    }

    /// Counts those keys that are there, of which that is not known.
    pub(crate) fn count(
        self: &Rc<Self>,
        mut keys: Vec<Bytes>,
    ) -> impl Future<Output = Result<usize>> + use<E, B> {
        let (opening, attempts) = (self.open(), self.limits.flush_attempts_max);
        keys.sort_unstable();
        async move {
            let stored = opening.await?;
            retried(attempts, async || stored.count(&keys).await).await
        }
    }

    /// Reads what a list misses, and gives what it gives.
    pub(crate) fn fill(
        self: &Rc<Self>,
        missing: Missing,
        keeps: bool,
    ) -> impl Future<Output = Result<Entries>> + use<E, B> {
        let (inner, opening) = (self.clone(), self.open());
        async move {
            let stored = opening.await?;
            let attempts = inner.limits.flush_attempts_max;
            let (mut read, mut bytes) = (Vec::new(), 0);
            for span in missing.spans() {
                let mut rest = Some(span);
                while let Some(span) = rest.take() {
                    let Some(list) = missing.ask(&span, read.len()) else { break };
                    let some = retried(attempts, async || stored.list(&list).await).await?;
                    bytes += some.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>();
                    let (known, left) = missing.reached(span, &list, &some);
                    // A list of much is not to push out everything else.
                    if keeps && bytes <= inner.limits.kept_bytes_max / 2 {
                        inner.learn(missing.epoch, known, &some);
                    }
                    read.extend(missing.news(some));
                    rest = left;
                }
            }
            inner.trim();
            Ok(missing.with(read))
        }
    }

    fn learn(&self, epoch: u64, span: Span, entries: &[(Bytes, Bytes)]) {
        self.state.borrow_mut().learn(epoch, span, entries);
        self.trim();
    }

    fn trim(&self) {
        self.state.borrow_mut().trim(self.limits.kept_bytes_max);
    }
}

/// Reads again while the engine says that it may be tried again.
async fn retried<T>(attempts: u32, mut read: impl AsyncFnMut() -> Result<T>) -> Result<T> {
    let mut attempt = 1;
    loop {
        match read().await {
            Err(error) if error.kind() == Kind::Retry && attempt < attempts => attempt += 1,
            result => return result,
        }
    }
}
