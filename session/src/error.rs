//! The one error of this crate, and [`Failure`]: what a server tells its client when it could not do what was asked.
//!
//! Invariant: neither ever carries a byte of a secret; both name what, where and which value.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Why an open volume could not be made, asked, changed or closed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    /// The name cannot name a volume.
    #[error("\"{name}\" cannot name a volume: {reason}")]
    Name {
        /// The name, cut at 100 characters.
        name: String,
        /// The rule that it breaks.
        reason: &'static str,
    },
    /// No volume of this name is open.
    #[error("no volume named {name} is open")]
    NotOpen {
        /// The name.
        name: String,
    },
    /// A volume of this name is open already.
    #[error("a volume named {name} is already open")]
    AlreadyOpen {
        /// The name.
        name: String,
    },
    /// The image is open under another name.
    #[error("{} is already open as {name}", image.display())]
    ImageOpen {
        /// The image.
        image: PathBuf,
        /// The name that it is open under.
        name: String,
    },
    /// The image is in use by something that is no volume of ours.
    #[error("{} is in use: {how}", image.display())]
    ImageInUse {
        /// The image.
        image: PathBuf,
        /// By what.
        how: String,
    },
    /// The image cannot be used for this.
    #[error("{} {reason}", image.display())]
    Image {
        /// The image, or the tag that was to find it.
        image: PathBuf,
        /// Why.
        reason: String,
    },
    /// A server of this name died, and what it left behind is still in use.
    #[error("the server of {name} died and left {what} behind")]
    Leftover {
        /// The name.
        name: String,
        /// What is left.
        what: String,
    },
    /// The volume is in use.
    #[error("{name} is in use: {how}")]
    Busy {
        /// The volume.
        name: String,
        /// By what; names the mount point if it is mounted.
        how: String,
    },
    /// No keyslot takes any of the passphrases given.
    #[error("No key available with this passphrase.")]
    NoKey {
        /// Passphrases tried.
        tries: u32,
    },
    /// No source had a key.
    #[error("no passphrase or key was given for {name}")]
    NoKeySource {
        /// The volume.
        name: String,
    },
    /// The backend that was asked for, or any, cannot be used here.
    #[error("{backend} cannot be used: {reason}")]
    BackendNotPossible {
        /// The backend, or "no backend".
        backend: &'static str,
        /// Why, and what mends it where that is known.
        reason: String,
    },
    /// Clients on the network cannot be listened for.
    #[error("it cannot be listened for clients on the network: {reason}")]
    NotListening {
        /// Why, and what mends it where that is known.
        reason: String,
    },
    /// The open volume's backend has no such verb or option.
    #[error("{name} is open through {backend}, which has no {what}")]
    NotOnBackend {
        /// The volume.
        name: String,
        /// Its backend.
        backend: String,
        /// The verb or option.
        what: &'static str,
    },
    /// A mapping of that name is there, and it is not of a LUKS volume.
    #[error("{name} is a mapping that another tool made: {what}")]
    ForeignMapping {
        /// The mapping.
        name: String,
        /// What it is.
        what: String,
    },
    /// The server said no.
    #[error("{0}")]
    Refused(Failure),
    /// The server ended without an answer.
    #[error("the server of {name} ended without an answer{}", log_tail(log))]
    ServerEnded {
        /// The volume.
        name: String,
        /// The last lines of its log.
        log: String,
    },
    /// Something did not happen in its time.
    #[error("{what} did not happen within {seconds} s")]
    Timeout {
        /// What was waited for.
        what: String,
        /// The limit, in seconds.
        seconds: u64,
    },
    /// What came over the control socket is not the protocol.
    #[error("the control socket of {name} does not speak this protocol: {what}")]
    Protocol {
        /// The volume.
        name: String,
        /// What is wrong.
        what: String,
    },
    /// The last writes of a closed volume did not reach the image.
    #[error("{name} is closed, but its last writes were lost: {reason}")]
    LostWrites {
        /// The volume.
        name: String,
        /// What failed.
        reason: String,
    },
    /// What the kernel had cached for an open volume could not be written; the volume stays as it is.
    #[error("writes to {name} were lost: {reason}")]
    NotSynced {
        /// The volume.
        name: String,
        /// What failed.
        reason: String,
    },
    /// The run directory is not safe to use.
    #[error("{} cannot be used as run directory: {reason}", path.display())]
    RunDirectory {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A program that mounting needs failed or is missing.
    #[error("{program} failed: {reason}")]
    Program {
        /// The program.
        program: &'static str,
        /// Its exit status and what it wrote to standard error, or why it could not start.
        reason: String,
    },
    /// Nothing of ours is mounted there.
    #[error("no open volume is mounted on {}", path.display())]
    NotMounted {
        /// The mount point.
        path: PathBuf,
    },
    /// The directory cannot be a mount point.
    #[error("{} cannot be mounted on: {reason}", path.display())]
    MountPoint {
        /// The directory.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A policy file cannot be used.
    #[error("policy {name}{}: {what}", match line { Some(line) => format!(", line {line}"), None => String::new() })]
    PolicyFile {
        /// The file.
        name: String,
        /// The line, where there is one to blame.
        line: Option<usize>,
        /// What is wrong.
        what: String,
    },
    /// A file operation failed.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The image could not be read.
    #[error("{}: {source}", path.display())]
    Block {
        /// The image or header file.
        path: PathBuf,
        /// What the block layer said.
        source: block::BlockError,
    },
    /// The header is not usable.
    #[error("{}: {source}", path.display())]
    Luks {
        /// The image or header file.
        path: PathBuf,
        /// What the format layer said.
        source: luks::Error,
    },
    /// A key source failed.
    #[error(transparent)]
    KeySource(#[from] secret::KeySourceError),
    /// Locked memory could not be had.
    #[error(transparent)]
    Secret(#[from] secret::SecretError),
}

impl SessionError {
    /// For `map_err` on file operations.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SessionError {
        let path = path.to_path_buf();
        move |source| SessionError::Io { action, path, source }
    }

    /// As [`SessionError::io`], for system calls that answer with a bare error number.
    pub(crate) fn errno(action: &'static str, path: &Path) -> impl FnOnce(rustix::io::Errno) -> SessionError {
        let path = path.to_path_buf();
        move |errno| SessionError::Io { action, path, source: errno.into() }
    }
}

fn log_tail(log: &str) -> String {
    if log.trim().is_empty() { String::new() } else { format!(": {}", log.trim()) }
}

/// What a server could not do, by kind, so that a client can answer with the right exit code and hint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// Which kind of failure.
    pub kind: FailureKind,
    /// What, where, which value.
    pub message: String,
}

impl Failure {
    pub(crate) fn new(kind: FailureKind, message: impl Into<String>) -> Failure {
        Failure { kind, message: message.into() }
    }
}

/// What a caller may want to know apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum FailureKind {
    /// The passphrase opens no keyslot.
    NoKey,
    /// The header is not LUKS2, damaged, or asks for something that is not supported.
    Header,
    /// The policy does not accept the header.
    Policy,
    /// There is not enough memory for the key derivation.
    Memory,
    /// The image cannot be opened or read.
    Image,
    /// The image is in use by somebody else.
    ImageInUse,
    /// FUSE is missing or forbidden.
    Fuse,
    /// The loop device could not be attached or detached.
    Loop,
    /// The volume is mounted or open.
    Busy,
    /// The verb does not fit the state of the volume.
    State,
    /// The key opens, but it is not this volume's.
    OtherVolume,
    /// Data was lost below a volume.
    LostWrites,
    /// Another system error of the server.
    System,
    /// The request is not of this protocol.
    Protocol,
    /// Device-mapper, its crypt target or the kernel keyring is missing or refused.
    Mapping,
    /// A right is missing.
    Permission,
    /// A size that the volume cannot have.
    Size,
}
