//! Closing a volume, and cleaning up after a server that died.
//!
//! [`close`] of a live volume returns after its server has ended: data flushed, device gone, keys wiped, lock free. A volume
//! in use is refused, naming the user. What a dead server left is taken away from the top down: ublk or loop device, FUSE
//! mount, folder; a file system that is still mounted on it has to be unmounted first, by whoever mounted it.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};

use crate::backend::clean_ublk;
use crate::client::Client;
use crate::kernel::Subject;
use crate::lookup::{Named, being_opened, entry_or_foreign, served_by};
use crate::protocol::{Reply, Request};
use crate::registry::{Behind, Info, Liveness, RegistryLock, behind, liveness, wait_until_free};
use crate::run_dir::{Entry, RunDir};
use crate::spawn::search_path;
use crate::suspend::sync_device;
use crate::{FailureKind, SessionError, busy, dying, kernel, mount, mount_table, nbd_device};

const CONNECT_WAIT: Duration = Duration::from_secs(10);
/// A server that refuses to be closed a second time is about to end.
const ENDING_WAIT: Duration = Duration::from_secs(15);
/// FUSE mounts stacked on one folder by servers that died one after another.
const STACKED_MAX: u32 = 16;

/// How to close.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CloseOptions {
    /// How long the last writes may take. The server goes on when it is over.
    pub wait: Duration,
    /// Let a mapping that is in use go with its last user. A served volume cannot.
    pub deferred: bool,
}

impl Default for CloseOptions {
    /// Ten minutes: a cache of gigabytes on a slow disk.
    fn default() -> CloseOptions {
        CloseOptions { wait: Duration::from_secs(600), deferred: false }
    }
}

impl CloseOptions {
    /// With this long for the last writes.
    #[must_use]
    pub fn waiting(wait: Duration) -> CloseOptions {
        CloseOptions { wait, ..CloseOptions::default() }
    }

    /// A mapping that is in use goes with its last user.
    #[must_use]
    pub fn deferred(self, deferred: bool) -> CloseOptions {
        CloseOptions { deferred, ..self }
    }
}

/// What closing found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CloseReport {
    /// The server closed the volume.
    Closed,
    /// The server was dead, or another tool had closed the mapping; what was left is gone.
    CleanedUp,
    /// The mapping is in use and goes with its last user.
    Deferred,
}

/// Closes the volume `name`.
///
/// # Errors
/// [`SessionError::NotOpen`]; [`SessionError::Busy`] while something uses it (nothing has changed then);
/// [`SessionError::LostWrites`] if it is closed now, but not everything reached the image.
pub fn close(run: &RunDir, name: &str, options: &CloseOptions) -> Result<CloseReport, SessionError> {
    kernel::remove_orphans();
    let entry = match entry_or_foreign(run, name)? {
        Named::Entry(entry) => entry,
        Named::Foreign(subject) => return kernel::close(subject, options.deferred),
    };
    dying::see_off(&entry)?;
    match behind(&entry)? {
        Behind::Nothing => match Subject::foreign(name)? {
            Some(subject) => kernel::close(subject, options.deferred),
            None => Err(SessionError::NotOpen { name: entry.name.to_string() }),
        },
        Behind::Server if options.deferred => Err(SessionError::NotOnBackend {
            name: entry.name.to_string(),
            backend: served_by(&entry),
            what: "--deferred",
        }),
        Behind::Server => close_live(run, &entry, options),
        Behind::Mapping(info) => kernel::close(Subject::ours(&entry, info)?, options.deferred),
        Behind::Opening => Err(being_opened(&entry)),
        Behind::Dead => {
            let _registry = RegistryLock::take(run)?;
            // It may have been starting, or somebody else cleaned it.
            match behind(&entry)? {
                Behind::Nothing => Ok(CloseReport::CleanedUp),
                Behind::Dead if liveness(&entry)? == Liveness::Live => Err(being_closed(&entry)),
                Behind::Dead => clean_leftover(&entry).map(|()| CloseReport::CleanedUp),
                Behind::Server | Behind::Mapping(_) | Behind::Opening => Err(being_opened(&entry)),
            }
        }
    }
}

fn being_closed(entry: &Entry) -> SessionError {
    SessionError::Busy { name: entry.name.to_string(), how: "another luksctl is just closing it".to_owned() }
}

