//! [`Shard`]: one log and one directory, owned by one core.
//!
//! A commit is appended to the queue at once, in call order, and resolves when its batch is
//! durable. What has been appended but is not durable yet is *pending*: later commits build on
//! it, reads wait for it, the directory does not know it.

use std::cell::{OnceCell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use crate::append::Appending;
use crate::batch::{AlarmChange, Batch, OP_HEADER_BYTES, Op};
use crate::checkpoint::{self, Progress};
use crate::clean::{self, Cleaning, Running};
use crate::consolidate::Meanwhile;
use crate::contents::Resident;
use crate::directory::{Directory, Entry, IdMap, Known};
use crate::env::Env;
use crate::error::{Error, Kind, Result};
use crate::format::superblock::Superblock;
use crate::ids::{Epoch, NamespaceTag, ObjectId, SegmentNumber, Version};
use crate::io::{Create, Disk, File};
use crate::limits::Limits;
use crate::live::Live;
use crate::log::ahead::Ahead;
pub use crate::log::queue::Ticket;
use crate::log::queue::{Outcome, Queue};
use crate::log::reserve::{Claim, Reserve};
use crate::log::segments::{FileOf, Recycled, Segments};
use crate::log::writer::{self, Spare, Tail};
use crate::merges;
use crate::namespaces::Quotas;
pub use crate::recover::{Opening, Recovery};
use crate::signal::Signal;
use crate::snapshot::Recent;
use crate::store::{Filter, ObjectInfo, Page};

/// Entries of the directory that are walked over at a time.
const PAGE_ENTRIES: usize = 1024;
/// Keys that one commit deletes of a large object before its pages are written without them.
const DELETES_MAX: usize = 16;

/// Where a shard is in its life: open, then closing, then closed; or only read, then closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Life {
    Open,
    Reading,
    Closing,
    Closed,
}

/// The newest appended state of an object that is not durable yet.
pub(crate) struct Pending {
    pub(crate) entry: Option<Entry>,
    /// The batch that it is in, and how that will end.
    pub(crate) ordinal: u32,
    pub(crate) claim: Claim,
    pub(crate) outcome: Rc<Outcome>,
}

pub(crate) struct State<F: File> {
    pub(crate) directory: Directory<F>,
    pub(crate) progress: Progress<F>,
    pub(crate) pending: IdMap<Pending>,
    /// Objects that are being rewritten, with the commits made since that began.
    pub(crate) rewriting: IdMap<Vec<Meanwhile>>,
    pub(crate) queue: Queue,
    pub(crate) segments: Segments<F>,
    pub(crate) live: Live,
    /// The segment in which a commit began that has not ended: what is durable of it is not live yet, and
    /// needed nevertheless.
    pub(crate) unfinished: Option<u32>,
    pub(crate) cleaning: Cleaning,
    /// How often changes went into the pages of a tree.
    pub(crate) trees_updated: u64,
    /// Large objects that were read lately.
    pub(crate) recent: Recent,
    /// The first segment that recovery replayed something of.
    pub(crate) replayed_from: u32,
    /// Files to be used for the next segments.
    pub(crate) recycled: Vec<Recycled>,
    pub(crate) reserve: Reserve,
    pub(crate) ahead: Ahead,
    /// How often a segment was wanted for reading, to know which was not for longest.
    pub(crate) reads: u64,
    pub(crate) spare: Spare<F>,
    pub(crate) next_segment: SegmentNumber,
    pub(crate) tail: Tail,
    pub(crate) epoch: Epoch,
    pub(crate) next_version: u64,
    pub(crate) log_bytes: u64,
    pub(crate) poison: Option<Error>,
    pub(crate) life: Life,
}

