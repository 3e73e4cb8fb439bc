//! How the images of a set stand: ours, missing, half made, or somebody else's; and whether there is room for those to come.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use block::{BlockIo as _, Bytes};
use keystore::{KeyKind, KeyName, KeyRecord, KeyState, Metadata};
use uuid::Uuid;

use super::{Action, Standpoint, Step};
use crate::VolumesError;
use crate::config::{Config, Place, VolumeSpec};
use crate::image;

/// What has to stay free besides the images: header backups, key files, the log.
const SPARE: Bytes = Bytes::from_mib(64);
/// What has to be zero at the start of a device that is taken as blank: more than any header.
const BLANK: u64 = 16 << 20;
const CHUNK: usize = 1 << 20;

/// The name under which an image is built, or the note that a device is. Only who knows the UUID in the key store has it.
pub(super) fn part_path(config: &Config, volume: &VolumeSpec, id: Uuid) -> PathBuf {
    match &volume.place {
        Place::Image { image, .. } => {
            let mut name = image.clone().into_os_string();
            name.push(format!(".{id}.setup"));
            name.into()
        }
        Place::Device { .. } => config.store.folder.join(format!("{}.{id}.setup", volume.name)),
    }
}

/// The name of an open volume that setup makes a file system on.
pub(crate) fn mapping_name_of_setup(id: Uuid) -> String {
    format!("setup-{id}")
}

/// How a volume stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Stand {
    /// The container that the key in use is for.
    Ours,
    /// Nothing is there, and no key is in use.
    Missing,
    /// The image is whole under its name; only its key is not in use yet.
    Built,
    /// Not ours to touch.
    Foreign(String, String),
}

fn record<'m>(volume: &VolumeSpec, store: Option<&'m Metadata>) -> Option<&'m KeyRecord> {
    store?.keys.get(&KeyName::new(&volume.name).ok()?)
}

/// Looks at the image and the key of a volume.
pub(super) fn stand(volume: &VolumeSpec, store: Option<&Metadata>) -> Result<Stand, VolumesError> {
    let foreign = |what: String, mend: String| Ok(Stand::Foreign(what, mend));
    let path = volume.place.path();
    if let Err(error) = KeyName::new(&volume.name) {
        return foreign(error.to_string(), "give the volume another name".to_owned());
    }
    let record = record(volume, store);
    if record.is_some_and(|record| record.kind != KeyKind::Volume) {
        let what = "the key store has another key of this name".to_owned();
        return foreign(what, "give the volume another name".to_owned());
    }
    let in_use = record.is_some_and(|record| record.active().is_some());
    let is_there = match path.symlink_metadata() {
        Ok(_) => true,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => false,
        Err(error) => return Err(VolumesError::io("look at", path)(error)),
    };
    let shown = path.display();
    match (record, is_there) {
        (_, false) if in_use => foreign(
            format!("{shown} is gone, and the key store has its key: was it moved?"),
            format!("put it back, or give it up: luksctl volume remove {}", volume.name),
        ),
        (_, false) if matches!(volume.place, Place::Device { .. }) => {
            foreign(format!("{shown} is not there"), "lsblk".to_owned())
        }
        (_, false) => Ok(Stand::Missing),
        (None, true) => unknown(volume, path),
        (Some(record), true) => {
            let found = if path.is_dir() { None } else { image::uuid(path)? };
            match found {
                Some(id) if id == record.volume && in_use => Ok(Stand::Ours),
                Some(id) if id == record.volume && record.in_state(KeyState::Staged).is_some() => Ok(Stand::Built),
                Some(id) => foreign(
                    format!("{shown} is container {id}, but the key is for {}: it was replaced", record.volume),
                    format!("luksctl dump {shown}; put the right image back"),
                ),
                None if in_use => foreign(
                    format!("{shown} is no LUKS container any more: it was replaced or overwritten"),
                    "luksctl header restore, from the header backup".to_owned(),
                ),
                None => unknown(volume, path),
            }
        }
    }
}

