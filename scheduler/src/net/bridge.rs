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
use std::task::Poll;
use std::time::Duration;

use dormouse_engine as engine;
use futures_util::future::{Either, select};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::Notify;

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

/// What the two halves tell each other.
#[derive(Default)]
struct Shared {
    /// The reader has waited long: the writer sends a ping.
    ping: AtomicBool,
    /// The object's close frame was written.
    close_sent: AtomicBool,
    /// A write has begun and is not over.
    cut: AtomicBool,
    changed: Notify,
}

impl Shared {
    fn is(flag: &AtomicBool) -> bool {
        flag.load(Ordering::Acquire)
    }

    fn set(&self, flag: &AtomicBool) {
        flag.store(true, Ordering::Release);
        self.changed.notify_one();
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

/// Carries a WebSocket's frames between a connection and its object, until one side ends. It is
/// past its opening handshake, in which this was the `side`. `going_away` says that the server is
/// being shut down: then a client whose object hangs up is told so (1001), instead of nothing
///
///
/// Cancel: the connection is cut, and the object is told that it is lost.
pub async fn carry<N: Net>(
    net: N,
    io: N::Stream,
    client: ClientSocket,
    bounds: Arc<Bounds>,
    side: impl Side,
    going_away: impl Fn() -> bool,
) {
    let limits = &bounds.limits;
    let (mut input, mut output) = tokio::io::split(io);
    let shared = Shared::default();
    let ended = {
        let reading = pin!(read(&net, &mut input, &client, &shared, &side, &bounds));
        let writing = pin!(write(&net, &mut output, &client, &shared, &side, limits, &going_away));
        match select(reading, writing).await {
            Either::Left((ended, _)) => ended,
            Either::Right(((), _)) => Ended::Gone,
        }
    };
    let Ended::Broken(violation) = ended else { return };
    let error = engine::Error::coded(engine::Kind::Invalid, "socket-protocol", violation.text);
    client.fail(Error::from(error));
    drop(client);
    // A frame that was cut would swallow this one.
    if !Shared::is(&shared.close_sent) && !Shared::is(&shared.cut) {
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
        Box::pin(net.within(limits.close_time.min(Duration::from_secs(2)), last)).await;
    }
}

enum Ended {
    /// The client, or its object.
    Gone,
    Broken(Violation),
}

async fn read<N: Net>(
    net: &N,
    input: &mut (impl AsyncRead + Unpin),
    client: &ClientSocket,
    shared: &Shared,
    side: &impl Side,
    bounds: &Bounds,
) -> Ended {
    let limits = &bounds.limits;
    let mut decoder = Decoder::new(limits.message_bytes, side);
    let mut held = Held { bounds, bytes: 0 };
    loop {
        let inbound = match decoder.next() {
            Ok(Some(inbound)) => inbound,
            Ok(None) if !held.may(decoder.held()) => return Ended::Broken(frames::TOO_MUCH),
            Ok(None) => match fill(net, input, &mut decoder, shared, limits).await {
                true => continue,
                false => return Ended::Gone,
            },
            Err(violation) => return Ended::Broken(violation),
        };
        let taken = match inbound {
            Inbound::Message(message) => Box::pin(client.send(message)).await,
            // Answered by the core, behind what it sent before.
            Inbound::Ping(bytes) => Box::pin(client.ping(bytes)).await,
            Inbound::Pong => Ok(()),
            Inbound::Close(close) => {
                let taken = client.close_with(close);
                return match taken {
                    Ok(()) => Box::pin(until_closed(net, input, limits)).await,
                    Err(_) => std::future::pending().await,
                };
            }
        };
        if taken.is_err() {
            // The object hung up: the writer sends what is left and ends.
            return std::future::pending().await;
        }
    }
}

/// Reads more; false if the client is gone, or silent for too long, ping and all.
async fn fill<N: Net>(
    net: &N,
    input: &mut (impl AsyncRead + Unpin),
    decoder: &mut Decoder,
    shared: &Shared,
    limits: &CarryLimits,
) -> bool {
    let buffer = decoder.buffer();
    for waited in [false, true] {
        let closing = Shared::is(&shared.close_sent);
        let limit = if closing { limits.close_time } else { limits.silence_time };
        match net.within(limit, input.read_buf(buffer)).await {
            Some(Ok(read)) => return read > 0,
            Some(Err(_)) => return false,
            None if waited || closing => return false,
            // Sent meanwhile: its answer has its time, and nothing follows it, a ping neither.
            None if Shared::is(&shared.close_sent) => {}
            None => shared.set(&shared.ping),
        }
    }
    false
}

/// After its close frame a client sends nothing; it is waited for until it goes, or the object has
/// had its time to close as well.
async fn until_closed<N: Net>(
    net: &N,
    input: &mut (impl AsyncRead + Unpin),
    limits: &CarryLimits,
) -> Ended {
    let gone = async { while input.read(&mut [0; 64]).await.is_ok_and(|read| read > 0) {} };
    net.within(limits.close_time, gone).await;
    Ended::Gone
}

async fn write<N: Net>(
    net: &N,
    output: &mut (impl AsyncWrite + Unpin),
    client: &ClientSocket,
    shared: &Shared,
    side: &impl Side,
    limits: &CarryLimits,
    going_away: &impl Fn() -> bool,
) {
    let mut out = Vec::new();
    loop {
        let hung_up = gather(client, shared, side, &mut out).await;
        if hung_up && going_away() && !Shared::is(&shared.close_sent) {
            let reason = "the server is shut down".to_owned();
            put_close(&mut out, &CloseFrame { code: Some(1001), reason }, side);
        }
        let sent = async {
            output.write_all(&out).await?;
            output.flush().await
        };
        shared.cut.store(true, Ordering::Release);
        let time = limits.silence_time.saturating_mul(2);
        if Box::pin(net.within(time, sent)).await.is_none_or(|sent| sent.is_err()) {
            return;
        }
        shared.cut.store(false, Ordering::Release);
        out.clear();
        out.shrink_to(IDLE_BYTES);
        if hung_up {
            // After both closes the server ends the connection (RFC 6455 §7.1.1).
            Box::pin(net.within(limits.close_time, output.shutdown())).await;
            return;
        }
    }
}

/// Waits for something to write, and takes what is there; whether the object has hung up.
async fn gather(
    client: &ClientSocket,
    shared: &Shared,
    side: &impl Side,
    out: &mut Vec<u8>,
) -> bool {
    let mut changed = pin!(shared.changed.notified());
    poll_fn(|cx| {
        loop {
            if changed.as_mut().poll(cx).is_ready() {
                changed.set(shared.changed.notified());
                continue;
            }
            if shared.ping.swap(false, Ordering::AcqRel) {
                put_ping(out, side);
            }
            match client.poll_recv(cx) {
                Poll::Ready(Some(received)) => {
                    match received {
                        Received::Message(message) => put_message(out, &message, side),
                        Received::Pong(bytes) => put_pong(out, &bytes, side),
                        Received::Close(close) => {
                            put_close(out, &close, side);
                            shared.close_sent.store(true, Ordering::Release);
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
    })
    .await
}
