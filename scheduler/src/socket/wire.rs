//! The wire between a client's end and the object's core: two queues of frames.
//!
//! Invariants:
//!
//! - Frames of one direction arrive in the order in which they were put in, whole.
//! - What the client sends waits once `incoming_bytes` are there; one frame is always let in. What
//!   the object sends was counted before it came here ([`super::connection`]).
//! - An end that is gone stays gone: the client sees what was on its way to it and then the end;
//!   the core sees what was on its way to it and then that the client is lost.

use std::collections::VecDeque;
use std::fmt;
use std::future::{Future, poll_fn};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use dormouse_engine as engine;

use super::SocketLimits;
use super::message::{CloseFrame, Frame, Message};
use crate::error::{Error, Result};
use crate::sync::{Mutex, MutexGuard};

#[derive(Default)]
struct Lane {
    frames: VecDeque<Frame>,
    bytes: usize,
}

impl Lane {
    fn push(&mut self, frame: Frame) {
        self.bytes += frame.cost();
        self.frames.push_back(frame);
    }

    fn pop(&mut self) -> Option<Frame> {
        let frame = self.frames.pop_front()?;
        self.bytes -= frame.cost();
        if self.frames.is_empty() {
            // Most sockets are silent most of the time.
            self.frames = VecDeque::new();
        }
        Some(frame)
    }
}

struct State {
    incoming: Lane,
    outgoing: Lane,
    incoming_bytes_max: usize,
    /// The client sent its close frame.
    client_closed: bool,
    client_gone: bool,
    /// The client's transport broke the protocol.
    broken: Option<Error>,
    core_gone: bool,
    /// Whoever waits: the read loop for a frame, the read loop for room, the client's two sides.
    core_reads: Option<Waker>,
    core_wants_room: Option<Waker>,
    client_reads: Option<Waker>,
    client_sends: Option<Waker>,
}

type Shared = Arc<Mutex<State>>;

fn lock(shared: &Shared) -> MutexGuard<'_, State> {
    shared.lock().expect("no code panics under it")
}

fn wake(waker: Option<Waker>) {
    waker.into_iter().for_each(Waker::wake);
}

/// Both ends of a new wire.
pub(crate) fn wire() -> (Wire, ClientSocket) {
    let shared = Arc::new(Mutex::new(State {
        incoming: Lane::default(),
        outgoing: Lane::default(),
        incoming_bytes_max: SocketLimits::PRODUCTION.incoming_bytes,
        client_closed: false,
        client_gone: false,
        broken: None,
        core_gone: false,
        core_reads: None,
        core_wants_room: None,
        client_reads: None,
        client_sends: None,
    }));
    (Wire(shared.clone()), ClientSocket(shared))
}

/// The core's end. Dropped, it hangs up.
pub(crate) struct Wire(Shared);

/// What the core reads.
#[derive(Debug)]
pub(crate) enum Incoming {
    Frame(Frame),
    /// The client is gone without a close frame, or after it.
    Lost,
    /// What came was no WebSocket's.
    Broken(Error),
    /// This end hung up.
    HungUp,
}

impl Wire {
    pub(crate) fn limit(&self, limits: &SocketLimits) {
        lock(&self.0).incoming_bytes_max = limits.incoming_bytes;
    }

    /// The next thing that came from the client.
    pub(crate) fn receive(&self) -> impl Future<Output = Incoming> {
        poll_fn(|cx| {
            let mut state = lock(&self.0);
            if state.core_gone {
                return Poll::Ready(Incoming::HungUp);
            }
            if let Some(frame) = state.incoming.pop() {
                let sender = state.client_sends.take();
                drop(state);
                wake(sender);
                return Poll::Ready(Incoming::Frame(frame));
            }
            if let Some(error) = state.broken.take() {
                return Poll::Ready(Incoming::Broken(error));
            }
            if state.client_gone {
                return Poll::Ready(Incoming::Lost);
            }
            state.core_reads = Some(cx.waker().clone());
            Poll::Pending
        })
    }

