//! Runs a program under ptrace and holds it still after each of its system calls that handle keys, and at its very end, when
//! its memory is still as it left it: so that a test can look through that memory.
//!
//! Source: ptrace(2) (PTRACE_SEIZE, PTRACE_O_TRACEEXIT, PTRACE_O_TRACESYSGOOD); proc(5) (`syscall` of a stopped task).
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::HashMap;
use std::io::Read as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::libc;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// The shell that waits to be seized is given this long.
const PATIENCE: Duration = Duration::from_secs(60);
/// Type of device-mapper's ioctls.
const DM_IOCTL_TYPE: u64 = 0xfd;

/// Why the program stands still.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// An ioctl of device-mapper has returned; its number.
    DmIoctl(u8),
    /// `add_key` or `keyctl` has returned.
    Key,
    /// A call has returned that wrote to a file, made one durable or took a name away.
    Written,
    /// One of its processes or threads is about to end.
    End,
}

/// How the program ended, and what it said.
#[derive(Debug)]
pub struct Traced {
    /// Its exit code; `None` after a signal.
    pub code: Option<i32>,
    /// Its standard output.
    pub stdout: Vec<u8>,
    /// Its standard error.
    pub stderr: Vec<u8>,
}

/// Runs `command`, which must have its arguments and variables and nothing else, and calls `look` with the process at each
/// stop. Children are followed; those that live longer go on untraced.
///
/// # Panics
/// If it cannot be traced.
pub fn trace(command: &Command, look: impl FnMut(u32, Stop) + Send) -> Traced {
    drive_alone(command, keys, look)
}

/// The same with a stop after each call that writes to files; [`Stop::End`] too.
///
/// # Panics
/// If it cannot be traced.
pub fn trace_writes(command: &Command, look: impl FnMut(u32, Stop) + Send) -> Traced {
    drive_alone(command, writes, look)
}

/// The same with a stop after each call that changes what is on a disk or in the mount table: content, names, modes, mounts.
///
/// # Panics
/// If it cannot be traced.
pub fn trace_changes(command: &Command, look: impl FnMut(u32, Stop) + Send) -> Traced {
    drive_alone(command, changes, look)
}

fn drive_alone(command: &Command, of: fn(Pid) -> Option<Stop>, look: impl FnMut(u32, Stop) + Send) -> Traced {
    // Only the thread that seized a program may drive it; what is left is let go when that thread ends.
    std::thread::scope(|scope| scope.spawn(|| drive(command, of, look)).join().unwrap())
}

#[allow(clippy::zombie_processes)] // `follow` waits for it, as its tracer
fn drive(command: &Command, of: fn(Pid) -> Option<Stop>, mut look: impl FnMut(u32, Stop)) -> Traced {
    let mut child = Command::new("sh")
        .args(["-c", "kill -STOP $$; exec \"$@\"", "sh"])
        .arg(command.get_program())
        .args(command.get_args())
        .envs(command.get_envs().filter_map(|(name, value)| value.map(|value| (name, value))))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let main = Pid::from_raw(i32::try_from(child.id()).unwrap());
    wait_until_stopped(main);
    let options = Options::PTRACE_O_TRACESYSGOOD
        | Options::PTRACE_O_TRACEEXIT
        | Options::PTRACE_O_TRACEEXEC
        | Options::PTRACE_O_TRACECLONE
        | Options::PTRACE_O_TRACEFORK
        | Options::PTRACE_O_TRACEVFORK;
    ptrace::seize(main, options).unwrap();
    kill(main, Signal::SIGCONT).unwrap();
    let code = follow(main, of, &mut look);
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    child.stdout.take().unwrap().read_to_end(&mut stdout).unwrap();
    child.stderr.take().unwrap().read_to_end(&mut stderr).unwrap();
    Traced { code, stdout, stderr }
}

