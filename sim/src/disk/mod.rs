//! A disk that forgets what a real one may forget.
//!
//! **Model.** A file is its durable bytes and, for each sector of 512 bytes, the versions that
//! are visible but not durable yet, oldest first. Names and lengths are volatile too, until
//! synced.
//!
//! | event | what becomes of the bytes |
//! |---|---|
//! | a write to a `Through` file returns | durable |
//! | a write to a `Cached` file returns | visible; durable by a sync that begins later |
//! | SIGKILL with an operation in flight | it never happens, or happens later, as a whole; then it is visible and *not* durable, whatever the file: nobody saw it complete |
//! | power cut | each sector with versions that are not durable, or with a write in flight, becomes the durable bytes, any of the versions, or two of them torn at a byte; names keep a prefix of what was done to them since the last `sync_dir` |
//! | a write fails | any of its sectors may have become visible |
//! | a sync fails | nothing became durable by it; a later one may succeed |
//! | [`Damage`] | one sector has a flipped bit, zeros, what belongs elsewhere, or what it held before; or it can't be read |
//!
//! A device that tears at 4,096 bytes keeps or loses eight sectors together.
//!
//! Locks belong to open files and to operations in flight, also to those of a dead process (E8).

mod fate;
mod file;
mod image;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;

use dormouse_engine::Host;
use dormouse_engine::io::{Create, Disk, File, Mode, Open, PageBuf, Properties};
use serde::{Deserialize, Serialize};

use crate::random::Random;
use crate::world::{Event, Inner, World};
pub use fate::{Fate, Plain, Torn};
use file::{Contents, SECTOR_BYTES};
pub use image::DiskImage;

/// Of a smaller disk the reserve takes so much that what runs give back of it is not another file of it.
const RESERVED_BYTES: u64 = 160_000;
/// How long a dead process's operation may still take to land, in nanoseconds.
const LANDING_NS_MAX: u64 = 20_000_000;

/// What may go wrong beside crashes; rates are once in so many operations, 0 for never.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DiskFaults {
    /// Transfers that end early.
    pub short_io: u64,
    /// Writes that fail.
    pub write_error: u64,
    /// Reads that fail.
    pub read_error: u64,
    /// Syncs of files and of the directory that fail.
    pub sync_error: u64,
    /// Operations that take milliseconds; some of them seconds.
    pub slow_io: u64,
    /// Whether the device's blocks have 4,096 bytes, not 512: alignment, and what a crash tears.
    pub large_blocks: bool,
    /// Bytes that fit on the disk; 0 for no bound.
    pub capacity: u64,
    /// Whether reads see the device and not a page cache.
    pub buffered: bool,
}

/// What becomes of a sector that no device should do so to.
#[derive(Clone, Debug)]
pub enum Damage {
    /// This bit is flipped, of 4,096.
    Flip(usize),
    /// It reads as zeros, as before anything was written to it.
    Zero,
    /// It holds what was meant for this sector of this file, or belongs to it.
    Copy((String, usize)),
    /// It holds what it held before the last write to it: that write was lost.
    Stale,
    /// Reads of it fail, until it is written again. Not for files that are mapped: there no such read
    /// returns.
    Unreadable,
}

impl DiskFaults {
    /// Whether operations may fail: then errors are to be expected.
    pub fn fails(&self) -> bool {
        self.write_error + self.read_error + self.sync_error + self.capacity > 0
    }

    /// Whether the disk is small, but holds a reserve and some segments, and no operation fails but for that.
    pub fn is_only_small(&self) -> bool {
        let others = self.write_error + self.read_error + self.sync_error;
        self.capacity >= RESERVED_BYTES && others == 0 && !self.large_blocks
    }

    fn block_bytes(&self) -> usize {
        if self.large_blocks { 4096 } else { SECTOR_BYTES }
    }
}

/// What an operation does when it completes.
enum Action {
    Read { offset: usize },
    Write { offset: usize },
    Sync { covers: Vec<(usize, usize)>, bytes: usize },
    Allocate { bytes: usize },
    Shrink { bytes: usize },
}

