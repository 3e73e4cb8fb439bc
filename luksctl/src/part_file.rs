//! An output file that appears under its name only when it is whole: written as `NAME.part` (mode 0600, never through a
//! symbolic link), flushed to disk, renamed. Dropped or interrupted before that, the part is removed.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use crate::failure::Failure;
use crate::interrupt::Interrupt;

/// A file being written aside.
pub(crate) struct PartFile {
    file: File,
    part: PathBuf,
    target: PathBuf,
    interrupt: Interrupt,
    finished: bool,
}

impl PartFile {
    /// Starts `target` aside. An existing `target` is refused unless `force`; what a killed run left behind is replaced.
    pub(crate) fn create(target: &Path, force: bool, interrupt: &Interrupt) -> Result<PartFile, Failure> {
        if target.is_dir() {
            return Err(Failure::wrong(format!("{}: is a folder", target.display())).with_hint("name a file in it"));
        }
        let found = target.symlink_metadata();
        // A rename would replace the node itself: a pipe, a device or a socket is written to by the shell.
        if found.as_ref().is_ok_and(|found| !found.is_file() && !found.is_symlink()) {
            return Err(Failure::wrong(format!("{}: is no regular file", target.display()))
                .with_hint(format!("write to standard output instead: `… - > {}`", target.display())));
        }
        if !force && found.is_ok() {
            return Err(Failure::busy(format!("{}: exists already", target.display()))
                .with_hint("choose another name, or add --force to replace it"));
        }
        let mut part = target.as_os_str().to_owned();
        part.push(".part");
        let part = PathBuf::from(part);
        remove_left_over(&part)?;
        interrupt.remove_on_signal(&part);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&part)
            .map_err(|error| Failure::from_open(&part, &error))?;
        Ok(PartFile { file, part, target: target.to_owned(), interrupt: interrupt.clone(), finished: false })
    }

    /// The file, to write to.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Makes the file durable and gives it its name.
    pub(crate) fn finish(mut self) -> Result<(), Failure> {
        let context = |what: &str, error: std::io::Error| Failure::from_write(what, &self.target, &error);
        self.file.sync_all().map_err(|error| context("flushing", error))?;
        std::fs::rename(&self.part, &self.target).map_err(|error| context("renaming the part to", error))?;
        self.interrupt.keep(&self.part);
        sync_folder(&self.target).map_err(|error| context("flushing the folder of", error))?;
        self.finished = true;
        Ok(())
    }
}

impl Drop for PartFile {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        self.interrupt.keep(&self.part);
        if let Err(error) = std::fs::remove_file(&self.part)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            log::warn!("could not remove {}: {error}", self.part.display());
        }
    }
}

/// Makes a new name in the folder of `path` durable.
pub(crate) fn sync_folder(path: &Path) -> std::io::Result<()> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    File::open(folder)?.sync_all()
}

/// Removes a regular `part` of an earlier, killed run; leaves anything else alone.
fn remove_left_over(part: &Path) -> Result<(), Failure> {
    match part.symlink_metadata() {
        Err(_) => Ok(()),
        Ok(found) if found.is_file() => {
            std::fs::remove_file(part).map_err(|error| Failure::from_write("removing", part, &error))
        }
        Ok(_) => Err(Failure::busy(format!("{}: is in the way and no regular file", part.display()))
            .with_hint("move it away, or choose another name")),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn appears_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("out");
        let interrupt = Interrupt::ignoring_signals();
        let part = PartFile::create(&target, false, &interrupt).unwrap();
        part.file().write_all(b"half").unwrap();
        assert!(!target.exists());
        drop(part);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "the part stayed");

        let part = PartFile::create(&target, false, &interrupt).unwrap();
        part.file().write_all(b"whole").unwrap();
        part.finish().unwrap();
        assert_eq!(std::fs::read(&target).unwrap(), b"whole");
        assert_eq!(target.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert!(PartFile::create(&target, false, &interrupt).is_err(), "an existing file was taken");
        assert!(PartFile::create(&target, true, &interrupt).is_ok());
        assert_eq!(std::fs::read(&target).unwrap(), b"whole", "a dropped part changed the target");
    }

    #[test]
    fn a_link_in_the_way_is_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let victim = folder.path().join("victim");
        std::fs::write(&victim, b"precious").unwrap();
        std::os::unix::fs::symlink(&victim, folder.path().join("out.part")).unwrap();
        let refused = PartFile::create(&folder.path().join("out"), false, &Interrupt::ignoring_signals());
        assert!(refused.is_err());
        assert_eq!(std::fs::read(&victim).unwrap(), b"precious");
    }
}
