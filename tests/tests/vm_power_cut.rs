//! Promise: what was synced before a power cut is there after it, and the file system recovers, whichever backend stands
//! between file system and disk.
//!
//! Runs in the VM lane. The volume lies on a device of dm-log-writes (see `promises::write_log`), or in a file on an ext4 on
//! it. ext4 on the volume takes the writes of `promises::ledger`; after each synced version a mark goes into the log. Then
//! the disk is rebuilt as it was at each flush point, reopened through the same backend, mounted (the journals replay),
//! compared with the ledger of the last mark, and checked. A device that swallows flushes has to fail the same check.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::Command;

use promises::backend::{Backend, format_small, mount, unmount};
use promises::crypt_volume::starts_clean;
use promises::ledger::{Ledger, check, write_version};
use promises::random::Random;
use promises::rig::{run, succeed};
use promises::write_log::{LoggedDisk, WriteLog};
use promises::{Rig, kernel_leftovers, vm};

const DISK_BYTES: u64 = 48 << 20;
const INNER_BYTES: u64 = 24 << 20;
const LOG_BYTES: u64 = 1 << 30;
const SLOTS: usize = 6;
/// Synced versions of a run.
const VERSIONS: u64 = 24;
/// Flush points that the short lane looks at.
const QUICK_POINTS: usize = 6;
const NAME: &str = "cut";
const LOGGED: &str = "logged";

/// Where the volume lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Below {
    /// Directly on the logged device.
    Device,
    /// In a file on an ext4 on the logged device.
    File,
}

/// One stack, and the files that it works with.
struct Stack {
    rig: Rig,
    backend: Backend,
    below: Below,
}

impl Stack {
    fn new(backend: Backend, below: Below) -> Stack {
        let stack = Stack { rig: Rig::new("cut"), backend, below };
        let (rig, disk, folder) = (&stack.rig, stack.disk(), stack.rig.path("inner"));
        File::create_new(&disk).unwrap().set_len(DISK_BYTES).unwrap();
        let image = stack.place_image(&disk, true);
        let device = backend.open(rig, &image, NAME);
        make_ext4(&device);
        mount(&device, &folder, "noatime");
        unmount(&folder);
        backend.close(rig, NAME);
        stack.take_image_away();
        fs::copy(&disk, stack.rig.path("before")).unwrap();
        stack
    }

    fn disk(&self) -> PathBuf {
        self.rig.path("disk")
    }

    /// The path under which the image on `disk` is opened; it is formatted first if `fresh`.
    fn place_image(&self, disk: &Path, fresh: bool) -> PathBuf {
        let options = ["--sector-size", "4096"];
        match self.below {
            Below::Device => {
                if fresh {
                    format_small(&self.rig, disk, DISK_BYTES, true, &options);
                }
                disk.to_path_buf()
            }
            Below::File => {
                if fresh {
                    make_ext4(disk);
                }
                let folder = self.rig.path("outer");
                mount(disk, &folder, "noatime");
                let image = folder.join("image");
                if fresh {
                    format_small(&self.rig, &image, INNER_BYTES, false, &options);
                }
                image
            }
        }
    }

    fn take_image_away(&self) {
        if self.below == Below::File {
            unmount(&self.rig.path("outer"));
        }
    }

    /// Writes on the logged disk, version after version, and returns the log.
    fn record(&self, swallow_flushes: bool) -> WriteLog {
        let logged = LoggedDisk::new(LOGGED, &self.disk(), &self.rig.path("log"), LOG_BYTES);
        let image = self.place_image(logged.device(), false);
        let device = self.backend.open(&self.rig, &image, NAME);
        let write_cache = format!("/sys/block/{}/queue/write_cache", whole_name(&fs::canonicalize(&device).unwrap()));
        if swallow_flushes {
            // The block layer drops every flush to a device that says it has no volatile cache.
            fs::write(&write_cache, "write through").unwrap();
        }
        let folder = self.rig.path("inner");
        mount(&device, &folder, "noatime");
        let ledger = Ledger::new(SLOTS);
        for number in 0..VERSIONS {
            let (slot, version) = place(number);
            write_version(&folder, &ledger, slot, version).unwrap();
            logged.mark(&format!("synced-{}", number + 1));
        }
        unmount(&folder);
        if swallow_flushes {
            // A loop device keeps this for whoever is attached to it next.
            fs::write(&write_cache, "write back").unwrap();
        }
        self.backend.close(&self.rig, NAME);
        self.take_image_away();
        logged.end()
    }

    /// What is lost on `disk`, where the first `synced` versions were durable.
    fn losses(&self, disk: &Path, synced: u64) -> Vec<String> {
        let mut durable = vec![0; SLOTS];
        for (slot, version) in (0..synced).map(place) {
            durable[slot] = version;
        }
        let image = self.place_image(disk, false);
        let device = self.backend.open(&self.rig, &image, NAME);
        let folder = self.rig.path("inner");
        let mounted = run(Command::new("mount").args(["-o", "noatime"]).arg(&device).arg(&folder));
        let mut lost = if mounted.status.success() {
            let lost = check(&folder, &durable);
            unmount(&folder);
            lost
        } else {
            vec![format!("the file system does not mount: {}", String::from_utf8_lossy(&mounted.stderr))]
        };
        let checked = run(Command::new("e2fsck").arg("-fn").arg(&device));
        if !checked.status.success() {
            lost.push(format!("e2fsck: {}", String::from_utf8_lossy(&checked.stdout)));
        }
        self.backend.close(&self.rig, NAME);
        self.take_image_away();
        if self.below == Below::File {
            let checked = run(Command::new("e2fsck").arg("-fn").arg(disk));
            if !checked.status.success() {
                lost.push(format!("e2fsck of the file system below: {}", String::from_utf8_lossy(&checked.stdout)));
            }
        }
        lost
    }