pub(crate) struct Inner<E: Env> {
    pub(crate) env: E,
    pub(crate) superblock: Superblock,
    pub(crate) number: u16,
    pub(crate) limits: Limits,
    pub(crate) recovery: Recovery,
    /// How its files, which are there, are opened.
    pub(crate) create: Create,
    pub(crate) state: RefCell<State<FileOf<E>>>,
    /// The queue or the shard's life changed: for the writer.
    pub(crate) work: Signal,
    /// So much was committed that there may be space to give back, or the shard's life changed: for the
    /// cleaner.
    pub(crate) space: Signal,
    /// A batch was settled, a spare made, the shard closed: for everybody else.
    pub(crate) changed: Signal,
    /// Told of each batch.
    pub(crate) observer: OnceCell<Observer>,
    /// Told when it is poisoned.
    pub(crate) on_poison: OnceCell<Box<dyn Fn()>>,
}

/// See [`Shard::observe`].
pub(crate) type Observer = Box<dyn Fn(Written)>;

/// A batch of commits that was written, and is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// Commits in it.
    pub commits: usize,
    /// Bytes of it in the log.
    pub bytes: usize,
}

impl<E: Env> Inner<E> {
    /// Latches the first failure: everything in flight is unknown, everything later fails (E4).
    pub(crate) fn poison(&self, cause: Error) {
        {
            let mut state = self.state.borrow_mut();
            if state.poison.is_some() {
                return;
            }
            let (epoch, durable) = (state.epoch.0, state.tail.last.0);
            tracing::error!(shard = self.number, epoch, durable, %cause, "shard poisoned");
            state.poison = Some(cause.clone());
            // Before anybody is told.
            self.on_poison.get().into_iter().for_each(|told| told());
            let unknown = Error::caused(Kind::Unknown, "the batch before it failed", cause);
            state.queue.fail(&unknown);
            state.pending.clear();
        }
        self.space.notify();
        self.changed.notify();
    }
}

/// One shard of a store. Cheap to clone; never leaves its core.
pub struct Shard<E: Env>(pub(crate) Rc<Inner<E>>);

impl<E: Env> Clone for Shard<E> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

/// Counters of one shard, and what opening it found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ShardStats {
    /// Objects that exist durably.
    pub objects: u64,
    /// Bytes of all batches in the log.
    pub log_bytes: u64,
    /// Files of the log.
    pub segments: usize,
    /// Bytes of those files.
    pub segment_bytes: u64,
    /// Bytes in them that objects need.
    pub live_bytes: u64,
    /// Bytes of those that are full: what the cleaner keeps small.
    pub full_segment_bytes: u64,
    /// Whether a segment is being cleaned now.
    pub cleaning: bool,
    /// Bytes that the cleaner wrote since the shard was opened, to empty segments.
    pub cleaned_bytes: u64,
    /// Segments that it emptied.
    pub segments_cleaned: u64,
    /// Objects that were committed to while it moved them.
    pub moves_overtaken: u64,
    /// Large objects that it read as a whole to move a part of them: where batches can't be read, what they say does
    /// not lead to all that lies in a segment.
    pub trees_searched: u64,
    /// How often changes of a large object went into the pages of its tree since the shard was opened.
    pub trees_updated: u64,
    /// Segments that went since the shard was opened, for nobody needed them.
    pub segments_freed: u64,
    /// Of these, segments whose files were taken for new ones.
    pub segments_recycled: u64,
    /// Checkpoints that were made since the store was created.
    pub checkpoints: u64,
    /// Files of the directory.
    pub runs: usize,
    /// Bytes of the files that are kept for a full disk, beside the log; none while a shard is young.
    pub reserve_bytes: u64,
    /// Whether the disk is full, as far as is known: new data is refused but for what may find room after all.
    pub full: bool,
    /// What recovery found when the shard was opened: nothing that it dropped goes unseen.
    pub recovery: Recovery,
}

impl ShardStats {
    /// Bytes of segments for each byte that objects need; of an empty shard, their bytes.
    pub fn space_amplification(&self) -> f64 {
        self.segment_bytes as f64 / self.live_bytes.max(1) as f64
    }
}

impl<E: Env> Shard<E> {
    /// Recovers shard `number` of the store and starts its log writer on `env`.
    ///
    /// Durability: what recovery accepted is durable, and fenced off from what it did not, before
    /// this returns (E7, E9).
    /// Errors: `Corrupt` (the log is damaged in a way that hides which objects it hit), `NoSpace`,
    /// `Retry`.
    pub async fn open(
        env: &E,
        superblock: Superblock,
        number: u16,
        limits: Limits,
    ) -> Result<(Self, Recovery)> {
        Self::open_as(env, superblock, number, limits, Opening::default()).await
    }

