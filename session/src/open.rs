//! Opening a volume: choose the backend, then open through dm-crypt in this process, or claim the name, start a server and
//! give it passphrases until one fits.
//!
//! Invariants: the passphrase goes from the key source to the server's locked memory and nowhere else; no lock is held
//! while a person types; when this fails or the client dies, the server has cleaned up and ended.

use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use block::{Direct, FileDisk, OpenMode};
use secret::{KeyProvider, KeyRequest, Purpose, Secret};
use serde::{Deserialize, Serialize};

use crate::backend::{listen_hindrance, path_hindrance};
use crate::choice::{Chosen, NBD, NBD_DEVICE, ServedBy, choose};
use crate::client::Client;
use crate::close::clean_leftover;
use crate::kernel::OpenFailure;
use crate::policy::PolicyOrder;
use crate::protocol::{LimitsOrder, Reply, Request, UnlockOrder};
use crate::registry::{Behind, Liveness, RegistryLock, behind, holder_of, identity, liveness, wait_until_free};
use crate::run_dir::{Entry, RunDir};
use crate::spawn::{ServerCommand, Spawned, spawn};
use crate::ublk_recovery::{RecoveryOrder, left_behind};
use crate::{BackendChoice, FailureKind, MappingFlags, NotPossible, SessionError, State, dying, kernel, nbd_device};

/// From exec to listening; a loaded machine needs a second.
const START_WAIT: Duration = Duration::from_secs(30);
/// The slowest key derivation that the limits allow, on a slow machine.
const UNLOCK_WAIT: Duration = Duration::from_secs(1800);
/// A server of that name that is opening or closing may be about to end; one whose client died does, in less than this.
const SETTLE_WAIT: Duration = Duration::from_secs(12);
const POLL: Duration = Duration::from_millis(20);
/// A server without a volume ends at once.
const END_WAIT: Duration = Duration::from_secs(15);

/// Where to listen on the network, and whose clients may come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listen {
    /// `HOST:PORT`; port 0 is any that is free.
    pub address: String,
    /// Folder with `ca-cert.pem`, `server-cert.pem`, `server-key.pem` and, if there is one, `ca-crl.pem`.
    #[serde(with = "crate::path_json")]
    pub certificates: PathBuf,
}

impl Listen {
    fn absolute(&self) -> Result<Listen, SessionError> {
        let failed = SessionError::io("open", &self.certificates);
        let certificates = std::fs::canonicalize(&self.certificates).map_err(failed)?;
        Ok(Listen { address: self.address.clone(), certificates })
    }
}

/// What to open, under which name, and how.
#[derive(Clone, Debug)]
pub struct OpenRequest {
    /// The image: a file or a block device.
    pub image: PathBuf,
    /// A detached header.
    pub header: Option<PathBuf>,
    /// The name: 1–100 characters of `A-Z a-z 0-9 . _ -`.
    pub name: String,
    /// Refuse writes.
    pub read_only: bool,
    /// Try this keyslot only.
    pub keyslot: Option<u32>,
    /// What the key source gives is the volume key, no passphrase.
    pub volume_key: bool,
    /// Threads of the FUSE export or of each NBD connection, queues of the ublk device; 0 for the default.
    pub threads: usize,
    /// Leave the disk a file below FUSE even where a loop device could be attached.
    pub no_loop: bool,
    /// Keep readers of a ublk device waiting for half a minute when its server dies, and go on with one that waits.
    pub recover: bool,
    /// Attach a device of the kernel's NBD client, `/dev/nbdN`: only NBD, only root.
    pub attach: bool,
    /// Listen on the network, too: only NBD, only in a build with the feature `tls`.
    pub listen: Option<Listen>,
    /// The backend.
    pub backend: BackendChoice,
    /// Flags of a dm-crypt mapping; no other backend has them.
    pub flags: MappingFlags,
    /// Bounds on what the header may cost.
    pub limits: luks::Limits,
    /// What the header may be. Whoever unlocks holds it: the server, or this process for dm-crypt.
    pub policy: luks::Policy,
    /// Passphrases to ask for before giving up; at least 1.
    pub tries: u32,
}

