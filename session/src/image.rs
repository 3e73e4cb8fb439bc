//! The image that a user names: found by path, UUID or label, and checked to be free before anything changes it.
//!
//! * [`resolve`] turns what was typed into one canonical path of a regular file or a block device; a UUID or label that two
//!   devices have is refused.
//! * [`check_not_in_use`] says who uses it: a mount, swap, a loop device on the same inode, a volume stacked on it, or
//!   another server of ours. It is a question, not a claim: who goes on holds [`block::FileDisk::lock_use`], and opens
//!   block devices exclusively.
//! * [`check_no_signature`] names what would be lost by formatting it.
//!
//! Nothing here writes. Sources: proc_pid_mountinfo(5), proc_swaps(5), the LUKS2 on-disk format's binary header.

mod written;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
#[cfg(feature = "loop")]
use std::{
    thread::sleep,
    time::{Duration, Instant},
};

use block::{Direct, FileDisk, LockError, OpenMode};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::{SessionError, mount_table};

pub use written::check_not_written;

const BY_UUID: &str = "/dev/disk/by-uuid";
const BY_LABEL: &str = "/dev/disk/by-label";
const PARTITIONS: &str = "/proc/partitions";
const SWAPS: &str = "/proc/swaps";
const SYS_BLOCK: &str = "/sys/block";
const SYS_CLASS_BLOCK: &str = "/sys/class/block";
/// Block devices looked at for a UUID or a label.
const MAX_DEVICES: usize = 4096;
/// How long a loop device that nobody claims may still be looked at.
#[cfg(feature = "loop")]
const PASSER_BY_WAIT: Duration = Duration::from_secs(3);
#[cfg(feature = "loop")]
const PASSER_BY_POLL: Duration = Duration::from_millis(20);
/// Loop devices looked at.
const MAX_LOOPS: usize = 65536;

/// The canonical path of the file or block device that `spec` names: `UUID=…` and `LABEL=…` of a LUKS header (quotes
/// around the value are allowed), or a path.
///
/// # Errors
/// [`SessionError::Image`] for a tag that no device or several have, and for what is neither a regular file nor a block
/// device; [`SessionError::Io`] for what is missing or forbidden.
pub fn resolve(spec: impl AsRef<Path>) -> Result<PathBuf, SessionError> {
    let path = spec.as_ref();
    // A path need not be UTF-8, a tag always is.
    let spec = path.to_str().unwrap_or("");
    let value = |prefix| spec.strip_prefix(prefix).map(|value: &str| value.trim_matches('"'));
    let path = if let Some(uuid) = value("UUID=") {
        by_tag(spec, Path::new(BY_UUID), &uuid.to_ascii_lowercase(), |header| header.uuid.eq_ignore_ascii_case(uuid))?
    } else if let Some(label) = value("LABEL=") {
        by_tag(spec, Path::new(BY_LABEL), &udev_escaped(label), |header| header.label == label)?
    } else {
        path.to_path_buf()
    };
    let canonical = path.canonicalize().map_err(SessionError::io("find", &path))?;
    let kind = fs::metadata(&canonical).map_err(SessionError::io("look at", &canonical))?.file_type();
    let reason = if kind.is_file() || kind.is_block_device() {
        return Ok(canonical);
    } else if kind.is_dir() {
        "is a directory, not an image or a block device"
    } else {
        "is neither a regular file nor a block device"
    };
    Err(SessionError::Image { image: canonical, reason: reason.to_owned() })
}

/// Checks that nobody uses the file or block device `path`, for a caller who is going to write to it.
///
/// # Errors
/// [`SessionError::ImageInUse`] naming the user; [`SessionError::Io`] if the checks themselves fail.
pub fn check_not_in_use(path: &Path) -> Result<(), SessionError> {
    let metadata = fs::metadata(path).map_err(SessionError::io("look at", path))?;
    let in_use = |how: String| Err(SessionError::ImageInUse { image: path.to_path_buf(), how });
    let is_device = metadata.file_type().is_block_device();
    let stacked = if is_device { block_device_user(path, metadata.rdev())? } else { None };
    if let Some(how) = stacked {
        return in_use(how);
    }
    if let Some(how) = swap_user(&metadata)? {
        return in_use(how);
    }
    if let Some(device) = loops_on(&metadata)?.first() {
        return in_use(format!("{} is attached to it", device.display()));
    }
    if is_device && let Some(how) = backing_user(metadata.rdev())? {
        return in_use(how);
    }
    if is_device && claimed(path)? {
        return in_use("the kernel holds it: a mounted file system, RAID, LVM, a mapping or swap".to_owned());
    }
    match use_lock(path)? {
        None => Ok(()),
        Some(how) => in_use(how),
    }
}

