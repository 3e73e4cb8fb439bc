//! The crash campaign: every operation that writes metadata, cut at every write and every flush, in every combination of
//! lost and torn sectors that the fault model allows (all of them where they are few, seeded samples where not), and given
//! an error at every operation of the disk. `docs/crash-safety.md` has the assumptions and the counts.
//!
//! * [`operation`]: the table of operations. A new one is a few lines there.
//! * [`view`]: what a platter holds: which passphrases open which keyslots.
//! * [`promise`]: what must be true of it.
//! * [`mending`]: what is not whole is named by `check` and finished by `repair`, or taken back by the recovery file.
//! * [`campaign`]: the cuts, with a flush taken out if asked. [`errors`]: EIO and ENOSPC. [`agreement`]: cryptsetup sees the
//!   same.
//!
//! Everything random comes from one seed, `LUKS_CRASH_SEED`, which a failure prints with operation, cut and choice;
//! `LUKS_CRASH_ONLY` runs the operations whose name contains it.

pub mod agreement;
pub mod campaign;
pub mod errors;
pub mod mending;
pub mod operation;
pub mod promise;
pub mod sample;
pub mod surroundings;
pub mod view;

use block::fault::{FaultDisk, PowerCutDisk};
use std::sync::Arc;

/// What every operation runs on: a disk that can fail, and records what arrives.
pub type Store = Arc<FaultDisk<PowerCutDisk>>;

/// The seed of this run: `LUKS_CRASH_SEED`, or always the same.
#[must_use]
pub fn seed() -> u64 {
    std::env::var("LUKS_CRASH_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(20_261_122)
}

/// Whether the whole campaign was asked for (`make test-crash`) instead of the quick form of `make test`.
#[must_use]
pub fn whole() -> bool {
    std::env::var_os("LUKS_CRASH_WHOLE").is_some()
}
