//! The two locks of an image: [`UseLock`] says "somebody has this volume open", [`MetadataLock`] "somebody reads or writes
//! its header now".
//!
//! They are of different kinds on purpose. cryptsetup waits without end for `flock` on an image, so a server that held it
//! for the life of a volume would hang every cryptsetup command; an open-file-description lock does not stand in its way.
//!
//! Invariants: the use lock is never waited for; the metadata lock is tried again until a deadline and never blocks in the
//! kernel; it takes all of its parts or none, so no order of taking can deadlock. It is not re-entrant: a second request in
//! the same process conflicts like one from another process.
//!
//! Sources: fcntl(2) (`F_OFD_SETLK`), flock(2), cryptsetup's locking protocol as described in luks2-format.md §1.7.

mod metadata;

pub use metadata::MetadataLock;

use crate::FileDisk;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// A lock was not taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LockError {
    /// Somebody else holds it.
    #[error("{} is in use by another process (waited {} ms)", what.display(), waited.as_millis())]
    Busy {
        /// What is locked: the image, or a lock file.
        what: PathBuf,
        /// How long it was tried.
        waited: Duration,
    },
    /// The system refused.
    #[error("cannot lock {}: {source}", what.display())]
    Io {
        /// What was to be locked.
        what: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// The claim of an open volume on its image, held until it is dropped.
pub struct UseLock {
    disk: FileDisk,
}

impl UseLock {
    pub(crate) fn acquire(disk: &FileDisk, shared: bool) -> Result<UseLock, LockError> {
        let busy = || LockError::Busy { what: disk.path().to_owned(), waited: Duration::ZERO };
        // The kernel never sets an open file description against itself, so that conflict is found here.
        if disk.use_locked().swap(true, Ordering::AcqRel) {
            return Err(busy());
        }
        let kind = if shared { libc::F_RDLCK } else { libc::F_WRLCK };
        if let Err(errno) = set_ofd_lock(disk, kind) {
            disk.use_locked().store(false, Ordering::Release);
            return Err(match errno {
                Errno::EAGAIN | Errno::EACCES => busy(),
                _ => LockError::Io { what: disk.path().to_owned(), source: errno.into() },
            });
        }
        Ok(UseLock { disk: disk.clone() })
    }
}

impl Drop for UseLock {
    fn drop(&mut self) {
        // An error leaves the lock to the last close of the file.
        let _ = set_ofd_lock(&self.disk, libc::F_UNLCK);
        self.disk.use_locked().store(false, Ordering::Release);
    }
}

/// Sets the open-file-description lock over the whole file, to its end wherever that will be.
fn set_ofd_lock(disk: &FileDisk, kind: libc::c_int) -> Result<(), Errno> {
    let lock = libc::flock {
        // The three kinds are 0, 1 and 2.
        l_type: libc::c_short::try_from(kind).unwrap_or(0),
        l_whence: 0,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    loop {
        match fcntl(disk, FcntlArg::F_OFD_SETLK(&lock)) {
            Err(Errno::EINTR) => {}
            result => return result.map(|_| ()),
        }
    }
}

#[cfg(test)]
mod tests;
