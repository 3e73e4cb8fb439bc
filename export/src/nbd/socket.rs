//! A stream socket of either family: what a connection reads, sends, cuts and is timed by.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{SendAncillaryBuffer, SendFlags, sendmsg};

/// A connected stream socket.
pub(super) struct Socket(OwnedFd);

impl Socket {
    pub(super) fn new(stream: impl Into<OwnedFd>) -> Socket {
        Socket(stream.into())
    }

    /// Ends one direction or both, for every thread that waits on it.
    pub(super) fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        let how = match how {
            Shutdown::Read => rustix::net::Shutdown::Read,
            Shutdown::Write => rustix::net::Shutdown::Write,
            Shutdown::Both => rustix::net::Shutdown::Both,
        };
        Ok(rustix::net::shutdown(&self.0, how)?)
    }

    /// How long one read, and one send, may wait; for ever with `None`.
    pub(super) fn set_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        set_socket_timeout(&self.0, Timeout::Recv, timeout)?;
        Ok(set_socket_timeout(&self.0, Timeout::Send, timeout)?)
    }

    /// Sends from both parts in one call. A client that is gone is an error, not a signal.
    pub(super) fn send_some(&self, head: &[u8], body: &[u8]) -> io::Result<usize> {
        let parts = [io::IoSlice::new(head), io::IoSlice::new(body)];
        Ok(sendmsg(&self.0, &parts, &mut SendAncillaryBuffer::default(), SendFlags::NOSIGNAL)?)
    }

    /// Sends both parts whole.
    pub(super) fn send(&self, head: &[u8], body: &[u8]) -> io::Result<()> {
        let (mut head, mut body) = (head, body);
        while !head.is_empty() || !body.is_empty() {
            let sent = match self.send_some(head, body) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                sent => sent?,
            };
            let of_head = sent.min(head.len());
            head = &head[of_head..];
            body = &body[sent - of_head..];
        }
        Ok(())
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Read for &Socket {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::io::read(&self.0, buf)?)
    }
}

impl Write for &Socket {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.send_some(buf, &[])
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A socket on which everything has to happen before a point in time.
pub(super) struct Timed<'a> {
    pub(super) socket: &'a Socket,
    pub(super) until: Instant,
}

impl Timed<'_> {
    /// Lets the next call wait for what is left, or is the error that nothing is. A timeout of zero would mean none.
    fn hurry(&self) -> io::Result<()> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { self.socket.set_timeout(Some(left)) }
    }
}

impl Read for Timed<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.hurry()?;
        let mut socket = self.socket;
        socket.read(buf)
    }
}

impl Write for Timed<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.hurry()?;
        self.socket.send_some(buf, &[])
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
