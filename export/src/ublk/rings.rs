//! The two rings that the driver is spoken to through, and its descriptors in our memory: the module of this crate with
//! `unsafe` in it.
//!
//! * [`ControlRing`]: one command at a time to `/dev/ublk-control`, waited for.
//! * [`QueueRing`]: the requests of one queue. Each tag's buffer is the kernel's from the fetch until its completion was
//!   reaped, and ours from then until the commit; it is handed out and taken back by value.
//!
//! Both rings are restricted to `IORING_OP_URING_CMD`.
//!
//! Invariants: memory that the kernel may write to belongs to a ring, and is never freed while it may. All commands of a
//! queue come from the thread that made its ring, for the driver takes them from no other.
//!
//! Source: `Documentation/block/ublk.rst`, io_uring_setup(2), io_uring_register(2), io_uring_enter(2).

use std::fs::File;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};
use std::ptr::NonNull;
use std::sync::Arc;

use block::IoBuf;
use io_uring::register::Restriction;
use io_uring::squeue::{Entry, Entry128, EntryMarker};
use io_uring::{Builder, IoUring, cqueue, opcode, types};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use super::abi::{self, DESCRIPTOR_BYTES, Descriptor, REQUEST_MAX_BYTES};

/// Room for the largest structure that a control command takes.
const CONTROL_BUFFER_BYTES: usize = 128;

/// A ring that takes commands of drivers and nothing else.
fn build<S: EntryMarker>(
    mut builder: Builder<S, cqueue::Entry>,
    entries: u32,
) -> io::Result<IoUring<S, cqueue::Entry>> {
    builder.dontfork().setup_r_disabled();
    let newest = builder.clone().setup_coop_taskrun().build(entries);
    let ring = match newest {
        Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => builder.build(entries)?,
        result => result?,
    };
    ring.submitter().register_restrictions(&mut [Restriction::sqe_op(opcode::UringCmd16::CODE)])?;
    ring.submitter().register_enable_rings()?;
    Ok(ring)
}

fn result_of(result: i32) -> io::Result<()> {
    if result < 0 { Err(io::Error::from_raw_os_error(result.saturating_neg())) } else { Ok(()) }
}

/// The way to the driver itself.
pub(super) struct ControlRing {
    ring: IoUring<Entry128, cqueue::Entry>,
    control: File,
    /// What the kernel reads and writes; never freed while a command may be under way.
    buffer: ManuallyDrop<Box<[u8; CONTROL_BUFFER_BYTES]>>,
    is_lost: bool,
}

impl ControlRing {
    pub(super) fn new(control: File) -> io::Result<ControlRing> {
        let ring = build(IoUring::<Entry128, cqueue::Entry>::builder(), 2)?;
        let buffer = ManuallyDrop::new(Box::new([0; CONTROL_BUFFER_BYTES]));
        Ok(ControlRing { ring, control, buffer, is_lost: false })
    }

    /// Sends a command about `device` with a structure for the driver to read or to fill, and waits for its end.
    pub(super) fn call(&mut self, command: u32, device: u32, structure: &mut [u8], data: u64) -> io::Result<()> {
        if self.is_lost || structure.len() > CONTROL_BUFFER_BYTES {
            return Err(Errno::IO.into());
        }
        let len_bytes = structure.len();
        self.buffer[..len_bytes].copy_from_slice(structure);
        let address = if len_bytes == 0 { 0 } else { self.buffer.as_mut_ptr().addr() as u64 };
        let file = types::Fd(self.control.as_raw_fd());
        let entry = opcode::UringCmd80::new(file, command).cmd(abi::control(device, address, len_bytes, data)).build();
        // SAFETY: what the entry refers to, the descriptor and the buffer, are `self`'s, and stay until its completion was
        // seen; without one the ring is lost, and the buffer is never freed.
        unsafe { self.ring.submission().push(&entry) }.map_err(|_| io::Error::from(Errno::BUSY))?;
        let completed = loop {
            let waited = self.ring.submit_and_wait(1);
            if let Some(completion) = self.ring.completion().next() {
                break completion;
            }
            match waited {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                    self.is_lost = true;
                    return Err(error);
                }
                _ => {}
            }
        };
        result_of(completed.result())?;
        structure.copy_from_slice(&self.buffer[..len_bytes]);
        Ok(())
    }
}

impl Drop for ControlRing {
    fn drop(&mut self) {
        if !self.is_lost {
            // SAFETY: no command is under way, and the buffer is not used after this.
            unsafe { ManuallyDrop::drop(&mut self.buffer) };
        }
    }
}

/// The descriptors of one queue, which the driver writes.
struct Descriptors {
    start: NonNull<u8>,
    len_bytes: usize,
}

impl Descriptors {
    fn map(device: &File, queue: u16, depth: u16) -> io::Result<Descriptors> {
        let (len_bytes, offset) = (abi::descriptors_bytes(depth), abi::descriptors_offset(queue));
        let flags = MapFlags::SHARED | MapFlags::POPULATE;
        // SAFETY: a new mapping, at a place of the kernel's choice.
        let start = unsafe { mmap(std::ptr::null_mut(), len_bytes, ProtFlags::READ, flags, device, offset) }?;
        let start = NonNull::new(start.cast()).ok_or(Errno::NOMEM)?;
        Ok(Descriptors { start, len_bytes })
    }

