//! A signal that comes while a passphrase is asked for takes effect only after the terminal has its echo back.
//!
//! Without the test harness (`harness = false`): the process that is asked must have one thread only, as `luksctl` has
//! when it asks. The parent plays the person at the terminal; the child, this same program, is asked and killed.

#![allow(clippy::unwrap_used, clippy::print_stdout)] // A test, which clippy cannot see without the harness.

use nix::pty::openpty;
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{LocalFlags, tcgetattr};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitCode, Stdio};

const TERMINAL: &str = "SECRET_TEST_TERMINAL";
const QUESTION: &str = "child asks: ";

fn main() -> ExitCode {
    if let Some(path) = std::env::var_os(TERMINAL) {
        return asked(path.into());
    }
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT] {
        ends_after_the_echo_is_back(signal);
    }
    stops_with_echo_and_asks_again();
    println!("prompt_signals: 5 signals passed");
    ExitCode::SUCCESS
}

/// The child: returns only if it was answered.
fn asked(path: std::path::PathBuf) -> ExitCode {
    // No core dump for SIGQUIT.
    nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_CORE, 0, 0).unwrap();
    let answer = secret::Prompt::on(path).ask(QUESTION);
    if answer.is_ok_and(|answer| answer.ct_eq(b"right")) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

struct Scene {
    master: std::fs::File,
    slave: OwnedFd,
    child: Child,
}

impl Scene {
    fn begins() -> Scene {
        let pty = openpty(None, None).unwrap();
        let path = std::fs::read_link(format!("/proc/self/fd/{}", pty.slave.as_raw_fd())).unwrap();
        // `env`: a runner started in the background of a script ignores SIGINT and SIGQUIT, and so would the child.
        let mut child = Command::new("env");
        child.arg("--default-signal").arg(std::env::current_exe().unwrap()).env(TERMINAL, path).stdin(Stdio::null());
        // A group of its own, with its parent outside: the kernel lets no stop signal take effect in an orphaned group,
        // and a test runner without a terminal may well be in one.
        let child = child.process_group(0).spawn().unwrap();
        Scene { master: pty.master.into(), slave: pty.slave, child }
    }

    fn waits_for_the_question(&mut self) {
        let mut seen = Vec::new();
        let mut byte = [0];
        while !String::from_utf8_lossy(&seen).contains(QUESTION) {
            self.master.read_exact(&mut byte).unwrap();
            seen.push(byte[0]);
        }
        assert!(!self.has_echo(), "the question is asked without echo");
    }

    fn has_echo(&self) -> bool {
        tcgetattr(&self.slave).unwrap().local_flags.contains(LocalFlags::ECHO)
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).unwrap())
    }
}

fn ends_after_the_echo_is_back(signal: Signal) {
    let mut scene = Scene::begins();
    scene.waits_for_the_question();
    kill(scene.pid(), signal).unwrap();
    let status = scene.child.wait().unwrap();
    assert_eq!(status.signal(), Some(signal as i32), "{status:?}");
    assert!(scene.has_echo(), "{signal} left the terminal without echo");
}

fn stops_with_echo_and_asks_again() {
    let mut scene = Scene::begins();
    scene.waits_for_the_question();
    kill(scene.pid(), Signal::SIGTSTP).unwrap();
    let stopped = waitpid(scene.pid(), Some(WaitPidFlag::WUNTRACED)).unwrap();
    assert_eq!(stopped, WaitStatus::Stopped(scene.pid(), Signal::SIGTSTP));
    assert!(scene.has_echo(), "a stopped program leaves a usable terminal");
    kill(scene.pid(), Signal::SIGCONT).unwrap();
    scene.waits_for_the_question();
    scene.master.write_all(b"right\n").unwrap();
    assert!(scene.child.wait().unwrap().success());
    assert!(scene.has_echo());
}
