//! fjall.

use std::path::Path;

use anyhow::Result;
use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode, Readable};

use super::{Peer, whole_key};
use crate::data::{Id, Key, Put};

pub(crate) struct Fjall {
    database: Database,
    entries: Keyspace,
}

impl Fjall {
    pub(crate) fn open(dir: &Path) -> Result<Self> {
        let database = Database::builder(dir).open()?;
        let entries = database.keyspace("entries", KeyspaceCreateOptions::default)?;
        Ok(Self { database, entries })
    }
}

impl Peer for Fjall {
    fn commit(&self, puts: &[Put]) -> Result<()> {
        let mut batch = self.database.batch().durability(Some(PersistMode::SyncAll));
        for put in puts {
            batch.insert(&self.entries, whole_key(&put.object, &put.key), put.value);
        }
        Ok(batch.commit()?)
    }

    fn get_many(&self, keys: &[(Id, Key)]) -> Result<u64> {
        let snapshot = self.database.snapshot();
        let mut bytes = 0;
        for (object, key) in keys {
            let value = snapshot.get(&self.entries, whole_key(object, key))?;
            bytes += value.map_or(0, |value| value.len() as u64);
        }
        Ok(bytes)
    }

    fn get(&self, object: &Id, key: &Key) -> Result<u64> {
        let value = self.entries.get(whole_key(object, key))?;
        Ok(value.map_or(0, |value| value.len() as u64))
    }

    fn list(&self, object: &Id) -> Result<(u64, u64)> {
        let (mut keys, mut bytes) = (0, 0);
        for entry in self.entries.prefix(object) {
            let (key, value) = entry.into_inner()?;
            std::hint::black_box(key);
            keys += 1;
            bytes += value.len() as u64;
        }
        Ok((keys, bytes))
    }

    fn settle(&self) -> Result<()> {
        self.entries.rotate_memtable_and_wait()?;
        while self.database.active_compactions() > 0 || self.database.outstanding_flushes() > 0 {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        Ok(())
    }

    fn close(self: Box<Self>) -> Result<()> {
        Ok(self.database.persist(PersistMode::SyncAll)?)
    }
}