/// Checks that `path` holds nothing that formatting would destroy: no known file system, partition table, volume
/// manager or encryption header.
///
/// # Errors
/// [`SessionError::Image`] naming each thing found and where; [`SessionError::Block`] if it cannot be read.
pub fn check_no_signature(path: &Path) -> Result<(), SessionError> {
    let block_error = |source| SessionError::Block { path: path.to_path_buf(), source };
    let mode = OpenMode { read_only: true, direct: Direct::Never, exclusive: false };
    let disk = FileDisk::open(path, &mode).map_err(block_error)?;
    let found = block::signature::probe(&disk).map_err(block_error)?;
    if found.is_empty() {
        return Ok(());
    }
    let names: Vec<String> = found.iter().map(|one| format!("{} at byte {}", one.name, one.offset.0)).collect();
    Err(SessionError::Image { image: path.to_path_buf(), reason: format!("already holds {}", names.join(", ")) })
}

/// What the binary header says of itself.
struct HeaderNames {
    uuid: String,
    label: String,
}

/// UUID and label from the first sector, of LUKS1 (which has no label) and LUKS2.
fn header_names(sector: &[u8; 512]) -> Option<HeaderNames> {
    let text = |range: std::ops::Range<usize>| {
        let field = sector.get(range)?;
        let end = field.iter().position(|&byte| byte == 0).unwrap_or(field.len());
        std::str::from_utf8(&field[..end]).ok().map(str::to_owned)
    };
    match sector {
        [b'L', b'U', b'K', b'S', 0xba, 0xbe, 0, 2, ..] => {
            Some(HeaderNames { uuid: text(168..208)?, label: text(24..72)? })
        }
        [b'L', b'U', b'K', b'S', 0xba, 0xbe, 0, 1, ..] => {
            Some(HeaderNames { uuid: text(168..208)?, label: String::new() })
        }
        _ => None,
    }
}

fn by_tag(
    spec: &str,
    links: &Path,
    link: &str,
    matches: impl Fn(&HeaderNames) -> bool,
) -> Result<PathBuf, SessionError> {
    let bad = |reason: String| SessionError::Image { image: PathBuf::from(spec), reason };
    if link.is_empty() || link.contains('/') || link.starts_with('.') {
        return Err(bad("is no tag that a header can have".to_owned()));
    }
    // Whoever plugs in a disk chooses its UUID, and udev's link leads to the last comer: it is only one candidate.
    let linked = links.join(link).canonicalize().ok();
    let found = block_devices()?.into_iter().filter(|path| {
        first_sector(path).and_then(|sector| header_names(&sector)).is_some_and(|names| matches(&names))
    });
    let found = without_carriers(Path::new(SYS_CLASS_BLOCK), found.chain(linked).collect());
    match found.as_slice() {
        [] => Err(bad("is the tag of no LUKS header on any block device that can be read here".to_owned())),
        [one] => Ok(one.clone()),
        several => {
            let names: Vec<String> = several.iter().map(|path| path.display().to_string()).collect();
            Err(bad(format!("is the tag of several block devices: {}", names.join(", "))))
        }
    }
}

/// Each device once, and not those that only carry another one of them: a disk below its multipath or RAID 1 device shows
/// the same header.
fn without_carriers(sys: &Path, mut found: Vec<PathBuf>) -> Vec<PathBuf> {
    found.sort();
    found.dedup();
    let name = |path: &Path| path.file_name().map(OsStr::to_owned).unwrap_or_default();
    let names: Vec<_> = found.iter().map(|path| name(path)).collect();
    found.retain(|path| {
        let holders = sys.join(name(path)).join("holders");
        !fs::read_dir(holders).into_iter().flatten().flatten().any(|holder| names.contains(&holder.file_name()))
    });
    found
}

fn block_devices() -> Result<Vec<PathBuf>, SessionError> {
    let table = fs::read_to_string(PARTITIONS).map_err(SessionError::io("read", Path::new(PARTITIONS)))?;
    let name = |line: &str| line.split_ascii_whitespace().nth(3).map(str::to_owned);
    // Two lines of heading. In /proc a '/' of a device name is written '!'.
    let names = table.lines().skip(2).filter_map(name).take(MAX_DEVICES);
    Ok(names.map(|name| Path::new("/dev").join(name.replace('!', "/"))).collect())
}

