//! [`Folder`]: [`Files`] in a folder of the file system, under a lock.

use super::Files;
use crate::Error;
use crate::limits::FOLDER_FILES_MAX;
use rustix::fs::{AtFlags, Dir, FileType, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The file that is locked; it stays empty.
const LOCK: &str = ".lock";
/// How long to wait between two tries for the lock.
const LOCK_PAUSE: Duration = Duration::from_millis(20);
const FOLDER_MODE: Mode = Mode::RWXU;
const FILE_MODE: Mode = Mode::RUSR.union(Mode::WUSR);

/// How long to wait for another command that has the folder.
pub type Patience = Duration;

/// A folder that belongs to us or root and that nobody else can enter, locked for one process at a time.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    fd: OwnedFd,
    _lock: OwnedFd,
}

impl Folder {
    /// Opens the folder at `path` and locks it (`flock` on its `.lock`), exclusively.
    ///
    /// # Errors
    /// [`Error::Busy`] if another process keeps the lock for longer than `patience`; [`Error::Mode`], [`Error::Owner`],
    /// [`Error::NotAFile`], [`Error::Io`].
    pub fn open(path: &Path, patience: Patience) -> Result<Folder, Error> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let shown = path.display();
        let fd = rustix::fs::open(path, flags, Mode::empty()).map_err(Error::io(format!("open the folder {shown}")))?;
        check_ownership(fd.as_fd(), path, 0o077, 0o700)?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let lock = rustix::fs::openat(&fd, LOCK, flags, FILE_MODE);
        let lock = lock.map_err(Error::io(format!("open the lock of {shown}")))?;
        let end = Instant::now() + patience;
        loop {
            match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Folder { path: path.to_owned(), fd, _lock: lock }),
                Err(Errno::INTR) => {}
                Err(Errno::WOULDBLOCK) if Instant::now() < end => std::thread::sleep(LOCK_PAUSE),
                Err(Errno::WOULDBLOCK) => return Err(Error::Busy { path: path.to_owned() }),
                Err(errno) => return Err(Error::io(format!("lock {shown}"))(errno)),
            }
        }
    }

    /// Makes the folder with mode 0700 if it is missing (its parent must be there), and opens it.
    ///
    /// # Errors
    /// As [`Folder::open`].
    pub fn create(path: &Path, patience: Patience) -> Result<Folder, Error> {
        let what = || format!("make the folder {}", path.display());
        match rustix::fs::mkdir(path, FOLDER_MODE) {
            Ok(()) => {
                let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
                let synced = std::fs::File::open(parent).and_then(|parent| parent.sync_all());
                synced.map_err(Error::io(what()))?;
            }
            Err(Errno::EXIST) => {}
            Err(errno) => return Err(Error::io(what())(errno)),
        }
        Folder::open(path, patience)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn what(&self, verb: &str, name: &str) -> String {
        format!("{verb} {}", self.path.join(name).display())
    }

    fn subfolder(&self, folder: &str) -> Result<OwnedFd, Errno> {
        let name = if folder.is_empty() { "." } else { folder };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        rustix::fs::openat(&self.fd, name, flags, Mode::empty())
    }

    fn file(&self, verb: &str, name: &str, flags: OFlags) -> Result<std::fs::File, Error> {
        let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NOCTTY | OFlags::NONBLOCK;
        let opened = rustix::fs::openat(&self.fd, name, flags, FILE_MODE);
        opened.map(std::fs::File::from).map_err(Error::io(self.what(verb, name)))
    }
}

impl Files for Folder {
    fn read(&self, name: &str, limit_bytes: usize) -> Result<Option<Vec<u8>>, Error> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NOCTTY | OFlags::NONBLOCK;
        let fd = match rustix::fs::openat(&self.fd, name, flags, Mode::empty()) {
            Err(Errno::NOENT) => return Ok(None),
            opened => opened.map_err(Error::io(self.what("open", name)))?,
        };
        check_owner_and_mode(fd.as_fd(), &self.path.join(name), 0o077)?;
        let mut content = Vec::new();
        let mut bounded = std::fs::File::from(fd).take(limit_bytes as u64 + 1);
        bounded.read_to_end(&mut content).map_err(Error::io(self.what("read", name)))?;
        if content.len() > limit_bytes {
            return Err(Error::TooLarge { file: name.to_owned(), limit_bytes });
        }
        Ok(Some(content))
    }

    fn list(&self, folder: &str) -> Result<Vec<String>, Error> {
        let fd = match self.subfolder(folder) {
            Err(Errno::NOENT) => return Ok(Vec::new()),
            opened => opened.map_err(Error::io(self.what("open", folder)))?,
        };
        let entries = Dir::new(fd).map_err(Error::io(self.what("list", folder)))?;
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(Error::io(self.what("list", folder)))?;
            // No file of ours has a name that is not ASCII.
            let Ok(name) = entry.file_name().to_str() else { continue };
            if name.starts_with('.') || entry.file_type() == FileType::Directory {
                continue;
            }
            if names.len() == FOLDER_FILES_MAX {
                return Err(Error::Full { what: "files", limit: FOLDER_FILES_MAX });
            }
            names.push(name.to_owned());
        }
        names.sort();
        Ok(names)
    }

    fn make_folder(&mut self, folder: &str) -> Result<(), Error> {
        match rustix::fs::mkdirat(&self.fd, folder, FOLDER_MODE) {
            Err(Errno::EXIST) => Ok(()),
            made => made.map_err(Error::io(self.what("make the folder", folder))),
        }
    }

    fn write(&mut self, name: &str, content: &[u8]) -> Result<(), Error> {
        let mut file = self.file("write", name, OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC)?;
        check_owner_and_mode(file.as_fd(), &self.path.join(name), 0o077)?;
        file.write_all(content).map_err(Error::io(self.what("write", name)))
    }

    fn sync(&mut self, name: &str) -> Result<(), Error> {
        self.file("sync", name, OFlags::RDONLY)?.sync_all().map_err(Error::io(self.what("sync", name)))
    }

    fn rename(&mut self, from: &str, to: &str) -> Result<(), Error> {
        rustix::fs::renameat(&self.fd, from, &self.fd, to).map_err(Error::io(self.what("rename", from)))
    }

    fn overwrite(&mut self, name: &str) -> Result<(), Error> {
        let mut file = self.file("overwrite", name, OFlags::WRONLY)?;
        check_owner_and_mode(file.as_fd(), &self.path.join(name), 0o077)?;
        let len_bytes = file.metadata().map_err(Error::io(self.what("overwrite", name)))?.len();
        let mut zeros = std::io::Read::take(std::io::repeat(0), len_bytes);
        let written = std::io::copy(&mut zeros, &mut file).and_then(|_| file.sync_all());
        written.map_err(Error::io(self.what("overwrite", name)))
    }

    fn remove(&mut self, name: &str) -> Result<(), Error> {
        match rustix::fs::unlinkat(&self.fd, name, AtFlags::empty()) {
            Err(Errno::NOENT) => Ok(()),
            removed => removed.map_err(Error::io(self.what("remove", name))),
        }
    }

    fn sync_folder(&mut self, folder: &str) -> Result<(), Error> {
        let synced = self.subfolder(folder).and_then(rustix::fs::fsync);
        synced.map_err(Error::io(self.what("sync the folder", folder)))
    }
}

