//! A volume as a file below FUSE, and for root a loop device on that file.
//!
//! * [`FuseBackend::stop`] refuses a device in use and leaves it working.
//! * Anybody may detach the loop device, and its number is given out again: it is ours only while it is on our file.
//! * This process never asks its own mount: killed while it waits for itself, it could not end. The file below FUSE is known
//!   by its path, as text. What has to do with the loop device above it (attaching opens the file, the driver asks for its
//!   inode, a last close writes back) is done on a thread that does not keep the connection alive, see
//!   [`apart_from_fuse`].

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use block::{BlockErrorKind, BlockIo};
use export::fuse::{ExportError, FuseExport, FuseOptions, serve};

use super::{BackendOptions, PASSER_BY_WAIT, POLL};
use crate::inherited::apart_from_fuse;
use crate::run_dir::Entry;
use crate::{Failure, FailureKind, busy};

/// Name of the file below FUSE.
const DISK_FILE: &str = "disk";
/// The loop driver lets go of its file after it has answered, and somebody may look at the file at that moment.
const RELEASE_WAIT: Duration = Duration::from_secs(15);

/// A device in service.
pub(crate) struct FuseBackend {
    export: FuseExport,
    loop_device: Option<LoopOnExport>,
}

/// A loop device, and what the kernel said right after it was attached that it is on; `None` where there is no sysfs.
struct LoopOnExport {
    path: PathBuf,
    backing: Option<Vec<u8>>,
}

impl LoopOnExport {
    fn new(path: PathBuf) -> LoopOnExport {
        let backing = busy::backing_file(&path);
        LoopOnExport { path, backing }
    }

    /// Whether it still is on our file. The text is compared, see [`busy::loops_on`].
    fn is_ours(&self) -> bool {
        self.backing.is_none() || busy::backing_file(&self.path) == self.backing
    }
}

impl FuseBackend {
    /// Mounts the export of `disk` and attaches a loop device where this build, this user and the options allow one.
    pub(super) fn start<B: BlockIo + 'static>(
        entry: &Entry,
        disk: &Arc<B>,
        options: &BackendOptions,
    ) -> Result<FuseBackend, Failure> {
        let folder = entry.fuse_folder();
        match std::fs::create_dir(&folder) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                return Err(Failure::new(FailureKind::System, format!("cannot make {}: {error}", folder.display())));
            }
            _ => {}
        }
        let fuse_options = FuseOptions {
            file_name: DISK_FILE.to_owned(),
            threads: options.threads,
            read_only: options.read_only,
            fs_name: format!("luksctl:{}", entry.name),
            ..FuseOptions::default()
        };
        let export = serve(Arc::clone(disk), &folder, &fuse_options).map_err(|error| fuse_failure(&error))?;
        let loop_device = if options.no_loop {
            None
        } else {
            let block_size_bytes = disk.geometry().logical_block;
            apart(|| attach(export.file_path(), options.read_only, block_size_bytes)).inspect_err(|_| {
                if let Err(error) = export.unmount() {
                    log::error!("{error}");
                }
            })?
        };
        Ok(FuseBackend { export, loop_device: loop_device.map(LoopOnExport::new) })
    }

    /// The device to use.
    pub(super) fn device(&self) -> &Path {
        self.loop_device.as_ref().map_or_else(|| self.export.file_path(), |device| &device.path)
    }

    /// The loop device, unless somebody detached it.
    fn loop_path(&self) -> Option<&Path> {
        self.loop_device.as_ref().filter(|device| device.is_ours()).map(|device| device.path.as_path())
    }

    /// Lets the kernel ask for the size of the file, and tells the loop device of it. Without one, whoever asks for the
    /// size of the file is told.
    pub(super) fn resized(&self) -> Result<(), Failure> {
        let Some(device) = self.loop_path() else { return Ok(()) };
        apart(|| {
            let file = self.export.file_path();
            // Before 6.15 the driver takes the size that the kernel was told last.
            std::fs::metadata(file)
                .map_err(|error| Failure::new(FailureKind::Fuse, format!("{}: {error}", file.display())))?;
            set_capacity(device)
        })
    }

    pub(super) fn name(&self) -> &'static str {
        if self.loop_device.is_some() { "loop over fuse" } else { "fuse" }
    }

    /// What somebody took away behind our back, in words.
    pub(super) fn loss(&self) -> Option<String> {
        if self.export.has_ended() {
            return Some("Somebody unmounted the export".to_owned());
        }
        let device = self.loop_device.as_ref().filter(|device| !device.is_ours())?;
        Some(format!("Somebody detached {}", device.path.display()))
    }

    /// Who uses the device, in words; empty if nobody does. Who only passes by is waited for.
    pub(super) fn users(&self) -> Vec<String> {
        let until = Instant::now() + PASSER_BY_WAIT;
        loop {
            let users = self.users_now();
            if users.is_empty() || Instant::now() >= until || self.is_mounted() {
                return users;
            }
            sleep(POLL);
        }
    }

    /// A file is not mounted, only a loop device on it is.
    fn is_mounted(&self) -> bool {
        self.loop_path().is_some_and(busy::is_mounted)
    }

    fn users_now(&self) -> Vec<String> {
        let loop_path = self.loop_path();
        let mut users = loop_path.map(busy::users).unwrap_or_default();
        users.extend(busy::users_of_file(self.export.file_path(), loop_path));
        if let Some(device) = loop_path
            && users.is_empty()
            && apart(|| Ok(is_held(device))).unwrap_or(false)
        {
            users.push("mounted or held exclusively (in another mount namespace?)".to_owned());
        }
        users
    }

    /// Takes the device away and waits until it is gone. `Ok(Some)` tells which writes were lost on the way.
    pub(super) fn stop(&mut self) -> Result<Option<String>, Failure> {
        if let Some(device) = self.loop_path() {
            apart(|| detach(device))?;
        }
        self.loop_device = None;
        // The device above it is gone already, so there is no way back that leaves a working volume: whoever still
        // holds the file for a moment is waited for.
        match self.export.unmount_within(RELEASE_WAIT) {
            Ok(()) => Ok(None),
            Err(ExportError::FinalFlush { source, .. }) if source.kind == BlockErrorKind::Suspended => Ok(None),
            Err(error @ ExportError::FinalFlush { .. }) => Ok(Some(error.to_string())),
            Err(error @ ExportError::Busy { .. }) => Err(Failure::new(FailureKind::Busy, error.to_string())),
            // The connection is over, so nothing can reach the disk any more; how it ended is for the log.
            Err(error @ ExportError::Session { .. }) => {
                log::warn!("{error}");
                Ok(None)
            }
            Err(error) => Err(Failure::new(FailureKind::Fuse, error.to_string())),
        }
    }
}

