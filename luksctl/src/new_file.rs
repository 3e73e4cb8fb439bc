//! A small file that must not exist yet: mode 0600, never through a link, durable before it counts; gone again if it could
//! not be written whole.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use crate::failure::Failure;
use crate::part_file::sync_folder;

/// A file that is made, or not at all.
pub(crate) struct NewFile;

impl NewFile {
    /// Makes `path` with these bytes.
    pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(0o600);
        let mut file = options.open(path).map_err(|error| match error.kind() {
            std::io::ErrorKind::AlreadyExists => Failure::busy(format!("{}: exists already", path.display()))
                .with_hint("choose another name; nothing is overwritten"),
            _ => Failure::from_open(path, &error),
        })?;
        let written = file.write_all(bytes).and_then(|()| file.sync_all()).and_then(|()| sync_folder(path));
        written.map_err(|error| {
            if let Err(other) = std::fs::remove_file(path) {
                log::warn!("could not remove {}: {other}", path.display());
            }
            Failure::from_write("writing", path, &error)
        })
    }
}
