//! A disk under its export name: NBD's operations in terms of [`BlockIo`], and its errors in NBD's numbers.
//!
//! * Any byte range may be asked for: [`ByteView`] does what the blocks of the disk demand.
//! * Zeros are written through the disk, never punched: below a cipher a hole would come back as noise.
//! * A trim is a hint, and announced only where the disk gives something up. Who is told that it may be asked for takes its success
//!   for more: nbdfuse punches holes by it, and a loop device above believes that they read as zeros.
//! * After a failed flush every later write and flush is an I/O error until the export is served anew: what was lost must not
//!   be declared safe by the next flush.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use block::{BlockError, BlockErrorKind, BlockIo, ByteView, Bytes};

use super::codec::{NbdError, transmission};

/// Zeros written in one go, so that other requests get their turn between, and so that an end is noticed.
const ZERO_CHUNK_BYTES: u64 = 4 << 20;
/// Smallest and largest preferred block that is told to clients.
const PREFERRED_BYTES: (u32, u32) = (4096, 64 << 10);

/// Buffers for parts of blocks that are there from the beginning.
const PART_BUFFERS: usize = 16;

/// One disk, as many clients see it.
pub(super) struct ServedDisk {
    view: ByteView<Arc<dyn BlockIo>>,
    read_only: bool,
    /// The disk gives up what is trimmed.
    trims: bool,
    /// A flush failed.
    failed: AtomicBool,
}

impl ServedDisk {
    pub(super) fn new(disk: Arc<dyn BlockIo>, read_only: bool) -> ServedDisk {
        let read_only = read_only || disk.geometry().read_only;
        // Nothing at all is discarded here: what counts is whether the disk knows the word.
        let refused = disk.discard(Bytes::ZERO, Bytes::ZERO).err();
        let trims = !read_only && refused.is_none_or(|error| error.kind != BlockErrorKind::Unsupported);
        let view = ByteView::new(disk);
        view.reserve_buffers(PART_BUFFERS);
        ServedDisk { view, read_only, trims, failed: AtomicBool::new(false) }
    }

    /// Size now; a client is told it once, when it connects.
    pub(super) fn size_bytes(&self) -> u64 {
        self.view.size().0
    }

    /// The disk's logical block.
    pub(super) fn block_bytes(&self) -> u32 {
        self.view.disk().geometry().logical_block
    }

    /// What the disk writes in one piece, as a power of two that clients take.
    pub(super) fn preferred_bytes(&self) -> u32 {
        let physical = self.view.disk().geometry().physical_block.max(1);
        physical.checked_next_power_of_two().unwrap_or(u32::MAX).clamp(PREFERRED_BYTES.0, PREFERRED_BYTES.1)
    }

    pub(super) fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Whether a TRIM may be asked for.
    pub(super) fn trims(&self) -> bool {
        self.trims
    }

    /// Transmission flags for a client that can (or cannot) take structured replies.
    pub(super) fn flags(&self, structured: bool) -> u16 {
        use transmission::*;
        // A flush covers what was completed on any thread, so on any connection.
        let mut flags = HAS_FLAGS | SEND_FLUSH | SEND_FUA | CAN_MULTI_CONN;
        flags |= if self.read_only { READ_ONLY } else { SEND_WRITE_ZEROES | SEND_FAST_ZERO };
        if self.trims {
            flags |= SEND_TRIM;
        }
        if structured {
            flags |= SEND_DF;
        }
        flags
    }

    pub(super) fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), NbdError> {
        self.view.read(Bytes(offset), buf).map_err(|error| told(&error))
    }

    /// What `data` holds afterwards is undefined.
    pub(super) fn write(&self, offset: u64, data: &mut [u8], fua: bool) -> Result<(), NbdError> {
        self.check_healthy()?;
        self.view.write_consuming(Bytes(offset), data, fua).map_err(|error| told(&error))
    }

    pub(super) fn flush(&self) -> Result<(), NbdError> {
        self.check_healthy()?;
        self.flush_disk().map_err(|error| told(&error))
    }

    /// The disk's own flush and its own words, for the end of the export.
    pub(super) fn flush_disk(&self) -> Result<(), BlockError> {
        if self.read_only {
            return Ok(());
        }
        self.view.flush().inspect_err(|error| {
            // Refused because the end is near: that lost nothing.
            if error.kind != BlockErrorKind::Suspended {
                self.failed.store(true, Ordering::SeqCst);
            }
        })
    }

    /// Makes the range read as zeros. `no_hole` wants them allocated: then they go the way of any data, else the disk may know
    /// a better one. `is_over` is asked between two pieces.
    pub(super) fn write_zeroes(
        &self,
        offset: u64,
        len_bytes: u64,
        no_hole: bool,
        zeroes: &mut [u8],
        is_over: impl Fn() -> bool,
    ) -> Result<(), NbdError> {
        self.check_healthy()?;
        let piece_bytes = if no_hole { zeroes.len() as u64 } else { ZERO_CHUNK_BYTES }.max(1);
        if no_hole {
            zeroes.fill(0);
        }
        let (mut at, end) = (offset, offset + len_bytes);
        while at < end {
            if is_over() {
                return Err(NbdError::Shutdown);
            }
            // Later pieces begin on a multiple of the piece, whatever the first offset was.
            let stop = (at - at % piece_bytes).saturating_add(piece_bytes).min(end);
            let done = match usize::try_from(stop - at) {
                Ok(piece) if no_hole => self.view.write(Bytes(at), &zeroes[..piece], false),
                _ => self.view.write_zeroes(Bytes(at), Bytes(stop - at)),
            };
            done.map_err(|error| told(&error))?;
            at = stop;
        }
        Ok(())
    }

    /// Gives up the whole blocks in the range, if the disk gives anything up.
    pub(super) fn trim(&self, offset: u64, len_bytes: u64) -> Result<(), NbdError> {
        self.check_healthy()?;
        let disk = self.view.disk();
        let block = u64::from(disk.geometry().logical_block.max(1));
        let (first, end) = (offset.next_multiple_of(block), (offset + len_bytes) / block * block);
        if first >= end {
            return Ok(());
        }
        match disk.discard(Bytes(first), Bytes(end - first)) {
            Err(error) if error.kind == BlockErrorKind::Unsupported => Ok(()),
            result => result.map_err(|error| told(&error)),
        }
    }

    fn check_healthy(&self) -> Result<(), NbdError> {
        if self.failed.load(Ordering::SeqCst) { Err(NbdError::Io) } else { Ok(()) }
    }
}

