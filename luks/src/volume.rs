//! The unlocked volume as a block device: plaintext above, ciphertext on any [`BlockIo`] below.
//!
//! * From many threads at once, without a lock between them: a [`SegmentMap`] behind a gate (see `volume/gate.rs`).
//! * Reads decrypt in place, in the caller's buffer. Writes encrypt out of place into pooled, aligned buffers of at most
//!   [`CHUNK_BYTES`], so a caller's plaintext is never overwritten and nothing is allocated in steady state; in place where the caller
//!   gives its buffer up ([`BlockIo::write_consuming`]).
//! * A range of zeroes becomes *encrypted* zeroes: a hole below would read back as garbage. A discard goes through only where
//!   [`Volume::with_discards`] allowed it.
//! * After a failed flush or a lost write the volume is **poisoned**: every later write and flush answers `Io` until the
//!   volume is opened again, for the data behind the failure may be gone and must not be declared safe by the next flush.
//!   A write is lost when the disk answers `Io`, `Gone` or `Integrity`. A full disk (`NoSpace`) is an answer to that one
//!   write, and a refusal of the request (range, alignment, read-only) has written nothing.
//! * By submission and completion: [`VolumeQueue`], behind the same gate.
//! * [`Volume::suspend`] drops the ciphers, which wipes their round keys; I/O then blocks until [`Volume::resume`].
//!
//! Logical block = the largest sector size in the map; requests that are not made of whole blocks are `Unaligned`
//! (`block::ByteView` above gives bytes). IVs: luks2-format §8.1. Size: §7.1.

mod gate;
mod lane;
mod map;
mod queue;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};

use block::{BlockError, BlockErrorKind, BlockIo, BufferPool, Bytes, Geometry};

use gate::{Entered, Gate, Parked};
pub use map::{Extent, MapEntry, SegmentMap, Target};
use map::{Piece, Shape};
pub use queue::VolumeQueue;

/// Largest piece that is encrypted and written in one go.
pub const CHUNK_BYTES: usize = 1 << 20;

/// An unlocked volume over the data device `D`.
pub struct Volume<D: BlockIo> {
    disk: D,
    gate: Gate<SegmentMap>,
    /// Outlives the map while the volume is suspended.
    shape: RwLock<Shape>,
    /// Size of the volume when it was last asked for; it only grows.
    known_size: AtomicU64,
    /// What the disk wants of memory that it is handed.
    memory_alignment: usize,
    read_only: bool,
    discards: bool,
    poisoned: AtomicBool,
    /// Writes that wait for [`Volume::resume`].
    waiting_writes: AtomicU64,
    refused_writes: AtomicBool,
    buffers: BufferPool,
}

/// A volume whose every request has ended and where no new one begins, until this is dropped.
pub struct ParkedVolume<'a, D: BlockIo> {
    volume: &'a Volume<D>,
    parked: Parked<'a, SegmentMap>,
}

impl<D: BlockIo> Volume<D> {
    /// A volume of `map` on `disk`. Only a map made from a [`crate::volume_key::VolumeKey`] belongs here; see
    /// [`crate::container::Container::volume`].
    pub fn new(disk: D, map: SegmentMap, read_only: bool) -> Volume<D> {
        let shape = map.shape();
        let below = disk.geometry();
        let known_size = AtomicU64::new(shape.size_on(below.size).0);
        Volume {
            disk,
            gate: Gate::new(map),
            shape: RwLock::new(shape),
            known_size,
            memory_alignment: below.memory_alignment.max(1) as usize,
            read_only,
            discards: false,
            poisoned: AtomicBool::new(false),
            waiting_writes: AtomicU64::new(0),
            refused_writes: AtomicBool::new(false),
            buffers: BufferPool::new(CHUNK_BYTES),
        }
    }

    /// Lets discards through to the data device. They tell whoever reads it which sectors are in use.
    #[must_use]
    pub fn with_discards(mut self, allowed: bool) -> Volume<D> {
        self.discards = allowed;
        self
    }

    /// Allocates the buffers of `threads` writers now, at most [`BufferPool::KEPT`], so that none must be had while the system
    /// is short of memory and waits for this very volume.
    pub fn allocate_buffers(&self, threads: usize) {
        self.buffers.fill(threads);
    }

    /// The data device.
    pub fn disk(&self) -> &D {
        &self.disk
    }

