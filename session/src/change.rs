//! Changing an open volume: the flags of its mapping, its size. What a backend cannot change is refused by name.

use std::path::PathBuf;
use std::time::Duration;

use block::Bytes;
use secret::KeyProvider;
use serde::Serialize;

use crate::choice::{NBD, NBD_DEVICE, UBLK};
use crate::lookup::{OpenVolume, open_volume, served_by};
use crate::policy::PolicyOrder;
use crate::protocol::{Reply, Request, ResizeOrder};
use crate::run_dir::{Entry, RunDir};
use crate::suspend::{connect, unexpected};
use crate::{MappingFlags, SessionError, kernel};

/// A loop device is told of its size once the requests inside have ended.
const RESIZE_WAIT: Duration = Duration::from_secs(300);

/// How an open volume is unlocked again.
#[derive(Clone, Debug)]
pub struct UnlockAgain {
    /// A detached header; `None` for the one that it was opened with, or that lies before its data.
    pub header: Option<PathBuf>,
    /// Try this keyslot only.
    pub keyslot: Option<u32>,
    /// Bounds on what the header may cost.
    pub limits: luks::Limits,
    /// What the header may be besides what the policy says that the volume was opened under, which goes on holding.
    pub policy: Option<luks::Policy>,
    /// Passphrases to ask for before giving up; at least 1.
    pub tries: u32,
}

impl Default for UnlockAgain {
    fn default() -> UnlockAgain {
        UnlockAgain { header: None, keyslot: None, limits: luks::Limits::default(), policy: None, tries: 3 }
    }
}

impl UnlockAgain {
    /// An option that only a mapping has, if one is set.
    pub(crate) fn option_in_use(&self) -> Option<&'static str> {
        let keyslot = self.keyslot.map(|_| "--key-slot");
        self.header.as_ref().map(|_| "--header").or(keyslot)
    }
}

/// A volume with another size.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ResizeReport {
    /// Its name.
    pub name: String,
    /// Its size now, in bytes.
    pub size_bytes: u64,
    /// Its size before, in bytes.
    pub was_bytes: u64,
}

/// Reloads the table of the mapping `name` with `flags` and those that its header keeps; `keys` is asked for its
/// passphrase. I/O waits meanwhile.
///
/// # Errors
/// [`SessionError`]; the mapping goes on as it was then.
pub fn refresh(
    run: &RunDir,
    name: &str,
    flags: &MappingFlags,
    again: &UnlockAgain,
    keys: &mut dyn KeyProvider,
) -> Result<(), SessionError> {
    match open_volume(run, name)? {
        OpenVolume::Mapped(subject) => kernel::refresh(&subject, flags, again, keys),
        OpenVolume::Served(entry) => Err(not_on_server(&entry, "refresh")),
    }
}

/// Makes the volume `name` as long as its image, or a mapping `size` long; `keys` is asked for the passphrase of a mapping. I/O
/// waits meanwhile. A server has the key, and serves all that the image has room for: `size` can only say what is expected.
///
/// # Errors
/// [`SessionError`]; the volume goes on as it was then. An image that is shorter than the volume is refused, for a mapping
/// unless a size is given. [`SessionError::NotOnBackend`] for NBD, whose clients cannot be told, and ublk,
/// whose driver (Linux 6.12) takes no new size.
pub fn resize(
    run: &RunDir,
    name: &str,
    size: Option<Bytes>,
    again: &UnlockAgain,
    keys: &mut dyn KeyProvider,
) -> Result<ResizeReport, SessionError> {
    match open_volume(run, name)? {
        OpenVolume::Mapped(subject) => kernel::resize(&subject, size, again, keys),
        OpenVolume::Served(entry) => resize_served(&entry, size, again),
    }
}

fn resize_served(entry: &Entry, size: Option<Bytes>, again: &UnlockAgain) -> Result<ResizeReport, SessionError> {
    if [NBD, NBD_DEVICE, UBLK].contains(&served_by(entry).as_str()) {
        return Err(not_on_server(entry, "resize"));
    }
    if let Some(what) = again.option_in_use() {
        return Err(not_on_server(entry, what));
    }
    let order =
        ResizeOrder { size_bytes: size.map(|size| size.0), policy: again.policy.as_ref().map(PolicyOrder::from) };
    let mut client = connect(entry)?;
    match client.call(Request::Resize(Box::new(order)), None, RESIZE_WAIT)? {
        Reply::Resized { size_bytes, was_bytes } => {
            Ok(ResizeReport { name: entry.name.to_string(), size_bytes, was_bytes })
        }
        other => Err(unexpected(entry, &other)),
    }
}

fn not_on_server(entry: &Entry, what: &'static str) -> SessionError {
    SessionError::NotOnBackend { name: entry.name.to_string(), backend: served_by(entry), what }
}
