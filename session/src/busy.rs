//! Who uses an exported disk: mounts, other loop devices, processes that have it open.
//!
//! Names are for people. What really refuses is the kernel: an exclusive open of the loop device, an unmount that is not
//! lazy. Without these names the refusal would only say "busy".

use std::path::{Path, PathBuf};

use crate::{mount_table, processes};

/// Users that are named.
const NAMED_MAX: usize = 4;

/// What uses the block device `device`, in words; empty if nothing that can be seen.
pub(crate) fn users(device: &Path) -> Vec<String> {
    let mut users = mounted(device);
    for holder in holders(device) {
        users.push(format!("{holder} is stacked on it"));
    }
    users.extend(users_of_file(device, None));
    users.truncate(NAMED_MAX);
    users
}

/// What has `file` open, besides the loop device `ours`. The file itself is never looked at: it may lie below a FUSE mount
/// of this very process, which would wait for itself.
pub(crate) fn users_of_file(file: &Path, ours: Option<&Path>) -> Vec<String> {
    let mut users = Vec::new();
    for other in loops_on(file) {
        if Some(other.as_path()) == ours {
            continue;
        }
        let points = mounted(&other);
        users.push(format!("{} is attached to it", other.display()));
        users.extend(points);
    }
    users.extend(openers(file));
    users.truncate(NAMED_MAX);
    users
}

/// Whether a file system on `device` is mounted, as far as this mount namespace shows.
pub(crate) fn is_mounted(device: &Path) -> bool {
    !mounted(device).is_empty()
}

fn mounted(device: &Path) -> Vec<String> {
    let points = mount_table::points_of_device(device).unwrap_or_default();
    points.iter().map(|point| format!("mounted on {}", point.display())).collect()
}

/// The loop devices whose backing file has this path. The text is compared: a dead FUSE file cannot be asked for its inode.
pub(crate) fn loops_on(file: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/sys/block").into_iter().flatten().flatten() {
        let backing = std::fs::read_to_string(entry.path().join("loop/backing_file")).unwrap_or_default();
        if Path::new(backing.trim_end_matches('\n')) == file {
            found.push(Path::new("/dev").join(entry.file_name()));
        }
    }
    found.sort();
    found
}

/// What the loop device `device` is on, as the kernel writes it; `None` if it is on nothing.
pub(crate) fn backing_file(device: &Path) -> Option<Vec<u8>> {
    std::fs::read(Path::new("/sys/block").join(device.file_name()?).join("loop/backing_file")).ok()
}

fn holders(device: &Path) -> Vec<String> {
    let Some(name) = device.file_name() else {
        return Vec::new();
    };
    let folder = Path::new("/sys/block").join(name).join("holders");
    std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|holder| format!("/dev/{}", holder.file_name().to_string_lossy()))
        .collect()
}

/// Processes other than this one that have `file` open, as far as this user may see.
fn openers(file: &Path) -> Vec<String> {
    let own = rustix::process::getpid().as_raw_nonzero().get();
    processes::with_file_open(file).into_iter().filter(|pid| *pid != own).map(describe).collect()
}

fn describe(pid: i32) -> String {
    let command = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    format!("opened by {} (process {pid})", command.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_open_in_another_process_is_named_with_its_process() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().canonicalize().unwrap().join("disk");
        std::fs::write(&path, b"x").unwrap();
        assert!(users_of_file(&path, None).is_empty());
        let ours = std::fs::File::open(&path).unwrap();
        assert!(users_of_file(&path, None).is_empty(), "this process does not count");
        let mut child = std::process::Command::new("sleep").arg("30").stdin(ours).spawn().unwrap();
        let named = users_of_file(&path, None);
        child.kill().unwrap();
        child.wait().unwrap();
        // Between fork and exec the child still has our name.
        assert_eq!(named.len(), 1, "{named:?}");
        assert!(named[0].contains(&format!("process {}", child.id())), "{named:?}");
    }
}
