//! The bytes of a body on their way from one thread to another: a bounded queue of chunks.
//!
//! Invariants:
//!
//! - Chunks arrive whole, in the order in which they were sent, and then one end: finished, or the
//!   error that cut it off. A sender that goes without [`finish`](BodySender::finish) cuts it off: what
//!   is there of a body never passes for all of it.
//! - At most [`BUFFER_BYTES`] wait, or one chunk: beyond that the sender waits. Bytes that wait for their
//!   object's output gate count, too.
//! - What an object sends leaves when all that it wrote before is durable. While it holds a
//!   sender it is not put to sleep.
//! - An end that goes wakes the other.

use std::collections::VecDeque;
use std::fmt;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use dormouse_engine as engine;
use futures_channel::oneshot;
use futures_util::FutureExt;

use crate::error::{Error, Result};
use crate::instance::{self, Work};
use crate::sync::{Mutex, MutexGuard};
use crate::watch::Awake;

/// Bytes of a body that wait for whoever reads it, about.
pub(crate) const BUFFER_BYTES: usize = 64 << 10;

/// How a body ends.
#[derive(Clone, Debug)]
enum End {
    Finished,
    Cut(Error),
}

#[derive(Default)]
struct State {
    chunks: VecDeque<Bytes>,
    /// Of `chunks`, and of those that wait for an output gate.
    bytes: usize,
    end: Option<End>,
    reader_gone: bool,
    reads: Option<Waker>,
    wants_room: Option<Waker>,
}

struct Shared(Mutex<State>);

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no code panics under it")
    }

    /// Ready once `bytes` more may come; they are counted from then on.
    fn poll_room(&self, bytes: usize, cx: &Context<'_>) -> Poll<Result<()>> {
        let mut state = self.lock();
        if state.reader_gone {
            return Poll::Ready(Err(gone()));
        }
        if state.bytes > 0 && state.bytes + bytes > BUFFER_BYTES {
            state.wants_room = Some(cx.waker().clone());
            return Poll::Pending;
        }
        state.bytes += bytes;
        Poll::Ready(Ok(()))
    }

    /// Puts in a chunk for which there is room, unless nobody reads or the body has ended.
    fn push(&self, chunk: Bytes) {
        let mut state = self.lock();
        if state.reader_gone || state.end.is_some() {
            return;
        }
        state.chunks.push_back(chunk);
        let reader = state.reads.take();
        drop(state);
        reader.into_iter().for_each(Waker::wake);
    }

    /// The first end stays.
    fn end(&self, end: End) {
        let mut state = self.lock();
        state.end.get_or_insert(end);
        let reader = state.reads.take();
        drop(state);
        reader.into_iter().for_each(Waker::wake);
    }

    /// The next chunk, or the end.
    fn poll_chunk(&self, cx: &Context<'_>) -> Poll<Result<Option<Bytes>>> {
        let mut state = self.lock();
        if let Some(chunk) = state.chunks.pop_front() {
            state.bytes -= chunk.len();
            let sender = state.wants_room.take();
            drop(state);
            sender.into_iter().for_each(Waker::wake);
            return Poll::Ready(Ok(Some(chunk)));
        }
        match &state.end {
            Some(End::Finished) => Poll::Ready(Ok(None)),
            Some(End::Cut(error)) => Poll::Ready(Err(error.clone())),
            None => {
                state.reads = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    fn reader_goes(&self) {
        let mut state = self.lock();
        state.reader_gone = true;
        let unread = std::mem::take(&mut state.chunks);
        let sender = state.wants_room.take();
        drop(state);
        drop(unread);
        sender.into_iter().for_each(Waker::wake);
    }
}

fn gone() -> Error {
    engine::Error::coded(engine::Kind::Closed, "body-gone", "nobody reads the body any more").into()
}

fn cut() -> Error {
    let text = "the body was cut off: whoever sent it ended before it";
    engine::Error::coded(engine::Kind::Closed, "body-cut", text).into()
}

/// Both ends of a new body. Made by an object, the sender keeps it in memory.
pub(crate) fn stream() -> (BodySender, BodyReader) {
    let shared = Arc::new(Shared(Mutex::new(State::default())));
    let open = instance::current().map(|instance| {
        let (open, over) = oneshot::channel();
        instance.push(Work::Task(Awake::Body, over.map(drop).boxed_local()));
        open
    });
    (BodySender { shared: shared.clone(), _open: open }, BodyReader(shared))
}

/// The end of a [`Body`](crate::Body) into which its bytes are put. `Send`; dropped without
/// [`finish`](Self::finish), it cuts the body off: whoever reads it gets an error.
pub struct BodySender {
    shared: Arc<Shared>,
    /// Dropped, the object need not stay for it.
    _open: Option<oneshot::Sender<()>>,
}

impl fmt::Debug for BodySender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BodySender").field("waiting_bytes", &self.shared.lock().bytes).finish()
    }
}

impl BodySender {
    /// Sends some bytes; waits while 64 KiB wait to be read, or for the object's output gate.
    ///
    /// Errors: code `body-gone`: nobody reads it any more, as when a client has gone.
    /// Cancel: nothing is sent.
    pub async fn send(&mut self, chunk: impl Into<Bytes>) -> Result<()> {
        let chunk = chunk.into();
        if chunk.is_empty() {
            return Ok(());
        }
        poll_fn(|cx| self.shared.poll_room(chunk.len(), cx)).await?;
        self.say(move |shared| shared.push(chunk));
        Ok(())
    }

