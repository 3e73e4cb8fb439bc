//! [`Waker`]: makes the descriptor of a queue readable from another thread, with an eventfd.
//!
//! Invariant: after [`Waker::wake`] the descriptor is readable until the queue's owner calls `complete` the next time.
//!
//! Source: eventfd(2).

use crate::{BlockError, Bytes};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Wakes whoever waits on one queue.
#[derive(Clone)]
pub struct Waker {
    event: Arc<Event>,
}

struct Event {
    fd: OwnedFd,
    /// Set after the descriptor was made readable: an owner that never finds it set makes no system call.
    woken: AtomicBool,
}

impl Waker {
    pub(super) fn new() -> io::Result<Waker> {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Waker { event: Arc::new(Event { fd, woken: AtomicBool::new(false) }) })
    }

    /// Makes the queue's descriptor readable. Never blocks and cannot fail: a counter that is full is readable already.
    pub fn wake(&self) {
        let written = rustix::io::retry_on_intr(|| rustix::io::write(&self.event.fd, &1u64.to_ne_bytes()));
        debug_assert!(matches!(written, Ok(8) | Err(Errno::AGAIN)));
        self.event.woken.store(true, Ordering::Release);
    }

    /// Makes the descriptor unreadable again; says whether somebody had woken it.
    pub(super) fn clear(&self) -> bool {
        if !self.event.woken.load(Ordering::Relaxed) || !self.event.woken.swap(false, Ordering::Acquire) {
            return false;
        }
        let mut count = [0u8; 8];
        let read = rustix::io::retry_on_intr(|| rustix::io::read(&self.event.fd, &mut count));
        debug_assert!(matches!(read, Ok(8) | Err(Errno::AGAIN)));
        true
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.fd.as_fd()
    }
}

/// Waits until `fd` is readable. A signal is no error: it looks like a wake for no reason.
pub(super) fn wait_readable(fd: BorrowedFd<'_>) -> Result<(), BlockError> {
    let mut polled = [PollFd::new(&fd, PollFlags::IN)];
    match poll(&mut polled, None) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(errno) => Err(BlockError::from_io("wait", Bytes::ZERO, 0, errno.into())),
    }
}
