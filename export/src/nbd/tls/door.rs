//! Where connections from the network come in.
//!
//! What somebody may cost who has shown no certificate yet:
//! * a thread and some 100 KiB, for [`HANDSHAKE_TIME`]; at most 32 such at a time (`guests::strangers`),
//!   and who comes when they are there takes the place of one from the network with most of them;
//! * [`TAKEN_PER_SECOND`] connections a second, each one signature; more wait in the kernel's queue of [`QUEUE_MAX`];
//! * some lines a minute in the log;
//! * nothing of the disk, none of the places of the Unix socket's clients, and no word about what is served.

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt;

use super::super::guests::Origin;
use super::super::socket::Socket;
use super::super::{ACCEPT_PAUSE, Reception};
use super::Certificates;
use crate::fuse::ExportError;

/// From connecting to the end of the handshake of TLS.
pub(in super::super) const HANDSHAKE_TIME: Duration = Duration::from_secs(10);
/// Connections taken in a second.
const TAKEN_PER_SECOND: u32 = 100;
/// Connections that wait in the kernel.
const QUEUE_MAX: i32 = 128;
/// A client that has vanished without a word is gone after this and four unanswered questions.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
const KEEPALIVE_QUESTIONS: u32 = 4;

/// Where to listen beside the Unix socket, and who may come.
pub struct TlsListener {
    listener: TcpListener,
    address: SocketAddr,
    /// As clients call it: `HOST:PORT`.
    authority: String,
    certificates: Certificates,
}

impl fmt::Debug for TlsListener {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("TlsListener").field("address", &self.address).finish_non_exhaustive()
    }
}

impl TlsListener {
    /// Listens at `address`, `HOST:PORT`; port 0 is any that is free.
    ///
    /// # Errors
    /// [`ExportError::Listen`].
    pub fn bind(address: &str, certificates: Certificates) -> Result<TlsListener, ExportError> {
        let failed = |source| ExportError::Listen { address: address.chars().take(300).collect(), source };
        let listener = TcpListener::bind(address).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        rustix::net::listen(&listener, QUEUE_MAX).map_err(|errno| failed(errno.into()))?;
        let bound = listener.local_addr().map_err(failed)?;
        let authority = authority(address, bound);
        Ok(TlsListener { listener, address: bound, authority, certificates })
    }

    pub(in super::super) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(in super::super) fn authority(&self) -> &str {
        &self.authority
    }
}

/// The name that was asked for, for a client checks that one against the certificate; of every address the machine's.
fn authority(asked: &str, bound: SocketAddr) -> String {
    let asked = asked.rsplit_once(':').map_or(asked, |(host, _)| host);
    let is_name = |host: &str| {
        !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-'))
    };
    if bound.ip().is_unspecified() {
        let machine = rustix::system::uname().nodename().to_string_lossy().into_owned();
        return if is_name(&machine) { format!("{machine}:{}", bound.port()) } else { bound.to_string() };
    }
    if is_name(asked) { format!("{asked}:{}", bound.port()) } else { bound.to_string() }
}

/// Takes connections from the network.
pub(in super::super) struct NetworkDoor {
    pub(in super::super) tls: TlsListener,
    pub(in super::super) wake: Arc<OwnedFd>,
    pub(in super::super) reception: Arc<Reception>,
}

impl NetworkDoor {
    pub(in super::super) fn keep(&self) {
        let mut pace = Pace { second: Instant::now(), taken: 0 };
        while !self.reception.guests.is_over() {
            self.wait(true, None);
            if self.reception.guests.is_over() {
                return;
            }
            match self.tls.listener.accept() {
                Ok((stream, address)) => {
                    self.let_in(stream, address);
                    if let Some(rest) = pace.step(Instant::now()) {
                        self.wait(false, Some(rest));
                    }
                }
                Err(error) if is_of_one_connection(&error) => {}
                // Out of descriptors, most likely: the connection stays in the queue, so poll would return at once for ever.
                Err(error) => {
                    self.complain(format_args!("a connection cannot be taken: {error}"));
                    self.wait(false, Some(ACCEPT_PAUSE));
                }
            }
        }
    }

