//! Converting a header between LUKS1 and LUKS2. The data stays where it is, and so does the volume key.
//!
//! ```text
//! LUKS1   0 ┬ header ┬ 4 KiB: key material, eight places ┬ …            ┬ data
//! LUKS2   0 ┬ primary ┬ 16 KiB: secondary ┬ 32 KiB: the same material, the same order ┬ … ┬ data
//! ```
//!
//! The key material moves by 28 KiB as it is. A keyslot is longer than that, so it overwrites itself on its way: the format
//! leaves no way to make this atomic. Hence the present header is kept aside first ([`Recovery`]), and the order is such that
//! one sector decides what the device is:
//!
//! * **to LUKS2**: key material, flush; secondary copy, flush; *the first sector*, flush; the rest of the primary, flush. Cut
//!   short before the first sector, the device shows its LUKS1 header with keyslots that may not open: restoring the recovery
//!   file takes it back. After that sector, the secondary copy is in force: `repair` finishes.
//! * **to LUKS1**: key material, over the secondary copy and the JSON of the primary, flush; the header but for its first
//!   sector, flush; *the first sector*, flush; what lies behind the moved material is overwritten, flush. Cut short before the
//!   first sector, the device shows a LUKS2 header without a valid copy, and the recovery file brings it back.
//!
//! Every precondition is an [`ConvertObstacle`] of its own, found before anything is written. Source: luks2-format §10, and
//! what cryptsetup 2.6.1 makes of the same headers.

mod obstacle;
mod to_luks1;
mod to_luks2;

use std::ops::Range;

use block::{BlockIo, Bytes};

use crate::any::{AnyHeader, Version};
use crate::env::{Env, EnvError, Rng};
use crate::error::Error;
use crate::limits::Limits;
use crate::policy::Policy;
use crate::replace::{Recovery, Replacement, keep_aside};
use crate::store::{HeaderStore, LockMode};

pub use obstacle::ConvertObstacle;

/// How far key material moves: from behind a LUKS1 header to behind two LUKS2 copies of 16 KiB.
const SHIFT: Bytes = Bytes(28 << 10);
/// Where the key material of a LUKS1 header starts.
const LUKS1_AREAS: Bytes = Bytes(4096);
/// The same as places in memory.
const SHIFT_BYTES: usize = 28 << 10;
const LUKS1_AREAS_BYTES: usize = 4096;
const _: () = assert!(SHIFT_BYTES as u64 == SHIFT.0 && LUKS1_AREAS_BYTES as u64 == LUKS1_AREAS.0);

/// What a conversion would do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConvertPlan {
    /// What the device becomes.
    pub to: Version,
    /// The UUID, which stays.
    pub uuid: String,
    /// The keyslots, which stay.
    pub keyslots: Vec<u32>,
    /// What the new header cannot say.
    pub lost: Vec<String>,
    /// How many bytes are kept aside: header and keyslots as they are.
    pub region: Bytes,
    /// What accepted the header that is there, and must accept the one that is written.
    pub policy: Policy,
}

/// The new start of the device.
struct Converted {
    /// Its bytes.
    new: Vec<u8>,
    /// What of it to write before the next flush, in this order.
    stages: Vec<Range<usize>>,
}

/// What converting would do, under [`Policy::default_preset`]. Reads under the shared lock, writes nothing.
///
/// # Errors
/// As [`plan_under`].
pub fn plan<S: HeaderStore + ?Sized>(store: &S, to: Version, limits: &Limits) -> Result<ConvertPlan, Error> {
    plan_under(store, to, limits, &Policy::default_preset())
}

/// The same under a policy, which must accept the header before and after.
///
/// # Errors
/// [`Error::Policy`]; [`Error::Convert`] names what stands in the way; those of [`crate::load`].
pub fn plan_under<S: HeaderStore + ?Sized>(
    store: &S,
    to: Version,
    limits: &Limits,
    policy: &Policy,
) -> Result<ConvertPlan, Error> {
    let _guard = store.lock(LockMode::Shared, limits.lock_wait)?;
    Ok(plan_unlocked(store, to, limits, policy)?.1)
}

/// Converts as `plan` says, which must still be true.
///
/// # Errors
/// Those of [`plan`]; [`Error::PlanChanged`]; [`Error::Recovery`]: nothing was written up to there. Errors of the disk and
/// [`Error::ReadBack`]: part of it may be.
pub fn convert<S: HeaderStore + ?Sized>(
    store: &S,
    env: &Env<'_>,
    plan: &ConvertPlan,
    limits: &Limits,
    recovery: &mut dyn Recovery,
) -> Result<(), Error> {
    let _guard = store.lock(LockMode::Exclusive, limits.lock_wait)?;
    let (header, fresh) = plan_unlocked(store, plan.to, limits, &plan.policy)?;
    if fresh != *plan {
        return Err(Error::PlanChanged);
    }
    let converted = match &header {
        AnyHeader::Luks1(header) => to_luks2::converted(store, env, header)?,
        AnyHeader::Luks2(header) => to_luks1::converted(store, env, header)?,
    };
    let mut replacement = Replacement::of(store, &converted.new)?;
    keep_aside(store, plan.region, recovery)?;
    for stage in converted.stages {
        replacement.put(stage)?;
    }
    replacement.check()?;
    AnyHeader::load_unlocked(store, limits).map(drop)
}

fn plan_unlocked<D: BlockIo + ?Sized>(
    disk: &D,
    to: Version,
    limits: &Limits,
    policy: &Policy,
) -> Result<(AnyHeader, ConvertPlan), Error> {
    let header = AnyHeader::load_unlocked(disk, limits)?;
    policy.check_any(&header)?;
    let (keyslots, lost) = match (&header, to) {
        (AnyHeader::Luks1(header), Version::Luks2) => {
            to_luks2::check(disk, header)?;
            policy.check(&to_luks2::created(disk, &NoSalt, header)?)?;
            (header.enabled().map(|(id, _)| id).collect(), Vec::new())
        }
        (AnyHeader::Luks2(header), Version::Luks1) => {
            policy.check_luks1(&to_luks1::new_header(disk, header)?)?;
            (header.metadata().keyslots.ids().map(|id| id.0).collect(), to_luks1::lost(header))
        }
        _ => return Err(ConvertObstacle::SameVersion { version: header.version().number() }.into()),
    };
    let plan =
        ConvertPlan { to, uuid: header.uuid(), keyslots, lost, region: header.backup_size(), policy: policy.clone() };
    Ok((header, plan))
}

/// For a header that is judged and never written: its salts are no policy's concern.
struct NoSalt;

impl Rng for NoSalt {
    fn fill(&self, buf: &mut [u8]) -> Result<(), EnvError> {
        buf.fill(0);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