    /// Sends a frame, unless one of the ends is gone.
    pub(crate) fn put(&self, frame: Frame) {
        let mut state = lock(&self.0);
        if state.client_gone || state.core_gone {
            return;
        }
        state.outgoing.push(frame);
        let reader = state.client_reads.take();
        drop(state);
        wake(reader);
    }

    /// Bytes that the client has not taken yet.
    pub(crate) fn outgoing_bytes(&self) -> usize {
        lock(&self.0).outgoing.bytes
    }

    /// Waits until `has_room` says so; it is asked whenever the client has taken something.
    pub(crate) async fn room(&self, has_room: impl Fn() -> bool) {
        poll_fn(|cx| {
            {
                let mut state = lock(&self.0);
                if state.core_gone || state.client_gone {
                    return Poll::Ready(());
                }
                state.core_wants_room = Some(cx.waker().clone());
            }
            if has_room() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    /// Ends the connection: the client sees what was sent before, and then that it is lost.
    pub(crate) fn hang_up(&self) {
        let mut state = lock(&self.0);
        state.core_gone = true;
        state.incoming = Lane::default();
        let all = [
            state.core_reads.take(),
            state.core_wants_room.take(),
            state.client_reads.take(),
            state.client_sends.take(),
        ];
        drop(state);
        all.into_iter().for_each(wake);
    }

    pub(crate) fn is_hung_up(&self) -> bool {
        lock(&self.0).core_gone
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.hang_up();
    }
}

/// The client's end of a socket, in process: what a test, a simulated client or a server's bridge
/// holds. `Send + Sync`; dropped, the connection is lost.
///
/// One task may receive and one may send at a time; a second one of a kind takes the first one's
/// wake-up.
pub struct ClientSocket(Shared);

/// What a client receives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Received {
    /// A message of the object's, or an automatic response.
    Message(Message),
    /// The answer to a ping.
    Pong(Bytes),
    /// The object's close frame; nothing but pongs can follow.
    Close(CloseFrame),
}

impl fmt::Debug for ClientSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientSocket").field("lost", &lock(&self.0).core_gone).finish()
    }
}

fn lost() -> Error {
    engine::Error::coded(engine::Kind::Closed, "socket-lost", "the connection is lost").into()
}

impl ClientSocket {
    /// Sends a message; waits while the object is behind.
    ///
    /// Errors: code `socket-lost`; code `bad-argument` after [`close`](Self::close).
    /// Cancel: the message is sent whole or not at all.
    pub async fn send(&self, message: impl Into<Message>) -> Result<()> {
        self.send_frame(Frame::Message(message.into())).await
    }

    /// Sends a ping, of at most 125 bytes. Errors as [`send`](Self::send).
    pub async fn ping(&self, bytes: Bytes) -> Result<()> {
        if bytes.len() > 125 {
            return Err(super::bad_argument("a ping holds at most 125 bytes"));
        }
        self.send_frame(Frame::Ping(bytes)).await
    }

    async fn send_frame(&self, frame: Frame) -> Result<()> {
        let mut frame = Some(frame);
        poll_fn(|cx| self.poll_send(&mut frame, cx)).await
    }

    fn poll_send(&self, frame: &mut Option<Frame>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        let mut state = lock(&self.0);
        if state.core_gone {
            return Poll::Ready(Err(lost()));
        }
        if state.client_closed {
            return Poll::Ready(Err(super::bad_argument("the socket was closed by this end")));
        }
        let cost = frame.as_ref().map_or(0, Frame::cost);
        let is_full = state.incoming.bytes + cost > state.incoming_bytes_max;
        if is_full && !state.incoming.frames.is_empty() {
            state.client_sends = Some(cx.waker().clone());
            return Poll::Pending;
        }
        state.incoming.push(frame.take().expect("polled again after it was sent"));
        let reader = state.core_reads.take();
        drop(state);
        wake(reader);
        Poll::Ready(Ok(()))
    }

    /// Sends a close frame; one may go on receiving. A second one is ignored.
    ///
    /// Errors: as [`CloseFrame::new`]; code `socket-lost`.
    pub fn close(&self, code: impl Into<Option<u16>>, reason: &str) -> Result<()> {
        self.close_with(CloseFrame::new(code.into(), reason)?)
    }

