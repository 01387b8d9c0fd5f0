//! redb.

use std::path::Path;

use anyhow::Result;
use redb::{Database, ReadableDatabase, TableDefinition};

use super::{Peer, whole_key};
use crate::data::{Id, Key, Put};

const ENTRIES: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("entries");

pub(crate) struct Redb(Database);

impl Redb {
    pub(crate) fn open(dir: &Path) -> Result<Self> {
        let database = Database::create(dir.join("store.redb"))?;
        let write = database.begin_write()?;
        write.open_table(ENTRIES)?;
        write.commit()?;
        Ok(Self(database))
    }
}

impl Peer for Redb {
    fn commit(&self, puts: &[Put]) -> Result<()> {
        let mut write = self.0.begin_write()?;
        write.set_durability(redb::Durability::Immediate)?;
        {
            let mut table = write.open_table(ENTRIES)?;
            for put in puts {
                table.insert(&whole_key(&put.object, &put.key)[..], &put.value[..])?;
            }
        }
        Ok(write.commit()?)
    }

    fn get_many(&self, keys: &[(Id, Key)]) -> Result<u64> {
        let table = self.0.begin_read()?.open_table(ENTRIES)?;
        let mut bytes = 0;
        for (object, key) in keys {
            let value = table.get(&whole_key(object, key)[..])?;
            bytes += value.map_or(0, |value| value.value().len() as u64);
        }
        Ok(bytes)
    }

    fn list(&self, object: &Id) -> Result<(u64, u64)> {
        let table = self.0.begin_read()?.open_table(ENTRIES)?;
        let (low, high) = (whole_key(object, &[0; 12]), whole_key(object, &[255; 12]));
        let (mut keys, mut bytes) = (0, 0);
        for entry in table.range(&low[..]..=&high[..])? {
            let (key, value) = entry?;
            std::hint::black_box(key.value());
            keys += 1;
            bytes += value.value().len() as u64;
        }
        Ok((keys, bytes))
    }

    fn settle(&self) -> Result<()> {
        // Frees the pages that the last transactions put off; compaction wants the file to itself
        // and is not what an embedder does while it runs.
        for _ in 0..2 {
            self.0.begin_write()?.commit()?;
        }
        Ok(())
    }

    fn close(self: Box<Self>) -> Result<()> {
        Ok(self.0.close()?)
    }
}
