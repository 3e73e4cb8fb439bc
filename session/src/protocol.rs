//! What client and server say over the control socket.
//!
//! A message is one line of JSON, `{"v":1,"secret":BOOL,"verb":…}` up and `{"v":1,"secret":false,"reply":…}` down, at most
//! [`LINE_MAX_BYTES`] long. With `"secret":true` a frame follows the line feed: a little-endian u32 length and that many
//! bytes, read straight from the socket into locked memory. Reading never goes past what it asked for, so no byte of
//! the frame passes through an ordinary buffer; and nothing of a secret is ever JSON.
//!
//! Every wait has a deadline for the whole message: a peer that sends one byte a second is cut off like a silent one.

use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use secret::Secret;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::choice::ServedBy;
use crate::policy::PolicyOrder;
use crate::ublk_recovery::RecoveryOrder;
use crate::{Failure, Listen, OpenReport, Status};

pub(crate) const VERSION: u32 = 1;
/// Longest line of JSON.
pub(crate) const LINE_MAX_BYTES: usize = 64 << 10;
/// Longest secret: the largest key file that may open a volume.
pub(crate) const SECRET_MAX_BYTES: u32 = 8 << 20;

/// What a client asks.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "kebab-case")]
pub(crate) enum Request {
    /// Unlock with the passphrase that follows and serve the volume. May be repeated on the same connection.
    Unlock(Box<UnlockOrder>),
    Status,
    /// Stop I/O and wipe the keys.
    Suspend,
    /// Unlock again with the passphrase that follows.
    Resume,
    /// The same if this policy accepts the header, besides the one that it was opened under.
    ResumeUnder {
        policy: Box<PolicyOrder>,
    },
    /// Make the device as long as the image has become.
    Resize(Box<ResizeOrder>),
    /// Flush, take the device away, wipe, end.
    Stop,
}

/// What to open, and how.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct UnlockOrder {
    #[serde(with = "crate::path_json")]
    pub(crate) image: PathBuf,
    #[serde(with = "crate::path_json::option")]
    pub(crate) header: Option<PathBuf>,
    pub(crate) read_only: bool,
    pub(crate) keyslot: Option<u32>,
    /// The secret that comes along is the volume key, no passphrase.
    #[serde(default)]
    pub(crate) volume_key: bool,
    #[serde(default)]
    pub(crate) served_by: ServedBy,
    pub(crate) threads: usize,
    pub(crate) no_loop: bool,
    #[serde(default)]
    pub(crate) recovery: Option<RecoveryOrder>,
    #[serde(default)]
    pub(crate) attach: bool,
    #[serde(default)]
    pub(crate) listen: Option<Listen>,
    pub(crate) limits: LimitsOrder,
    pub(crate) policy: PolicyOrder,
}

/// What an open volume is resized to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ResizeOrder {
    /// The size that is expected; `None` for whatever the image has room for.
    pub(crate) size_bytes: Option<u64>,
    /// What the header may be, besides the policy that it was opened under.
    pub(crate) policy: Option<PolicyOrder>,
}

/// The bounds of `luks::Limits` that concern an unlock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LimitsOrder {
    kdf_memory_kib: u32,
    kdf_time: u32,
    kdf_lanes: u32,
    kdf_iterations: u32,
    kdf_total_work_kib: u64,
    json_bytes: u64,
    key_bytes: u32,
    keyslot_area_bytes: u64,
    lock_wait_ms: u64,
}

impl From<&luks::Limits> for LimitsOrder {
    fn from(limits: &luks::Limits) -> LimitsOrder {
        LimitsOrder {
            kdf_memory_kib: limits.kdf_memory_kib,
            kdf_time: limits.kdf_time,
            kdf_lanes: limits.kdf_lanes,
            kdf_iterations: limits.kdf_iterations,
            kdf_total_work_kib: limits.kdf_total_work_kib,
            json_bytes: limits.json_bytes,
            key_bytes: limits.key_bytes,
            keyslot_area_bytes: limits.keyslot_area_bytes,
            lock_wait_ms: u64::try_from(limits.lock_wait.as_millis()).unwrap_or(u64::MAX),
        }
    }
}

impl From<&LimitsOrder> for luks::Limits {
    fn from(order: &LimitsOrder) -> luks::Limits {
        luks::Limits {
            kdf_memory_kib: order.kdf_memory_kib,
            kdf_time: order.kdf_time,
            kdf_lanes: order.kdf_lanes,
            kdf_iterations: order.kdf_iterations,
            kdf_total_work_kib: order.kdf_total_work_kib,
            json_bytes: order.json_bytes,
            key_bytes: order.key_bytes,
            keyslot_area_bytes: order.keyslot_area_bytes,
            lock_wait: Duration::from_millis(order.lock_wait_ms),
        }
    }
}

