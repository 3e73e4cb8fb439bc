//! The run directory and the names in it.
//!
//! ```text
//! RUN/            0700, owned by the user: /run/luksctl, $XDG_RUNTIME_DIR/luksctl, /tmp/luksctl-UID, $LUKSCTL_RUN_DIR
//!   .lock         held while a name is claimed or a leftover is cleaned
//!   NAME/         0700
//!     lock        held (flock) by the server for as long as it lives
//!     control     its socket, 0600
//!     log, info.json
//!     device      symlink: /dev/loopN, the file below fuse/, or nbd
//!     fuse/disk   the plaintext disk
//!     nbd         the socket that speaks NBD, 0600
//!     mount.json  where it is mounted, if `mount` did it
//! ```
//!
//! Invariant: RUN is a real directory of ours that nobody else may enter, or it is not used.

use std::ffi::OsString;
use std::fmt;
use std::fs::{DirBuilder, File, Metadata, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::SessionError;

/// Names the run directory to use instead of the usual one.
pub const RUN_DIR_VARIABLE: &str = "LUKSCTL_RUN_DIR";
/// Longest name of a volume, in bytes.
pub const NAME_MAX_BYTES: usize = 100;
const SYSTEM_RUN_DIR: &str = "/run/luksctl";
/// Entries of a run directory that are looked at.
const ENTRIES_MAX: usize = 4096;

/// The name of an open volume: 1–100 characters of `A-Z a-z 0-9 . _ -`, not beginning with a dot or a dash.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VolumeName(String);

impl VolumeName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for VolumeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for VolumeName {
    type Err = SessionError;

    fn from_str(name: &str) -> Result<VolumeName, SessionError> {
        let reason = if name.is_empty() {
            "it is empty"
        } else if name.len() > NAME_MAX_BYTES {
            "it is longer than 100 characters"
        } else if name.starts_with(['.', '-']) {
            "it begins with a dot or a dash"
        } else if !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte)) {
            "only letters, digits, dot, underscore and dash are allowed"
        } else {
            return Ok(VolumeName(name.to_owned()));
        };
        Err(SessionError::Name { name: name.chars().take(NAME_MAX_BYTES).collect(), reason })
    }
}

/// Where [`RunDir::open`] looks; nothing is made.
pub(crate) fn usual_path() -> PathBuf {
    if let Some(path) = std::env::var_os(RUN_DIR_VARIABLE).filter(|path| !path.is_empty()) {
        return path.into();
    }
    let uid = rustix::process::geteuid();
    if uid.is_root() {
        return SYSTEM_RUN_DIR.into();
    }
    match std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from) {
        Some(folder) if folder.is_absolute() && folder.is_dir() => folder.join("luksctl"),
        _ => format!("/tmp/luksctl-{}", uid.as_raw()).into(),
    }
}

/// Why what is there cannot be the run directory of user `uid`; `metadata` is of the path itself, not of a link's target.
pub(crate) fn refusal(metadata: &Metadata, uid: u32) -> Option<String> {
    if !metadata.is_dir() {
        Some("it is no directory".to_owned())
    } else if metadata.uid() != uid {
        Some(format!("it belongs to user {}, not to user {uid}", metadata.uid()))
    } else if metadata.mode() & 0o022 != 0 {
        Some(format!("others may write to it (mode {:o})", metadata.mode() & 0o7777))
    } else {
        None
    }
}

/// The directory that holds one entry per open volume.
#[derive(Clone, Debug)]
pub struct RunDir {
    path: PathBuf,
}

impl RunDir {
    /// The run directory of this user: `$LUKSCTL_RUN_DIR`, else `/run/luksctl` for root, `$XDG_RUNTIME_DIR/luksctl` or
    /// `/tmp/luksctl-UID` for others.
    ///
    /// # Errors
    /// [`SessionError::RunDirectory`] if it cannot be made, or belongs to somebody else, or others may enter it.
    pub fn open() -> Result<RunDir, SessionError> {
        RunDir::at(&usual_path())
    }

