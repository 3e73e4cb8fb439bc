//! Loop devices: attach, look up by inode, resize, detach.
//!
//! * Attaching is one `LOOP_CONFIGURE` (Linux 5.8): no other process ever sees the device half set up. Older kernels
//!   get the classic sequence of the `loopdev` crate. The number from `LOOP_CTL_GET_FREE` may be taken by another
//!   process before it is configured; EBUSY then means "take the next one".
//! * What was asked for is checked afterwards: the driver drops the direct-I/O flag without an error where the backing
//!   file cannot do it, and double caching would then go unnoticed.
//! * Detaching never makes a busy device vanish later behind somebody's back: a device that is mounted or held
//!   exclusively is refused with [`LoopError::Busy`] and left as it is.
//!
//! Source: loop(4), `drivers/block/loop.c`.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use block::Bytes;
use rustix::fs::{Mode, OFlags};

use crate::error::{CONTROL, LoopError};
use crate::ioctl;
use crate::name::DevNo;

const SYSFS: &str = "/sys/block";
/// Times another process may win the race for a free device before we give up.
const ATTACH_ATTEMPTS: u32 = 64;
/// The longest wait between two of them.
const ATTACH_PAUSE_MAX_MS: u32 = 50;
/// Loop devices looked at by [`attached`]; the driver itself allows 2^20.
const MAX_SCANNED: usize = 65536;
const POLL_INTERVAL: Duration = Duration::from_millis(2);
const DETACH_DEADLINE: Duration = Duration::from_secs(10);

/// How to attach a loop device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoopOptions {
    /// Refuse writes.
    pub read_only: bool,
    /// Read and write the backing file past the page cache.
    pub direct_io: bool,
    /// Logical block size in bytes: a power of two from 512 to the page size.
    pub block_size: u32,
    /// Detach when the last descriptor closes. The returned [`LoopDevice`] is such a descriptor.
    pub autoclear: bool,
}

/// An attached loop device, held open. Dropping it closes the descriptor: with `autoclear` and no other user the
/// device detaches, otherwise it stays attached until [`detach`].
#[derive(Debug)]
pub struct LoopDevice {
    path: PathBuf,
    number: u32,
    node: File,
}

impl LoopDevice {
    /// `/dev/loopN`.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// N of `/dev/loopN`.
    #[must_use]
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Its number, as a dm-crypt table names it. The minor is not N where the driver makes room for partitions.
    ///
    /// # Errors
    /// [`LoopError::Io`].
    pub fn devno(&self) -> Result<DevNo, LoopError> {
        let stat = rustix::fs::fstat(&self.node).map_err(io::Error::from).map_err(LoopError::io("stat", &self.path))?;
        Ok(DevNo::from_rdev(stat.st_rdev))
    }

    /// Closes the device and detaches it, as [`detach`].
    ///
    /// # Errors
    /// As [`detach`].
    pub fn detach(self) -> Result<(), LoopError> {
        let LoopDevice { path, node, .. } = self;
        drop(node);
        detach(&path)
    }

    /// What the device is attached to now.
    ///
    /// # Errors
    /// [`LoopError::Io`]; ENXIO in it if the device was detached meanwhile.
    pub fn info(&self) -> Result<LoopInfo, LoopError> {
        status(&self.node, &self.path)
    }
}

/// What a loop device is attached to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoopInfo {
    /// `/dev/loopN`.
    pub path: PathBuf,
    /// N of `/dev/loopN`.
    pub number: u32,
    /// `st_dev` of the backing file.
    pub device: u64,
    /// `st_ino` of the backing file.
    pub inode: u64,
    /// `st_rdev` of the backing file, 0 unless it is a device.
    pub rdevice: u64,
    /// First byte of the backing file that is shown.
    pub offset: Bytes,
    /// Bytes shown, `None` for all.
    pub size_limit: Option<Bytes>,
    /// Writes are refused.
    pub read_only: bool,
    /// Detaches on last close.
    pub autoclear: bool,
    /// The page cache is bypassed.
    pub direct_io: bool,
}