    /// [`Shard::open`], as `opening` says.
    ///
    /// Errors: as [`Shard::open`].
    pub async fn open_as(
        env: &E,
        superblock: Superblock,
        number: u16,
        limits: Limits,
        opening: Opening,
    ) -> Result<(Self, Recovery)> {
        Self::open_bounded(env, superblock, number, limits, opening, &Quotas::default()).await
    }

    /// [`Shard::open_as`], with bounds of what namespaces may hold that all shards of the store share.
    ///
    /// Errors: `Invalid` (`too-many-bounds`: more than half of the namespaces that a checkpoint has room for), and as
    /// [`Shard::open`].
    pub async fn open_bounded(
        env: &E,
        superblock: Superblock,
        number: u16,
        limits: Limits,
        opening: Opening,
        quotas: &Quotas,
    ) -> Result<(Self, Recovery)> {
        limits.check();
        quotas.check(limits.namespaces_max() / 2)?;
        let began = env.now();
        let recovered = crate::recover::recover(env, &superblock, number, &limits, opening);
        let (mut state, recovery) = recovered.await?;
        state.live.namespaces.bind(quotas, number);
        let inner = Rc::new(Inner {
            env: env.clone(),
            superblock,
            number,
            limits,
            recovery: recovery.clone(),
            create: opening.create(),
            state: RefCell::new(state),
            work: Signal::default(),
            space: Signal::default(),
            changed: Signal::default(),
            observer: OnceCell::new(),
            on_poison: OnceCell::new(),
        });
        let shard = Self(inner);
        if opening.read_only {
            return Ok((shard, recovery));
        }
        env.spawn("log writer", writer::run(shard.0.clone()));
        if let Err(error) = shard.after_recovery(&recovery).await {
            // Its files are to be free for whoever tries again; why it can't be used is known.
            let _poisoned = shard.close().await;
            return Err(match error.kind() {
                // Nobody was answered anything yet.
                Kind::Unknown | Kind::Poisoned => {
                    Error::caused(Kind::Retry, format!("opening shard {number}"), error)
                }
                _ => error,
            });
        }
        shard.tell_opened(&recovery, env.now() - began);
        env.spawn("cleaner", clean::run(shard.clone(), Running::new(&shard.0)));
        Ok((shard, recovery))
    }

    fn tell_opened(&self, recovery: &Recovery, took: Duration) {
        let state = self.0.state.borrow();
        tracing::info!(
            shard = self.0.number,
            epoch = state.epoch.0,
            objects = state.directory.len(),
            batches = recovery.batches,
            segments = recovery.segments,
            dropped = recovery.dropped.as_deref(),
            damaged = recovery.damaged.len(),
            micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
            "shard opened"
        );
    }

    /// What opening owes beside recovery: E9's second form, and an end to what crash after crash
    /// leaves behind.
    async fn after_recovery(&self, recovery: &Recovery) -> Result<()> {
        merges::start_if_due(&self.0);
        let direct = self.0.env.disk().properties().direct;
        if !direct {
            self.rewrite_changed().await?;
        }
        if direct && recovery.segments <= checkpoint::SEGMENTS_MAX {
            return Ok(());
        }
        match checkpoint::make(&self.0, false).await {
            // It can wait: what there is to replay is still there.
            Err(error) if direct && error.kind() != Kind::Poisoned => {
                tracing::warn!(shard = self.0.number, %error, "no checkpoint at opening");
                Ok(())
            }
            Err(error) if error.kind() == Kind::NoSpace => {
                tracing::warn!(shard = self.0.number, %error, "no room for a checkpoint");
                Ok(())
            }
            made => made,
        }
    }

