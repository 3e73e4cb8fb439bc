//! What a volume is doing: asked of its server, or read from what a dead one left behind.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::client::Client;
use crate::kernel::{self, Subject};
use crate::lookup::{Named, entry_or_foreign};
use crate::mount_table;
use crate::protocol::{Reply, Request};
use crate::registry::{Behind, Info, Liveness, RegistryLock, behind, liveness};
use crate::run_dir::{Entry, RunDir};
use crate::ublk_recovery::{PATIENCE, left_behind};
use crate::{SessionError, dying, mount};

/// A server answers this from memory, whatever else it does.
const STATUS_WAIT: Duration = Duration::from_secs(10);

/// What state a volume is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum State {
    /// Its server starts, or waits for a passphrase.
    Opening,
    /// In service.
    Open,
    /// I/O waits, the keys are wiped; `resume` goes on.
    Suspended,
    /// A flush or a write failed, or the export is gone: to be closed and opened again.
    Failed,
    /// It is being closed.
    Closing,
    /// Its server died; `close` cleans up.
    Dead,
}

/// One volume, as `status` and `list` show it. What is not known (yet, or any more) is `None` or empty.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The name.
    pub name: String,
    /// What it is doing.
    pub state: State,
    /// What is wrong and what to do, in words.
    pub problem: Option<String>,
    /// The image.
    #[serde(with = "crate::path_json::option")]
    pub image: Option<PathBuf>,
    /// The detached header.
    #[serde(with = "crate::path_json::option")]
    pub header: Option<PathBuf>,
    /// UUID of the container.
    pub uuid: Option<String>,
    /// Version of LUKS: 1 or 2.
    #[serde(default)]
    pub luks_version: Option<u16>,
    /// The block device, the file below FUSE, or the NBD socket.
    #[serde(with = "crate::path_json::option")]
    pub device: Option<PathBuf>,
    /// `dm-crypt`, `ublk`, `fuse`, `loop over fuse`, `nbd` or `nbd device`.
    pub backend: Option<String>,
    /// How NBD clients call it.
    #[serde(default)]
    pub uri: Option<String>,
    /// How NBD clients on the network call it, over TLS.
    #[serde(default)]
    pub tls_uri: Option<String>,
    /// The loop device between a mapping and its image.
    #[serde(default, with = "crate::path_json::option")]
    pub loop_device: Option<PathBuf>,
    /// Flags of a mapping, as the kernel names them.
    #[serde(default)]
    pub flags: Vec<String>,
    /// Where a mapping's key is said to be: `keyring`, `table`, `wiped`, `none`.
    #[serde(default)]
    pub key_location: Option<String>,
    /// Cipher of the volume, such as `aes-xts-plain64`.
    pub cipher: Option<String>,
    /// What does the ciphering.
    pub engine: Option<String>,
    /// Length of the volume key, in bits.
    pub key_size_bits: Option<u32>,
    /// Encryption sector, in bytes.
    pub sector_size_bytes: Option<u32>,
    /// Size of the plaintext, in bytes.
    pub size_bytes: Option<u64>,
    /// Whether writes are refused.
    pub read_only: bool,
    /// The keyslot that opened it.
    pub keyslot: Option<u32>,
    /// Process id of the server.
    pub pid: Option<i32>,
    /// When it was opened, in seconds since 1970.
    pub opened_unix_s: Option<u64>,
    /// Where it is mounted.
    #[serde(with = "crate::path_json::list")]
    pub mount_points: Vec<PathBuf>,
    /// Protections that the system denied to the server.
    pub denied: Vec<String>,
}

impl Status {
    pub(crate) fn bare(name: &str, state: State) -> Status {
        Status {
            name: name.to_owned(),
            state,
            problem: None,
            image: None,
            header: None,
            uuid: None,
            luks_version: None,
            device: None,
            backend: None,
            uri: None,
            tls_uri: None,
            loop_device: None,
            flags: Vec::new(),
            key_location: None,
            cipher: None,
            engine: None,
            key_size_bits: None,
            sector_size_bytes: None,
            size_bytes: None,
            read_only: false,
            keyslot: None,
            pid: None,
            opened_unix_s: None,
            mount_points: Vec::new(),
            denied: Vec::new(),
        }
    }
}

/// The volume `name`.
///
/// # Errors
/// [`SessionError::NotOpen`], and what keeps the server from answering.
pub fn status(run: &RunDir, name: &str) -> Result<Status, SessionError> {
    let entry = match entry_or_foreign(run, name)? {
        Named::Entry(entry) => entry,
        Named::Foreign(subject) => return subject.status(),
    };
    match of_entry(run, &entry)? {
        Some(status) => Ok(status),
        None => match Subject::foreign(name)? {
            Some(subject) => subject.status(),
            None => Err(SessionError::NotOpen { name: entry.name.to_string() }),
        },
    }
}

