//! A server that was killed and cannot end: a thread of it waits for an answer of its own FUSE file, which nobody gives any
//! more, and so the process keeps its lock. Aborting the connection of its mount fails what waits, and the kernel does the
//! rest.
//!
//! Who holds a liveness lock stands in the lock file: its process id and when it started, so that another process of that
//! number is not taken for it. Whether it lives is still a matter of the lock alone. Sources: proc_pid_stat(5),
//! proc_pid_status(5), `Documentation/filesystems/fuse.rst`.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::Duration;

use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};

use crate::close::unmount_dead;
use crate::registry::wait_until_free;
use crate::run_dir::Entry;
use crate::{SessionError, mount_table};

/// A killed server frees its lock by itself in this time, unless it is stuck.
const GRACE: Duration = Duration::from_secs(1);
/// With its connection aborted, it only has to give its memory back.
const END_WAIT: Duration = Duration::from_secs(30);
/// Longest line in a lock file.
const HOLDER_MAX_BYTES: usize = 64;
/// PF_EXITING of the kernel, in the flags of `/proc/PID/stat`.
const EXITING: u64 = 4;
/// SIGKILL in a signal mask of `/proc/PID/status`.
const KILL_BIT: u64 = 1 << (libc::SIGKILL - 1);

/// Writes down that this process holds `lock`. Only a hint: without it a stuck server has to be dealt with by hand.
pub(crate) fn sign(lock: &File) -> std::io::Result<()> {
    let pid = rustix::process::getpid().as_raw_nonzero();
    let Some(process) = Process::read(&format!("/proc/{pid}/stat")) else {
        return Err(std::io::Error::other("/proc does not show this process"));
    };
    let line = format!("{pid} {}\n", process.started_ticks);
    lock.set_len(0)?;
    lock.write_all_at(line.as_bytes(), 0)
}

/// Whether the process that holds the lock of `entry` was killed and is not yet gone.
pub(crate) fn is_dying(entry: &Entry) -> bool {
    entry.lock_file(false).is_ok_and(|lock| holder_is_dying(&lock))
}

/// Waits for the end of a server that was killed, and makes it end where it is stuck. A server that lives is left alone.
///
/// # Errors
/// [`SessionError::Timeout`] if it does not end, and what keeps its connection from being aborted.
pub(crate) fn see_off(entry: &Entry) -> Result<(), SessionError> {
    let Ok(lock) = entry.lock_file(false) else {
        return Ok(());
    };
    if !holder_is_dying(&lock) || wait_until_free(&lock, GRACE, &entry.folder)? || !holder_is_dying(&lock) {
        return Ok(());
    }
    log::warn!("the server of {} was killed and does not end: its FUSE connection is aborted", entry.name);
    abort_connection(&entry.fuse_folder())?;
    if wait_until_free(&lock, END_WAIT, &entry.folder)? {
        return Ok(());
    }
    let what = format!("the end of the killed server of {}", entry.name);
    Err(SessionError::Timeout { what, seconds: END_WAIT.as_secs() })
}

/// Fails everything that waits for an answer of the FUSE server on `folder`, now and later. The mount stays.
fn abort_connection(folder: &Path) -> Result<(), SessionError> {
    let Some(mount) = mount_table::mounted_on(folder)?.filter(|mount| mount.kind.starts_with("fuse")) else {
        return Ok(());
    };
    // A connection is named after the device number of its mount, whose major is 0.
    if mount.device.0 == 0 && std::fs::write(format!("/sys/fs/fuse/connections/{}/abort", mount.device.1), "1").is_ok()
    {
        return Ok(());
    }
    // Forcing aborts the connection before the kernel looks whether the mount is in use.
    match unmount(folder, UnmountFlags::FORCE | UnmountFlags::NOFOLLOW) {
        Ok(()) | Err(Errno::BUSY) => Ok(()),
        Err(Errno::PERM) => unmount_dead(folder),
        Err(errno) => Err(SessionError::errno("abort the FUSE connection of", folder)(errno)),
    }
}

fn holder_is_dying(lock: &File) -> bool {
    let mut line = [0; HOLDER_MAX_BYTES];
    let len_bytes = lock.read_at(&mut line, 0).unwrap_or(0);
    let text = String::from_utf8_lossy(&line[..len_bytes]);
    let mut numbers = text.split_ascii_whitespace().map(str::parse::<u64>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(pid)), Some(Ok(started_ticks))) => process_is_dying(pid, started_ticks),
        _ => false,
    }
}

/// Whether the process that has this id and was started then has been killed, or has begun to end.
fn process_is_dying(pid: u64, started_ticks: u64) -> bool {
    let folder = format!("/proc/{pid}");
    let Some(process) = Process::read(&format!("{folder}/stat")) else {
        return false;
    };
    process.started_ticks == started_ticks && (process.is_ending || kill_is_pending(Path::new(&folder)))
}

/// What `/proc/PID/stat` tells of the first thread.
struct Process {
    is_ending: bool,
    started_ticks: u64,
}

impl Process {
    fn read(path: &str) -> Option<Process> {
        // The name, which comes second, may hold anything, also a parenthesis.
        let text = String::from_utf8_lossy(&std::fs::read(path).ok()?).into_owned();
        let fields: Vec<&str> = text.rsplit_once(')')?.1.split_ascii_whitespace().collect();
        let flags: u64 = fields.get(6)?.parse().ok()?;
        Some(Process {
            is_ending: matches!(*fields.first()?, "Z" | "X" | "x") || flags & EXITING != 0,
            started_ticks: fields.get(19)?.parse().ok()?,
        })
    }
}

/// Whether a SIGKILL waits for any thread of the process: one kills them all.
fn kill_is_pending(process: &Path) -> bool {
    std::fs::read_dir(process.join("task")).into_iter().flatten().flatten().any(|task| {
        let status = std::fs::read_to_string(task.path().join("status")).unwrap_or_default();
        let masks = status.lines().filter_map(|line| line.strip_prefix("SigPnd:").or(line.strip_prefix("ShdPnd:")));
        masks.filter_map(|mask| u64::from_str_radix(mask.trim(), 16).ok()).any(|mask| mask & KILL_BIT != 0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holder_of_a_lock_is_dying_once_it_was_killed_and_nobody_else_is_taken_for_it() {
        let lock = tempfile::tempfile().unwrap();
        assert!(!holder_is_dying(&lock), "nobody signed");
        sign(&lock).unwrap();
        assert!(!holder_is_dying(&lock), "this process lives");
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let id = u64::from(child.id());
        let started_ticks = Process::read(&format!("/proc/{id}/stat")).unwrap().started_ticks;
        assert!(!process_is_dying(id, started_ticks));
        child.kill().unwrap();
        // Nobody has waited for it: the id stays its own.
        while !process_is_dying(id, started_ticks) {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(!process_is_dying(id, started_ticks + 1), "another process of that number");
        child.wait().unwrap();
        assert!(!process_is_dying(id, started_ticks), "gone");
    }
}
