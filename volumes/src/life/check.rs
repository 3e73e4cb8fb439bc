//! Check: the file system's own checker over a volume that is down, or open and not mounted. Without `repair` the volume is
//! opened read-only, so nothing of it changes.

use keystore::KeyName;
use serde::Serialize;
use session::{CloseOptions, OpenRequest};

use super::open_status;
use super::up::check_image;
use crate::audit::{Category, Event};
use crate::config::{Backend, Config, FileSystem, VolumeSpec};
use crate::error::Trouble;
use crate::file_system::{self, Checked};
use crate::set::SetStore;
use crate::setup::{self, Machine};
use crate::{Ledger, VolumesError};

/// What a check said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CheckReport {
    /// The volume.
    pub name: String,
    /// What was found.
    #[serde(flatten)]
    pub checked: Checked,
}

/// Checks the file system of one volume; `repair` mends what can be mended without questions.
///
/// # Errors
/// [`VolumesError::Refused`] while it is mounted; [`VolumesError::Program`] if the checker could not do its work.
pub fn check(
    config: &Config,
    volume: &VolumeSpec,
    repair: bool,
    store: &SetStore,
    machine: &Machine<'_>,
    ledger: &dyn Ledger,
) -> Result<CheckReport, VolumesError> {
    let report = |checked| Ok(CheckReport { name: volume.name.clone(), checked });
    if volume.file_system == FileSystem::None {
        return report(Checked { good: true, words: "there is no file system".to_owned() });
    }
    let mapping = config.mapping(volume);
    if let Some(status) = open_status(&mapping, machine)? {
        let what = match status.mount_points.first() {
            Some(point) => format!("is mounted on {}; a check of a mounted file system says nothing", point.display()),
            None => "is open; it is checked while it is down".to_owned(),
        };
        let mend = format!("luksctl volume down {}", volume.name);
        return Err(VolumesError::refused(Trouble::Busy, &volume.name, what, mend));
    }
    check_image(volume, store)?;
    ledger.record(&Event::new(Category::Access, if repair { "repair" } else { "check" }, &volume.name))?;
    let checked = unmounted(volume, &mapping, !repair, store, machine, |device| {
        file_system::check(volume.file_system, device, repair)
    })?;
    report(checked)
}

/// Opens a volume that is down, does something with its disk, and closes it.
pub(super) fn unmounted<T>(
    volume: &VolumeSpec,
    mapping: &str,
    read_only: bool,
    store: &SetStore,
    machine: &Machine<'_>,
    work: impl FnOnce(&std::path::Path) -> Result<T, VolumesError>,
) -> Result<T, VolumesError> {
    let key = store.key(&KeyName::new(&volume.name)?)?;
    let request = setup::open_request(volume, volume.place.path(), mapping);
    if volume.backend == Backend::Nbd {
        let what = "is served by nbd, which is a socket and no disk for the programs of a file system";
        let mend = "set its backend to auto, dm, fuse or ublk";
        return Err(VolumesError::refused(Trouble::Wrong, &volume.name, what, mend));
    }
    let request = OpenRequest { read_only, ..request };
    let opened = session::open(machine.run, &request, &mut setup::OneKey(Some(key)), machine.server)?;
    let done = work(&opened.device);
    let closed = session::close(machine.run, mapping, &CloseOptions::default());
    let done = done?;
    closed?;
    Ok(done)
}
