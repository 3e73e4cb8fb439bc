//! The life of a set's volumes: up, down, status, list, check, grow, remove; for one or all.
//!
//! Invariants: an image is opened only if its container is the one that the key store has the key for; nothing is mounted over a
//! folder with something in it; what is in use is named and left as it is.

mod check;
mod down;
mod grow;
mod remove;
mod status;
mod up;

use keystore::{KeyName, Metadata};
use session::{SessionError, State, Status};

use crate::VolumesError;
use crate::config::{Config, VolumeSpec};
use crate::error::Trouble;
use crate::setup::Machine;

pub use check::{CheckReport, check};
pub use down::{DownReport, down};
pub use grow::{GrowReport, Growth, grow};
pub use remove::{RemovePlan, remove, remove_plan};
pub use status::{Health, VolumeStatus, status};
pub use up::{Up, UpReport};

/// The volumes of these names, all of the set without any.
///
/// # Errors
/// [`VolumesError::Refused`] for a name that the set does not have.
pub fn chosen<'c>(config: &'c Config, names: &[String]) -> Result<Vec<&'c VolumeSpec>, VolumesError> {
    if names.is_empty() {
        return Ok(config.volumes.iter().collect());
    }
    let found = names.iter().map(|name| {
        let what = "is no volume of this set";
        config.volume(name).ok_or_else(|| VolumesError::refused(Trouble::Missing, name, what, "luksctl volume list"))
    });
    found.collect()
}

/// The generation of a volume's key that is in use.
pub(crate) fn active_generation(store: &Metadata, name: &str) -> Option<u64> {
    let record = store.keys.get(&KeyName::new(name).ok()?)?;
    record.active().map(|active| active.number)
}

/// What is open under a name, if anything.
pub(crate) fn open_status(mapping: &str, machine: &Machine<'_>) -> Result<Option<Status>, VolumesError> {
    match session::status(machine.run, mapping) {
        Ok(status) => Ok(Some(status)),
        Err(SessionError::NotOpen { .. } | SessionError::Leftover { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Whether a volume is open and, if it has a mount point, mounted there with its owner and mode.
pub(crate) fn is_up(volume: &VolumeSpec, mapping: &str, machine: &Machine<'_>) -> Result<bool, VolumesError> {
    let Some(status) = open_status(mapping, machine)? else { return Ok(false) };
    if status.state != State::Open {
        return Ok(false);
    }
    match &volume.mount {
        Some(mount) => Ok(status.mount_points.contains(mount) && up::root_is_as_described(volume, mount)?),
        None => Ok(true),
    }
}
