//! A volume as an NBD export on a Unix socket in its entry: `RUN/NAME/nbd`, for this user and root; where it is wanted, with a
//! device of the kernel's own client attached.
//!
//! The export has the volume's name and is also the one that a client gets who names none.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::sleep;
use std::time::Instant;

use block::{BlockErrorKind, BlockIo};
use export::fuse::ExportError;
use export::nbd::{NbdClient, NbdDisk, NbdExport, NbdOptions, SOCKET_PATH_MAX_BYTES, uri};

use super::{BackendOptions, PASSER_BY_WAIT, POLL};
use crate::choice::{NBD, NBD_DEVICE};
use crate::nbd_device::NbdDevice;
use crate::run_dir::Entry;
use crate::{Failure, FailureKind, Listen};

/// Clients that are named.
const NAMED_MAX: usize = 4;

/// A socket in service.
pub(crate) struct NbdBackend {
    /// Before the export, which it is a client of.
    attached: Option<NbdDevice>,
    export: NbdExport,
    socket: PathBuf,
}

impl NbdBackend {
    pub(super) fn start<B: BlockIo + 'static>(
        entry: &Entry,
        disk: &Arc<B>,
        options: &BackendOptions,
    ) -> Result<NbdBackend, Failure> {
        let socket = entry.nbd_socket();
        if let Some(reason) = path_hindrance(&socket) {
            return Err(Failure::new(FailureKind::System, reason));
        }
        let served = NbdDisk {
            name: entry.name.to_string(),
            description: format!("the volume {} of luksctl", entry.name),
            disk: Arc::clone(disk) as Arc<dyn BlockIo>,
            read_only: options.read_only,
        };
        let nbd_options = NbdOptions { threads: options.threads, ..NbdOptions::default() };
        let export = serve_as_asked(served, &socket, &nbd_options, options.listen.as_ref())?;
        let attached = options.attach.then(|| attach(&export)).transpose()?;
        Ok(NbdBackend { attached, export, socket })
    }

    pub(super) fn device(&self) -> &Path {
        self.attached.as_ref().map_or(&self.socket, NbdDevice::path)
    }

    pub(super) fn uri(&self) -> String {
        uri(&self.socket)
    }

    pub(super) fn tls_uri(&self) -> Option<String> {
        #[cfg(feature = "tls")]
        return self.export.tls_uri();
        #[cfg(not(feature = "tls"))]
        None
    }

    pub(super) fn name(&self) -> &'static str {
        if self.attached.is_some() { NBD_DEVICE } else { NBD }
    }

    pub(super) fn loss(&self) -> Option<String> {
        if let Some(device) = self.attached.as_ref().filter(|device| device.is_lost()) {
            return Some(format!("Somebody disconnected {}", device.path().display()));
        }
        (!self.export.is_reachable()).then(|| format!("Somebody removed {}", self.socket.display()))
    }

    pub(super) fn users(&self) -> Vec<String> {
        let until = Instant::now() + PASSER_BY_WAIT;
        loop {
            let users = self.users_now();
            if users.is_empty() || Instant::now() >= until || self.attached.as_ref().is_some_and(NbdDevice::is_mounted)
            {
                return users;
            }
            sleep(POLL);
        }
    }

    /// Shuts the socket if there are none.
    fn users_now(&self) -> Vec<String> {
        let of_device = self.attached.as_ref().map(NbdDevice::users).unwrap_or_default();
        if of_device.is_empty() { words(&self.export.shut_if_unused()) } else { of_device }
    }

    pub(super) fn go_on(&self) {
        self.export.reopen();
    }

    pub(super) fn stop(&mut self) -> Result<Option<String>, Failure> {
        // Refused, the device works on, and so does the socket.
        let detached = self.attached.as_mut().map_or(Ok(None), NbdDevice::detach).inspect_err(|_| self.go_on())?;
        self.attached = None;
        let stopped = match self.export.stop() {
            Ok(()) => None,
            Err(ExportError::FinalFlush { source, .. }) if source.kind == BlockErrorKind::Suspended => None,
            Err(error) => Some(error.to_string()),
        };
        Ok(detached.or(stopped))
    }
}

