//! [`ByteView`]: byte-granular access to a block-granular disk; the one place of the workspace that does it.
//!
//! A write that covers a block in part reads the block, changes it and writes it back. Invariants: two such writes into one
//! block never lose each other's bytes, a write of whole blocks never falls between another's read and write back, and a
//! read never sees a block half written back, all by claims on ranges ([`crate::range_lock`]). That holds among users of
//! one view: a disk must not be written through two of them.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::range_lock::{Claim, RangeGuard, RangeLock, write_claims};
use crate::{BlockError, BlockErrorKind, BlockIo, BufferPool, Bytes};

/// Bytes written per piece where zeros must be written.
const PIECE_BYTES: usize = 1 << 20;
/// Capacity of a kept buffer: one block, of the largest size that Linux has for a device.
const BUFFER_BYTES: usize = 64 << 10;

/// Reads and writes any byte range of a disk.
pub struct ByteView<D: BlockIo> {
    disk: D,
    /// Asked for once: it never changes while a disk is open.
    block_bytes: u64,
    /// Size when it was last asked for. Asking may be a system call, so it is done again only for what lies behind it.
    size_seen: AtomicU64,
    ranges: RangeLock,
    buffers: BufferPool,
}

/// A range cut at block boundaries: a part of the first block, whole blocks, a part of the last one. Empty parts are
/// possible; a range inside one block is all head.
struct Cut {
    head: (u64, usize),
    middle: (u64, u64),
    tail: (u64, usize),
}

impl Cut {
    fn new(start: u64, len_bytes: u64, block_bytes: u64) -> Cut {
        let end = start + len_bytes;
        let middle_start = start.next_multiple_of(block_bytes).min(end);
        let middle_end = (end - end % block_bytes).max(middle_start);
        // Head and tail are shorter than a block, and a block size is a u32.
        let short = |bytes: u64| usize::try_from(bytes).unwrap_or(0);
        Cut {
            head: (start, short(middle_start - start)),
            middle: (middle_start, middle_end - middle_start),
            tail: (middle_end, short(end - middle_end)),
        }
    }
}

impl<D: BlockIo> ByteView<D> {
    /// A view of `disk`, which nobody else writes from now on.
    pub fn new(disk: D) -> ByteView<D> {
        let block_bytes = u64::from(disk.geometry().logical_block.max(1));
        ByteView {
            disk,
            block_bytes,
            size_seen: AtomicU64::new(0),
            ranges: RangeLock::default(),
            buffers: BufferPool::new(BUFFER_BYTES),
        }
    }

    /// The disk below.
    pub fn disk(&self) -> &D {
        &self.disk
    }

    /// Allocates the buffers of `count` concurrent requests now, so that none is allocated under memory pressure.
    pub fn reserve_buffers(&self, count: usize) {
        self.buffers.fill(count);
    }

    /// How many bytes there are: the whole blocks of the disk.
    pub fn size(&self) -> Bytes {
        let size = self.disk.geometry().size.round_down(Bytes(self.block_bytes));
        self.size_seen.store(size.0, Ordering::Relaxed);
        size
    }

    /// How much of the range there is, without asking the disk for what was there when it was asked last. Of a disk that has
    /// shrunk since, the disk itself says so.
    pub fn room(&self, offset: Bytes, len_bytes: u64) -> u64 {
        let within = |size: u64| size.saturating_sub(offset.0).min(len_bytes);
        match within(self.size_seen.load(Ordering::Relaxed)) {
            all if all == len_bytes => all,
            _ => within(self.size().0),
        }
    }

    fn check(&self, op: &'static str, offset: Bytes, len_bytes: u64) -> Result<u64, BlockError> {
        // Of a change the disk is always asked: of a file that somebody made shorter meanwhile, a write would make it longer again.
        // A read finds out by itself.
        if op != "read" || self.room(offset, len_bytes) < len_bytes {
            self.disk.geometry().check_range(op, offset, len_bytes)?;
        }
        Ok(self.block_bytes)
    }

    /// Fills all of `buf` from byte `offset`.
    ///
    /// # Errors
    /// As [`BlockIo::read_at`], without the demand on alignment.
    pub fn read(&self, offset: Bytes, buf: &mut [u8]) -> Result<(), BlockError> {
        if buf.is_empty() {
            return Ok(());
        }
        let block = self.check("read", offset, buf.len() as u64)?;
        let cut = Cut::new(offset.0, buf.len() as u64, block);
        let last = (offset.0 + buf.len() as u64).next_multiple_of(block);
        let _claimed = self.ranges.acquire([Some(Claim::shared(offset.0 - offset.0 % block, last)), None, None]);
        let (head, rest) = buf.split_at_mut(cut.head.1);
        let (middle, tail) = rest.split_at_mut(rest.len() - cut.tail.1);
        self.read_part(cut.head.0, head, block)?;
        if !middle.is_empty() {
            self.disk.read_at(Bytes(cut.middle.0), middle)?;
        }
        self.read_part(cut.tail.0, tail, block)
    }

    /// Reads a part of one block.
    fn read_part(&self, start: u64, part: &mut [u8], block: u64) -> Result<(), BlockError> {
        if part.is_empty() {
            return Ok(());
        }
        let inside = index(start % block);
        let mut whole = self.buffers.take(index(block));
        self.disk.read_at(Bytes(start - start % block), &mut whole)?;
        part.copy_from_slice(&whole[inside..inside + part.len()]);
        Ok(())
    }

