//! The reference: what the store may hold, kept in SQLite.
//!
//! A table holds each object's settled state. Beside it stand the commits that were submitted and
//! are not settled, in order, with how many of them were acknowledged. What the store shows must
//! be the settled state after a prefix of these commits that holds all acknowledged ones (E2);
//! seeing it settles it.

use std::collections::{BTreeMap, VecDeque};

use anyhow::{Result, bail, ensure};
use dormouse_engine::{AlarmChange, Batch, Contents, ObjectId, Op, Version};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, OptionalExtension, params};

struct Submitted {
    batch: Batch,
    version: Version,
}

#[derive(Default)]
struct Unsettled {
    commits: VecDeque<Submitted>,
    acknowledged: usize,
}

/// What a store may hold.
pub struct Reference {
    sqlite: Connection,
    unsettled: BTreeMap<ObjectId, Unsettled>,
}

const SELECT_PAIRS: &str = "SELECT key, value FROM pair WHERE object = ? ORDER BY key";

/// An empty database in memory, for one thread at a time.
pub(crate) fn in_memory() -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_MEMORY
        | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_in_memory_with_flags(flags)?;
    // Else a statement is prepared anew for each value that it is given.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    Ok(connection)
}

impl Reference {
    /// An empty store.
    ///
    /// Errors: SQLite's.
    pub fn new() -> Result<Self> {
        let sqlite = in_memory()?;
        sqlite.execute_batch(
            "CREATE TABLE pair (object BLOB, key BLOB, value BLOB, PRIMARY KEY (object, key))
             WITHOUT ROWID;
             CREATE TABLE alarm (object BLOB PRIMARY KEY, at INTEGER) WITHOUT ROWID;
             PRAGMA journal_mode = OFF;",
        )?;
        Ok(Self { sqlite, unsettled: BTreeMap::new() })
    }

    /// A commit was submitted, and the store gave it this version.
    pub fn submitted(&mut self, id: ObjectId, batch: Batch, version: Version) {
        let unsettled = self.unsettled.entry(id).or_default();
        unsettled.commits.push_back(Submitted { batch, version });
    }

    /// A commit was acknowledged: it and all before it are there for good.
    pub fn acknowledged(&mut self, id: &ObjectId, version: Version) {
        let unsettled = self.unsettled.entry(*id).or_default();
        let upto = unsettled.commits.iter().position(|commit| commit.version == version);
        // Already settled by a read, perhaps.
        let upto = upto.map_or(0, |index| index + 1);
        unsettled.acknowledged = unsettled.acknowledged.max(upto);
    }

    /// A commit failed in a way that says that it did not happen.
    pub fn refused(&mut self, id: &ObjectId, version: Version) {
        let unsettled = self.unsettled.entry(*id).or_default();
        unsettled.commits.retain(|commit| commit.version != version);
    }

    /// The store was reopened and shows `contents`: what is not in it is gone.
    ///
    /// Errors: says what was expected, if this is no admissible state.
    pub fn recovered(&mut self, id: &ObjectId, contents: &Contents) -> Result<()> {
        self.observed(id, contents)?;
        self.unsettled.remove(id);
        Ok(())
    }

    /// The store shows `contents` durably.
    ///
    /// Errors: says what was expected, if this is no admissible state.
    pub fn observed(&mut self, id: &ObjectId, contents: &Contents) -> Result<()> {
        let mut unsettled = self.unsettled.remove(id).unwrap_or_default();
        let mut applied = 0;
        let result = loop {
            if applied >= unsettled.acknowledged && self.equals(id, contents)? {
                let last = applied.checked_sub(1).map(|last| unsettled.commits[last].version);
                if contents.version == Version::NONE
                    || last.is_none_or(|last| last == contents.version)
                {
                    break Ok(());
                }
            }
            let Some(next) = unsettled.commits.get(applied) else {
                break self.mismatch(id, contents, &unsettled);
            };
            self.apply(id, &next.batch)?;
            applied += 1;
        };
        unsettled.commits.drain(..applied);
        unsettled.acknowledged = unsettled.acknowledged.saturating_sub(applied);
        self.unsettled.insert(*id, unsettled);
        result
    }

    fn mismatch(&self, id: &ObjectId, contents: &Contents, unsettled: &Unsettled) -> Result<()> {
        bail!(
            "object {id} at version {} holds {} keys, alarm {:?}; no prefix of {} commits, {} of \
             them acknowledged, gives this; after all of them: {} keys, alarm {:?}",
            contents.version,
            contents.map.len(),
            contents.alarm,
            unsettled.commits.len(),
            unsettled.acknowledged,
            self.count(id)?,
            self.alarm(id)?,
        )
    }

    fn equals(&self, id: &ObjectId, contents: &Contents) -> Result<bool> {
        let mut select = self.sqlite.prepare_cached(SELECT_PAIRS)?;
        let mut rows = select.query([&id.as_bytes()[..]])?;
        let mut found = contents.map.iter();
        let same = loop {
            match (rows.next()?, found.next()) {
                (None, None) => break true,
                (Some(row), Some((key, value)))
                    if row.get_ref(0)?.as_blob()? == &key[..]
                        && row.get_ref(1)?.as_blob()? == &value[..] => {}
                _ => break false,
            }
        };
        let exists = contents.version != Version::NONE;
        ensure!(exists || contents.map.is_empty(), "an object without a version has keys");
        Ok(same && self.alarm(id)? == contents.alarm)
    }

    fn count(&self, id: &ObjectId) -> Result<u64> {
        let mut select = self.sqlite.prepare_cached(SELECT_PAIRS)?;
        let rows = select.query_map([&id.as_bytes()[..]], |_| Ok(()))?;
        Ok(rows.count() as u64)
    }

    fn alarm(&self, id: &ObjectId) -> Result<Option<u64>> {
        let mut select = self.sqlite.prepare_cached("SELECT at FROM alarm WHERE object = ?")?;
        let at = select.query_row([&id.as_bytes()[..]], |row| row.get::<_, i64>(0)).optional()?;
        Ok(at.map(|at| u64::try_from(at).expect("stored from a u64")))
    }

    fn apply(&mut self, id: &ObjectId, batch: &Batch) -> Result<()> {
        let id = &id.as_bytes()[..];
        let run = |sql: &str, params: &[&dyn rusqlite::ToSql]| {
            self.sqlite.prepare_cached(sql).and_then(|mut statement| statement.execute(params))
        };
        if batch.deletes_all() {
            run("DELETE FROM pair WHERE object = ?", params![id])?;
        }
        for op in batch.ops() {
            match op {
                Op::Put(key, value) => {
                    run("INSERT OR REPLACE INTO pair VALUES (?, ?, ?)", params![id, key, value])?
                }
                Op::Delete(key) => {
                    run("DELETE FROM pair WHERE object = ? AND key = ?", params![id, key])?
                }
            };
        }
        match batch.alarm() {
            AlarmChange::Keep => {}
            AlarmChange::Clear => drop(run("DELETE FROM alarm WHERE object = ?", params![id])?),
            AlarmChange::Set(at) => {
                let at = i64::try_from(at)?;
                run("INSERT OR REPLACE INTO alarm VALUES (?, ?)", params![id, at])?;
            }
        }
        Ok(())
    }
}
