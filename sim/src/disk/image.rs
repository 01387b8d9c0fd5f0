//! What is on a disk at a moment, and on its way to it, apart from any world: so that one crash can
//! be had many times over, each with another outcome.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use super::file::{Contents, SECTOR_BYTES};
use super::{Action, DiskState, Inode, NameChange};
use crate::trace::Trace;

/// A write that was on its way: file, offset, bytes.
type InFlight = (usize, usize, Vec<u8>);

/// A name, and the file that has it, or has it no more.
type Name = (String, Option<usize>);

/// A copy of a disk.
#[derive(Clone)]
pub struct DiskImage {
    files: Vec<Contents>,
    names: Vec<Name>,
    durable_names: Vec<Name>,
    unsynced_names: Vec<Name>,
    in_flight: Vec<InFlight>,
}

/// Files in the order in which they are met, each once.
#[derive(Default)]
struct Files(Vec<Rc<RefCell<Contents>>>);

impl Files {
    fn index(&mut self, contents: &Rc<RefCell<Contents>>) -> usize {
        let found = self.0.iter().position(|known| Rc::ptr_eq(known, contents));
        found.unwrap_or_else(|| {
            self.0.push(contents.clone());
            self.0.len() - 1
        })
    }

    fn names(&mut self, names: &BTreeMap<String, Inode>) -> Vec<Name> {
        let named =
            |(name, inode): (&String, &Inode)| (name.clone(), Some(self.index(&inode.contents)));
        names.iter().map(named).collect()
    }
}

impl DiskImage {
    pub(super) fn of(disk: &DiskState) -> Self {
        let mut files = Files::default();
        let names = files.names(&disk.names);
        let durable_names = files.names(&disk.durable_names);
        let mut unsynced_names = Vec::new();
        for change in &disk.unsynced_names {
            unsynced_names.push(match change {
                NameChange::Set(name, inode) => (name.clone(), Some(files.index(&inode.contents))),
                NameChange::Remove(name) => (name.clone(), None),
            });
        }
        let mut in_flight = Vec::new();
        for op in disk.ops.values() {
            if let (Action::Write { offset }, Some(buf)) = (&op.action, &op.buf) {
                in_flight.push((files.index(&op.file.inode.contents), *offset, buf.to_vec()));
            }
        }
        for (contents, offset, bytes) in disk.landings.values() {
            in_flight.push((files.index(contents), *offset, bytes.clone()));
        }
        let files = files.0.iter().map(|contents| contents.borrow().clone()).collect();
        Self { files, names, durable_names, unsynced_names, in_flight }
    }

    pub(super) fn put_on(&self, disk: &mut DiskState) {
        let inode = |contents: &Contents| {
            let contents = Rc::new(RefCell::new(contents.clone()));
            Inode::of(contents)
        };
        let inodes: Vec<Inode> = self.files.iter().map(inode).collect();
        let named =
            |(name, file): &Name| (name.clone(), inodes[file.expect("a name of a file")].clone());
        disk.names = self.names.iter().map(named).collect();
        disk.durable_names = self.durable_names.iter().map(named).collect();
        let change = |(name, file): &Name| match file {
            Some(file) => NameChange::Set(name.clone(), inodes[*file].clone()),
            None => NameChange::Remove(name.clone()),
        };
        disk.unsynced_names = self.unsynced_names.iter().map(change).collect();
        let landing = |(id, (file, offset, bytes)): (u64, &InFlight)| {
            (id, (inodes[*file].contents.clone(), *offset, bytes.clone()))
        };
        disk.landings = (0..).zip(&self.in_flight).map(landing).collect();
    }

    /// Writes that were on their way.
    pub fn writes_in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// The processes are dead: of the writes that were on their way these land, visible and not
    /// durable, the others never do (SIGKILL).
    #[must_use]
    pub fn landed(mut self, lands: impl Fn(usize) -> bool) -> Self {
        for (index, (file, offset, bytes)) in std::mem::take(&mut self.in_flight).iter().enumerate()
        {
            if lands(index) {
                self.files[*file].write_visible(*offset, bytes);
            }
        }
        self
    }

    /// Sectors of 512 bytes that a power cut may change.
    pub fn unsynced_sectors(&self) -> usize {
        let all = self.clone().landed(|_| true);
        // Once each, though a file may have several names; those without one are gone.
        let files: std::collections::BTreeSet<_> = all.names.iter().map(|(_, file)| file).collect();
        let files = files.into_iter().flatten();
        files.map(|file| all.files[*file].unsynced_blocks(1)).sum()
    }

    /// Names and bytes, durable or not, as one number.
    pub fn hash(&self) -> u128 {
        let mut trace = Trace::default();
        for names in [&self.names, &self.durable_names, &self.unsynced_names] {
            trace.number(names.len() as u64);
            for (name, file) in names {
                trace.bytes(name.as_bytes());
                trace.number(file.map_or(u64::MAX, |file| file as u64));
            }
        }
        self.files.iter().for_each(|contents| contents.fold(&mut trace));
        for (file, offset, bytes) in &self.in_flight {
            trace.number(*file as u64);
            trace.number(*offset as u64);
            trace.bytes(bytes);
        }
        trace.value()
    }
}

const _: () = assert!(SECTOR_BYTES == 512, "as `unsynced_sectors` says");
