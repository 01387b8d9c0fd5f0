//! The other side of the WebSocket protocol, from bytes to messages, and this one's back (RFC 6455 §5).
//!
//! Headers are tungstenite's to read and write. What follows from them is here and not there,
//! because its `WebSocket` answers a close frame by itself and then sends nothing more, where
//! an object's socket is closed by the object alone and may send until then.
//!
//! Invariants: a message is bounded before its bytes are awaited, so the buffer holds at most one
//! message and one read; after an error nothing more is read.

use std::future::Future;
use std::io::{self, Cursor};
use std::mem::MaybeUninit;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, ReadBuf};
use tungstenite::protocol::frame::FrameHeader;
use tungstenite::protocol::frame::coding::{CloseCode, Control, Data, OpCode};

use crate::socket::{CloseFrame, Message};

/// Bytes of a control frame at most (RFC 6455 §5.5).
const CONTROL_BYTES_MAX: u64 = 125;

/// Bytes that are read at once of one that said nothing before: most messages are shorter.
const FIRST_BYTES: usize = 2 << 10;
/// Bytes that are read at once, of one that is in the midst of something.
pub(crate) const CHUNK_BYTES: usize = 16 << 10;

/// Which side of a connection this is. A client masks what it sends, a server does not (RFC 6455
/// §5.1).
pub trait Side {
    /// Whether the other side is to mask.
    const READS_MASKED: bool;
    /// The mask of the next frame, if this side masks.
    fn mask(&self) -> Option<[u8; 4]>;
}

/// The side that was connected to.
#[derive(Clone, Copy, Debug)]
pub struct Server;

impl Side for Server {
    const READS_MASKED: bool = true;

    fn mask(&self) -> Option<[u8; 4]> {
        None
    }
}

/// The side that connected, with where its masks come from.
#[derive(Clone, Copy, Debug)]
pub struct Client<F>(pub F);

impl<F: Fn() -> [u8; 4]> Side for Client<F> {
    const READS_MASKED: bool = false;

    fn mask(&self) -> Option<[u8; 4]> {
        Some((self.0)())
    }
}

/// What the other side sent.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Inbound {
    Message(Message),
    Ping(Bytes),
    Pong,
    Close(CloseFrame),
}

/// What the other side may not send, and the code to close with.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Violation {
    pub(crate) code: u16,
    pub(crate) text: &'static str,
}

const fn protocol(text: &'static str) -> Violation {
    Violation { code: 1002, text }
}

/// What is closed because all together hold too much.
pub(crate) const TOO_MUCH: Violation = Violation { code: 1013, text: "too much is going on" };
const TOO_LARGE: Violation = Violation { code: 1009, text: "message too large" };
const NOT_UTF8: Violation = Violation { code: 1007, text: "text that is not UTF-8" };

/// A message of which fragments are missing.
struct Partial {
    is_text: bool,
    bytes: BytesMut,
}

/// Reads what the other side sends.
pub(crate) struct Decoder {
    buffer: BytesMut,
    /// In a box, for few have one.
    partial: Option<Box<Partial>>,
    message_bytes_max: usize,
    /// Whether frames must have a mask; else they must not.
    masked: bool,
}

impl Decoder {
    pub(crate) fn new<S: Side>(message_bytes_max: usize, _side: &S) -> Self {
        let masked = S::READS_MASKED;
        Self { buffer: BytesMut::new(), partial: None, message_bytes_max, masked }
    }

    /// Takes bytes that arrive; how many, none at the end. While it waits with nothing in it, it holds
    /// no memory, neither of what came before nor for what will come: most clients are silent most of
    /// the time.
    pub(crate) fn poll_fill(
        &mut self,
        input: &mut (impl AsyncRead + Unpin),
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        if !self.buffer.is_empty() {
            self.buffer.reserve(CHUNK_BYTES);
            return pin!(input.read_buf(&mut self.buffer)).poll(cx);
        }
        self.buffer = BytesMut::new();
        let mut space = [const { MaybeUninit::uninit() }; FIRST_BYTES];
        let mut read = ReadBuf::uninit(&mut space);
        ready!(Pin::new(input).poll_read(cx, &mut read))?;
        self.buffer = BytesMut::from(read.filled());
        Poll::Ready(Ok(read.filled().len()))
    }

