//! Disks that fail on purpose: [`FaultDisk`] answers chosen operations with errors, [`PowerCutDisk`] loses what was never
//! flushed. They are part of the crate, not of its tests, so that every crate above proves itself on the same faults.

mod errors;
mod power;
mod random;

pub use errors::{Counts, Fault, FaultDisk, Op};
pub use power::PowerCutDisk;
pub use random::SplitMix64;
