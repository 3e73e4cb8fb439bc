//! [`super::FileDisk`] on regular files, through the page cache and past it. Block devices need root: see
//! `tests/tests/file_disk.rs`.

#![allow(clippy::cast_possible_truncation)] // Sizes here are small.

use super::*;
use crate::AlignedBuf;
use proptest::prelude::*;
use std::os::unix::fs::{FileExt, PermissionsExt};

const SIZE: usize = 3 * BOUNCE_BYTES + 4096;

fn image(len_bytes: usize) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(len_bytes as u64).unwrap();
    file
}

fn open(file: &tempfile::NamedTempFile, direct: Direct) -> FileDisk {
    FileDisk::open(file.path(), &OpenMode { direct, ..OpenMode::default() }).unwrap()
}

fn kind<R>(result: Result<R, BlockError>) -> BlockErrorKind {
    result.map(|_| ()).map_err(|error| error.kind).unwrap_err()
}

/// Ranges that begin and end next to block and bounce boundaries as often as anywhere.
fn edge() -> impl Strategy<Value = usize> {
    let near = |unit: usize| (0..=SIZE / unit, -2_i64..=2).prop_map(move |(n, by)| (n * unit) as i64 + by);
    prop_oneof![near(512), near(4096), near(BOUNCE_BYTES), 0..=SIZE as i64]
        .prop_map(|at| at.clamp(0, SIZE as i64) as usize)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn direct_and_cached_access_agree_at_every_byte(
        ranges in prop::collection::vec((edge(), edge(), any::<u8>(), 0..3_usize, any::<bool>()), 1..8),
        direct in any::<bool>(),
    ) {
        let file = image(SIZE);
        let disk = open(&file, if direct { Direct::IfPossible } else { Direct::Never });
        let mut model = vec![0_u8; SIZE];
        for (a, b, byte, shift, fua) in ranges {
            let (start, end) = (a.min(b), a.max(b));
            // A shifted buffer is aligned for nobody.
            let mut data = AlignedBuf::zeroed(end - start + shift);
            for (at, slot) in data.iter_mut().enumerate() {
                *slot = byte.wrapping_add((at / 7) as u8);
            }
            disk.write_at(Bytes(start as u64), &data[shift..], fua).unwrap();
            model[start..end].copy_from_slice(&data[shift..]);
            let mut seen = AlignedBuf::zeroed(end - start + shift);
            disk.read_at(Bytes(start as u64), &mut seen[shift..]).unwrap();
            prop_assert!(seen[shift..] == model[start..end]);
        }
        let all = std::fs::read(file.path()).unwrap();
        prop_assert_eq!(all.len(), SIZE);
        prop_assert!(all == model);
    }
}

#[test]
fn a_direct_file_says_what_it_needs_and_is_direct() {
    let file = image(1 << 20);
    let Ok(disk) = FileDisk::open(file.path(), &OpenMode { direct: Direct::Always, ..OpenMode::default() }) else {
        println!("the folder for temporary files has no direct I/O");
        return;
    };
    assert!(disk.is_direct() && fs::fcntl_getfl(&disk).unwrap().contains(OFlags::DIRECT));
    let geometry = disk.geometry();
    assert!(geometry.memory_alignment.is_power_of_two() && geometry.physical_block >= geometry.logical_block);
    assert!(!open(&file, Direct::Never).is_direct());
}

#[test]
fn threads_that_share_blocks_of_a_direct_file_lose_no_bytes() {
    const GRAIN: usize = 100;
    const THREADS: usize = 4;
    let file = image(64 << 10);
    let disk = open(&file, Direct::IfPossible);
    std::thread::scope(|scope| {
        for owner in 0..THREADS {
            let disk = disk.clone();
            scope.spawn(move || {
                for run in (owner..(64 << 10) / GRAIN).step_by(THREADS) {
                    disk.write_at(Bytes((run * GRAIN) as u64), &[owner as u8 + 1; GRAIN], false).unwrap();
                }
            });
        }
    });
    let all = std::fs::read(file.path()).unwrap();
    for (at, &byte) in all.iter().enumerate().take((64 << 10) / GRAIN * GRAIN) {
        assert_eq!(usize::from(byte), at / GRAIN % THREADS + 1, "byte {at}");
    }
}

#[test]
fn a_write_never_makes_a_file_longer() {
    let file = image(8192);
    for direct in [Direct::Never, Direct::IfPossible] {
        let disk = open(&file, direct);
        assert_eq!(kind(disk.write_at(Bytes(8191), &[1, 2], false)), BlockErrorKind::OutOfRange);
        assert_eq!(kind(disk.write_at(Bytes(u64::MAX), &[1, 2], false)), BlockErrorKind::OutOfRange);
        assert_eq!(kind(disk.read_at(Bytes(8192), &mut [0])), BlockErrorKind::OutOfRange);
        assert_eq!(kind(disk.write_zeroes(Bytes(4096), Bytes(8192))), BlockErrorKind::OutOfRange);
        // Grown to an odd size while open: its last bytes have no whole block to be written in.
        disk.set_len(Bytes(8200)).unwrap();
        let result = disk.write_at(Bytes(8192), &[1; 8], false);
        assert_eq!(result.is_ok(), !disk.is_direct());
        assert_eq!(std::fs::metadata(file.path()).unwrap().len(), 8200);
        disk.set_len(Bytes(8192)).unwrap();
    }
}

