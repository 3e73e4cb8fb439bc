//! `/dev/mapper/NAME`: seen to be there after a mapping was resumed, and gone after it was removed.
//!
//! * With udev it is a link to `../dm-N` that udev makes and removes; we only look. Without udev it is a block device
//!   node with the mapping's number, mode 0600, as libdevmapper makes it (devtmpfs makes `/dev/dm-N` only).
//! * Replaced is only what device-mapper's tools make: a link or a block device node that leads elsewhere.
//! * Removed is only what leads to the mapping that is gone, or, without udev, is about to go.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode};

use crate::dm_error::DmError;
use crate::name::{DevNo, MAPPER_FOLDER, Name};

/// Makes `/dev/mapper/NAME` lead to `device`, if it does not yet.
pub(crate) fn ensure(name: &Name, device: DevNo) -> Result<(), DmError> {
    ensure_in(Path::new(MAPPER_FOLDER), name, device)
}

/// Removes `/dev/mapper/NAME` if it leads to `device`, which is gone.
pub(crate) fn remove(name: &Name, device: DevNo) -> Result<(), DmError> {
    if device.sysfs().exists() {
        return Ok(()); // the number was given out again, and the path with it
    }
    remove_in(Path::new(MAPPER_FOLDER), name, device)
}

/// Removes `/dev/mapper/NAME` if it leads to `device`, which goes when its last user closes it.
pub(crate) fn remove_early(name: &Name, device: DevNo) -> Result<(), DmError> {
    remove_in(Path::new(MAPPER_FOLDER), name, device)
}

/// Whether a path is a block device with this number, through links.
pub(crate) fn leads_to(path: &Path, device: DevNo) -> bool {
    fs::metadata(path).is_ok_and(|meta| meta.file_type().is_block_device() && meta.rdev() == device.rdev())
}

fn ensure_in(folder: &Path, name: &Name, device: DevNo) -> Result<(), DmError> {
    let path = folder.join(name.as_str());
    if leads_to(&path, device) {
        return Ok(());
    }
    match fs::symlink_metadata(&path) {
        Ok(meta) if !is_ours(&meta) => return Err(DmError::NodeInTheWay { path }),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(DmError::io("look at", path.display())(error)),
    }
    let aside: PathBuf = folder.join(format!(".luks-{}-{}", std::process::id(), device.minor));
    let made =
        rustix::fs::mknodat(rustix::fs::CWD, &aside, FileType::BlockDevice, Mode::RUSR | Mode::WUSR, device.rdev());
    made.map_err(|errno| DmError::io("make the node", path.display())(errno.into()))?;
    fs::rename(&aside, &path).map_err(|error| {
        // The first error is the one to tell.
        let _ = fs::remove_file(&aside);
        DmError::io("make the node", path.display())(error)
    })
}

fn remove_in(folder: &Path, name: &Name, device: DevNo) -> Result<(), DmError> {
    let path = folder.join(name.as_str());
    let Ok(meta) = fs::symlink_metadata(&path) else {
        return Ok(());
    };
    let dead = if meta.file_type().is_symlink() {
        fs::read_link(&path).is_ok_and(|target| target.file_name() == Some(format!("dm-{}", device.minor).as_ref()))
    } else {
        meta.file_type().is_block_device() && meta.rdev() == device.rdev()
    };
    if !dead {
        return Ok(());
    }
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(DmError::io("remove", path.display())(error)),
        _ => Ok(()),
    }
}

fn is_ours(meta: &fs::Metadata) -> bool {
    meta.file_type().is_symlink() || meta.file_type().is_block_device()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    const GONE: DevNo = DevNo { major: 240, minor: 77 };
    const OTHER: DevNo = DevNo { major: 240, minor: 78 };

    /// Whether nodes can be made here (they need CAP_MKNOD).
    fn makes_nodes(test: &str, folder: &Path) -> bool {
        let probe: Name = "probe".parse().unwrap();
        let made = ensure_in(folder, &probe, GONE);
        if let Err(error) = &made {
            eprintln!("SKIPPED dmsetup {test}: {error}");
        }
        made.is_ok()
    }

    #[test]
    fn a_node_is_made_replaced_and_removed() {
        let folder = tempfile::tempdir().unwrap();
        if !makes_nodes("a_node_is_made_replaced_and_removed", folder.path()) {
            return;
        }
        let name: Name = "a.b".parse().unwrap();
        let path = folder.path().join("a.b");
        for stale in [None, Some(OTHER)] {
            if let Some(other) = stale {
                remove_in(folder.path(), &name, GONE).unwrap();
                ensure_in(folder.path(), &name, other).unwrap();
            }
            ensure_in(folder.path(), &name, GONE).unwrap();
            assert!(leads_to(&path, GONE));
            assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        }
        remove_in(folder.path(), &name, OTHER).unwrap();
        assert!(path.exists(), "another mapping's node stays");
        remove_in(folder.path(), &name, GONE).unwrap();
        assert!(!path.exists());
        remove_in(folder.path(), &name, GONE).unwrap();
    }

    #[test]
    fn links_are_removed_by_their_number_and_files_never() {
        let folder = tempfile::tempdir().unwrap();
        let name: Name = "x".parse().unwrap();
        let path = folder.path().join("x");
        symlink("../dm-78", &path).unwrap();
        remove_in(folder.path(), &name, GONE).unwrap();
        assert!(fs::symlink_metadata(&path).is_ok());
        remove_in(folder.path(), &name, OTHER).unwrap();
        assert!(fs::symlink_metadata(&path).is_err());

        fs::write(&path, "precious").unwrap();
        remove_in(folder.path(), &name, GONE).unwrap();
        let error = ensure_in(folder.path(), &name, GONE).unwrap_err();
        assert!(matches!(error, DmError::NodeInTheWay { .. }), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }
}
