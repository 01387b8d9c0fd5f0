//! What is known of one object: the reference that its answers and its recoveries are held to.
//!
//! Every operation is made on SQLite too, at the moment at which it takes effect (transactions
//! as savepoints), and the answers must be equal. Beside that *live* state stands what may be
//! there after a crash: the state that was durable for certain, and the groups of writes made
//! since, each atomic, in order. What is found when the object comes to life again must be that
//! state after a prefix of these groups which holds all that was acknowledged (E1, E2); only a
//! crash or a reset may make it shorter than the whole.

mod deletion;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Deref;

use anyhow::{Result, ensure};
use bytes::Bytes;
use rusqlite::{Connection, params};

/// Keys and alarm of an object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Contents {
    pub(super) pairs: BTreeMap<String, Bytes>,
    pub(super) alarm: Option<u64>,
}

/// A change as it takes effect.
#[derive(Clone, Debug)]
pub(super) enum Effect {
    Put(String, Bytes),
    Delete(String),
    DeleteAll { alarm_too: bool },
    Alarm(Option<u64>),
}

impl Contents {
    fn apply(&mut self, effect: &Effect) {
        match effect {
            Effect::Put(key, value) => drop(self.pairs.insert(key.clone(), value.clone())),
            Effect::Delete(key) => drop(self.pairs.remove(key)),
            Effect::DeleteAll { alarm_too } => {
                self.pairs.clear();
                if *alarm_too {
                    self.alarm = None;
                }
            }
            Effect::Alarm(at) => self.alarm = *at,
        }
    }
}

/// Writes that are durable together or not at all.
struct Group {
    effects: Vec<Effect>,
    /// Whether output waits for it.
    confirmed: bool,
}

/// A run of the alarm's handler.
struct AlarmRun {
    event: u64,
    scheduled_ms: u64,
    /// The object sees no alarm until it sets one.
    hidden: bool,
}

/// What is known of one object.
pub(super) struct Ghost {
    sqlite: Database,
    settled: Contents,
    groups: VecDeque<Group>,
    /// Groups that were ever settled: the index of the first of `groups`.
    first: u64,
    acknowledged: u64,
    /// Writes since the last pause.
    open: Vec<Effect>,
    open_confirmed: bool,
    open_unconfirmed: bool,
    /// Effects of open transactions, and whether the alarm was hidden when each began.
    overlays: Vec<(Vec<Effect>, bool)>,
    /// Whether unacknowledged groups may be missing when the object comes to life again.
    pub(super) may_lose: bool,
    pub(super) instance: Option<u64>,
    /// The event that waits for storage, or is in a transaction or section: no other may run.
    pub(super) exclusive: Option<u64>,
    run: Option<AlarmRun>,
    /// Runs of the alarm of this time that failed; none where that is not known.
    failed: Option<(u64, Option<u32>)>,
    pub(super) alarm_runs: usize,
    /// Deletions that were asked for and not answered.
    deletions: BTreeSet<u64>,
    /// Whether one that was answered, or never will be, may be what comes to life next.
    in_doubt: bool,
    /// The last instance that came to life, and the last one that found nothing.
    awoke: u64,
    found_nothing: u64,
    /// It set an alarm once.
    pub(super) had_alarm: bool,
}

impl Ghost {
    pub(super) fn new() -> Result<Self> {
        Ok(Self {
            sqlite: Database::take()?,
            settled: Contents::default(),
            groups: VecDeque::new(),
            first: 0,
            acknowledged: 0,
            open: Vec::new(),
            open_confirmed: false,
            open_unconfirmed: false,
            overlays: Vec::new(),
            may_lose: false,
            instance: None,
            exclusive: None,
            run: None,
            failed: None,
            alarm_runs: 0,
            deletions: BTreeSet::new(),
            in_doubt: false,
            awoke: 0,
            found_nothing: 0,
            had_alarm: false,
        })
    }

    /// The process is gone.
    pub(super) fn crashed(&mut self) {
        self.reset();
        self.closed();
    }

    /// The process ended in order.
    pub(super) fn closed(&mut self) {
        // Counters of retries live in memory.
        self.failed = None;
        self.in_doubt |= !std::mem::take(&mut self.deletions).is_empty();
    }

    /// The instance is gone and with it what it did not say.
    pub(super) fn reset(&mut self) {
        self.may_lose = true;
        self.open.clear();
        self.open_confirmed = false;
        self.open_unconfirmed = false;
        if let Some(run) = self.run.take() {
            self.failed = Some((run.scheduled_ms, None));
        }
    }

