//! File systems on open volumes: made, checked, grown, by the programs of each.
//!
//! Sources: mke2fs(8), e2fsck(8) (its exit codes are bits), resize2fs(8), mkfs.xfs(8), xfs_repair(8), xfs_growfs(8),
//! mkfs.btrfs(8), btrfs-check(8), btrfs-filesystem(8).

use std::ffi::OsString;
use std::path::Path;

use crate::VolumesError;
use crate::config::FileSystem;
use crate::program::{failed, run, succeed, words};

/// Longest label of each file system, in bytes.
const EXT4_LABEL_BYTES: usize = 16;
const XFS_LABEL_BYTES: usize = 12;
const BTRFS_LABEL_BYTES: usize = 255;
/// e2fsck: nothing is wrong, or all of it was corrected.
const E2FSCK_GOOD: [i32; 2] = [0, 1];
/// e2fsck: errors are left.
const E2FSCK_ERRORS: i32 = 4;

fn arguments(words: &[&str], last: &Path) -> Vec<OsString> {
    words.iter().map(OsString::from).chain([last.as_os_str().to_owned()]).collect()
}

/// Makes an empty file system on `device`, over whatever is there. The disk is not discarded first: it is encrypted
/// noise, and has to stay it.
pub(crate) fn make(kind: FileSystem, device: &Path, label: &str) -> Result<(), VolumesError> {
    let label = |most: usize| &label[..label.len().min(most)];
    match kind {
        FileSystem::Ext4 => {
            succeed("mkfs.ext4", &arguments(&["-q", "-F", "-E", "nodiscard", "-L", label(EXT4_LABEL_BYTES)], device))
        }
        FileSystem::Xfs => succeed("mkfs.xfs", &arguments(&["-q", "-f", "-K", "-L", label(XFS_LABEL_BYTES)], device)),
        FileSystem::Btrfs => {
            succeed("mkfs.btrfs", &arguments(&["-q", "-f", "-K", "-L", label(BTRFS_LABEL_BYTES)], device))
        }
        FileSystem::None => Ok(()),
    }
}

/// What a check found.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Checked {
    /// Whether nothing is wrong, or nothing any more.
    pub good: bool,
    /// What the program said.
    pub words: String,
}

/// Looks for errors of the file system on `device`, which must not be mounted; mends them if `repair`.
pub(crate) fn check(kind: FileSystem, device: &Path, repair: bool) -> Result<Checked, VolumesError> {
    let (program, options): (&'static str, &[&str]) = match (kind, repair) {
        (FileSystem::Ext4, false) => ("e2fsck", &["-f", "-n"]),
        (FileSystem::Ext4, true) => ("e2fsck", &["-f", "-p"]),
        (FileSystem::Xfs, false) => ("xfs_repair", &["-n"]),
        (FileSystem::Xfs, true) => ("xfs_repair", &[]),
        (FileSystem::Btrfs, false) => ("btrfs", &["check", "--readonly"]),
        (FileSystem::Btrfs, true) => ("btrfs", &["check", "--repair", "--force"]),
        (FileSystem::None, _) => return Ok(Checked { good: true, words: "there is no file system".to_owned() }),
    };
    let output = run(program, &arguments(options, device))?;
    let code = output.status.code();
    let good = match kind {
        FileSystem::Ext4 => code.is_some_and(|code| E2FSCK_GOOD.contains(&code)),
        _ => code == Some(0),
    };
    let found_errors = match kind {
        // A journal that it cannot read adds its own bit.
        FileSystem::Ext4 => code.is_some_and(|code| code & E2FSCK_ERRORS != 0),
        _ => code == Some(1),
    };
    if good || found_errors { Ok(Checked { good, words: words(&output) }) } else { Err(failed(program, &output)) }
}

/// Makes the file system on `device` as large as the device. XFS and Btrfs have to be mounted for that, at `mounted`.
pub(crate) fn grow(kind: FileSystem, device: &Path, mounted: Option<&Path>) -> Result<(), VolumesError> {
    let needs_mount = |program| VolumesError::Program { program, reason: "it grows only mounted ones".to_owned() };
    match (kind, mounted) {
        (FileSystem::Ext4, _) => succeed("resize2fs", &arguments(&[], device)),
        (FileSystem::Xfs, Some(mounted)) => succeed("xfs_growfs", &arguments(&[], mounted)),
        (FileSystem::Btrfs, Some(mounted)) => succeed("btrfs", &arguments(&["filesystem", "resize", "max"], mounted)),
        (FileSystem::Xfs, None) => Err(needs_mount("xfs_growfs")),
        (FileSystem::Btrfs, None) => Err(needs_mount("btrfs")),
        (FileSystem::None, _) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    #[test]
    fn ext4_in_a_file_is_made_grown_and_checked_and_damage_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        File::create(&path).unwrap().set_len(4 << 20).unwrap();
        make(FileSystem::Ext4, &path, "a-label-that-is-much-too-long").unwrap();
        assert!(check(FileSystem::Ext4, &path, false).unwrap().good);
        File::options().write(true).open(&path).unwrap().set_len(8 << 20).unwrap();
        grow(FileSystem::Ext4, &path, None).unwrap();
        assert!(check(FileSystem::Ext4, &path, false).unwrap().good);
        // The inode table's first blocks.
        let noise = vec![0x5a; 64 << 10];
        std::os::unix::fs::FileExt::write_all_at(&File::options().write(true).open(&path).unwrap(), &noise, 8192)
            .unwrap();
        let checked = check(FileSystem::Ext4, &path, false).unwrap();
        assert!(!checked.good, "{checked:?}");
    }
}
