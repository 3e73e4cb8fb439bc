//! What a disk already holds: the magic numbers of file systems, volume managers, partition tables and encryption.
//!
//! [`probe`] is asked before something is formatted, so it would rather name one thing too many than overlook one: a
//! remnant counts, and several names may come back. It is no proof that the thing is whole. Where a magic number is only
//! two bytes long (ext, FAT, DOS partition table) the fields around it must make sense as well, or one disk of noise in
//! 65536 would look used.
//!
//! Bounds: at most [`MAX_READ_BYTES`] are read, in 16 windows at places that only the size decides; nothing found is
//! followed.
//!
//! Source: each format's own on-disk document; libmagic and blkid(8) look at the same places.

use crate::{BlockError, BlockIo, Bytes};

/// Most bytes that one [`probe`] reads from a disk with logical blocks of 4096 bytes or less.
pub const MAX_READ_BYTES: u64 = HEAD_BYTES + TAIL_BYTES + 4 * ZFS_RING_BYTES + 10 * HEADER_WINDOW_BYTES + 16 * 4096;

/// Covers everything up to the btrfs and reiserfs superblocks at 64 KiB.
const HEAD_BYTES: u64 = 72 << 10;
/// Covers the md 0.90 superblock, at most 128 KiB before the end.
const TAIL_BYTES: u64 = 128 << 10;
const ZFS_LABEL_BYTES: u64 = 256 << 10;
/// The uberblocks are the second half of a label.
const ZFS_RING_BYTES: u64 = 128 << 10;
const HEADER_WINDOW_BYTES: u64 = 4096;

/// One thing found on a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signature {
    /// Its usual name: `ext4`, `LVM2 PV`, `LUKS2`.
    pub name: &'static str,
    /// Where its magic number, or the structure around it, begins.
    pub offset: Bytes,
}

/// A name, the place of its magic number, and the number.
struct Magic(&'static str, usize, &'static [u8]);

