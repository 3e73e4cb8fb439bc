//! The bytes of the one file: read, write, flush and allocate in terms of a disk.
//!
//! What a block device would answer, this file answers: reads end at the size, a write that begins at the end is
//! ENOSPC, one that crosses it is short. Everything else is the disk's own word, translated by
//! [`block::BlockErrorKind::errno`].

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use block::{BlockError, BlockErrorKind, BlockIo, BufferPool, ByteView, Bytes};
use fuser::Errno;

use super::PunchHole;

/// Largest request in either direction.
pub(super) const MAX_REQUEST_BYTES: u32 = 1 << 20;
/// Zeros written through the disk in one call, so that other requests get their turn between.
const ZERO_CHUNK_BYTES: u64 = 4 << 20;

const FALLOC_FL_KEEP_SIZE: i32 = 0x01;
const FALLOC_FL_PUNCH_HOLE: i32 = 0x02;
const FALLOC_FL_ZERO_RANGE: i32 = 0x10;
const SEEK_DATA: i32 = 3;
const SEEK_HOLE: i32 = 4;

/// A point in time that threads may set at once: nanoseconds since 1970.
pub(super) struct Stamp(AtomicU64);

impl Stamp {
    fn now() -> Stamp {
        let stamp = Stamp(AtomicU64::new(0));
        stamp.set(SystemTime::now());
        stamp
    }

    pub(super) fn set(&self, time: SystemTime) {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        self.0.store(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    pub(super) fn get(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_nanos(self.0.load(Ordering::Relaxed))
    }
}

/// A disk with the operations of a file.
pub(super) struct DiskFile<B: BlockIo> {
    view: ByteView<Arc<B>>,
    buffers: BufferPool,
    punch_hole: PunchHole,
    read_only: bool,
    pub(super) accessed: Stamp,
    pub(super) modified: Stamp,
    pub(super) changed: Stamp,
}

impl<B: BlockIo> DiskFile<B> {
    pub(super) fn new(disk: Arc<B>, punch_hole: PunchHole, read_only: bool) -> DiskFile<B> {
        DiskFile {
            view: ByteView::new(disk),
            buffers: BufferPool::new(MAX_REQUEST_BYTES as usize),
            punch_hole,
            read_only,
            accessed: Stamp::now(),
            modified: Stamp::now(),
            changed: Stamp::now(),
        }
    }

    /// Size now; it may have grown.
    pub(super) fn size_bytes(&self) -> u64 {
        self.view.size().0
    }

    /// Reads up to `size_bytes` at `offset_bytes` and passes on what there is: less at the end, nothing behind it.
    pub(super) fn read<R>(
        &self,
        offset_bytes: u64,
        size_bytes: u32,
        pass_on: impl FnOnce(Result<&[u8], Errno>) -> R,
    ) -> R {
        let there = self.view.room(Bytes(offset_bytes), u64::from(size_bytes.min(MAX_REQUEST_BYTES)));
        let Ok(len_bytes) = usize::try_from(there) else {
            return pass_on(Err(Errno::EINVAL));
        };
        let mut buffer = self.buffers.take(len_bytes);
        let bytes = &mut buffer[..len_bytes];
        match self.view.read(Bytes(offset_bytes), bytes) {
            Ok(()) => pass_on(Ok(bytes)),
            Err(error) => pass_on(Err(told(&error))),
        }
    }

    /// Writes what fits and says how much that was; on return with `fua` it is durable.
    pub(super) fn write(&self, offset_bytes: u64, data: &[u8], fua: bool) -> Result<u32, Errno> {
        if self.read_only {
            return Err(Errno::EROFS);
        }
        let room = self.view.room(Bytes(offset_bytes), data.len() as u64);
        let fits = usize::try_from(room).map_or(data.len(), |room| room.min(data.len()));
        if fits == 0 && !data.is_empty() {
            return Err(Errno::ENOSPC);
        }
        self.view.write(Bytes(offset_bytes), &data[..fits], fua).map_err(|error| told(&error))?;
        let now = SystemTime::now();
        self.modified.set(now);
        self.changed.set(now);
        u32::try_from(fits).map_err(|_| Errno::EINVAL)
    }

    /// Makes everything durable that was answered before.
    pub(super) fn flush(&self) -> Result<(), BlockError> {
        self.view.flush()
    }

    /// fallocate(2): zeros for PUNCH_HOLE and ZERO_RANGE, EOPNOTSUPP for what would need a real allocation.
    pub(super) fn allocate(&self, offset_bytes: u64, len_bytes: u64, mode: i32) -> Result<(), Errno> {
        if self.read_only {
            return Err(Errno::EROFS);
        }
        let keep_size = mode & FALLOC_FL_KEEP_SIZE != 0;
        match mode & !FALLOC_FL_KEEP_SIZE {
            FALLOC_FL_PUNCH_HOLE if keep_size && self.punch_hole == PunchHole::WriteZeroes => {}
            FALLOC_FL_ZERO_RANGE => {}
            _ => return Err(Errno::EOPNOTSUPP),
        }
        let size = self.size_bytes();
        let end = offset_bytes.checked_add(len_bytes).ok_or(Errno::EFBIG)?;
        if end > size && !keep_size {
            return Err(Errno::ENOSPC);
        }
        self.write_zeroes(offset_bytes, end.min(size))
    }

    fn write_zeroes(&self, start_bytes: u64, end_bytes: u64) -> Result<(), Errno> {
        let mut at = start_bytes;
        while at < end_bytes {
            // Later chunks begin on a multiple of the chunk, whatever the first offset was.
            let stop = (at - at % ZERO_CHUNK_BYTES).saturating_add(ZERO_CHUNK_BYTES).min(end_bytes);
            self.view.write_zeroes(Bytes(at), Bytes(stop - at)).map_err(|error| told(&error))?;
            at = stop;
        }
        self.modified.set(SystemTime::now());
        Ok(())
    }

    /// lseek(2) with SEEK_DATA and SEEK_HOLE: all of the disk is data, the one hole is behind its end.
    pub(super) fn seek(&self, offset_bytes: i64, whence: i32) -> Result<i64, Errno> {
        let size = self.size_bytes();
        let offset = u64::try_from(offset_bytes).map_err(|_| Errno::ENXIO)?;
        if offset >= size {
            return Err(Errno::ENXIO);
        }
        match whence {
            SEEK_DATA => Ok(offset_bytes),
            SEEK_HOLE => i64::try_from(size).map_err(|_| Errno::EOVERFLOW),
            _ => Err(Errno::EINVAL),
        }
    }
}

/// The disk's error as the program above sees it; the log gets the whole of it.
pub(super) fn told(error: &BlockError) -> Errno {
    log::debug!("{error}");
    match error.kind {
        // No request goes behind the size that was told: the disk has become shorter than that, and what lay there is lost.
        BlockErrorKind::OutOfRange => Errno::EIO,
        kind => Errno::from_i32(kind.errno()),
    }
}