/// The first 512 bytes; nothing for a device that is missing, empty, broken or not ours to read.
fn first_sector(path: &Path) -> Option<[u8; 512]> {
    // A whole block of 4096 bytes: some devices give nothing smaller.
    let mut block = [0; 4096];
    let mut filled = 0;
    let mut file = File::open(path).ok()?;
    while filled < block.len() {
        match file.read(&mut block[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => return None,
        }
    }
    if filled < 512 { None } else { block.first_chunk().copied() }
}

/// A label as udev writes it in a file name: what is not plain becomes `\xHH`.
fn udev_escaped(label: &str) -> String {
    let mut escaped = String::new();
    for c in label.chars() {
        if c.is_ascii_alphanumeric() || "#+-.:=@_".contains(c) || !c.is_ascii() {
            escaped.push(c);
        } else {
            escaped.push_str(&format!("\\x{:02x}", u32::from(c)));
        }
    }
    escaped
}

/// Mounts of the device and its partitions, and what is stacked on them.
fn block_device_user(path: &Path, rdev: u64) -> Result<Option<String>, SessionError> {
    let number = (rustix::fs::major(rdev), rustix::fs::minor(rdev));
    let folder = PathBuf::from(format!("/sys/dev/block/{}:{}", number.0, number.1));
    let mut devices = vec![(number, path.display().to_string(), folder.clone())];
    for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
        if !entry.path().join("partition").exists() {
            continue;
        }
        let text = fs::read_to_string(entry.path().join("dev")).unwrap_or_default();
        let part =
            text.trim().split_once(':').and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
        if let Some(part) = part {
            devices.push((part, format!("/dev/{}", entry.file_name().to_string_lossy()), entry.path()));
        }
    }
    let mounts = mount_table::read()?;
    for (number, name, folder) in &devices {
        if let Some(mount) = mounts.iter().find(|mount| mount.device == *number) {
            return Ok(Some(format!("{name} is mounted on {}", mount.point.display())));
        }
        if let Some(holder) = fs::read_dir(folder.join("holders")).into_iter().flatten().flatten().next() {
            return Ok(Some(format!("/dev/{} is stacked on {name}", holder.file_name().to_string_lossy())));
        }
    }
    Ok(None)
}

/// Who else uses the file behind a loop device or a partition of one: the device is another name for the same bytes. A
/// file that was renamed or deleted since is not found by its path.
fn backing_user(rdev: u64) -> Result<Option<String>, SessionError> {
    let folder = PathBuf::from(format!("/sys/dev/block/{}:{}", rustix::fs::major(rdev), rustix::fs::minor(rdev)));
    let of_loop = |folder: &Path| fs::read(folder.join("loop/backing_file")).ok();
    let Some(text) = of_loop(&folder).or_else(|| of_loop(&folder.join(".."))) else { return Ok(None) };
    let path = Path::new(OsStr::from_bytes(text.strip_suffix(b"\n").unwrap_or(&text)));
    let Ok(metadata) = fs::metadata(path) else { return Ok(None) };
    let loops = loops_on(&metadata)?;
    let user = if let [one, other, ..] = loops.as_slice() {
        Some(format!("{} and {} are both attached to it", one.display(), other.display()))
    } else {
        swap_user(&metadata)?.map_or_else(|| use_lock(path), |how| Ok(Some(how)))?
    };
    Ok(user.map(|how| format!("it is a loop device on {}: {how}", path.display())))
}

/// Whether it is swap: a file by inode, a device by number.
fn swap_user(image: &fs::Metadata) -> Result<Option<String>, SessionError> {
    let table = match fs::read(SWAPS) {
        // A kernel without swap.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(SessionError::io("read", Path::new(SWAPS)))?,
    };
    for path in swap_paths(&table) {
        if fs::metadata(&path).is_ok_and(|swap| is_same(&swap, image)) {
            return Ok(Some("it is swap space".to_owned()));
        }
    }
    Ok(None)
}

fn swap_paths(table: &[u8]) -> Vec<PathBuf> {
    let lines = table.split(|byte| *byte == b'\n').skip(1);
    lines
        .filter_map(|line| line.split(|byte| matches!(byte, b' ' | b'\t')).next())
        .filter(|field| !field.is_empty())
        .map(|field| PathBuf::from(mount_table::unescape(field)))
        .collect()
}

fn is_same(one: &fs::Metadata, other: &fs::Metadata) -> bool {
    let devices = one.file_type().is_block_device() && other.file_type().is_block_device();
    (one.dev(), one.ino()) == (other.dev(), other.ino()) || (devices && one.rdev() == other.rdev())
}

