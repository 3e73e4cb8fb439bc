//! Disks over the NBD protocol, on a Unix socket: without root, without the kernel, for qemu, libnbd, nbdkit, nbd-client. With
//! the feature `tls` also over TCP, with TLS and certificates on both sides, and in no other way.
//!
//! * **Who may.** The socket has mode 0600, and whoever connects is asked of the kernel: the user who serves, and root.
//! * **No silent success.** A request is answered after the disk did it; a flush covers every write completed before it on any
//!   connection, so clients may use several (`CAN_MULTI_CONN`). After a failed flush the export takes no more writes.
//! * **No hole is ever zero.** Block status says "data" for everything, zeros are written through the disk.
//! * **Hostile clients** cost what they may: bounded options, payloads, threads and connections, a deadline for the haggling. Who
//!   breaks the protocol is closed, with the reason in the log. Who stops reading or hangs stops his own connection only.
//! * The size is told once per connection: a disk that has grown is seen by those who connect afterwards.
//!
//! Source: `doc/proto.md` and `doc/uri.md` of the NBD project.

mod codec;
mod connection;
mod guests;
mod handshake;
mod requests;
mod served_disk;
mod socket;
mod spoken;
#[cfg(feature = "tls")]
mod tls;

use std::fs::Permissions;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{JoinHandle, sleep};
use std::time::Duration;

use block::BlockIo;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};

use crate::fuse::ExportError;
use guests::{Guests, Origin};
use handshake::{Agreed, NAME_MAX_BYTES};
use served_disk::ServedDisk;
use socket::Socket;

pub use spoken::speak;
#[cfg(feature = "tls")]
pub use tls::{Certificates, TlsListener};

/// Connections served at a time. More wait in the socket's queue until one ends.
const CONNECTIONS_MAX: usize = 64;
/// Threads per connection when [`NbdOptions::threads`] is 0.
const DEFAULT_THREADS: usize = 16;
/// Fewest threads: one at the door, one in the disk.
const MIN_THREADS: usize = 2;
/// Most threads.
const MAX_THREADS: usize = 64;
/// Before another try to take a connection when there is nothing left to take it with.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
/// Longest path of a Unix socket.
pub const SOCKET_PATH_MAX_BYTES: usize = 107;

/// A disk and the name that it goes by.
pub struct NbdDisk {
    /// The name that clients ask for. The first disk of a server also answers to the empty name.
    pub name: String,
    /// A line for people.
    pub description: String,
    /// The disk.
    pub disk: Arc<dyn BlockIo>,
    /// Refuse writes, also when the disk itself would take them.
    pub read_only: bool,
}

/// How to serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NbdOptions {
    /// Requests of one connection that are carried out at once, a thread each; 0 for the default; raised to 2, lowered to 64.
    pub threads: usize,
    /// How long a client may take from connecting to its first request.
    pub haggle_time: Duration,
}

impl Default for NbdOptions {
    fn default() -> NbdOptions {
        NbdOptions { threads: 0, haggle_time: Duration::from_secs(30) }
    }
}

/// What a client of [`NbdExport::pair`] would have been told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NbdFacts {
    /// Size in bytes.
    pub size_bytes: u64,
    /// Logical block in bytes; smaller requests are possible.
    pub block_bytes: u32,
    /// Transmission flags, as the protocol numbers them.
    pub flags: u16,
    /// Whether writes are refused.
    pub read_only: bool,
}

/// A client that uses an export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NbdClient {
    /// Process that connected, as the kernel said then.
    pub pid: Option<i32>,
    /// Where on the network it is, if it is there.
    pub address: Option<SocketAddr>,
    /// Name of the export.
    pub export: String,
}

/// Why a connection ended before its client wanted it to.
#[derive(Debug, thiserror::Error)]
enum ConnectionError {
    #[error("{0}")]
    Garbage(String),
    #[error("it wants the export \"{0}\", which is not there")]
    UnknownExport(String),
    #[error("the server is closing")]
    Closing,
    /// Of the network.
    #[cfg(feature = "tls")]
    #[error("there are too many connections from the network already")]
    Crowd,
    #[error("user {0} may not use it")]
    Stranger(u32),
    #[error("{}", if matches!(.0.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) {
        "it did not say in time what it wants".to_owned()
    } else {
        .0.to_string()
    })]
    Io(#[from] io::Error),
}