    /// The request of a tag whose fetch has completed.
    fn read(&self, tag: u16) -> Option<Descriptor> {
        let at = usize::from(tag) * DESCRIPTOR_BYTES;
        if at + DESCRIPTOR_BYTES > self.len_bytes {
            return None;
        }
        // SAFETY: the 16 bytes lie inside the mapping, which begins with a page, and 24 is a multiple of 8. The driver may
        // write to them at any time, so they are read as volatile; it does not before the tag is committed.
        unsafe {
            let descriptor = self.start.as_ptr().add(at);
            let op_flags = descriptor.cast::<u32>().read_volatile();
            let sectors = descriptor.add(4).cast::<u32>().read_volatile();
            let first_sector = descriptor.add(8).cast::<u64>().read_volatile();
            Some(Descriptor::new(op_flags, sectors, first_sector))
        }
    }
}

impl Drop for Descriptors {
    fn drop(&mut self) {
        // SAFETY: our own mapping; nothing refers into it. A failure leaves it mapped, which is harmless.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.len_bytes) };
    }
}

/// Where a tag is.
enum Slot {
    /// The kernel may write to its buffer.
    Kernel(IoBuf),
    /// A request that came is on its way through the disk.
    Ours,
    /// The driver gives no more requests for it.
    Dead,
}

/// What the driver said.
pub(super) enum Event {
    /// A request came, with the buffer of its tag, which holds what is to be written.
    Request { tag: u16, request: Descriptor, buf: IoBuf },
    /// A tag is not served any more.
    Dead { error: io::Error },
}

/// The requests of one queue of a device.
pub(super) struct QueueRing {
    ring: IoUring<Entry, cqueue::Entry>,
    device: Arc<File>,
    queue: u16,
    descriptors: Descriptors,
    slots: Vec<Slot>,
    dead: usize,
}

impl QueueRing {
    /// Asks for `depth` requests of the queue. To be made by the thread that serves them.
    pub(super) fn open(device: Arc<File>, queue: u16, depth: u16) -> io::Result<QueueRing> {
        let ring = build(IoUring::builder(), u32::from(depth))?;
        let descriptors = Descriptors::map(&device, queue, depth)?;
        let slots = (0..depth).map(|_| Slot::Ours).collect();
        let mut ring = QueueRing { ring, device, queue, descriptors, slots, dead: 0 };
        for tag in 0..depth {
            ring.send(abi::FETCH, tag, 0, IoBuf::resident(REQUEST_MAX_BYTES as usize))?;
        }
        ring.submit()?;
        // Requests come once the device is started, and that would wait for ever for a queue whose fetches were refused.
        match ring.next() {
            None => Ok(ring),
            Some(Event::Dead { error }) => Err(error),
            Some(Event::Request { .. }) => Err(Errno::BUSY.into()),
        }
    }

    /// Queues the answer to a request, and asks for the next one.
    pub(super) fn commit(&mut self, tag: u16, result: i32, buf: IoBuf) -> io::Result<()> {
        self.send(abi::COMMIT_AND_FETCH, tag, result, buf)
    }

    fn send(&mut self, command: u32, tag: u16, result: i32, mut buf: IoBuf) -> io::Result<()> {
        let slot = self.slots.get_mut(usize::from(tag)).ok_or(Errno::INVAL)?;
        // A tag that is with the kernel has its buffer there, and a shorter one would be written behind its end.
        if !matches!(slot, Slot::Ours) || buf.capacity_bytes() < REQUEST_MAX_BYTES as usize {
            return Err(Errno::INVAL.into());
        }
        buf.set_window(0..REQUEST_MAX_BYTES as usize);
        let address = buf.as_mut_ptr().addr() as u64;
        let file = types::Fd(self.device.as_raw_fd());
        let payload = abi::io_command(self.queue, tag, result, address);
        let entry = opcode::UringCmd16::new(file, command).cmd(payload).build().user_data(u64::from(tag));
        // SAFETY: the buffer is kept in its slot, and its memory does not move, until the completion was reaped; the device's
        // descriptor is `self`'s.
        unsafe { self.ring.submission().push(&entry) }.map_err(|_| io::Error::from(Errno::BUSY))?;
        *slot = Slot::Kernel(buf);
        Ok(())
    }

    /// Gives the kernel what is queued.
    pub(super) fn submit(&mut self) -> io::Result<()> {
        while !self.ring.submission().is_empty() {
            match self.ring.submit() {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// What the kernel has said since, without waiting.
    pub(super) fn next(&mut self) -> Option<Event> {
        loop {
            let completion = self.ring.completion().next()?;
            let Ok(tag) = u16::try_from(completion.user_data()) else { continue };
            let Some(slot) = self.slots.get_mut(usize::from(tag)) else { continue };
            let Slot::Kernel(buf) = std::mem::replace(slot, Slot::Ours) else { continue };
            let said = result_of(completion.result());
            match said.and_then(|()| self.descriptors.read(tag).ok_or_else(|| Errno::INVAL.into())) {
                Ok(request) => return Some(Event::Request { tag, request, buf }),
                Err(error) => {
                    *slot = Slot::Dead;
                    self.dead += 1;
                    return Some(Event::Dead { error });
                }
            }
        }
    }

    /// Whether no more requests can come, and every one that came was answered.
    pub(super) fn is_over(&self) -> bool {
        self.dead == self.slots.len()
    }
}

impl AsFd for QueueRing {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is the ring's own, open as long as `self.ring`, which the borrow does not outlive.
        unsafe { BorrowedFd::borrow_raw(self.ring.as_raw_fd()) }
    }
}

impl Drop for QueueRing {
    fn drop(&mut self) {
        if self.slots.iter().any(|slot| matches!(slot, Slot::Kernel(_))) {
            // The driver may still copy a request into these buffers, on this thread: they are never freed.
            std::mem::forget(std::mem::take(&mut self.slots));
        }
    }
}
