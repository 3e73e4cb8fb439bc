//! The keyring's system calls: add a key to this thread's keyring, revoke it, unlink it.
//!
//! Nothing is kept; the payload is borrowed for the call and copied by the kernel. No crate covers `logon` keys.
//! Source: add_key(2), keyctl(2), thread-keyring(7).

use std::ffi::CStr;
use std::io;

/// `KEY_SPEC_THREAD_KEYRING`: of the calling thread only, gone with it.
const THREAD_KEYRING: libc::c_long = -1;
const KEYCTL_REVOKE: libc::c_long = 3;
const KEYCTL_UNLINK: libc::c_long = 9;

/// Serial number of a key.
pub(crate) type Serial = libc::c_long;

fn checked(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Adds a key to the calling thread's keyring, or replaces the payload of the one that has this type and description.
pub(crate) fn add_to_thread(kind: &CStr, description: &CStr, payload: &[u8]) -> io::Result<Serial> {
    // SAFETY: add_key reads two strings that end with a zero byte (`CStr` has it) and `payload.len()` bytes of payload;
    // all three are borrowed for the whole call, and the kernel keeps a copy, no pointer.
    checked(unsafe {
        libc::syscall(
            libc::SYS_add_key,
            kind.as_ptr(),
            description.as_ptr(),
            payload.as_ptr(),
            payload.len(),
            THREAD_KEYRING,
        )
    })
}

/// Makes a key unusable at once; the kernel wipes its payload.
pub(crate) fn revoke(key: Serial) -> io::Result<()> {
    // SAFETY: KEYCTL_REVOKE takes one integer and touches no memory of ours.
    checked(unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_REVOKE, key) }).map(drop)
}

/// Takes a key out of the calling thread's keyring.
pub(crate) fn unlink_from_thread(key: Serial) -> io::Result<()> {
    // SAFETY: KEYCTL_UNLINK takes two integers and touches no memory of ours.
    checked(unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_UNLINK, key, THREAD_KEYRING) }).map(drop)
}
