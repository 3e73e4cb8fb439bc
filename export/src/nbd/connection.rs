//! The threads of one connection. One stands at the door and reads the next request; when it has it, another takes its place,
//! and it carries the request out and answers it itself: a request never changes hands, and replies come in the order in
//! which the disk is done.
//!
//! * Threads are started as they are needed: a client that asks for one thing at a time costs two.
//! * A client that stops reading stops its own threads only; whoever ends the connection wakes them (`shutdown`).

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use block::AlignedBuf;
use rustix::net::{SendAncillaryBuffer, SendFlags, sendmsg};

use super::Export;
use super::guests::{Guests, Place};
use super::handshake::{Agreed, haggle};
use super::requests::{BUFFER_BYTES, LongRead, Replies, answer, take};

/// A stream on which everything has to happen before a point in time.
struct Timed<'a> {
    stream: &'a UnixStream,
    until: Instant,
}

impl Timed<'_> {
    /// What is left, or the error that nothing is. A timeout of zero would mean none.
    fn left(&self) -> io::Result<Duration> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
    }
}

impl Read for Timed<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(Some(self.left()?))?;
        let mut stream = self.stream;
        stream.read(buf)
    }
}

impl Write for Timed<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(Some(self.left()?))?;
        send_some(self.stream, buf, &[])
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Sends from both parts in one call. A client that is gone is an error, not a signal.
fn send_some(stream: &UnixStream, head: &[u8], body: &[u8]) -> io::Result<usize> {
    let parts = [io::IoSlice::new(head), io::IoSlice::new(body)];
    Ok(sendmsg(stream, &parts, &mut SendAncillaryBuffer::default(), SendFlags::NOSIGNAL)?)
}

/// The sending half; one thread at a time.
struct Outlet<'a> {
    stream: &'a UnixStream,
    turn: &'a Mutex<()>,
}

impl Replies for Outlet<'_> {
    fn send(&self, head: &[u8], body: &[u8]) -> io::Result<()> {
        let _turn = lock(self.turn);
        let (mut head, mut body) = (head, body);
        while !head.is_empty() || !body.is_empty() {
            let sent = match send_some(self.stream, head, body) {
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

/// One client in transmission.
struct Connection {
    agreed: Agreed,
    /// Held by the thread that reads the next request; true when there will be none.
    door: Mutex<bool>,
    /// Threads at the door, the one that reads among them.
    at_door: AtomicUsize,
    threads: AtomicUsize,
    threads_max: usize,
    sending: Mutex<()>,
    long_read: LongRead,
    /// Last, so that the disk is let go before the place is given back.
    place: Place,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A thread that panicked has ended its connection below; nothing half done is behind these locks.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Serves the client at the other end of `place` until it goes. Returns when this thread is done; others may still answer.
pub(super) fn serve(place: Place, exports: &[Export], haggle_time: Duration, threads_max: usize) {
    let stream = Arc::clone(place.stream());
    let mut timed = Timed { stream: &stream, until: Instant::now() + haggle_time };
    let agreed = match haggle(&mut timed, exports, |agreed| place.admit(&agreed.name)) {
        Ok(Some(agreed)) => agreed,
        Ok(None) => return log::debug!("{} left without an export", place.who()),
        Err(error) => return log::warn!("the connection of {} was closed: {error}", place.who()),
    };
    if let Err(error) = stream.set_read_timeout(None).and_then(|()| stream.set_write_timeout(None)) {
        return log::warn!("the connection of {} was closed: {error}", place.who());
    }
    log::info!("{} uses {:?}", place.who(), agreed.name);
    transmit(place, agreed, threads_max);
}

/// Serves requests to who has haggled already. As [`serve`].
pub(super) fn transmit(place: Place, agreed: Agreed, threads_max: usize) {
    let connection = Arc::new(Connection {
        agreed,
        door: Mutex::new(false),
        at_door: AtomicUsize::new(0),
        threads: AtomicUsize::new(1),
        threads_max,
        sending: Mutex::new(()),
        long_read: LongRead::default(),
        place,
    });
    connection.work();
}

impl Connection {
    fn work(self: Arc<Connection>) {
        let _ending = Ending(&self);
        let mut buffer = AlignedBuf::zeroed(BUFFER_BYTES);
        let stream: &UnixStream = self.place.stream();
        let outlet = Outlet { stream, turn: &self.sending };
        let is_over = || self.guests().is_over();
        loop {
            self.at_door.fetch_add(1, Ordering::AcqRel);
            let mut ended = lock(&self.door);
            let taken = if *ended { Ok(None) } else { take(&mut &*stream, &self.agreed, &mut buffer) };
            if !matches!(taken, Ok(Some(_))) {
                *ended = true;
            }
            drop(ended);
            let waiting = self.at_door.fetch_sub(1, Ordering::AcqRel) - 1;
            let taken = match taken {
                Ok(Some(taken)) => taken,
                Ok(None) => return,
                Err(error) => return log::warn!("the connection of {} was closed: {error}", self.place.who()),
            };
            if waiting == 0 {
                self.start_another();
            }
            if let Err(error) = answer(&taken, &self.agreed, &mut buffer, &self.long_read, &outlet, &is_over) {
                return log::info!("{} cannot be answered: {error}", self.place.who());
            }
        }
    }

    fn guests(&self) -> &Guests {
        self.place.guests()
    }

    /// A thread for the door, if there may be one more; else whoever is done first goes there.
    fn start_another(self: &Arc<Connection>) {
        if self.threads.load(Ordering::Relaxed) >= self.threads_max || !self.guests().take_thread() {
            return;
        }
        self.threads.fetch_add(1, Ordering::Relaxed);
        let connection = Arc::clone(self);
        let work = move || {
            let _thread = Extra(Arc::clone(&connection));
            connection.work();
        };
        if let Err(error) = std::thread::Builder::new().name("nbd".to_owned()).spawn(work) {
            self.threads.fetch_sub(1, Ordering::Relaxed);
            self.guests().give_thread();
            log::warn!("cannot start a thread: {error}");
        }
    }
}

/// A thread beside the first one, given back on drop.
struct Extra(Arc<Connection>);

impl Drop for Extra {
    fn drop(&mut self) {
        self.0.threads.fetch_sub(1, Ordering::Relaxed);
        self.0.guests().give_thread();
    }
}

/// A thread that leaves, also by a panic. Requests after a proper end are still answered; after anything else nobody is left to
/// talk to.
struct Ending<'a>(&'a Arc<Connection>);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        let how = if std::thread::panicking() { Shutdown::Both } else { Shutdown::Read };
        // Fails if the client is gone, which is as well.
        let _ = self.0.place.stream().shutdown(how);
    }
}
