//! The formats' bytes, pinned: what this build writes and reads must stay what it was.
//!
//! A difference here is a change of the format: it needs a new version, never a new golden file.

use dormouse_engine::Batch;
use dormouse_engine::contents::Origin;
use dormouse_engine::directory::{Entry, Known, Stamp};
use dormouse_engine::format::batch::{self, BatchHeader, Home, Role, Seal, Trailer};
use dormouse_engine::format::checkpoint::{Checkpoint, RunRef, SegmentRef};
use dormouse_engine::format::entry::RawEntry;
use dormouse_engine::format::frame::{self, Address, Frame, Kind, Share, Sizes};
use dormouse_engine::format::run::{self, BlockBuilder, Key, RunHeader};
use dormouse_engine::format::segment::SegmentHeader;
use dormouse_engine::format::{Rejected, superblock::Superblock};
use dormouse_engine::ids::{
    Epoch, Incarnation, NamespaceTag, ObjectId, SegmentNumber, Sequence, StoreId, Version,
};

const STORE: StoreId = StoreId(0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10);
const HOME: Home = Home {
    store: STORE,
    shard: 3,
    incarnation: Incarnation(0x1122_3344_5566_7788),
    block_bytes: 512,
};

fn superblock() -> Superblock {
    Superblock { store: STORE, shards: 5, block_bytes: 512, created_ms: 1_700_000_000_000 }
}

fn segment() -> SegmentHeader {
    SegmentHeader {
        store: STORE,
        shard: 3,
        number: SegmentNumber(7),
        bytes: 16 << 10,
        incarnation: HOME.incarnation,
        block_bytes: 512,
    }
}

fn id() -> ObjectId {
    ObjectId::from_bytes(std::array::from_fn(|index| u8::try_from(index).expect("32 bytes")))
}

fn delta(payload: &[u8]) -> Frame<'_> {
    Frame {
        kind: Kind::Delta,
        part: false,
        rewrite: false,
        object: id(),
        version: Version(9),
        predecessor: Some(Address { segment: 6, offset: 512, bytes: 104 }),
        existed: true,
        chain: vec![Address { segment: 5, offset: 1024, bytes: 200 }],
        parts: 0,
        shares: vec![Share { segment: 4, bytes: 300 }],
        scattered: false,
        tree: false,
        kept: Vec::new(),
        nests: true,
        sizes: Sizes { image_bytes: 200, delta_bytes: 104, depth: 1 },
        wall_ms: 1_700_000_000_001,
        alarm: Some(1_700_000_060_000),
        origin: Origin::default(),
        namespace: NamespaceTag::NONE,
        payload,
        links: &[],
    }
}

/// A sealed batch of one delta frame with a chain, and its header's checksum.
fn sealed() -> Vec<u8> {
    let ops = dormouse_engine::Batch::new().put("key", "value").delete("gone");
    let payload = payload_of(&ops);
    let frame = delta(&payload);
    let mut frames = Vec::new();
    frame.encode(&mut frames);
    let at = batch::HEADER_BYTES + ObjectId::BYTES;
    let mut bytes = vec![0xee; batch::batch_bytes(1, frames.len(), HOME.block_bytes)];
    bytes[at..at + frames.len()].copy_from_slice(&frames);
    let offset = u32::try_from(512 + at).expect("small");
    frame::set_crc(&mut bytes[at..at + frames.len()], HOME.incarnation, offset);
    let fields = Seal {
        role: Role::Commits,
        epoch: Epoch(2),
        sequence: Sequence(42),
        previous_crc: 0xdead_beef,
        durable: Sequence(41),
        wall_ms: 1_700_000_000_002,
        offset: 512,
    };
    batch::seal(&mut bytes, &HOME, &fields, &[id()], frames.len());
    bytes
}

fn payload_of(batch: &Batch) -> Vec<u8> {
    let mut payload = Vec::new();
    for op in batch.ops() {
        let (tag, key, value) = match op {
            dormouse_engine::Op::Put(key, value) => (1, key, value),
            dormouse_engine::Op::Delete(key) => (2, key, &[][..]),
        };
        payload.push(tag);
        payload.extend_from_slice(&u16::try_from(key.len()).expect("short").to_le_bytes());
        payload.extend_from_slice(&u32::try_from(value.len()).expect("short").to_le_bytes());
        payload.extend_from_slice(key);
        payload.extend_from_slice(value);
    }
    payload
}

