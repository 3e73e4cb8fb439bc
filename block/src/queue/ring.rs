//! The ring itself: the one module of this crate with `unsafe` in it.
//!
//! [`Ring`] owns every operation from [`Ring::start`] until [`Ring::reap`] has taken its completion, so the kernel never has the
//! address of memory that somebody else holds or frees. Dropping it waits for what the kernel has begun.
//!
//! The ring may do nothing but what a queue needs: two registered files (the disk and the waker's eventfd), seven operations,
//! no descriptor of any other kind, and no registration after it was enabled (`IORING_REGISTER_RESTRICTIONS`), but to give the
//! files back: the kernel takes a closed ring apart in its own time, and a disk that it still holds is locked and busy.
//!
//! Invariants: at most one submission per slot is under way; a slot is empty, or its operation is in the submission queue
//! (`queued`), or the kernel has it.
//!
//! Source: io_uring(7), io_uring_setup(2), io_uring_register(2), io_uring_enter(2).

use super::wake::Waker;
use super::{IoBuf, QueueOp};
use crate::{BlockError, BlockErrorKind, Bytes};
use io_uring::register::{Probe, Restriction};
use io_uring::squeue::{Entry, Flags};
use io_uring::{IoUring, opcode, types};
use rustix::fs::FallocateFlags;
use rustix::io::{Errno, ReadWriteFlags};
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering};

/// Place of the disk among the registered files.
const DISK: types::Fixed = types::Fixed(0);
/// Place of the waker's eventfd.
const EVENT: types::Fixed = types::Fixed(1);
/// What the submission that waits for the waker is called.
const WAKE: u64 = u64::MAX;
/// Most bytes of one submission; the rest follows as after a short read. The kernel's own limit is 2 GiB less a page.
const MOST_BYTES: usize = 1 << 30;
/// `POLLIN`.
const READABLE: u32 = 1;
/// `IORING_ENTER_GETEVENTS`.
const GET_EVENTS: u32 = 1;
/// `IORING_UNREGISTER_FILES`.
const UNREGISTER_FILES: u8 = 3;

const NEEDED: [u8; 7] = [
    opcode::Read::CODE,
    opcode::Write::CODE,
    opcode::ReadFixed::CODE,
    opcode::WriteFixed::CODE,
    opcode::Fsync::CODE,
    opcode::Fallocate::CODE,
    opcode::PollAdd::CODE,
];

/// One operation in flight.
pub(super) struct Flight {
    pub(super) tag: u64,
    pub(super) op: QueueOp,
    /// How many bytes are done.
    pub(super) done_bytes: usize,
    /// How often it was begun in vain.
    pub(super) retries: u32,
}

/// What the kernel has finished.
pub(super) enum Reaped {
    /// The submission of this operation, with its result: a number of bytes or a negative error number.
    Op(Flight, i32),
    /// Somebody used the waker, which must be waited for again.
    Woken,
}

/// A restricted ring on one disk.
pub(super) struct Ring {
    ring: IoUring,
    /// Tells buffers registered here from those of other rings.
    id: u64,
    slots: Vec<Option<Flight>>,
    free: Vec<usize>,
    /// What is in the submission queue and the kernel has not taken yet, oldest first.
    queued: VecDeque<u64>,
    waker: Waker,
    /// Whether the kernel, or the submission queue, waits for the waker.
    awaits_wake: bool,
    /// The kernel refuses the ring since: nothing is submitted any more.
    broken: Option<Errno>,
}

impl Ring {
    /// A ring for `depth` operations on `disk`, which `waker` wakes.
    pub(super) fn open(
        disk: BorrowedFd<'_>,
        waker: &Waker,
        depth: usize,
        buffers: &mut [IoBuf],
    ) -> Result<Ring, BlockError> {
        static NEXT_ID: AtomicU64 = AtomicU64::new(0);
        let entries = u32::try_from(depth + 1).map_err(|_| refusal(BlockErrorKind::Unsupported))?;
        let ring = build(entries).map_err(|error| failed("io_uring setup", error))?;
        let registering = |error| failed("io_uring registration", error);
        let submitter = ring.submitter();
        let mut probe = Probe::new();
        submitter.register_probe(&mut probe).map_err(registering)?;
        if !NEEDED.iter().all(|code| probe.is_supported(*code)) {
            return Err(refusal(BlockErrorKind::Unsupported));
        }
        submitter.register_files(&[disk.as_raw_fd(), waker.as_fd().as_raw_fd()]).map_err(registering)?;
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        register_buffers(&ring, id, buffers);
        let mut allowed: Vec<Restriction> = NEEDED.iter().map(|code| Restriction::sqe_op(*code)).collect();
        allowed.push(Restriction::register_op(UNREGISTER_FILES));
        allowed.push(Restriction::sqe_flags_allowed((Flags::FIXED_FILE | Flags::ASYNC).bits()));
        allowed.push(Restriction::sqe_flags_required(Flags::FIXED_FILE.bits()));
        submitter.register_restrictions(&mut allowed).map_err(registering)?;
        submitter.register_enable_rings().map_err(registering)?;
        let mut ring = Ring {
            ring,
            id,
            slots: (0..depth).map(|_| None).collect(),
            free: (0..depth).collect(),
            queued: VecDeque::with_capacity(depth + 1),
            waker: waker.clone(),
            awaits_wake: false,
            broken: None,
        };
        // The first submission shows whether the kernel (a seccomp filter) lets the ring be entered at all.
        ring.await_wake();
        ring.submit().map_err(|errno| failed("io_uring submission", errno.into()))?;
        Ok(ring)
    }

