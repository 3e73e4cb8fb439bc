//! [`MetadataLock`]: the lock cryptsetup takes around every read and write of a LUKS2 header.
//!
//! A regular file is locked by `flock` on itself; a block device by `flock` on `/run/cryptsetup/L_<major>:<minor>`, a file
//! that exists only while somebody uses it: after locking, its inode is compared with the path's, and the last user
//! unlinks it. An image behind a loop device can be reached both ways, so both locks are taken, from either side.

use super::LockError;
use crate::FileDisk;
use crate::file::retry;
use rustix::fs::{self, AtFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Where cryptsetup keeps its lock files.
const LOCK_FOLDER: &str = "/run/cryptsetup";
/// Pause between two tries: short at first, for most holders are done in a moment.
const FIRST_PAUSE: Duration = Duration::from_millis(2);
const LONGEST_PAUSE: Duration = Duration::from_millis(50);

/// The header of one image, locked until this is dropped.
#[must_use]
pub struct MetadataLock {
    /// Dropped, and so unlocked, in this order.
    _held: Vec<Held>,
}

/// One part of the lock.
enum Held {
    /// `flock` on the image itself.
    Image { _fd: Flocked },
    /// `flock` on a lock file.
    LockFile { _file: LockFile },
}

/// What has to be locked together.
enum Part {
    Image,
    Backing(PathBuf),
    Device { major: u32, minor: u32, optional: bool },
}

/// Why one try did not succeed.
enum Refusal {
    Taken(PathBuf),
    Failed(LockError),
}

/// A descriptor whose `flock` ends with it. Closing alone would not do: a process that another thread starts at this moment
/// has a copy of every descriptor until its `exec`, and a lock lives as long as any copy of its description.
struct Flocked(OwnedFd);

impl Flocked {
    /// Takes the lock without waiting.
    fn try_lock(fd: OwnedFd, shared: bool, what: &Path) -> Result<Flocked, Refusal> {
        let operation =
            if shared { FlockOperation::NonBlockingLockShared } else { FlockOperation::NonBlockingLockExclusive };
        match retry(|| fs::flock(&fd, operation)) {
            Ok(()) => Ok(Flocked(fd)),
            Err(Errno::WOULDBLOCK) => Err(Refusal::Taken(what.to_owned())),
            Err(errno) => Err(Refusal::Failed(LockError::Io { what: what.to_owned(), source: errno.into() })),
        }
    }
}

impl Drop for Flocked {
    fn drop(&mut self) {
        // An error leaves the lock to the last close.
        let _ = fs::flock(&self.0, FlockOperation::Unlock);
    }
}

impl MetadataLock {
    pub(crate) fn acquire(disk: &FileDisk, shared: bool, deadline: Duration) -> Result<MetadataLock, LockError> {
        MetadataLock::acquire_in(Path::new(LOCK_FOLDER), disk, shared, deadline)
    }

    fn acquire_in(folder: &Path, disk: &FileDisk, shared: bool, deadline: Duration) -> Result<MetadataLock, LockError> {
        let began = Instant::now();
        let mut pause = FIRST_PAUSE;
        loop {
            // Listed anew each time: loop devices come and go.
            match try_all(folder, disk, shared) {
                Ok(held) => return Ok(MetadataLock { _held: held }),
                Err(Refusal::Failed(error)) => return Err(error),
                Err(Refusal::Taken(what)) => {
                    let waited = began.elapsed();
                    let Some(left) = deadline.checked_sub(waited).filter(|left| !left.is_zero()) else {
                        return Err(LockError::Busy { what, waited });
                    };
                    std::thread::sleep(pause.min(left));
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }
}

fn try_all(folder: &Path, disk: &FileDisk, shared: bool) -> Result<Vec<Held>, Refusal> {
    // A refusal drops, and so unlocks, what was taken before it.
    let mut held = Vec::new();
    for part in parts(disk, shared) {
        match part {
            Part::Image => held.push(lock_image(disk, shared)?),
            Part::Backing(path) => held.extend(lock_backing(&path, shared)?),
            Part::Device { major, minor, optional } => {
                match LockFile::try_lock(folder, &format!("L_{major}:{minor}"), shared) {
                    Ok(lock) => held.push(Held::LockFile { _file: lock }),
                    Err(Refusal::Failed(error)) if optional && is_denied(&error) => {}
                    Err(refusal) => return Err(refusal),
                }
            }
        }
    }
    Ok(held)
}

fn parts(disk: &FileDisk, shared: bool) -> Vec<Part> {
    match disk.rdev() {
        Some((major, minor)) => {
            let backing = std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/loop/backing_file"));
            let backing = backing.ok().map(|text| Part::Backing(PathBuf::from(text.trim_end_matches('\n'))));
            std::iter::once(Part::Device { major, minor, optional: false }).chain(backing).collect()
        }
        None => {
            let devices = loop_devices_on(disk.identity());
            // An ordinary user may not enter cryptsetup's folder. Its read is checked by checksums; its write is refused.
            let devices = devices.into_iter().map(|(major, minor)| Part::Device { major, minor, optional: shared });
            std::iter::once(Part::Image).chain(devices).collect()
        }
    }
}

/// Major and minor numbers of the loop devices whose backing file is this inode, found by path through sysfs.
fn loop_devices_on(identity: (u64, u64)) -> Vec<(u32, u32)> {
    let Ok(devices) = std::fs::read_dir("/sys/block") else { return Vec::new() };
    let found = devices.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with("loop"));
    let mut numbers: Vec<(u32, u32)> = found
        .filter_map(|entry| {
            let backing = std::fs::read_to_string(entry.path().join("loop/backing_file")).ok()?;
            let stat = fs::stat(backing.trim_end_matches('\n')).ok()?;
            if (stat.st_dev, stat.st_ino) != identity {
                return None;
            }
            let number = std::fs::read_to_string(entry.path().join("dev")).ok()?;
            let (major, minor) = number.trim().split_once(':')?;
            Some((major.parse().ok()?, minor.parse().ok()?))
        })
        .collect();
    numbers.sort_unstable();
    numbers
}

/// `flock` needs an open file description of its own, or two locks of one process would be one lock.
fn lock_image(disk: &FileDisk, shared: bool) -> Result<Held, Refusal> {
    let fail = |errno: Errno| Refusal::Failed(LockError::Io { what: disk.path().to_owned(), source: errno.into() });
    let own = format!("/proc/self/fd/{}", disk.as_fd().as_raw_fd());
    let fd = fs::open(own.as_str(), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .or_else(|_| fs::open(disk.path(), OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty()))
        .map_err(fail)?;
    let stat = fs::fstat(&fd).map_err(fail)?;
    if (stat.st_dev, stat.st_ino) != disk.identity() {
        return Err(fail(Errno::STALE));
    }
    Ok(Held::Image { _fd: Flocked::try_lock(fd, shared, disk.path())? })
}

/// The file behind a loop device. One that cannot be reached from here (deleted, or in another mount namespace) cannot be
/// locked by path by anybody else either.
fn lock_backing(path: &Path, shared: bool) -> Result<Option<Held>, Refusal> {
    let Ok(fd) = fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty()) else {
        return Ok(None);
    };
    Ok(Some(Held::Image { _fd: Flocked::try_lock(fd, shared, path)? }))
}

fn is_denied(error: &LockError) -> bool {
    matches!(error, LockError::Io { source, .. }
        if matches!(source.kind(), std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::ReadOnlyFilesystem))
}

/// A file in the lock folder that is not locked yet.
struct OpenLockFile {
    folder: OwnedFd,
    name: String,
    fd: OwnedFd,
}

impl OpenLockFile {
    fn open(folder_path: &Path, name: &str) -> Result<OpenLockFile, Errno> {
        match fs::mkdir(folder_path, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno),
        }
        let folder_flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let folder = fs::open(folder_path, folder_flags, Mode::empty())?;
        let flags = OFlags::CREATE | OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = fs::openat(&folder, name, flags, Mode::RUSR | Mode::WUSR | Mode::RGRP | Mode::ROTH)?;
        Ok(OpenLockFile { folder, name: name.to_owned(), fd })
    }

    fn try_lock(self, shared: bool, what: PathBuf) -> Result<LockFile, Refusal> {
        let fd = Flocked::try_lock(self.fd, shared, &what)?;
        let lock = LockFile { folder: self.folder, name: self.name, fd };
        // The last user before us may have unlinked the file between our open and our lock: then we hold nothing.
        if lock.is_named() { Ok(lock) } else { Err(Refusal::Taken(what)) }
    }
}

/// A locked file in the lock folder.
struct LockFile {
    folder: OwnedFd,
    name: String,
    fd: Flocked,
}

impl LockFile {
    fn try_lock(folder_path: &Path, name: &str, shared: bool) -> Result<LockFile, Refusal> {
        let what = folder_path.join(name);
        OpenLockFile::open(folder_path, name)
            .map_err(|errno| Refusal::Failed(LockError::Io { what: what.clone(), source: errno.into() }))?
            .try_lock(shared, what)
    }

    /// Whether the path still leads to the locked inode.
    fn is_named(&self) -> bool {
        let named = fs::statat(&self.folder, &self.name, AtFlags::SYMLINK_NOFOLLOW);
        match (fs::fstat(&self.fd.0), named) {
            (Ok(ours), Ok(named)) => (ours.st_dev, ours.st_ino) == (named.st_dev, named.st_ino),
            _ => false,
        }
    }
}

impl Drop for LockFile {
    fn drop(&mut self) {
        // Whoever gets the exclusive lock is the last user. Errors leave the file behind, which harms nobody.
        if fs::flock(&self.fd.0, FlockOperation::NonBlockingLockExclusive).is_ok() && self.is_named() {
            let _ = fs::unlinkat(&self.folder, &self.name, AtFlags::empty());
        }
    }
}

#[cfg(test)]
mod tests;
