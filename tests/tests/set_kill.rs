//! `kill -9` of `luksctl volume setup` after calls that change state, of whichever of its processes made the call: the next run
//! completes it, with a recovery key that was shown and opens the backup, and leaves nothing behind.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr)]

use std::fs;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use promises::managed::{Managed, recovery_key};
use promises::random::Random;
use promises::rig::succeed;
use promises::skip::{needs_fuse, needs_programs, needs_root};
use promises::tracer::{Stop, trace_changes};

/// Kills in the short run; all of them with this in the environment.
const KILLS: usize = 7;
const WHOLE: &str = "LUKS_SET_KILLS_WHOLE";

/// Kills the setup of a new set after its `nth` change. How many there were, and what it printed.
fn killed_after(set: &Managed, nth: u32) -> (u32, Vec<u8>) {
    let mut seen = 0;
    let ended = trace_changes(&set.volume(&["setup", "--yes"]), |process, stop| {
        seen += u32::from(stop == Stop::Written);
        if stop == Stop::Written && seen == nth {
            kill(Pid::from_raw(i32::try_from(process).unwrap()), Signal::SIGKILL).unwrap();
        }
    });
    let words = String::from_utf8_lossy(&ended.stderr);
    assert!(nth <= seen || ended.code == Some(0), "undisturbed: {words}");
    (seen, ended.stdout)
}

/// The set is whole: up, healthy, nothing left over, and the last recovery key that was shown opens the newest backup.
fn demand_whole(set: &Managed, shown: &[Vec<u8>], nth: u32) {
    let status = &set.json(&["status"])[0];
    assert_eq!((&status["state"], &status["health"]), (&"up".into(), &"green".into()), "call {nth}: {status}");
    fs::write(set.mount("data").join("file"), "x").unwrap();
    for folder in ["encrypted", "encrypted/key-backup", "keys"] {
        for entry in fs::read_dir(set.rig.path(folder)).unwrap().flatten() {
            let name = entry.file_name().into_string().unwrap();
            let is_left_over = [".setup", ".part", ".new", ".next"].iter().any(|end| name.ends_with(end));
            assert!(!is_left_over, "call {nth}: {folder}/{name} is left over");
        }
    }
    let recovery = shown.iter().rev().find_map(|stdout| recovery_key(stdout)).expect("a recovery key was shown");
    let keys = set.backed_up_keys(&recovery);
    let key = keys.iter().find(|(name, _)| name == "data.key").expect("the key is in the backup");
    assert!(set.cryptsetup_opens("data", key.1.expose()), "call {nth}");
    assert_eq!(set.json(&["setup", "--yes"])["changed"], false, "call {nth}");
}

#[test]
fn a_setup_that_is_killed_is_completed_by_the_next() {
    let test = "set_kill: a_setup_that_is_killed_is_completed_by_the_next";
    if !(needs_root(test) && needs_fuse(test) && needs_programs(test, &["cryptsetup", "mkfs.ext4"])) {
        return;
    }
    let set = Managed::new("set-kill", &[("data", "20M")]);
    let (calls, shown) = killed_after(&set, u32::MAX);
    demand_whole(&set, &[shown], 0);
    set.clear();
    let mut random = Random::seeded("set_kill");
    let mut left: Vec<u32> = (1..=calls).collect();
    while left.len() > KILLS && std::env::var_os(WHOLE).is_none() {
        let at = random.below(left.len() as u64);
        left.remove(usize::try_from(at).unwrap());
    }
    for nth in &left {
        let (_, first) = killed_after(&set, *nth);
        let second = succeed(&mut set.volume(&["setup", "--yes"])).stdout;
        demand_whole(&set, &[first, second], *nth);
        set.clear();
    }
    eprintln!("killed after calls {left:?} of {calls}");
}