fn close_live(run: &RunDir, entry: &Entry, options: &CloseOptions) -> Result<CloseReport, SessionError> {
    let lock = entry.lock_file(false)?;
    let state = crate::status::status(run, entry.name.as_str())?.state;
    // What the kernel caches is written back from here: the server's own detaching is short then.
    let synced = if state == crate::State::Open { sync_device(&entry.device()) } else { Ok(()) };
    let answer =
        Client::connect(entry, CONNECT_WAIT).and_then(|mut client| client.call(Request::Stop, None, options.wait));
    let lost = match answer {
        Ok(Reply::Stopped { lost }) => lost,
        Ok(other) => {
            let what = format!("{other:?} is no answer to stop");
            return Err(SessionError::Protocol { name: entry.name.to_string(), what });
        }
        Err(SessionError::Refused(failure)) if failure.kind == FailureKind::Busy => {
            let how = match synced {
                Ok(()) => failure.message,
                Err(reason) => format!("{}; and writes were lost: {reason}", failure.message),
            };
            return Err(SessionError::Busy { name: entry.name.to_string(), how });
        }
        Err(SessionError::Refused(failure)) if failure.kind != FailureKind::State => {
            return Err(SessionError::Refused(failure));
        }
        // It was ending by itself, as the opener died or somebody else closed it: then this is done, too.
        Err(error) => {
            let ended = wait_until_free(&lock, ENDING_WAIT, &entry.folder)?;
            return if ended && !entry.exists() { Ok(CloseReport::Closed) } else { Err(error) };
        }
    };
    if !wait_until_free(&lock, options.wait, &entry.folder)? {
        let what = format!("the end of the server of {}", entry.name);
        return Err(SessionError::Timeout { what, seconds: options.wait.as_secs() });
    }
    match lost.or(synced.err()) {
        Some(reason) => Err(SessionError::LostWrites { name: entry.name.to_string(), reason }),
        None => Ok(CloseReport::Closed),
    }
}

/// Takes away what a dead server left. Refuses, before changing anything, while a file system is mounted on it.
///
/// The caller holds the registry lock.
pub(crate) fn clean_leftover(entry: &Entry) -> Result<(), SessionError> {
    if let Some(record) = Info::read(entry).and_then(|info| info.mapping) {
        return kernel::clean(entry, &record);
    }
    let disk = entry.fuse_folder().join("disk");
    let loops = busy::loops_on(&disk);
    let mut points: Vec<_> = mount::recorded_point(entry).into_iter().collect();
    // It has disconnected itself; but the driver lets go of it only when nobody has it open.
    let attached = Info::read(entry).map(|info| info.device).filter(|device| nbd_device::is_abandoned(device));
    if let Some(device) = attached {
        points.extend(mount_table::points_of_device(&device)?);
    }
    for device in &loops {
        points.extend(mount_table::points_of_device(device)?);
    }
    if let Some(point) = points.first() {
        let what = format!("a file system that is still mounted on {}", point.display());
        return Err(SessionError::Leftover { name: entry.name.to_string(), what });
    }
    clean_ublk(entry)?;
    for device in &loops {
        detach(entry, device)?;
    }
    unmount_dead(&entry.fuse_folder())?;
    entry.remove()
}

#[cfg(feature = "loop")]
fn detach(entry: &Entry, device: &Path) -> Result<(), SessionError> {
    dmsetup::detach(device)
        .map_err(|error| SessionError::Leftover { name: entry.name.to_string(), what: error.to_string() })
}

/// Built without loop devices, this process made none: somebody attached it by hand and has to detach it.
#[cfg(not(feature = "loop"))]
fn detach(entry: &Entry, device: &Path) -> Result<(), SessionError> {
    let what = format!("the loop device {}; run `losetup -d {0}`", device.display());
    Err(SessionError::Leftover { name: entry.name.to_string(), what })
}

/// Ends the FUSE mounts on `folder` whose server is dead. Forced, so that requests that still wait for an answer fail, and
/// lazy, because a process may sit in it; nothing of it can reach the image any more.
pub(crate) fn unmount_dead(folder: &Path) -> Result<(), SessionError> {
    for _ in 0..STACKED_MAX {
        if mount_table::mounted_on(folder)?.is_none() {
            return Ok(());
        }
        let flags = UnmountFlags::FORCE | UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
        match unmount(folder, flags) {
            Ok(()) => {}
            Err(Errno::PERM) => by_fusermount(folder)?,
            Err(errno) => return Err(SessionError::errno("unmount", folder)(errno)),
        }
    }
    Ok(())
}

fn by_fusermount(folder: &Path) -> Result<(), SessionError> {
    const PROGRAM: &str = "fusermount3";
    let failed = |reason: String| SessionError::Program { program: PROGRAM, reason };
    let output = Command::new(PROGRAM)
        .args(["-u", "-z", "--"])
        .arg(folder)
        .env("PATH", search_path())
        .stdin(Stdio::null())
        .output()
        .map_err(|error| failed(error.to_string()))?;
    if output.status.success() {
        return Ok(());
    }
    Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leftover_without_mounts_is_cleaned_and_an_absent_name_is_said_to_be_absent() {
        let folder = tempfile::tempdir().unwrap();
        let run = RunDir::at(&folder.path().join("run")).unwrap();
        let entry = run.entry(&"dead".parse().unwrap());
        entry.create().unwrap();
        std::fs::create_dir(entry.fuse_folder()).unwrap();
        std::fs::write(entry.log(), b"").unwrap();
        assert!(matches!(close(&run, "dead", &CloseOptions::default()), Ok(CloseReport::CleanedUp)));
        assert!(!entry.exists());
        assert!(matches!(close(&run, "dead", &CloseOptions::default()), Err(SessionError::NotOpen { .. })));
        assert!(matches!(close(&run, "../dead", &CloseOptions::default()), Err(SessionError::Name { .. })));
    }
}
