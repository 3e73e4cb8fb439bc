//! Down: unmounts and closes volumes. While one of them is in use, all stay as they are and the users are named.

use serde::Serialize;
use session::{CloseOptions, SessionError, State};

use super::open_status;
use crate::audit::{Category, Event};
use crate::config::{Config, VolumeSpec};
use crate::error::Trouble;
use crate::mount_point;
use crate::setup::Machine;
use crate::{Ledger, VolumesError};

/// Users of a mount that are named.
const NAMED_MAX: usize = 8;

/// A volume that is down.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DownReport {
    /// Its name.
    pub name: String,
    /// Its name as an open volume.
    pub mapping: String,
    /// Whether it was up.
    pub changed: bool,
}

/// Takes the volumes down, the last of the file first. Nothing has changed if one of them is in use.
///
/// # Errors
/// [`VolumesError::Refused`] naming who uses a mount; [`VolumesError::Session`].
pub fn down(
    config: &Config,
    volumes: &[&VolumeSpec],
    machine: &Machine<'_>,
    ledger: &dyn Ledger,
) -> Result<Vec<DownReport>, VolumesError> {
    for volume in volumes {
        check_unused(config, volume, machine)?;
    }
    let mut reports = Vec::new();
    for volume in volumes.iter().rev() {
        reports.push(one(config, volume, machine, ledger)?);
    }
    reports.reverse();
    Ok(reports)
}

/// Refuses a volume whose mount somebody uses.
fn check_unused(config: &Config, volume: &VolumeSpec, machine: &Machine<'_>) -> Result<(), VolumesError> {
    let Some(status) = open_status(&config.mapping(volume), machine)? else { return Ok(()) };
    for point in status.mount_points {
        let users = session::working_below(&point, NAMED_MAX);
        if !users.is_empty() {
            let what = format!("{} is in use by {}", point.display(), users.join(", "));
            let mend = format!("end them, or look: fuser -vm {}", point.display());
            return Err(VolumesError::refused(Trouble::Busy, &volume.name, what, mend));
        }
    }
    Ok(())
}

fn one(
    config: &Config,
    volume: &VolumeSpec,
    machine: &Machine<'_>,
    ledger: &dyn Ledger,
) -> Result<DownReport, VolumesError> {
    let mapping = config.mapping(volume);
    let report = |changed| DownReport { name: volume.name.clone(), mapping: mapping.clone(), changed };
    let Some(status) = open_status(&mapping, machine)? else {
        close_leftover(machine, &mapping)?;
        return Ok(report(false));
    };
    ledger.record(&Event::new(Category::Access, "close", &volume.name))?;
    for point in status.mount_points.iter().rev() {
        session::umount(machine.run, point)?;
    }
    match session::close(machine.run, &mapping, &CloseOptions::default()) {
        Ok(_) | Err(SessionError::NotOpen { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    if let Some(mount) = &volume.mount
        && let Err(error) = mount_point::protect(mount)
    {
        log::warn!("{error}");
    }
    Ok(report(status.state != State::Dead))
}

/// What a server that died left is taken away; without any there is nothing to do.
fn close_leftover(machine: &Machine<'_>, mapping: &str) -> Result<(), VolumesError> {
    match session::close(machine.run, mapping, &CloseOptions::default()) {
        Ok(_) | Err(SessionError::NotOpen { .. }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