/// One disk with its name, as connections see it.
struct Export {
    name: String,
    description: String,
    disk: Arc<ServedDisk>,
}

impl Export {
    fn new(disk: NbdDisk) -> Export {
        let NbdDisk { name, description, disk, read_only } = disk;
        let description = description.chars().take(NAME_MAX_BYTES / 4).collect();
        Export { name, description, disk: Arc::new(ServedDisk::new(disk, read_only)) }
    }
}

/// A running server. Dropping it cuts every connection and ends it; [`NbdExport::stop`] also tells of a failed last flush.
pub struct NbdExport {
    socket: PathBuf,
    /// Device and inode of the socket.
    identity: (u64, u64),
    reception: Arc<Reception>,
    wake: Arc<OwnedFd>,
    doorman: Option<JoinHandle<()>>,
    #[cfg(feature = "tls")]
    network: Option<Network>,
}

/// The way in over TCP.
#[cfg(feature = "tls")]
struct Network {
    address: SocketAddr,
    authority: String,
    doorman: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for NbdExport {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("NbdExport").field("socket", &self.socket).finish_non_exhaustive()
    }
}

impl NbdExport {
    /// The socket.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Whether the socket is where it was made: nobody has removed or replaced it.
    #[must_use]
    pub fn is_reachable(&self) -> bool {
        identity(&self.socket).is_ok_and(|now| now == self.identity)
    }

    /// Where it listens for TLS, if it does.
    #[cfg(feature = "tls")]
    #[must_use]
    pub fn tls_address(&self) -> Option<SocketAddr> {
        self.network.as_ref().map(|network| network.address)
    }

    /// The URI of the first export for clients on the network, if it listens for them.
    #[cfg(feature = "tls")]
    #[must_use]
    pub fn tls_uri(&self) -> Option<String> {
        let export = self.reception.exports.first()?;
        self.network.as_ref().map(|network| format!("nbds://{}/{}", network.authority, escaped(export.name.as_bytes())))
    }

    /// Who uses an export now. A client that only asks what there is does not count.
    #[must_use]
    pub fn clients(&self) -> Vec<NbdClient> {
        self.reception.guests.users()
    }

    /// If nobody uses an export, lets nobody in any more and answers with an empty list; else says who does and changes nothing.
    #[must_use]
    pub fn shut_if_unused(&self) -> Vec<NbdClient> {
        self.reception.guests.shut_if_unused()
    }

    /// Lets clients in again after [`NbdExport::shut_if_unused`].
    pub fn reopen(&self) {
        self.reception.guests.open();
    }

    /// A connection to the first export that has haggled already, without structured replies: the kernel's client takes it so.
    /// Whoever has it is none of [`NbdExport::clients`].
    ///
    /// # Errors
    /// [`ExportError::Socket`].
    pub fn pair(&self) -> Result<(UnixStream, NbdFacts), ExportError> {
        let failed = |source| ExportError::Socket { path: self.socket.clone(), source };
        let export = self.reception.exports.first().ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
        let (ours, theirs) = UnixStream::pair().map_err(failed)?;
        let agreed = Agreed {
            disk: Arc::clone(&export.disk),
            name: export.name.clone(),
            size_bytes: export.disk.size_bytes(),
            structured: false,
            allocation: false,
        };
        let facts = NbdFacts {
            size_bytes: agreed.size_bytes,
            block_bytes: agreed.disk.block_bytes(),
            flags: agreed.disk.flags(false),
            read_only: agreed.disk.is_read_only(),
        };
        let (place, threads_max) =
            (self.reception.guests.arrive(Socket::new(ours), Origin::Local(None)), self.reception.threads_max);
        let serve = move || connection::transmit(place, agreed, threads_max);
        std::thread::Builder::new().name("nbd".to_owned()).spawn(serve).map_err(failed)?;
        Ok((theirs, facts))
    }