    /// Appends a commit to the log, in call order; the ticket resolves when it is durable.
    ///
    /// `resident`: the object's keys as they are *after* this batch, from a caller that holds all
    /// of them; the log may then write an image instead of a delta.
    ///
    /// Errors at once: `Invalid` (a limit), `NoSpace` (`object-full`: [`Limits::object_bytes_max`]; `namespace-full`: [`Quotas`]),
    /// `Conflict`, `Overloaded`, `Corrupt` (the object is damaged; only a batch that deletes all is taken), `Poisoned`,
    /// `Closed`: nothing happened.
    /// Errors of the ticket: `NoSpace` (the disk is full: only what frees is taken, see [`Batch::only_frees`]; if that waited
    /// behind something of its object that was refused, it is to be tried again: `behind-refused`), `Retry` (nothing happened
    /// either), `Unknown`.
    pub fn commit(
        &self,
        id: &ObjectId,
        batch: &Batch,
        resident: Option<&dyn Resident>,
    ) -> Result<Ticket> {
        let inner = &self.0;
        self.check_open()?;
        self.check_limits(id, batch)?;
        let (ticket, consolidate) = {
            let mut borrowed = inner.state.borrow_mut();
            let state = &mut *borrowed;
            let (head, unknown) = match head(state, id) {
                Ok(head) => (head, false),
                // Nothing that is there is needed.
                Err(_) if batch.deletes_all() => (None, true),
                Err(error) => return Err(named(id, &error)),
            };
            let version_now = head.as_ref().map_or(Version::NONE, |head| head.version);
            if batch.required_version().is_some_and(|required| required != version_now) {
                let what = format!("object {id} is at version {version_now}");
                return Err(Error::new(Kind::Conflict, what));
            }
            if head.as_ref().is_some_and(|head| head.damaged) && !batch.deletes_all() {
                return Err(damaged(id));
            }
            let namespaces_max = inner.limits.namespaces_max();
            let namespaces = &state.live.namespaces;
            let namespace = namespaces.tag(head.as_ref(), batch, resident, namespaces_max);
            let of_object = self.check_size(id, head.as_ref(), batch, resident);
            // What an image would free counts for its namespace, even if whoever commits holds all keys.
            let counts_deltas = resident.is_none() || of_object.is_ok();
            let of_namespace = || namespaces.check(namespace, id, head.as_ref(), batch);
            if let Err(error) = of_object.and_then(|()| of_namespace()) {
                let deltas = head.is_some_and(|head| head.has_deltas());
                drop(borrowed);
                if deltas && counts_deltas {
                    self.start_consolidating(id);
                }
                return Err(error);
            }
            let version = Version(state.next_version);
            state.next_version += 1;
            let alarm = match batch.alarm() {
                AlarmChange::Keep => head.as_ref().and_then(|head| head.alarm),
                AlarmChange::Clear => None,
                AlarmChange::Set(at) => Some(at),
            };
            let existed = head.is_some() || unknown;
            let written_ms = inner.env.wall_ms();
            let rewrite = false;
            let commit = Appending {
                inner,
                id,
                version,
                alarm,
                written_ms,
                head,
                namespace,
                existed,
                rewrite,
            };
            let ticket = commit.append(state, batch, resident);
            if let Some(commits) = state.rewriting.get_mut(id) {
                let outcome = ticket.outcome.clone();
                let image =
                    state.queue.last_mut().updates.last().is_some_and(|it| it.dead.is_some());
                commits.push(Meanwhile { batch: batch.clone(), version, outcome, image });
            }
            let entry = state.pending[id].entry.as_ref();
            let is_due =
                entry.is_some_and(|entry| entry.is_due(&inner.limits) || frees_much(entry, batch));
            (ticket, is_due && !state.rewriting.contains_key(id))
        };
        inner.work.notify();
        if consolidate {
            self.start_consolidating(id);
        }
        Ok(ticket)
    }

    /// Has an object rewritten, so that it is read quickly.
    fn start_consolidating(&self, id: &ObjectId) {
        let (shard, id) = (self.clone(), *id);
        self.0.env.spawn("consolidate", async move {
            match shard.consolidate(&id).await {
                // It was begun as the store was closed: the next opening sees to it.
                Err(error) if error.kind() == Kind::Closed => {}
                Err(error) => tracing::warn!(%id, %error, "could not consolidate"),
                Ok(_) => {}
            }
        });
    }

