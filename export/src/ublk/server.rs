//! The thread of one queue: requests from the driver to the disk, answers back, all on this thread.
//!
//! It ends when the driver gives no more requests for any tag (the device was stopped), or when one of the rings fails: then
//! the driver sees its end and fails the device's requests.

use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::sync::Arc;

use block::BlockQueue;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use super::desk::Desk;
use super::rings::{Event, QueueRing};

/// Answers after which the kernel gets them, though more may follow at once.
const BATCH: usize = 8;

/// One queue in service.
pub(super) struct QueueServer<Q> {
    ring: QueueRing,
    desk: Desk<Q>,
}

impl<Q: BlockQueue> QueueServer<Q> {
    /// Asks the driver for the requests of the queue `number`.
    pub(super) fn open(device: Arc<File>, number: u16, depth: u16, disk: Q) -> io::Result<QueueServer<Q>> {
        Ok(QueueServer { ring: QueueRing::open(device, number, depth)?, desk: Desk::new(disk, depth) })
    }

    /// Serves until the device is stopped.
    pub(super) fn run(&mut self) -> io::Result<()> {
        loop {
            self.take_requests();
            let answered = self.give_answers()?;
            if self.ring.is_over() && self.desk.is_clear() {
                return Ok(());
            }
            if !answered {
                self.wait()?;
            }
        }
    }

    fn take_requests(&mut self) {
        while let Some(event) = self.ring.next() {
            match event {
                Event::Request { tag, request, buf } => self.desk.take(tag, &request, buf),
                // So a stopped device says it for each tag.
                Event::Dead { error } if error.raw_os_error() == Some(Errno::NODEV.raw_os_error()) => {}
                Event::Dead { error } => log::error!("a request of the ublk device is not served any more: {error}"),
            }
        }
    }

    /// Commits what the disk has done; whether there was anything.
    fn give_answers(&mut self) -> io::Result<bool> {
        let mut count = 0;
        while let Some(answer) = self.desk.answer() {
            self.ring.commit(answer.tag, answer.result, answer.buf)?;
            count += 1;
            if count % BATCH == 0 {
                self.ring.submit()?;
            }
        }
        self.ring.submit()?;
        Ok(count > 0)
    }

    fn wait(&self) -> io::Result<()> {
        let mut ready =
            [self.ring.as_fd(), self.desk.queue().descriptor()].map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
        match poll(&mut ready, None) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}
