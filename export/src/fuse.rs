//! A disk as one file of a FUSE mount: works without root, and a loop device on that file makes it a block device.
//!
//! * **No page cache.** The file is opened with direct I/O: a write is answered after the disk took it, a read after
//!   the disk gave it, so a suspended or closed volume leaves no plaintext pages of ours behind.
//! * **No silent success.** fuser answers ENOSYS to what is not implemented, and the kernel then reports success for
//!   flush, fsync and fsyncdir ever after. All three are implemented and tell the disk's error. O_SYNC and O_DSYNC
//!   writes become writes with FUA, because the kernel does not send a flush of its own after them.
//! * **Nothing is punched.** `fallocate` with PUNCH_HOLE is also how a loop device passes on "write zeros" and
//!   "discard": it writes zeros through the disk, or is refused with EOPNOTSUPP ([`PunchHole`]); it never deallocates
//!   below a cipher, where zeros would come back as noise.
//! * **A disk that blocks** (a suspended volume) does not stop the mount: see `lanes`.
//!
//! Source: fuse(4), `include/uapi/linux/fuse.h`, `fs/fuse/file.c`, `drivers/block/loop.c`.

mod disk_file;
mod file_system;
mod flags;
mod lanes;
mod mount;
mod unmount;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use block::{BlockError, BlockIo};
use fuser::{Config, SessionACL};

use disk_file::DiskFile;
use file_system::DiskFileSystem;

/// Threads when [`FuseOptions::threads`] is 0. Each waits for the disk with one request, so this is how many a disk with a queue gets at a
/// time, but one, which is kept free for requests that do not touch the disk. At depth 1 more than two change nothing; see
/// `docs/performance`.
const DEFAULT_THREADS: usize = 12;
/// Fewest threads: one in the disk, one at the door.
const MIN_THREADS: usize = 2;
/// Most threads.
const MAX_THREADS: usize = 64;
/// Between two attempts to unmount a busy mount.
const BUSY_POLL: Duration = Duration::from_millis(5);
/// Longest file name that Linux takes.
const MAX_NAME_BYTES: usize = 255;
/// Longest name shown in the mount table.
const MAX_FS_NAME_BYTES: usize = 200;

/// What a request to punch a hole does. Loop devices send both "discard" and "write zeros, may unmap" that way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PunchHole {
    /// EOPNOTSUPP: discard is then off on a loop device above, and zeros come as ordinary writes. A sparse image stays
    /// sparse under mkfs and fstrim.
    #[default]
    Refuse,
    /// Write zeros through the disk. An `fstrim` then writes all the free space.
    WriteZeroes,
}

/// How to serve a disk. `Default` gives a file named `disk` for the present user only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FuseOptions {
    /// Name of the one file.
    pub file_name: String,
    /// Threads that take requests, 0 for the default; raised to 2, lowered to 64.
    pub threads: usize,
    /// Refuse writes, also when the disk itself would take them.
    pub read_only: bool,
    /// Let root use the mount too, when it is not root who serves (needs `user_allow_other` in `/etc/fuse.conf`).
    pub allow_root: bool,
    /// Owner of the file.
    pub uid: u32,
    /// Group of the file.
    pub gid: u32,
    /// Permission bits of the file, such as 0o600.
    pub mode: u16,
    /// The "device" in the mount table.
    pub fs_name: String,
    /// What a request to punch a hole does.
    pub punch_hole: PunchHole,
}

impl Default for FuseOptions {
    fn default() -> FuseOptions {
        FuseOptions {
            file_name: "disk".to_owned(),
            threads: 0,
            read_only: false,
            allow_root: false,
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            mode: 0o600,
            fs_name: "disk".to_owned(),
            punch_hole: PunchHole::default(),
        }
    }
}