    /// Cuts every connection, waits until what is in the disk has come back, removes the socket and flushes.
    ///
    /// # Errors
    /// [`ExportError::FinalFlush`] with the socket's path.
    pub fn stop(&mut self) -> Result<(), ExportError> {
        self.end();
        for export in self.reception.exports.iter() {
            let flushed = export.disk.flush_disk();
            flushed.map_err(|error| ExportError::FinalFlush {
                mount_point: self.socket.clone(),
                source: Arc::new(error),
            })?;
        }
        Ok(())
    }

    fn end(&mut self) {
        let Some(doorman) = self.doorman.take() else {
            return;
        };
        self.reception.guests.send_away();
        if let Err(errno) = rustix::io::write(&*self.wake, &1_u64.to_ne_bytes()) {
            log::error!("cannot wake the thread that takes connections: {errno}");
        }
        if doorman.join().is_err() {
            log::error!("the thread that takes connections panicked");
        }
        #[cfg(feature = "tls")]
        if let Some(doorman) = self.network.as_mut().and_then(|network| network.doorman.take())
            && doorman.join().is_err()
        {
            log::error!("the thread that takes connections from the network panicked");
        }
        // The door may have let somebody in before it saw the end.
        self.reception.guests.send_away();
        self.reception.guests.wait_until_gone();
        if self.is_reachable()
            && let Err(error) = std::fs::remove_file(&self.socket)
        {
            log::warn!("cannot remove {}: {error}", self.socket.display());
        }
    }
}

impl Drop for NbdExport {
    fn drop(&mut self) {
        self.end();
    }
}

/// Serves `disks` on a new Unix socket at `socket`, whose folder should be the user's own, from threads of its own.
///
/// # Errors
/// [`ExportError::ExportName`] for a name that is empty, too long or there twice, or no disk at all; [`ExportError::Socket`].
pub fn serve(disks: Vec<NbdDisk>, socket: &Path, options: &NbdOptions) -> Result<NbdExport, ExportError> {
    let exports: Vec<Export> = disks.into_iter().map(Export::new).collect();
    check_names(&exports)?;
    let failed = |source| ExportError::Socket { path: socket.to_path_buf(), source };
    let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC).map_err(|errno| failed(errno.into()))?);
    let listener = UnixListener::bind(socket).map_err(failed)?;
    let prepared = std::fs::set_permissions(socket, Permissions::from_mode(0o600))
        .and_then(|()| listener.set_nonblocking(true))
        .and_then(|()| identity(socket));
    let remove = |error| {
        let _ = std::fs::remove_file(socket);
        failed(error)
    };
    let identity = prepared.map_err(remove)?;
    let threads_max = match options.threads {
        0 => DEFAULT_THREADS,
        wanted => wanted.clamp(MIN_THREADS, MAX_THREADS),
    };
    let reception =
        Arc::new(Reception { exports, guests: Arc::default(), haggle_time: options.haggle_time, threads_max });
    let door = Door { listener, wake: Arc::clone(&wake), reception: Arc::clone(&reception) };
    let doorman = std::thread::Builder::new().name("nbd-door".to_owned()).spawn(move || door.keep()).map_err(remove)?;
    Ok(NbdExport {
        socket: socket.to_path_buf(),
        identity,
        reception,
        wake,
        doorman: Some(doorman),
        #[cfg(feature = "tls")]
        network: None,
    })
}

/// As [`serve`], and over TCP to clients that show a certificate.
///
/// # Errors
/// As [`serve`].
#[cfg(feature = "tls")]
pub fn serve_with_tls(
    disks: Vec<NbdDisk>,
    socket: &Path,
    options: &NbdOptions,
    tls: TlsListener,
) -> Result<NbdExport, ExportError> {
    let mut export = serve(disks, socket, options)?;
    let (address, authority) = (tls.address(), tls.authority().to_owned());
    let door = tls::door::NetworkDoor { tls, wake: Arc::clone(&export.wake), reception: Arc::clone(&export.reception) };
    let doorman = std::thread::Builder::new().name("nbd-tls-door".to_owned()).spawn(move || door.keep());
    let doorman = doorman.map_err(|source| ExportError::Socket { path: socket.to_path_buf(), source })?;
    export.network = Some(Network { address, authority, doorman: Some(doorman) });
    Ok(export)
}