    /// The ring's own descriptor: readable when something may be reaped.
    pub(super) fn as_raw(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is the ring's own, open as long as `self.ring` lives, which the borrow outlives by no moment.
        unsafe { BorrowedFd::borrow_raw(self.ring.as_raw_fd()) }
    }

    /// How many operations may be started.
    pub(super) fn free_slots(&self) -> usize {
        self.free.len()
    }

    /// Puts the rest of an operation into the submission queue.
    ///
    /// # Errors
    /// The operation, if there is no free slot.
    pub(super) fn start(&mut self, flight: Flight) -> Result<(), Flight> {
        let Some(slot) = self.free.pop() else { return Err(flight) };
        let id = self.id;
        let entry = entry(self.slots[slot].insert(flight), id).user_data(slot as u64);
        if self.push(&entry) {
            return Ok(());
        }
        self.free.push(slot);
        match self.slots[slot].take() {
            Some(flight) => Err(flight),
            None => Ok(()),
        }
    }

    /// Waits for the waker again.
    pub(super) fn await_wake(&mut self) {
        self.awaits_wake = self.push(&opcode::PollAdd::new(EVENT, READABLE).build().user_data(WAKE));
    }

    fn push(&mut self, entry: &Entry) -> bool {
        // SAFETY: a submission that names memory names that of a buffer in `self.slots`, which stays there, alive and touched by
        // nobody, until its completion is reaped or the kernel can no longer see the submission.
        let pushed = unsafe { self.ring.submission().push(entry) }.is_ok();
        if pushed {
            self.queued.push_back(entry.get_user_data());
        }
        pushed
    }

    /// Whether something waits for [`Ring::submit`].
    pub(super) fn has_queued(&self) -> bool {
        !self.queued.is_empty()
    }

    /// Gives the kernel what is queued. What it has no memory for now stays queued.
    ///
    /// # Errors
    /// The kernel refuses the ring, for good. What was queued then comes by [`Ring::fail_queued`].
    pub(super) fn submit(&mut self) -> Result<(), Errno> {
        if let Some(errno) = self.broken {
            return Err(errno);
        }
        match self.ring.submit() {
            Ok(count) => {
                self.queued.drain(..count.min(self.queued.len()));
                Ok(())
            }
            Err(error) => match Errno::from_io_error(&error) {
                Some(Errno::INTR | Errno::AGAIN | Errno::BUSY) => Ok(()),
                errno => {
                    let errno = errno.unwrap_or(Errno::IO);
                    self.broken = Some(errno);
                    Err(errno)
                }
            },
        }
    }

    /// One operation that the kernel never took and never will, after [`Ring::submit`] failed.
    pub(super) fn fail_queued(&mut self) -> Option<(Flight, Errno)> {
        let errno = self.broken?;
        while let Some(name) = self.queued.pop_front() {
            self.awaits_wake &= name != WAKE;
            if let Some(flight) = self.release(name) {
                return Some((flight, errno));
            }
        }
        None
    }

    fn release(&mut self, name: u64) -> Option<Flight> {
        let slot = usize::try_from(name).ok().filter(|slot| *slot < self.slots.len())?;
        let flight = self.slots[slot].take()?;
        self.free.push(slot);
        Some(flight)
    }

    /// What the kernel finished, without entering it.
    pub(super) fn reap(&mut self) -> Option<Reaped> {
        loop {
            let (name, result) = {
                let completion = self.ring.completion().next()?;
                (completion.user_data(), completion.result())
            };
            if name == WAKE {
                self.awaits_wake = false;
                return Some(Reaped::Woken);
            }
            if let Some(flight) = self.release(name) {
                return Some(Reaped::Op(flight, result));
            }
        }
    }