    /// Waits until every request inside has ended and lets no new one in until the guard is dropped.
    pub fn park(&self) -> ParkedVolume<'_, D> {
        ParkedVolume { volume: self, parked: self.gate.park() }
    }

    /// Parks, drains, puts `map` in the place of the old one, and goes on.
    ///
    /// # Errors
    /// `Suspended` if the volume is suspended: then [`Volume::resume`] is the way.
    pub fn swap_map(&self, map: SegmentMap) -> Result<(), BlockError> {
        let mut parked = self.park();
        if parked.map().is_none() {
            return Err(refusal(BlockErrorKind::Suspended, "swap map", 0, 0));
        }
        parked.replace(map);
        Ok(())
    }

    /// Drains, then drops the ciphers and so wipes their keys. Later I/O blocks until [`Volume::resume`] or
    /// [`Volume::fail_suspended`].
    pub fn suspend(&self) {
        self.gate.park().replace(None);
    }

    /// Opens a suspended volume again with `map`, made of a key that a digest accepted anew.
    pub fn resume(&self, map: SegmentMap) {
        self.park().replace(map);
    }

    /// Whether the volume is suspended.
    pub fn is_suspended(&self) -> bool {
        self.gate.is_closed()
    }

    /// Ends every request that waits for [`Volume::resume`], and every later one, with `Suspended`: the way to shut down.
    pub fn fail_suspended(&self) {
        self.gate.fail_closed();
    }

    /// How many writes wait for [`Volume::resume`]. Their data is nowhere but in the memory of who sent them, and a page cache
    /// that is told of a failure drops it.
    pub fn waiting_writes(&self) -> u64 {
        self.waiting_writes.load(Ordering::SeqCst)
    }

    /// Whether [`Volume::fail_suspended`] ever sent a write away.
    pub fn has_refused_writes(&self) -> bool {
        self.refused_writes.load(Ordering::SeqCst)
    }

    /// Makes every later write and flush answer `Io`, until the volume is opened again.
    pub fn poison(&self) {
        self.poisoned.store(true, Ordering::SeqCst);
    }

    /// Whether a flush failed or a write was lost since the volume was opened.
    pub fn is_poisoned(&self) -> bool {
        self.poisoned.load(Ordering::SeqCst)
    }

    fn shape(&self) -> Shape {
        *self.shape.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_shape(&self, shape: Shape) {
        *self.shape.write().unwrap_or_else(PoisonError::into_inner) = shape;
        self.known_size.store(shape.size_on(self.disk.geometry().size).0, Ordering::Relaxed);
    }

    fn enter(&self, op: &'static str, offset: Bytes, len_bytes: u64) -> Result<Entered<'_, SegmentMap>, BlockError> {
        self.gate.enter().map_err(|_| refusal(BlockErrorKind::Suspended, op, offset.0, len_bytes))
    }

    /// As `enter`, counted while it waits and remembered if it is sent away.
    fn enter_to_write(
        &self,
        op: &'static str,
        offset: Bytes,
        len_bytes: u64,
    ) -> Result<Entered<'_, SegmentMap>, BlockError> {
        if let Some(entered) = self.gate.try_enter() {
            return Ok(entered);
        }
        self.waiting_writes.fetch_add(1, Ordering::SeqCst);
        let entered = self.enter(op, offset, len_bytes);
        if entered.is_err() {
            self.refused_writes.store(true, Ordering::SeqCst);
        }
        self.waiting_writes.fetch_sub(1, Ordering::SeqCst);
        entered
    }

    /// Whole blocks, inside the volume. Asks the disk for its size only when the last known one does not suffice.
    fn check_range(&self, map: &SegmentMap, op: &'static str, offset: Bytes, len_bytes: u64) -> Result<(), BlockError> {
        let block = map.block_bytes();
        if !offset.0.is_multiple_of(block) || !len_bytes.is_multiple_of(block) {
            return Err(refusal(BlockErrorKind::Unaligned, op, offset.0, len_bytes));
        }
        let out_of_range = || refusal(BlockErrorKind::OutOfRange, op, offset.0, len_bytes);
        let end = offset.0.checked_add(len_bytes).ok_or_else(out_of_range)?;
        if end > self.known_size.load(Ordering::Relaxed) {
            let size = map.size_on(self.disk.geometry().size);
            self.known_size.store(size.0, Ordering::Relaxed);
            if end > size.0 {
                return Err(out_of_range());
            }
        }
        Ok(())
    }

    fn check_writable(&self, op: &'static str, offset: Bytes, len_bytes: u64) -> Result<(), BlockError> {
        if self.read_only {
            return Err(refusal(BlockErrorKind::ReadOnly, op, offset.0, len_bytes));
        }
        self.check_healthy(op, offset, len_bytes)
    }

    /// Enters the gate for a write that may be carried out.
    fn enter_checked_write(
        &self,
        op: &'static str,
        offset: Bytes,
        len_bytes: u64,
    ) -> Result<Entered<'_, SegmentMap>, BlockError> {
        self.check_writable(op, offset, len_bytes)?;
        let entered = self.enter_to_write(op, offset, len_bytes)?;
        self.check_range(in_force(&entered, op)?, op, offset, len_bytes)?;
        self.check_healthy(op, offset, len_bytes)?;
        Ok(entered)
    }

    fn check_healthy(&self, op: &'static str, offset: Bytes, len_bytes: u64) -> Result<(), BlockError> {
        if self.is_poisoned() {
            return Err(refusal(BlockErrorKind::Io, op, offset.0, len_bytes));
        }
        Ok(())
    }

    /// Notes whether a failed write below lost data.
    fn written(&self, result: Result<(), BlockError>) -> Result<(), BlockError> {
        if let Err(error) = &result
            && matches!(error.kind, BlockErrorKind::Io | BlockErrorKind::Gone | BlockErrorKind::Integrity)
        {
            self.poison();
        }
        result
    }

    /// Calls `visit` for each piece of the range that lies in one segment and is no longer than `max_bytes`, with the piece's
    /// position in the request. A piece's length always fits `usize`, because it is at most `max_bytes` or a buffer's length.
    fn for_pieces<'m>(
        map: &'m SegmentMap,
        op: &'static str,
        range: (Bytes, u64),
        max_bytes: u64,
        mut visit: impl FnMut(u64, Piece<'m>) -> Result<(), BlockError>,
    ) -> Result<(), BlockError> {
        let (offset, len_bytes) = range;
        let mut done = 0u64;
        while done < len_bytes {
            let piece = map
                .piece(offset.0 + done, (len_bytes - done).min(max_bytes))
                .ok_or_else(|| refusal(BlockErrorKind::OutOfRange, op, offset.0 + done, len_bytes - done))?;
            let len_piece_bytes = piece.len_bytes;
            visit(done, piece)?;
            done += len_piece_bytes;
        }
        Ok(())
    }
}