    /// The run directory at `path`, made with mode 0700 if it does not exist.
    ///
    /// # Errors
    /// As [`RunDir::open`].
    pub fn at(path: &Path) -> Result<RunDir, SessionError> {
        // A slash at the end would lead through a symlink.
        let path: &Path = &path.components().collect::<PathBuf>();
        let refused = |reason: String| SessionError::RunDirectory { path: path.to_path_buf(), reason };
        match DirBuilder::new().mode(0o700).create(path) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                return Err(refused(format!("it cannot be made: {error}")));
            }
            _ => {}
        }
        let metadata = std::fs::symlink_metadata(path).map_err(|error| refused(error.to_string()))?;
        let uid = rustix::process::geteuid().as_raw();
        if let Some(reason) = refusal(&metadata, uid) {
            return Err(refused(reason));
        }
        let path = std::path::absolute(path).map_err(|error| refused(error.to_string()))?;
        Ok(RunDir { path })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the device of the volume `name` is found.
    #[must_use]
    pub fn device(&self, name: &VolumeName) -> PathBuf {
        self.entry(name).device()
    }

    pub(crate) fn entry(&self, name: &VolumeName) -> Entry {
        Entry { name: name.clone(), folder: self.path.join(name.as_str()) }
    }

    /// Every entry, live or not, in the order of their names.
    pub(crate) fn entries(&self) -> Result<Vec<Entry>, SessionError> {
        let listed = std::fs::read_dir(&self.path).map_err(SessionError::io("list", &self.path))?;
        let mut names: Vec<VolumeName> = listed
            .take(ENTRIES_MAX)
            .filter_map(Result::ok)
            .filter(|item| item.file_type().is_ok_and(|kind| kind.is_dir()))
            .filter_map(|item| item.file_name().to_str().and_then(|name| name.parse().ok()))
            .collect();
        names.sort();
        Ok(names.iter().map(|name| self.entry(name)).collect())
    }

    pub(crate) fn lock_file(&self) -> Result<File, SessionError> {
        open_lock_file(&self.path.join(".lock"), true)
    }
}

/// The paths of one volume in the run directory.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) name: VolumeName,
    pub(crate) folder: PathBuf,
}

impl Entry {
    pub(crate) fn create(&self) -> Result<(), SessionError> {
        DirBuilder::new().mode(0o700).create(&self.folder).map_err(SessionError::io("make", &self.folder))
    }

    /// The run directory that it is in.
    pub(crate) fn run_dir(&self) -> Result<RunDir, SessionError> {
        RunDir::at(self.folder.parent().unwrap_or(&self.folder))
    }

    pub(crate) fn exists(&self) -> bool {
        self.folder.is_dir()
    }

    pub(crate) fn device(&self) -> PathBuf {
        self.folder.join("device")
    }

    pub(crate) fn fuse_folder(&self) -> PathBuf {
        self.folder.join("fuse")
    }

    pub(crate) fn nbd_socket(&self) -> PathBuf {
        self.folder.join("nbd")
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.folder.join("log")
    }

    pub(crate) fn info(&self) -> PathBuf {
        self.folder.join("info.json")
    }

    pub(crate) fn mount_record(&self) -> PathBuf {
        self.folder.join("mount.json")
    }

    /// The liveness lock's file; `create` is for the server.
    pub(crate) fn lock_file(&self, create: bool) -> Result<File, SessionError> {
        open_lock_file(&self.folder.join("lock"), create)
    }

    /// Removes the folder and what is directly in it. Its `fuse` folder must be unmounted; nothing below a mount is touched.
    pub(crate) fn remove(&self) -> Result<(), SessionError> {
        // The lock goes last: a folder without lock would look as if its server had never started.
        let links = ["device", "device.new", "control", "nbd"];
        for name in
            links.into_iter().chain(["info.json", "info.json.new", "mount.json", "mount.json.new", "ublk", "ublk.new"])
        {
            remove_file(&self.folder.join(name))?;
        }
        match std::fs::remove_dir(self.fuse_folder()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(SessionError::io("remove", &self.fuse_folder())(error));
            }
            _ => {}
        }
        remove_file(&self.log())?;
        remove_file(&self.folder.join("lock"))?;
        match std::fs::remove_dir(&self.folder) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(SessionError::io("remove", &self.folder)(error))
            }
            _ => Ok(()),
        }
    }
}