    /// How many submissions the kernel has.
    fn in_kernel(&self) -> usize {
        let under_way = self.slots.len() - self.free.len() + usize::from(self.awaits_wake);
        under_way.saturating_sub(self.queued.len())
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        self.waker.wake();
        while self.in_kernel() > 0 {
            // SAFETY: submits nothing (`to_submit` is 0) and passes no argument; the kernel only waits.
            let waited = unsafe { self.ring.submitter().enter::<libc::sigset_t>(0, 1, GET_EVENTS, None) };
            while self.reap().is_some() {}
            match waited.map_err(|error| Errno::from_io_error(&error)) {
                Ok(_) | Err(Some(Errno::INTR | Errno::AGAIN | Errno::BUSY)) => {}
                Err(_) => {
                    // The kernel may still write to these buffers: they are never freed.
                    std::mem::forget(std::mem::take(&mut self.slots));
                    return;
                }
            }
        }
        // Nothing refers to the files any more, so this waits for nothing; if it fails they are closed with the ring.
        let _ = self.ring.submitter().unregister_files();
    }
}

/// A disabled ring, so that it can be restricted; with the flags that save interrupts where the kernel has them (Linux 5.19).
fn build(entries: u32) -> io::Result<IoUring> {
    let newest =
        IoUring::builder().dontfork().setup_r_disabled().setup_submit_all().setup_coop_taskrun().build(entries);
    match newest {
        Err(error) if Errno::from_io_error(&error) == Some(Errno::INVAL) => {
            IoUring::builder().dontfork().setup_r_disabled().build(entries)
        }
        result => result,
    }
}

/// Registers `buffers` as the ring's, or leaves them all as they are where the kernel will not lock so much memory.
fn register_buffers(ring: &IoUring, id: u64, buffers: &mut [IoBuf]) {
    let pieces: Vec<libc::iovec> = buffers
        .iter_mut()
        .map(|buf| libc::iovec { iov_base: buf.whole().as_mut_ptr().cast(), iov_len: buf.capacity_bytes() })
        .collect();
    // SAFETY: each piece is the memory of a live buffer. The kernel pins the pages and touches them only for a submission that
    // names them, which is made from a live buffer with this ring's mark: memory freed early is never touched.
    if pieces.is_empty() || unsafe { ring.submitter().register_buffers(&pieces) }.is_err() {
        return;
    }
    for (number, buf) in (0..).zip(buffers) {
        buf.set_registered(id, number);
    }
}

/// The submission for the rest of an operation.
fn entry(flight: &mut Flight, id: u64) -> Entry {
    let done = flight.done_bytes;
    let entry = match &mut flight.op {
        QueueOp::Read { offset, buf } => {
            let (at, number) = (offset.0 + done as u64, buf.registered_with(id));
            let rest = &mut buf[done..];
            let (address, len) = (rest.as_mut_ptr(), submission_len(rest.len()));
            match number {
                Some(number) => opcode::ReadFixed::new(DISK, address, len, number).offset(at).build(),
                None => opcode::Read::new(DISK, address, len).offset(at).build(),
            }
        }
        QueueOp::Write { offset, buf, fua } => {
            let (at, number) = (offset.0 + done as u64, buf.registered_with(id));
            let rest = &buf[done..];
            let (address, len) = (rest.as_ptr(), submission_len(rest.len()));
            let flags = if *fua { ReadWriteFlags::DSYNC.bits().cast_signed() } else { 0 };
            match number {
                Some(number) => opcode::WriteFixed::new(DISK, address, len, number).offset(at).rw_flags(flags).build(),
                None => opcode::Write::new(DISK, address, len).offset(at).rw_flags(flags).build(),
            }
        }
        QueueOp::WriteZeroes { offset, len } => allocate(*offset, *len, FallocateFlags::ZERO_RANGE),
        QueueOp::Discard { offset, len } => allocate(*offset, *len, FallocateFlags::PUNCH_HOLE),
        QueueOp::Flush => opcode::Fsync::new(DISK).flags(types::FsyncFlags::DATASYNC).build(),
    };
    // What came back with EAGAIN is done by a worker thread, which may wait.
    if flight.retries > 0 { entry.flags(Flags::ASYNC) } else { entry }
}

fn submission_len(len_bytes: usize) -> u32 {
    u32::try_from(len_bytes.min(MOST_BYTES)).unwrap_or(u32::MAX)
}

fn allocate(offset: Bytes, len: Bytes, how: FallocateFlags) -> Entry {
    let mode = (how | FallocateFlags::KEEP_SIZE).bits().cast_signed();
    opcode::Fallocate::new(DISK, len.0).offset(offset.0).mode(mode).build()
}

fn failed(step: &'static str, error: io::Error) -> BlockError {
    BlockError::from_io(step, Bytes::ZERO, 0, error)
}

fn refusal(kind: BlockErrorKind) -> BlockError {
    BlockError::new(kind, "io_uring probe", Bytes::ZERO, 0)
}
