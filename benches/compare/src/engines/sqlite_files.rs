//! SQLite, a file for each object, as hosts of Durable Objects store them.
//!
//! Plain: the connection that was used last stays open, and closing checkpoints and removes the
//! WAL. Tuned: a thousand connections stay open, and closing leaves the WAL where it is.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Result, ensure};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OptionalExtension, params};

use super::Peer;
use super::sqlite::{connect, count};
use crate::data::{Id, Key, Put};

const PUT: &str = "INSERT OR REPLACE INTO entries VALUES (?1, ?2)";
const GET: &str = "SELECT value FROM entries WHERE key = ?1";
const LIST: &str = "SELECT key, value FROM entries ORDER BY key";
const TABLE: &str =
    "CREATE TABLE IF NOT EXISTS entries (key BLOB PRIMARY KEY, value BLOB) WITHOUT ROWID";

type Shared = Arc<Mutex<Connection>>;

pub(crate) struct SqliteFiles {
    dir: PathBuf,
    tuned: bool,
    open: Mutex<Connections>,
}

#[derive(Default)]
struct Connections {
    /// With when each was used last.
    by_object: BTreeMap<Id, (Shared, u64)>,
    by_use: BTreeMap<u64, Id>,
    uses: u64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[expect(unsafe_code, reason = "the call has no safe wrapper")]
fn keep_wal(connection: &mut Connection) -> Result<()> {
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    let mut on: std::ffi::c_int = 1;
    // SAFETY: the handle is open, the name ends with a zero, and the argument is an int, as this
    // operation wants it.
    let code = unsafe {
        rusqlite::ffi::sqlite3_file_control(
            connection.handle(),
            c"main".as_ptr(),
            rusqlite::ffi::SQLITE_FCNTL_PERSIST_WAL,
            (&raw mut on).cast(),
        )
    };
    ensure!(code == rusqlite::ffi::SQLITE_OK, "PERSIST_WAL: {code}");
    Ok(())
}

impl SqliteFiles {
    pub(crate) fn open(dir: &Path, tuned: bool) -> Result<Self> {
        for directory in 0..=255_u8 {
            std::fs::create_dir_all(dir.join(format!("{directory:02x}")))?;
        }
        Ok(Self { dir: dir.to_owned(), tuned, open: Mutex::default() })
    }

    fn path(&self, object: &Id) -> PathBuf {
        let name: String = object.iter().map(|byte| format!("{byte:02x}")).collect();
        self.dir.join(&name[..2]).join(format!("{name}.db"))
    }

    fn connect(&self, object: &Id) -> Result<Connection> {
        let mut connection = connect(&self.path(object))?;
        connection.execute_batch(TABLE)?;
        if self.tuned {
            keep_wal(&mut connection)?;
        }
        Ok(connection)
    }

    /// The object's connection; those that were not used for longest are closed for it.
    fn connection(&self, object: &Id) -> Result<Shared> {
        let kept = if self.tuned { 1_000 } else { 1 };
        if let Some(shared) = lock(&self.open).used(object) {
            return Ok(shared);
        }
        let shared = Arc::new(Mutex::new(self.connect(object)?));
        let mut open = lock(&self.open);
        // Another thread may have been faster: then there are two for a while, which SQLite allows.
        open.insert(*object, shared.clone());
        let mut closed = Vec::new();
        while open.by_object.len() > kept {
            closed.extend(open.evict());
        }
        drop(open);
        // Closing writes: not under the lock.
        drop(closed);
        Ok(shared)
    }
}

impl Connections {
    fn used(&mut self, object: &Id) -> Option<Shared> {
        let (shared, last) = self.by_object.get_mut(object)?;
        let shared = shared.clone();
        self.by_use.remove(last);
        self.uses += 1;
        *last = self.uses;
        self.by_use.insert(self.uses, *object);
        Some(shared)
    }

    fn insert(&mut self, object: Id, shared: Shared) {
        self.uses += 1;
        if let Some((_, last)) = self.by_object.insert(object, (shared, self.uses)) {
            self.by_use.remove(&last);
        }
        self.by_use.insert(self.uses, object);
    }

    fn evict(&mut self) -> Option<Shared> {
        let (_, object) = self.by_use.pop_first()?;
        self.by_object.remove(&object).map(|(shared, _)| shared)
    }
}

impl Peer for SqliteFiles {
    fn commit(&self, puts: &[Put]) -> Result<()> {
        for puts in puts.chunk_by(|one, other| one.object == other.object) {
            let shared = self.connection(&puts[0].object)?;
            let mut connection = lock(&shared);
            let transaction = connection.transaction()?;
            {
                let mut statement = transaction.prepare_cached(PUT)?;
                for put in puts {
                    statement.execute(params![put.key, put.value])?;
                }
            }
            transaction.commit()?;
        }
        Ok(())
    }

    fn get_many(&self, keys: &[(Id, Key)]) -> Result<u64> {
        let mut bytes = 0;
        for keys in keys.chunk_by(|one, other| one.0 == other.0) {
            let shared = self.connection(&keys[0].0)?;
            let mut connection = lock(&shared);
            let transaction = connection.transaction()?;
            {
                let mut statement = transaction.prepare_cached(GET)?;
                for (_, key) in keys {
                    let length = statement
                        .query_row([key], |row| Ok(row.get_ref(0)?.as_blob()?.len() as u64));
                    bytes += length.optional()?.unwrap_or(0);
                }
            }
            transaction.commit()?;
        }
        Ok(bytes)
    }

    fn list(&self, object: &Id) -> Result<(u64, u64)> {
        let shared = self.connection(object)?;
        let connection = lock(&shared);
        let mut statement = connection.prepare_cached(LIST)?;
        count(statement.query([])?)
    }

    fn settle(&self) -> Result<()> {
        let open: Vec<_> = lock(&self.open).by_object.values().map(|open| open.0.clone()).collect();
        for shared in open {
            lock(&shared).query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
        }
        Ok(())
    }

    fn close(self: Box<Self>) -> Result<()> {
        lock(&self.open).by_object.clear();
        Ok(())
    }
}