fn failed(error: &ExportError) -> Failure {
    Failure::new(FailureKind::System, error.to_string())
}

#[cfg(feature = "tls")]
fn serve_as_asked(
    disk: NbdDisk,
    socket: &Path,
    options: &NbdOptions,
    listen: Option<&Listen>,
) -> Result<NbdExport, Failure> {
    use export::nbd::{Certificates, TlsListener, serve, serve_with_tls};
    let served = match listen {
        None => serve(vec![disk], socket, options),
        Some(Listen { address, certificates }) => Certificates::load(certificates)
            .and_then(|certificates| TlsListener::bind(address, certificates))
            .and_then(|tls| serve_with_tls(vec![disk], socket, options, tls)),
    };
    served.map_err(|error| failed(&error))
}

#[cfg(not(feature = "tls"))]
fn serve_as_asked(
    disk: NbdDisk,
    socket: &Path,
    options: &NbdOptions,
    listen: Option<&Listen>,
) -> Result<NbdExport, Failure> {
    match listen.and_then(listen_hindrance) {
        Some(reason) => Err(Failure::new(FailureKind::System, reason)),
        None => export::nbd::serve(vec![disk], socket, options).map_err(|error| failed(&error)),
    }
}

/// Why it cannot be listened there with these certificates. Whoever listens afterwards may still find the port taken.
#[cfg(feature = "tls")]
pub(crate) fn listen_hindrance(listen: &Listen) -> Option<String> {
    use export::nbd::{Certificates, TlsListener};
    let bound = Certificates::load(&listen.certificates)
        .and_then(|certificates| TlsListener::bind(&listen.address, certificates));
    bound.err().map(|error| error.to_string())
}

/// Why nothing can be listened for.
#[cfg(not(feature = "tls"))]
pub(crate) fn listen_hindrance(_listen: &Listen) -> Option<String> {
    Some("TLS is not in this build (it was built without the feature `tls`)".to_owned())
}

/// A device of the kernel on a connection of its own.
fn attach(export: &NbdExport) -> Result<NbdDevice, Failure> {
    let (socket, facts) = export.pair().map_err(|error| failed(&error))?;
    NbdDevice::attach(socket.into(), facts)
}

/// The clients by process, or by address, each once.
fn words(clients: &[NbdClient]) -> Vec<String> {
    let mut users: Vec<String> = Vec::new();
    for client in clients {
        let user = match (client.pid, client.address) {
            (_, Some(address)) => format!("connected from {}", address.ip()),
            (Some(pid), None) => {
                let command = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
                format!("connected from {} (process {pid})", command.trim())
            }
            (None, None) => "connected from a process that cannot be seen".to_owned(),
        };
        if !users.contains(&user) {
            users.push(user);
        }
    }
    users.truncate(NAMED_MAX);
    users
}

/// Why no client could connect to a socket of this path.
pub(crate) fn path_hindrance(socket: &Path) -> Option<String> {
    let len_bytes = socket.as_os_str().len();
    (len_bytes > SOCKET_PATH_MAX_BYTES).then(|| {
        format!(
            "its socket {} would have a path of {len_bytes} bytes, and Unix sockets end at {SOCKET_PATH_MAX_BYTES}; \
             choose a shorter name, or a shorter LUKSCTL_RUN_DIR",
            socket.display()
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_no_client_could_connect_to_is_refused() {
        assert_eq!(path_hindrance(Path::new("/run/luksctl/home/nbd")), None);
        assert_eq!(path_hindrance(Path::new(&"x".repeat(107))), None);
        assert!(path_hindrance(Path::new(&"x".repeat(108))).is_some_and(|reason| reason.contains("108 bytes")));
    }

    #[test]
    fn a_client_with_many_connections_is_named_once() {
        let client = NbdClient { pid: Some(1), address: None, export: "x".to_owned() };
        let users = words(&[client.clone(), client]);
        assert_eq!(users.len(), 1);
        assert!(users[0].contains("(process 1)"));
        let from = |port| NbdClient { pid: None, address: Some(([192, 0, 2, 7], port).into()), export: "x".to_owned() };
        assert_eq!(words(&[from(1), from(2)]), ["connected from 192.0.2.7"]);
    }
}
