//! Descriptors that came with the exec: the server closes all but the standard three, so that it holds open nothing of
//! the shell that started it (a pipe whose reader waits for its end, a lock, a file on a disk to be unmounted).
//!
//! The only unsafe code of this crate. Source: close_range(2), Linux 5.9.

use std::io;

/// Closes every descriptor from 3 up. To be called first thing in a process, before anything was opened.
///
/// # Errors
/// The system's error; ENOSYS before Linux 5.9.
pub(crate) fn close_all_but_standard() -> io::Result<()> {
    // SAFETY: the system call takes three integers and touches no memory of ours. The server calls it before it opens
    // anything and before it starts a thread, so no owned descriptor of this process can be among those it closes.
    let result = unsafe { libc::syscall(libc::SYS_close_range, 3_u32, u32::MAX, 0_u32) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
