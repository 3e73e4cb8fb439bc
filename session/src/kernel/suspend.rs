//! Suspend and resume of a mapping: the key is wiped from the kernel and comes back only with a passphrase.

use dmsetup::SuspendOptions;
use secret::Secret;

use super::Subject;
use super::errors::session_error;
use super::unlock::Mapped;
use crate::suspend::{sync_device, sync_file_system};
use crate::{Failure, FailureKind, SessionError, UnlockAgain, mount_table};

/// Writes back what the kernel holds, ends the I/O and wipes the key from the kernel.
pub(crate) fn suspend(subject: &Subject) -> Result<(), SessionError> {
    let (mapping, name) = (&subject.found.mapping, subject.name());
    // What another tool made and no key can bring back must not be suspended.
    let live = mapping.table().map_err(|error| session_error(name, error))?;
    if subject.found.info.suspended && super::status::key_is_wiped(&live) {
        let what = format!("{name} is suspended already");
        return Err(SessionError::Refused(Failure::new(FailureKind::State, what)));
    }
    if !subject.found.info.suspended {
        let points = mount_table::points_of_device(&mapping.device_path()).unwrap_or_default();
        let mut synced: Vec<_> = points.iter().map(|point| sync_file_system(point)).collect();
        synced.push(sync_device(&mapping.device_path()));
        if let Some(reason) = synced.into_iter().find_map(Result::err) {
            return Err(SessionError::NotSynced { name: name.to_owned(), reason });
        }
    }
    let options = SuspendOptions { wipe_key: true, ..SuspendOptions::default() };
    mapping.suspend(options).map_err(|error| session_error(name, error))
}

/// Gives the kernel its key back, if `passphrase` opens the header of this very volume, and lets I/O go on.
pub(crate) fn resume(subject: &Subject, passphrase: &Secret, again: &UnlockAgain) -> Result<(), SessionError> {
    let name = subject.name();
    if !subject.found.info.suspended {
        let what = format!("{name} is not suspended");
        return Err(SessionError::Refused(Failure::new(FailureKind::State, what)));
    }
    let mapped = Mapped::read(subject, again)?;
    let (unlocked, target) = mapped.unlock(passphrase)?;
    let key = (target.key.len_bytes() > 0).then(|| (&target.key, unlocked.key.secret()));
    subject.found.mapping.resume(key).map_err(|error| session_error(name, error))
}