/// The result of an operation, for whoever still waits.
#[derive(Default)]
struct Reply {
    done: RefCell<Option<(io::Result<usize>, Option<PageBuf>)>>,
    waker: RefCell<Option<Waker>>,
}

/// One operation in flight.
pub(crate) struct Op {
    process: u64,
    file: Rc<Opened>,
    action: Action,
    buf: Option<PageBuf>,
    reply: Rc<Reply>,
}

/// An operation of a dead process that will still happen.
pub(crate) struct Landing {
    file: Rc<Opened>,
    bytes: Vec<u8>,
    offset: usize,
    id: u64,
}

/// One open file description; its lock, if it has one, goes when nothing refers to it any more.
struct Opened {
    inode: Inode,
    locks: bool,
    mode: Mode,
}

impl Opened {
    fn new(inode: Inode, open: Open) -> Self {
        let locks = open.lock_wait.is_some();
        inode.locked.set(inode.locked.get() || locks);
        inode.opened.set(inode.opened.get() + 1);
        Self { inode, locks, mode: open.mode }
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        let Inode { locked, opened, .. } = &self.inode;
        opened.set(opened.get() - 1);
        if self.locks {
            assert!(locked.replace(false), "it was locked for as long as it was open");
        }
    }
}

/// A file, an offset in it, and the bytes that will be written there.
type LateWrite = (Rc<RefCell<Contents>>, usize, Vec<u8>);

#[derive(Clone)]
struct Inode {
    contents: Rc<RefCell<Contents>>,
    locked: Rc<Cell<bool>>,
    /// Open file descriptions.
    opened: Rc<Cell<usize>>,
}

impl Inode {
    fn new(contents: Contents) -> Self {
        Self::of(Rc::new(RefCell::new(contents)))
    }

    fn of(contents: Rc<RefCell<Contents>>) -> Self {
        let (locked, opened) = Default::default();
        Self { contents, locked, opened }
    }
}

#[derive(Clone)]
enum NameChange {
    Set(String, Inode),
    Remove(String),
}

/// The disk of one world.
pub(crate) struct DiskState {
    faults: DiskFaults,
    random: Random,
    names: BTreeMap<String, Inode>,
    durable_names: BTreeMap<String, Inode>,
    unsynced_names: Vec<NameChange>,
    ops: BTreeMap<u64, Op>,
    landings: BTreeMap<u64, LateWrite>,
    history: bool,
    /// Changes that were carried out, of bytes, lengths, names and what is durable of them.
    changes: u64,
    /// The change that never comes, nor anything after it.
    stop_at: Option<u64>,
    stopped: bool,
}

impl DiskState {
    pub(crate) fn new(faults: DiskFaults, random: Random) -> Self {
        Self {
            faults,
            random,
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            unsynced_names: Vec::new(),
            ops: BTreeMap::new(),
            landings: BTreeMap::new(),
            history: false,
            changes: 0,
            stop_at: None,
            stopped: false,
        }
    }

    pub(crate) fn image(&self) -> DiskImage {
        DiskImage::of(self)
    }

    pub(crate) fn put(&mut self, image: &DiskImage) {
        image.put_on(self);
    }

    pub(crate) fn changes(&self) -> u64 {
        self.changes
    }

    pub(crate) fn stop_at(&mut self, change: u64) {
        self.stop_at = Some(change);
    }

    pub(crate) fn stopped(&self) -> bool {
        self.stopped
    }

    /// Counts a change that is about to be carried out; whether the disk stands still instead.
    fn stops(&mut self) -> bool {
        self.stopped |= self.stop_at == Some(self.changes);
        self.changes += u64::from(!self.stopped);
        self.stopped
    }

    pub(crate) fn keep_history(&mut self) {
        self.history = true;
    }

    pub(crate) fn writes_in_flight(&self) -> usize {
        self.ops.values().filter(|op| matches!(op.action, Action::Write { .. })).count()
    }

    pub(crate) fn open_files(&self) -> usize {
        self.names.values().filter(|inode| inode.opened.get() > 0).count()
    }

    pub(crate) fn set_faults(&mut self, faults: DiskFaults) {
        self.faults = faults;
    }

