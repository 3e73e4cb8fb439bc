//! Promise: a file system on a loop device on the exported file is whole, and no way of zeroing, punching or trimming it
//! ever makes a byte read back wrong.
//!
//! The disk below scrambles its bytes, as a cipher would: a hole punched through it reads as noise, not as zeros.

#![allow(clippy::expect_used, clippy::unwrap_used, clippy::print_stderr, clippy::panic)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use block::{BlockError, BlockErrorKind, BlockIo, Bytes, Geometry, MemDisk};
use dmsetup::LoopOptions;
use export::fuse::{FuseExport, FuseOptions, PunchHole, serve};
use promises::disk_model::{compare, make_tree, try_run};
use promises::skip;

const BLOCK: u64 = 4096;

/// XORs every byte with one that depends on its place. Zeroing is not in its power; a discard leaves noise.
struct Scrambled {
    disk: MemDisk,
    /// For the negative control: "zeroes" by punching the hole that must never be punched.
    punches: bool,
}

impl Scrambled {
    fn new(size: Bytes) -> Scrambled {
        Scrambled { disk: MemDisk::with_block(size, 4096), punches: false }
    }

    fn scramble(offset: Bytes, bytes: &mut [u8]) {
        for (word, place) in bytes.chunks_mut(8).zip(offset.0 / 8..) {
            let key = place.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29) | 1;
            word.iter_mut().zip(key.to_le_bytes()).for_each(|(byte, key)| *byte ^= key);
        }
    }
}

impl BlockIo for Scrambled {
    fn geometry(&self) -> Geometry {
        self.disk.geometry()
    }
    fn read_at(&self, offset: Bytes, buf: &mut [u8]) -> Result<(), BlockError> {
        self.disk.read_at(offset, buf)?;
        Scrambled::scramble(offset, buf);
        Ok(())
    }
    fn write_at(&self, offset: Bytes, buf: &[u8], fua: bool) -> Result<(), BlockError> {
        let mut scrambled = buf.to_vec();
        Scrambled::scramble(offset, &mut scrambled);
        self.disk.write_at(offset, &scrambled, fua)
    }
    fn write_zeroes(&self, offset: Bytes, len: Bytes) -> Result<(), BlockError> {
        if self.punches {
            return self.discard(offset, len);
        }
        Err(BlockError::new(BlockErrorKind::Unsupported, "write zeroes", offset, len.0))
    }
    fn discard(&self, offset: Bytes, len: Bytes) -> Result<(), BlockError> {
        self.disk.discard(offset, len)
    }
    fn flush(&self) -> Result<(), BlockError> {
        self.disk.flush()
    }
}

/// Disk, export and loop device; taken down in order when dropped.
struct Stack {
    device: PathBuf,
    export: FuseExport,
    folder: tempfile::TempDir,
}