fn hex(bytes: &[u8]) -> String {
    let lines = bytes.chunks(32).map(|line| {
        line.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().concat() + "\n"
    });
    lines.collect()
}

#[test]
fn the_bytes_are_those_of_the_first_release() {
    assert_eq!(hex(&superblock().encode()), include_str!("golden/superblock.hex"));
    assert_eq!(hex(&segment().encode()), include_str!("golden/segment.hex"));
    assert_eq!(hex(&sealed()), include_str!("golden/batch.hex"));
}

#[test]
fn what_was_written_reads_back() {
    assert_eq!(Superblock::decode(&superblock().encode()), Ok(superblock()));
    assert_eq!(SegmentHeader::decode(&segment().encode(), &superblock(), 3), Ok(segment()));
    let bytes = sealed();
    let header = BatchHeader::decode(&bytes, &HOME, 512).expect("valid");
    header.check_body(&bytes).expect("valid");
    assert_eq!(header.table(&bytes), Ok(vec![id()]));
    assert_eq!(Trailer::decode(&bytes, &HOME).expect("valid").ids, [id()]);
    let offset = u32::try_from(512 + header.frames().start).expect("small");
    let frame = frame::decode(&bytes[header.frames()], HOME.incarnation, offset).expect("valid");
    assert_eq!((frame.object, frame.version), (id(), Version(9)));
    assert_eq!(frame.alarm, Some(1_700_000_060_000));
    assert_eq!((frame.chain.len(), frame.nests, frame.existed), (1, true, true));
    assert_eq!(frame.sizes, Sizes { image_bytes: 200, delta_bytes: 104, depth: 1 });
    assert_eq!(frame.payload, payload_of(&Batch::new().put("key", "value").delete("gone")));
}

#[test]
fn a_flipped_bit_anywhere_is_noticed() {
    for at in 0..superblock().encode().len() * 8 {
        let mut bytes = superblock().encode();
        bytes[at / 8] ^= 1 << (at % 8);
        assert!(Superblock::decode(&bytes).is_err(), "bit {at}");
        let mut bytes = segment().encode();
        bytes[at / 8] ^= 1 << (at % 8);
        assert!(SegmentHeader::decode(&bytes, &superblock(), 3).is_err(), "bit {at}");
    }
    let whole = sealed();
    for at in 0..whole.len() * 8 {
        let mut bytes = whole.clone();
        bytes[at / 8] ^= 1 << (at % 8);
        let checked =
            BatchHeader::decode(&bytes, &HOME, 512).and_then(|header| header.check_body(&bytes));
        assert!(checked.is_err(), "bit {at}");
    }
}

#[test]
fn a_frame_is_believed_only_at_its_place() {
    let bytes = sealed();
    let header = BatchHeader::decode(&bytes, &HOME, 512).expect("valid");
    let frames = &bytes[header.frames()];
    let offset = u32::try_from(512 + header.frames().start).expect("small");
    let rejected = |incarnation, offset| frame::decode(frames, incarnation, offset).err();
    assert_eq!(rejected(HOME.incarnation, offset), None);
    assert_eq!(rejected(HOME.incarnation, offset + 512), Some(Rejected::Checksum));
    assert_eq!(rejected(Incarnation(1), offset), Some(Rejected::Checksum));
    let misdirected = BatchHeader::decode(&bytes, &HOME, 1024).err();
    assert_eq!(misdirected, Some(Rejected::Foreign), "a batch too");
}

#[test]
fn a_newer_format_is_refused_by_name() {
    let mut bytes = superblock().encode();
    bytes[8] = 2;
    assert_eq!(Superblock::decode(&bytes), Err(Rejected::Checksum), "a damaged byte is none");
    bytes[12..16].fill(0);
    let crc = crc32c::crc32c(&bytes);
    bytes[12..16].copy_from_slice(&crc.to_le_bytes());
    assert_eq!(Superblock::decode(&bytes), Err(Rejected::Version(2)));
}

