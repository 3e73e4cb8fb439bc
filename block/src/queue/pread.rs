//! [`PreadQueue`]: a queue over any [`BlockIo`], one blocking call per operation.
//!
//! For memory and fault disks, and for files where the kernel forbids io_uring (containers, `kernel.io_uring_disabled`).
//!
//! Invariants: operations are done in the order of their submission, each inside the call of `complete` that returns it; so
//! nothing is in flight once `complete` has returned `None`, and dropping the queue drops what has not begun.

use super::buffers::BufferStore;
use super::wake::{Waker, wait_readable};
use super::{BlockQueue, Completion, Full, IoBuf, QueueOp};
use crate::{BlockError, BlockErrorKind, BlockIo, Bytes, Geometry};
use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};

/// A queue that calls [`BlockIo`].
pub struct PreadQueue<D: BlockIo> {
    disk: D,
    waiting: VecDeque<(u64, QueueOp)>,
    depth: usize,
    /// The disk's logical block when the queue was made: it does not change.
    block: Bytes,
    buffers: BufferStore,
    waker: Waker,
}

impl<D: BlockIo> PreadQueue<D> {
    /// A queue on `disk` that takes `depth` operations (at least one) before it is full.
    ///
    /// # Errors
    /// What the system says when it has no descriptor to spare.
    pub fn new(disk: D, depth: usize) -> Result<PreadQueue<D>, BlockError> {
        let waker = Waker::new().map_err(|error| BlockError::from_io("open queue", Bytes::ZERO, 0, error))?;
        let depth = depth.max(1);
        let block = Bytes(u64::from(disk.geometry().logical_block));
        Ok(PreadQueue {
            disk,
            waiting: VecDeque::with_capacity(depth),
            depth,
            block,
            // Each operation may hold one buffer, and whoever transforms the data a second one.
            buffers: BufferStore::new(2 * depth),
            waker,
        })
    }

    /// The disk below.
    pub fn disk(&self) -> &D {
        &self.disk
    }

    fn run(&self, op: &mut QueueOp) -> Result<(), BlockError> {
        let (offset, len_bytes) = op.range();
        if !offset.is_multiple_of(self.block) || !Bytes(len_bytes).is_multiple_of(self.block) {
            return Err(op.error(BlockErrorKind::Unaligned));
        }
        match op {
            QueueOp::Read { buf, .. } => self.disk.read_at(offset, buf),
            QueueOp::Write { buf, fua, .. } => self.disk.write_at(offset, buf, *fua),
            QueueOp::WriteZeroes { len, .. } => self.disk.write_zeroes(offset, *len),
            QueueOp::Discard { len, .. } => self.disk.discard(offset, *len),
            QueueOp::Flush => self.disk.flush(),
        }
    }
}

impl<D: BlockIo> BlockQueue for PreadQueue<D> {
    fn geometry(&self) -> Geometry {
        self.disk.geometry()
    }

    fn descriptor(&self) -> BorrowedFd<'_> {
        self.waker.as_fd()
    }

    fn waker(&self) -> Waker {
        self.waker.clone()
    }

    fn room(&self) -> usize {
        self.depth - self.waiting.len()
    }

    fn submit(&mut self, tag: u64, op: QueueOp) -> Result<(), Full> {
        if self.room() == 0 {
            return Err(Full(op));
        }
        self.waiting.push_back((tag, op));
        Ok(())
    }

    fn complete(&mut self) -> Option<Completion> {
        self.waker.clear();
        let (tag, mut op) = self.waiting.pop_front()?;
        let result = self.run(&mut op);
        Some(Completion { tag, op, result })
    }

    fn wait(&mut self) -> Result<(), BlockError> {
        if self.waiting.is_empty() { wait_readable(self.descriptor()) } else { Ok(()) }
    }

    fn buffer(&mut self, len_bytes: usize) -> IoBuf {
        self.buffers.take(len_bytes)
    }

    fn recycle(&mut self, buf: IoBuf) {
        self.buffers.give_back(buf);
    }
}
