//! Runs of many blocks: each object is found, and damage to a block concerns its own objects only.

use std::cell::RefCell;
use std::io;
use std::ops::Range;
use std::rc::Rc;

use super::Recent;
use super::write::{How, Writer};
use super::{Entry, Keyed, Known, Merge, Run, Stamp};
use crate::call::wait;
use crate::contents::Origin;
use crate::error::Kind;
use crate::format::entry::RawEntry;
use crate::format::frame::Address;
use crate::format::run::{BLOCK_BYTES, Key, RunHeader};
use crate::ids::{Incarnation, ObjectId, StoreId, Version};
use crate::io::{File, PageBuf};

const STORE: StoreId = StoreId(7);

/// A file in memory.
#[derive(Clone, Default)]
struct Memory(Rc<RefCell<Vec<u8>>>);

fn place(offset: u64) -> usize {
    usize::try_from(offset).expect("small")
}

impl File for Memory {
    type Map = Vec<u8>;

    async fn read_at(&self, mut buf: PageBuf, offset: u64) -> (io::Result<usize>, PageBuf) {
        let bytes = self.0.borrow();
        let rest = bytes.get(place(offset)..).unwrap_or_default();
        let count = rest.len().min(buf.len());
        buf[..count].copy_from_slice(&rest[..count]);
        (Ok(count), buf)
    }

    async fn write_at(&self, buf: PageBuf, offset: u64) -> (io::Result<usize>, PageBuf) {
        let start = place(offset);
        self.0.borrow_mut()[start..start + buf.len()].copy_from_slice(&buf);
        (Ok(buf.len()), buf)
    }

    async fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    async fn allocate(&self, bytes: u64) -> io::Result<()> {
        let len = self.0.borrow().len().max(place(bytes));
        self.0.borrow_mut().resize(len, 0);
        Ok(())
    }

    async fn shrink(&self, bytes: u64) -> io::Result<()> {
        self.0.borrow_mut().truncate(place(bytes));
        Ok(())
    }

    async fn len(&self) -> io::Result<u64> {
        Ok(self.0.borrow().len() as u64)
    }

    fn map(&self) -> io::Result<Vec<u8>> {
        Ok(self.0.borrow().clone())
    }
}

/// The `number`th object's id: they rise, as hostile ones may.
fn id(number: u64) -> ObjectId {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    ObjectId::from_bytes(bytes)
}

/// Its entry: some are deleted, some have an alarm, some a longer chain.
fn entry(number: u64) -> Option<Entry> {
    let address = Address { segment: 1, offset: 512, bytes: 104 };
    let alarm = (number.is_multiple_of(3)).then_some(number + 1);
    let stamp = |version| Stamp { version: Version(version), alarm, written_ms: number };
    let entry = Entry::image(address, stamp(number + 1), &[]);
    match number % 5 {
        0 => None,
        1 => Some(entry.with_delta(address, stamp(number + 2), false, &[])),
        _ => Some(entry),
    }
}

/// What is known of it: some have a name, some only a namespace.
fn known(number: u64) -> Known {
    let namespace =
        (number % 4 < 2).then(|| ["rooms", "users"][usize::from(number % 8 > 3)].into());
    let name = (number.is_multiple_of(4)).then(|| format!("name-{number}").into());
    let entry = entry(number);
    let origin = Origin { namespace, name };
    let origin = if entry.is_some() { origin } else { Origin::default() };
    Known { entry, origin }
}

/// Sources in memory.
fn recent(sources: Vec<Vec<Keyed>>) -> Vec<Recent<'static>> {
    sources.into_iter().map(|source| Box::new(source.into_iter()) as Recent<'_>).collect()
}

/// Entries of the first so many objects, in a run's order.
fn sorted(objects: u64, known: impl Fn(u64) -> Known) -> Vec<Keyed> {
    let entry = |number| (Key::new(STORE, id(number)), RawEntry::of(&id(number), &known(number)));
    let mut entries: Vec<_> = (0..objects).map(entry).collect();
    entries.sort_unstable_by_key(|(key, _)| *key);
    entries
}