/// What a server answers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "kebab-case")]
pub(crate) enum Reply {
    Opened(Box<OpenReport>),
    Status(Box<Status>),
    Done,
    Resized {
        size_bytes: u64,
        was_bytes: u64,
    },
    /// Everything is closed. `lost` says what did not reach the image.
    Stopped {
        lost: Option<String>,
    },
    Failed(Failure),
}

#[derive(Serialize, Deserialize)]
struct Line<T> {
    v: u32,
    #[serde(default)]
    secret: bool,
    #[serde(flatten)]
    body: T,
}

/// Why a message did not come or go.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WireError {
    #[error("the other side closed the connection")]
    Closed,
    #[error("no whole message came in time")]
    Timeout,
    #[error("{0}")]
    Garbage(String),
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error(transparent)]
    Secret(#[from] secret::SecretError),
}

/// One connection.
pub(crate) struct Wire {
    pub(crate) stream: UnixStream,
}

impl Wire {
    pub(crate) fn new(stream: UnixStream) -> Wire {
        Wire { stream }
    }

    pub(crate) fn send<T: Serialize>(
        &mut self,
        body: T,
        secret: Option<&Secret>,
        wait: Duration,
    ) -> Result<(), WireError> {
        let until = Instant::now() + wait;
        let line = Line { v: VERSION, secret: secret.is_some(), body };
        let mut text = serde_json::to_vec(&line).map_err(|error| WireError::Garbage(error.to_string()))?;
        text.push(b'\n');
        self.write_all(&text, until)?;
        if let Some(secret) = secret {
            let len_bytes = u32::try_from(secret.len()).unwrap_or(u32::MAX);
            if len_bytes > SECRET_MAX_BYTES {
                return Err(WireError::Garbage(format!("a secret of {len_bytes} bytes is too long")));
            }
            self.write_all(&len_bytes.to_le_bytes(), until)?;
            self.write_all(secret.expose(), until)?;
        }
        Ok(())
    }

    /// The next message and its secret, within `wait`.
    pub(crate) fn receive<T: DeserializeOwned>(&mut self, wait: Duration) -> Result<(T, Option<Secret>), WireError> {
        let until = Instant::now() + wait;
        let text = self.read_line(until)?;
        let line: Line<T> = serde_json::from_slice(&text)
            .map_err(|error| WireError::Garbage(format!("this is no message of version {VERSION}: {error}")))?;
        if line.v != VERSION {
            return Err(WireError::Garbage(format!("version {} is spoken, not {VERSION}", line.v)));
        }
        let secret = if line.secret { Some(self.read_secret(until)?) } else { None };
        Ok((line.body, secret))
    }

    fn read_secret(&mut self, until: Instant) -> Result<Secret, WireError> {
        let mut len = [0; 4];
        self.read_exact(&mut len, until)?;
        let len_bytes = u32::from_le_bytes(len);
        if len_bytes > SECRET_MAX_BYTES {
            return Err(WireError::Garbage(format!("a secret of {len_bytes} bytes is too long")));
        }
        let len_bytes = usize::try_from(len_bytes).unwrap_or(usize::MAX);
        Secret::fill_with(len_bytes, |bytes| self.read_exact(bytes, until))
    }

    /// Byte by byte: a buffered reader would read on into the secret.
    fn read_line(&mut self, until: Instant) -> Result<Vec<u8>, WireError> {
        let mut line = Vec::with_capacity(512);
        let mut byte = [0];
        loop {
            self.read_exact(&mut byte, until)?;
            match byte {
                [b'\n'] => return Ok(line),
                _ if line.len() >= LINE_MAX_BYTES => {
                    return Err(WireError::Garbage(format!("a line of more than {LINE_MAX_BYTES} bytes")));
                }
                [other] => line.push(other),
            }
        }
    }

    fn read_exact(&mut self, mut rest: &mut [u8], until: Instant) -> Result<(), WireError> {
        while !rest.is_empty() {
            self.stream.set_read_timeout(Some(left(until)?))?;
            match self.stream.read(rest) {
                Ok(0) => return Err(WireError::Closed),
                Ok(count) => rest = &mut rest[count..],
                Err(error) => again(error)?,
            }
        }
        Ok(())
    }

    fn write_all(&mut self, mut rest: &[u8], until: Instant) -> Result<(), WireError> {
        while !rest.is_empty() {
            self.stream.set_write_timeout(Some(left(until)?))?;
            match self.stream.write(rest) {
                Ok(0) => return Err(WireError::Closed),
                Ok(count) => rest = &rest[count..],
                Err(error) => again(error)?,
            }
        }
        Ok(())
    }

    /// Whether there is something to read, or the end of the connection; waits for it a little.
    pub(crate) fn has_something(&self) -> bool {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let mut fds = [PollFd::new(&self.stream, PollFlags::IN | PollFlags::RDHUP)];
        let tick = Timespec { tv_sec: 1, tv_nsec: 0 };
        matches!(poll(&mut fds, Some(&tick)), Ok(1..))
    }