    /// Writes all of `buf` at byte `offset`; with `fua` it is durable on return.
    ///
    /// # Errors
    /// As [`BlockIo::write_at`], without the demand on alignment. A failed write may have written any part.
    pub fn write(&self, offset: Bytes, buf: &[u8], fua: bool) -> Result<(), BlockError> {
        let Some((cut, block, _claimed)) = self.begin_write(offset, buf.len())? else { return Ok(()) };
        let (head, rest) = buf.split_at(cut.head.1);
        let (middle, tail) = rest.split_at(rest.len() - cut.tail.1);
        self.change_part(cut.head.0, head.len(), block, fua, |part| part.copy_from_slice(head))?;
        if !middle.is_empty() {
            self.disk.write_at(Bytes(cut.middle.0), middle, fua)?;
        }
        self.change_part(cut.tail.0, tail.len(), block, fua, |part| part.copy_from_slice(tail))
    }

    /// The same, for a caller that needs `buf` no longer: what it holds afterwards is undefined ([`BlockIo::write_consuming`]).
    ///
    /// # Errors
    /// As [`ByteView::write`].
    pub fn write_consuming(&self, offset: Bytes, buf: &mut [u8], fua: bool) -> Result<(), BlockError> {
        let Some((cut, block, _claimed)) = self.begin_write(offset, buf.len())? else { return Ok(()) };
        let (head, rest) = buf.split_at_mut(cut.head.1);
        let (middle, tail) = rest.split_at_mut(rest.len() - cut.tail.1);
        self.change_part(cut.head.0, head.len(), block, fua, |part| part.copy_from_slice(head))?;
        if !middle.is_empty() {
            self.disk.write_consuming(Bytes(cut.middle.0), middle, fua)?;
        }
        self.change_part(cut.tail.0, tail.len(), block, fua, |part| part.copy_from_slice(tail))
    }

    /// The checks and the claim of a write; `None` if there is nothing to write.
    fn begin_write(&self, offset: Bytes, len_bytes: usize) -> Result<Option<(Cut, u64, RangeGuard<'_>)>, BlockError> {
        if len_bytes == 0 {
            return Ok(None);
        }
        let len_bytes = len_bytes as u64;
        let block = self.check("write", offset, len_bytes)?;
        let claim = self.ranges.acquire(write_claims(offset.0, offset.0 + len_bytes, block));
        Ok(Some((Cut::new(offset.0, len_bytes, block), block, claim)))
    }

    /// Reads one block, changes a part of it and writes it back. The caller holds the claim.
    fn change_part(
        &self,
        start: u64,
        len_bytes: usize,
        block: u64,
        fua: bool,
        change: impl FnOnce(&mut [u8]),
    ) -> Result<(), BlockError> {
        if len_bytes == 0 {
            return Ok(());
        }
        let (first, inside) = (Bytes(start - start % block), index(start % block));
        let mut whole = self.buffers.take(index(block));
        self.disk.read_at(first, &mut whole)?;
        change(&mut whole[inside..inside + len_bytes]);
        self.disk.write_at(first, &whole, fua)
    }

    /// Makes the range read as zeros: by the disk's own means, or by writing zeros where it has none.
    ///
    /// # Errors
    /// As [`ByteView::write`].
    pub fn write_zeroes(&self, offset: Bytes, len: Bytes) -> Result<(), BlockError> {
        if len == Bytes::ZERO {
            return Ok(());
        }
        let block = self.check("write zeroes", offset, len.0)?;
        let cut = Cut::new(offset.0, len.0, block);
        let _claimed = self.ranges.acquire(write_claims(offset.0, offset.0 + len.0, block));
        self.change_part(cut.head.0, cut.head.1, block, false, |part| part.fill(0))?;
        if cut.middle.1 > 0 {
            zero_fill(&self.disk, Bytes(cut.middle.0), Bytes(cut.middle.1))?;
        }
        self.change_part(cut.tail.0, cut.tail.1, block, false, |part| part.fill(0))
    }

    /// Makes every write durable that completed before this call.
    ///
    /// # Errors
    /// As [`BlockIo::flush`].
    pub fn flush(&self) -> Result<(), BlockError> {
        self.disk.flush()
    }
}

/// Makes whole blocks read as zeros: [`BlockIo::write_zeroes`], or written zeros where the disk does not support it.
///
/// # Errors
/// As [`BlockIo::write_at`].
pub fn zero_fill<D: BlockIo + ?Sized>(disk: &D, offset: Bytes, len: Bytes) -> Result<(), BlockError> {
    match disk.write_zeroes(offset, len) {
        Err(error) if error.kind == BlockErrorKind::Unsupported => {}
        result => return result,
    }
    let zeros = crate::AlignedBuf::zeroed(index(len.0.min(PIECE_BYTES as u64)));
    let mut done = 0;
    while done < len.0 {
        let piece = index((len.0 - done).min(PIECE_BYTES as u64));
        disk.write_at(Bytes(offset.0 + done), &zeros[..piece], false)?;
        done += piece as u64;
    }
    Ok(())
}

/// A number that is at most a block or a piece, as an index.
fn index(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests;
