//! [`FileDisk`]: a regular file or a block device as a [`BlockIo`].
//!
//! Invariants: any offset and length is taken; what the system cannot do directly goes through an aligned bounce buffer or
//! a read-modify-write under a range lock. A regular file is never made longer by a write. After one failed flush every
//! later flush fails until the file is opened again, because Linux reports a lost page once only.
//!
//! Sources: open(2), statx(2) (`STATX_DIOALIGN`), pwritev2(2) (`RWF_DSYNC`), fallocate(2).

mod direct;

use crate::lock::{LockError, MetadataLock, UseLock};
use crate::range_lock::RangeLock;
use crate::{BlockError, BlockErrorKind, BlockIo, BufferPool, Bytes, Geometry};
use direct::Alignment;
use rustix::fs::{self, FallocateFlags, FileType, Mode, OFlags};
use rustix::io::{Errno, ReadWriteFlags};
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// Whether the page cache is left out (`O_DIRECT`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Direct {
    /// Through the page cache.
    #[default]
    Never,
    /// Direct where the file system can, otherwise through the page cache.
    IfPossible,
    /// Direct, or the open fails.
    Always,
}

/// How a file or device is opened.
#[derive(Clone, Copy, Debug, Default)]
pub struct OpenMode {
    /// Refuse every write.
    pub read_only: bool,
    /// With or without the page cache.
    pub direct: Direct,
    /// Open a block device with `O_EXCL`, which fails while it is mounted or otherwise claimed. Nothing for a file.
    pub exclusive: bool,
}

/// A file or a block device. Clones share one open file description, and with it the use lock.
#[derive(Clone)]
pub struct FileDisk {
    shared: Arc<Shared>,
}

struct Shared {
    fd: OwnedFd,
    path: PathBuf,
    read_only: bool,
    /// `None`: through the page cache.
    direct: Option<Alignment>,
    logical_block: u32,
    physical_block: u32,
    identity: (u64, u64),
    rdev: Option<(u32, u32)>,
    /// The size when it was last asked for: a range inside it needs no system call to be checked.
    size_seen: AtomicU64,
    use_locked: AtomicBool,
    flush_failed: AtomicBool,
    ranges: RangeLock,
    bounce: BufferPool,
}

/// The largest bounce buffer: a request is cut into pieces of this size.
const BOUNCE_BYTES: usize = 1 << 20;

impl FileDisk {
    /// Opens what is at `path`.
    ///
    /// # Errors
    /// What the system says; [`BlockErrorKind::Unsupported`] for anything but a regular file or a block device, and when
    /// direct I/O is demanded and not possible; [`BlockErrorKind::Busy`] for a claimed device.
    pub fn open(path: &Path, mode: &OpenMode) -> Result<FileDisk, BlockError> {
        let failed = |errno: Errno| open_error(errno);
        let kind_before = FileType::from_raw_mode(fs::stat(path).map_err(failed)?.st_mode);
        let access = if mode.read_only { OFlags::RDONLY } else { OFlags::RDWR };
        // O_NONBLOCK: a pipe put at the path must not hang the open.
        let mut flags = access | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
        if mode.exclusive && kind_before == FileType::BlockDevice {
            flags |= OFlags::EXCL;
        }
        FileDisk::from_fd(fs::open(path, flags, Mode::empty()).map_err(failed)?, path, mode)
    }

