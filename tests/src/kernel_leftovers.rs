//! What the kernel may still hold of a volume: mappings, their nodes, loop devices, ublk devices, keys, udev's semaphores; together with
//! what [`crate::leftovers`] finds below the run directory.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::time::{Duration, Instant};

use crate::crypt_volume::{mapper_nodes, run, semaphores, volume_keys};
use crate::{Rig, leftovers};

/// What is just ending is waited for.
const PATIENCE: Duration = Duration::from_secs(60);

/// Everything left, in words. `theirs` names what the test itself keeps: mappings and files below loop devices.
#[must_use]
pub fn found(rig: &Rig, theirs: &[&str]) -> Vec<String> {
    let mut left = leftovers::found(rig);
    let listed = run("dmsetup", &["ls"]);
    let names = listed.lines().filter(|line| line.contains('(')).filter_map(|line| line.split_whitespace().next());
    left.extend(names.filter(|name| !theirs.contains(name)).map(|name| format!("the mapping {name}")));
    left.extend(
        mapper_nodes().iter().filter(|name| !theirs.contains(&name.as_str())).map(|name| format!("the node {name}")),
    );
    for (device, backing) in leftovers::loop_devices() {
        let name = backing.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if !theirs.contains(&name.as_str()) {
            left.push(format!("{} on {}", device.display(), backing.display()));
        }
    }
    left.extend(ublk_devices().into_iter().map(|name| format!("the device {name}")));
    left.extend(volume_keys().into_iter().map(|key| format!("the key {key}")));
    if semaphores() > 0 {
        left.push(format!("{} semaphores", semaphores()));
    }
    left
}

/// The devices of the ublk driver, whoever made them, with or without a server.
#[must_use]
pub fn ublk_devices() -> Vec<String> {
    let listed = std::fs::read_dir("/sys/class/ublk-char").into_iter().flatten().flatten();
    listed.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// Demands that nothing is left.
///
/// # Panics
/// If something stays.
pub fn demand_none(rig: &Rig, theirs: &[&str], after: &str) {
    let until = Instant::now() + PATIENCE;
    loop {
        let left = found(rig, theirs);
        if left.is_empty() {
            return;
        }
        assert!(Instant::now() < until, "after {after}: {}", left.join(", "));
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Whether a loop device stands on `file`.
#[must_use]
pub fn has_loop(file: &Path) -> bool {
    leftovers::loop_devices().iter().any(|(_, backing)| backing == file)
}
