//! Promise: when what lies below an open volume fails, whoever reads or writes is told, nobody hangs, `close` takes
//! everything away all the same and says if writes were lost, and what had been synced is there once the disk is back.
//!
//! Runs in the VM lane. The disk is a mapping of device-mapper whose table is exchanged under the volume: `linear`, or
//! `error` for a part or all of it. A truncated or deleted image is in `vm_kernel_path.rs`.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use promises::backend::{Backend, SMALL_HEADER_BYTES, format_small, mount, status, unmount};
use promises::crypt_volume::starts_clean;
use promises::rig::{run, run_with_input, succeed};
use promises::{Rig, kernel_leftovers, vm};

const DATA_BYTES: u64 = 8 << 20;
const MIB: u64 = 1 << 20;
const EIO: Option<i32> = Some(5);
const NO_SUCH: i32 = 4;
const DEADLINE: Duration = Duration::from_secs(60);
const NAME: &str = "volume";
const BAD: &str = "bad-disk";

/// A disk that can be made to fail: a mapping over a loop device.
struct BadDisk {
    loop_device: String,
    sectors: u64,
    node: PathBuf,
}

impl BadDisk {
    /// Over the file `disk`, whole at first.
    fn new(disk: &Path) -> BadDisk {
        let attached = succeed(Command::new("losetup").args(["--find", "--show"]).arg(disk));
        let loop_device = String::from_utf8(attached.stdout).unwrap().trim_end().to_owned();
        let sectors = disk.metadata().unwrap().len() / 512;
        let linear = format!("0 {sectors} linear {loop_device} 0");
        succeed(Command::new("dmsetup").args(["create", BAD, "--table", &linear]));
        let named = succeed(Command::new("dmsetup").args(["info", "-c", "--noheadings", "-o", "blkdevname", BAD]));
        let node = Path::new("/dev").join(String::from_utf8(named.stdout).unwrap().trim());
        BadDisk { loop_device, sectors, node }
    }

    fn load(&self, table: &str) {
        let loaded = run_with_input(Command::new("dmsetup").args(["load", BAD]), table.as_bytes());
        assert!(loaded.status.success(), "{loaded:?}");
        succeed(Command::new("dmsetup").args(["suspend", "--nolockfs", BAD]));
        succeed(Command::new("dmsetup").args(["resume", BAD]));
    }

    /// Every request to these bytes fails from now on.
    fn fail_part(&self, start: u64, len: u64) {
        let (start, len, disk) = (start / 512, len / 512, &self.loop_device);
        let end = start + len;
        self.load(&format!(
            "0 {start} linear {disk} 0\n{start} {len} error\n{end} {} linear {disk} {end}\n",
            self.sectors - end
        ));
    }

    fn fail(&self) {
        self.load(&format!("0 {} error\n", self.sectors));
    }

    fn heal(&self) {
        self.load(&format!("0 {} linear {} 0\n", self.sectors, self.loop_device));
    }
}

impl Drop for BadDisk {
    fn drop(&mut self) {
        let removed = run(Command::new("dmsetup").args(["remove", "--retry", BAD]));
        let detached = run(Command::new("losetup").args(["--detach", &self.loop_device]));
        let node = Path::new("/dev/mapper").join(BAD);
        if !vm::has_udev() && fs::symlink_metadata(&node).is_ok() {
            drop(fs::remove_file(&node));
        }
        assert!(
            (removed.status.success() && detached.status.success()) || std::thread::panicking(),
            "{removed:?} {detached:?}"
        );
    }
}

fn pattern() -> Vec<u8> {
    (0..DATA_BYTES).map(|at| (at / 4096 * 31 + at).to_le_bytes()[0]).collect()
}

fn forget_caches() {
    fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
}

fn open_writable(device: &Path) -> File {
    OpenOptions::new().read(true).write(true).open(device).unwrap()
}

fn read_at(device: &Path, at: u64) -> io::Result<Vec<u8>> {
    let mut found = vec![0; 64 << 10];
    File::open(device)?.read_exact_at(&mut found, at).map(|()| found)
}

fn write_through(file: &File, at: u64) -> io::Result<()> {
    file.write_all_at(&[0xee; 4096], at)?;
    file.sync_all()
}