/// What is there without a key of ours: a blank device may be taken, anything else is somebody's.
fn unknown(volume: &VolumeSpec, path: &Path) -> Result<Stand, VolumesError> {
    let shown = path.display();
    if matches!(volume.place, Place::Device { .. }) && is_blank(path)? {
        return Ok(Stand::Missing);
    }
    let holds = match &volume.place {
        _ if path.is_dir() => "is a folder".to_owned(),
        _ if image::header(path).is_ok_and(|header| header.is_some()) => {
            "is a LUKS container that this set did not make".to_owned()
        }
        Place::Image { .. } => "is a file that this set did not make".to_owned(),
        Place::Device { .. } => "is not blank, and this set did not make what it holds".to_owned(),
    };
    let mend = match volume.place {
        Place::Image { .. } => format!("`luksctl volume adopt` takes a container over; else move {shown} away"),
        Place::Device { .. } => format!("`luksctl volume adopt` takes a container over; else blank {shown}"),
    };
    Ok(Stand::Foreign(format!("{shown} {holds}; it is not touched"), mend))
}

/// Whether nothing was ever written to the start of a device, and nothing known is on it.
pub(super) fn is_blank(path: &Path) -> Result<bool, VolumesError> {
    let disk = image::disk(path, true)?;
    let failed = |source| VolumesError::Block { path: path.to_owned(), source };
    if !block::signature::probe(&*disk).map_err(failed)?.is_empty() {
        return Ok(false);
    }
    let mut chunk = vec![0; CHUNK];
    let mut at = 0;
    let end = BLANK.min(disk.geometry().size.0);
    while at < end {
        let most = CHUNK.min(usize::try_from(end - at).unwrap_or(CHUNK));
        disk.read_at(Bytes(at), &mut chunk[..most]).map_err(failed)?;
        if chunk[..most].iter().any(|byte| *byte != 0) {
            return Ok(false);
        }
        at += most as u64;
    }
    Ok(true)
}

/// The step of one volume.
pub(super) fn step(volume: &VolumeSpec, store: Option<&Metadata>) -> Result<Step, VolumesError> {
    let size = match &volume.place {
        Place::Image { size, image } => format!("{size} in {}", image.display()),
        Place::Device { device } => format!("all of {}", device.display()),
    };
    let contents = format!(
        "{size}: LUKS2, {}, {} bits, sectors of {} bytes, {}",
        volume.cipher, volume.key_bits, volume.sector_size, volume.file_system
    );
    Ok(match stand(volume, store)? {
        Stand::Ours => Step::new(Action::Volume, &volume.name, Standpoint::There, size),
        Stand::Missing => Step::new(Action::Volume, &volume.name, Standpoint::Missing, contents),
        Stand::Built => Step::new(Action::Volume, &volume.name, Standpoint::Missing, "its key comes into use"),
        Stand::Foreign(what, mend) => Step::blocked(Action::Volume, &volume.name, what, mend),
    })
}

/// The nearest folder above `path` that is there.
fn folder_there(path: &Path) -> &Path {
    path.ancestors().skip(1).find(|above| above.is_dir()).unwrap_or(Path::new("/"))
}

/// For each file system that images are missing on: whether they all fit.
pub(super) fn space(config: &Config, images: &[Step], store: Option<&Metadata>) -> Result<Vec<Step>, VolumesError> {
    let mut needed: BTreeMap<u64, (PathBuf, u64)> = BTreeMap::new();
    for (volume, step) in config.volumes.iter().zip(images) {
        let Place::Image { image, size } = &volume.place else { continue };
        if step.state != Standpoint::Missing || image.exists() {
            continue;
        }
        let folder = folder_there(image);
        let device = folder.metadata().map_err(VolumesError::io("look at", folder))?.dev();
        // What a killed run has reserved already is given back first.
        let part = record(volume, store).map(|record| part_path(config, volume, record.volume));
        let reserved = part.and_then(|part| part.metadata().ok()).map_or(0, |found| found.blocks() * 512);
        let entry = needed.entry(device).or_insert_with(|| (folder.to_owned(), SPARE.0));
        entry.1 += size.0.0.saturating_sub(reserved);
    }
    let mut steps = Vec::new();
    for (folder, needed) in needed.into_values() {
        let found = rustix::fs::statvfs(&folder);
        let found = found.map_err(|errno| VolumesError::io("look at", &folder)(errno.into()))?;
        let free = Bytes(found.f_bavail.saturating_mul(found.f_frsize));
        let note = format!("{} needed, {free} free", Bytes(needed));
        let target = folder.display().to_string();
        steps.push(if free.0 < needed {
            let mend = format!("df -h {target}; make the volumes smaller or free space");
            Step::blocked(Action::Space, target, note, mend)
        } else {
            Step::new(Action::Space, target, Standpoint::There, note)
        });
    }
    Ok(steps)
}
