//! [`SimNet`]: connections of a simulated network, each two pipes of bytes.
//!
//! What is written arrives in order, in pieces of any size, some of it late; an end that is gone
//! is seen as one of TCP is: after what was on its way, at an end of the stream, or, if it was
//! reset, at any byte with an error. A pipe holds so many bytes; who writes more waits until they
//! are read. An end that neither reads nor writes is a half-open peer.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use dormouse_scheduler::net::Net;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::random::Random;
use crate::world::{Event, World};

/// What a network does with the bytes that it carries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetFaults {
    /// A read or write takes only some of its bytes once in so many; 0 for never.
    #[serde(default)]
    pub pieces: u64,
    /// What is written takes up to a fifth of a second once in so many; 0 for never.
    #[serde(default)]
    pub late: u64,
    /// Bytes that a pipe holds; 0 for 64 KiB.
    #[serde(default)]
    pub room: usize,
}

impl NetFaults {
    fn room(&self) -> usize {
        if self.room == 0 { 64 << 10 } else { self.room }
    }
}

/// A network. Cheap to clone.
#[derive(Clone)]
pub struct SimNet(Rc<Inner>);

struct Inner {
    world: World,
    faults: NetFaults,
    random: RefCell<Random>,
    /// Who waits for a moment. One event of the world stands for the first of them.
    timers: RefCell<BTreeMap<(u64, u64), Waker>>,
    armed_ns: Cell<Option<u64>>,
    next: Cell<u64>,
    /// Ends of connections that are open.
    open: Cell<usize>,
}

impl SimNet {
    /// A network in this world.
    pub fn new(world: &World, seed: u64, faults: NetFaults) -> Self {
        Self(Rc::new(Inner {
            world: world.clone(),
            faults,
            random: RefCell::new(Random::new(seed ^ 0x6e65_7477)),
            timers: RefCell::default(),
            armed_ns: Cell::new(None),
            next: Cell::new(0),
            open: Cell::new(0),
        }))
    }

    /// Both ends of a new connection.
    pub fn connect(&self) -> (SimStream, SimStream) {
        let (there, back) = (Rc::new(RefCell::default()), Rc::new(RefCell::default()));
        self.0.open.set(self.0.open.get() + 2);
        let end = |input: &SharedPipe, output: &SharedPipe| SimStream {
            net: self.clone(),
            input: input.clone(),
            output: output.clone(),
        };
        (end(&back, &there), end(&there, &back))
    }

    /// Ends of connections that nobody has dropped yet.
    pub fn open_ends(&self) -> usize {
        self.0.open.get()
    }

    fn now_ns(&self) -> u64 {
        u64::try_from(self.0.world.now().as_nanos()).unwrap_or(u64::MAX)
    }

    /// How many of so many bytes are taken at once.
    fn piece(&self, len: usize) -> usize {
        let (one_in, mut random) = (self.0.faults.pieces, self.0.random.borrow_mut());
        if one_in > 0 && len > 1 && random.one_in(one_in) { random.index(len) + 1 } else { len }
    }

    fn lateness_ns(&self) -> u64 {
        let (one_in, mut random) = (self.0.faults.late, self.0.random.borrow_mut());
        if one_in > 0 && random.one_in(one_in) { random.between(1_000, 200_000_000) } else { 0 }
    }

    /// Wakes somebody at a moment; gives what to call it off with.
    fn wake_at(&self, at_ns: u64, waker: Waker) -> (u64, u64) {
        let number = self.0.next.get();
        self.0.next.set(number + 1);
        self.0.timers.borrow_mut().insert((at_ns, number), waker);
        self.arm();
        (at_ns, number)
    }

    fn arm(&self) {
        let Some((first, _)) = self.0.timers.borrow().keys().next().copied() else { return };
        if self.0.armed_ns.get().is_none_or(|armed| first < armed) {
            self.0.armed_ns.set(Some(first));
            let event = Event::Net(self.clone());
            self.0.world.0.after(first.saturating_sub(self.now_ns()), event);
        }
    }

    /// A moment has come that somebody may have waited for.
    pub(crate) fn ring(&self) {
        let now = self.now_ns();
        self.0.armed_ns.set(None);
        while let Some(first) = self.0.timers.borrow_mut().first_entry() {
            if first.key().0 > now {
                break;
            }
            first.remove().wake();
        }
        self.arm();
    }
}

impl Net for SimNet {
    type Stream = SimStream;

    fn within<F: Future>(
        &self,
        limit: Duration,
        future: F,
    ) -> impl Future<Output = Option<F::Output>> {
        let until =
            self.now_ns().saturating_add(u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX));
        let net = self.clone();
        async move {
            let mut future = pin!(future);
            let mut timer = Timer { net, armed: None };
            poll_fn(move |cx| match future.as_mut().poll(cx) {
                Poll::Ready(value) => Poll::Ready(Some(value)),
                Poll::Pending if timer.net.now_ns() >= until => Poll::Ready(None),
                Poll::Pending => {
                    timer.set(until, cx.waker());
                    Poll::Pending
                }
            })
            .await
        }
    }
}

/// A wait for a moment, called off when it is dropped.
struct Timer {
    net: SimNet,
    armed: Option<(u64, u64)>,
}

