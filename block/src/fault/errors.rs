//! [`FaultDisk`]: counts operations and answers the chosen ones with an error.
//!
//! Invariants: operations are numbered from 1 per kind, in the order in which they arrive; a failed write writes exactly
//! the bytes its fault says, from the start of its range; without a fault nothing is changed.

use crate::{BlockError, BlockErrorKind, BlockIo, Bytes, Geometry};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The operations that can be counted and can fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// [`BlockIo::read_at`].
    Read,
    /// [`BlockIo::write_at`].
    Write,
    /// [`BlockIo::write_zeroes`].
    WriteZeroes,
    /// [`BlockIo::discard`].
    Discard,
    /// [`BlockIo::flush`].
    Flush,
    /// Any operation that changes the medium or its durability: everything but a read.
    Change,
}

/// One fault to come.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    /// Which operations it counts.
    pub op: Op,
    /// Which of them fails: 1 is the next one.
    pub nth: u64,
    /// Whether every one after it fails too.
    pub sticky: bool,
    /// The answer.
    pub kind: BlockErrorKind,
    /// How many bytes of a failing write still reach the medium, rounded down to logical blocks.
    pub written_bytes: usize,
}

/// How many operations arrived, failed ones included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Reads.
    pub reads: u64,
    /// Writes.
    pub writes: u64,
    /// Zeroings.
    pub zeroes: u64,
    /// Discards.
    pub discards: u64,
    /// Flushes.
    pub flushes: u64,
    /// Writes with `fua`; they are counted as writes too.
    pub fua_writes: u64,
}

#[derive(Default)]
struct Plan {
    faults: Vec<Fault>,
    counts: Counts,
}

/// A disk that fails as told.
pub struct FaultDisk<D> {
    inner: D,
    plan: Mutex<Plan>,
}

impl<D: BlockIo> FaultDisk<D> {
    /// `inner`, without faults for now.
    pub fn new(inner: D) -> FaultDisk<D> {
        FaultDisk { inner, plan: Mutex::default() }
    }

    /// The disk below.
    pub fn inner(&self) -> &D {
        &self.inner
    }

    /// Adds a fault.
    pub fn fail(&self, fault: Fault) {
        self.plan().faults.push(fault);
    }

    /// Makes the `nth` operation of this kind from now on (1 is the next) fail with `kind`, and the ones after it succeed.
    pub fn fail_once(&self, op: Op, nth: u64, kind: BlockErrorKind) {
        self.fail(Fault { op, nth, sticky: false, kind, written_bytes: 0 });
    }

    /// Makes the `nth` operation of this kind from now on and all after it fail with `kind`.
    pub fn fail_from(&self, op: Op, nth: u64, kind: BlockErrorKind) {
        self.fail(Fault { op, nth, sticky: true, kind, written_bytes: 0 });
    }

    /// Forgets all faults; the counts stay.
    pub fn heal(&self) {
        self.plan().faults.clear();
    }

    /// What arrived until now.
    pub fn counts(&self) -> Counts {
        self.plan().counts
    }

    fn plan(&self) -> MutexGuard<'_, Plan> {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts one operation and returns the fault that meets it.
    fn arrive(&self, op: Op, fua: bool) -> Option<Fault> {
        let mut plan = self.plan();
        match op {
            Op::Read => plan.counts.reads += 1,
            Op::Write => plan.counts.writes += 1,
            Op::WriteZeroes => plan.counts.zeroes += 1,
            Op::Discard => plan.counts.discards += 1,
            Op::Flush => plan.counts.flushes += 1,
            Op::Change => {}
        }
        plan.counts.fua_writes += u64::from(fua);
        let mut met = None;
        plan.faults.retain_mut(|fault| {
            if fault.op != op && !(fault.op == Op::Change && op != Op::Read) {
                return true;
            }
            fault.nth = fault.nth.saturating_sub(1);
            if fault.nth > 0 {
                return true;
            }
            met = met.or(Some(*fault));
            fault.sticky
        });
        met
    }

    fn answer(&self, op: Op, name: &'static str, offset: Bytes, len_bytes: u64) -> Result<(), BlockError> {
        match self.arrive(op, false) {
            Some(fault) => Err(BlockError::new(fault.kind, name, offset, len_bytes)),
            None => Ok(()),
        }
    }
}

impl<D: BlockIo> BlockIo for FaultDisk<D> {
    fn geometry(&self) -> Geometry {
        self.inner.geometry()
    }

    fn read_at(&self, offset: Bytes, buf: &mut [u8]) -> Result<(), BlockError> {
        self.answer(Op::Read, "read", offset, buf.len() as u64)?;
        self.inner.read_at(offset, buf)
    }

    fn write_at(&self, offset: Bytes, buf: &[u8], fua: bool) -> Result<(), BlockError> {
        let Some(fault) = self.arrive(Op::Write, fua) else {
            return self.inner.write_at(offset, buf, fua);
        };
        let block = (self.geometry().logical_block as usize).max(1);
        let written = fault.written_bytes.min(buf.len()) / block * block;
        if written > 0 {
            self.inner.write_at(offset, &buf[..written], false)?;
        }
        Err(BlockError::new(fault.kind, "write", offset, buf.len() as u64))
    }

    fn write_zeroes(&self, offset: Bytes, len: Bytes) -> Result<(), BlockError> {
        self.answer(Op::WriteZeroes, "write zeroes", offset, len.0)?;
        self.inner.write_zeroes(offset, len)
    }

    fn discard(&self, offset: Bytes, len: Bytes) -> Result<(), BlockError> {
        self.answer(Op::Discard, "discard", offset, len.0)?;
        self.inner.discard(offset, len)
    }

    fn flush(&self) -> Result<(), BlockError> {
        self.answer(Op::Flush, "flush", Bytes::ZERO, 0)?;
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MemDisk;

    #[test]
    fn only_the_chosen_operation_fails() {
        let disk = FaultDisk::new(MemDisk::new(Bytes(4096)));
        disk.fail_once(Op::Write, 2, BlockErrorKind::NoSpace);
        disk.fail_from(Op::Flush, 1, BlockErrorKind::Io);
        let results: Vec<bool> = (0..3).map(|_| disk.write_at(Bytes(0), &[1; 512], true).is_ok()).collect();
        assert_eq!(results, [true, false, true]);
        assert_eq!(disk.flush().unwrap_err().kind, BlockErrorKind::Io);
        assert_eq!(disk.flush().unwrap_err().kind, BlockErrorKind::Io);
        disk.heal();
        disk.flush().unwrap();
        assert_eq!(disk.counts(), Counts { writes: 3, fua_writes: 3, flushes: 3, ..Counts::default() });
    }

    #[test]
    fn a_failing_write_leaves_whole_blocks_of_its_start() {
        let disk = FaultDisk::new(MemDisk::new(Bytes(4096)));
        disk.fail(Fault { op: Op::Change, nth: 1, sticky: false, kind: BlockErrorKind::Io, written_bytes: 1100 });
        disk.write_at(Bytes(0), &[9; 2048], false).unwrap_err();
        let mut all = [0; 4096];
        disk.read_at(Bytes(0), &mut all).unwrap();
        assert_eq!(all.iter().filter(|&&byte| byte == 9).count(), 1024);
    }
}
