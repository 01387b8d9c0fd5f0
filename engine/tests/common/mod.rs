//! What the tests on real disks share.

#![allow(dead_code, reason = "each test program uses some of it")]

use std::io::ErrorKind;

use dormouse_engine::real::{DiskChoice, block_on};

/// A directory below target/, which is on a real disk (a temporary one may be in memory).
pub(crate) fn dir() -> tempfile::TempDir {
    tempfile::TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory")
}

/// The real disks, each by its name. Without io_uring only where the kernel refuses it, and says
/// so.
pub(crate) fn disks() -> Vec<DiskChoice> {
    let dir = dir();
    let refused = [ErrorKind::PermissionDenied, ErrorKind::Unsupported];
    match block_on(dir.path(), DiskChoice::Uring, async |_| ()) {
        Ok(()) => vec![DiskChoice::Uring, DiskChoice::Posix],
        Err(error) if refused.contains(&error.kind()) => {
            println!("not tested: io_uring is not to be had here: {error}");
            vec![DiskChoice::Posix]
        }
        Err(error) => panic!("io_uring: {error}"),
    }
}
