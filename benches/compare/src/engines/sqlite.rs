//! SQLite, all objects in one file: one connection writes, others read.

use std::path::Path;
use std::sync::{Mutex, PoisonError};

use anyhow::Result;
use rusqlite::{Connection, OptionalExtension, params};

use super::Peer;
use crate::data::{Id, Key, Put};

const PUT: &str = "INSERT OR REPLACE INTO entries VALUES (?1, ?2, ?3)";
const GET: &str = "SELECT value FROM entries WHERE object = ?1 AND key = ?2";
const LIST: &str = "SELECT key, value FROM entries WHERE object = ?1 ORDER BY key";
const TABLE: &str = "CREATE TABLE IF NOT EXISTS entries (object BLOB, key BLOB, value BLOB, \
                     PRIMARY KEY (object, key)) WITHOUT ROWID";

pub(crate) struct Sqlite {
    writer: Mutex<Connection>,
    reader: Mutex<Connection>,
}

/// The settings that both ways of using SQLite share.
pub(crate) fn connect(path: &Path) -> Result<Connection> {
    let connection = Connection::open(path)?;
    connection.busy_timeout(std::time::Duration::from_secs(60))?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.set_prepared_statement_cache_capacity(8);
    Ok(connection)
}

/// Counts rows of key and value.
pub(crate) fn count(mut rows: rusqlite::Rows<'_>) -> Result<(u64, u64)> {
    let (mut keys, mut bytes) = (0, 0);
    while let Some(row) = rows.next()? {
        std::hint::black_box(row.get_ref(0)?.as_blob()?);
        keys += 1;
        bytes += row.get_ref(1)?.as_blob()?.len() as u64;
    }
    Ok((keys, bytes))
}

impl Sqlite {
    pub(crate) fn open(dir: &Path) -> Result<Self> {
        let path = dir.join("store.db");
        let writer = connect(&path)?;
        writer.execute_batch(TABLE)?;
        let reader = connect(&path)?;
        Ok(Self { writer: Mutex::new(writer), reader: Mutex::new(reader) })
    }
}

impl Peer for Sqlite {
    fn commit(&self, puts: &[Put]) -> Result<()> {
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let transaction = writer.transaction()?;
        {
            let mut statement = transaction.prepare_cached(PUT)?;
            for put in puts {
                statement.execute(params![put.object, put.key, put.value])?;
            }
        }
        Ok(transaction.commit()?)
    }

    fn get_many(&self, keys: &[(Id, Key)]) -> Result<u64> {
        let mut reader = self.reader.lock().unwrap_or_else(PoisonError::into_inner);
        let transaction = reader.transaction()?;
        let mut bytes = 0;
        {
            let mut statement = transaction.prepare_cached(GET)?;
            for (object, key) in keys {
                let length = statement.query_row(params![object, key], |row| {
                    Ok(row.get_ref(0)?.as_blob()?.len() as u64)
                });
                bytes += length.optional()?.unwrap_or(0);
            }
        }
        transaction.commit()?;
        Ok(bytes)
    }

    fn list(&self, object: &Id) -> Result<(u64, u64)> {
        let reader = self.reader.lock().unwrap_or_else(PoisonError::into_inner);
        let mut statement = reader.prepare_cached(LIST)?;
        count(statement.query([object])?)
    }

    fn settle(&self) -> Result<()> {
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(writer.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?)
    }

    fn close(self: Box<Self>) -> Result<()> {
        for connection in [self.reader, self.writer] {
            let connection = connection.into_inner().unwrap_or_else(PoisonError::into_inner);
            connection.close().map_err(|(_, error)| error)?;
        }
        Ok(())
    }
}
