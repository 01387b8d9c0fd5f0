//! What threads share is built from these, so that loom can stand in for them: the only file of this
//! crate that knows `cfg(dormouse_loom)`, beside the models themselves.

#[cfg(dormouse_loom)]
pub(crate) use loom::sync::{Mutex, MutexGuard};
#[cfg(not(dormouse_loom))]
pub(crate) use std::sync::{Mutex, MutexGuard};
