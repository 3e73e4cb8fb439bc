//! Units into their folder: what is there already stays, what is not ours is not touched, what the set has no longer goes.
//!
//! Each file is replaced whole (a new file, synced, renamed). Every file is looked at before the first is written, so that a
//! foreign one leaves the folder as it was.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use super::UnitFile;
use crate::{Trouble, VolumesError};

/// Longest unit file that is ours.
const FILE_BYTES_MAX: u64 = 64 << 10;
/// Most files of the folder that are looked at.
const FILES_MAX: usize = 65_536;

/// What an installation did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Installed {
    /// Files that are new or have another text now.
    pub written: Vec<PathBuf>,
    /// Files that were as they are to be.
    pub unchanged: Vec<PathBuf>,
    /// Files of ours that the set has no longer.
    pub removed: Vec<PathBuf>,
}

/// What [`install`] would do: nothing is written.
///
/// # Errors
/// As [`install`].
pub fn installed(files: &[UnitFile], folder: &Path) -> Result<Installed, VolumesError> {
    let mut done = Installed::default();
    for file in files {
        let path = folder.join(&file.path);
        match present(&path)? {
            Some(text) if text == file.text => done.unchanged.push(path),
            Some(text) if is_ours(&text, files) => done.written.push(path),
            Some(_) => return Err(foreign(&path)),
            None => done.written.push(path),
        }
    }
    done.removed = left_over(files, folder)?;
    Ok(done)
}

/// Puts `files` into `folder`, which is made if it is missing, and removes what an earlier run wrote for the same
/// application and the set has no longer.
///
/// # Errors
/// [`VolumesError::Refused`] for a file that is not ours: nothing was written then; [`VolumesError::Io`].
pub fn install(files: &[UnitFile], folder: &Path) -> Result<Installed, VolumesError> {
    let planned = installed(files, folder)?;
    for file in files {
        let path = folder.join(&file.path);
        if planned.written.contains(&path) {
            write(&path, &file.text)?;
        }
    }
    for path in &planned.removed {
        fs::remove_file(path).map_err(VolumesError::io("remove", path))?;
    }
    Ok(planned)
}

/// What came of one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// It is new, or has another text now.
    Written,
    /// It was as it is to be.
    Unchanged,
}

/// Writes one file that begins with the line `mark`, over nothing or over an earlier one that begins so.
///
/// # Errors
/// [`VolumesError::Refused`] for another file in its place, [`VolumesError::Io`].
pub fn put(path: &Path, text: &str, mark: &str) -> Result<Put, VolumesError> {
    match present(path)? {
        Some(there) if there == text => return Ok(Put::Unchanged),
        Some(there) if !there.starts_with(mark) => return Err(foreign(path)),
        _ => {}
    }
    write(path, text)?;
    Ok(Put::Written)
}

/// A file that stands where ours would, and that we did not write.
fn foreign(path: &Path) -> VolumesError {
    let mend = format!("look at {}, move it away, then again", path.display());
    VolumesError::refused(
        Trouble::Busy,
        path.display().to_string(),
        "is not a file that luksctl wrote; it stays as it is",
        mend,
    )
}

/// Whether `text` begins as the files of the same application do.
fn is_ours(text: &str, files: &[UnitFile]) -> bool {
    let first = |text: &str| text.lines().next().unwrap_or_default().to_owned();
    files.first().is_some_and(|file| first(text) == first(&file.text))
}

/// The text of a file that is there; a link (a masked unit is one), a folder or something huge is somebody else's.
fn present(path: &Path) -> Result<Option<String>, VolumesError> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if !metadata.is_file() || metadata.len() > FILE_BYTES_MAX => return Err(foreign(path)),
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(VolumesError::io("look at", path)(error)),
    }
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(VolumesError::io("read", path))?;
    file.take(FILE_BYTES_MAX).read_to_end(&mut bytes).map_err(VolumesError::io("read", path))?;
    String::from_utf8(bytes).map(Some).map_err(|_| foreign(path))
}

/// Our files that are not among `files`: in the folder itself and in the drop-in folders of `files`.
fn left_over(files: &[UnitFile], folder: &Path) -> Result<Vec<PathBuf>, VolumesError> {
    let mut found = Vec::new();
    for place in [folder.to_path_buf(), folder.join("docker.service.d")] {
        let entries = match fs::read_dir(&place) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) => return Err(VolumesError::io("read", place)(error)),
        };
        for entry in entries.take(FILES_MAX).flatten() {
            let path = entry.path();
            let is_planned = files.iter().any(|file| folder.join(&file.path) == path);
            // What cannot be read is none of ours.
            if !is_planned && matches!(present(&path), Ok(Some(text)) if is_ours(&text, files)) {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

fn write(path: &Path, text: &str) -> Result<(), VolumesError> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(folder).map_err(VolumesError::io("make", folder))?;
    let mut part = path.as_os_str().to_owned();
    part.push(format!(".{}.part", std::process::id()));
    let part = PathBuf::from(part);
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o644).open(&part)?;
        file.set_permissions(fs::Permissions::from_mode(0o644))?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&part, path)?;
        File::open(folder)?.sync_all()
    })();
    written.map_err(|error| {
        if let Err(other) = fs::remove_file(&part)
            && other.kind() != ErrorKind::NotFound
        {
            log::warn!("could not remove {}: {other}", part.display());
        }
        VolumesError::io("write", path)(error)
    })
}