    /// Takes these bytes, as if they had arrived: for tests.
    #[cfg(any(test, feature = "server"))]
    pub(crate) fn put(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let read =
                self.poll_fill(&mut bytes, &mut Context::from_waker(std::task::Waker::noop()));
            assert!(matches!(read, Poll::Ready(Ok(1..))));
        }
    }

    /// Bytes that it holds, of what has not come whole.
    pub(crate) fn held(&self) -> usize {
        let partial = self.partial.as_ref().map_or(0, |partial| partial.bytes.capacity());
        self.buffer.capacity() + partial
    }

    /// Whether it holds nothing, of a frame or of a message.
    pub(crate) fn is_idle(&self) -> bool {
        self.buffer.is_empty() && self.partial.is_none()
    }

    /// The next thing that is complete; `None` if more bytes are needed.
    pub(crate) fn next(&mut self) -> Result<Option<Inbound>, Violation> {
        loop {
            let Some((header, mut payload)) = self.frame()? else { return Ok(None) };
            if let Some(mask) = header.mask {
                apply(mask, &mut payload);
            }
            match header.opcode {
                OpCode::Control(Control::Ping) => {
                    return Ok(Some(Inbound::Ping(payload.freeze())));
                }
                OpCode::Control(Control::Pong) => return Ok(Some(Inbound::Pong)),
                OpCode::Control(Control::Close) => return close(&payload).map(Some),
                OpCode::Data(kind) => {
                    if let Some(message) = self.fragment(kind, header.is_final, payload)? {
                        return Ok(Some(Inbound::Message(message)));
                    }
                }
                OpCode::Control(Control::Reserved(_)) => unreachable!("refused with its header"),
            }
        }
    }

    /// The next frame that is complete.
    fn frame(&mut self) -> Result<Option<(FrameHeader, BytesMut)>, Violation> {
        let mut cursor = Cursor::new(&self.buffer[..]);
        let parsed = FrameHeader::parse(&mut cursor);
        let parsed = parsed.map_err(|_| protocol("an unknown kind of frame"))?;
        let Some((header, len)) = parsed else { return Ok(None) };
        self.check(&header, len)?;
        let head = usize::try_from(cursor.position()).expect("a header is short");
        let len = usize::try_from(len).expect("checked against a bound");
        if self.buffer.len() < head + len {
            return Ok(None);
        }
        self.buffer.advance(head);
        Ok(Some((header, self.buffer.split_to(len))))
    }

    /// Whether a frame may come here, before its bytes do.
    fn check(&self, header: &FrameHeader, len: u64) -> Result<(), Violation> {
        if header.rsv1 || header.rsv2 || header.rsv3 {
            return Err(protocol("a reserved bit"));
        }
        match header.mask {
            None if self.masked => return Err(protocol("a frame without a mask")),
            Some(_) if !self.masked => return Err(protocol("a frame with a mask")),
            _ => {}
        }
        match (header.opcode, &self.partial) {
            (OpCode::Control(Control::Reserved(_)) | OpCode::Data(Data::Reserved(_)), _) => {
                Err(protocol("an unknown kind of frame"))
            }
            (OpCode::Control(_), _) if !header.is_final || len > CONTROL_BYTES_MAX => {
                Err(protocol("a control frame that is long or in parts"))
            }
            (OpCode::Control(_), _) => Ok(()),
            (OpCode::Data(Data::Continue), None) => Err(protocol("a part without a beginning")),
            (OpCode::Data(Data::Text | Data::Binary), Some(_)) => {
                Err(protocol("a message within another"))
            }
            (OpCode::Data(_), partial) => {
                let before = partial.as_ref().map_or(0, |partial| partial.bytes.len());
                match len > (self.message_bytes_max - before) as u64 {
                    true => Err(TOO_LARGE),
                    false => Ok(()),
                }
            }
        }
    }

    fn fragment(
        &mut self,
        kind: Data,
        is_final: bool,
        payload: BytesMut,
    ) -> Result<Option<Message>, Violation> {
        let whole = match self.partial.take().map(|partial| *partial) {
            None => Partial { is_text: kind == Data::Text, bytes: payload },
            Some(mut partial) => {
                partial.bytes.extend_from_slice(&payload);
                partial
            }
        };
        if !is_final {
            self.partial = Some(Box::new(whole));
            return Ok(None);
        }
        Ok(Some(match whole.is_text {
            true => Message::from(std::str::from_utf8(&whole.bytes).map_err(|_| NOT_UTF8)?),
            false => Message::from(whole.bytes.freeze()),
        }))
    }
}

