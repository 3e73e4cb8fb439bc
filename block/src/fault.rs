//! Disks that fail on purpose: [`FaultDisk`] answers chosen operations with errors, [`PowerCutDisk`] loses what was never
//! flushed, and a [`Recording`] of it lists every platter that a cut can leave. They are part of the crate, not of its
//! tests, so that every crate above proves itself on the same faults.

mod cached;
mod errors;
mod power;
mod random;
mod recording;

pub use errors::{Counts, Fault, FaultDisk, Op};
pub use power::PowerCutDisk;
pub use random::SplitMix64;
pub use recording::{Cut, Recording};