fn check_names(exports: &[Export]) -> Result<(), ExportError> {
    let bad = |name: &str| Err(ExportError::ExportName { name: name.chars().take(100).collect() });
    if exports.is_empty() {
        return bad("");
    }
    for (at, export) in exports.iter().enumerate() {
        let twice = exports[..at].iter().any(|other| other.name == export.name);
        if export.name.is_empty() || export.name.len() > NAME_MAX_BYTES || twice {
            return bad(&export.name);
        }
    }
    Ok(())
}

fn identity(socket: &Path) -> io::Result<(u64, u64)> {
    let metadata = std::fs::symlink_metadata(socket)?;
    Ok((metadata.dev(), metadata.ino()))
}

/// Takes connections.
struct Door {
    listener: UnixListener,
    wake: Arc<OwnedFd>,
    reception: Arc<Reception>,
}

impl Door {
    fn keep(&self) {
        while self.reception.guests.wait_for_room(CONNECTIONS_MAX) {
            let mut ready =
                [self.listener.as_fd(), self.wake.as_fd()].map(|event| PollFd::from_borrowed_fd(event, PollFlags::IN));
            match poll(&mut ready, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(errno) => {
                    log::error!("cannot wait for connections: {errno}");
                    sleep(ACCEPT_PAUSE);
                }
            }
            if self.reception.guests.is_over() {
                break;
            }
            match self.listener.accept() {
                Ok((stream, _)) => match check_peer(&stream) {
                    Ok(pid) => self.reception.attend(Socket::new(stream), Origin::Local(pid)),
                    Err(error) => log::warn!("a connection was closed: {error}"),
                },
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                // Out of descriptors, most likely: the connection stays in the queue, so poll would return at once for ever.
                Err(error) => {
                    log::warn!("a connection cannot be taken: {error}");
                    sleep(ACCEPT_PAUSE);
                }
            }
        }
    }
}

/// What every way in leads to.
struct Reception {
    exports: Vec<Export>,
    guests: Arc<Guests>,
    haggle_time: Duration,
    threads_max: usize,
}

impl Reception {
    /// Gives who has come a thread.
    fn attend(self: &Arc<Reception>, socket: Socket, origin: Origin) {
        let (place, reception) = (self.guests.arrive(socket, origin), Arc::clone(self));
        let serve = move || connection::serve(place, &reception.exports, reception.haggle_time, reception.threads_max);
        if let Err(error) = std::thread::Builder::new().name("nbd".to_owned()).spawn(serve) {
            log::error!("a connection was closed: cannot start a thread: {error}");
        }
    }
}

/// Only the same user and root may connect, whatever the permissions of the socket have become.
fn check_peer(stream: &UnixStream) -> Result<Option<i32>, ConnectionError> {
    stream.set_nonblocking(false)?;
    let peer = rustix::net::sockopt::socket_peercred(stream).map_err(io::Error::from)?;
    if peer.uid.is_root() || peer.uid == rustix::process::geteuid() {
        return Ok(Some(peer.pid.as_raw_nonzero().get()));
    }
    Err(ConnectionError::Stranger(peer.uid.as_raw()))
}

/// The URI of the first export on `socket`, as libnbd and qemu take it.
#[must_use]
pub fn uri(socket: &Path) -> String {
    use std::os::unix::ffi::OsStrExt as _;
    format!("nbd+unix:///?socket={}", escaped(socket.as_os_str().as_bytes()))
}

fn escaped(part: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut escaped = String::with_capacity(part.len());
    for byte in part {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'-' | b'.' | b'_' | b'~' => {
                escaped.push(char::from(*byte))
            }
            // Writing to a String cannot fail.
            other => drop(write!(escaped, "%{other:02X}")),
        }
    }
    escaped
}

#[cfg(test)]
mod tests;