impl Timer {
    fn set(&mut self, at_ns: u64, waker: &Waker) {
        if self.armed.is_none() {
            self.armed = Some(self.net.wake_at(at_ns, waker.clone()));
        }
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        if let Some(armed) = self.armed {
            let waker = self.net.0.timers.borrow_mut().remove(&armed);
            drop(waker);
        }
    }
}

/// How a pipe ended for its reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// After what was sent.
    Closed,
    /// With an error.
    Reset,
}

type SharedPipe = Rc<RefCell<Pipe>>;

/// One direction of a connection.
#[derive(Default)]
struct Pipe {
    bytes: VecDeque<u8>,
    /// When the last of so many of them arrive; times rise.
    arrivals: VecDeque<(u64, usize)>,
    end: Option<End>,
    reader_gone: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Pipe {
    /// Bytes that have arrived.
    fn arrived(&self, now_ns: u64) -> usize {
        self.arrivals.iter().take_while(|(at, _)| *at <= now_ns).map(|(_, bytes)| bytes).sum()
    }

    fn push(&mut self, bytes: &[u8], at_ns: u64) {
        self.bytes.extend(bytes);
        let at_ns = self.arrivals.back().map_or(at_ns, |(last, _)| at_ns.max(*last));
        match self.arrivals.back_mut() {
            Some((last, count)) if *last == at_ns => *count += bytes.len(),
            _ => self.arrivals.push_back((at_ns, bytes.len())),
        }
    }

    fn pop(&mut self, count: usize, put: impl FnMut(&[u8])) {
        let (first, second) = self.bytes.as_slices();
        let head = count.min(first.len());
        [&first[..head], &second[..count - head]].into_iter().for_each(put);
        self.bytes.drain(..count);
        let mut left = count;
        while left > 0 {
            let (_, bytes) = self.arrivals.front_mut().expect("as many as there are bytes");
            let of_these = left.min(*bytes);
            *bytes -= of_these;
            left -= of_these;
            if *bytes == 0 {
                self.arrivals.pop_front();
            }
        }
    }

    fn wake(&mut self) -> [Option<Waker>; 2] {
        [self.reader.take(), self.writer.take()]
    }
}

fn wake(wakers: [Option<Waker>; 2]) {
    wakers.into_iter().flatten().for_each(Waker::wake);
}

/// One end of a connection. Dropped, it is closed: the other end sees what was sent before.
pub struct SimStream {
    net: SimNet,
    input: SharedPipe,
    output: SharedPipe,
}

impl SimStream {
    /// Ends the connection at once, at any byte of what this end has sent and the other has not
    /// read.
    pub fn reset(self) {
        let wakers = {
            let mut output = self.output.borrow_mut();
            let sent = output.bytes.len();
            let kept = self.net.0.random.borrow_mut().index(sent + 1);
            let mut cut = std::mem::take(&mut *output);
            let now = self.net.now_ns();
            cut.bytes.truncate(kept);
            cut.arrivals = (kept > 0).then_some((now, kept)).into_iter().collect();
            cut.end = Some(End::Reset);
            *output = cut;
            output.wake()
        };
        wake(wakers);
    }

    /// All that was sent to this end and not read, on its way or not.
    pub fn take_all(&self) -> Vec<u8> {
        let mut input = self.input.borrow_mut();
        input.arrivals.clear();
        std::mem::take(&mut input.bytes).into()
    }
}

impl AsyncRead for SimStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let now = self.net.now_ns();
        let mut pipe = self.input.borrow_mut();
        let arrived = pipe.arrived(now).min(buf.remaining());
        if arrived > 0 {
            pipe.pop(self.net.piece(arrived), |bytes| buf.put_slice(bytes));
            let writer = pipe.writer.take();
            drop(pipe);
            wake([writer, None]);
            return Poll::Ready(Ok(()));
        }
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        if let Some((at, _)) = pipe.arrivals.front() {
            let at = *at;
            pipe.reader = Some(cx.waker().clone());
            drop(pipe);
            self.net.wake_at(at, cx.waker().clone());
            return Poll::Pending;
        }
        match pipe.end {
            Some(End::Closed) => Poll::Ready(Ok(())),
            Some(End::Reset) => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
            None => {
                pipe.reader = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl AsyncWrite for SimStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut pipe = self.output.borrow_mut();
        if pipe.reader_gone || pipe.end.is_some() {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let room = self.net.0.faults.room().saturating_sub(pipe.bytes.len());
        if room == 0 {
            pipe.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let taken = self.net.piece(room.min(bytes.len()));
        let at = self.net.now_ns() + self.net.lateness_ns();
        pipe.push(&bytes[..taken], at);
        let reader = pipe.reader.take();
        drop(pipe);
        wake([reader, None]);
        Poll::Ready(Ok(taken))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut pipe = self.output.borrow_mut();
        pipe.end.get_or_insert(End::Closed);
        let reader = pipe.reader.take();
        drop(pipe);
        wake([reader, None]);
        Poll::Ready(Ok(()))
    }
}

impl Drop for SimStream {
    fn drop(&mut self) {
        self.net.0.open.set(self.net.0.open.get() - 1);
        let output = {
            let mut output = self.output.borrow_mut();
            output.end.get_or_insert(End::Closed);
            output.wake()
        };
        let input = {
            let mut input = self.input.borrow_mut();
            input.reader_gone = true;
            input.wake()
        };
        wake(output);
        wake(input);
    }
}