/// Attaches the file or block device `path` to a free loop device.
///
/// # Errors
/// [`LoopError`]; on any of them no device stays attached.
pub fn attach(path: &Path, options: &LoopOptions) -> Result<LoopDevice, LoopError> {
    let flags = if options.read_only { OFlags::RDONLY } else { OFlags::RDWR };
    let backing = open(path, flags, "open")?;
    let control = match open(Path::new(CONTROL), OFlags::RDWR, "open") {
        Err(LoopError::Io { source, .. }) if missing(&source) => return Err(LoopError::NoDriver),
        other => other?,
    };
    for attempt in 0..ATTACH_ATTEMPTS {
        // Whoever is faster is told the same number; a short wait, longer each time, lets a crowd through one by one.
        std::thread::sleep(Duration::from_millis(u64::from(attempt.min(ATTACH_PAUSE_MAX_MS))));
        let number = ioctl::get_free(control.as_fd())
            .map_err(LoopError::io("get a free loop device from", Path::new(CONTROL)))?;
        let node_path = PathBuf::from(format!("/dev/loop{number}"));
        let node = open_node(&node_path, number)?;
        match bind(&node, &backing, path, options) {
            Ok(()) => {
                let device = LoopDevice { path: node_path, number, node };
                if let Err(error) = check_options(&device, path, options) {
                    // The error of the option is the one to tell.
                    let _ = ioctl::clear(device.node.as_fd());
                    return Err(error);
                }
                return Ok(device);
            }
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
            Err(error) => return Err(LoopError::io("attach a loop device to", path)(error)),
        }
    }
    Err(LoopError::NoneFree { attempts: ATTACH_ATTEMPTS })
}

/// Detaches the loop device `path` and waits until it is gone, ten seconds at most.
///
/// # Errors
/// As [`detach_within`].
pub fn detach(path: &Path) -> Result<(), LoopError> {
    detach_within(path, DETACH_DEADLINE)
}

/// Detaches the loop device `path` and waits until it is gone. A device that is not attached is left alone: that is
/// success.
///
/// # Errors
/// [`LoopError::Busy`] if it is mounted or held exclusively (nothing was changed then), or if another process kept it
/// open past the deadline (it detaches by itself when that one closes it).
pub fn detach_within(path: &Path, deadline: Duration) -> Result<(), LoopError> {
    let until = Instant::now() + deadline;
    let node = match open(path, OFlags::RDONLY | OFlags::EXCL, "open") {
        Err(LoopError::Io { source, .. }) if source.raw_os_error() == Some(libc::EBUSY) => {
            return Err(LoopError::busy(path, "mounted or held exclusively"));
        }
        other => other?,
    };
    let before = match ioctl::get_status(node.as_fd()) {
        Ok(raw) => Some((raw.device, raw.inode)),
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => return Ok(()),
        Err(error) if is_dead(&error) => None,
        Err(error) => return Err(LoopError::io("read the status of", path)(error)),
    };
    match ioctl::clear(node.as_fd()) {
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => return Ok(()),
        other => other.map_err(LoopError::io("detach", path))?,
    }
    // The driver tears down at the last close, and ours may be it.
    drop(node);
    loop {
        match current(path) {
            Ok(Some(now)) if Some((now.device, now.inode)) == before => {}
            Ok(_) => return Ok(()),
            Err(LoopError::Io { source, .. }) if is_dead(&source) => {}
            Err(error) => return Err(error),
        }
        if Instant::now() >= until {
            return Err(LoopError::busy(path, "another process keeps it open; it detaches when that one closes it"));
        }
        sleep(POLL_INTERVAL);
    }
}

/// Every loop device whose backing file has these device and inode numbers (`st_dev`, `st_ino`), whatever its path.
///
/// # Errors
/// As [`attached`].
pub fn find_by_backing(dev: u64, ino: u64) -> Result<Vec<LoopInfo>, LoopError> {
    let mut found = attached()?;
    found.retain(|info| (info.device, info.inode) == (dev, ino));
    Ok(found)
}

