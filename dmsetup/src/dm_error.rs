//! What can go wrong with a mapping: which one, during what, and how to mend it where that is known.

use std::io;
use std::path::PathBuf;

use crate::crypt_option::CryptOption;
use crate::error::LoopError;
use crate::name::{DevNo, Name, Uuid};

/// Why an operation on a mapping, its table or its key failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DmError {
    /// The kernel has no device-mapper, or its control node is missing.
    #[error(
        "/dev/mapper/control is missing: the kernel has no device-mapper, or its module is not loaded (modprobe dm_mod)"
    )]
    NoDeviceMapper,
    /// Device-mapper has no `crypt` target.
    #[error(
        "device-mapper has no `crypt` target: the module is not loaded (modprobe dm_crypt), or the kernel was built without it"
    )]
    NoCryptTarget,
    /// The kernel has no keyring, or a sandbox forbids its use.
    #[error(
        "the kernel keyring cannot be used ({source}): the key cannot be handed to dm-crypt without showing it in a table"
    )]
    NoKeyring {
        /// The system's error.
        source: io::Error,
    },
    /// The user's share of the kernel keyring is used up.
    #[error(
        "the kernel keyring is full for user {uid}: raise the quota with `sysctl -w {keys_sysctl}=N` or `sysctl -w {bytes_sysctl}=N` (/proc/key-users shows the use)"
    )]
    KeyringQuota {
        /// Whose quota.
        uid: u32,
        /// The setting for the number of keys.
        keys_sysctl: &'static str,
        /// The setting for their bytes.
        bytes_sysctl: &'static str,
    },
    /// Neither root nor CAP_SYS_ADMIN.
    #[error("no permission to {action}: device-mapper needs root (CAP_SYS_ADMIN)")]
    NoPermission {
        /// What was tried.
        action: &'static str,
    },
    /// A mapping's name or UUID that the kernel or udev could not carry.
    #[error("`{name}` cannot be used for a mapping: {reason}")]
    BadName {
        /// The text, escaped.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A table text that cannot be understood.
    #[error("cannot understand the dm-crypt table: {what} (`{token}`)")]
    BadTable {
        /// What was expected.
        what: &'static str,
        /// The word that was found; never a key.
        token: String,
    },
    /// A mapping with that name is active.
    #[error("a mapping named {name} is active already")]
    NameInUse {
        /// The name.
        name: Name,
    },
    /// The UUID belongs to a mapping with another name.
    #[error("the UUID {uuid} is active already under the name {holder}")]
    UuidInUse {
        /// The UUID.
        uuid: Uuid,
        /// Who has it.
        holder: String,
    },
    /// No mapping has that name.
    #[error("no mapping named {name} is active")]
    NotActive {
        /// The name.
        name: Name,
    },
    /// The mapping is mounted, held exclusively, or open in a program.
    #[error("{name} is in use: {how}")]
    Busy {
        /// The mapping.
        name: Name,
        /// By what.
        how: &'static str,
    },
    /// The device below is mounted or belongs to something else.
    #[error("{device} is in use (mounted, or part of another mapping): dm-crypt needs it for itself")]
    BackingBusy {
        /// The device below, as the table names it.
        device: String,
    },
    /// The device below refuses writes.
    #[error("{device} is read-only: open the volume read-only")]
    BackingReadOnly {
        /// The device below, as the table names it.
        device: String,
    },
    /// The device below is not there, or its image was deleted.
    #[error("the device {device} below {name} is gone: {how}")]
    BackingGone {
        /// The mapping.
        name: Name,
        /// The device below.
        device: DevNo,
        /// How it went.
        how: &'static str,
    },
    /// The device below became smaller than the mapping needs.
    #[error(
        "the device {device} below {name} has {size_sectors} sectors of 512 bytes, the mapping needs {needed_sectors}: the image shrank"
    )]
    BackingShrank {
        /// The mapping.
        name: Name,
        /// The device below.
        device: DevNo,
        /// What is there.
        size_sectors: u64,
        /// What the table reaches.
        needed_sectors: u64,
    },
    /// The mapping is not one `crypt` target over one range: another tool made it.
    #[error("{name} is not a single dm-crypt target (it has {targets}): another tool made it")]
    Foreign {
        /// The mapping.
        name: Name,
        /// The kinds of its targets.
        targets: String,
    },
    /// The table holds its key itself; only its length was kept.
    #[error("the table of {name} holds the key itself, not a keyring reference: give the volume key anew")]
    HiddenKey {
        /// The mapping.
        name: Name,
    },
    /// The table names a key that was not given, or the other way round, or with another length.
    #[error("the table of {name} wants a key of {expected_bytes} bytes, given were {given_bytes}")]
    KeyMismatch {
        /// The mapping.
        name: Name,
        /// Bytes that the table names.
        expected_bytes: u32,
        /// Bytes given.
        given_bytes: usize,
    },
    /// The key was wiped from the kernel, and none was given.
    #[error("the key of {name} was wiped: it can only be resumed with the volume key")]
    KeyNeeded {
        /// The mapping.
        name: Name,
    },
    /// The mapping is suspended.
    #[error("{name} is suspended: resume it first")]
    Suspended {
        /// The mapping.
        name: Name,
    },
    /// The mapping is not suspended.
    #[error("{name} is not suspended")]
    NotSuspended {
        /// The mapping.
        name: Name,
    },
    /// The kernel's crypto has no such cipher.
    #[error("the kernel has no cipher `{cipher}`: the module is missing (see /proc/crypto)")]
    NoCipher {
        /// The cipher of the table.
        cipher: String,
    },
    /// The kernel refused the table.
    #[error(
        "the kernel refused the table of {name} ({source}): its log (dmesg) says why; cipher {cipher}, options {}",
        CryptOption::join(options)
    )]
    TableRefused {
        /// The mapping.
        name: Name,
        /// The cipher of the table.
        cipher: String,
        /// Its options.
        options: Vec<CryptOption>,
        /// The system's error.
        source: io::Error,
    },
    /// Something in the place of `/dev/mapper/NAME` that no tool of device-mapper makes.
    #[error("{} is in the way: it is neither a device node nor a link", path.display())]
    NodeInTheWay {
        /// The path.
        path: PathBuf,
    },
    /// A loop device below failed.
    #[error(transparent)]
    Loop(#[from] LoopError),
    /// Another operation on a mapping failed.
    #[error("cannot {action} {name}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which mapping or file.
        name: String,
        /// The system's error.
        source: io::Error,
    },
}

impl DmError {
    /// For `map_err`: `action` failed on `name`.
    pub(crate) fn io(action: &'static str, name: impl ToString) -> impl FnOnce(io::Error) -> DmError {
        move |source| match source.raw_os_error() {
            Some(libc::EACCES | libc::EPERM) => DmError::NoPermission { action },
            _ => DmError::Io { action, name: name.to_string(), source },
        }
    }
}
