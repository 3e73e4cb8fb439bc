//! A new volume: its image under a name of its own, its container, its file system, and at last its name.
//!
//! What is under the name of [`part_path`](super::images::part_path) was made here and has no data yet: a run that finds it
//! throws it away and begins again.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use block::{BlockErrorKind, Bytes, Direct, FileDisk, OpenMode};
use luks::HashAlg;
use luks::calibrate::{Effort, KdfChoice, KdfCost};
use luks::format::{FormatParams, NewKdf, format};
use rustix::fs::RenameFlags;
use secret::{KeyProvider, KeyRequest, KeySourceError, Secret};
use session::{CloseOptions, OpenRequest, SessionError, SystemEnv};
use uuid::Uuid;

use super::Machine;
use super::images::{is_blank, mapping_name_of_setup, part_path};
use crate::config::{Backend, Config, FileSystem, Kdf, Place, VolumeSpec};
use crate::error::Trouble;
use crate::{VolumesError, file_system, image};

/// Gives one key, once.
pub(crate) struct OneKey(pub(crate) Option<Secret>);

impl KeyProvider for OneKey {
    fn key_for(&mut self, _request: &KeyRequest<'_>) -> Result<Option<Secret>, KeySourceError> {
        Ok(self.0.take())
    }
}

/// What a volume is opened with, as its description says.
pub(crate) fn open_request(volume: &VolumeSpec, path: &Path, name: &str) -> OpenRequest {
    let backend = match volume.backend {
        Backend::Auto => session::BackendChoice::Auto,
        Backend::Dm => session::BackendChoice::Dm,
        Backend::Fuse => session::BackendChoice::Fuse,
        Backend::Nbd => session::BackendChoice::Nbd,
        Backend::Ublk => session::BackendChoice::Ublk,
    };
    OpenRequest { backend, tries: 1, ..OpenRequest::new(path, name) }
}

fn params(volume: &VolumeSpec, id: Uuid) -> Result<FormatParams, VolumesError> {
    let failed = image::of_luks(volume.place.path());
    let kdf = match volume.kdf {
        Kdf::Pbkdf2 { iterations } => {
            let hash = HashAlg::parse(&volume.hash).map_err(failed)?;
            let effort = Effort::Forced { iterations };
            NewKdf::Calibrate(KdfChoice::Pbkdf2 { hash }, KdfCost { effort, ..KdfCost::default() })
        }
        Kdf::Argon2id { memory, passes, lanes } => {
            let memory_kib = u32::try_from(memory.0.0 >> 10).unwrap_or(u32::MAX);
            let effort = Effort::Forced { iterations: passes };
            let (memory_kib, parallel) = (Some(memory_kib), Some(lanes));
            NewKdf::Calibrate(KdfChoice::Argon2id, KdfCost { effort, memory_kib, parallel, ..KdfCost::default() })
        }
    };
    Ok(FormatParams {
        cipher: volume.cipher.clone(),
        key_size_bits: Some(volume.key_bits),
        sector_size: Some(volume.sector_size),
        kdf,
        hash: volume.hash.clone(),
        uuid: Some(id.to_string()),
        ..FormatParams::default()
    })
}

/// Makes the volume; its image has its name afterwards and opens with `key`.
pub(super) fn build(
    config: &Config,
    volume: &VolumeSpec,
    id: Uuid,
    key: &Secret,
    machine: &Machine<'_>,
) -> Result<(), VolumesError> {
    let part = part_path(config, volume, id);
    close_leftover(machine, &mapping_name_of_setup(id))?;
    match &volume.place {
        Place::Image { image, size } => {
            reserve(&part, size.0)?;
            fill(volume, id, key, &part, machine)?;
            publish(&part, image)
        }
        Place::Device { device } => {
            claim(device, &part, id)?;
            fill(volume, id, key, device, machine)?;
            std::fs::remove_file(&part).map_err(VolumesError::io("remove", &part))?;
            sync_folder(&part)
        }
    }
}

