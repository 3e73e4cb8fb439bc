//! A `user` key in the session's keyring for as long as a test needs it, as `keyctl add user DESCRIPTION … @s` would put it.
//! Source: add_key(2), keyctl(2).

use std::ffi::CString;
use std::io;

const SESSION_KEYRING: libc::c_long = -3;
const KEYCTL_UNLINK: libc::c_long = 9;

/// A key; gone from the keyring when dropped.
#[derive(Debug)]
pub struct UserKey {
    serial: libc::c_long,
}

impl UserKey {
    /// Adds the key. What this process starts afterwards finds it, too.
    ///
    /// # Errors
    /// What the kernel says, for example that it has no keyrings.
    #[allow(unsafe_code)]
    pub fn add(description: &str, payload: &[u8]) -> io::Result<UserKey> {
        let description = CString::new(description)?;
        // SAFETY: add_key reads two strings that end with a zero byte (`CStr` has it) and `payload.len()` bytes of payload;
        // all three are borrowed for the whole call, and the kernel keeps a copy, no pointer.
        let serial = unsafe {
            libc::syscall(
                libc::SYS_add_key,
                c"user".as_ptr(),
                description.as_ptr(),
                payload.as_ptr(),
                payload.len(),
                SESSION_KEYRING,
            )
        };
        if serial < 0 { Err(io::Error::last_os_error()) } else { Ok(UserKey { serial }) }
    }
}

impl Drop for UserKey {
    #[allow(unsafe_code)]
    fn drop(&mut self) {
        // SAFETY: KEYCTL_UNLINK takes two integers and touches no memory of ours.
        let gone = unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_UNLINK, self.serial, SESSION_KEYRING) };
        if gone < 0 {
            eprintln!("a test's key stays in the keyring: {}", io::Error::last_os_error());
        }
    }
}