    /// The object came to life and holds `found`; whether something unacknowledged was lost.
    pub(super) fn activated(&mut self, instance: u64, found: Contents) -> Result<bool> {
        self.awoke = instance;
        if found == Contents::default() {
            self.found_nothing = instance;
            if self.may_be_deleted() {
                self.in_doubt = false;
                // Whether that is for a deletion is open, and so how often its alarm had failed.
                let failed = self.failed.map(|(at, _)| (at, None));
                self.wipe()?;
                self.failed = failed;
                return Ok(false);
            }
        }
        self.in_doubt = false;
        self.pause();
        let end = self.end();
        let mut state = std::mem::take(&mut self.settled);
        let mut index = self.first;
        let mut groups = std::mem::take(&mut self.groups).into_iter();
        while index < self.acknowledged || (!self.may_lose && index < end) || state != found {
            let Some(group) = groups.next() else {
                let acknowledged = self.acknowledged;
                anyhow::bail!(
                    "came to life with {found:?}; no prefix of its {end} writes gives this, of which \
                     {acknowledged} were acknowledged; all of them give {state:?}"
                );
            };
            group.effects.iter().for_each(|effect| state.apply(effect));
            index += 1;
        }
        let lost = groups.next().is_some();
        if lost || self.may_lose {
            self.make_live(&found)?;
        }
        self.settled = found;
        self.first = end;
        self.acknowledged = end;
        self.may_lose = false;
        self.exclusive = None;
        self.run = None;
        Ok(lost)
    }

    fn make_live(&mut self, contents: &Contents) -> Result<()> {
        if !self.overlays.is_empty() {
            self.run_sql("ROLLBACK", &[])?;
            self.overlays.clear();
        }
        self.run_sql("DELETE FROM kv", params![])?;
        self.run_sql("DELETE FROM alarm", params![])?;
        for (key, value) in &contents.pairs {
            self.run_sql("INSERT INTO kv VALUES (?, ?)", params![key.as_bytes(), &value[..]])?;
        }
        if let Some(at) = contents.alarm {
            self.run_sql("INSERT INTO alarm VALUES (?)", params![i64::try_from(at)?])?;
        }
        Ok(())
    }

    fn run_sql(&self, sql: &str, params: &[&dyn rusqlite::ToSql]) -> Result<usize> {
        Ok(self.sqlite.prepare_cached(sql)?.execute(params)?)
    }

    /// How many groups there ever were.
    pub(super) fn end(&self) -> u64 {
        self.first + self.groups.len() as u64
    }

    /// Groups that output waits for now.
    pub(super) fn confirmed(&self) -> u64 {
        let unconfirmed = self.groups.iter().rev().take_while(|group| !group.confirmed).count();
        self.end() - unconfirmed as u64
    }

    /// Somebody outside knows of the first `groups`.
    pub(super) fn acknowledge(&mut self, groups: u64) {
        self.acknowledged = self.acknowledged.max(groups);
    }

    /// Whether the alarm's handler runs.
    pub(super) fn alarm_runs_now(&self) -> bool {
        self.run.is_some()
    }

    /// Whether something is not known to be durable.
    pub(super) fn is_dirty(&self) -> bool {
        self.acknowledged < self.end()
    }

    /// Writes made so far and those to come are no longer one step.
    pub(super) fn pause(&mut self) {
        if !self.open.is_empty() {
            let effects = std::mem::take(&mut self.open);
            // Whether a write changes anything, so that output waits for it, is open while others
            // that it does not wait for are on their way: then nothing is held against it.
            let known = usize::try_from(self.acknowledged.saturating_sub(self.first)).unwrap_or(0);
            let doubtful = self.groups.iter().skip(known).any(|group| !group.confirmed);
            let confirmed = self.open_confirmed && !self.open_unconfirmed && !doubtful;
            self.groups.push_back(Group { effects, confirmed });
        }
        self.open_confirmed = false;
        self.open_unconfirmed = false;
    }

