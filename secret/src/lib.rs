//! Secrets: memory that is locked, wiped and never printed, and the plain sources that passphrases and keys come from.
//!
//! [`Secret`] holds bytes, [`Locked`] one computed value such as a key schedule, [`Sheltered`] the large memory of a KDF;
//! [`scrubbed`] runs a computation and overwrites the stack it used. [`KeyProvider`] is the joint between a volume that
//! needs a key and whatever has one; [`Prompt`], [`LineSource`], [`KeyFile`], [`KeyDescriptor`] and [`KeyringKey`] are the sources
//! that need nothing but a terminal, a file or the kernel.
//!
//! What keeps a key from leaking here: core dumps (`MADV_DONTDUMP`), swap (`mlock`), children of fork (`MADV_WIPEONFORK`),
//! freed memory (wiped on drop), dead stack frames (scrubbed), logs and errors (no `Debug` content, no `String`).

#![deny(unsafe_code)]

mod descriptor;
mod error;
mod key_file;
#[allow(unsafe_code)] // The one wrapper around request_key and keyctl.
mod keyring;
#[allow(unsafe_code)] // The one wrapper around mmap, madvise and mlock.
mod pages;
mod prompt;
mod provider;
mod reading;
mod scrub;
mod secret;
mod sheltered;

pub use descriptor::{KeyDescriptor, LineSource};
pub use error::{KeySourceError, SecretError};
pub use key_file::KeyFile;
pub use keyring::KeyringKey;
pub use pages::Locked;
pub use prompt::{Prompt, TYPED_LIMIT_BYTES};
pub use provider::{KeyProvider, KeyRequest, Purpose};
pub use reading::KEY_LIMIT_BYTES;
pub use scrub::{SCRUB_BYTES, scrubbed};
pub use secret::Secret;
pub use sheltered::Sheltered;
