//! A volume as a block device of the kernel, `/dev/ublkbN`, whose requests the server's threads carry out on the volume's
//! queues: for root.
//!
//! * [`UblkBackend::stop`] would take the device from under whoever uses it: users are looked for first, and nobody can mount it
//!   from then on, for the server claims the device until it is gone or goes on.
//! * The driver keeps a mark beside the device that follows from the entry's folder: what a killed server left is found by it,
//!   whatever its number, also before `info.json` was written.

use std::fs::{File, OpenOptions};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::sleep;
use std::time::Instant;

use block::{BlockQueue, FileDisk, FileQueue};
use export::ublk::{OpenQueue, Recovery, UblkError, UblkExport, UblkOptions, marked, remove, serve};
use luks::{Volume, VolumeQueue};

use super::{BackendOptions, PASSER_BY_WAIT, POLL};
use crate::choice::UBLK;
use crate::run_dir::Entry;
use crate::ublk_recovery::{note, start_watcher};
use crate::{Failure, FailureKind, SessionError, busy, mount_table};

/// A device in service.
pub(crate) struct UblkBackend {
    export: UblkExport,
    volume: Arc<Volume<FileDisk>>,
    /// Held while the device is on its way out.
    claim: Mutex<Option<File>>,
}

impl UblkBackend {
    pub(super) fn start(
        entry: &Entry,
        volume: &Arc<Volume<FileDisk>>,
        options: &BackendOptions,
    ) -> Result<UblkBackend, Failure> {
        let served = Arc::clone(volume);
        let open_queue: Arc<OpenQueue> = Arc::new(move |depth| {
            let below = FileQueue::open(served.disk().clone(), depth)?;
            if let Some(why) = &below.pread_because {
                log::info!("a queue without io_uring: {why}");
            }
            Ok(Box::new(VolumeQueue::new(Arc::clone(&served), below.queue)) as Box<dyn BlockQueue>)
        });
        let mark = mark(&entry.folder);
        let recovery = prepare_recovery(entry, mark, options)?;
        let ublk_options = UblkOptions { queues: options.threads, read_only: options.read_only, mark, recovery };
        let export = serve(&open_queue, &ublk_options).map_err(|error| failure(&error))?;
        Ok(UblkBackend { export, volume: Arc::clone(volume), claim: Mutex::new(None) })
    }

    pub(super) fn device(&self) -> &Path {
        self.export.path()
    }

    pub(super) fn name(&self) -> &'static str {
        UBLK
    }

    /// What somebody took away behind our back, in words.
    pub(super) fn loss(&self) -> Option<String> {
        let lost = !self.export.is_served();
        lost.then(|| format!("{} was stopped, or a thread that serves it has failed", self.device().display()))
    }

    /// Who uses the device, in words; empty if nobody does, and then nobody can mount it until [`UblkBackend::go_on`].
    pub(super) fn users(&self) -> Vec<String> {
        let until = Instant::now() + PASSER_BY_WAIT;
        loop {
            let users = self.users_now();
            if users.is_empty() || Instant::now() >= until || busy::is_mounted(self.device()) {
                return users;
            }
            sleep(POLL);
        }
    }

    fn users_now(&self) -> Vec<String> {
        let device = self.device();
        if !self.export.is_served() {
            return busy::users(device);
        }
        let claimed = OpenOptions::new().read(true).custom_flags(libc::O_EXCL).open(device);
        let users = busy::users(device);
        match claimed {
            Ok(claim) if users.is_empty() => *self.claim() = Some(claim),
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) && users.is_empty() => {
                return vec!["mounted or held exclusively (in another mount namespace?)".to_owned()];
            }
            // Somebody removed the node: what uses the device is known all the same.
            _ => {}
        }
        users
    }

    pub(super) fn go_on(&self) {
        *self.claim() = None;
    }

    fn claim(&self) -> MutexGuard<'_, Option<File>> {
        self.claim.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the device away and waits until it is gone. `Ok(Some)` tells which writes were lost on the way.
    pub(super) fn stop(&mut self) -> Result<Option<String>, Failure> {
        let lost = self.write_back();
        let stopped = self.export.stop();
        self.go_on();
        match stopped {
            Ok(()) => Ok(lost),
            Err(error) if Path::new("/sys/block").join(self.device().file_name().unwrap_or_default()).exists() => {
                Err(failure(&error))
            }
            Err(error) => {
                log::warn!("{error}");
                Ok(lost)
            }
        }
    }

    /// Writes what the kernel caches for the device: of one that could go on without a server the driver would throw it away.
    fn write_back(&self) -> Option<String> {
        if self.volume.is_suspended() || !self.export.is_served() {
            return None;
        }
        let claim = self.claim();
        let error = claim.as_ref()?.sync_all().err()?;
        Some(format!("the kernel could not write back all that it had cached for {}: {error}", self.device().display()))
    }
}