impl OpenRequest {
    /// `image` under `name`, with the defaults: writable, any keyslot, three tries.
    #[must_use]
    pub fn new(image: impl Into<PathBuf>, name: impl Into<String>) -> OpenRequest {
        OpenRequest {
            image: image.into(),
            header: None,
            name: name.into(),
            read_only: false,
            keyslot: None,
            volume_key: false,
            threads: 0,
            no_loop: false,
            recover: false,
            attach: false,
            listen: None,
            backend: BackendChoice::Auto,
            flags: MappingFlags::default(),
            limits: luks::Limits::default(),
            policy: luks::Policy::default_preset(),
            tries: 3,
        }
    }
}

/// An open volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenReport {
    /// Its name.
    pub name: String,
    /// The block device (`/dev/mapper/NAME` where it is a mapping, `/dev/nbdN` where one is attached), the file below FUSE, or
    /// the NBD socket.
    #[serde(with = "crate::path_json")]
    pub device: PathBuf,
    /// `RUN/NAME/device`, a link to it that stays the same over every open.
    #[serde(with = "crate::path_json")]
    pub link: PathBuf,
    /// `dm-crypt`, `ublk`, `loop over fuse`, `fuse`, `nbd` or `nbd device`.
    pub backend: String,
    /// How NBD clients call it.
    #[serde(default)]
    pub uri: Option<String>,
    /// How NBD clients on the network call it, over TLS.
    #[serde(default)]
    pub tls_uri: Option<String>,
    /// UUID of the container.
    pub uuid: String,
    /// The keyslot that opened it.
    pub keyslot: Option<u32>,
    /// Process id of its server; a mapping has none.
    pub pid: Option<i32>,
    /// Backends that come before this one and cannot be used here.
    pub not_possible: Vec<NotPossible>,
}

/// Opens `request.image` as `request.name`; `keys` is asked once per try. Returns once the device is there.
///
/// # Errors
/// [`SessionError`]; nothing is left running or lying about then.
pub fn open(
    run: &RunDir,
    request: &OpenRequest,
    keys: &mut dyn KeyProvider,
    server: &ServerCommand,
) -> Result<OpenReport, SessionError> {
    let entry = run.entry(&request.name.parse()?);
    let mut order = order(request)?;
    // Everything that can be refused is refused before anybody is asked for a passphrase.
    let image_identity = identity(&order.image)?;
    kernel::remove_orphans();
    dying::see_off(&entry)?;
    settle(run, &entry)?;
    kernel::tidy(run, &entry)?;
    check_free(run, &entry, &order.image, &image_identity)?;
    let uuid = check_header(&order, request)?;
    let mut chosen = choose(request, &uuid)?;
    check_socket(&chosen, &entry)?;
    check_nbd(request)?;
    let mut passphrase = None;
    if chosen.try_dm {
        match kernel::open(run, &entry, &order, request, keys) {
            Ok(report) => return Ok(report),
            Err(OpenFailure::NotPossible { reason, passphrase: given }) => {
                chosen.without_dm(reason)?;
                check_socket(&chosen, &entry)?;
                passphrase = Some(given);
            }
            Err(OpenFailure::Failed(error)) => {
                return Err(name_the_holder(run, &order.image, &image_identity, error));
            }
        }
    }
    let passphrase = passphrase.map_or_else(|| ask(keys, request, 1), Ok)?;
    order.served_by = chosen.served_by;
    if let Some(recovery) = &mut order.recovery {
        recovery.left = left_behind(&entry);
    }
    let opening = Opening { run, entry: &entry, order: &order, image_identity: &image_identity };
    let report = opening.serve(request, passphrase, keys, server)?;
    Ok(OpenReport { not_possible: chosen.not_possible, ..report })
}

/// If it is to be a socket, it must be one that clients can connect to.
fn check_socket(chosen: &Chosen, entry: &Entry) -> Result<(), SessionError> {
    match path_hindrance(&entry.nbd_socket()) {
        Some(reason) if chosen.served_by == ServedBy::Nbd => {
            Err(SessionError::BackendNotPossible { backend: NBD, reason })
        }
        _ => Ok(()),
    }
}

/// If it is to be a device of the kernel's NBD client, there must be one; if it is to listen, there must be certificates.
fn check_nbd(request: &OpenRequest) -> Result<(), SessionError> {
    match nbd_device::hindrance() {
        Some(reason) if request.attach => {
            return Err(SessionError::BackendNotPossible { backend: NBD_DEVICE, reason });
        }
        _ => {}
    }
    match request.listen.as_ref().and_then(listen_hindrance) {
        Some(reason) => Err(SessionError::NotListening { reason }),
        None => Ok(()),
    }
}

