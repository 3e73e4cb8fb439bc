//! `kill -9` of the real `luksctl key rotate` after each of its calls that change a file: whatever is left, the store and the
//! newest backup of keys have a key that opens the volume, the next rotation finishes, and at the end the old key opens
//! nothing. cryptsetup says what opens. A run takes as many of the calls at random as there is time for; with
//! `LUKS_KILL_ALL=1` it takes every one.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

use std::fs;
use std::path::Path;
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use promises::managed_set::{ManagedSet, cryptsetup_opens};
use promises::random::Random;
use promises::rig::succeed;
use promises::skip::{needs_programs, needs_root};
use promises::tracer::{Stop, trace_changes};
use secret::Secret;

/// Kills of one run.
const KILLS: usize = 20;

/// What is put back before each kill.
fn copy(from: &Path, to: &Path) {
    let _ = fs::remove_dir_all(to);
    succeed(Command::new("cp").arg("-a").arg(from).arg(to));
}

/// Rotates `data` and kills that after `nth` calls that change something. How many there were.
fn killed_after(set: &ManagedSet, nth: u32) -> u32 {
    let mut seen = 0;
    let ended = trace_changes(&set.luksctl(&["key", "rotate", "data"]), |process, stop| {
        seen += u32::from(stop == Stop::Written);
        if seen == nth && stop == Stop::Written {
            kill(Pid::from_raw(i32::try_from(process).unwrap()), Signal::SIGKILL).unwrap();
        }
    });
    let expected = if seen < nth { Some(0) } else { None };
    assert_eq!(ended.code, expected, "call {nth}: {}", String::from_utf8_lossy(&ended.stderr));
    seen
}

/// Whether one of the keys in the newest backup of keys opens the volume.
fn backup_opens(set: &ManagedSet) -> bool {
    let keys = set.backed_up();
    keys.iter().any(|(file, key)| file.starts_with("data.key") && set.opens("data", key))
}

/// One test: a tracer waits for every child of its process.
#[test]
fn a_rotation_that_is_killed_leaves_a_volume_that_opens_and_is_finished_by_the_next() {
    let test = "rotation_kill: a_rotation_that_is_killed_leaves_a_volume_that_opens_and_is_finished_by_the_next";
    if !(needs_root(test) && needs_programs(test, &["cryptsetup", "gpg", "gpgconf", "tar"])) {
        return;
    }
    let set = ManagedSet::new("rotation-kill", &["data"], "");
    let first: Secret = set.key("data");
    assert!(set.opens("data", &first) && backup_opens(&set));
    let start = set.rig().path("start");
    copy(&set.rig().path("set"), &start);

    let calls = killed_after(&set, u32::MAX);
    assert!(calls > 40, "{calls} calls");
    let whole = set.key("data");
    assert!(set.opens("data", &whole) && !set.opens("data", &first) && set.slots("data") == 1);
    let mut random = Random::seeded("rotation_kill");
    let mut left: Vec<u32> = (1..=calls).collect();
    while left.len() > KILLS && std::env::var_os("LUKS_KILL_ALL").is_none() {
        let at = random.below(left.len() as u64);
        left.remove(usize::try_from(at).unwrap());
    }
    for nth in left.iter().copied() {
        copy(&start, &set.rig().path("set"));
        killed_after(&set, nth);
        let cut = format!("killed after call {nth} of {calls}");
        let left = set.key("data");
        assert!(set.opens("data", &left), "{cut}: the store does not open the volume");
        assert!(backup_opens(&set), "{cut}: the backup of keys does not open the volume");
        // Either a rotation, or what only ends the one that was cut off.
        let settles = nth % 2 == 0 && nth != calls;
        let next = if settles { vec!["key", "rotate-all", "--due"] } else { vec!["key", "rotate", "data"] };
        succeed(&mut set.luksctl(&next));
        let last = set.key("data");
        assert!(set.opens("data", &last), "{cut}: the next run lost the volume");
        assert_eq!(set.slots("data"), 1, "{cut}");
        let is_new = !last.ct_eq(first.expose());
        assert!(is_new || settles, "{cut}: the next rotation rotated nothing");
        assert_eq!(set.opens("data", &first), !is_new, "{cut}: the old key");
        let verified = set.luksctl(&["key", "verify"]).output().unwrap();
        let words = String::from_utf8_lossy(&verified.stdout);
        assert_eq!(verified.status.code(), Some(0), "{cut}: {words}");
    }
    let folder = set.unpacked_without_us();
    assert!(cryptsetup_opens(&set.image("data"), &folder.join("data.key")), "gpg, tar and cryptsetup alone");
    eprintln!("killed after {} of {calls} calls", left.len());
}
