//! The threads of one connection. One stands at the door and reads the next request; when it has it, another takes its place,
//! and it carries the request out and answers it itself: a request never changes hands, and replies come in the order in
//! which the disk is done.
//!
//! * Threads are started as they are needed: a client that asks for one thing at a time costs two.
//! * A client that stops reading stops its own threads only; whoever ends the connection wakes them (`shutdown`).

use std::io::{self, Read};
use std::net::Shutdown;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use block::AlignedBuf;

use super::guests::{Guests, Place};
use super::handshake::{Agreed, haggle};
#[cfg(feature = "tls")]
use super::handshake::{demand_tls, haggle_on};
use super::requests::{BUFFER_BYTES, LongRead, Replies, answer, take};
use super::socket::{Socket, Timed};
#[cfg(feature = "tls")]
use super::tls::{Session, door::HANDSHAKE_TIME};
use super::{ConnectionError, Export};

/// How long a client may take to be told that its session ends.
#[cfg(feature = "tls")]
const GOODBYE_WAIT: Duration = Duration::from_secs(1);

/// What the bytes of a connection go through on their way.
enum Wire {
    Plain,
    #[cfg(feature = "tls")]
    Tls(Box<Session>),
}

/// The receiving half; whoever is at the door has it.
struct Inlet<'a> {
    socket: &'a Socket,
    wire: &'a Wire,
}

impl Read for Inlet<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let mut socket = self.socket;
        match self.wire {
            Wire::Plain => socket.read(buf),
            #[cfg(feature = "tls")]
            Wire::Tls(session) => session.read(&mut socket, buf),
        }
    }
}

/// The sending half; one thread at a time.
struct Outlet<'a> {
    socket: &'a Socket,
    wire: &'a Wire,
    turn: &'a Mutex<()>,
}

impl Replies for Outlet<'_> {
    fn send(&self, head: &[u8], body: &[u8]) -> io::Result<()> {
        let _turn = lock(self.turn);
        match self.wire {
            Wire::Plain => self.socket.send(head, body),
            #[cfg(feature = "tls")]
            Wire::Tls(session) => session.send(&mut &*self.socket, head, body),
        }
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
    wire: Wire,
    /// Last, so that the disk is let go before the place is given back.
    place: Place,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A thread that panicked has ended its connection below; nothing half done is behind these locks.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Serves the client at the other end of `place` until it goes. Returns when this thread is done; others may still answer.
pub(super) fn serve(mut place: Place, exports: &[Export], haggle_time: Duration, threads_max: usize) {
    let socket = Arc::clone(place.socket());
    let mut timed = Timed { socket: &socket, until: Instant::now() + haggle_time };
    let haggled = agree(&mut place, &mut timed, exports).and_then(|agreed| {
        socket.set_timeout(None)?;
        Ok(agreed)
    });
    match haggled {
        Ok(Some((agreed, wire))) => {
            log::info!("{} uses {:?}", place.who(), agreed.name);
            transmit_over(wire, place, agreed, threads_max);
        }
        Ok(None) => log::debug!("{} left without an export", place.who()),
        Err(error) => place.complain(&error),
    }
}

#[cfg(not(feature = "tls"))]
fn agree(
    place: &mut Place,
    timed: &mut Timed<'_>,
    exports: &[Export],
) -> Result<Option<(Agreed, Wire)>, ConnectionError> {
    let agreed = haggle(timed, exports, |agreed| place.admit(&agreed.name))?;
    Ok(agreed.map(|agreed| (agreed, Wire::Plain)))
}

#[cfg(feature = "tls")]
fn agree(
    place: &mut Place,
    timed: &mut Timed<'_>,
    exports: &[Export],
) -> Result<Option<(Agreed, Wire)>, ConnectionError> {
    let Some(config) = place.config() else {
        let agreed = haggle(timed, exports, |agreed| place.admit(&agreed.name))?;
        return Ok(agreed.map(|agreed| (agreed, Wire::Plain)));
    };
    let until = timed.until;
    timed.until = until.min(Instant::now() + HANDSHAKE_TIME);
    let Some(no_zeroes) = demand_tls(timed)? else {
        return Ok(None);
    };
    let session = Session::begin(&config, timed)?;
    if !place.recognise() {
        // Fails if the client is gone, which is as well.
        let _ = session.close(timed);
        return Err(ConnectionError::Crowd);
    }
    timed.until = until;
    let mut secured = Secured { session: &session, timed };
    let agreed = haggle_on(&mut secured, exports, |agreed| place.admit(&agreed.name), no_zeroes)?;
    Ok(agreed.map(|agreed| (agreed, Wire::Tls(Box::new(session)))))
}

/// A session that still haggles, in time.
#[cfg(feature = "tls")]
struct Secured<'a, 'b> {
    session: &'a Session,
    timed: &'a mut Timed<'b>,
}

#[cfg(feature = "tls")]
impl Read for Secured<'_, '_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.session.read(self.timed, buf)
    }
}

#[cfg(feature = "tls")]
impl io::Write for Secured<'_, '_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.session.send(self.timed, buf, &[]).map(|()| buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Serves requests to who has haggled already. As [`serve`].
pub(super) fn transmit(place: Place, agreed: Agreed, threads_max: usize) {
    transmit_over(Wire::Plain, place, agreed, threads_max);
}

fn transmit_over(wire: Wire, place: Place, agreed: Agreed, threads_max: usize) {
    let connection = Arc::new(Connection {
        agreed,
        door: Mutex::new(false),
        at_door: AtomicUsize::new(0),
        threads: AtomicUsize::new(1),
        threads_max,
        sending: Mutex::new(()),
        long_read: LongRead::default(),
        wire,
        place,
    });
    connection.work();
}

/// The last thread of a session says goodbye: a client that is only cut off takes it for an attack.
#[cfg(feature = "tls")]
impl Drop for Connection {
    fn drop(&mut self) {
        if let Wire::Tls(session) = &self.wire {
            let socket: &Socket = self.place.socket();
            // Fails if the client is gone, which is as well.
            let _ = socket.set_timeout(Some(GOODBYE_WAIT)).and_then(|()| session.close(&mut &*socket));
        }
    }
}

impl Connection {
    fn work(self: Arc<Connection>) {
        let _ending = Ending(&self);
        let mut buffer = AlignedBuf::zeroed(BUFFER_BYTES);
        let socket: &Socket = self.place.socket();
        let mut inlet = Inlet { socket, wire: &self.wire };
        let outlet = Outlet { socket, wire: &self.wire, turn: &self.sending };
        let is_over = || self.guests().is_over();
        loop {
            self.at_door.fetch_add(1, Ordering::AcqRel);
            let mut ended = lock(&self.door);
            let taken = if *ended { Ok(None) } else { take(&mut inlet, &self.agreed, &mut buffer) };
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
        let _ = self.0.place.socket().shutdown(how);
    }
}