/// A volume that a server is to open.
struct Opening<'a> {
    run: &'a RunDir,
    entry: &'a Entry,
    order: &'a UnlockOrder,
    image_identity: &'a str,
}

impl Opening<'_> {
    fn serve(
        &self,
        request: &OpenRequest,
        first: Secret,
        keys: &mut dyn KeyProvider,
        server: &ServerCommand,
    ) -> Result<OpenReport, SessionError> {
        let Opening { run, entry, order, image_identity } = *self;
        let mut passphrase = first;
        let mut client = start(run, entry, order, image_identity, server)?;
        let tries = request.tries.max(1);
        for attempt in 1..=tries {
            let keyslot = keys.keyslot().or(order.keyslot);
            let asked = UnlockOrder { keyslot, ..order.clone() };
            let answer = client.call(Request::Unlock(Box::new(asked)), Some(&passphrase), UNLOCK_WAIT);
            drop(passphrase);
            match answer {
                Ok(Reply::Opened(report)) => return Ok(*report),
                Err(SessionError::Refused(failure)) if failure.kind == FailureKind::NoKey => {
                    log::info!("try {attempt} of {tries}: {failure}");
                    if attempt == tries {
                        break;
                    }
                    passphrase = match ask(keys, request, attempt + 1) {
                        Ok(next) => next,
                        Err(error) => return Err(abandon(client, entry, error)),
                    };
                }
                Err(error) => {
                    let error = name_the_holder(run, &order.image, image_identity, error);
                    return Err(abandon(client, entry, error));
                }
                Ok(other) => {
                    let what = format!("{other:?} is no answer to unlock");
                    let error = SessionError::Protocol { name: entry.name.to_string(), what };
                    return Err(abandon(client, entry, error));
                }
            }
        }
        Err(abandon(client, entry, SessionError::NoKey { tries }))
    }
}

fn order(request: &OpenRequest) -> Result<UnlockOrder, SessionError> {
    // The server's working directory is /, and a path may be renamed later: status shows the real one.
    let real = |path: &Path| std::fs::canonicalize(path).map_err(SessionError::io("open", path));
    Ok(UnlockOrder {
        image: real(&request.image)?,
        header: request.header.as_deref().map(real).transpose()?,
        read_only: request.read_only,
        keyslot: request.keyslot,
        volume_key: request.volume_key,
        served_by: ServedBy::default(),
        threads: request.threads,
        no_loop: request.no_loop,
        recovery: request.recover.then_some(RecoveryOrder { left: None }),
        attach: request.attach,
        listen: request.listen.as_ref().map(Listen::absolute).transpose()?,
        limits: LimitsOrder::from(&request.limits),
        policy: PolicyOrder::from(&request.policy),
    })
}

/// Waits while a server of this name is neither in service nor gone: a broken-off `open` is in nobody's way then.
fn settle(run: &RunDir, entry: &Entry) -> Result<(), SessionError> {
    let until = Instant::now() + SETTLE_WAIT;
    while liveness(entry)? == Liveness::Live && Instant::now() < until {
        match crate::status::status(run, entry.name.as_str()) {
            Ok(status) if !matches!(status.state, State::Opening | State::Closing | State::Dead) => break,
            // Between two looks it may have ended.
            _ => sleep(POLL),
        }
    }
    Ok(())
}

/// The name is free or taken by a leftover that is in nobody's way, and the image is not open under another name.
pub(crate) fn check_free(run: &RunDir, entry: &Entry, image: &Path, image_identity: &str) -> Result<(), SessionError> {
    if !matches!(behind(entry)?, Behind::Nothing | Behind::Dead) {
        return Err(SessionError::AlreadyOpen { name: entry.name.to_string() });
    }
    kernel::check_name_free(entry)?;
    match holder_of(run, image_identity)? {
        Some(holder) => Err(SessionError::ImageOpen { image: image.to_path_buf(), name: holder.name.to_string() }),
        None => Ok(()),
    }
}