    /// Whether an object may hold what it would after the commit ([`Limits::object_bytes_max`]).
    fn check_size(
        &self,
        id: &ObjectId,
        head: Option<&Entry>,
        batch: &Batch,
        resident: Option<&dyn Resident>,
    ) -> Result<()> {
        let max = self.0.limits.object_bytes_max;
        if max == u64::MAX || batch.only_frees() {
            return Ok(());
        }
        let bytes = match (resident, head.filter(|_| !batch.deletes_all())) {
            (Some(resident), _) => {
                let (keys, bytes) = resident.size();
                (bytes + keys * OP_HEADER_BYTES) as u64
            }
            (None, head) => {
                let before = head.map_or(0, Entry::log_bytes);
                before + batch.encoded_ops().len() as u64
            }
        };
        if bytes <= max {
            return Ok(());
        }
        let what =
            format!("object {id} would hold {bytes} bytes, limit {max}: delete something of it");
        Err(Error::coded(Kind::NoSpace, "object-full", what))
    }

    /// Bytes of the log that the objects of a namespace need durably in this shard: those of objects whose first
    /// commit named it ([`Batch::named`]).
    pub fn namespace_bytes(&self, namespace: &str) -> u64 {
        self.0.state.borrow().live.namespaces.bytes(NamespaceTag::of(namespace))
    }

    pub(crate) fn check_open(&self) -> Result<()> {
        self.check_healthy()?;
        match self.0.state.borrow().life {
            Life::Open => Ok(()),
            Life::Reading => {
                let what = format!("shard {} is open for reading only", self.0.number);
                Err(Error::coded(Kind::Invalid, "read-only", what))
            }
            Life::Closing | Life::Closed => Err(Error::new(Kind::Closed, "the store is closed")),
        }
    }

    fn check_limits(&self, id: &ObjectId, batch: &Batch) -> Result<()> {
        let limits = &self.0.limits;
        let (key, value) = batch.largest();
        let checks = [
            ("key-too-large", "a key", key, limits.key_bytes_max),
            ("value-too-large", "a value", value, limits.value_bytes_max),
            ("commit-too-large", "a commit", batch.encoded_ops().len(), limits.commit_bytes_max),
        ];
        for (code, what, bytes, max) in checks {
            if bytes > max {
                let message = format!("{what} of object {id} has {bytes} bytes, limit {max}");
                return Err(Error::coded(Kind::Invalid, code, message));
            }
        }
        let waiting = self.0.state.borrow().queue.bytes();
        if waiting + batch.encoded_ops().len() > limits.queue_bytes_max {
            let message = format!("{waiting} bytes wait for the device, object {id}");
            return Err(Error::new(Kind::Overloaded, message));
        }
        Ok(())
    }

    /// Waits until every commit of the object that is in flight now has ended. Commits made
    /// meanwhile are not waited for, so that a busy object is read too.
    ///
    /// Errors: `Poisoned`.
    pub(crate) async fn settled(&self, id: &ObjectId) -> Result<()> {
        let waiting = {
            let state = self.0.state.borrow();
            let newest = state.pending.get(id);
            newest.map(|newest| {
                let others = state.queue.outcomes_beyond(newest.claim, id);
                (newest.outcome.clone(), others)
            })
        };
        if let Some((newest, others)) = waiting {
            // How they ended is for whoever made them; the directory says what is there now. Where the newest is
            // refused, what has a greater claim is still on its way.
            for outcome in std::iter::once(newest).chain(others) {
                let _ended = outcome.settled().await;
            }
        }
        self.check_healthy()
    }

    /// Errors: `Poisoned`, with the first cause.
    pub(crate) fn check_healthy(&self) -> Result<()> {
        match &self.0.state.borrow().poison {
            None => Ok(()),
            Some(cause) => {
                let what = format!("shard {} refuses all work", self.0.number);
                Err(Error::caused(Kind::Poisoned, what, cause.clone()))
            }
        }
    }