fn checkpoint() -> Checkpoint {
    let incarnation = HOME.incarnation;
    let segment = |number, live_bytes, kept| SegmentRef {
        number: SegmentNumber(number),
        bytes: 16 << 10,
        live_bytes,
        kept,
        newest_s: 1_700_000_000,
        incarnation,
    };
    let run = |number| RunRef { number, entry_blocks: 3, alarm_blocks: 1, incarnation };
    Checkpoint {
        generation: 4,
        epoch: Epoch(2),
        last: Sequence(11),
        last_crc: 0xdead_beef,
        segment: SegmentNumber(7),
        offset: 1536,
        next_version: 40,
        objects: 3,
        log_bytes: 70_000,
        wall_ms: 1_700_000_000_002,
        next_run: 6,
        slot_bytes: 8192,
        inexact: true,
        segments: vec![segment(5, 900, true), segment(7, 0, false)],
        runs: vec![run(5), run(2)],
        namespaces: vec![(NamespaceTag(7), 900), (NamespaceTag::of("rooms"), 1)],
    }
}

#[test]
fn a_checkpoint_is_what_it_was_and_every_flipped_bit_is_noticed() {
    let checkpoint = checkpoint();
    let mut bytes = vec![0; checkpoint.bytes()];
    checkpoint.encode(&mut bytes, STORE, 3);
    assert_eq!(bytes.len(), 128 + 2 * 24 + 2 * 24 + 2 * 16);
    assert_eq!(&bytes[..12], b"DMCHECKP\x01\x00\x03\x00");
    // The checksum stands for all the others.
    assert_eq!(bytes[12..16], CHECKPOINT_CRC, "{:02x?}", &bytes[12..16]);
    assert_eq!(Checkpoint::decode(&bytes, STORE, 3), Ok(checkpoint));
    assert_eq!(Checkpoint::decode(&bytes, STORE, 4), Err(Rejected::Foreign));
    for bit in 0..bytes.len() * 8 {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert!(Checkpoint::decode(&flipped, STORE, 3).is_err(), "bit {bit}");
    }
}

#[test]
fn a_run_is_what_it_was_and_every_flipped_bit_is_noticed() {
    let incarnation = HOME.incarnation;
    let header = RunHeader {
        store: STORE,
        shard: 3,
        number: 5,
        incarnation,
        entry_blocks: 1,
        alarm_blocks: 1,
    };
    let encoded = header.encode();
    assert_eq!(&encoded[..12], b"DMDIRRUN\x01\x00\x03\x00");
    assert_eq!(encoded[12..16], RUN_CRC, "{:02x?}", &encoded[12..16]);
    assert_eq!(RunHeader::decode(&encoded, STORE, 3), Ok(header));
    assert_eq!(Key::new(STORE, id()).hash, KEY_HASH, "{:#x}", Key::new(STORE, id()).hash);

    let address = Address { segment: 6, offset: 512, bytes: 104 };
    let stamp = Stamp { version: Version(9), alarm: Some(77), written_ms: 55 };
    let part = Address { segment: 5, offset: 1024, bytes: 200 };
    let entry = Entry::image(address, stamp, &[part]);
    let origin = Origin { namespace: Some("rooms".into()), name: Some("lobby".into()) };
    let said = [(Some(entry.clone()), origin.clone()), (None, Origin::default())];
    // Its tag is that of the name, or stands apart.
    let (mut counts, mut other) = (entry.clone(), entry.clone());
    counts.namespace = NamespaceTag::of("rooms");
    other.namespace = NamespaceTag(7);
    let said = said.into_iter().chain([
        (Some(entry), Origin::default()),
        (Some(counts.clone()), origin.clone()),
        (Some(counts), Origin::default()),
        (Some(other), origin),
    ]);
    let ids =
        [id()].into_iter().chain([1, 2, 4, 5, 6].map(|byte| ObjectId::from_bytes([byte; 32])));
    let said: Vec<_> = ids.zip(said.map(|(entry, origin)| Known { entry, origin })).collect();
    let mut builder = BlockBuilder::default();
    let entries = RawEntry::of_all(said.iter().map(|(id, known)| (id, known)));
    assert_eq!(entries[0], RawEntry::of(&said[0].0, &said[0].1));
    let key = |entry: &RawEntry| Key::new(STORE, entry.id());
    entries.iter().for_each(|entry| assert!(builder.push_entry(&key(entry), entry)));
    let mut block = vec![0; run::BLOCK_BYTES];
    builder.finish(&mut block, incarnation, 1);
    assert_eq!(block[..4], BLOCK_CRC, "{:02x?}", &block[..4]);
    assert_eq!(run::entries(&block, incarnation, 1), Ok(entries.clone()));
    for (entry, (id, known)) in entries.iter().zip(&said) {
        assert_eq!((entry.id(), entry.known(None)), (*id, Ok(known.clone())));
        let key = Key::new(STORE, *id);
        assert_eq!(run::find(&block, incarnation, 1, &key), Ok(Some(known.entry.clone())));
        assert_eq!(run::find_known(&block, incarnation, 1, &key), Ok(Some(known.clone())));
        assert_eq!(run::find(&block, incarnation, 2, &key), Err(Rejected::Checksum));
        assert_eq!(entry.is_deleted(), known.entry.is_none());
        assert_eq!(entry.alarm(), known.entry.as_ref().and_then(|entry| entry.alarm));
    }
    assert_eq!(run::entries(&block, incarnation, 2), Err(Rejected::Checksum), "another place");
    assert!(builder.push_alarm(77, &id()));
    let mut alarms = vec![0; run::BLOCK_BYTES];
    builder.finish(&mut alarms, incarnation, 2);
    assert_eq!(run::alarms(&alarms, incarnation, 2), Ok(vec![(77, id())]));
    assert_eq!(run::first_id(&block, incarnation, 1), Ok(id()));
    let absent = Key::new(STORE, ObjectId::from_bytes([3; 32]));
    assert_eq!(run::find(&block, incarnation, 1, &absent), Ok(None));
    for bit in 0..block.len() * 8 {
        block[bit / 8] ^= 1 << (bit % 8);
        assert!(run::entries(&block, incarnation, 1).is_err(), "bit {bit}");
        // What is not looked at does not matter, and what is is told from damage.
        for (id, known) in &said {
            let found = run::find(&block, incarnation, 1, &Key::new(STORE, *id));
            assert!(found.is_err() || found == Ok(Some(known.entry.clone())), "bit {bit}");
            let found = run::find_known(&block, incarnation, 1, &Key::new(STORE, *id));
            assert!(found.is_err() || found == Ok(Some(known.clone())), "bit {bit}");
        }
        let first = run::first_id(&block, incarnation, 1);
        assert!(first.is_err() || first == Ok(id()), "bit {bit}");
        let found = run::find(&block, incarnation, 1, &absent);
        assert!(found.is_err() || found == Ok(None), "bit {bit}");
        block[bit / 8] ^= 1 << (bit % 8);
        alarms[bit / 8] ^= 1 << (bit % 8);
        assert!(run::alarms(&alarms, incarnation, 2).is_err(), "bit {bit}");
        alarms[bit / 8] ^= 1 << (bit % 8);
    }
}

