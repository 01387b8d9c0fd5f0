//! The client's end of a WebSocket: a task that reads and writes frames, and outlives no process.

use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::codec::{self, Decoder};
use super::line::{Arrived, Ending};
use super::shared::{Mark, Shared};
use crate::net::SimStream;
use crate::random::Random;

/// One client's end.
pub(super) struct Peer {
    pub(super) line: u64,
    /// None once the connection is over.
    stream: Option<SimStream>,
    /// What is to be written.
    out: Vec<u8>,
    /// Nothing follows that.
    finish: bool,
    /// It reads nothing for now.
    held: bool,
    /// It neither reads nor writes any more.
    silent: bool,
    closed: bool,
    decoder: Decoder,
    random: Random,
    waker: Option<Waker>,
}

pub(super) type SharedPeer = Rc<RefCell<Peer>>;

impl Peer {
    pub(super) fn new(line: u64, stream: SimStream, random: Random) -> SharedPeer {
        Rc::new(RefCell::new(Self {
            line,
            stream: Some(stream),
            out: Vec::new(),
            finish: false,
            held: false,
            silent: false,
            closed: false,
            decoder: Decoder::default(),
            random,
            waker: None,
        }))
    }

    /// Whether it can still say something.
    pub(super) fn is_open(&self) -> bool {
        self.stream.is_some() && !self.finish && !self.silent && !self.closed
    }

    fn wake(&mut self) {
        self.waker.take().into_iter().for_each(Waker::wake);
    }

    /// Sends what `put` appends, with its mask.
    pub(super) fn send(&mut self, put: impl FnOnce(&mut Vec<u8>, [u8; 4])) {
        let mask = self.random.bits().to_le_bytes();
        put(&mut self.out, [mask[0], mask[1], mask[2], mask[3]]);
        self.wake();
    }

    pub(super) fn close(&mut self, code: Option<u16>, reason: &[u8]) {
        self.send(|out, mask| codec::put_close(out, mask, code, reason));
        self.closed = true;
    }

    /// What it sends from now on is of no account.
    pub(super) fn broke(&mut self) {
        self.closed = true;
    }

    pub(super) fn hold(&mut self, held: bool) {
        self.held = held;
        self.wake();
    }

    pub(super) fn finish(&mut self) {
        self.finish = true;
        self.held = false;
        self.wake();
    }

    pub(super) fn reset(&mut self) {
        self.stream.take().into_iter().for_each(SimStream::reset);
        self.wake();
    }

    pub(super) fn go_silent(&mut self) {
        self.silent = true;
    }

    /// The connection is over, in the midst of a frame or not.
    fn over(&mut self, shared: &Shared) {
        self.stream = None;
        if self.decoder.is_cut() {
            shared.mark(Mark::CutInsideAFrame);
        }
        shared.line_ends(self.line);
    }

    /// Its process and the server's are gone; what was sent to it arrives.
    pub(super) fn crash(&mut self, shared: &Shared) {
        let Some(stream) = self.stream.take() else { return };
        if !self.silent {
            self.decoder.push(&stream.take_all());
            self.take_frames(shared);
        }
        if self.decoder.is_cut() {
            shared.mark(Mark::CutInsideAFrame);
        }
    }

    fn take_frames(&mut self, shared: &Shared) {
        loop {
            let frame = match self.decoder.next() {
                Ok(Some(frame)) => frame,
                Ok(None) => return,
                Err(error) => return shared.fail(format!("line {}: {error:#}", self.line)),
            };
            shared.note(|| format!("line {} gets {frame:?}", self.line));
            match shared.arrived(self.line, frame) {
                Some(Arrived::Ping(bytes)) => {
                    self.send(|out, mask| codec::put_pong(out, mask, &bytes));
                }
                Some(Arrived::Close(_, code, reason)) if !self.closed && !self.finish => {
                    let text = String::from_utf8_lossy(&reason).into_owned();
                    shared.line_ending(self.line, Ending::Close(code, text));
                    self.close(code, &reason);
                }
                Some(Arrived::Deleted(reason)) if !self.closed && !self.finish => {
                    let text = String::from_utf8_lossy(&reason).into_owned();
                    shared.line_ending(self.line, Ending::Close(Some(1001), text));
                    self.close(Some(1001), &reason);
                }
                _ => {}
            }
        }
    }

    fn poll(&mut self, shared: &Shared, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            self.waker = Some(cx.waker().clone());
            if self.silent {
                return Poll::Pending;
            }
            let Some(stream) = &mut self.stream else { return Poll::Ready(()) };
            while !self.out.is_empty() {
                match Pin::new(&mut *stream).poll_write(cx, &self.out) {
                    Poll::Ready(Ok(written)) => drop(self.out.drain(..written)),
                    Poll::Ready(Err(_)) => self.out.clear(),
                    Poll::Pending => break,
                }
            }
            if self.out.is_empty() && self.finish {
                let _always_at_once = Pin::new(&mut *stream).poll_shutdown(cx);
            }
            if self.held {
                return Poll::Pending;
            }
            let mut bytes = [0; 512];
            let mut buf = ReadBuf::new(&mut bytes);
            match Pin::new(stream).poll_read(cx, &mut buf) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(())) if !buf.filled().is_empty() => {
                    self.decoder.push(buf.filled());
                    self.take_frames(shared);
                }
                Poll::Ready(_) => {
                    self.over(shared);
                    return Poll::Ready(());
                }
            }
        }
    }
}

/// Reads and writes until the connection is over.
pub(super) async fn run(peer: SharedPeer, shared: Rc<Shared>) {
    poll_fn(|cx| peer.borrow_mut().poll(&shared, cx)).await;
}