/// What a magic number of four bytes or more alone proves.
const MAGICS: &[Magic] = &[
    Magic("xfs", 0, b"XFSB"),
    Magic("squashfs", 0, b"hsqs"),
    Magic("squashfs", 0, b"sqsh"),
    Magic("exfat", 3, b"EXFAT   "),
    Magic("ntfs", 3, b"NTFS    "),
    Magic("bitlocker", 3, b"-FVE-FS-"),
    Magic("bitlocker", 424, b"\x3b\xd6\x67\x49\x29\x2e\xd8\x4a\x83\x99\xf6\xa3\x39\xe3\xd0\x01"),
    Magic("GPT", 512, b"EFI PART"),
    Magic("GPT", 4096, b"EFI PART"),
    Magic("f2fs", 1024, b"\x10\x20\xf5\xf2"),
    Magic("erofs", 1024, b"\xe2\xe1\xf5\xe0"),
    Magic("bcache", 4096 + 24, b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf7\x7f\x48\xba\x6d\x81"),
    Magic("bcachefs", 4096 + 24, b"\xc6\x85\x73\xf6\x66\xce\x90\xa9\xd9\x6a\x60\xcf\x80\x3d\xf7\xef"),
    Magic("md raid 1.1", 0, b"\xfc\x4e\x2b\xa9\x01\0\0\0"),
    Magic("md raid 1.2", 4096, b"\xfc\x4e\x2b\xa9\x01\0\0\0"),
    Magic("jfs", 32768, b"JFS1"),
    Magic("iso9660", 32768 + 1, b"CD001"),
    Magic("udf", 32768 + 1, b"BEA01"),
    Magic("btrfs", 65536 + 64, b"_BHRfS_M"),
    Magic("reiserfs", 65536 + 52, b"ReIsErFs"),
    Magic("reiserfs", 65536 + 52, b"ReIsEr2Fs"),
];

const SWAP_PAGES_BYTES: [usize; 5] = [4096, 8192, 16384, 32768, 65536];
const SWAP_MAGICS: [(&str, &[u8]); 5] = [
    ("swap", b"SWAPSPACE2"),
    ("swap", b"SWAP-SPACE"),
    ("suspended swap", b"S1SUSPEND"),
    ("suspended swap", b"S2SUSPEND"),
    ("suspended swap", b"LINHIB0001"),
];
/// Where the second copy of a LUKS2 header begins, by header size.
const LUKS2_SECONDARY: [u64; 9] = [0x4000, 0x8000, 0x10000, 0x20000, 0x40000, 0x80000, 0x10_0000, 0x20_0000, 0x40_0000];
const LUKS_PRIMARY_MAGIC: &[u8] = b"LUKS\xba\xbe";
const LUKS_SECONDARY_MAGIC: &[u8] = b"SKUL\xba\xbe";

/// Names what `disk` holds, in the order of the offsets; nothing for an empty disk or noise.
///
/// # Errors
/// Those of reading.
pub fn probe(disk: &dyn BlockIo) -> Result<Vec<Signature>, BlockError> {
    let mut found = Vec::new();
    let head = read_window(disk, 0, HEAD_BYTES)?;
    probe_head(&head, &mut found);
    probe_luks(disk, &mut found)?;
    probe_tail(disk, &mut found)?;
    probe_zfs(disk, &mut found)?;
    found.sort_by_key(|signature| (signature.offset, signature.name));
    found.dedup();
    Ok(found)
}

/// Part of a disk, less when it ends inside.
struct Piece {
    start_bytes: u64,
    bytes: Vec<u8>,
}

impl Piece {
    /// The bytes at a place of the disk, if all of them were read.
    fn at(&self, offset_bytes: u64, len_bytes: usize) -> Option<&[u8]> {
        let start = usize::try_from(offset_bytes.checked_sub(self.start_bytes)?).ok()?;
        self.bytes.get(start..start.checked_add(len_bytes)?)
    }

    fn has(&self, offset_bytes: u64, magic: &[u8]) -> bool {
        self.at(offset_bytes, magic.len()) == Some(magic)
    }

    fn le16(&self, offset_bytes: u64) -> Option<u16> {
        self.at(offset_bytes, 2)?.try_into().ok().map(u16::from_le_bytes)
    }

    fn le32(&self, offset_bytes: u64) -> Option<u32> {
        self.at(offset_bytes, 4)?.try_into().ok().map(u32::from_le_bytes)
    }

    fn byte(&self, offset_bytes: u64) -> Option<u8> {
        self.at(offset_bytes, 1)?.first().copied()
    }
}

/// Reads what the disk has of a range, in whole logical blocks.
fn read_window(disk: &dyn BlockIo, offset_bytes: u64, len_bytes: u64) -> Result<Piece, BlockError> {
    let geometry = disk.geometry();
    let block = u64::from(geometry.logical_block.max(1));
    let last = geometry.size.0 - geometry.size.0 % block;
    let start = (offset_bytes - offset_bytes % block).min(last);
    let end = offset_bytes.saturating_add(len_bytes).div_ceil(block).saturating_mul(block).min(last);
    let mut bytes = vec![0; usize::try_from(end - start).unwrap_or(0)];
    if !bytes.is_empty() {
        disk.read_at(Bytes(start), &mut bytes)?;
    }
    Ok(Piece { start_bytes: start, bytes })
}

fn probe_head(head: &Piece, found: &mut Vec<Signature>) {
    let mut add = |name, offset: u64| found.push(Signature { name, offset: Bytes(offset) });
    for Magic(name, offset, magic) in MAGICS {
        if head.has(*offset as u64, magic) {
            add(name, *offset as u64);
        }
    }
    if let Some(name) = ext_name(head) {
        add(name, 1024);
    }
    for page in SWAP_PAGES_BYTES {
        for (name, magic) in SWAP_MAGICS {
            if head.has(page as u64 - 10, magic) {
                add(name, page as u64 - 10);
            }
        }
    }
    for sector in 0..4 {
        if head.has(sector * 512, b"LABELONE") && head.has(sector * 512 + 24, b"LVM2 001") {
            add("LVM2 PV", sector * 512);
        }
    }
    if is_fat(head) {
        add("vfat", 0);
    } else if !found.iter().any(|signature| signature.offset == Bytes(3)) && has_partitions(head) {
        found.push(Signature { name: "DOS partition table", offset: Bytes(510) });
    }
}

/// ext2, ext3 or ext4 by the features of the superblock, as their drivers decide.
fn ext_name(head: &Piece) -> Option<&'static str> {
    const SUPERBLOCK: u64 = 1024;
    const HAS_JOURNAL: u32 = 0x4;
    const EXT3_INCOMPATIBLE: u32 = 0x2 | 0x4 | 0x8 | 0x10;
    const EXT3_READ_ONLY_COMPATIBLE: u32 = 0x1 | 0x2 | 0x4;
    const MAX_BLOCK_SHIFT: u32 = 6;
    let field = |offset| head.le32(SUPERBLOCK + offset);
    let plausible = field(0)? != 0 && field(4)? != 0 && field(24)? <= MAX_BLOCK_SHIFT && field(76)? <= 1;
    if head.le16(SUPERBLOCK + 56)? != 0xEF53 || !plausible {
        return None;
    }
    let (compatible, incompatible, read_only_compatible) = (field(92)?, field(96)?, field(100)?);
    Some(if incompatible & !EXT3_INCOMPATIBLE != 0 || read_only_compatible & !EXT3_READ_ONLY_COMPATIBLE != 0 {
        "ext4"
    } else if compatible & HAS_JOURNAL != 0 {
        "ext3"
    } else {
        "ext2"
    })
}

