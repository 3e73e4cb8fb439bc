//! [`MasterFile`]: the master secret in a file that only its owner can read.
//!
//! The whole file is the secret. What it protects against when it lies on the disk of the images: nothing but the loss of a
//! single sealed file; `docs/keystore.md` says so.

use super::{Master, MasterSource, random_secret};
use crate::Error;
use crate::files::check_owner_and_mode;
use crate::limits::{MASTER_BYTES_MAX, MASTER_BYTES_MIN};
use rustix::fs::{Mode, OFlags};
use secret::{KeyDescriptor, KeyProvider, KeyRequest, Purpose, Secret};
use std::io::Write;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

/// A file of mode 0600 or 0400.
#[derive(Clone, Debug)]
pub struct MasterFile {
    path: PathBuf,
}

impl MasterFile {
    /// The file at `path`.
    pub fn new(path: impl Into<PathBuf>) -> MasterFile {
        MasterFile { path: path.into() }
    }

    /// Makes the file with 64 random bytes, mode 0600, durably. It must not exist.
    ///
    /// # Errors
    /// [`Error::Exists`], [`Error::Io`]; a file that could not be written whole is removed.
    pub fn create(&self) -> Result<Master, Error> {
        let master = Master::new(random_secret(64)?, &self.describe())?;
        self.write(&master)?;
        Ok(master)
    }

    /// Writes `master` to the file, which must not exist: mode 0600, durably.
    ///
    /// # Errors
    /// [`Error::Exists`], [`Error::Io`]; a file that could not be written whole is removed.
    pub fn write(&self, master: &Master) -> Result<(), Error> {
        let path = self.path.display();
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let opened = rustix::fs::open(&self.path, flags, Mode::RUSR | Mode::WUSR);
        if matches!(opened, Err(rustix::io::Errno::EXIST)) {
            return Err(Error::Exists { file: path.to_string() });
        }
        let mut file = std::fs::File::from(opened.map_err(Error::io(format!("make {path}")))?);
        let written = file.write_all(master.secret().expose()).and_then(|()| file.sync_all());
        if let Err(source) = written {
            // Half a master secret is worse than none; the error of the write is the one to tell.
            let _ = std::fs::remove_file(&self.path);
            return Err(Error::Io { what: format!("write {path}"), source });
        }
        let folder = self.path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let synced = std::fs::File::open(folder).and_then(|folder| folder.sync_all());
        synced.map_err(Error::io(format!("sync the folder of {path}")))
    }
}

impl MasterSource for MasterFile {
    fn describe(&self) -> String {
        format!("the file {}", self.path.display())
    }

    fn fetch(&mut self) -> Result<Master, Error> {
        let what = format!("open {}", self.path.display());
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
        let file = match rustix::fs::open(&self.path, flags, Mode::empty()) {
            Err(rustix::io::Errno::NOENT) => return Err(Error::NoMaster { what: self.describe() }),
            opened => opened.map_err(Error::io(what))?,
        };
        let size_bytes = check_owner_and_mode(file.as_fd(), &self.path, 0o077)?;
        let got_bytes = usize::try_from(size_bytes).unwrap_or(usize::MAX);
        if !(MASTER_BYTES_MIN..=MASTER_BYTES_MAX).contains(&got_bytes) {
            let (least_bytes, limit_bytes) = (MASTER_BYTES_MIN, MASTER_BYTES_MAX);
            return Err(Error::MasterSize { what: self.describe(), got_bytes, least_bytes, limit_bytes });
        }
        // The same inode that was checked, read by the one reader of key files.
        Master::new(read_whole(KeyDescriptor::new(file), &self.path)?, &self.describe())
    }
}

fn read_whole(mut source: KeyDescriptor, path: &Path) -> Result<Secret, Error> {
    let name = path.display().to_string();
    let request = KeyRequest { volume: &name, purpose: Purpose::Unlock, attempt: 1 };
    source.key_for(&request)?.ok_or(Error::NoMaster { what: name })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn what_was_created_is_fetched() {
        let folder = tempfile::tempdir().unwrap();
        let mut file = MasterFile::new(folder.path().join("master.key"));
        assert!(matches!(file.fetch(), Err(Error::NoMaster { .. })));
        let made = file.create().unwrap();
        assert!(file.fetch().unwrap().secret().ct_eq(made.secret().expose()));
        assert_eq!(fs::metadata(folder.path().join("master.key")).unwrap().permissions().mode() & 0o7777, 0o600);
        assert!(matches!(file.create(), Err(Error::Exists { .. })));
    }

    #[test]
    fn a_file_that_others_can_read_is_refused_with_the_chmod_that_mends_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("master.key");
        let mut file = MasterFile::new(&path);
        file.create().unwrap();
        for mode in [0o640, 0o604, 0o620, 0o602, 0o610] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let error = file.fetch().unwrap_err();
            assert!(error.to_string().contains(&format!("chmod 600 {}", path.display())), "{mode:o}: {error}");
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).unwrap();
        file.fetch().unwrap();
    }

    #[test]
    fn too_short_too_long_and_folders_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m");
        for len_bytes in [0, 31, 8193] {
            fs::write(&path, vec![7; len_bytes]).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            let error = MasterFile::new(&path).fetch().unwrap_err();
            assert!(matches!(error, Error::MasterSize { got_bytes, .. } if got_bytes == len_bytes), "{error}");
        }
        assert!(matches!(MasterFile::new(folder.path()).fetch(), Err(Error::NotAFile { .. })));
    }
}
