//! [`RealEnv`] with a disk that does everything on real files and writes down, in order, what was
//! asked of it, when it began and when it returned.
//!
//! A recorder can stand in for the death of its process: after so many events nothing begins any
//! more, what is in flight goes on in the kernel, and nobody hears of its end.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use dormouse_engine::io::{Create, Disk, File, Mode, Open, PageBuf, Properties};
use dormouse_engine::real::{RealDisk, RealEnv, RealFile};
use dormouse_engine::signal::Signal;
use dormouse_engine::{Contents, Env, Host, Version};

/// One operation on one file or on the directory. Files are numbered as they are created; a name
/// that is used again names another file.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    Create { file: usize, name: String, mode: Mode },
    Read { bytes: usize },
    Write { file: usize, offset: usize, bytes: Vec<u8> },
    Allocate { file: usize, bytes: usize },
    Sync { file: usize },
    SyncDir,
    Rename { from: String, to: String },
    Remove { name: String },
}

/// What the disk did, and what the workload says.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    /// A process begins.
    Process,
    /// It is gone, and what it had in flight has landed.
    Ended,
    Begin(usize, Op),
    /// An operation succeeded; so many bytes were transferred.
    End(usize, usize),
    /// A commit was made: the object would then be as given.
    Submitted(usize, Contents),
    Acknowledged(usize, Version),
    /// The object was read after a recovery.
    Found(usize, Contents),
}

/// All that happened to one directory, over all processes.
#[derive(Default)]
pub(crate) struct Log {
    pub(crate) events: Vec<Event>,
    names: BTreeMap<String, usize>,
    files: usize,
    ops: usize,
}

/// How long a process lives.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Life {
    /// Until it closes the store.
    Whole,
    /// For so many events; it dies in an operation.
    Events(usize),
    /// For so many events at least; it dies in a write.
    UntilWrite(usize),
}

/// Writes the log of one process.
pub(crate) struct Recorder {
    log: RefCell<Log>,
    in_flight: Cell<usize>,
    life: Life,
    /// Events of earlier processes.
    from: usize,
    dead: Cell<bool>,
    changed: Signal,
}

impl Recorder {
    fn new(mut log: Log, life: Life) -> Self {
        log.events.push(Event::Process);
        let (from, log) = (log.events.len(), RefCell::new(log));
        let (in_flight, dead, changed) = Default::default();
        Self { log, in_flight, life, from, dead, changed }
    }

    fn dies_in(&self, op: &Op) -> bool {
        let events = self.len() - self.from;
        match self.life {
            Life::Whole => false,
            Life::Events(lives) => events >= lives,
            Life::UntilWrite(lives) => events >= lives && matches!(op, Op::Write { .. }),
        }
    }

    /// Writes down what the workload says.
    pub(crate) fn say(&self, event: Event) {
        if !self.dead.get() {
            self.log.borrow_mut().events.push(event);
        }
    }

    /// Events so far.
    pub(crate) fn len(&self) -> usize {
        self.log.borrow().events.len()
    }

    /// What began since there were `from` events.
    pub(crate) fn begun_since(&self, from: usize) -> Vec<Op> {
        let begun = |event: &Event| match event {
            Event::Begin(_, op) => Some(op.clone()),
            _ => None,
        };
        self.log.borrow().events[from..].iter().filter_map(begun).collect()
    }

    /// Returns once the process is dead and nothing of it is in flight.
    pub(crate) async fn killed(&self) {
        let gone = || (self.dead.get() && self.in_flight.get() == 0).then_some(());
        self.changed.until(gone).await;
    }

    /// The log, as the process leaves it.
    pub(crate) fn finish(&self) -> Log {
        assert_eq!(self.in_flight.get(), 0, "an operation goes on after the end");
        let mut log = std::mem::take(&mut *self.log.borrow_mut());
        log.events.push(Event::Ended);
        log
    }

    /// Where a dead process stops for ever.
    async fn alive(&self) {
        if self.dead.get() {
            std::future::pending().await
        }
    }

    /// Carries out one operation.
    async fn run<T>(
        &self,
        op: Op,
        call: impl Future<Output = T>,
        done: impl FnOnce(&mut Log, &T) -> io::Result<usize>,
    ) -> T {
        self.alive().await;
        self.dead.set(self.dies_in(&op));
        let number = {
            let log = &mut *self.log.borrow_mut();
            log.ops += 1;
            log.events.push(Event::Begin(log.ops, op));
            log.ops
        };
        self.in_flight.set(self.in_flight.get() + 1);
        let result = call.await;
        self.in_flight.set(self.in_flight.get() - 1);
        // Names are what they are on the disk, whoever has heard of it.
        let bytes = done(&mut self.log.borrow_mut(), &result).expect("a disk that is well");
        if self.dead.get() {
            self.changed.notify();
            return std::future::pending().await;
        }
        self.say(Event::End(number, bytes));
        result
    }
}

/// [`RealEnv`] over a recorded disk.
#[derive(Clone)]
pub(crate) struct Recorded {
    env: RealEnv,
    disk: RecordedDisk,
}

impl Recorded {
    /// Goes on with the log of earlier processes.
    pub(crate) fn new(env: RealEnv, log: Log, life: Life) -> Self {
        let disk = env.disk().clone();
        let recorder = Rc::new(Recorder::new(log, life));
        Self { env, disk: RecordedDisk { disk, recorder } }
    }

    pub(crate) fn recorder(&self) -> &Rc<Recorder> {
        &self.disk.recorder
    }
}

