//! Connections of WebSockets on which nothing is said: a record each, beneath one descriptor that the core's runtime
//! watches, where a connection that is carried has a task, a timer, and a place in tokio.
//!
//! Invariants: a connection that rests has nothing on its way and nothing half read; it goes on when its client or its
//! object says something or is gone, or when its client has been silent for so long that it is to be pinged.
//!
//! A connection is looked at when its rest begins: what came in the meantime is not missed. Whoever wakes it names its
//! place and the number of its rest, so that a place that another has by now is left alone.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use crossbeam_queue::SegQueue;
use dormouse_engine::Host;
use dormouse_engine::io::watched::Watched;
use futures_util::future::{FutureExt, LocalBoxFuture};
use futures_util::task::AtomicWaker;
use tokio::net::TcpStream;

use super::router::{Carried, carry_on};
use super::tokio_net::ReadAhead;
use crate::guests::Stay;
use crate::host::CoreHost;
use crate::net::Rest;

/// The connections of one core that rest.
pub(crate) struct Resting {
    host: CoreHost,
    watched: Watched,
    places: RefCell<Vec<Option<Sleeper>>>,
    free: RefCell<Vec<u32>>,
    /// Their places, by when their clients are to be pinged and by their numbers.
    due: RefCell<BTreeMap<(Duration, u32), u32>>,
    next: Cell<u32>,
    woken: Arc<Woken>,
}

/// One that rests.
struct Sleeper {
    number: u32,
    /// When its client is to be pinged.
    due: Duration,
    stream: OwnedFd,
    carried: Carried,
    stay: Stay,
}

/// A place, and which of those that had it.
#[derive(Clone, Copy)]
struct Key {
    place: u32,
    number: u32,
}

impl From<Key> for u64 {
    fn from(key: Key) -> Self {
        Self::from(key.place) << 32 | Self::from(key.number)
    }
}

impl From<u64> for Key {
    fn from(key: u64) -> Self {
        let [a, b, c, d, rest @ ..] = key.to_be_bytes();
        Self { place: u32::from_be_bytes([a, b, c, d]), number: u32::from_be_bytes(rest) }
    }
}

/// Those whose objects have said something.
#[derive(Default)]
struct Woken {
    keys: SegQueue<Key>,
    task: AtomicWaker,
}

struct RestWaker {
    key: Key,
    woken: Arc<Woken>,
}

impl Wake for RestWaker {
    fn wake(self: Arc<Self>) {
        self.woken.keys.push(self.key);
        self.woken.task.wake();
    }
}

impl Resting {
    /// Where the connections of this core rest, with a task that looks after them.
    ///
    /// Errors: there are no more descriptors.
    pub(crate) fn start(host: &CoreHost) -> io::Result<Rc<Self>> {
        let watched = Watched::new()?;
        let this = Rc::new(Self {
            host: host.clone(),
            watched,
            places: RefCell::default(),
            free: RefCell::default(),
            due: RefCell::default(),
            next: Cell::new(0),
            woken: Arc::default(),
        });
        let tended = Tended(this.clone());
        host.spawn("resting", async move { tended.0.tend().await });
        Ok(this)
    }

    /// Lets a connection rest, whose client has said nothing for `silent`.
    pub(super) fn rest(&self, stream: OwnedFd, carried: Carried, stay: Stay, silent: Duration) {
        let number = self.next.get();
        self.next.set(number.wrapping_add(1));
        let place = self.free.borrow_mut().pop().unwrap_or_else(|| {
            let mut places = self.places.borrow_mut();
            places.push(None);
            u32::try_from(places.len() - 1).expect("fewer than there are descriptors")
        });
        let key = Key { place, number };
        let watched = self.watched.add(&stream, key.into());
        let waker = Waker::from(Arc::new(RestWaker { key, woken: self.woken.clone() }));
        let said = carried.client.poll_ready(&mut Context::from_waker(&waker)).is_ready();
        let left = carried.bounds.silence_time().saturating_sub(silent);
        let due = self.host.now().saturating_add(left);
        let sleeper = Sleeper { number, due, stream, carried, stay };
        self.places.borrow_mut()[place as usize] = Some(sleeper);
        let mut all = self.due.borrow_mut();
        all.insert((due, number), place);
        let is_first = all.first_key_value().is_some_and(|((_, first), _)| *first == number);
        drop(all);
        if let Err(error) = watched {
            tracing::warn!(%error, "a connection can't rest");
            self.wake(key, false);
        } else if said {
            self.wake(key, true);
        } else if is_first {
            // It sleeps for another one, or for none.
            self.woken.task.wake();
        }
    }

    /// Has a connection go on, if it still rests; whether it may rest again. Its client has said nothing until now, as far
    /// as is known: what its object says does not speak for it.
    fn wake(&self, key: Key, again: bool) {
        let sleeper = {
            let mut places = self.places.borrow_mut();
            let there = places.get_mut(key.place as usize);
            there.and_then(|there| there.take_if(|sleeper| sleeper.number == key.number))
        };
        let Some(Sleeper { number, due, stream, carried, stay }) = sleeper else { return };
        self.due.borrow_mut().remove(&(due, number));
        self.free.borrow_mut().push(key.place);
        let _it_may_not_be_watched = self.watched.remove(&stream);
        match TcpStream::from_std(stream.into()) {
            Ok(stream) => {
                let io = ReadAhead::new(Bytes::new(), stream);
                let left = due.saturating_sub(self.host.now());
                let silent = carried.bounds.silence_time().saturating_sub(left);
                let rest = if again { Rest::May { silent } } else { Rest::Never };
                self.host.spawn_boxed("socket", carry_on(io, carried, stay, rest));
            }
            Err(error) => tracing::warn!(%error, "a connection that rested can't go on"),
        }
    }

    /// Looks after those that rest, until it is dropped.
    async fn tend(&self) {
        let mut sleep: Option<(Duration, LocalBoxFuture<'static, ()>)> = None;
        std::future::poll_fn(|cx| {
            self.woken.task.register(cx.waker());
            while let Some(key) = self.woken.keys.pop() {
                self.wake(key, true);
            }
            while let Poll::Ready(found) = self.watched.poll_found(cx) {
                match found {
                    Ok(found) => found.into_iter().for_each(|key| self.wake(key.into(), true)),
                    Err(error) => {
                        tracing::error!(%error, "connections that rest are not watched any more");
                        break;
                    }
                }
            }
            self.poll_due(&mut sleep, cx)
        })
        .await
    }

    /// Wakes those whose clients are to be pinged.
    fn poll_due(
        &self,
        sleep: &mut Option<(Duration, LocalBoxFuture<'static, ()>)>,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        loop {
            let first = self.due.borrow().first_key_value().map(|(key, place)| (*key, *place));
            let Some(((due, number), place)) = first else { return Poll::Pending };
            let now = self.host.now();
            if due <= now {
                self.wake(Key { place, number }, true);
                continue;
            }
            if sleep.as_ref().is_none_or(|(until, _)| *until != due) {
                *sleep = Some((due, self.host.sleep(due - now).boxed_local()));
            }
            let (_, asleep) = sleep.as_mut().expect("set above");
            ready!(asleep.poll_unpin(cx));
            *sleep = None;
        }
    }
}

/// The task that looks after those that rest; with it they are cut.
struct Tended(Rc<Resting>);

impl Drop for Tended {
    fn drop(&mut self) {
        // They, and their stays, hold this.
        let rests = self.0.places.take();
        drop(rests);
    }
}
