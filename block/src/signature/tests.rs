//! Each format by its real mkfs where that is installed, and by hand where not; noise and empty disks; the read bound.

use super::*;
use crate::{Geometry, MemDisk};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};

fn names(disk: &dyn BlockIo) -> Vec<&'static str> {
    probe(disk).unwrap().into_iter().map(|signature| signature.name).collect()
}

/// A 16 MiB disk with some bytes written.
fn disk_with(pieces: &[(u64, &[u8])]) -> MemDisk {
    let disk = MemDisk::new(Bytes(16 << 20));
    for (offset, bytes) in pieces {
        let start = offset - offset % 512;
        let skip = usize::try_from(offset - start).unwrap();
        let mut sectors = vec![0; (skip + bytes.len()).next_multiple_of(512)];
        disk.read_at(Bytes(start), &mut sectors).unwrap();
        sectors[skip..skip + bytes.len()].copy_from_slice(bytes);
        disk.write_at(Bytes(start), &sectors, false).unwrap();
    }
    disk
}

/// What a program makes of a sparse file of that size, or `None` if it is not installed.
fn made_by(size_bytes: u64, program: &str, arguments: &[&str]) -> Option<MemDisk> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    std::fs::File::create(&path).unwrap().set_len(size_bytes).unwrap();
    let found = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"].iter().map(|dir| Path::new(dir).join(program));
    let Some(program) = found.into_iter().find(|path| path.exists()) else {
        eprintln!("SKIPPED block::signature with {program}: not installed");
        return None;
    };
    let status = Command::new(&program)
        .args(arguments)
        .arg(&path)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success(), "{}", program.display());
    // Sparse in memory as well: zero chunks are not stored.
    let disk = MemDisk::new(Bytes(size_bytes));
    let content = std::fs::read(&path).unwrap();
    for (index, chunk) in content.chunks(65536).enumerate().filter(|(_, chunk)| chunk.iter().any(|&byte| byte != 0)) {
        disk.write_at(Bytes(index as u64 * 65536), chunk, false).unwrap();
    }
    Some(disk)
}

#[test]
fn empty_small_and_odd_disks_hold_nothing() {
    for size in [0, 512, 1024, 4096, 4608, 65536, 131_072, 1 << 20, (1 << 20) + 512, 16 << 20] {
        assert_eq!(names(&MemDisk::new(Bytes(size))), [""; 0], "{size} bytes");
    }
    assert_eq!(names(&MemDisk::with_block(Bytes(16 << 20), 4096)), [""; 0]);
}

#[test]
fn every_magic_of_the_table_is_found_where_it_belongs() {
    for Magic(name, offset, magic) in MAGICS {
        let disk = disk_with(&[(*offset as u64, magic)]);
        assert_eq!(probe(&disk).unwrap(), [Signature { name, offset: Bytes(*offset as u64) }]);
    }
}

#[test]
fn ext_family_by_mkfs() {
    for (kind, offset) in [("ext2", 1024), ("ext3", 1024), ("ext4", 1024)] {
        if let Some(disk) = made_by(16 << 20, "mke2fs", &["-q", "-F", "-t", kind]) {
            assert_eq!(probe(&disk).unwrap(), [Signature { name: kind, offset: Bytes(offset) }]);
        }
    }
}

#[test]
fn other_file_systems_by_mkfs() {
    let cases: [(&str, u64, &str, &[&str]); 6] = [
        ("xfs", 400 << 20, "mkfs.xfs", &["-q", "-f"]),
        ("btrfs", 256 << 20, "mkfs.btrfs", &["-q", "-f"]),
        ("vfat", 16 << 20, "mkfs.vfat", &[]),
        ("exfat", 16 << 20, "mkfs.exfat", &[]),
        ("ntfs", 16 << 20, "mkfs.ntfs", &["-F", "-Q", "-q"]),
        ("f2fs", 128 << 20, "mkfs.f2fs", &["-q", "-f"]),
    ];
    for (name, size, program, arguments) in cases {
        if let Some(disk) = made_by(size, program, arguments) {
            assert_eq!(names(&disk), [name]);
        }
    }
}

