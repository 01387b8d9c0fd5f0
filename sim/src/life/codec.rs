//! The client's side of the WebSocket protocol, written apart from the server's: frames in, frames
//! out (RFC 6455 §5).

use anyhow::{Result, bail, ensure};

const CONTINUATION: u8 = 0;
const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

/// What a server sends.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Frame {
    Message { binary: bool, bytes: Vec<u8> },
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Close(Option<u16>, Vec<u8>),
}

/// Reads what a server sends.
#[derive(Default)]
pub(super) struct Decoder {
    bytes: Vec<u8>,
}

impl Decoder {
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Whether the last frame is not whole.
    pub(super) fn is_cut(&self) -> bool {
        !self.bytes.is_empty()
    }

    /// The next frame that is whole.
    ///
    /// Errors: a server must not send this.
    pub(super) fn next(&mut self) -> Result<Option<Frame>> {
        let Some((&[first, second], rest)) = self.bytes.split_first_chunk() else {
            return Ok(None);
        };
        ensure!(second & 0x80 == 0, "a server's frame with a mask");
        ensure!(first & 0xf0 == 0x80, "a server's frame in parts or with reserved bits: {first:x}");
        let (head, len) = match second {
            126 => match rest.first_chunk() {
                Some(len) => (4, usize::from(u16::from_be_bytes(*len))),
                None => return Ok(None),
            },
            127 => match rest.first_chunk() {
                Some(len) => (10, usize::try_from(u64::from_be_bytes(*len))?),
                None => return Ok(None),
            },
            len => (2, usize::from(len)),
        };
        if self.bytes.len() < head + len {
            return Ok(None);
        }
        let kind = first & 0xf;
        ensure!(kind < CLOSE || len <= 125, "a control frame of {len} bytes");
        let mut bytes: Vec<u8> = self.bytes.drain(..head + len).collect();
        bytes.drain(..head);
        Ok(Some(match kind {
            TEXT | BINARY => {
                ensure!(kind == BINARY || str::from_utf8(&bytes).is_ok(), "text that is not UTF-8");
                Frame::Message { binary: kind == BINARY, bytes }
            }
            PING => Frame::Ping(bytes),
            PONG => Frame::Pong(bytes),
            CLOSE if bytes.is_empty() => Frame::Close(None, bytes),
            CLOSE => {
                ensure!(bytes.len() >= 2, "a close code of one byte");
                let reason = bytes.split_off(2);
                Frame::Close(Some(u16::from_be_bytes([bytes[0], bytes[1]])), reason)
            }
            kind => bail!("a server's frame of kind {kind}"),
        }))
    }
}

/// Appends a client's frame with any first byte, masked.
pub(super) fn put(out: &mut Vec<u8>, first: u8, mask: [u8; 4], payload: &[u8]) {
    out.push(first);
    match payload.len() {
        len @ ..126 => out.push(0x80 | u8::try_from(len).expect("short")),
        len @ ..65_536 => {
            out.push(0x80 | 126);
            out.extend(u16::try_from(len).expect("16 bits").to_be_bytes());
        }
        len => {
            out.push(0x80 | 127);
            out.extend((len as u64).to_be_bytes());
        }
    }
    out.extend(mask);
    out.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
}

/// Appends a message in so many parts, cut anywhere, with a ping between the first two.
pub(super) fn put_message(
    out: &mut Vec<u8>,
    mask: [u8; 4],
    binary: bool,
    payload: &[u8],
    parts: usize,
    mut ping: Option<&[u8]>,
) {
    let part = payload.len().div_ceil(parts.max(1)).max(1);
    let mut rest = payload;
    let mut kind = if binary { BINARY } else { TEXT };
    loop {
        let (now, later) = rest.split_at(part.min(rest.len()));
        let last = if later.is_empty() { 0x80 } else { 0 };
        put(out, last | kind, mask, now);
        if later.is_empty() {
            return;
        }
        ping.take().into_iter().for_each(|ping| put_ping(out, mask, ping));
        (kind, rest) = (CONTINUATION, later);
    }
}

pub(super) fn put_ping(out: &mut Vec<u8>, mask: [u8; 4], payload: &[u8]) {
    put(out, 0x80 | PING, mask, payload);
}

pub(super) fn put_pong(out: &mut Vec<u8>, mask: [u8; 4], payload: &[u8]) {
    put(out, 0x80 | PONG, mask, payload);
}

pub(super) fn put_close(out: &mut Vec<u8>, mask: [u8; 4], code: Option<u16>, reason: &[u8]) {
    let code = code.map(u16::to_be_bytes);
    let payload = [code.as_ref().map_or(&[][..], |code| &code[..]), reason].concat();
    put(out, 0x80 | CLOSE, mask, &payload);
}