    /// The body is whole.
    pub fn finish(self) {
        self.say(|shared| shared.end(End::Finished));
    }

    /// Cuts the body off: whoever reads it gets this error.
    pub fn fail(self, error: Error) {
        self.say(|shared| shared.end(End::Cut(error)));
    }

    fn say(&self, what: impl FnOnce(&Shared) + 'static) {
        let mut unsaid = Unsaid(Some(self.shared.clone()));
        let send = move || {
            if let Some(shared) = unsaid.0.take() {
                what(&shared);
            }
        };
        match instance::current() {
            Some(instance) => instance.say(send),
            None => send(),
        }
    }

    /// Resolves when nobody reads the body any more.
    pub async fn closed(&self) {
        poll_fn(|cx| {
            let mut state = self.shared.lock();
            match state.reader_gone {
                true => Poll::Ready(()),
                false => {
                    state.wants_room = Some(cx.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await;
    }
}

impl Drop for BodySender {
    fn drop(&mut self) {
        // Behind what it said before.
        self.say(|shared| shared.end(End::Cut(cut())));
    }
}

/// Something that waits for the output gate. If it is never said, the body is cut off.
struct Unsaid(Option<Arc<Shared>>);

impl Drop for Unsaid {
    fn drop(&mut self) {
        if let Some(shared) = self.0.take() {
            shared.end(End::Cut(cut()));
        }
    }
}

/// The end of a body from which its bytes come. Dropped, its sender is told.
pub(crate) struct BodyReader(Arc<Shared>);

impl fmt::Debug for BodyReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BodyReader").field("waiting_bytes", &self.0.lock().bytes).finish()
    }
}

impl BodyReader {
    /// The next chunk; none at the body's end.
    ///
    /// Errors: the body was cut off.
    pub(crate) fn poll_chunk(&mut self, cx: &Context<'_>) -> Poll<Result<Option<Bytes>>> {
        self.0.poll_chunk(cx)
    }
}

impl Drop for BodyReader {
    fn drop(&mut self) {
        self.0.reader_goes();
    }
}

#[cfg(all(test, dormouse_loom))]
mod models {
    use super::*;
    use crate::sync::models::{Wakes, wakes};

    const FULL: usize = BUFFER_BYTES;

    /// Two threads, one of which polls: what it waits for is there at once, or it is woken.
    fn against<T: std::fmt::Debug + 'static>(
        prepare: impl Fn(&Shared) + Send + Sync + 'static,
        other: impl Fn(&Shared) + Send + Sync + 'static,
        poll: impl Fn(&Shared, &Context<'_>) -> Poll<T> + Send + Sync + 'static,
    ) {
        let (other, prepare) = (Arc::new(other), Arc::new(prepare));
        loom::model(move || {
            let shared = Arc::new(Shared(Mutex::new(State::default())));
            prepare(&shared);
            let (theirs, act) = (shared.clone(), other.clone());
            let thread = loom::thread::spawn(move || act(&theirs));
            let (woken, waker): (Arc<Wakes>, Waker) = wakes();
            let polled = poll(&shared, &Context::from_waker(&waker));
            thread.join().expect("the other one ends");
            assert!(polled.is_ready() || woken.any(), "it sleeps on what is there");
        });
    }

    #[test]
    fn loom_a_bodys_reader_never_sleeps_on_a_chunk() {
        let send = |shared: &Shared| {
            assert!(shared.poll_room(1, &Context::from_waker(Waker::noop())).is_ready());
            shared.push(Bytes::from_static(b"x"));
        };
        against(|_| (), send, Shared::poll_chunk);
    }

    #[test]
    fn loom_a_bodys_reader_never_sleeps_on_the_end() {
        against(|_| (), |shared| shared.end(End::Finished), Shared::poll_chunk);
    }

    /// Full of one chunk.
    fn fill(shared: &Shared) {
        shared.lock().bytes = FULL;
        shared.push(Bytes::from(vec![0; FULL]));
    }

    fn read_one(shared: &Shared) {
        let polled = shared.poll_chunk(&Context::from_waker(Waker::noop()));
        assert!(matches!(polled, Poll::Ready(Ok(Some(_)))));
    }

    #[test]
    fn loom_a_bodys_sender_never_sleeps_on_room() {
        against(fill, read_one, |shared, cx| shared.poll_room(1, cx));
    }

    #[test]
    fn loom_a_bodys_sender_never_sleeps_when_its_reader_goes() {
        against(fill, Shared::reader_goes, |shared, cx| shared.poll_room(1, cx));
    }

    /// The broken twin looks for room, lets others in, and then leaves its waker.
    #[test]
    #[should_panic(expected = "it sleeps on what is there")]
    fn loom_a_sender_that_looks_before_it_says_that_it_waits_sleeps_for_ever() {
        against(fill, read_one, |shared, cx| {
            let has_room = shared.lock().bytes == 0;
            if has_room {
                return Poll::Ready(());
            }
            shared.lock().wants_room = Some(cx.waker().clone());
            Poll::Pending
        });
    }
}