const CHECKPOINT_CRC: [u8; 4] = [0xef, 0x1e, 0x49, 0x25];
const RUN_CRC: [u8; 4] = [0xe5, 0xcf, 0x4a, 0xc2];
const BLOCK_CRC: [u8; 4] = [0x1c, 0x7c, 0x08, 0x85];
const KEY_HASH: u64 = 0xef73_65e4_31f2_e588;

/// A frame says the tag of its object's namespace where no name does.
#[test]
fn a_frame_says_for_which_namespace_its_object_counts() {
    let named = Origin { namespace: Some("rooms".into()), name: Some("lobby".into()) };
    for (origin, tag, apart) in [
        (Origin::default(), NamespaceTag::NONE, 0),
        (Origin::default(), NamespaceTag::of("rooms"), 8),
        (named.clone(), NamespaceTag::NONE, 0),
        (named.clone(), NamespaceTag::of("rooms"), 0),
        (named, NamespaceTag(7), 8),
    ] {
        let frame = Frame { namespace: tag, origin: origin.clone(), ..delta(&[]) };
        let mut bytes = Vec::new();
        let written = frame.encode(&mut bytes);
        let strings = if origin.name.is_some() { 10 } else { 0 };
        let fixed = frame::HEADER_BYTES + frame::ADDRESS_BYTES + frame::SHARE_BYTES;
        assert_eq!(written, (fixed + strings + apart).next_multiple_of(8), "{tag:?}, {origin:?}");
        frame::set_crc(&mut bytes, HOME.incarnation, 512);
        let read = frame::decode(&bytes, HOME.incarnation, 512).expect("valid");
        assert_eq!((read.namespace, read.origin), (tag, origin));
    }
    assert_eq!(
        NamespaceTag::of("rooms"),
        NamespaceTag(ROOMS_TAG),
        "{:x?}",
        NamespaceTag::of("rooms")
    );
}

const ROOMS_TAG: u64 = 0x4e1f_db46_1dfe_692b;
