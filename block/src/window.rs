//! [`Window`]: a range of another disk, seen as a disk of its own.
//!
//! Invariants: nothing outside the range is touched; errors name offsets inside the window; a window without a length
//! follows the disk below as it grows.

use crate::{BlockError, BlockErrorKind, BlockIo, Bytes, Geometry};

/// A sub-range of a disk.
#[derive(Clone, Debug)]
pub struct Window<D> {
    inner: D,
    start: Bytes,
    len: Option<Bytes>,
}

impl<D: BlockIo> Window<D> {
    /// The `len` bytes of `inner` from `start`, or everything from there. A window that reaches past the end of the disk
    /// shows what is there.
    pub fn new(inner: D, start: Bytes, len: Option<Bytes>) -> Window<D> {
        Window { inner, start, len }
    }

    /// The disk below.
    pub fn inner(&self) -> &D {
        &self.inner
    }

    /// Gives the disk below back.
    pub fn into_inner(self) -> D {
        self.inner
    }

    /// Where the window begins in the disk below.
    pub fn start(&self) -> Bytes {
        self.start
    }

    /// The offset in the disk below, if the range lies inside the window.
    fn place(&self, op: &'static str, offset: Bytes, len_bytes: u64) -> Result<Bytes, BlockError> {
        self.geometry().check_range(op, offset, len_bytes)?;
        self.start.checked_add(offset).ok_or_else(|| BlockError::new(BlockErrorKind::OutOfRange, op, offset, len_bytes))
    }
}

impl<D: BlockIo> BlockIo for Window<D> {
    fn geometry(&self) -> Geometry {
        let mut geometry = self.inner.geometry();
        let rest = geometry.size.checked_sub(self.start).unwrap_or(Bytes::ZERO);
        geometry.size = self.len.map_or(rest, |len| len.min(rest));
        geometry
    }

    fn read_at(&self, offset: Bytes, buf: &mut [u8]) -> Result<(), BlockError> {
        let below = self.place("read", offset, buf.len() as u64)?;
        self.inner.read_at(below, buf).map_err(|error| error.at(offset))
    }

    fn write_at(&self, offset: Bytes, buf: &[u8], fua: bool) -> Result<(), BlockError> {
        let below = self.place("write", offset, buf.len() as u64)?;
        self.inner.write_at(below, buf, fua).map_err(|error| error.at(offset))
    }

    fn write_consuming(&self, offset: Bytes, buf: &mut [u8], fua: bool) -> Result<(), BlockError> {
        let below = self.place("write", offset, buf.len() as u64)?;
        self.inner.write_consuming(below, buf, fua).map_err(|error| error.at(offset))
    }

    fn write_zeroes(&self, offset: Bytes, len: Bytes) -> Result<(), BlockError> {
        let below = self.place("write zeroes", offset, len.0)?;
        self.inner.write_zeroes(below, len).map_err(|error| error.at(offset))
    }

    fn discard(&self, offset: Bytes, len: Bytes) -> Result<(), BlockError> {
        let below = self.place("discard", offset, len.0)?;
        self.inner.discard(below, len).map_err(|error| error.at(offset))
    }

    fn flush(&self) -> Result<(), BlockError> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MemDisk;

    #[test]
    fn a_window_never_touches_what_lies_outside() {
        let disk = MemDisk::new(Bytes(4096));
        let window = Window::new(&disk, Bytes(1024), Some(Bytes(1024)));
        assert_eq!(window.geometry().size, Bytes(1024));
        window.write_at(Bytes(512), &[5; 512], false).unwrap();
        let error = window.write_at(Bytes(512), &[5; 1024], false).unwrap_err();
        assert_eq!((error.kind, error.offset), (BlockErrorKind::OutOfRange, Bytes(512)));
        let mut all = [0; 4096];
        disk.read_at(Bytes(0), &mut all).unwrap();
        let written: Vec<usize> = (0..4096).filter(|&at| all[at] == 5).collect();
        assert_eq!(written, (1536..2048).collect::<Vec<_>>());
    }

    #[test]
    fn an_open_ended_window_grows_with_its_disk_and_is_empty_behind_it() {
        let disk = MemDisk::new(Bytes(4096));
        let window = Window::new(&disk, Bytes(8192), None);
        assert_eq!(window.geometry().size, Bytes(0));
        disk.set_len(Bytes(16384));
        assert_eq!(window.geometry().size, Bytes(8192));
    }
}
