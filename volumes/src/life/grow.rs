//! Grow: image, then mapping, then file system, then `volumes.toml`. Each step does nothing where it was done before, and the
//! file says the new size last: cut anywhere, the same command goes on, also when it said how much to add.

use std::path::Path;

use block::{BlockIo as _, Bytes};
use keystore::KeyName;
use serde::Serialize;
use session::{State, Status, UnlockAgain};
use toml_edit::{DocumentMut, value};

use super::check::unmounted;
use super::open_status;
use super::up::check_image;
use crate::audit::Event;
use crate::config::{self, Config, FileSystem, Place, Size, VolumeSpec};
use crate::error::Trouble;
use crate::set::SetStore;
use crate::setup::{Machine, OneKey};
use crate::{Ledger, VolumesError, file_system, image};

/// How large a volume shall be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Growth {
    /// So large.
    To(Size),
    /// So much larger than `volumes.toml` says.
    By(Size),
}

impl Growth {
    /// `10G`, or `+5G`.
    ///
    /// # Errors
    /// What it must be.
    pub fn parse(text: &str) -> Result<Growth, String> {
        match text.strip_prefix('+') {
            Some(more) => Size::parse(more).map(Growth::By),
            None => Size::parse(text).map(Growth::To),
        }
    }
}

/// A volume that has grown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GrowReport {
    /// Its name.
    pub name: String,
    /// Size of the image before, in bytes.
    pub was_bytes: u64,
    /// Size of the image now, in bytes.
    pub image_bytes: u64,
    /// Whether it was in use meanwhile.
    pub online: bool,
}

/// Makes a volume larger.
///
/// # Errors
/// [`VolumesError::Refused`] for a smaller size, a device, no space, or a volume that cannot grow while it is up; nothing has
/// changed then.
pub fn grow(
    (config, config_path): (&Config, &Path),
    volume: &VolumeSpec,
    growth: Growth,
    store: &SetStore,
    machine: &Machine<'_>,
    ledger: &dyn Ledger,
) -> Result<GrowReport, VolumesError> {
    let refused = |trouble, what: String, mend: String| VolumesError::refused(trouble, &volume.name, what, mend);
    let Place::Image { image, size } = &volume.place else {
        let what = "is on a device, which is as large as it is".to_owned();
        return Err(refused(Trouble::Wrong, what, "grow the device, then luksctl resize".to_owned()));
    };
    let wanted = match growth {
        Growth::To(wanted) => Some(wanted.0),
        Growth::By(more) => size.0.0.checked_add(more.0.0).map(Bytes),
    };
    let wanted = wanted.filter(|wanted| wanted.0.is_multiple_of(4096));
    let wanted = wanted.ok_or_else(|| refused(Trouble::Wrong, "cannot have that size".to_owned(), "4K".to_owned()))?;
    check_image(volume, store)?;
    let was = image::disk(image, true)?.geometry().size;
    if wanted < was || wanted < size.0 {
        let what = format!("has {was}, and volumes never shrink here");
        return Err(refused(Trouble::Wrong, what, format!("luksctl volume grow {} +1G", volume.name)));
    }
    check_space(volume, image, Bytes(wanted.0 - was.0))?;
    let mapping = config.mapping(volume);
    let open = open_status(&mapping, machine)?;
    if let Some(status) = &open {
        check_online(volume, status)?;
    }
    ledger.record(&Event::config(
        config_path.display(),
        format!("volumes.{}.size", volume.name),
        size,
        Size(wanted),
    ))?;
    if wanted > was {
        let disk = image::disk(image, false)?;
        disk.preallocate(wanted)
            .and_then(|()| disk.flush())
            .map_err(|source| VolumesError::Block { path: image.clone(), source })?;
    }
    match &open {
        Some(status) => online(volume, &mapping, status, store, machine)?,
        None => offline(volume, &mapping, store, machine)?,
    }
    write_size(config_path, &volume.name, Size(wanted))?;
    let name = volume.name.clone();
    Ok(GrowReport { name, was_bytes: was.0, image_bytes: wanted.0, online: open.is_some() })
}

