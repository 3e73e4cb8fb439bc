//! The mount table of this process: what is mounted where, and from which device.
//!
//! Source: proc_pid_mountinfo(5). Spaces, tabs, line feeds and backslashes are written `\ooo` there.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use crate::SessionError;

const TABLE: &str = "/proc/self/mountinfo";

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mount {
    pub(crate) device: (u32, u32),
    pub(crate) point: PathBuf,
    pub(crate) kind: String,
}

/// Every mount that this process sees, in the order of mounting.
pub(crate) fn read() -> Result<Vec<Mount>, SessionError> {
    let table = std::fs::read(TABLE).map_err(SessionError::io("read", Path::new(TABLE)))?;
    Ok(parse(&table))
}

fn parse(table: &[u8]) -> Vec<Mount> {
    table.split(|byte| *byte == b'\n').filter_map(parse_line).collect()
}

fn parse_line(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|byte| *byte == b' ');
    let device = std::str::from_utf8(fields.nth(2)?).ok()?;
    let (major, minor) = device.split_once(':')?;
    let point = unescape(fields.nth(1)?);
    let kind = fields.skip_while(|field| *field != b"-").nth(1)?;
    Some(Mount {
        device: (major.parse().ok()?, minor.parse().ok()?),
        point: PathBuf::from(point),
        kind: String::from_utf8_lossy(kind).into_owned(),
    })
}

pub(crate) fn unescape(field: &[u8]) -> OsString {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, after)) = rest.split_first() {
        let octal = after.get(..3).filter(|_| first == b'\\').and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[3..];
            }
            None => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    OsString::from_vec(bytes)
}

/// Where the block device at `path` is mounted.
pub(crate) fn points_of_device(path: &Path) -> Result<Vec<PathBuf>, SessionError> {
    let metadata = std::fs::metadata(path).map_err(SessionError::io("look at", path))?;
    if !metadata.file_type().is_block_device() {
        return Ok(Vec::new());
    }
    let number = (rustix::fs::major(metadata.rdev()), rustix::fs::minor(metadata.rdev()));
    Ok(read()?.into_iter().filter(|mount| mount.device == number).map(|mount| mount.point).collect())
}

/// The topmost mount on exactly this path.
pub(crate) fn mounted_on(point: &Path) -> Result<Option<Mount>, SessionError> {
    Ok(read()?.into_iter().rev().find(|mount| mount.point.as_os_str().as_bytes() == point.as_os_str().as_bytes()))
}

/// Whether something is mounted on exactly `point`, whose path has no symbolic links.
///
/// # Errors
/// [`SessionError::Io`] if the table cannot be read.
pub fn is_mount_point(point: &Path) -> Result<bool, SessionError> {
    Ok(mounted_on(point)?.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_point_with_a_space_and_optional_fields_is_read() {
        let table = b"22 27 0:21 / /proc rw,relatime - proc proc rw\n\
            40 27 7:12 / /mnt/a\\040b\\134c rw shared:5 master:1 - ext4 /dev/loop12 rw\nbroken line\n";
        let mounts = parse(table);
        assert_eq!(mounts.len(), 2);
        assert_eq!(mounts[1].point, Path::new("/mnt/a b\\c"));
        assert_eq!((mounts[1].device, mounts[1].kind.as_str()), ((7, 12), "ext4"));
    }

    #[test]
    fn the_running_table_has_a_root() {
        assert!(mounted_on(Path::new("/")).unwrap().is_some());
        assert!(mounted_on(Path::new("/proc/self/no such mount")).unwrap().is_none());
    }
}