fn close(payload: &[u8]) -> Result<Inbound, Violation> {
    let Some((code, reason)) = payload.split_first_chunk::<2>() else {
        return match payload.is_empty() {
            true => Ok(Inbound::Close(CloseFrame::default())),
            false => Err(protocol("a close code of one byte")),
        };
    };
    let code = u16::from_be_bytes(*code);
    if !CloseCode::from(code).is_allowed() {
        return Err(protocol("a close code that no frame may carry"));
    }
    let reason = std::str::from_utf8(reason).map_err(|_| NOT_UTF8)?;
    Ok(Inbound::Close(CloseFrame { code: Some(code), reason: reason.to_owned() }))
}

/// Appends a message of the object's.
pub(crate) fn put_message(out: &mut Vec<u8>, message: &Message, side: &impl Side) {
    let kind = if message.as_text().is_some() { Data::Text } else { Data::Binary };
    put(out, OpCode::Data(kind), message.as_bytes(), side);
}

pub(crate) fn put_pong(out: &mut Vec<u8>, bytes: &[u8], side: &impl Side) {
    put(out, OpCode::Control(Control::Pong), bytes, side);
}

pub(crate) fn put_ping(out: &mut Vec<u8>, side: &impl Side) {
    put(out, OpCode::Control(Control::Ping), &[], side);
}

pub(crate) fn put_close(out: &mut Vec<u8>, close: &CloseFrame, side: &impl Side) {
    let code = close.code.map(u16::to_be_bytes);
    let mut payload = Vec::from(code.as_ref().map_or(&[][..], |code| code));
    payload.extend_from_slice(close.reason.as_bytes());
    put(out, OpCode::Control(Control::Close), &payload, side);
}

fn put(out: &mut Vec<u8>, opcode: OpCode, payload: &[u8], side: &impl Side) {
    let mask = side.mask();
    let header = FrameHeader { opcode, mask, ..FrameHeader::default() };
    header.format(payload.len() as u64, out).expect("a vector takes everything");
    let at = out.len();
    out.extend_from_slice(payload);
    if let Some(mask) = mask {
        apply(mask, &mut out[at..]);
    }
}

