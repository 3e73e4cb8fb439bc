//! The kernel's dm-crypt as a backend: a mapping that needs no process of ours beside it.
//!
//! * The volume is unlocked in the calling process; its key goes to the kernel as a `logon` key while a table is loaded
//!   and nowhere else.
//! * What is open stands in the kernel, not in a file: an entry of the registry whose mapping is gone is a leftover. The
//!   entry is written before its mapping is made and completed after it, so a killed `open` leaves nothing unknown.
//! * A mapping that cryptsetup made has no entry; it is found by its name and told by its UUID.
//!
//! Source: Documentation/admin-guide/device-mapper/dm-crypt.rst; luks2-format §7.

mod below;
mod change;
mod close;
mod errors;
mod open;
mod status;
mod suspend;
mod target;
mod unlock;

use std::fs::File;

use dmsetup::{DmError, Mapper, Mapping, MappingInfo, Name, Owner, Uuid};

use crate::registry::{Info, MappingRecord, claim};
use crate::run_dir::{Entry, VolumeName};
use crate::volume_server::still_registered;
use crate::{SessionError, registry};

pub(crate) use change::{refresh, resize};
pub(crate) use close::{clean, close, tidy};
use errors::session_error;
pub(crate) use open::{OpenFailure, open};
pub(crate) use status::{foreign_mappings, status};
pub(crate) use suspend::{resume, suspend};

/// A mapping, and what the kernel says about it.
#[derive(Debug)]
pub(crate) struct Found {
    mapping: Mapping,
    info: MappingInfo,
}

/// The mapping that a verb works on: one of ours, whose entry is held meanwhile, or one that another tool made.
#[derive(Debug)]
pub(crate) struct Subject {
    found: Found,
    ours: Option<Ours>,
}

#[derive(Debug)]
struct Ours {
    entry: Entry,
    info: Box<Info>,
    lock: File,
}

impl Subject {
    /// The mapping behind an entry of ours. Refused while another process works on it.
    pub(crate) fn ours(entry: &Entry, info: Box<Info>) -> Result<Subject, SessionError> {
        let busy = || SessionError::Busy {
            name: entry.name.to_string(),
            how: "another luksctl is just working on it".to_owned(),
        };
        let gone = || SessionError::NotOpen { name: entry.name.to_string() };
        let lock = match claim(entry) {
            Ok(lock) => lock,
            Err(SessionError::AlreadyOpen { .. }) => return Err(busy()),
            Err(SessionError::Io { .. }) if !entry.exists() => return Err(gone()),
            Err(error) => return Err(error),
        };
        let record = info.mapping.as_ref().ok_or_else(gone)?;
        let found = find_recorded(entry, record)?;
        match found.filter(|_| still_registered(&entry.folder, &lock)) {
            Some(found) => Ok(Subject { found, ours: Some(Ours { entry: entry.clone(), info, lock }) }),
            None => Err(gone()),
        }
    }

    /// The mapping `name` of a LUKS volume that has no entry of ours; `None` if there is no mapping of that name.
    pub(crate) fn foreign(name: &str) -> Result<Option<Subject>, SessionError> {
        let Some(found) = find_foreign(name)? else {
            return Ok(None);
        };
        match found.info.uuid.as_ref().map(Uuid::owner) {
            Some(Owner::Luks2 { .. } | Owner::Luks1 { .. }) => Ok(Some(Subject { found, ours: None })),
            _ => {
                let uuid = found.info.uuid.as_ref().map_or("none", Uuid::as_str);
                let targets = found.mapping.targets().map_err(|error| session_error(name, error))?;
                let kinds: Vec<String> = targets.into_iter().map(|target| target.kind).collect();
                let kinds = if kinds.is_empty() { "none".to_owned() } else { kinds.join(", ") };
                let what = format!("its UUID ({uuid}) is not that of a LUKS volume; targets: {kinds}");
                Err(SessionError::ForeignMapping { name: name.to_owned(), what })
            }
        }
    }

    fn name(&self) -> &str {
        self.found.info.name.as_str()
    }

    fn info(&self) -> Option<&Info> {
        self.ours.as_ref().map(|ours| &*ours.info)
    }
}

/// Why a volume cannot be opened through dm-crypt as `name`; `None` if nothing is known to stand in the way.
pub(crate) fn hindrance(name: &str, uuid: &str) -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("it needs root".to_owned());
    }
    let name: Name = match name.parse() {
        Ok(name) => name,
        Err(error) => return Some(error_words(&error)),
    };
    let named = Uuid::luks2(uuid, &name).map(drop);
    named.and_then(|()| Mapper::open().map(drop)).err().map(|error| error_words(&error))
}

fn error_words(error: &DmError) -> String {
    error.to_string()
}

/// Refuses a name that a mapping of somebody else has: `/dev/mapper/NAME` would be two things.
pub(crate) fn check_name_free(entry: &Entry) -> Result<(), SessionError> {
    let Some(found) = find_foreign(entry.name.as_str())? else {
        return Ok(());
    };
    let half_made = Info::read(entry).and_then(|info| info.mapping);
    if half_made.is_some_and(|record| is_of(&found, &record)) {
        return Ok(());
    }
    Err(SessionError::Busy {
        name: found.mapping.device_path().display().to_string(),
        how: "a mapping of that name is active already; it is not in this run directory".to_owned(),
    })
}

/// Takes away what killed processes left that stands in no entry: their semaphores for udev.
pub(crate) fn remove_orphans() {
    dmsetup::remove_orphaned_cookies();
}

/// Whether the mapping of a complete record is there and has a table.
pub(crate) fn is_active(entry: &Entry, record: &MappingRecord) -> Result<bool, SessionError> {
    Ok(find_recorded(entry, record)?.is_some_and(|found| found.info.live_table))
}

fn is_of(found: &Found, record: &MappingRecord) -> bool {
    found.info.uuid.as_ref().is_some_and(|uuid| uuid.as_str() == record.uuid)
}

fn find_recorded(entry: &Entry, record: &MappingRecord) -> Result<Option<Found>, SessionError> {
    let found = find(entry.name.as_str()).map_err(|error| session_error(entry.name.as_str(), error))?;
    Ok(found.filter(|found| is_of(found, record)))
}

/// As `find`, for somebody who may have no right to look: then there is nothing to see.
fn find_foreign(name: &str) -> Result<Option<Found>, SessionError> {
    match find(name) {
        Err(DmError::NoPermission { .. }) => Ok(None),
        other => other.map_err(|error| session_error(name, error)),
    }
}

fn find(name: &str) -> Result<Option<Found>, DmError> {
    let Ok(name) = name.parse::<Name>() else {
        return Ok(None);
    };
    let mapper = match Mapper::open() {
        Err(DmError::NoDeviceMapper) => return Ok(None),
        other => other?,
    };
    let found = mapper.mapping(&name).and_then(|mapping| Ok(Found { info: mapping.info()?, mapping }));
    match found {
        Err(DmError::NotActive { .. }) => Ok(None),
        other => other.map(Some),
    }
}

/// The name of an entry as device-mapper has it.
fn mapping_name(name: &VolumeName) -> Result<Name, DmError> {
    name.as_str().parse()
}

/// Takes an entry out of the registry, unless somebody else did and the name is given away again. `lock` is the caller's.
fn forget(entry: &Entry, lock: &File) -> Result<(), SessionError> {
    // The lock file goes before its folder does: without the registry lock, somebody could take the name in between.
    let registry = registry::RegistryLock::take(&entry.run_dir()?)?;
    let removed = if still_registered(&entry.folder, lock) { entry.remove() } else { Ok(()) };
    drop(registry);
    removed
}
