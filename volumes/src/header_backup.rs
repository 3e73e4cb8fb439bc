//! Header backups of the set: `NAME.header.GENERATION` in the folder of key backups, each with the header and keyslots as they
//! were when that generation of the key was in use. cryptsetup restores them as they are.
//!
//! Invariant: a backup has its name only when it is whole. It opens with the key of its generation, however the volume's keys
//! turned since: so it goes when its generation does.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use luks::{Backup, Limits};
use rustix::fs::OFlags;

use crate::VolumesError;
use crate::config::Config;
use crate::image;

/// Most header backups that are looked at.
const FILES_MAX: usize = 4096;

/// Where the backup for this generation of a volume's key is.
#[must_use]
pub fn path(config: &Config, name: &str, generation: u64) -> PathBuf {
    config.store.key_backup.join(format!("{name}.header.{generation}"))
}

/// Writes the header of `image` as the backup for `generation`, in place of an older one; durable.
///
/// # Errors
/// [`VolumesError::Luks`], [`VolumesError::Io`]; an older backup is as it was then.
pub fn write(config: &Config, name: &str, generation: u64, image: &Path) -> Result<PathBuf, VolumesError> {
    let disk = image::disk(image, true)?;
    let backup = Backup::read(&disk, &Limits::default()).map_err(image::of_luks(image))?;
    let path = path(config, name, generation);
    let part = path.with_extension(format!("{generation}.part"));
    let failed = |source| VolumesError::Io { what: "write", path: path.clone(), source };
    let written = (|| {
        if part.symlink_metadata().is_ok_and(|found| found.is_file()) {
            std::fs::remove_file(&part)?;
        }
        let mut file = File::options().write(true).create_new(true).mode(0o600).open(&part)?;
        file.write_all(backup.bytes())?;
        file.sync_all()?;
        std::fs::rename(&part, &path)?;
        File::open(&config.store.key_backup)?.sync_all()
    })();
    if written.is_err() {
        // Half a backup would only take the room that is missing.
        let _ = std::fs::remove_file(&part);
    }
    written.map_err(failed)?;
    Ok(path)
}

/// The header backups of a volume by generation, ascending.
///
/// # Errors
/// [`VolumesError::Io`]; a folder that is not there has none.
pub fn list(config: &Config, name: &str) -> Result<Vec<(u64, PathBuf)>, VolumesError> {
    let folder = &config.store.key_backup;
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(VolumesError::io("list", folder)(error)),
    };
    let prefix = format!("{name}.header.");
    let generation = |path: &Path| path.file_name()?.to_str()?.strip_prefix(&prefix)?.parse::<u64>().ok();
    let paths = entries.flatten().take(FILES_MAX).map(|entry| entry.path());
    let mut found: Vec<(u64, PathBuf)> = paths.filter_map(|path| Some((generation(&path)?, path))).collect();
    found.sort();
    Ok(found)
}

/// Destroys a header backup: random bytes are no secret, but with the key of its generation they open the volume. Zeros over
/// the file, then its name goes; what an SSD or a snapshot keeps is out of reach.
///
/// What has the name and is no file of its own (a link, a second name of another file, a pipe) only loses the name.
///
/// # Errors
/// [`VolumesError::Io`].
pub fn destroy(path: &Path) -> Result<(), VolumesError> {
    let destroyed = (|| {
        let is_own = |found: &std::fs::Metadata| found.is_file() && found.nlink() == 1;
        if is_own(&path.symlink_metadata()?) {
            let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
            let mut file = File::options().write(true).custom_flags(flags).open(path)?;
            let found = file.metadata()?;
            if is_own(&found) {
                std::io::copy(&mut std::io::Read::take(std::io::repeat(0), found.len()), &mut file)?;
                file.flush()?;
                file.sync_all()?;
            }
        }
        std::fs::remove_file(path)?;
        File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
    })();
    destroyed.map_err(VolumesError::io("destroy", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_file_of_its_own_is_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let place = |name: &str| folder.path().join(name);
        let victims = ["by-symlink", "by-hard-link"].map(|name| {
            std::fs::write(place(name), b"precious").unwrap();
            place(name)
        });
        std::fs::write(place("v.header.0"), b"header").unwrap();
        let kept = File::open(place("v.header.0")).unwrap();
        std::os::unix::fs::symlink(&victims[0], place("v.header.1")).unwrap();
        std::fs::hard_link(&victims[1], place("v.header.2")).unwrap();
        for generation in 0..3 {
            destroy(&place(&format!("v.header.{generation}"))).unwrap();
            assert!(place(&format!("v.header.{generation}")).symlink_metadata().is_err());
        }
        let mut content = Vec::new();
        std::io::Read::read_to_end(&mut &kept, &mut content).unwrap();
        assert_eq!(content, [0; 6]);
        for victim in victims {
            assert_eq!(std::fs::read(victim).unwrap(), b"precious");
        }
    }
}
