//! Who lives in the run directory: liveness by lock, claims of names, and what each server wrote down about itself.
//!
//! Invariant: a held `RUN/NAME/lock` means a live server. A folder whose lock is free is a leftover, except while
//! somebody holds the registry lock `RUN/.lock`: then its server may just be starting.

use std::fs::File;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::policy::PolicyOrder;
use crate::run_dir::{Entry, RunDir, replace_file};
use crate::{SessionError, dying, kernel};

const POLL: Duration = Duration::from_millis(10);
/// Names are claimed and leftovers cleaned in well under this.
const REGISTRY_WAIT: Duration = Duration::from_secs(30);
/// Largest `info.json` that is read.
const INFO_MAX_BYTES: u64 = 64 << 10;

/// Whether an entry has a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Liveness {
    /// There is no such entry.
    Absent,
    /// Its server holds its lock.
    Live,
    /// Nobody holds its lock.
    Dead,
}

/// Held while names are claimed and leftovers cleaned. Never while a passphrase is asked for or a key derived.
pub(crate) struct RegistryLock {
    _file: File,
}

impl RegistryLock {
    pub(crate) fn take(run: &RunDir) -> Result<RegistryLock, SessionError> {
        let file = run.lock_file()?;
        if lock_within(&file, FlockOperation::NonBlockingLockExclusive, REGISTRY_WAIT, run.path())? {
            return Ok(RegistryLock { _file: file });
        }
        Err(SessionError::Timeout {
            what: format!("the end of another open or close in {}", run.path().display()),
            seconds: REGISTRY_WAIT.as_secs(),
        })
    }

    /// Whether somebody holds it now.
    pub(crate) fn is_taken(run: &RunDir) -> Result<bool, SessionError> {
        let file = run.lock_file()?;
        Ok(!lock_within(&file, FlockOperation::NonBlockingLockShared, Duration::ZERO, run.path())?)
    }
}

pub(crate) fn liveness(entry: &Entry) -> Result<Liveness, SessionError> {
    if !entry.exists() {
        return Ok(Liveness::Absent);
    }
    match entry.lock_file(false) {
        Ok(file) if wait_until_free(&file, Duration::ZERO, &entry.folder)? => Ok(Liveness::Dead),
        Ok(_) => Ok(Liveness::Live),
        Err(SessionError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            Ok(if entry.exists() { Liveness::Dead } else { Liveness::Absent })
        }
        Err(error) => Err(error),
    }
}

/// Takes the liveness lock for this process, for as long as the file lives.
pub(crate) fn claim(entry: &Entry) -> Result<File, SessionError> {
    let file = entry.lock_file(true)?;
    // A `status` of another process may hold it shared for a moment.
    let wait = Duration::from_secs(2);
    if lock_within(&file, FlockOperation::NonBlockingLockExclusive, wait, &entry.folder)? {
        if let Err(error) = dying::sign(&file) {
            log::warn!("{} stays unsigned: {error}", entry.folder.join("lock").display());
        }
        return Ok(file);
    }
    Err(SessionError::AlreadyOpen { name: entry.name.to_string() })
}

/// Waits until the server that holds `lock` has ended; false if it has not in time.
pub(crate) fn wait_until_free(lock: &File, wait: Duration, path: &Path) -> Result<bool, SessionError> {
    let free = lock_within(lock, FlockOperation::NonBlockingLockShared, wait, path)?;
    if free {
        flock(lock, FlockOperation::Unlock).map_err(SessionError::errno("unlock", path))?;
    }
    Ok(free)
}

fn lock_within(file: &File, operation: FlockOperation, wait: Duration, path: &Path) -> Result<bool, SessionError> {
    let until = Instant::now() + wait;
    loop {
        match flock(file, operation) {
            Ok(()) => return Ok(true),
            Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() >= until => return Ok(false),
            Err(rustix::io::Errno::WOULDBLOCK) => sleep(POLL),
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(SessionError::errno("lock", path)(errno)),
        }
    }
}

/// What a server writes down once its volume is open, for whoever finds it dead.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Info {
    #[serde(with = "crate::path_json")]
    pub(crate) image: PathBuf,
    #[serde(with = "crate::path_json::option")]
    pub(crate) header: Option<PathBuf>,
    /// See [`identity`].
    pub(crate) identity: String,
    pub(crate) uuid: String,
    /// The server; a mapping of the kernel has none.
    pub(crate) pid: Option<i32>,
    #[serde(with = "crate::path_json")]
    pub(crate) device: PathBuf,
    pub(crate) backend: String,
    pub(crate) read_only: bool,
    pub(crate) opened_unix_s: u64,
    /// What is open is a mapping of the kernel.
    #[serde(default)]
    pub(crate) mapping: Option<MappingRecord>,
}

/// The mapping behind an entry. Written before the mapping is made and again when it is there, so that whoever finds it
/// half made knows what to take away.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MappingRecord {
    /// Its UUID in device-mapper.
    pub(crate) uuid: String,
    /// Whether the opening came to its end.
    pub(crate) complete: bool,
    pub(crate) keyslot: Option<u32>,
    /// What it was opened under, and is unlocked again under; an entry of an earlier version has none.
    #[serde(default)]
    pub(crate) policy: Option<PolicyOrder>,
    /// What recognises the volume key's digest when the volume is unlocked again.
    pub(crate) digest: DigestMark,
}

/// Salt and value of the digest that accepted a volume key: public bytes of the header that another key does not have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DigestMark {
    pub(crate) id: u32,
    pub(crate) salt: Option<String>,
    pub(crate) value: Option<String>,
}