fn write(objects: u64) -> (RunHeader, Memory) {
    let (run, file) = written(objects, How::default());
    (run.header, file)
}

/// A run as whoever wrote it has it.
fn written(objects: u64, how: How) -> (Run<Memory>, Memory) {
    let file = Memory::default();
    let header = RunHeader {
        store: STORE,
        shard: 0,
        number: 1,
        incarnation: Incarnation(9),
        entry_blocks: 0,
        alarm_blocks: 0,
    };
    let merged = Merge::new(recent(vec![sorted(objects, known)]), &[], None);
    let mut writer = Writer::new(&file, header);
    let header = wait(writer.write(merged, how, async || Ok(())));
    let header = header.expect("no run is read").expect("memory has room");
    let guide = std::mem::take(&mut writer.guide);
    (Run::new(header, file.clone(), guide).expect("mapped"), file)
}

fn open(header: RunHeader, file: &Memory) -> Run<Memory> {
    Run::opened(header, file.clone()).expect("mapped")
}

#[test]
fn every_object_of_a_run_is_found_and_no_other() {
    for objects in [1, 2, 60, 70, 1000, 30_000] {
        let (run, file) = written(objects, How::default());
        // The second time around it knows where the blocks begin.
        let opened = open(run.header, &file);
        for run in [&run, &opened, &opened] {
            for number in 0..objects {
                let found = run.find(&Key::new(STORE, id(number))).expect("whole");
                assert_eq!(found, Some(entry(number)), "object {number} of {objects}");
                let found = run.find_known(&Key::new(STORE, id(number))).expect("whole");
                assert_eq!(found, Some(known(number)), "object {number} of {objects}");
            }
            for number in objects..objects + 1000 {
                assert_eq!(run.find(&Key::new(STORE, id(number))).expect("whole"), None);
            }
        }
        let all: Vec<_> = run.entries(None).map(|entry| entry.expect("whole").0).collect();
        assert_eq!(all.len() as u64, objects);
        assert!(all.is_sorted());
        let half = all.len() / 2;
        let rest: Vec<_> =
            run.entries(Some(&all[half])).map(|entry| entry.expect("whole").0).collect();
        assert_eq!(rest, all[half + 1..]);
        let alarms: Vec<_> = run.alarms().collect();
        let set = (0..objects).filter(|number| entry(*number).is_some_and(|e| e.alarm.is_some()));
        assert_eq!(alarms.len(), set.count());
        assert!(alarms.is_sorted());
    }
}

#[test]
fn merged_entries_keep_the_names_that_older_ones_knew() {
    const OBJECTS: u64 = 200;
    let (header, file) = write(OBJECTS);
    let older = [Rc::new(open(header, &file))];
    let newer = |number| Known { entry: known(number + 2).entry, origin: Origin::default() };
    let newer = vec![sorted(OBJECTS, newer)];
    let merged: Vec<_> = Merge::new(recent(newer), &older, None).map(Result::unwrap).collect();
    assert_eq!(merged.len() as u64, OBJECTS);
    for number in 0..OBJECTS {
        let (_, merged) = merged.iter().find(|(key, _)| key.id == id(number)).expect("there");
        let merged = merged.known(None).expect("whole");
        assert_eq!(merged.entry, entry(number + 2), "the younger entry decides");
        // What was deleted is of no origin any more.
        let origin = merged.entry.map_or(Origin::default(), |_| known(number).origin);
        assert_eq!(merged.origin, origin);
    }
}

#[test]
fn behind_a_damaged_block_no_older_run_speaks() {
    const OBJECTS: u64 = 1200;
    let (header, file) = write(OBJECTS);
    let whole = open(header, &file);
    for block in 1..=header.entry_blocks {
        let damaged = Memory(Rc::new(RefCell::new(file.0.borrow().clone())));
        damaged.0.borrow_mut()[block as usize * BLOCK_BYTES + 100] = 0xff;
        let runs = [open(header, &damaged), open(header, &file)].map(Rc::new);
        let merged: Vec<_> = Merge::new(vec![], &runs, None).filter_map(Result::ok).collect();
        let readable: Vec<_> = runs[0].entries(None).filter_map(Result::ok).collect();
        assert_eq!(merged, readable, "block {block}");
        assert!(merged.len() < whole.entries(None).count());
        assert!(runs[0].damaged.get() && !runs[1].damaged.get());
    }
}