/// Loop devices on the image, by inode or device number, whatever its path. Who may not ask the devices asks sysfs.
#[cfg(feature = "loop")]
fn loops_on(image: &fs::Metadata) -> Result<Vec<PathBuf>, SessionError> {
    let attached = match dmsetup::attached() {
        Ok(attached) => attached,
        Err(dmsetup::LoopError::Io { source, .. }) if source.kind() == std::io::ErrorKind::PermissionDenied => {
            return loops_in_sysfs(image);
        }
        Err(error) => {
            return Err(SessionError::Io {
                action: "look for loop devices in",
                path: PathBuf::from(SYS_BLOCK),
                source: std::io::Error::other(error),
            });
        }
    };
    let device = image.file_type().is_block_device();
    Ok(attached
        .into_iter()
        .filter(|info| {
            (info.device, info.inode) == (image.dev(), image.ino()) || (device && info.rdevice == image.rdev())
        })
        .take(MAX_LOOPS)
        .map(|info| info.path)
        .collect())
}

/// Waits while nothing but loop devices on their way out is on the image: they detach with their last user, and somebody
/// (udev's rules, blkid) still looks at them.
#[cfg(feature = "loop")]
pub(crate) fn wait_for_passers_by(path: &Path) {
    let Ok(metadata) = fs::metadata(path) else { return };
    let until = Instant::now() + PASSER_BY_WAIT;
    while Instant::now() < until {
        match dmsetup::find_by_backing(metadata.dev(), metadata.ino()) {
            Ok(found) if !found.is_empty() && found.iter().all(is_leaving) => sleep(PASSER_BY_POLL),
            _ => return,
        }
    }
}

/// A loop device of somebody who holds it open for longer looks the same: the wait ends, and it is refused by name.
#[cfg(feature = "loop")]
fn is_leaving(device: &dmsetup::LoopInfo) -> bool {
    device.autoclear && !dmsetup::is_busy(&device.path).unwrap_or(true)
}

/// This build knows no loop devices.
#[cfg(not(feature = "loop"))]
pub(crate) fn wait_for_passers_by(_path: &Path) {}

/// Loop devices on the image.
#[cfg(not(feature = "loop"))]
fn loops_on(image: &fs::Metadata) -> Result<Vec<PathBuf>, SessionError> {
    loops_in_sysfs(image)
}

/// Loop devices whose `backing_file` is, by inode, the image. A backing file that was renamed since goes unnoticed here;
/// the use lock still holds among servers of ours.
fn loops_in_sysfs(image: &fs::Metadata) -> Result<Vec<PathBuf>, SessionError> {
    let folder = Path::new(SYS_BLOCK);
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(SessionError::io("list", folder))?.take(MAX_LOOPS).flatten() {
        let Ok(text) = fs::read(entry.path().join("loop/backing_file")) else { continue };
        let backing = Path::new(OsStr::from_bytes(text.strip_suffix(b"\n").unwrap_or(&text)));
        if fs::metadata(backing).is_ok_and(|backing| is_same(&backing, image)) {
            found.push(Path::new("/dev").join(entry.file_name()));
        }
    }
    found.sort();
    Ok(found)
}

/// Whether an exclusive open of the block device is refused. Sees what mountinfo does not, such as a btrfs member.
fn claimed(path: &Path) -> Result<bool, SessionError> {
    match rustix::fs::open(path, OFlags::RDONLY | OFlags::EXCL | OFlags::CLOEXEC, Mode::empty()) {
        Ok(_) => Ok(false),
        Err(Errno::BUSY) => Ok(true),
        Err(errno) => Err(SessionError::errno("open", path)(errno)),
    }
}

/// Whether a server holds it. An exclusive lock needs a descriptor for writing; who may not write sees writers only.
fn use_lock(path: &Path) -> Result<Option<String>, SessionError> {
    let open = |read_only| FileDisk::open(path, &OpenMode { read_only, direct: Direct::Never, exclusive: false });
    let (disk, shared) = match open(false) {
        Ok(disk) => (disk, false),
        Err(_) => (open(true).map_err(|source| SessionError::Block { path: path.to_path_buf(), source })?, true),
    };
    match disk.lock_use(shared) {
        Ok(_) => Ok(None),
        Err(LockError::Busy { .. }) => Ok(Some("another server or tool of ours has it open".to_owned())),
        Err(error) => {
            Err(SessionError::Io { action: "lock", path: path.to_path_buf(), source: std::io::Error::other(error) })
        }
    }
}

#[cfg(test)]
mod tests;