impl Info {
    pub(crate) fn write(&self, entry: &Entry) -> Result<(), SessionError> {
        let text = serde_json::to_vec(self).map_err(|error| SessionError::Protocol {
            name: entry.name.to_string(),
            what: format!("info.json cannot be written: {error}"),
        })?;
        replace_file(&entry.folder, "info.json", &text)
    }

    /// What the entry's server wrote, if it came so far and the file is whole.
    pub(crate) fn read(entry: &Entry) -> Option<Info> {
        use std::io::Read as _;
        let mut text = Vec::new();
        File::open(entry.info()).ok()?.take(INFO_MAX_BYTES).read_to_end(&mut text).ok()?;
        serde_json::from_slice(&text).ok()
    }
}

/// What makes an image the same under every path: device and inode of a file, the number of a block device.
pub(crate) fn identity(image: &Path) -> Result<String, SessionError> {
    let metadata = std::fs::metadata(image).map_err(SessionError::io("open", image))?;
    if metadata.file_type().is_block_device() {
        Ok(format!("block:{}", metadata.rdev()))
    } else {
        Ok(format!("file:{}:{}", metadata.dev(), metadata.ino()))
    }
}

/// The [`identity`] of an image that is open already, whatever its path leads to by now.
#[cfg(feature = "loop")]
pub(crate) fn identity_of(image: &block::FileDisk) -> String {
    match (image.rdev(), image.identity()) {
        (Some((major, minor)), _) => format!("block:{}", rustix::fs::makedev(major, minor)),
        (None, (device, inode)) => format!("file:{device}:{inode}"),
    }
}

/// The live volume whose image has this identity.
pub(crate) fn holder_of(run: &RunDir, identity: &str) -> Result<Option<Entry>, SessionError> {
    for entry in run.entries()? {
        let same = Info::read(&entry).is_some_and(|info| info.identity == identity);
        if same && !matches!(behind(&entry)?, Behind::Nothing | Behind::Dead) {
            return Ok(Some(entry));
        }
    }
    Ok(None)
}

/// What is behind an entry.
#[derive(Debug)]
pub(crate) enum Behind {
    /// There is no such entry.
    Nothing,
    /// A live server.
    Server,
    /// A mapping of the kernel.
    Mapping(Box<Info>),
    /// A mapping that a live process is just opening.
    Opening,
    /// What a dead process left.
    Dead,
}

/// What is behind `entry`. Right after an opening began it may look dead for a moment; whoever minds holds the registry
/// lock.
pub(crate) fn behind(entry: &Entry) -> Result<Behind, SessionError> {
    let liveness = liveness(entry)?;
    let info = match liveness {
        Liveness::Absent => return Ok(Behind::Nothing),
        _ => Info::read(entry).filter(|info| info.mapping.is_some()),
    };
    match (info, liveness) {
        (None, Liveness::Live) => Ok(Behind::Server),
        (None, _) => Ok(Behind::Dead),
        (Some(info), liveness) => {
            let record = info.mapping.as_ref().filter(|record| record.complete);
            match record {
                Some(record) if kernel::is_active(entry, record)? => Ok(Behind::Mapping(Box::new(info))),
                None if liveness == Liveness::Live => Ok(Behind::Opening),
                _ => Ok(Behind::Dead),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run() -> (tempfile::TempDir, RunDir) {
        let folder = tempfile::tempdir().unwrap();
        let run = RunDir::at(&folder.path().join("run")).unwrap();
        (folder, run)
    }

    #[test]
    fn liveness_follows_the_lock_and_nothing_else() {
        let (_folder, run) = run();
        let entry = run.entry(&"vol".parse().unwrap());
        assert_eq!(liveness(&entry).unwrap(), Liveness::Absent);
        entry.create().unwrap();
        assert_eq!(liveness(&entry).unwrap(), Liveness::Dead);
        let held = claim(&entry).unwrap();
        assert_eq!(liveness(&entry).unwrap(), Liveness::Live);
        let watched = entry.lock_file(false).unwrap();
        assert!(!wait_until_free(&watched, Duration::ZERO, &entry.folder).unwrap());
        drop(held);
        assert_eq!(liveness(&entry).unwrap(), Liveness::Dead);
        assert!(wait_until_free(&watched, Duration::ZERO, &entry.folder).unwrap());
    }

    #[test]
    fn an_image_is_found_under_a_hard_link_only_while_its_server_lives() {
        let (folder, run) = run();
        let image = folder.path().join("image");
        std::fs::write(&image, b"x").unwrap();
        let link = folder.path().join("link");
        std::fs::hard_link(&image, &link).unwrap();
        let entry = run.entry(&"vol".parse().unwrap());
        entry.create().unwrap();
        let info = Info {
            image: image.clone(),
            header: None,
            identity: identity(&image).unwrap(),
            uuid: String::new(),
            pid: Some(1),
            device: PathBuf::new(),
            backend: String::new(),
            read_only: false,
            opened_unix_s: 0,
            mapping: None,
        };
        info.write(&entry).unwrap();
        assert_eq!(Info::read(&entry), Some(info));
        assert!(holder_of(&run, &identity(&link).unwrap()).unwrap().is_none());
        let _held = claim(&entry).unwrap();
        assert_eq!(holder_of(&run, &identity(&link).unwrap()).unwrap().unwrap().name, entry.name);
        assert!(holder_of(&run, &identity(folder.path()).unwrap()).unwrap().is_none());
    }

    #[test]
    fn the_registry_lock_is_seen_as_taken() {
        let (_folder, run) = run();
        assert!(!RegistryLock::is_taken(&run).unwrap());
        let _lock = RegistryLock::take(&run).unwrap();
        assert!(RegistryLock::is_taken(&run).unwrap());
    }
}