fn apply(mask: [u8; 4], payload: &mut [u8]) {
    payload.iter_mut().zip(mask.iter().cycle()).for_each(|(byte, mask)| *byte ^= mask);
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;
    use proptest::sample::Index;

    use super::*;

    /// A client's frame: first byte, payload.
    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mask = [0x12, 0x34, 0x56, 0x78];
        let mut bytes = vec![first];
        match payload.len() {
            len @ ..126 => bytes.push(0x80 | u8::try_from(len).unwrap()),
            len @ ..65_536 => {
                bytes.push(0x80 | 126);
                bytes.extend(u16::try_from(len).unwrap().to_be_bytes());
            }
            len => {
                bytes.push(0x80 | 127);
                bytes.extend((len as u64).to_be_bytes());
            }
        }
        bytes.extend(mask);
        bytes.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        bytes
    }

    /// All that comes of these bytes, fed in pieces of this size.
    fn decode(bytes: &[u8], piece: usize) -> Result<Vec<Inbound>, Violation> {
        let mut decoder = Decoder::new(1000, &Server);
        let mut all = Vec::new();
        for piece in bytes.chunks(piece) {
            decoder.put(piece);
            while let Some(inbound) = decoder.next()? {
                all.push(inbound);
            }
        }
        Ok(all)
    }

    fn close_of(code: u16, reason: &[u8]) -> Vec<u8> {
        frame(0x88, &[&code.to_be_bytes(), reason].concat())
    }

    #[test]
    fn messages_come_whole_however_they_are_cut() {
        let bytes = [
            frame(0x81, "héllo".as_bytes()),
            frame(0x01, b"one "),
            frame(0x89, b"ping"),
            frame(0x00, b"two "),
            frame(0x80, b"three"),
            frame(0x82, &[7; 700]),
            frame(0x8a, b""),
            close_of(4000, b"bye"),
        ]
        .concat();
        let expected = [
            Inbound::Message("héllo".into()),
            Inbound::Ping(Bytes::from_static(b"ping")),
            Inbound::Message("one two three".into()),
            Inbound::Message(vec![7; 700].into()),
            Inbound::Pong,
            Inbound::Close(CloseFrame::new(Some(4000), "bye").unwrap()),
        ];
        for piece in [1, 2, 3, 7, 64, bytes.len()] {
            assert_eq!(decode(&bytes, piece).unwrap(), expected, "in pieces of {piece}");
        }
    }

    #[test]
    fn what_a_client_may_not_send_has_its_code() {
        let unmasked = vec![0x81, 0x01, b'x'];
        let huge = [&[0x82, 0xff][..], &u64::MAX.to_be_bytes(), &[0; 4]].concat();
        let half = [frame(0x02, &[0; 600]), frame(0x80, &[0; 401])].concat();
        for (bytes, code) in [
            (unmasked, 1002),
            (frame(0xc1, b"x"), 1002),
            (frame(0x83, b"x"), 1002),
            (frame(0x8b, b""), 1002),
            (frame(0x09, b"part of a ping"), 1002),
            (frame(0x89, &[0; 126]), 1002),
            (frame(0x80, b"no beginning"), 1002),
            ([frame(0x01, b"a"), frame(0x81, b"b")].concat(), 1002),
            (frame(0x88, b"x"), 1002),
            (close_of(999, b""), 1002),
            (close_of(1005, b""), 1002),
            (close_of(1006, b""), 1002),
            (close_of(1000, &[0xff]), 1007),
            (frame(0x81, &[0xc3, 0x28]), 1007),
            (frame(0x82, &[0; 1001]), 1009),
            (huge, 1009),
            (half, 1009),
        ] {
            for piece in [1, bytes.len()] {
                let violation = decode(&bytes, piece).unwrap_err();
                assert_eq!(violation.code, code, "{bytes:x?}");
            }
        }
    }

    #[test]
    fn a_long_message_is_refused_before_it_comes() {
        let header = &frame(0x82, &[0; 70_000])[..14];
        assert_eq!(decode(header, header.len()).unwrap_err(), TOO_LARGE);
    }

    proptest! {
        /// However bytes are cut into reads, the same comes of them, and the buffer holds no more
        /// than one message, its header and one read.
        #[test]
        fn the_cuts_between_reads_do_not_show(
            frames in vec((any::<u8>(), vec(any::<u8>(), 0..300)), 0..12),
            flips in vec((any::<Index>(), any::<u8>()), 0..3),
            piece in 1..400_usize,
        ) {
            let kinds = [0x81, 0x82, 0x01, 0x02, 0x00, 0x80, 0x89, 0x8a, 0x88];
            let mut bytes: Vec<u8> = Vec::new();
            for (kind, payload) in &frames {
                bytes.extend(frame(kinds[usize::from(*kind) % kinds.len()], payload));
            }
            for (at, with) in &flips {
                if !bytes.is_empty() {
                    let at = at.index(bytes.len());
                    bytes[at] ^= with;
                }
            }
            let (mut whole, mut cut) = (Decoder::new(1000, &Server), Decoder::new(1000, &Server));
            whole.put(&bytes);
            let whole = drain(&mut whole);
            let mut in_pieces = Vec::new();
            for piece in bytes.chunks(piece) {
                cut.put(piece);
                let some = drain(&mut cut);
                prop_assert!(cut.buffer.len() < 1000 + 14 + 400 || matches!(some.last(), Some(Err(_))));
                in_pieces.extend(some);
                if matches!(in_pieces.last(), Some(Err(_))) {
                    break;
                }
            }
            prop_assert_eq!(whole, in_pieces);
        }
    }

    fn drain(decoder: &mut Decoder) -> Vec<Result<Inbound, Violation>> {
        let mut all = Vec::new();
        loop {
            match decoder.next() {
                Ok(None) => return all,
                Ok(Some(inbound)) => all.push(Ok(inbound)),
                Err(violation) => {
                    all.push(Err(violation));
                    return all;
                }
            }
        }
    }

    /// A character may lie in two fragments.
    #[test]
    fn text_is_judged_whole() {
        let bytes = [frame(0x01, &[0xc3]), frame(0x80, &[0xa9])].concat();
        assert_eq!(decode(&bytes, 1).unwrap(), [Inbound::Message("é".into())]);
    }
}
