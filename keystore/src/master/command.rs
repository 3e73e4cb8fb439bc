//! [`MasterCommand`]: the master secret is what a command prints, byte for byte, a newline at the end included.
//!
//! Invariants: no shell; standard input is empty; the output goes from the pipe into locked memory; it ends after a time
//! and at 8 KiB, and then the command is killed; a command that fails gives nothing, whatever it printed.

use super::{Master, MasterSource};
use crate::Error;
use crate::limits::MASTER_BYTES_MAX;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use secret::Secret;
use std::os::fd::AsFd;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// How often a command that closed its output is asked whether it has ended.
const EXIT_LOOK: Duration = Duration::from_millis(5);

/// A program with its arguments.
#[derive(Clone, Debug)]
pub struct MasterCommand {
    program: String,
    arguments: Vec<String>,
    patience: Duration,
}

impl MasterCommand {
    /// `program` (a path, or found by `PATH`) with `arguments`; it has `patience` to print and end.
    pub fn new(program: impl Into<String>, arguments: Vec<String>, patience: Duration) -> MasterCommand {
        MasterCommand { program: program.into(), arguments, patience }
    }

    fn failed(&self, problem: impl Into<String>) -> Error {
        Error::Command { program: self.program.clone(), problem: problem.into() }
    }

    fn too_slow(&self) -> Error {
        self.failed(format!("did not end within {} s", self.patience.as_secs()))
    }

    /// Everything the command prints.
    fn output(&self, child: &mut Child, end: Instant) -> Result<Secret, Error> {
        let Some(stdout) = child.stdout.take() else { return Err(self.failed("has no output")) };
        // One byte more than allowed shows that there is too much.
        let mut secret = Secret::zeroed(MASTER_BYTES_MAX + 1)?;
        let mut filled = 0;
        while filled <= MASTER_BYTES_MAX {
            let left = end.saturating_duration_since(Instant::now());
            let timeout = Timespec::try_from(left).map_err(|_| self.too_slow())?;
            match poll(&mut [PollFd::new(&stdout, PollFlags::IN)], Some(&timeout)) {
                Ok(0) => return Err(self.too_slow()),
                Err(Errno::INTR) => continue,
                other => other.map_err(Error::io("wait for the command for the master secret"))?,
            };
            match rustix::io::read(stdout.as_fd(), &mut secret.expose_mut()[filled..]) {
                Ok(0) => return Ok(secret.truncated(filled)),
                Ok(count) => filled += count,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(Error::io("read from the command for the master secret")(errno)),
            }
        }
        Err(self.failed(format!("printed more than {MASTER_BYTES_MAX} bytes")))
    }

    fn status(&self, child: &mut Child, end: Instant) -> Result<ExitStatus, Error> {
        loop {
            if let Some(status) = child.try_wait().map_err(Error::io("wait for the command for the master secret"))? {
                return Ok(status);
            }
            if Instant::now() >= end {
                return Err(self.too_slow());
            }
            std::thread::sleep(EXIT_LOOK);
        }
    }
}

impl MasterSource for MasterCommand {
    fn describe(&self) -> String {
        format!("the output of {}", self.program)
    }

    fn fetch(&mut self) -> Result<Master, Error> {
        let mut command = Command::new(&self.program);
        let spawned = command.args(&self.arguments).stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
        let mut child = spawned.map_err(|error| self.failed(format!("cannot be started: {error}")))?;
        let end = Instant::now() + self.patience;
        let output = self.output(&mut child, end);
        let ended = output.and_then(|output| Ok((output, self.status(&mut child, end)?)));
        if ended.is_err() {
            // It may have ended by itself by now; what is wrong is known already.
            let _ = child.kill();
            let _ = child.wait();
        }
        let (output, status) = ended?;
        if !status.success() {
            return Err(self.failed(format!("failed: {status}")));
        }
        Master::new(output, &self.describe())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, patience_ms: u64) -> Result<Master, Error> {
        let arguments = vec!["-c".to_owned(), script.to_owned()];
        MasterCommand::new("/bin/sh", arguments, Duration::from_millis(patience_ms)).fetch()
    }

    #[test]
    fn the_output_is_the_secret_to_the_last_newline() {
        let master = shell("printf '%040d' 0; echo", 60_000).unwrap();
        assert!(master.secret().ct_eq(format!("{}\n", "0".repeat(40)).as_bytes()));
    }

    #[test]
    fn failing_slow_short_endless_and_missing_commands_are_refused() {
        let text = |result: Result<Master, Error>| result.map(drop).unwrap_err().to_string();
        assert!(text(shell("printf '%040d' 0; exit 3", 60_000)).contains("exit status: 3"));
        assert!(text(shell("exec sleep 60", 50)).contains("did not end"));
        assert!(text(shell("printf '%040d' 0; exec >&-; exec sleep 60", 200)).contains("did not end"));
        assert!(text(shell("exec cat /dev/zero", 60_000)).contains("more than 8192"));
        assert!(matches!(shell("echo short", 60_000), Err(Error::MasterSize { got_bytes: 6, .. })));
        let mut missing = MasterCommand::new("/nonexistent", Vec::new(), Duration::from_secs(1));
        assert!(text(missing.fetch()).contains("cannot be started"));
    }
}
