//! The server killed under write load: status tells, close cleans, reopening works and the file system's journal replays.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr)]

use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use promises::Rig;
use promises::rig::succeed;
use promises::skip::{needs_fuse, needs_programs, needs_root};

/// Kills, each in another phase of the load.
const ROUNDS: u64 = 5;

/// Writes files and syncs each, until the device fails; returns the numbers of those whose fsync had returned.
fn write_until_it_fails(mount: &Path, round: u64, stop: &AtomicBool) -> Vec<u64> {
    let mut synced = Vec::new();
    for number in 0..100_000 {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let path = mount.join(format!("round-{round}-file-{number}"));
        let written = std::fs::File::create(&path)
            .and_then(|mut file| file.write_all(&content(round, number)).and_then(|()| file.sync_all()))
            .and_then(|()| std::fs::File::open(mount)?.sync_all());
        match written {
            Ok(()) => synced.push(number),
            Err(_) => break,
        }
    }
    synced
}

fn content(round: u64, number: u64) -> Vec<u8> {
    let length = 1000 + usize::try_from(number * 7919 % 60_000).unwrap();
    (0..length as u64).map(|at| (at.wrapping_mul(31) ^ number ^ round << 3).to_le_bytes()[0]).collect()
}

fn kill_server(rig: &Rig, name: &str) {
    let output = succeed(&mut rig.luksctl(&["status", "--json", name]));
    let status: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let pid = i32::try_from(status["pid"].as_i64().unwrap()).unwrap();
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    let gone = format!("/proc/{}", pid.as_raw_nonzero());
    for _ in 0..200 {
        // A zombie has no memory and no files: what its parent does is not our matter.
        match std::fs::read_to_string(format!("{gone}/stat")) {
            Ok(stat) if !stat.contains(") Z ") => std::thread::sleep(Duration::from_millis(20)),
            _ => return,
        }
    }
    assert!(!Path::new(&gone).exists(), "the server survived SIGKILL");
}

#[test]
fn a_server_killed_under_load_loses_nothing_that_was_synced() {
    let test = "kill: a_server_killed_under_load_loses_nothing_that_was_synced";
    if !(needs_root(test) && needs_fuse(test) && needs_programs(test, &["mkfs.ext4", "e2fsck", "mount", "umount"])) {
        return;
    }
    let rig = Rig::new("kill");
    let (image, mount) = (rig.path("image"), rig.path("mnt"));
    std::fs::create_dir(&mount).unwrap();
    rig.format_cheap(&image, "256M", &[]);
    let device = rig.open(&image, "killed");
    succeed(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&device));
    rig.close("killed");
    let mut ledger: Vec<(u64, u64)> = Vec::new();
    for round in 0..ROUNDS {
        let device = rig.open(&image, "killed");
        succeed(Command::new("mount").arg(&device).arg(&mount));
        let stop = AtomicBool::new(false);
        let synced = std::thread::scope(|scope| {
            let writer = scope.spawn(|| write_until_it_fails(&mount, round, &stop));
            std::thread::sleep(Duration::from_millis(300 + 217 * round));
            kill_server(&rig, "killed");
            std::thread::sleep(Duration::from_millis(200));
            stop.store(true, Ordering::Relaxed);
            writer.join().unwrap()
        });
        assert!(!synced.is_empty(), "round {round}: nothing was synced before the kill");
        ledger.extend(synced.into_iter().map(|number| (round, number)));

        let status = rig.luksctl(&["status", "killed"]).output().unwrap();
        assert_eq!(status.status.code(), Some(10), "a dead server is something to report: {status:?}");
        let busy = rig.luksctl(&["close", "killed"]).output().unwrap();
        eprintln!("close with the file system still mounted: {busy:?}");
        let unmounted = Command::new("umount").arg(&mount).output().unwrap();
        if !unmounted.status.success() {
            succeed(Command::new("umount").arg("-l").arg(&mount));
        }
        let closed = rig.luksctl(&["close", "killed"]).output().unwrap();
        assert!(matches!(closed.status.code(), Some(0 | 4)), "{closed:?}");
        assert!(!rig.run_dir().join("killed").exists(), "close left the run directory");
        assert!(!std::fs::read_to_string("/proc/self/mountinfo").unwrap().contains(rig.run_dir().to_str().unwrap()));
    }
    check_ledger(&rig, &image, &mount, &ledger);
}

/// Reopens, lets the journal replay, compares every file whose fsync had returned, and has fsck agree.
fn check_ledger(rig: &Rig, image: &Path, mount: &Path, ledger: &[(u64, u64)]) {
    let device = rig.open(image, "killed");
    succeed(Command::new("mount").arg(&device).arg(mount));
    for &(round, number) in ledger {
        let path = mount.join(format!("round-{round}-file-{number}"));
        let found = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert!(found == content(round, number), "{} differs", path.display());
    }
    succeed(Command::new("umount").arg(mount));
    succeed(Command::new("e2fsck").arg("-fn").arg(&device));
    rig.close("killed");
    eprintln!("{} synced files, {ROUNDS} kills, all there", ledger.len());
}

#[test]
fn a_name_and_an_image_in_use_are_refused() {
    let test = "kill: a_name_and_an_image_in_use_are_refused";
    if !(needs_root(test) && needs_fuse(test)) {
        return;
    }
    let rig = Rig::new("kill");
    let (image, other) = (rig.path("image"), rig.path("other"));
    rig.format_cheap(&image, "20M", &[]);
    rig.format_cheap(&other, "20M", &[]);
    std::fs::hard_link(&image, rig.path("link")).unwrap();
    let _device = rig.open(&image, "taken");
    for (path, name) in [(&other, "taken"), (&image, "second"), (&rig.path("link"), "third")] {
        let refused = rig
            .luksctl(&["open", "--backend", "fuse", "--key-file"])
            .arg(rig.key())
            .arg(path)
            .arg(name)
            .output()
            .unwrap();
        assert_eq!(refused.status.code(), Some(5), "{}: {refused:?}", path.display());
    }
    let format = rig.luksctl(&["format", "-q", "--key-file"]).arg(rig.key()).arg(&image).output().unwrap();
    assert_eq!(format.status.code(), Some(5), "formatting an open image: {format:?}");
    rig.close("taken");
    // Killed while idle, then opened again without a close in between: the leftover is cleaned or named, never in the way.
    let _device = rig.open(&image, "idle");
    kill_server(&rig, "idle");
    let _device = rig.open(&image, "idle");
    rig.close("idle");
}
