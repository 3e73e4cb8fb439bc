//! [`RingLane`]: one io_uring on one registered file, with registered buffers where the kernel lets so much memory be locked.
//!
//! Invariants: the kernel has a slot's buffer from the submission to the completion, and nobody touches it in between
//! ([`Lane::buffer`] is for idle slots, which is checked); dropping the lane waits for what is in flight, so the memory outlives
//! the requests.
//!
//! Source: io_uring(7), io_uring_setup(2), io_uring_register(2), io_uring_enter(2).

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail, ensure};
use block::AlignedBuf;
use io_uring::squeue::Flags;
use io_uring::{IoUring, opcode, types};

use super::Lane;

const FILE: types::Fixed = types::Fixed(0);
/// Of io_uring_enter(2): completions are asked for.
const ENTER_GETEVENTS: u32 = 1;
/// How often a request that the kernel broke off is begun again.
const MOST_RETRIES: u32 = 64;

struct Slot {
    buffer: AlignedBuf,
    write: bool,
    offset_bytes: u64,
    in_flight: bool,
    /// How much is done.
    done_bytes: usize,
    retries: u32,
}

/// How the kernel is asked to do the work that follows a completion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// As `block::IoUringQueue`, which the other layers use: at the next system call, whatever it is (Linux 5.19).
    Library,
    /// As fio 3.33: by this thread alone, when it asks for completions, which it does with each submission (Linux 6.1).
    Fio,
}

/// A ring on a file or device. A thread's own: the one that made it uses it.
pub struct RingLane {
    ring: IoUring,
    manner: Manner,
    slots: Vec<Slot>,
    /// Where offset 0 lies.
    start_bytes: u64,
    registered: bool,
    in_flight: usize,
    /// Keeps the descriptor open.
    _file: Arc<File>,
}

impl RingLane {
    /// Requests of `block_bytes` on `file`, `depth` at once.
    ///
    /// # Errors
    /// The kernel gives no ring.
    pub fn new(file: Arc<File>, start_bytes: u64, block_bytes: u32, depth: u32, manner: Manner) -> Result<RingLane> {
        let depth = depth.max(1);
        let (ring, manner) = build(depth, manner).context("io_uring")?;
        ring.submitter().register_files(&[file.as_raw_fd()]).context("io_uring: registering the file")?;
        let slot = |_| Slot {
            buffer: AlignedBuf::zeroed(block_bytes as usize),
            write: false,
            offset_bytes: 0,
            in_flight: false,
            done_bytes: 0,
            retries: 0,
        };
        let slots: Vec<Slot> = (0..depth).map(slot).collect();
        let mut lane = RingLane { ring, manner, slots, start_bytes, registered: false, in_flight: 0, _file: file };
        lane.register_buffers();
        Ok(lane)
    }

    /// Whether the kernel gives a ring at all, and lets it be entered; `Err` is why not.
    ///
    /// # Errors
    /// It does not.
    pub fn probe() -> Result<()> {
        let (mut ring, _) = build(1, Manner::Library).context("io_uring")?;
        let nop = opcode::Nop::new().build();
        // SAFETY: a no-op names no memory.
        unsafe { ring.submission().push(&nop) }.map_err(|_| io::Error::other("the ring is full"))?;
        ring.submit_and_wait(1).context("io_uring")?;
        ensure!(ring.completion().next().is_some(), "io_uring: a no-op did not end");
        Ok(())
    }

    /// Whether the buffers are registered.
    #[must_use]
    pub fn is_registered(&self) -> bool {
        self.registered
    }

    fn register_buffers(&mut self) {
        let pieces: Vec<libc::iovec> = self
            .slots
            .iter_mut()
            .map(|slot| libc::iovec { iov_base: slot.buffer.as_mut_ptr().cast(), iov_len: slot.buffer.len() })
            .collect();
        // SAFETY: each piece is the memory of a slot, which lives as long as the ring and never moves.
        self.registered = unsafe { self.ring.submitter().register_buffers(&pieces) }.is_ok();
    }

