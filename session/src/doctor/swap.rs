//! Where a swap area's pages end up: encrypted, in memory, or in clear on a medium.
//!
//! * A mapping whose UUID starts with `CRYPT-` (cryptsetup's and ours) is encrypted, and so is what stands wholly on such.
//! * zram is memory, unless a backing device takes what it writes out.
//! * A file is as its file system's device; a loop device is as its file.
//!
//! What cannot be followed counts as clear. Sources: `/proc/swaps` (proc(5)), `Documentation/ABI/testing/sysfs-block-dm`,
//! `Documentation/admin-guide/blockdev/zram.rst`.

use std::path::{Component, Path};

use super::Root;

/// Devices on devices are followed this far; real stacks have fewer than six.
const DEPTH_MAX: usize = 16;
const CRYPT_PREFIX: &str = "CRYPT-";

/// Where pages end up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Medium {
    /// On an encrypted device.
    Encrypted,
    /// In memory only.
    Memory,
    /// Elsewhere.
    Clear,
}

/// One active swap area.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SwapArea {
    /// As `swapoff` takes it.
    pub(super) path: String,
    pub(super) medium: Medium,
}

/// Every active swap area.
pub(super) fn areas(root: &Root) -> Vec<SwapArea> {
    let text = root.text("/proc/swaps").unwrap_or_default();
    let lines = text.lines().skip(1).filter_map(|line| {
        let mut fields = line.split_whitespace();
        let (path, kind) = (unescaped(fields.next()?), fields.next()?);
        let medium = if kind == "file" { of_file(root, &path, 0) } else { of_node(root, &path) };
        Some(SwapArea { path, medium })
    });
    lines.collect()
}

/// Octal escapes of blanks, as the kernel writes paths.
fn unescaped(field: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .into_iter()
        .fold(field.to_owned(), |text, (code, symbol)| text.replace(code, symbol))
}

/// A swap partition by its path below `/dev`.
fn of_node(root: &Root, path: &str) -> Medium {
    let name = path.rsplit('/').next().unwrap_or(path);
    if let Some(mapped) = path.strip_prefix("/dev/mapper/") {
        let devices = root.names("/sys/block");
        let named = |device: &&String| root.text(format!("/sys/block/{device}/dm/name")).as_deref() == Some(mapped);
        return devices.iter().find(named).map_or(Medium::Clear, |device| of_device(root, device, 0));
    }
    of_device(root, name, 0)
}

/// A block device by its name in sysfs.
fn of_device(root: &Root, name: &str, depth: usize) -> Medium {
    if depth > DEPTH_MAX || Path::new(name).components().any(|part| !matches!(part, Component::Normal(_))) {
        return Medium::Clear;
    }
    let folder = format!("/sys/class/block/{name}");
    let folder = if root.exists(&folder) { folder } else { format!("/sys/block/{name}") };
    if root.text(format!("{folder}/dm/uuid")).is_some_and(|uuid| uuid.starts_with(CRYPT_PREFIX)) {
        return Medium::Encrypted;
    }
    if name.starts_with("zram") {
        return match root.text(format!("{folder}/backing_dev")).as_deref() {
            None | Some("" | "none") => Medium::Memory,
            Some(backing) => of_node(root, backing),
        };
    }
    if let Some(file) = root.text(format!("{folder}/loop/backing_file")) {
        return of_file(root, &file, depth + 1);
    }
    let below = root.names(format!("{folder}/slaves"));
    let encrypted = !below.is_empty() && below.iter().all(|name| of_device(root, name, depth + 1) == Medium::Encrypted);
    if encrypted { Medium::Encrypted } else { Medium::Clear }
}

/// A file by the device of the innermost mount above it.
fn of_file(root: &Root, path: &str, depth: usize) -> Medium {
    let table = root.text("/proc/self/mountinfo").unwrap_or_default();
    let mut best: Option<(usize, Medium)> = None;
    for line in table.lines() {
        let Some((head, tail)) = line.split_once(" - ") else { continue };
        let head: Vec<&str> = head.split(' ').collect();
        let (Some(number), Some(point)) = (head.get(2), head.get(4)) else { continue };
        let point = unescaped(point);
        // Of two mounts on one point the later one is on top.
        let inner = best.is_none_or(|(length, _)| point.len() >= length);
        if !inner || !Path::new(path).starts_with(&point) {
            continue;
        }
        let source = tail.split(' ').nth(1).unwrap_or_default();
        best = Some((point.len(), of_mount(root, number, &unescaped(source), depth)));
    }
    best.map_or(Medium::Clear, |(_, medium)| medium)
}