impl Host for Recorded {
    fn now(&self) -> Duration {
        self.env.now()
    }

    fn wall_ms(&self) -> u64 {
        self.env.wall_ms()
    }

    fn sleep(&self, duration: Duration) -> impl Future<Output = ()> + 'static {
        self.env.sleep(duration)
    }

    fn random(&self) -> u64 {
        self.env.random()
    }

    fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + 'static) {
        self.env.spawn(name, task);
    }

    fn turn_end(&self) -> impl Future<Output = ()> + 'static {
        self.env.turn_end()
    }

    fn idle(&self) -> impl Future<Output = ()> + 'static {
        self.env.idle()
    }
}

impl Env for Recorded {
    type Disk = RecordedDisk;

    fn disk(&self) -> &RecordedDisk {
        &self.disk
    }
}

/// A real directory, recorded.
#[derive(Clone)]
pub(crate) struct RecordedDisk {
    disk: RealDisk,
    recorder: Rc<Recorder>,
}

impl RecordedDisk {
    fn number_of(&self, name: &str) -> Option<usize> {
        self.recorder.log.borrow().names.get(name).copied()
    }
}

/// The length of a call that transfers nothing.
fn nothing<T>(_: &mut Log, result: &io::Result<T>) -> io::Result<usize> {
    result.as_ref().map(|_| 0).map_err(|error| error.kind().into())
}

impl Disk for RecordedDisk {
    type File = RecordedFile;

    fn properties(&self) -> Properties {
        self.disk.properties()
    }

    async fn open(&self, name: &str, open: Open) -> io::Result<RecordedFile> {
        let number = match (self.number_of(name), open.create) {
            // Opening what is there changes nothing, nor does an error.
            (Some(number), _) => number,
            (None, Create::Never | Create::ReadOnly) => return Err(io::ErrorKind::NotFound.into()),
            (None, Create::IfAbsent | Create::New) => {
                // Files have numbers in the order of the log, which nothing of a dead one enters.
                self.recorder.alive().await;
                let number = self.recorder.log.borrow().files;
                self.recorder.log.borrow_mut().files += 1;
                let op = Op::Create { file: number, name: name.to_owned(), mode: open.mode };
                let created = |log: &mut Log, result: &io::Result<RealFile>| {
                    log.names.insert(name.to_owned(), number);
                    nothing(log, result)
                };
                let file = self.recorder.run(op, self.disk.open(name, open), created).await?;
                return Ok(RecordedFile { file, number, recorder: self.recorder.clone() });
            }
        };
        let file = self.disk.open(name, open).await?;
        Ok(RecordedFile { file, number, recorder: self.recorder.clone() })
    }

    async fn list(&self) -> io::Result<Vec<String>> {
        self.disk.list().await
    }

    async fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let op = Op::Rename { from: from.to_owned(), to: to.to_owned() };
        let renamed = |log: &mut Log, result: &io::Result<()>| {
            let file = log.names.remove(from).expect("a file that was created");
            log.names.insert(to.to_owned(), file);
            nothing(log, result)
        };
        self.recorder.run(op, self.disk.rename(from, to), renamed).await
    }

    async fn remove(&self, name: &str) -> io::Result<()> {
        let op = Op::Remove { name: name.to_owned() };
        let removed = |log: &mut Log, result: &io::Result<()>| {
            log.names.remove(name);
            nothing(log, result)
        };
        self.recorder.run(op, self.disk.remove(name), removed).await
    }

    async fn sync_dir(&self) -> io::Result<()> {
        self.recorder.run(Op::SyncDir, self.disk.sync_dir(), nothing).await
    }
}

/// One real file, recorded.
#[derive(Clone)]
pub(crate) struct RecordedFile {
    file: RealFile,
    number: usize,
    recorder: Rc<Recorder>,
}

/// How much a read or write transferred.
fn transferred(_: &mut Log, (result, _): &(io::Result<usize>, PageBuf)) -> io::Result<usize> {
    result.as_ref().copied().map_err(|error| error.kind().into())
}

impl File for RecordedFile {
    type Map = <RealFile as File>::Map;

    async fn read_at(&self, buf: PageBuf, offset: u64) -> (io::Result<usize>, PageBuf) {
        let op = Op::Read { bytes: buf.len() };
        self.recorder.run(op, self.file.read_at(buf, offset), transferred).await
    }

    async fn write_at(&self, buf: PageBuf, offset: u64) -> (io::Result<usize>, PageBuf) {
        let at = usize::try_from(offset).expect("small files");
        let op = Op::Write { file: self.number, offset: at, bytes: buf.to_vec() };
        self.recorder.run(op, self.file.write_at(buf, offset), transferred).await
    }

    async fn sync(&self) -> io::Result<()> {
        let op = Op::Sync { file: self.number };
        self.recorder.run(op, self.file.sync(), nothing).await
    }

    async fn allocate(&self, bytes: u64) -> io::Result<()> {
        let wanted = usize::try_from(bytes).expect("small files");
        let op = Op::Allocate { file: self.number, bytes: wanted };
        self.recorder.run(op, self.file.allocate(bytes), nothing).await
    }

    async fn shrink(&self, _bytes: u64) -> io::Result<()> {
        unreachable!("only on a full disk")
    }

    async fn len(&self) -> io::Result<u64> {
        self.file.len().await
    }

    fn map(&self) -> io::Result<Self::Map> {
        self.file.map()
    }
}