/// Every attached loop device, by number. One whose backing file lies on a dead file system (a FUSE server that was
/// killed) is left out: the driver asks that file for its inode and fails, and nobody's image is on it any more.
///
/// # Errors
/// [`LoopError::Io`] if `/sys/block` or a device cannot be read.
pub fn attached() -> Result<Vec<LoopInfo>, LoopError> {
    let mut found = Vec::new();
    let entries = std::fs::read_dir(SYSFS).map_err(LoopError::io("list", Path::new(SYSFS)))?;
    for entry in entries.take(MAX_SCANNED) {
        let entry = entry.map_err(LoopError::io("list", Path::new(SYSFS)))?;
        let name = entry.file_name();
        if is_loop_name(&name) && entry.path().join("loop").exists() {
            match current(&Path::new("/dev").join(&name)) {
                Err(LoopError::Io { source, .. }) if is_dead(&source) => {}
                other => found.extend(other?),
            }
        }
    }
    found.sort_by_key(|info| info.number);
    Ok(found)
}

/// What the loop device `path` is attached to, `None` if to nothing.
///
/// # Errors
/// [`LoopError::Io`] if it cannot be opened or is no loop device.
pub fn info(path: &Path) -> Result<Option<LoopInfo>, LoopError> {
    current(path)
}

/// Tells the loop device `path` to take over its backing file's present size. The backing file's cached size must be
/// fresh: `stat` it first when it lies on FUSE.
///
/// # Errors
/// [`LoopError::Io`].
pub fn set_capacity(path: &Path) -> Result<(), LoopError> {
    let node = open(path, OFlags::RDONLY, "open")?;
    ioctl::set_capacity(node.as_fd()).map_err(LoopError::io("set the capacity of", path))
}

/// Whether the loop device `path` is mounted or held exclusively (by a file system, swap, md, dm).
///
/// # Errors
/// [`LoopError::Io`] if it cannot be opened for another reason.
pub fn is_busy(path: &Path) -> Result<bool, LoopError> {
    match open(path, OFlags::RDONLY | OFlags::EXCL, "open") {
        Ok(_) => Ok(false),
        Err(LoopError::Io { source, .. }) if source.raw_os_error() == Some(libc::EBUSY) => Ok(true),
        Err(error) => Err(error),
    }
}

fn is_loop_name(name: &OsStr) -> bool {
    name.as_bytes()
        .strip_prefix(b"loop")
        .is_some_and(|digits| !digits.is_empty() && digits.iter().all(u8::is_ascii_digit))
}

/// What the driver answers when the backing file's file system does not.
fn is_dead(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOTCONN | libc::ECONNABORTED | libc::ESTALE | libc::EIO))
}

/// The status of a device by path, `None` if it is not attached or has just gone.
fn current(path: &Path) -> Result<Option<LoopInfo>, LoopError> {
    let node = match open(path, OFlags::RDONLY, "open") {
        Err(LoopError::Io { source, .. }) if missing(&source) => return Ok(None),
        other => other?,
    };
    match status(&node, path) {
        Ok(info) => Ok(Some(info)),
        Err(LoopError::Io { source, .. }) if source.raw_os_error() == Some(libc::ENXIO) => Ok(None),
        Err(error) => Err(error),
    }
}

fn status(node: &File, path: &Path) -> Result<LoopInfo, LoopError> {
    let raw = ioctl::get_status(node.as_fd()).map_err(LoopError::io("read the status of", path))?;
    Ok(LoopInfo {
        path: path.to_path_buf(),
        number: raw.number,
        device: raw.device,
        inode: raw.inode,
        rdevice: raw.rdevice,
        offset: Bytes(raw.offset_bytes),
        size_limit: (raw.size_limit_bytes != 0).then_some(Bytes(raw.size_limit_bytes)),
        read_only: raw.flags & ioctl::FLAG_READ_ONLY != 0,
        autoclear: raw.flags & ioctl::FLAG_AUTOCLEAR != 0,
        direct_io: raw.flags & ioctl::FLAG_DIRECT_IO != 0,
    })
}