#[track_caller]
fn assert_failed<T>(what: &str, result: io::Result<T>) {
    match result {
        Ok(_) => panic!("{what} went well on a disk that fails"),
        Err(error) => assert_eq!(error.raw_os_error(), EIO, "{what}: {error}"),
    }
}

fn words(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn attempt_to_open(rig: &Rig, backend: Backend, image: &Path) -> Output {
    run(&mut backend.open_command(rig, image, NAME, &[]))
}

/// Closed, whatever the disk does; what it says of lost writes.
fn closed(rig: &Rig, backend: Backend, ours: &[&str], what: &str) -> Output {
    let output = run(&mut backend.close_command(rig, NAME));
    assert!(output.status.success() || words(&output).contains("writes were lost"), "{backend:?}, {what}: {output:?}");
    kernel_leftovers::demand_none(rig, ours, &format!("{backend:?}: {what}"));
    assert_eq!(run(&mut rig.luksctl(&["status", NAME])).status.code(), Some(NO_SUCH));
    output
}

/// What a failing disk leaves open, and what it says to whoever opens.
#[test]
fn vm_bad_below_errors_reach_the_reader_and_close_cleans_up() {
    let test = "vm_bad_below_errors_reach_the_reader_and_close_cleans_up";
    if !(starts_clean(test) && vm::is_round_for(test, true)) {
        return;
    }
    let pattern = pattern();
    let read_well = |device: &Path, at: u64| {
        let found = read_at(device, at).unwrap();
        let from = usize::try_from(at).unwrap();
        assert!(found == pattern[from..from + found.len()], "{at}");
    };
    for backend in Backend::OURS_AND_UBLK {
        let rig = Rig::new("bad-below");
        let file = rig.path("disk");
        let ours = [BAD, "disk"];
        format_small(&rig, &file, SMALL_HEADER_BYTES + DATA_BYTES, true, &["--sector-size", "4096"]);
        let disk = BadDisk::new(&file);
        let device = backend.open(&rig, &disk.node, NAME);
        let content = open_writable(&device);
        content.write_all_at(&pattern, 0).and_then(|()| content.sync_all()).unwrap();
        drop(content);
        forget_caches();

        disk.fail_part(SMALL_HEADER_BYTES + 4 * MIB, MIB);
        read_well(&device, MIB);
        assert_failed("a read", read_at(&device, 4 * MIB));
        read_well(&device, 6 * MIB);
        assert_failed("a write", write_through(&open_writable(&device), 4 * MIB + 8192));
        assert_eq!(status(&rig, NAME)["name"], NAME);
        // All of it, with a write that is on its way.
        let content = open_writable(&device);
        content.write_all_at(&[0xdd; 4096], 7 * MIB).unwrap();
        disk.fail();
        assert_failed("a read", read_at(&device, 2 * MIB));
        drop(content);
        assert_eq!(status(&rig, NAME)["name"], NAME);
        let output = closed(&rig, backend, &ours, "a dead disk");
        assert!(words(&output).contains("writes were lost"), "{backend:?} hides it: {output:?}");

        let refused = attempt_to_open(&rig, backend, &disk.node);
        assert!(!refused.status.success() && words(&refused).contains("Input/output error"), "{refused:?}");
        kernel_leftovers::demand_none(&rig, &ours, "an open on a dead disk");

        disk.heal();
        let device = backend.open(&rig, &disk.node, NAME);
        for at in [0, MIB, 4 * MIB, 6 * MIB] {
            read_well(&device, at);
        }
        assert!(closed(&rig, backend, &ours, "a healed disk").status.success());
    }
}

#[test]
fn vm_bad_below_a_mounted_volume_survives_the_disk_of_its_image() {
    let test = "vm_bad_below_a_mounted_volume_survives_the_disk_of_its_image";
    if !(starts_clean(test) && vm::is_round_for(test, false)) {
        return;
    }
    for backend in Backend::OURS_AND_UBLK {
        let rig = Rig::new("bad-outer");
        let (file, outer, inner) = (rig.path("disk"), rig.path("outer"), rig.path("inner"));
        let ours = [BAD, "disk"];
        File::create(&file).unwrap().set_len(48 * MIB).unwrap();
        make_ext4(&file);
        let disk = BadDisk::new(&file);
        mount(&disk.node, &outer, "noatime");
        let image = outer.join("image");
        format_small(&rig, &image, SMALL_HEADER_BYTES + 16 * MIB, false, &[]);
        let device = backend.open(&rig, &image, NAME);
        make_ext4(&device);
        mount(&device, &inner, "noatime");
        let mut kept = File::create(inner.join("kept")).unwrap();
        kept.write_all(&vec![7; 100_000]).and_then(|()| kept.sync_all()).unwrap();
        drop(kept);
        File::open(&inner).unwrap().sync_all().unwrap();

        disk.fail();
        let lost = File::create(inner.join("lost")).and_then(|mut lost| {
            lost.write_all(&vec![8; 100_000])?;
            lost.sync_all()
        });
        assert!(lost.is_err(), "{backend:?}: a sync went well on a dead disk");
        unmount(&inner);
        closed(&rig, backend, &ours, "the disk of the image died");
        unmount(&outer);

        disk.heal();
        // The journal replays, and what it cannot mend is nothing.
        let checked = run(Command::new("e2fsck").arg("-fp").arg(&disk.node));
        assert!(matches!(checked.status.code(), Some(0 | 1)), "{checked:?}");
        mount(&disk.node, &outer, "noatime");
        let device = backend.open(&rig, &image, NAME);
        mount(&device, &inner, "noatime");
        assert!(fs::read(inner.join("kept")).unwrap() == vec![7; 100_000], "{backend:?}: what was synced is gone");
        unmount(&inner);
        let checked = run(Command::new("e2fsck").arg("-fp").arg(&device));
        assert!(matches!(checked.status.code(), Some(0 | 1)), "{checked:?}");
        assert!(closed(&rig, backend, &ours, "a healed disk").status.success());
        unmount(&outer);
    }
}

fn make_ext4(device: &Path) {
    let options = ["-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0"];
    succeed(Command::new("mkfs.ext4").args(options).arg(device));
}

#[test]
fn vm_bad_below_a_loop_device_that_somebody_else_detaches() {
    let test = "vm_bad_below_a_loop_device_that_somebody_else_detaches";
    if !starts_clean(test) {
        return;
    }
    for backend in Backend::OURS {
        let rig = Rig::new("detached");
        let image = rig.path("image");
        format_small(&rig, &image, SMALL_HEADER_BYTES + DATA_BYTES, false, &[]);
        let device = backend.open(&rig, &image, NAME);
        let content = open_writable(&device);
        content.write_all_at(&pattern(), 0).and_then(|()| content.sync_all()).unwrap();
        drop(content);
        let below =
            status(&rig, NAME)["loop_device"].as_str().map_or(fs::canonicalize(&device).unwrap(), PathBuf::from);
        // The kernel puts it off while the device is in use, if only by udevd for a moment, and says that all went well.
        succeed(Command::new("losetup").arg("--detach").arg(&below));
        if backend == Backend::Dm {
            let now = status(&rig, NAME);
            assert_eq!(now["state"], "open", "{now}");
            forget_caches();
            assert!(fs::read(&device).unwrap() == pattern());
            assert!(closed(&rig, backend, &[], "somebody detached its loop device").status.success());
        } else {
            let until = Instant::now() + DEADLINE;
            let mut now = status(&rig, NAME);
            while now["state"] != "failed" {
                assert!(Instant::now() < until, "{now}");
                std::thread::sleep(Duration::from_millis(50));
                now = status(&rig, NAME);
            }
            assert!(now["problem"].as_str().unwrap().contains("Somebody detached"), "{now}");
            // The number is given out again: that device is none of ours.
            let theirs = rig.path("theirs");
            fs::write(&theirs, vec![0; 1 << 20]).unwrap();
            succeed(Command::new("losetup").arg(&below).arg(&theirs));
            assert!(closed(&rig, backend, &["theirs"], "somebody detached its loop device").status.success());
            assert!(kernel_leftovers::has_loop(&theirs), "the loop device of somebody else was detached");
            succeed(Command::new("losetup").arg("--detach").arg(&below));
        }
        let device = backend.open(&rig, &image, NAME);
        assert!(fs::read(&device).unwrap() == pattern());
        closed(&rig, backend, &[], "the next open");
    }
}
