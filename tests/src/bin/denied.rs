//! `denied PROGRAM ARGUMENT…`: runs the program as many containers would: the kernel answers EPERM to io_uring, and no more than
//! 8 MiB of memory may be locked, by root either.
//!
//! It is the runner of `tests/denied`. The filter is inherited by every child; root sets it without "no new privileges", so
//! that set-uid programs (fusermount3) go on working below it.
//!
//! Source: seccomp(2), capabilities(7) "Transformation of capabilities during execve()": root regains on every exec what the
//! bounding set has.
#![allow(clippy::print_stderr)]

use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};

use rustix::process::{Resource, Rlimit, setrlimit};
use rustix::thread::{CapabilitySet, remove_capability_from_bounding_set};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};

const LOCKABLE_BYTES: u64 = 8 << 20;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let Some(program) = arguments.next() else {
        eprintln!("usage: denied PROGRAM [ARGUMENT…]");
        return ExitCode::FAILURE;
    };
    let error = match deny() {
        Err(error) => error,
        // Returns only if it fails.
        Ok(()) => Command::new(&program).args(arguments).exec(),
    };
    eprintln!("denied: {}: {error}", program.display());
    ExitCode::FAILURE
}

fn deny() -> io::Result<()> {
    let limit = Rlimit { current: Some(LOCKABLE_BYTES), maximum: Some(LOCKABLE_BYTES) };
    setrlimit(Resource::Memlock, limit)?;
    let is_root = rustix::process::geteuid().is_root();
    if is_root {
        // Both put their holder above the limit.
        for capability in [CapabilitySet::IPC_LOCK, CapabilitySet::SYS_RESOURCE] {
            remove_capability_from_bounding_set(capability)?;
        }
    } else {
        rustix::thread::set_no_new_privs(true)?;
    }
    let calls = [libc::SYS_io_uring_setup, libc::SYS_io_uring_enter, libc::SYS_io_uring_register];
    let denied = calls.map(|call| (call, Vec::new())).into_iter().collect();
    let answer = SeccompAction::Errno(libc::EPERM.cast_unsigned());
    let arch = std::env::consts::ARCH.try_into().map_err(io::Error::other)?;
    let filter = SeccompFilter::new(denied, SeccompAction::Allow, answer, arch).map_err(io::Error::other)?;
    install(&BpfProgram::try_from(filter).map_err(io::Error::other)?)
}

/// seccompiler's own `apply_filter` always sets "no new privileges".
fn install(program: &BpfProgram) -> io::Result<()> {
    let len = u16::try_from(program.len()).map_err(io::Error::other)?;
    let code = libc::sock_fprog { len, filter: program.as_ptr().cast::<libc::sock_filter>().cast_mut() };
    // SAFETY: seccompiler's `sock_filter` is the kernel's, as libc's is; the kernel only reads `len` of them from `code`, which
    // lives to the end of the call, and keeps a copy.
    let result = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const code) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