/// The device of a mount: by its number, or by its source where the file system (btrfs) has a number of its own.
fn of_mount(root: &Root, number: &str, source: &str, depth: usize) -> Medium {
    let event = root.text(format!("/sys/dev/block/{number}/uevent")).unwrap_or_default();
    match event.lines().find_map(|line| line.strip_prefix("DEVNAME=")) {
        Some(name) => of_device(root, name, depth),
        None if source.starts_with("/dev/") => of_node(root, source),
        None => Medium::Clear,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::fixture::Fixture;

    fn mediums(fixture: &Fixture) -> Vec<Medium> {
        areas(fixture.root()).into_iter().map(|area| area.medium).collect()
    }

    #[test]
    fn partitions_are_followed_to_the_bottom() {
        let mut fixture = Fixture::bare();
        fixture.swaps(&["/dev/sda2 partition", "/dev/dm-0 partition", "/dev/dm-1 partition", "/dev/dm-2 partition"]);
        fixture.write("/sys/block/dm-0/dm/uuid", "CRYPT-PLAIN-swap\n");
        fixture.write("/sys/block/dm-1/dm/uuid", "LVM-abc\n");
        fixture.write("/sys/block/dm-1/slaves/dm-0/size", "1");
        fixture.write("/sys/block/dm-2/dm/uuid", "LVM-def\n");
        fixture.write("/sys/block/dm-2/slaves/dm-0/size", "1");
        fixture.write("/sys/block/dm-2/slaves/sda3/size", "1");
        assert_eq!(mediums(&fixture), [Medium::Clear, Medium::Encrypted, Medium::Encrypted, Medium::Clear]);
        fixture.swaps(&["/dev/mapper/swap partition", "/dev/mapper/other partition"]);
        fixture.write("/sys/block/dm-0/dm/name", "swap\n");
        assert_eq!(mediums(&fixture), [Medium::Encrypted, Medium::Clear]);
    }

    #[test]
    fn zram_is_memory_until_it_writes_out() {
        let mut fixture = Fixture::bare();
        fixture.swaps(&["/dev/zram0 partition", "/dev/zram1 partition", "/dev/zram2 partition"]);
        fixture.write("/sys/block/zram0/backing_dev", "none\n");
        fixture.write("/sys/block/zram1/backing_dev", "/dev/sda5\n");
        assert_eq!(mediums(&fixture), [Medium::Memory, Medium::Clear, Medium::Memory]);
    }

    #[test]
    fn a_file_is_as_the_device_of_its_mount() {
        let mut fixture = Fixture::bare();
        fixture.swaps(&["/swap\\040file file", "/home/swap file", "/data/swap file", "/loop/swap file"]);
        fixture.write(
            "/proc/self/mountinfo",
            "1 0 8:1 / / rw - ext4 /dev/sda1 rw\n2 1 254:0 / /home rw - xfs /dev/dm-0 rw\n\
             3 1 0:30 /@ /data rw shared:1 - btrfs /dev/dm-0 rw\n4 1 7:0 / /loop rw - ext4 /dev/loop0 rw\n",
        );
        fixture.write("/sys/dev/block/8:1/uevent", "MAJOR=8\nDEVNAME=sda1\n");
        fixture.write("/sys/dev/block/254:0/uevent", "DEVNAME=dm-0\n");
        fixture.write("/sys/dev/block/7:0/uevent", "DEVNAME=loop0\n");
        fixture.write("/sys/block/loop0/loop/backing_file", "/home/image\n");
        fixture.write("/sys/block/dm-0/dm/uuid", "CRYPT-LUKS2-aa-home\n");
        assert_eq!(areas(fixture.root())[0].path, "/swap file");
        assert_eq!(mediums(&fixture), [Medium::Clear, Medium::Encrypted, Medium::Encrypted, Medium::Encrypted]);
        // A loop device on a file of its own file system goes round for ever; the depth ends it.
        fixture.write("/sys/block/loop0/loop/backing_file", "/loop/image\n");
        assert_eq!(mediums(&fixture)[3], Medium::Clear);
    }
}
