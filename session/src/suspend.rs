//! Suspend and resume, seen from the client.
//!
//! Suspending first writes back what the kernel holds for the device, because afterwards nothing gets through: the file
//! system above is synced, then the device itself. Both happen in the client, so that the server never waits for itself.

use std::fs::File;
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;
use std::time::Duration;

use secret::Secret;

use crate::client::Client;
use crate::lookup::{OpenVolume, open_volume, served_by};
use crate::protocol::{Reply, Request};
use crate::registry::{Liveness, liveness};
use crate::run_dir::{Entry, RunDir};
use crate::status::status;
use crate::{FailureKind, SessionError, UnlockAgain, kernel};

const CONNECT_WAIT: Duration = Duration::from_secs(10);
/// Requests inside the volume end first; a slow disk may take its time.
const SUSPEND_WAIT: Duration = Duration::from_secs(300);
const RESUME_WAIT: Duration = Duration::from_secs(1800);

/// Stops the I/O of `name` and wipes its keys from memory. I/O then waits until [`resume`].
///
/// # Errors
/// [`SessionError::NotOpen`], [`SessionError::NotSynced`] if the kernel could not write back what it had cached, and
/// [`SessionError::Refused`] if it is suspended already or cannot be flushed.
pub fn suspend(run: &RunDir, name: &str) -> Result<(), SessionError> {
    let entry = match open_volume(run, name)? {
        OpenVolume::Served(entry) => entry,
        OpenVolume::Mapped(subject) => return kernel::suspend(&subject),
    };
    let now = status(run, name)?;
    if now.state == crate::State::Open {
        let mut synced: Vec<_> = now.mount_points.iter().map(|point| sync_file_system(point)).collect();
        synced.push(sync_device(&entry.device()));
        if let Some(reason) = synced.into_iter().find_map(Result::err) {
            return Err(SessionError::NotSynced { name: entry.name.to_string(), reason });
        }
    }
    let mut client = connect(&entry)?;
    expect_done(&entry, client.call(Request::Suspend, None, SUSPEND_WAIT)?)
}

/// Unlocks the suspended volume `name` again with `passphrase`; waiting I/O goes on. A server knows its header and limits.
///
/// # Errors
/// [`SessionError::NoKey`] for a wrong passphrase, [`SessionError::Refused`] if the volume is not suspended or the image
/// no longer is the one that was opened.
pub fn resume(run: &RunDir, name: &str, passphrase: &Secret, again: &UnlockAgain) -> Result<(), SessionError> {
    let entry = match open_volume(run, name)? {
        OpenVolume::Served(entry) => entry,
        OpenVolume::Mapped(subject) => return kernel::resume(&subject, passphrase, again),
    };
    if let Some(what) = again.option_in_use() {
        return Err(SessionError::NotOnBackend { name: entry.name.to_string(), backend: served_by(&entry), what });
    }
    let mut client = connect(&entry)?;
    let request = match &again.policy {
        None => Request::Resume,
        Some(policy) => Request::ResumeUnder { policy: Box::new(policy.into()) },
    };
    match client.call(request, Some(passphrase), RESUME_WAIT) {
        Err(SessionError::Refused(failure)) if failure.kind == FailureKind::NoKey => {
            Err(SessionError::NoKey { tries: 1 })
        }
        other => expect_done(&entry, other?),
    }
}

pub(crate) fn connect(entry: &Entry) -> Result<Client, SessionError> {
    match liveness(entry)? {
        Liveness::Absent => Err(SessionError::NotOpen { name: entry.name.to_string() }),
        Liveness::Dead => {
            Err(SessionError::Leftover { name: entry.name.to_string(), what: entry.folder.display().to_string() })
        }
        Liveness::Live => Client::connect(entry, CONNECT_WAIT),
    }
}

fn expect_done(entry: &Entry, reply: Reply) -> Result<(), SessionError> {
    match reply {
        Reply::Done => Ok(()),
        other => Err(unexpected(entry, &other)),
    }
}

pub(crate) fn unexpected(entry: &Entry, reply: &Reply) -> SessionError {
    SessionError::Protocol { name: entry.name.to_string(), what: format!("unexpected {reply:?}") }
}

/// Writes back what the kernel caches for the file system on `point`; see [`sync_device`].
pub(crate) fn sync_file_system(point: &Path) -> Result<(), String> {
    match File::open(point) {
        Ok(folder) => rustix::fs::syncfs(&folder).map_err(|errno| not_written(point, &errno.into())),
        Err(error) => {
            log::warn!("cannot sync the file system on {}: {error}", point.display());
            Ok(())
        }
    }
}

/// Writes back what the kernel caches for the device. Linux tells of a page that it could not write and dropped only here,
/// and once: the error must not be lost. A device that cannot be opened has been told of elsewhere.
pub(crate) fn sync_device(device: &Path) -> Result<(), String> {
    if std::fs::metadata(device).is_ok_and(|metadata| metadata.file_type().is_socket()) {
        // The kernel caches nothing for it; who is connected flushes what he wants to keep.
        return Ok(());
    }
    match File::open(device) {
        Ok(node) => node.sync_all().map_err(|error| not_written(device, &error)),
        Err(error) => {
            log::warn!("cannot sync {}: {error}", device.display());
            Ok(())
        }
    }
}

fn not_written(what: &Path, error: &std::io::Error) -> String {
    format!("the kernel could not write back all that it had cached for {}: {error}", what.display())
}
