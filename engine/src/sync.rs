//! What threads share is built from these, so that loom can stand in for them: the only file that
//! knows `cfg(dormouse_loom)`, beside the models themselves and the io_uring disk, which does not
//! compile under loom.

#[cfg(dormouse_loom)]
pub(crate) use loom::sync::{
    Mutex,
    atomic::{AtomicBool, Ordering},
};
#[cfg(not(dormouse_loom))]
pub(crate) use std::sync::{
    Mutex,
    atomic::{AtomicBool, Ordering},
};
