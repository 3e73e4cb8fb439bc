//! Descriptors that came with the exec. The server closes all but the standard three, so that it holds open nothing of the
//! shell that started it (a pipe whose reader waits for its end, a lock, a file on a disk to be unmounted). A client
//! keeps them, for one may be `--key-fd`, but hands none on: fuse2fs lives for days, and a key is not its business.
//!
//! The only unsafe code of this crate. Source: close_range(2), Linux 5.9; its flag for close-on-exec, Linux 5.11.

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

/// Marks every descriptor from 3 up as not for programs that this process starts. Those that are opened later are made so
/// from the start.
///
/// # Errors
/// The system's error; ENOSYS before Linux 5.9, EINVAL before Linux 5.11.
pub fn keep_from_children() -> io::Result<()> {
    // SAFETY: the system call takes three integers and touches no memory of ours. With this flag it closes nothing: every
    // descriptor stays open and owned by whoever owns it.
    let result = unsafe { libc::syscall(libc::SYS_close_range, 3_u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd as _;
    use std::process::Command;

    #[test]
    fn a_child_sees_no_descriptor_of_its_parent() {
        let (reader, _writer) = io::pipe().unwrap();
        rustix::io::fcntl_setfd(&reader, rustix::io::FdFlags::empty()).unwrap();
        let path = format!("/proc/self/fd/{}", reader.as_raw_fd());
        let seen = || Command::new("readlink").arg(&path).output().unwrap().status.success();
        assert!(seen(), "the control");
        keep_from_children().unwrap();
        assert!(!seen());
    }
}
