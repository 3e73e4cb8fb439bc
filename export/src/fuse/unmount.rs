//! Ending a FUSE mount: umount(2) for root, `fusermount3 -u` for everybody else. Never lazily (`-z`, MNT_DETACH): a
//! lazy unmount succeeds while the file is still open, and the caller would believe the disk is at rest.

use std::io;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::io::Errno;
use rustix::mount::UnmountFlags;

use super::ExportError;

/// Longest part of fusermount3's words that goes into an error.
const MAX_WORDS_BYTES: usize = 300;

/// Unmounts `mount_point`.
pub(super) fn unmount(mount_point: &Path) -> Result<(), ExportError> {
    match rustix::mount::unmount(mount_point, UnmountFlags::NOFOLLOW) {
        Ok(()) => Ok(()),
        Err(Errno::BUSY) => Err(ExportError::Busy { mount_point: mount_point.to_path_buf() }),
        Err(Errno::PERM) => by_fusermount(mount_point),
        Err(errno) => Err(failed(mount_point, errno.into())),
    }
}

/// Unmounts with the set-uid program.
pub(super) fn by_fusermount(mount_point: &Path) -> Result<(), ExportError> {
    let output = Command::new("fusermount3")
        .args(["-u", "--"])
        .arg(mount_point)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .map_err(|source| failed(mount_point, source))?;
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr[..output.stderr.len().min(MAX_WORDS_BYTES)]).into_owned();
    if words.contains("busy") {
        return Err(ExportError::Busy { mount_point: mount_point.to_path_buf() });
    }
    Err(failed(mount_point, io::Error::other(words.trim().to_owned())))
}

fn failed(mount_point: &Path, source: io::Error) -> ExportError {
    ExportError::Unmount { mount_point: mount_point.to_path_buf(), source }
}