fn wait_until_stopped(process: Pid) {
    let until = Instant::now() + PATIENCE;
    while !std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap().contains(") T ") {
        assert!(Instant::now() < until, "the shell did not stop");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Until `main` has ended; its exit code.
fn follow(main: Pid, of: fn(Pid) -> Option<Stop>, look: &mut impl FnMut(u32, Stop)) -> Option<i32> {
    let mut calls: HashMap<Pid, Option<Stop>> = HashMap::new();
    loop {
        let status = waitpid(Pid::from_raw(-1), Some(WaitPidFlag::__WALL)).unwrap();
        let Some(task) = status.pid() else { continue };
        let mut signal = None;
        match status {
            WaitStatus::Exited(ended, code) if ended == main => return Some(code),
            WaitStatus::Signaled(ended, ..) if ended == main => return None,
            WaitStatus::Exited(..) | WaitStatus::Signaled(..) => continue,
            WaitStatus::PtraceSyscall(_) => {
                // At its entry a call is noted, at its return it is looked at.
                if ptrace::syscall_info(task).is_ok_and(|info| info.op == libc::PTRACE_SYSCALL_INFO_ENTRY) {
                    calls.insert(task, of(task));
                } else if let Some(Some(stop)) = calls.remove(&task) {
                    look(id(task), stop);
                }
            }
            WaitStatus::PtraceEvent(_, _, event) if event == libc::PTRACE_EVENT_EXIT => {
                look(id(task), Stop::End);
            }
            WaitStatus::Stopped(_, Signal::SIGTRAP | Signal::SIGSTOP) => {}
            WaitStatus::Stopped(_, other) => signal = Some(other),
            _ => {}
        }
        // A task that was killed meanwhile is reported by a later wait.
        let _ = ptrace::syscall(task, signal);
    }
}

fn id(task: Pid) -> u32 {
    u32::try_from(task.as_raw()).unwrap()
}

/// Number and arguments of the call that `task` is about to make.
fn call_of(task: Pid) -> Option<(libc::c_long, Vec<String>)> {
    let line = std::fs::read_to_string(format!("/proc/{task}/syscall")).ok()?;
    let mut words = line.split_whitespace();
    let number = words.next()?.parse().ok()?;
    Some((number, words.map(str::to_owned).collect()))
}

/// What the call that `task` is about to make will be looked at for, if at all: keys.
fn keys(task: Pid) -> Option<Stop> {
    let (number, arguments) = call_of(task)?;
    match number {
        libc::SYS_add_key | libc::SYS_keyctl => Some(Stop::Key),
        libc::SYS_ioctl => {
            let request = u64::from_str_radix(arguments.get(1)?.strip_prefix("0x")?, 16).ok()?;
            (request >> 8 & 0xff == DM_IOCTL_TYPE).then_some(Stop::DmIoctl(request.to_le_bytes()[0]))
        }
        _ => None,
    }
}

/// The same for what changes files. The first three files are for words.
fn writes(task: Pid) -> Option<Stop> {
    let (number, arguments) = call_of(task)?;
    match number {
        libc::SYS_pwrite64 | libc::SYS_pwritev | libc::SYS_pwritev2 | libc::SYS_fallocate => Some(Stop::Written),
        libc::SYS_fsync | libc::SYS_fdatasync | libc::SYS_sync_file_range => Some(Stop::Written),
        libc::SYS_unlink | libc::SYS_unlinkat => Some(Stop::Written),
        libc::SYS_write => {
            let file = u64::from_str_radix(arguments.first()?.strip_prefix("0x")?, 16).ok()?;
            (file > 2).then_some(Stop::Written)
        }
        _ => None,
    }
}

/// The same for everything that changes state. Syncs change nothing that a kill could lose.
fn changes(task: Pid) -> Option<Stop> {
    let (number, arguments) = call_of(task)?;
    let argument = |at: usize| u64::from_str_radix(arguments.get(at)?.strip_prefix("0x")?, 16).ok();
    match number {
        libc::SYS_pwrite64 | libc::SYS_pwritev | libc::SYS_pwritev2 | libc::SYS_fallocate | libc::SYS_ftruncate => {
            Some(Stop::Written)
        }
        libc::SYS_unlinkat | libc::SYS_renameat | libc::SYS_renameat2 | libc::SYS_mkdirat => Some(Stop::Written),
        libc::SYS_symlinkat | libc::SYS_linkat | libc::SYS_fchmod | libc::SYS_fchmodat => Some(Stop::Written),
        libc::SYS_fchown | libc::SYS_fchownat | libc::SYS_mount | libc::SYS_umount2 => Some(Stop::Written),
        #[cfg(target_arch = "x86_64")]
        libc::SYS_unlink | libc::SYS_rename | libc::SYS_mkdir | libc::SYS_rmdir | libc::SYS_chmod | libc::SYS_chown => {
            Some(Stop::Written)
        }
        libc::SYS_openat => {
            let creates = u64::try_from(libc::O_CREAT).ok()?;
            (argument(2)? & creates != 0).then_some(Stop::Written)
        }
        libc::SYS_write => (argument(0)? > 2).then_some(Stop::Written),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_seen_to_its_end_with_all_it_says() {
        let mut stops = Vec::new();
        let mut command = Command::new("sh");
        command.args(["-c", "echo said; (exit 3); echo also >&2; exit 7"]);
        let traced = trace(&command, |_, stop| stops.push(stop));
        assert_eq!((traced.code, &traced.stdout[..], &traced.stderr[..]), (Some(7), &b"said\n"[..], &b"also\n"[..]));
        assert!(stops.contains(&Stop::End), "{stops:?}");
    }
}
