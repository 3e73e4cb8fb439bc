//! A volume key in the kernel keyring for as long as a table is being loaded.
//!
//! * The key is of type `logon`: no process can read it, only the kernel.
//! * It hangs in the keyring of the thread that added it. dm-crypt looks it up with the rights of the thread that loads
//!   the table, so [`LogonKey`] cannot leave its thread.
//! * dm-crypt makes its own copy. Dropping [`LogonKey`] revokes the key (the kernel wipes the payload) and unlinks it.
//!
//! Source: thread-keyring(7), add_key(2), Documentation/admin-guide/device-mapper/dm-crypt.rst.

use std::ffi::CString;
use std::io;
use std::marker::PhantomData;

use secret::Secret;

use crate::dm_error::DmError;
use crate::key_reference::{KeyReference, KeyType};
use crate::keyctl;
use crate::name::Name;

/// A key in this thread's keyring; taken out when dropped.
#[derive(Debug)]
pub(crate) struct LogonKey {
    serial: keyctl::Serial,
    /// Neither `Send` nor `Sync`: the keyring is the thread's.
    _thread: PhantomData<*const ()>,
}

impl LogonKey {
    /// Puts `key` where `reference` says, for the mapping `name`. `None` where nothing has to be put: a cipher without
    /// key, or a key that somebody else keeps in the keyring.
    pub(crate) fn provide(
        name: &Name,
        reference: &KeyReference,
        key: Option<&Secret>,
    ) -> Result<Option<LogonKey>, DmError> {
        let given_bytes = key.map_or(0, Secret::len);
        let mismatch =
            || DmError::KeyMismatch { name: name.clone(), expected_bytes: reference.len_bytes(), given_bytes };
        let (kind, description) = match (reference, key) {
            (KeyReference::Inline { .. }, _) => return Err(DmError::HiddenKey { name: name.clone() }),
            (KeyReference::Empty, _) if given_bytes > 0 => return Err(mismatch()),
            (KeyReference::Empty, _) | (KeyReference::Keyring { .. }, None) => return Ok(None),
            (KeyReference::Keyring { kind, description, .. }, Some(_)) => (kind, description),
        };
        let Some(key) = key.filter(|key| u32::try_from(key.len()).ok() == Some(reference.len_bytes())) else {
            return Err(mismatch());
        };
        if *kind != KeyType::Logon {
            return Err(DmError::HiddenKey { name: name.clone() });
        }
        let description = CString::new(description.as_str()).map_err(|_| DmError::BadTable {
            what: "a key's description has no zero byte",
            token: description.escape_default().to_string(),
        })?;
        let serial = keyctl::add_to_thread(c"logon", &description, key.expose()).map_err(refused)?;
        Ok(Some(LogonKey { serial, _thread: PhantomData }))
    }
}

fn refused(source: io::Error) -> DmError {
    if source.raw_os_error() != Some(libc::EDQUOT) {
        return DmError::NoKeyring { source };
    }
    let uid = rustix::process::geteuid();
    let (keys_sysctl, bytes_sysctl) = if uid.is_root() {
        ("kernel.keys.root_maxkeys", "kernel.keys.root_maxbytes")
    } else {
        ("kernel.keys.maxkeys", "kernel.keys.maxbytes")
    };
    DmError::KeyringQuota { uid: uid.as_raw(), keys_sysctl, bytes_sysctl }
}

impl Drop for LogonKey {
    fn drop(&mut self) {
        // Both fail only when the key is gone already, which is what we want.
        let _ = keyctl::revoke(self.serial);
        let _ = keyctl::unlink_from_thread(self.serial);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &str = "7f0c9a4e-1234-4cde-8899-aabbccddeeff";

    /// Whether /proc/keys shows such a key that still works: one that was revoked (flag R) stays in the list until the
    /// kernel collects it.
    fn works(description: &str) -> bool {
        let keys = std::fs::read_to_string("/proc/keys").unwrap();
        keys.lines().filter(|line| line.contains("logon") && line.contains(description)).any(|line| {
            let flags = line.split_whitespace().nth(1).unwrap();
            !flags.contains('R')
        })
    }

    #[test]
    fn a_key_is_in_the_keyring_only_while_it_is_held() {
        let name: Name = "x".parse().unwrap();
        let reference = KeyReference::luks2(32, HEADER, 7);
        let secret = Secret::copy_of(&[0x5a; 32]).unwrap();
        let held = match LogonKey::provide(&name, &reference, Some(&secret)) {
            Err(DmError::NoKeyring { source }) => {
                eprintln!("SKIPPED dmsetup a_key_is_in_the_keyring_only_while_it_is_held: {source}");
                return;
            }
            other => other.unwrap().unwrap(),
        };
        let description = format!("cryptsetup:{HEADER}-d7");
        assert!(works(&description));
        drop(held);
        assert!(!works(&description));
    }

    #[test]
    fn a_key_that_does_not_fit_its_reference_is_refused() {
        let name: Name = "x".parse().unwrap();
        let secret = Secret::copy_of(&[0x5a; 32]).unwrap();
        let long = KeyReference::luks2(64, HEADER, 0);
        let error = LogonKey::provide(&name, &long, Some(&secret)).unwrap_err();
        assert!(matches!(error, DmError::KeyMismatch { expected_bytes: 64, given_bytes: 32, .. }), "{error}");
        let error = LogonKey::provide(&name, &KeyReference::Empty, Some(&secret)).unwrap_err();
        assert!(matches!(error, DmError::KeyMismatch { expected_bytes: 0, given_bytes: 32, .. }), "{error}");
        let inline = KeyReference::Inline { len_bytes: 32, zeros: false };
        let error = LogonKey::provide(&name, &inline, Some(&secret)).unwrap_err();
        assert!(matches!(error, DmError::HiddenKey { .. }), "{error}");
        assert!(LogonKey::provide(&name, &KeyReference::Empty, None).unwrap().is_none());
    }

    #[test]
    fn a_full_keyring_names_the_settings() {
        let error = refused(io::Error::from_raw_os_error(libc::EDQUOT));
        assert!(error.to_string().contains("maxkeys=N"), "{error}");
        let error = refused(io::Error::from_raw_os_error(libc::ENOSYS));
        assert!(matches!(error, DmError::NoKeyring { .. }), "{error}");
    }
}
