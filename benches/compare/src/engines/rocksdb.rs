//! RocksDB, from the system's library, looked up when the program runs: nothing is built for it, and
//! where it is missing its rows are not judged.
//!
//! Its C interface is stable over all releases in use; the crates that wrap it want a newer library
//! than stable systems have, or build their own for longer than the whole comparison takes.

#![expect(unsafe_code, reason = "a C library")]

use std::ffi::{CStr, CString, c_char, c_int, c_uchar, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr;
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use libloading::Library;

use super::{Peer, whole_key};
use crate::data::{Id, Key, Put};

type Handle = *mut c_void;

macro_rules! api {
    ($($name:ident: fn($($argument:ty),*) $(-> $result:ty)?;)*) => {
        /// The functions in use, each with its C signature.
        // SAFETY: of each call, that its pointers came from the library and were not given back yet, is
        // argued where it is made.
        struct Api {
            $($name: unsafe extern "C" fn($($argument),*) $(-> $result)?,)*
            /// Keeps them loaded.
            _library: Library,
        }

        impl Api {
            fn load() -> Result<Self, String> {
                // SAFETY: what the library does when it is loaded is to set up its own globals.
                let library = unsafe { Library::new("librocksdb.so") }
                    .map_err(|_| "librocksdb.so is not on this machine".to_owned())?;
                $(
                    // SAFETY: the type is the signature in the library's rocksdb/c.h.
                    let $name = unsafe {
                        *library
                            .get(concat!("rocksdb_", stringify!($name), "\0").as_bytes())
                            .map_err(|error| error.to_string())?
                    };
                )*
                Ok(Self { $($name,)* _library: library })
            }
        }
    };
}

api! {
    options_create: fn() -> Handle;
    options_destroy: fn(Handle);
    options_set_create_if_missing: fn(Handle, c_uchar);
    open: fn(Handle, *const c_char, *mut *mut c_char) -> Handle;
    close: fn(Handle);
    free: fn(*mut c_void);
    writeoptions_create: fn() -> Handle;
    writeoptions_destroy: fn(Handle);
    writeoptions_set_sync: fn(Handle, c_uchar);
    readoptions_create: fn() -> Handle;
    readoptions_destroy: fn(Handle);
    readoptions_set_snapshot: fn(Handle, *const c_void);
    create_snapshot: fn(Handle) -> *const c_void;
    release_snapshot: fn(Handle, *const c_void);
    writebatch_create: fn() -> Handle;
    writebatch_destroy: fn(Handle);
    writebatch_put: fn(Handle, *const c_char, usize, *const c_char, usize);
    write: fn(Handle, Handle, Handle, *mut *mut c_char);
    get_pinned: fn(Handle, Handle, *const c_char, usize, *mut *mut c_char) -> Handle;
    pinnableslice_value: fn(Handle, *mut usize) -> *const c_char;
    pinnableslice_destroy: fn(Handle);
    create_iterator: fn(Handle, Handle) -> Handle;
    iter_seek: fn(Handle, *const c_char, usize);
    iter_valid: fn(Handle) -> c_uchar;
    iter_next: fn(Handle);
    iter_key: fn(Handle, *mut usize) -> *const c_char;
    iter_value: fn(Handle, *mut usize) -> *const c_char;
    iter_destroy: fn(Handle);
    flushoptions_create: fn() -> Handle;
    flushoptions_destroy: fn(Handle);
    flush: fn(Handle, Handle, *mut *mut c_char);
    property_int: fn(Handle, *const c_char, *mut u64) -> c_int;
}

fn api() -> Result<&'static Api, String> {
    static API: OnceLock<Result<Api, String>> = OnceLock::new();
    API.get_or_init(Api::load).as_ref().map_err(Clone::clone)
}

/// The library's version, from the name of the file that is mapped.
pub(crate) fn version() -> Result<String, String> {
    api()?;
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let version = maps.lines().find_map(|line| line.split_once("librocksdb.so."));
    Ok(version.map_or("of the system", |(_, version)| version).to_owned())
}

pub(crate) struct RocksDb {
    api: &'static Api,
    database: Handle,
    durable: Handle,
    read: Handle,
}

// SAFETY: a database and its options may be used by all threads at once.
unsafe impl Send for RocksDb {}
// SAFETY: as above.
unsafe impl Sync for RocksDb {}

impl Api {
    /// The error that a call left, which is the caller's to free.
    fn check(&self, error: *mut c_char) -> Result<()> {
        if error.is_null() {
            return Ok(());
        }
        // SAFETY: not null, so a string of the library's own that ends with a zero.
        let text = unsafe { CStr::from_ptr(error) }.to_string_lossy().into_owned();
        // SAFETY: allocated by the library, and not used below.
        unsafe { (self.free)(error.cast()) };
        bail!("rocksdb: {text}")
    }
}

