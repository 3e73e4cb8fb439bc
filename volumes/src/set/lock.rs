//! [`SetLock`]: one command at a time changes a set. The lock is a `flock` of the file that describes it, so it needs no
//! folder of its own and ends with the process.

use std::fs::File;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::VolumesError;

/// How long a command waits for another one.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
/// Pause between two tries.
const PAUSE: Duration = Duration::from_millis(20);

/// The lock of a set; it ends when this is dropped.
#[derive(Debug)]
pub struct SetLock {
    _file: File,
}

impl SetLock {
    /// Waits for the lock of the set that the file at `path` describes.
    pub(super) fn take(path: &Path, patience: Duration) -> Result<SetLock, VolumesError> {
        let until = Instant::now() + patience;
        loop {
            let file = File::open(path).map_err(VolumesError::io("open", path))?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                // The file may have been replaced between opening and locking; then the lock is nobody's.
                Ok(()) if is_at(&file, path)? => return Ok(SetLock { _file: file }),
                Ok(()) | Err(Errno::WOULDBLOCK | Errno::INTR) => {}
                Err(errno) => {
                    return Err(VolumesError::Io { what: "lock", path: path.to_owned(), source: errno.into() });
                }
            }
            if Instant::now() >= until {
                return Err(VolumesError::SetBusy { path: path.to_owned(), waited_s: patience.as_secs() });
            }
            std::thread::sleep(PAUSE);
        }
    }
}

fn is_at(file: &File, path: &Path) -> Result<bool, VolumesError> {
    let number = |found: std::fs::Metadata| (found.dev(), found.ino());
    let own = file.metadata().map(number).map_err(VolumesError::io("read", path))?;
    Ok(std::fs::metadata(path).map(number).map_err(VolumesError::io("read", path))? == own)
}
