//! [`BlockIo`]: positional block I/O through `&self`, the joint between bytes and everything that gives them a meaning.
//!
//! Invariants: an operation covers its whole range or fails (a failed write may have written any part of it); nothing is
//! ever read or written behind [`Geometry::size`]; a write whose `fua` is set, or that completed before a `flush` began,
//! survives a power cut once that call has returned `Ok`.

use crate::{BlockError, BlockErrorKind, Bytes};
use std::sync::Arc;

/// What a disk looks like now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// How long it is. It may grow between two calls.
    pub size: Bytes,
    /// Offsets and lengths are multiples of this many bytes, a power of two.
    pub logical_block: u32,
    /// The disk writes this many bytes in one piece; a multiple of `logical_block`.
    pub physical_block: u32,
    /// Buffers begin at multiples of this many bytes, or are copied once more.
    pub memory_alignment: u32,
    /// Whether every write is refused.
    pub read_only: bool,
}

impl Geometry {
    /// Checks that `offset` and `len_bytes` are whole logical blocks inside the disk.
    ///
    /// # Errors
    /// [`BlockErrorKind::Unaligned`] and [`BlockErrorKind::OutOfRange`].
    pub fn check(&self, op: &'static str, offset: Bytes, len_bytes: u64) -> Result<(), BlockError> {
        let block = Bytes(u64::from(self.logical_block));
        if !offset.is_multiple_of(block) || !Bytes(len_bytes).is_multiple_of(block) {
            return Err(BlockError::new(BlockErrorKind::Unaligned, op, offset, len_bytes));
        }
        self.check_range(op, offset, len_bytes)
    }

    /// Checks that the range lies inside the disk.
    ///
    /// # Errors
    /// [`BlockErrorKind::OutOfRange`].
    pub fn check_range(&self, op: &'static str, offset: Bytes, len_bytes: u64) -> Result<(), BlockError> {
        match offset.checked_add(Bytes(len_bytes)) {
            Some(end) if end <= self.size => Ok(()),
            _ => Err(BlockError::new(BlockErrorKind::OutOfRange, op, offset, len_bytes)),
        }
    }

    /// Checks that the disk takes writes.
    ///
    /// # Errors
    /// [`BlockErrorKind::ReadOnly`].
    pub fn check_writable(&self, op: &'static str, offset: Bytes, len_bytes: u64) -> Result<(), BlockError> {
        if self.read_only {
            return Err(BlockError::new(BlockErrorKind::ReadOnly, op, offset, len_bytes));
        }
        Ok(())
    }
}

/// Positional block I/O. Every method may be called from any thread.
pub trait BlockIo: Send + Sync {
    /// Size, block sizes and flags as they are now.
    fn geometry(&self) -> Geometry;

    /// Fills all of `buf` from `offset`.
    ///
    /// # Errors
    /// [`BlockErrorKind::OutOfRange`] when the range ends behind the disk, [`BlockErrorKind::Unaligned`] when it is not
    /// made of logical blocks and the disk cannot help, and whatever the medium says.
    fn read_at(&self, offset: Bytes, buf: &mut [u8]) -> Result<(), BlockError>;

    /// Writes all of `buf` at `offset`; with `fua` it is durable on return.
    ///
    /// # Errors
    /// As [`BlockIo::read_at`], [`BlockErrorKind::ReadOnly`] and [`BlockErrorKind::NoSpace`].
    fn write_at(&self, offset: Bytes, buf: &[u8], fua: bool) -> Result<(), BlockError>;

    /// As [`BlockIo::write_at`], for a caller that needs `buf` no longer: what it holds afterwards is undefined. A disk that changes what
    /// it writes may do it there and save a copy.
    ///
    /// # Errors
    /// As [`BlockIo::write_at`].
    fn write_consuming(&self, offset: Bytes, buf: &mut [u8], fua: bool) -> Result<(), BlockError> {
        self.write_at(offset, buf, fua)
    }

    /// Makes the range read as zeros. Durable after the next flush.
    ///
    /// # Errors
    /// As [`BlockIo::write_at`], or [`BlockErrorKind::Unsupported`] when the disk cannot do better than writing zeros.
    fn write_zeroes(&self, offset: Bytes, len: Bytes) -> Result<(), BlockError>;

    /// Gives the range up: what it reads as afterwards is undefined.
    ///
    /// # Errors
    /// As [`BlockIo::write_zeroes`].
    fn discard(&self, offset: Bytes, len: Bytes) -> Result<(), BlockError>;

    /// Makes every write durable that completed on any thread before this call.
    ///
    /// # Errors
    /// What the medium says. After an error nothing is known about the writes since the last good flush.
    fn flush(&self) -> Result<(), BlockError>;
}

macro_rules! forward_block_io {
    ($($pointer:ty),*) => {$(
        impl<T: BlockIo + ?Sized> BlockIo for $pointer {
            fn geometry(&self) -> Geometry {
                (**self).geometry()
            }
            fn read_at(&self, offset: Bytes, buf: &mut [u8]) -> Result<(), BlockError> {
                (**self).read_at(offset, buf)
            }
            fn write_at(&self, offset: Bytes, buf: &[u8], fua: bool) -> Result<(), BlockError> {
                (**self).write_at(offset, buf, fua)
            }
            fn write_consuming(&self, offset: Bytes, buf: &mut [u8], fua: bool) -> Result<(), BlockError> {
                (**self).write_consuming(offset, buf, fua)
            }
            fn write_zeroes(&self, offset: Bytes, len: Bytes) -> Result<(), BlockError> {
                (**self).write_zeroes(offset, len)
            }
            fn discard(&self, offset: Bytes, len: Bytes) -> Result<(), BlockError> {
                (**self).discard(offset, len)
            }
            fn flush(&self) -> Result<(), BlockError> {
                (**self).flush()
            }
        }
    )*};
}

forward_block_io!(&T, Box<T>, Arc<T>);