/// What is to be when the server dies; and whether this one goes on where another ended.
fn prepare_recovery(entry: &Entry, mark: u64, options: &BackendOptions) -> Result<Recovery, Failure> {
    let Some((order, fingerprint)) = &options.recovery else {
        return Ok(Recovery::No);
    };
    let waiting = marked(mark).map_err(|error| failure(&error))?.into_iter().find(|device| device.waits);
    let recovery = match (waiting, &order.left) {
        (Some(device), Some(left)) if left == fingerprint => Recovery::GoOn(device.number),
        (Some(device), _) => {
            let what = format!("{} waits for another volume than this one", device.path.display());
            return Err(Failure::new(FailureKind::OtherVolume, what));
        }
        (None, _) => Recovery::Offered,
    };
    let system = |what: String| Failure::new(FailureKind::System, what);
    note(entry, fingerprint).map_err(|error| system(error.to_string()))?;
    // Before there is a device: nobody may ever wait for ever.
    start_watcher(mark).map_err(|error| system(format!("cannot start the watcher of the device: {error}")))?;
    Ok(recovery)
}

fn failure(error: &UblkError) -> Failure {
    Failure::new(FailureKind::System, error.to_string())
}

/// What the driver keeps beside the device of an entry: FNV-1a (64 bits) over its folder's path, and never 0, which others have.
fn mark(folder: &Path) -> u64 {
    let start = 0xcbf2_9ce4_8422_2325_u64;
    let path = folder.as_os_str().as_bytes();
    let hash = path.iter().fold(start, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
    hash | 1
}

/// Why this process cannot make such a device; `None` if it seems that it can.
pub(crate) fn hindrance() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("it needs root".to_owned());
    }
    export::ublk::hindrance().or_else(|| {
        let nodes = mount_table::mounted_on(Path::new("/dev")).ok().flatten()?;
        (nodes.kind != "devtmpfs").then(|| {
            format!("/dev is a {} of its own (a container's?), where the device's node would not appear", nodes.kind)
        })
    })
}

/// Takes away what a dead server of `entry` left. Refused, before anything changes, while it is mounted.
pub(crate) fn clean(entry: &Entry) -> Result<(), SessionError> {
    let leftover = |what: String| SessionError::Leftover { name: entry.name.to_string(), what };
    for device in marked(mark(&entry.folder)).map_err(|error| leftover(error.to_string()))? {
        if device.is_served {
            // A server that is not ours has the mark of this folder: its process works in another /run.
            continue;
        }
        if device.path.exists()
            // Who only has it open waits for an answer: an error is one.
            && let Some(user) = busy::users(&device.path).iter().find(|user| !user.starts_with("opened by"))
        {
            return Err(leftover(format!("{}, which is in use: {user}", device.path.display())));
        }
        remove(device.number).map_err(|error| leftover(error.to_string()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_of_one_folder_and_never_nothing() {
        assert_eq!(mark(Path::new("")), 0xcbf2_9ce4_8422_2325);
        assert_eq!(mark(Path::new("a")), 0xaf63_dc4c_8601_ec8c | 1);
        assert_ne!(mark(Path::new("/run/luksctl/a")), mark(Path::new("/run/luksctl/b")));
    }
}