/// One try on one device: `LOOP_CONFIGURE`, or the classic calls where the kernel does not know it.
fn bind(node: &File, backing: &File, path: &Path, options: &LoopOptions) -> io::Result<()> {
    let mut info = ioctl::Info::zeroed();
    let flag = |wanted: bool, flag: u32| if wanted { flag } else { 0 };
    info.flags = flag(options.read_only, ioctl::FLAG_READ_ONLY)
        | flag(options.direct_io, ioctl::FLAG_DIRECT_IO)
        | flag(options.autoclear, ioctl::FLAG_AUTOCLEAR);
    let name = path.as_os_str().as_bytes();
    // The last byte stays 0: the kernel wants a terminated string. It is for display only.
    let shown = name.len().min(info.file_name.len() - 1);
    info.file_name[..shown].copy_from_slice(&name[..shown]);
    let config = ioctl::Config::new(options.block_size, info);
    match ioctl::configure(node.as_fd(), backing.as_fd(), &config) {
        // Before 5.8 the number is unknown. A bad block size is EINVAL too; the classic calls refuse it again.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOTTY | libc::ENOSYS)) => {
            bind_classic(node, backing, options)
        }
        other => other,
    }
}

/// `LOOP_SET_FD`, `LOOP_SET_STATUS64`, block size, direct I/O, one after the other; undone if one fails.
fn bind_classic(node: &File, backing: &File, options: &LoopOptions) -> io::Result<()> {
    let path = format!("/proc/self/fd/{}", node.as_raw_fd());
    let device = loopdev::LoopDevice::open(path)?;
    device.with().read_only(options.read_only).autoclear(options.autoclear).attach_fd(backing.as_raw_fd())?;
    let finish = || {
        set_block_size_patiently(node, options.block_size)?;
        if options.direct_io {
            device.set_direct_io(true)?;
        }
        Ok(())
    };
    finish().inspect_err(|_| {
        // The first error is the one to tell.
        let _ = device.detach();
    })
}

fn set_block_size_patiently(node: &File, block_size_bytes: u32) -> io::Result<()> {
    for _ in 0..16 {
        match ioctl::set_block_size(node.as_fd(), block_size_bytes) {
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => sleep(POLL_INTERVAL),
            other => return other,
        }
    }
    ioctl::set_block_size(node.as_fd(), block_size_bytes)
}

fn check_options(device: &LoopDevice, path: &Path, options: &LoopOptions) -> Result<(), LoopError> {
    let info = device.info()?;
    let refused = |option, reason| Err(LoopError::Refused { path: path.to_path_buf(), option, reason });
    if options.direct_io && !info.direct_io {
        return refused("direct I/O", "its file system has no O_DIRECT, or wants blocks larger than the loop device's");
    }
    if !options.read_only && info.read_only {
        return refused("write access", "the kernel attached it read-only");
    }
    Ok(())
}

fn open_node(path: &Path, number: u32) -> Result<File, LoopError> {
    // devtmpfs makes the node before the ioctl returns; udev may still be changing its owner.
    match open(path, OFlags::RDWR, "open") {
        Err(LoopError::Io { source, .. }) if missing(&source) => {
            Err(LoopError::NoNode { path: path.to_path_buf(), number })
        }
        other => other,
    }
}

fn open(path: &Path, flags: OFlags, action: &'static str) -> Result<File, LoopError> {
    rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty())
        .map(File::from)
        .map_err(|errno| LoopError::io(action, path)(errno.into()))
}

