//! Mount points while nothing is mounted on them: empty folders of mode 000 and, where the file system can, immutable, so
//! that nothing writes plaintext beneath a mount that is not there.
//!
//! For an ordinary user they are empty and 0700: fusermount demands write permission, and there is no immutability.
//! Source: ioctl_iflags(2); immutable does not keep anybody from mounting on a folder.

use std::fs::{DirBuilder, File};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};

use crate::VolumesError;
use crate::error::Trouble;

/// How an unused mount point stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Nothing can write to it.
    Protected,
    /// It is there and could be protected better.
    Open,
    /// It is not there.
    Missing,
    /// There is something in it.
    Used,
    /// It is no folder.
    NoFolder,
    /// A file system is mounted on it.
    Mounted,
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn mode() -> u32 {
    if is_root() { 0o000 } else { 0o700 }
}

/// Looks at the mount point.
pub(crate) fn standing(path: &Path) -> Result<Standing, VolumesError> {
    if session::is_mount_point(path)? {
        return Ok(Standing::Mounted);
    }
    let metadata = match path.symlink_metadata() {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Standing::Missing),
        Err(error) => return Err(VolumesError::io("look at", path)(error)),
    };
    if !metadata.is_dir() {
        return Ok(Standing::NoFolder);
    }
    // An ordinary user cannot look into a folder of mode 000; then it is root's, and of no use to him.
    let mut entries = std::fs::read_dir(path).map_err(VolumesError::io("look into", path))?;
    if entries.next().is_some() {
        return Ok(Standing::Used);
    }
    let is_closed = metadata.mode() & 0o7777 == mode() && metadata.uid() == rustix::process::geteuid().as_raw();
    Ok(if is_closed && (!is_root() || is_immutable(path) != Some(false)) {
        Standing::Protected
    } else {
        Standing::Open
    })
}

/// Whether the folder is immutable; `None` where that cannot be, or not be made.
fn is_immutable(path: &Path) -> Option<bool> {
    const CAP_LINUX_IMMUTABLE: u32 = 9;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok()).unwrap_or(0);
    let flags = File::open(path).ok().and_then(|folder| ioctl_getflags(&folder).ok())?;
    let is_set = flags.contains(IFlags::IMMUTABLE);
    (is_set || effective >> CAP_LINUX_IMMUTABLE & 1 == 1).then_some(is_set)
}

/// Makes the mount point if it is not there, and closes it to everybody. It has to be empty and unused.
pub(crate) fn protect(path: &Path) -> Result<(), VolumesError> {
    match standing(path)? {
        Standing::Protected | Standing::Mounted => return Ok(()),
        Standing::Missing => {
            let parent = path.parent().unwrap_or(Path::new("/"));
            std::fs::create_dir_all(parent).map_err(VolumesError::io("make", parent))?;
            let made = DirBuilder::new().mode(mode()).create(path);
            made.map_err(VolumesError::io("make", path))?;
        }
        Standing::Open => {}
        Standing::Used | Standing::NoFolder => return Err(in_the_way(path)),
    }
    let metadata = path.symlink_metadata().map_err(VolumesError::io("look at", path))?;
    if metadata.mode() & 0o7777 != mode() {
        let permissions = std::fs::Permissions::from_mode(mode());
        std::fs::set_permissions(path, permissions).map_err(VolumesError::io("close", path))?;
    }
    if is_root() && is_immutable(path) == Some(false) {
        set_immutable(path, true);
    }
    let parent = path.parent().unwrap_or(Path::new("/"));
    let synced = File::open(parent).and_then(|parent| parent.sync_all());
    synced.map_err(VolumesError::io("sync", parent))
}

/// What to say about a mount point that cannot be one.
pub(crate) fn in_the_way(path: &Path) -> VolumesError {
    let shown = path.display().to_string();
    let what = "the mount point is no empty folder: what is in it would be hidden, and is not encrypted";
    VolumesError::refused(Trouble::Busy, &shown, what, format!("ls -la {shown}; move it away"))
}

/// Where the file system cannot, or the process may not, mode 000 has to do.
fn set_immutable(path: &Path, wanted: bool) {
    let set = File::open(path).and_then(|folder| {
        let flags = ioctl_getflags(&folder)?;
        let flags = if wanted { flags | IFlags::IMMUTABLE } else { flags - IFlags::IMMUTABLE };
        Ok(ioctl_setflags(&folder, flags)?)
    });
    if let Err(error) = set {
        log::info!("{} is not immutable: {error}", path.display());
    }
}

/// Takes an unused mount point away again: for a volume that is removed.
pub(crate) fn remove(path: &Path) -> Result<bool, VolumesError> {
    if !matches!(standing(path)?, Standing::Protected | Standing::Open) {
        return Ok(false);
    }
    if is_root() {
        set_immutable(path, false);
    }
    std::fs::remove_dir(path).map_err(VolumesError::io("remove", path))?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_point_is_made_closed_and_taken_away_again() {
        let folder = tempfile::tempdir().unwrap();
        let point = folder.path().join("deep/point");
        assert_eq!(standing(&point).unwrap(), Standing::Missing);
        protect(&point).unwrap();
        assert_eq!(standing(&point).unwrap(), Standing::Protected);
        protect(&point).unwrap();
        assert_eq!(point.metadata().unwrap().mode() & 0o7777, mode());
        assert!(remove(&point).unwrap());
        assert_eq!(standing(&point).unwrap(), Standing::Missing);
    }

    #[test]
    fn what_has_something_in_it_or_is_no_folder_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let (used, file) = (folder.path().join("used"), folder.path().join("file"));
        std::fs::create_dir(&used).unwrap();
        std::fs::write(used.join("plaintext"), b"x").unwrap();
        std::fs::write(&file, b"x").unwrap();
        for path in [&used, &file] {
            let before = path.metadata().unwrap().mode();
            assert!(protect(path).unwrap_err().to_string().contains("no empty folder"));
            assert!(!remove(path).unwrap());
            assert_eq!(path.metadata().unwrap().mode(), before);
        }
    }
}