#[test]
fn swap_of_any_page_size() {
    if let Some(disk) = made_by(16 << 20, "mkswap", &["-q"]).or_else(|| made_by(16 << 20, "mkswap", &[])) {
        assert_eq!(names(&disk), ["swap"]);
    }
    for page in SWAP_PAGES_BYTES {
        let disk = disk_with(&[(page as u64 - 10, b"SWAPSPACE2")]);
        assert_eq!(names(&disk), ["swap"], "{page}");
    }
}

#[test]
fn both_luks_copies_are_named_and_the_second_alone_too() {
    let arguments = ["luksFormat", "-q", "--type", "luks2", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"];
    let keyed: Vec<&str> = arguments.iter().copied().chain(["--key-file", "/etc/hostname"]).collect();
    if let Some(disk) = made_by(32 << 20, "cryptsetup", &keyed) {
        let copies = [0, 0x4000].map(|offset| Signature { name: "LUKS2", offset: Bytes(offset) });
        assert_eq!(probe(&disk).unwrap(), copies);
        disk.write_at(Bytes(0), &[0; 4096], false).unwrap();
        assert_eq!(probe(&disk).unwrap(), copies[1..]);
    }
    for offset in LUKS2_SECONDARY {
        let disk = disk_with(&[(offset, b"SKUL\xba\xbe\0\x02")]);
        assert_eq!(probe(&disk).unwrap(), [Signature { name: "LUKS2", offset: Bytes(offset) }]);
    }
    assert_eq!(names(&disk_with(&[(0, b"LUKS\xba\xbe\0\x01")])), ["LUKS1"]);
    assert_eq!(names(&disk_with(&[(0, b"LUKS\xba\xbe\0\x09")])), ["LUKS of an unknown version"]);
    assert_eq!(names(&disk_with(&[(8192, b"SKUL\xba\xbe\0\x02")])), [""; 0], "no header has that size");
}

#[test]
fn partition_tables_need_a_partition() {
    let mut sector = [0; 512];
    sector[510..].copy_from_slice(&[0x55, 0xAA]);
    assert_eq!(names(&disk_with(&[(0, &sector)])), [""; 0], "an empty table");
    sector[446 + 4] = 0x83;
    sector[446 + 12..446 + 16].copy_from_slice(&100_u32.to_le_bytes());
    assert_eq!(names(&disk_with(&[(0, &sector)])), ["DOS partition table"]);
    sector[446 + 16] = 0x17;
    assert_eq!(names(&disk_with(&[(0, &sector)])), [""; 0], "a boot flag that cannot be");

    let size = 16 << 20;
    for block in [512, 4096] {
        let disk = disk_with(&[(block, b"EFI PART"), (size - block, b"EFI PART")]);
        let both = [block, size - block].map(|offset| Signature { name: "GPT", offset: Bytes(offset) });
        assert_eq!(probe(&disk).unwrap(), both);
    }
}

#[test]
fn a_fat_boot_sector_is_not_a_partition_table() {
    let mut sector = [0xF6_u8; 512];
    sector[..3].copy_from_slice(&[0xEB, 0x3C, 0x90]);
    sector[11..13].copy_from_slice(&512_u16.to_le_bytes());
    sector[13] = 4;
    sector[14..16].copy_from_slice(&1_u16.to_le_bytes());
    sector[16] = 2;
    sector[21] = 0xF8;
    sector[510..].copy_from_slice(&[0x55, 0xAA]);
    assert_eq!(names(&disk_with(&[(0, &sector)])), ["vfat"]);
    sector[13] = 5;
    assert_eq!(names(&disk_with(&[(0, &sector)])), [""; 0], "five sectors per cluster");
    sector[54..62].copy_from_slice(b"FAT16   ");
    assert_eq!(names(&disk_with(&[(0, &sector)])), ["vfat"]);
}

#[test]
fn volume_managers() {
    for sector in 0..4 {
        let disk = disk_with(&[(sector * 512, b"LABELONE"), (sector * 512 + 24, b"LVM2 001")]);
        assert_eq!(probe(&disk).unwrap(), [Signature { name: "LVM2 PV", offset: Bytes(sector * 512) }]);
    }
    assert_eq!(names(&disk_with(&[(2048, b"LABELONE\0LVM2 001"), (2048 + 24, b"LVM2 001")])), [""; 0]);

    // An odd size, so that the rounding of the two formats at the end differs.
    let size = (16 << 20) + 5 * 512;
    let disk = MemDisk::new(Bytes(size));
    let mut superblock = [0; 512];
    superblock[..8].copy_from_slice(b"\xfc\x4e\x2b\xa9\x01\0\0\0");
    disk.write_at(Bytes(((size / 512 - 16) & !7) * 512), &superblock, false).unwrap();
    assert_eq!(names(&disk), ["md raid 1.0"]);
    for magic in [b"\xfc\x4e\x2b\xa9\0\0\0\0", b"\xa9\x2b\x4e\xfc\0\0\0\0"] {
        let disk = MemDisk::new(Bytes(size));
        superblock[..8].copy_from_slice(magic);
        disk.write_at(Bytes((16 << 20) - 65536), &superblock, false).unwrap();
        assert_eq!(names(&disk), ["md raid 0.90"]);
    }
}

#[test]
fn zfs_labels_at_both_ends() {
    let ends = [128 << 10, (256 + 128) << 10, (16 << 20) - (384 << 10), (16 << 20) - (4 << 10)];
    for offset in ends {
        for magic in [0x00ba_b10c_u64.to_le_bytes(), 0x00ba_b10c_u64.to_be_bytes()] {
            let disk = disk_with(&[(offset, &magic)]);
            assert_eq!(probe(&disk).unwrap(), [Signature { name: "zfs", offset: Bytes(offset) }]);
        }
    }
}

#[test]
fn two_byte_magics_alone_prove_nothing() {
    assert_eq!(names(&disk_with(&[(1024 + 56, &[0x53, 0xEF])])), [""; 0]);
    assert_eq!(names(&disk_with(&[(510, &[0x55, 0xAA])])), [""; 0]);
    // Noise with exactly those magics: no field around them makes sense.
    let mut state = 1_u64;
    let mut noise: Vec<u8> = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3] | 0x40
    })
    .take(1 << 20)
    .collect();
    noise[1024 + 56..1024 + 58].copy_from_slice(&[0x53, 0xEF]);
    noise[510..512].copy_from_slice(&[0x55, 0xAA]);
    assert_eq!(names(&MemDisk::from_bytes(&noise)), [""; 0]);
}

