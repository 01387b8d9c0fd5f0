//! [`Object`]: one object of a store, and [`Keys`], a walk over its keys.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;

use super::Store;
use super::scan::Listed;
use super::serve::{Request, Walked};
use crate::batch::Batch;
use crate::call::Call;
use crate::contents::Contents;
use crate::error::{Kind, Result};
use crate::ids::{ObjectId, Version};
use crate::list::{List, Range};

/// Keys that a walk looks up at a time, of what is in memory.
const AT_HAND: usize = 128;

/// One object of a [`Store`]. Cheap to clone; `Send + Sync`. Everything is asked for when the
/// method returns. Commits and deletes of one thread happen in the order in which they were asked
/// for; a read holds all of them that were asked for before it, and perhaps later ones.
///
/// ```
/// use dormouse_engine::{Batch, ObjectId, Options, Store, Version};
///
/// # let dir = std::env::temp_dir().join(format!("dormouse-object-{}", std::process::id()));
/// # let store = Store::open(&dir, Options::default())?;
/// let room = store.object(ObjectId::from_bytes([7; 32]));
/// let batch = Batch::new().put("topic", "mice").put("msg:1", "hello").put("msg:2", "you");
/// let version = room.commit(batch.set_alarm(4_102_444_800_000)).wait()?;
/// assert_eq!(room.get("topic").wait()?.expect("put above"), "mice");
/// assert_eq!(room.head().wait()?, (version, Some(4_102_444_800_000)));
/// assert_eq!(room.delete_prefix("msg:").wait()?, 2);
/// room.delete().wait()?; // the topic and the alarm
/// assert_eq!(room.contents().wait()?.version, Version::NONE); // it does not exist any more
/// # store.close().wait()?;
/// # std::fs::remove_dir_all(dir).expect("made above");
/// # Ok::<(), dormouse_engine::Error>(())
/// ```
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

    /// Commits a batch; its version, once it is durable as a whole (E1, E2), or sooner where the
    /// store's [`Durability`](super::Durability) says so.
    ///
    /// Errors: `Invalid` (a limit, with a code), `Conflict` ([`Batch::only_if`]), `NoSpace` (a full disk, or `object-full`), `Retry`,
    /// `Overloaded`, `Corrupt` (a damaged object takes only what deletes all), `Poisoned`, `Closed`:
    /// nothing happened. `Unknown`: it may have happened; read again, once the store is reopened.
    pub fn commit(&self, batch: Batch) -> Call<Version> {
        let (id, under_way) = (self.id, self.store.0.published.begin(&self.id));
        self.send(Kind::Unknown, |reply| Request::Commit { id, batch, under_way, reply })
    }

    /// Removes all keys and the alarm as one commit; its version, once it is durable. Also for an
    /// object of which nothing can be read any more (`Corrupt`): it can be made anew afterwards.
    ///
    /// Errors: as [`Object::commit`].
    pub fn delete(&self) -> Call<Version> {
        self.commit(Batch::new().delete_all().delete_alarm())
    }

    /// Removes the keys that begin with `prefix`, all of them for an empty one, as one commit; how
    /// many there were, once that is durable. The alarm stays. It takes what was committed before
    /// it, and nothing that is committed after it.
    ///
    /// Errors: as [`Object::commit`], and `Corrupt`: the object is read for it.
    pub fn delete_prefix(&self, prefix: impl AsRef<[u8]>) -> Call<u64> {
        let (id, prefix) = (self.id, Bytes::copy_from_slice(prefix.as_ref()));
        let under_way = self.store.0.published.begin(&id);
        self.send(Kind::Unknown, |reply| Request::DeletePrefix { id, prefix, under_way, reply })
    }

    /// The value of a key.
    ///
    /// What is read holds what was committed before this call, and is durable, unless commits are
    /// answered before they are ([`Durability::OnFlush`](super::Durability::OnFlush)).
    /// Errors: `Corrupt`, with the object's id and the place; `Overloaded`, `Poisoned`, `Closed`.
    pub fn get(&self, key: impl AsRef<[u8]>) -> Call<Option<Bytes>> {
        let (id, key) = (self.id, key.as_ref());
        if let Some(value) = self.store.0.published.read(&id, |all| all.map.get(key).cloned()) {
            return Call::done(Ok(value));
        }
        let key = Bytes::copy_from_slice(key);
        self.send(Kind::Closed, |reply| Request::Get { id, key, reply })
    }

    /// All that it stores, at one version; empty at [`Version::NONE`] if it does not exist.
    ///
    /// Errors: as [`Object::get`].
    pub fn contents(&self) -> Call<Arc<Contents>> {
        let id = self.id;
        if let Some(contents) = self.store.0.published.read(&id, Arc::clone) {
            return Call::done(Ok(contents));
        }
        self.send(Kind::Closed, |reply| Request::Contents { id, reply })
    }

    /// The version of its last commit and its alarm in milliseconds since 1970, without reading it.
    /// An object that lost its last key without being read may still have a version.
    ///
    /// Errors: `Corrupt` (its part of the directory), `Overloaded`, `Poisoned`, `Closed`.
    pub fn head(&self) -> Call<(Version, Option<u64>)> {
        let id = self.id;
        self.send(Kind::Closed, |reply| Request::Head { id, reply })
    }

    /// Walks over the keys and values of one state, whatever is committed meanwhile. It is a state
    /// as any read gives it, no older than this call and no newer than the first key.
    ///
    /// Of an object that is too large to be read as a whole a few pages are held at a time, and the state
    /// stays on disk until the walk is over, or dropped; it ends with `Retry` where nobody went on for a minute.
    pub fn list(&self, list: List) -> Keys {
        let (id, asked) = (self.id, list.clone());
        let walked = match self.store.0.published.read(&id, Arc::clone) {
            Some(contents) => Call::done(Ok(Walked::Whole(contents))),
            None => self.send(Kind::Closed, |reply| Request::List { id, list: asked, reply }),
        };
        Keys { state: Walk::Asked(walked, list), at_hand: VecDeque::new() }
    }
}

