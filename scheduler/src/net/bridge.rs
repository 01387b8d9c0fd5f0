//! Between a connection and its [`ClientSocket`]: one task that reads and writes. The connection is a
//! client's, or the object's own to the outside; the comments speak of the first.
//!
//! Invariants:
//!
//! - The next frame is read when the object's core has taken the one before into its bounded
//!   queue: a client that sends too fast is held back by TCP.
//! - What the object sent is taken from its queue when the connection took what was before: a
//!   client that reads too slowly leaves it there, where it is counted.
//! - However it ends, the [`ClientSocket`] is dropped, so the object is told once.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use dormouse_engine as engine;
use futures_util::future::{Either, select};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::frames::{
    self, Decoder, Inbound, Side, Violation, put_close, put_message, put_ping, put_pong,
};
use super::{CarryLimits, Net};
use crate::error::Error;
use crate::socket::{ClientSocket, CloseFrame, Received};

/// Bytes that are written at once, about.
const CHUNK_BYTES: usize = 16 << 10;
/// Bytes that the buffer of a client keeps while there is nothing to write.
const IDLE_BYTES: usize = 128;

/// What the two halves tell each other. They are polled together, the reader first: what it says here the
/// writer sees at once.
#[derive(Default)]
struct Shared {
    /// The reader has waited long: the writer sends a ping.
    ping: AtomicBool,
    /// The object's close frame was written.
    close_sent: AtomicBool,
    /// A write has begun and is not over.
    cut: AtomicBool,
}

impl Shared {
    fn is(flag: &AtomicBool) -> bool {
        flag.load(Ordering::Relaxed)
    }

    fn set(flag: &AtomicBool, value: bool) {
        flag.store(value, Ordering::Relaxed);
    }
}

/// What all connections of one server share: one copy, since most of what a silent one holds is its
/// task.
#[derive(Debug)]
pub struct Bounds {
    limits: CarryLimits,
    /// What messages hold that have not come whole: [`CarryLimits::partial_bytes`].
    partial: AtomicUsize,
}

impl Bounds {
    /// For connections of which none is open yet.
    pub fn new(limits: CarryLimits) -> Self {
        Self { limits, partial: AtomicUsize::new(0) }
    }

    /// How long a client may say nothing before it is pinged.
    #[cfg(feature = "server")]
    pub(crate) fn silence_time(&self) -> Duration {
        self.limits.silence_time
    }
}

/// One connection's part of [`Bounds::partial`].
struct Held<'a> {
    bounds: &'a Bounds,
    bytes: usize,
}

impl Held<'_> {
    /// Whether it may hold so much; if it may not, it must end.
    fn may(&mut self, bytes: usize) -> bool {
        // A read's worth is each one's to have.
        let bytes = if bytes > 2 * frames::CHUNK_BYTES { bytes } else { 0 };
        let before = std::mem::replace(&mut self.bytes, bytes);
        let all = &self.bounds.partial;
        if bytes <= before {
            all.fetch_sub(before - bytes, Ordering::Relaxed);
            return true;
        }
        let more = bytes - before;
        all.fetch_add(more, Ordering::Relaxed) + more <= self.bounds.limits.partial_bytes
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.bounds.partial.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// What both halves need.
struct Carried<N, S> {
    net: N,
    client: ClientSocket,
    bounds: Arc<Bounds>,
    side: S,
    rest: Rest,
    shared: Shared,
}

/// Whether a connection rests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    /// Never.
    Never,
    /// When the client has said nothing for [`CarryLimits::rest_time`].
    May {
        /// For so long it has said nothing when this begins.
        silent: Duration,
    },
}

/// A connection on which nothing is said, and of which nothing is on its way: between two frames of either side.
pub struct Resting<I> {
    /// The connection.
    pub io: I,
    /// The other end of it.
    pub client: ClientSocket,
    /// For so long its client has said nothing.
    pub silent: Duration,
}

/// Carries a WebSocket's frames between a connection and its object, until one side ends, or it rests:
/// then it gives back what it was given. The connection is
/// past its opening handshake, in which this was the `side`. `going_away` says that the server is
/// being shut down: then a client whose object hangs up is told so (1001), instead of nothing
///
///
/// Cancel: the connection is cut, and the object is told that it is lost.
pub fn carry<N: Net<Stream: Unpin>, S: Side, G: Fn() -> bool>(
    net: N,
    io: N::Stream,
    client: ClientSocket,
    bounds: Arc<Bounds>,
    side: S,
    rest: Rest,
    going_away: G,
) -> impl Future<Output = Option<Resting<N::Stream>>> + use<N, S, G> {
    // Not an `async fn`, which would keep room for what it is given beside what it makes of it: most of
    // what a silent connection holds is this.
    let (mut input, mut output) = tokio::io::split(io);
    let carried = Carried { net, client, bounds, side, rest, shared: Shared::default() };
    async move {
        let ended = {
            let reading = pin!(carried.read(&mut input));
            let writing = pin!(carried.write(&mut output, &going_away));
            match select(reading, writing).await {
                Either::Left((ended, _)) => ended,
                Either::Right(((), _)) => Ended::Gone,
            }
        };
        match ended {
            Ended::Gone => None,
            Ended::Resting(silent) => {
                Some(Resting { io: input.unsplit(output), client: carried.client, silent })
            }
            Ended::Broken(violation) => {
                Box::pin(carried.refuse(input, output, violation)).await;
                None
            }
        }
    }
}