#[test]
fn several_remnants_are_all_named() {
    let disk = disk_with(&[(0, b"LUKS\xba\xbe\0\x02"), (4096 - 10, b"SWAPSPACE2"), (65536 + 64, b"_BHRfS_M")]);
    assert_eq!(names(&disk), ["LUKS2", "swap", "btrfs"]);
}

/// Counts what is read.
struct Counting(MemDisk, AtomicU64);

impl BlockIo for Counting {
    fn geometry(&self) -> Geometry {
        self.0.geometry()
    }
    fn read_at(&self, offset: Bytes, buf: &mut [u8]) -> Result<(), BlockError> {
        self.1.fetch_add(buf.len() as u64, Ordering::Relaxed);
        self.0.read_at(offset, buf)
    }
    fn write_at(&self, _: Bytes, _: &[u8], _: bool) -> Result<(), BlockError> {
        panic!("probing never writes")
    }
    fn write_zeroes(&self, _: Bytes, _: Bytes) -> Result<(), BlockError> {
        panic!("probing never writes")
    }
    fn discard(&self, _: Bytes, _: Bytes) -> Result<(), BlockError> {
        panic!("probing never writes")
    }
    fn flush(&self) -> Result<(), BlockError> {
        panic!("probing never writes")
    }
}

#[test]
fn reads_no_more_than_promised() {
    for (size, block) in [(1 << 40, 512), ((1 << 40) + 3 * 4096, 4096)] {
        let disk = Counting(MemDisk::with_block(Bytes(size), block), AtomicU64::new(0));
        assert_eq!(names(&disk), [""; 0]);
        let read = disk.1.load(Ordering::Relaxed);
        assert!((1..=MAX_READ_BYTES).contains(&read), "{read} bytes");
    }
}
