//! Deterministic simulation of engine, cache and scheduler, checked against SQLite.

mod cached;
pub mod conform;
pub mod disk;
pub mod life;
pub mod random;
pub mod reference;
mod stacked;
pub mod trace;
pub mod world;

pub use disk::{DiskFaults, SimDisk};
pub use world::{Process, SimEnv, World};