    fn apply_names(names: &mut BTreeMap<String, Inode>, change: &NameChange) {
        match change {
            NameChange::Set(name, inode) => drop(names.insert(name.clone(), inode.clone())),
            NameChange::Remove(name) => drop(names.remove(name)),
        }
    }

    fn change_names(&mut self, change: NameChange) {
        Self::apply_names(&mut self.names, &change);
        self.unsynced_names.push(change);
    }

    fn used(&self) -> u64 {
        self.names.values().map(|inode| inode.contents.borrow().len() as u64).sum()
    }

    /// Begins to settle what a killed process had in flight: what will still land and when, and
    /// everything to drop once nothing is borrowed.
    pub(crate) fn kill(&mut self, process: u64) -> (Vec<(u64, Landing)>, Vec<Op>) {
        let ids: Vec<u64> =
            self.ops.iter().filter(|(_, op)| op.process == process).map(|(id, _)| *id).collect();
        let (mut landings, mut dropped) = (Vec::new(), Vec::new());
        for id in ids {
            let op = self.ops.remove(&id).expect("listed above");
            if let (Action::Write { offset }, Some(buf)) = (&op.action, &op.buf)
                && self.random.one_in(2)
            {
                let (bytes, offset) = (buf.to_vec(), *offset);
                let contents = op.file.inode.contents.clone();
                self.landings.insert(id, (contents, offset, bytes.clone()));
                let landing = Landing { file: op.file.clone(), bytes, offset, id };
                landings.push((self.random.below(LANDING_NS_MAX), landing));
            }
            dropped.push(op);
        }
        (landings, dropped)
    }

    pub(crate) fn land(&mut self, landing: Landing) {
        self.landings.remove(&landing.id);
        landing.file.inode.contents.borrow_mut().write_visible(landing.offset, &landing.bytes);
    }

    /// Leaves on the disk what a device may leave; returns what to drop once nothing is borrowed.
    pub(crate) fn power_cut(&mut self) -> Vec<Op> {
        // The numbers go back where they came from: the rest of the life goes on with them.
        let mut random = self.random.clone();
        let ops = self.power_cut_with(&mut random);
        self.random = random;
        ops
    }

    /// Leaves on the disk what `fate` says; returns what to drop once nothing is borrowed.
    pub(crate) fn power_cut_with(&mut self, fate: &mut dyn Fate) -> Vec<Op> {
        (self.stop_at, self.stopped) = (None, false);
        let ops: Vec<Op> = std::mem::take(&mut self.ops).into_values().collect();
        for op in &ops {
            if let (Action::Write { offset }, Some(buf)) = (&op.action, &op.buf) {
                op.file.inode.contents.borrow_mut().write_visible(*offset, buf);
            }
        }
        for (contents, offset, bytes) in std::mem::take(&mut self.landings).into_values() {
            contents.borrow_mut().write_visible(offset, &bytes);
        }
        let kept = fate.names(self.unsynced_names.len());
        for change in std::mem::take(&mut self.unsynced_names).iter().take(kept) {
            Self::apply_names(&mut self.durable_names, change);
        }
        self.names = self.durable_names.clone();
        for inode in self.names.values() {
            let sectors = self.faults.block_bytes() / SECTOR_BYTES;
            inode.contents.borrow_mut().power_cut(fate, sectors);
        }
        ops
    }

    fn strikes(&mut self, one_in: u64) -> bool {
        one_in > 0 && self.random.one_in(one_in)
    }

    /// Nanoseconds that an operation takes.
    pub(crate) fn delay_ns(&mut self) -> u64 {
        match self.strikes(self.faults.slow_io) {
            true if self.random.one_in(20) => self.random.between(1_000_000_000, 5_000_000_000),
            true => self.random.between(1_000_000, 200_000_000),
            false => self.random.between(20_000, 200_000),
        }
    }

    /// Sectors that hold something durable, by file.
    pub(crate) fn used_sectors(&self) -> Vec<(String, usize)> {
        let used = |inode: &Inode| inode.contents.borrow().used_sectors();
        let files = self.names.iter().map(|(name, inode)| (name, used(inode)));
        files.flat_map(|(name, used)| used.into_iter().map(|at| (name.clone(), at))).collect()
    }