enum Ended {
    /// The client, or its object.
    Gone,
    /// Nothing is said, by the client for so long.
    Resting(Duration),
    Broken(Violation),
}

/// What a client that says nothing is in for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Silence {
    /// Its connection rests.
    Rest,
    /// It is pinged.
    Ping,
    /// It was, and is lost.
    Loss,
}

/// What is there to be taken, or why nothing follows; `None` if more is to be read.
fn look(decoder: &mut Decoder, held: &mut Held<'_>) -> Option<Result<Inbound, Ended>> {
    match decoder.next() {
        Ok(Some(inbound)) => Some(Ok(inbound)),
        Ok(None) if held.may(decoder.held()) => None,
        Ok(None) => Some(Err(Ended::Broken(frames::TOO_MUCH))),
        Err(violation) => Some(Err(Ended::Broken(violation))),
    }
}

impl<N: Net, S: Side> Carried<N, S> {
    fn limits(&self) -> &CarryLimits {
        &self.bounds.limits
    }

    /// What a client is in for that has said nothing for so long.
    fn after(&self, silent: Duration) -> Silence {
        let CarryLimits { silence_time, rest_time, .. } = self.limits();
        match self.rest {
            Rest::May { .. } if silent + *rest_time < *silence_time => Silence::Rest,
            _ => Silence::Ping,
        }
    }

    /// How long it may say nothing still before that comes.
    fn silence_time(&self, next: Silence, silent: Duration) -> Duration {
        let CarryLimits { silence_time, rest_time, .. } = self.limits();
        match next {
            Silence::Rest => *rest_time,
            Silence::Ping => silence_time.saturating_sub(silent),
            Silence::Loss => *silence_time,
        }
    }

    async fn read(&self, input: &mut (impl AsyncRead + Unpin)) -> Ended {
        let mut decoder = Decoder::new(self.limits().message_bytes, &self.side);
        let mut held = Held { bounds: &self.bounds, bytes: 0 };
        let mut silent = match self.rest {
            Rest::May { silent } => silent,
            Rest::Never => Duration::ZERO,
        };
        loop {
            let inbound = match self.next(input, &mut decoder, &mut held, silent).await {
                Ok(inbound) => inbound,
                Err(ended) => return ended,
            };
            silent = Duration::ZERO;
            // Apart, so that a connection on which nothing happens holds nothing for it.
            match Box::pin(self.take(inbound, input)).await {
                None => {}
                Some(ended) => return ended,
            }
        }
    }

    /// The next thing that the client sends; why there is none if it is gone, or silent for too long.
    async fn next(
        &self,
        input: &mut (impl AsyncRead + Unpin),
        decoder: &mut Decoder,
        held: &mut Held<'_>,
        mut silent: Duration,
    ) -> Result<Inbound, Ended> {
        let Shared { ping, close_sent, cut } = &self.shared;
        let mut next = self.after(silent);
        loop {
            if let Some(found) = look(decoder, held) {
                return found;
            }
            let closing = Shared::is(close_sent);
            let limit = match closing {
                true => self.limits().close_time,
                false => self.silence_time(next, silent),
            };
            let read = poll_fn(|cx| decoder.poll_fill(input, cx));
            match (self.net.within(limit, read).await, next) {
                (Some(Ok(0) | Err(_)), _) => return Err(Ended::Gone),
                (Some(Ok(_)), _) => {
                    silent = Duration::ZERO;
                    next = self.after(silent);
                }
                (None, _) if closing => return Err(Ended::Gone),
                (None, Silence::Rest) => {
                    silent += limit;
                    // What the object said lately may be on its way, or its close frame sent: that has its time.
                    let idle = [cut, close_sent].iter().all(|flag| !Shared::is(flag));
                    if idle && decoder.is_idle() {
                        return Err(Ended::Resting(silent));
                    }
                    next = Silence::Ping;
                }
                (None, Silence::Ping) => {
                    next = Silence::Loss;
                    // A close frame may have been sent meanwhile: its answer has its time, and nothing
                    // follows it, a ping neither.
                    Shared::set(ping, !Shared::is(close_sent));
                }
                (None, Silence::Loss) => return Err(Ended::Gone),
            }
        }
    }