impl<D: BlockIo> ParkedVolume<'_, D> {
    /// The data device, which nobody else touches through this volume now.
    pub fn disk(&self) -> &D {
        &self.volume.disk
    }

    /// The map in force; `None` if the volume is suspended.
    pub fn map(&self) -> Option<&SegmentMap> {
        self.parked.value()
    }

    /// Puts `map` in force. The keys of the old one are wiped if nobody else holds them.
    pub fn replace(&mut self, map: SegmentMap) {
        self.volume.set_shape(map.shape());
        self.parked.replace(Some(map));
    }
}

impl<D: BlockIo> BlockIo for Volume<D> {
    fn geometry(&self) -> Geometry {
        let below = self.disk.geometry();
        let shape = self.shape();
        // A sector size is at most 4096, so it fits.
        let logical_block = u32::try_from(shape.block_bytes()).unwrap_or(u32::MAX);
        Geometry {
            size: shape.size_on(below.size),
            logical_block,
            physical_block: below.physical_block.max(logical_block),
            memory_alignment: below.memory_alignment,
            read_only: self.read_only || below.read_only,
        }
    }

    fn read_at(&self, offset: Bytes, buf: &mut [u8]) -> Result<(), BlockError> {
        const OP: &str = "read";
        let len_bytes = buf.len() as u64;
        let entered = self.enter(OP, offset, len_bytes)?;
        let map = in_force(&entered, OP)?;
        self.check_range(map, OP, offset, len_bytes)?;
        let mut rest = buf;
        Self::for_pieces(map, OP, (offset, len_bytes), u64::MAX, |_, piece| {
            let (part, after) = std::mem::take(&mut rest).split_at_mut(piece_len(&piece)?);
            rest = after;
            self.disk.read_at(piece.device_offset, part)?;
            if let Some((cipher, iv_sector)) = piece.crypt {
                cipher.decrypt_in_place(iv_sector, part);
            }
            Ok(())
        })
    }

