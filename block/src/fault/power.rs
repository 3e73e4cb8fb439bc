//! [`PowerCutDisk`]: a disk whose power can be cut at any moment; see its own text for the fault model.
//!
//! Invariant: for every byte range that no write touched since the last honest flush, every cut shows what that flush made
//! durable.

use super::cached::{Cached, Content, land_sampled};
use super::recording::{Event, Recording};
use crate::chunks::Chunks;
use crate::{BlockError, BlockIo, Bytes, Geometry, MemDisk};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A disk in memory with a volatile write cache and a power switch.
///
/// # Fault model
///
/// * A write without `fua`, a zeroing and a discard go into the cache. Reads see the cache: a live disk behaves as any
///   other.
/// * `flush` makes every write durable that completed before it began. A write that completes while a flush runs may be
///   durable or not; here operations follow one another, so there is no such write.
/// * A write with `fua` is durable on return. So is nothing else: an older cached write to another range is not, and an
///   older one to the same range can no longer win over it.
/// * [`PowerCutDisk::cut`] is what the platter holds when the power fails now: all durable bytes, and of each cached write
///   nothing, everything, or any set of its 512-byte sectors. Sectors are atomic: none is ever half old and half new. The
///   cache may write back in any order, so a later write may survive where an earlier one is lost; where two cached
///   writes overlap and both survive in a sector, the later one is seen (a cache holds one version of a sector), and
///   where only the earlier one does, that one.
/// * The live disk goes on after a cut: a cut is a look at the platter. The same seed at the same moment gives the same
///   cut.
/// * A discarded range reads as zeros on the live disk, and as zeros or its old content after a cut.
/// * Not modelled: bit rot, misdirected writes, sectors that cannot be read after the cut, and writes that reach neighbours
///   of their range. [`crate::fault::FaultDisk`] has errors.
///
/// [`PowerCutDisk::lie_about_flush`] makes `flush` and `fua` succeed without making anything durable: the disk a crash test
/// must be seen to fail on.
pub struct PowerCutDisk {
    state: Mutex<State>,
}

struct State {
    geometry: Geometry,
    /// What the power cannot take.
    durable: Chunks,
    /// What a read sees.
    live: Chunks,
    /// Everything since the last honest flush, oldest first.
    cached: Vec<Cached>,
    lying: bool,
    flushes: u64,
    changes: u64,
    recording: Option<Recording>,
}

impl PowerCutDisk {
    /// A disk of `size` durable zero bytes with 512-byte blocks.
    pub fn new(size: Bytes) -> PowerCutDisk {
        PowerCutDisk::from_disk(&MemDisk::new(size))
    }

    /// As [`PowerCutDisk::new`] with blocks of `block_bytes`; sectors of 512 bytes still tear.
    pub fn with_block(size: Bytes, block_bytes: u32) -> PowerCutDisk {
        PowerCutDisk::from_disk(&MemDisk::with_block(size, block_bytes))
    }

    /// A disk on which everything that `disk` holds now is durable.
    pub fn from_disk(disk: &MemDisk) -> PowerCutDisk {
        let (chunks, geometry) = disk.parts();
        PowerCutDisk {
            state: Mutex::new(State {
                geometry,
                durable: chunks.clone(),
                live: chunks,
                cached: Vec::new(),
                lying: false,
                flushes: 0,
                changes: 0,
                recording: None,
            }),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the platter holds if the power fails now, one of the possible results by `seed`. Cheap: content is shared until
    /// written.
    pub fn cut(&self, seed: u64) -> MemDisk {
        let state = self.state();
        let mut platter = state.durable.clone();
        land_sampled(&mut platter, &state.cached, seed);
        MemDisk::from_parts(platter, state.geometry)
    }

    /// What a read sees now, cached writes included: the disk of a machine that was shut down in order.
    pub fn live(&self) -> MemDisk {
        let state = self.state();
        MemDisk::from_parts(state.live.clone(), state.geometry)
    }

    /// Starts to write down every change and every flush. What a read sees now is the recording's durable beginning; an
    /// earlier recording is forgotten.
    pub fn record(&self) {
        let mut state = self.state();
        state.recording = Some(Recording::new(state.live.clone(), state.geometry));
    }

    /// Ends the recording and hands it out; `None` if none was begun.
    pub fn recorded(&self) -> Option<Recording> {
        self.state().recording.take()
    }

    /// From now on `flush` and `fua` succeed and make nothing durable, or are honest again.
    pub fn lie_about_flush(&self, lying: bool) {
        self.state().lying = lying;
    }

    /// How many flushes were answered, lies included.
    pub fn flushes(&self) -> u64 {
        self.state().flushes
    }

    /// How many writes, zeroings and discards were taken.
    pub fn changes(&self) -> u64 {
        self.state().changes
    }

    /// How many of them a cut could lose now.
    pub fn unflushed(&self) -> usize {
        self.state().cached.iter().filter(|cached| !cached.forced).count()
    }

    fn change(&self, op: &'static str, offset: Bytes, content: Content, fua: bool) -> Result<(), BlockError> {
        let mut state = self.state();
        let len_bytes = content.len_bytes();
        state.geometry.check_writable(op, offset, len_bytes)?;
        state.geometry.check(op, offset, len_bytes)?;
        let cached = Cached { offset_bytes: offset.0, content, forced: fua && !state.lying };
        cached.land(&mut state.live);
        state.changes += 1;
        if let Some(recording) = &mut state.recording {
            let forced = fua;
            recording.push(Event::Change(op, Cached { forced, ..cached.clone() }));
        }
        state.cached.push(cached);
        Ok(())
    }
}

impl BlockIo for PowerCutDisk {
    fn geometry(&self) -> Geometry {
        self.state().geometry
    }

    fn read_at(&self, offset: Bytes, buf: &mut [u8]) -> Result<(), BlockError> {
        let state = self.state();
        state.geometry.check("read", offset, buf.len() as u64)?;
        state.live.read(offset.0, buf);
        Ok(())
    }

    fn write_at(&self, offset: Bytes, buf: &[u8], fua: bool) -> Result<(), BlockError> {
        self.change("write", offset, Content::Data(Arc::from(buf)), fua)
    }

    fn write_zeroes(&self, offset: Bytes, len: Bytes) -> Result<(), BlockError> {
        self.change("write zeroes", offset, Content::Zeroes(len.0), false)
    }

    fn discard(&self, offset: Bytes, len: Bytes) -> Result<(), BlockError> {
        self.change("discard", offset, Content::Zeroes(len.0), false)
    }

    fn flush(&self) -> Result<(), BlockError> {
        let mut state = self.state();
        state.flushes += 1;
        if let Some(recording) = &mut state.recording {
            recording.push(Event::Flush);
        }
        if !state.lying {
            state.durable = state.live.clone();
            state.cached.clear();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