    /// Creates an empty file at `path`, readable by its owner only; the path must be free.
    ///
    /// # Errors
    /// What the system says.
    pub fn create_new(path: &Path, mode: &OpenMode) -> Result<FileDisk, BlockError> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let fd = fs::open(path, flags, Mode::RUSR | Mode::WUSR).map_err(open_error)?;
        FileDisk::from_fd(fd, path, &OpenMode { read_only: false, ..*mode })
    }

    fn from_fd(fd: OwnedFd, path: &Path, mode: &OpenMode) -> Result<FileDisk, BlockError> {
        let stat = fs::fstat(&fd).map_err(open_error)?;
        let unsupported = || BlockError::new(BlockErrorKind::Unsupported, "open", Bytes::ZERO, 0);
        let is_device = match FileType::from_raw_mode(stat.st_mode) {
            FileType::BlockDevice => true,
            FileType::RegularFile => false,
            _ => return Err(unsupported()),
        };
        let rdev = is_device.then(|| (fs::major(stat.st_rdev), fs::minor(stat.st_rdev)));
        let (device_logical, physical_block) = if is_device {
            (fs::ioctl_blksszget(&fd).map_err(open_error)?, fs::ioctl_blkpbszget(&fd).map_err(open_error)?)
        } else {
            (512, u32::try_from(stat.st_blksize).unwrap_or(4096).clamp(512, 4096))
        };
        let direct = direct::enable(&fd, mode.direct, is_device.then_some(device_logical))?;
        let logical_block = device_logical.max(direct.map_or(512, |alignment| alignment.offset_bytes));
        let shared = Shared {
            read_only: mode.read_only || rdev.is_some_and(device_is_read_only),
            fd,
            path: path.to_owned(),
            direct,
            logical_block,
            physical_block: physical_block.max(logical_block),
            identity: (stat.st_dev, stat.st_ino),
            rdev,
            size_seen: AtomicU64::new(0),
            use_locked: AtomicBool::new(false),
            flush_failed: AtomicBool::new(false),
            ranges: RangeLock::default(),
            bounce: BufferPool::new(BOUNCE_BYTES),
        };
        Ok(FileDisk { shared: Arc::new(shared) })
    }

    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        &self.shared.path
    }

    /// A second handle on the same open file description; it never fails and is what `clone` does.
    ///
    /// # Errors
    /// None today.
    pub fn try_clone(&self) -> Result<FileDisk, BlockError> {
        Ok(self.clone())
    }

    /// Whether it is a block device rather than a regular file.
    pub fn is_block_device(&self) -> bool {
        self.shared.rdev.is_some()
    }

    /// Whether the page cache is left out.
    pub fn is_direct(&self) -> bool {
        self.shared.direct.is_some()
    }

    /// Allocates the bounce buffers of `count` concurrent requests now, so that none is allocated under memory pressure.
    /// Through the page cache there are none.
    pub fn reserve_buffers(&self, count: usize) {
        if self.is_direct() {
            self.shared.bounce.fill(count);
        }
    }

    /// Device and inode number of the file, or of the device's node.
    pub fn identity(&self) -> (u64, u64) {
        self.shared.identity
    }

    /// Major and minor number of a block device.
    pub fn rdev(&self) -> Option<(u32, u32)> {
        self.shared.rdev
    }

    /// Claims the disk for use: an open-file-description lock (`F_OFD_SETLK`) over all of it, shared for readers. It is
    /// held until the guard and every clone of this disk are dropped, and it does not stand in the way of `flock`.
    ///
    /// # Errors
    /// [`LockError::Busy`] at once when somebody else, or this disk itself, holds a conflicting one.
    pub fn lock_use(&self, shared: bool) -> Result<UseLock, LockError> {
        UseLock::acquire(self, shared)
    }

    /// Locks the LUKS2 metadata the way cryptsetup does, for the short time of one header read or write.
    ///
    /// # Errors
    /// [`LockError::Busy`] when `deadline` has passed.
    pub fn lock_metadata(&self, shared: bool, deadline: Duration) -> Result<MetadataLock, LockError> {
        MetadataLock::acquire(self, shared, deadline)
    }

    /// Whether the use lock of this open file description is taken; for [`UseLock`].
    pub(crate) fn use_locked(&self) -> &AtomicBool {
        &self.shared.use_locked
    }

    /// Makes a regular file `len` bytes long; new bytes are a hole that reads as zeros.
    ///
    /// # Errors
    /// What the system says.
    pub fn set_len(&self, len: Bytes) -> Result<(), BlockError> {
        fs::ftruncate(&self.shared.fd, len.0).map_err(|errno| failed("set length", len, 0, errno))?;
        self.size();
        Ok(())
    }

    /// Allocates the first `len` bytes of a regular file and makes it at least that long, so that no later write there
    /// fails for lack of space.
    ///
    /// # Errors
    /// [`BlockErrorKind::NoSpace`], and [`BlockErrorKind::Unsupported`] where the file system cannot.
    pub fn preallocate(&self, len: Bytes) -> Result<(), BlockError> {
        retry(|| fs::fallocate(&self.shared.fd, FallocateFlags::empty(), 0, len.0))
            .map_err(|errno| failed("preallocate", Bytes::ZERO, len.0, errno))
    }

    /// Makes the file and its name in its folder durable; a new file needs it once.
    ///
    /// # Errors
    /// What the system says.
    pub fn sync_name(&self) -> Result<(), BlockError> {
        let failed = |errno| failed("sync name", Bytes::ZERO, 0, errno);
        retry(|| fs::fsync(&self.shared.fd)).map_err(failed)?;
        let folder = match self.shared.path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        let folder = fs::open(folder, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
        retry(|| fs::fsync(folder.as_ref().map_err(|errno| *errno)?)).map_err(failed)
    }

    fn size(&self) -> Bytes {
        // The file position is never used, so moving it disturbs nobody.
        let size_bytes = fs::seek(&self.shared.fd, fs::SeekFrom::End(0)).unwrap_or(0);
        self.shared.size_seen.store(size_bytes, Ordering::Relaxed);
        Bytes(size_bytes)
    }

    pub(crate) fn check_range(&self, op: &'static str, offset: Bytes, len_bytes: u64) -> Result<(), BlockError> {
        let seen = Bytes(self.shared.size_seen.load(Ordering::Relaxed));
        match offset.checked_add(Bytes(len_bytes)) {
            Some(end) if end <= seen || end <= self.size() => Ok(()),
            _ => Err(BlockError::new(BlockErrorKind::OutOfRange, op, offset, len_bytes)),
        }
    }

    pub(crate) fn check_write(&self, op: &'static str, offset: Bytes, len_bytes: u64) -> Result<(), BlockError> {
        if self.shared.read_only {
            return Err(BlockError::new(BlockErrorKind::ReadOnly, op, offset, len_bytes));
        }
        self.check_range(op, offset, len_bytes)
    }

    pub(crate) fn check_flush(&self, op: &'static str) -> Result<(), BlockError> {
        if self.shared.flush_failed.load(Ordering::Acquire) {
            return Err(BlockError::new(BlockErrorKind::Io, op, Bytes::ZERO, 0));
        }
        Ok(())
    }

    /// Makes every later flush fail: what was written since the last good one may be lost.
    pub(crate) fn note_failed_flush(&self) {
        self.shared.flush_failed.store(true, Ordering::Release);
    }

    /// Reads the whole of `buf` with as many system calls as it takes.
    fn read_exact(&self, offset: Bytes, buf: &mut [u8]) -> Result<(), BlockError> {
        let len_bytes = buf.len() as u64;
        let got_bytes = self.read_up_to(offset, buf)?;
        if got_bytes < buf.len() {
            return Err(BlockError::new(BlockErrorKind::OutOfRange, "read", offset, len_bytes));
        }
        Ok(())
    }

    /// Reads until `buf` is full or the file ends.
    fn read_up_to(&self, offset: Bytes, buf: &mut [u8]) -> Result<usize, BlockError> {
        let len_bytes = buf.len() as u64;
        let mut done = 0;
        while done < buf.len() {
            let at = offset.0 + done as u64;
            let got = retry(|| {
                let mut part = [IoSliceMut::new(&mut buf[done..])];
                rustix::io::preadv2(&self.shared.fd, &mut part, at, ReadWriteFlags::empty())
            });
            match got.map_err(|errno| failed("read", offset, len_bytes, errno))? {
                0 => break,
                count => done += count,
            }
        }
        Ok(done)
    }

    /// Writes the whole of `buf` with as many system calls as it takes; with `fua` each is durable on return.
    fn write_all(&self, offset: Bytes, buf: &[u8], fua: bool) -> Result<(), BlockError> {
        let len_bytes = buf.len() as u64;
        let flags = if fua { ReadWriteFlags::DSYNC } else { ReadWriteFlags::empty() };
        let mut done = 0;
        while done < buf.len() {
            let at = offset.0 + done as u64;
            let part = [IoSlice::new(&buf[done..])];
            let written = retry(|| rustix::io::pwritev2(&self.shared.fd, &part, at, flags));
            match written.map_err(|errno| failed("write", offset, len_bytes, errno))? {
                0 => return Err(BlockError::new(BlockErrorKind::Io, "write", offset, len_bytes)),
                count => done += count,
            }
        }
        Ok(())
    }

    fn allocate(&self, op: &'static str, offset: Bytes, len: Bytes, flags: FallocateFlags) -> Result<(), BlockError> {
        self.check_write(op, offset, len.0)?;
        if len == Bytes::ZERO {
            return Ok(());
        }
        retry(|| fs::fallocate(&self.shared.fd, flags | FallocateFlags::KEEP_SIZE, offset.0, len.0))
            .map_err(|errno| failed(op, offset, len.0, errno))
    }
}

