//! Promise: whoever kills the server of a volume, alone or with the command that waits for it, at whatever moment, leaves
//! nothing that the next `open` or `close` does not clean up, and no process that cannot end. A server has to do with its
//! own mount while it opens and closes: those are the moments.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

use std::io::{Read as _, Seek as _};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use promises::Rig;
use promises::backend::{Backend, SMALL_HEADER_BYTES, format_small};
use promises::leftovers;
use promises::random::Random;
use promises::skip::{needs_fuse, needs_root};
use rustix::process::{Pid, Signal, kill_process};

const NAME: &str = "killed";
/// Kills of each verb.
const MOMENTS: u64 = 50;
const IMAGE_BYTES: u64 = SMALL_HEADER_BYTES + (4 << 20);
/// No command takes longer, whatever was killed before it.
const DEADLINE: Duration = Duration::from_secs(60);
const DONE: i32 = 0;
/// `close`: nothing of that name is open.
const NO_SUCH: i32 = 4;
/// `open`: the name is taken, as the signal came too late.
const EXISTS: i32 = 5;

fn started(command: &mut Command) -> Child {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

fn end_of(mut child: Child, what: &str) -> ExitStatus {
    let until = Instant::now() + DEADLINE;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if Instant::now() >= until {
            let _ = child.kill();
            panic!("{what}: no end within {} s", DEADLINE.as_secs());
        }
        std::thread::sleep(Duration::from_micros(200));
    }
}

fn ends_well(command: &mut Command, allowed: &[i32], what: &str) -> i32 {
    // No pipe: a server that it starts may keep its end open.
    let mut said = tempfile::tempfile().unwrap();
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(said.try_clone().unwrap()).spawn().unwrap();
    let status = end_of(child, what);
    let mut words = String::new();
    said.rewind().and_then(|()| said.read_to_string(&mut words)).unwrap();
    assert!(status.code().is_some_and(|code| allowed.contains(&code)), "{what}, then {command:?}: {status}: {words}");
    status.code().unwrap()
}

/// Servers of the run directory: it is on their command line. Not the commands: they have it in their environment.
fn servers_of(run_dir: &Path) -> Vec<i32> {
    let wanted = run_dir.as_os_str().as_encoded_bytes();
    let pids = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = pids.filter_map(|process| process.file_name().to_str()?.parse().ok());
    pids.filter(|pid: &i32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).any(|argument| argument == wanted)
    })
    .collect()
}

/// Kills in the `round`th slice of `length`: the servers, and in every other case the command first. Says what it did, and
/// whether a server was there to be killed.
fn kill_within(rig: &Rig, command: &mut Command, length: Duration, round: u64, random: &mut Random) -> (String, bool) {
    let slice = u64::try_from(length.as_micros()).unwrap() / MOMENTS + 1;
    let moment = Duration::from_micros(slice * round + random.below(slice));
    let with_command = random.flip();
    let child = started(command);
    std::thread::sleep(moment);
    if with_command {
        // Not waited for yet: the number is still its own.
        let _ = kill_process(Pid::from_child(&child), Signal::KILL);
    }
    let servers = servers_of(&rig.run_dir());
    for &pid in &servers {
        let _ = kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL);
    }
    let what = format!("round {round}: {} servers killed after {moment:?}, command too: {with_command}", servers.len());
    let status = end_of(child, &what);
    (format!("{what}, it ended with {status}"), !servers.is_empty())
}

#[test]
fn a_server_killed_while_it_opens_or_closes_ends_and_is_cleaned_up() {
    let test = "server_kills: a_server_killed_while_it_opens_or_closes_ends_and_is_cleaned_up";
    if !(needs_root(test) && needs_fuse(test)) {
        return;
    }
    let rig = Rig::new("server-kills");
    let image = rig.path("image");
    format_small(&rig, &image, IMAGE_BYTES, false, &[]);
    let open = || Backend::Fuse.open_command(&rig, &image, NAME, &[]);
    let close = || Backend::Fuse.close_command(&rig, NAME);
    let timed = |mut command: Command| {
        let begun = Instant::now();
        ends_well(&mut command, &[DONE], "undisturbed");
        begun.elapsed()
    };
    let quiet: Vec<(Duration, Duration)> = (0..3).map(|_| (timed(open()), timed(close()))).collect();
    let open_length = quiet.iter().map(|lengths| lengths.0).min().unwrap();
    let close_length = quiet.iter().map(|lengths| lengths.1).min().unwrap();
    let mut random = Random::seeded("server kills");
    let mut hits = [0, 0];
    for round in 0..2 * MOMENTS {
        let closes = round >= MOMENTS;
        let (mut command, length) = if closes { (close(), close_length) } else { (open(), open_length) };
        if closes {
            ends_well(&mut open(), &[DONE], "before the kill");
        }
        let (what, hit) = kill_within(&rig, &mut command, length, round % MOMENTS, &mut random);
        hits[usize::from(closes)] += u64::from(hit);
        if random.flip() && ends_well(&mut open(), &[DONE, EXISTS], &what) == DONE {
            ends_well(&mut close(), &[DONE], &what);
        } else {
            ends_well(&mut close(), &[DONE, NO_SUCH], &what);
        }
        leftovers::demand_none(&rig, &what);
    }
    eprintln!("servers killed: {} of {MOMENTS} in open, {} of {MOMENTS} in close", hits[0], hits[1]);
    assert!(hits.iter().all(|hit| hit * 4 > MOMENTS), "too many signals met no server: {hits:?}");
}
