//! [`Folder`]: a [`Medium`] that is a folder of the file system, held by one process at a time.
//!
//! Invariants: the folder is ours and nobody else may write to it; files are made with mode 0600 and never reached through a
//! symbolic link; whoever holds the state file's lock is alone.

use std::fs::{DirBuilder, File};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, IFlags, flock, ioctl_getflags, ioctl_setflags};
use rustix::io::Errno;

use super::medium::Medium;
use super::{STATE_NAME, month_of};
use crate::VolumesError;

/// How long a writer waits for the others.
const LOCK_WAIT: Duration = Duration::from_secs(10);
/// Pause between two tries for the lock.
const LOCK_PAUSE: Duration = Duration::from_millis(2);
/// Most files of records of one folder.
const FILES_MAX: usize = 4096;

/// The folder of a log, locked.
pub(super) struct Folder {
    path: PathBuf,
    state: File,
    is_immutable: bool,
}

impl Folder {
    /// Makes the folder if it is not there, and waits for its lock.
    pub(super) fn lock(path: &Path, is_immutable: bool) -> Result<Folder, VolumesError> {
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(VolumesError::io("make", path))?;
        let refused = |what: String| VolumesError::File { path: path.to_owned(), what };
        let metadata = path.symlink_metadata().map_err(VolumesError::io("read", path))?;
        if !metadata.is_dir() || metadata.uid() != rustix::process::geteuid().as_raw() {
            return Err(refused("must be a folder of the user who writes the audit log".to_owned()));
        }
        if metadata.mode() & 0o022 != 0 {
            return Err(refused(format!("others may write to it (mode {:04o})", metadata.mode() & 0o7777)));
        }
        let name = path.join(STATE_NAME);
        let mut options = File::options();
        options.read(true).write(true).create(true).mode(0o600).custom_flags(no_follow());
        let state = options.open(&name).map_err(VolumesError::io("open", &name))?;
        wait(&state, path, FlockOperation::NonBlockingLockExclusive)?;
        Ok(Folder { path: path.to_owned(), state, is_immutable })
    }

    fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    fn open(&self, name: &str) -> io::Result<Option<File>> {
        match File::options().read(true).custom_flags(no_follow()).open(self.file(name)) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Adds an attribute to a file.
    fn protect(&self, file: &File, flag: IFlags) -> io::Result<()> {
        let failed = |errno: Errno| {
            let why = "audit.immutable needs root, CAP_LINUX_IMMUTABLE and ext4, XFS or Btrfs";
            io::Error::new(io::Error::from(errno).kind(), format!("{why}: {errno}"))
        };
        let flags = ioctl_getflags(file).map_err(failed)?;
        if flags.contains(flag) {
            return Ok(());
        }
        ioctl_setflags(file, flags | flag).map_err(failed)
    }
}

/// Waits for a lock of the state.
pub(super) fn wait(state: &File, path: &Path, kind: FlockOperation) -> Result<(), VolumesError> {
    let until = Instant::now() + LOCK_WAIT;
    loop {
        match flock(state, kind) {
            Ok(()) => return Ok(()),
            Err(Errno::WOULDBLOCK | Errno::INTR) if Instant::now() < until => std::thread::sleep(LOCK_PAUSE),
            Err(Errno::WOULDBLOCK) => {
                return Err(VolumesError::AuditBusy { path: path.to_owned(), waited_s: LOCK_WAIT.as_secs() });
            }
            Err(errno) => return Err(VolumesError::Io { what: "lock", path: path.to_owned(), source: errno.into() }),
        }
    }
}

/// `O_NOFOLLOW` as the standard library takes it.
pub(super) fn no_follow() -> i32 {
    nix::fcntl::OFlag::O_NOFOLLOW.bits()
}

/// The files of records in a folder, by month.
pub(super) fn names(path: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(path)? {
        if let Ok(name) = entry?.file_name().into_string()
            && month_of(&name).is_some()
        {
            names.push(name);
        }
        if names.len() > FILES_MAX {
            return Err(io::Error::other(format!("more than {FILES_MAX} files of records")));
        }
    }
    names.sort();
    Ok(names)
}

impl Medium for Folder {
    fn names(&mut self) -> io::Result<Vec<String>> {
        names(&self.path)
    }

    fn len(&mut self, name: &str) -> io::Result<u64> {
        self.open(name)?.map_or(Ok(0), |file| file.metadata().map(|metadata| metadata.len()))
    }

    fn read(&mut self, name: &str, from: u64, most: usize) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        if let Some(mut file) = self.open(name)? {
            file.seek(SeekFrom::Start(from))?;
            file.take(most as u64).read_to_end(&mut bytes)?;
        }
        Ok(bytes)
    }

    fn append(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let path = self.file(name);
        let is_new = path.symlink_metadata().is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
        let mut options = File::options();
        let mut file = options.append(true).create(true).mode(0o600).custom_flags(no_follow()).open(&path)?;
        if is_new && self.is_immutable {
            self.protect(&file, IFlags::APPEND).inspect_err(|_| {
                if let Err(error) = std::fs::remove_file(&path) {
                    log::warn!("could not remove the empty {}: {error}", path.display());
                }
            })?;
        }
        file.write_all(bytes)
    }

    fn truncate(&mut self, name: &str, len: u64) -> io::Result<()> {
        match File::options().write(true).custom_flags(no_follow()).open(self.file(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            file => file?.set_len(len),
        }
    }

    fn sync(&mut self, name: &str) -> io::Result<()> {
        self.open(name)?.map_or(Ok(()), |file| file.sync_all())
    }

    fn sync_folder(&mut self) -> io::Result<()> {
        File::open(&self.path)?.sync_all()
    }

    fn close(&mut self, name: &str) -> io::Result<()> {
        match self.open(name)? {
            Some(file) if self.is_immutable => self.protect(&file, IFlags::IMMUTABLE),
            _ => Ok(()),
        }
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        // Attributes are only there where they were set; where they cannot be taken away, removing fails and says so.
        if let Some(file) = self.open(name)?
            && let Ok(flags) = ioctl_getflags(&file)
            && flags.intersects(IFlags::IMMUTABLE | IFlags::APPEND)
        {
            ioctl_setflags(&file, flags - (IFlags::IMMUTABLE | IFlags::APPEND))?;
        }
        std::fs::remove_file(self.file(name))
    }

    fn read_state(&mut self, into: &mut [u8]) -> io::Result<()> {
        let mut at = 0;
        while at < into.len() {
            match self.state.read_at(&mut into[at..], at as u64)? {
                0 => break,
                count => at += count,
            }
        }
        Ok(())
    }

    fn write_state(&mut self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.state.write_all_at(bytes, at)
    }

    fn sync_state(&mut self) -> io::Result<()> {
        self.state.sync_all()
    }
}
