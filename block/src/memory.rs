//! [`MemDisk`]: a disk in memory, sparse, of any size, with a chosen block size.
//!
//! Invariants: what was never written reads as zeros; discarded ranges read as zeros too (one of the results a discard may
//! have); every write is durable at once, for there is no power to lose. [`MemDisk::snapshot`] is cheap (copy on write).

use crate::chunks::Chunks;
use crate::{BlockError, BlockIo, Bytes, Geometry};
use std::sync::{PoisonError, RwLock};

/// A disk in memory.
pub struct MemDisk {
    body: RwLock<Body>,
}

struct Body {
    chunks: Chunks,
    geometry: Geometry,
}

impl MemDisk {
    /// A disk of `size` zero bytes with 512-byte blocks.
    pub fn new(size: Bytes) -> MemDisk {
        MemDisk::with_block(size, 512)
    }

    /// A disk of `size` zero bytes whose logical and physical blocks have `block_bytes` bytes (a power of two).
    pub fn with_block(size: Bytes, block_bytes: u32) -> MemDisk {
        let geometry = Geometry {
            size,
            logical_block: block_bytes,
            physical_block: block_bytes,
            memory_alignment: 1,
            read_only: false,
        };
        MemDisk::from_parts(Chunks::default(), geometry)
    }

    /// A disk that holds `content`, 512-byte blocks; its size is the length of `content`.
    pub fn from_bytes(content: &[u8]) -> MemDisk {
        let disk = MemDisk::new(Bytes::from_len(content.len()));
        disk.write_body(|body| body.chunks.write(0, content));
        disk
    }

    pub(crate) fn from_parts(chunks: Chunks, geometry: Geometry) -> MemDisk {
        MemDisk { body: RwLock::new(Body { chunks, geometry }) }
    }

    /// The content, shared until either side writes, and the geometry.
    pub(crate) fn parts(&self) -> (Chunks, Geometry) {
        self.read_body(|body| (body.chunks.clone(), body.geometry))
    }

    /// A second disk with the same content now; each then goes its own way.
    pub fn snapshot(&self) -> MemDisk {
        let (chunks, geometry) = self.parts();
        MemDisk::from_parts(chunks, geometry)
    }

    /// Grows or shrinks the disk; new bytes read as zeros.
    pub fn set_len(&self, len: Bytes) {
        self.write_body(|body| {
            if let Some(cut) = body.geometry.size.checked_sub(len) {
                body.chunks.zero(len.0, cut.0);
            }
            body.geometry.size = len;
        });
    }

    /// Refuses every write from now on, or takes them again.
    pub fn set_read_only(&self, read_only: bool) {
        self.write_body(|body| body.geometry.read_only = read_only);
    }

    fn read_body<R>(&self, f: impl FnOnce(&Body) -> R) -> R {
        f(&self.body.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn write_body<R>(&self, f: impl FnOnce(&mut Body) -> R) -> R {
        f(&mut self.body.write().unwrap_or_else(PoisonError::into_inner))
    }

    fn zero(&self, op: &'static str, offset: Bytes, len: Bytes) -> Result<(), BlockError> {
        self.write_body(|body| {
            body.geometry.check_writable(op, offset, len.0)?;
            body.geometry.check(op, offset, len.0)?;
            body.chunks.zero(offset.0, len.0);
            Ok(())
        })
    }
}

impl BlockIo for MemDisk {
    fn geometry(&self) -> Geometry {
        self.read_body(|body| body.geometry)
    }

    fn read_at(&self, offset: Bytes, buf: &mut [u8]) -> Result<(), BlockError> {
        self.read_body(|body| {
            body.geometry.check("read", offset, buf.len() as u64)?;
            body.chunks.read(offset.0, buf);
            Ok(())
        })
    }

    fn write_at(&self, offset: Bytes, buf: &[u8], _fua: bool) -> Result<(), BlockError> {
        self.write_body(|body| {
            body.geometry.check_writable("write", offset, buf.len() as u64)?;
            body.geometry.check("write", offset, buf.len() as u64)?;
            body.chunks.write(offset.0, buf);
            Ok(())
        })
    }

    fn write_zeroes(&self, offset: Bytes, len: Bytes) -> Result<(), BlockError> {
        self.zero("write zeroes", offset, len)
    }

    fn discard(&self, offset: Bytes, len: Bytes) -> Result<(), BlockError> {
        self.zero("discard", offset, len)
    }

    fn flush(&self) -> Result<(), BlockError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::BlockErrorKind;

    #[test]
    fn range_alignment_and_read_only_are_refused_by_kind() {
        let disk = MemDisk::with_block(Bytes(8192), 4096);
        let kind = |result: Result<(), BlockError>| result.map_err(|error| error.kind).unwrap_err();
        let mut block = [0; 4096];
        assert_eq!(kind(disk.read_at(Bytes(8192), &mut block)), BlockErrorKind::OutOfRange);
        assert_eq!(kind(disk.read_at(Bytes(u64::MAX - 4095), &mut block)), BlockErrorKind::OutOfRange);
        assert_eq!(kind(disk.read_at(Bytes(512), &mut block)), BlockErrorKind::Unaligned);
        disk.set_read_only(true);
        assert_eq!(kind(disk.write_at(Bytes(0), &block, false)), BlockErrorKind::ReadOnly);
        assert_eq!(kind(disk.discard(Bytes(0), Bytes(4096))), BlockErrorKind::ReadOnly);
    }

    #[test]
    fn a_disk_that_shrank_and_grew_reads_zeros_there() {
        let disk = MemDisk::from_bytes(&[7; 2048]);
        disk.set_len(Bytes(1024));
        disk.set_len(Bytes(2048));
        let mut all = [1; 2048];
        disk.read_at(Bytes(0), &mut all).unwrap();
        assert_eq!(&all[..1024], &[7; 1024]);
        assert_eq!(&all[1024..], &[0; 1024]);
    }
}