#[test]
fn an_odd_file_is_opened_through_the_page_cache_or_not_at_all() {
    let file = image(8192 + 100);
    let disk = open(&file, Direct::IfPossible);
    assert!(!disk.is_direct());
    disk.write_at(Bytes(8192 + 99), &[7], false).unwrap();
    let always = OpenMode { direct: Direct::Always, ..OpenMode::default() };
    assert_eq!(kind(FileDisk::open(file.path(), &always)), BlockErrorKind::Unsupported);
}

#[test]
fn growth_is_seen_without_reopening() {
    let file = image(4096);
    let disk = open(&file, Direct::IfPossible);
    assert_eq!(kind(disk.read_at(Bytes(4096), &mut [0; 512])), BlockErrorKind::OutOfRange);
    file.as_file().set_len(8192).unwrap();
    disk.read_at(Bytes(4096), &mut [0; 512]).unwrap();
    assert_eq!(disk.geometry().size, Bytes(8192));
}

#[test]
fn read_only_refuses_every_change() {
    let file = image(8192);
    let disk = FileDisk::open(file.path(), &OpenMode { read_only: true, ..OpenMode::default() }).unwrap();
    assert!(disk.geometry().read_only);
    assert_eq!(kind(disk.write_at(Bytes(0), &[1; 512], false)), BlockErrorKind::ReadOnly);
    assert_eq!(kind(disk.write_zeroes(Bytes(0), Bytes(512))), BlockErrorKind::ReadOnly);
    assert_eq!(kind(disk.discard(Bytes(0), Bytes(512))), BlockErrorKind::ReadOnly);
    disk.flush().unwrap();
}

#[test]
fn zeroed_ranges_read_as_zeros_and_the_rest_stays() {
    let file = image(64 << 10);
    let disk = open(&file, Direct::IfPossible);
    for discard in [false, true] {
        disk.write_at(Bytes(0), &vec![6; 64 << 10], false).unwrap();
        let (offset, len) = (Bytes(8192), Bytes(16384));
        match if discard { disk.discard(offset, len) } else { disk.write_zeroes(offset, len) } {
            Err(error) if error.kind == BlockErrorKind::Unsupported => continue,
            result => result.unwrap(),
        }
        let mut seen = [9; 3];
        file.as_file().read_exact_at(&mut seen, 8191).unwrap();
        assert_eq!(seen, [6, 0, 0]);
        file.as_file().read_exact_at(&mut seen, 8192 + 16384 - 2).unwrap();
        assert_eq!(seen, [0, 0, 6]);
    }
}

#[test]
fn preallocation_makes_the_file_long_and_too_much_is_no_space() {
    let file = image(0);
    let disk = open(&file, Direct::Never);
    disk.preallocate(Bytes(1 << 20)).unwrap();
    let blocks = fs::fstat(&disk).unwrap().st_blocks;
    assert_eq!((disk.geometry().size, blocks * 512 >= 1 << 20), (Bytes(1 << 20), true));
    // Longer than any file can be, so nothing is allocated before it fails.
    assert_eq!(kind(disk.preallocate(Bytes(i64::MAX as u64))), BlockErrorKind::NoSpace);
}

#[test]
fn only_files_and_devices_are_disks_and_a_pipe_does_not_hang() {
    let folder = tempfile::tempdir().unwrap();
    assert!(FileDisk::open(folder.path(), &OpenMode::default()).is_err());
    let pipe = folder.path().join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert_eq!(kind(FileDisk::open(&pipe, &OpenMode::default())), BlockErrorKind::Unsupported);
    assert_eq!(kind(FileDisk::open(Path::new("/dev/null"), &OpenMode::default())), BlockErrorKind::Unsupported);
    assert_eq!(kind(FileDisk::open(&folder.path().join("none"), &OpenMode::default())), BlockErrorKind::Gone);
}

#[test]
fn a_new_file_is_private_and_never_replaces_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("new.img");
    let disk = FileDisk::create_new(&path, &OpenMode::default()).unwrap();
    disk.set_len(Bytes(4096)).unwrap();
    disk.sync_name().unwrap();
    let metadata = std::fs::metadata(&path).unwrap();
    assert_eq!((metadata.permissions().mode() & 0o777, metadata.len()), (0o600, 4096));
    assert_eq!(kind(FileDisk::create_new(&path, &OpenMode::default())), BlockErrorKind::Exists);
}