    /// Rebuilds the disk along the log and looks at the entries in `points`: what was lost, by point.
    fn replay(&self, log: &WriteLog, points: &[usize]) -> Vec<(usize, Vec<String>)> {
        let (state, cut) = (self.rig.path("before"), self.rig.path("cut"));
        let disk = OpenOptions::new().write(true).open(&state).unwrap();
        let mut losses = Vec::new();
        let mut synced = 0;
        for (index, entry) in log.entries.iter().enumerate() {
            log.apply(entry, &disk);
            if let Some(number) = entry.mark.as_deref().and_then(|mark| mark.strip_prefix("synced-")) {
                synced = number.parse().unwrap();
            }
            if points.contains(&index) {
                // Mounting changes the disk; the next point wants it as the log left it.
                fs::copy(&state, &cut).unwrap();
                let lost = self.losses(&cut, synced);
                if !lost.is_empty() {
                    losses.push((index, lost));
                }
            }
        }
        losses
    }
}

/// Slot and version of the `number`th write.
fn place(number: u64) -> (usize, u64) {
    (usize::try_from(number).unwrap() % SLOTS, number / SLOTS as u64 + 1)
}

fn make_ext4(device: &Path) {
    let options = ["-q", "-F", "-J", "size=4", "-E", "lazy_itable_init=0,lazy_journal_init=0"];
    succeed(Command::new("mkfs.ext4").args(options).arg(device));
}

/// `dm-0` or `loop3`, also where the node carries another name.
fn whole_name(device: &Path) -> String {
    use std::os::unix::fs::MetadataExt as _;
    let number = device.metadata().unwrap().rdev();
    let link = format!("/sys/dev/block/{}:{}", rustix::fs::major(number), rustix::fs::minor(number));
    fs::canonicalize(link).unwrap().file_name().unwrap().to_string_lossy().into_owned()
}

/// Every flush point in the full lane, else the last and some that chance chose.
fn points(log: &WriteLog, random: &mut Random) -> Vec<usize> {
    let synced = |index: usize| log.entries[..index].iter().any(|entry| entry.mark.is_some());
    let all: Vec<usize> = (0..log.entries.len()).filter(|&index| log.entries[index].is_flush_point()).collect();
    let after_marks = all.iter().filter(|index| synced(**index)).count();
    let marks = log.entries.iter().filter(|entry| entry.mark.is_some()).count();
    eprintln!(
        "{} entries, {} flush points, {after_marks} of them after the first of {marks} marks",
        log.entries.len(),
        all.len()
    );
    assert!(after_marks as u64 >= VERSIONS - 1 && marks as u64 >= VERSIONS, "the file system flushed too little");
    if vm::is_full() {
        return all;
    }
    let mut some: Vec<usize> = (1..QUICK_POINTS).map(|_| random.pick(&all)).collect();
    some.extend(all.last());
    some
}

fn campaign(backend: Backend, below: Below) {
    let what = format!("{backend:?} on a {below:?}");
    let mut random = Random::seeded(&what);
    let stack = Stack::new(backend, below);
    let log = stack.record(false);
    let points = points(&log, &mut random);
    let losses = stack.replay(&log, &points);
    assert!(losses.is_empty(), "{what}: {} of {} points lost something: {losses:#?}", losses.len(), points.len());
    eprintln!("{what}: nothing lost at {} points", points.len());
    kernel_leftovers::demand_none(&stack.rig, &[], &what);
}

#[test]
fn vm_power_cut_through_the_kernel_loses_nothing_that_was_synced() {
    let test = "vm_power_cut_through_the_kernel_loses_nothing_that_was_synced";
    if !(starts_clean(test) && vm::is_round_for(test, false)) {
        return;
    }
    campaign(Backend::Dm, Below::File);
    if vm::is_full() {
        campaign(Backend::Dm, Below::Device);
    }
}

#[test]
fn vm_power_cut_through_fuse_loses_nothing_that_was_synced() {
    let test = "vm_power_cut_through_fuse_loses_nothing_that_was_synced";
    if !(starts_clean(test) && vm::is_round_for(test, false)) {
        return;
    }
    campaign(Backend::Fuse, Below::Device);
    if vm::is_full() {
        campaign(Backend::Fuse, Below::File);
    }
}

#[test]
fn vm_power_cut_through_ublk_loses_nothing_that_was_synced() {
    let test = "vm_power_cut_through_ublk_loses_nothing_that_was_synced";
    if !(starts_clean(test) && vm::is_round_for(test, true)) {
        return;
    }
    campaign(Backend::Ublk, Below::Device);
    if vm::is_full() {
        campaign(Backend::Ublk, Below::File);
    }
}

#[test]
fn vm_power_cut_notices_swallowed_flushes() {
    let test = "vm_power_cut_notices_swallowed_flushes";
    if !(starts_clean(test) && vm::is_round_for(test, false)) {
        return;
    }
    let backends: &[Backend] = if vm::is_full() { &Backend::OURS_AND_UBLK } else { &[Backend::Dm] };
    for &backend in backends {
        let stack = Stack::new(backend, Below::Device);
        let log = stack.record(true);
        let marks: Vec<usize> = (0..log.entries.len()).filter(|&index| log.entries[index].mark.is_some()).collect();
        // After the half of them is early enough that nothing else has flushed, and late enough to have much to lose.
        let point = marks[usize::try_from(VERSIONS).unwrap() / 2];
        let losses = stack.replay(&log, &[point]);
        assert!(!losses.is_empty(), "{backend:?}: without flushes nothing was lost: the check checks nothing");
        kernel_leftovers::demand_none(&stack.rig, &[], "swallowed flushes");
    }
}
