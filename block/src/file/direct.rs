//! Direct I/O (`O_DIRECT`): what alignment the file demands, and how requests that do not have it are served.
//!
//! Invariants: every system call on a direct file begins and ends at `offset_bytes` multiples and uses memory at
//! `memory_bytes` multiples. A block of which only a part changes is read, changed and written back while its range is
//! claimed exclusively, so two such writes never lose each other's bytes.
//!
//! Source: statx(2), `STATX_DIOALIGN` (Linux 6.1). Older kernels: the device's logical block, or 4096.

use super::{BOUNCE_BYTES, Direct, FileDisk, open_error};
use crate::range_lock::write_claims;
use crate::{BUFFER_ALIGNMENT_BYTES, BlockError, BlockErrorKind, Bytes};
use rustix::fs::{self, AtFlags, OFlags, StatxFlags};
use std::os::fd::{AsFd, OwnedFd};

/// What direct I/O on one file needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Alignment {
    /// Offsets and lengths are multiples of this.
    pub(super) offset_bytes: u32,
    /// Buffers begin at multiples of this.
    pub(super) memory_bytes: u32,
}

/// Used where the kernel does not say: right for every file system that has direct I/O.
const CAUTIOUS: u32 = 4096;

/// Switches direct I/O on as `wish` says. `device_block` is the logical block of a block device.
pub(super) fn enable(fd: &OwnedFd, wish: Direct, device_block: Option<u32>) -> Result<Option<Alignment>, BlockError> {
    if wish == Direct::Never {
        return Ok(None);
    }
    let refused = || match wish {
        Direct::Always => Err(BlockError::new(BlockErrorKind::Unsupported, "open for direct I/O", Bytes::ZERO, 0)),
        _ => Ok(None),
    };
    let Some(alignment) = demanded(fd, device_block) else { return refused() };
    let aligned_tail = Bytes(fs::seek(fd, fs::SeekFrom::End(0)).map_err(open_error)?)
        .is_multiple_of(Bytes(u64::from(alignment.offset_bytes)));
    // The last, partial block of such a file could not be written without making the file longer.
    if !aligned_tail || alignment.memory_bytes as usize > BUFFER_ALIGNMENT_BYTES {
        return refused();
    }
    let flags = fs::fcntl_getfl(fd).map_err(open_error)?;
    match fs::fcntl_setfl(fd, flags | OFlags::DIRECT) {
        Ok(()) => Ok(Some(alignment)),
        Err(_) => refused(),
    }
}

/// The alignment the kernel demands; `None` when the file cannot be read directly.
fn demanded(fd: &OwnedFd, device_block: Option<u32>) -> Option<Alignment> {
    let fallback = Alignment { offset_bytes: device_block.unwrap_or(CAUTIOUS), memory_bytes: CAUTIOUS };
    let Ok(statx) = fs::statx(fd.as_fd(), "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN) else {
        return Some(fallback);
    };
    if statx.stx_mask & StatxFlags::DIOALIGN.bits() == 0 {
        return Some(fallback);
    }
    let (offset_bytes, memory_bytes) = (statx.stx_dio_offset_align, statx.stx_dio_mem_align);
    let usable = offset_bytes.is_power_of_two() && memory_bytes.is_power_of_two();
    usable.then(|| Alignment { offset_bytes: offset_bytes.max(512), memory_bytes })
}

impl FileDisk {
    /// A read of any range: straight into `buf` if it is aligned, otherwise by way of a bounce buffer.
    pub(super) fn read_direct(&self, alignment: Alignment, offset: Bytes, buf: &mut [u8]) -> Result<(), BlockError> {
        if alignment.holds(offset, buf) {
            return self.read_exact(offset, buf);
        }
        let block = u64::from(alignment.offset_bytes);
        let mut done = 0;
        while done < buf.len() {
            let at = offset.0 + done as u64;
            let first = at - at % block;
            let inside = index(at - first);
            let part = (buf.len() - done).min(BOUNCE_BYTES - inside);
            let whole = index((inside as u64 + part as u64).next_multiple_of(block));
            let mut bounce = self.shared.bounce.take(whole);
            let got_bytes = self.read_up_to(Bytes(first), &mut bounce)?;
            if got_bytes < inside + part {
                return Err(BlockError::new(BlockErrorKind::OutOfRange, "read", offset, buf.len() as u64));
            }
            buf[done..done + part].copy_from_slice(&bounce[inside..inside + part]);
            done += part;
        }
        Ok(())
    }

    /// A write of any range: straight from `buf` if it is aligned, otherwise block by block through a bounce buffer whose
    /// first and last block are read first.
    pub(super) fn write_direct(
        &self,
        alignment: Alignment,
        offset: Bytes,
        buf: &[u8],
        fua: bool,
    ) -> Result<(), BlockError> {
        let block = u64::from(alignment.offset_bytes);
        let end = offset.0 + buf.len() as u64;
        let _claimed = self.shared.ranges.acquire(write_claims(offset.0, end, block));
        if alignment.holds(offset, buf) {
            return self.write_all(offset, buf, fua);
        }
        if end.next_multiple_of(block) > self.size().0 {
            return Err(BlockError::new(BlockErrorKind::Unaligned, "write", offset, buf.len() as u64));
        }
        let mut done = 0;
        while done < buf.len() {
            let at = offset.0 + done as u64;
            let first = at - at % block;
            let inside = index(at - first);
            let part = (buf.len() - done).min(BOUNCE_BYTES - inside);
            let whole = index((inside as u64 + part as u64).next_multiple_of(block));
            let mut bounce = self.shared.bounce.take(whole);
            let block_bytes = index(block);
            if inside != 0 {
                self.read_exact(Bytes(first), &mut bounce[..block_bytes])?;
            }
            if inside + part != whole && (inside == 0 || whole > block_bytes) {
                let last = whole - block_bytes;
                self.read_exact(Bytes(first + last as u64), &mut bounce[last..])?;
            }
            bounce[inside..inside + part].copy_from_slice(&buf[done..done + part]);
            self.write_all(Bytes(first), &bounce, fua)?;
            done += part;
        }
        Ok(())
    }
}

impl Alignment {
    fn holds(self, offset: Bytes, buf: &[u8]) -> bool {
        let block = Bytes(u64::from(self.offset_bytes));
        offset.is_multiple_of(block)
            && Bytes::from_len(buf.len()).is_multiple_of(block)
            && buf.as_ptr().addr().is_multiple_of(self.memory_bytes as usize)
    }
}

/// A number that is bounded by [`BOUNCE_BYTES`] plus one block, as an index.
fn index(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}
