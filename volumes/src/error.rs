//! The errors of this crate: what, where, which value.

use std::io;
use std::path::PathBuf;

use secret::{KeySourceError, SecretError};

use crate::config::Fault;

/// Something about the managed set could not be done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VolumesError {
    /// The system refused.
    #[error("could not {what} {}: {source}", path.display())]
    Io {
        /// What was tried: `read`, `write`.
        what: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file that is none of ours: too long, not text, open to others.
    #[error("{}: {what}", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The configuration has faults; each with its line.
    #[error("{}", faults.iter().map(|fault| format!("{}:{fault}", path.display())).collect::<Vec<_>>().join("\n"))]
    Config {
        /// The file.
        path: PathBuf,
        /// At least one.
        faults: Vec<Fault>,
    },
    /// Another process holds the audit log.
    #[error("{}: the audit log is held by another process for more than {waited_s} seconds", path.display())]
    AuditBusy {
        /// Its folder.
        path: PathBuf,
        /// How long was waited.
        waited_s: u64,
    },
    /// The audit log cannot go on: its state is gone or none, while there are records.
    #[error("{}: {what}", path.display())]
    AuditState {
        /// Its folder.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// The first key of the audit log's chain has another length.
    #[error("the seed of the audit log has {len_bytes} bytes, not 32")]
    AuditSeed {
        /// How many bytes it has.
        len_bytes: usize,
    },
    /// Another command works on the set.
    #[error("{}: another command has worked on this set for more than {waited_s} seconds", path.display())]
    SetBusy {
        /// The set's file.
        path: PathBuf,
        /// How long was waited.
        waited_s: u64,
    },
    /// The key store.
    #[error(transparent)]
    KeyStore(#[from] keystore::Error),
    /// An open volume, or one that is to be opened or closed.
    #[error(transparent)]
    Session(#[from] session::SessionError),
    /// The header of an image.
    #[error("{}: {source}", path.display())]
    Luks {
        /// The image.
        path: PathBuf,
        /// What is wrong.
        source: luks::Error,
    },
    /// An image could not be read or written.
    #[error("{}: {source}", path.display())]
    Block {
        /// The image.
        path: PathBuf,
        /// What the system said.
        source: block::BlockError,
    },
    /// Another program failed.
    #[error("{program}: {reason}")]
    Program {
        /// The program.
        program: &'static str,
        /// How it ended and what it said.
        reason: String,
    },
    /// Something stands in the way of what was asked; nothing was changed.
    #[error("{target}: {what}")]
    Refused {
        /// What kind of reason.
        trouble: Trouble,
        /// The volume, folder or file.
        target: String,
        /// What is in the way.
        what: String,
        /// The next command.
        mend: String,
    },
    /// A second person has to approve it first.
    #[error("{operation} {target}: needs the approval of a second person (keys.dual-approval)")]
    Unapproved {
        /// What was asked for, as the word of its command.
        operation: &'static str,
        /// Of which key; empty where there is only one.
        target: String,
        /// The request that waits for it, if there is one.
        pending: Option<String>,
    },
    /// No memory for a secret.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// The seed could not be read.
    #[error(transparent)]
    KeySource(#[from] KeySourceError),
}

/// Why something was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// It cannot be.
    Wrong,
    /// Something is missing.
    Missing,
    /// Something is there or in use.
    Busy,
}

impl VolumesError {
    /// Something stands in the way of what was asked.
    pub(crate) fn refused(
        trouble: Trouble,
        target: impl Into<String>,
        what: impl Into<String>,
        mend: impl Into<String>,
    ) -> VolumesError {
        VolumesError::Refused { trouble, target: target.into(), what: what.into(), mend: mend.into() }
    }

    /// For `map_err` of a system call that did `what` with `path`.
    pub(crate) fn io(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> VolumesError {
        let path = path.into();
        move |source| VolumesError::Io { what, path, source }
    }
}
