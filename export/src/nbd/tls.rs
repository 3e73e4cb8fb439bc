//! TLS 1.3 with a certificate on both sides: the only way in over TCP.
//!
//! * Nobody without a certificate that our authority signed comes past the handshake; there is no resumption, so one that was
//!   revoked meanwhile is refused the next time. No pre-shared keys.
//! * Bytes that a client sends in the clear after it asked for TLS are part of no conversation: nothing was read ahead.
//! * One thread reads at a time, and one sends; neither holds the session while it waits for the network.
//! * What who has shown nothing yet may cost is bounded: [`door`] says how.
//!
//! Sources: RFC 8446, `doc/proto.md` of the NBD project (TLS support, FORCEDTLS), nbdkit-tls(1) for the names of the files.

mod certificates;
pub(super) mod door;

use std::io::{self, Read, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustls::{ServerConfig, ServerConnection};

pub use certificates::Certificates;
pub use door::TlsListener;

/// Plaintext that is encrypted before it is sent: four records.
const PIECE_BYTES: usize = 64 << 10;
/// What is taken off the network at once: a record.
const INBOX_BYTES: usize = 18 << 10;

/// One client's session, after the handshake.
pub(super) struct Session {
    connection: Mutex<ServerConnection>,
    inbox: Mutex<Inbox>,
    outbox: Mutex<Vec<u8>>,
}

/// Bytes off the network that the session has not taken yet.
struct Inbox {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn broken(error: rustls::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

impl Session {
    /// Shakes hands over `stream`.
    pub(super) fn begin<S: Read + Write>(config: &Arc<ServerConfig>, stream: &mut S) -> io::Result<Session> {
        let mut connection = ServerConnection::new(Arc::clone(config)).map_err(broken)?;
        connection.set_buffer_limit(None);
        while connection.is_handshaking() {
            if connection.complete_io(stream)? == (0, 0) {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(Session {
            connection: Mutex::new(connection),
            inbox: Mutex::new(Inbox { bytes: vec![0; INBOX_BYTES], start: 0, end: 0 }),
            outbox: Mutex::new(Vec::with_capacity(PIECE_BYTES + INBOX_BYTES)),
        })
    }

    /// Reads plaintext; 0 at the end.
    pub(super) fn read<S: Read + Write>(&self, stream: &mut S, buf: &mut [u8]) -> io::Result<usize> {
        let mut inbox = lock(&self.inbox);
        loop {
            let wants_write = {
                let mut connection = lock(&self.connection);
                match connection.reader().read(buf) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    other => return other,
                }
                let Inbox { bytes, start, end } = &mut *inbox;
                let mut rest = &bytes[*start..*end];
                if rest.is_empty() {
                    false
                } else {
                    *start += connection.read_tls(&mut rest)?;
                    let processed = connection.process_new_packets();
                    if let Err(error) = processed {
                        drop(connection);
                        // The alert that says why; it may have gone already.
                        let _ = self.drain(stream);
                        return Err(broken(error));
                    }
                    if !connection.wants_write() {
                        continue;
                    }
                    true
                }
            };
            if wants_write {
                self.drain(stream)?;
                continue;
            }
            let got = stream.read(&mut inbox.bytes)?;
            if got == 0 {
                return Ok(0);
            }
            (inbox.start, inbox.end) = (0, got);
        }
    }

    /// Sends `head`, then `body`, whole.
    pub(super) fn send<S: Write>(&self, stream: &mut S, head: &[u8], body: &[u8]) -> io::Result<()> {
        let mut outbox = lock(&self.outbox);
        let mut pieces = body.chunks(PIECE_BYTES);
        let mut first = Some(head);
        loop {
            let (head, piece) = (first.take(), pieces.next());
            if head.is_none() && piece.is_none() {
                return Ok(());
            }
            let mut connection = lock(&self.connection);
            connection.writer().write_all(head.unwrap_or_default())?;
            connection.writer().write_all(piece.unwrap_or_default())?;
            drop(connection);
            self.drain_into(&mut outbox, stream)?;
        }
    }

    fn drain<S: Write>(&self, stream: &mut S) -> io::Result<()> {
        self.drain_into(&mut lock(&self.outbox), stream)
    }

    /// The outbox is held from here to the last byte, so records leave in their order.
    fn drain_into<S: Write>(&self, outbox: &mut Vec<u8>, stream: &mut S) -> io::Result<()> {
        let mut connection = lock(&self.connection);
        while connection.wants_write() {
            connection.write_tls(outbox)?;
        }
        drop(connection);
        let sent = stream.write_all(outbox);
        outbox.clear();
        sent
    }

    /// Says goodbye.
    pub(super) fn close<S: Write>(&self, stream: &mut S) -> io::Result<()> {
        lock(&self.connection).send_close_notify();
        self.drain(stream)
    }
}