impl RocksDb {
    pub(crate) fn open(dir: &Path) -> Result<Self> {
        let api = api().map_err(anyhow::Error::msg)?;
        let path = CString::new(dir.as_os_str().as_bytes())?;
        let mut error = ptr::null_mut();
        // SAFETY: handles are created before use and destroyed after; the path ends with a zero.
        let (database, durable, read) = unsafe {
            let options = (api.options_create)();
            (api.options_set_create_if_missing)(options, 1);
            let database = (api.open)(options, path.as_ptr(), &raw mut error);
            (api.options_destroy)(options);
            let durable = (api.writeoptions_create)();
            (api.writeoptions_set_sync)(durable, 1);
            (database, durable, (api.readoptions_create)())
        };
        api.check(error)?;
        ensure!(!database.is_null(), "rocksdb did not open");
        Ok(Self { api, database, durable, read })
    }

    fn get_with(&self, options: Handle, object: &Id, key: &Key) -> Result<u64> {
        let whole = whole_key(object, key);
        let mut error = ptr::null_mut();
        // SAFETY: the key is as long as said, and the slice is destroyed once it was looked at.
        let length = unsafe {
            let at = whole.as_ptr().cast();
            let slice =
                (self.api.get_pinned)(self.database, options, at, whole.len(), &raw mut error);
            let mut length = 0;
            if !slice.is_null() {
                std::hint::black_box((self.api.pinnableslice_value)(slice, &raw mut length));
                (self.api.pinnableslice_destroy)(slice);
            }
            length
        };
        self.api.check(error)?;
        Ok(length as u64)
    }

    fn property(&self, name: &CStr) -> Result<u64> {
        let mut value = 0;
        // SAFETY: the name ends with a zero, and the result has a place.
        let code = unsafe { (self.api.property_int)(self.database, name.as_ptr(), &raw mut value) };
        ensure!(code == 0, "rocksdb does not know {}", name.to_string_lossy());
        Ok(value)
    }
}

impl Drop for RocksDb {
    fn drop(&mut self) {
        // SAFETY: nobody uses the handles any more.
        unsafe {
            (self.api.readoptions_destroy)(self.read);
            (self.api.writeoptions_destroy)(self.durable);
            (self.api.close)(self.database);
        }
    }
}

impl Peer for RocksDb {
    fn commit(&self, puts: &[Put]) -> Result<()> {
        let mut error = ptr::null_mut();
        // SAFETY: keys and values are as long as said and are copied into the batch.
        unsafe {
            let batch = (self.api.writebatch_create)();
            for put in puts {
                let whole = whole_key(&put.object, &put.key);
                let (key, value) = (whole.as_ptr().cast(), put.value.as_ptr().cast());
                (self.api.writebatch_put)(batch, key, whole.len(), value, put.value.len());
            }
            (self.api.write)(self.database, self.durable, batch, &raw mut error);
            (self.api.writebatch_destroy)(batch);
        }
        self.api.check(error)
    }

    fn get_many(&self, keys: &[(Id, Key)]) -> Result<u64> {
        // SAFETY: the snapshot is released after the options that name it are gone.
        let (snapshot, options) = unsafe {
            let snapshot = (self.api.create_snapshot)(self.database);
            let options = (self.api.readoptions_create)();
            (self.api.readoptions_set_snapshot)(options, snapshot);
            (snapshot, options)
        };
        let bytes =
            keys.iter().map(|(object, key)| self.get_with(options, object, key)).sum::<Result<_>>();
        // SAFETY: made above, and not used below.
        unsafe {
            (self.api.readoptions_destroy)(options);
            (self.api.release_snapshot)(self.database, snapshot);
        }
        bytes
    }

    fn get(&self, object: &Id, key: &Key) -> Result<u64> {
        self.get_with(self.read, object, key)
    }

    fn list(&self, object: &Id) -> Result<(u64, u64)> {
        let (mut keys, mut bytes) = (0, 0);
        // SAFETY: key and value are looked at while the iterator stands on them.
        unsafe {
            let entries = (self.api.create_iterator)(self.database, self.read);
            (self.api.iter_seek)(entries, object.as_ptr().cast(), object.len());
            while (self.api.iter_valid)(entries) != 0 {
                let mut length = 0;
                let at = (self.api.iter_key)(entries, &raw mut length);
                if !std::slice::from_raw_parts(at.cast::<u8>(), length).starts_with(object) {
                    break;
                }
                std::hint::black_box((self.api.iter_value)(entries, &raw mut length));
                keys += 1;
                bytes += length as u64;
                (self.api.iter_next)(entries);
            }
            (self.api.iter_destroy)(entries);
        }
        Ok((keys, bytes))
    }

    fn settle(&self) -> Result<()> {
        let mut error = ptr::null_mut();
        // SAFETY: the options live until the call is over.
        unsafe {
            let options = (self.api.flushoptions_create)();
            (self.api.flush)(self.database, options, &raw mut error);
            (self.api.flushoptions_destroy)(options);
        }
        self.api.check(error)?;
        let busy = [c"rocksdb.num-running-compactions", c"rocksdb.compaction-pending"];
        while busy.iter().map(|name| self.property(name)).sum::<Result<u64>>()? > 0 {
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    fn close(self: Box<Self>) -> Result<()> {
        Ok(()) // Drop does it.
    }
}