    pub(crate) fn damage(&mut self, (file, at): &(String, usize), damage: &Damage) {
        if matches!(damage, Damage::Unreadable) {
            return self.names[file].contents.borrow_mut().make_unreadable(*at);
        }
        let contents = self.names[file].contents.borrow();
        let mut bytes = contents.sector(*at);
        match damage {
            Damage::Flip(bit) => bytes[bit / 8] ^= 1 << (bit % 8),
            Damage::Zero => bytes.fill(0),
            Damage::Copy((other, from)) => {
                bytes = self.names[other].contents.borrow().sector(*from);
            }
            Damage::Stale => bytes = contents.sector_before(*at),
            Damage::Unreadable => unreachable!("done above"),
        }
        drop(contents);
        self.names[file].contents.borrow_mut().set_sector(*at, bytes);
    }

    pub(crate) fn save(&self) -> BTreeMap<String, Vec<u8>> {
        let bytes = |inode: &Inode| {
            let contents = inode.contents.borrow();
            let mut bytes = vec![0; contents.len()];
            contents.read(0, &mut bytes);
            bytes
        };
        self.names.iter().map(|(name, inode)| (name.clone(), bytes(inode))).collect()
    }

    pub(crate) fn bring_back(&mut self, files: &BTreeMap<String, Vec<u8>>) {
        let inodes = files.iter().map(|(name, bytes)| {
            let mut contents = Contents::new(self.history);
            contents.write_durable(0, bytes);
            contents.sync(&[], bytes.len());
            let contents = Rc::new(RefCell::new(contents));
            (name.clone(), Inode::of(contents))
        });
        self.names = inodes.collect();
        self.durable_names = self.names.clone();
        self.unsynced_names.clear();
    }

    fn finish(&mut self, op: &mut Op) -> io::Result<usize> {
        let one_in = match op.action {
            Action::Read { .. } => self.faults.read_error,
            Action::Write { .. } => self.faults.write_error,
            Action::Sync { .. } => self.faults.sync_error,
            Action::Allocate { .. } | Action::Shrink { .. } => 0,
        };
        let fails = self.strikes(one_in);
        let contents = &op.file.inode.contents;
        let window = op.buf.as_ref().map_or(0, |buf| buf.len());
        let length = match self.strikes(self.faults.short_io) {
            true if window > 1 => 1 + self.random.index(window - 1),
            _ => window,
        };
        match (&op.action, &mut op.buf) {
            (Action::Read { .. }, _) if fails => Err(io::Error::other("simulated read error")),
            (Action::Sync { .. }, _) if fails => Err(io::Error::other("simulated sync error")),
            (Action::Read { offset }, Some(buf)) => {
                let contents = contents.borrow();
                contents.check_readable(*offset, length)?;
                Ok(contents.read(*offset, &mut buf[..length]))
            }
            (Action::Write { offset }, Some(buf)) if fails => {
                let kept = self.random.index(length + 1);
                contents.borrow_mut().write_visible(*offset, &buf[..kept]);
                Err(io::Error::other("simulated write error"))
            }
            (Action::Write { offset }, Some(buf)) => {
                let mut contents = contents.borrow_mut();
                match op.file.mode {
                    Mode::Through => contents.write_durable(*offset, &buf[..length]),
                    Mode::Cached => contents.write_visible(*offset, &buf[..length]),
                }
                Ok(length)
            }
            (Action::Sync { covers, bytes }, _) => {
                contents.borrow_mut().sync(covers, *bytes);
                Ok(0)
            }
            (Action::Allocate { bytes }, _) => {
                let before = contents.borrow().len();
                let more = bytes.saturating_sub(before) as u64;
                let bound = self.faults.capacity;
                // Blocks that it has it keeps.
                if bound > 0 && more > 0 && self.used() + more > bound {
                    return Err(io::ErrorKind::StorageFull.into());
                }
                contents.borrow_mut().extend(*bytes);
                Ok(0)
            }
            (Action::Shrink { bytes }, _) => {
                contents.borrow_mut().shrink(*bytes);
                Ok(0)
            }
            (Action::Read { .. } | Action::Write { .. }, None) => unreachable!("they have buffers"),
        }
    }
}