/// Reads the header and holds the policy against it, so that nobody types a passphrase in vain; its UUID.
fn check_header(order: &UnlockOrder, request: &OpenRequest) -> Result<String, SessionError> {
    let path = order.header.as_ref().unwrap_or(&order.image);
    let mode = OpenMode { read_only: true, direct: Direct::Never, exclusive: false };
    let disk = FileDisk::open(path, &mode).map_err(|source| SessionError::Block { path: path.clone(), source })?;
    let failed = |source| SessionError::Luks { path: path.clone(), source };
    let header = luks::load_any(&disk, &request.limits).map_err(failed)?;
    request.policy.check_any(&header).map_err(failed)?;
    if let Some(advice) = header.advice() {
        log::warn!("{}: {advice}", path.display());
    }
    if let Some(caution) = header.metadata().caution() {
        log::warn!("{}: {caution}", path.display());
    }
    Ok(header.uuid())
}

pub(crate) fn ask(keys: &mut dyn KeyProvider, request: &OpenRequest, attempt: u32) -> Result<Secret, SessionError> {
    let volume = request.image.to_string_lossy();
    let question = KeyRequest { volume: &volume, purpose: Purpose::Unlock, attempt };
    keys.key_for(&question)?.ok_or_else(|| SessionError::NoKeySource { name: request.name.clone() })
}

/// Claims the name, starts the server and connects to it.
fn start(
    run: &RunDir,
    entry: &Entry,
    order: &UnlockOrder,
    image_identity: &str,
    server: &ServerCommand,
) -> Result<Client, SessionError> {
    let _registry = RegistryLock::take(run)?;
    check_free(run, entry, &order.image, image_identity)?;
    let goes_on = order.recovery.as_ref().is_some_and(|recovery| recovery.left.is_some());
    clean_entry_but(entry, goes_on)?;
    entry.create()?;
    let connected = spawn(run, entry, order, server).and_then(|mut spawned: Spawned| {
        let client = Client::connect_unless(entry, START_WAIT, || spawned.has_ended());
        spawned.let_go();
        client
    });
    connected.inspect_err(|_| {
        // A server that came up too late finds its folder gone and ends; the error to tell is the first one.
        if matches!(liveness(entry), Ok(Liveness::Dead)) {
            let _ = entry.remove();
        }
    })
}

/// Takes away what a dead server or a killed opening left of the entry. The caller holds the registry lock.
#[cfg(feature = "loop")]
pub(crate) fn clean_entry(entry: &Entry) -> Result<(), SessionError> {
    clean_entry_but(entry, false)
}

/// The same, but for a ublk device that is to go on, if `goes_on`.
fn clean_entry_but(entry: &Entry, goes_on: bool) -> Result<(), SessionError> {
    if matches!(behind(entry)?, Behind::Dead) {
        if liveness(entry)? == Liveness::Live {
            let how = "another luksctl is just closing it".to_owned();
            return Err(SessionError::Busy { name: entry.name.to_string(), how });
        }
        if goes_on {
            entry.remove()?;
        } else {
            clean_leftover(entry)?;
        }
        log::info!("cleaned what was left of {}", entry.name);
    }
    Ok(())
}

/// Hangs up and waits for the server's end, so that the name is free when the caller reads the error.
fn abandon(client: Client, entry: &Entry, error: SessionError) -> SessionError {
    let lock = entry.lock_file(false);
    drop(client);
    if let Ok(lock) = lock {
        match wait_until_free(&lock, END_WAIT, &entry.folder) {
            Ok(true) => {}
            Ok(false) => log::warn!("the server of {} takes longer than {} s to end", entry.name, END_WAIT.as_secs()),
            Err(error) => log::warn!("{error}"),
        }
    }
    error
}

/// Two opens of one image may have begun together: the loser learns the winner's name.
fn name_the_holder(run: &RunDir, image: &Path, image_identity: &str, error: SessionError) -> SessionError {
    match error {
        SessionError::Refused(failure) if failure.kind == FailureKind::ImageInUse => {
            match holder_of(run, image_identity) {
                Ok(Some(holder)) => {
                    SessionError::ImageOpen { image: image.to_path_buf(), name: holder.name.to_string() }
                }
                _ => SessionError::ImageInUse { image: image.to_path_buf(), how: failure.message },
            }
        }
        other => other,
    }
}