/// A walk over the keys of an object at one version.
///
/// ```
/// use dormouse_engine::{Batch, List, ObjectId, Options, Store};
///
/// # let dir = std::env::temp_dir().join(format!("dormouse-keys-{}", std::process::id()));
/// # let store = Store::open(&dir, Options::default())?;
/// let room = store.object(ObjectId::from_bytes([7; 32]));
/// let batch = (1..=5).fold(Batch::new(), |batch, n| batch.put(format!("msg:{n}"), "hello"));
/// room.commit(batch.put("topic", "mice")).wait()?;
/// let mut newest = room.list(List::prefix("msg:").reverse().limit(2)).blocking();
/// assert_eq!(newest.next().expect("five messages")?.0, "msg:5");
/// room.delete().wait()?;
/// assert_eq!(newest.next().expect("the state that it began with")?.0, "msg:4");
/// assert!(newest.next().is_none());
/// # store.close().wait()?;
/// # std::fs::remove_dir_all(dir).expect("made above");
/// # Ok::<(), dormouse_engine::Error>(())
/// ```
pub struct Keys {
    state: Walk,
    /// Keys and values that come first, of what is in memory.
    at_hand: VecDeque<(Bytes, Bytes)>,
}

enum Walk {
    Asked(Call<Walked>, List),
    Going(Arc<Contents>, Range),
    Paged(Listed),
    Done,
}

impl Keys {
    /// The next key and its value.
    ///
    /// Errors: as [`Object::get`]; `Invalid` for a list that makes no sense. After an error the
    /// walk is over.
    /// Cancel: nothing is lost; call it again.
    pub async fn next(&mut self) -> Result<Option<(Bytes, Bytes)>> {
        if let Some(next) = self.next_at_hand() {
            return Ok(Some(next));
        }
        if let Walk::Asked(call, list) = &mut self.state {
            let range = list.resolve();
            let walked = call.await;
            self.state = Walk::Done;
            let Some(range) = range? else { return Ok(None) };
            self.state = match walked? {
                Walked::Whole(contents) => Walk::Going(contents, range),
                Walked::Paged(listed) => Walk::Paged(listed),
            };
        }
        let next = match &mut self.state {
            Walk::Going(..) => Ok(self.next_at_hand()),
            Walk::Paged(listed) => listed.next().await,
            Walk::Asked(..) | Walk::Done => Ok(None),
        };
        if !matches!(next, Ok(Some(_))) {
            self.state = Walk::Done;
        }
        next
    }

    /// The same, where it is in memory.
    fn next_at_hand(&mut self) -> Option<(Bytes, Bytes)> {
        if let (true, Walk::Going(contents, range)) = (self.at_hand.is_empty(), &mut self.state) {
            range.take(&contents.map, AT_HAND, |key, value| {
                self.at_hand.push_back((key.clone(), value.clone()));
            });
        }
        self.at_hand.pop_front()
    }

    /// The same walk without async: blocks where the other one waits.
    pub fn blocking(mut self) -> impl Iterator<Item = Result<(Bytes, Bytes)>> {
        std::iter::from_fn(move || match self.next_at_hand() {
            Some(next) => Some(Ok(next)),
            None => crate::call::wait(self.next()).transpose(),
        })
    }
}
