//! Promise: ext4 on the loop device of a real `luksctl open` is whole after close and reopen, and no way of zeroing,
//! punching or trimming, below or inside the file system, ever makes a byte read back wrong. Sectors of 512 and 4096 bytes.
#![allow(clippy::expect_used, clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use promises::Rig;
use promises::disk_model::{compare, make_tree, try_run, xorshift, zero};
use promises::rig::succeed;
use promises::skip;

const NAME: &str = "disk";
/// Part of the device that is compared byte by byte.
const COMPARED_BYTES: u64 = 8 << 20;
/// Length of the file that is punched inside the file system.
const FILE_BYTES: u64 = 2 << 20;

fn can_run(test: &str) -> bool {
    let programs = ["mkfs.ext4", "fsck.ext4", "tar", "fallocate", "blkdiscard", "fstrim", "mount", "umount", "diff"];
    skip::needs_root(test) && skip::needs_fuse(test) && skip::needs_programs(test, &programs) && {
        let loops = Path::new("/dev/loop-control").exists();
        if !loops {
            skip::skip(test, "needs /dev/loop-control");
        }
        loops
    }
}

/// A fresh container, its device and a folder to mount on.
struct Disk {
    rig: Rig,
    image: PathBuf,
    point: PathBuf,
}

impl Disk {
    fn format(size: &str, sector_bytes: u64) -> Disk {
        let rig = Rig::new("ext4");
        let (image, point) = (rig.path("image"), rig.path("mount"));
        rig.format_cheap(&image, size, &["--sector-size", &sector_bytes.to_string()]);
        fs::create_dir(&point).unwrap();
        Disk { rig, image, point }
    }

    /// Opens it; checks that the device is a loop device with the container's sectors and without a cache of its own.
    fn open(&self, sector_bytes: u64) -> PathBuf {
        let device = fs::canonicalize(self.rig.open(&self.image, NAME)).unwrap();
        let sysfs = Path::new("/sys/block").join(device.file_name().unwrap());
        let number = |name: &str| fs::read_to_string(sysfs.join(name)).unwrap().trim().parse::<u64>().unwrap();
        assert_eq!(number("loop/dio"), 1, "{} has no direct I/O", device.display());
        assert_eq!(number("queue/logical_block_size"), sector_bytes);
        device
    }

    fn close(&self) {
        self.rig.close(NAME);
    }

    fn mount(&self, device: &Path) {
        succeed(Command::new("mount").arg(device).arg(&self.point));
    }

    fn umount(&self) {
        succeed(Command::new("umount").arg(&self.point));
    }

    fn is_same_as(&self, source: &Path) {
        succeed(
            Command::new("diff").args(["-r", "--exclude=lost+found", "--exclude=punched"]).arg(source).arg(&self.point),
        );
    }
}

fn fsck(device: &Path) {
    succeed(Command::new("fsck.ext4").arg("-fn").arg(device));
}

/// Opens what was just closed: fsck finds nothing, and the files are those of `source`.
fn reopen_and_check(disk: &Disk, sector_bytes: u64, source: &Path) {
    let device = disk.open(sector_bytes);
    fsck(&device);
    disk.mount(&device);
    disk.is_same_as(source);
    disk.umount();
    disk.close();
}

fn ten_thousand_files(test: &str, sector_bytes: u64) {
    if !can_run(test) {
        return;
    }
    let disk = Disk::format("256M", sector_bytes);
    let source = tempfile::tempdir().unwrap();
    make_tree(source.path(), 10_000);
    let archive = disk.rig.path("files.tar");
    succeed(Command::new("tar").arg("-C").arg(source.path()).arg("-cf").arg(&archive).arg("."));
    let device = disk.open(sector_bytes);
    succeed(Command::new("mkfs.ext4").arg("-q").arg(&device));
    disk.mount(&device);
    succeed(Command::new("tar").arg("-C").arg(&disk.point).arg("-xf").arg(&archive));
    disk.umount();
    disk.close();
    reopen_and_check(&disk, sector_bytes, source.path());
}