    /// Sends this close frame as it is: what a transport received.
    pub(crate) fn close_with(&self, close: CloseFrame) -> Result<()> {
        let mut state = lock(&self.0);
        if state.core_gone {
            return Err(lost());
        }
        if std::mem::replace(&mut state.client_closed, true) {
            return Ok(());
        }
        state.incoming.push(Frame::Close(close));
        let reader = state.core_reads.take();
        drop(state);
        wake(reader);
        Ok(())
    }

    /// Says that the client's transport broke the protocol: the object gets this error.
    /// Drop the socket then.
    pub fn fail(&self, error: Error) {
        let mut state = lock(&self.0);
        state.broken.get_or_insert(error);
        let reader = state.core_reads.take();
        drop(state);
        wake(reader);
    }

    /// The next thing from the object; `None` once the connection is lost, or closed by both sides.
    /// Cancel: nothing is lost.
    pub async fn recv(&self) -> Option<Received> {
        poll_fn(|cx| self.poll_recv(cx)).await
    }

    /// Waits until there is something for [`recv`](Self::recv), and takes nothing.
    #[cfg(feature = "server")]
    pub(crate) fn poll_ready(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = lock(&self.0);
        if state.core_gone || !state.outgoing.frames.is_empty() {
            return Poll::Ready(());
        }
        state.client_reads = Some(cx.waker().clone());
        Poll::Pending
    }

    /// See [`recv`](Self::recv).
    pub fn poll_recv(&self, cx: &mut Context<'_>) -> Poll<Option<Received>> {
        let mut state = lock(&self.0);
        let Some(frame) = state.outgoing.pop() else {
            if state.core_gone {
                return Poll::Ready(None);
            }
            state.client_reads = Some(cx.waker().clone());
            return Poll::Pending;
        };
        let waiting = state.core_wants_room.take();
        drop(state);
        wake(waiting);
        Poll::Ready(Some(match frame {
            Frame::Message(message) => Received::Message(message),
            Frame::Pong(bytes) | Frame::Ping(bytes) => Received::Pong(bytes),
            Frame::Close(close) => Received::Close(close),
        }))
    }
}

impl Drop for ClientSocket {
    fn drop(&mut self) {
        let mut state = lock(&self.0);
        state.client_gone = true;
        let unread = std::mem::take(&mut state.outgoing);
        let (reader, writer) = (state.core_reads.take(), state.core_wants_room.take());
        drop(state);
        drop(unread);
        wake(reader);
        wake(writer);
    }
}

#[cfg(all(test, not(dormouse_loom)))]
mod tests {
    use dormouse_engine::call::wait;
    use futures_util::FutureExt;

    use super::*;

    fn small() -> (Wire, ClientSocket) {
        let (core, client) = wire();
        core.limit(&SocketLimits { incoming_bytes: 200, ..SocketLimits::PRODUCTION });
        (core, client)
    }

    #[test]
    fn a_client_waits_while_the_object_is_behind_and_one_frame_always_fits() {
        let (core, client) = small();
        wait(client.send("x".repeat(1000))).unwrap();
        assert!(client.send("more").now_or_never().is_none(), "there is no room");
        assert!(matches!(wait(core.receive()), Incoming::Frame(_)));
        wait(client.send("more")).unwrap();
    }

    #[test]
    fn what_was_sent_arrives_before_the_loss_on_both_sides() {
        let (core, client) = wire();
        core.put(Frame::Message("one".into()));
        wait(client.send("two")).unwrap();
        core.hang_up();
        assert_eq!(wait(client.recv()), Some(Received::Message("one".into())));
        assert_eq!(wait(client.recv()), None);
        assert_eq!(wait(client.send("three")).unwrap_err().code(), Some("socket-lost"));

        let (core, client) = wire();
        wait(client.send("two")).unwrap();
        drop(client);
        let Incoming::Frame(frame) = wait(core.receive()) else { panic!("the frame was lost") };
        assert_eq!(frame, Frame::Message("two".into()));
        assert!(matches!(wait(core.receive()), Incoming::Lost));
    }