/// A FAT boot sector: the type string, or a parameter block that makes sense.
fn is_fat(head: &Piece) -> bool {
    let fields = || {
        let jump = head.byte(0)?;
        let bytes_per_sector = head.le16(11)?;
        let sectors_per_cluster = head.byte(13)?;
        let reserved_sectors = head.le16(14)?;
        let tables = head.byte(16)?;
        let media = head.byte(21)?;
        Some(
            matches!(jump, 0xEB | 0xE9)
                && matches!(bytes_per_sector, 512 | 1024 | 2048 | 4096)
                && sectors_per_cluster.is_power_of_two()
                && reserved_sectors != 0
                && matches!(tables, 1 | 2)
                && (media == 0xF0 || media >= 0xF8),
        )
    };
    if !head.has(510, &[0x55, 0xAA]) {
        return false;
    }
    let named = head.has(54, b"FAT12   ") || head.has(54, b"FAT16   ") || head.has(82, b"FAT32   ");
    named || fields().unwrap_or(false)
}

/// A DOS partition table with at least one partition, all boot flags being 0 or 0x80.
fn has_partitions(head: &Piece) -> bool {
    const TABLE: u64 = 446;
    const ENTRY_BYTES: u64 = 16;
    let entry = |index: u64| -> Option<(u8, u8, u32)> {
        let start = TABLE + index * ENTRY_BYTES;
        Some((head.byte(start)?, head.byte(start + 4)?, head.le32(start + 12)?))
    };
    let entries: Vec<_> = (0..4).filter_map(entry).collect();
    head.has(510, &[0x55, 0xAA])
        && entries.iter().all(|(flag, ..)| matches!(flag, 0 | 0x80))
        && entries.iter().any(|(_, kind, sectors)| *kind != 0 && *sectors != 0)
}

fn probe_luks(disk: &dyn BlockIo, found: &mut Vec<Signature>) -> Result<(), BlockError> {
    let name = |piece: &Piece, offset: u64| match piece.at(offset + 6, 2) {
        Some([0, 1]) => Some("LUKS1"),
        Some([0, 2]) => Some("LUKS2"),
        Some(_) => Some("LUKS of an unknown version"),
        None => None,
    };
    for (offset, magic) in std::iter::once((0, LUKS_PRIMARY_MAGIC))
        .chain(LUKS2_SECONDARY.into_iter().map(|offset| (offset, LUKS_SECONDARY_MAGIC)))
    {
        let piece = read_window(disk, offset, HEADER_WINDOW_BYTES)?;
        if let Some(name) = name(&piece, offset).filter(|_| piece.has(offset, magic)) {
            found.push(Signature { name, offset: Bytes(offset) });
        }
    }
    Ok(())
}

/// md 0.90 and 1.0 and the backup GPT lie at the end.
fn probe_tail(disk: &dyn BlockIo, found: &mut Vec<Signature>) -> Result<(), BlockError> {
    const MD_MAGIC: u32 = 0xa92b_4efc;
    let size = disk.geometry().size.0;
    let tail = read_window(disk, size.saturating_sub(TAIL_BYTES), TAIL_BYTES)?;
    let mut add = |name, offset| found.push(Signature { name, offset: Bytes(offset) });
    // 0.90: the last whole 64 KiB block, in the byte order of its host.
    if let Some(offset) = (size & !0xffff).checked_sub(0x1_0000) {
        let little = tail.le32(offset) == Some(MD_MAGIC) && tail.le32(offset + 4) == Some(0);
        let big = tail.has(offset, &MD_MAGIC.to_be_bytes()) && tail.le32(offset + 4) == Some(0);
        if little || big {
            add("md raid 0.90", offset);
        }
    }
    // 1.0: at least 8 KiB before the end, on a multiple of 4 KiB.
    if let Some(sector) = (size / 512).checked_sub(16).map(|sector| sector & !7) {
        let offset = sector * 512;
        if tail.le32(offset) == Some(MD_MAGIC) && tail.le32(offset + 4) == Some(1) {
            add("md raid 1.0", offset);
        }
    }
    for block in [512, 4096] {
        match (size - size % block).checked_sub(block) {
            Some(offset) if tail.has(offset, b"EFI PART") => add("GPT", offset),
            _ => {}
        }
    }
    Ok(())
}

/// Four labels, two at each end, each with a ring of uberblocks of 1 KiB or more.
fn probe_zfs(disk: &dyn BlockIo, found: &mut Vec<Signature>) -> Result<(), BlockError> {
    const UBERBLOCK_MAGIC: u64 = 0x00ba_b10c;
    let size = disk.geometry().size.0;
    let Some(labels) = (size - size % ZFS_LABEL_BYTES).checked_sub(2 * ZFS_LABEL_BYTES) else {
        return Ok(());
    };
    for label in [0, ZFS_LABEL_BYTES, labels, labels + ZFS_LABEL_BYTES] {
        let start = label + ZFS_LABEL_BYTES - ZFS_RING_BYTES;
        let ring = read_window(disk, start, ZFS_RING_BYTES)?;
        let hit = (0..ZFS_RING_BYTES / 1024).map(|index| start + index * 1024).find(|&offset| {
            ring.has(offset, &UBERBLOCK_MAGIC.to_le_bytes()) || ring.has(offset, &UBERBLOCK_MAGIC.to_be_bytes())
        });
        if let Some(offset) = hit {
            found.push(Signature { name: "zfs", offset: Bytes(offset) });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
