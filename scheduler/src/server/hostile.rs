//! What a stranger's bytes meet first, as one function for `fuzz/` and tests: frames and handshakes.
//!
//! Nothing may panic, and: how bytes are cut into reads does not show; what is held has a bound;
//! tungstenite's own reader takes the same messages from them; what is sent of a message comes
//! back as the same.

use std::io::{Cursor, Read, Write};

use http::{HeaderName, HeaderValue, Request};
use tungstenite::error::ProtocolError;
use tungstenite::protocol::{Role, WebSocketConfig};
use tungstenite::{Error, WebSocket};

use super::{Origins, handshake};
use crate::net::frames::{
    CHUNK_BYTES, Client, Decoder, Inbound, Server, Side, Violation, put_message,
};
use crate::socket::{Message, UpgradeRequest};

/// Bytes of a message at most, here.
const MESSAGE_BYTES: usize = 1000;

/// Reads bytes as what a client sends: the first says whether it is past its handshake, the second
/// into which pieces it is cut.
pub fn hostile(bytes: &[u8]) {
    let Some(([kind, piece], bytes)) = bytes.split_first_chunk() else { return };
    match kind % 3 {
        0 => frames(bytes, usize::from(*piece).max(1), &Server),
        1 => frames(bytes, usize::from(*piece).max(1), &Client(|| [1, 2, 3, 4])),
        _ => handshakes(bytes),
    }
}

type Decoded = (Vec<Inbound>, Option<Violation>);

fn frames<S: Side>(bytes: &[u8], piece: usize, side: &S) {
    let whole = decode(bytes, bytes.len().max(1), side);
    assert_eq!(whole, decode(bytes, piece, side), "the cuts between reads show");
    if S::READS_MASKED {
        agrees(bytes, &whole);
    }
    for inbound in whole.0 {
        if let Inbound::Message(message) = inbound {
            comes_back(&message, &Server, &Client(|| [0; 4]));
            comes_back(&message, &Client(|| [7, 0, 255, 1]), &Server);
        }
    }
}

/// All that comes of these bytes, fed in pieces of this size.
fn decode<S: Side>(bytes: &[u8], piece: usize, side: &S) -> Decoded {
    let mut decoder = Decoder::new(MESSAGE_BYTES, side);
    let mut all = Vec::new();
    for piece in bytes.chunks(piece) {
        decoder.put(piece);
        loop {
            match decoder.next() {
                Ok(Some(inbound)) => all.push(inbound),
                Ok(None) => break,
                Err(violation) => return (all, Some(violation)),
            }
        }
        let most = 4 * (MESSAGE_BYTES + CHUNK_BYTES + piece.len());
        assert!(decoder.held() <= most, "{} bytes are held", decoder.held());
    }
    (all, None)
}

/// Whether another reader takes the same from it, up to where either ends: it judges a text before
/// it is whole.
fn agrees(bytes: &[u8], (ours, violation): &Decoded) {
    let config = WebSocketConfig::default().max_message_size(Some(MESSAGE_BYTES));
    let config = config.max_frame_size(Some(MESSAGE_BYTES));
    let mut other =
        WebSocket::from_raw_socket(Input(Cursor::new(bytes)), Role::Server, Some(config));
    let mut theirs = Vec::new();
    // Whether it read all there was.
    let is_through = loop {
        match other.read() {
            Ok(tungstenite::Message::Text(text)) => theirs.push(Inbound::Message((*text).into())),
            Ok(tungstenite::Message::Binary(bytes)) => theirs.push(Inbound::Message(bytes.into())),
            Ok(tungstenite::Message::Ping(bytes)) => theirs.push(Inbound::Ping(bytes)),
            Ok(tungstenite::Message::Pong(_)) => theirs.push(Inbound::Pong),
            Ok(tungstenite::Message::Close(_) | tungstenite::Message::Frame(_)) => break false,
            Err(Error::Protocol(ProtocolError::ResetWithoutClosingHandshake)) => break true,
            Err(_) => break false,
        }
    };
    let is_close = |inbound: &Inbound| matches!(inbound, Inbound::Close(_));
    let ours = ours.iter().take_while(|inbound| !is_close(inbound)).collect::<Vec<_>>();
    let both = ours.len().min(theirs.len());
    assert!(ours[..both].iter().copied().eq(&theirs[..both]), "{ours:?} is not {theirs:?}");
    // More than the other took only where that gave up, and less only where this did. (A bad frame this
    // one refuses by its header, the other when it is whole.)
    assert!(ours.len() == both || !is_through, "{ours:?} is more than {theirs:?}");
    assert!(theirs.len() == both || violation.is_some(), "{theirs:?} is more than {ours:?}");
}

/// Bytes that were sent, and nobody who listens.
struct Input<'a>(Cursor<&'a [u8]>);

impl Read for Input<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Write for Input<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn comes_back(message: &Message, sender: &impl Side, reader: &impl Side) {
    let mut bytes = Vec::new();
    put_message(&mut bytes, message, sender);
    let (all, violation) = decode(&bytes, bytes.len(), reader);
    assert_eq!((all, violation), (vec![Inbound::Message(message.clone())], None));
}

/// Lines of headers.
fn handshakes(bytes: &[u8]) {
    let mut request = Request::get("/").body(()).expect("a request");
    for line in bytes.split(|byte| *byte == b'\n') {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let name = HeaderName::from_bytes(&line[..colon]);
        let value = HeaderValue::from_bytes(line[colon + 1..].trim_ascii());
        if let (Ok(name), Ok(value)) = (name, value) {
            request.headers_mut().append(name, value);
        }
    }
    let any = handshake::accept_key(&request, Origins::Any);
    let same = handshake::accept_key(&request, Origins::Same);
    assert!(same == any || same == Err(http::StatusCode::FORBIDDEN), "{same:?}, {any:?}");
    if let Ok(Some(accept)) = any {
        // 20 bytes in Base64.
        assert_eq!(accept.len(), 28);
        assert!(matches!(request.web_socket_upgrade(), Ok(Some(_))));
    }
}