    /// Version and alarm (ms since 1970) of the newest durable state.
    ///
    /// Errors: `Corrupt`, if that part of the directory is damaged.
    pub fn head(&self, id: &ObjectId) -> Result<Option<(Version, Option<u64>)>> {
        let entry = self.0.state.borrow().directory.get(id);
        let entry = entry.map_err(|error| named(id, &error))?;
        Ok(entry.map(|entry| (entry.version, entry.alarm)))
    }

    /// What a listing says of the newest durable state.
    ///
    /// Errors: `Corrupt`, if that part of the directory is damaged.
    pub fn info(&self, id: &ObjectId) -> Result<Option<ObjectInfo>> {
        let state = self.0.state.borrow();
        let known = || {
            let (entry, origin) = (state.directory.get(id)?, state.directory.origin(id)?);
            Ok(ObjectInfo::new(*id, Known { entry, origin }))
        };
        known().map_err(|error| named(id, &error))
    }

    /// The version that a commit made now would build on, durable or not.
    pub(crate) fn appended_version(&self, id: &ObjectId) -> Version {
        let head = head(&self.0.state.borrow(), id).unwrap_or(None);
        head.map_or(Version::NONE, |head| head.version)
    }

    /// Version and alarm (ms since 1970) that a commit made now would build on, durable or not.
    ///
    /// Errors: `Corrupt`, `Poisoned`.
    pub(crate) fn appended_head(&self, id: &ObjectId) -> Result<Option<(Version, Option<u64>)>> {
        self.check_healthy()?;
        let head = head(&self.0.state.borrow(), id).map_err(|error| named(id, &error))?;
        Ok(head.map(|head| (head.version, head.alarm)))
    }

    /// The earliest durable alarm, in milliseconds since 1970.
    pub fn next_alarm(&self) -> Option<(u64, ObjectId)> {
        self.0.state.borrow().directory.next_alarm()
    }

    /// Durable alarms at or before `now_ms`, earliest first, at most `max`.
    pub fn alarms_due(&self, now_ms: u64, max: usize) -> Vec<(u64, ObjectId)> {
        self.alarms(now_ms, max, &|_| false)
    }

    /// Likewise, without those that `skip` takes out: time in milliseconds since 1970, and object.
    pub fn alarms(
        &self,
        now_ms: u64,
        max: usize,
        skip: &dyn Fn(&(u64, ObjectId)) -> bool,
    ) -> Vec<(u64, ObjectId)> {
        self.0.state.borrow().directory.alarms(now_ms, max, skip)
    }

    /// Objects that exist durably, in an order of the shard's own, from the one after `after` on.
    /// Those of a damaged block of the directory are left out, which is logged.
    ///
    /// However few are taken, the core is kept for a bounded time: ask on until `next` is `None`.
    pub fn page(&self, filter: &Filter, after: Option<ObjectId>) -> Page {
        let state = self.0.state.borrow();
        let mut page = Page { objects: Vec::new(), next: None };
        for (walked, entry) in state.directory.entries(after).enumerate() {
            match entry {
                Ok(_) if walked >= PAGE_ENTRIES && page.next.is_some() => return page,
                Ok((key, known)) => {
                    page.next = Some(key.id);
                    let object = ObjectInfo::new(key.id, known);
                    page.objects.extend(object.filter(|object| filter.takes(object)));
                }
                Err(error) => {
                    tracing::error!(shard = self.0.number, %error, "objects can't be listed");
                }
            }
        }
        page.next = None;
        page
    }

    /// The error that every call meets since a write failed, if one did.
    pub fn poisoned(&self) -> Option<Error> {
        self.0.state.borrow().poison.clone()
    }

    /// Whether [`Shard::close`] was called.
    pub fn is_closed(&self) -> bool {
        matches!(self.0.state.borrow().life, Life::Closing | Life::Closed)
    }

    /// Has `observer` told of each batch of commits once it is durable. It must not call the shard back.
    ///
    /// # Panics
    /// If there is one already.
    pub fn observe(&self, observer: impl Fn(Written) + 'static) {
        let set = self.0.observer.set(Box::new(observer));
        assert!(set.is_ok(), "a shard has one observer");
    }

