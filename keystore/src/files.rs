//! [`Files`]: the few operations on files that a store needs, and [`Folder`], which does them in a folder of mode 0700.
//!
//! Invariants: names are relative and have at most one slash; nothing follows a symbolic link; reading is bounded;
//! a new content is there whole or not at all ([`replace`]); what others could read or change is refused.
//!
//! What is assumed of the medium (the model in `tests/` takes it literally): a write is durable after [`Files::sync`] of
//! the file, a name after [`Files::sync_folder`]; before that either may be there or not, each by itself.

mod folder;

pub(crate) use folder::check_owner_and_mode;
pub use folder::{Folder, Patience};

use crate::Error;

/// What a file is called while its new content is not durable yet.
pub const NEW: &str = ".new";

/// The operations on files that a store needs.
pub trait Files {
    /// The content of file `name`, at most `limit_bytes`; `None` if there is none.
    ///
    /// # Errors
    /// [`Error::TooLarge`], [`Error::Mode`], [`Error::Owner`], [`Error::NotAFile`], [`Error::Io`].
    fn read(&self, name: &str, limit_bytes: usize) -> Result<Option<Vec<u8>>, Error>;

    /// The names of all files in sub-folder `folder` ("" is the folder itself), sorted; none if it is missing.
    ///
    /// # Errors
    /// [`Error::Full`] beyond [`crate::limits::FOLDER_FILES_MAX`], [`Error::Io`].
    fn list(&self, folder: &str) -> Result<Vec<String>, Error>;

    /// Makes sub-folder `folder` with mode 0700, if it is missing.
    ///
    /// # Errors
    /// [`Error::Io`].
    fn make_folder(&mut self, folder: &str) -> Result<(), Error>;

    /// Makes file `name` with mode 0600 and this content, or gives it this content; not durable.
    ///
    /// # Errors
    /// [`Error::Io`].
    fn write(&mut self, name: &str, content: &[u8]) -> Result<(), Error>;

    /// Makes the content of file `name` durable.
    ///
    /// # Errors
    /// [`Error::Io`].
    fn sync(&mut self, name: &str) -> Result<(), Error>;

    /// Gives file `from` the name `to`, in place of what is called so; not durable.
    ///
    /// # Errors
    /// [`Error::Io`].
    fn rename(&mut self, from: &str, to: &str) -> Result<(), Error>;

    /// Writes zeros over the content of file `name`, durably. A medium that copies on write keeps the old content.
    ///
    /// # Errors
    /// [`Error::Io`].
    fn overwrite(&mut self, name: &str) -> Result<(), Error>;

    /// Removes file `name`; not durable. A file that is not there is no error.
    ///
    /// # Errors
    /// [`Error::Io`].
    fn remove(&mut self, name: &str) -> Result<(), Error>;

    /// Makes the names in the sub-folder durable.
    ///
    /// # Errors
    /// [`Error::Io`].
    fn sync_folder(&mut self, folder: &str) -> Result<(), Error>;
}

/// The sub-folder of `name`, "" where it has none.
pub(crate) fn folder_of(name: &str) -> &str {
    name.rsplit_once('/').map_or("", |(folder, _)| folder)
}

/// Gives file `name` the new `content`: written aside, made durable, renamed. The old content is there until the new is.
///
/// # Errors
/// As [`Files`]; the file is then as it was, or has the new content.
pub fn replace(files: &mut dyn Files, name: &str, content: &[u8]) -> Result<(), Error> {
    let aside = format!("{name}{NEW}");
    let written = files.write(&aside, content).and_then(|()| files.sync(&aside));
    if let Err(error) = written {
        // A full disk: the half file goes. The error of the write is the one to tell.
        let _ = files.remove(&aside);
        return Err(error);
    }
    files.rename(&aside, name)?;
    files.sync_folder(folder_of(name))
}

/// Destroys file `name`: zeros over its content, then removes it, both durably.
///
/// # Errors
/// As [`Files`].
pub fn destroy(files: &mut dyn Files, name: &str) -> Result<(), Error> {
    files.overwrite(name)?;
    files.remove(name)?;
    files.sync_folder(folder_of(name))
}