/// Every volume of this run directory and, for root, every other mapping of a LUKS volume, by name. A server that does not
/// answer is listed as failed.
///
/// # Errors
/// [`SessionError::Io`] if the run directory cannot be read.
pub fn list(run: &RunDir) -> Result<Vec<Status>, SessionError> {
    let mut found = registered(run)?;
    for name in kernel::foreign_mappings() {
        if found.iter().any(|status| status.name == name) {
            continue;
        }
        match Subject::foreign(&name).and_then(|subject| subject.map(|subject| subject.status()).transpose()) {
            Ok(status) => found.extend(status),
            // It went meanwhile, or is not ours to judge.
            Err(error) => log::info!("{name}: {error}"),
        }
    }
    found.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(found)
}

/// Every volume of this run directory.
pub(crate) fn registered(run: &RunDir) -> Result<Vec<Status>, SessionError> {
    let mut found = Vec::new();
    for entry in run.entries()? {
        match of_entry(run, &entry) {
            Ok(status) => found.extend(status),
            Err(error) => {
                let mut status = Status::bare(entry.name.as_str(), State::Failed);
                status.problem = Some(error.to_string());
                found.push(status);
            }
        }
    }
    Ok(found)
}

fn of_entry(run: &RunDir, entry: &Entry) -> Result<Option<Status>, SessionError> {
    kernel::tidy(run, entry)?;
    match behind(entry)? {
        Behind::Nothing => Ok(None),
        Behind::Opening => Ok(Some(Status::bare(entry.name.as_str(), State::Opening))),
        Behind::Mapping(info) => of_mapping(entry, &info),
        Behind::Dead if RegistryLock::is_taken(run)? => Ok(Some(Status::bare(entry.name.as_str(), State::Opening))),
        // Its server may have begun or ended since the first look.
        Behind::Dead if matches!(behind(entry)?, Behind::Dead) => Ok(Some(of_dead(entry))),
        _ => of_live(entry),
    }
}

fn of_mapping(entry: &Entry, info: &Info) -> Result<Option<Status>, SessionError> {
    let mut status = kernel::status(entry, info)?;
    if let Some(status) = &mut status {
        status.mount_points.extend(mount::recorded_point(entry));
        status.mount_points.sort();
        status.mount_points.dedup();
    }
    Ok(status)
}

fn of_live(entry: &Entry) -> Result<Option<Status>, SessionError> {
    if dying::is_dying(entry) {
        return Ok(Some(of_dead(entry)));
    }
    let answer =
        Client::connect(entry, STATUS_WAIT).and_then(|mut client| client.call(Request::Status, None, STATUS_WAIT));
    match answer {
        Ok(Reply::Status(mut status)) => {
            status.mount_points = mount_points(entry, status.device.as_deref());
            Ok(Some(*status))
        }
        Ok(other) => Err(SessionError::Protocol {
            name: entry.name.to_string(),
            what: format!("{other:?} is no answer to status"),
        }),
        // It was closed while we asked.
        Err(_) if liveness(entry)? == Liveness::Absent => Ok(None),
        Err(error) => Err(error),
    }
}

fn of_dead(entry: &Entry) -> Status {
    let mut status = Status::bare(entry.name.as_str(), State::Dead);
    let info = Info::read(entry);
    let is_mapping = info.as_ref().is_some_and(|info| info.mapping.is_some());
    let what = if is_mapping { "its opening or closing was broken off" } else { "its server died" };
    status.problem = Some(format!("{what}; run `luksctl close {}` to clean up", entry.name));
    if left_behind(entry).is_some() {
        let how = "its server died; `luksctl open --backend ublk --recover` of the same image and name goes on with it";
        let patience_s = PATIENCE.as_secs();
        status.problem = Some(format!("{how} within {patience_s} s; `luksctl close {}` gives it up", entry.name));
    }
    if let Some(info) = info {
        status.mount_points = mount_points(entry, Some(&info.device));
        status.image = Some(info.image);
        status.header = info.header;
        status.uuid = Some(info.uuid);
        status.device = Some(info.device);
        status.backend = Some(info.backend);
        status.read_only = info.read_only;
        status.opened_unix_s = Some(info.opened_unix_s);
    }
    status
}

/// Where the volume is mounted: directly, through a loop device of somebody else on the FUSE file, or by fuse2fs.
fn mount_points(entry: &Entry, device: Option<&Path>) -> Vec<PathBuf> {
    let mut points = Vec::new();
    if let Some(device) = device {
        points.extend(mount_table::points_of_device(device).unwrap_or_default());
        for other in crate::busy::loops_on(device) {
            points.extend(mount_table::points_of_device(&other).unwrap_or_default());
        }
    }
    points.extend(mount::recorded_point(entry));
    points.sort();
    points.dedup();
    points
}
