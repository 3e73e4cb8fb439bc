//! The errors of this crate. None of them can hold a byte of a secret: they name sizes, sources and system errors only.

use std::io;
use std::path::PathBuf;

/// Memory for a secret could not be had or protected.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SecretError {
    /// The memory could not be allocated.
    #[error("cannot allocate {len_bytes} bytes for a secret")]
    Allocation {
        /// How much was asked for.
        len_bytes: usize,
    },
    /// The memory could not be kept out of core dumps or children; it was not used.
    #[error("cannot protect {len_bytes} bytes of secret memory ({what}): {source}")]
    Protect {
        /// Which protection failed.
        what: &'static str,
        /// How many bytes it was for.
        len_bytes: usize,
        /// What the system said.
        source: io::Error,
    },
}

/// A source could not give its passphrase or key.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeySourceError {
    /// No memory for the secret.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// The source could not be opened or read.
    #[error("cannot read {what}: {source}")]
    Io {
        /// Which source: `standard input`, `/dev/tty`, the path of a key file.
        what: String,
        /// What the system said.
        source: io::Error,
    },
    /// The source ended before its first byte.
    #[error("Nothing to read on input.")]
    Nothing,
    /// The source holds more than a key may have.
    #[error("{what} holds more than {limit_bytes} bytes")]
    TooLarge {
        /// Which source.
        what: String,
        /// The most it may hold.
        limit_bytes: usize,
    },
    /// The source holds fewer bytes than the caller demands.
    #[error("{what} holds {got_bytes} bytes of the {wanted_bytes} demanded")]
    TooShort {
        /// Which source.
        what: String,
        /// How many bytes were demanded.
        wanted_bytes: u64,
        /// How many there were.
        got_bytes: u64,
    },
    /// An endless device needs a size.
    #[error("{path} is a character device: a key size is needed")]
    SizeNeeded {
        /// The device.
        path: PathBuf,
    },
    /// The key file is neither a file, nor a pipe, nor a device.
    #[error("{path} cannot be a key file")]
    NotAFile {
        /// What was named.
        path: PathBuf,
    },
    /// More was typed than a passphrase may have.
    #[error("the typed passphrase is longer than {limit_bytes} bytes")]
    TooLongTyped {
        /// The most that can be typed.
        limit_bytes: usize,
    },
    /// The two entries of a new passphrase differ.
    #[error("Passphrases do not match.")]
    Mismatch,
    /// There is no terminal to ask on.
    #[error("no terminal to ask for a passphrase on: {source}")]
    NoTerminal {
        /// What the system said.
        source: io::Error,
    },
    /// The user broke the prompt off.
    #[error("interrupted while asking for a passphrase")]
    Interrupted,
    /// Nobody answered in time.
    #[error("no passphrase within {timeout_s} seconds")]
    TimedOut {
        /// How long the prompt waited.
        timeout_s: u64,
    },
}