#[test]
fn a_damaged_block_hides_its_own_objects_and_no_other() {
    const OBJECTS: u64 = 1200;
    let (header, file) = write(OBJECTS);
    assert!(header.entry_blocks > 10 && header.alarm_blocks > 2);
    let alarms = open(header, &file).alarms().collect::<Vec<_>>();
    let pairs = (1..=header.entry_blocks).flat_map(|block| [(block, block), (block, block + 1)]);
    for (first, second) in pairs.filter(|(_, second)| *second <= header.entry_blocks) {
        let damaged = Memory(Rc::new(RefCell::new(file.0.borrow().clone())));
        for block in [first, second] {
            damaged.0.borrow_mut()[block as usize * BLOCK_BYTES + 100] = 0xff;
        }
        let run = open(header, &damaged);
        let readable: Vec<_> =
            run.entries(None).filter_map(Result::ok).map(|(key, _)| key).collect();
        let errors = run.entries(None).filter(|entry| entry.is_err()).count();
        assert_eq!(errors, if first == second { 1 } else { 2 });
        for number in 0..OBJECTS {
            let key = Key::new(STORE, id(number));
            match run.find(&key) {
                Ok(found) => {
                    assert_eq!(found, Some(entry(number)), "object {number}, block {first}");
                }
                Err(error) => {
                    assert_eq!(error.kind(), Kind::Corrupt);
                    assert!(!readable.contains(&key), "object {number}, block {first}: {error}");
                }
            }
        }
        for number in OBJECTS..OBJECTS + 200 {
            let absent = run.find(&Key::new(STORE, id(number)));
            assert!(absent.is_err() || absent.is_ok_and(|found| found.is_none()));
        }
        assert!(run.alarms().eq(alarms.iter().copied()));
    }
}

/// Where a block begins is remembered, so that its damage is of no matter to its neighbours; and of a
/// run with a filter hardly a block is read for an object that is not in it.
#[test]
fn what_is_known_of_a_run_is_not_read_again() {
    const OBJECTS: u64 = 6000;
    let absent = OBJECTS..2 * OBJECTS;
    let find = |run: &Run<Memory>, number| run.find(&Key::new(STORE, id(number)));
    let (mut filtered, file) = written(OBJECTS, How::default());
    let (mut unfiltered, _) = written(OBJECTS, How { all: true, forget: false });
    let mut opened = open(filtered.header, &file);
    absent.clone().for_each(|number| assert_eq!(find(&opened, number).expect("whole"), None));
    for Run { map, header, .. } in [&mut filtered, &mut unfiltered, &mut opened] {
        let blocks = 1..=header.entry_blocks as usize;
        blocks.step_by(2).for_each(|block| map[block * BLOCK_BYTES + 100] ^= 1);
    }
    let errors = |run: &Run<Memory>, numbers: Range<u64>| {
        numbers.filter(|number| find(run, *number).is_err()).count() as u64
    };
    let half = OBJECTS / 3..OBJECTS * 2 / 3;
    for run in [&filtered, &unfiltered, &opened] {
        assert!(half.contains(&errors(run, 0..OBJECTS)), "half of the blocks are damaged");
    }
    assert!(half.contains(&errors(&unfiltered, absent.clone())));
    assert!(half.contains(&errors(&opened, absent.clone())));
    assert!(errors(&filtered, absent) < OBJECTS / 100);
}

/// The alarms are read from the entries where their own blocks are damaged.
#[test]
fn damaged_alarms_are_read_from_the_entries() {
    let (header, file) = write(1200);
    let alarms = open(header, &file).alarms().collect::<Vec<_>>();
    let block = (1 + header.entry_blocks) as usize;
    file.0.borrow_mut()[block * BLOCK_BYTES + 50] ^= 1;
    assert!(open(header, &file).alarms().eq(alarms));
}
