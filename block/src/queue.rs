//! [`BlockQueue`]: block I/O by submission and completion, for the one thread that owns a request from arrival to reply.
//!
//! * [`IoUringQueue`] works on a file or a block device: one ring per queue. [`FileQueue::open`] takes it for direct I/O, where
//!   it can: through the page cache pread is faster.
//! * [`PreadQueue`] works over any [`crate::BlockIo`]: one blocking call per operation, on the thread that calls
//!   [`BlockQueue::complete`].
//!
//! The loop of a server:
//!
//! 1. while [`BlockQueue::room`] is not 0, take requests and [`BlockQueue::submit`] them;
//! 2. [`BlockQueue::complete`] until it returns `None`, and send the replies;
//! 3. poll [`BlockQueue::descriptor`] for reading, beside the sockets, and begin again. Without sockets,
//!    [`BlockQueue::wait`] does the same.
//!
//! Invariants:
//!
//! * Every operation that was taken comes back by `complete` exactly once, with its buffer, after success and after error. One
//!   that was not taken comes back at once, in [`Full`]. Full is not failed: whoever transforms data on the way (encrypts) asks
//!   for room first.
//! * **No order is promised among operations in flight**, neither of their effects nor of their completions: whoever needs
//!   one before the other waits for its completion. That includes a read after a write, two writes to one place, and a
//!   flush: [`QueueOp::Flush`] makes every write durable whose completion was returned before the flush was submitted,
//!   whichever thread or queue wrote it.
//! * An operation covers its whole range or fails; a failed write may have written any part of it. A buffer that comes back
//!   from a failed read holds anything.
//! * Offsets and lengths are multiples of `geometry().logical_block`; everything else is `Unaligned`, for a queue never
//!   reads, changes and writes back ([`crate::ByteView`] does). Nothing is read or written behind the end of the disk.
//! * Nothing is allocated per operation once buffers made by [`BlockQueue::buffer`] are given back by
//!   [`BlockQueue::recycle`].
//! * Dropping a queue with operations in flight waits for those that have begun; the others are never done.

mod buffers;
mod pread;
#[allow(unsafe_code)] // The one wrapper around io_uring.
mod ring;
#[cfg(test)]
mod tests;
mod uring;
mod wake;

use crate::{BlockError, BlockErrorKind, Bytes, Geometry};
use std::os::fd::BorrowedFd;

pub use buffers::{IoBuf, LARGE_BUFFER_BYTES, SMALL_BUFFER_BYTES};
pub use pread::PreadQueue;
pub use uring::{FileQueue, IoUringQueue, PreadBecause};
pub use wake::Waker;

/// One operation, which owns its buffer.
#[derive(Debug)]
pub enum QueueOp {
    /// Fills the whole buffer from `offset`.
    Read {
        /// Where it begins.
        offset: Bytes,
        /// What is filled; its length is the length of the read.
        buf: IoBuf,
    },
    /// Writes the whole buffer at `offset`. The buffer comes back as it was.
    Write {
        /// Where it begins.
        offset: Bytes,
        /// What is written.
        buf: IoBuf,
        /// Whether it must be durable when it completes.
        fua: bool,
    },
    /// Makes the range read as zeros; durable after the next flush.
    WriteZeroes {
        /// Where it begins.
        offset: Bytes,
        /// How long it is.
        len: Bytes,
    },
    /// Gives the range up: what it reads as afterwards is undefined.
    Discard {
        /// Where it begins.
        offset: Bytes,
        /// How long it is.
        len: Bytes,
    },
    /// Makes durable what was written: see the module.
    Flush,
}

