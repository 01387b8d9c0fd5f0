//! Hostile bytes into the decoders, hostile programs into the whole stack: each target's body is a
//! plain function, which the fuzzer calls with what it makes up and `cargo test` with the kept
//! corpus and some changes of it.

use bytes::Bytes;
use dormouse_engine::format::batch::{BatchHeader, Home, Role, Seal, Trailer, batch_bytes, seal};
use dormouse_engine::format::checkpoint::Checkpoint;
use dormouse_engine::format::page::{Page, decode_root, decode_value, encode_root};
use dormouse_engine::format::run::{self, BLOCK_BYTES, HEAD_BYTES, Key, RunHeader, SLOT_BYTES};
use dormouse_engine::format::segment::SegmentHeader;
use dormouse_engine::format::superblock::Superblock;
use dormouse_engine::format::{frame, segment};
use dormouse_engine::ids::{Epoch, Incarnation, ObjectId, Sequence, StoreId};
use dormouse_sim::plan::Plan;

/// A target's body.
pub type Target = fn(&[u8]);
/// Every target by its name, which is also its corpus's.
pub const TARGETS: [(&str, Target); 6] = [
    ("log", log),
    ("sealed", sealed),
    ("sealed-run", sealed_run),
    ("page", page),
    ("plan", plan),
    ("life", life),
];

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
    block_of_run(bytes);
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

/// Reads bytes as a page, a root or a value of a large object, behind their frame's checksum. Nothing may
/// panic, and a page that is accepted is written as it was.
pub fn page(bytes: &[u8]) {
    let bytes = Bytes::copy_from_slice(bytes);
    if let Ok(page) = Page::decode(&bytes) {
        let mut again = Vec::new();
        page.encode(&mut again);
        assert_eq!(again, bytes);
    }
    if let Ok((operations, root)) = decode_root(&bytes) {
        let mut again = Vec::new();
        encode_root(&operations, &root, &mut again);
        assert_eq!(again, bytes);
    }
    if let Ok((key, value)) = decode_value(&bytes) {
        assert_eq!(2 + key.len() + value.len(), bytes.len());
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

/// Reads bytes as a block of a run in all the ways that there are. Who looks for an object that is
/// listed must find it.
fn block_of_run(block: &[u8]) {
    let _ = run::alarms(block, HOME.incarnation, 1);
    let _ = run::first_id(block, HOME.incarnation, 1);
    let absent = Key::new(HOME.store, ObjectId::from_bytes([0xfe; ObjectId::BYTES]));
    let _ = run::find(block, HOME.incarnation, 1, &absent);
    for mut entry in run::entries(block, HOME.incarnation, 1).unwrap_or_default() {
        let _ = (entry.is_deleted(), entry.alarm());
        let key = Key::new(HOME.store, entry.id());
        let _ = run::find(block, HOME.incarnation, 1, &key);
        let found = run::find_known(block, HOME.incarnation, 1, &key);
        if let (Ok(known), Ok(found)) = (entry.known(None), found) {
            // In a table that fits nothing its tag may be another one's.
            assert!(found.is_none_or(|found| found == known || is_double(block, &key)));
        }
        let older = entry.clone();
        entry.learn(&older);
    }
}

/// Whether several entries of a block, or of its table, say that they are this object's.
fn is_double(block: &[u8], key: &Key) -> bool {
    let id = key.id.as_bytes();
    block.windows(ObjectId::BYTES).filter(|bytes| bytes == id).count() > 1
}

/// Reads bytes as a block of a run whose checksums all fit: what lies behind the checksums must
/// not panic either.
pub fn sealed_run(bytes: &[u8]) {
    for has_table in [true, false] {
        block_of_run(&seal_run(bytes, has_table));
    }
}

/// A block of a run, from its count on, with the checksums that fit; what is missing is zero.
pub fn seal_run(bytes: &[u8], has_table: bool) -> Vec<u8> {
    let mut block = vec![0; BLOCK_BYTES];
    let len = bytes.len().min(BLOCK_BYTES - 4);
    block[4..4 + len].copy_from_slice(&bytes[..len]);
    let word = |block: &[u8], at| usize::from(u16::from_le_bytes([block[at], block[at + 1]]));
    let slots_max = if has_table { (BLOCK_BYTES - HEAD_BYTES) / SLOT_BYTES } else { 0 };
    let slots = word(&block, 4).min(slots_max);
    for slot in 0..slots {
        let at = HEAD_BYTES + slot * SLOT_BYTES;
        let end = if slot + 1 == slots { word(&block, 6) } else { word(&block, at + SLOT_BYTES) };
        let entry = block.get(word(&block, at)..end).unwrap_or_default();
        let crc = crc32c::crc32c(entry).to_le_bytes();
        block[at + 4..at + SLOT_BYTES].copy_from_slice(&crc);
    }
    run::set_crcs(&mut block, slots * SLOT_BYTES, HOME.incarnation, 1);
    block
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
