//! What Dormouse is compared with: one trait, an implementation for each peer, and what each of
//! them does to make a commit durable.

pub(crate) mod dormouse;
mod fjall;
mod lmdb;
mod redb;
mod rocksdb;
mod sqlite;
mod sqlite_files;

use std::path::Path;

use anyhow::Result;

use crate::data::{Id, Key, Put};

/// An open peer. Commits are on the device when they return.
pub(crate) trait Peer: Send + Sync {
    /// Makes puts durable: as one atomic commit; one for each object where each has a file.
    fn commit(&self, puts: &[Put]) -> Result<()>;

    /// Reads keys inside one read transaction; the bytes found.
    fn get_many(&self, keys: &[(Id, Key)]) -> Result<u64>;

    /// Reads one key by itself; the bytes found.
    fn get(&self, object: &Id, key: &Key) -> Result<u64> {
        self.get_many(&[(*object, *key)])
    }

    /// Reads all keys of an object; how many there are, and their values' bytes.
    fn list(&self, object: &Id) -> Result<(u64, u64)>;

    /// Does the work that was put off: checkpoints, compactions.
    fn settle(&self) -> Result<()>;

    /// Closes it, all files included.
    fn close(self: Box<Self>) -> Result<()>;
}

/// An engine of the comparison, Dormouse and the floor too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Engine {
    Floor,
    Dormouse,
    SqliteFiles,
    SqliteFilesTuned,
    Sqlite,
    Redb,
    Fjall,
    Lmdb,
    RocksDb,
}

impl Engine {
    pub(crate) const ALL: [Self; 9] = [
        Self::Floor,
        Self::Dormouse,
        Self::SqliteFiles,
        Self::SqliteFilesTuned,
        Self::Sqlite,
        Self::Redb,
        Self::Fjall,
        Self::Lmdb,
        Self::RocksDb,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Floor => "floor",
            Self::Dormouse => "dormouse",
            Self::SqliteFiles => "sqlite-files",
            Self::SqliteFilesTuned => "sqlite-files-tuned",
            Self::Sqlite => "sqlite",
            Self::Redb => "redb",
            Self::Fjall => "fjall",
            Self::Lmdb => "lmdb",
            Self::RocksDb => "rocksdb",
        }
    }

    pub(crate) fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|engine| engine.name() == name)
    }

    pub(crate) fn is_peer(self) -> bool {
        !matches!(self, Self::Floor | Self::Dormouse)
    }

    /// A file for each object: commits of many objects can't be folded into one.
    pub(crate) fn has_file_per_object(self) -> bool {
        matches!(self, Self::SqliteFiles | Self::SqliteFilesTuned)
    }

    /// Its version, or why it is not there.
    pub(crate) fn version(self) -> Result<String, String> {
        let ours = |version: &str| Ok(version.to_owned());
        match self {
            Self::Floor => ours("this machine"),
            Self::Dormouse => locked("dormouse-engine"),
            Self::SqliteFiles | Self::SqliteFilesTuned | Self::Sqlite => ours(rusqlite::version()),
            Self::Redb => locked("redb"),
            Self::Fjall => locked("fjall"),
            Self::Lmdb => Ok(lmdb::version()),
            Self::RocksDb => rocksdb::version(),
        }
    }

    /// What makes its commits durable, and other settings.
    pub(crate) fn durability(self) -> &'static str {
        match self {
            Self::Floor => "O_DIRECT | O_DSYNC into blocks that are written already",
            Self::Dormouse => "Durability::Always, default options and Limits::PRODUCTION",
            Self::SqliteFiles => {
                "a file for each object, journal_mode=WAL, synchronous=FULL; the last used connection stays open"
            }
            Self::SqliteFilesTuned => {
                "the same, WAL kept on close (PERSIST_WAL, no checkpoint), 1,000 connections kept open"
            }
            Self::Sqlite => "one file, journal_mode=WAL, synchronous=FULL, WITHOUT ROWID",
            Self::Redb => "Durability::Immediate",
            Self::Fjall => "batch with PersistMode::SyncAll",
            Self::Lmdb => "default flags (fsync at commit), map of 8 GiB",
            Self::RocksDb => "WAL, WriteOptions.sync = true, default options",
        }
    }

    /// Opens the peer in `dir`, which it makes.
    pub(crate) fn open(self, dir: &Path) -> Result<Box<dyn Peer>> {
        std::fs::create_dir_all(dir)?;
        Ok(match self {
            Self::Floor | Self::Dormouse => anyhow::bail!("{} is no peer", self.name()),
            Self::SqliteFiles => Box::new(sqlite_files::SqliteFiles::open(dir, false)?),
            Self::SqliteFilesTuned => Box::new(sqlite_files::SqliteFiles::open(dir, true)?),
            Self::Sqlite => Box::new(sqlite::Sqlite::open(dir)?),
            Self::Redb => Box::new(redb::Redb::open(dir)?),
            Self::Fjall => Box::new(fjall::Fjall::open(dir)?),
            Self::Lmdb => Box::new(lmdb::Lmdb::open(dir)?),
            Self::RocksDb => Box::new(rocksdb::RocksDb::open(dir)?),
        })
    }
}

/// The version of a package that this program is built with.
fn locked(package: &str) -> Result<String, String> {
    #[derive(serde::Deserialize)]
    struct Lock {
        package: Vec<Package>,
    }
    #[derive(serde::Deserialize)]
    struct Package {
        name: String,
        version: String,
    }
    let lock: Lock =
        toml::from_str(include_str!("../../Cargo.lock")).map_err(|error| error.to_string())?;
    let found = lock.package.into_iter().find(|entry| entry.name == package);
    found.map(|entry| entry.version).ok_or(format!("{package} is not in Cargo.lock"))
}

/// The key in an engine with one key space: object, then key.
fn whole_key(object: &Id, key: &Key) -> [u8; 28] {
    let mut whole = [0; 28];
    whole[..16].copy_from_slice(object);
    whole[16..].copy_from_slice(key);
    whole
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{Rng, id, key, put};

    /// Commits, settles and closes; opens again and looks.
    fn write_and_read(engine: Engine) -> Result<()> {
        let dir = tempfile::TempDir::new()?;
        let mut rng = Rng::new(7);
        let peer = engine.open(dir.path())?;
        let puts: Vec<_> = (0..12).map(|n| put(&mut rng, n / 4, n % 4)).collect();
        peer.commit(&puts)?;
        peer.settle()?;
        peer.commit(&[put(&mut rng, 1, 4)])?;
        peer.close()?;
        let peer = engine.open(dir.path())?;
        for (object, keys) in [(0, 4), (1, 5), (2, 4), (9, 0)] {
            assert_eq!(peer.list(&id(object))?, (keys, keys * 100), "{}", engine.name());
        }
        let two = [(id(0), key(0)), (id(1), key(4))];
        assert_eq!(peer.get_many(&two)?, 200, "{}", engine.name());
        assert_eq!(peer.get(&id(2), &key(3))?, 100, "{}", engine.name());
        assert_eq!(peer.get(&id(2), &key(4))?, 0, "{}", engine.name());
        peer.close()
    }

    #[test]
    fn every_peer_reads_what_was_committed_and_keeps_it() {
        let here = |engine: &Engine| engine.is_peer() && engine.version().is_ok();
        for engine in Engine::ALL.into_iter().filter(here) {
            write_and_read(engine).unwrap_or_else(|error| panic!("{}: {error:#}", engine.name()));
        }
    }

    #[test]
    fn names_are_told_apart() {
        for engine in Engine::ALL {
            assert_eq!(Engine::parse(engine.name()), Some(engine));
        }
    }
}