#[test]
fn ten_thousand_files_with_512_byte_sectors_are_whole_after_close() {
    ten_thousand_files("ten_thousand_files_with_512_byte_sectors_are_whole_after_close", 512);
}

#[test]
fn ten_thousand_files_with_4096_byte_sectors_are_whole_after_close() {
    ten_thousand_files("ten_thousand_files_with_4096_byte_sectors_are_whole_after_close", 4096);
}

#[test]
fn zeroing_punching_and_discarding_the_device_never_reads_back_wrong() {
    let test = "zeroing_punching_and_discarding_the_device_never_reads_back_wrong";
    if !can_run(test) {
        return;
    }
    for (sector_bytes, seed) in [(512, 0x5eed_0010), (4096, 0x5eed_0011)] {
        let disk = Disk::format("32M", sector_bytes);
        let device = disk.open(sector_bytes);
        let zeroed = compare(&device, COMPARED_BYTES, sector_bytes, seed).unwrap();
        assert!(zeroed >= 10, "only {zeroed} ranges were zeroed, the test proves nothing");
        let before = try_run(Command::new("head").args(["-c", &COMPARED_BYTES.to_string()]).arg(&device)).stdout;
        disk.close();
        let device = disk.open(sector_bytes);
        let after = try_run(Command::new("head").args(["-c", &COMPARED_BYTES.to_string()]).arg(&device)).stdout;
        assert!(before == after && before.len() as u64 == COMPARED_BYTES, "sector size {sector_bytes}, seed {seed:#x}");
        disk.close();
    }
}

/// Writes, `fallocate -p` and `fallocate -z` in one file of the file system against a model.
fn punch_a_file(file: &Path, seed: u64) -> Vec<u8> {
    let mut state = seed;
    let mut model: Vec<u8> = std::iter::repeat_with(|| xorshift(&mut state).to_le_bytes())
        .take(usize::try_from(FILE_BYTES / 8).unwrap())
        .flatten()
        .collect();
    fs::write(file, &model).unwrap();
    for tool in [0, 1].repeat(10) {
        let start = xorshift(&mut state) % (FILE_BYTES - 1);
        let len = (1 + xorshift(&mut state) % 100_000).min(FILE_BYTES - start);
        assert!(zero(file, tool, start, len), "ext4 refuses to punch or zero a file");
        model[usize::try_from(start).unwrap()..usize::try_from(start + len).unwrap()].fill(0);
        assert!(fs::read(file).unwrap() == model, "seed {seed:#x}: {start} + {len} by tool {tool}");
    }
    model
}

#[test]
fn trimming_and_punching_inside_the_file_system_keeps_every_byte() {
    let test = "trimming_and_punching_inside_the_file_system_keeps_every_byte";
    if !can_run(test) {
        return;
    }
    for (sector_bytes, seed) in [(512, 0x5eed_0012), (4096, 0x5eed_0013)] {
        let disk = Disk::format("96M", sector_bytes);
        let source = tempfile::tempdir().unwrap();
        make_tree(source.path(), 1000);
        let device = disk.open(sector_bytes);
        succeed(Command::new("mkfs.ext4").arg("-q").arg(&device));
        disk.mount(&device);
        succeed(Command::new("cp").arg("-r").arg(source.path().join(".")).arg(&disk.point));
        for index in (0..100).step_by(2) {
            fs::remove_dir_all(source.path().join(format!("folder-{index}"))).unwrap();
            fs::remove_dir_all(disk.point.join(format!("folder-{index}"))).unwrap();
        }
        let model = punch_a_file(&disk.point.join("punched"), seed);
        succeed(&mut Command::new("sync"));
        // Discards are refused or done: either way nothing may change.
        try_run(Command::new("fstrim").arg("-v").arg(&disk.point));
        fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
        disk.is_same_as(source.path());
        assert!(fs::read(disk.point.join("punched")).unwrap() == model, "after fstrim, seed {seed:#x}");
        disk.umount();
        fsck(&device);
        disk.mount(&device);
        assert!(fs::read(disk.point.join("punched")).unwrap() == model, "after a new mount, seed {seed:#x}");
        disk.umount();
        disk.close();
        reopen_and_check(&disk, sector_bytes, source.path());
    }
}