impl BlockIo for FileDisk {
    fn geometry(&self) -> Geometry {
        Geometry {
            size: self.size(),
            logical_block: self.shared.logical_block,
            physical_block: self.shared.physical_block,
            memory_alignment: self.shared.direct.map_or(1, |alignment| alignment.memory_bytes),
            read_only: self.shared.read_only,
        }
    }

    fn read_at(&self, offset: Bytes, buf: &mut [u8]) -> Result<(), BlockError> {
        self.check_range("read", offset, buf.len() as u64)?;
        match self.shared.direct {
            None => self.read_exact(offset, buf),
            Some(alignment) => self.read_direct(alignment, offset, buf),
        }
    }

    fn write_at(&self, offset: Bytes, buf: &[u8], fua: bool) -> Result<(), BlockError> {
        self.check_write("write", offset, buf.len() as u64)?;
        if fua {
            self.check_flush("write")?;
        }
        let result = match self.shared.direct {
            None => self.write_all(offset, buf, fua),
            Some(alignment) => self.write_direct(alignment, offset, buf, fua),
        };
        if fua && result.is_err() {
            self.note_failed_flush();
        }
        result
    }

    fn write_zeroes(&self, offset: Bytes, len: Bytes) -> Result<(), BlockError> {
        self.allocate("write zeroes", offset, len, FallocateFlags::ZERO_RANGE)
    }