    fn write_at(&self, offset: Bytes, buf: &[u8], fua: bool) -> Result<(), BlockError> {
        const OP: &str = "write";
        let len_bytes = buf.len() as u64;
        let entered = self.enter_checked_write(OP, offset, len_bytes)?;
        let map = in_force(&entered, OP)?;
        let mut rest = buf;
        Self::for_pieces(map, OP, (offset, len_bytes), CHUNK_BYTES as u64, |_, piece| {
            let (part, after) = rest.split_at(piece_len(&piece)?);
            rest = after;
            let Some((cipher, iv_sector)) = piece.crypt else {
                return self.written(self.disk.write_at(piece.device_offset, part, fua));
            };
            let mut sealed = self.buffers.take(part.len());
            cipher.encrypt(iv_sector, part, &mut sealed);
            self.written(self.disk.write_at(piece.device_offset, &sealed, fua))
        })
    }

    fn write_consuming(&self, offset: Bytes, buf: &mut [u8], fua: bool) -> Result<(), BlockError> {
        const OP: &str = "write";
        if !buf.as_ptr().addr().is_multiple_of(self.memory_alignment) {
            // The disk below would copy it: rather encrypt into memory that it takes.
            return self.write_at(offset, buf, fua);
        }
        let len_bytes = buf.len() as u64;
        let entered = self.enter_checked_write(OP, offset, len_bytes)?;
        let map = in_force(&entered, OP)?;
        let mut rest = buf;
        Self::for_pieces(map, OP, (offset, len_bytes), u64::MAX, |_, piece| {
            let (part, after) = std::mem::take(&mut rest).split_at_mut(piece_len(&piece)?);
            rest = after;
            if let Some((cipher, iv_sector)) = piece.crypt {
                cipher.encrypt_in_place(iv_sector, part);
            }
            self.written(self.disk.write_consuming(piece.device_offset, part, fua))
        })
    }

    fn write_zeroes(&self, offset: Bytes, len: Bytes) -> Result<(), BlockError> {
        const OP: &str = "write zeroes";
        let entered = self.enter_checked_write(OP, offset, len.0)?;
        let map = in_force(&entered, OP)?;
        Self::for_pieces(map, OP, (offset, len.0), CHUNK_BYTES as u64, |_, piece| {
            let mut zeroes = self.buffers.take(piece_len(&piece)?);
            zeroes.fill(0);
            if let Some((cipher, iv_sector)) = piece.crypt {
                cipher.encrypt_in_place(iv_sector, &mut zeroes);
            }
            self.written(self.disk.write_at(piece.device_offset, &zeroes, false))
        })
    }

    fn discard(&self, offset: Bytes, len: Bytes) -> Result<(), BlockError> {
        const OP: &str = "discard";
        self.check_writable(OP, offset, len.0)?;
        if !self.discards {
            return Err(refusal(BlockErrorKind::Unsupported, OP, offset.0, len.0));
        }
        let entered = self.enter(OP, offset, len.0)?;
        let map = in_force(&entered, OP)?;
        self.check_range(map, OP, offset, len.0)?;
        Self::for_pieces(map, OP, (offset, len.0), u64::MAX, |_, piece| {
            self.written(self.disk.discard(piece.device_offset, Bytes(piece.len_bytes)))
        })
    }

    fn flush(&self) -> Result<(), BlockError> {
        const OP: &str = "flush";
        let _entered = self.enter(OP, Bytes(0), 0)?;
        self.check_healthy(OP, Bytes(0), 0)?;
        if let Err(error) = self.disk.flush() {
            self.poison();
            return Err(error);
        }
        // A write may have been lost while the disk flushed: then this flush vouches for nothing.
        self.check_healthy(OP, Bytes(0), 0)
    }
}

fn in_force<'a>(entered: &'a Entered<'_, SegmentMap>, op: &'static str) -> Result<&'a SegmentMap, BlockError> {
    entered.value().ok_or_else(|| refusal(BlockErrorKind::Suspended, op, 0, 0))
}

fn piece_len(piece: &Piece<'_>) -> Result<usize, BlockError> {
    usize::try_from(piece.len_bytes)
        .map_err(|_| refusal(BlockErrorKind::OutOfRange, "split", piece.device_offset.0, piece.len_bytes))
}

fn refusal(kind: BlockErrorKind, op: &'static str, offset: u64, len_bytes: u64) -> BlockError {
    BlockError::new(kind, op, Bytes(offset), len_bytes)
}

#[cfg(test)]
mod tests;