/// Refuses what belongs to somebody else than us or root, or has one of the bits of `forbidden`; the size in bytes.
fn check_ownership(fd: BorrowedFd<'_>, path: &Path, forbidden: u32, wanted: u32) -> Result<u64, Error> {
    let stat = rustix::fs::fstat(fd).map_err(Error::io(format!("look at {}", path.display())))?;
    let user = rustix::process::geteuid().as_raw();
    if stat.st_uid != user && stat.st_uid != 0 {
        return Err(Error::Owner { path: path.to_owned(), owner: stat.st_uid, user });
    }
    let mode = stat.st_mode & 0o7777;
    if mode & forbidden != 0 {
        return Err(Error::Mode { path: path.to_owned(), mode, wanted });
    }
    Ok(u64::try_from(stat.st_size).unwrap_or(0))
}

/// The same for a regular file, which nothing else passes as.
pub(crate) fn check_owner_and_mode(fd: BorrowedFd<'_>, path: &Path, forbidden: u32) -> Result<u64, Error> {
    let stat = rustix::fs::fstat(fd).map_err(Error::io(format!("look at {}", path.display())))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(Error::NotAFile { path: path.to_owned() });
    }
    check_ownership(fd, path, forbidden, 0o600)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::{destroy, replace};
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    fn store() -> (tempfile::TempDir, PathBuf) {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("keys");
        (parent, path)
    }

    #[test]
    fn files_are_0600_in_a_folder_of_0700_and_are_replaced_whole() {
        let (_parent, path) = store();
        let mut folder = Folder::create(&path, Duration::ZERO).unwrap();
        folder.make_folder("secrets").unwrap();
        for name in ["a.key", "secrets/b.sealed"] {
            replace(&mut folder, name, b"one").unwrap();
            replace(&mut folder, name, b"two").unwrap();
            assert_eq!(folder.read(name, 3).unwrap().unwrap(), b"two");
            assert!(matches!(folder.read(name, 2), Err(Error::TooLarge { .. })));
            assert_eq!(fs::metadata(path.join(name)).unwrap().permissions().mode() & 0o7777, 0o600);
        }
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o700);
        assert_eq!(
            (folder.list("").unwrap(), folder.list("secrets").unwrap()),
            (vec!["a.key".into()], vec!["b.sealed".into()])
        );
        let second = fs::hard_link(path.join("a.key"), path.join("again"));
        second.unwrap();
        destroy(&mut folder, "a.key").unwrap();
        assert_eq!(folder.read("a.key", 3).unwrap(), None);
        assert_eq!(fs::read(path.join("again")).unwrap(), [0; 3], "the content is gone, not only the name");
    }

    #[test]
    fn what_others_can_reach_is_refused() {
        let (_parent, path) = store();
        let folder = Folder::create(&path, Duration::ZERO).unwrap();
        fs::write(path.join("open"), "x").unwrap();
        fs::set_permissions(path.join("open"), fs::Permissions::from_mode(0o644)).unwrap();
        let error = folder.read("open", 10).unwrap_err();
        assert!(error.to_string().contains("chmod 600"), "{error}");
        std::os::unix::fs::symlink(path.join("open"), path.join("link")).unwrap();
        assert!(matches!(folder.read("link", 10), Err(Error::Io { .. })));
        fs::create_dir(path.join("sub")).unwrap();
        assert!(matches!(folder.read("sub", 10), Err(Error::NotAFile { .. })));
        drop(folder);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o750)).unwrap();
        let error = Folder::open(&path, Duration::ZERO).unwrap_err();
        assert!(error.to_string().contains("chmod 700"), "{error}");
    }

    #[test]
    fn a_second_command_waits_and_is_then_told() {
        let (_parent, path) = store();
        let first = Folder::create(&path, Duration::ZERO).unwrap();
        assert!(matches!(Folder::open(&path, Duration::from_millis(30)), Err(Error::Busy { .. })));
        let waiting = std::thread::spawn({
            let path = path.clone();
            move || Folder::open(&path, Duration::from_secs(60)).map(drop)
        });
        drop(first);
        waiting.join().unwrap().unwrap();
    }
}