    /// Makes a change; how many keys it removed.
    pub(super) fn write(&mut self, effect: Effect, confirmed: bool) -> Result<usize> {
        // What changes nothing gives output nothing to wait for.
        let unconfirmed = !confirmed;
        let confirmed = confirmed && !self.changes_nothing(&effect)?;
        let changed = match &effect {
            Effect::Put(key, value) => self.run_sql(
                "INSERT OR REPLACE INTO kv VALUES (?, ?)",
                params![key.as_bytes(), &value[..]],
            )?,
            Effect::Delete(key) => {
                self.run_sql("DELETE FROM kv WHERE key = ?", params![key.as_bytes()])?
            }
            Effect::DeleteAll { alarm_too } => {
                if *alarm_too {
                    self.set_alarm(None)?;
                }
                self.run_sql("DELETE FROM kv", params![])?
            }
            Effect::Alarm(at) => {
                self.had_alarm |= at.is_some();
                self.set_alarm(*at)?
            }
        };
        match self.overlays.last_mut() {
            Some((effects, _)) => effects.push(effect),
            None => {
                self.open.push(effect);
                self.open_unconfirmed |= unconfirmed;
                self.open_confirmed |= confirmed;
            }
        }
        Ok(changed)
    }

    fn changes_nothing(&self, effect: &Effect) -> Result<bool> {
        Ok(match effect {
            Effect::Put(key, value) => self.get(key)?.as_ref() == Some(value),
            Effect::Delete(key) => self.get(key)?.is_none(),
            Effect::DeleteAll { .. } => false,
            Effect::Alarm(at) => self.stored_alarm()? == *at,
        })
    }

    fn set_alarm(&mut self, at: Option<u64>) -> Result<usize> {
        // Whether one that is set for the same time again counts its failures anew is left open.
        if let Some((failed, count)) = &mut self.failed
            && at != Some(*failed)
        {
            *count = None;
        }
        if let Some(run) = &mut self.run {
            run.hidden = false;
        }
        self.run_sql("DELETE FROM alarm", params![])?;
        match at {
            Some(at) => self.run_sql("INSERT INTO alarm VALUES (?)", params![i64::try_from(at)?]),
            None => Ok(0),
        }
    }

    pub(super) fn get(&self, key: &str) -> Result<Option<Bytes>> {
        let mut select = self.sqlite.prepare_cached("SELECT value FROM kv WHERE key = ?")?;
        let mut rows = select.query(params![key.as_bytes()])?;
        Ok(match rows.next()? {
            Some(row) => Some(Bytes::copy_from_slice(row.get_ref(0)?.as_blob()?)),
            None => None,
        })
    }

