//! Hostile bytes into the decoders, hostile programs into the whole stack: each target's body is a
//! plain function, which the fuzzer calls with what it makes up and `cargo test` with the kept
//! corpus and some changes of it.

use dormouse_engine::format::batch::{BatchHeader, Home, Role, Seal, Trailer, batch_bytes, seal};
use dormouse_engine::format::checkpoint::Checkpoint;
use dormouse_engine::format::run::{self, RunHeader};
use dormouse_engine::format::segment::SegmentHeader;
use dormouse_engine::format::superblock::Superblock;
use dormouse_engine::format::{frame, segment};
use dormouse_engine::ids::{Epoch, Incarnation, ObjectId, Sequence, StoreId};
use dormouse_sim::plan::Plan;

/// A target's body.
pub type Target = fn(&[u8]);
/// Every target by its name, which is also its corpus's.
pub const TARGETS: [(&str, Target); 4] =
    [("log", log), ("sealed", sealed), ("plan", plan), ("life", life)];

/// The store that the corpus was written for.
pub const SUPERBLOCK: Superblock =
    Superblock { store: StoreId(1), shards: 1, block_bytes: 512, created_ms: 0 };
/// The segment that the corpus was written for.
pub const HOME: Home =
    Home { store: StoreId(1), shard: 0, incarnation: Incarnation(7), block_bytes: 512 };

/// Reads bytes as everything that a log, a manifest or a run may hold, at every block. Nothing may panic, and what is
/// accepted must lie within the bytes.
pub fn log(bytes: &[u8]) {
    // An error is an answer; only panics are findings.
    let _ = Superblock::decode(bytes);
    let _ = SegmentHeader::decode(bytes, &SUPERBLOCK, HOME.shard);
    let _ = Checkpoint::decode(bytes, HOME.store, HOME.shard);
    let _ = RunHeader::decode(bytes, HOME.store, HOME.shard);
    let entries = run::entries(bytes, HOME.incarnation, 1);
    entries.iter().flatten().for_each(|entry| drop(entry.known(None)));
    let _ = run::alarms(bytes, HOME.incarnation, 1);
    assert!(bytes.len() >= segment::BYTES || SegmentHeader::decode(bytes, &SUPERBLOCK, 0).is_err());
    for at in (0..bytes.len()).step_by(HOME.block_bytes) {
        let rest = &bytes[at..];
        let _ = Trailer::decode(&bytes[..at], &HOME);
        frames(rest, at);
        let Ok(header) = BatchHeader::decode(rest, &HOME, at) else { continue };
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

/// Reads bytes as the frames of a batch whose checksums all fit: what lies behind the checksums
/// must not panic either.
pub fn sealed(bytes: &[u8]) {
    // One frame each, as long as the input lasts; the first byte says how long.
    let mut frames = Vec::new();
    let mut ids = Vec::new();
    let base = 512 + dormouse_engine::format::batch::HEADER_BYTES;
    let mut rest = bytes;
    while let Some((len, after)) = rest.split_first() {
        let len = (usize::from(*len) * 4).min(after.len());
        let (body, after) = after.split_at(len);
        rest = after;
        let start = frames.len();
        frames.extend_from_slice(body);
        let Ok(claimed) = frame::peek_bytes(&frames[start..]) else {
            frames.truncate(start);
            continue;
        };
        ids.push(ObjectId::from_bytes([len.to_le_bytes()[0]; ObjectId::BYTES]));
        let Ok(place) = u32::try_from(base + start) else { return };
        frame::set_crc(&mut frames[start..start + claimed], HOME.incarnation, place);
        frames.truncate(start + claimed);
        if let Ok(frame) = frame::decode(&frames[start..], HOME.incarnation, place) {
            assert!(frame.payload.len() <= claimed);
            frame.ops().for_each(drop);
        }
    }
    let mut batch = vec![0; batch_bytes(ids.len(), frames.len(), HOME.block_bytes)];
    let table = ids.len() * ObjectId::BYTES;
    let at = dormouse_engine::format::batch::HEADER_BYTES + table;
    batch[at..at + frames.len()].copy_from_slice(&frames);
    let fields = Seal {
        role: Role::Commits,
        epoch: Epoch(1),
        sequence: Sequence(2),
        previous_crc: 0,
        durable: Sequence(1),
        wall_ms: 0,
        offset: 0,
    };
    seal(&mut batch, &HOME, &fields, &ids, frames.len());
    let header = BatchHeader::decode(&batch, &HOME, 0).expect("sealed above");
    header.check_body(&batch).expect("sealed above");
    assert_eq!(header.table(&batch).expect("sealed above"), ids);
    assert_eq!(Trailer::decode(&batch, &HOME).expect("sealed above").ids, ids);
}

/// Reads bytes as the text of a plan: refused, or printed as a text that is the same plan.
pub fn plan(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(plan) = Plan::parse(text) else { return };
    assert_eq!(Plan::parse(&plan.print()).expect("printed"), plan);
}

/// Takes bytes as the choices of a plan, and lives it on the whole stack: every check of the
/// simulator must hold.
pub fn life(bytes: &[u8]) {
    let report = dormouse_sim::life::play(&Plan::of_bytes(bytes), false);
    if let Some(failure) = report.failure {
        panic!("{failure}\n{}", Plan::of_bytes(bytes).print());
    }
}
