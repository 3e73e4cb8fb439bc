//! [`IoUringQueue`]: a queue over io_uring, on a file or a block device.
//!
//! What a [`FileDisk`] promises holds here too: nothing makes a file longer, and after one failed flush every later flush fails.
//! Short reads and writes are continued; what the kernel interrupts or has no resources for is begun again, by a worker thread.
//! Small buffers are registered with the ring as far as a quarter of the lockable memory allows (`RLIMIT_MEMLOCK`).
//!
//! [`FileQueue::open`] takes a [`PreadQueue`] where a ring would be slower, on a file through the page cache, and where the kernel
//! forbids one (seccomp, `kernel.io_uring_disabled`), and says why.

use super::buffers::{BufferStore, SMALL_BUFFER_BYTES};
use super::ring::{Flight, Reaped, Ring};
use super::wake::Waker;
use super::{BlockQueue, Completion, Full, IoBuf, PreadQueue, QueueOp};
use crate::{BlockError, BlockErrorKind, BlockIo, Bytes, FileDisk, Geometry};
use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};
use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

/// How often one operation is begun again before its error counts.
const MOST_RETRIES: u32 = 64;
/// Most operations of one queue.
const MOST_DEPTH: usize = 1024;
/// Most buffers that are registered.
const MOST_REGISTERED: u64 = 64;

/// A queue on a ring.
pub struct IoUringQueue {
    ring: Ring,
    disk: FileDisk,
    block: Bytes,
    /// Ended without the kernel: refused, or empty.
    ended: VecDeque<Completion>,
    buffers: BufferStore,
    registered: usize,
    waker: Waker,
}

impl IoUringQueue {
    /// A queue on `disk` that takes `depth` operations (1 to 1024) before it is full.
    ///
    /// # Errors
    /// Why the kernel gives no ring: [`BlockErrorKind::Denied`] where it is forbidden, [`BlockErrorKind::Unsupported`] where
    /// it is too old (before Linux 5.10) or built without.
    pub fn new(disk: FileDisk, depth: usize) -> Result<IoUringQueue, BlockError> {
        let depth = depth.clamp(1, MOST_DEPTH);
        let waker = Waker::new().map_err(|error| BlockError::from_io("io_uring setup", Bytes::ZERO, 0, error))?;
        let mut small: Vec<IoBuf> = (0..registrable(depth)).map(|_| IoBuf::zeroed(SMALL_BUFFER_BYTES)).collect();
        let ring = Ring::open(disk.as_fd(), &waker, depth, &mut small)?;
        let registered = small.iter().filter(|buf| buf.is_registered()).count();
        let mut buffers = BufferStore::new(2 * depth);
        small.into_iter().filter(IoBuf::is_registered).for_each(|buf| buffers.give_back(buf));
        let block = Bytes(u64::from(disk.geometry().logical_block));
        Ok(IoUringQueue { ring, disk, block, ended: VecDeque::with_capacity(depth), buffers, registered, waker })
    }

    /// How many buffers are registered with the ring: 0 where too little memory may be locked.
    pub fn registered_buffers(&self) -> usize {
        self.registered
    }

    fn check(&self, op: &QueueOp) -> Result<(), BlockError> {
        let (offset, len_bytes) = op.range();
        if !offset.is_multiple_of(self.block) || !Bytes(len_bytes).is_multiple_of(self.block) {
            return Err(op.error(BlockErrorKind::Unaligned));
        }
        match op {
            QueueOp::Read { .. } => self.disk.check_range(op.name(), offset, len_bytes),
            QueueOp::Flush => self.disk.check_flush(op.name()),
            QueueOp::Write { fua, .. } => {
                self.disk.check_write(op.name(), offset, len_bytes)?;
                if *fua { self.disk.check_flush(op.name()) } else { Ok(()) }
            }
            QueueOp::WriteZeroes { .. } | QueueOp::Discard { .. } => {
                self.disk.check_write(op.name(), offset, len_bytes)
            }
        }
    }

    /// Takes one result of the kernel; `None` if the operation goes on.
    fn advance(&mut self, mut flight: Flight, result: i32) -> Option<Completion> {
        let len_bytes = match &flight.op {
            QueueOp::Read { buf, .. } | QueueOp::Write { buf, .. } => buf.len(),
            _ => 0,
        };
        let outcome = match usize::try_from(result) {
            Err(_) => match Errno::from_raw_os_error(result.saturating_neg()) {
                Errno::INTR | Errno::AGAIN | Errno::CANCELED if flight.retries < MOST_RETRIES => {
                    flight.retries += 1;
                    return self.restart(flight);
                }
                errno => Err(system_error(&flight.op, errno)),
            },
            Ok(0) if flight.done_bytes < len_bytes => Err(flight.op.error(match flight.op {
                QueueOp::Read { .. } => BlockErrorKind::OutOfRange,
                _ => BlockErrorKind::Io,
            })),
            Ok(count) => {
                flight.done_bytes += count;
                if flight.done_bytes < len_bytes {
                    return self.restart(flight);
                }
                Ok(())
            }
        };
        Some(self.finish(flight, outcome))
    }

    fn restart(&mut self, flight: Flight) -> Option<Completion> {
        // It has just left a slot, so there is one.
        let flight = self.ring.start(flight).err()?;
        let outcome = Err(flight.op.error(BlockErrorKind::Io));
        Some(self.finish(flight, outcome))
    }