    /// Has `told` called when the shard is poisoned, before anybody else hears of it. It must not call the shard back.
    pub(crate) fn on_poison(&self, told: impl Fn() + 'static) {
        let set = self.0.on_poison.set(Box::new(told));
        assert!(set.is_ok(), "a shard tells one of its poison");
    }

    /// Counters, and what opening found.
    pub fn stats(&self) -> ShardStats {
        let state = self.0.state.borrow();
        let bytes = |segment: &crate::log::segments::Segment<_>| u64::from(segment.header.bytes);
        ShardStats {
            objects: state.directory.len(),
            checkpoints: state.progress.generation,
            runs: state.directory.run_refs().len(),
            log_bytes: state.log_bytes,
            segments: state.segments.len() + state.recycled.len(),
            segment_bytes: state.segments.values().map(bytes).sum::<u64>()
                + state.recycled.iter().map(|file| u64::from(file.bytes)).sum::<u64>(),
            live_bytes: state.live.total(),
            full_segment_bytes: state.full_segments().map(bytes).sum(),
            cleaning: state.cleaning.victim.is_some() && !state.cleaning.waiting,
            cleaned_bytes: state.cleaning.cleaned_bytes,
            segments_cleaned: state.cleaning.victims,
            moves_overtaken: state.cleaning.overtaken,
            trees_searched: state.cleaning.searched,
            trees_updated: state.trees_updated,
            segments_freed: state.cleaning.freed,
            segments_recycled: state.cleaning.recycled,
            reserve_bytes: state.reserve.bytes(),
            full: state.reserve.full().is_some(),
            recovery: self.0.recovery.clone(),
        }
    }

    /// Refuses new commits, waits for those in flight, and writes a close record. Closing twice is
    /// fine.
    ///
    /// Errors: `Poisoned`, with the first cause.
    pub async fn close(&self) -> Result<()> {
        let was = {
            let mut state = self.0.state.borrow_mut();
            let was = state.life;
            state.life = match was {
                Life::Open => Life::Closing,
                Life::Reading => Life::Closed,
                ended => ended,
            };
            was
        };
        self.0.work.notify();
        self.0.space.notify();
        self.0.changed.notify();
        let ended = || {
            let state = self.0.state.borrow();
            match (&state.poison, state.life, &state.spare) {
                (_, _, Spare::Preparing) => None,
                _ if state.progress.running || state.progress.merges > 0 => None,
                _ if state.cleaning.running || state.cleaning.compacting > 0 => None,
                _ if state.ahead.running || state.reserve.running => None,
                _ if !state.rewriting.is_empty() => None,
                (Some(cause), ..) => {
                    let what = format!("closing shard {}", self.0.number);
                    Some(Err(Error::caused(Kind::Poisoned, what, cause.clone())))
                }
                (None, Life::Closed, _) => Some(Ok(())),
                (None, ..) => None,
            }
        };
        let closed = self.0.changed.until(ended).await;
        if was == Life::Open {
            let state = self.0.state.borrow();
            let (epoch, durable, vouched) = (state.epoch.0, state.tail.last.0, state.tail.vouched);
            tracing::info!(shard = self.0.number, epoch, durable, vouched, "shard closed");
        }
        closed
    }
}

/// Whether a commit to a large object frees so much that the space is to be had soon: not before the keys are out of
/// their pages.
fn frees_much(entry: &Entry, batch: &Batch) -> bool {
    let deletes = || batch.ops().filter(|op| matches!(op, Op::Delete(_)));
    entry.is_tree() && deletes().take(DELETES_MAX).count() == DELETES_MAX
}

pub(crate) fn damaged(id: &ObjectId) -> Error {
    Error::corrupt(format!("object {id}: a frame that it needs was lost"))
}

/// The error of an object whose part of the directory can't be read.
pub(crate) fn named(id: &ObjectId, error: &Error) -> Error {
    Error::corrupt(format!("object {id}: {}", error.message()))
}

pub(crate) fn head<F: File>(state: &State<F>, id: &ObjectId) -> Result<Option<Entry>> {
    match state.pending.get(id) {
        Some(pending) => Ok(pending.entry.clone()),
        None => state.directory.get(id),
    }
}
