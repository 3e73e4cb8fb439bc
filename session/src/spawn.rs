//! Starting a server: a fresh exec, never a fork, with nothing of the caller's but its PATH and its choice of
//! an AES kernel.
//!
//! Where systemd is the system's manager and the caller is root, the server is a transient unit (see `systemd`). An ordinary
//! user's server is a process in a session of its own in any case: the user's manager is stopped at the last logout and
//! would take it along, while logind leaves processes of a closed session alone by default.

use std::ffi::OsString;
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use crate::protocol::UnlockOrder;
use crate::run_dir::{Entry, RunDir};
use crate::serve::SERVE_VERB;
use crate::{SessionError, cpu, opener, systemd};

/// Where Debian keeps what an ordinary user's PATH lacks.
const SYSTEM_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// How to start the server process: a program that calls [`crate::serve`].
#[derive(Clone, Debug)]
pub struct ServerCommand {
    program: PathBuf,
    arguments: Vec<OsString>,
}

impl ServerCommand {
    /// This very program, with [`SERVE_VERB`]. The file may have been replaced or deleted since it started: the running
    /// one is executed.
    #[must_use]
    pub fn this_program() -> ServerCommand {
        ServerCommand { program: PathBuf::from("/proc/self/exe"), arguments: vec![SERVE_VERB.into()] }
    }

    /// Another program; `arguments` come before the two that [`crate::serve`] gets.
    #[must_use]
    pub fn program(program: impl Into<PathBuf>, arguments: Vec<OsString>) -> ServerCommand {
        ServerCommand { program: program.into(), arguments }
    }
}

/// A server on its way. Its process is not waited for unless it fails.
pub(crate) struct Spawned {
    child: Option<Child>,
}

impl Spawned {
    /// Whether it is known to have ended.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| !matches!(child.try_wait(), Ok(None)))
    }

    /// Collects the exit status whenever it comes, so that a caller that lives longer than its volume keeps no zombie.
    pub(crate) fn let_go(self) {
        if let Some(mut child) = self.child {
            // Without the thread there is a zombie until the caller ends; nothing else.
            let _ = std::thread::Builder::new().name("server-exit".to_owned()).spawn(move || child.wait());
        }
    }
}

/// The directories that programs are looked for in: the caller's and the system's. Root takes the system's first, so that
/// a PATH that came through sudo does not choose what runs as root; a relative directory is nobody's.
#[must_use]
pub fn search_path() -> OsString {
    path_of(std::env::var_os("PATH").unwrap_or_default(), rustix::process::geteuid().is_root())
}

fn path_of(callers: OsString, is_root: bool) -> OsString {
    let callers: Vec<PathBuf> = std::env::split_paths(&callers).filter(|folder| folder.is_absolute()).collect();
    let system = std::env::split_paths(SYSTEM_PATH);
    let all: Vec<PathBuf> =
        if is_root { system.chain(callers).collect() } else { callers.into_iter().chain(system).collect() };
    // What was split at colons holds none.
    std::env::join_paths(all).unwrap_or_else(|_| SYSTEM_PATH.into())
}

/// Starts the server of `entry`.
pub(crate) fn spawn(
    run: &RunDir,
    entry: &Entry,
    order: &UnlockOrder,
    server: &ServerCommand,
) -> Result<Spawned, SessionError> {
    let mut arguments = server.arguments.clone();
    arguments.push(run.path().into());
    arguments.push(entry.name.as_str().into());
    if systemd::manages_this_process() {
        let program = std::fs::canonicalize(&server.program).map_err(SessionError::io("find", &server.program))?;
        match systemd::start_unit(entry, &systemd::confinement(order), &program, &arguments) {
            Ok(()) => return Ok(Spawned { child: None }),
            Err(error) => log::warn!("no transient unit ({error}): the server becomes an ordinary process"),
        }
    }
    let log_path = entry.log();
    let log = std::fs::OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(&log_path)
        .map_err(SessionError::io("open", &log_path))?;
    let child = Command::new(&server.program)
        .arg0("luksctl")
        .args(&arguments)
        .env_clear()
        .env("PATH", search_path())
        .env(opener::VARIABLE, opener::own_id())
        .envs(cpu::for_server())
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        // Ctrl-C in the caller's terminal is for the caller. The server takes a session of its own when it runs.
        .process_group(0)
        .spawn()
        .map_err(SessionError::io("start", &server.program))?;
    Ok(Spawned { child: Some(child) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_looks_in_the_system_first_and_nobody_in_a_relative_folder() {
        let callers = || OsString::from(":/opt/bin:.:relative:");
        assert_eq!(path_of(callers(), true), *format!("{SYSTEM_PATH}:/opt/bin"));
        assert_eq!(path_of(callers(), false), *format!("/opt/bin:{SYSTEM_PATH}"));
        assert_eq!(path_of(OsString::new(), false), *SYSTEM_PATH);
    }
}
