//! Deterministic simulation of engine, cache and scheduler, checked against SQLite.

pub mod conform;
pub mod disk;
pub mod life;
pub mod net;
pub mod plan;
pub mod random;
pub mod reference;
pub mod trace;
pub mod world;

pub use disk::{Damage, DiskFaults, DiskImage, Fate, Plain, SimDisk};
pub use net::{NetFaults, SimNet};
pub use world::{Process, SimEnv, Step, World};