/// Completes an operation at its moment.
pub(crate) fn complete(world: &Inner, id: u64) {
    let Some(mut op) = world.disk.borrow_mut().ops.remove(&id) else { return };
    if !matches!(op.action, Action::Read { .. }) && world.disk.borrow_mut().stops() {
        // It stays on its way.
        world.disk.borrow_mut().ops.insert(id, op);
        return;
    }
    let result = world.disk.borrow_mut().finish(&mut op);
    {
        let mut trace = world.trace.borrow_mut();
        trace.number(id);
        trace.number(result.as_ref().map_or(u64::MAX, |bytes| *bytes as u64));
        if let (Action::Write { .. }, Some(buf)) = (&op.action, &op.buf) {
            trace.bytes(buf);
        }
    }
    *op.reply.done.borrow_mut() = Some((result, op.buf.take()));
    let waker = op.reply.waker.borrow_mut().take();
    drop(op);
    waker.into_iter().for_each(Waker::wake);
}

/// [`Disk`] of a simulated process.
#[derive(Clone)]
pub struct SimDisk {
    world: World,
    process: u64,
}

impl SimDisk {
    pub(crate) fn new(world: World, process: u64) -> Self {
        Self { world, process }
    }

    async fn pause(&self) {
        let nanos = self.world.0.random.borrow_mut().between(1_000, 60_000);
        let env = self.world_env();
        env.sleep(Duration::from_nanos(nanos)).await;
    }

    /// A change of names comes now, or never, where the disk stands still.
    async fn change(&self) {
        if self.world.0.disk.borrow_mut().stops() {
            std::future::pending::<()>().await;
        }
    }

    fn world_env(&self) -> crate::world::SimEnv {
        crate::world::SimEnv::for_disk(self.clone(), self.world.clone(), self.process)
    }
}

impl Disk for SimDisk {
    type File = SimFile;

    fn properties(&self) -> Properties {
        let faults = self.world.0.disk.borrow().faults;
        Properties { block_bytes: faults.block_bytes(), direct: !faults.buffered, name: "sim" }
    }

    async fn open(&self, name: &str, open: Open) -> io::Result<SimFile> {
        self.pause().await;
        let known = self.world.0.disk.borrow().names.get(name).cloned();
        let inode = match (known, open.create) {
            (Some(_), Create::New) => return Err(io::ErrorKind::AlreadyExists.into()),
            (Some(inode), _) => inode,
            (None, Create::Never | Create::ReadOnly) => return Err(io::ErrorKind::NotFound.into()),
            (None, _) => {
                self.change().await;
                let mut disk = self.world.0.disk.borrow_mut();
                let inode = Inode::new(Contents::new(disk.history));
                disk.change_names(NameChange::Set(name.to_owned(), inode.clone()));
                inode
            }
        };
        let env = self.world_env();
        let deadline = open.lock_wait.map(|wait| env.now() + wait);
        while inode.locked.get()
            && let Some(deadline) = deadline
        {
            if env.now() >= deadline {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            env.sleep(Duration::from_millis(1)).await;
        }
        Ok(SimFile { disk: self.clone(), opened: Rc::new(Opened::new(inode, open)) })
    }

    async fn list(&self) -> io::Result<Vec<String>> {
        self.pause().await;
        let disk = self.world.0.disk.borrow();
        Ok(disk.names.keys().cloned().collect())
    }

    async fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.pause().await;
        let known = self.world.0.disk.borrow().names.get(from).cloned();
        let inode = known.ok_or(io::ErrorKind::NotFound)?;
        self.change().await;
        let mut disk = self.world.0.disk.borrow_mut();
        disk.change_names(NameChange::Set(to.to_owned(), inode));
        disk.change_names(NameChange::Remove(from.to_owned()));
        Ok(())
    }

    async fn remove(&self, name: &str) -> io::Result<()> {
        self.pause().await;
        if !self.world.0.disk.borrow().names.contains_key(name) {
            return Err(io::ErrorKind::NotFound.into());
        }
        self.change().await;
        let mut disk = self.world.0.disk.borrow_mut();
        disk.change_names(NameChange::Remove(name.to_owned()));
        Ok(())
    }

