//! Promise: whoever kills `open` or `close`, at whatever moment, leaves nothing behind that the next `open` or `close` does
//! not clean up: no mapping, no loop device, no key, no semaphore, no server, no folder.
//!
//! Runs in the VM lane. The moments are spread over the whole length of the command, each at random within its slice; the
//! command dies alone, or with every process that it started, as in a container that is killed.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use promises::backend::{Backend, SMALL_HEADER_BYTES, format_small};
use promises::crypt_volume::{semaphores, starts_clean};
use promises::random::Random;
use promises::rig::{run, succeed};
use promises::{Rig, kernel_leftovers, vm};
use rustix::process::{Pid, Signal, kill_process};

const IMAGE_BYTES: u64 = SMALL_HEADER_BYTES + (4 << 20);
const NAME: &str = "killed";
/// Kills of each verb: of the whole promise, and of the short lane.
const MOMENTS: u64 = 50;
const QUICK_MOMENTS: u64 = 10;
/// A signal that comes after the end kills nobody and does not count.
const TRIES_PER_HIT: u64 = 4;
/// What the next command may answer: done; nothing of that name; it exists, as the signal came too late.
const DONE: i32 = 0;
const NO_SUCH: i32 = 4;
const EXISTS: i32 = 5;

/// Which process dies.
#[derive(Debug, Clone, Copy)]
enum Victim {
    Command,
    Everybody,
}

/// A backend, its image, and commands that are killed.
struct Killer {
    rig: Rig,
    backend: Backend,
    image: PathBuf,
    random: Random,
    hit: u64,
    /// Semaphores that the killed left.
    cookies: usize,
}

impl Killer {
    fn new(backend: Backend) -> Killer {
        let rig = Rig::new("kills");
        let image = rig.path("image");
        format_small(&rig, &image, IMAGE_BYTES, false, &[]);
        Killer { rig, backend, image, random: Random::seeded(&format!("{backend:?}")), hit: 0, cookies: 0 }
    }

    fn open(&self) -> Command {
        self.backend.open_command(&self.rig, &self.image, NAME, &[])
    }

    fn close(&self) -> Command {
        self.backend.close_command(&self.rig, NAME)
    }

    /// Starts `command` and kills it in the `round`th of `rounds` slices of `length`.
    fn kill(&mut self, mut command: Command, length: Duration, round: u64, rounds: u64) -> String {
        let slice = u64::try_from(length.as_micros()).unwrap() / rounds + 1;
        let moment = Duration::from_micros(slice * round + self.random.below(slice));
        let victim = self.random.pick(&[Victim::Command, Victim::Everybody]);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(moment);
        let mut victims = vec![i32::try_from(child.id()).unwrap()];
        if matches!(victim, Victim::Everybody) {
            victims.extend(processes_of(&self.rig.run_dir()));
        }
        for pid in victims {
            // It may be gone; the command itself is not waited for yet, so its number is still its own.
            let _ = kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL);
        }
        let status = child.wait().unwrap();
        self.hit += u64::from(status.code().is_none());
        self.cookies += semaphores();
        format!("{:?} after {moment:?}, {victim:?} killed: {status}", self.backend)
    }

    /// The next command has to cope: `open` makes a device that works, `close` leaves nothing.
    fn cope(&mut self, what: &str) {
        if self.random.flip() {
            let opened = run(&mut self.open());
            assert!(matches!(opened.status.code(), Some(DONE | EXISTS)), "{what}: open: {opened:?}");
            if opened.status.code() == Some(DONE) {
                let device = self.backend.device(&self.rig, NAME);
                assert_eq!(fs::read(&device).unwrap().len() as u64, IMAGE_BYTES - SMALL_HEADER_BYTES, "{what}");
                succeed(&mut self.close());
                return kernel_leftovers::demand_none(&self.rig, &[], what);
            }
        }
        let closed = run(&mut self.close());
        assert!(matches!(closed.status.code(), Some(DONE | NO_SUCH)), "{what}: close: {closed:?}");
        kernel_leftovers::demand_none(&self.rig, &[], what);
    }
}

/// Servers of the run directory: it is on their command line.
fn processes_of(run_dir: &Path) -> Vec<i32> {
    let wanted = run_dir.as_os_str().as_encoded_bytes();
    let mut found = Vec::new();
    for process in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let line = fs::read(process.path().join("cmdline")).unwrap_or_default();
        if line.split(|byte| *byte == 0).any(|argument| argument == wanted) {
            found.push(pid);
        }
    }
    found
}

fn timed(command: &mut Command) -> Duration {
    let begun = Instant::now();
    succeed(command);
    begun.elapsed()
}

fn kills(backend: Backend) {
    let wanted = if vm::is_full() { MOMENTS } else { QUICK_MOMENTS };
    let mut killer = Killer::new(backend);
    // The shortest of some: the first is slow, and a signal that comes too late hits nothing.
    let quiet: Vec<(Duration, Duration)> =
        (0..3).map(|_| (timed(&mut killer.open()), timed(&mut killer.close()))).collect();
    let open_length = quiet.iter().map(|lengths| lengths.0).min().unwrap();
    let close_length = quiet.iter().map(|lengths| lengths.1).min().unwrap();
    kernel_leftovers::demand_none(&killer.rig, &[], "a quiet open and close");
    let mut tries = [0; 2];
    while killer.hit < wanted {
        let what = killer.kill(killer.open(), open_length, tries[0] % wanted, wanted);
        killer.cope(&format!("open {}: {what}", tries[0]));
        tries[0] += 1;
        assert!(tries[0] < TRIES_PER_HIT * wanted, "too many signals came too late");
    }
    while killer.hit < 2 * wanted {
        succeed(&mut killer.open());
        let what = killer.kill(killer.close(), close_length, tries[1] % wanted, wanted);
        killer.cope(&format!("close {}: {what}", tries[1]));
        tries[1] += 1;
        assert!(tries[1] < TRIES_PER_HIT * wanted, "too many signals came too late");
    }
    eprintln!(
        "{backend:?}: killed {wanted} of {} opens ({open_length:?} long) and {wanted} of {} closes ({close_length:?}); \
         {} cookies were left",
        tries[0], tries[1], killer.cookies
    );
}

#[test]
fn vm_kills_of_open_and_close_through_the_kernel_leave_nothing() {
    let test = "vm_kills_of_open_and_close_through_the_kernel_leave_nothing";
    if starts_clean(test) && vm::is_round_for(test, true) {
        kills(Backend::Dm);
    }
}

#[test]
fn vm_kills_of_open_and_close_through_fuse_leave_nothing() {
    let test = "vm_kills_of_open_and_close_through_fuse_leave_nothing";
    if starts_clean(test) && vm::is_round_for(test, false) {
        kills(Backend::Fuse);
    }
}
