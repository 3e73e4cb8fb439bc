//! What a user would do with what a cut left: `check`, `repair`, and for an operation that cannot be atomic the recovery file.
//!
//! 1. `check` names a copy that is broken or stale, and each keyslot that is listed and dead; it names no keyslot that opens.
//! 2. `repair` makes both copies whole and takes exactly the dead keyslots off the list, their areas wiped to the end;
//!    everything else that the header says stays, every other keyslot opens as before, and `check` has nothing more to say.
//! 3. Restoring the recovery file gives the old state back, or is refused because the device is of the other version
//!    already: then the new state is there, and `repair` finishes what is left of it.

use block::MemDisk;
use luks::check::{CheckReport, check};
use luks::repair::{ForeignSignature, plan, repair};
use luks::restore::{self, RestoreObstacle};
use luks::{AnyContainer, AnyHeader, Backup, Error, Limits, NoRecovery, Policy};
use std::sync::Arc;

use super::surroundings::Surroundings;
use super::view::View;

/// What there was to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mended {
    /// Platters with a copy that `check` named and `repair` rewrote.
    pub copies: u64,
    /// Platters with keyslots that `check` named and `repair` took off the list.
    pub removals: u64,
    /// Platters that the recovery file took back to the old state.
    pub restored: u64,
}

impl Mended {
    /// Both together.
    #[must_use]
    pub fn plus(self, other: Mended) -> Mended {
        Mended {
            copies: self.copies + other.copies,
            removals: self.removals + other.removals,
            restored: self.restored + other.restored,
        }
    }
}

fn look(disk: &MemDisk) -> Result<CheckReport, String> {
    check(disk, &Limits::default(), &Policy::default()).map_err(|error| format!("check fails: {error}"))
}

/// The keyslots that `check` names as dead.
pub(super) fn named(disk: &MemDisk) -> Result<Vec<u32>, String> {
    Ok(look(disk)?.half_removed().iter().map(|id| id.0).collect())
}

/// A LUKS1 platter after a repair of its own.
///
/// # Errors
/// Those of the repair.
pub(super) fn repaired1(platter: &MemDisk) -> Result<MemDisk, String> {
    let disk = Arc::new(platter.snapshot());
    let (surroundings, limits) = (Surroundings::new(0), Limits::default());
    let planned = luks::luks1::repair::plan(&disk, &limits).map_err(|error| format!("no plan: {error}"))?;
    luks::luks1::repair::repair(&disk, &surroundings.env(), &limits, &planned)
        .map_err(|error| format!("repair fails: {error}"))?;
    Ok(disk.snapshot())
}

/// Looks at a platter with `check`, and has `repair` finish it. Hands back the disk after that.
///
/// # Errors
/// What `check` did not name, and what `repair` did not do.
pub(super) fn mend(platter: &MemDisk, view: &View) -> Result<(MemDisk, View, Mended), String> {
    let found = look(platter)?;
    if found.header.is_healthy() != view.healthy || found.header.advice().is_none() != view.healthy {
        return Err("a copy is not whole, and `check` does not say so".to_owned());
    }
    let dead = found.half_removed();
    let disk = Arc::new(platter.snapshot());
    let (surroundings, limits) = (Surroundings::new(0), Limits::default());
    if let AnyHeader::Luks2(header) = &found.header {
        repair(&*disk, surroundings.env().rng, &limits, ForeignSignature::Refuse, &plan(header))
            .map_err(|error| format!("repair fails: {error}"))?;
        let after = View::of(&disk).map_err(|error| format!("after repair: {error}"))?;
        if !after.healthy || after.identity != view.identity {
            return Err("repair did not mend the header, or changed it".to_owned());
        }
    }
    let finished = AnyContainer::open(Arc::clone(&disk), Arc::clone(&disk), limits)
        .and_then(|mut container| container.finish_removals(&surroundings.env()))
        .map_err(|error| format!("finishing removals fails: {error}"))?;
    let after = View::of(&disk).map_err(|error| format!("after repair: {error}"))?;
    let left: Vec<_> = view.slots.iter().filter(|slot| !dead.iter().any(|id| id.0 == slot.id)).cloned().collect();
    if finished != dead || after.slots != left || after.rest != view.rest || !after.healthy {
        return Err(format!("repair finished {finished:?} of {dead:?}, and left {:?}", after.slots));
    }
    // The copies are whole; the areas are those that `check` looked at, but for these.
    if !dead.is_empty() && !look(&disk)?.half_removed().is_empty() {
        return Err("after repair `check` still names a keyslot".to_owned());
    }
    let mended = Mended { copies: u64::from(!view.healthy), removals: u64::from(!dead.is_empty()), restored: 0 };
    Ok((disk.snapshot(), after, mended))
}

/// What restoring the recovery file, kept from `start`, makes of a platter; `None` where it is refused because a header of the
/// other version is in force.
///
/// # Errors
/// Any other refusal or failure.
pub(super) fn recovered(start: &MemDisk, platter: &MemDisk) -> Result<Option<MemDisk>, String> {
    let (disk, limits) = (platter.snapshot(), Limits::default());
    let backup = Backup::read(start, &limits).map_err(|error| error.to_string())?;
    let plan = match restore::plan(&disk, &backup, &limits) {
        Err(Error::Restore(RestoreObstacle::Version { .. })) => return Ok(None),
        plan => plan.map_err(|error| error.to_string())?,
    };
    restore::restore(&disk, &backup, &plan, &limits, &mut NoRecovery).map_err(|error| error.to_string())?;
    Ok(Some(disk))
}