    /// Puts the rest of a slot's request into the submission queue.
    fn push(&mut self, number: usize) -> Result<()> {
        let slot = &mut self.slots[number];
        let rest = &mut slot.buffer[slot.done_bytes..];
        let (address, len) = (rest.as_mut_ptr(), u32::try_from(rest.len())?);
        let (at, index) = (self.start_bytes + slot.offset_bytes + slot.done_bytes as u64, u16::try_from(number)?);
        let entry = match (slot.write, self.registered) {
            (false, true) => opcode::ReadFixed::new(FILE, address, len, index).offset(at).build(),
            (true, true) => opcode::WriteFixed::new(FILE, address, len, index).offset(at).build(),
            (false, false) => opcode::Read::new(FILE, address, len).offset(at).build(),
            (true, false) => opcode::Write::new(FILE, address, len).offset(at).build(),
        };
        // What came back with EAGAIN (the file has O_NONBLOCK) is done by a worker, which may wait.
        let flags = if slot.retries > 0 { Flags::ASYNC } else { Flags::empty() };
        let entry = entry.user_data(number as u64).flags(flags);
        // SAFETY: the entry names the buffer of a slot that is in flight from here on: it is neither touched nor freed until its
        // completion was taken, and the drop of the lane waits for that.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        ensure!(pushed.is_ok(), "io_uring: the submission queue is full");
        if !slot.in_flight {
            slot.in_flight = true;
            self.in_flight += 1;
        }
        Ok(())
    }

    fn enter(&mut self, wanted: usize) -> Result<()> {
        loop {
            let entered = match self.manner {
                Manner::Library => self.ring.submit_and_wait(wanted),
                Manner::Fio => {
                    let (queued, wanted) = (self.ring.submission().len(), u32::try_from(wanted)?);
                    // SAFETY: no signal mask and no other argument is handed over.
                    unsafe { self.ring.submitter().enter::<()>(u32::try_from(queued)?, wanted, ENTER_GETEVENTS, None) }
                }
            };
            match entered {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Completions have to be taken first.
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => return Ok(()),
                Err(error) => return Err(error).context("io_uring"),
            }
        }
    }

    /// Takes one result; whether the request is over.
    fn advance(&mut self, number: usize, result: i32) -> Result<bool> {
        let slot = &mut self.slots[number];
        // The kernel is done with it, well or not, until it is begun again.
        slot.in_flight = false;
        self.in_flight -= 1;
        let what = if slot.write { "write" } else { "read" };
        let (len, at) = (slot.buffer.len(), self.start_bytes + slot.offset_bytes);
        match usize::try_from(result) {
            Ok(count) if slot.done_bytes + count == len => return Ok(true),
            Ok(0) => bail!("{what} at byte {at}: the file ended"),
            Ok(count) => slot.done_bytes += count,
            Err(_) if [-libc::EAGAIN, -libc::EINTR].contains(&result) && slot.retries < MOST_RETRIES => {
                slot.retries += 1;
            }
            Err(_) => {
                let error = io::Error::from_raw_os_error(result.saturating_neg());
                return Err(error).with_context(|| format!("{what} of {len} bytes at byte {at}"));
            }
        }
        self.push(number).map(|()| false)
    }
}

/// The ring, in this manner, or as an older kernel knows it.
fn build(depth: u32, manner: Manner) -> io::Result<(IoUring, Manner)> {
    let entries = depth.next_power_of_two();
    let mut builder = IoUring::builder();
    builder.dontfork();
    let mut newest = builder.clone();
    newest.setup_submit_all().setup_coop_taskrun();
    if manner == Manner::Fio {
        newest.setup_single_issuer().setup_defer_taskrun();
    }
    match newest.build(entries) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok((builder.build(entries)?, Manner::Library)),
        result => Ok((result?, manner)),
    }
}

impl Lane for RingLane {
    fn buffer(&mut self, slot: usize) -> &mut [u8] {
        debug_assert!(!self.slots[slot].in_flight);
        if self.slots[slot].in_flight { &mut [] } else { &mut self.slots[slot].buffer }
    }

    fn submit(&mut self, slot: usize, write: bool, offset_bytes: u64) -> Result<()> {
        let taken = &mut self.slots[slot];
        ensure!(!taken.in_flight, "slot {slot} is in flight");
        (taken.write, taken.offset_bytes, taken.done_bytes, taken.retries) = (write, offset_bytes, 0, 0);
        self.push(slot)?;
        self.enter(0)
    }

    fn wait(&mut self, ended: &mut Vec<usize>) -> Result<()> {
        let before = ended.len();
        loop {
            loop {
                let Some(entry) = self.ring.completion().next() else { break };
                let number = usize::try_from(entry.user_data())?;
                if self.advance(number, entry.result())? {
                    ended.push(number);
                }
            }
            if ended.len() > before || self.in_flight == 0 {
                return Ok(());
            }
            self.enter(1)?;
        }
    }
}

impl Drop for RingLane {
    fn drop(&mut self) {
        // What the kernel has begun uses the memory of the slots. A ring that cannot even be waited for is left to the kernel,
        // with its memory.
        let mut ended = Vec::with_capacity(self.slots.len());
        while self.in_flight > 0 {
            ended.clear();
            let before = self.in_flight;
            // A request that failed is over, too.
            if self.wait(&mut ended).is_err() && self.in_flight == before {
                std::mem::forget(std::mem::take(&mut self.slots));
                return;
            }
        }
    }
}
