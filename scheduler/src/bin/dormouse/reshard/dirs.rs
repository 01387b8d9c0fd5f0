//! The directories of a reshard, and how one takes another's place.
//!
//! | step | DIR | DIR.resharding | DIR.before-reshard |
//! |---|---|---|---|
//! | `prepare`, and the copy | old | new, marked | |
//! | `exchange` | new, marked | old | |
//! | `finish`, rename | new, marked | | old |
//! | `finish`, end | new | | old |
//!
//! Each step is durable before the next. The mark is a file that names the old store: where DIR.resharding
//! has it, that is a copy that may be removed; where DIR has it and DIR.resharding is the store that it
//! names, the exchange was made and the rest is to be done.

#![expect(clippy::disallowed_methods, reason = "directories of stores that nobody has open")]

use std::fs;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use dormouse_engine::Superblock;
use dormouse_engine::ids::StoreId;
use rustix::fs::{CWD, Mode, OFlags, RenameFlags};

/// The file that marks a store that reshard makes.
const MARK: &str = "resharding";

pub(super) struct Dirs {
    dir: PathBuf,
    parent: PathBuf,
    new: PathBuf,
    old: PathBuf,
}

impl Dirs {
    pub(super) fn of(dir: &Path) -> Result<Self> {
        // What the name stands for, not the name.
        let dir = dir.canonicalize()?;
        let (parent, name) = (dir.parent(), dir.file_name());
        let (Some(parent), Some(name)) = (parent, name) else {
            anyhow::bail!("{} has no directory around it", dir.display());
        };
        let sibling = |suffix: &str| {
            let mut name = name.to_owned();
            name.push(suffix);
            parent.join(name)
        };
        let (new, old) = (sibling(".resharding"), sibling(".before-reshard"));
        Ok(Self { parent: parent.to_owned(), new, old, dir })
    }

    pub(super) fn new_store(&self) -> &Path {
        &self.new
    }

    pub(super) fn old_store(&self) -> &Path {
        &self.old
    }

    /// Makes an end of a run that was interrupted after the exchange; whether there was one.
    pub(super) fn finish_interrupted(&self) -> Result<bool> {
        let Some(named) = marked(&self.dir)? else { return Ok(false) };
        let exchanged = store_in(&self.new) == Some(named);
        if exchanged {
            self.keep_old()?;
        }
        self.unmark()?;
        Ok(exchanged)
    }

    /// Makes the directory of the new store.
    ///
    /// Errors: it can't be made, or what is there is not reshard's.
    pub(super) fn prepare(&self, store: StoreId) -> Result<()> {
        let old = self.old.display();
        ensure!(!self.old.exists(), "{old} is there, from an earlier reshard: move it away first");
        self.check_files()?;
        if self.new.exists() {
            self.discard()?;
        }
        let like = fs::metadata(&self.dir)?;
        fs::DirBuilder::new().mode(like.mode() & 0o7777).create(&self.new)?;
        let owner = fs::metadata(&self.new)?.uid();
        if owner != like.uid() {
            fs::remove_dir(&self.new)?;
            anyhow::bail!("{} belongs to another user: reshard as that one", self.dir.display());
        }
        let mark = self.new.join(MARK);
        fs::write(&mark, format!("{:032x}\n", store.0))?;
        sync(&mark)?;
        sync(&self.new)?;
        sync(&self.parent)
    }

    /// Files that are not the store's would go with the old one.
    fn check_files(&self) -> Result<()> {
        for entry in fs::read_dir(&self.dir)? {
            let name = entry?.file_name();
            let name = name.to_string_lossy();
            let own = name == "superblock"
                || ["shard-", "probe-"].iter().any(|prefix| name.starts_with(prefix));
            let dir = self.dir.display();
            ensure!(own, "{dir} holds {name}, which is not the store's: move it away first");
        }
        Ok(())
    }

    /// Removes the new store; its mark goes last.
    ///
    /// Errors: what is there is not that.
    pub(super) fn discard(&self) -> Result<()> {
        let is_empty = fs::read_dir(&self.new)?.next().is_none();
        let new = self.new.display();
        ensure!(
            is_empty || marked(&self.new)?.is_some(),
            "{new} is there, and was not made by reshard: move it away first"
        );
        for entry in fs::read_dir(&self.new)? {
            let path = entry?.path();
            if !path.ends_with(MARK) {
                fs::remove_file(path)?;
            }
        }
        fs::remove_dir_all(&self.new)?;
        sync(&self.parent)
    }

    /// Puts the new store in the old one's place.
    pub(super) fn exchange(&self) -> Result<()> {
        sync(&self.new)?;
        rustix::fs::renameat_with(CWD, &self.new, CWD, &self.dir, RenameFlags::EXCHANGE)
            .with_context(|| format!("swapping with {}", self.new.display()))?;
        sync(&self.parent)
    }

    /// What is left to do after the exchange.
    pub(super) fn finish(&self) -> Result<()> {
        self.keep_old()?;
        self.unmark()
    }

    fn keep_old(&self) -> Result<()> {
        let flags = RenameFlags::NOREPLACE;
        rustix::fs::renameat_with(CWD, &self.new, CWD, &self.old, flags).with_context(|| {
            format!("renaming {} to {}", self.new.display(), self.old.display())
        })?;
        sync(&self.parent)
    }

    fn unmark(&self) -> Result<()> {
        fs::remove_file(self.dir.join(MARK))?;
        sync(&self.dir)
    }

    /// Removes the old store: first what makes it one, so that half of it is not taken for a store.
    pub(super) fn remove_old(&self) -> Result<()> {
        fs::remove_file(self.old.join("superblock"))?;
        sync(&self.old)?;
        fs::remove_dir_all(&self.old)?;
        sync(&self.parent)
    }
}

/// The store that the mark in a directory names, if there is one.
fn marked(dir: &Path) -> Result<Option<StoreId>> {
    match fs::read_to_string(dir.join(MARK)) {
        // One that was not written to its end is a mark too, and names nothing.
        Ok(text) => Ok(Some(StoreId(u128::from_str_radix(text.trim(), 16).unwrap_or(0)))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn store_in(dir: &Path) -> Option<StoreId> {
    let superblock = Superblock::decode(&fs::read(dir.join("superblock")).ok()?);
    superblock.ok().map(|superblock| superblock.store)
}

/// Makes a file, or the names in a directory, durable.
fn sync(path: &Path) -> Result<()> {
    let synced = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .and_then(rustix::fs::fsync);
    synced.with_context(|| format!("syncing {}", path.display()))
}