fn check_space(volume: &VolumeSpec, image: &Path, more: Bytes) -> Result<(), VolumesError> {
    let found = rustix::fs::statvfs(image);
    let found = found.map_err(|errno| VolumesError::io("look at", image)(errno.into()))?;
    let free = Bytes(found.f_bavail.saturating_mul(found.f_frsize));
    if more <= free {
        return Ok(());
    }
    let what = format!("needs {more} more, and {free} are free where {} is", image.display());
    Err(VolumesError::refused(Trouble::Wrong, &volume.name, what, format!("df -h {}", image.display())))
}

/// Refuses what cannot grow while it is up, before anything is changed.
fn check_online(volume: &VolumeSpec, status: &Status) -> Result<(), VolumesError> {
    let backend = status.backend.as_deref().unwrap_or_default();
    let by_kernel = rustix::process::geteuid().is_root();
    let is_mounted = !status.mount_points.is_empty();
    let reason = match (status.state, volume.file_system) {
        (State::Open, _) if !matches!(backend, "dm-crypt" | "loop over fuse" | "fuse") => {
            format!("is open through {backend}, which takes no new size")
        }
        (State::Open, _) if is_mounted && !by_kernel => {
            "is mounted by fuse2fs, which does not grow what is mounted".to_owned()
        }
        (State::Open, FileSystem::Xfs | FileSystem::Btrfs) if !is_mounted => {
            "is open and not mounted; its file system grows only mounted".to_owned()
        }
        (State::Open, _) => return Ok(()),
        _ => "is not in service".to_owned(),
    };
    let mend = format!("luksctl volume down {}, then grow it again", volume.name);
    Err(VolumesError::refused(Trouble::Busy, &volume.name, reason, mend))
}

fn online(
    volume: &VolumeSpec,
    mapping: &str,
    status: &Status,
    store: &SetStore,
    machine: &Machine<'_>,
) -> Result<(), VolumesError> {
    let key = store.key(&KeyName::new(&volume.name)?)?;
    let again = UnlockAgain { tries: 1, ..UnlockAgain::default() };
    session::resize(machine.run, mapping, None, &again, &mut OneKey(Some(key)))?;
    let Some(device) = &status.device else { return Ok(()) };
    let mounted = status.mount_points.first().map(std::path::PathBuf::as_path);
    if mounted.is_none() && volume.file_system == FileSystem::Ext4 {
        return grow_checked(volume, device);
    }
    file_system::grow(volume.file_system, device, mounted)
}

/// resize2fs demands a check of what is not mounted.
fn grow_checked(volume: &VolumeSpec, device: &Path) -> Result<(), VolumesError> {
    let checked = file_system::check(volume.file_system, device, true)?;
    if !checked.good {
        let what = format!("its file system has errors: {}", checked.words);
        let mend = format!("luksctl volume check {}", volume.name);
        return Err(VolumesError::refused(Trouble::Wrong, &volume.name, what, mend));
    }
    file_system::grow(volume.file_system, device, None)
}

fn offline(volume: &VolumeSpec, mapping: &str, store: &SetStore, machine: &Machine<'_>) -> Result<(), VolumesError> {
    match volume.file_system {
        FileSystem::None => Ok(()),
        FileSystem::Ext4 => unmounted(volume, mapping, false, store, machine, |device| grow_checked(volume, device)),
        FileSystem::Xfs | FileSystem::Btrfs => {
            let what = "is down, and its file system grows only mounted";
            let mend = format!("luksctl volume up {}, then grow it again", volume.name);
            Err(VolumesError::refused(Trouble::Busy, &volume.name, what, mend))
        }
    }
}

/// Writes the new size into the file: one value changes, comments and order stay.
fn write_size(path: &Path, name: &str, size: Size) -> Result<(), VolumesError> {
    edit(path, |document| {
        document["volumes"][name]["size"] = value(size.to_string());
    })
}

/// One change of the file, read back as a configuration before it takes its place.
pub(super) fn edit(path: &Path, change: impl FnOnce(&mut DocumentMut)) -> Result<(), VolumesError> {
    let text = config::read(path)?;
    let unreadable = |what: String| VolumesError::File { path: path.to_owned(), what };
    let mut document: DocumentMut =
        text.parse().map_err(|error: toml_edit::TomlError| unreadable(error.to_string()))?;
    change(&mut document);
    let text = document.to_string();
    Config::parse(&text, path)?;
    config::replace(path, &text)
}