    fn discard(&self, offset: Bytes, len: Bytes) -> Result<(), BlockError> {
        self.allocate("discard", offset, len, FallocateFlags::PUNCH_HOLE)
    }

    fn flush(&self) -> Result<(), BlockError> {
        self.check_flush("flush")?;
        retry(|| fs::fdatasync(&self.shared.fd)).map_err(|errno| {
            self.note_failed_flush();
            failed("flush", Bytes::ZERO, 0, errno)
        })
    }
}

impl AsFd for FileDisk {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.fd.as_fd()
    }
}

/// Runs a system call again while a signal interrupts it.
pub(crate) fn retry<R>(mut call: impl FnMut() -> Result<R, Errno>) -> Result<R, Errno> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            result => return result,
        }
    }
}

fn failed(op: &'static str, offset: Bytes, len_bytes: u64, errno: Errno) -> BlockError {
    BlockError::from_io(op, offset, len_bytes, errno.into())
}

fn open_error(errno: Errno) -> BlockError {
    failed("open", Bytes::ZERO, 0, errno)
}

/// What `blockdev --getro` says, read from sysfs; a device without that file is taken for writable, and its writes fail.
fn device_is_read_only((major, minor): (u32, u32)) -> bool {
    std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/ro")).is_ok_and(|text| text.trim() == "1")
}

#[cfg(test)]
mod tests;