fn missing(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV | libc::ENXIO))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write as _;
    use std::os::unix::fs::MetadataExt;

    use super::*;

    const OPTIONS: LoopOptions = LoopOptions { read_only: false, direct_io: true, block_size: 4096, autoclear: false };

    /// A 4 MiB image on a file system with O_DIRECT, or `None` with the reason printed.
    fn image(test: &str) -> Option<(tempfile::TempDir, PathBuf)> {
        if !rustix::process::geteuid().is_root() || !Path::new(CONTROL).exists() {
            eprintln!("SKIPPED dmsetup {test}: needs root and {CONTROL}");
            return None;
        }
        let folder = tempfile::tempdir_in("/var/tmp").unwrap();
        let path = folder.path().join("image");
        let mut file = File::create(&path).unwrap();
        file.write_all(&vec![0x5a; 4 << 20]).unwrap();
        file.sync_all().unwrap();
        Some((folder, path))
    }

    fn attribute(device: &LoopDevice, name: &str) -> String {
        let path = format!("/sys/block/loop{}/{name}", device.number());
        fs::read_to_string(path).unwrap().trim().to_owned()
    }

    #[test]
    fn attaches_with_direct_io_and_block_size_and_detaches() {
        let Some((_folder, path)) = image("attaches_with_direct_io_and_block_size_and_detaches") else {
            return;
        };
        let device = attach(&path, &OPTIONS).unwrap();
        assert_eq!(attribute(&device, "loop/dio"), "1");
        assert_eq!(attribute(&device, "queue/logical_block_size"), "4096");
        assert_eq!(attribute(&device, "ro"), "0");
        assert_eq!(attribute(&device, "size"), "8192");
        assert_eq!(attribute(&device, "dev"), device.devno().unwrap().to_string());
        assert!(fs::read(device.path()).unwrap().iter().all(|&byte| byte == 0x5a));

        let node = device.path().to_path_buf();
        drop(device);
        assert!(info(&node).unwrap().is_some(), "without autoclear it stays");
        detach(&node).unwrap();
        let meta = fs::metadata(&path).unwrap();
        assert_eq!(find_by_backing(meta.dev(), meta.ino()).unwrap(), []);
        detach(&node).unwrap();
    }

    #[test]
    fn classic_calls_give_the_same_device() {
        let Some((_folder, path)) = image("classic_calls_give_the_same_device") else {
            return;
        };
        let backing = open(&path, OFlags::RDWR, "open").unwrap();
        let device = (0..ATTACH_ATTEMPTS)
            .find_map(|_| {
                let control = open(Path::new(CONTROL), OFlags::RDWR, "open").unwrap();
                let number = ioctl::get_free(control.as_fd()).unwrap();
                let path = PathBuf::from(format!("/dev/loop{number}"));
                let node = open_node(&path, number).unwrap();
                match bind_classic(&node, &backing, &OPTIONS) {
                    Err(error) if error.raw_os_error() == Some(libc::EBUSY) => None,
                    other => other.map(|()| Some(LoopDevice { path, number, node })).unwrap(),
                }
            })
            .expect("a free device");
        assert_eq!(attribute(&device, "loop/dio"), "1");
        assert_eq!(attribute(&device, "queue/logical_block_size"), "4096");
        check_options(&device, &path, &OPTIONS).unwrap();
        device.detach().unwrap();
    }

    #[test]
    fn classic_calls_leave_nothing_attached_when_an_option_fails() {
        let test = "classic_calls_leave_nothing_attached_when_an_option_fails";
        let Some((_folder, path)) = image(test) else {
            return;
        };
        let bad = LoopOptions { block_size: 777, ..OPTIONS };
        assert!(attach(&path, &bad).is_err());
        let meta = fs::metadata(&path).unwrap();
        let until = Instant::now() + DETACH_DEADLINE;
        while !find_by_backing(meta.dev(), meta.ino()).unwrap().is_empty() {
            assert!(Instant::now() < until, "still attached");
            sleep(POLL_INTERVAL);
        }
    }

    #[test]
    fn read_only_refuses_writes() {
        let Some((_folder, path)) = image("read_only_refuses_writes") else {
            return;
        };
        let options = LoopOptions { read_only: true, block_size: 512, ..OPTIONS };
        let device = attach(&path, &options).unwrap();
        assert_eq!(attribute(&device, "ro"), "1");
        assert_eq!(attribute(&device, "queue/logical_block_size"), "512");
        let write = fs::OpenOptions::new()
            .write(true)
            .open(device.path())
            .and_then(|mut file| file.write_all(&[1; 4096]).and_then(|()| file.sync_all()));
        assert!(write.is_err());
        device.detach().unwrap();
        assert!(fs::read(&path).unwrap().iter().all(|&byte| byte == 0x5a));
    }

    #[test]
    fn autoclear_detaches_on_drop() {
        let Some((_folder, path)) = image("autoclear_detaches_on_drop") else {
            return;
        };
        let options = LoopOptions { autoclear: true, ..OPTIONS };
        let device = attach(&path, &options).unwrap();
        assert!(device.info().unwrap().autoclear);
        let meta = fs::metadata(&path).unwrap();
        let (dev, ino) = (meta.dev(), meta.ino());
        assert_eq!(find_by_backing(dev, ino).unwrap().len(), 1);
        drop(device);
        let until = Instant::now() + DETACH_DEADLINE;
        while !find_by_backing(dev, ino).unwrap().is_empty() {
            assert!(Instant::now() < until, "still attached");
            sleep(POLL_INTERVAL);
        }
    }

    #[test]
    fn found_by_inode_through_hard_link_and_rename() {
        let Some((folder, path)) = image("found_by_inode_through_hard_link_and_rename") else {
            return;
        };
        let device = attach(&path, &OPTIONS).unwrap();
        let link = folder.path().join("hard-link");
        let renamed = folder.path().join("renamed");
        fs::hard_link(&path, &link).unwrap();
        fs::rename(&path, &renamed).unwrap();
        for name in [&link, &renamed] {
            let meta = fs::metadata(name).unwrap();
            let found = find_by_backing(meta.dev(), meta.ino()).unwrap();
            assert_eq!(found.len(), 1, "{}", name.display());
            assert_eq!(found[0].path, device.path());
            assert_eq!(found[0].number, device.number());
        }
        let other = folder.path().join("other");
        fs::copy(&link, &other).unwrap();
        let meta = fs::metadata(&other).unwrap();
        assert_eq!(find_by_backing(meta.dev(), meta.ino()).unwrap(), []);
        device.detach().unwrap();
    }

    #[test]
    fn busy_device_is_left_alone_and_capacity_follows_the_file() {
        let test = "busy_device_is_left_alone_and_capacity_follows_the_file";
        let Some((_folder, path)) = image(test) else {
            return;
        };
        let device = attach(&path, &OPTIONS).unwrap();
        let node = device.path().to_path_buf();
        fs::OpenOptions::new().write(true).open(&path).and_then(|file| file.set_len(8 << 20)).unwrap();
        assert_eq!(attribute(&device, "size"), "8192");
        set_capacity(&node).unwrap();
        assert_eq!(attribute(&device, "size"), "16384");

        assert!(!is_busy(&node).unwrap());
        let claim = open(&node, OFlags::RDONLY | OFlags::EXCL, "open").unwrap();
        assert!(is_busy(&node).unwrap());
        let refused = detach(&node).unwrap_err();
        assert!(matches!(refused, LoopError::Busy { .. }), "{refused}");
        let unchanged = device.info().unwrap();
        assert!(!unchanged.autoclear, "a refused detach must change nothing");
        drop(claim);

        let kept = detach_within(&node, Duration::from_millis(50)).unwrap_err();
        assert!(matches!(kept, LoopError::Busy { .. }), "{kept}");
        drop(device);
        detach(&node).unwrap();
    }

    #[test]
    fn many_threads_attach_at_once() {
        let Some((folder, _)) = image("many_threads_attach_at_once") else {
            return;
        };
        let folder = folder.path();
        std::thread::scope(|scope| {
            for thread in 0..4 {
                scope.spawn(move || {
                    for round in 0..5 {
                        let path = folder.join(format!("image-{thread}-{round}"));
                        fs::write(&path, vec![thread; 64 << 10]).unwrap();
                        let device = attach(&path, &OPTIONS).unwrap();
                        let data = fs::read(device.path()).unwrap();
                        assert!(data.iter().all(|&byte| byte == thread));
                        let node = device.path().to_path_buf();
                        drop(device);
                        detach(&node).unwrap();
                    }
                });
            }
        });
    }

    #[test]
    fn missing_file_and_folder_are_errors() {
        let Some((folder, _)) = image("missing_file_and_folder_are_errors") else {
            return;
        };
        let missing = attach(&folder.path().join("nothing"), &OPTIONS).unwrap_err();
        assert!(missing.to_string().contains("nothing"), "{missing}");
        attach(folder.path(), &OPTIONS).unwrap_err();
    }
}
