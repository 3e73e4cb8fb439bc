//! Small secrets for programs: set, listed, removed, handed to a program. Sealed in the key store as values; every use is
//! recorded before the value leaves the store.
//!
//! Invariant: names that begin with `luksctl-` are this program's own and neither listed nor given out.

use keystore::{KeyName, Timestamp};
use secret::Secret;

use crate::VolumesError;
use crate::audit::{Category, Event};
use crate::error::Trouble;
use crate::set::{RESERVED, Set, SetStore};

/// How a program gets a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handover {
    /// A descriptor on memory that nobody else has.
    Descriptor,
    /// A file on a tmpfs that only the program and its children see.
    Credential,
    /// A variable of its environment: the weakest, as its children, its core dumps and `/proc` have it.
    Environment,
}

impl Handover {
    /// The word of the audit log.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Handover::Descriptor => "descriptor",
            Handover::Credential => "credential",
            Handover::Environment => "environment",
        }
    }
}

/// The name of a secret of a person.
///
/// # Errors
/// [`VolumesError::KeyStore`] for what no value can be called, [`VolumesError::Refused`] for a name of this program.
pub fn name(text: &str) -> Result<KeyName, VolumesError> {
    if text.starts_with(RESERVED) {
        let what = format!("names that begin with {RESERVED} are this program's own");
        return Err(VolumesError::refused(Trouble::Wrong, text, what, "take another name"));
    }
    Ok(KeyName::new(text)?)
}

/// Sets a secret; the one before is gone.
///
/// # Errors
/// [`VolumesError::KeyStore`] beyond 64 KiB and for what the store says; as [`Set::record`].
pub fn set(set: &Set, store: &mut SetStore, name: &KeyName, value: &Secret) -> Result<(), VolumesError> {
    let what = if store.metadata().values.contains_key(name) { "secret-replace" } else { "secret-set" };
    set.record(&Event::new(Category::Key, what, name))?;
    store.set_value(name, value, Set::now())?;
    set.remember(store)
}

/// Removes a secret.
///
/// # Errors
/// [`VolumesError::KeyStore`] if there is none; as [`Set::record`].
pub fn remove(set: &Set, store: &mut SetStore, name: &KeyName) -> Result<(), VolumesError> {
    if !store.metadata().values.contains_key(name) {
        return Err(keystore::Error::NoKey { name: name.to_string() }.into());
    }
    set.record(&Event::new(Category::Key, "secret-remove", name))?;
    store.remove_value(name, Set::now())?;
    set.remember(store)
}

/// The names of the secrets, and when each was set; the store need not be open.
///
/// # Errors
/// As [`Set::metadata`].
pub fn list(set: &Set) -> Result<Vec<(String, Timestamp)>, VolumesError> {
    let metadata = set.metadata()?;
    let all = metadata.values.into_iter().map(|(name, record)| (name.to_string(), record.updated));
    Ok(all.filter(|(name, _)| !name.starts_with(RESERVED)).collect())
}

/// A secret for `program`; its use is in the audit log before the value is here.
///
/// # Errors
/// [`VolumesError::KeyStore`] if there is none; as [`Set::record`].
pub fn hand_over(
    set: &Set,
    store: &SetStore,
    name: &KeyName,
    how: Handover,
    program: &str,
) -> Result<Secret, VolumesError> {
    if !store.metadata().values.contains_key(name) {
        return Err(keystore::Error::NoKey { name: name.to_string() }.into());
    }
    set.record(&Event::new(Category::Access, "secret-use", name).detail("how", how.word()).detail("program", program))?;
    Ok(store.value(name)?)
}
