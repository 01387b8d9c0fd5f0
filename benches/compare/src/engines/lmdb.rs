//! LMDB, through heed.

use std::path::Path;

use anyhow::Result;
use heed::types::Bytes;
use heed::{CommitOrAbort, Database, Env, EnvOpenOptions};

use super::{Peer, whole_key};
use crate::data::{Id, Key, Put};

pub(crate) struct Lmdb {
    env: Env,
    entries: Database<'static, Bytes, Bytes>,
}

pub(crate) fn version() -> String {
    let version = heed::lmdb_version();
    format!("{}.{}.{}", version.major, version.minor, version.patch)
}

impl Lmdb {
    #[expect(unsafe_code, reason = "the file is mapped")]
    pub(crate) fn open(dir: &Path) -> Result<Self> {
        let mut options = EnvOpenOptions::new();
        options.map_size(8 << 30).max_readers(128);
        // SAFETY: nobody else changes the file, and it is opened once in this process.
        let env = unsafe { options.open(dir)? };
        let made = env.create_databases_and_commit(env.write_txn()?, |opener, write| {
            opener.create_database(write, None).map(CommitOrAbort::<_, ()>::Commit)
        })?;
        let entries = made.unwrap_commit();
        Ok(Self { env, entries })
    }
}

impl Peer for Lmdb {
    fn commit(&self, puts: &[Put]) -> Result<()> {
        let mut write = self.env.write_txn()?;
        for put in puts {
            self.entries.put(&mut write, &whole_key(&put.object, &put.key), &put.value)?;
        }
        Ok(write.commit()?)
    }

    fn get_many(&self, keys: &[(Id, Key)]) -> Result<u64> {
        let read = self.env.read_txn()?;
        let mut bytes = 0;
        for (object, key) in keys {
            let value = self.entries.get(&read, &whole_key(object, key))?;
            // The value lies in the map: looked at, as the others copy or check theirs.
            bytes += std::hint::black_box(value).map_or(0, |value| value.len() as u64);
        }
        Ok(bytes)
    }

    fn list(&self, object: &Id) -> Result<(u64, u64)> {
        let read = self.env.read_txn()?;
        let (mut keys, mut bytes) = (0, 0);
        for entry in self.entries.prefix_iter(&read, object)? {
            let (key, value) = std::hint::black_box(entry?);
            std::hint::black_box(key);
            keys += 1;
            bytes += value.len() as u64;
        }
        Ok((keys, bytes))
    }

    fn settle(&self) -> Result<()> {
        Ok(self.env.force_sync()?)
    }

    fn close(self: Box<Self>) -> Result<()> {
        self.env.prepare_for_closing().wait();
        Ok(())
    }
}