/// Closes what a killed run left open on its unfinished image.
fn close_leftover(machine: &Machine<'_>, mapping: &str) -> Result<(), VolumesError> {
    match session::close(machine.run, mapping, &CloseOptions::default()) {
        Ok(_) | Err(SessionError::NotOpen { .. }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// A file of this size with all its space, under the name that only setup gives.
fn reserve(part: &Path, size: Bytes) -> Result<(), VolumesError> {
    let failed = |source| VolumesError::Block { path: part.to_owned(), source };
    match std::fs::remove_file(part) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(VolumesError::io("remove", part)(error));
        }
        _ => {}
    }
    let mode = OpenMode { read_only: false, direct: Direct::Never, exclusive: false };
    let disk = FileDisk::create_new(part, &mode).map_err(failed)?;
    let reserved = disk.preallocate(size).map_err(|error| {
        if error.kind == BlockErrorKind::Unsupported {
            let what = "the file system cannot reserve space for an image";
            return VolumesError::refused(Trouble::Wrong, part.display().to_string(), what, "take ext4, XFS or Btrfs");
        }
        failed(error)
    });
    reserved.inspect_err(|_| drop(std::fs::remove_file(part)))
}

/// Notes, durably, that the blank `device` becomes the volume `id`: from then on its content is ours.
fn claim(device: &Path, part: &Path, id: Uuid) -> Result<(), VolumesError> {
    use std::os::unix::fs::MetadataExt as _;
    let number = std::fs::metadata(device).map_err(VolumesError::io("look at", device))?.rdev();
    let note = format!("{number} {id}\n");
    if std::fs::read_to_string(part).is_ok_and(|found| found == note) {
        return Ok(());
    }
    if image::uuid(device)? != Some(id) && !is_blank(device)? {
        let what = "is not blank, and this set did not make what it holds";
        return Err(VolumesError::refused(Trouble::Busy, device.display().to_string(), what, "blkid"));
    }
    let written = (|| {
        match std::fs::remove_file(part) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = File::options().write(true).create_new(true).mode(0o600).open(part)?;
        file.write_all(note.as_bytes())?;
        file.sync_all()
    })();
    written.map_err(VolumesError::io("write", part))?;
    sync_folder(part)
}

/// Container and file system in the file or on the device at `path`.
fn fill(volume: &VolumeSpec, id: Uuid, key: &Secret, path: &Path, machine: &Machine<'_>) -> Result<(), VolumesError> {
    let params = params(volume, id)?;
    let mode = OpenMode { read_only: false, direct: Direct::Never, exclusive: true };
    let disk = FileDisk::open(path, &mode).map_err(|source| VolumesError::Block { path: path.to_owned(), source })?;
    format(&disk, &disk, &SystemEnv.env(), &params, key).map_err(image::of_luks(path))?;
    // Whoever opens the volume claims a device for himself.
    drop(disk);
    if volume.file_system == FileSystem::None {
        return Ok(());
    }
    let copy = Secret::copy_of(key.expose())?;
    let mapping = &mapping_name_of_setup(id);
    let request = open_request(volume, path, mapping);
    let opened = session::open(machine.run, &request, &mut OneKey(Some(copy)), machine.server)?;
    let made = file_system::make(volume.file_system, &opened.device, &volume.name);
    let closed = session::close(machine.run, mapping, &CloseOptions::default());
    made?;
    closed?;
    Ok(())
}

/// Gives a whole image its name, unless something has it.
fn publish(part: &Path, image: &Path) -> Result<(), VolumesError> {
    let synced = File::open(part).and_then(|file| file.sync_all());
    synced.map_err(VolumesError::io("sync", part))?;
    let cwd = rustix::fs::CWD;
    let renamed = rustix::fs::renameat_with(cwd, part, cwd, image, RenameFlags::NOREPLACE);
    renamed.map_err(|errno| VolumesError::io("give its name to", image)(errno.into()))?;
    sync_folder(image)
}

/// Makes names durable.
pub(super) fn sync_folder(path: &Path) -> Result<(), VolumesError> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    let synced = File::open(folder).and_then(|folder| folder.sync_all());
    synced.map_err(VolumesError::io("sync", folder))
}