    /// Brings it to the object; why nothing follows, if so.
    async fn take(&self, inbound: Inbound, input: &mut (impl AsyncRead + Unpin)) -> Option<Ended> {
        let taken = match inbound {
            Inbound::Message(message) => self.client.send(message).await,
            // Answered by the core, behind what it sent before.
            Inbound::Ping(bytes) => self.client.ping(bytes).await,
            Inbound::Pong => Ok(()),
            Inbound::Close(close) => {
                return match self.client.close_with(close) {
                    Ok(()) => Some(self.until_closed(input).await),
                    Err(_) => std::future::pending().await,
                };
            }
        };
        if taken.is_err() {
            // The object hung up: the writer sends what is left and ends.
            return std::future::pending().await;
        }
        None
    }

    /// After its close frame a client sends nothing; it is waited for until it goes, or the object has
    /// had its time to close as well.
    async fn until_closed(&self, input: &mut (impl AsyncRead + Unpin)) -> Ended {
        let gone = async { while input.read(&mut [0; 64]).await.is_ok_and(|read| read > 0) {} };
        self.net.within(self.limits().close_time, gone).await;
        Ended::Gone
    }

    async fn write(&self, output: &mut (impl AsyncWrite + Unpin), going_away: &impl Fn() -> bool) {
        let mut out = Vec::new();
        loop {
            let hung_up = poll_fn(|cx| self.poll_gather(&mut out, cx)).await;
            if hung_up && going_away() && !Shared::is(&self.shared.close_sent) {
                let reason = "the server is shut down".to_owned();
                put_close(&mut out, &CloseFrame { code: Some(1001), reason }, &self.side);
            }
            let sent = async {
                output.write_all(&out).await?;
                output.flush().await
            };
            Shared::set(&self.shared.cut, true);
            let time = self.limits().silence_time.saturating_mul(2);
            if Box::pin(self.net.within(time, sent)).await.is_none_or(|sent| sent.is_err()) {
                return;
            }
            Shared::set(&self.shared.cut, false);
            out.clear();
            out.shrink_to(IDLE_BYTES);
            if hung_up {
                // After both closes the server ends the connection (RFC 6455 §7.1.1).
                Box::pin(self.net.within(self.limits().close_time, output.shutdown())).await;
                return;
            }
        }
    }

    /// Takes what there is to write; whether the object has hung up.
    fn poll_gather(&self, out: &mut Vec<u8>, cx: &mut Context<'_>) -> Poll<bool> {
        let side = &self.side;
        if self.shared.ping.swap(false, Ordering::Relaxed) {
            put_ping(out, side);
        }
        loop {
            match self.client.poll_recv(cx) {
                Poll::Ready(Some(received)) => {
                    match received {
                        Received::Message(message) => put_message(out, &message, side),
                        Received::Pong(bytes) => put_pong(out, &bytes, side),
                        Received::Close(close) => {
                            put_close(out, &close, side);
                            Shared::set(&self.shared.close_sent, true);
                        }
                    }
                    if out.len() >= CHUNK_BYTES {
                        return Poll::Ready(false);
                    }
                }
                Poll::Ready(None) => return Poll::Ready(true),
                Poll::Pending if out.is_empty() => return Poll::Pending,
                Poll::Pending => return Poll::Ready(false),
            }
        }
    }

    /// Tells the object that its client broke the protocol, and the client why it is cut off.
    async fn refuse(
        self,
        mut input: impl AsyncRead + Unpin,
        mut output: impl AsyncWrite + Unpin,
        violation: Violation,
    ) {
        let Self { net, client, bounds, side, shared, .. } = self;
        let error = engine::Error::coded(engine::Kind::Invalid, "socket-protocol", violation.text);
        client.fail(Error::from(error));
        drop(client);
        // A frame that was cut would swallow this one.
        if Shared::is(&shared.close_sent) || Shared::is(&shared.cut) {
            return;
        }
        let (code, reason) = (Some(violation.code), violation.text.to_owned());
        let mut out = Vec::new();
        put_close(&mut out, &CloseFrame { code, reason }, &side);
        let last = async {
            if output.write_all(&out).await.is_ok() {
                output.shutdown().await.ok();
                // The client sees the frame, not a reset, if what it still sends is read.
                while input.read(&mut [0; 64]).await.is_ok_and(|read| read > 0) {}
            }
        };
        net.within(bounds.limits.close_time.min(Duration::from_secs(2)), last).await;
    }
}