    #[test]
    fn nothing_is_kept_for_a_client_that_is_gone() {
        let (core, client) = wire();
        core.put(Frame::Message("one".into()));
        assert!(core.outgoing_bytes() > 0);
        drop(client);
        core.put(Frame::Message("two".into()));
        assert_eq!(core.outgoing_bytes(), 0);
    }
}

#[cfg(all(test, dormouse_loom))]
mod models {
    use std::pin::pin;

    use super::*;
    use crate::sync::models::wakes;

    /// Two ends of one wire, one of which polls: what it waits for is there at once, or it is woken.
    fn against<T: 'static>(
        prepare: impl Fn(&Wire, &ClientSocket) + Send + Sync + 'static,
        other: impl Fn(&Wire, &ClientSocket) + Send + Sync + 'static,
        poll: impl Fn(&Wire, &ClientSocket, &mut Context<'_>) -> Poll<T> + Send + Sync + 'static,
    ) {
        let (other, prepare) = (Arc::new(other), Arc::new(prepare));
        loom::model(move || {
            let ends = Arc::new(wire());
            prepare(&ends.0, &ends.1);
            let (theirs, act) = (ends.clone(), other.clone());
            let thread = loom::thread::spawn(move || act(&theirs.0, &theirs.1));
            let (woken, waker) = wakes();
            let polled = poll(&ends.0, &ends.1, &mut Context::from_waker(&waker));
            thread.join().expect("the other one ends");
            assert!(polled.is_ready() || woken.any(), "it sleeps on what is there");
        });
    }

    fn frame() -> Frame {
        Frame::Message("x".into())
    }

    fn client_reads(_: &Wire, client: &ClientSocket, cx: &mut Context<'_>) -> Poll<()> {
        client.poll_recv(cx).map(drop)
    }

    fn core_reads(core: &Wire, _: &ClientSocket, cx: &mut Context<'_>) -> Poll<()> {
        pin!(core.receive()).poll(cx).map(drop)
    }

    fn client_sends(_: &Wire, client: &ClientSocket, cx: &mut Context<'_>) -> Poll<()> {
        client.poll_send(&mut Some(frame()), cx).map(drop)
    }

    /// So that no further frame has room.
    fn fill(core: &Wire, _: &ClientSocket) {
        let mut state = lock(&core.0);
        state.incoming_bytes_max = 1;
        state.incoming.push(frame());
    }

    #[test]
    fn loom_a_client_never_sleeps_on_a_frame_or_the_end() {
        against(|_, _| (), |core, _| core.put(frame()), client_reads);
        against(|_, _| (), |core, _| core.hang_up(), client_reads);
    }

    #[test]
    fn loom_a_core_never_sleeps_on_a_frame_or_the_end() {
        let send = |client: &ClientSocket| {
            let sent =
                client.poll_send(&mut Some(frame()), &mut Context::from_waker(Waker::noop()));
            assert!(sent.is_ready());
        };
        against(|_, _| (), move |_, client| send(client), core_reads);
        against(|_, _| (), |core, _| core.hang_up(), core_reads);
    }

    #[test]
    fn loom_a_client_never_sleeps_on_room() {
        let read = |core: &Wire| {
            let read = pin!(core.receive()).poll(&mut Context::from_waker(Waker::noop()));
            assert!(read.is_ready());
        };
        against(fill, move |core, _| read(core), client_sends);
        against(fill, |core, _| core.hang_up(), client_sends);
    }

    /// The broken twin wakes whoever waits, and hangs up then.
    #[test]
    #[should_panic(expected = "it sleeps on what is there")]
    fn loom_an_end_that_wakes_before_it_hangs_up_leaves_the_other_asleep() {
        let hang_up = |core: &Wire| {
            let reader = lock(&core.0).client_reads.take();
            wake(reader);
            lock(&core.0).core_gone = true;
        };
        against(|_, _| (), move |core, _| hang_up(core), client_reads);
    }
}