/// The disk's error as the client sees it; the log gets the whole of it. What lies behind the end of the export is refused
/// before the disk is asked, so a disk that ends earlier has shrunk: that is an I/O error.
fn told(error: &BlockError) -> NbdError {
    log::debug!("{error}");
    match error.kind {
        BlockErrorKind::NoSpace => NbdError::NoSpc,
        BlockErrorKind::ReadOnly | BlockErrorKind::Denied => NbdError::Perm,
        BlockErrorKind::Unaligned => NbdError::Inval,
        BlockErrorKind::Unsupported => NbdError::NotSup,
        BlockErrorKind::Suspended => NbdError::Shutdown,
        _ => NbdError::Io,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use block::MemDisk;
    use block::fault::{FaultDisk, Op};

    fn served(disk: FaultDisk<MemDisk>) -> (Arc<FaultDisk<MemDisk>>, ServedDisk) {
        let disk = Arc::new(disk);
        let served = ServedDisk::new(Arc::clone(&disk) as Arc<dyn BlockIo>, false);
        (disk, served)
    }

    #[test]
    fn after_a_failed_flush_no_write_and_no_flush_succeeds_and_reads_go_on() {
        let (disk, served) = served(FaultDisk::new(MemDisk::new(Bytes(1 << 20))));
        disk.fail_once(Op::Flush, 1, BlockErrorKind::Io);
        served.write(0, &mut [1; 512], false).unwrap();
        assert_eq!(served.flush(), Err(NbdError::Io));
        assert_eq!(served.flush(), Err(NbdError::Io));
        assert_eq!(served.write(0, &mut [2; 512], true), Err(NbdError::Io));
        assert_eq!(served.write_zeroes(0, 512, false, &mut [0; 512], || false), Err(NbdError::Io));
        assert_eq!(served.trim(0, 512), Err(NbdError::Io));
        let mut there = [0; 512];
        served.read(0, &mut there).unwrap();
        assert_eq!(there, [1; 512]);
    }

    #[test]
    fn zeroes_without_holes_go_as_data_and_others_by_the_means_of_the_disk() {
        let (disk, served) = served(FaultDisk::new(MemDisk::new(Bytes(1 << 20))));
        served.write(0, &mut [7; 8192], false).unwrap();
        let before = disk.counts();
        served.write_zeroes(512, 4096, true, &mut [9; 1024], || false).unwrap();
        assert_eq!((disk.counts().zeroes, disk.counts().writes - before.writes), (before.zeroes, 5));
        served.write_zeroes(4608, 1024, false, &mut [], || false).unwrap();
        assert_eq!(disk.counts().zeroes, before.zeroes + 1);
        let mut there = [1; 8192];
        served.read(0, &mut there).unwrap();
        assert!(there[512..5632].iter().all(|byte| *byte == 0) && there[..512] == [7; 512] && there[5632] == 7);
        assert_eq!(served.write_zeroes(0, 512, false, &mut [], || true), Err(NbdError::Shutdown));
    }

    #[test]
    fn a_trim_gives_up_whole_blocks_only_and_is_a_hint() {
        let (disk, served) = served(FaultDisk::new(MemDisk::new(Bytes(1 << 20))));
        let before = disk.counts().discards;
        assert!(served.trims() && served.flags(false) & transmission::SEND_TRIM != 0);
        served.write(0, &mut [7; 4096], false).unwrap();
        served.trim(100, 1000).unwrap();
        served.trim(0, 511).unwrap();
        let mut there = [1; 4096];
        served.read(0, &mut there).unwrap();
        assert!(there[..512] == [7; 512] && there[512..1024] == [0; 512] && there[1024] == 7);
        assert_eq!(disk.counts().discards - before, 1);
        disk.fail_from(Op::Discard, 1, BlockErrorKind::Unsupported);
        served.trim(0, 4096).unwrap();
        served.read(0, &mut there).unwrap();
        assert_eq!(there[0], 7);
    }

    #[test]
    fn a_disk_that_gives_nothing_up_announces_no_trim() {
        let disk = FaultDisk::new(MemDisk::new(Bytes(1 << 20)));
        disk.fail_from(Op::Discard, 1, BlockErrorKind::Unsupported);
        let (_, served) = served(disk);
        assert!(!served.trims() && served.flags(true) & transmission::SEND_TRIM == 0);
        assert_ne!(served.flags(true) & transmission::SEND_WRITE_ZEROES, 0);
    }
}