    /// Keys of a range, at most `limit` if that is not 0.
    pub(super) fn list(
        &self,
        from: &str,
        to: &str,
        limit: u8,
        descending: bool,
    ) -> Result<Vec<(String, Bytes)>> {
        let sql = match descending {
            false => "SELECT * FROM kv WHERE key >= ? AND key < ? ORDER BY key LIMIT ?",
            true => "SELECT * FROM kv WHERE key >= ? AND key < ? ORDER BY key DESC LIMIT ?",
        };
        let limit = if limit == 0 { -1 } else { i64::from(limit) };
        let mut select = self.sqlite.prepare_cached(sql)?;
        let rows = select.query_map(params![from.as_bytes(), to.as_bytes(), limit], |row| {
            let key = String::from_utf8_lossy(row.get_ref(0)?.as_blob()?).into_owned();
            Ok((key, Bytes::copy_from_slice(row.get_ref(1)?.as_blob()?)))
        })?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    fn stored_alarm(&self) -> Result<Option<u64>> {
        let mut select = self.sqlite.prepare_cached("SELECT at FROM alarm")?;
        let mut rows = select.query([])?;
        Ok(match rows.next()? {
            Some(row) => Some(u64::try_from(row.get::<_, i64>(0)?)?),
            None => None,
        })
    }

    /// The alarm as the object sees it.
    pub(super) fn alarm(&self) -> Result<Option<u64>> {
        match self.run.as_ref().is_some_and(|run| run.hidden) {
            true => Ok(None),
            false => self.stored_alarm(),
        }
    }

    pub(super) fn begin(&mut self) -> Result<()> {
        self.pause();
        self.run_sql(if self.overlays.is_empty() { "BEGIN" } else { "SAVEPOINT s" }, &[])?;
        self.overlays.push((Vec::new(), self.run.as_ref().is_some_and(|run| run.hidden)));
        Ok(())
    }

    pub(super) fn commit(&mut self) -> Result<()> {
        let (effects, _) = self.overlays.pop().expect("a transaction is open");
        match self.overlays.last_mut() {
            Some((outer, _)) => {
                outer.extend(effects);
                self.run_sql("RELEASE s", &[])?;
            }
            None => {
                self.run_sql("COMMIT", &[])?;
                self.open = effects;
                self.open_confirmed = true;
                self.pause();
            }
        }
        Ok(())
    }

    pub(super) fn rollback(&mut self) -> Result<()> {
        let (_, hidden) = self.overlays.pop().expect("a transaction is open");
        if let Some(run) = &mut self.run {
            run.hidden = hidden;
        }
        if self.overlays.is_empty() {
            self.run_sql("ROLLBACK", &[])?;
        } else {
            self.run_sql("ROLLBACK TO s", &[])?;
            self.run_sql("RELEASE s", &[])?;
        }
        Ok(())
    }

    /// The alarm's handler starts.
    pub(super) fn alarm_begins(&mut self, event: u64, scheduled_ms: u64, retry: u32) -> Result<()> {
        ensure!(self.run.is_none(), "two runs of the alarm's handler at a time (R-614)");
        let stored = self.stored_alarm()?;
        let in_flight =
            |effect: &Effect| matches!(effect, Effect::Alarm(Some(at)) if *at == scheduled_ms);
        let known = stored == Some(scheduled_ms)
            || self.settled.alarm == Some(scheduled_ms) && !self.groups.is_empty()
            || self.groups.iter().flat_map(|group| &group.effects).any(in_flight);
        ensure!(known, "the alarm of {scheduled_ms} fires; set is {stored:?}");
        let failed = match self.failed {
            Some((at, failed)) if at == scheduled_ms => failed,
            _ => Some(0),
        };
        ensure!(
            failed.is_none_or(|failed| failed == retry),
            "retry {retry} after {failed:?} failures"
        );
        self.failed = Some((scheduled_ms, failed));
        self.run = Some(AlarmRun { event, scheduled_ms, hidden: stored == Some(scheduled_ms) });
        self.alarm_runs += 1;
        Ok(())
    }

    /// The handler ended; `retry` is what it was told, `counts` whether a failure is certain to
    /// count. Whether the alarm was given up.
    pub(super) fn alarm_ends(
        &mut self,
        event: u64,
        retry: u32,
        succeeded: bool,
        counts: bool,
    ) -> Result<bool> {
        let Some(run) = self.run.take_if(|run| run.event == event) else { return Ok(false) };
        let last = retry >= 6;
        if run.hidden && (succeeded || last) {
            self.pause();
            self.write(Effect::Alarm(None), true)?;
            self.pause();
        }
        // A reset before the end is durable makes it a failure after all; and whether an
        // alarm set meanwhile for the same time counts anew is left open.
        let known = !succeeded && !last && run.hidden && counts;
        self.failed = Some((run.scheduled_ms, known.then_some(retry + 1)));
        Ok(!succeeded && last)
    }
}

thread_local! {
    /// Empty databases of lives that are over: making one takes longer than most lives use it.
    static DATABASES: RefCell<Vec<Connection>> = const { RefCell::new(Vec::new()) };
}

/// A database that is empty at first, and is used again by another life afterwards.
struct Database(Option<Connection>);

impl Database {
    fn take() -> Result<Self> {
        let used = DATABASES.with_borrow_mut(Vec::pop);
        Ok(Self(Some(used.map_or_else(connection, Ok)?)))
    }
}

impl Deref for Database {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        self.0.as_ref().expect("there until it is dropped")
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let connection = self.0.take().expect("dropped once");
        let open = !connection.is_autocommit();
        let rolled_back = if open { connection.execute_batch("ROLLBACK") } else { Ok(()) };
        let emptied = rolled_back
            .and_then(|()| connection.execute_batch("DELETE FROM kv; DELETE FROM alarm"));
        // One that can't be emptied is not used again.
        if emptied.is_ok() {
            let _thread_ends = DATABASES.try_with(|used| used.borrow_mut().push(connection));
        }
    }
}

fn connection() -> Result<Connection> {
    let sqlite = crate::reference::in_memory()?;
    sqlite.set_prepared_statement_cache_capacity(32);
    sqlite.execute_batch(
        "PRAGMA journal_mode = MEMORY; PRAGMA synchronous = OFF;
         CREATE TABLE kv (key BLOB PRIMARY KEY, value BLOB) WITHOUT ROWID;
         CREATE TABLE alarm (at INTEGER);",
    )?;
    Ok(sqlite)
}