/// Why a disk could not be served or a mount not ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExportError {
    /// The name cannot be a file name.
    #[error("{name:?} cannot be the name of the exported file")]
    FileName {
        /// The name.
        name: String,
    },
    /// The mount failed.
    #[error("cannot mount the FUSE export on {}: {source}", mount_point.display())]
    Mount {
        /// Where.
        mount_point: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// A file of the mount is open, or something is mounted on it.
    #[error("{} is in use", mount_point.display())]
    Busy {
        /// Where.
        mount_point: PathBuf,
    },
    /// The unmount failed for another reason.
    #[error("cannot unmount {}: {source}", mount_point.display())]
    Unmount {
        /// Where.
        mount_point: PathBuf,
        /// The system's error, or what fusermount3 said.
        source: io::Error,
    },
    /// The flush after the last request failed: writes that were answered may be lost.
    #[error("the last flush of {} failed: {source}", mount_point.display())]
    FinalFlush {
        /// Where.
        mount_point: PathBuf,
        /// The disk's error.
        source: Arc<BlockError>,
    },
    /// An NBD export cannot have this name, or two have it.
    #[error("{name:?} cannot be the name of an NBD export")]
    ExportName {
        /// The name.
        name: String,
    },
    /// The socket of an NBD server cannot be made.
    #[error("cannot listen on {}: {source}", path.display())]
    Socket {
        /// Where.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// TLS cannot be listened for.
    #[cfg(feature = "tls")]
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// Where.
        address: String,
        /// The system's error.
        source: io::Error,
    },
    /// A certificate or a key cannot be used.
    #[cfg(feature = "tls")]
    #[error("{}: {reason}", path.display())]
    Certificates {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The connection to the kernel broke.
    #[error("the FUSE session on {} ended: {source}", mount_point.display())]
    Session {
        /// Where.
        mount_point: PathBuf,
        /// The system's error.
        source: Arc<io::Error>,
    },
}

/// How a session ended.
#[derive(Clone, Default)]
struct Ending {
    ended: bool,
    flush_error: Option<Arc<BlockError>>,
    session_error: Option<Arc<io::Error>>,
}

/// The end of a session, to be waited for.
#[derive(Default)]
struct Lifeline {
    ending: Mutex<Ending>,
    changed: Condvar,
}

impl Lifeline {
    fn lock(&self) -> MutexGuard<'_, Ending> {
        // Every critical section is one assignment: a panic elsewhere cannot leave it half done.
        self.ending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn flushed(&self, result: Result<(), BlockError>) {
        self.lock().flush_error = result.err().map(Arc::new);
    }

    fn end(&self, result: io::Result<()>) {
        let mut ending = self.lock();
        ending.session_error = result.err().map(Arc::new);
        ending.ended = true;
        self.changed.notify_all();
    }
}

/// A mounted export. Dropping it unmounts, as far as nothing has the file open; [`FuseExport::unmount`] tells.
pub struct FuseExport {
    mount_point: PathBuf,
    file_path: PathBuf,
    lifeline: Arc<Lifeline>,
}

impl std::fmt::Debug for FuseExport {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("FuseExport").field("file_path", &self.file_path).finish_non_exhaustive()
    }
}

impl FuseExport {
    /// The file whose bytes are the disk.
    #[must_use]
    pub fn file_path(&self) -> &Path {
        &self.file_path
    }

    /// The folder it lies in, a mount point.
    #[must_use]
    pub fn mount_point(&self) -> &Path {
        &self.mount_point
    }

    /// Whether the session is over: somebody unmounted it.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.lifeline.lock().ended
    }

    /// Blocks until the mount is gone, whoever unmounts it, and the disk was flushed after its last request.
    ///
    /// # Errors
    /// [`ExportError::FinalFlush`] and [`ExportError::Session`].
    pub fn wait(&self) -> Result<(), ExportError> {
        let mut ending = self.lifeline.lock();
        while !ending.ended {
            ending = self.lifeline.changed.wait(ending).unwrap_or_else(PoisonError::into_inner);
        }
        let mount_point = self.mount_point.clone();
        match (&ending.flush_error, &ending.session_error) {
            (Some(source), _) => Err(ExportError::FinalFlush { mount_point, source: Arc::clone(source) }),
            (None, Some(source)) => Err(ExportError::Session { mount_point, source: Arc::clone(source) }),
            (None, None) => Ok(()),
        }
    }

    /// Unmounts and waits as [`FuseExport::wait`] does. Never lazily: after success the kernel holds no more of it.
    ///
    /// # Errors
    /// [`ExportError::Busy`] while the file is open or carries a loop device or a mount; the export goes on then.
    pub fn unmount(&self) -> Result<(), ExportError> {
        if !self.has_ended() {
            match unmount::unmount(&self.mount_point) {
                // Somebody else was faster.
                Err(_) if self.has_ended() => {}
                other => other?,
            }
        }
        self.wait()
    }

    /// [`FuseExport::unmount`] for whoever has just closed the file or detached its loop device: the kernel lets go of
    /// the file a moment after both (a loop device's last close may be another process's), so a busy mount is tried
    /// again for as long as `patience`.
    ///
    /// # Errors
    /// As [`FuseExport::unmount`]; [`ExportError::Busy`] only after `patience`.
    pub fn unmount_within(&self, patience: Duration) -> Result<(), ExportError> {
        let until = Instant::now() + patience;
        loop {
            match self.unmount() {
                Err(ExportError::Busy { .. }) if Instant::now() < until => std::thread::sleep(BUSY_POLL),
                other => return other,
            }
        }
    }
}

