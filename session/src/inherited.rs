//! Descriptors that came with the exec. The server closes all but the standard three, so that it holds open nothing of the
//! shell that started it (a pipe whose reader waits for its end, a lock, a file on a disk to be unmounted). A client
//! keeps them, for one may be `--key-fd`, but hands none on: fuse2fs lives for days, and a key is not its business. And a
//! thread without those of FUSE, for calls that may wait for this very process.
//!
//! Source: close_range(2), Linux 5.9; its flag for close-on-exec, Linux 5.11; close_fd and put_files_struct of `fs/file.c`.

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

/// Runs `work` on a thread that shares no descriptors with the rest of the process and has none of `/dev/fuse`.
///
/// For what a FUSE server has to do with its own mount or a device above it: such a call may have to wait for an answer of
/// this very process. When the process is killed then, its other threads end and with them goes the last descriptor of the
/// connection; the kernel ends that, and with it the wait. A thread that shared the descriptors would keep the connection
/// open by waiting for it, and nothing could end either (seen on 6.12).
///
/// Where the kernel refuses a table of its own (before Linux 5.9), `work` runs on the thread all the same.
///
/// # Errors
/// The system's error if no thread can be started, or `work` panicked; it says which.
pub(crate) fn apart_from_fuse<T: Send>(work: impl FnOnce() -> T + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let alone = || {
            if let Err(error) = unshare_descriptors() {
                log::warn!("a thread keeps the descriptors of the process: {error}");
            }
            work()
        };
        let thread = std::thread::Builder::new().name("apart".to_owned()).spawn_scoped(scope, alone)?;
        thread.join().map_err(|_| io::Error::other("a thread ended with a fault of the program; see the log"))
    })
}

/// Gives the calling thread a copy of the table of descriptors, without those of `/dev/fuse`.
fn unshare_descriptors() -> io::Result<()> {
    // The range is empty in effect: no descriptor has this number. What counts is the flag.
    // SAFETY: the system call takes three integers and touches no memory of ours. It closes nothing; the thread gets a copy
    // of the table, in which every descriptor stays open under its number.
    let result = unsafe { libc::syscall(libc::SYS_close_range, u32::MAX, u32::MAX, libc::CLOSE_RANGE_UNSHARE) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    let mut connections = Vec::new();
    for entry in std::fs::read_dir("/proc/thread-self/fd")?.flatten() {
        let target = std::fs::read_link(entry.path()).unwrap_or_default();
        if target.as_os_str().as_encoded_bytes().starts_with(b"/dev/fuse") {
            connections.extend(entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()));
        }
    }
    for number in connections {
        // SAFETY: the number is closed in the table of this thread only. Its owner lives in other threads, whose table
        // still has it; the work of this thread was given none of them, as it has nothing to do with the connection.
        unsafe { libc::close(number) };
    }
    Ok(())
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

    #[test]
    fn what_is_done_apart_sees_the_descriptors_of_before_but_changes_only_its_own() {
        let (reader, _writer) = io::pipe().unwrap();
        let ours = format!("/proc/self/task/{}/fd", rustix::thread::gettid().as_raw_nonzero());
        let fuse = std::fs::File::open("/dev/fuse").ok();
        let links = |folder: &str| -> Vec<String> {
            let entries = std::fs::read_dir(folder).unwrap().flatten();
            entries.filter_map(|entry| Some(std::fs::read_link(entry.path()).ok()?.display().to_string())).collect()
        };
        let pipe = std::fs::read_link(format!("{ours}/{}", reader.as_raw_fd())).unwrap().display().to_string();
        let (theirs, opened) = apart_from_fuse(|| {
            let marker = tempfile::NamedTempFile::new().unwrap();
            let name = marker.path().display().to_string();
            assert!(links("/proc/thread-self/fd").contains(&name));
            // The first thread of the process and this test's do not see it.
            assert!(!links(&ours).contains(&name));
            (links("/proc/thread-self/fd"), name)
        })
        .unwrap();
        assert!(theirs.contains(&pipe), "{theirs:?}");
        assert!(!theirs.iter().any(|link| link == "/dev/fuse"), "{theirs:?}");
        assert!(!links(&ours).contains(&opened));
        assert_eq!(links(&ours).iter().any(|link| link == "/dev/fuse"), fuse.is_some(), "ours stay open");
    }
}
