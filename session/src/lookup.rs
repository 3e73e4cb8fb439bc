//! From a name to what is open under it: a server of ours, a mapping of ours, or a mapping that another tool made.

use crate::SessionError;
use crate::choice::FUSE;
use crate::kernel::{self, Subject};
use crate::registry::{Behind, Info, behind};
use crate::run_dir::{Entry, RunDir, VolumeName};

/// What is open under a name.
#[derive(Debug)]
pub(crate) enum OpenVolume {
    /// A server of ours serves it.
    Served(Entry),
    /// The kernel has it as a mapping.
    Mapped(Subject),
}

/// What is open as `name`. An entry whose mapping another tool closed is taken away on the way.
pub(crate) fn open_volume(run: &RunDir, name: &str) -> Result<OpenVolume, SessionError> {
    let entry = match entry_or_foreign(run, name)? {
        Named::Entry(entry) => entry,
        Named::Foreign(subject) => return Ok(OpenVolume::Mapped(subject)),
    };
    kernel::tidy(run, &entry)?;
    match behind(&entry)? {
        Behind::Server => Ok(OpenVolume::Served(entry)),
        Behind::Mapping(info) => Subject::ours(&entry, info).map(OpenVolume::Mapped),
        Behind::Opening => Err(being_opened(&entry)),
        Behind::Dead => {
            Err(SessionError::Leftover { name: entry.name.to_string(), what: entry.folder.display().to_string() })
        }
        Behind::Nothing => foreign(name),
    }
}

pub(crate) fn being_opened(entry: &Entry) -> SessionError {
    SessionError::Busy { name: entry.name.to_string(), how: "it is just being opened".to_owned() }
}

/// The backend of an entry that a server serves, as reports name it.
pub(crate) fn served_by(entry: &Entry) -> String {
    Info::read(entry).map_or_else(|| FUSE.to_owned(), |info| info.backend)
}

/// What a name stands for before anybody has looked.
pub(crate) enum Named {
    Entry(Entry),
    /// A name that only another tool can have given.
    Foreign(Subject),
}

/// An entry for every name that one can have; for another name, a mapping that has it.
pub(crate) fn entry_or_foreign(run: &RunDir, name: &str) -> Result<Named, SessionError> {
    match name.parse::<VolumeName>() {
        Ok(name) => Ok(Named::Entry(run.entry(&name))),
        Err(error) => Subject::foreign(name)?.map(Named::Foreign).ok_or(error),
    }
}

/// The mapping `name` of another tool, or that there is none.
fn foreign(name: &str) -> Result<OpenVolume, SessionError> {
    let not_open = || SessionError::NotOpen { name: name.to_owned() };
    Subject::foreign(name)?.map(OpenVolume::Mapped).ok_or_else(not_open)
}