/// Does what may have to wait for this process's own mount; see [`apart_from_fuse`].
fn apart<T: Send>(work: impl FnOnce() -> Result<T, Failure> + Send) -> Result<T, Failure> {
    apart_from_fuse(work)
        .unwrap_or_else(|error| Err(Failure::new(FailureKind::System, format!("cannot start a thread: {error}"))))
}

fn fuse_failure(error: &ExportError) -> Failure {
    let what = match error {
        ExportError::Mount { source, .. } => match source.raw_os_error() {
            Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) if !Path::new("/dev/fuse").exists() => {
                ": there is no /dev/fuse (load the module `fuse`, or start the container with --device /dev/fuse)"
            }
            Some(libc::ENOENT) if !rustix::process::geteuid().is_root() => {
                ": fusermount3 was not found (package fuse3)"
            }
            Some(libc::EACCES | libc::EPERM) => {
                ": this user may not use FUSE (see the permissions of /dev/fuse, and package fuse3)"
            }
            _ => "",
        },
        _ => "",
    };
    Failure::new(FailureKind::Fuse, format!("{error}{what}"))
}

#[cfg(feature = "loop")]
fn attach(file: &Path, read_only: bool, block_size_bytes: u32) -> Result<Option<PathBuf>, Failure> {
    use dmsetup::{LoopError, LoopOptions};
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    // Not autoclear: the server would have to hold the device open, and a killed server that closes its own device
    // waits for ever for writes that only it could have served.
    let mut options = LoopOptions { read_only, direct_io: true, block_size: block_size_bytes, autoclear: false };
    let mut attached = dmsetup::attach(file, &options);
    if let Err(LoopError::Refused { option, reason, .. }) = &attached {
        // The file below has no cache of its own, so nothing is cached twice without it.
        log::warn!("loop device without {option}: {reason}");
        options.direct_io = false;
        attached = dmsetup::attach(file, &options);
    }
    match attached {
        Ok(device) => Ok(Some(device.path().to_path_buf())),
        Err(error @ LoopError::NoDriver) => {
            log::warn!("{error}: the volume stays a file");
            Ok(None)
        }
        Err(error) => Err(Failure::new(FailureKind::Loop, error.to_string())),
    }
}

#[cfg(not(feature = "loop"))]
fn attach(_file: &Path, _read_only: bool, _block_size_bytes: u32) -> Result<Option<PathBuf>, Failure> {
    Ok(None)
}

#[cfg(feature = "loop")]
fn is_held(device: &Path) -> bool {
    dmsetup::is_busy(device).unwrap_or(false)
}

#[cfg(not(feature = "loop"))]
fn is_held(_device: &Path) -> bool {
    false
}

#[cfg(feature = "loop")]
fn detach(device: &Path) -> Result<(), Failure> {
    use dmsetup::LoopError;
    match dmsetup::detach(device) {
        Ok(()) => Ok(()),
        Err(error @ LoopError::Busy { .. }) => Err(Failure::new(FailureKind::Busy, error.to_string())),
        Err(error) => Err(Failure::new(FailureKind::Loop, error.to_string())),
    }
}

#[cfg(feature = "loop")]
fn set_capacity(device: &Path) -> Result<(), Failure> {
    dmsetup::set_capacity(device).map_err(|error| Failure::new(FailureKind::Loop, error.to_string()))
}

#[cfg(not(feature = "loop"))]
fn set_capacity(device: &Path) -> Result<(), Failure> {
    Err(Failure::new(FailureKind::Loop, format!("{} was not attached by this build", device.display())))
}

#[cfg(not(feature = "loop"))]
fn detach(device: &Path) -> Result<(), Failure> {
    Err(Failure::new(FailureKind::Loop, format!("{} was not attached by this build", device.display())))
}