impl Stack {
    fn build(test: &str, disk: Scrambled, punch_hole: PunchHole) -> Option<Stack> {
        let programs =
            ["mkfs.ext4", "fsck.ext4", "tar", "fallocate", "blkdiscard", "fstrim", "mount", "umount", "diff"];
        if !skip::needs_root(test) || !skip::needs_fuse(test) || !skip::needs_programs(test, &programs) {
            return None;
        }
        if !Path::new("/dev/loop-control").exists() {
            skip::skip(test, "needs /dev/loop-control");
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let point = folder.path().join("fuse");
        fs::create_dir(&point).unwrap();
        fs::create_dir(folder.path().join("mount")).unwrap();
        let options = FuseOptions { punch_hole, ..FuseOptions::default() };
        let export = serve(Arc::new(disk), &point, &options).unwrap();
        let options = LoopOptions { read_only: false, direct_io: true, block_size: 4096, autoclear: false };
        let device = dmsetup::attach(export.file_path(), &options).unwrap().path().to_path_buf();
        Some(Stack { device, export, folder })
    }

    fn mount_point(&self) -> PathBuf {
        self.folder.path().join("mount")
    }

    fn mount(&self) {
        run(Command::new("mount").arg(&self.device).arg(self.mount_point()));
    }

    fn umount(&self) {
        run(Command::new("umount").arg(self.mount_point()));
    }

    fn check(&self) {
        run(Command::new("fsck.ext4").arg("-fn").arg(&self.device));
    }

    fn end(self) {
        dmsetup::detach(&self.device).unwrap();
        self.export.unmount_within(Duration::from_secs(10)).unwrap();
    }
}

impl Drop for Stack {
    /// After a failed test: whatever is still there goes, so that the machine stays usable.
    fn drop(&mut self) {
        if std::thread::panicking() {
            let _ = Command::new("umount").arg(self.mount_point()).stderr(Stdio::null()).status();
            let _ = dmsetup::detach(&self.device);
        }
    }
}

fn run(command: &mut Command) {
    let output = try_run(command);
    assert!(output.status.success(), "{command:?}: {output:?}");
}

#[test]
fn ten_thousand_unpacked_files_are_whole_and_fsck_is_clean() {
    let test = "ten_thousand_unpacked_files_are_whole_and_fsck_is_clean";
    let Some(stack) = Stack::build(test, Scrambled::new(Bytes(256 << 20)), PunchHole::Refuse) else { return };
    let source = tempfile::tempdir().unwrap();
    make_tree(source.path(), 10_000);
    let archive = stack.folder.path().join("files.tar");
    run(Command::new("tar").arg("-C").arg(source.path()).arg("-cf").arg(&archive).arg("."));
    run(Command::new("mkfs.ext4").arg("-q").arg(&stack.device));
    stack.mount();
    run(Command::new("tar").arg("-C").arg(stack.mount_point()).arg("-xf").arg(&archive));
    stack.umount();
    stack.check();
    stack.mount();
    run(Command::new("diff").arg("-r").arg("--exclude=lost+found").arg(source.path()).arg(stack.mount_point()));
    stack.umount();
    stack.end();
}

#[test]
fn zeroing_punching_and_discarding_never_read_back_wrong() {
    let test = "zeroing_punching_and_discarding_never_read_back_wrong";
    for (punch_hole, seed) in [(PunchHole::WriteZeroes, 0x5eed_0002), (PunchHole::Refuse, 0x5eed_0003)] {
        let Some(stack) = Stack::build(test, Scrambled::new(Bytes(8 << 20)), punch_hole) else { return };
        let zeroed = compare(&stack.device, 8 << 20, BLOCK, seed).unwrap();
        assert!(zeroed >= 10, "{punch_hole:?}: only {zeroed} ranges were zeroed, the test proves nothing");
        stack.end();
    }
}

#[test]
fn a_punched_hole_would_be_noticed() {
    let disk = Scrambled { punches: true, ..Scrambled::new(Bytes(8 << 20)) };
    let Some(stack) = Stack::build("a_punched_hole_would_be_noticed", disk, PunchHole::WriteZeroes) else { return };
    compare(&stack.device, 8 << 20, BLOCK, 0x5eed_0004).unwrap_err();
    stack.end();
}

#[test]
fn trimming_a_mounted_file_system_keeps_its_files() {
    let test = "trimming_a_mounted_file_system_keeps_its_files";
    for (punch_hole, trims) in [(PunchHole::WriteZeroes, true), (PunchHole::Refuse, false)] {
        let Some(stack) = Stack::build(test, Scrambled::new(Bytes(64 << 20)), punch_hole) else { return };
        let source = tempfile::tempdir().unwrap();
        make_tree(source.path(), 1000);
        run(Command::new("mkfs.ext4").arg("-q").arg(&stack.device));
        stack.mount();
        run(Command::new("cp").arg("-r").arg(source.path().join(".")).arg(stack.mount_point()));
        for index in (0..100).step_by(2) {
            fs::remove_dir_all(source.path().join(format!("folder-{index}"))).unwrap();
            fs::remove_dir_all(stack.mount_point().join(format!("folder-{index}"))).unwrap();
        }
        run(&mut Command::new("sync"));
        let trim = try_run(Command::new("fstrim").arg("-v").arg(stack.mount_point()));
        assert_eq!(trim.status.success(), trims, "{punch_hole:?}: {trim:?}");
        stack.umount();
        stack.check();
        stack.mount();
        run(Command::new("diff").arg("-r").arg("--exclude=lost+found").arg(source.path()).arg(stack.mount_point()));
        stack.umount();
        stack.end();
    }
}