    /// Waits for the end, for a connection if `for_connections`, and no longer than `most`.
    fn wait(&self, for_connections: bool, most: Option<Duration>) {
        let most = most.map(|most| Timespec {
            tv_sec: most.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: most.subsec_nanos().into(),
        });
        let events = [self.wake.as_fd(), self.tls.listener.as_fd()];
        let mut ready = events.map(|event| PollFd::from_borrowed_fd(event, PollFlags::IN));
        let awaited = if for_connections { &mut ready[..] } else { &mut ready[..1] };
        match poll(awaited, most.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => {
                self.complain(format_args!("cannot wait for connections: {errno}"));
                std::thread::sleep(ACCEPT_PAUSE);
            }
        }
    }

    /// Takes somebody who has to show a certificate next.
    fn let_in(&self, stream: TcpStream, address: SocketAddr) {
        let config = match self.tls.certificates.config() {
            Ok(config) => config,
            Err(error) => return self.complain(format_args!("the connection of {address} was closed: {error}")),
        };
        if !self.reception.guests.make_room_for(address.ip()) {
            return self.complain(format_args!(
                "the connection of {address} was closed: too many have shown no certificate yet"
            ));
        }
        match prepare(&stream) {
            Ok(()) => {
                let origin = Origin::Stranger { address, since: Instant::now(), config };
                self.reception.attend(Socket::new(stream), origin);
            }
            Err(error) => self.complain(format_args!("the connection of {address} was closed: {error}")),
        }
    }

    fn complain(&self, words: fmt::Arguments<'_>) {
        self.reception.guests.complain(words);
    }
}

fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, KEEPALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(stream, KEEPALIVE_INTERVAL)?;
    Ok(sockopt::set_tcp_keepcnt(stream, KEEPALIVE_QUESTIONS)?)
}

fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted)
}

/// So many connections a second.
struct Pace {
    second: Instant,
    taken: u32,
}

impl Pace {
    /// Counts one; how long to wait before the next one if that were too many.
    fn step(&mut self, now: Instant) -> Option<Duration> {
        let passed = now.saturating_duration_since(self.second);
        if passed >= Duration::from_secs(1) {
            *self = Pace { second: now, taken: 0 };
        }
        self.taken += 1;
        (self.taken >= TAKEN_PER_SECOND).then(|| Duration::from_secs(1).saturating_sub(passed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hundred_a_second_are_taken_and_then_the_rest_of_it_is_waited_for() {
        let start = Instant::now();
        let mut pace = Pace { second: start, taken: 0 };
        let after = |millis| start + Duration::from_millis(millis);
        assert!((1..TAKEN_PER_SECOND).all(|_| pace.step(after(100)).is_none()));
        assert_eq!(pace.step(after(400)), Some(Duration::from_millis(600)));
        assert_eq!(pace.step(after(1000)), None);
        assert!((2..TAKEN_PER_SECOND).all(|_| pace.step(after(1000)).is_none()));
        assert_eq!(pace.step(after(1250)), Some(Duration::from_millis(750)));
    }

    #[test]
    fn clients_are_told_the_name_that_the_certificate_can_hold() {
        let bound = |address: &str| address.parse::<SocketAddr>().unwrap();
        assert_eq!(authority("disks.example:0", bound("192.0.2.1:4711")), "disks.example:4711");
        assert_eq!(authority("192.0.2.1:10809", bound("192.0.2.1:10809")), "192.0.2.1:10809");
        assert_eq!(authority("[::1]:0", bound("[::1]:4711")), "[::1]:4711");
        assert!(authority("0.0.0.0:0", bound("0.0.0.0:4711")).ends_with(":4711"));
    }
}
