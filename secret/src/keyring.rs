//! A passphrase that lies in the kernel's keyring: the payload of a `user` key, found by its description as request_key(2)
//! finds it: in the keyrings of the thread, the process and the session.
//!
//! The payload goes from the kernel straight into locked memory. No program is started to make a key that is missing.
//! Source: request_key(2), keyctl_read(3), keyrings(7). No crate reads a key into memory of ours without a copy.

use std::ffi::{CStr, CString};
use std::io;

use crate::{KeyProvider, KeyRequest, KeySourceError, Secret};

/// `KEYCTL_READ`
const KEYCTL_READ: libc::c_long = 11;
/// A `user` key holds at most 32767 bytes.
const PAYLOAD_BYTES_MAX: usize = 32_767;
/// A key whose payload changes while it is read is read again, this often.
const READS_MAX: u32 = 4;

/// The `user` key of this description.
#[derive(Debug, Clone)]
pub struct KeyringKey {
    description: String,
}

impl KeyringKey {
    /// The key that is called so.
    pub fn new(description: impl Into<String>) -> KeyringKey {
        KeyringKey { description: description.into() }
    }

    /// Its payload; `None` if there is no such key, or none that this process may see.
    ///
    /// # Errors
    /// [`KeySourceError::Io`] if the kernel has no keyrings or refuses to read the key, [`KeySourceError::Secret`].
    pub fn read(&self) -> Result<Option<Secret>, KeySourceError> {
        let failed =
            |source| KeySourceError::Io { what: format!("the key {:?} in the keyring", self.description), source };
        let Ok(description) = CString::new(self.description.as_str()) else { return Ok(None) };
        let serial = match find(&description) {
            Ok(serial) => serial,
            Err(error) if is_absent(&error) => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        for _ in 0..READS_MAX {
            let len_bytes = payload(serial, &mut []).map_err(failed)?;
            if len_bytes > PAYLOAD_BYTES_MAX {
                let what = "a key in the keyring".to_owned();
                return Err(KeySourceError::TooLarge { what, limit_bytes: PAYLOAD_BYTES_MAX });
            }
            let mut read_bytes = 0;
            let secret = Secret::fill_with(len_bytes, |bytes| -> Result<(), KeySourceError> {
                read_bytes = payload(serial, bytes).map_err(failed)?;
                Ok(())
            })?;
            if read_bytes == len_bytes {
                return Ok(Some(secret));
            }
        }
        Err(failed(io::ErrorKind::ResourceBusy.into()))
    }
}

impl KeyProvider for KeyringKey {
    fn key_for(&mut self, _request: &KeyRequest<'_>) -> Result<Option<Secret>, KeySourceError> {
        self.read()
    }
}

/// What request_key(2) says where there is no key to be had.
fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENOKEY | libc::EKEYREVOKED | libc::EKEYEXPIRED | libc::EKEYREJECTED | libc::EACCES)
    )
}

fn find(description: &CStr) -> io::Result<libc::c_long> {
    let no_program: *const libc::c_char = std::ptr::null();
    let no_keyring: libc::c_long = 0;
    // SAFETY: request_key reads two strings that end with a zero byte (`CStr` has it) and are borrowed for the whole call;
    // a null callout is allowed, and means that no program is started.
    let serial =
        unsafe { libc::syscall(libc::SYS_request_key, c"user".as_ptr(), description.as_ptr(), no_program, no_keyring) };
    if serial < 0 { Err(io::Error::last_os_error()) } else { Ok(serial) }
}

/// Reads the payload into `bytes`, if it fits; its length in any case.
fn payload(serial: libc::c_long, bytes: &mut [u8]) -> io::Result<usize> {
    // SAFETY: KEYCTL_READ writes at most `bytes.len()` bytes to `bytes`, which is borrowed for the whole call, and keeps
    // no pointer; with a length of 0 it writes nothing.
    let len = unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_READ, serial, bytes.as_mut_ptr(), bytes.len()) };
    usize::try_from(len).map_err(|_| io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_nobody_has_is_no_error() {
        let key = KeyringKey::new("a key of this test that nobody has ever added");
        match key.read() {
            Ok(found) => assert!(found.is_none()),
            Err(error) => eprintln!("SKIPPED secret a_key_that_nobody_has_is_no_error: {error}"),
        }
        assert!(KeyringKey::new("a\0b").read().unwrap().is_none());
    }
}
