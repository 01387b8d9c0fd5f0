//! Hostile bytes into the decoders: each target's body is a plain function, which the fuzzer calls
//! with what it makes up and `cargo test` with the kept corpus.

use dormouse_engine::format::batch::{BatchHeader, Home, Trailer};
use dormouse_engine::format::segment::SegmentHeader;
use dormouse_engine::format::superblock::Superblock;
use dormouse_engine::format::{frame, segment};
use dormouse_engine::ids::{Incarnation, StoreId};

/// The store that the corpus was written for.
pub const SUPERBLOCK: Superblock =
    Superblock { store: StoreId(1), shards: 1, block_bytes: 512, created_ms: 0 };
/// The segment that the corpus was written for.
pub const HOME: Home =
    Home { store: StoreId(1), shard: 0, incarnation: Incarnation(7), block_bytes: 512 };

/// Reads bytes as everything that a log may hold, at every block. Nothing may panic, and what is
/// accepted must lie within the bytes.
pub fn log(bytes: &[u8]) {
    // An error is an answer; only panics are findings.
    let _ = Superblock::decode(bytes);
    let _ = SegmentHeader::decode(bytes, &SUPERBLOCK, HOME.shard);
    assert!(bytes.len() >= segment::BYTES || SegmentHeader::decode(bytes, &SUPERBLOCK, 0).is_err());
    for at in (0..bytes.len()).step_by(HOME.block_bytes) {
        let rest = &bytes[at..];
        let _ = Trailer::decode(&bytes[..at], &HOME);
        frames(rest, at);
        let Ok(header) = BatchHeader::decode(rest, &HOME) else { continue };
        let _ = header.table(rest);
        if header.check_body(rest).is_ok() {
            let range = header.frames();
            assert!(range.end <= header.bytes as usize);
            frames(&rest[range.clone()], at + range.start);
        }
    }
}

fn frames(bytes: &[u8], offset: usize) {
    let mut at = 0;
    while let Ok(len) = frame::peek_bytes(&bytes[at..]) {
        let Ok(place) = u32::try_from(offset + at) else { return };
        if let Ok(frame) = frame::decode(&bytes[at..], HOME.incarnation, place) {
            assert!(frame.payload.len() <= len);
        }
        at += len;
    }
}
