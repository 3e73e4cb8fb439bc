//! The images of the set, looked at in this process: which container one holds, and whether a key opens it.
//!
//! Invariant: nothing here writes. What is no regular file and no block device is refused before it is opened.

use std::path::Path;
use std::sync::Arc;

use block::{Direct, FileDisk, OpenMode};
use luks::{AnyContainer, AnyHeader, Error, Limits, UnlockRequest};
use secret::Secret;
use session::SystemEnv;
use uuid::Uuid;

use crate::VolumesError;

/// A container on a file or device.
pub(crate) type FileContainer = AnyContainer<Arc<FileDisk>, Arc<FileDisk>>;

/// Opens the file or device, for others to use as well.
pub(crate) fn disk(path: &Path, read_only: bool) -> Result<Arc<FileDisk>, VolumesError> {
    let mode = OpenMode { read_only, direct: Direct::Never, exclusive: false };
    let disk = FileDisk::open(path, &mode);
    disk.map(Arc::new).map_err(|source| VolumesError::Block { path: path.to_owned(), source })
}

/// For `map_err` of what was done with the header at `path`.
pub(crate) fn of_luks(path: &Path) -> impl Fn(Error) -> VolumesError {
    move |source| VolumesError::Luks { path: path.to_owned(), source }
}

/// The header, or none where there is no LUKS container.
pub(crate) fn header(path: &Path) -> Result<Option<AnyHeader>, VolumesError> {
    match luks::load_any(&disk(path, true)?, &Limits::default()) {
        Ok(header) => Ok(Some(header)),
        Err(Error::NotLuks) => Ok(None),
        Err(error) => Err(of_luks(path)(error)),
    }
}

/// The UUID of the container, if it is one.
pub(crate) fn uuid(path: &Path) -> Result<Option<Uuid>, VolumesError> {
    let header = header(path)?;
    Ok(header.and_then(|header| Uuid::parse_str(&header.uuid()).ok()))
}

/// The container at `path`.
pub(crate) fn container(path: &Path, read_only: bool) -> Result<FileContainer, VolumesError> {
    let disk = disk(path, read_only)?;
    AnyContainer::open(Arc::clone(&disk), disk, Limits::default()).map_err(of_luks(path))
}

/// Whether a keyslot takes `key` and a digest accepts what is in it.
pub(crate) fn opens(path: &Path, key: &Secret) -> Result<bool, VolumesError> {
    match container(path, true)?.unlock(&SystemEnv.env(), &UnlockRequest::default(), key) {
        Ok(_) => Ok(true),
        Err(Error::NoKey { .. }) => Ok(false),
        Err(error) => Err(of_luks(path)(error)),
    }
}
