//! The device below a mapping: a block device as it is, or a loop device on an image file.
//!
//! * A loop device of ours detaches with its last user, so the mapping alone keeps it, and a killed process leaves none.
//! * The device is of the very file whose header was read: whoever may write to its folder could put another one, or a
//!   link to one, in its place while a key is derived.

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use block::FileDisk;
use dmsetup::{DevNo, DmError, LoopDevice, LoopError, LoopInfo, LoopOptions};

/// A loop device whose last user is gone detaches at once, but for udev that looks at it.
const DETACH_WAIT: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(10);

/// A device that a mapping is about to be made on; it stays while this lives.
#[derive(Debug)]
pub(super) struct Below {
    pub(super) number: DevNo,
    _loop_device: Option<LoopDevice>,
}

impl Below {
    /// The device of `image`; `None` if its path leads to another file now.
    pub(super) fn attach(image: &FileDisk, read_only: bool, sector_bytes: u32) -> Result<Option<Below>, DmError> {
        if let Some((major, minor)) = image.rdev() {
            return Ok(Some(Below { number: DevNo { major, minor }, _loop_device: None }));
        }
        let path = image.path();
        let mut options = LoopOptions { read_only, direct_io: true, block_size: sector_bytes, autoclear: true };
        let mut attached = dmsetup::attach(path, &options);
        if let Err(LoopError::Refused { option: "direct I/O", reason, .. }) = &attached {
            log::warn!("loop device without direct I/O, so the image is cached twice: {reason}");
            options.direct_io = false;
            attached = dmsetup::attach(path, &options);
        }
        let device = attached?;
        let info = device.info()?;
        let is_same = (info.device, info.inode) == image.identity();
        Ok(if is_same { Some(Below { number: device.devno()?, _loop_device: Some(device) }) } else { None })
    }
}

/// Size of the device, in 512-byte sectors; `None` if the kernel has no such device.
pub(super) fn size_sectors(device: DevNo) -> Option<u64> {
    fs::read_to_string(sysfs(device).join("size")).ok()?.trim().parse().ok()
}

/// `/dev/...` of the device.
pub(super) fn node(device: DevNo) -> Option<PathBuf> {
    let text = fs::read_to_string(sysfs(device).join("uevent")).ok()?;
    text.lines().find_map(|line| line.strip_prefix("DEVNAME=")).map(|name| Path::new("/dev").join(name))
}

/// The loop device with this number, and the path of its image as the kernel knows it; `None` if it is no loop device.
pub(super) fn loop_of(device: DevNo) -> Option<(LoopInfo, PathBuf)> {
    let text = fs::read(sysfs(device).join("loop/backing_file")).ok()?;
    let path = std::ffi::OsStr::new(std::str::from_utf8(text.strip_suffix(b"\n").unwrap_or(&text)).ok()?).into();
    Some((dmsetup::info(&node(device)?).ok()??, path))
}

/// Size of the image below a loop device, in 512-byte sectors, as its file system says; `None` if it is no longer found
/// by its path.
pub(super) fn image_sectors(info: &LoopInfo, image: &Path) -> Option<u64> {
    let metadata = fs::metadata(image).ok()?;
    if metadata.file_type().is_block_device() {
        return size_sectors(DevNo::from_rdev(metadata.rdev())).map(|size| size.saturating_sub(info.offset.0 / 512));
    }
    let same = (metadata.dev(), metadata.ino()) == (info.device, info.inode);
    same.then(|| metadata.len().saturating_sub(info.offset.0) / 512)
}

/// Waits until a loop device that detaches with its last user has done so: its image is free then.
pub(super) fn wait_until_detached(before: &LoopInfo) {
    let until = Instant::now() + DETACH_WAIT;
    while before.autoclear && Instant::now() < until {
        match dmsetup::info(&before.path) {
            Ok(Some(now)) if (now.device, now.inode) == (before.device, before.inode) => sleep(POLL),
            _ => return,
        }
    }
    if before.autoclear {
        log::warn!("{} stays attached: another process has it open", before.path.display());
    }
}

fn sysfs(device: DevNo) -> PathBuf {
    PathBuf::from(format!("/sys/dev/block/{device}"))
}
