//! What a command may leave behind after it was broken off: mounts, loop devices, servers, entries of the run directory,
//! unfinished files. A finished or refused command leaves none of them.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::Rig;
use crate::rig::mount_points;

/// A server that lost its client needs a moment to end.
const PATIENCE: Duration = Duration::from_secs(60);

/// Everything left below the rig's folder, in words; empty if there is nothing.
#[must_use]
pub fn found(rig: &Rig) -> Vec<String> {
    let (folder, run) = (rig.path(""), rig.run_dir());
    let mut left = Vec::new();
    for point in mount_points().into_iter().filter(|point| point.starts_with(&run)) {
        left.push(format!("a mount on {}", point.display()));
    }
    for (device, backing) in loop_devices() {
        if backing.starts_with(&run) {
            left.push(format!("{} on {}", device.display(), backing.display()));
        }
    }
    for entry in std::fs::read_dir(&run).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            left.push(format!("{} in the run directory", entry.file_name().display()));
        }
    }
    for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
        if entry.path().extension().is_some_and(|extension| extension == "part") {
            left.push(format!("the unfinished file {}", entry.file_name().display()));
        }
    }
    left.extend(servers(&run).into_iter().map(|pid| format!("the server {pid}")));
    left
}

/// Demands that nothing is left; what is just ending is waited for.
///
/// # Panics
/// If something stays.
pub fn demand_none(rig: &Rig, after: &str) {
    let until = Instant::now() + PATIENCE;
    loop {
        let left = found(rig);
        if left.is_empty() {
            return;
        }
        assert!(Instant::now() < until, "after {after}: {}", left.join(", "));
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Loop devices and the files below them.
#[must_use]
pub fn loop_devices() -> Vec<(PathBuf, PathBuf)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/sys/block").into_iter().flatten().flatten() {
        if let Ok(backing) = std::fs::read_to_string(entry.path().join("loop/backing_file")) {
            found.push((Path::new("/dev").join(entry.file_name()), PathBuf::from(backing.trim_end_matches('\n'))));
        }
    }
    found
}

/// Processes that have the run directory on their command line: every server has.
fn servers(run: &Path) -> Vec<i32> {
    let run = run.as_os_str().as_encoded_bytes();
    let mut pids = Vec::new();
    for process in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let line = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
        if line.split(|byte| *byte == 0).any(|argument| argument == run) {
            pids.push(pid);
        }
    }
    pids
}
