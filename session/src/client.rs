//! The client's end of a control socket.

use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use secret::Secret;

use crate::protocol::{Reply, Request, Wire, WireError};
use crate::registry::{Liveness, liveness};
use crate::run_dir::Entry;
use crate::{SessionError, dying};

const POLL: Duration = Duration::from_millis(10);
/// A server takes a request off the socket at once.
const SEND_WAIT: Duration = Duration::from_secs(30);

/// The control socket's path as the kernel takes it: `sun_path` ends at 107 bytes, and a run directory with a name of 100
/// does not fit. The folder's descriptor makes it short; it must live until after bind or connect.
pub(crate) fn socket_path(folder: &Path) -> Result<(OwnedFd, PathBuf), SessionError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let handle = rustix::fs::open(folder, flags, Mode::empty()).map_err(SessionError::errno("open", folder))?;
    let path = PathBuf::from(format!("/proc/self/fd/{}/control", handle.as_raw_fd()));
    Ok((handle, path))
}

/// A connection to one server.
pub(crate) struct Client {
    wire: Wire,
    entry: Entry,
}

impl Client {
    /// Connects, waiting up to `wait` for a server that is just starting.
    pub(crate) fn connect(entry: &Entry, wait: Duration) -> Result<Client, SessionError> {
        Client::connect_unless(entry, wait, || false)
    }

    /// As [`Client::connect`], giving up early once `ended` says that the server will not come.
    pub(crate) fn connect_unless(
        entry: &Entry,
        wait: Duration,
        mut ended: impl FnMut() -> bool,
    ) -> Result<Client, SessionError> {
        let until = Instant::now() + wait;
        loop {
            let gone = ended();
            let attempt = socket_path(&entry.folder)
                .and_then(|(_folder, path)| UnixStream::connect(&path).map_err(SessionError::io("connect to", &path)));
            match attempt {
                Ok(stream) => return Ok(Client { wire: Wire::new(stream), entry: entry.clone() }),
                Err(_) if gone || !entry.exists() => return Err(ended_without_answer(entry)),
                Err(_) if Instant::now() >= until && liveness(entry)? == Liveness::Live => {
                    let what = format!("an answer of the server of {}", entry.name);
                    return Err(SessionError::Timeout { what, seconds: wait.as_secs() });
                }
                Err(_) if Instant::now() >= until => return Err(ended_without_answer(entry)),
                Err(_) => sleep(POLL),
            }
        }
    }

    /// Sends a request and waits for its answer; a refusal is an error.
    pub(crate) fn call(
        &mut self,
        request: Request,
        secret: Option<&Secret>,
        wait: Duration,
    ) -> Result<Reply, SessionError> {
        self.wire.send(request, secret, SEND_WAIT).map_err(|error| self.wire_error(error, SEND_WAIT))?;
        // A server that is killed meanwhile and cannot end would keep its side open for ever.
        let until = Instant::now() + wait;
        while !self.wire.has_something() && Instant::now() < until {
            dying::see_off(&self.entry)?;
        }
        match self.wire.receive::<Reply>(wait) {
            Ok((Reply::Failed(failure), _)) => Err(SessionError::Refused(failure)),
            Ok((reply, _)) => Ok(reply),
            Err(error) => Err(self.wire_error(error, wait)),
        }
    }

    fn wire_error(&self, error: WireError, wait: Duration) -> SessionError {
        match error {
            WireError::Closed => ended_without_answer(&self.entry),
            WireError::Timeout => SessionError::Timeout {
                what: format!("an answer of the server of {}", self.entry.name),
                seconds: wait.as_secs(),
            },
            WireError::Io(source) => {
                SessionError::Io { action: "talk over", path: self.entry.folder.join("control"), source }
            }
            WireError::Secret(error) => SessionError::Secret(error),
            WireError::Garbage(what) => SessionError::Protocol { name: self.entry.name.to_string(), what },
        }
    }
}

fn ended_without_answer(entry: &Entry) -> SessionError {
    SessionError::ServerEnded { name: entry.name.to_string(), log: crate::log_file::tail(&entry.log()) }
}