impl QueueOp {
    /// Its name in errors: `read`, `write`, `write zeroes`, `discard`, `flush`.
    pub fn name(&self) -> &'static str {
        match self {
            QueueOp::Read { .. } => "read",
            QueueOp::Write { .. } => "write",
            QueueOp::WriteZeroes { .. } => "write zeroes",
            QueueOp::Discard { .. } => "discard",
            QueueOp::Flush => "flush",
        }
    }

    /// Where it begins and how many bytes it covers; zeros for a flush.
    pub fn range(&self) -> (Bytes, u64) {
        match self {
            QueueOp::Read { offset, buf } | QueueOp::Write { offset, buf, .. } => (*offset, buf.len() as u64),
            QueueOp::WriteZeroes { offset, len } | QueueOp::Discard { offset, len } => (*offset, len.0),
            QueueOp::Flush => (Bytes::ZERO, 0),
        }
    }

    /// Whether it changes what the disk holds.
    pub fn is_change(&self) -> bool {
        !matches!(self, QueueOp::Read { .. } | QueueOp::Flush)
    }

    /// The buffer, if it has one.
    pub fn into_buffer(self) -> Option<IoBuf> {
        match self {
            QueueOp::Read { buf, .. } | QueueOp::Write { buf, .. } => Some(buf),
            _ => None,
        }
    }

    /// An error of this operation.
    pub fn error(&self, kind: BlockErrorKind) -> BlockError {
        let (offset, len_bytes) = self.range();
        BlockError::new(kind, self.name(), offset, len_bytes)
    }
}

/// The operation was not taken, for there is no room: submit it again when something has completed.
#[derive(Debug)]
pub struct Full(pub QueueOp);

/// One operation that has ended.
#[derive(Debug)]
pub struct Completion {
    /// What the submitter called it.
    pub tag: u64,
    /// The operation itself, with its buffer.
    pub op: QueueOp,
    /// How it ended.
    pub result: Result<(), BlockError>,
}

/// Block I/O by submission and completion. A queue belongs to one thread at a time; a disk may have many queues.
pub trait BlockQueue {
    /// Size, block sizes and flags as they are now. May cost a system call.
    fn geometry(&self) -> Geometry;

    /// Becomes readable when [`BlockQueue::complete`] may have something to return, [`BlockQueue::room`] may have grown, or
    /// somebody used the [`BlockQueue::waker`]. That holds only after `complete` has returned `None`: poll it then, never
    /// before. It is readable for no reason sometimes.
    fn descriptor(&self) -> BorrowedFd<'_>;

    /// Makes the descriptor readable, from any thread. It stays so until the next [`BlockQueue::complete`].
    fn waker(&self) -> Waker;

    /// How many operations will be taken now; 0 is full. It never shrinks but by a submission or by somebody who parks the
    /// volume behind the queue.
    fn room(&self) -> usize;

    /// Takes `op`, which comes back under `tag`; tags need not differ. Errors of the operation, wrong ranges included, come
    /// by [`BlockQueue::complete`]. Nothing need begin before that is called.
    ///
    /// # Errors
    /// [`Full`], with the operation, when [`BlockQueue::room`] is 0.
    fn submit(&mut self, tag: u64, op: QueueOp) -> Result<(), Full>;

    /// Starts what was submitted and returns an operation that has ended; `None` when nothing has ended yet. It does not wait
    /// for operations in flight, but in a [`PreadQueue`], which does them here.
    fn complete(&mut self) -> Option<Completion>;

    /// Waits until the descriptor is readable. Call it only when `complete` has returned `None` and something is in flight, or
    /// a [`Waker`] is about to be used.
    ///
    /// # Errors
    /// What the system says; a signal is no error.
    fn wait(&mut self) -> Result<(), BlockError>;

    /// A buffer of `len_bytes`, aligned for this disk; its content is anything.
    fn buffer(&mut self, len_bytes: usize) -> IoBuf;

    /// Keeps a buffer for a later [`BlockQueue::buffer`].
    fn recycle(&mut self, buf: IoBuf);
}

impl<Q: BlockQueue + ?Sized> BlockQueue for Box<Q> {
    fn geometry(&self) -> Geometry {
        (**self).geometry()
    }
    fn descriptor(&self) -> BorrowedFd<'_> {
        (**self).descriptor()
    }
    fn waker(&self) -> Waker {
        (**self).waker()
    }
    fn room(&self) -> usize {
        (**self).room()
    }
    fn submit(&mut self, tag: u64, op: QueueOp) -> Result<(), Full> {
        (**self).submit(tag, op)
    }
    fn complete(&mut self) -> Option<Completion> {
        (**self).complete()
    }
    fn wait(&mut self) -> Result<(), BlockError> {
        (**self).wait()
    }
    fn buffer(&mut self, len_bytes: usize) -> IoBuf {
        (**self).buffer(len_bytes)
    }
    fn recycle(&mut self, buf: IoBuf) {
        (**self).recycle(buf);
    }
}