    /// Whether the other side has hung up. Unread bytes stay where they are.
    pub(crate) fn peer_is_gone(&self) -> bool {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let mut fds = [PollFd::new(&self.stream, PollFlags::RDHUP)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let gone = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
        matches!(poll(&mut fds, Some(&now)), Ok(1..)) && fds[0].revents().intersects(gone)
    }
}

fn left(until: Instant) -> Result<Duration, WireError> {
    match until.saturating_duration_since(Instant::now()) {
        Duration::ZERO => Err(WireError::Timeout),
        left => Ok(left),
    }
}

/// Passes what is only an interruption; a socket timeout comes round to the deadline.
fn again(error: std::io::Error) -> Result<(), WireError> {
    match error.kind() {
        ErrorKind::Interrupted | ErrorKind::WouldBlock | ErrorKind::TimedOut => Ok(()),
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => Err(WireError::Closed),
        _ => Err(WireError::Io(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WAIT: Duration = Duration::from_secs(5);

    fn pair() -> (Wire, Wire) {
        let (one, other) = UnixStream::pair().unwrap();
        (Wire::new(one), Wire::new(other))
    }

    fn order() -> UnlockOrder {
        UnlockOrder {
            image: "/a b".into(),
            header: None,
            read_only: true,
            keyslot: Some(3),
            volume_key: true,
            served_by: ServedBy::Nbd,
            threads: 2,
            no_loop: true,
            recovery: Some(RecoveryOrder { left: Some("volume".to_owned()) }),
            attach: true,
            listen: Some(Listen { address: "localhost:0".to_owned(), certificates: "/a b".into() }),
            limits: (&luks::Limits::default()).into(),
            policy: (&luks::Policy::strict()).into(),
        }
    }

    #[test]
    fn a_passphrase_with_line_feeds_and_zeros_arrives_whole_and_the_next_message_after_it() {
        let (mut client, mut server) = pair();
        let passphrase = Secret::copy_of(b"a\n\0{\"v\":1}\xff").unwrap();
        client.send(Request::Unlock(Box::new(order())), Some(&passphrase), WAIT).unwrap();
        client.send(Request::Status, None, WAIT).unwrap();
        let (request, secret) = server.receive::<Request>(WAIT).unwrap();
        assert!(matches!(request, Request::Unlock(received) if *received == order()));
        assert!(secret.unwrap().ct_eq(passphrase.expose()));
        let (request, secret) = server.receive::<Request>(WAIT).unwrap();
        assert!(matches!(request, Request::Status) && secret.is_none());
    }

    #[test]
    fn limits_come_through_unchanged() {
        let limits = luks::Limits { kdf_time: 7, lock_wait: Duration::from_millis(1500), ..Default::default() };
        assert_eq!(luks::Limits::from(&LimitsOrder::from(&limits)), limits);
    }

    #[test]
    fn garbage_other_versions_and_oversized_messages_are_refused_by_name() {
        let long = vec![b'x'; LINE_MAX_BYTES + 1];
        for (sent, said) in [
            (&b"hello\n"[..], "this is no message of version 1"),
            (b"{\"v\":2,\"verb\":\"status\"}\n", "version 2 is spoken, not 1"),
            (b"{\"v\":1,\"verb\":\"explode\"}\n", "this is no message of version 1"),
            (
                b"{\"v\":1,\"secret\":true,\"verb\":\"resume\"}\n\xff\xff\xff\xff",
                "a secret of 4294967295 bytes is too long",
            ),
            (&long, "a line of more than 65536 bytes"),
        ] {
            let (mut client, mut server) = pair();
            let sent = sent.to_vec();
            let writer = std::thread::spawn(move || client.stream.write_all(&sent).map(|()| client));
            let error = server.receive::<Request>(WAIT).map(|_| ()).unwrap_err();
            assert!(error.to_string().starts_with(said), "{error}");
            drop(server);
            // The end of a long line may find the other side gone.
            let _ = writer.join().unwrap();
        }
    }

    #[test]
    fn a_silent_and_a_trickling_peer_are_cut_off_at_the_deadline() {
        let (client, mut server) = pair();
        let begun = Instant::now();
        assert!(matches!(server.receive::<Request>(Duration::from_millis(50)), Err(WireError::Timeout)));
        let trickle = std::thread::spawn(move || {
            let mut stream = client.stream;
            while stream.write_all(b" ").is_ok() {
                std::thread::sleep(Duration::from_millis(10));
            }
        });
        assert!(matches!(server.receive::<Request>(Duration::from_millis(200)), Err(WireError::Timeout)));
        assert!(begun.elapsed() < Duration::from_secs(3));
        drop(server);
        trickle.join().unwrap();
    }

    #[test]
    fn a_vanished_peer_is_noticed() {
        let (client, mut server) = pair();
        assert!(!server.peer_is_gone());
        drop(client);
        assert!(server.peer_is_gone());
        assert!(matches!(server.receive::<Request>(WAIT), Err(WireError::Closed)));
    }
}