    async fn sync_dir(&self) -> io::Result<()> {
        let covered = self.world.0.disk.borrow().unsynced_names.len();
        self.pause().await;
        self.change().await;
        let disk = &mut *self.world.0.disk.borrow_mut();
        if disk.strikes(disk.faults.sync_error) {
            return Err(io::Error::other("simulated sync error"));
        }
        let covered = covered.min(disk.unsynced_names.len());
        for change in disk.unsynced_names.drain(..covered) {
            DiskState::apply_names(&mut disk.durable_names, &change);
        }
        Ok(())
    }
}

/// [`File`] of a simulated process.
#[derive(Clone)]
pub struct SimFile {
    disk: SimDisk,
    opened: Rc<Opened>,
}

impl SimFile {
    /// Starts an operation; it goes on if the future is dropped.
    fn start(
        &self,
        action: Action,
        buf: Option<PageBuf>,
    ) -> impl Future<Output = (io::Result<usize>, Option<PageBuf>)> + use<> {
        let world = &self.disk.world.0;
        let reply = Rc::new(Reply::default());
        let (process, file) = (self.disk.process, self.opened.clone());
        let op = Op { process, file, action, buf, reply: reply.clone() };
        let id = world.next_id();
        let delay = world.disk.borrow_mut().delay_ns();
        world.disk.borrow_mut().ops.insert(id, op);
        world.after(delay, Event::Disk(id));
        std::future::poll_fn(move |context| match reply.done.borrow_mut().take() {
            Some(done) => Poll::Ready(done),
            None => {
                *reply.waker.borrow_mut() = Some(context.waker().clone());
                Poll::Pending
            }
        })
    }

    fn check_alignment(&self, buf: &PageBuf, offset: u64) {
        if self.opened.mode == Mode::Through {
            let block = self.disk.properties().block_bytes;
            let aligned = |number: usize| number.is_multiple_of(block);
            assert!(aligned(to_usize(offset)) && aligned(buf.len()) && aligned(buf.window().start));
        }
    }
}

fn to_usize(number: u64) -> usize {
    usize::try_from(number).expect("simulated files are small")
}

impl File for SimFile {
    type Map = Vec<u8>;

    async fn read_at(&self, buf: PageBuf, offset: u64) -> (io::Result<usize>, PageBuf) {
        self.check_alignment(&buf, offset);
        let action = Action::Read { offset: to_usize(offset) };
        let (result, buf) = self.start(action, Some(buf)).await;
        (result, buf.expect("a read gives its buffer back"))
    }

    async fn write_at(&self, buf: PageBuf, offset: u64) -> (io::Result<usize>, PageBuf) {
        self.check_alignment(&buf, offset);
        let action = Action::Write { offset: to_usize(offset) };
        let (result, buf) = self.start(action, Some(buf)).await;
        (result, buf.expect("a write gives its buffer back"))
    }

    async fn sync(&self) -> io::Result<()> {
        let (covers, bytes) = {
            let contents = self.opened.inode.contents.borrow();
            (contents.unsynced(), contents.len())
        };
        self.start(Action::Sync { covers, bytes }, None).await.0.map(|_| ())
    }

    async fn allocate(&self, bytes: u64) -> io::Result<()> {
        self.start(Action::Allocate { bytes: to_usize(bytes) }, None).await.0.map(|_| ())
    }

    async fn shrink(&self, bytes: u64) -> io::Result<()> {
        self.start(Action::Shrink { bytes: to_usize(bytes) }, None).await.0.map(|_| ())
    }

    async fn len(&self) -> io::Result<u64> {
        Ok(self.opened.inode.contents.borrow().len() as u64)
    }

    fn map(&self) -> io::Result<Vec<u8>> {
        assert_eq!(self.opened.mode, Mode::Cached, "no file is both direct and mapped");
        let contents = self.opened.inode.contents.borrow();
        let mut bytes = vec![0; contents.len()];
        contents.read(0, &mut bytes);
        Ok(bytes)
    }
}
