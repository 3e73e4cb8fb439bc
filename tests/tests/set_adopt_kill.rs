//! `kill -9` of `luksctl volume adopt` after calls that change state: the next run completes it, the images open with the keys that
//! they had, and the data is there.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use promises::managed::{demand_data, guides_set, raw_key};
use promises::random::Random;
use promises::rig::succeed;
use promises::skip::{needs_fuse, needs_programs, needs_root};
use promises::tracer::{Stop, trace_changes};

/// Kills in the short run; all of them with this in the environment.
const KILLS: usize = 7;
const WHOLE: &str = "LUKS_SET_KILLS_WHOLE";

fn possible(test: &str) -> bool {
    needs_root(test) && needs_fuse(test) && needs_programs(test, &["cryptsetup", "mkfs.ext4"])
}

/// One test: a tracer waits for every child of its process.
#[test]
fn an_adoption_that_is_killed_is_completed_by_the_next() {
    let test = "set_adopt: an_adoption_that_is_killed_is_completed_by_the_next";
    if !possible(test) {
        return;
    }
    let set = guides_set("set-adopt-kill");
    let start = set.content();
    let restart = || {
        for folder in ["encrypted", "keys", "audit"] {
            let _ = fs::remove_dir_all(set.rig.path(folder));
        }
        let _ = fs::remove_file(set.rig.path("audit.seed"));
        for folder in ["encrypted", "keys"] {
            fs::create_dir(set.rig.path(folder)).unwrap();
            fs::set_permissions(set.rig.path(folder), fs::Permissions::from_mode(0o700)).unwrap();
        }
        for (path, content) in &start {
            fs::write(path, content).unwrap();
            fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
        }
    };
    let killed_after = |nth: u32| {
        restart();
        let mut seen = 0;
        let ended = trace_changes(&set.volume(&["adopt", "--yes", "--wipe-raw-keys"]), |process, stop| {
            seen += u32::from(stop == Stop::Written);
            if stop == Stop::Written && seen == nth {
                kill(Pid::from_raw(i32::try_from(process).unwrap()), Signal::SIGKILL).unwrap();
            }
        });
        assert!(nth <= seen || ended.code == Some(0), "{}", String::from_utf8_lossy(&ended.stderr));
        seen
    };
    let raw = ["data", "logs"].map(|volume| raw_key(&set, volume));
    let calls = killed_after(u32::MAX);
    let mut random = Random::seeded("set_adopt");
    let mut left: Vec<u32> = (1..=calls).collect();
    while left.len() > KILLS && std::env::var_os(WHOLE).is_none() {
        let at = random.below(left.len() as u64);
        left.remove(usize::try_from(at).unwrap());
    }
    for nth in &left {
        killed_after(*nth);
        succeed(&mut set.volume(&["adopt", "--yes", "--wipe-raw-keys"]));
        for (at, volume) in ["data", "logs"].into_iter().enumerate() {
            assert!(set.cryptsetup_opens(volume, &raw[at]), "call {nth}");
            let file = fs::read(set.rig.path(&format!("keys/{volume}.key"))).unwrap_or_default();
            assert!(file != raw[at], "call {nth}: the raw key of {volume} is still there");
        }
        assert_eq!(set.json(&["adopt", "--yes"])["changed"], false, "call {nth}");
    }
    demand_data(&set);
    eprintln!("killed after calls {left:?} of {calls}");
}