fn remove_file(path: &Path) -> Result<(), SessionError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(SessionError::io("remove", path)(error)),
        _ => Ok(()),
    }
}

fn open_lock_file(path: &Path, create: bool) -> Result<File, SessionError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(create)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)
        .map_err(SessionError::io("open", path))
}

/// Writes `bytes` to `folder/name` so that a reader sees the old content or the new, never a part.
pub(crate) fn replace_file(folder: &Path, name: &str, bytes: &[u8]) -> Result<(), SessionError> {
    use std::io::Write as _;
    let mut fresh_name = OsString::from(name);
    fresh_name.push(".new");
    let fresh = folder.join(fresh_name);
    remove_file(&fresh)?;
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&fresh)
        .map_err(SessionError::io("create", &fresh))?;
    file.write_all(bytes).map_err(SessionError::io("write", &fresh))?;
    std::fs::rename(&fresh, folder.join(name)).map_err(SessionError::io("rename", &fresh))
}

/// Points the symlink `folder/name` at `target`, in one step.
pub(crate) fn replace_link(folder: &Path, name: &str, target: &Path) -> Result<(), SessionError> {
    let fresh = folder.join(format!("{name}.new"));
    remove_file(&fresh)?;
    std::os::unix::fs::symlink(target, &fresh).map_err(SessionError::io("make the link", &fresh))?;
    std::fs::rename(&fresh, folder.join(name)).map_err(SessionError::io("rename", &fresh))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn reason(name: &str) -> Option<&'static str> {
        match name.parse::<VolumeName>() {
            Err(SessionError::Name { reason, .. }) => Some(reason),
            _ => None,
        }
    }

    #[test]
    fn names_that_could_leave_the_run_directory_or_its_rules_are_refused() {
        for good in ["a", "home.2", "A_b-c", &"x".repeat(100)] {
            assert_eq!(reason(good), None, "{good}");
        }
        assert_eq!(reason(""), Some("it is empty"));
        assert_eq!(reason(&"x".repeat(101)), Some("it is longer than 100 characters"));
        for bad in [".", "..", ".lock", "-rf"] {
            assert_eq!(reason(bad), Some("it begins with a dot or a dash"), "{bad}");
        }
        for bad in ["a/b", "a b", "ä", "a\n", "a\0"] {
            assert_eq!(reason(bad), Some("only letters, digits, dot, underscore and dash are allowed"), "{bad}");
        }
    }

    #[test]
    fn a_run_directory_that_others_may_write_to_or_that_is_a_link_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let open = folder.path().join("open");
        std::fs::create_dir(&open).unwrap();
        std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o777)).unwrap();
        assert!(RunDir::at(&open).unwrap_err().to_string().contains("others may write to it (mode 777)"));
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(folder.path(), &link).unwrap();
        for link in [link.clone(), link.join(""), link.join(".")] {
            assert!(RunDir::at(&link).unwrap_err().to_string().contains("it is no directory"), "{}", link.display());
        }
        let fresh = folder.path().join("fresh");
        RunDir::at(&fresh).unwrap();
        assert_eq!(std::fs::metadata(&fresh).unwrap().mode() & 0o777, 0o700);
    }

    #[test]
    fn an_entry_is_listed_and_removed_whole() {
        let folder = tempfile::tempdir().unwrap();
        let run = RunDir::at(&folder.path().join("run")).unwrap();
        let entry = run.entry(&"vol".parse().unwrap());
        entry.create().unwrap();
        entry.lock_file(true).unwrap();
        replace_file(&entry.folder, "info.json", b"{}").unwrap();
        replace_link(&entry.folder, "device", Path::new("/dev/null")).unwrap();
        replace_link(&entry.folder, "device", Path::new("/dev/zero")).unwrap();
        assert_eq!(std::fs::read_link(entry.device()).unwrap(), Path::new("/dev/zero"));
        assert_eq!(run.entries().unwrap().len(), 1);
        entry.remove().unwrap();
        assert!(run.entries().unwrap().is_empty());
        entry.remove().unwrap();
    }
}