impl Drop for FuseExport {
    fn drop(&mut self) {
        if self.has_ended() {
            return;
        }
        if let Err(error) = unmount::unmount(&self.mount_point) {
            log::warn!("{error}");
        }
    }
}

/// Mounts `disk` as one file in the folder `mount_point` and serves it from threads of its own until it is unmounted.
///
/// The serving process must not keep the file open itself: when it dies, the kernel closes its descriptors one by one,
/// closing a FUSE file asks the server, which is gone, and the process can neither end nor be killed (seen on 6.18). A
/// loop device is no such descriptor.
///
/// # Errors
/// [`ExportError::FileName`] and [`ExportError::Mount`].
pub fn serve<B: BlockIo + 'static>(
    disk: Arc<B>,
    mount_point: &Path,
    options: &FuseOptions,
) -> Result<FuseExport, ExportError> {
    check_file_name(&options.file_name)?;
    let mount_error = |source| ExportError::Mount { mount_point: mount_point.to_path_buf(), source };
    let mount_point_real = mount_point.canonicalize().map_err(mount_error)?;
    let threads = match options.threads {
        0 => DEFAULT_THREADS,
        wanted => wanted.clamp(MIN_THREADS, MAX_THREADS),
    };
    let read_only = options.read_only || disk.geometry().read_only;
    let lifeline = Arc::new(Lifeline::default());
    let file = Arc::new(DiskFile::new(disk, options.punch_hole, read_only));
    let file_system =
        DiskFileSystem::new(file, options, threads, read_only, Arc::clone(&lifeline)).map_err(mount_error)?;
    let config = config(options, threads);
    let connection = mount::mount(&mount_point_real, &mount_options(options, read_only)).map_err(mount_error)?;
    // From here on an error must not leave a dead mount behind.
    let export =
        FuseExport { file_path: mount_point_real.join(&options.file_name), mount_point: mount_point_real, lifeline };
    let session = fuser::Session::from_fd(file_system, connection, config.acl, config).map_err(mount_error)?;
    let thread_lifeline = Arc::clone(&export.lifeline);
    std::thread::Builder::new()
        .name("fuse-session".to_owned())
        .spawn(move || thread_lifeline.end(session.run()))
        .map_err(mount_error)?;
    Ok(export)
}

fn check_file_name(name: &str) -> Result<(), ExportError> {
    let bad =
        name.is_empty() || name == "." || name == ".." || name.len() > MAX_NAME_BYTES || name.contains(['/', '\0']);
    if bad { Err(ExportError::FileName { name: name.to_owned() }) } else { Ok(()) }
}

fn config(options: &FuseOptions, threads: usize) -> Config {
    let mut config = Config::default();
    config.acl = if options.allow_root { SessionACL::RootAndOwner } else { SessionACL::Owner };
    config.n_threads = Some(threads);
    // One descriptor per thread: the kernel then keeps their queues apart.
    config.clone_fd = true;
    config
}

fn mount_options(options: &FuseOptions, read_only: bool) -> mount::MountOptions {
    mount::MountOptions {
        source: shown_fs_name(&options.fs_name),
        read_only,
        // The kernel knows "owner only" and "all"; that it is root only is checked per request.
        allow_other: options.allow_root,
    }
}

/// The name without what would end an option or a field of the mount table. It is for display only.
fn shown_fs_name(name: &str) -> String {
    let plain = |c: char| if c.is_control() || c.is_whitespace() || matches!(c, ',' | '\\') { '_' } else { c };
    let mut shown = String::new();
    for c in name.chars().map(plain) {
        if shown.len() + c.len_utf8() > MAX_FS_NAME_BYTES {
            break;
        }
        shown.push(c);
    }
    if shown.is_empty() { "disk".to_owned() } else { shown }
}

#[cfg(test)]
mod tests;