    fn finish(&self, flight: Flight, result: Result<(), BlockError>) -> Completion {
        if result.is_err() && matches!(flight.op, QueueOp::Flush | QueueOp::Write { fua: true, .. }) {
            self.disk.note_failed_flush();
        }
        Completion { tag: flight.tag, op: flight.op, result }
    }

    /// Gives the kernel what is queued. What it has no memory for now is tried again by the next `complete`, to which the waker
    /// calls.
    fn enter(&mut self) {
        if self.ring.submit().is_ok() && self.ring.has_queued() {
            self.waker.wake();
        }
    }
}

impl BlockQueue for IoUringQueue {
    fn geometry(&self) -> Geometry {
        self.disk.geometry()
    }

    fn descriptor(&self) -> BorrowedFd<'_> {
        self.ring.as_raw()
    }

    fn waker(&self) -> Waker {
        self.waker.clone()
    }

    fn room(&self) -> usize {
        self.ring.free_slots().saturating_sub(self.ended.len())
    }

    fn submit(&mut self, tag: u64, op: QueueOp) -> Result<(), Full> {
        if self.room() == 0 {
            return Err(Full(op));
        }
        let checked = self.check(&op);
        let is_empty = !matches!(op, QueueOp::Flush) && op.range().1 == 0;
        if checked.is_err() || is_empty {
            self.ended.push_back(Completion { tag, op, result: checked });
            return Ok(());
        }
        let flight = Flight { tag, op, done_bytes: 0, retries: 0 };
        self.ring.start(flight).map_err(|flight| Full(flight.op))
    }

    fn complete(&mut self) -> Option<Completion> {
        if self.ring.has_queued() {
            self.enter();
        }
        if let Some(completion) = self.ended.pop_front() {
            return Some(completion);
        }
        loop {
            match self.ring.reap() {
                Some(Reaped::Woken) => {
                    self.waker.clear();
                    self.ring.await_wake();
                }
                Some(Reaped::Op(flight, result)) => {
                    if let Some(completion) = self.advance(flight, result) {
                        return Some(completion);
                    }
                }
                None => break,
            }
        }
        if self.ring.has_queued() {
            // Restarted, or waiting for the waker again.
            self.enter();
        }
        let (flight, errno) = self.ring.fail_queued()?;
        let outcome = Err(system_error(&flight.op, errno));
        Some(self.finish(flight, outcome))
    }

    fn wait(&mut self) -> Result<(), BlockError> {
        if !self.ended.is_empty() {
            return Ok(());
        }
        super::wake::wait_readable(self.descriptor())
    }

    fn buffer(&mut self, len_bytes: usize) -> IoBuf {
        self.buffers.take(len_bytes)
    }

    fn recycle(&mut self, buf: IoBuf) {
        self.buffers.give_back(buf);
    }
}

/// Why a queue works with pread and pwrite.
#[derive(Debug)]
#[non_exhaustive]
pub enum PreadBecause {
    /// The disk is not direct. What is in the page cache is copied at once by pread, on the core that has asked; a ring copies
    /// it too, but hands what it does not find, and every write to tmpfs, to a worker thread of the kernel (`docs/performance.md`).
    PageCache,
    /// What the kernel said to a ring.
    NoRing(BlockError),
}

impl fmt::Display for PreadBecause {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PreadBecause::PageCache => out.write_str("the disk is used through the page cache"),
            PreadBecause::NoRing(why) => write!(out, "the kernel gives no ring: {why}"),
        }
    }
}

/// The best queue that this system allows on one file.
pub struct FileQueue {
    /// The queue.
    pub queue: Box<dyn BlockQueue + Send>,
    /// Why it is a [`PreadQueue`], if it is one.
    pub pread_because: Option<PreadBecause>,
}

impl FileQueue {
    /// An [`IoUringQueue`] on a direct `disk`, or a [`PreadQueue`] where it is not direct or the kernel gives no ring.
    ///
    /// # Errors
    /// What the system says when it has no descriptor to spare.
    pub fn open(disk: FileDisk, depth: usize) -> Result<FileQueue, BlockError> {
        let because = if disk.is_direct() {
            match IoUringQueue::new(disk.clone(), depth) {
                Ok(queue) => return Ok(FileQueue { queue: Box::new(queue), pread_because: None }),
                Err(why) => PreadBecause::NoRing(why),
            }
        } else {
            PreadBecause::PageCache
        };
        Ok(FileQueue { queue: Box::new(PreadQueue::new(disk, depth)?), pread_because: Some(because) })
    }
}

/// How many buffers may be registered without taking more than a quarter of the memory that may be locked: keys are locked too.
fn registrable(depth: usize) -> usize {
    let lockable_bytes = getrlimit(Resource::Memlock).current.unwrap_or(u64::MAX);
    let most = (lockable_bytes / 4 / SMALL_BUFFER_BYTES as u64).min(MOST_REGISTERED);
    usize::try_from(most).unwrap_or(0).min(2 * depth)
}

fn system_error(op: &QueueOp, errno: Errno) -> BlockError {
    let (offset, len_bytes) = op.range();
    BlockError::from_io(op.name(), offset, len_bytes, io::Error::from(errno))
}
